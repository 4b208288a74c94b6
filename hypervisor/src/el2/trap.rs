//! What a guest's exceptions come to: hypercalls, interrupts, aborts, trapped instructions. Called by vectors.S.
//!
//! Invariants
//! 1. No exception of a guest reaches a panic: what is not served is given back to the guest, or ends its domain.
//! 2. A handler returns 0 to go on with the same guest, 1 to have the scheduler asked.
//! 3. Only here are the result registers of a guest written.
#![expect(unsafe_code, reason = "names that the assembly calls")]

use hypervisor::addr::{Gfn, Ipa};
use hypervisor::domain::{Fault, Life};
use hypervisor::hypercall::{self, Outcome};
use hypervisor::vgic::{PrivateIntid, VcpuShared};
use hypervisor::{sched, sched_op, stage2};
use pv_abi::{HYPERCALL_TAG, layout};
use tock_registers::LocalRegisterCopy;

use super::context::{self, ArchVcpu, Frame};
use super::gic::Controller;
use super::inject::{self, Class};
use super::percpu::{self, PerCpu};
use super::regs::{self, ESR, HPFAR};
use super::{console, emulate, gic, passthrough, smccc, sysreg, timer};

/// `ESR_EL2` of an exception.
pub type Syndrome = LocalRegisterCopy<u64, ESR::Register>;

/// Exception classes (Arm ARM D19.2.41).
mod class {
    pub const WFX: u64 = 0x01;
    pub const FLOATING_POINT: u64 = 0x07;
    pub const ILLEGAL_STATE: u64 = 0x0E;
    pub const SMC64: u64 = 0x17;
    pub const SYSTEM_REGISTER: u64 = 0x18;
    pub const INSTRUCTION_ABORT: u64 = 0x20;
    pub const DATA_ABORT: u64 = 0x24;
    /// Those that are one instruction a guest may not execute: unknown, AArch32 coprocessor accesses, pointer authentication,
    /// 64-byte stores, SMC from AArch32, SVE, ERET trap, SME.
    pub const UNDEFINED: [u64; 13] =
        [0x00, 0x03, 0x04, 0x05, 0x06, 0x08, 0x09, 0x0A, 0x0C, 0x13, 0x19, 0x1A, 0x1D];
}

/// Low bits of a fault status: the level.
pub const FSC_LEVEL: u64 = 3;
pub const FSC_TRANSLATION: u64 = 0x04;
const FSC_ADDRESS_SIZE: u64 = 0x00;

/// INTIDs from here on are shared interrupts.
const FIRST_SHARED: u32 = 32;

/// Where an entry from a guest begins and ends is told to [`stretch`], in images that have it.
macro_rules! entry {
    ($begins:expr, $serve:expr) => {{
        #[cfg(feature = "selfcheck")]
        $begins;
        let again = $serve;
        #[cfg(feature = "selfcheck")]
        if again == 0 {
            super::stretch::end();
        }
        again
    }};
}

/// An `hvc` of a guest; the return address is behind it.
#[unsafe(no_mangle)]
extern "C" fn hvc_entry(frame: &mut Frame, esr: u64) -> u64 {
    entry!(super::stretch::exception(frame, esr), hvc(frame, esr))
}

#[inline(always)]
fn hvc(frame: &mut Frame, esr: u64) -> u64 {
    let cpu = percpu::this();
    let syndrome = Syndrome::new(esr);
    if syndrome.read(ESR::IMM16) != u64::from(HYPERCALL_TAG) {
        return other_hvc(cpu, frame, syndrome.read(ESR::IMM16));
    }
    let (Some(machine), Some(current)) = (cpu.machine.get(), cpu.current.get()) else { return 1 };
    let number = frame.get(16);
    frame.note_call(number);
    let Some(args) = frame.x.first_chunk() else { return 1 };
    match hypercall::serve(machine, current, number, args) {
        Outcome::Done(value) => frame.set(0, value.cast_unsigned()),
        Outcome::Restart(args) => {
            for (slot, value) in frame.x.iter_mut().zip(args) {
                *slot = value;
            }
            regs::elr_el2::write(regs::elr_el2::read().wrapping_sub(4));
        }
    }
    u64::from(cpu.reschedule.get())
}

#[cold]
#[inline(never)]
fn other_hvc(cpu: &'static PerCpu, frame: &mut Frame, immediate: u64) -> u64 {
    if immediate == 0 {
        smccc::call(cpu, frame);
    } else {
        // The exception is the guest's own, at the instruction.
        regs::elr_el2::write(regs::elr_el2::read().wrapping_sub(4));
        inject::undefined();
    }
    u64::from(cpu.reschedule.get())
}

