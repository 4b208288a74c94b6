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

use pv_abi::control::{DOMCTL, PLATFORM, PLATFORM_VERSION, PlatformCall, PlatformOp, SYSCTL};
use pv_abi::{Errno, GuestHandle};

use crate::hardware::Hardware;
use crate::hypercall::{Answer, Args};
use crate::machine::{Current, Machine};
use crate::{guest_memory, wallclock};

/// `__HYPERVISOR_hypfs_op`.
const HYPFS_OP: u64 = 42;

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
        PLATFORM => {
            let asked: PlatformCall = guest_memory::read(machine, current, handle)?;
            if asked.interface_version != PLATFORM_VERSION {
                return Err(Errno::Eacces.into());
            }
            if !current.domain.is_control() {
                return Err(Errno::Eperm.into());
            }
            match PlatformOp::from_number(asked.cmd).ok_or(Errno::Enosys)? {
                PlatformOp::SetTime64 => wallclock::set(machine, &asked.time)?,
            }
            Ok(0)
        }
        HYPFS_OP if !current.domain.is_control() => Err(Errno::Eperm.into()),
        _ => Err(Errno::Enosys.into()),
    }
}
