//! The machine as the portable half sees it: [`Hardware`] on registers, the direct map and the drivers. Decides nothing.
#![expect(unsafe_code, reason = "translation and TLB maintenance instructions")]

use core::arch::asm;

use aarch64_cpu::asm::barrier::{SY, isb};
use hypervisor::addr::{FrameAddr, GuestVa, Ipa, Mfn, Pa};
use hypervisor::hardware::{Access, Contended, CpuId, Hardware, Untranslatable, Vmid};
use hypervisor::log::Event;
use hypervisor::pagetable::Half;
use hypervisor::pagetable::control::Controls;
use hypervisor::tlb::{self, Barrier, Maintenance, Tlbi};
use hypervisor::vcpu::VcpuIndex;
use hypervisor::vgic::PrivateIntid;
use tock_registers::LocalRegisterCopy;

use super::percpu::Counts;
use super::regs::{self, PAR, SPSR, VTTBR};
use super::{console, context, direct, gic, log, percpu, timer};

/// The machine this runs on.
pub struct Arm;

/// `PAR_EL1.ATTR` of Normal memory, write-back, allocating, inner and outer.
const NORMAL_WRITE_BACK: u64 = 0xFF;

/// `VA[55:12]` in the operand of a TLB invalidation by address.
const TLBI_VA: u64 = (1 << 44) - 1;

/// Runs an `AT`, the only place where one stands, and gives the guest its `PAR_EL1` back.
///
/// Arm lets an `AT` take an abort instead of telling `PAR_EL1`: an external abort on a table of the guest's (Arm ARM D8.15, `AT`), such as when its
/// tables are Non-cacheable and hardware is to update them (`TCR_EL1.HA`). That is an exception from EL2, so it overwrites the guest's `ELR_EL2` and
/// `SPSR_EL2`. vectors.S (`el2_translation`) makes it a translation that failed, by x14 and x15; then they are put back here. What else such an
/// exception changes, ESR, FAR and HPFAR, is read on entry only, before anything is translated.
macro_rules! translation {
    ($operation:literal, $va:expr) => {{
        let (par, elr, spsr): (u64, u64, u64);
        // SAFETY: a translation has no effect but on PAR_EL1, which is given back, and by an abort on the registers named above.
        unsafe {
            asm!(
                "mrs {s}, par_el1", "mrs {elr}, elr_el2", "mrs {spsr}, spsr_el2", concat!("at ", $operation, ", {va}"), "isb",
                "mrs {p}, par_el1", "msr par_el1, {s}",
                s = out(reg) _, p = out(reg) par, elr = out(reg) elr, spsr = out(reg) spsr, va = in(reg) $va.get(),
                out("x14") _, out("x15") _, options(nostack, preserves_flags)
            );
        }
        let par = LocalRegisterCopy::<u64, PAR::Register>::new(par);
        if par.is_set(PAR::F) {
            regs::elr_el2::write(elr);
            regs::spsr_el2::write(spsr);
        }
        par
    }};
}

/// Runs `AT S1E1R` or `AT S1E1W`.
#[inline(always)]
fn at_stage1(va: GuestVa, access: Access) -> LocalRegisterCopy<u64, PAR::Register> {
    match access {
        Access::Read => translation!("s1e1r", va),
        Access::Write => translation!("s1e1w", va),
    }
}

/// Runs `AT S12E1R`.
#[inline(always)]
fn at_both_stages(va: GuestVa) -> LocalRegisterCopy<u64, PAR::Register> {
    translation!("s12e1r", va)
}

