//! The wall clock: what time of the day it was when system time was 0, as the control domain said (`XENPF_settime64`) and every domain is told in its
//! shared info. Nobody has said at first: zero, as in Xen, whose domains read no clock of the board's either.
//!
//! Invariants
//! 1. A domain is told before its first vCPU starts, in each of its lives, and again when the clock is set: the version is odd meanwhile, and another
//!    one afterwards.
//! 2. What a domain is told is written under its lock; who set the clock last has told every domain last (`set` tells each what the clock is then).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering, fence};

use pv_abi::Errno;
use pv_abi::control::SetTime;
use pv_abi::shared::SharedInfo;
use zerocopy::IntoBytes;

use crate::addr::FrameAddr;
use crate::domain::Domain;
use crate::hardware::Hardware;
use crate::machine::Machine;

const SECOND: u64 = 1_000_000_000;

/// Nanoseconds from the beginning of 1970 to where system time began.
#[derive(Debug, Default)]
pub struct WallClock(AtomicU64);

/// Tells a domain.
pub fn tell<H: Hardware>(machine: &Machine<H>, domain: &Domain) {
    let at = |offset| FrameAddr::new(domain.shared_info, offset);
    let (Some(version), Some(time)) =
        (at(offset_of!(SharedInfo, wc_version)), at(offset_of!(SharedInfo, wc_sec)))
    else {
        return;
    };
    let _state = domain.state.lock();
    let clock = machine.wall_clock.0.load(Ordering::SeqCst);
    let (seconds, nanoseconds) = (clock / SECOND, clock % SECOND);
    // The guest may write it too: its loss.
    let begun = machine.hw.load_u32(version).wrapping_add(1) | 1;
    machine.hw.write(version, begun.as_bytes());
    fence(Ordering::SeqCst);
    // Seconds' low half, nanoseconds, seconds' high half.
    let words = [seconds & 0xFFFF_FFFF | nanoseconds << 32, seconds >> 32];
    machine.hw.write(time, words.as_bytes().get(..12).unwrap_or_default());
    fence(Ordering::SeqCst);
    machine.hw.write(version, begun.wrapping_add(1).as_bytes());
}

/// Sets the clock, and tells every domain.
///
/// # Errors
/// `-EINVAL`: a field that must be zero is not, or the time is before system time began or after the year 2554.
pub(crate) fn set<H: Hardware>(machine: &Machine<H>, asked: &SetTime) -> Result<(), Errno> {
    let clock = asked.secs.checked_mul(SECOND).and_then(|ns| ns.checked_add(asked.nsecs.into()));
    let clock = clock.and_then(|ns| ns.checked_sub(asked.system_time)).filter(|_| asked.mbz == 0);
    machine.wall_clock.0.store(clock.ok_or(Errno::Einval)?, Ordering::SeqCst);
    // At most as many turns as there are domains, each short.
    machine.domains.iter().for_each(|domain| tell(machine, domain));
    Ok(())
}
