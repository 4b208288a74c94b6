//! Frames between two lives: they have left a domain, but a CPU that looked them up without a lock may still be using them.
//!
//! Invariants
//! 1. A CPU passes ([`Quiescent::pass`]) when nothing that it looked up before is used by it afterwards: between guests, while idle, and at
//!    the beginning of calls that move memory. A CPU that has never passed has never run a guest.
//! 2. A frame comes here unmapped, flushed on every CPU and without references, and becomes free when every CPU has passed since.
//! 3. There are two lists. Frames that come are gathered; when nobody waits, those that were gathered wait, from one moment on for all.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]
use core::sync::atomic::{AtomicU64, Ordering, fence};

use pv_abi::DomId;

use super::{FREE, FreeLists};
use crate::addr::Mfn;
use crate::frame::{FrameError, FrameState, FrameTable, NO_LINK, Role};
use crate::hardware::CpuId;
use crate::sched::MAX_CPUS;

/// Frames that one call makes free at most: each may be joined with buddies of every order.
const AT_ONCE: u32 = 16;

/// A frame in limbo.
const LIMBO: FrameState = FrameState::unreferenced(DomId::XEN, Role::Limbo);

/// How often each CPU has passed.
#[derive(Debug)]
pub struct Quiescent([AtomicU64; MAX_CPUS]);

impl Quiescent {
    pub(super) const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; MAX_CPUS])
    }

    /// This CPU uses nothing any more that it looked up without a lock. Only `cpu` itself says so.
    #[inline]
    pub fn pass(&self, cpu: CpuId) {
        if let Some(count) = self.0.get(usize::from(cpu.0)) {
            // Nobody else writes it. What was looked up before is done with before the store, and nothing is looked up before it
            // is seen.
            count.store(count.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
            fence(Ordering::SeqCst);
        }
    }

    /// How often each CPU has passed so far.
    pub fn now(&self) -> [u64; MAX_CPUS] {
        fence(Ordering::SeqCst);
        self.0.each_ref().map(|count| count.load(Ordering::Acquire))
    }

    /// The CPUs that have run guests and not passed since.
    pub fn late(&self, then: &[u64; MAX_CPUS]) -> impl Iterator<Item = CpuId> + use<> {
        let both = self.now().into_iter().zip(*then);
        (0..).map(CpuId).zip(both).filter(|(_, (now, then))| !has_passed(*now, *then)).map(|(cpu, _)| cpu)
    }
}

/// Whether a CPU that had passed `then` times has passed since, or had not run a guest by then.
const fn has_passed(now: u64, then: u64) -> bool {
    then == 0 || now != then
}

/// Whether every CPU has passed since.
fn all_since(now: &[u64; MAX_CPUS], then: &[u64; MAX_CPUS]) -> bool {
    now.iter().zip(then).all(|(now, then)| has_passed(*now, *then))
}

/// Frames linked by their entries; under the allocator's lock.
#[derive(Debug)]
struct Chain {
    head: u32,
    frames: u64,
}

impl Chain {
    const EMPTY: Self = Self { head: NO_LINK, frames: 0 };
}

/// The frames in limbo.
#[derive(Debug)]
pub(super) struct Limbo {
    gathered: Chain,
    waiting: Chain,
    /// What each CPU's count was when the waiting ones began to wait.
    since: [u64; MAX_CPUS],
}

impl Limbo {
    pub(super) const fn new() -> Self {
        Self { gathered: Chain::EMPTY, waiting: Chain::EMPTY, since: [0; MAX_CPUS] }
    }

    pub(super) const fn frames(&self) -> u64 {
        self.gathered.frames.saturating_add(self.waiting.frames)
    }

    /// What each CPU's count was when those that wait began to.
    pub(super) const fn since(&self) -> [u64; MAX_CPUS] {
        self.since
    }

    /// Takes a frame of RAM that its domain has given up, or of a table that nothing links any more.
    pub(super) fn take(&mut self, table: &FrameTable, mfn: Mfn, owner: DomId) -> Result<(), FrameError> {
        let entry = table.entry(mfn).ok_or(FrameError::NoFrame)?;
        let data = FrameState::unreferenced(owner, Role::Data);
        let state = if entry.is(data) { data } else { Self::given_up(entry.state(), owner)? };
        let link = mfn.get().checked_sub(table.base().get()).and_then(|link| u32::try_from(link).ok());
        let link = link.ok_or(FrameError::NoFrame)?;
        table.transit(mfn, state, LIMBO)?;
        entry.set_next(self.gathered.head);
        self.gathered = Chain { head: link, frames: self.gathered.frames.saturating_add(1) };
        Ok(())
    }

    /// The state of a frame that is to come here and is not data.
    #[inline(never)]
    fn given_up(state: FrameState, owner: DomId) -> Result<FrameState, FrameError> {
        if state.owner != owner {
            return Err(FrameError::WrongOwner);
        }
        if !matches!(state.role, Role::Data | Role::Stage2Table) {
            return Err(FrameError::WrongRole);
        }
        if state.count != 0 {
            return Err(FrameError::Referenced);
        }
        Ok(state)
    }

    /// If nobody waits, lets those that were gathered wait from `now` on, which was read under this hold of the lock, so after they came.
    fn begin(&mut self, now: &[u64; MAX_CPUS]) {
        if self.waiting.frames == 0 && self.gathered.frames != 0 {
            core::mem::swap(&mut self.waiting, &mut self.gathered);
            self.since = *now;
        }
    }

    fn pop(&mut self, table: &FrameTable) -> Option<Mfn> {
        let mfn = table
            .base()
            .checked_add(u64::from(self.waiting.head))
            .filter(|_| self.waiting.head != NO_LINK)?;
        let next = table.entry(mfn)?.next();
        self.waiting = Chain { head: next, frames: self.waiting.frames.saturating_sub(1) };
        Some(mfn)
    }
}

impl FreeLists {
    /// Makes frames free that have waited long enough, [`AT_ONCE`] at most; returns how many.
    pub(super) fn reclaim(&mut self, table: &FrameTable, quiescent: &Quiescent) -> u32 {
        let now = quiescent.now();
        self.limbo.begin(&now);
        if self.limbo.waiting.frames == 0 || !all_since(&now, &self.limbo.since) {
            return 0;
        }
        for freed in 0..AT_ONCE {
            let Some(mfn) = self.limbo.pop(table) else {
                self.limbo.begin(&now);
                return freed;
            };
            // In limbo it changes under this lock only.
            let _ = table.transit(mfn, LIMBO, FREE);
            self.put(table, mfn.get(), 0);
            self.frames = self.frames.wrapping_add(1);
        }
        AT_ONCE
    }
}