/// Makes each `AT` abort, by a root where no memory is, before this CPU's first guest: it must be told as a translation that failed, and what an exception
/// overwrites must be there still. The machine has no memory at 128 GiB (QEMU's boards, and the Raspberry Pi).
#[cfg(feature = "selfcheck")]
pub fn check_aborted_translations() {
    const NOWHERE: u64 = 128 << 30;
    const RETURN: (u64, u64) = (0x1234_5678, 0x3C5);
    /// 48 bits, walks cacheable and shareable; 40 bits of addresses.
    const TCR: u64 = 2 << 32 | 16 << 16 | 3 << 12 | 1 << 10 | 1 << 8 | 16;
    let kept =
        (regs::hcr_el2::read(), regs::tcr_el1::read(), regs::sctlr_el1::read(), regs::ttbr0_el1::read());
    // Stage 1 alone.
    regs::hcr_el2::write(1 << 31);
    regs::tcr_el1::write(TCR);
    regs::ttbr0_el1::write(NOWHERE);
    isb(SY);
    regs::sctlr_el1::write(kept.2 | 1);
    isb(SY);
    let va = GuestVa::new(0x40_0000);
    for translate in 0..3 {
        regs::elr_el2::write(RETURN.0);
        regs::spsr_el2::write(RETURN.1);
        let par = match translate {
            0 => at_stage1(va, Access::Read),
            1 => at_stage1(va, Access::Write),
            _ => at_both_stages(va),
        };
        // Hardware's own answer would have bit 11 set.
        if par.get() != 1 || (regs::elr_el2::read(), regs::spsr_el2::read()) != RETURN {
            super::bug::found("an aborted translation is not one that failed");
        }
    }
    regs::sctlr_el1::write(kept.2);
    isb(SY);
    regs::hcr_el2::write(kept.0);
    regs::tcr_el1::write(kept.1);
    regs::ttbr0_el1::write(kept.3);
    isb(SY);
}

#[inline(always)]
fn ipa_of(par: LocalRegisterCopy<u64, PAR::Register>, va: GuestVa) -> Result<Ipa, Untranslatable> {
    let page = par.get() & (PAR::PA.mask << PAR::PA.shift);
    Ipa::new(page | va.get() & 0xFFF).ok_or(Untranslatable)
}

/// A translation that failed: made again a few times when it was stage 2 that refused a table of the guest's, since another vCPU may be
/// breaking and making that entry.
#[cold]
#[inline(never)]
fn translate_again(
    va: GuestVa,
    access: Access,
    failed: LocalRegisterCopy<u64, PAR::Register>,
) -> Result<Ipa, Untranslatable> {
    let mut par = failed;
    for _ in 0..100 {
        if !par.is_set(PAR::S) {
            break;
        }
        par = at_stage1(va, access);
        if !par.is_set(PAR::F) {
            return ipa_of(par, va);
        }
    }
    Err(Untranslatable)
}

/// `VTTBR_EL2` of an address space.
pub fn vttbr(root: Mfn, vmid: Vmid) -> u64 {
    VTTBR::VMID.val(u64::from(vmid.0)).value | root.base().get()
}

impl Hardware for Arm {
    #[inline]
    fn read(&self, at: FrameAddr, into: &mut [u8]) {
        direct::read(at, into);
    }

    #[inline]
    fn write(&self, at: FrameAddr, from: &[u8]) {
        direct::write(at, from);
    }

    #[inline]
    fn copy(&self, to: FrameAddr, from: FrameAddr, len: usize) {
        direct::copy(to, from, len);
    }

    #[inline(always)]
    fn read_words<const N: usize>(&self, at: FrameAddr) -> Option<[u64; N]> {
        direct::read_words(at)
    }

    #[inline(always)]
    fn write_words<const N: usize>(&self, at: FrameAddr, from: [u64; N]) -> bool {
        direct::write_words(at, from)
    }

    #[inline(always)]
    fn write_u16(&self, at: FrameAddr, value: u16) -> bool {
        direct::write_u16(at, value)
    }

    #[inline(always)]
    fn store_u64(&self, at: FrameAddr, value: u64) {
        direct::store_u64(at, value);
    }

    fn clear(&self, frame: Mfn) {
        direct::clear(frame);
    }

    fn clean_to_memory(&self, frame: Mfn) {
        direct::clean_to_memory(frame);
    }

    fn clear_to_memory(&self, frame: Mfn) {
        direct::clear_to_memory(frame);
    }

    fn sync_instructions(&self, _: Mfn) {
        direct::sync_instructions();
    }

    #[inline(always)]
    fn load_u64(&self, at: FrameAddr) -> u64 {
        direct::load_u64(at)
    }

    #[inline(always)]
    fn load_u32(&self, at: FrameAddr) -> u32 {
        direct::load_u32(at)
    }

    #[inline(always)]
    fn or_u64(&self, at: FrameAddr, bits: u64) -> Result<u64, Contended> {
        direct::or_u64(at, bits)
    }

    #[inline(always)]
    fn clear_u64(&self, at: FrameAddr, bits: u64) -> Result<u64, Contended> {
        direct::clear_u64(at, bits)
    }

