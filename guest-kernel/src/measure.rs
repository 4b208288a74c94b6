//! What operations cost: the virtual counter read right before the trapping instruction and right after it, or as the first
//! instruction of the interrupt vector. Under QEMU with `-icount shift=0 -cpu max` one tick is one instruction.
//!
//! 1. Only the trapping instruction stands between the two reads; arguments are loaded before.
//! 2. Costs include the second counter read itself; [`nothing`] measures what to subtract.
#![expect(
    unsafe_code,
    reason = "timed instruction sequences, and another vector table while one is measured"
)]
use core::arch::asm;

use aarch64_cpu::registers::{
    CNTV_CTL_EL0, CNTV_CVAL_EL0, CPACR_EL1, ReadWriteable, Readable, VBAR_EL1, Writeable,
};
use pv_abi::event::{EventOp, PortArg};
use pv_abi::grant::GrantOp;
use pv_abi::memory::MemoryOp;
use pv_abi::sched::{Poll, SchedOp};
use pv_abi::version::VersionOp;
use pv_abi::{DomId, Errno, GrantRef, GuestHandle, HYPERCALL_TAG, Hypercall, Port};

use crate::frame::Frame;
use crate::gic::OwnSgi;
use crate::grant::{self, Access, GrantError, MappedGrant};
use crate::interrupt::{self, Intid};
use crate::mmio::Registers;
use crate::{cpu, heap, time};

/// Turns of the loop that waits for an interrupt.
const PATIENCE: u64 = 1_000_000;
/// Ticks from arming the timer to its deadline: past the arming, short of a scheduler's slice.
const TIMER_LEAD: u64 = 100_000;
/// Pairs of counter reads of which the closest counts.
const PAIRS: u32 = 8;

unsafe extern "C" {
    static measure_vectors: u8;
}

/// # Safety
/// As [`crate::hypercall::raw`].
unsafe fn timed(number: u64, args: [u64; 5]) -> (i64, u64) {
    // SAFETY: the caller's.
    let (result, start, end) = unsafe { stamped(number, args) };
    (result, end.wrapping_sub(start))
}

/// The counter before and after a call.
///
/// # Safety
/// As [`crate::hypercall::raw`].
#[inline(never)]
unsafe fn stamped(number: u64, args: [u64; 5]) -> (i64, u64, u64) {
    let (result, start, end): (i64, u64, u64);
    // SAFETY: as in `hypercall::raw`; the counter reads have no effect.
    unsafe {
        asm!(
            "isb",
            "mrs {start}, cntvct_el0",
            "hvc #{tag}",
            "mrs {end}, cntvct_el0",
            tag = const HYPERCALL_TAG,
            start = out(reg) start,
            end = out(reg) end,
            inlateout("x16") number => _,
            inlateout("x0") args[0] => result,
            inlateout("x1") args[1] => _,
            inlateout("x2") args[2] => _,
            inlateout("x3") args[3] => _,
            inlateout("x4") args[4] => _,
            options(nostack),
        );
    }
    (result, start, end)
}

/// Runs `work` with interrupts masked and the measuring vectors in place, then takes the interrupt that it raised.
fn with_vectors<R>(work: impl FnOnce() -> R) -> R {
    cpu::without_interrupts(|| {
        let before = VBAR_EL1.get();
        VBAR_EL1.set((&raw const measure_vectors).addr() as u64);
        cpu::synchronize();
        let result = work();
        VBAR_EL1.set(before);
        cpu::synchronize();
        interrupt::dispatch();
        result
    })
}

/// From `start` to what the vector read; `None` if the interrupt did not come.
fn lapse(start: u64, vector: u64) -> Option<u64> {
    (vector != 0).then(|| vector.wrapping_sub(start))
}

/// Two reads of the counter, one after the other.
#[inline(never)]
pub fn nothing() -> u64 {
    let (start, end): (u64, u64);
    // SAFETY: the counter reads have no effect.
    unsafe {
        asm!("isb", "mrs {0}, cntvct_el0", "mrs {1}, cntvct_el0", out(reg) start, out(reg) end, options(nomem, nostack));
    }
    end.wrapping_sub(start)
}

fn checked((result, ticks): (i64, u64)) -> Result<u64, Errno> {
    Errno::check(result).map(|_| ticks)
}

