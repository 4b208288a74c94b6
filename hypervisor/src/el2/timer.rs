//! The system counter and EL2's timer. Time starts when the first CPU enters; guests see it without an offset of their own.
use core::sync::atomic::{AtomicU64, Ordering};

use tock_registers::LocalRegisterCopy;

use super::regs::{self, CNT_CTL};
use aarch64_cpu::asm::barrier::{SY, isb};

static BOOT: AtomicU64 = AtomicU64::new(0);

/// Hz; `CNTFRQ_EL0` is only what firmware wrote there, and the device tree may know better.
static FREQUENCY: AtomicU64 = AtomicU64::new(0);

/// Starts time, by the first CPU.
pub fn start() {
    BOOT.store(regs::cntpct_el0::read(), Ordering::Relaxed);
    let _ = set_frequency(None);
}

/// Takes the counter's frequency from the device tree if that gives one; false when nobody does.
pub fn set_frequency(from_tree: Option<u32>) -> bool {
    let frequency = from_tree.map_or_else(regs::cntfrq_el0::read, u64::from);
    FREQUENCY.store(frequency, Ordering::Relaxed);
    frequency != 0
}

/// The counter's frequency in Hz.
pub fn frequency() -> u64 {
    FREQUENCY.load(Ordering::Relaxed)
}

/// Counter value at the start: guests' `CNTVOFF_EL2`, so that their virtual counter is the system time.
pub fn offset() -> u64 {
    BOOT.load(Ordering::Relaxed)
}

/// Ticks since the start. The ISB keeps the read from being done early (Arm ARM D12.1.2).
#[inline]
pub fn now() -> u64 {
    isb(SY);
    regs::cntpct_el0::read().wrapping_sub(offset())
}

/// Microseconds since the start.
pub fn microseconds() -> u64 {
    let per = frequency().checked_div(1_000_000).filter(|per| *per != 0).unwrap_or(1);
    now().checked_div(per).unwrap_or(0)
}

/// Whole microseconds since a system time. The counter may be read a few instructions early: that is a few too few.
pub fn microseconds_since(began: u64) -> u64 {
    let per = frequency().checked_div(1_000_000).filter(|per| *per != 0).unwrap_or(1);
    regs::cntpct_el0::read().wrapping_sub(offset()).saturating_sub(began).checked_div(per).unwrap_or(0)
}

/// Ticks in so many microseconds.
pub fn ticks(microseconds: u64) -> u64 {
    frequency().checked_div(1_000_000).unwrap_or(1).max(1).saturating_mul(microseconds)
}

/// Asks for EL2's timer interrupt at this time; `u64::MAX` for none.
pub fn interrupt_at(deadline: u64) {
    if deadline == u64::MAX {
        regs::cnthp_ctl_el2::write(0);
        return;
    }
    regs::cnthp_cval_el2::write(deadline.saturating_add(offset()));
    regs::cnthp_ctl_el2::write(CNT_CTL::ENABLE::SET.value);
}

/// Asks for EL2's timer interrupt at this time, unless one comes earlier.
pub fn interrupt_by(deadline: u64) {
    let set = LocalRegisterCopy::<u64, CNT_CTL::Register>::new(regs::cnthp_ctl_el2::read());
    if !set.is_set(CNT_CTL::ENABLE) || regs::cnthp_cval_el2::read().wrapping_sub(offset()) > deadline {
        interrupt_at(deadline);
    }
}

/// Whether the loaded vCPU's timer asks for its interrupt now.
pub fn guest_timer_fires() -> bool {
    let ctl = LocalRegisterCopy::<u64, CNT_CTL::Register>::new(regs::cntv_ctl_el0::read());
    ctl.is_set(CNT_CTL::ENABLE) && ctl.is_set(CNT_CTL::ISTATUS) && !ctl.is_set(CNT_CTL::IMASK)
}

/// Whether the guest's timer, as saved, would fire, and when (system time).
pub fn guest_deadline(ctl: u64, cval: u64) -> Option<u64> {
    let ctl = LocalRegisterCopy::<u64, CNT_CTL::Register>::new(ctl);
    // The guest's counter is the system time, so its deadlines are too.
    (ctl.is_set(CNT_CTL::ENABLE) && !ctl.is_set(CNT_CTL::IMASK)).then_some(cval)
}
