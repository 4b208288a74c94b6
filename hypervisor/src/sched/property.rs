//! Random guests on one to eight CPUs in one or two pools, with random changes of weight, cap and affinity, pauses and ends while they run. [`Model`] looks
//! after each step that nobody is lost and that no CPU idles beside work; afterwards, with settings left alone, shares and caps must be kept.
use std::vec::Vec;

use super::model::{Does, Model, SECOND, STEP, with_cpus};
use super::settings::{set_affinity, set_cap, set_weight};
use super::*;
use crate::domain::Domain;
use crate::fake::{Random, World};

/// What is tried, each on a machine of its own.
const SEEDS: u64 = 24;
/// Changes while they run.
const CHANGES: u64 = 60;
/// How long settings are left alone, and how long shares are looked at then.
const SETTLES: u64 = SECOND / 20;
const WINDOW: u64 = SECOND / 2;

/// The domain that has the partition, if there is one, which is the last one.
const ALONE: u16 = 8;

struct Trial<'a> {
    seed: u64,
    random: Random,
    world: &'a World,
    model: Model<'a>,
    cpus: usize,
    partition: bool,
}

impl<'a> Trial<'a> {
    fn new(seed: u64, world: &'a World, cpus: usize, partition: bool, mut random: Random) -> Self {
        let does: Vec<_> = (0..16 - usize::from(partition))
            .map(|index| match random.below(4) {
                // The partition's, which is the last one.
                _ if index == 14 && partition => Does::Spins,
                0 | 1 => Does::Spins,
                2 => Does::Yields(STEP * (1 + random.below(50))),
                _ => Does::Sleeps(STEP * (1 + random.below(200)), STEP * (1 + random.below(300))),
            })
            .collect();
        Self { seed, random, world, model: Model::new(world, cpus, &does), cpus, partition }
    }

    fn below(&mut self, limit: u64) -> usize {
        usize::try_from(self.random.below(limit)).unwrap()
    }

    /// Weight and cap of a domain, anew.
    fn settings(&mut self, domain: &Domain) {
        set_weight(domain, u16::try_from(64 + self.random.below(961)).unwrap());
        let cap = if self.random.below(3) == 0 { 10 + self.random.below(190) } else { 0 };
        set_cap(domain, u32::try_from(cap).unwrap());
    }

    fn change(&mut self) {
        let domain = &self.world.machine.domains[self.below(8)];
        let alone = self.partition && domain.id.0 == ALONE;
        let current = self.world.current(domain.id.0, 0);
        match self.below(12) {
            0..3 => self.settings(domain),
            3..6 => {
                let cpus = u32::try_from(self.random.below(1 << self.cpus)).unwrap();
                let vcpu = &domain.vcpus[self.below(2)];
                let fair = (1 << (self.cpus - usize::from(self.partition))) - 1;
                let taken = set_affinity(&self.world.machine, vcpu, cpus);
                assert!(vcpu.pool.load(Relaxed) == 1 || taken == (cpus & fair != 0), "{cpus:#b}");
            }
            6..8 => pause::pause(&self.world.machine, &current, domain).unwrap(),
            8..11 => _ = pause::unpause(&self.world.machine, &current, domain),
            _ if !alone && self.random.below(4) == 0 => self.model.destroy(domain),
            _ => {}
        }
        // The caller is on CPU 0, and tells itself.
        self.model.look[0] = 0;
        self.model.serve_kicks();
    }

    /// Whoever is paused goes on, and everybody may use all CPUs.
    fn let_all_go(&mut self) {
        for domain in self.world.machine.domains {
            let current = self.world.current(domain.id.0, 0);
            while pause::unpause(&self.world.machine, &current, domain).is_ok() {}
            self.settings(domain);
            for vcpu in domain.vcpus {
                set_affinity(&self.world.machine, vcpu, CpuMask::MAX);
            }
        }
        self.model.look[0] = 0;
        self.model.serve_kicks();
    }

    /// What each vCPU runs in the window.
    fn measure(&mut self) -> Vec<u64> {
        self.model.run_for(SETTLES);
        self.model.ran_in(WINDOW)
    }

