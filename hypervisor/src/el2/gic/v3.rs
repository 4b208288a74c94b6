//! The `GICv3` of this CPU: system registers, and the active bits in the redistributor.
#![expect(unsafe_code, reason = "barriers, list registers, and the redistributor's active bits")]

use core::arch::asm;
use core::ptr::{with_exposed_provenance, with_exposed_provenance_mut};
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use hypervisor::hardware::CpuId;
use hypervisor::sched::MAX_CPUS;
use hypervisor::vgic::{Layout, ListRegisters, Maintenance};

use super::super::percpu::PerCpu;
use super::super::regs::{self, ICC_CTLR, ICC_SGI1R, ICC_SRE, ICH_HCR, ICH_VMCR};
use super::{Controller, KICK, VirtualInterface, isb};
use tock_registers::LocalRegisterCopy;

/// Offset of the active bits of private interrupts in a redistributor (`GICR_ISACTIVER0`).
const ISACTIVER0: usize = 0x1_0300;

static AFFINITIES: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(u64::MAX) }; MAX_CPUS];

/// This CPU's `GICv3`, and its list registers `ICH_LR<n>_EL2`.
#[derive(Clone, Copy)]
pub struct V3;

/// Sets this CPU's interface up; returns how many list registers it has.
pub fn init_cpu(cpu: &PerCpu) -> usize {
    // The guests' system-register interface is on, and stays on: without `Enable` their ICC_SRE_EL1 traps (sysreg.rs).
    let on = ICC_SRE::SRE::SET.value | ICC_SRE::DFB::SET.value | ICC_SRE::DIB::SET.value;
    regs::icc_sre_el2::write(on | ICC_SRE::ENABLE::SET.value);
    isb();
    regs::icc_sre_el1::write(on);
    isb();
    regs::icc_sre_el2::write(on);
    isb();
    regs::icc_pmr_el1::write(0xFF);
    regs::icc_bpr1_el1::write(0);
    regs::icc_ctlr_el1::write(ICC_CTLR::EOIMODE::SET.value);
    regs::icc_igrpen1_el1::write(1);
    regs::ich_hcr_el2::write(0);
    let vtr = regs::ich_vtr_el2::read();
    let count = (vtr & 0x1F).wrapping_add(1) as usize;
    MORE_PRIORITIES.store((vtr >> 26 & 7).saturating_sub(4).min(2) as u8, Ordering::Relaxed);
    for n in 0..count {
        V3.write(n, 0);
    }
    load(&VirtualInterface::default());
    regs::ich_hcr_el2::write(ICH_HCR::EN::SET.value);
    isb();
    if let Some(affinity) = AFFINITIES.get(usize::from(cpu.id.0)) {
        affinity.store(regs::mpidr_el1::read(), Ordering::Release);
    }
    count
}

impl Controller for V3 {
    const LRS: Self = Self;

    #[inline(always)]
    fn acknowledge() -> u32 {
        let intid = regs::icc_iar1_el1::read() as u32;
        // SAFETY: a barrier. The read has an effect: later accesses to the device stay behind it (IHI 0069, 4.1.2).
        unsafe { asm!("dsb sy", options(nostack, preserves_flags)) };
        intid
    }

    #[inline(always)]
    fn intid(acknowledged: u32) -> u32 {
        acknowledged & 0xFF_FFFF
    }

    #[inline(always)]
    fn drop_priority(acknowledged: u32) {
        regs::icc_eoir1_el1::write(u64::from(acknowledged));
        isb();
    }

    #[inline(always)]
    fn deactivate(acknowledged: u32) {
        regs::icc_dir_el1::write(u64::from(acknowledged));
        isb();
    }
}

