//! The scheduler as a model: CPUs that run, sleep, wake and look when they are told to, over simulated time. What the image does around
//! [`Scheduler::choose`] (`el2/run.rs`) is done here by [`Model::settle`].
use std::vec::Vec;

use super::settings::set_affinity;
use super::*;
use crate::domain::{Domain, Fault, Life};
use crate::fake::{FakeHardware, LeakedStorage, Op, Random, World};

/// What a vCPU does with its CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Does {
    /// Runs for ever.
    Spins,
    /// Runs so many ticks, then sleeps so many.
    Sleeps(u64, u64),
    /// Runs so many ticks, then yields.
    Yields(u64),
    /// Runs so many ticks, starts the guest of this number, and goes off.
    Relays(u64, usize),
}

/// One vCPU of the model.
pub(super) struct Guest<'a> {
    pub(super) vcpu: &'a Vcpu,
    pub(super) does: Does,
    /// Ticks until it does something.
    pub(super) left: u64,
    /// When it sleeps: when it wakes.
    pub(super) wakes: u64,
    pub(super) ran: u64,
    /// Longest time between waking and running.
    pub(super) latest: u64,
    pub(super) woke: Option<u64>,
    /// What it had run when it was given its CPU.
    pub(super) given: u64,
}

/// CPUs, and what each runs.
pub(super) struct Model<'a> {
    pub(super) world: &'a World,
    pub(super) now: u64,
    pub(super) guests: Vec<Guest<'a>>,
    pub(super) running: Vec<Option<usize>>,
    pub(super) look: Vec<u64>,
    pub(super) switches: Vec<u64>,
    /// How late CPUs look, at most, in ticks; and what is drawn for each by what.
    pub(super) late: u64,
    pub(super) lateness: Vec<u64>,
    pub(super) random: Random,
    /// How often one that spins lost the CPU before its turn was over.
    pub(super) preemptions: u64,
}

/// Ticks of one step of the model: 20 us.
pub(super) const STEP: u64 = 1250;
pub(super) const SECOND: u64 = crate::fake::COUNTER_FREQUENCY;

/// Gives a machine of eight domains so many CPUs; the last one is a partition of domain 8's, if there is to be one.
pub(super) fn with_cpus(cpus: usize, partition: bool) -> World {
    let mut world = World::new(8);
    let all = (1_u32 << cpus) - 1;
    let own = if partition { 1 << (cpus - 1) } else { 0 };
    let mut masks = [all & !own, own].into_iter();
    let pools = [(); MAX_POOLS].map(|()| {
        let kind = if masks.len() == 1 { Kind::Partition } else { Kind::Fair };
        Pool::new(kind, masks.next().unwrap_or(0))
    });
    world.machine.sched =
        Scheduler::new(&LeakedStorage, cpus, MAX_VCPUS, crate::fake::COUNTER_FREQUENCY, pools).unwrap();
    for domain in world.machine.domains {
        for vcpu in domain.vcpus {
            let alone = partition && domain.id.0 == 8;
            vcpu.pool.store(u8::from(alone), Relaxed);
            vcpu.allowed.store(if alone { own } else { all & !own }, Relaxed);
            vcpu.home.set(if alone { CpuId(u8::try_from(cpus - 1).unwrap()) } else { CpuId(0) });
        }
    }
    world
}

impl<'a> Model<'a> {
    /// The first vCPUs of the domains, domain by domain, two each, as many as `does` has.
    pub(super) fn new(world: &'a World, cpus: usize, does: &[Does]) -> Self {
        let vcpus = world.machine.domains.iter().flat_map(|domain| domain.vcpus);
        let guests: Vec<_> = vcpus
            .zip(does)
            .map(|(vcpu, does)| {
                let left = match *does {
                    Does::Spins => u64::MAX,
                    Does::Sleeps(runs, _) | Does::Yields(runs) | Does::Relays(runs, _) => runs,
                };
                Guest { vcpu, does: *does, left, wakes: 0, ran: 0, latest: 0, woke: None, given: 0 }
            })
            .collect();
        for guest in &guests {
            if cpus == 1 && world.machine.sched.cpus.len() > 1 {
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
            preemptions: 0,
            late: 0,
            lateness: vec![0; cpus],
            random: Random::new(11),
        }
    }

    pub(super) fn machine(&self) -> &'a Machine<FakeHardware> {
        &self.world.machine
    }

