//! Pools of CPUs and the schedulers that they have: one small trait, an `enum` of those that implement it.
//!
//! `fair` is a weighted fair queue over virtual time. A vCPU asks for a turn at a time; its request is served at the virtual time
//! `had + turn / weight`, and whose is served first goes first. A CPU's own virtual time (`clock.rs`) is the latest at which somebody was given it:
//! who comes back from sleep, or weighs more than a CPU can give, is at most a turn behind it, so nobody saves time up. Who wakes asks for a grain
//! at first, and so is served before those that spin: this changes when it runs, not how much.
//!
//! `partition` gives a vCPU a CPU of its own: nothing is accounted, nothing is looked at again.
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use super::MAX_CPUS;
use super::clock::Clock;
use super::share::Share;

/// CPUs as bits, CPU 0 the lowest.
pub type CpuMask = u32;
const _: () = assert!(MAX_CPUS <= 32);

/// Lengths of time, in ticks of the counter.
#[derive(Clone, Copy, Debug)]
pub struct Ticks {
    /// A turn, when others wait.
    pub turn: u64,
    /// How long a vCPU runs before a wake-up may take the CPU from it.
    pub grain: u64,
    /// When a CPU on which nobody waits looks whether others have too much to do. Not a part of the period of caps: with that it would look at the same
    /// moment of each, when those that have a cap may have had theirs.
    pub look: u64,
    /// The period of caps.
    pub period: u64,
    /// How far a CPU's virtual time may be behind the foremost of its pool.
    pub behind: u64,
}

impl Ticks {
    /// Of a counter with so many ticks a second.
    pub const fn new(frequency: u64) -> Self {
        let turn = frequency.saturating_mul(super::TURN_MICROSECONDS) / 1_000_000;
        Self {
            turn: if turn == 0 { 1 } else { turn },
            grain: turn / 8,
            look: turn.saturating_mul(3),
            period: if turn == 0 { 5 } else { turn.saturating_mul(5) },
            behind: turn.saturating_mul(4),
        }
    }
}

/// Why a vCPU wants a CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Joins {
    /// It is new, or was off.
    Starts,
    /// It slept.
    Wakes,
}

/// How the CPUs of a pool are shared. Everything is about vCPUs that the caller may account for ([`Share`], invariant 1).
pub trait Policy {
    /// Accounts for so many ticks; true when the vCPU's request is served and it makes another.
    fn charge(&self, share: &Share, ran: u64) -> bool;
    /// A vCPU comes from where it wanted no CPU.
    fn join(&self, share: &Share, why: Joins);
    /// A vCPU is given a CPU.
    fn give(&self, share: &Share);
    /// Until when a vCPU that has been running since `began` may run, with another waiting that is served at `waiting`
    /// (`u64::MAX` for none).
    fn until(&self, share: &Share, began: u64, now: u64, waiting: u64) -> u64;
}

/// The weighted fair queue.
#[derive(Debug)]
pub struct Fair<'a> {
    clock: &'a Clock,
    /// The time of the pool's foremost CPU.
    foremost: &'a AtomicU64,
    ticks: &'a Ticks,
}

impl Fair<'_> {
    /// The virtual time behind which nobody is.
    #[inline]
    fn horizon(&self) -> u64 {
        self.clock.time().saturating_sub(self.ticks.turn)
    }

    /// Somebody joined when nobody knew how long another had been alone. Who keeps up is behind by what he may ask for, at his weight, and a turn at most.
    #[cold]
    #[inline(never)]
    fn lift(&self, share: &Share) -> u64 {
        let (had, least) =
            (share.had.load(Relaxed), self.horizon().saturating_sub(share.aged(self.ticks.turn)));
        if had < least {
            share.had.store(least, Relaxed);
            if share.served.load(Relaxed) <= least {
                Self::request(share, least, share.left.load(Relaxed));
            }
        }
        had.max(least)
    }

    fn request(share: &Share, had: u64, length: u64) {
        share.left.store(length, Relaxed);
        share.served.store(had.saturating_add(share.aged(length)), Relaxed);
    }
}

