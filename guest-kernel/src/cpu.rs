//! The CPU's own state: interrupt masks, barriers, waiting.
#![expect(unsafe_code, reason = "barriers, wait instructions and TLB maintenance have no safe form")]
use core::arch::asm;

use aarch64_cpu::registers::{DAIF, Readable, Writeable};

/// Runs `work` with interrupts masked and restores the mask as it was.
pub fn without_interrupts<R>(work: impl FnOnce() -> R) -> R {
    let before = DAIF.get();
    DAIF.write(DAIF::D::Masked + DAIF::A::Masked + DAIF::I::Masked + DAIF::F::Masked);
    let result = work();
    DAIF.set(before);
    result
}

/// Lets interrupts in.
pub fn unmask_interrupts() {
    DAIF.write(DAIF::D::Masked + DAIF::A::Unmasked + DAIF::I::Unmasked + DAIF::F::Masked);
}

/// Masks interrupts.
pub fn mask_interrupts() {
    DAIF.write(DAIF::D::Masked + DAIF::A::Masked + DAIF::I::Masked + DAIF::F::Masked);
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

/// Drops this CPU's cached translations and waits until they are gone.
pub fn flush_tlb() {
    // SAFETY: dropping cached translations is always correct.
    unsafe { asm!("dsb ishst", "tlbi vmalle1is", "dsb ish", "isb", options(nostack, preserves_flags)) }
}
