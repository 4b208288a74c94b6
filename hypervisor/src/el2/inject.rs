//! Exceptions given to a guest: what its own EL1 would have taken (Arm ARM D1.3.6).
use tock_registers::LocalRegisterCopy;

use super::regs::{self, ESR, SCTLR1, SPSR};

/// Exception classes that a guest is given.
#[derive(Clone, Copy)]
pub enum Class {
    /// Undefined instruction.
    Unknown,
    /// Instruction abort.
    InstructionAbort,
    /// Data abort.
    DataAbort,
}

/// Fault status: synchronous external abort, not on a walk; on a walk the level is added to the second.
const EXTERNAL_ABORT: u64 = 0x10;
const EXTERNAL_ABORT_ON_WALK: u64 = 0x14;

/// The fault status of the external abort that a guest is given for an abort of stage 2.
pub fn external_abort(syndrome: LocalRegisterCopy<u64, ESR::Register>) -> u64 {
    if syndrome.is_set(ESR::S1PTW) {
        EXTERNAL_ABORT_ON_WALK | syndrome.read(ESR::FSC) & 3
    } else {
        EXTERNAL_ABORT
    }
}

const EC_UNKNOWN: u64 = 0x00;
const EC_INSTRUCTION_LOWER: u64 = 0x20;
const EC_DATA_LOWER: u64 = 0x24;
/// From the same level an abort's class is the lower level's plus one.
const EC_SAME_LEVEL: u64 = 1;

const VECTOR_CURRENT_SP0: u64 = 0x000;
const VECTOR_CURRENT_SPX: u64 = 0x200;
const VECTOR_LOWER_A64: u64 = 0x400;
const VECTOR_LOWER_A32: u64 = 0x600;

/// Makes the loaded vCPU take a synchronous exception at the instruction it is at. `iss` has the write bit and status of an abort.
pub fn synchronous(class: Class, iss: u64, far: Option<u64>, four_bytes: bool) {
    let spsr = LocalRegisterCopy::<u64, SPSR::Register>::new(regs::spsr_el2::read());
    let (vector, same_level) = if spsr.is_set(SPSR::NRW) {
        (VECTOR_LOWER_A32, 0)
    } else {
        match spsr.read(SPSR::M) {
            4 => (VECTOR_CURRENT_SP0, EC_SAME_LEVEL),
            5 => (VECTOR_CURRENT_SPX, EC_SAME_LEVEL),
            _ => (VECTOR_LOWER_A64, 0),
        }
    };
    let ec = match class {
        Class::Unknown => EC_UNKNOWN,
        Class::InstructionAbort => EC_INSTRUCTION_LOWER.wrapping_add(same_level),
        Class::DataAbort => EC_DATA_LOWER.wrapping_add(same_level),
    };
    let il = if four_bytes { ESR::IL::SET.value } else { 0 };
    regs::esr_el1::write(ESR::EC.val(ec).value | il | iss);
    if let Some(far) = far {
        regs::far_el1::write(far);
    }
    regs::elr_el1::write(regs::elr_el2::read());
    regs::spsr_el1::write(spsr.get());
    regs::elr_el2::write(regs::vbar_el1::read().wrapping_add(vector));
    regs::spsr_el2::write(entry_state(spsr));
}

/// The process state that an exception to EL1 begins with (Arm ARM D1.3.6): condition flags, DIT and PAN stay, PAN is set unless
/// `SCTLR_EL1.SPAN`, SSBS is as `SCTLR_EL1.DSSBS` says.
fn entry_state(from: LocalRegisterCopy<u64, SPSR::Register>) -> u64 {
    let sctlr = LocalRegisterCopy::<u64, SCTLR1::Register>::new(regs::sctlr_el1::read());
    let kept = SPSR::NZCV.mask << SPSR::NZCV.shift
        | SPSR::DIT.mask << SPSR::DIT.shift
        | SPSR::PAN.mask << SPSR::PAN.shift;
    let mut state = from.get() & kept;
    // SPAN is RES1 where there is no PAN, so the bit is only ever set where it means something.
    if !sctlr.is_set(SCTLR1::SPAN) {
        state |= SPSR::PAN::SET.value;
    }
    if sctlr.is_set(SCTLR1::DSSBS) {
        state |= SPSR::SSBS::SET.value;
    }
    state | SPSR::DAIF.val(0xF).value | SPSR::M::EL1h.value
}

/// An undefined instruction.
pub fn undefined() {
    synchronous(Class::Unknown, 0, None, true);
}