impl Policy for Fair<'_> {
    #[inline]
    fn charge(&self, share: &Share, ran: u64) -> bool {
        let had = share.had.load(Relaxed).saturating_add(share.ages(ran)).max(self.horizon());
        share.had.store(had, Relaxed);
        self.clock.charged(had, self.foremost, self.ticks);
        let left = share.left.load(Relaxed).saturating_sub(ran);
        if left == 0 {
            Self::request(share, had, self.ticks.turn);
            true
        } else {
            share.left.store(left, Relaxed);
            false
        }
    }

    #[inline]
    fn join(&self, share: &Share, why: Joins) {
        let (least, length) = match why {
            Joins::Starts => (self.clock.time(), self.ticks.turn),
            // The virtual time may be as far ahead of who waits as a turn: by asking for one, it would be served as late as they.
            Joins::Wakes => (self.horizon(), self.ticks.grain),
        };
        let had = share.had.load(Relaxed).max(least);
        share.had.store(had, Relaxed);
        if share.served.load(Relaxed) <= had {
            Self::request(share, had, length);
        }
    }

    #[inline]
    fn give(&self, share: &Share) {
        let mut had = share.had.load(Relaxed);
        if had < self.horizon() {
            had = self.lift(share);
        }
        self.clock.given(had, self.foremost, self.ticks);
    }

    #[inline]
    fn until(&self, share: &Share, began: u64, now: u64, waiting: u64) -> u64 {
        if waiting < share.served.load(Relaxed) {
            began.saturating_add(self.ticks.grain)
        } else {
            now.saturating_add(share.left.load(Relaxed))
        }
    }
}

/// A CPU of one's own.
#[derive(Debug)]
pub struct Partition;

impl Policy for Partition {
    fn charge(&self, _share: &Share, _ran: u64) -> bool {
        false
    }

    fn join(&self, _share: &Share, _why: Joins) {}

    fn give(&self, _share: &Share) {}

    fn until(&self, _share: &Share, _began: u64, _now: u64, _waiting: u64) -> u64 {
        u64::MAX
    }
}

/// Which scheduler a pool has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// [`Fair`].
    Fair,
    /// [`Partition`].
    Partition,
}

/// Some CPUs and their scheduler.
#[derive(Debug)]
pub struct Pool {
    /// Its scheduler.
    pub kind: Kind,
    /// Its CPUs.
    pub cpus: CpuMask,
    /// `fair`'s virtual time: that of the CPU that is foremost.
    foremost: AtomicU64,
}

impl Pool {
    /// A pool of these CPUs.
    pub const fn new(kind: Kind, cpus: CpuMask) -> Self {
        Self { kind, cpus, foremost: AtomicU64::new(0) }
    }

    const fn fair<'a>(&'a self, ticks: &'a Ticks, clock: &'a Clock) -> Fair<'a> {
        Fair { clock, foremost: &self.foremost, ticks }
    }

    /// [`Policy::charge`], on the CPU whose clock it is.
    #[inline]
    pub(super) fn charge(&self, ticks: &Ticks, clock: &Clock, share: &Share, ran: u64) -> bool {
        match self.kind {
            Kind::Fair => self.fair(ticks, clock).charge(share, ran),
            Kind::Partition => Partition.charge(share, ran),
        }
    }

    /// [`Policy::join`], for the CPU whose clock it is.
    #[inline]
    pub(super) fn join(&self, ticks: &Ticks, clock: &Clock, share: &Share, why: Joins) {
        match self.kind {
            Kind::Fair => self.fair(ticks, clock).join(share, why),
            Kind::Partition => Partition.join(share, why),
        }
    }

    /// [`Policy::give`] of the CPU whose clock it is.
    #[inline]
    pub(super) fn give(&self, ticks: &Ticks, clock: &Clock, share: &Share) {
        match self.kind {
            Kind::Fair => self.fair(ticks, clock).give(share),
            Kind::Partition => Partition.give(share),
        }
    }

    /// Puts an account into the time of another home, under the lock of its queue.
    pub(super) fn moves(&self, ticks: &Ticks, share: &Share, from: &Clock, to: &Clock) {
        to.keep_up(&self.foremost, ticks);
        to.take_over(share, from);
    }

    /// [`Policy::until`], on the CPU whose clock it is.
    #[inline]
    pub(super) fn until(
        &self,
        ticks: &Ticks,
        clock: &Clock,
        share: &Share,
        began: u64,
        now: u64,
        waiting: u64,
    ) -> u64 {
        match self.kind {
            Kind::Fair => self.fair(ticks, clock).until(share, began, now, waiting),
            Kind::Partition => Partition.until(share, began, now, waiting),
        }
    }
}
