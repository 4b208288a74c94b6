//! PSCI by `hvc #0` (Arm DEN 0022): what a guest may ask about itself. Secondary vCPUs are not started yet.
#![expect(unsafe_code, reason = "SMCCC calls")]
#![expect(clippy::cast_possible_truncation, reason = "results of SMCCC32 functions are 32 bits of x0")]
use crate::hypercall;

const PSCI_VERSION: u32 = 0x8400_0000;
const MIGRATE_INFO_TYPE: u32 = 0x8400_0006;
const PSCI_FEATURES: u32 = 0x8400_000a;
const SYSTEM_OFF: u32 = 0x8400_0008;

/// Version, major in bits 30:16; negative if there is no PSCI.
pub fn version() -> i32 {
    query(PSCI_VERSION, 0) as i32
}

/// Whether `function` is implemented: 0 or its flags; negative if not.
pub fn features(function: u32) -> i32 {
    query(PSCI_FEATURES, function) as i32
}

/// 2: no trusted OS to migrate.
pub fn migrate_info_type() -> i32 {
    query(MIGRATE_INFO_TYPE, 0) as i32
}

/// Powers the domain off. Returns only if that is refused.
pub fn system_off() {
    query(SYSTEM_OFF, 0);
}

fn query(function: u32, argument: u32) -> i64 {
    // SAFETY: the functions above take and return numbers only.
    unsafe { hypercall::smccc(function, [u64::from(argument), 0, 0]) }
}
