//! The scheduler as a model: CPUs that run, sleep, wake and look when they are told to, over simulated time.
use std::vec::Vec;

use super::settings::{set_affinity, set_cap, set_weight};
use super::*;
use crate::fake::{FakeHardware, Op, Random, World};

/// What a vCPU does with its CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Does {
    /// Runs for ever.
    Spins,
    /// Runs so many ticks, then sleeps so many.
    Sleeps(u64, u64),
    /// Runs so many ticks, then yields.
    Yields(u64),
}

/// One vCPU of the model.
struct Guest<'a> {
    vcpu: &'a Vcpu,
    does: Does,
    /// Ticks until it does something.
    left: u64,
    /// When it sleeps: when it wakes.
    wakes: u64,
    ran: u64,
    /// Longest time between waking and running.
    latest: u64,
    woke: Option<u64>,
}

/// CPUs, and what each runs.
struct Model<'a> {
    world: &'a World,
    now: u64,
    guests: Vec<Guest<'a>>,
    running: Vec<Option<usize>>,
    look: Vec<u64>,
    switches: Vec<u64>,
}

/// Ticks of one step of the model: 20 us.
const STEP: u64 = 1250;
const SECOND: u64 = crate::fake::COUNTER_FREQUENCY;

impl<'a> Model<'a> {
    /// The first vCPUs of the domains, domain by domain, two each, as many as `does` has.
    fn new(world: &'a World, cpus: usize, does: &[Does]) -> Self {
        let vcpus = world.machine.domains.iter().flat_map(|domain| domain.vcpus);
        let guests: Vec<_> = vcpus
            .zip(does)
            .map(|(vcpu, does)| {
                let left = match *does {
                    Does::Spins => u64::MAX,
                    Does::Sleeps(runs, _) | Does::Yields(runs) => runs,
                };
                Guest { vcpu, does: *does, left, wakes: 0, ran: 0, latest: 0, woke: None }
            })
            .collect();
        for guest in &guests {
            if cpus == 1 {
                assert!(set_affinity(&world.machine, guest.vcpu, 1));
            }
            assert!(start(&world.machine, guest.vcpu));
        }
        Self {
            world,
            now: 0,
            guests,
            running: vec![None; cpus],
            look: vec![0; cpus],
            switches: vec![0; cpus],
        }
    }

