//! Mapping and unmapping grants.
//!
//! A mapping is a use of the reference ([`super::pin`]), a handle, and an entry in the mapper's stage 2. A mapping whose guest frame
//! was since given to something else keeps its use until its handle is given back, as in Xen.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use pv_abi::grant::{GrantStatus, MapFlags, MapGrantRef, UnmapGrantRef};
use pv_abi::{DomId, GrantHandle};

use super::active::{Track, Use};
use super::pin::{Purpose, pin, unpin, unpin_seen};
use crate::addr::{Gfn, Ipa, Mfn};
use crate::domain::{Domain, DomainState, lock_after, lock_two};
use crate::hardware::Hardware;
use crate::lock::Guard;
use crate::machine::{Current, Machine};
use crate::stage2::{Kind, Mapping, Stage2};

/// The locks of mapper and granter, which may be one domain.
struct Both<'a> {
    mapper: Guard<'a, DomainState>,
    granter: Option<Guard<'a, DomainState>>,
}

impl<'a> Both<'a> {
    fn lock(mapper: &'a Domain, granter: &'a Domain) -> Self {
        let (mapper, granter) = lock_two(mapper, granter);
        Self { mapper, granter }
    }

    fn granter(&mut self) -> &mut DomainState {
        match self.granter.as_mut() {
            Some(granter) => granter,
            None => &mut self.mapper,
        }
    }
}

/// Maps one grant; on success `op` has the handle and the machine address.
pub(super) fn map<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    op: &mut MapGrantRef,
) -> Result<(), GrantStatus> {
    let flags = op.flags;
    let has = |flag: MapFlags| flags & flag.bits() != 0;
    if !has(MapFlags::HOST_MAP) && !has(MapFlags::DEVICE_MAP) {
        return Err(GrantStatus::BadGntref);
    }
    if has(MapFlags::DEVICE_MAP) || has(MapFlags::APPLICATION_MAP) || has(MapFlags::CONTAINS_PTE) {
        return Err(GrantStatus::GeneralError);
    }
    let granter = machine.domain(op.dom).ok_or(GrantStatus::BadDomain)?;
    if !current.domain.may_talk_to(granter) {
        return Err(GrantStatus::PermissionDenied);
    }
    let how = if has(MapFlags::READONLY) { Use::Read } else { Use::Write };
    let kind = match how {
        Use::Read if crate::seeded!("xsa-234") => Kind::GrantWritable,
        Use::Read => Kind::GrantReadOnly,
        Use::Write => Kind::GrantWritable,
    };

    let mut both = Both::lock(current.domain, granter);
    let handle = both.mapper.grants.free_handle(&machine.hw, &machine.frames, current.domain.id);
    let handle = handle.ok_or(GrantStatus::NoSpace)?;
    let mfn = pin(machine, current, granter, both.granter(), op.gref, how, Purpose::Map)?;
    // Flags that mean nothing here are refused only now, as in Xen.
    let known = flags & !MapFlags::READONLY.bits() == MapFlags::HOST_MAP.bits();
    let gfn = Ipa::new(op.host_addr).map(Ipa::frame).filter(|_| known);
    let slot = gfn.and_then(|gfn| {
        let slot = both.mapper.stage2.prepare_here(&machine.hw, &machine.frames, gfn).ok()?;
        let there = slot.current(&machine.hw);
        is_vacant(there).then_some((gfn, slot, there))
    });
    let Some((gfn, slot, there)) = slot else {
        if !crate::seeded!("xsa-224d") {
            unpin(machine, current, granter, both.granter(), op.gref, how);
        }
        return Err(GrantStatus::GeneralError);
    };

    // From here on nothing fails.
    if there.is_none() {
        slot.fill(&machine.hw, mfn, kind);
    } else if let Some(replaced) = slot.commit(&machine.hw, mfn, kind) {
        // It stays the domain's, in no place.
        machine.frames.table.set_home(replaced.mfn, None);
    }
    let mapping = Track::Mapped { granter: granter.id, gref: op.gref, gfn, writable: how == Use::Write };
    both.mapper.grants.track(&machine.hw, handle, mapping);
    op.handle = handle;
    op.dev_bus_addr = mfn.base().get();
    Ok(())
}

/// Whether a grant may be mapped over what is there: the domain's own memory gives way, as in Xen; other grants and devices do not (Xen
/// replaces them too, and their handles can then not be given back).
fn is_vacant(there: Option<Mapping>) -> bool {
    match there.map(|mapping| mapping.kind) {
        None | Some(Kind::Ram | Kind::Data | Kind::Shared) => true,
        Some(Kind::Table) if crate::seeded!("grant-over-table") => true,
        Some(Kind::GrantWritable | Kind::GrantReadOnly | Kind::Device | Kind::Table | Kind::Text) => false,
    }
}

