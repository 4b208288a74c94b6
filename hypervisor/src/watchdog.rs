//! Watchdogs: a domain sets one and sets it again before its time is over, or ends (`SCHEDOP_watchdog`).
//!
//! Invariants
//! 1. A domain has [`COUNT`] of them, numbered from 1 for the guest. They change under the domain's lock.
//! 2. One CPU looks after all of them, and is told when one comes earlier than those it knows of (`sched::watch`).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use core::sync::atomic::{AtomicU64, Ordering};

use pv_abi::Errno;
use pv_abi::sched::{ShutdownReason, Watchdog};

use crate::domain::{Domain, Life};
use crate::hardware::{CpuId, Hardware};
use crate::hypercall::Answer;
use crate::machine::{Current, Machine};
use crate::sched;
use crate::sched_op::end_on;

/// `NR_DOMAIN_WATCHDOG_TIMERS`.
pub const COUNT: usize = 2;
/// A watchdog that is not in use: its time never comes.
const UNUSED: u64 = u64::MAX;
/// `-ENOSPC` as an unsigned 32-bit number.
const NO_SPACE: u64 = 0xFFFF_FFE4;

/// A domain's watchdogs: counter values at which they end it.
#[derive(Debug)]
pub struct Watchdogs([AtomicU64; COUNT]);

impl Default for Watchdogs {
    fn default() -> Self {
        Self::new()
    }
}

impl Watchdogs {
    /// None in use.
    pub const fn new() -> Self {
        Self([const { AtomicU64::new(UNUSED) }; COUNT])
    }

    /// Takes all back.
    pub(crate) fn forget(&self) {
        self.0.iter().for_each(|at| at.store(UNUSED, Ordering::Release));
    }

    /// How many are in use.
    pub(crate) fn in_use(&self) -> usize {
        self.0.iter().filter(|at| at.load(Ordering::Acquire) != UNUSED).count()
    }

    /// When the first one ends the domain; `u64::MAX` for never.
    pub fn earliest(&self) -> u64 {
        self.0.iter().map(|at| at.load(Ordering::SeqCst)).min().unwrap_or(UNUSED)
    }
}

/// Sets a new watchdog (id 0), or sets again or, with no seconds, cancels one that is in use.
///
/// # Errors
/// `-EINVAL` for one that is not in use. When all are, the answer is `-ENOSPC` cut to 32 bits, a success by its sign, as in Xen.
pub fn set<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, asked: &Watchdog) -> Answer {
    let domain = current.domain;
    let _state = domain.state.lock();
    let seconds = u64::from(asked.timeout);
    let at = machine.hw.counter().saturating_add(seconds.saturating_mul(machine.hw.counter_frequency()));
    // The largest value says that it is not in use.
    let at = at.min(UNUSED.wrapping_sub(1));
    let Some(index) = asked.id.checked_sub(1) else {
        let free = (1_u64..).zip(&domain.watchdogs.0).find(|(_, dog)| dog.load(Ordering::Acquire) == UNUSED);
        let Some((id, dog)) = free else { return Ok(NO_SPACE) };
        dog.store(at, Ordering::SeqCst);
        sched::watch(machine, current, at);
        return Ok(id);
    };
    let dog =
        usize::try_from(index).ok().and_then(|index| domain.watchdogs.0.get(index)).ok_or(Errno::Einval)?;
    if dog.load(Ordering::Acquire) == UNUSED {
        return Err(Errno::Einval.into());
    }
    let at = if seconds == 0 { UNUSED } else { at };
    dog.store(at, Ordering::SeqCst);
    sched::watch(machine, current, at);
    Ok(0)
}

/// Ends a domain whose time is over, for the reason that it gave before if it gave one.
#[cold]
pub(crate) fn bite<H: Hardware>(machine: &Machine<H>, domain: &Domain, cpu: CpuId) {
    let reason = *domain.state.lock().params.shutdown_code.get_or_insert(ShutdownReason::Watchdog);
    end_on(machine, cpu, domain, Life::Shutdown(reason));
}
