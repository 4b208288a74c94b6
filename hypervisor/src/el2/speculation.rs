//! Branch predictors that contexts share (Spectre variant 2; Arm DEN 0070, SMCCC `ARCH_WORKAROUND_1`).
//!
//! On a CPU whose `ID_AA64PFR0_EL1.CSV2` is 0, such as a Cortex-A72, branch targets that one domain trained steer the next one's
//! speculation. Where the firmware offers the call that undoes it, it is made when the CPU goes to another domain, and guests may make
//! it for their own switches. EL2's own code cannot be steered: what a guest can reach has no indirect branch but returns (`cargo xtask
//! check` proves it), so neither the call nor a loop against branch-history injection stands on its entry.
use core::sync::atomic::{AtomicBool, Ordering};

use hypervisor::psci::BranchTraining;
use smccc::arch::{SMCCC_ARCH_FEATURES, SMCCC_ARCH_WORKAROUND_1, SMCCC_VERSION};
use smccc::psci::{PSCI_FEATURES, PSCI_VERSION};
use smccc::{Call, Smc};
use tock_registers::LocalRegisterCopy;

use super::regs::{self, PFR0};

/// Whether the firmware's call is to be made.
static CALL: AtomicBool = AtomicBool::new(false);

/// PSCI 1.0, the first with `PSCI_FEATURES`, and SMCCC 1.1, the first with `ARCH_FEATURES`.
const PSCI_1_0: u32 = 0x1_0000;
const SMCCC_1_1: u32 = 0x1_0001;

/// Asks the firmware, which is reached by `smc`; each question only where the one before makes it safe: firmware of old answers an
/// unknown call as it likes.
pub fn decide() {
    let ask = |function: u32, argument: u32| {
        let [result, ..] = Smc::call32(function, [argument, 0, 0, 0, 0, 0, 0]);
        result.cast_signed()
    };
    let at_least = |value: i32, least: u32| u32::try_from(value).is_ok_and(|value| value >= least);
    let offered = shared()
        && at_least(ask(PSCI_VERSION, 0), PSCI_1_0)
        && ask(PSCI_FEATURES, SMCCC_VERSION) >= 0
        && at_least(ask(SMCCC_VERSION, 0), SMCCC_1_1)
        && ask(SMCCC_ARCH_FEATURES, SMCCC_ARCH_WORKAROUND_1) == 0;
    CALL.store(offered, Ordering::Relaxed);
}

/// Whether contexts share what branches were trained to (Arm ARM D19.2.70).
fn shared() -> bool {
    LocalRegisterCopy::<u64, PFR0::Register>::new(regs::id_aa64pfr0_el1::read()).read(PFR0::CSV2) == 0
}

/// What guests are told. Guests do not move between CPUs of different kinds.
pub fn training() -> BranchTraining {
    match (shared(), CALL.load(Ordering::Relaxed)) {
        (false, _) => BranchTraining::Contained,
        (true, true) => BranchTraining::Undone,
        (true, false) => BranchTraining::Shared,
    }
}

/// Undoes what was trained, where that can be done.
#[inline]
pub fn forget() {
    if CALL.load(Ordering::Relaxed) {
        let _ = Smc::call32(SMCCC_ARCH_WORKAROUND_1, [0; 7]);
    }
}
