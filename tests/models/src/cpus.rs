//! CPUs that share vCPUs: each a thread that does what the image does around the scheduler (`el2/run.rs`), and what a guest on it may ask for, at random.
//!
//! When the threads have ended, CPUs that were told look until none is told any more; then what must hold is checked ([`Cpus::check`]).
use std::cell::Cell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering as Plain};

use hypervisor::domain::{Domain, Fault, Life, Stage};
use hypervisor::fake::{COUNTER_FREQUENCY, FakeHardware, World};
use hypervisor::hardware::{CpuId, Hardware};
use hypervisor::machine::{Current, Machine};
use hypervisor::pause::{self, Hold};
use hypervisor::sched::{self, Idled, check, settings};
use hypervisor::vcpu::{Run, Vcpu};
use hypervisor::vgic::PrivateIntid;
use hypervisor::{life, runstate, sched_op};
use model_core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use shuttle::rand::Rng;
use shuttle::thread;

/// What guests do how often, of the sum.
#[derive(Clone, Copy)]
pub struct Habits {
    pub what: &'static str,
    pub cpus: u8,
    pub domains: u16,
    /// What each CPU does.
    pub rounds: u32,
    pub runs: u32,
    pub yields: u32,
    pub blocks: u32,
    pub sleeps: u32,
    pub sends: u32,
    pub raises: u32,
    pub pauses: u32,
    pub moves: u32,
    pub weighs: u32,
    pub ends: u32,
    pub off_and_on: u32,
}

/// Steps that were modelled, in all executions.
pub static ROUNDS: AtomicU64 = AtomicU64::new(0);
/// A turn, in ticks.
const TURN: u64 = COUNTER_FREQUENCY / 500;

/// What all CPUs see.
struct Shared {
    machine: Machine<FakeHardware>,
    /// Something that each vCPU has not seen yet.
    events: [AtomicBool; 16],
    /// Which CPU has each vCPU's registers: no part of the model.
    owners: Mutex<[Option<u8>; 16]>,
}

/// One CPU.
struct Cpu {
    shared: &'static Shared,
    id: CpuId,
    loaded: Option<&'static Vcpu>,
    runs: bool,
    going_off: bool,
    reschedule: Cell<bool>,
    look: u64,
}

/// A CPU between two looks, as one thread hands it to another.
struct Left {
    loaded: Option<&'static Vcpu>,
    runs: bool,
    look: u64,
}

fn below(limit: u32) -> u32 {
    shuttle::rand::thread_rng().gen_range(0..limit)
}

