//! Waking, blocking and telling vCPUs, and the deadlines that do: what hypercalls and interrupts ask of the scheduler.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};
use core::sync::atomic::fence;

use super::pool::Joins;
use crate::hardware::{CpuId, Hardware};
use crate::machine::{Current, Machine};
use crate::runstate;
use crate::vcpu::{NOT_POLLING, Run, Vcpu};
use crate::vgic::{Intid, PrivateIntid};
use crate::watchdog;

/// Makes a blocked vCPU runnable; the caller, if it was he, queues it.
#[inline]
pub(super) fn awaken<H: Hardware>(machine: &Machine<H>, vcpu: &Vcpu) -> bool {
    if vcpu.run.get() != Run::Blocked || !vcpu.run.change(Run::Blocked, Run::Runnable) {
        return false;
    }
    runstate::enter(machine, vcpu, Run::Runnable);
    vcpu.poll.store(NOT_POLLING, Relaxed);
    vcpu.deadline.store(u64::MAX, Relaxed);
    true
}

/// Starts a vCPU that is off.
pub fn start<H: Hardware>(machine: &Machine<H>, vcpu: &Vcpu) -> bool {
    let started = vcpu.run.change(Run::Offline, Run::Runnable);
    if started {
        runstate::enter(machine, vcpu, Run::Runnable);
        join(machine, None, vcpu, Joins::Starts);
    }
    started
}

#[inline(never)]
pub(super) fn join<H: Hardware>(machine: &Machine<H>, here: Option<&Current<'_>>, vcpu: &Vcpu, why: Joins) {
    machine.sched.enqueue(machine, here, vcpu, Some(why));
}

/// Queues a vCPU that was held up and is `Runnable` again, by the caller.
pub fn resume<H: Hardware>(machine: &Machine<H>, here: Option<&Current<'_>>, vcpu: &Vcpu) {
    join(machine, here, vcpu, Joins::Wakes);
}

/// Wakes a vCPU if it is blocked; the caller has published why.
pub fn wake<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, vcpu: &Vcpu) {
    // Invariant 2: the event is published before the state is looked at.
    fence(SeqCst);
    if awaken(machine, vcpu) {
        join(machine, Some(current), vcpu, Joins::Wakes);
    }
}

/// Wakes a vCPU for an interrupt of a device, which is in its mailbox, and makes the CPU that runs it look, unless that is `here`.
pub fn wake_for_device<H: Hardware>(machine: &Machine<H>, here: CpuId, vcpu: &Vcpu) {
    fence(SeqCst);
    if awaken(machine, vcpu) {
        join(machine, None, vcpu, Joins::Wakes);
    }
    tell(machine, here, vcpu);
}

/// Raises a private interrupt of any vCPU: at once when it is the caller's, else by its CPU.
#[inline]
pub fn raise<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, vcpu: &Vcpu, irq: PrivateIntid) {
    if vcpu.index == current.vcpu.index {
        machine.hw.raise_current(irq);
    } else {
        raise_elsewhere(machine, current, vcpu, irq);
    }
}

pub(super) fn raise_elsewhere<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    vcpu: &Vcpu,
    irq: PrivateIntid,
) {
    let Some(mailbox) = machine.domain(vcpu.domain).and_then(|domain| domain.gic_of(vcpu)) else { return };
    if !mailbox.raise_remote(Intid::Private(irq)) {
        return; // Told before, and it has not looked yet.
    }
    wake(machine, current, vcpu);
    tell(machine, current.cpu, vcpu);
}

/// Makes the CPU that runs a vCPU, if it is another, look at what was left for the vCPU before. A vCPU that moves meanwhile looks by itself when
/// it arrives: `Running` and its CPU are published before (`Scheduler::choose`).
pub fn tell<H: Hardware>(machine: &Machine<H>, here: CpuId, vcpu: &Vcpu) {
    let home = vcpu.home.get();
    if home != here && vcpu.run.get() == Run::Running {
        machine.hw.kick(home);
    }
}

/// The caller gives the rest of its turn away.
pub fn give_way(current: &Current<'_>) {
    current.vcpu.share.yields.store(true, Relaxed);
    current.reschedule.set(true);
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
    let vcpu = current.vcpu;
    // Before anybody can wake it.
    let now = account(machine, vcpu);
    vcpu.deadline.store(u64::MAX, Relaxed);
    if let Some(at) = deadline {
        note_deadline(machine, vcpu, at);
    }
    runstate::leave_at(machine, vcpu, Run::Blocked, now);
    vcpu.run.set(Run::Blocked);
    fence(SeqCst);
    if ready() || deadline.is_some_and(|at| at <= machine.hw.counter()) {
        // Either this CPU takes the wake-up back, or a waker has queued the vCPU already.
        unblock(machine, current.cpu, vcpu, Idled::No);
    }
    current.reschedule.set(true);
}

