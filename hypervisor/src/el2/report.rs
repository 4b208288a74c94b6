//! What the log tells of a vCPU whose domain has crashed: its registers, its last hypercalls, and the calls that led there, from the frame pointers
//! on its stack (AAPCS64: x29 points to a pair, the caller's x29 and the return address).
//!
//! A line costs some 4000 instructions, and interrupts are let in after each ([`breathe`]): this CPU has nothing of the dead domain's to go on with, and holds no
//! lock. Others wait for it as for the rest of the domain's turn.
//!
//! The guest's stack is read as a handle is: what is not there ends the walk. So only a vCPU that is in a CPU is told of in full, by that CPU; of one that
//! waits elsewhere its registers in memory are told, of those that say where it is.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hypervisor::domain::{Fault, Life};
use hypervisor::guest_memory;
use hypervisor::machine::Machine;
use hypervisor::sched::MAX_VCPUS;
use hypervisor::vcpu::{Run, VcpuIndex};
use pv_abi::sched::ShutdownReason;
use pv_abi::{DomId, GuestHandle};

use super::arm::Arm;
use super::context::{ArchVcpu, Frame, Place};
use super::percpu::PerCpu;
use super::{gic, regs, trap};

/// Callers that are told of at most.
const DEPTH: u32 = 16;
const FRAME_POINTER: u64 = 29;

/// Tells of the loaded vCPU if its domain has crashed. `frame` has its general registers, the CPU all others.
pub fn tell(machine: &Machine<Arm>, cpu: &'static PerCpu, arch: &ArchVcpu, frame: &Frame) {
    if is_crash(arch.domain.life.get()) {
        registers(machine, cpu, arch, frame);
        look_again(cpu);
    }
}

fn is_crash(end: Life) -> bool {
    match end {
        Life::Shutdown(ShutdownReason::Crash | ShutdownReason::Watchdog)
        | Life::Destroyed(Fault::WordContended | Fault::SystemError | Fault::UnknownException) => true,
        Life::Running | Life::Shutdown(_) | Life::Destroyed(Fault::ByControl) => false,
    }
}

/// vCPUs that are to be told of by [`rest`], a bit each, and whether there are any.
static UNTOLD: [AtomicU64; MAX_VCPUS.div_ceil(64)] = [const { AtomicU64::new(0) }; MAX_VCPUS.div_ceil(64)];
static ANY: AtomicBool = AtomicBool::new(false);

/// Notes the vCPUs that are on and in no CPU, if that end was a crash, for this CPU's next look: locks may be held here. The end is published already:
/// whoever chooses one of them from here on sees it and loads nothing, and nothing is taken back before this CPU has passed, so what is in memory stays as
/// it is until then. At most eight turns.
#[cold]
#[inline(never)]
pub fn waiting(domain: DomId, end: Life) {
    let machine = super::percpu::this().machine.get();
    let Some(domain) = machine.and_then(|machine| machine.domain(domain)).filter(|_| is_crash(end)) else {
        return;
    };
    for vcpu in domain.vcpus {
        match vcpu.run.get() {
            Run::Running | Run::Offline => continue,
            Run::Runnable | Run::Blocked | Run::Paused => {}
        }
        let index = usize::from(vcpu.index.0);
        if super::arch_vcpu(vcpu.index).is_some_and(ArchVcpu::is_out)
            && let Some(word) = UNTOLD.get(index / 64)
        {
            word.fetch_or(1_u64.wrapping_shl(u32::from(vcpu.index.0)), Ordering::Relaxed);
            ANY.store(true, Ordering::Release);
            gic::kick(super::percpu::this().id);
        }
    }
}

/// Tells of the vCPUs that were noted, by this CPU or another, before this one passes.
#[inline]
pub fn rest(cpu: &'static PerCpu) {
    if ANY.load(Ordering::Relaxed) {
        all(cpu);
    }
}

