//! Cache maintenance of frames that a domain has, or uses by a grant.
//!
//! Who has a grant is known to the granter: its words for references in use are looked through, as Xen does, and not what the caller has mapped,
//! of which there may be eight times as many. A table has 32,768 references, so a look stops and goes on where it was; the place is in the bits of
//! the command above the operation.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use pv_abi::grant::CacheFlush;
use pv_abi::{Errno, GuestHandle, PAGE_SIZE};

use super::CMD_MASK;
use super::table::LOOK;
use crate::addr::{Mfn, Pa};
use crate::domain::Domain;
use crate::frame::Role;
use crate::guest_memory;
use crate::hardware::Hardware;
use crate::hypercall::{Answer, Args, Stop, low_u32};
use crate::machine::{Current, Machine};
use crate::stretch::Stretch;

/// Units of one run: an element with the first [`LOOK`] references that are looked at for it is one, and so are the next ones each.
const BUDGET: u32 = 16;
/// `GNTTAB_CACHE_CLEAN` and `GNTTAB_CACHE_INVAL`.
const OPERATIONS: u32 = 3;
/// Xen stops at multiples of this, and has the number itself in the command; in between are looks, counted by the bits above.
const STEP: u32 = CMD_MASK + 1;
const REFERENCES: u32 = (1 << LOOKS_SHIFT) - STEP;
const LOOKS_SHIFT: u32 = 20;

/// The reference at which a command says to go on; beyond every table for what no run has left there.
const fn from_command(progress: u32) -> u32 {
    (progress & REFERENCES).saturating_add((progress >> LOOKS_SHIFT).saturating_mul(LOOK))
}

/// The reverse, of a multiple of [`LOOK`].
const fn to_command(reference: u32) -> u32 {
    reference & REFERENCES | ((reference & CMD_MASK) / LOOK) << LOOKS_SHIFT
}

/// What is left of a run.
struct Left {
    units: u32,
    /// It has taken one.
    begun: bool,
    run: Stretch,
    /// Where the element in hand goes on.
    from: u32,
}

impl Left {
    /// Takes a unit, if there is one, and the time for it.
    fn take<H: Hardware>(&mut self, machine: &Machine<H>) -> bool {
        let left = self.units.checked_sub(1).filter(|_| !self.begun || !self.run.is_long(machine));
        self.begun = true;
        self.units = left.unwrap_or(0);
        left.is_some()
    }
}

/// `GNTTABOP_cache_flush` of a batch. Its progress is in the command.
pub(super) fn cache_flush<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, args: &Args) -> Answer {
    let [cmd, uop, count, a3, a4] = *args;
    let (cmd, count) = (low_u32(cmd), low_u32(count));
    let mut left = Left {
        units: machine.hw.budget(BUDGET),
        begun: false,
        run: Stretch::begin(machine, current),
        from: from_command(cmd & !CMD_MASK),
    };
    // Each turn takes a unit.
    for index in 0..count {
        let at = guest_memory::element::<CacheFlush>(GuestHandle(uop), index.into())?;
        let done = left.take(machine)
            && element(machine, current, &guest_memory::read(machine, current, at)?, &mut left)?;
        if !done {
            let cmd = cmd & CMD_MASK | to_command(left.from);
            return Err(Stop::Restart([cmd.into(), at.0, count.wrapping_sub(index).into(), a3, a4]));
        }
        left.from = 0;
    }
    Ok(0)
}

/// Cleans and invalidates the data cache over a frame. Whatever part and operation is asked, the whole frame is cleaned and invalidated: that
/// is always allowed to happen, and never loses data. False when there is more to look at first.
fn element<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    op: &CacheFlush,
    left: &mut Left,
) -> Result<bool, Errno> {
    let (offset, length) = (usize::from(op.offset), usize::from(op.length));
    let fits = offset < PAGE_SIZE && offset.checked_add(length).is_some_and(|end| end <= PAGE_SIZE);
    if !fits || op.op & !OPERATIONS != 0 {
        return Err(Errno::Einval);
    }
    if length == 0 || op.op == 0 {
        // Nothing is never stopped in the middle.
        return if left.from == 0 { Ok(true) } else { Err(Errno::Eilseq) };
    }
    let mfn = Pa::new(op.addr_or_ref).ok_or(Errno::Einval)?.frame();
    let frame =
        machine.frames.table.state(mfn).filter(|state| state.role != Role::NotRam).ok_or(Errno::Einval)?;
    let owner = machine.domain(frame.owner).ok_or(Errno::Eperm)?;
    if owner.id != current.domain.id {
        // A use holds a reference to its frame.
        if frame.count == 0 {
            return Err(Errno::Einval);
        }
        if !look(machine, current, owner, mfn, left)? {
            return Ok(false);
        }
    }
    machine.hw.clean_to_memory(mfn);
    Ok(true)
}

/// Looks for a reference to a frame of its owner's that the caller uses; false when there is more to look at.
///
/// # Errors
/// `-EINVAL` when there is none.
fn look<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    owner: &Domain,
    mfn: Mfn,
    left: &mut Left,
) -> Result<bool, Errno> {
    // Each turn but the first, which is the element's, takes a unit. The owner may be any domain: its lock is held for one look at a time.
    loop {
        let state = owner.state.lock();
        if left.from >= state.grants.entries() {
            return Err(Errno::Einval);
        }
        if state.grants.is_used_from(machine, left.from, current.domain.id, mfn) {
            return Ok(true);
        }
        drop(state);
        left.from = left.from.saturating_add(LOOK);
        if !left.take(machine) {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_survives_the_command_and_xens_places_are_ours() {
        for reference in (0..1 << LOOKS_SHIFT).step_by(LOOK as usize) {
            let command = to_command(reference);
            assert_eq!((from_command(command), command & CMD_MASK), (reference, 0));
        }
        // `GNTTABOP_cache_flush` with the number of a reference, in steps of 4096.
        for step in 0..256 {
            assert_eq!((from_command(step << 12), to_command(step << 12)), (step << 12, step << 12));
        }
        for beyond in [1 << 31, 1 << 30, 0xFFFF_F000] {
            assert!(from_command(beyond) >= 32768);
        }
    }
}
