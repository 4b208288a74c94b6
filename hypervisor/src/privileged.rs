//! The calls that Xen has and Pavo does not offer: what a guest without privileges hears of them, in the order in which Xen checks
//! (`common/domctl.c`, `common/sysctl.c`, `arch/arm/platform_hypercall.c`).
//!
//! It never does anything.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use pv_abi::{DomId, Errno, GuestHandle};

use crate::guest_memory;
use crate::hardware::Hardware;
use crate::hypercall::{Answer, Args};
use crate::machine::{Current, Machine};

/// `__HYPERVISOR_platform_op`.
const PLATFORM_OP: u64 = 7;
/// `__HYPERVISOR_sysctl`.
const SYSCTL: u64 = 35;
/// `__HYPERVISOR_domctl`.
const DOMCTL: u64 = 36;
/// `__HYPERVISOR_hypfs_op`.
const HYPFS_OP: u64 = 42;

/// `XENPF_INTERFACE_VERSION`.
const PLATFORM_VERSION: u32 = 0x0300_0001;
/// `XEN_SYSCTL_INTERFACE_VERSION` of Xen 4.20.
const SYSCTL_VERSION: u32 = 0x15;
/// `XEN_DOMCTL_INTERFACE_VERSION` of Xen 4.20.
const DOMCTL_VERSION: u32 = 0x17;
/// `XEN_DOMCTL_createdomain`: names no domain.
const DOMCTL_CREATE_DOMAIN: u32 = 1;

/// The structures, as 64-bit words: command and version are the first, the domain of a domctl the low bits of the second.
type PlatformOrSysctl = [u64; 17];
type Domctl = [u64; 18];

/// Answers a number that is not in the table.
///
/// # Errors
/// Always.
#[cold]
#[inline(never)]
pub fn not_offered<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    number: u64,
    args: &Args,
) -> Answer {
    let handle = GuestHandle(args[0]);
    let errno = match number {
        PLATFORM_OP => versioned(machine, current, handle, PLATFORM_VERSION),
        SYSCTL => versioned(machine, current, handle, SYSCTL_VERSION),
        DOMCTL => domctl(machine, current, handle),
        HYPFS_OP => Errno::Eperm,
        _ => Errno::Enosys,
    };
    Err(errno.into())
}

fn versioned<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    handle: GuestHandle,
    version: u32,
) -> Errno {
    match guest_memory::read::<PlatformOrSysctl, H>(machine, current, handle) {
        Err(errno) => errno,
        Ok(op) if op[0] >> 32 != u64::from(version) => Errno::Eacces,
        Ok(_) => Errno::Eperm,
    }
}

fn domctl<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, handle: GuestHandle) -> Errno {
    match guest_memory::read::<Domctl, H>(machine, current, handle) {
        Err(errno) => errno,
        Ok(op) if op[0] >> 32 != u64::from(DOMCTL_VERSION) => Errno::Eacces,
        Ok(op) => {
            #[expect(clippy::cast_possible_truncation, reason = "fields of the structure are cut out")]
            let (cmd, domain) = (op[0] as u32, DomId(op[1] as u16));
            if cmd != DOMCTL_CREATE_DOMAIN && machine.domain(domain).is_none() {
                Errno::Esrch
            } else {
                Errno::Eperm
            }
        }
    }
}
