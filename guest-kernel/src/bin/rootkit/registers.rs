//! Controls of EL1's translation, written by register.
use aarch64_cpu::registers::{
    ID_AA64MMFR0_EL1, ID_AA64MMFR1_EL1, ID_AA64MMFR2_EL1, MAIR_EL1, Readable, SCTLR_EL1, TCR_EL1, TTBR0_EL1,
    TTBR1_EL1,
};
use alloc::format;

use guest_kernel::println;

use super::{Came, Tap, Target, UNDEFINED, at_el1, code};

/// Writes a register, and tells what the hypervisor's log must have.
fn write(register: &str, pc: u64, value: u64) -> Came {
    println!("# in the log: {register} must not become {value:#x}");
    at_el1(pc, value, 0)
}

/// Features that change what an entry means, or who writes it, are not offered: by field of `ID_AA64MMFR<n>_EL1` (Arm ARM D19.2), the values that say so.
pub(super) fn features(tap: &mut Tap) {
    let registers = [ID_AA64MMFR0_EL1.get(), ID_AA64MMFR1_EL1.get(), ID_AA64MMFR2_EL1.get()];
    for (what, register, shift, without) in [
        ("52-bit addresses with pages of 4 KiB (LPA2)", 0, 28, [0, 15]),
        ("52-bit addresses with pages of 16 KiB", 0, 20, [0, 1]),
        ("hardware access flag and dirty state", 1, 0, [0, 0]),
        ("hierarchical permissions", 1, 12, [0, 0]),
        ("translations common to CPUs", 2, 0, [0, 0]),
        ("52-bit virtual addresses", 2, 16, [0, 0]),
    ] {
        let field = registers.get(register).map(|value| value >> shift & 0xF);
        tap.nothing(
            &format!("a register that offers {what}"),
            field.is_some_and(|field| without.contains(&field)),
        );
    }
}

/// Every write that would change what the tables mean is an undefined instruction, and changes nothing.
pub(super) fn controls(tap: &mut Tap, target: &Target) {
    let sctlr = SCTLR_EL1.get();
    for (what, value) in [
        ("MMU off", sctlr & !1),
        ("data caches off", sctlr & !(1 << 2)),
        ("big-endian tables", sctlr | 1 << 25),
        ("big-endian EL0", sctlr | 1 << 24),
        ("a bit that nobody knows", sctlr | 1 << 63),
        ("everything off", 0),
    ] {
        let came = write("SCTLR_EL1", code!(rootkit_write_sctlr), value);
        tap.nothing(&format!("SCTLR_EL1: {what}"), came == UNDEFINED && SCTLR_EL1.get() == sctlr);
    }
    let tcr = TCR_EL1.get();
    for (what, value) in [
        ("47 bits below", tcr & !0x3f | 0x11),
        ("39 bits above", tcr & !(0x3f << 16) | 0x19 << 16),
        ("64 KiB pages", tcr | 1 << 14),
        ("16 KiB pages above", tcr & !(3 << 30) | 1 << 30),
        ("walks without caches", tcr & !(3 << 8)),
        ("walks that are not shared", tcr & !(3 << 12)),
        ("ASID from above", tcr | 1 << 22),
        ("48-bit outputs", tcr | 0x5 << 32),
        ("hardware access flag", tcr | 1 << 39),
        ("hardware dirty state", tcr | 1 << 40),
        ("no hierarchical permissions", tcr | 1 << 41),
        ("larger addresses", tcr | 1 << 59),
    ] {
        let came = write("TCR_EL1", code!(rootkit_write_tcr), value);
        tap.nothing(&format!("TCR_EL1: {what}"), came == UNDEFINED && TCR_EL1.get() == tcr);
    }
    let mair = MAIR_EL1.get();
    let came = write("MAIR_EL1", code!(rootkit_write_mair), mair ^ 0xff);
    tap.nothing("MAIR_EL1: another meaning of an index", came == UNDEFINED && MAIR_EL1.get() == mair);
    let (lower, upper) = (TTBR0_EL1.get(), TTBR1_EL1.get());
    for (register, what, pc, value) in [
        ("TTBR0_EL1", "a table of data", code!(rootkit_write_lower), target.data),
        ("TTBR0_EL1", "a checked root", code!(rootkit_write_lower), target.tables[0]),
        ("TTBR0_EL1", "another ASID", code!(rootkit_write_lower), lower ^ 1 << 48),
        ("TTBR1_EL1", "a table of data", code!(rootkit_write_upper), target.data),
        ("TTBR1_EL1", "common translations", code!(rootkit_write_upper), upper | 1),
    ] {
        let came = write(register, pc, value);
        let kept = TTBR0_EL1.get() == lower && TTBR1_EL1.get() == upper;
        tap.nothing(&format!("{register}: {what}"), came == UNDEFINED && kept);
    }
}
