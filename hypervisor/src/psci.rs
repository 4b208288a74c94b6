//! What a guest asks by `hvc #0` (SMCCC, Arm DEN 0028; PSCI, Arm DEN 0022): decoded here, done by the image. Answers are those that
//! Xen gives its guests; what is unknown returns -1 and never faults.
//!
//! It changes nothing.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use pv_abi::layout::{PSCI_0_1_CPU_OFF, PSCI_0_1_CPU_ON, vcpu_affinity};
use pv_abi::sched::ShutdownReason;

use crate::domain::Domain;
use crate::vcpu::Run;

/// What the image is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// Give x0 this value.
    Return(i64),
    /// Leave all registers as they are.
    Nothing,
    /// Have the firmware undo what branches were trained to, and leave all registers as they are.
    Untrain,
    /// Start a vCPU that is off (MMU off, at `entry`, with `context` in x0), unless it has been started meanwhile, and give x0 [`SUCCESS`].
    CpuOn {
        /// Its number.
        vcpu: u32,
        /// Guest physical address.
        entry: u64,
        /// For its x0.
        context: u64,
    },
    /// Stop the caller until another vCPU starts it.
    CpuOff,
    /// Block the caller until an interrupt is pending, then give x0 [`SUCCESS`].
    Suspend,
    /// End the domain. Should the caller run on, x0 is [`INTERNAL_FAILURE`].
    End(ShutdownReason),
}

/// PSCI's `SUCCESS`.
pub const SUCCESS: i64 = 0;
/// PSCI's `ALREADY_ON`, for a vCPU that another started first.
pub const ALREADY_ON: i64 = -4;
/// PSCI's `INTERNAL_FAILURE`.
pub const INTERNAL_FAILURE: i64 = -6;
const NOT_SUPPORTED: i64 = -1;
const INVALID_PARAMETERS: i64 = -2;
const INVALID_ADDRESS: i64 = -9;
/// SMCCC's `NOT_REQUIRED`.
const NOT_REQUIRED: i64 = 1;

/// PSCI 1.1.
const PSCI_VERSION: i64 = 0x1_0001;
/// SMCCC 1.2.
const SMCCC_VERSION: i64 = 0x1_0002;
/// No trusted operating system that would have to be migrated.
const MIGRATE_NOT_NEEDED: i64 = 2;
const LEVEL_ON: i64 = 0;
const LEVEL_OFF: i64 = 1;

/// Bit 30 of a function identifier: the arguments have 64 bits.
const CONVENTION_64: u32 = 1 << 30;

/// Function identifiers.
mod fid {
    pub(super) const PSCI_VERSION: u32 = 0x8400_0000;
    pub(super) const CPU_SUSPEND_32: u32 = 0x8400_0001;
    pub(super) const CPU_SUSPEND_64: u32 = 0xC400_0001;
    pub(super) const CPU_OFF: u32 = 0x8400_0002;
    pub(super) const CPU_ON_32: u32 = 0x8400_0003;
    pub(super) const CPU_ON_64: u32 = 0xC400_0003;
    pub(super) const AFFINITY_INFO_32: u32 = 0x8400_0004;
    pub(super) const AFFINITY_INFO_64: u32 = 0xC400_0004;
    pub(super) const MIGRATE_INFO_TYPE: u32 = 0x8400_0006;
    pub(super) const SYSTEM_OFF: u32 = 0x8400_0008;
    pub(super) const SYSTEM_RESET: u32 = 0x8400_0009;
    pub(super) const PSCI_FEATURES: u32 = 0x8400_000A;
    pub(super) const SMCCC_VERSION: u32 = 0x8000_0000;
    pub(super) const ARCH_FEATURES: u32 = 0x8000_0001;
    pub(super) const WORKAROUND_1: u32 = 0x8000_8000;
    pub(super) const WORKAROUND_2: u32 = 0x8000_7FFF;
    pub(super) const WORKAROUND_3: u32 = 0x8000_3FFF;
}

/// The affinity fields that `CPU_ON` looks at, as in Xen: Aff1 and Aff0, which tell vCPUs apart.
const TOLD_APART: u64 = 0xFFFF;
/// Affinity fields of `MPIDR_EL1`: Aff3 in bits 39:32, Aff2 to Aff0 in 23:0.
const AFFINITY: u64 = 0xFF_00FF_FFFF;

/// Whether branch targets that one context trained steer another's speculation (Spectre variant 2, `ID_AA64PFR0_EL1.CSV2`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BranchTraining {
    /// The CPU keeps contexts apart: no workaround is required.
    Contained,
    /// It does not, but the firmware undoes the training on request: guests may ask, too.
    Undone,
    /// It does not, as a Cortex-A72 does not, and the hypervisor has no workaround to offer: guests use what they have themselves.
    Shared,
}