/// `xen_version(XENVER_version)`.
///
/// # Errors
/// Those of `xen_version.version` in docs/abi.md.
pub fn null_hypercall() -> Result<u64, Errno> {
    let cmd = u64::from(VersionOp::Version.number());
    // SAFETY: no argument, no memory.
    checked(unsafe { timed(u64::from(Hypercall::XenVersion.number()), [cmd, 0, 0, 0, 0]) })
}

/// A number that no hypercall has: expects the refusal.
///
/// # Errors
/// Whatever the number is answered, if it is not `-ENOSYS`.
pub fn invalid_hypercall() -> Result<u64, Errno> {
    // SAFETY: no such call, no memory.
    match unsafe { timed(63, [0; 5]) } {
        (result, ticks) if result == Errno::Enosys.to_result() => Ok(ticks),
        other => checked(other),
    }
}

/// `SCHEDOP_yield`.
///
/// # Errors
/// Those of `sched_op.yield` in docs/abi.md.
pub fn sched_yield() -> Result<u64, Errno> {
    let cmd = u64::from(SchedOp::Yield.number());
    // SAFETY: no argument, no memory.
    checked(unsafe { timed(u64::from(Hypercall::SchedOp.number()), [cmd, 0, 0, 0, 0]) })
}

/// Lets floating point in, on this vCPU.
pub fn allow_fp() {
    CPACR_EL1.modify(CPACR_EL1::FPEN::TrapNothing);
    cpu::synchronize();
}

/// Uses a floating-point register: this guest is built without.
#[inline]
pub fn use_fp() {
    // SAFETY: nobody else has anything in this register.
    unsafe { asm!(".arch_extension fp", ".arch_extension simd", "movi v0.2d, #0", options(nomem, nostack)) };
}

/// `SCHEDOP_yield`, to the next instruction and the use of a floating-point register behind it.
///
/// # Errors
/// None: the answer is not looked at.
#[inline(never)]
pub fn sched_yield_fp() -> Result<u64, Errno> {
    let (start, end): (u64, u64);
    // SAFETY: as `sched_yield`, and `use_fp`.
    unsafe {
        asm!(
            ".arch_extension fp", ".arch_extension simd",
            "isb", "mrs {start}, cntvct_el0", "hvc #{tag}", "movi v0.2d, #0", "mrs {end}, cntvct_el0",
            tag = const HYPERCALL_TAG,
            start = out(reg) start, end = out(reg) end,
            inlateout("x16") u64::from(Hypercall::SchedOp.number()) => _,
            inlateout("x0") u64::from(SchedOp::Yield.number()) => _,
            lateout("x1") _, lateout("x2") _, lateout("x3") _, lateout("x4") _,
            options(nostack),
        );
    }
    Ok(end.wrapping_sub(start))
}

/// How far the machine's counter is ahead of this domain's virtual one, in ticks: what one domain stamps and another
/// reads has to be told on the machine's, since Xen starts each domain's at its creation. The read in between is in it.
#[must_use]
pub fn machine_ahead() -> u64 {
    let read = || {
        let (own, machine): (u64, u64);
        // SAFETY: the counter reads have no effect.
        unsafe {
            asm!("isb", "mrs {0}, cntvct_el0", "mrs {1}, cntpct_el0", out(reg) own, out(reg) machine, options(nomem, nostack));
        }
        machine.wrapping_sub(own)
    };
    // The CPU may be taken away between the reads of one pair, not between those of all.
    (0..PAIRS).map(|_| read()).min().unwrap_or(0)
}

/// `EVTCHNOP_send`: the counter before it.
///
/// # Errors
/// Those of `event_channel_op.send` in docs/abi.md.
pub fn event_send_at(port: Port) -> Result<u64, Errno> {
    let mut argument = PortArg { port };
    let args = send_args(&mut argument);
    // SAFETY: the call reads `argument` only.
    let (result, start, _) = unsafe { stamped(u64::from(Hypercall::EventChannelOp.number()), args) };
    Errno::check(result).map(|_| start)
}