    fn domain_of(&self, guest: usize) -> &'a Domain {
        self.world.machine.domain(self.model.guests[guest].vcpu.domain).unwrap()
    }

    /// Those that spin in the first pool without a cap, and what they ran.
    fn spinners(&self, ran: &[u64]) -> Vec<(u64, u64)> {
        let spins = |guest: &usize| {
            let domain = self.domain_of(*guest);
            self.model.guests[*guest].does == Does::Spins
                && domain.life.is_running()
                && domain.cap.percent() == 0
                && !(self.partition && domain.id.0 == ALONE)
        };
        let share = |guest: usize| (u64::from(self.model.guests[guest].vcpu.share.weight()), ran[guest]);
        (0..ran.len()).filter(spins).map(share).collect()
    }

    fn check(&self, ran: &[u64]) {
        let seed = self.seed;
        let turn = Ticks::new(SECOND).turn;
        for (guest, ran) in ran.iter().enumerate() {
            let domain = self.domain_of(guest);
            if self.partition && domain.id.0 == ALONE {
                assert_eq!(*ran, WINDOW, "seed {seed}: the partition");
            } else if domain.life.is_running() {
                assert_ne!(*ran, 0, "seed {seed}: vCPU {guest} never ran");
            } else {
                assert_eq!(*ran, 0, "seed {seed}: vCPU {guest} ran after its end");
            }
        }
        for domain in self.world.machine.domains.iter().filter(|domain| domain.cap.percent() != 0) {
            let of_domain =
                |(guest, ran): (usize, &u64)| (self.domain_of(guest).id == domain.id).then_some(*ran);
            let all: u64 = ran.iter().enumerate().filter_map(of_domain).sum();
            // An allowance may be run at the start of the first period and of the one after the last, and what is over is a debt.
            let most =
                u64::from(domain.cap.percent()) * (WINDOW + Ticks::new(SECOND).period) / 100 + 2 * STEP;
            let alone = self.partition && domain.id.0 == ALONE;
            assert!(alone || all <= most, "seed {seed}: {:?} ran {all}, not {most}", domain.id);
        }
        let spinners = self.spinners(ran);
        for (weight, ran) in &spinners {
            for (other, had) in spinners.iter().filter(|(other, _)| other >= weight) {
                // Who weighs more has no less, and no more than by its weight: less where that would be more than a CPU.
                assert!(*ran <= had + had / 20 + 2 * turn, "seed {seed}: {weight} ran {ran}, {other} {had}");
                let due = had * weight / other;
                assert!(
                    *ran + ran / 20 + 2 * turn >= due,
                    "seed {seed}: {weight} ran {ran}, not {due}: {other} ran {had}"
                );
            }
        }
        let fair = self.cpus - usize::from(self.partition);
        if spinners.len() >= fair {
            let alone = |guest: &usize| self.partition && self.domain_of(*guest).id.0 == ALONE;
            let all: u64 = (0..ran.len()).filter(|guest| !alone(guest)).map(|guest| ran[guest]).sum();
            let due = WINDOW * u64::try_from(fair).unwrap();
            assert!(all >= due - due / 50, "seed {seed}: CPUs ran {all} of {due}");
        }
    }
}

#[test]
fn random_guests_under_random_changes_are_never_lost_and_then_have_their_shares() {
    for seed in 1..=SEEDS {
        let mut random = Random::new(seed);
        let cpus = usize::try_from(1 + random.below(8)).unwrap();
        let partition = cpus > 1 && random.below(2) == 0;
        // Shown where the test fails.
        std::println!("seed {seed}: {cpus} CPUs, partition {partition}");
        let world = with_cpus(cpus, partition);
        let mut trial = Trial::new(seed, &world, cpus, partition, random);
        for _ in 0..CHANGES {
            trial.change();
            let ticks = trial.random.below(SECOND / 200);
            trial.model.run_for(ticks);
        }
        trial.let_all_go();
        let ran = trial.measure();
        trial.check(&ran);
    }
}
