//! A vCPU's registers: where they are while it does not run, and how they get into the CPU.
//!
//! Invariants
//! 1. An [`ArchVcpu`] is touched by the CPU that its vCPU's `on` names, only. While it names none, [`save`] has written everything back and
//!    nobody touches it, until the CPU whose queue it was in loads it (`on`'s release and acquire, and the queue's lock, hand it over) or
//!    CPU_ON writes its first registers under the domain's lock.
//! 2. EL1 state is in the CPU from [`load`] to [`save`]. Floating-point registers are written back by `save` too, if they were used; what
//!    stays in the CPU is a copy, good while the CPU's `fp_owner` and the vCPU's `fp_cpu` name each other.
//! 3. From [`save`] to [`load`] walks with EL1's registers are off (`TCR_EL1.EPD0/1` with the MMU on): a speculative `AT` must not fill the TLB from a
//!    mixture of two vCPUs' registers (Cortex-A72 erratum 1319367), nor from tables of a vCPU that may run elsewhere by now, leave them, and
//!    let them become data.
//! 4. A vCPU leaves nothing behind in a CPU that it could meet again out of date, or that another could meet: `HCR_EL2.FB` makes its TLB and
//!    instruction-cache maintenance reach every CPU that it ran on, `contain_serror`'s DSB completes it before the vCPU moves, siblings'
//!    entries go by [`forget_others`]; the physical timer interrupt that its list register stands for is made inactive where it leaves
//!    and active where it arrives (a PPI has an active state for each CPU); the timer's comparator moves with its registers.
#![expect(unsafe_code, reason = "system registers and floating-point registers")]

use core::arch::{asm, global_asm};
use core::cell::{Cell, UnsafeCell};

use hypervisor::domain::{Domain, DomainState};
use hypervisor::hardware::{CpuId, Vmid};
use hypervisor::pagetable::Bases;
use hypervisor::sched::MAX_CPUS;
use hypervisor::tlb;
use hypervisor::vcpu::{Run, Vcpu};
use hypervisor::vgic::{PrivateIntid, VcpuGic, VcpuShared};
use hypervisor::vmid::{LastHere, LocalTlb};

use tock_registers::LocalRegisterCopy;

use super::arm::Instructions;
use super::gic::{self, HardwareLrs};
use super::percpu::{self, PerCpu};
use super::regs::{self, PFR0};

/// What an exception entry puts on the stack (vectors.S): x0 to x30.
#[derive(Clone, Copy, Default)]
#[repr(C, align(16))]
pub struct Frame {
    /// General-purpose registers.
    pub x: [u64; 31],
    /// Numbers of the vCPU's last eight hypercalls, a byte each, the latest one highest. An exception entry leaves this word as it is, and it moves with the
    /// registers: it is the vCPU's as they are.
    pub calls: u64,
}
// What vectors.S has by number, and frame.S.
const _: () = assert!(size_of::<Frame>() == 256 && align_of::<Frame>() == 16);
const _: () = assert!(core::mem::offset_of!(Frame, x) == 0 && core::mem::offset_of!(Frame, calls) == 31 * 8);

impl Frame {
    /// Notes a hypercall, in three instructions.
    #[inline(always)]
    pub fn note_call(&mut self, number: u64) {
        self.calls = number << 56 | self.calls >> 8;
    }

    /// A register by its number in a syndrome; 31 is the zero register.
    pub fn get(&self, register: u64) -> u64 {
        self.x.get(register as usize).copied().unwrap_or(0)
    }

    /// Sets a register by its number in a syndrome.
    pub fn set(&mut self, register: u64, value: u64) {
        if let Some(slot) = self.x.get_mut(register as usize) {
            *slot = value;
        }
    }
}

macro_rules! el1_registers {
    ($($first:ident, $second:ident;)*) => {
        /// EL1's system registers and its timer's comparator, two by two: what is stored and loaded in pairs.
        #[derive(Clone, Copy, Default)]
        #[repr(C)]
        struct El1 { $($first: u64, $second: u64,)* }

        impl El1 {
            #[inline]
            fn save(&mut self) {
                $((self.$first, self.$second) = (regs::$first::read(), regs::$second::read());)*
            }

            #[inline]
            fn load(&self) {
                $(
                    let (first, second) = (self.$first, self.$second);
                    regs::$first::write(first);
                    regs::$second::write(second);
                )*
            }
        }
    };
}
// Not TCR_EL1 and SCTLR_EL1: invariant 3.
el1_registers!(
    ttbr0_el1, ttbr1_el1;
    mair_el1, amair_el1;
    vbar_el1, contextidr_el1;
    cpacr_el1, esr_el1;
    far_el1, afsr0_el1;
    afsr1_el1, elr_el1;
    spsr_el1, sp_el1;
    sp_el0, tpidr_el0;
    tpidrro_el0, tpidr_el1;
    csselr_el1, cntkctl_el1;
    par_el1, cntv_cval_el0;
);

