//! PSCI and SMCCC by `hvc #0` (Arm DEN 0022, DEN 0028).
use super::raw::smccc;
use super::tap::Tap;

const PSCI_VERSION: u32 = 0x8400_0000;
const AFFINITY_INFO_32: u32 = 0x8400_0004;
const MIGRATE_INFO_TYPE: u32 = 0x8400_0006;
const PSCI_FEATURES: u32 = 0x8400_000a;
const CPU_SUSPEND_64: u64 = 0xc400_0001;
const SMCCC_VERSION: u32 = 0x8000_0000;
const SYSTEM_RESET2: u64 = 0x8400_0012;
const PV_TIME_FEATURES: u32 = 0xc500_0020;
const NOT_SUPPORTED: i32 = -1;

pub(crate) fn check(tap: &mut Tap) {
    let answer = |function, argument| smccc(function, argument);
    tap.is("PSCI is version 1.1", answer(PSCI_VERSION, 0), 0x1_0001);
    tap.is("there is no trusted OS to migrate", answer(MIGRATE_INFO_TYPE, 0), 2);
    tap.is("SMCCC_VERSION exists", answer(PSCI_FEATURES, u64::from(SMCCC_VERSION)), 0);
    tap.that("SMCCC is version 1.1 or later", answer(SMCCC_VERSION, 0) >= 0x1_0001);
    tap.is("CPU_SUSPEND exists", answer(PSCI_FEATURES, CPU_SUSPEND_64), 0);
    tap.is("SYSTEM_RESET2 does not", answer(PSCI_FEATURES, SYSTEM_RESET2), NOT_SUPPORTED);
    tap.is("this vCPU is on", answer(AFFINITY_INFO_32, 0), 0);
    tap.is("an unknown function", answer(0x8400_00ff, 0), NOT_SUPPORTED);
    tap.is("paravirtual time does not exist", answer(PV_TIME_FEATURES, 0), NOT_SUPPORTED);
}
