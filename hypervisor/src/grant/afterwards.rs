//! What becomes of grants when a domain dies: it lets go of what it has mapped of others, and what others have mapped of it becomes theirs to
//! let go.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use pv_abi::GrantHandle;

use super::active::{Track, Use};
use super::pin::unpin;
use crate::domain::{Domain, lock_two};
use crate::hardware::Hardware;
use crate::machine::{Current, Machine};

/// Handles that one step looks at.
const HANDLES: u32 = 64;
/// Mappings that one step undoes or hands over.
const MAPPINGS: u32 = 12;

/// Lets go of mappings of a domain that is dying, from handle `from` on; `current` stands for it. Its address space is used and cached nowhere any
/// more. Returns where to go on, `None` when there is nothing left.
pub(crate) fn give_up<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, from: u32) -> Option<u32> {
    let mapper = current.domain;
    let mut left = MAPPINGS;
    for handle in from..from.saturating_add(HANDLES) {
        let (seen, used) = {
            let state = mapper.state.lock();
            (state.grants.tracked(&machine.hw, GrantHandle(handle)), state.grants.used_tracks())
        };
        if handle >= used {
            return None;
        }
        let Some(track) = seen else { continue };
        match left.checked_sub(1) {
            Some(rest) => left = rest,
            None => return Some(handle),
        }
        match track {
            Track::Mapped { granter, gref, writable, .. } => {
                let Some(granter) = machine.domain(granter) else { continue };
                let (mut state, mut other) = lock_two(mapper, granter);
                // One domain dies at a time: its granter can have made an orphan of it meanwhile only before this step.
                state.grants.untrack(&machine.hw, GrantHandle(handle));
                let how = if writable { Use::Write } else { Use::Read };
                let granter_state = other.as_deref_mut().unwrap_or(&mut state);
                unpin(machine, current, granter, granter_state, gref, how);
            }
            Track::Orphan { frame, .. } => {
                mapper.state.lock().grants.untrack(&machine.hw, GrantHandle(handle));
                if let Some(mfn) = machine.frames.table.base().checked_add(u64::from(frame)) {
                    let _ = machine.frames.release_orphan(mfn);
                }
            }
            Track::Free(_) => {}
        }
    }
    Some(from.saturating_add(HANDLES))
}

/// Makes orphans of the frames that `mapper` has mapped of a domain that is dying, from handle `from` of the mapper's on. Nobody begins to use a
/// grant of it any more, and no copy is under way. Returns where to go on, `None` when there is nothing left, and how many mappings were handed over.
pub(crate) fn orphan<H: Hardware>(
    machine: &Machine<H>,
    granter: &Domain,
    mapper: &Domain,
    from: u32,
) -> (Option<u32>, u32) {
    let (mut own, theirs) = lock_two(granter, mapper);
    let Some(mut theirs) = theirs else { return (None, 0) };
    let used = theirs.grants.used_tracks();
    if theirs.grants.mapped() == 0 || from >= used {
        return (None, 0);
    }
    let mut held: u32 = 0;
    let next = from.saturating_add(HANDLES);
    for handle in (from..used.min(next)).map(GrantHandle) {
        let Some(Track::Mapped { granter: of, gref, gfn, writable }) =
            theirs.grants.tracked(&machine.hw, handle)
        else {
            continue;
        };
        if of != granter.id {
            continue;
        }
        let Some(mut active) = own.grants.active(machine, gref) else { continue };
        let Some(mfn) = active.mfn() else { continue };
        let place = mfn.get().checked_sub(machine.frames.table.base().get());
        let Some(frame) = place.and_then(|place| u32::try_from(place).ok()) else { continue };
        if machine.frames.orphan(mfn, granter.id).is_ok() {
            theirs.grants.retrack(&machine.hw, handle, Track::Orphan { frame, gfn, writable });
            active.unpin(if writable { Use::Write } else { Use::Read });
            own.grants.set_active(machine, gref, active);
            held = held.saturating_add(1);
        }
    }
    ((next < used).then_some(next), held)
}
