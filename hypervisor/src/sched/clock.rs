//! The virtual time of a CPU, and how it compares with that of the others of its pool.
//!
//! Accounts of a vCPU ([`super::share::Share`]) are in the time of the CPU that is its home. A CPU's time advances as those age that have it, so who has
//! a CPU of its own advances faster than those that share one, and that is nothing to them. Differences between CPUs decide who is taken over from
//! where (`steal.rs`), but only so far: a CPU that is behind the foremost of its pool by more than a few turns has work that others may not do, or has
//! had none at all, and all that is on it, with the claims that those have on each other, is put forward ([`Clock::keep_up`]).
//!
//! Invariants
//! 1. `time` and `alone` are changed by the CPU alone. `ahead` is changed, and what is queued here is put into this CPU's time, under the lock of its queue.
//! 2. An account is put into the time of a new home once ([`Clock::take_over`]), by who has taken the vCPU out of a queue or has woken it.
//! 3. Nobody's account is further ahead of `time` than by what he last ran, or, where he was moved to, by the turns that a CPU may be behind; nor is it
//!    behind by more than a turn and what he asks for when he is given the CPU, also when a vCPU was alone for long, in which nobody was given it: so
//!    a newcomer neither waits for long nor makes others wait.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicBool, AtomicU64};

use super::pool::Ticks;
use super::share::Share;

/// A CPU's virtual time.
#[derive(Debug)]
pub(super) struct Clock {
    /// The latest at which somebody was given the CPU, or had it alone.
    time: AtomicU64,
    /// What the pool's time is more than this CPU's.
    ahead: AtomicU64,
    /// Nobody waited for the CPU when it last looked.
    alone: AtomicBool,
}

impl Clock {
    /// At the beginning.
    pub(super) const fn new() -> Self {
        Self { time: AtomicU64::new(0), ahead: AtomicU64::new(0), alone: AtomicBool::new(false) }
    }

    /// Now.
    #[inline]
    pub(super) fn time(&self) -> u64 {
        self.time.load(Relaxed)
    }

    /// A moment of this CPU's time in the pool's; the largest stays what it is.
    #[inline]
    pub(super) fn of_pool(&self, at: u64) -> u64 {
        at.saturating_add(self.ahead.load(Relaxed))
    }

    /// Whether somebody waits for the CPU besides the one that is about to have it.
    #[inline]
    pub(super) fn note_alone(&self, alone: bool) {
        self.alone.store(alone, Relaxed);
    }

    /// The one that had the CPU has had so much by now.
    #[inline]
    pub(super) fn charged(&self, had: u64, foremost: &AtomicU64, ticks: &Ticks) {
        if self.alone.load(Relaxed) {
            let time = self.advance(had);
            self.lead(time, foremost, ticks);
        }
    }

    /// Somebody who has had so much is given the CPU. Under the lock of the queue.
    #[inline]
    pub(super) fn given(&self, had: u64, foremost: &AtomicU64, ticks: &Ticks) {
        let time = self.advance(had);
        self.compare(time, foremost, ticks);
    }

    /// Puts this CPU forward if it is too far behind the foremost. Under the lock of the queue.
    pub(super) fn keep_up(&self, foremost: &AtomicU64, ticks: &Ticks) {
        self.compare(self.time(), foremost, ticks);
    }

    #[inline]
    fn advance(&self, had: u64) -> u64 {
        let time = self.time().max(had);
        self.time.store(time, Relaxed);
        time
    }

    #[inline]
    fn compare(&self, time: u64, foremost: &AtomicU64, ticks: &Ticks) {
        let behind = self.lead(time, foremost, ticks);
        if behind > ticks.behind {
            self.put_forward(behind.saturating_sub(ticks.behind));
        }
    }

    /// Makes the pool's time this CPU's, when that is a grain before it: less makes no difference to anybody. Returns how far this one is behind.
    #[inline]
    fn lead(&self, time: u64, foremost: &AtomicU64, ticks: &Ticks) -> u64 {
        let (here, first) = (self.of_pool(time), foremost.load(Relaxed));
        if here.saturating_sub(first) > ticks.grain {
            foremost.fetch_max(here, Relaxed);
        }
        first.saturating_sub(here)
    }

    #[cold]
    #[inline(never)]
    fn put_forward(&self, by: u64) {
        self.ahead.store(self.of_pool(by), Relaxed);
    }

    /// Puts an account that is in another CPU's time into this one's. Under the lock of this one's queue.
    pub(super) fn take_over(&self, share: &Share, from: &Self) {
        let (from, own) = (from.ahead.load(Relaxed), self.ahead.load(Relaxed));
        if from != own {
            for moment in [&share.had, &share.served] {
                moment.store(moment.load(Relaxed).saturating_add(from).saturating_sub(own), Relaxed);
            }
        }
    }
}