/// `SCHEDOP_poll` of one port for ever: the counter at the first instruction behind it.
///
/// # Errors
/// Those of `sched_op.poll` in docs/abi.md.
pub fn woken_at(port: Port) -> Result<u64, Errno> {
    let ports = [port];
    let mut argument = Poll {
        ports: GuestHandle(ports.as_ptr().expose_provenance() as u64),
        nr_ports: 1,
        pad: 0,
        timeout: 0,
    };
    let at = core::ptr::from_mut(&mut argument).expose_provenance() as u64;
    let args = [u64::from(SchedOp::Poll.number()), at, 0, 0, 0];
    // SAFETY: the call reads `argument` and `ports` only.
    let (result, _, end) = unsafe { stamped(u64::from(Hypercall::SchedOp.number()), args) };
    Errno::check(result).map(|_| end)
}

fn send_args(argument: &mut PortArg) -> [u64; 5] {
    [u64::from(EventOp::Send.number()), core::ptr::from_mut(argument).expose_provenance() as u64, 0, 0, 0]
}

/// `EVTCHNOP_send`, to the next instruction.
///
/// # Errors
/// Those of `event_channel_op.send` in docs/abi.md.
pub fn event_send(port: Port) -> Result<u64, Errno> {
    let mut argument = PortArg { port };
    let args = send_args(&mut argument);
    // SAFETY: the call reads `argument` only.
    checked(unsafe { timed(u64::from(Hypercall::EventChannelOp.number()), args) })
}

/// `EVTCHNOP_send`, to the first instruction of this vCPU's interrupt vector.
pub fn event_send_to_vector(port: Port) -> Option<u64> {
    let mut argument = PortArg { port };
    let args = send_args(&mut argument);
    let (start, vector) = with_vectors(|| {
        let (start, vector): (u64, u64);
        // SAFETY: the call reads `argument` only; the vector clobbers x9 and x10.
        unsafe {
            asm!(
                "mov x9, #0",
                "msr daifclr, #2",
                "isb",
                "mrs {start}, cntvct_el0",
                "hvc #{tag}",
                "2: cbnz x9, 3f",
                "subs {turns}, {turns}, #1",
                "b.ne 2b",
                "3: msr daifset, #2",
                tag = const HYPERCALL_TAG,
                start = out(reg) start,
                turns = inout(reg) PATIENCE => _,
                out("x9") vector, out("x10") _,
                inlateout("x16") u64::from(Hypercall::EventChannelOp.number()) => _,
                inlateout("x0") args[0] => _,
                inlateout("x1") args[1] => _,
                lateout("x2") _, lateout("x3") _, lateout("x4") _,
                options(nostack),
            );
        }
        (start, vector)
    });
    lapse(start, vector)
}

/// A software generated interrupt to this vCPU, from the instruction that raises it to the vector.
pub fn sgi_to_vector(intid: Intid) -> Option<u64> {
    let sgi = interrupt::controller().ok()?.own_sgi(intid)?;
    let (start, vector) = with_vectors(|| {
        let (start, vector): (u64, u64);
        match sgi {
            // SAFETY: raises an interrupt on this vCPU only; the vector clobbers x9 and x10.
            OwnSgi::Icc(value) => unsafe {
                asm!(
                    "mov x9, #0", "msr daifclr, #2", "isb", "mrs {start}, cntvct_el0",
                    "msr S3_0_C12_C11_5, {value}",
                    "2: cbnz x9, 3f", "subs {turns}, {turns}, #1", "b.ne 2b", "3: msr daifset, #2",
                    start = out(reg) start, value = in(reg) value, turns = inout(reg) PATIENCE => _,
                    out("x9") vector, out("x10") _, options(nostack),
                );
            },
            // SAFETY: as above; the address is a register of the distributor.
            OwnSgi::Store { address, value } => unsafe {
                asm!(
                    "mov x9, #0", "msr daifclr, #2", "isb", "mrs {start}, cntvct_el0",
                    "str {value:w}, [{address}]",
                    "2: cbnz x9, 3f", "subs {turns}, {turns}, #1", "b.ne 2b", "3: msr daifset, #2",
                    start = out(reg) start, value = in(reg) value, address = in(reg) address,
                    turns = inout(reg) PATIENCE => _, out("x9") vector, out("x10") _, options(nostack),
                );
            },
        }
        (start, vector)
    });
    lapse(start, vector)
}