impl Cpu {
    fn domain(&self, vcpu: &Vcpu) -> &'static Domain {
        self.shared.machine.domain(vcpu.domain).unwrap()
    }

    fn event(&self, vcpu: &Vcpu) -> &'static AtomicBool {
        &self.shared.events[usize::from(vcpu.index.0)]
    }

    /// `context::save` and `unload`.
    fn save(&mut self, vcpu: &'static Vcpu) {
        let owner = self.shared.owners.lock().unwrap()[usize::from(vcpu.index.0)].take();
        assert_eq!(owner, Some(self.id.0), "a CPU saves a vCPU that it has not");
        vcpu.on.clear();
        self.loaded = None;
        self.shared.machine.hw.set_loaded(vcpu.index, false);
    }

    /// `context::load`.
    fn load(&mut self, vcpu: &'static Vcpu) {
        let before = self.shared.owners.lock().unwrap()[usize::from(vcpu.index.0)].replace(self.id.0);
        assert_eq!(before, None, "a vCPU is in two CPUs");
        self.shared.machine.hw.set_loaded(vcpu.index, true);
        vcpu.on.set(self.id);
        self.loaded = Some(vcpu);
    }

    /// `run::attend`: takes what others raised.
    fn attend(&self) {
        if let Some(vcpu) = self.loaded
            && self.domain(vcpu).gic_of(vcpu).unwrap().emptied() != 0
        {
            self.event(vcpu).store(true, Relaxed);
        }
    }

    /// One turn of `run::switch_entry`'s loop.
    fn look(&mut self) {
        let machine = &self.shared.machine;
        self.reschedule.set(false);
        self.attend();
        let now = machine.hw.counter();
        sched::pass(machine, self.id, now);
        let soon = life::work(machine, self.id, now);
        let running = self.settle();
        let choice = machine.sched.choose(machine, self.id, now, running);
        // The timer is set anew.
        machine.hw.take_look(self.id);
        self.look = choice.look.min(soon);
        self.runs = choice.next.is_some();
        if let Some(next) = choice.next {
            if self.loaded.is_none_or(|loaded| loaded.index != next.index) {
                runstate::switched(machine, self.loaded, next);
                if let Some(loaded) = self.loaded {
                    self.save(loaded);
                    machine.sched.offer(machine, loaded);
                }
                self.load(next);
            }
            self.attend();
            assert_eq!(
                (next.home.get(), next.on.get()),
                (self.id, Some(self.id)),
                "it runs where it is not at home"
            );
        }
    }

    /// What the CPU's timer was set to meanwhile.
    fn note_look(&mut self) {
        if let Some(at) = self.shared.machine.hw.take_look(self.id) {
            self.look = self.look.min(at);
        }
    }

    /// `run::settle`.
    fn settle(&mut self) -> Option<&'static Vcpu> {
        let machine = &self.shared.machine;
        let vcpu = self.loaded?;
        if std::mem::take(&mut self.going_off) {
            self.save(vcpu);
            runstate::leave(machine, vcpu, Run::Offline);
            vcpu.run.set(Run::Offline);
            return None;
        }
        let domain = self.domain(vcpu);
        if !domain.life.is_running() {
            self.save(vcpu);
            if vcpu.run.get() == Run::Running {
                vcpu.run.set(Run::Offline);
            }
            return None;
        }
        if !machine.sched.allows(vcpu, self.id) {
            self.save(vcpu);
            machine.sched.put_out(machine, vcpu);
            return None;
        }
        match vcpu.run.get() {
            Run::Running => match pause::holds(machine, domain, vcpu) {
                Hold::None => return Some(vcpu),
                Hold::Paused => {}
                Hold::TakenBack => sched::resume(machine, None, vcpu),
            },
            Run::Blocked => {
                if self.event(vcpu).load(Relaxed) {
                    let idled = if self.runs { Idled::No } else { Idled::Yes };
                    sched::unblock(machine, self.id, vcpu, idled);
                }
            }
            Run::Runnable | Run::Offline | Run::Paused => {}
        }
        None
    }

    /// Something that happens on this CPU.
    fn round(&mut self, habits: &Habits) {
        let machine = &self.shared.machine;
        ROUNDS.fetch_add(1, Plain::Relaxed);
        match self.loaded.filter(|_| self.runs) {
            Some(vcpu) => self.guest(vcpu, habits),
            // It waits, and somebody else's time goes by.
            None if self.look != u64::MAX && below(3) == 0 => {
                machine.hw.advance(self.look.saturating_sub(machine.hw.counter()));
            }
            None => thread::yield_now(),
        }
        self.note_look();
        let kicked = machine.hw.take_kick(self.id);
        if kicked || self.reschedule.get() || machine.hw.counter() >= self.look {
            self.look();
        }
    }

    fn any_vcpu(&self) -> &'static Vcpu {
        let count = u32::try_from(self.shared.machine.vcpus.len()).unwrap();
        let index = hypervisor::vcpu::VcpuIndex(u16::try_from(below(count)).unwrap());
        self.shared.machine.vcpu(index).unwrap().1
    }

    /// Its guest does something.
    fn guest(&mut self, vcpu: &'static Vcpu, habits: &Habits) {
        let machine = &self.shared.machine;
        let domain = self.domain(vcpu);
        let current = Current { domain, vcpu, cpu: self.id, reschedule: &self.reschedule };
        let mail = || domain.gic_of(vcpu).unwrap().has_mail() || self.event(vcpu).load(Relaxed);
        let other = self.any_vcpu();
        let its = self.domain(other);
        let mut which = {
            let each = [
                habits.runs,
                habits.yields,
                habits.blocks,
                habits.sleeps,
                habits.sends,
                habits.raises,
                habits.pauses,
                habits.moves,
                habits.weighs,
                habits.ends,
                habits.off_and_on,
            ];
            let mut left = below(each.iter().sum());
            each.iter().position(|often| {
                let here = left < *often;
                left = left.saturating_sub(*often);
                here
            })
        };
        // The first domain stays, and nobody pauses himself.
        if matches!(which, Some(6)) && its.id == domain.id || matches!(which, Some(9)) && its.id.0 == 1 {
            which = Some(0);
        }
        match which {
            Some(1) => sched::give_way(&current),
            // It has seen what there was, and waits for more.
            Some(2) => {
                self.event(vcpu).store(false, Relaxed);
                sched::block(machine, &current, None, mail);
            }
            Some(3) => {
                self.event(vcpu).store(false, Relaxed);
                let until = machine.hw.counter() + TURN / 4;
                sched::block(machine, &current, Some(until), mail);
            }
            Some(4) => {
                self.event(other).store(true, Relaxed);
                sched::wake(machine, &current, other);
            }
            Some(5) if other.index != vcpu.index => {
                sched::raise(machine, &current, other, PrivateIntid::EVENT_UPCALL);
            }
            Some(6) => {
                let _ = if below(2) == 0 {
                    pause::pause(machine, &current, its)
                } else {
                    pause::unpause(machine, &current, its)
                };
            }
            Some(7) => {
                let cpus = 1 + below((1 << habits.cpus) - 1);
                assert!(settings::set_affinity(machine, other, cpus));
            }
            Some(8) if below(2) == 0 => settings::set_weight(its, 1 << below(12)),
            Some(8) => settings::set_cap(its, [0, 10, 50][usize::try_from(below(3)).unwrap()]),
            Some(9) => sched_op::end_domain(machine, &current, its, Life::Destroyed(Fault::ByControl)),
            Some(10) => {
                // `CPU_ON` of a sibling that is off, or `CPU_OFF`.
                let sibling = &domain.vcpus[usize::try_from(1 - vcpu.number).unwrap()];
                let state = domain.state.lock();
                let started = sibling.run.get() == Run::Offline
                    && sibling.on.get().is_none()
                    && sched::start(machine, sibling);
                drop(state);
                if !started {
                    self.going_off = true;
                    self.reschedule.set(true);
                }
            }
            _ => machine.hw.advance(u64::from(1 + below(4)) * TURN / 4),
        }
    }
}

