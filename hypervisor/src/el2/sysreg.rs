//! System registers that trap: identification (what guests may know), debug and performance monitors (nothing there), software-generated
//! interrupts, auxiliary control, set/way maintenance, and with paravirtual page tables the translation controls of EL1.
#![expect(unsafe_code, reason = "reads identification registers")]

use core::arch::asm;

use hypervisor::pagetable::control::Register;
use hypervisor::vgic;
use tock_registers::LocalRegisterCopy;

use super::context::{ArchVcpu, Frame};
use super::percpu::PerCpu;
use super::regs::{self, ESR};
use super::{gic, inject, run, trap};

/// A system register's or instruction's encoding as a syndrome spells it: bits 21:1 without the register field.
const fn encoding(op0: u64, op1: u64, crn: u64, crm: u64, op2: u64) -> u64 {
    op0 << 19 | op2 << 16 | op1 << 13 | crn << 9 | crm
}
/// `ICC_SRE_EL1` of every guest: system registers on, no bypass.
const ICC_SRE_ALWAYS: u64 = 7;
/// The register field within [`ESR::SYSREG`].
const RT_FIELD: u64 = 0x1F << 4;

const ICC_SGI1R_EL1: u64 = encoding(3, 0, 12, 11, 5);
const ICC_ASGI1R_EL1: u64 = encoding(3, 0, 12, 11, 6);
const ICC_SGI0R_EL1: u64 = encoding(3, 0, 12, 11, 7);
const ICC_SRE_EL1: u64 = encoding(3, 0, 12, 12, 5);
const ACTLR_EL1: u64 = encoding(3, 0, 1, 0, 1);
const ID_AA64MMFR1_EL1: u64 = encoding(3, 0, 0, 7, 1);
const SCTLR_EL1: u64 = encoding(3, 0, 1, 0, 0);
const TTBR0_EL1: u64 = encoding(3, 0, 2, 0, 0);
const TTBR1_EL1: u64 = encoding(3, 0, 2, 0, 1);
const TCR_EL1: u64 = encoding(3, 0, 2, 0, 2);
const AFSR0_EL1: u64 = encoding(3, 0, 5, 1, 0);
const AFSR1_EL1: u64 = encoding(3, 0, 5, 1, 1);
const ESR_EL1: u64 = encoding(3, 0, 5, 2, 0);
const FAR_EL1: u64 = encoding(3, 0, 6, 0, 0);
const MAIR_EL1: u64 = encoding(3, 0, 10, 2, 0);
const AMAIR_EL1: u64 = encoding(3, 0, 10, 3, 0);
const CONTEXTIDR_EL1: u64 = encoding(3, 0, 13, 0, 1);
const DC_ISW: u64 = encoding(1, 0, 7, 6, 2);
const DC_CSW: u64 = encoding(1, 0, 7, 10, 2);
const DC_CISW: u64 = encoding(1, 0, 7, 14, 2);
const CNTP_TVAL_EL0: u64 = encoding(3, 3, 14, 2, 0);
const CNTP_CTL_EL0: u64 = encoding(3, 3, 14, 2, 1);
const CNTP_CVAL_EL0: u64 = encoding(3, 3, 14, 2, 2);
const PMINTENSET_EL1: u64 = encoding(3, 0, 9, 14, 1);
const PMINTENCLR_EL1: u64 = encoding(3, 0, 9, 14, 2);
const PMMIR_EL1: u64 = encoding(3, 0, 9, 14, 6);

/// What a register is to a guest.
enum What {
    /// An identification register with this value; writing is undefined.
    Identity(u64),
    /// Reads as zero, ignores writes.
    Nothing,
    /// Always this value; writes are ignored.
    Fixed(u64),
    /// Sends interrupts.
    Sgi,
    /// Controls EL1's translation; traps on writing, with paravirtual page tables.
    Translation(Register),
    /// Is not there.
    Absent,
}

