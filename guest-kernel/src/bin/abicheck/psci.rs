//! PSCI and SMCCC by `hvc #0` (Arm DEN 0022, DEN 0028).
use guest_kernel::psci::affinity;
use guest_kernel::smp;
use pv_abi::layout::PSCI_0_1_CPU_ON;

use super::raw::{self, NOWHERE, smccc};
use super::tap::Tap;

const PSCI_VERSION: u32 = 0x8400_0000;
const AFFINITY_INFO_32: u32 = 0x8400_0004;
const MIGRATE_INFO_TYPE: u32 = 0x8400_0006;
const PSCI_FEATURES: u32 = 0x8400_000a;
const CPU_SUSPEND_64: u64 = 0xc400_0001;
const SMCCC_VERSION: u32 = 0x8000_0000;
const SYSTEM_RESET2: u64 = 0x8400_0012;
const PV_TIME_FEATURES: u32 = 0xc500_0020;
const CPU_ON_64: u32 = 0xc400_0003;
const NOT_SUPPORTED: i32 = -1;
const INVALID_PARAMETERS: i32 = -2;
const ALREADY_ON: i32 = -4;
pub(crate) const INVALID_ADDRESS: i32 = -9;

/// CPU_ON where it is refused.
pub(crate) fn cpu_on(affinity: u64, entry: u64) -> i32 {
    raw::cpu_on(CPU_ON_64, affinity, entry)
}

pub(crate) fn check(tap: &mut Tap) {
    let answer = |function, argument| smccc(function, argument);
    tap.is("PSCI is version 1.1", answer(PSCI_VERSION, 0), 0x1_0001);
    tap.is("there is no trusted OS to migrate", answer(MIGRATE_INFO_TYPE, 0), 2);
    tap.is("SMCCC_VERSION exists", answer(PSCI_FEATURES, u64::from(SMCCC_VERSION)), 0);
    tap.that("SMCCC is version 1.1 or later", answer(SMCCC_VERSION, 0) >= 0x1_0001);
    tap.is("CPU_SUSPEND exists", answer(PSCI_FEATURES, CPU_SUSPEND_64), 0);
    tap.is("SYSTEM_RESET2 does not", answer(PSCI_FEATURES, SYSTEM_RESET2), NOT_SUPPORTED);
    tap.is("this vCPU is on", answer(AFFINITY_INFO_32, 0), 0);
    let absent = affinity(smp::count());
    tap.is("one that does not exist is off", answer(AFFINITY_INFO_32, absent), 1);
    tap.is("at level 1 it is on: others of its kind are", raw::affinity_info(absent, 1), 0);
    tap.is("there is no level 4", raw::affinity_info(0, 4), INVALID_PARAMETERS);
    tap.is("CPU_ON of this vCPU", cpu_on(0, NOWHERE), ALREADY_ON);
    tap.is("CPU_ON of this vCPU at an odd address", cpu_on(0, NOWHERE + 1), INVALID_ADDRESS);
    tap.is("CPU_ON of one that does not exist", cpu_on(absent, NOWHERE), INVALID_PARAMETERS);
    tap.is("at an odd address", cpu_on(absent, NOWHERE + 1), INVALID_PARAMETERS);
    tap.is("CPU_ON looks at Aff1 and Aff0 only", cpu_on(0x1_0001_0000, NOWHERE), ALREADY_ON);
    let first = |entry| raw::cpu_on(PSCI_0_1_CPU_ON, 0, entry);
    tap.is("PSCI 0.1: CPU_ON of this vCPU", first(NOWHERE), INVALID_PARAMETERS);
    tap.is("PSCI 0.1: CPU_ON at an odd address", first(NOWHERE + 1), INVALID_PARAMETERS);
    tap.is("an unknown function", answer(0x8400_00ff, 0), NOT_SUPPORTED);
    tap.is("paravirtual time does not exist", answer(PV_TIME_FEATURES, 0), NOT_SUPPORTED);
}