/// One execution, with the kicks of one place lost; the places that have kicked.
pub fn execution(habits: &'static Habits, deaf: Option<(&'static str, u32)>) -> Vec<(&'static str, u32)> {
    // On a stack that is large enough.
    let make = || World::with_cpus(habits.domains, habits.cpus).machine;
    let machine = std::thread::scope(|scope| scope.spawn(make).join().unwrap());
    let shared: &'static Shared = Box::leak(Box::new(Shared {
        machine,
        events: [const { AtomicBool::new(false) }; 16],
        owners: Mutex::new([None; 16]),
    }));
    let machine = &shared.machine;
    if let Some((file, line)) = deaf {
        machine.hw.lose_kicks_of(file, line);
    }
    for vcpu in machine.domains.iter().flat_map(|domain| domain.vcpus) {
        assert!(sched::start(machine, vcpu));
    }
    for cpu in 0..habits.cpus {
        machine.hw.take_kick(CpuId(cpu));
    }
    model_core::begin();
    let run = move |id: u8| {
        let mut cpu = Cpu::resume(shared, id, Left { loaded: None, runs: false, look: 0 });
        cpu.look();
        for _ in 0..habits.rounds {
            cpu.round(habits);
        }
        if cpu.reschedule.get() {
            cpu.look();
        }
        model_core::drain();
        Left { loaded: cpu.loaded, runs: cpu.runs, look: cpu.look }
    };
    let threads: Vec<_> = (1..habits.cpus).map(|id| thread::spawn(move || run(id))).collect();
    let first = run(0);
    let others = threads.into_iter().map(|thread| thread.join().unwrap());
    let left: Vec<Left> = std::iter::once(first).chain(others).collect();
    model_core::end();
    let cpus = (0..).zip(left).map(|(id, left)| Cpu::resume(shared, id, left)).collect();
    Cpus(cpus).finish();
    machine.hw.kicks()
}

impl Cpu {
    const fn resume(shared: &'static Shared, id: u8, left: Left) -> Self {
        let Left { loaded, runs, look } = left;
        Self { shared, id: CpuId(id), loaded, runs, going_off: false, reschedule: Cell::new(false), look }
    }
}

/// All CPUs, when their threads have ended.
struct Cpus(Vec<Cpu>);

