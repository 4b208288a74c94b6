//! `multicall`: several calls in one. Each entry is read, served and given its result before the next; the whole returns 0 however
//! its calls fared.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use core::mem::offset_of;

use pv_abi::multicall::MulticallEntry;
use pv_abi::{Errno, GuestHandle, Hypercall};

use crate::guest_memory;
use crate::hardware::Hardware;
use crate::hypercall::{Answer, Args, Outcome, Stop, nested};
use crate::machine::{Current, Machine};

/// Calls that one run makes before it lets interrupts in; after one that may take long by itself it does so at once.
const BUDGET: u32 = 8;
const ENTRY: u64 = size_of::<MulticallEntry>() as u64;
const RESULT: u64 = offset_of!(MulticallEntry, result) as u64;

/// `multicall`.
///
/// # Errors
/// `-EFAULT` when an entry cannot be read or its result not written; those before it are done. Restarts.
#[inline(never)]
pub fn multicall<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, args: &Args) -> Answer {
    let [calls, count, ..] = *args;
    let budget = u64::from(machine.hw.budget(BUDGET));
    let mut was_long = false;
    for index in 0..count.min(budget) {
        let at = guest_memory::element::<MulticallEntry>(GuestHandle(calls), index)?;
        let rest = || Stop::Restart([at.0, count.saturating_sub(index), args[2], args[3], args[4]]);
        // A call before this one may have given the CPU away.
        if index != 0 && (was_long || current.reschedule.get()) {
            return Err(rest());
        }
        let entry: MulticallEntry = guest_memory::read_in_place(machine, current, at)?;
        was_long = is_long(entry.op);
        let [a0, a1, a2, a3, a4, a5] = entry.args;
        match nested(machine, current, entry.op, [a0, a1, a2, a3, a4]) {
            Outcome::Done(result) => {
                let result_at = at.0.checked_add(RESULT).map(GuestHandle).ok_or(Errno::Efault)?;
                guest_memory::write(machine, current, result_at, &result)?;
            }
            Outcome::Restart([b0, b1, b2, b3, b4]) => {
                // What is left of it is the entry that the next run begins with.
                let left = MulticallEntry { args: [b0, b1, b2, b3, b4, a5], ..entry };
                guest_memory::write(machine, current, at, &left)?;
                return Err(rest());
            }
        }
    }
    if count <= budget {
        return Ok(0);
    }
    let next = calls.checked_add(budget.wrapping_mul(ENTRY)).ok_or(Errno::Efault)?;
    Err(Stop::Restart([next, count.wrapping_sub(budget), args[2], args[3], args[4]]))
}

/// Whether a call may use up a budget of its own, or look at a whole table.
fn is_long(call: u64) -> bool {
    match Hypercall::from_number(call) {
        Some(
            Hypercall::GrantTableOp
            | Hypercall::MemoryOp
            | Hypercall::EventChannelOp
            | Hypercall::ConsoleIo
            | Hypercall::MmuUpdate
            | Hypercall::UpdateVaMapping
            | Hypercall::MmuExtOp,
        )
        // The control domain's, and what is refused.
        | None => true,
        Some(
            Hypercall::Multicall
            | Hypercall::XenVersion
            | Hypercall::VmAssist
            | Hypercall::VcpuOp
            | Hypercall::SchedOp
            | Hypercall::HvmOp,
        ) => false,
    }
}