/// `TCR_EL1`: walks disabled for both tables.
const TCR_NO_WALKS: u64 = 1 << 7 | 1 << 23;
/// `SCTLR_EL1.M`.
const SCTLR_M: u64 = 1;

/// Floating-point and SIMD registers.
#[repr(C, align(16))]
struct Fp {
    v: [u128; 32],
    fpcr: u64,
    fpsr: u64,
}

struct Saved {
    frame: Frame,
    elr: u64,
    spsr: u64,
    el1: El1,
    sctlr: u64,
    tcr: u64,
    interface: gic::VirtualInterface,
    cntv_ctl: u64,
}

/// Where a vCPU is, and why it came there: what a crash is told with.
pub struct Place {
    /// The next instruction.
    pub pc: u64,
    /// The process state.
    pub pstate: u64,
    /// `SP_EL1`.
    pub sp: u64,
    /// `ESR_EL1`.
    pub esr: u64,
    /// `FAR_EL1`.
    pub far: u64,
    /// `ELR_EL1`.
    pub elr: u64,
}

impl Place {
    /// The loaded vCPU's.
    pub fn here() -> Self {
        Self {
            pc: regs::elr_el2::read(),
            pstate: regs::spsr_el2::read(),
            sp: regs::sp_el1::read(),
            esr: regs::esr_el1::read(),
            far: regs::far_el1::read(),
            elr: regs::elr_el1::read(),
        }
    }
}

/// One vCPU's registers.
pub struct ArchVcpu {
    /// Its domain.
    pub domain: &'static Domain,
    /// Its portable half.
    pub vcpu: &'static Vcpu,
    /// The shared part of its interrupt state.
    pub shared: &'static VcpuShared,
    vttbr: u64,
    hcr: u64,
    vmpidr: u64,
    saved: UnsafeCell<Saved>,
    fp: UnsafeCell<Fp>,
    gic: UnsafeCell<VcpuGic>,
    gic_busy: Cell<bool>,
    /// While it polls with interrupts masked: those that stand for physical ones and came before.
    pub deaf_to: Cell<Option<u32>>,
    /// The CPU whose floating-point registers were the same as `fp` last.
    fp_cpu: Cell<Option<CpuId>>,
}

// SAFETY: invariant 1.
unsafe impl Sync for ArchVcpu {}
// SAFETY: made by one CPU at boot, used by another.
unsafe impl Send for ArchVcpu {}

impl ArchVcpu {
    /// A vCPU that is off, with every register at its reset value.
    #[inline(never)]
    pub fn new(
        domain: &'static Domain,
        vcpu: &'static Vcpu,
        shared: &'static VcpuShared,
        gic: VcpuGic,
        vmpidr: u64,
    ) -> Self {
        Self {
            domain,
            vcpu,
            shared,
            vttbr: super::arm::vttbr(domain.stage2_root, domain.vmid),
            hcr: if domain.paging().is_some() { regs::HCR_PAGING } else { regs::HCR_GUEST },
            vmpidr,
            saved: UnsafeCell::new(Saved {
                frame: Frame::default(),
                elr: 0,
                spsr: regs::SPSR_RESET,
                el1: El1::default(),
                sctlr: regs::SCTLR_EL1_RESET,
                tcr: 0,
                interface: gic::VirtualInterface::default(),
                cntv_ctl: 0,
            }),
            fp: UnsafeCell::new(Fp { v: [0; 32], fpcr: 0, fpsr: 0 }),
            gic: UnsafeCell::new(gic),
            gic_busy: Cell::new(false),
            deaf_to: Cell::new(None),
            fp_cpu: Cell::new(None),
        }
    }

    /// Gives it another private half of its interrupt state. It is off (invariant 1).
    pub fn set_gic(&self, gic: VcpuGic) {
        // SAFETY: invariant 1: off and out of the CPU, so nobody else looks.
        unsafe { *self.gic.get() = gic };
    }

