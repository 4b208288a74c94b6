//! The physical interrupt controller as a hypervisor uses it: acknowledge, priority drop, list registers, kicks. GICv3.
//!
//! Invariants
//! 1. End of interrupt is split (`ICC_CTLR_EL1.EOImode`): EL2 drops the priority; what stands for a guest's interrupt is deactivated by
//!    the guest through the list register's hardware link, everything else by EL2.
//! 2. List registers belong to the vCPU that is loaded on this CPU, also while it is blocked and the CPU idles.
#![expect(unsafe_code, reason = "barriers, and the redistributor's active bits")]

use core::arch::asm;
use core::ptr::{with_exposed_provenance, with_exposed_provenance_mut};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use hypervisor::hardware::CpuId;
use hypervisor::sched::MAX_CPUS;
use hypervisor::vgic::{Layout, ListRegisters, Maintenance, PrivateIntid, Raised};

use super::percpu::PerCpu;
use super::regs::{self, ICC_CTLR, ICC_SGI1R, ICC_SRE, ICH_HCR};

/// The SGI that kicks a CPU.
pub const KICK: u32 = 0;
/// Interrupt identifiers from here on are not interrupts.
pub const SPECIAL: u32 = 1020;

const MAX_LRS: usize = 16;
/// Offset of the active bits of private interrupts in a redistributor (`GICR_ISACTIVER0`, `GICR_ICACTIVER0`).
const ISACTIVER0: usize = 0x1_0300;

static AFFINITIES: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(u64::MAX) }; MAX_CPUS];
static LIST_REGISTERS: AtomicU32 = AtomicU32::new(0);

/// Sets this CPU's interface up.
pub fn init_cpu(cpu: &PerCpu) {
    regs::icc_sre_el2::write(
        ICC_SRE::SRE::SET.value
            | ICC_SRE::DFB::SET.value
            | ICC_SRE::DIB::SET.value
            | ICC_SRE::ENABLE::SET.value,
    );
    isb();
    regs::icc_pmr_el1::write(0xFF);
    regs::icc_bpr1_el1::write(0);
    regs::icc_ctlr_el1::write(ICC_CTLR::EOIMODE::SET.value);
    regs::icc_igrpen1_el1::write(1);
    regs::ich_hcr_el2::write(0);
    regs::ich_vmcr_el2::write(0);
    let count = (regs::ich_vtr_el2::read() & 0x1F).wrapping_add(1);
    LIST_REGISTERS.store(count as u32, Ordering::Relaxed);
    let mut lrs = HardwareLrs;
    for n in 0..lrs.count() {
        lrs.write(n, 0);
    }
    regs::ich_ap0r0_el2::write(0);
    regs::ich_ap1r0_el2::write(0);
    regs::ich_hcr_el2::write(ICH_HCR::EN::SET.value);
    isb();
    if let Some(affinity) = AFFINITIES.get(usize::from(cpu.id.0)) {
        affinity.store(regs::mpidr_el1::read(), Ordering::Release);
    }
}

/// List registers of the machine's CPUs.
pub fn list_register_count() -> usize {
    LIST_REGISTERS.load(Ordering::Relaxed) as usize
}

/// Acknowledges the most urgent interrupt; [`SPECIAL`] or above when there is none. The read has an effect, so the barrier keeps later
/// accesses to the device behind it (GIC architecture 4.1.2).
#[inline]
pub fn acknowledge() -> u32 {
    let intid = regs::icc_iar1_el1::read() as u32;
    // SAFETY: a barrier.
    unsafe { asm!("dsb sy", options(nostack, preserves_flags)) };
    intid & 0xFF_FFFF
}

/// Drops the running priority.
#[inline]
pub fn drop_priority(intid: u32) {
    regs::icc_eoir1_el1::write(u64::from(intid));
    isb();
}

/// Deactivates an interrupt that EL2 served itself.
#[inline]
pub fn deactivate(intid: u32) {
    regs::icc_dir_el1::write(u64::from(intid));
    isb();
}