impl Cpus {
    fn machine(&self) -> &'static Machine<FakeHardware> {
        &self.0[0].shared.machine
    }

    /// Lets those look that were told or whose time has come, until none is.
    fn quiet(&mut self) {
        let machine = self.machine();
        for _ in 0..1000 {
            let mut looked = false;
            for cpu in &mut self.0 {
                cpu.note_look();
                if machine.hw.take_kick(cpu.id) || cpu.look <= machine.hw.counter() {
                    cpu.look();
                    looked = true;
                }
            }
            if !looked {
                return;
            }
        }
        panic!("CPUs tell each other for ever");
    }

    fn finish(&mut self) {
        let machine = self.machine();
        self.quiet();
        self.check();
        // Whoever ended is taken apart, and whoever was paused goes on.
        for domain in machine.domains {
            while let Some(cpu) = self.0.first_mut()
                && let Some(vcpu) = domain.vcpus.first()
            {
                let current = Current { domain, vcpu, cpu: cpu.id, reschedule: &cpu.reschedule };
                if pause::unpause(machine, &current, domain).is_err() {
                    break;
                }
                if cpu.reschedule.take() {
                    cpu.look();
                }
            }
        }
        self.quiet();
        self.check();
        let dies = |domain: &Domain| matches!(domain.life.stage(), Stage::Dying);
        for _ in 0..2000 {
            if !machine.domains.iter().any(dies) {
                break;
            }
            machine.hw.advance(COUNTER_FREQUENCY / 50_000);
            self.quiet();
        }
        self.check();
        for domain in machine.domains.iter().filter(|domain| !domain.life.is_running()) {
            assert_eq!(domain.life.stage(), Stage::Dead, "a domain that ended is not taken apart");
            for vcpu in domain.vcpus {
                assert_eq!((vcpu.run.get(), vcpu.on.get()), (Run::Offline, None), "of a dead domain");
            }
        }
        for vcpu in machine.domains.iter().flat_map(|domain| domain.vcpus) {
            assert_ne!(vcpu.run.get(), Run::Paused, "nobody is paused any more");
        }
    }

    /// What must hold when no CPU has been told anything that it has not looked at.
    fn check(&self) {
        let machine = self.machine();
        if let Err(wrong) = check::queues(machine) {
            panic!("{wrong}");
        }
        for cpu in &self.0 {
            let running = cpu.loaded.filter(|_| cpu.runs);
            if running.is_some() {
                let known = machine.sched.looks(cpu.id);
                assert!(cpu.look <= known, "{:?} looks at {}, others think at {known}", cpu.id, cpu.look);
            }
            for domain in machine.domains {
                for vcpu in domain.vcpus {
                    self.check_vcpu(cpu, running, domain, vcpu);
                }
            }
        }
    }

    fn check_vcpu(&self, cpu: &Cpu, running: Option<&Vcpu>, domain: &Domain, vcpu: &Vcpu) {
        let machine = self.machine();
        let here = running.is_some_and(|running| running.index == vcpu.index);
        if here {
            assert_eq!(vcpu.run.get(), Run::Running);
            assert!(domain.life.is_running(), "a vCPU of a domain that has ended runs on");
            assert!(!domain.pauses.any(), "a vCPU of a paused domain runs on");
            assert!(machine.sched.allows(vcpu, cpu.id), "a vCPU runs on where it may not");
            assert!(!domain.gic_of(vcpu).unwrap().has_mail(), "a vCPU is not told of an interrupt");
        } else if vcpu.run.get() == Run::Running {
            let elsewhere = self.0.iter().filter(|cpu| cpu.runs);
            let count = elsewhere.filter(|cpu| cpu.loaded.is_some_and(|loaded| loaded.index == vcpu.index));
            assert_eq!(count.count(), 1, "a vCPU is said to run");
        }
        if vcpu.run.get() == Run::Blocked && domain.life.is_running() {
            let waits = cpu.event(vcpu).load(Relaxed) || domain.gic_of(vcpu).unwrap().has_mail();
            assert!(!waits, "a wake-up is lost");
        }
        if running.is_none() && domain.life.is_running() && !domain.pauses.any() {
            assert!(
                !machine.sched.could_run(machine, cpu.id, vcpu),
                "{:?} waits in {:?}, and {:?} has nothing to do",
                vcpu.index,
                machine.sched.queued(vcpu),
                cpu.id
            );
        }
    }
}