    /// Says where it starts. It is off (invariant 1).
    pub fn set_entry(&self, pc: u64, x0: u64) {
        // SAFETY: invariant 1: off, so nobody else looks.
        let saved = unsafe { &mut *self.saved.get() };
        saved.frame = Frame::default();
        saved.frame.set(0, x0);
        saved.elr = pc;
        saved.spsr = regs::SPSR_RESET;
        saved.el1 = El1::default();
        saved.sctlr = regs::SCTLR_EL1_RESET;
        saved.tcr = 0;
        saved.cntv_ctl = 0;
        saved.interface = gic::VirtualInterface::default();
        self.fp_cpu.set(None);
        // SAFETY: as above; what a CPU still has of its floating-point registers is out of date now.
        unsafe { *self.fp.get() = Fp { v: [0; 32], fpcr: 0, fpsr: 0 } };
    }

    /// Where it waits, and its last hypercalls. It is in no CPU, and its domain has ended: nobody loads it any more (invariant 1).
    pub fn place(&self) -> (Place, u64) {
        // SAFETY: invariant 1: who would load it sees that its domain has ended.
        let saved = unsafe { &*self.saved.get() };
        let (el1, frame) = (&saved.el1, &saved.frame);
        let place = Place {
            pc: saved.elr,
            pstate: saved.spsr,
            sp: el1.sp_el1,
            esr: el1.esr_el1,
            far: el1.far_el1,
            elr: el1.elr_el1,
        };
        (place, frame.calls)
    }

    /// Whether its registers are in no CPU.
    pub fn is_out(&self) -> bool {
        self.vcpu.on.get().is_none()
    }

    /// Says what its translation starts with. It is off (invariant 1).
    fn set_bases(&self, bases: &Bases) {
        // SAFETY: invariant 1: off, so nobody else looks.
        let saved = unsafe { &mut *self.saved.get() };
        saved.el1.ttbr0_el1 = bases.lower;
        saved.el1.ttbr1_el1 = bases.upper;
        saved.el1.mair_el1 = bases.controls.mair;
        saved.tcr = bases.controls.tcr;
        saved.sctlr = bases.controls.sctlr;
    }

    /// [`Self::set_entry`] by another vCPU, followed by `start`: only if this one is off and its registers have left the CPU. Callers take
    /// turns by the domain's lock, until `start` has said that it is off no more (invariant 1).
    /// None is started in a domain that has ended: `life/undo.rs` counts on it.
    /// With paravirtual page tables it may start with the MMU on, by `bases`.
    pub fn start_at(
        &self,
        pc: u64,
        x0: u64,
        bases: impl FnOnce(&mut DomainState) -> Option<Bases>,
        start: impl FnOnce() -> bool,
    ) -> bool {
        let mut state = self.domain.state.lock();
        let off = self.domain.life.is_running()
            && self.vcpu.run.get() == Run::Offline
            && self.vcpu.on.get().is_none();
        if off {
            // Nothing pending from before, as in Xen.
            self.with_gic(|gic| gic.forget(self.shared));
            self.set_entry(pc, x0);
            if let Some(bases) = bases(&mut state) {
                self.set_bases(&bases);
            }
        }
        let started = off && start();
        drop(state);
        started
    }

    /// Works on the private half of its interrupt state, on the CPU that has it.
    #[inline(always)]
    pub fn with_gic<R: Default>(&self, work: impl FnOnce(&mut VcpuGic) -> R) -> R {
        if self.gic_busy.replace(true) {
            return R::default();
        }
        // SAFETY: invariant 1, and `gic_busy` excludes a second reference on this CPU.
        let result = work(unsafe { &mut *self.gic.get() });
        self.gic_busy.set(false);
        result
    }
}