#[cold]
#[inline(never)]
fn all(cpu: &'static PerCpu) {
    ANY.store(false, Ordering::Relaxed);
    for (word, first) in UNTOLD.iter().zip((0_u16..).step_by(64)) {
        let mut bits = word.swap(0, Ordering::Acquire);
        // A bit a turn.
        while bits != 0 {
            let index = first.wrapping_add(u16::try_from(bits.trailing_zeros()).unwrap_or(0));
            bits &= bits.wrapping_sub(1);
            if let Some(arch) = super::arch_vcpu(VcpuIndex(index)) {
                let (place, calls) = arch.place();
                told(arch, &place);
                breathe(cpu);
                last_calls(arch, calls);
                breathe(cpu);
            }
        }
    }
    look_again(cpu);
}

/// Somebody may have asked for another look in between: this CPU is interrupted once more, since it may go to a guest now.
#[inline]
pub fn look_again(cpu: &PerCpu) {
    if cpu.reschedule.get() {
        gic::kick(cpu.id);
    }
}

/// Serves an interrupt that is pending, as a CPU does that has waited for it.
fn breathe(cpu: &'static PerCpu) {
    #[cfg(feature = "selfcheck")]
    super::stretch::end();
    #[cfg(feature = "selfcheck")]
    super::stretch::told();
    if regs::isr_el1::read() & ISR_I != 0 {
        trap::interrupt(cpu);
    }
}

/// `ISR_EL1.I`: an interrupt is pending.
const ISR_I: u64 = 1 << 7;

fn told(arch: &ArchVcpu, at: &Place) {
    defmt::warn!(
        "d{=u16} vCPU {=u32}: pc {=u64:#x}, pstate {=u64:#x}, sp {=u64:#x}, ESR_EL1 {=u64:#x}, FAR_EL1 {=u64:#x}, ELR_EL1 {=u64:#x}",
        arch.domain.id.0,
        arch.vcpu.number,
        at.pc,
        at.pstate,
        at.sp,
        at.esr,
        at.far,
        at.elr
    );
}

fn last_calls(arch: &ArchVcpu, calls: u64) {
    // Fewer have been zeros at first: number 0 is no call of the table.
    let [n8, n7, n6, n5, n4, n3, n2, n1] = calls.to_le_bytes();
    defmt::warn!(
        "d{=u16} vCPU {=u32}: last hypercalls, the latest first: {=u8} {=u8} {=u8} {=u8} {=u8} {=u8} {=u8} {=u8}",
        arch.domain.id.0,
        arch.vcpu.number,
        n1,
        n2,
        n3,
        n4,
        n5,
        n6,
        n7,
        n8
    );
}

#[cold]
#[inline(never)]
fn registers(machine: &Machine<Arm>, cpu: &'static PerCpu, arch: &ArchVcpu, frame: &Frame) {
    let (domain, vcpu) = (arch.domain.id.0, arch.vcpu.number);
    let here = Place::here();
    breathe(cpu);
    told(arch, &here);
    breathe(cpu);
    for first in (0..31_u64).step_by(4) {
        let x = |offset: u64| frame.get(first.wrapping_add(offset));
        defmt::warn!(
            "d{=u16} vCPU {=u32}: x{=u64} {=u64:#x} {=u64:#x} {=u64:#x} {=u64:#x}",
            domain,
            vcpu,
            first,
            x(0),
            x(1),
            x(2),
            x(3)
        );
        breathe(cpu);
    }
    last_calls(arch, frame.calls);
    breathe(cpu);
    let Some(current) = cpu.current.get() else { return };
    let mut pointer = frame.get(FRAME_POINTER);
    for _ in 0..DEPTH {
        // Stacks grow down: a caller's frame is above.
        let Ok([next, caller]) = guest_memory::read::<[u64; 2], _>(machine, current, GuestHandle(pointer))
        else {
            break;
        };
        defmt::warn!("d{=u16} vCPU {=u32}: called from {=u64:#x}", domain, vcpu, caller);
        breathe(cpu);
        if next <= pointer {
            break;
        }
        pointer = next;
    }
}
