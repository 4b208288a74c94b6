//! Dispatch of hypercalls: an exhaustive match over the table in `pv_abi`, one expression an arm.
//!
//! Invariants
//! 1. A call that is refused has changed nothing, apart from what its Xen counterpart documents as done (batches).
//! 2. A call that stops in the middle says so by [`Stop::Restart`]: its arguments then describe what is left, and the guest
//!    executes the same `hvc` again, after interrupts were served.
//! 3. What a call tells the caller goes through [`Outcome`]; the image alone writes the guest's registers.
//! 4. A call of a multicall is no multicall: nothing here recurses.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]
#![expect(
    clippy::inline_always,
    reason = "on the path of every hypercall: a call more would be seen in the numbers"
)]

use pv_abi::{DomId, Errno, Hypercall};

use crate::domain::Domain;
use crate::hardware::Hardware;
use crate::machine::{Current, Machine};
use crate::{
    console, evtchn, grant, hvm, memory, multicall, pagetable, privileged, sched_op, vcpu_op, version,
};

/// The register arguments of a call, x0 to x4.
pub type Args = [u64; 5];

/// What a call has for the guest's registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Finished: the value of x0.
    Done(i64),
    /// To be executed again with these in x0 to x4 (the program counter stays on the `hvc`).
    Restart(Args),
}

/// Why a call did not finish.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// Refused.
    Errno(Errno),
    /// Part of it is done: what is left, as arguments of the same call.
    Restart(Args),
}

impl From<Errno> for Stop {
    #[inline(always)]
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

/// How every call ends: the value of x0, or why not.
pub type Answer = Result<u64, Stop>;

impl From<Answer> for Outcome {
    #[inline(always)]
    fn from(answer: Answer) -> Self {
        match answer {
            Ok(value) => Self::Done(value.cast_signed()),
            Err(Stop::Errno(errno)) => Self::Done(errno.to_result()),
            Err(Stop::Restart(args)) => Self::Restart(args),
        }
    }
}

/// Serves a hypercall: `number` is x16.
#[inline(always)]
pub fn hypercall<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    number: u64,
    args: Args,
) -> Outcome {
    serve(machine, current, number, &args)
}

/// [`hypercall`] with the arguments where the guest's registers are saved: they are not copied for calls that are over in a moment.
#[inline(always)]
pub fn serve<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, number: u64, args: &Args) -> Outcome {
    match Hypercall::from_number(number) {
        Some(call) => dispatch::<H, false>(machine, current, call, args).into(),
        None => privileged::others(machine, current, number, args).into(),
    }
}

/// Serves a call of a multicall.
#[inline(never)]
pub(crate) fn nested<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    number: u64,
    args: Args,
) -> Outcome {
    match Hypercall::from_number(number) {
        Some(call) => dispatch::<H, true>(machine, current, call, &args).into(),
        None => privileged::others(machine, current, number, &args).into(),
    }
}

/// The hottest two stand inline; all others are out of line in their modules.
#[inline(always)]
fn dispatch<H: Hardware, const NESTED: bool>(
    machine: &Machine<H>,
    current: &Current<'_>,
    call: Hypercall,
    args: &Args,
) -> Answer {
    match call {
        Hypercall::MmuUpdate => pagetable::mmu_update(machine, current, args),
        Hypercall::UpdateVaMapping => pagetable::update_va_mapping(machine, current, args),
        Hypercall::MmuExtOp => pagetable::mmuext_op(machine, current, args),
        Hypercall::XenVersion => version::xen_version(machine, current, args),
        Hypercall::EventChannelOp => evtchn::event_channel_op(machine, current, args),
        Hypercall::GrantTableOp => grant::grant_table_op(machine, current, args),
        Hypercall::SchedOp => sched_op::sched_op(machine, current, args),
        Hypercall::MemoryOp => memory::memory_op(machine, current, args),
        Hypercall::ConsoleIo => console::console_io(machine, current, args),
        Hypercall::VcpuOp => vcpu_op::vcpu_op(machine, current, args),
        Hypercall::HvmOp => hvm::hvm_op(machine, current, args),
        Hypercall::VmAssist => vcpu_op::vm_assist(current, args),
        Hypercall::Multicall if NESTED => Err(Errno::Einval.into()),
        Hypercall::Multicall => multicall::multicall(machine, current, args),
    }
}

/// The domain that an argument names, `DOMID_SELF` included. One that has ended is there until everything is taken back from it.
#[inline]
pub fn any_domain<'a, H: Hardware>(
    machine: &'a Machine<H>,
    current: &Current<'a>,
    id: DomId,
) -> Option<&'a Domain> {
    if id == DomId::SELF { Some(current.domain) } else { machine.present(id) }
}

/// The low half of a register: Xen's `int` and `unsigned int` arguments.
#[inline(always)]
pub(crate) const fn low_u32(register: u64) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "the upper half is not part of the argument")]
    {
        register as u32
    }
}
