//! Who runs where: one round-robin queue a CPU, a turn of [`TURN_MICROSECONDS`], and the deadlines that wake blocked vCPUs.
//!
//! Invariants
//! 1. A vCPU is in its home CPU's queue exactly while it is `Runnable`, and in no other (queue lock, rank 40).
//! 2. No wake-up is lost: a vCPU that blocks publishes `Blocked` first and looks at its pending events after; a waker publishes
//!    the event first and looks at `run` after. Both sides have a full barrier between, so one of them sees the other.
//! 3. Deadlines of vCPUs, and watchdogs of the domains whose first vCPU is at home there, are looked at by the home CPU only; another CPU that sets an earlier one kicks it.
use core::sync::atomic::{AtomicU32, Ordering, fence};

use heapless::Deque;
use spin::mutex::TicketMutex;

use crate::domain::Domain;
use crate::hardware::{CpuId, Hardware};
use crate::machine::{Current, Machine};
use crate::vcpu::{NOT_POLLING, Run, Vcpu, VcpuIndex};
use crate::vgic::{Intid, PrivateIntid};
use crate::watchdog;
use crate::{pause, runstate};

/// Physical CPUs the machine can have.
pub const MAX_CPUS: usize = 8;
/// vCPUs the machine can have.
pub const MAX_VCPUS: usize = 512;
/// A turn, when others wait.
pub const TURN_MICROSECONDS: u64 = 2_000;

type Queue = Deque<VcpuIndex, MAX_VCPUS>;

/// The run queues, index = CPU.
pub struct Scheduler {
    /// Domains whose end is being told: the machine stays up as long.
    pub ending: AtomicU32,
    queues: [TicketMutex<Queue>; MAX_CPUS],
}

impl Default for Scheduler {
    fn default() -> Self {
        Self::new()
    }
}

impl Scheduler {
    /// Empty queues.
    pub const fn new() -> Self {
        Self { ending: AtomicU32::new(0), queues: [const { TicketMutex::new(Deque::new()) }; MAX_CPUS] }
    }

    fn queue(&self, cpu: CpuId) -> Option<&TicketMutex<Queue>> {
        self.queues.get(usize::from(cpu.0))
    }

    /// Whether another vCPU waits for this CPU.
    pub fn has_waiting(&self, cpu: CpuId) -> bool {
        self.queue(cpu).is_some_and(|queue| !queue.lock().is_empty())
    }

    /// Puts a vCPU that has just become `Runnable` into its home queue.
    pub(crate) fn enqueue(&self, vcpu: &Vcpu) {
        if let Some(queue) = self.queue(vcpu.home) {
            // A vCPU is queued at most once (invariant 1) and the queue holds as many as exist.
            let _ = queue.lock().push_back(vcpu.index);
        }
    }

    /// Takes the next vCPU of a CPU's queue and makes it `Running`. Those of domains that have ended go off instead.
    pub fn pick<'m, H: Hardware>(&self, machine: &'m Machine<H>, cpu: CpuId) -> Option<&'m Vcpu> {
        let queue = self.queue(cpu)?;
        for _ in 0..MAX_VCPUS {
            let index = queue.lock().pop_front()?;
            if let Some((domain, vcpu)) = machine.vcpu(index) {
                if domain.life.is_running() {
                    runstate::enter(machine, vcpu, Run::Running);
                    vcpu.run.set(Run::Running);
                    // Invariant 2 again: `Running` is published before anything that others leave for this vCPU is looked at,
                    // its domain's end and its mailbox. Who leaves something looks at `run` after a barrier of his own.
                    fence(Ordering::SeqCst);
                    if domain.life.is_running() {
                        if pause::holds(machine, domain, vcpu) {
                            continue;
                        }
                        return Some(vcpu);
                    }
                }
                runstate::enter(machine, vcpu, Run::Offline);
                vcpu.run.set(Run::Offline);
            }
        }
        None
    }

    /// Ends a vCPU's turn: it goes to the end of the queue.
    pub fn requeue(&self, vcpu: &Vcpu) {
        vcpu.run.set(Run::Runnable);
        self.enqueue(vcpu);
    }
}

/// Starts a vCPU that is off.
pub fn start<H: Hardware>(machine: &Machine<H>, vcpu: &Vcpu) -> bool {
    let started = vcpu.run.change(Run::Offline, Run::Runnable);
    if started {
        runstate::enter(machine, vcpu, Run::Runnable);
        machine.sched.enqueue(vcpu);
        machine.hw.kick(vcpu.home);
    }
    started
}

/// Wakes a vCPU if it is blocked; the caller has published why.
pub fn wake<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, vcpu: &Vcpu) {
    if wake_quietly(machine, vcpu) {
        if vcpu.home == current.cpu {
            current.reschedule.set(true);
        } else {
            machine.hw.kick(vcpu.home);
        }
    }
}

