//! Taking and giving back a use of a reference: the shared entry's status bits, the count, and the frame's reference.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use pv_abi::grant::{ENTRY_SIZE, EntryFlags, GTF_TYPE_MASK, GrantStatus};
use pv_abi::{DomId, GrantRef};

use super::active::{Active, Use};
use crate::addr::{FrameAddr, Gfn, Mfn};
use crate::domain::{Domain, DomainState};
use crate::evtchn::word_contended;
use crate::hardware::{Contended, Hardware};
use crate::machine::{Current, Machine};
use crate::stage2;

/// Times that a guest may change an entry's flags while they are being set.
const TRIES: u32 = 5;
/// `GTF_sub_page`, which version 1 does not have.
const SUB_PAGE: u16 = 1 << 8;
const _: () = assert!(ENTRY_SIZE == 8);

/// Uses `gref` of `granter` once, for the caller's domain: afterwards the entry says so, the count is one more, and the frame has a
/// reference for as long as there is any use. The caller holds the granter's lock; `state` is what is under it.
///
/// # Errors
/// Xen's status; nothing is changed then, except that the entry may have lost status bits that nobody uses.
pub(super) fn pin<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    granter: &Domain,
    state: &mut DomainState,
    gref: GrantRef,
    how: Use,
    purpose: Purpose,
) -> Result<Mfn, GrantStatus> {
    let user = current.domain.id;
    if !granter.life.can_give() {
        return Err(GrantStatus::BadDomain);
    }
    let (at, record) = state.grants.places(gref).ok_or(GrantStatus::BadGntref)?;
    let base = machine.frames.table.base();
    let mut active = Active::unpack(machine.hw.load_u64(record), base);
    let foreign = active.domid != user && !crate::seeded!("grant-of-another");
    if active.is_pinned() && (foreign || active.is_full(how)) {
        return Err(GrantStatus::GeneralError);
    }
    let first = !active.is_pinned();
    let marks = first || (how == Use::Write && active.writes == 0);
    if marks {
        set_status(machine, current, granter, at, first, how, purpose, user)?;
    }
    let found = match active.mfn() {
        None => named(machine, granter, at).and_then(|mfn| {
            let taken = machine.frames.table.reference(mfn, granter.id);
            taken.map(|()| mfn).map_err(|_| GrantStatus::BadPage)
        }),
        Some(_) if crate::seeded!("xsa-500") && purpose == Purpose::Copy => named(machine, granter, at),
        Some(held) if marks && purpose == Purpose::Copy => named(machine, granter, at)
            .and_then(|mfn| if mfn == held { Ok(held) } else { Err(GrantStatus::GeneralError) }),
        Some(held) => Ok(held),
    };
    match found {
        Ok(mfn) => {
            active.frame = mfn;
            active.domid = user;
            active.pin(how);
            machine.hw.store_u64(record, active.pack(base));
        }
        Err(_) => reduce_status(machine, current, granter, at, active, how),
    }
    found
}

/// What a reference is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    /// Mapping: takes the frame that is in use already, whatever the entry says by now.
    Map,
    /// Copying: a use that changes the entry's status looks at the entry's frame again.
    Copy,
}

/// Gives a use back. The caller holds the granter's lock.
#[inline]
pub(super) fn unpin<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    granter: &Domain,
    state: &mut DomainState,
    gref: GrantRef,
    how: Use,
) {
    if let Some(active) = state.grants.active(machine, gref) {
        unpin_seen(machine, current, granter, state, (gref, active), how);
    }
}

/// [`unpin`] of a reference whose uses were just read, under the same hold of the lock.
#[inline(never)]
pub(super) fn unpin_seen<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    granter: &Domain,
    state: &mut DomainState,
    (gref, active): (GrantRef, Active),
    how: Use,
) {
    let mut active = active;
    let (Some(mfn), Some((at, record))) = (active.mfn(), state.grants.places(gref)) else { return };
    active.unpin(how);
    machine.hw.store_u64(record, active.pack(machine.frames.table.base()));
    if !active.is_pinned() || crate::seeded!("xsa-218b") {
        // The first use took it.
        let _ = machine.frames.table.release(mfn);
    }
    reduce_status(machine, current, granter, at, active, how);
}

/// The frame that an entry names, if it is the granter's own RAM. The entry is read once.
fn named<H: Hardware>(machine: &Machine<H>, granter: &Domain, at: FrameAddr) -> Result<Mfn, GrantStatus> {
    let frame = machine.hw.load_u64(at) >> 32;
    own_ram(machine, granter, frame).ok_or(GrantStatus::BadPage)
}

/// A domain's frame of RAM at a guest frame number.
pub(crate) fn own_ram<H: Hardware>(machine: &Machine<H>, domain: &Domain, gfn: u64) -> Option<Mfn> {
    let mapping = stage2::lookup(&machine.hw, domain.stage2_root, Gfn::new(gfn)?)?;
    mapping.kind.is_own_data().then_some(mapping.mfn)
}

/// Sets `GTF_reading`, and `GTF_writing` for writing, in an entry that grants it to `user`; a few changes by the granter meanwhile are
/// its right.
#[expect(clippy::too_many_arguments, reason = "one entry, looked at from all sides")]
fn set_status<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    granter: &Domain,
    at: FrameAddr,
    first: bool,
    how: Use,
    purpose: Purpose,
    user: DomId,
) -> Result<(), GrantStatus> {
    let kind_mask = match purpose {
        Purpose::Map => GTF_TYPE_MASK | SUB_PAGE,
        Purpose::Copy => GTF_TYPE_MASK,
    };
    let marks = match how {
        Use::Read => EntryFlags::READING,
        Use::Write => EntryFlags::READING | EntryFlags::WRITING,
    };
    let mut header = machine.hw.load_u32(at);
    for _ in 0..TRIES {
        #[expect(clippy::cast_possible_truncation, reason = "the two halves of the header")]
        let (flags, domid) = (header as u16, DomId((header >> 16) as u16));
        if first && (flags & kind_mask != EntryFlags::PERMIT_ACCESS.bits() || domid != user) {
            return Err(GrantStatus::GeneralError);
        }
        let read_only = flags & EntryFlags::READONLY.bits() != 0 && !crate::seeded!("grant-read-only");
        if how == Use::Write && read_only {
            return Err(GrantStatus::GeneralError);
        }
        match machine.hw.compare_exchange_u32(at, header, header | u32::from(marks.bits())) {
            Ok(before) if before == header => return Ok(()),
            Ok(before) => header = before,
            Err(Contended) => {
                word_contended(machine, current, granter);
                return Err(GrantStatus::GeneralError);
            }
        }
    }
    Err(GrantStatus::GeneralError)
}

/// Takes away the status bits that no use needs any more, after a use of kind `how` has gone.
fn reduce_status<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    granter: &Domain,
    at: FrameAddr,
    active: Active,
    how: Use,
) {
    let mut bits = EntryFlags::empty();
    if !active.is_pinned() || crate::seeded!("xsa-230") {
        bits |= EntryFlags::READING;
    }
    if how == Use::Write && active.writes == 0 {
        bits |= EntryFlags::WRITING;
    }
    // The flags are the low half-word of the entry.
    if !bits.is_empty() && machine.hw.clear_u64(at, u64::from(bits.bits())) == Err(Contended) {
        word_contended(machine, current, granter);
    }
}