/// Makes a CPU enter the hypervisor. What was written before is visible to it: the barrier orders the stores before the signal.
pub fn kick(cpu: CpuId) {
    let Some(affinity) = AFFINITIES.get(usize::from(cpu.0)) else { return };
    let mpidr = affinity.load(Ordering::Acquire);
    if mpidr == u64::MAX {
        return;
    }
    // SAFETY: a barrier.
    unsafe { asm!("dsb ishst", options(nostack, preserves_flags)) };
    let value = ICC_SGI1R::AFF3.val(mpidr >> 32 & 0xFF).value
        | ICC_SGI1R::AFF2.val(mpidr >> 16 & 0xFF).value
        | ICC_SGI1R::AFF1.val(mpidr >> 8 & 0xFF).value
        | ICC_SGI1R::INTID.val(u64::from(KICK)).value
        | ICC_SGI1R::TARGETS.val(1 << (mpidr & 0xF)).value;
    regs::icc_sgi1r_el1::write(value);
    isb();
}

/// Makes the physical interrupt behind a guest's one active again, on the CPU that loads the vCPU.
pub fn activate(cpu: &PerCpu, intids: u32) {
    let base = cpu.redistributor.get();
    if base != 0 && intids != 0 {
        let register = with_exposed_provenance_mut::<u32>(base.wrapping_add(ISACTIVER0));
        // SAFETY: this CPU's redistributor, mapped as a device for ever; setting bits affects those interrupts alone.
        unsafe { register.write_volatile(intids) };
        // The write must have reached the redistributor before the guest runs: read it back.
        // SAFETY: as above.
        let _ = unsafe { with_exposed_provenance::<u32>(register.addr()).read_volatile() };
    }
}

/// Raises a private interrupt of the vCPU that is loaded here.
#[inline(always)]
pub fn raise_loaded(cpu: &PerCpu, irq: PrivateIntid) {
    let Some(arch) = cpu.loaded() else { return };
    match arch.with_gic(|gic| Some(gic.raise(irq, arch.shared, &mut HardwareLrs))) {
        Some(Raised::Placed | Raised::Held) => {}
        Some(Raised::NeedsService) | None => {
            cpu.service.set(true);
            cpu.reschedule.set(true);
        }
    }
}

/// Asks for the maintenance interrupt that tells when more interrupts can be placed, or for none.
pub fn request_maintenance(wanted: Maintenance) {
    let which = match wanted {
        Maintenance::None => 0,
        Maintenance::NoPending => ICH_HCR::NPIE::SET.value,
        Maintenance::Underflow => ICH_HCR::UIE::SET.value,
    };
    regs::ich_hcr_el2::write(ICH_HCR::EN::SET.value | which);
}

#[inline(always)]
fn isb() {
    // SAFETY: a barrier.
    unsafe { asm!("isb", options(nostack, preserves_flags)) };
}

/// `ICH_LR<n>_EL2` of this CPU.
pub struct HardwareLrs;

macro_rules! list_registers {
    ($($n:literal $name:literal),*) => {
        impl ListRegisters for HardwareLrs {
            #[inline(always)]
            fn layout(&self) -> Layout {
                Layout::V3
            }

            #[inline(always)]
            fn count(&self) -> usize {
                list_register_count().min(MAX_LRS)
            }

            #[inline]
            fn read(&self, n: usize) -> u64 {
                let value: u64;
                match n {
                    // SAFETY: reads a list register; indices that the CPU lacks are never given (`count`).
                    $($n => unsafe { asm!(concat!("mrs {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags)) },)*
                    _ => value = 0,
                }
                value
            }

            #[inline]
            fn write(&mut self, n: usize, value: u64) {
                match n {
                    // SAFETY: writes a list register of this CPU; takes effect at the next return to a guest.
                    $($n => unsafe { asm!(concat!("msr ", $name, ", {}"), in(reg) value, options(nostack, preserves_flags)) },)*
                    _ => {}
                }
            }

            #[inline(always)]
            fn empty_mask(&self) -> u32 {
                regs::ich_elrsr_el2::read() as u32
            }
        }
    };
}
list_registers!(
    0 "ich_lr0_el2", 1 "ich_lr1_el2", 2 "ich_lr2_el2", 3 "ich_lr3_el2",
    4 "ich_lr4_el2", 5 "ich_lr5_el2", 6 "ich_lr6_el2", 7 "ich_lr7_el2",
    8 "ich_lr8_el2", 9 "ich_lr9_el2", 10 "ich_lr10_el2", 11 "ich_lr11_el2",
    12 "ich_lr12_el2", 13 "ich_lr13_el2", 14 "ich_lr14_el2", 15 "ich_lr15_el2"
);

/// Lines about odd accesses that may still be printed: guests cannot flood the log.
static LINES: AtomicU32 = AtomicU32::new(64);

/// Takes one of the lines that guests' odd accesses may cost; false when all are spent.
pub fn worth_a_line() -> bool {
    LINES.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
}