fn what(register: u64) -> What {
    let op0 = register >> 19 & 3;
    let op1 = register >> 13 & 7;
    let crn = register >> 9 & 15;
    let crm = register & 15;
    let op2 = register >> 16 & 7;
    match register {
        ICC_SGI1R_EL1 => What::Sgi,
        SCTLR_EL1 => What::Translation(Register::Sctlr),
        TCR_EL1 => What::Translation(Register::Tcr),
        MAIR_EL1 => What::Translation(Register::Mair),
        TTBR0_EL1 | TTBR1_EL1 => What::Translation(Register::Base),
        AFSR0_EL1 | AFSR1_EL1 | ESR_EL1 | FAR_EL1 | AMAIR_EL1 | CONTEXTIDR_EL1 => {
            What::Translation(Register::Harmless)
        }
        ICC_SRE_EL1 => What::Fixed(ICC_SRE_ALWAYS),
        ICC_ASGI1R_EL1 | ICC_SGI0R_EL1 | ACTLR_EL1 | DC_ISW | DC_CSW | DC_CISW | PMINTENSET_EL1
        | PMINTENCLR_EL1 | PMMIR_EL1
        // The physical timer: its deadlines never come (guests use the virtual one).
        | CNTP_TVAL_EL0 | CNTP_CTL_EL0 | CNTP_CVAL_EL0 => What::Nothing,
        _ => match (op0, op1, crn, crm) {
            (3, 0, 0, 1..=7) => What::Identity(identity(crm, op2)),
            // Debug registers; performance monitors, counters and event types.
            (2, 0 | 3, 0..=1, _) | (3, 3, 9, 12..=14) | (3, 3, 14, 8..=15) => What::Nothing,
            _ => What::Absent,
        },
    }
}

/// Serves a trapped access.
pub fn access(
    cpu: &'static PerCpu,
    arch: &'static ArchVcpu,
    frame: &mut Frame,
    syndrome: LocalRegisterCopy<u64, ESR::Register>,
) {
    let register = syndrome.read(ESR::SYSREG) & !RT_FIELD;
    let read = syndrome.is_set(ESR::DIRECTION);
    let rt = syndrome.read(ESR::RT);
    match what(register) {
        // Hardware access flag and dirty state would write tables, hierarchical permissions change what entries mean.
        What::Identity(value) if read && register == ID_AA64MMFR1_EL1 && arch.domain.paging().is_some() => {
            frame.set(rt, value & !(field(0) | field(3)));
        }
        What::Identity(value) if read => frame.set(rt, value),
        What::Fixed(value) if read => frame.set(rt, value),
        What::Nothing if read => frame.set(rt, 0),
        What::Nothing | What::Fixed(_) => {}
        What::Sgi if !read => {
            let sender = arch.with_gic(|gic| Some(gic.index()));
            if let Some(sender) = sender {
                let sgi = vgic::decode_sgi1r(frame.get(rt), sender, arch.domain.vcpus.len());
                run::send_sgi(cpu, arch, sgi.intid, sgi.targets);
            }
        }
        What::Translation(control) if !read && arch.domain.paging().is_some() => {
            let value = frame.get(rt);
            if !arch.domain.permits(control, value) {
                if gic::worth_a_line() {
                    defmt::warn!(
                        "d{=u16}: {=str} must not become {=u64:#x}",
                        arch.domain.id.0,
                        name(register),
                        value
                    );
                }
                inject::undefined();
                return;
            }
            write_control(register, value);
        }
        What::Identity(_) | What::Sgi | What::Translation(_) | What::Absent => {
            if gic::worth_a_line() {
                defmt::debug!("d{=u16}: undefined system register {=u64:#x}", arch.domain.id.0, register);
            }
            inject::undefined();
            return;
        }
    }
    trap::skip(syndrome);
}

/// What the log calls a translation control that a guest may not write as it likes.
fn name(register: u64) -> &'static str {
    match register {
        SCTLR_EL1 => "SCTLR_EL1",
        TCR_EL1 => "TCR_EL1",
        MAIR_EL1 => "MAIR_EL1",
        TTBR0_EL1 => "TTBR0_EL1",
        TTBR1_EL1 => "TTBR1_EL1",
        // All others may be written.
        _ => "a register",
    }
}

