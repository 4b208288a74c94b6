//! The calls of the control domain, and what everybody else hears of them and of those that are not offered, in the order in which Xen
//! checks (`common/domctl.c`, `common/sysctl.c`, `arch/arm/platform_hypercall.c`).
//!
//! Invariants
//! 1. Nothing is done, and nothing told, for a domain that is not [`crate::domain::CONTROL`].
//! 2. Structures are read once and written back whole; they come from the caller's memory only.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

mod counters;
mod domctl;
mod info;
mod sysctl;

use pv_abi::control::{DOMCTL, SYSCTL};
use pv_abi::{Errno, GuestHandle};

use crate::guest_memory;
use crate::hardware::Hardware;
use crate::hypercall::{Answer, Args};
use crate::machine::{Current, Machine};

/// `__HYPERVISOR_platform_op`.
const PLATFORM_OP: u64 = 7;
/// `__HYPERVISOR_hypfs_op`.
const HYPFS_OP: u64 = 42;
/// `XENPF_INTERFACE_VERSION`.
const PLATFORM_VERSION: u32 = 0x0300_0001;

/// Answers a number that is not in the table.
///
/// # Errors
/// `-ENOSYS` for a call that does not exist; for the control domain's, what Xen says to those that are not it.
#[cold]
#[inline(never)]
pub fn others<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, number: u64, args: &Args) -> Answer {
    let handle = GuestHandle(args[0]);
    match number {
        SYSCTL => sysctl::sysctl(machine, current, args),
        DOMCTL => domctl::domctl(machine, current, args),
        PLATFORM_OP => {
            let op: [u64; 17] = guest_memory::read(machine, current, handle)?;
            let known = op[0] >> 32 == u64::from(PLATFORM_VERSION);
            Err(match (known, current.domain.is_control()) {
                (false, _) => Errno::Eacces,
                (true, false) => Errno::Eperm,
                (true, true) => Errno::Enosys,
            }
            .into())
        }
        HYPFS_OP if !current.domain.is_control() => Err(Errno::Eperm.into()),
        _ => Err(Errno::Enosys.into()),
    }
}