    /// What becomes of the vCPU that a CPU has, before it chooses; itself when it wants to go on.
    fn settle(&mut self, cpu: usize) -> Option<&'a Vcpu> {
        let (machine, vcpu) = (self.machine(), self.guests[self.running[cpu]?].vcpu);
        let domain = machine.domain(vcpu.domain).unwrap();
        if !domain.life.is_running() {
            vcpu.on.clear();
            if vcpu.run.get() == Run::Running {
                vcpu.run.set(Run::Offline);
            }
            return None;
        }
        if !machine.sched.allows(vcpu, CpuId(u8::try_from(cpu).unwrap())) {
            vcpu.on.clear();
            machine.sched.put_out(machine, vcpu);
            return None;
        }
        match vcpu.run.get() {
            Run::Running => match pause::stops(machine, domain, vcpu) {
                Hold::None => return Some(vcpu),
                Hold::Paused => {}
                Hold::TakenBack => resume(machine, None, vcpu),
            },
            Run::Blocked | Run::Runnable | Run::Offline | Run::Paused => {}
        }
        None
    }

    /// Ends a domain, as the control domain does.
    pub(super) fn destroy(&mut self, domain: &Domain) {
        domain.life.end(Life::Destroyed(Fault::ByControl));
        // Every CPU that has one of its vCPUs is told.
        for (cpu, running) in self.running.iter().enumerate() {
            if running.is_some_and(|guest| self.guests[guest].vcpu.domain == domain.id) {
                self.look[cpu] = 0;
            }
        }
    }

    /// Lets a CPU look, as the image does.
    fn look(&mut self, cpu: usize) {
        let id = CpuId(u8::try_from(cpu).unwrap());
        let before = self.running[cpu];
        let running = self.settle(cpu);
        pass(self.machine(), id, self.now);
        let choice = self.machine().sched.choose(self.machine(), id, self.now, running);
        self.look[cpu] = choice.look;
        let chosen = choice
            .next
            .map(|next| self.guests.iter().position(|guest| guest.vcpu.index == next.index).unwrap());
        if chosen != before {
            self.switches[cpu] += 1;
            if let Some(before) = before {
                let guest = &self.guests[before];
                let preempted = guest.does == Does::Spins && guest.vcpu.run.get() == Run::Runnable;
                let had = guest.ran - guest.given;
                self.preemptions += u64::from(preempted && had + STEP < self.machine().sched.ticks.turn);
                if guest.vcpu.on.get() == Some(id) {
                    guest.vcpu.on.clear();
                }
                self.machine().sched.offer(self.machine(), guest.vcpu);
            }
            if let Some(chosen) = chosen {
                self.guests[chosen].given = self.guests[chosen].ran;
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
    pub(super) fn serve_kicks(&mut self) {
        for op in self.machine().hw.take_ops() {
            if let Op::Kick(cpu) = op
                && usize::from(cpu.0) < self.look.len()
            {
                self.look[usize::from(cpu.0)] = 0;
            }
        }
    }

    pub(super) fn step(&mut self) {
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
            if self.look[cpu].saturating_add(self.lateness[cpu]) <= self.now {
                self.lateness[cpu] = self.random.below(self.late + 1);
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
                let home = machine.sched.cpu(guest.vcpu.home.get()).unwrap();
                machine.sched.charge(machine, home, guest.vcpu, self.now);
                guest.vcpu.run.set(Run::Blocked);
                self.look[cpu] = 0;
            }
            Does::Yields(runs) => {
                guest.left = runs;
                guest.vcpu.share.yields.store(true, Relaxed);
                self.look[cpu] = 0;
            }
            Does::Relays(runs, to) => {
                guest.left = runs;
                let vcpu = guest.vcpu;
                start(machine, self.guests[to].vcpu);
                vcpu.on.clear();
                go_off(machine, vcpu);
                self.look[cpu] = 0;
            }
        }
    }

    /// What must hold between steps: everybody who is runnable is in one queue, and no CPU idles while somebody may use it.
    fn check(&self) {
        let sched = &self.machine().sched;
        for guest in &self.guests {
            let index = guest.vcpu.index;
            let queues = (0..sched.cpus.len()).filter(|cpu| {
                let queue = sched.cpus[*cpu].queue.lock();
                queue.ready.entries().iter().any(|entry| entry.vcpu == index)
            });
            let expected =
                usize::from(guest.vcpu.run.get() == Run::Runnable && !guest.vcpu.share.parked.load(Relaxed));
            assert_eq!(queues.count(), expected, "{index:?} at {}", self.now);
        }
        for (cpu, running) in self.running.iter().enumerate() {
            let able = |guest: &Guest<'_>| {
                let domain = self.machine().domain(guest.vcpu.domain).unwrap();
                // Another that idles too and was told of it has it in a moment.
                let allowed = |cpu: usize| guest.vcpu.allowed.load(Relaxed) & 1 << cpu != 0;
                let told = |cpu: usize| self.running[cpu].is_none() && self.look[cpu] <= self.now;
                let goes = (0..self.look.len()).any(|cpu| allowed(cpu) && told(cpu));
                guest.vcpu.run.get() == Run::Runnable
                    && !goes
                    && domain.life.is_running()
                    && sched.allowance(self.machine(), guest.vcpu, self.now).is_ok()
                    && !guest.vcpu.share.parked.load(Relaxed)
                    && allowed(cpu)
            };
            let soon = self.look[cpu] <= self.now;
            if let Some(guest) = self.guests.iter().find(|guest| running.is_none() && !soon && able(guest)) {
                let vcpu = guest.vcpu;
                panic!(
                    "CPU {cpu} idles at {} beside {:?}, which is at {:?} and may use {:#b}",
                    self.now,
                    vcpu.index,
                    vcpu.home.get(),
                    vcpu.allowed.load(Relaxed)
                );
            }
        }
    }

    pub(super) fn run_for(&mut self, ticks: u64) {
        let end = self.now + ticks;
        while self.now < end {
            self.step();
        }
    }

    /// What each vCPU runs in so many ticks from now.
    pub(super) fn ran_in(&mut self, ticks: u64) -> Vec<u64> {
        let before = self.ran();
        self.run_for(ticks);
        self.ran().iter().zip(before).map(|(after, before)| after - before).collect()
    }

    pub(super) fn ran(&self) -> Vec<u64> {
        self.guests.iter().map(|guest| guest.ran).collect()
    }
}