/// The virtual timer, from its deadline to the vector, while this vCPU runs.
pub fn timer_to_vector() -> Option<u64> {
    let deadline = time::now().ticks() + TIMER_LEAD;
    let vector = with_vectors(|| {
        let vector: u64;
        CNTV_CVAL_EL0.set(deadline);
        CNTV_CTL_EL0.write(CNTV_CTL_EL0::ENABLE::SET);
        // SAFETY: waits for the timer's interrupt; the vector clobbers x9 and x10.
        unsafe {
            asm!(
                "mov x9, #0", "msr daifclr, #2",
                "2: cbnz x9, 3f", "subs {turns}, {turns}, #1", "b.ne 2b", "3: msr daifset, #2",
                turns = inout(reg) PATIENCE => _, out("x9") vector, out("x10") _, options(nostack),
            );
        }
        vector
    });
    lapse(deadline, vector)
}

/// A read of an emulated register.
pub fn mmio_read(registers: Registers, offset: usize) -> Option<u64> {
    let address = registers.address(offset)?;
    let (start, end): (u64, u64);
    // SAFETY: a register of a mapped device, as in `Registers::read32`.
    unsafe {
        asm!(
            "isb", "mrs {start}, cntvct_el0", "ldr {value:w}, [{address}]", "mrs {end}, cntvct_el0",
            start = out(reg) start, end = out(reg) end, value = out(reg) _, address = in(reg) address,
            options(nostack),
        );
    }
    Some(end.wrapping_sub(start))
}

/// Giving a page back (`XENMEM_decrease_reservation`): nothing is there until [`populate_page`].
///
/// # Errors
/// Those of `memory_op.decrease_reservation` in docs/abi.md.
pub fn decrease_page(page: &'static Frame) -> Result<u64, Errno> {
    heap::reserve_by(MemoryOp::DecreaseReservation, page, timed_memory)
}

/// Asking for a page where one was given back (`XENMEM_populate_physmap`).
///
/// # Errors
/// Those of `memory_op.populate_physmap` in docs/abi.md.
pub fn populate_page(page: &'static Frame) -> Result<u64, Errno> {
    heap::reserve_by(MemoryOp::PopulatePhysmap, page, timed_memory)
}

fn timed_memory(args: [u64; 5]) -> (i64, u64) {
    // SAFETY: `reserve_by` prepared the structure for this call as for its own.
    unsafe { timed(u64::from(Hypercall::MemoryOp.number()), args) }
}

fn timed_grant<T>(op: GrantOp, element: &mut T, ticks: &mut u64) -> Result<u64, Errno> {
    let args = [u64::from(op.number()), core::ptr::from_mut(element).expose_provenance() as u64, 1, 0, 0];
    // SAFETY: `grant` prepared the element for this call as for its own.
    let (result, spent) = unsafe { timed(u64::from(Hypercall::GrantTableOp.number()), args) };
    *ticks = spent;
    Errno::check(result)
}

/// Mapping a peer's page.
///
/// # Errors
/// [`GrantError`]: those of `grant_table_op.map_grant_ref` in docs/abi.md, or no room for the page.
pub fn grant_map(peer: DomId, reference: GrantRef) -> Result<(MappedGrant, u64), GrantError> {
    let mut ticks = 0;
    MappedGrant::map_with(peer, reference, Access::ReadWrite, |element| {
        timed_grant(GrantOp::MapGrantRef, element, &mut ticks)
    })
    .map(|mapped| (mapped, ticks))
}

/// Unmapping it.
///
/// # Errors
/// [`GrantError`]: those of `grant_table_op.unmap_grant_ref` in docs/abi.md.
pub fn grant_unmap(mapped: MappedGrant) -> Result<u64, GrantError> {
    let mut ticks = 0;
    mapped.unmap_with(|element| timed_grant(GrantOp::UnmapGrantRef, element, &mut ticks)).map(|()| ticks)
}

/// Copying from a peer's page.
///
/// # Errors
/// [`GrantError`]: those of `grant_table_op.copy` in docs/abi.md.
pub fn grant_copy(peer: DomId, reference: GrantRef, to: &Frame, length: u16) -> Result<u64, GrantError> {
    let mut ticks = 0;
    grant::copy_with(peer, reference, to, length, |element| timed_grant(GrantOp::Copy, element, &mut ticks))
        .map(|()| ticks)
}
