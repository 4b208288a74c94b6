//! The CPU's own state: interrupt masks, barriers, waiting.
#![expect(unsafe_code, reason = "barriers, wait instructions and TLB maintenance have no safe form")]
use core::arch::asm;

/// Runs `work` with interrupts masked and restores the mask as it was.
pub fn without_interrupts<R>(work: impl FnOnce() -> R) -> R {
    let before: u64;
    // SAFETY: masking interrupts is always allowed; without `nomem`, no memory access moves out of the masked stretch.
    unsafe { asm!("mrs {0}, daif", "msr daifset, #3", out(reg) before, options(nostack, preserves_flags)) };
    let result = work();
    // SAFETY: restores what was read above.
    unsafe { asm!("msr daif, {0}", in(reg) before, options(nostack, preserves_flags)) };
    result
}

/// Lets interrupts and `SError` exceptions in.
pub fn unmask_interrupts() {
    // SAFETY: the vectors are in place since boot.
    unsafe { asm!("msr daifclr, #6", options(nostack, preserves_flags)) }
}

/// Masks interrupts.
pub fn mask_interrupts() {
    // SAFETY: masking interrupts is always allowed.
    unsafe { asm!("msr daifset, #3", options(nostack, preserves_flags)) }
}

/// Waits until an interrupt is pending, whether or not it is masked: call with interrupts masked, after looking for work.
pub fn wait_for_interrupt() {
    // SAFETY: WFI changes no state; the barrier makes earlier stores visible first.
    unsafe { asm!("dsb sy", "wfi", options(nostack, preserves_flags)) }
}

/// Waits for all earlier memory accesses, and for their effect on instructions.
pub fn synchronize() {
    // SAFETY: barriers change no state.
    unsafe { asm!("dsb sy", "isb", options(nostack, preserves_flags)) }
}

/// Drops what all CPUs have cached of the translation of `address`, and waits until it is gone.
pub(crate) fn flush_page(address: u64) {
    let operand = address >> 12;
    // SAFETY: dropping cached translations is always correct.
    unsafe {
        asm!("dsb ishst", "tlbi vaae1is, {}", "dsb ish", "isb", in(reg) operand, options(nostack, preserves_flags));
    }
}

/// Drops this CPU's cached translations and waits until they are gone.
pub fn flush_tlb() {
    // SAFETY: dropping cached translations is always correct.
    unsafe { asm!("dsb ishst", "tlbi vmalle1is", "dsb ish", "isb", options(nostack, preserves_flags)) }
}

/// Takes a root, with its ASID, for the lower half of addresses.
pub(crate) fn set_lower_root(value: u64) {
    // SAFETY: every root of this kernel maps the kernel.
    unsafe { asm!("msr ttbr0_el1, {}", "isb", in(reg) value, options(nostack, preserves_flags)) }
}

/// Makes instructions that were written be seen by those who execute them.
pub(crate) fn sync_instructions(start: usize, bytes: usize) {
    // Lines are at least 16 bytes.
    for address in (start..start + bytes).step_by(16) {
        // SAFETY: cache maintenance of memory that is mapped.
        unsafe { asm!("dc cvau, {}", in(reg) address, options(nostack, preserves_flags)) };
    }
    // SAFETY: drops cached instructions.
    unsafe { asm!("dsb ish", "ic ialluis", "dsb ish", "isb", options(nostack, preserves_flags)) };
}

/// The virtual counter, in order with what is before and after.
pub fn counter() -> u64 {
    let value: u64;
    // SAFETY: reads the counter.
    unsafe { asm!("isb", "mrs {}, cntvct_el0", "isb", out(reg) value, options(nostack, preserves_flags)) };
    value
}
