//! PSCI by `hvc #0` (Arm DEN 0022): what a guest may ask about itself, and switching vCPUs on and off.
#![expect(unsafe_code, reason = "SMCCC calls")]
#![expect(clippy::cast_possible_truncation, reason = "results are 32 bits of x0")]
use pv_abi::layout::vcpu_affinity;

use crate::hypercall;

const PSCI_VERSION: u32 = 0x8400_0000;
const CPU_OFF: u32 = 0x8400_0002;
const CPU_ON_64: u32 = 0xc400_0003;
const AFFINITY_INFO_64: u32 = 0xc400_0004;
const MIGRATE_INFO_TYPE: u32 = 0x8400_0006;
const PSCI_FEATURES: u32 = 0x8400_000a;
const SYSTEM_OFF: u32 = 0x8400_0008;

/// Why a vCPU cannot be switched on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CpuOnError {
    /// No vCPU has this affinity.
    InvalidParameters,
    /// It cannot start at this address.
    InvalidAddress,
    /// It is on.
    AlreadyOn,
    /// Any other answer.
    Other(i32),
}

/// Whether a vCPU is on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Power {
    /// On.
    On,
    /// Off.
    Off,
    /// Any other answer.
    Other(i32),
}

/// Version, major in bits 30:16; negative if there is no PSCI.
pub fn version() -> i32 {
    query(PSCI_VERSION, 0) as i32
}

/// Whether `function` is implemented: 0 or its flags; negative if not.
pub fn features(function: u32) -> i32 {
    query(PSCI_FEATURES, u64::from(function)) as i32
}

/// 2: no trusted OS to migrate.
pub fn migrate_info_type() -> i32 {
    query(MIGRATE_INFO_TYPE, 0) as i32
}

/// Powers the domain off. Returns only if that is refused.
pub fn system_off() {
    query(SYSTEM_OFF, 0);
}

/// The affinity fields of `MPIDR_EL1` of vCPU `number`.
pub const fn affinity(number: u32) -> u64 {
    vcpu_affinity(number) as u64
}

/// Whether the vCPU with these affinity fields is on.
pub fn affinity_info(affinity: u64) -> Power {
    match query(AFFINITY_INFO_64, affinity) as i32 {
        0 => Power::On,
        1 => Power::Off,
        other => Power::Other(other),
    }
}

/// Switches the vCPU with these affinity fields on: it begins at `entry`, its MMU off, with `context` in x0.
///
/// # Errors
/// [`CpuOnError`]
///
/// # Safety
/// What is at `entry` must set up a CPU of its own and not break what other vCPUs rely on.
pub unsafe fn cpu_on(affinity: u64, entry: u64, context: u64) -> Result<(), CpuOnError> {
    // SAFETY: the caller's promise.
    match unsafe { hypercall::smccc(CPU_ON_64, [affinity, entry, context]) } as i32 {
        0 => Ok(()),
        -2 => Err(CpuOnError::InvalidParameters),
        -4 => Err(CpuOnError::AlreadyOn),
        -9 => Err(CpuOnError::InvalidAddress),
        other => Err(CpuOnError::Other(other)),
    }
}

/// Switches this vCPU off. Returns only if that is refused.
pub(crate) fn cpu_off() {
    query(CPU_OFF, 0);
}

fn query(function: u32, argument: u64) -> i64 {
    // SAFETY: the functions above take and return numbers only.
    unsafe { hypercall::smccc(function, [argument, 0, 0]) }
}
