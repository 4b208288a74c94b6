//! The physical interrupt controller as a hypervisor uses it: acknowledge, priority drop, list registers, kicks. Which
//! of the two kinds it is, is decided once at boot; what belongs to one kind is in `gic/v2.rs` and `gic/v3.rs`.
//!
//! Invariants
//! 1. End of interrupt is split (`EOImode`): EL2 drops the priority; what stands for a guest's interrupt is deactivated by
//!    the guest through the list register's hardware link, everything else by EL2.
//! 2. List registers belong to the vCPU that is loaded on this CPU, also while it is blocked and the CPU idles.
//! 3. [`is_v2`] does not change once the first CPU has set its interface up: a test of it is one load and a branch that is
//!    always predicted. What runs often tests it once and then works on one kind ([`Controller`]).
#![expect(unsafe_code, reason = "a barrier")]

mod v2;
mod v3;

use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use hypervisor::hardware::CpuId;
use hypervisor::vgic::{Layout, ListRegisters, Maintenance, PrivateIntid, Raised};

use super::percpu::PerCpu;

pub use v2::{Frames, V2, enable_shared, init_distributor, init_private, target_here};
pub use v3::V3;

/// The SGI that kicks a CPU.
pub const KICK: u32 = 0;
/// Interrupt identifiers from here on are not interrupts.
pub const SPECIAL: u32 = 1020;

/// Most list registers that are used.
const MAX_LRS: usize = 16;

static IS_V2: AtomicBool = AtomicBool::new(false);
static LIST_REGISTERS: AtomicU32 = AtomicU32::new(0);

/// Whether the machine has a `GICv2`.
#[inline(always)]
pub fn is_v2() -> bool {
    IS_V2.load(Ordering::Relaxed)
}

/// One kind of controller, on this CPU.
pub trait Controller: ListRegisters + Sized {
    /// Its list registers.
    const LRS: Self;
    /// Acknowledges the most urgent interrupt: a value for the other functions.
    fn acknowledge() -> u32;
    /// The interrupt in it; [`SPECIAL`] or above when there is none.
    fn intid(acknowledged: u32) -> u32;
    /// Drops the running priority.
    fn drop_priority(acknowledged: u32);
    /// Deactivates an interrupt that EL2 served itself. A PPI's value is its INTID.
    fn deactivate(acknowledged: u32);
}

/// Sets this CPU's interface up.
pub fn init_cpu(cpu: &PerCpu) {
    let count = if is_v2() { v2::init_cpu(cpu) } else { v3::init_cpu(cpu) };
    LIST_REGISTERS.store(count.min(MAX_LRS) as u32, Ordering::Relaxed);
}

/// List registers of the machine's CPUs.
#[inline(always)]
pub fn list_register_count() -> usize {
    LIST_REGISTERS.load(Ordering::Relaxed) as usize
}

/// How they are spelt.
pub fn layout() -> Layout {
    if is_v2() { Layout::V2 } else { Layout::V3 }
}

/// Deactivates a private interrupt of this CPU by its number.
pub fn deactivate(intid: u32) {
    if is_v2() { V2::deactivate(intid) } else { V3::deactivate(intid) }
}

/// Deactivates the physical interrupts behind these private ones of a guest: only the timer has one.
pub fn deactivate_all(intids: u32) {
    if intids & PrivateIntid::VIRTUAL_TIMER.bit() != 0 {
        deactivate(super::interrupts().virtual_timer);
    }
}

/// Makes a CPU enter the hypervisor. What was written before is visible to it.
pub fn kick(cpu: CpuId) {
    if is_v2() { v2::kick(cpu) } else { v3::kick(cpu) }
}