    fn machine(&self) -> &'a Machine<FakeHardware> {
        &self.world.machine
    }

    /// Lets a CPU look, as the image does.
    fn look(&mut self, cpu: usize) {
        let id = CpuId(u8::try_from(cpu).unwrap());
        let before = self.running[cpu];
        let running =
            before.map(|guest| self.guests[guest].vcpu).filter(|vcpu| vcpu.run.get() == Run::Running);
        pass(self.machine(), id, self.now);
        let choice = self.machine().sched.choose(self.machine(), id, self.now, running);
        self.look[cpu] = choice.look;
        let chosen = choice
            .next
            .map(|next| self.guests.iter().position(|guest| guest.vcpu.index == next.index).unwrap());
        if chosen != before {
            self.switches[cpu] += 1;
            if let Some(before) = before {
                self.guests[before].vcpu.on.clear();
                self.machine().sched.offer(self.machine(), self.guests[before].vcpu);
            }
        }
        self.running[cpu] = chosen;
        if let Some(guest) = chosen {
            let guest = &mut self.guests[guest];
            assert_eq!((guest.vcpu.run.get(), guest.vcpu.home.get()), (Run::Running, id));
            assert!(guest.vcpu.on.get().is_none_or(|on| on == id), "its registers are elsewhere");
            assert!(guest.vcpu.allowed.load(Relaxed) & bit(id) != 0);
            guest.vcpu.on.set(id);
            if let Some(woke) = guest.woke.take() {
                guest.latest = guest.latest.max(self.now - woke);
            }
        }
    }

    /// CPUs that were kicked look.
    fn serve_kicks(&mut self) {
        for op in self.machine().hw.take_ops() {
            if let Op::Kick(cpu) = op
                && usize::from(cpu.0) < self.look.len()
            {
                self.look[usize::from(cpu.0)] = 0;
            }
        }
    }

    fn step(&mut self) {
        self.machine().hw.advance(STEP);
        self.now += STEP;
        for index in 0..self.guests.len() {
            if self.guests[index].wakes != 0 && self.guests[index].wakes <= self.now {
                self.guests[index].wakes = 0;
                self.guests[index].woke = Some(self.now);
                let vcpu = self.guests[index].vcpu;
                assert!(awaken(self.machine(), vcpu));
                join(self.machine(), None, vcpu, Joins::Wakes);
            }
        }
        for cpu in 0..self.running.len() {
            if let Some(index) = self.running[cpu] {
                self.run(cpu, index);
            }
        }
        self.serve_kicks();
        for cpu in 0..self.look.len() {
            if self.look[cpu] <= self.now {
                self.look(cpu);
                self.serve_kicks();
            }
        }
        self.check();
    }

    /// A vCPU runs for a step.
    fn run(&mut self, cpu: usize, index: usize) {
        let machine = self.machine();
        let guest = &mut self.guests[index];
        guest.ran += STEP;
        guest.left = guest.left.saturating_sub(STEP);
        if guest.left != 0 {
            return;
        }
        match guest.does {
            Does::Spins => guest.left = u64::MAX,
            Does::Sleeps(runs, sleeps) => {
                guest.left = runs;
                guest.wakes = self.now + sleeps;
                machine.sched.charge(machine, guest.vcpu, self.now);
                guest.vcpu.run.set(Run::Blocked);
                self.look[cpu] = 0;
            }
            Does::Yields(runs) => {
                guest.left = runs;
                guest.vcpu.share.yields.store(true, Relaxed);
                self.look[cpu] = 0;
            }
        }
    }

    /// What must hold between steps: everybody who is runnable is in one queue, and no CPU idles while somebody may use it.
    fn check(&self) {
        let sched = &self.machine().sched;
        for guest in &self.guests {
            let index = guest.vcpu.index;
            let queues = (0..2).filter(|cpu| {
                let queue = sched.cpus[*cpu].queue.lock();
                queue.ready.entries().iter().any(|entry| entry.vcpu == index)
            });
            let expected =
                usize::from(guest.vcpu.run.get() == Run::Runnable && !guest.vcpu.share.parked.load(Relaxed));
            assert_eq!(queues.count(), expected, "{index:?} at {}", self.now);
        }
        for (cpu, running) in self.running.iter().enumerate() {
            let able = |guest: &Guest<'_>| {
                guest.vcpu.run.get() == Run::Runnable
                    && sched.allowance(self.machine(), guest.vcpu, self.now).is_ok()
                    && !guest.vcpu.share.parked.load(Relaxed)
                    && guest.vcpu.allowed.load(Relaxed) & 1 << cpu != 0
            };
            let soon = self.look[cpu] <= self.now;
            assert!(
                running.is_some() || soon || !self.guests.iter().any(able),
                "CPU {cpu} idles at {}",
                self.now
            );
        }
    }

    fn run_for(&mut self, ticks: u64) {
        let end = self.now + ticks;
        while self.now < end {
            self.step();
        }
    }

    fn ran(&self) -> Vec<u64> {
        self.guests.iter().map(|guest| guest.ran).collect()
    }
}

/// Whether each part of the whole is within 5 % of its weight.
fn assert_shares(ran: &[u64], weights: &[u64]) {
    let (all, total) = (ran.iter().sum::<u64>(), weights.iter().sum::<u64>());
    for (ran, weight) in ran.iter().zip(weights) {
        let due = all * weight / total;
        assert!(ran.abs_diff(due) * 20 <= due, "{ran} instead of {due}, of {all}");
    }
}

#[test]
fn equals_share_a_cpu_equally_and_all_of_it() {
    let world = World::new(4);
    let mut model = Model::new(&world, 1, &[Does::Spins; 8]);
    model.run_for(SECOND);
    assert_shares(&model.ran(), &[1; 8]);
    assert!(model.ran().iter().sum::<u64>() >= SECOND - 2 * STEP);
    assert!(model.switches[0] <= 501, "turns are 2 ms: {}", model.switches[0]);
}