/// Undoes a mapping. Without an address nothing is undone, and that succeeds, as in Xen.
pub(super) fn unmap<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    op: &UnmapGrantRef,
) -> Result<(), GrantStatus> {
    // The granter is known only by looking under the lock. Where the order of ids makes it give the lock back for both, the mapping is looked at again.
    let mapper = current.domain.state.lock();
    let mut seen = mapper.grants.tracked(&machine.hw, op.handle).ok_or(GrantStatus::BadHandle)?;
    if matches!(seen, Track::Orphan { .. }) {
        drop(mapper);
        return unmap_orphan(machine, current, op);
    }
    let granter = machine.domain(granter_of(seen)).ok_or(GrantStatus::BadHandle)?;
    let mut both = if let Some(second) = lock_after(current.domain, granter) {
        Both { mapper, granter: second }
    } else {
        drop(mapper);
        let both = Both::lock(current.domain, granter);
        seen = both.mapper.grants.tracked(&machine.hw, op.handle).ok_or(GrantStatus::BadHandle)?;
        both
    };
    let (gref, gfn, how) = match seen {
        Track::Mapped { granter: now, gref, gfn, writable } if now == granter.id => {
            (gref, gfn, if writable { Use::Write } else { Use::Read })
        }
        // Its granter has just died.
        Track::Orphan { .. } => {
            drop(both);
            return unmap_orphan(machine, current, op);
        }
        Track::Mapped { .. } | Track::Free(_) => return Err(GrantStatus::BadHandle),
    };
    if op.host_addr == 0 {
        return Ok(());
    }
    if Ipa::new(op.host_addr).map(Ipa::frame) != Some(gfn) {
        return Err(GrantStatus::GeneralError);
    }
    let active = both.granter().grants.active(machine, gref);
    vacate(machine, &both.mapper.stage2, gfn, active.and_then(|active| active.mfn()))?;
    both.mapper.grants.untrack_seen(&machine.hw, op.handle);
    if let Some(active) = active {
        unpin_seen(machine, current, granter, both.granter(), (gref, active), how);
    }
    Ok(())
}

/// Ends the mapping of a grant at a place. Nothing there is fine: a grant has an entry of its own, it was mapped as a page.
///
/// # Errors
/// `GNTST_general_error`: something else is there by now.
#[inline(never)]
fn vacate<H: Hardware>(
    machine: &Machine<H>,
    stage2: &Stage2,
    gfn: Gfn,
    frame: Option<Mfn>,
) -> Result<(), GrantStatus> {
    let slot = stage2.page(&machine.hw, gfn);
    let there = match &slot {
        Some(slot) => slot.current(&machine.hw),
        None => stage2.lookup(&machine.hw, gfn),
    };
    match there.map(|mapping| (mapping.kind, frame == Some(mapping.mfn))) {
        Some((Kind::GrantWritable | Kind::GrantReadOnly, true)) => {
            if let Some(slot) = slot
                && !crate::seeded!("xsa-218c")
            {
                slot.empty(&machine.hw);
            }
            Ok(())
        }
        Some((
            Kind::GrantWritable
            | Kind::GrantReadOnly
            | Kind::Ram
            | Kind::Shared
            | Kind::Device
            | Kind::Data
            | Kind::Table
            | Kind::Text,
            _,
        )) => Err(GrantStatus::GeneralError),
        None => Ok(()),
    }
}

/// Undoes a mapping of a frame whose owner is no more.
#[cold]
fn unmap_orphan<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    op: &UnmapGrantRef,
) -> Result<(), GrantStatus> {
    let mut state = current.domain.state.lock();
    let Some(Track::Orphan { frame, gfn, .. }) = state.grants.tracked(&machine.hw, op.handle) else {
        return Err(GrantStatus::BadHandle);
    };
    if op.host_addr == 0 {
        return Ok(());
    }
    if Ipa::new(op.host_addr).map(Ipa::frame) != Some(gfn) {
        return Err(GrantStatus::GeneralError);
    }
    let mfn = machine.frames.table.base().checked_add(u64::from(frame)).ok_or(GrantStatus::BadHandle)?;
    vacate(machine, &state.stage2, gfn, Some(mfn))?;
    state.grants.untrack(&machine.hw, op.handle);
    // Unmapped and flushed.
    let _ = machine.frames.release_orphan(mfn);
    Ok(())
}

/// Whether a handle names a mapping of the caller's.
pub(super) fn names_mapping<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    handle: GrantHandle,
) -> bool {
    current.domain.state.lock().grants.tracked(&machine.hw, handle).is_some()
}

fn granter_of(track: Track) -> DomId {
    match track {
        Track::Mapped { granter, .. } => granter,
        Track::Orphan { .. } | Track::Free(_) => DomId::INVALID,
    }
}