/// Makes the physical interrupts behind a guest's active again, on the CPU that loads the vCPU: the last step of loading its
/// interrupts.
pub fn activate(cpu: &PerCpu, intids: u32) {
    let timer = || 1_u32.wrapping_shl(super::interrupts().virtual_timer);
    let any = intids & PrivateIntid::VIRTUAL_TIMER.bit() != 0;
    if is_v2() {
        // Also with none: it waits for the list registers.
        v2::activate(if any { timer() } else { 0 });
    } else if any {
        v3::activate(cpu, timer());
    }
}

/// Raises a private interrupt of the vCPU that is loaded here.
#[inline(always)]
pub fn raise_loaded(cpu: &PerCpu, irq: PrivateIntid) {
    if is_v2() { raise_on_v2(cpu, irq) } else { raise_on::<V3>(cpu, irq) }
}

/// Apart, so that callers are laid out for a `GICv3`: with a `GICv2`, device accesses outweigh the call.
#[cold]
#[inline(never)]
fn raise_on_v2(cpu: &PerCpu, irq: PrivateIntid) {
    raise_on::<V2>(cpu, irq);
}

/// [`raise_loaded`] where the kind is known.
#[inline(always)]
pub fn raise_on<C: Controller>(cpu: &PerCpu, irq: PrivateIntid) {
    let Some(arch) = cpu.loaded() else { return };
    match arch.with_gic(|gic| Some(gic.raise(irq, arch.shared, &mut { C::LRS }))) {
        Some(Raised::Placed | Raised::Held) => {}
        Some(Raised::NeedsService) | None => {
            cpu.service.set(true);
            cpu.reschedule.set(true);
        }
    }
}

/// Asks for the maintenance interrupt that tells when more interrupts can be placed, or for none.
pub fn request_maintenance(wanted: Maintenance) {
    if is_v2() { v2::request_maintenance(wanted) } else { v3::request_maintenance(wanted) }
}

/// What a guest set in its CPU interface: control (`VMCR`), and active priorities (`AP0R0`, `AP1R0`; of a `GICv2` `APR`).
#[derive(Clone, Copy, Default)]
pub struct VirtualInterface {
    control: u64,
    active: [u64; 2],
    /// Of a GICv3 with more than 5 preemption bits, which few are: `AP0R1`, `AP1R1`, then those of 2 and 3.
    more: [u64; 6],
}

impl VirtualInterface {
    /// Takes that of the guest that is loaded.
    pub fn save(&mut self) {
        if is_v2() { v2::save(self) } else { v3::save(self) }
    }

    /// Puts it into the CPU.
    pub fn load(&self) {
        if is_v2() { v2::load(self) } else { v3::load(self) }
    }
}

/// The loaded guest's priority mask: less urgent interrupts than this do not reach it.
pub fn priority_mask() -> u8 {
    if is_v2() { v2::priority_mask() } else { v3::priority_mask() }
}

#[inline(always)]
fn isb() {
    // SAFETY: a barrier.
    unsafe { asm!("isb", options(nostack, preserves_flags)) };
}

/// The list registers of this CPU, of either kind.
pub struct HardwareLrs;

impl ListRegisters for HardwareLrs {
    #[inline(always)]
    fn layout(&self) -> Layout {
        layout()
    }

    #[inline(always)]
    fn count(&self) -> usize {
        list_register_count()
    }

    #[inline]
    fn read(&self, n: usize) -> u64 {
        if is_v2() { V2.read(n) } else { V3.read(n) }
    }

    #[inline]
    fn write(&mut self, n: usize, value: u64) {
        if is_v2() { V2.write(n, value) } else { V3.write(n, value) }
    }

    #[inline(always)]
    fn empty_mask(&self) -> u32 {
        if is_v2() { V2.empty_mask() } else { V3.empty_mask() }
    }
}

/// Lines about odd accesses that may still be printed: guests cannot flood the log.
static LINES: AtomicU32 = AtomicU32::new(64);

/// Takes one of the lines that guests' odd accesses may cost; false when all are spent.
pub fn worth_a_line() -> bool {
    LINES.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
}
