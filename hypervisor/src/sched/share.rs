//! What a vCPU has had and may have: its account with the scheduler, and its domain's cap.
//!
//! Invariants
//! 1. A [`Share`] belongs to the CPU that runs the vCPU; while it does not run, to who holds the lock of the queue that it is in or
//!    enters, which exactly one does (`vcpu.rs`, invariant 2). So plain loads and stores are enough.
//! 2. Its virtual times are those of the vCPU's home (`clock.rs`).
//! 3. Virtual time is ticks of the counter at the default weight: a vCPU of weight w that runs t ticks gets t * 256 / w older.
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU16, AtomicU32, AtomicU64};

use super::pool::Ticks;

/// The weight of who says none, as in Xen.
pub const DEFAULT_WEIGHT: u16 = 256;
const ONE: u32 = 1 << 16;

/// A vCPU's account.
#[derive(Debug)]
pub struct Share {
    /// Virtual time that it has had.
    pub(super) had: AtomicU64,
    /// Virtual time at which its request is served: what queues are ordered by.
    pub(super) served: AtomicU64,
    /// What is had beyond it, in parts of a virtual tick, [`ONE`] of them: who is charged a few ticks at a time ages as fast as others.
    rest: AtomicU32,
    /// Ticks left of the request.
    pub(super) left: AtomicU64,
    /// Until when its running is accounted for.
    pub(super) began: AtomicU64,
    /// Virtual ticks in a tick, times [`ONE`].
    inverse: AtomicU32,
    /// As it was set.
    weight: AtomicU16,
    /// It gives the rest of its turn away.
    pub(super) yields: AtomicBool,
    /// Its domain has a cap.
    pub(super) capped: AtomicBool,
    /// It waits among the timers for its domain's next allowance.
    pub(super) parked: AtomicBool,
}

impl Share {
    /// A vCPU of default weight that has had nothing.
    pub const fn new() -> Self {
        Self {
            had: AtomicU64::new(0),
            served: AtomicU64::new(0),
            rest: AtomicU32::new(0),
            left: AtomicU64::new(0),
            began: AtomicU64::new(0),
            inverse: AtomicU32::new(ONE),
            weight: AtomicU16::new(DEFAULT_WEIGHT),
            yields: AtomicBool::new(false),
            capped: AtomicBool::new(false),
            parked: AtomicBool::new(false),
        }
    }

    /// Gives it a weight; 0 is taken for 1.
    pub fn set_weight(&self, weight: u16) {
        let one = ONE.wrapping_mul(u32::from(DEFAULT_WEIGHT));
        self.inverse.store(one.checked_div(u32::from(weight)).unwrap_or(one), Relaxed);
        self.weight.store(weight.max(1), Relaxed);
    }

    /// Its weight.
    pub fn weight(&self) -> u16 {
        self.weight.load(Relaxed)
    }

    /// So many ticks as virtual time.
    #[inline]
    pub(super) fn aged(&self, ticks: u64) -> u64 {
        ticks.saturating_mul(u64::from(self.inverse.load(Relaxed))) >> 16
    }

    /// So many ticks more have been had, as virtual time.
    #[inline]
    pub(super) fn ages(&self, ticks: u64) -> u64 {
        let inverse = u64::from(self.inverse.load(Relaxed));
        let parts = ticks.saturating_mul(inverse).saturating_add(self.rest.load(Relaxed).into());
        self.rest.store(u32::try_from(parts & u64::from(ONE - 1)).unwrap_or(0), Relaxed);
        parts >> 16
    }

    /// Ticks that it has run since it was last asked.
    #[inline]
    pub(super) fn ran(&self, now: u64) -> u64 {
        let ran = now.saturating_sub(self.began.load(Relaxed));
        self.began.store(now, Relaxed);
        ran
    }
}

impl Default for Share {
    fn default() -> Self {
        Self::new()
    }
}

/// How much of a CPU all vCPUs of a domain may use together.
///
/// Each period gives an allowance; what is run beyond it is a debt to the next ones, and what is not used is lost.
#[derive(Debug)]
pub struct Cap {
    /// Per cent of one CPU; 0 for no cap.
    percent: AtomicU32,
    /// Number of the period that the allowance is of.
    period: AtomicU64,
    /// Ticks left.
    left: AtomicI64,
}

impl Cap {
    /// No cap.
    pub const fn new() -> Self {
        Self { percent: AtomicU32::new(0), period: AtomicU64::new(0), left: AtomicI64::new(0) }
    }

    /// Per cent of one CPU; 0 for no cap.
    pub fn percent(&self) -> u32 {
        self.percent.load(Relaxed)
    }

    pub(super) fn set(&self, percent: u32) {
        self.percent.store(percent, Relaxed);
    }

    pub(super) fn charge(&self, ran: u64) {
        self.left.fetch_sub(i64::try_from(ran).unwrap_or(i64::MAX), Relaxed);
    }

    /// Ticks that the domain may run now, or `Err` with when to ask again.
    pub(super) fn allowance(&self, ticks: &Ticks, now: u64) -> Result<u64, u64> {
        let percent = self.percent();
        if percent == 0 {
            return Ok(u64::MAX);
        }
        let period = now.checked_div(ticks.period).unwrap_or(0);
        let before = self.period.load(Relaxed);
        if period > before && self.period.compare_exchange(before, period, Relaxed, Relaxed).is_ok() {
            let each = ticks.period.saturating_mul(u64::from(percent)) / 100;
            let all = each.saturating_mul(period.saturating_sub(before));
            let (each, all) =
                (i64::try_from(each).unwrap_or(i64::MAX), i64::try_from(all).unwrap_or(i64::MAX));
            let left = self.left.load(Relaxed);
            // Added, not stored: what another CPU charges in between is charged.
            self.left.fetch_add(left.saturating_add(all).min(each).saturating_sub(left), Relaxed);
        }
        match u64::try_from(self.left.load(Relaxed)) {
            Ok(left) if left > 0 => Ok(left),
            _ => Err(period.saturating_add(1).saturating_mul(ticks.period)),
        }
    }
}

impl Default for Cap {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_ratios_of_virtual_time() {
        let share = Share::new();
        for (weight, aged) in [(256, 1000), (512, 500), (128, 2000), (1, 256_000), (0, 256_000)] {
            share.set_weight(weight);
            assert_eq!((share.aged(1000), share.weight()), (aged, weight.max(1)));
        }
    }

    #[test]
    fn a_cap_gives_its_part_of_every_period_and_debts_are_paid() {
        let ticks = Ticks::new(1_000_000); // 1 MHz: periods of 10,000 ticks.
        let cap = Cap::new();
        assert_eq!(cap.allowance(&ticks, 5), Ok(u64::MAX), "none is set");
        cap.set(25);
        assert_eq!(cap.allowance(&ticks, 5), Err(10_000), "the first period began before it was set");
        assert_eq!(cap.allowance(&ticks, 10_000), Ok(2500));
        cap.charge(500);
        assert_eq!(cap.allowance(&ticks, 12_000), Ok(2000));
        cap.charge(5500);
        assert_eq!(cap.allowance(&ticks, 19_999), Err(20_000));
        assert_eq!(
            cap.allowance(&ticks, 20_000),
            Err(30_000),
            "3500 too much: a whole period and more is gone"
        );
        assert_eq!(cap.allowance(&ticks, 30_000), Ok(1500));
        assert_eq!(cap.allowance(&ticks, 900_000), Ok(2500), "what was not used is lost");
    }
}