/// [`wake`] without telling the CPU; returns whether it was blocked.
pub fn wake_quietly<H: Hardware>(machine: &Machine<H>, vcpu: &Vcpu) -> bool {
    // Invariant 2: the event is published before the state is looked at.
    fence(Ordering::SeqCst);
    if vcpu.run.get() != Run::Blocked || !vcpu.run.change(Run::Blocked, Run::Runnable) {
        return false;
    }
    runstate::enter(machine, vcpu, Run::Runnable);
    vcpu.poll.store(NOT_POLLING, Ordering::Relaxed);
    vcpu.deadline.store(u64::MAX, Ordering::Relaxed);
    machine.sched.enqueue(vcpu);
    true
}

/// Raises a private interrupt of any vCPU: at once when it is the caller's, else by its home CPU.
#[inline]
pub fn raise<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, vcpu: &Vcpu, irq: PrivateIntid) {
    if vcpu.index == current.vcpu.index {
        machine.hw.raise_current(irq);
    } else {
        raise_elsewhere(machine, current, vcpu, irq);
    }
}

fn raise_elsewhere<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, vcpu: &Vcpu, irq: PrivateIntid) {
    let Some(mailbox) = machine.domain(vcpu.domain).and_then(|domain| domain.gic_of(vcpu)) else { return };
    if !mailbox.raise_remote(Intid::Private(irq)) {
        return; // Told before, and it has not looked yet.
    }
    wake(machine, current, vcpu);
    if vcpu.home != current.cpu && vcpu.run.get() == Run::Running {
        machine.hw.kick(vcpu.home);
    }
}

/// Blocks the caller unless `ready` says that something is pending already. The image then picks another vCPU.
///
/// `ready` is asked after the state is published (invariant 2).
pub fn block<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    deadline: Option<u64>,
    ready: impl FnOnce() -> bool,
) {
    current.vcpu.deadline.store(deadline.unwrap_or(u64::MAX), Ordering::Relaxed);
    // Before anybody can wake it.
    runstate::leave(machine, current.vcpu, Run::Blocked);
    current.vcpu.run.set(Run::Blocked);
    fence(Ordering::SeqCst);
    if ready() || deadline.is_some_and(|at| at <= machine.hw.counter()) {
        // Either this CPU takes the wake-up back, or a waker has queued the vCPU already.
        wake_quietly(machine, current.vcpu);
    }
    current.reschedule.set(true);
}

/// Wakes the vCPUs of this CPU whose deadline has come, and ends the domains whose watchdog has.
///
/// The image calls it between guests and while idle, when this CPU has looked up nothing without a lock that it still uses: it passes
/// ([`crate::frame_alloc::Quiescent`]).
pub fn expire<H: Hardware>(machine: &Machine<H>, cpu: CpuId, now: u64) {
    machine.frames.quiescent.pass(cpu);
    machine.frames.reclaim();
    for vcpu in vcpus_of(machine, cpu) {
        if vcpu.deadline.load(Ordering::Relaxed) <= now && vcpu.run.get() == Run::Blocked {
            wake_quietly(machine, vcpu);
        }
    }
    for domain in watched_by(machine, cpu) {
        if domain.watchdogs.earliest() <= now && domain.life.is_running() {
            watchdog::bite(machine, domain, cpu);
        }
    }
}

/// When this CPU has to look again: the first deadline of its blocked vCPUs, or of the watchdogs it looks after; `u64::MAX` for never.
pub fn earliest_deadline<H: Hardware>(machine: &Machine<H>, cpu: CpuId) -> u64 {
    let vcpus = vcpus_of(machine, cpu)
        .filter(|vcpu| vcpu.run.get() == Run::Blocked)
        .map(|vcpu| vcpu.deadline.load(Ordering::Relaxed));
    let watchdogs = watched_by(machine, cpu)
        .filter(|domain| domain.life.is_running())
        .map(|domain| domain.watchdogs.earliest());
    vcpus.chain(watchdogs).min().unwrap_or(u64::MAX)
}

/// The vCPUs whose home is this CPU: at most [`MAX_VCPUS`].
fn vcpus_of<H: Hardware>(machine: &Machine<H>, cpu: CpuId) -> impl Iterator<Item = &Vcpu> {
    machine.domains.iter().flat_map(|domain| domain.vcpus.iter()).filter(move |vcpu| vcpu.home == cpu)
}

/// The domains whose watchdogs this CPU looks after: those whose first vCPU is at home here.
fn watched_by<H: Hardware>(machine: &Machine<H>, cpu: CpuId) -> impl Iterator<Item = &Domain> {
    machine.domains.iter().filter(move |domain| domain.vcpus.first().is_some_and(|first| first.home == cpu))
}
