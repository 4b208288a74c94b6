//! `multicall`: several calls in one. Each entry is read, served and given its result before the next; the whole returns 0 however
//! its calls fared.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use core::mem::offset_of;

use pv_abi::multicall::MulticallEntry;
use pv_abi::{Errno, GuestHandle};

use crate::guest_memory;
use crate::hardware::Hardware;
use crate::hypercall::{Answer, Args, Outcome, Stop, nested};
use crate::machine::{Current, Machine};
use crate::stretch::Stretch;

/// Calls that one run makes at most before it lets interrupts in.
const BUDGET: u32 = 8;
const ENTRY: u64 = size_of::<MulticallEntry>() as u64;
const RESULT: u64 = offset_of!(MulticallEntry, result) as u64;

/// `multicall`.
///
/// # Errors
/// `-EFAULT` when an entry cannot be read or its result not written; those before it are done. Restarts.
#[inline(never)]
pub fn multicall<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, args: &Args) -> Answer {
    let run = Stretch::multicall(machine, current);
    let answer = calls(machine, current, args, run);
    Stretch::end(current);
    answer
}

fn calls<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, args: &Args, run: Stretch) -> Answer {
    let [calls, count, ..] = *args;
    let budget = u64::from(machine.hw.budget(BUDGET));
    for index in 0..count.min(budget) {
        let at = guest_memory::element::<MulticallEntry>(GuestHandle(calls), index)?;
        let rest = || Stop::Restart([at.0, count.saturating_sub(index), args[2], args[3], args[4]]);
        // A call before this one may have given the CPU away, or was long.
        if index != 0 && (current.reschedule.get() || run.begins_no_call(machine)) {
            return Err(rest());
        }
        let entry: MulticallEntry =
            guest_memory::read_in_place::<MulticallEntry, 8, H>(machine, current, at)?;
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
