//! Who runs where: for each CPU a queue of those that wait for it and one of deadlines, and what moves vCPUs between them.
//!
//! The order of a queue, the length of turns and who gives way are the pool's scheduler's ([`pool`]); accounts are in [`share`].
//!
//! Invariants
//! 1. A vCPU is in one CPU's `ready` exactly while it is `Runnable`, its home's, or, with no allowance left, among its timers
//!    (queue lock, rank 40; one at a time). In between two queues it is with the one CPU that took it out.
//! 2. No wake-up is lost: a vCPU that blocks publishes `Blocked` first and looks at its pending events after; a waker publishes
//!    the event first and looks at `run` after. Both sides have a full barrier between, so one of them sees the other. In the same way
//!    a CPU without work says so in `idle` first and looks at the others' queues after; who queues looks at `idle` after. A CPU that stops being idle, or has
//!    taken a vCPU over, looks at `idle` once more: it may have been told of another vCPU than the one that it runs.
//! 3. `home` is the CPU whose queue a vCPU uses. It changes while the vCPU is `Runnable` and its registers are in no CPU (`on`), by who
//!    takes it out of a queue or wakes it. A vCPU whose registers are in a CPU runs nowhere else: the CPU saves them first.
//! 4. A wake-up takes a CPU only from a vCPU whose request is served later, and only when that one has run for a grain since it got the
//!    CPU ([`pool::Ticks`]); it keeps the rest of its turn and its place in the order. A CPU is told at most once between two looks.
//! 5. Timers are looked at by their CPU only. An entry of a vCPU that is at home elsewhere is out of date and says nothing.
//! 6. Watchdogs are looked at by one CPU, which is no partition unless all are; another that sets an earlier one kicks it.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

#[cfg(any(test, feature = "fake"))]
pub mod check;
mod clock;
mod heap;
pub mod plan;
pub mod pool;
pub mod settings;
pub mod share;
mod steal;
mod wake;

pub(crate) use wake::account;
pub(crate) use wake::watch;
pub use wake::{
    Idled, block, give_way, go_off, note_deadline, pass, raise, resume, start, tell, unblock, wake,
    wake_for_device,
};
use wake::{awaken, join};

use core::sync::atomic::Ordering::{AcqRel, Relaxed, SeqCst};
use core::sync::atomic::{AtomicU32, AtomicU64, fence};

use crate::domain_build::Storage;
use crate::hardware::{CpuId, Hardware};
use crate::lock::{Lock, rank};
use crate::machine::{Current, Machine};
use crate::pause::{self, Hold};
use crate::runstate;
use crate::vcpu::{Run, Vcpu, VcpuIndex};
use clock::Clock;
use heap::Heap;
use pool::{CpuMask, Joins, Kind, Pool, Ticks};
use steal::Search;

/// Physical CPUs the machine can have.
pub const MAX_CPUS: usize = 8;
/// vCPUs the machine can have.
pub const MAX_VCPUS: usize = 512;
/// A turn, when others wait.
pub const TURN_MICROSECONDS: u64 = 2_000;
/// Deadlines that one look serves at most; the next look is at once if there are more.
const DEADLINES_AT_ONCE: u32 = 16;
/// Pools at most.
pub const MAX_POOLS: usize = MAX_CPUS;

/// What belongs to a CPU.
struct Queue {
    /// vCPUs that wait for it, by when their requests are served.
    ready: Heap,
    /// vCPUs that are blocked until a moment, or wait for an allowance.
    timers: Heap,
    /// When the request of the vCPU that runs is served; the largest while none runs.
    served: u64,
    /// When it was given the CPU.
    given: u64,
    /// When its turn ends; 0 while none runs.
    turn_end: u64,
    /// When the CPU looks here next, by its timer or since it was told; 0 for soon.
    look: u64,
    /// The vCPU that took its blocking back since the last look.
    back: Option<VcpuIndex>,
}

impl Queue {
    /// Nobody runs on the CPU.
    #[cold]
    const fn idles(&mut self) {
        self.served = u64::MAX;
        self.given = 0;
        self.turn_end = 0;
        self.look = u64::MAX;
    }
}

/// A CPU's queue, and what others see of it without the lock.
struct Cpu {
    id: CpuId,
    queue: Lock<Queue, { rank::QUEUE }>,
    /// The first key of `ready`, in the pool's time.
    first: AtomicU64,
    /// Its virtual time, which the keys of `ready` and `served` are in.
    clock: Clock,
    /// Its pool.
    pool: u8,
}

