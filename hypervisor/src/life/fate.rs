//! What becomes of a domain that has ended: destroyed, kept, or built anew, and how often.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use pv_abi::sched::ShutdownReason;

use crate::domain::{Fault, Life};

/// What to do with a domain that has ended; words of xl.cfg.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Take everything back.
    Destroy,
    /// Take everything back, and build it anew from its modules.
    Restart,
    /// Leave it as it is, for whoever wants to look, until the control domain destroys it.
    Preserve,
}

/// What a configuration says about a domain's end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// When it reboots.
    pub on_reboot: Action,
    /// When it crashes, is destroyed for what it did, or its watchdog ends it.
    pub on_crash: Action,
    /// How often it is built anew in a minute at most.
    pub max_restarts: u32,
}

impl Policy {
    /// Nothing is built anew.
    pub const NONE: Self = Self { on_reboot: Action::Destroy, on_crash: Action::Destroy, max_restarts: 5 };

    /// What to do after an end.
    fn action(self, end: Life) -> Action {
        match end {
            Life::Shutdown(ShutdownReason::Reboot | ShutdownReason::SoftReset) => self.on_reboot,
            Life::Shutdown(ShutdownReason::Crash | ShutdownReason::Watchdog)
            | Life::Destroyed(Fault::WordContended | Fault::SystemError | Fault::UnknownException) => {
                self.on_crash
            }
            Life::Running
            | Life::Shutdown(ShutdownReason::Poweroff | ShutdownReason::Suspend)
            | Life::Destroyed(Fault::ByControl) => Action::Destroy,
        }
    }
}

const MINUTE_SECONDS: u64 = 60;

/// A domain's policy, and its lives so far.
#[derive(Debug)]
pub struct Fate {
    policy: Policy,
    generation: AtomicU32,
    /// Whether it is to be built anew once it is dead.
    again: AtomicBool,
    /// It is taken back, and waits for its next life until others have let go of enough ([`super::MOST_ORPHANS`]).
    waits: AtomicBool,
    /// Restarts since a moment, a minute ago at most.
    restarts: AtomicU32,
    since: AtomicU64,
}

impl Fate {
    /// A domain's first life.
    pub const fn new(policy: Policy) -> Self {
        Self {
            policy,
            generation: AtomicU32::new(1),
            again: AtomicBool::new(false),
            waits: AtomicBool::new(false),
            restarts: AtomicU32::new(0),
            since: AtomicU64::new(0),
        }
    }

    /// How often it has been built.
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::Relaxed)
    }

    /// What to do after an end, or `Err` with what to do instead of a restart too many. By the one who ended it.
    pub(super) fn decide(&self, end: Life, now: u64, frequency: u64) -> Result<Action, Action> {
        let action = self.policy.action(end);
        if action != Action::Restart {
            return Ok(action);
        }
        let began = self.since.load(Ordering::Relaxed);
        if now.saturating_sub(began) > frequency.saturating_mul(MINUTE_SECONDS) {
            self.since.store(now, Ordering::Relaxed);
            self.restarts.store(0, Ordering::Relaxed);
        }
        let restarts = self.restarts.load(Ordering::Relaxed);
        if restarts >= self.policy.max_restarts {
            return Err(Action::Destroy);
        }
        self.restarts.store(restarts.saturating_add(1), Ordering::Relaxed);
        Ok(Action::Restart)
    }

    pub(super) fn set_again(&self, again: bool) {
        self.again.store(again, Ordering::Release);
    }

    pub(super) fn comes_again(&self) -> bool {
        self.again.load(Ordering::Acquire)
    }

    pub(super) fn waits(&self) -> bool {
        self.waits.load(Ordering::Relaxed)
    }

    /// By the one who makes the steps.
    pub(super) fn set_waits(&self, waits: bool) {
        self.waits.store(waits, Ordering::Relaxed);
    }

    pub(super) fn takes_again(&self) -> bool {
        self.again.swap(false, Ordering::AcqRel)
    }

    pub(super) fn born_again(&self) -> u32 {
        self.generation.fetch_add(1, Ordering::Relaxed).wrapping_add(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HZ: u64 = 1000;

    #[test]
    fn restarts_are_limited_in_a_minute() {
        let policy = Policy { on_reboot: Action::Restart, on_crash: Action::Preserve, max_restarts: 2 };
        let fate = Fate::new(policy);
        let reboot = Life::Shutdown(ShutdownReason::Reboot);
        assert_eq!(fate.decide(reboot, 10, HZ), Ok(Action::Restart));
        assert_eq!(fate.decide(reboot, 20, HZ), Ok(Action::Restart));
        assert_eq!(fate.decide(reboot, 30, HZ), Err(Action::Destroy));
        assert_eq!(fate.decide(reboot, 60 * HZ + 31, HZ), Ok(Action::Restart));
        assert_eq!(fate.decide(Life::Shutdown(ShutdownReason::Watchdog), 30, HZ), Ok(Action::Preserve));
        assert_eq!(fate.decide(Life::Shutdown(ShutdownReason::Poweroff), 30, HZ), Ok(Action::Destroy));
        assert_eq!(fate.decide(Life::Destroyed(Fault::ByControl), 30, HZ), Ok(Action::Destroy));
    }
}