/// Sets this CPU's controls of EL1 as they stay for ever; a vCPU that has the CPU as its `own` waits in it.
pub fn init_cpu(own: bool) {
    let features = regs::id_aa64mmfr0_el1::read();
    let parange = (features & 0xF).min(5);
    regs::vtcr_el2::write(regs::VTCR | regs::vtcr_ps(parange));
    // Nothing must be walked with what the firmware left in these (invariant 3).
    stop_walks();
    regs::vttbr_el2::write(0);
    regs::hcr_el2::write(if own { regs::HCR_GUEST & !regs::HCR_TWI } else { regs::HCR_GUEST });
    regs::hacr_el2::write(0);
    regs::mdcr_el2::write(regs::mdcr_guest(regs::mdcr_el2::read()));
    regs::cptr_el2::write(regs::CPTR_GUEST | regs::CPTR_TFP);
    regs::hstr_el2::write(0);
    regs::cnthctl_el2::write(regs::CNTHCTL);
    regs::cntvoff_el2::write(super::timer::offset());
    regs::vpidr_el2::write(regs::midr_el1::read());
    regs::cnthp_ctl_el2::write(0);
    regs::cntv_ctl_el0::write(0);
    regs::cntp_ctl_el0::write(0);
    regs::mdscr_el1::write(0);
    regs::actlr_el2::write(0);
    // Where these exist their reset values are UNKNOWN; zero traps or disables what guests are not told of.
    if features >> 56 & 0xF != 0 {
        regs::hfgrtr_el2::write(0);
        regs::hfgwtr_el2::write(0);
        regs::hfgitr_el2::write(0);
        regs::hdfgrtr_el2::write(0);
        regs::hdfgwtr_el2::write(0);
    }
    if regs::id_aa64mmfr1_el1::read() >> 40 & 0xF != 0 {
        regs::hcrx_el2::write(0);
    }
    // A guest's DISR_EL1 is VDISR_EL2 (HCR_EL2.AMO): `load` clears it, where it exists.
    let features = LocalRegisterCopy::<u64, PFR0::Register>::new(regs::id_aa64pfr0_el1::read());
    percpu::this().has_ras.set(features.read(PFR0::RAS) != 0);
    // Whatever ran at EL1 before must not be found in the TLB.
    // SAFETY: invalidates what no guest has used yet.
    unsafe { asm!("dsb nshst", "tlbi alle1", "dsb nsh", "isb", options(nostack, preserves_flags)) };
}

/// Turns walks with the loaded EL1 registers off (invariant 3). The MMU goes on, where the guest has it off, only when the walks are: registers that
/// are written without an ISB between them may take effect in any order (Arm ARM D19.1.2).
pub fn stop_walks() {
    regs::tcr_el1::write(regs::tcr_el1::read() | TCR_NO_WALKS);
    isb();
    regs::sctlr_el1::write(regs::sctlr_el1::read() | SCTLR_M);
    isb();
}

/// Leaves the address space of the vCPU that was saved last: stage 2 is walked for it no more, not even speculatively, so that its tables can
/// go.
pub fn leave_address_space() {
    regs::vttbr_el2::write(0);
    isb();
}

/// Whether nothing is walked for any vCPU on this CPU.
#[cfg(feature = "selfcheck")]
pub fn is_left() -> bool {
    regs::tcr_el1::read() & TCR_NO_WALKS == TCR_NO_WALKS && regs::vttbr_el2::read() == 0
}

/// Keeps the general registers of the loaded vCPU, which `frame` holds, and where it goes on.
pub fn keep(arch: &ArchVcpu, frame: &Frame) {
    // SAFETY: invariant 1.
    let saved = unsafe { &mut *arch.saved.get() };
    // SAFETY: two frames, of two owners.
    unsafe { frame_copy(&raw mut saved.frame, frame) };
    saved.elr = regs::elr_el2::read();
    saved.spsr = regs::spsr_el2::read();
}

/// Gives back what [`keep`] kept: the general registers are there. Nobody writes them before the vCPU has run again (invariant 1).
pub fn recall(arch: &ArchVcpu) -> *const Frame {
    // SAFETY: invariant 1.
    let saved = unsafe { &*arch.saved.get() };
    regs::elr_el2::write(saved.elr);
    regs::spsr_el2::write(saved.spsr);
    &raw const saved.frame
}

/// [`recall`] into a frame.
pub fn recall_into(arch: &ArchVcpu, frame: &mut Frame) {
    // SAFETY: two frames, of two owners.
    unsafe { frame_copy(frame, recall(arch)) };
}

/// Takes a vCPU out of the CPU, after [`keep`].
pub fn save(cpu: &PerCpu, arch: &ArchVcpu) {
    // SAFETY: invariant 1.
    let saved = unsafe { &mut *arch.saved.get() };
    saved.el1.save();
    saved.sctlr = regs::sctlr_el1::read();
    saved.tcr = regs::tcr_el1::read();
    saved.cntv_ctl = regs::cntv_ctl_el0::read();
    regs::cntv_ctl_el0::write(0);
    // The timer's line must have dropped before its interrupt is deactivated below, else it would fire again for the next vCPU.
    isb();
    let active = arch.with_gic(|gic| {
        let active = gic.save(&mut HardwareLrs);
        if active & PrivateIntid::VIRTUAL_TIMER.bit() == 0
            && arch.shared.delivers(PrivateIntid::VIRTUAL_TIMER)
        {
            super::run::note_timer(cpu, arch.vcpu, saved.cntv_ctl, saved.el1.cntv_cval_el0);
        }
        active
    });
    saved.interface.save();
    gic::deactivate_all(active);
    if regs::cptr_el2::read() & regs::CPTR_TFP == 0 {
        // SAFETY: invariant 1; the assembly stores 32 quad words and the two control registers.
        unsafe { fp_save(arch.fp.get()) };
    }
    // Before it may run elsewhere (invariant 3).
    stop_walks();
    arch.vcpu.on.clear();
}