impl Cpu {
    /// To be called when `ready` has changed.
    #[inline]
    fn publish(&self, queue: &Queue) {
        self.first.store(self.clock.of_pool(queue.ready.first_key()), Relaxed);
    }
}

/// What a CPU does next.
pub struct Choice<'m> {
    /// The vCPU that runs, if there is one.
    pub next: Option<&'m Vcpu>,
    /// When the CPU has to look again.
    pub look: u64,
}

/// The queues, index = CPU, and the pools.
pub struct Scheduler {
    /// Domains whose end is being told: the machine stays up as long.
    pub ending: AtomicU32,
    cpus: &'static [Cpu],
    pools: [Pool; MAX_POOLS],
    ticks: Ticks,
    /// CPUs that have nothing to do.
    idle: AtomicU32,
    /// The CPU that looks after all watchdogs.
    watcher: CpuId,
    /// When a watchdog may be due.
    watch: AtomicU64,
}

/// The bit of a CPU.
#[inline]
fn bit(cpu: CpuId) -> CpuMask {
    1_u32.wrapping_shl(u32::from(cpu.0))
}

/// The first CPU of some.
#[inline]
fn first_of(cpus: CpuMask) -> CpuId {
    CpuId(u8::try_from(cpus.trailing_zeros()).unwrap_or(0))
}

impl Scheduler {
    /// Queues for so many CPUs and vCPUs, and the pools of the CPUs; `frequency` is the counter's. `None` when there is no storage.
    pub fn new(
        storage: &impl Storage,
        cpus: usize,
        vcpus: usize,
        frequency: u64,
        pools: [Pool; MAX_POOLS],
    ) -> Option<Self> {
        let cpus = storage.slice(cpus.min(MAX_CPUS), |number| {
            let cpu = CpuId(u8::try_from(number).unwrap_or(0));
            let queue = Queue {
                ready: Heap::new(storage, vcpus).unwrap_or_default(),
                timers: Heap::new(storage, vcpus).unwrap_or_default(),
                served: u64::MAX,
                given: 0,
                turn_end: 0,
                look: u64::MAX,
                back: None,
            };
            let pool = pools.iter().position(|pool| pool.cpus & bit(cpu) != 0);
            Cpu {
                id: cpu,
                queue: Lock::new(queue),
                first: AtomicU64::new(u64::MAX),
                clock: Clock::new(),
                pool: pool.and_then(|pool| u8::try_from(pool).ok()).unwrap_or(0),
            }
        })?;
        let fair = pools.iter().filter(|pool| pool.kind == Kind::Fair).fold(0, |cpus, pool| cpus | pool.cpus);
        let watcher =
            (0_u8..).take(cpus.len()).map(CpuId).find(|cpu| fair & bit(*cpu) != 0).unwrap_or(CpuId(0));
        let room = |queue: &Queue| queue.ready.room() == vcpus && queue.timers.room() == vcpus;
        cpus.iter().all(|cpu| room(&cpu.queue.lock())).then_some(Self {
            ending: AtomicU32::new(0),
            cpus,
            pools,
            ticks: Ticks::new(frequency),
            idle: AtomicU32::new(0),
            watcher,
            watch: AtomicU64::new(u64::MAX),
        })
    }

    fn cpu(&self, cpu: CpuId) -> Option<&Cpu> {
        self.cpus.get(usize::from(cpu.0))
    }

    #[inline]
    fn pool(&self, number: u8) -> Option<&Pool> {
        self.pools.get(usize::from(number))
    }

    /// The pool of a vCPU.
    fn pool_of(&self, vcpu: &Vcpu) -> Option<&Pool> {
        self.pool(vcpu.pool.load(Relaxed))
    }

    /// The scheduler that a vCPU is subject to.
    pub fn kind_of(&self, vcpu: &Vcpu) -> Kind {
        self.pool_of(vcpu).map_or(Kind::Fair, |pool| pool.kind)
    }

    /// The CPU that looks after what is nobody's: no partition, unless all are.
    pub const fn watcher(&self) -> CpuId {
        self.watcher
    }

    /// Whether a CPU has one vCPU for good.
    pub fn is_partition(&self, cpu: CpuId) -> bool {
        self.cpu(cpu).and_then(|cpu| self.pool(cpu.pool)).is_some_and(|pool| pool.kind == Kind::Partition)
    }

