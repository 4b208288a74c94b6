//! Calls with arguments that a well-behaved guest would never make.
//!
//! 1. A number that is passed as a plain argument never lies in mapped memory, so that a call that takes it for an address is refused.
//! 2. Structures are passed by `&mut`: what the hypervisor writes back lands in them.
#![expect(unsafe_code, reason = "hypercalls with arbitrary arguments are what is tested")]
use guest_kernel::{hypercall, record};
use pv_abi::grant::{GrantOp, GrantStatus};
use pv_abi::{Errno, Hypercall};
use zerocopy::{FromBytes, IntoBytes};

/// An address that this guest does not map.
pub(crate) const NOWHERE: u64 = 0x1000;
/// The last frame of the grant region: nothing is there.
pub(crate) const FREE: u64 = 0x38fff;
/// A domain that does not exist.
pub(crate) const NOBODY: pv_abi::DomId = pv_abi::DomId(777);
/// Lowest address that this guest maps as memory, and the first that it cannot have with 1 GiB or less.
const MAPPED: core::ops::Range<u64> = 0x3800_0000..0x8000_0000;

/// What a call answers.
pub(crate) type Answer = Result<u64, Errno>;

/// A call by number with plain arguments.
pub(crate) fn call(number: u64, args: &[u64]) -> Answer {
    let mut registers = [0; 5];
    for (register, value) in registers.iter_mut().zip(args) {
        assert!(!MAPPED.contains(value), "a plain argument is no address");
        *register = *value;
    }
    // SAFETY: no argument is the address of mapped memory (invariant 1).
    Errno::check(unsafe { hypercall::raw(number, registers) })
}

/// A call of the form (cmd, structure).
pub(crate) fn with<T: IntoBytes + FromBytes>(call: Hypercall, cmd: u64, argument: &mut T) -> Answer {
    place(u64::from(call.number()), cmd, core::ptr::from_mut(argument).expose_provenance() as u64)
}

/// A call of the form (cmd, structure) whose structure is nowhere.
pub(crate) fn without(call: Hypercall, cmd: u64) -> Answer {
    place(u64::from(call.number()), cmd, NOWHERE)
}

fn place(number: u64, cmd: u64, address: u64) -> Answer {
    // SAFETY: the address is a structure that lives during the call, or nowhere.
    Errno::check(unsafe { hypercall::raw(number, [cmd, address, 0, 0, 0]) })
}

/// A call of the control domain's: its one argument is an address.
pub(crate) fn control(number: u64, address: u64) -> Result<(), Errno> {
    // SAFETY: it is that of a structure, or nowhere; what the structure names is the caller's, or nowhere.
    Errno::check(unsafe { hypercall::raw(number, [address, 0, 0, 0, 0]) }).map(drop)
}

/// A call whose one argument is a structure of zeros (the privileged calls, which check its first word).
pub(crate) fn at_zeros(number: u64) -> Answer {
    let mut zeros = [0u64; 32];
    // SAFETY: the zeros live during the call; no interface version is 0, so the call ends there.
    Errno::check(unsafe {
        hypercall::raw(number, [zeros.as_mut_ptr().expose_provenance() as u64, 0, 0, 0, 0])
    })
}

/// A call of the form (cmd, bytes, count).
pub(crate) fn bytes(call: Hypercall, cmd: u64, count: u64, buffer: &mut [u8]) -> Answer {
    assert!(count <= buffer.len() as u64, "the buffer is as long as said");
    let address = buffer.as_mut_ptr().expose_provenance() as u64;
    // SAFETY: the buffer lives during the call and is as long as said.
    Errno::check(unsafe { hypercall::raw(u64::from(call.number()), [cmd, count, address, 0, 0]) })
}

/// A grant-table call on `elements`.
pub(crate) fn grants<T: IntoBytes + FromBytes>(op: u64, elements: &mut [T]) -> Answer {
    let address = elements.as_mut_ptr().expose_provenance() as u64;
    let args = [op, address, elements.len() as u64, 0, 0];
    // SAFETY: the elements live during the call; frames that they name are this guest's own or none.
    Errno::check(unsafe { hypercall::raw(u64::from(Hypercall::GrantTableOp.number()), args) })
}

