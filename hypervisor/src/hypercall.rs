//! Dispatch of hypercalls: an exhaustive match over the table in `pv_abi`, one expression an arm.
//!
//! Invariants
//! 1. A call that is refused has changed nothing, apart from what its Xen counterpart documents as done (batches).
//! 2. A call that stops in the middle says so by [`Stop::Restart`]: its arguments then describe what is left, and the guest
//!    executes the same `hvc` again, after interrupts were served.
//! 3. What a call tells the caller goes through [`Outcome`]; the image alone writes the guest's registers.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use pv_abi::{Errno, GuestHandle, Hypercall};

use crate::hardware::Hardware;
use crate::machine::{Current, Machine};

/// The register arguments of a call, x0 to x4.
pub type Args = [u64; 5];

/// What a call has for the guest's registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Finished: the value of x0.
    Done(i64),
    /// To be executed again with these in x0 to x4 (the program counter stays on the `hvc`).
    Restart(Args),
}

/// Why a call did not finish.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// Refused.
    Errno(Errno),
    /// Part of it is done: what is left, as arguments of the same call.
    Restart(Args),
}

impl From<Errno> for Stop {
    #[inline(always)]
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

/// How every call ends: the value of x0, or why not.
pub type Answer = Result<u64, Stop>;