/// Decodes a call of a domain; `x` is x0 to x3.
pub fn decode(domain: &Domain, training: BranchTraining, x: [u64; 4]) -> Request {
    let [x0, x1, x2, x3] = x;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "function identifiers and 32-bit arguments are the low halves"
    )]
    let (function, w1, w2, w3) = (x0 as u32, x1 as u32, x2 as u32, x3 as u32);
    // A 32-bit call's arguments are 32-bit registers, whatever their upper halves hold.
    let [x1, x2, x3] = if function & CONVENTION_64 == 0 {
        [u64::from(w1), u64::from(w2), u64::from(w3)]
    } else {
        [x1, x2, x3]
    };
    match function {
        fid::PSCI_VERSION => Request::Return(PSCI_VERSION),
        fid::CPU_SUSPEND_32 | fid::CPU_SUSPEND_64 => Request::Suspend,
        fid::CPU_OFF | PSCI_0_1_CPU_OFF => Request::CpuOff,
        fid::CPU_ON_32 | fid::CPU_ON_64 => cpu_on(domain, x1, x2, x3).unwrap_or_else(Request::Return),
        // The first PSCI knew fewer errors, and its entry address had 64 bits.
        PSCI_0_1_CPU_ON => cpu_on(domain, x1, x[2], 0).unwrap_or(Request::Return(INVALID_PARAMETERS)),
        fid::AFFINITY_INFO_32 | fid::AFFINITY_INFO_64 => Request::Return(affinity_info(domain, x1, w2)),
        fid::MIGRATE_INFO_TYPE => Request::Return(MIGRATE_NOT_NEEDED),
        fid::SYSTEM_OFF => Request::End(ShutdownReason::Poweroff),
        fid::SYSTEM_RESET => Request::End(ShutdownReason::Reboot),
        fid::PSCI_FEATURES => Request::Return(if has(w1) { SUCCESS } else { NOT_SUPPORTED }),
        fid::SMCCC_VERSION => Request::Return(SMCCC_VERSION),
        // That the first workaround is not required keeps guests from calling it on every switch; said only where it is true.
        fid::ARCH_FEATURES if w1 == fid::WORKAROUND_1 => Request::Return(match training {
            BranchTraining::Contained => NOT_REQUIRED,
            BranchTraining::Undone => SUCCESS,
            BranchTraining::Shared => NOT_SUPPORTED,
        }),
        fid::WORKAROUND_1 if training == BranchTraining::Undone => Request::Untrain,
        fid::WORKAROUND_1 | fid::WORKAROUND_2 | fid::WORKAROUND_3 => Request::Nothing,
        _ => Request::Return(NOT_SUPPORTED),
    }
}

/// Whether `PSCI_FEATURES` knows a function.
fn has(function: u32) -> bool {
    matches!(
        function,
        fid::PSCI_VERSION
            | fid::CPU_SUSPEND_32
            | fid::CPU_SUSPEND_64
            | fid::CPU_OFF
            | fid::CPU_ON_32
            | fid::CPU_ON_64
            | fid::AFFINITY_INFO_32
            | fid::AFFINITY_INFO_64
            | fid::MIGRATE_INFO_TYPE
            | fid::SYSTEM_OFF
            | fid::SYSTEM_RESET
            | fid::PSCI_FEATURES
            | fid::SMCCC_VERSION
    )
}

fn cpu_on(domain: &Domain, target: u64, entry: u64, context: u64) -> Result<Request, i64> {
    let vcpu = domain
        .vcpus
        .iter()
        .find(|vcpu| u64::from(vcpu_affinity(vcpu.number)) == target & TOLD_APART)
        .ok_or(INVALID_PARAMETERS)?;
    // There is no T32 for a 64-bit guest.
    if entry & 1 != 0 {
        return Err(INVALID_ADDRESS);
    }
    match vcpu.run.get() {
        Run::Offline => Ok(Request::CpuOn { vcpu: vcpu.number, entry, context }),
        Run::Runnable | Run::Running | Run::Blocked | Run::Paused => Err(ALREADY_ON),
    }
}

/// Whether any vCPU whose affinity fields from `level` up are the target's is on.
fn affinity_info(domain: &Domain, target: u64, level: u32) -> i64 {
    let below = match level {
        0 => 0,
        1 => 0xFF,
        2 => 0xFFFF,
        3 => 0xFFFF_FFFF,
        _ => return INVALID_PARAMETERS,
    };
    let mask = AFFINITY & !below;
    let on = domain.vcpus.iter().any(|vcpu| {
        u64::from(vcpu_affinity(vcpu.number)) & mask == target & mask && vcpu.run.get() != Run::Offline
    });
    if on { LEVEL_ON } else { LEVEL_OFF }
}