/// A grant-table call on one element; its status by `read`.
pub(crate) fn grant<T: IntoBytes + FromBytes>(
    op: GrantOp,
    element: &mut T,
    read: impl Fn(&T) -> i16,
) -> Result<GrantStatus, Errno> {
    grants(u64::from(op.number()), core::slice::from_mut(element))?;
    record::status(op.number(), read(element));
    Ok(GrantStatus::from_value(read(element)))
}

/// `vcpu_op`.
pub(crate) fn vcpu<T: IntoBytes + FromBytes>(op: u64, vcpu: u64, argument: &mut T) -> Answer {
    let address = core::ptr::from_mut(argument).expose_provenance() as u64;
    // SAFETY: the argument lives during the call; memory that it names is leaked atomics or refused.
    Errno::check(unsafe { hypercall::raw(u64::from(Hypercall::VcpuOp.number()), [op, vcpu, address, 0, 0]) })
}

/// `multicall`.
pub(crate) fn multicall(entries: &mut [pv_abi::multicall::MulticallEntry]) -> Answer {
    // SAFETY: the entries hold plain arguments only.
    unsafe { hypercall::multicall(entries) }
}

/// A PSCI or SMCCC function.
pub(crate) fn smccc(function: u32, argument: u64) -> i32 {
    // SAFETY: only functions that answer questions are called.
    low_word(unsafe { hypercall::smccc(function, [argument, 0, 0]) })
}

/// `AFFINITY_INFO` at a level.
pub(crate) fn affinity_info(affinity: u64, level: u64) -> i32 {
    // SAFETY: it answers a question.
    low_word(unsafe { hypercall::smccc(0xc400_0004, [affinity, level, 0]) })
}

/// A form of `CPU_ON`, where it is refused: of a vCPU that is on or does not exist, or at an odd address.
pub(crate) fn cpu_on(function: u32, affinity: u64, entry: u64) -> i32 {
    // SAFETY: it starts none; if it did, that would run nothing, since no code is at these addresses.
    low_word(unsafe { hypercall::smccc(function, [affinity, entry, 0]) })
}

/// The low 32 bits of a result, where the interface has no more.
pub(crate) fn low_word(result: i64) -> i32 {
    let [a, b, c, d, ..] = result.to_le_bytes();
    i32::from_le_bytes([a, b, c, d])
}

/// Reads from the console to nowhere: a count is no address, however large.
pub(crate) fn console_read(count: u64) -> Answer {
    let args = [u64::from(pv_abi::console::ConsoleOp::Read.number()), count, NOWHERE, 0, 0];
    // SAFETY: there is nothing at the address.
    Errno::check(unsafe { hypercall::raw(u64::from(Hypercall::ConsoleIo.number()), args) })
}

/// A word of a mapped page.
pub(crate) fn word(page: u64, index: usize) -> u32 {
    frame_at(page).words()[index].load(core::sync::atomic::Ordering::Acquire)
}

/// Writes a word of a mapped page.
pub(crate) fn store(page: u64, index: usize, value: u32) {
    frame_at(page).words()[index].store(value, core::sync::atomic::Ordering::Release);
}

fn frame_at(page: u64) -> &'static guest_kernel::frame::Frame {
    // SAFETY: the cases map something there before; were nothing there, this guest would end by the fault. A frame consists of atomics.
    unsafe { &*core::ptr::with_exposed_provenance(usize::try_from(page).unwrap_or(0)) }
}

/// A guest frame number.
pub(crate) fn gfn(frame: &guest_kernel::frame::Frame) -> u64 {
    (core::ptr::from_ref(frame).expose_provenance() / pv_abi::PAGE_SIZE) as u64
}

/// Where an array is, for a structure that names it.
pub(crate) fn address<T: ?Sized>(of: &mut T) -> u64 {
    core::ptr::from_mut(of).cast::<u8>().expose_provenance() as u64
}

/// [`with`], with progress in the command.
pub(crate) fn at<T: IntoBytes + FromBytes>(call: Hypercall, cmd: u64, argument: &mut T) -> Answer {
    place(u64::from(call.number()), cmd, core::ptr::from_mut(argument).expose_provenance() as u64)
}

/// A call of the form (cmd, bytes).
pub(crate) fn at_end(call: Hypercall, cmd: u64, bytes: &mut [u8]) -> Answer {
    place(u64::from(call.number()), cmd, bytes.as_mut_ptr().expose_provenance() as u64)
}