    #[inline(always)]
    fn swap_u8(&self, at: FrameAddr, value: u8) -> Result<u8, Contended> {
        direct::swap_u8(at, value)
    }

    #[inline]
    fn compare_exchange_u32(&self, at: FrameAddr, old: u32, new: u32) -> Result<u32, Contended> {
        direct::compare_exchange_u32(at, old, new)
    }

    #[inline(always)]
    fn table_read(&self, table: Mfn, index: usize) -> u64 {
        direct::table_read(table, index)
    }

    #[inline(always)]
    fn table_write(&self, table: Mfn, index: usize, entry: u64) {
        direct::table_write(table, index, entry);
    }

    /// A store to a table is seen by walkers after a DSB (Arm ARM D8.2.6). No ISB: the guest's own accesses come after an ERET.
    #[inline]
    fn tables_written(&self) {
        Instructions.wait(Barrier::Stores);
    }

    fn flush_page(&self, vmid: Vmid, ipa: Ipa) {
        with_vmid(vmid, || tlb::forget_page(&Instructions, ipa));
    }

    fn flush_all(&self, vmid: Vmid) {
        with_vmid(vmid, || tlb::forget_all(&Instructions));
    }

    fn flush_stage1(&self, vmid: Vmid) {
        with_vmid(vmid, || tlb::forget_stage1(&Instructions));
    }

    fn flush_stage1_address(&self, vmid: Vmid, va: GuestVa) {
        with_vmid(vmid, || tlb::forget_address(&Instructions, va));
    }

    /// The caller's own registers, which are in this CPU while it makes its call. The ISB is for translations of handles.
    fn set_base(&self, half: Half, base: u64) {
        match half {
            Half::Lower => regs::ttbr0_el1::write(base),
            Half::Upper => regs::ttbr1_el1::write(base),
        }
        isb(SY);
    }

    fn translation_controls(&self) -> Controls {
        Controls { sctlr: regs::sctlr_el1::read(), tcr: regs::tcr_el1::read(), mair: regs::mair_el1::read() }
    }

    /// `AT S1E1*` walks the guest's stage 1 with EL1's rights, without PAN. `PAR_EL1` is the guest's register and is given back:
    /// its interrupt handler may make hypercalls between an `AT` of its own and the reading.
    #[inline(always)]
    fn translate(&self, va: GuestVa, access: Access) -> Result<Ipa, Untranslatable> {
        let par = at_stage1(va, access);
        if !par.is_set(PAR::F) {
            return ipa_of(par, va);
        }
        translate_again(va, access, par)
    }

    /// `AT S12E1R`: stage 2 maps nothing but this domain's frames and what it was granted, all readable, so the machine address is good
    /// as it is. Only ordinary memory is taken: a page that either stage calls a device is left to the tables. For writing there is no
    /// such short way: QEMU 10 aborts when `AT S12E1W` meets a stage-2 permission fault, and the kind of a mapping decides.
    #[inline(always)]
    fn locate_for_reading(&self, va: GuestVa) -> Option<FrameAddr> {
        let par = at_both_stages(va);
        if par.is_set(PAR::F) || par.read(PAR::ATTR) != NORMAL_WRITE_BACK {
            return None;
        }
        let page = par.get() & (PAR::PA.mask << PAR::PA.shift);
        Pa::new(page | va.get() & 0xFFF).map(FrameAddr::from_pa)
    }

    #[inline]
    fn counter(&self) -> u64 {
        timer::now()
    }

    #[inline]
    fn microseconds_since(&self, began: u64) -> u64 {
        timer::microseconds_since(began)
    }

    fn counter_frequency(&self) -> u64 {
        super::timer::frequency()
    }

    fn kick(&self, cpu: CpuId) {
        gic::kick(cpu);
    }

    fn look_by(&self, _: CpuId, at: u64) {
        super::timer::interrupt_by(at);
    }

    #[inline(always)]
    fn raise_current(&self, irq: PrivateIntid) {
        gic::raise_loaded(percpu::this(), irq);
    }

    fn unmask_current(&self) {
        regs::spsr_el2::write(regs::spsr_el2::read() & !SPSR::I::SET.value);
    }

    fn console(&self, text: &[u8]) -> bool {
        console::offer(text)
    }

