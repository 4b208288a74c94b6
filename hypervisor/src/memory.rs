//! `memory_op`: what a domain has of memory, and where it places the hypervisor's pages that are its own.
//!
//! Invariants
//! 1. A domain changes its own stage 2 only; others' are refused with Xen's numbers (`-ESRCH` for none, `-EPERM` for another).
//! 2. A page of the hypervisor's ([`Role::Shared`](crate::frame::Role)) is mapped at one guest frame at most, as in Xen: a second place is `-EBUSY` until the
//!    first is removed or replaced.
//! 3. A frame of RAM that is replaced or removed here stays the domain's until the domain ends.
//! 4. Every call plans first: after the first change to stage 2 it cannot fail.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]
use pv_abi::memory::{AddToPhysmap, MEMOP_CMD_MASK, MEMOP_EXTENT_SHIFT, MapSpace, MemoryOp, RemoveFromPhysmap};
use pv_abi::{DomId, Errno, GuestHandle};

use crate::addr::{Gfn, Mfn};
use crate::domain::{Domain, DomainState};
use crate::guest_memory;
use crate::hardware::Hardware;
use crate::hypercall::Answer;
use crate::machine::{Current, Machine};
use crate::stage2::{Kind, MapError};

/// What a domain has and may have, in frames of 4 KiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryState {
    /// RAM that is the domain's.
    pub frames: u64,
    /// RAM that it may have.
    pub max_frames: u64,
}

impl MemoryState {
    /// A domain without RAM that may have `max_frames`.
    pub const fn new(max_frames: u64) -> Self {
        Self { frames: 0, max_frames }
    }

    /// Counts `frames` more as the domain's; false, and nothing changed, when it may not have them.
    #[must_use]
    pub fn charge(&mut self, frames: u64) -> bool {
        match self.frames.checked_add(frames) {
            Some(sum) if sum <= self.max_frames => {
                self.frames = sum;
                true
            }
            Some(_) | None => false,
        }
    }
}

impl From<MapError> for Errno {
    /// As Xen's `p2m_set_entry` answers.
    fn from(error: MapError) -> Self {
        match error {
            MapError::BadGfn => Self::Einval,
            MapError::TableLimit | MapError::OutOfMemory => Self::Enomem,
            MapError::Occupied => Self::Ebusy,
        }
    }
}

/// The `memory_op` call.
///
/// # Errors
/// Xen's errno for each operation.
pub fn memory_op<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    cmd: u64,
    arg: GuestHandle,
) -> Answer {
    let _ = (machine, current, cmd, arg);
    Err(Errno::Enosys.into())
}