/// An interrupt while a guest runs.
#[unsafe(no_mangle)]
extern "C" fn irq_entry(_frame: &mut Frame) -> u64 {
    entry!(super::stretch::interrupt(), irq())
}

#[inline(always)]
fn irq() -> u64 {
    let cpu = percpu::this();
    cpu.counts.exits.add();
    interrupt(cpu);
    u64::from(cpu.reschedule.get())
}

/// Serves the most urgent interrupt, from a guest or from idling.
pub fn interrupt(cpu: &'static PerCpu) {
    if gic::is_v2() { interrupt_on::<gic::V2>(cpu) } else { interrupt_on::<gic::V3>(cpu) }
}

#[inline(always)]
fn interrupt_on<C: Controller>(cpu: &'static PerCpu) {
    let acknowledged = C::acknowledge();
    let intid = C::intid(acknowledged);
    if intid >= gic::SPECIAL {
        return;
    }
    C::drop_priority(acknowledged);
    let sources = super::interrupts();
    if intid == sources.virtual_timer {
        if timer::guest_timer_fires() {
            // Deactivated by the guest, through the list register.
            gic::raise_on::<C>(cpu, PrivateIntid::VIRTUAL_TIMER);
        } else {
            // It was of a vCPU that has left the CPU meanwhile, or of a deadline that has moved.
            C::deactivate(acknowledged);
        }
        return;
    }
    // Deactivated by the guest, as the timer.
    if intid >= FIRST_SHARED && passthrough::take(cpu, intid) {
        return;
    }
    C::deactivate(acknowledged);
    if intid == gic::KICK || intid == sources.hypervisor_timer {
        cpu.reschedule.set(true);
    } else if intid == sources.maintenance {
        cpu.service.set(true);
        cpu.reschedule.set(true);
    } else if console::is_mine(intid) {
        console::receive(cpu);
    } else if gic::worth_a_line() {
        defmt::warn!("interrupt {=u32} that nobody asked for", intid);
    }
}

/// A data abort of a guest, with what the C ABI may clobber in the frame: 1 when it was served, and the guest goes on; 0 when nothing was done.
#[unsafe(no_mangle)]
extern "C" fn load_entry(frame: &mut Frame, esr: u64) -> u64 {
    #[cfg(feature = "selfcheck")]
    super::stretch::exception(frame, esr);
    let cpu = percpu::this();
    let served = !cpu.reschedule.get() && emulate::load_plain(cpu, frame, Syndrome::new(esr));
    #[cfg(feature = "selfcheck")]
    if served {
        super::stretch::end();
    }
    u64::from(served)
}

/// Every other synchronous exception of a guest, with all registers in the frame.
#[unsafe(no_mangle)]
extern "C" fn sync_entry(frame: &mut Frame, esr: u64) -> u64 {
    entry!(super::stretch::exception(frame, esr), sync(frame, esr))
}

#[inline(always)]
fn sync(frame: &mut Frame, esr: u64) -> u64 {
    let cpu = percpu::this();
    cpu.counts.exits.add();
    let syndrome = Syndrome::new(esr);
    let Some(arch) = cpu.loaded() else { return 1 };
    match syndrome.read(ESR::EC) {
        class::DATA_ABORT => data_abort(cpu, arch, frame, syndrome),
        class::SYSTEM_REGISTER => sysreg::access(cpu, arch, frame, syndrome),
        class::WFX => {
            cpu.counts.trapped_waits.add();
            skip(syndrome);
            wait(cpu);
        }
        class::FLOATING_POINT => context::take_fp(cpu, arch),
        class::INSTRUCTION_ABORT => instruction_abort(cpu, arch, syndrome),
        class::SMC64 => {
            if syndrome.read(ESR::IMM16) == 0 {
                skip(syndrome);
                smccc::call(cpu, frame);
            } else {
                inject::undefined();
            }
        }
        // The guest's own illegal return: its state stays illegal until it takes an exception (Arm ARM D1.3.4).
        class::ILLEGAL_STATE => inject::undefined(),
        ec if class::UNDEFINED.contains(&ec) => inject::undefined(),
        ec => {
            defmt::warn!(
                "d{=u16}: exception class {=u64:#x}, pc {=u64:#x}",
                arch.domain.id.0,
                ec,
                regs::elr_el2::read()
            );
            end(cpu, arch, Fault::UnknownException);
        }
    }
    u64::from(cpu.reschedule.get())
}

