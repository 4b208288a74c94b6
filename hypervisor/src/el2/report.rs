//! What the log tells of a vCPU whose domain has crashed: its registers, its last hypercalls, and the calls that led there, from the frame pointers
//! on its stack (AAPCS64: x29 points to a pair, the caller's x29 and the return address).
//!
//! The guest's stack is read as a handle is: what is not there ends the walk.

use hypervisor::domain::{Fault, Life};
use hypervisor::guest_memory;
use hypervisor::machine::Machine;
use pv_abi::GuestHandle;
use pv_abi::sched::ShutdownReason;

use super::arm::Arm;
use super::context::{ArchVcpu, Frame};
use super::percpu::PerCpu;
use super::regs;

/// Callers that are told of at most.
const DEPTH: u32 = 16;
const FRAME_POINTER: u64 = 29;

/// Tells of the loaded vCPU if its domain has crashed. `frame` has its general registers, the CPU all others.
pub fn tell(machine: &Machine<Arm>, cpu: &PerCpu, arch: &ArchVcpu, frame: &Frame) {
    match arch.domain.life.get() {
        Life::Shutdown(ShutdownReason::Crash | ShutdownReason::Watchdog)
        | Life::Destroyed(Fault::WordContended | Fault::SystemError | Fault::UnknownException) => {}
        Life::Running | Life::Shutdown(_) | Life::Destroyed(Fault::ByControl) => return,
    }
    registers(machine, cpu, arch, frame);
}

#[cold]
#[inline(never)]
fn registers(machine: &Machine<Arm>, cpu: &PerCpu, arch: &ArchVcpu, frame: &Frame) {
    let (domain, vcpu) = (arch.domain.id.0, arch.vcpu.number);
    defmt::warn!(
        "d{=u16} vCPU {=u32}: pc {=u64:#x}, pstate {=u64:#x}, sp {=u64:#x}, ESR_EL1 {=u64:#x}, FAR_EL1 {=u64:#x}, ELR_EL1 {=u64:#x}",
        domain,
        vcpu,
        regs::elr_el2::read(),
        regs::spsr_el2::read(),
        regs::sp_el1::read(),
        regs::esr_el1::read(),
        regs::far_el1::read(),
        regs::elr_el1::read()
    );
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
    }
    // Fewer have been zeros at first: number 0 is no call of the table.
    let [n8, n7, n6, n5, n4, n3, n2, n1] = frame.calls.to_le_bytes();
    defmt::warn!(
        "d{=u16} vCPU {=u32}: last hypercalls, the latest first: {=u8} {=u8} {=u8} {=u8} {=u8} {=u8} {=u8} {=u8}",
        domain,
        vcpu,
        n1,
        n2,
        n3,
        n4,
        n5,
        n6,
        n7,
        n8
    );
    let Some(current) = cpu.current.get() else { return };
    let mut pointer = frame.get(FRAME_POINTER);
    for _ in 0..DEPTH {
        // Stacks grow down: a caller's frame is above.
        let Ok([next, caller]) = guest_memory::read::<[u64; 2], _>(machine, current, GuestHandle(pointer))
        else {
            break;
        };
        defmt::warn!("d{=u16} vCPU {=u32}: called from {=u64:#x}", domain, vcpu, caller);
        if next <= pointer {
            break;
        }
        pointer = next;
    }
}