/// Makes a CPU enter the hypervisor.
pub fn kick(cpu: CpuId) {
    let Some(affinity) = AFFINITIES.get(usize::from(cpu.0)) else { return };
    let mpidr = affinity.load(Ordering::Acquire);
    if mpidr == u64::MAX {
        return;
    }
    // SAFETY: a barrier: stores before the signal are seen by who gets it.
    unsafe { asm!("dsb ishst", options(nostack, preserves_flags)) };
    let value = ICC_SGI1R::AFF3.val(mpidr >> 32 & 0xFF).value
        | ICC_SGI1R::AFF2.val(mpidr >> 16 & 0xFF).value
        | ICC_SGI1R::AFF1.val(mpidr >> 8 & 0xFF).value
        | ICC_SGI1R::INTID.val(u64::from(KICK)).value
        | ICC_SGI1R::TARGETS.val(1 << (mpidr & 0xF)).value;
    regs::icc_sgi1r_el1::write(value);
    isb();
}

/// Makes physical interrupts active on this CPU.
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

/// Asks for a maintenance interrupt.
pub fn request_maintenance(wanted: Maintenance) {
    let which = match wanted {
        Maintenance::None => 0,
        Maintenance::NoPending => ICH_HCR::NPIE::SET.value,
        Maintenance::Underflow => ICH_HCR::UIE::SET.value,
    };
    regs::ich_hcr_el2::write(ICH_HCR::EN::SET.value | which);
}

/// `ICH_VTR_EL2.PREbits` less 4, set by each CPU: 0 with the 5 preemption bits that all have, at most 2. More have more registers of active
/// priorities, which do not exist with fewer (IHI 0069, 12.4.2).
static MORE_PRIORITIES: AtomicU8 = AtomicU8::new(0);

/// What the loaded guest set in its CPU interface.
pub fn save(into: &mut VirtualInterface) {
    into.control = regs::ich_vmcr_el2::read();
    into.active = [regs::ich_ap0r0_el2::read(), regs::ich_ap1r0_el2::read()];
    let more = MORE_PRIORITIES.load(Ordering::Relaxed);
    if more != 0 {
        into.more = save_more(more);
    }
}

#[cold]
fn save_more(more: u8) -> [u64; 6] {
    let mut all = [regs::ich_ap0r1_el2::read(), regs::ich_ap1r1_el2::read(), 0, 0, 0, 0];
    if more > 1 {
        let [_, _, rest @ ..] = &mut all;
        *rest = [
            regs::ich_ap0r2_el2::read(),
            regs::ich_ap1r2_el2::read(),
            regs::ich_ap0r3_el2::read(),
            regs::ich_ap1r3_el2::read(),
        ];
    }
    all
}

/// Puts it back.
pub fn load(saved: &VirtualInterface) {
    let [group0, group1] = saved.active;
    regs::ich_vmcr_el2::write(saved.control);
    regs::ich_ap0r0_el2::write(group0);
    regs::ich_ap1r0_el2::write(group1);
    let more = MORE_PRIORITIES.load(Ordering::Relaxed);
    if more != 0 {
        load_more(more, saved.more);
    }
}

#[cold]
fn load_more(more: u8, saved: [u64; 6]) {
    let [ap0r1, ap1r1, ap0r2, ap1r2, ap0r3, ap1r3] = saved;
    regs::ich_ap0r1_el2::write(ap0r1);
    regs::ich_ap1r1_el2::write(ap1r1);
    if more > 1 {
        regs::ich_ap0r2_el2::write(ap0r2);
        regs::ich_ap1r2_el2::write(ap1r2);
        regs::ich_ap0r3_el2::write(ap0r3);
        regs::ich_ap1r3_el2::write(ap1r3);
    }
}

/// The loaded guest's priority mask.
pub fn priority_mask() -> u8 {
    let control = LocalRegisterCopy::<u64, ICH_VMCR::Register>::new(regs::ich_vmcr_el2::read());
    control.read(ICH_VMCR::VPMR) as u8
}

macro_rules! list_registers {
    ($($n:literal $name:literal),*) => {
        impl ListRegisters for V3 {
            #[inline(always)]
            fn layout(&self) -> Layout {
                Layout::V3
            }

            #[inline(always)]
            fn count(&self) -> usize {
                super::list_register_count()
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

            /// What the guest did is counted since the exception that ended it; a write of a list register by EL2 shows in this other register only behind a
            /// context synchronization event (Arm ARM D19.1.2): without the ISB one that was filled a moment ago could be taken for empty.
            #[inline(always)]
            fn empty_mask(&self) -> u32 {
                isb();
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