    fn console_log(&self, from: Option<u32>, into: &mut [u8]) -> (u32, usize) {
        console::read_back(from, into)
    }

    fn console_read(&self, until: u32) {
        console::read_until(until);
    }

    fn console_last(&self, text: &[u8]) {
        console::write(text);
    }

    fn is_out(&self, vcpu: VcpuIndex) -> bool {
        super::arch_vcpu(vcpu).is_none_or(context::ArchVcpu::is_out)
    }

    fn reset_vcpu(&self, vcpu: VcpuIndex, pc: Ipa, x0: Ipa) {
        if let Some(arch) = super::arch_vcpu(vcpu) {
            arch.set_gic(super::fresh_gic(arch.vcpu.number));
            arch.set_entry(pc.get(), x0.get());
        }
    }

    fn exits(&self, cpu: CpuId) -> (u64, u64, u64) {
        percpu::counts(cpu).map_or((0, 0, 0), Counts::read)
    }

    #[cfg(feature = "selfcheck")]
    fn stop_others(&self, cpu: CpuId) -> bool {
        super::stop::others(cpu)
    }

    #[cfg(feature = "selfcheck")]
    fn let_go(&self) {
        super::stop::let_go();
    }

    fn log(&self, event: Event) {
        log::event(event);
    }
}

/// This CPU, as it maintains TLBs: one instruction each.
pub struct Instructions;

/// An instruction of TLB maintenance, without or with an operand, or a barrier.
macro_rules! instruction {
    ($text:literal) => {{
        // SAFETY: invalidates translations of the address space that VTTBR_EL2 names, or waits.
        unsafe { asm!($text, options(nostack, preserves_flags)) }
    }};
    ($text:literal, $operand:expr) => {{
        // SAFETY: as above.
        unsafe { asm!($text, in(reg) $operand, options(nostack, preserves_flags)) }
    }};
}

impl Maintenance for Instructions {
    #[inline(always)]
    fn invalidate(&self, what: Tlbi) {
        match what {
            // IPA[47:12] in bits 35:0. Above them a hint of levels (none), and RES0.
            Tlbi::Stage2Page(ipa) => instruction!("tlbi ipas2e1is, {}", ipa.get() >> 12),
            Tlbi::Stage1 => instruction!("tlbi vmalle1is"),
            // VA[55:12] in bits 43:0, whatever the guest said; above them as for an IPA.
            Tlbi::Stage1Address(va) => instruction!("tlbi vaae1is, {}", va.get() >> 12 & TLBI_VA),
            Tlbi::All => instruction!("tlbi vmalls12e1is"),
            Tlbi::Stage1Here => instruction!("tlbi vmalle1"),
            Tlbi::AllHere => instruction!("tlbi vmalls12e1"),
        }
    }

    #[inline(always)]
    fn wait(&self, barrier: Barrier) {
        match barrier {
            Barrier::Stores => instruction!("dsb ishst"),
            Barrier::Everywhere => instruction!("dsb ish"),
            Barrier::Here => instruction!("dsb nsh"),
            Barrier::Context => instruction!("isb"),
        }
    }
}

/// Runs TLB maintenance with `VTTBR_EL2` naming another address space, and puts it back. Meanwhile the guest's stage-1 registers stand
/// beside a foreign stage 2, so walks with them are off: a speculative `AT` must not fill the TLB from the mixture (Cortex-A72 erratum
/// 1319367). This happens while domains are built and taken back; apart from that a domain's stage 2 is changed by its own vCPUs.
fn with_vmid(vmid: Vmid, work: impl FnOnce()) {
    let loaded = regs::vttbr_el2::read();
    let fields = LocalRegisterCopy::<u64, VTTBR::Register>::new(loaded);
    if fields.read(VTTBR::VMID) == u64::from(vmid.0) {
        work();
        return;
    }
    let (tcr, sctlr) = (regs::tcr_el1::read(), regs::sctlr_el1::read());
    context::stop_walks();
    regs::vttbr_el2::write(VTTBR::VMID.val(u64::from(vmid.0)).value);
    isb(SY);
    work();
    regs::vttbr_el2::write(loaded);
    // The address space is back before the MMU may be off again (`context::load` says why).
    isb(SY);
    regs::sctlr_el1::write(sctlr);
    isb(SY);
    regs::tcr_el1::write(tcr);
    isb(SY);
}