    /// The pool of a vCPU, and its home.
    #[inline]
    fn account_of(&self, vcpu: &Vcpu) -> Option<(&Pool, &Cpu)> {
        self.pool_of(vcpu).zip(self.cpu(vcpu.home.get()))
    }

    /// Accounts for what a vCPU of this CPU has run until now; true when its request is served.
    #[inline(always)]
    fn charge<H: Hardware>(&self, machine: &Machine<H>, cpu: &Cpu, vcpu: &Vcpu, now: u64) -> bool {
        let ran = vcpu.share.ran(now);
        if vcpu.share.capped.load(Relaxed)
            && let Some(domain) = machine.domain(vcpu.domain)
        {
            domain.cap.charge(ran);
        }
        self.pool_of(vcpu).is_some_and(|pool| pool.charge(&self.ticks, &cpu.clock, &vcpu.share, ran))
    }

    /// What a vCPU's domain may still run, or when to ask again.
    #[inline(always)]
    fn allowance<H: Hardware>(&self, machine: &Machine<H>, vcpu: &Vcpu, now: u64) -> Result<u64, u64> {
        if !vcpu.share.capped.load(Relaxed) {
            return Ok(u64::MAX);
        }
        self.allowed_now(machine, vcpu, now)
    }

    #[cold]
    #[inline(never)]
    fn allowed_now<H: Hardware>(&self, machine: &Machine<H>, vcpu: &Vcpu, now: u64) -> Result<u64, u64> {
        machine.domain(vcpu.domain).map_or(Ok(u64::MAX), |domain| domain.cap.allowance(&self.ticks, now))
    }