#[test]
fn weights_share_a_cpu_in_their_ratio() {
    let world = World::new(4);
    for (domain, weight) in world.machine.domains.iter().zip([128, 256, 512, 1024]) {
        set_weight(domain, weight);
    }
    let mut model = Model::new(&world, 1, &[Does::Spins; 8]);
    model.run_for(SECOND);
    assert_shares(&model.ran(), &[1, 1, 2, 2, 4, 4, 8, 8]);
}

#[test]
fn odd_numbers_share_two_cpus_equally_by_moving() {
    for count in [3, 5, 7] {
        let world = World::new(4);
        let mut model = Model::new(&world, 2, &vec![Does::Spins; count]);
        model.run_for(SECOND);
        assert_shares(&model.ran(), &vec![1; count]);
        assert!(model.ran().iter().sum::<u64>() >= 2 * SECOND - 40 * STEP, "both are busy");
    }
}

#[test]
fn weights_hold_over_two_cpus_and_nobody_gets_more_than_one() {
    let world = World::new(4);
    for (domain, weight) in world.machine.domains.iter().zip([64, 128, 256, 512]) {
        set_weight(domain, weight);
    }
    let mut model = Model::new(&world, 2, &[Does::Spins; 8]);
    model.run_for(SECOND);
    // 1 + 1 + 2 + 2 + 4 + 4 + 8 + 8 = 30 parts of two CPUs: the largest is 0.53 of one.
    assert_shares(&model.ran(), &[1, 1, 2, 2, 4, 4, 8, 8]);

    let world = World::new(2);
    set_weight(&world.machine.domains[0], 60_000);
    let mut model = Model::new(&world, 2, &[Does::Spins; 4]);
    model.run_for(SECOND);
    let ran = model.ran();
    // Both heavy ones have a CPU each, nearly.
    assert!(ran[0] + ran[1] > 2 * SECOND * 95 / 100, "{ran:?}");
}

#[test]
fn a_vcpu_that_outweighs_its_cpu_does_not_save_time_up_against_newcomers() {
    let world = World::new(2);
    set_weight(&world.machine.domains[0], 2560);
    let mut model = Model::new(&world, 2, &[Does::Spins, Does::Spins, Does::Spins]);
    // The second vCPU weighs as much and has a CPU too; the third gets 1/21 of two.
    model.run_for(SECOND);
    let before = model.ran();
    assert!(before[0].abs_diff(before[1]) < SECOND / 20, "{before:?}");
    // One that comes now shares with the other light one, at once.
    let fourth = &world.machine.domains[1].vcpus[1];
    model.guests.push(Guest {
        vcpu: fourth,
        does: Does::Spins,
        left: u64::MAX,
        wakes: 0,
        ran: 0,
        latest: 0,
        woke: Some(model.now),
    });
    assert!(start(&world.machine, fourth));
    model.serve_kicks();
    model.run_for(SECOND);
    let (third, fourth) = (model.ran()[2] - before[2], model.ran()[3]);
    assert!(third.abs_diff(fourth) * 10 < third, "{third} {fourth}");
}

#[test]
fn a_cap_holds_on_an_idle_machine_and_for_all_vcpus_together() {
    for (percent, spinning) in [(30, 1), (50, 2), (120, 2)] {
        let world = World::new(1);
        set_cap(&world.machine.domains[0], percent);
        let mut model = Model::new(&world, 2, &vec![Does::Spins; spinning]);
        model.run_for(SECOND);
        let (ran, due) = (model.ran().iter().sum::<u64>(), SECOND * u64::from(percent) / 100);
        assert!(ran.abs_diff(due) * 20 <= due, "{ran} instead of {due}");
    }
}

#[test]
fn what_a_capped_domain_may_not_use_goes_to_the_others() {
    let world = World::new(2);
    set_cap(&world.machine.domains[0], 20);
    let mut model = Model::new(&world, 1, &[Does::Spins, Does::Spins, Does::Spins]);
    model.run_for(SECOND);
    assert_shares(&model.ran(), &[10, 10, 80]);
}