/// The caller's vCPU goes off, with its registers in memory: from then on [`start`] may be asked for it. What it ran is charged first, else
/// two vCPUs that start each other would never have had anything.
pub fn go_off<H: Hardware>(machine: &Machine<H>, vcpu: &Vcpu) {
    let now = account(machine, vcpu);
    runstate::leave_at(machine, vcpu, Run::Offline, now);
    vcpu.run.set(Run::Offline);
}

/// Charges a vCPU of this CPU for what it ran until now, before it leaves the CPU in another way than by `Scheduler::choose`.
#[inline(never)]
pub(crate) fn account<H: Hardware>(machine: &Machine<H>, vcpu: &Vcpu) -> u64 {
    let now = machine.hw.counter();
    if let Some(cpu) = machine.sched.cpu(vcpu.home.get()) {
        machine.sched.charge(machine, cpu, vcpu, now);
    }
    now
}

/// Whether a CPU has waited since its vCPU blocked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Idled {
    /// It goes on at once.
    No,
    /// It has.
    Yes,
}

/// Wakes a vCPU that this CPU was about to give up.
#[inline(never)]
pub fn unblock<H: Hardware>(machine: &Machine<H>, cpu: CpuId, vcpu: &Vcpu, idled: Idled) {
    if awaken(machine, vcpu) {
        let sched = &machine.sched;
        if let Some((pool, cpu)) = sched.pool_of(vcpu).zip(sched.cpu(cpu)) {
            pool.join(&sched.ticks, &cpu.clock, &vcpu.share, Joins::Wakes);
            let mut queue = cpu.queue.lock();
            queue.back = match idled {
                Idled::No => Some(vcpu.index),
                Idled::Yes => None,
            };
            queue.timers.remove(vcpu.index);
            queue.ready.put(vcpu.index, vcpu.share.served.load(Relaxed));
            cpu.publish(&queue);
        }
    }
}

/// A vCPU of this CPU is to be woken at a moment, if it is not to be before.
#[inline(never)]
pub fn note_deadline<H: Hardware>(machine: &Machine<H>, vcpu: &Vcpu, at: u64) {
    let before = vcpu.deadline.fetch_min(at, Relaxed);
    if at < before
        && let Some(cpu) = machine.sched.cpu(vcpu.home.get())
    {
        cpu.queue.lock().timers.put(vcpu.index, at);
    }
}

/// What a CPU does each time that it asks the scheduler, before anything else.
///
/// The image calls it between guests and while idle, when this CPU has looked up nothing without a lock that it still uses: it passes
/// ([`crate::frame_alloc::Quiescent`]).
pub fn pass<H: Hardware>(machine: &Machine<H>, cpu: CpuId, now: u64) {
    machine.frames.quiescent.pass(cpu);
    machine.frames.reclaim();
    if cpu == machine.sched.watcher && machine.sched.watch.load(Acquire) <= now {
        watchdogs(machine, now);
    }
}

/// Ends a domain whose watchdog has come, or finds out when the next one does. One at a time: each end is told in the log, and who has agreed on a
/// moment with others must not keep interrupts masked for all of them.
#[cold]
pub(super) fn watchdogs<H: Hardware>(machine: &Machine<H>, now: u64) {
    let sched = &machine.sched;
    sched.watch.store(u64::MAX, SeqCst);
    for domain in machine.domains.iter().filter(|domain| domain.life.is_running()) {
        let at = domain.watchdogs.earliest();
        sched.watch.fetch_min(at, AcqRel);
        if at <= now {
            return watchdog::bite(machine, domain, sched.watcher);
        }
    }
}

/// A watchdog was set that comes at this moment.
///
/// The CPU that looks after them is told to look halfway, when it finds out what they say by then. So it is told at most once in each half of what is left
/// to the first that anybody may set: 33 times, and then not for half a second, whoever sets them earlier and earlier.
pub(crate) fn watch<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, at: u64) {
    let sched = &machine.sched;
    let halfway = at.midpoint(machine.hw.counter());
    if sched.watch.load(SeqCst) <= at || sched.watch.fetch_min(halfway, SeqCst) <= at {
        return;
    }
    if current.cpu == sched.watcher {
        current.reschedule.set(true);
    } else {
        machine.hw.kick(sched.watcher);
    }
}