/// Writes a register of EL1's translation; the guest's `ISB` is the return to it.
fn write_control(register: u64, value: u64) {
    match register {
        SCTLR_EL1 => regs::sctlr_el1::write(value),
        TTBR0_EL1 => regs::ttbr0_el1::write(value),
        TTBR1_EL1 => regs::ttbr1_el1::write(value),
        TCR_EL1 => regs::tcr_el1::write(value),
        AFSR0_EL1 => regs::afsr0_el1::write(value),
        AFSR1_EL1 => regs::afsr1_el1::write(value),
        ESR_EL1 => regs::esr_el1::write(value),
        FAR_EL1 => regs::far_el1::write(value),
        MAIR_EL1 => regs::mair_el1::write(value),
        AMAIR_EL1 => regs::amair_el1::write(value),
        CONTEXTIDR_EL1 => regs::contextidr_el1::write(value),
        // `what` names no other.
        _ => {}
    }
}

macro_rules! read_register {
    ($name:literal) => {{
        let value: u64;
        // SAFETY: reads an identification register.
        unsafe { asm!(concat!("mrs {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags)) };
        value
    }};
}

/// The four-bit field `n` (bits 4n+3:4n) of an identification register.
const fn field(n: u32) -> u64 {
    0xF_u64.wrapping_shl(n.wrapping_mul(4))
}

/// What a guest sees of an identification register: features that EL2 neither switches nor needs to. All that is not named reads as
/// zero, AArch32 included.
fn identity(crm: u64, op2: u64) -> u64 {
    match (crm, op2) {
        // ID_AA64PFR0_EL1: EL0 and EL1 in AArch64 only; floating point, SIMD, GIC registers, DIT, CSV2, CSV3.
        (4, 0) => {
            let kept = field(4) | field(5) | field(6) | field(12) | field(15);
            let value = read_register!("id_aa64pfr0_el1");
            // CSV2 of 2 offers registers for the contexts (SCXTNUM_EL1), which trap and are not there.
            value & kept | (value & field(14)).min(1 << 56) | 0x11
        }
        // ID_AA64PFR1_EL1: BTI, SSBS.
        (4, 1) => read_register!("id_aa64pfr1_el1") & (field(0) | field(1)),
        // ID_AA64DFR0_EL1: the least that Armv8 has: two breakpoints, two watchpoints, no performance monitors.
        (5, 0) => 0x10_1006,
        // ID_AA64ISAR0_EL1: everything but transactions.
        (6, 0) => read_register!("id_aa64isar0_el1") & !field(6),
        // ID_AA64ISAR1_EL1: neither pointer authentication nor 64-byte stores nor XS.
        (6, 1) => {
            let kept = field(0)
                | field(3)
                | field(4)
                | field(5)
                | field(8)
                | field(9)
                | field(10)
                | field(11)
                | field(12)
                | field(13);
            read_register!("id_aa64isar1_el1") & kept
        }
        // ID_AA64MMFR0_EL1: granules without 52-bit addresses (FEAT_LPA2), none of stage 2's; ASIDs, endianness; addresses of 40 bits, stage 2's input.
        (7, 0) => {
            let value = read_register!("id_aa64mmfr0_el1");
            let range = (value & field(0)).min(2);
            // 1 for 52 bits and 0 for 48 with pages of 4 KiB, 2 and 1 with those of 16 KiB; 15 and 0 for neither.
            let small = if value & field(7) == field(7) { field(7) } else { 0 };
            let middle = (value & field(5)).min(1 << 20);
            let kept =
                !(field(0) | field(5) | field(7) | field(8) | field(9) | field(10) | field(14) | field(15));
            value & kept | range | small | middle
        }
        // ID_AA64MMFR1_EL1: hierarchical permission disables, PAN, ETS, AFP.
        (7, 1) => {
            let kept = field(0) | field(3) | field(5) | field(6) | field(9) | field(11);
            read_register!("id_aa64mmfr1_el1") & kept
        }
        // ID_AA64MMFR2_EL1: all but common-not-private translations, 52-bit addresses, nested virtualization, forced write-back and the second-stage traps.
        (7, 2) => {
            read_register!("id_aa64mmfr2_el1") & !(field(0) | field(4) | field(6) | field(10) | field(14))
        }
        _ => 0,
    }
}
