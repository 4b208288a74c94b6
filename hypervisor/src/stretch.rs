//! How long one run of a long call is, before it lets interrupts in.
//!
//! A run counts its units of work, and some have budgets of that. But units of one kind differ: a page that is mapped may split a block of stage 2, a copy is
//! one byte or a page, and whoever needs a lock waits for it. So the time decides too: the one that began a run is asked between two units, where no lock
//! is held and what is done is done.
//!
//! Invariants
//! 1. A run does a unit of work at least, however long that takes: a call that restarts ends.
//! 2. The runs of a multicall's calls are its own: all of them together began when it did.
//! 3. So a run takes `UNITS` and the longest unit at most, and a multicall's `CALLS` and the longest run of a call that does not ask.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use core::sync::atomic::Ordering;

use crate::hardware::Hardware;
use crate::machine::{Current, Machine};

/// Microseconds after which a run begins no further unit; where instructions are counted 1000 are one.
const UNITS: u64 = 8;
/// Microseconds after which a multicall begins no further call.
const CALLS: u64 = 4;

/// When a run began: a value of the counter.
#[derive(Clone, Copy)]
pub(crate) struct Stretch(u64);

impl Stretch {
    /// Of a run that does one unit and asks nobody.
    pub(crate) const SHORT: Self = Self(0);

    /// A run begins now, or has begun with the multicall that it is part of.
    #[inline]
    pub(crate) fn begin<H: Hardware>(machine: &Machine<H>, current: &Current<'_>) -> Self {
        match current.vcpu.multicall.load(Ordering::Relaxed) {
            0 => Self(machine.hw.counter()),
            began => Self(began),
        }
    }

    /// A multicall's run begins now. It is over with [`Stretch::end`].
    pub(crate) fn multicall<H: Hardware>(machine: &Machine<H>, current: &Current<'_>) -> Self {
        let now = machine.hw.counter();
        current.vcpu.multicall.store(now, Ordering::Relaxed);
        Self(now)
    }

    /// A multicall's run is over.
    pub(crate) fn end(current: &Current<'_>) {
        current.vcpu.multicall.store(0, Ordering::Relaxed);
    }

    /// Whether it begins no further unit.
    #[inline(never)]
    pub(crate) fn is_long<H: Hardware>(self, machine: &Machine<H>) -> bool {
        machine.hw.microseconds_since(self.0) >= UNITS
    }

    /// Whether a multicall begins no further call.
    pub(crate) fn begins_no_call<H: Hardware>(self, machine: &Machine<H>) -> bool {
        machine.hw.microseconds_since(self.0) >= CALLS
    }
}