/// What each CPU has by which name in its TLB.
static LAST_HERE: [LastHere; MAX_CPUS] = [const { LastHere::new() }; MAX_CPUS];

/// This CPU's TLB, where `VTTBR_EL2` is that of the VMID already, and walks are off.
struct Local;

impl LocalTlb for Local {
    #[inline(always)]
    fn forget_stage1(&self, _: Vmid) {
        tlb::forget_stage1_here(&Instructions);
    }

    #[inline(always)]
    fn forget_all(&self, _: Vmid) {
        tlb::forget_all_here(&Instructions);
    }
}

/// Keeps apart in this CPU's TLB who shares a VMID (`hypervisor::vmid`).
fn forget_others(cpu: &PerCpu, arch: &ArchVcpu) {
    let Some(here) = LAST_HERE.get(usize::from(cpu.id.0)) else { return };
    here.enter(&Local, arch.domain.vmid, arch.vcpu.index, |last| {
        super::arch_vcpu(last).is_some_and(|last| core::ptr::eq(last.domain, arch.domain))
    });
}

/// Puts a vCPU into the CPU; its general registers are as [`recall`] says.
pub fn load(cpu: &PerCpu, arch: &'static ArchVcpu) -> *const Frame {
    arch.vcpu.on.set(cpu.id);
    // SAFETY: invariant 1.
    let saved = unsafe { &*arch.saved.get() };
    // Walks are off (invariant 3).
    regs::vttbr_el2::write(arch.vttbr);
    // Whether WFI traps is the CPU's (`init_cpu`), the rest the vCPU's.
    regs::hcr_el2::write(arch.hcr & !regs::HCR_TWI | regs::hcr_el2::read() & regs::HCR_TWI);
    regs::vmpidr_el2::write(arch.vmpidr);
    saved.el1.load();
    if cpu.has_ras.get() {
        regs::vdisr_el2::write(0);
    }
    // All of the above must have taken effect before the MMU goes off, where this vCPU has it off: with the last one's VMID still there, a
    // speculative `AT` would fill the TLB with flat translations in that vCPU's name, whatever the walks.
    isb();
    regs::sctlr_el1::write(saved.sctlr);
    isb();
    forget_others(cpu, arch);
    regs::tcr_el1::write(saved.tcr);
    saved.interface.load();
    let active = arch.with_gic(|gic| {
        if gic.waits() {
            cpu.service.set(true);
        }
        gic.restore(&mut HardwareLrs)
    });
    gic::activate(cpu, active);
    regs::cntv_ctl_el0::write(saved.cntv_ctl);
    let fp = if fp_is_here(cpu, arch) { 0 } else { regs::CPTR_TFP };
    regs::cptr_el2::write(regs::CPTR_GUEST | fp);
    recall(arch)
}

/// Whether the CPU has the vCPU's floating-point registers as [`save`] wrote them (invariant 2).
fn fp_is_here(cpu: &PerCpu, arch: &ArchVcpu) -> bool {
    core::ptr::eq(cpu.fp_owner.get(), arch) && arch.fp_cpu.get() == Some(cpu.id)
}

/// Gives the loaded vCPU the floating-point registers, after it trapped on one.
pub fn take_fp(cpu: &PerCpu, arch: &'static ArchVcpu) {
    regs::cptr_el2::write(regs::CPTR_GUEST);
    isb();
    if fp_is_here(cpu, arch) {
        return;
    }
    // SAFETY: invariant 1; whose registers were here has them in memory (invariant 2).
    unsafe { fp_load(arch.fp.get()) };
    cpu.fp_owner.set(arch);
    arch.fp_cpu.set(Some(cpu.id));
}

unsafe extern "C" {
    fn fp_save(to: *mut Fp);
    fn fp_load(from: *mut Fp);
    fn frame_copy(to: *mut Frame, from: *const Frame);
}
global_asm!(include_str!("fp.S"));
global_asm!(include_str!("frame.S"));

#[inline(always)]
fn isb() {
    // SAFETY: a barrier.
    unsafe { asm!("isb", options(nostack, preserves_flags)) };
}