/// An SError while a guest runs: nobody else can be blamed for it.
#[unsafe(no_mangle)]
extern "C" fn serror_entry(_frame: &mut Frame) -> u64 {
    let cpu = percpu::this();
    if let Some(arch) = cpu.loaded() {
        end(cpu, arch, Fault::SystemError);
    }
    1
}

/// Ends the loaded vCPU's domain.
pub fn end(cpu: &PerCpu, arch: &ArchVcpu, fault: Fault) {
    if let (Some(machine), Some(current)) = (cpu.machine.get(), cpu.current.get()) {
        sched_op::end_domain(machine, current, arch.domain, Life::Destroyed(fault));
    }
    cpu.reschedule.set(true);
}

/// Goes on behind the instruction that trapped. It has two bytes if EL0 is in AArch32 state (T32), which no identification register
/// offers and the CPU may have all the same.
pub fn skip(syndrome: Syndrome) {
    let length = if syndrome.is_set(ESR::IL) { 4 } else { 2 };
    regs::elr_el2::write(regs::elr_el2::read().wrapping_add(length));
}

/// WFI: blocks unless something is pending.
fn wait(cpu: &PerCpu) {
    let (Some(machine), Some(current)) = (cpu.machine.get(), cpu.current.get()) else { return };
    // Interrupts that are in list registers already are looked at by the scheduler before it gives the CPU away.
    sched::block(machine, current, None, || {
        current.domain.gic_of(current.vcpu).is_some_and(VcpuShared::has_mail)
    });
}

/// The faulting IPA, where the hardware says it: for translation and address-size faults, and for faults on a walk.
fn faulting_ipa(syndrome: Syndrome) -> Option<Ipa> {
    let frame = LocalRegisterCopy::<u64, HPFAR::Register>::new(regs::hpfar_el2::read()).read(HPFAR::FIPA);
    let page = Gfn::new(frame)?.base();
    if syndrome.is_set(ESR::S1PTW) { Some(page) } else { page.checked_add(regs::far_el2::read() & 0xFFF) }
}

fn data_abort(cpu: &'static PerCpu, arch: &'static ArchVcpu, frame: &mut Frame, syndrome: Syndrome) {
    let kind = syndrome.read(ESR::FSC) & !FSC_LEVEL;
    if (kind == FSC_TRANSLATION || kind == FSC_ADDRESS_SIZE)
        && let Some(ipa) = faulting_ipa(syndrome)
    {
        if kind == FSC_TRANSLATION && mapped_meanwhile(cpu, arch, ipa) {
            return;
        }
        if !syndrome.is_set(ESR::S1PTW) && syndrome.is_set(ESR::ISV) {
            match emulate::access(cpu, arch, frame, syndrome, ipa) {
                emulate::Access::Done => return skip(syndrome),
                emulate::Access::Again => return,
                emulate::Access::Nothing => {}
            }
        }
    }
    let write = if syndrome.is_set(ESR::WNR) { ESR::WNR::SET.value } else { 0 };
    let maintenance = if syndrome.is_set(ESR::CM) { ESR::CM::SET.value } else { 0 };
    let iss = inject::external_abort(syndrome) | write | maintenance;
    inject::synchronous(Class::DataAbort, iss, Some(regs::far_el2::read()), syndrome.is_set(ESR::IL));
}

/// Whether stage 2 has the page by now: another vCPU broke and made its entry meanwhile (break-before-make), so the access is simply
/// made again.
fn mapped_meanwhile(cpu: &PerCpu, arch: &ArchVcpu, ipa: Ipa) -> bool {
    if ipa.get() < layout::GRANT_TABLE_BASE {
        return false; // Devices: never mapped.
    }
    cpu.machine
        .get()
        .is_some_and(|machine| stage2::lookup(&machine.hw, arch.domain.stage2_root, ipa.frame()).is_some())
}

fn instruction_abort(cpu: &PerCpu, arch: &ArchVcpu, syndrome: Syndrome) {
    let translation = syndrome.read(ESR::FSC) & !FSC_LEVEL == FSC_TRANSLATION;
    if translation && faulting_ipa(syndrome).is_some_and(|ipa| mapped_meanwhile(cpu, arch, ipa)) {
        return;
    }
    inject::synchronous(
        Class::InstructionAbort,
        inject::external_abort(syndrome),
        Some(regs::far_el2::read()),
        syndrome.is_set(ESR::IL),
    );
}