    /// Chooses who runs on a CPU from now on. `running` is the vCPU that has been running there, if it goes on wanting to; it is queued if
    /// another is chosen, and the image saves it. Called with this CPU's number by this CPU alone.
    pub fn choose<'m, H: Hardware>(
        &self,
        machine: &'m Machine<H>,
        id: CpuId,
        now: u64,
        running: Option<&'m Vcpu>,
    ) -> Choice<'m> {
        let nobody = Choice { next: None, look: u64::MAX };
        let Some(cpu) = self.cpu(id) else { return nobody };
        if self.idle.load(Relaxed) & bit(id) != 0 {
            self.idle.fetch_and(!bit(id), AcqRel);
        }
        let served = running.is_some_and(|vcpu| self.charge(machine, cpu, vcpu, now));
        let leaves = served || running.is_none_or(|vcpu| vcpu.share.yields.load(Relaxed));
        // Whoever should have been served before the one that is first here is taken over from another CPU.
        let stolen = if leaves && self.cpus.len() > 1 {
            let own = running.map_or(u64::MAX, |vcpu| cpu.clock.of_pool(vcpu.share.served.load(Relaxed)));
            let here = cpu.first.load(Relaxed).min(own);
            self.steal(machine, id, here.saturating_sub(self.ticks.turn / 2), Search::First)
        } else {
            None
        };
        let mut queue = cpu.queue.lock();
        // Who tells this CPU to look may mean another vCPU than that which it then runs.
        let mut passes_on = self.cpus.len() > 1 && (queue.served == u64::MAX || stolen.is_some());
        let (expired, stray) = if queue.timers.first_key() > now {
            (false, None)
        } else {
            self.expire_timers(machine, id, &mut queue, now)
        };
        passes_on |= expired;
        let (mut stolen, mut goes_on, mut again) = (stolen, running, false);
        // Each turn but the last takes one out of a queue for good: it runs, is parked or goes off.
        let mut choice = loop {
            if let Some(vcpu) = stolen {
                self.take_in(cpu, &mut queue, vcpu);
            }
            let choice = self.decide(machine, cpu, &mut queue, now, served, goes_on);
            let found = choice.next.is_some();
            if !found {
                queue.idles();
            }
            cpu.publish(&queue);
            if again || found && passes_on {
                self.pass_on(machine, id, &queue);
            }
            drop(queue);
            if found {
                break choice;
            }
            // Invariant 2: `idle` is published before the others' queues are looked at.
            self.idle.fetch_or(bit(id), AcqRel);
            fence(SeqCst);
            stolen = self.steal(machine, id, u64::MAX, Search::All);
            if stolen.is_none() {
                break choice;
            }
            self.idle.fetch_and(!bit(id), AcqRel);
            (goes_on, again) = (None, true);
            queue = cpu.queue.lock();
        };
        if let Some(vcpu) = stray {
            join(machine, None, vcpu, Joins::Wakes);
        }
        // It may have lost this CPU since it was queued: the CPU looks again at once, and puts it out.
        if choice.next.is_some_and(|vcpu| !self.allows(vcpu, id)) {
            choice.look = now;
        }
        // Its registers are here, so it is still this CPU's.
        if let Some(vcpu) = running.filter(|vcpu| vcpu.run.get() == Run::Runnable) {
            runstate::leave_at(machine, vcpu, Run::Runnable, now);
        }
        choice
    }

    /// [`Self::choose`] under the queue's lock, from what is in it.
    #[inline(always)]
    fn decide<'m, H: Hardware>(
        &self,
        machine: &'m Machine<H>,
        cpu: &Cpu,
        queue: &mut Queue,
        now: u64,
        served: bool,
        running: Option<&'m Vcpu>,
    ) -> Choice<'m> {
        let mut first = None;
        if let Some(vcpu) = running {
            let yields = vcpu.share.yields.load(Relaxed);
            if yields {
                vcpu.share.yields.store(false, Relaxed);
            }
            let (waiting, own) = (queue.ready.first_key(), vcpu.share.served.load(Relaxed));
            let gives_way = waiting != u64::MAX
                && (yields
                    || served && waiting <= own
                    || waiting < own && now >= queue.given.saturating_add(self.ticks.grain));
            match self.allowance(machine, vcpu, now) {
                Ok(left) if !gives_way => {
                    return self.goes_on(cpu, queue, now, vcpu, self.pool_of(vcpu), left);
                }
                // Who yields is behind whoever is first, even when it would be served before.
                Ok(_) => {
                    let key = if yields { own.max(waiting.saturating_add(1)) } else { own };
                    first = Some(queue.ready.exchange(vcpu.index, key));
                }
                Err(again) => Self::park(queue, vcpu, again),
            }
            vcpu.run.set(Run::Runnable);
        }
        let back = queue.back.take();
        // Each turn takes one out.
        while let Some(entry) = first.take().or_else(|| queue.ready.pop()) {
            let Some((domain, vcpu)) = machine.vcpu(entry.vcpu) else { continue };
            let left = match self.allowance(machine, vcpu, now) {
                Ok(left) => left,
                Err(again) => {
                    Self::park(queue, vcpu, again);
                    continue;
                }
            };
            if domain.life.is_running() {
                runstate::enter_at(vcpu, Run::Running, now);
                vcpu.run.set(Run::Running);
                // Invariant 2 again: `Running` is published before anything that others leave for this vCPU is looked at,
                // its domain's end and its mailbox. Who leaves something looks at `run` after a barrier of his own.
                fence(SeqCst);
                if domain.life.is_running() {
                    match pause::holds(machine, domain, vcpu) {
                        Hold::None => {}
                        Hold::Paused => continue,
                        Hold::TakenBack => {
                            queue.ready.put(entry.vcpu, entry.key);
                            continue;
                        }
                    }
                    // Who never left pays for the attempt: else it would have more than its share by trying all the time.
                    if back != Some(entry.vcpu) {
                        vcpu.share.began.store(now, Relaxed);
                    }
                    queue.given = now;
                    let pool = self.pool_of(vcpu);
                    if let Some(pool) = pool {
                        pool.give(&self.ticks, &cpu.clock, &vcpu.share);
                    }
                    return self.goes_on(cpu, queue, now, vcpu, pool, left);
                }
            }
            runstate::enter(machine, vcpu, Run::Offline);
            vcpu.run.set(Run::Offline);
        }
        Choice { next: None, look: self.first_deadline(cpu.id, queue) }
    }

    /// A vCPU has the CPU, for `left` ticks at most.
    #[inline]
    fn goes_on<'m>(
        &self,
        cpu: &Cpu,
        queue: &mut Queue,
        now: u64,
        vcpu: &'m Vcpu,
        pool: Option<&Pool>,
        left: u64,
    ) -> Choice<'m> {
        let waiting = queue.ready.first_key();
        let mut look = self.first_deadline(cpu.id, queue).min(now.saturating_add(left));
        cpu.clock.note_alone(waiting == u64::MAX);
        queue.served = vcpu.share.served.load(Relaxed);
        queue.turn_end = now.saturating_add(vcpu.share.left.load(Relaxed));
        if let Some(pool) = pool {
            look = look.min(if waiting == u64::MAX {
                self.alone(pool, queue.turn_end, now)
            } else {
                pool.until(&self.ticks, &cpu.clock, &vcpu.share, queue.given, now, waiting)
            });
        }
        queue.look = look;
        Choice { next: Some(vcpu), look }
    }

    /// When a CPU on which nobody waits looks whether others have too much to do.
    #[inline(never)]
    fn alone(&self, pool: &Pool, turn_end: u64, now: u64) -> u64 {
        if pool.kind == Kind::Partition || pool.cpus & pool.cpus.wrapping_sub(1) == 0 {
            u64::MAX
        } else if self.cpus.iter().any(|cpu| cpu.first.load(Relaxed) != u64::MAX) {
            turn_end
        } else {
            now.saturating_add(self.ticks.look)
        }
    }

    /// When a CPU has to look because of a deadline.
    #[inline]
    fn first_deadline(&self, id: CpuId, queue: &Queue) -> u64 {
        let first = queue.timers.first_key();
        if id == self.watcher { first.min(self.watch.load(Relaxed)) } else { first }
    }

    fn park(queue: &mut Queue, vcpu: &Vcpu, again: u64) {
        vcpu.share.parked.store(true, Relaxed);
        queue.timers.put(vcpu.index, again);
    }

    /// Puts a vCPU that was taken out of another CPU's queue into this one's.
    fn take_in(&self, cpu: &Cpu, queue: &mut Queue, vcpu: &Vcpu) {
        self.settle(cpu, vcpu);
        queue.ready.put(vcpu.index, vcpu.share.served.load(Relaxed));
    }

    /// Serves deadlines that have come, [`DEADLINES_AT_ONCE`] at most: whether somebody was queued, and a vCPU that was woken here
    /// and belongs elsewhere.
    #[inline(never)]
    fn expire_timers<'m, H: Hardware>(
        &self,
        machine: &'m Machine<H>,
        id: CpuId,
        queue: &mut Queue,
        now: u64,
    ) -> (bool, Option<&'m Vcpu>) {
        let mut expired = false;
        for _ in 0..DEADLINES_AT_ONCE {
            if queue.timers.first_key() > now {
                break;
            }
            let Some((_, vcpu)) = queue.timers.pop().and_then(|entry| machine.vcpu(entry.vcpu)) else {
                break;
            };
            if vcpu.home.get() != id {
                continue; // Invariant 5.
            }
            let parked = vcpu.share.parked.load(Relaxed);
            if parked {
                vcpu.share.parked.store(false, Relaxed);
            } else if vcpu.deadline.load(Relaxed) > now || !awaken(machine, vcpu) {
                continue;
            }
            // Blocked again elsewhere since the look above, or kept from this CPU since it began to wait: it is ours to queue, but not here.
            if vcpu.home.get() != id || !self.allows(vcpu, id) {
                return (expired, Some(vcpu));
            }
            if !parked && let Some((pool, cpu)) = self.account_of(vcpu) {
                pool.join(&self.ticks, &cpu.clock, &vcpu.share, Joins::Wakes);
            }
            queue.ready.put(vcpu.index, vcpu.share.served.load(Relaxed));
            expired = true;
        }
        (expired, None)
    }

    /// Where a vCPU that becomes runnable is queued: where its registers are, at home if nobody runs there, where nobody runs, at home.
    fn target(&self, vcpu: &Vcpu) -> CpuId {
        let home = vcpu.home.get();
        if vcpu.on.get().is_some() {
            return home;
        }
        let allowed = vcpu.allowed.load(Relaxed);
        let idle = self.idle.load(Relaxed) & allowed;
        match (idle & bit(home), idle, allowed & bit(home)) {
            (0, 0, 0) => first_of(allowed),
            (0, 0, _) => home,
            (0, idle, _) => first_of(idle),
            _ => home,
        }
    }

    /// Makes a CPU a vCPU's home, under the lock of its queue, and puts the account into that CPU's time.
    #[inline]
    fn settle(&self, cpu: &Cpu, vcpu: &Vcpu) {
        let home = vcpu.home.get();
        if home != cpu.id {
            if let Some((pool, before)) = self.account_of(vcpu) {
                pool.moves(&self.ticks, &vcpu.share, &before.clock, &cpu.clock);
            }
            vcpu.home.set(cpu.id);
        }
    }

    /// Puts a vCPU that has just become runnable, by the caller, where it belongs, for a reason if it wanted no CPU before, and tells that CPU if it would
    /// look too late. `here` is the caller, if the CPU that executes this runs a vCPU.
    #[inline(never)]
    fn enqueue<H: Hardware>(
        &self,
        machine: &Machine<H>,
        here: Option<&Current<'_>>,
        vcpu: &Vcpu,
        why: Option<Joins>,
    ) {
        let to = self.target(vcpu);
        let Some(cpu) = self.cpu(to) else { return };
        let mut queue = cpu.queue.lock();
        queue.timers.remove(vcpu.index);
        self.settle(cpu, vcpu);
        if let Some((why, pool)) = why.zip(self.pool_of(vcpu)) {
            pool.join(&self.ticks, &cpu.clock, &vcpu.share, why);
        }
        let served = vcpu.share.served.load(Relaxed);
        queue.ready.put(vcpu.index, served);
        cpu.publish(&queue);
        let needed =
            if served < queue.served { queue.given.saturating_add(self.ticks.grain) } else { queue.turn_end };
        let tell = needed < queue.look;
        let here = here.filter(|current| current.cpu == to);
        if tell {
            queue.look = 0;
        }
        drop(queue);
        let idles =
            self.idle.load(Relaxed) & bit(to) != 0 && self.idle.fetch_and(!bit(to), AcqRel) & bit(to) != 0;
        match here {
            Some(current) => {
                if tell {
                    // Where it has just asked, and takes what was left for the vCPU that it enters, nobody looks at `reschedule` before that one's next exit.
                    machine.hw.look_by(to, needed);
                    current.reschedule.set(true);
                }
            }
            None => {
                // It may have gone idle since the lock was given back: whoever takes the bit tells it.
                if tell || idles {
                    machine.hw.kick(to);
                }
            }
        }
        if !idles {
            self.offer(machine, vcpu);
        }
    }

    /// Tells CPUs without work, if there are any, of vCPUs that wait.
    #[inline]
    fn pass_on<H: Hardware>(&self, machine: &Machine<H>, id: CpuId, queue: &Queue) {
        // Invariant 2: what waits was published before.
        fence(SeqCst);
        let waits = queue.ready.first_key() != u64::MAX;
        // Of two CPUs neither is a third that has somebody waiting.
        if self.idle.load(Relaxed) != 0 && (waits || self.cpus.len() > 2) {
            self.offer_all(machine, id, queue);
        }
    }

    /// Tells CPUs without work of the vCPUs that wait here, one turn each as long as there are such CPUs; and one of them if any wait elsewhere.
    #[cold]
    fn offer_all<H: Hardware>(&self, machine: &Machine<H>, id: CpuId, queue: &Queue) {
        for entry in queue.ready.entries() {
            if self.idle.load(Relaxed) == 0 {
                return;
            }
            if let Some((_, vcpu)) = machine.vcpu(entry.vcpu) {
                self.offer(machine, vcpu);
            }
        }
        let Some(pool) = self.cpu(id).and_then(|cpu| self.pool(cpu.pool)) else { return };
        let idle = self.idle.load(Relaxed) & pool.cpus;
        let waits = |(number, cpu): (u8, &Cpu)| {
            pool.cpus & !bit(id) & bit(CpuId(number)) != 0 && cpu.first.load(Relaxed) != u64::MAX
        };
        if idle != 0 && (0_u8..).zip(self.cpus).any(waits) {
            self.tell_idle(machine, first_of(idle));
        }
    }

    /// Tells a CPU without work of a vCPU that waits for another.
    #[inline]
    pub fn offer<H: Hardware>(&self, machine: &Machine<H>, vcpu: &Vcpu) {
        // Invariant 2: that it waits, or that its registers have left this CPU (`on`), was published before.
        fence(SeqCst);
        let idle = self.idle.load(Relaxed) & vcpu.allowed.load(Relaxed);
        if idle == 0 || vcpu.run.get() != Run::Runnable || vcpu.on.get().is_some() {
            return;
        }
        self.tell_idle(machine, first_of(idle));
    }

    /// Makes a CPU look that has nothing to do, if nobody else has.
    #[inline]
    fn tell_idle<H: Hardware>(&self, machine: &Machine<H>, cpu: CpuId) {
        if self.idle.fetch_and(!bit(cpu), AcqRel) & bit(cpu) != 0 {
            machine.hw.kick(cpu);
        }
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod own;
#[cfg(test)]
mod property;
#[cfg(test)]
mod tests;