#[test]
fn who_sleeps_a_lot_runs_soon_after_waking_beside_four_that_spin() {
    let world = World::new(3);
    // By its own running it comes as close behind the pool's time as it can.
    let does = [Does::Sleeps(STEP, SECOND / 1000), Does::Spins, Does::Spins, Does::Spins, Does::Spins];
    let mut model = Model::new(&world, 1, &does);
    // At first nobody has had anything.
    model.run_for(SECOND / 50);
    model.guests[0].latest = 0;
    model.run_for(SECOND);
    let grain = Ticks::new(SECOND).grain;
    assert!(model.guests[0].latest <= grain + 2 * STEP, "{} ticks", model.guests[0].latest);
    assert_shares(&model.ran()[1..], &[1; 4]);
}

#[test]
fn who_yields_gives_the_cpu_to_another_however_little_it_has_had() {
    let world = World::new(1);
    let mut model = Model::new(&world, 1, &[Does::Spins, Does::Yields(STEP)]);
    model.run_for(SECOND);
    // The one spins for its turns of 2 ms, the other yields after a step: each of its stays is followed by a turn.
    let turns = model.ran()[0] / Ticks::new(SECOND).turn;
    let stays = model.ran()[1] / STEP;
    assert!(stays <= turns + turns / 4, "{stays} stays, {turns} turns");
}

#[test]
fn storms_of_wake_ups_and_yields_take_nothing_from_who_spins() {
    for attack in [Does::Sleeps(STEP, STEP), Does::Yields(STEP), Does::Sleeps(8 * STEP, STEP)] {
        let world = World::new(3);
        let does = [Does::Spins, Does::Spins, attack, attack, attack, attack];
        let mut model = Model::new(&world, 1, &does);
        model.run_for(SECOND);
        for spinner in &model.ran()[..2] {
            // A sixth of the CPU is theirs, whatever the others do.
            assert!(*spinner >= SECOND / 6 * 98 / 100, "{spinner}: {attack:?}");
        }
        // Invariant 4: a vCPU that was given the CPU has it for a grain, unless it gives it away; each attacker's stay is one more switch.
        let spun = model.ran()[..2].iter().sum::<u64>();
        let interrupted = spun / Ticks::new(SECOND).grain;
        assert!(interrupted <= SECOND / Ticks::new(SECOND).grain);
    }
}

#[test]
fn a_vcpu_that_may_use_one_cpu_is_never_elsewhere_and_is_moved_when_that_changes() {
    let world = World::new(2);
    let mut model = Model::new(&world, 2, &[Does::Spins; 4]);
    assert!(!set_affinity(&world.machine, model.guests[0].vcpu, 0b100), "there is no such CPU");
    let mut random = Random::new(3);
    for _ in 0..200 {
        let guest = usize::try_from(random.below(4)).unwrap();
        let vcpu = model.guests[guest].vcpu;
        let cpus = u32::try_from(1 + random.below(3)).unwrap();
        assert!(set_affinity(&world.machine, vcpu, cpus));
        for cpu in 0..2 {
            // What the image does at the kick.
            if model.running[cpu] == Some(guest)
                && !world.machine.sched.allows(vcpu, CpuId(u8::try_from(cpu).unwrap()))
            {
                vcpu.on.clear();
                model.running[cpu] = None;
                world.machine.sched.put_out(&world.machine, vcpu);
                model.look[cpu] = 0;
            }
        }
        model.serve_kicks();
        model.run_for(random.below(SECOND / 100));
    }
}

#[test]
fn random_guests_are_never_lost_and_cpus_never_idle_beside_work() {
    for seed in 1..=20 {
        let mut random = Random::new(seed);
        let world = World::new(4);
        for domain in world.machine.domains {
            set_weight(domain, u16::try_from(1 + random.below(2000)).unwrap());
            if random.below(3) == 0 {
                set_cap(domain, u32::try_from(1 + random.below(150)).unwrap());
            }
        }
        let does: Vec<_> = (0..8)
            .map(|_| match random.below(4) {
                0 => Does::Spins,
                1 => Does::Yields(STEP * (1 + random.below(50))),
                _ => Does::Sleeps(STEP * (1 + random.below(200)), STEP * (1 + random.below(300))),
            })
            .collect();
        let mut model = Model::new(&world, 2, &does);
        model.run_for(SECOND / 4);
        for guest in &model.guests {
            assert!(guest.ran > 0, "{:?} of {does:?} never ran", guest.vcpu.index);
        }
    }
}
