//! `memory_op`: what a domain has of memory, and where it places the hypervisor's pages that are its own.
//!
//! Invariants
//! 1. A domain changes its own stage 2 only; others' are refused with Xen's numbers (`-ESRCH` for none, `-EPERM` for another).
//! 2. A page of the hypervisor's ([`crate::frame::Role::Shared`]) is mapped at one guest frame at most, as in Xen: a second place is `-EBUSY` until the
//!    first is removed or replaced.
//! 3. A frame of RAM that is replaced or removed here stays the domain's until the domain ends; one that is given back
//!    (`decrease_reservation`) leaves it at once, and only while nobody refers to it.
//! 4. Where a page table or text is, of a domain with paravirtual page tables, nothing else is placed and nothing is taken away.
//! 5. Every call plans first: after the first change to stage 2 it cannot fail. Calls about many pages do one after the other, and tell how
//!    far they came.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]
mod batch;
mod refused;
mod reservation;

use pv_abi::memory::{
    AddToPhysmap, MEMOP_CMD_MASK, MEMOP_EXTENT_SHIFT, MapSpace, MemoryOp, RemoveFromPhysmap,
};
use pv_abi::{DomId, Errno, GuestHandle};

use crate::addr::{Gfn, Mfn};
use crate::domain::{Domain, DomainState};
use crate::grant;
use crate::guest_memory;
use crate::hardware::Hardware;
use crate::hypercall::{Answer, Args, Stop, any_domain, low_u32};
use crate::machine::{Current, Machine};
use crate::stage2::{Kind, MapError, Mapping};
use reservation::Change;

/// What a domain has and may have, in frames of 4 KiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryState {
    /// RAM that is the domain's.
    pub frames: u64,
    /// RAM that it may have.
    pub max_frames: u64,
}

impl MemoryState {
    /// A domain without RAM that may have `max_frames`.
    pub const fn new(max_frames: u64) -> Self {
        Self { frames: 0, max_frames }
    }

    /// Counts `frames` more as the domain's; false, and nothing changed, when it may not have them.
    #[must_use]
    pub fn charge(&mut self, frames: u64) -> bool {
        match self.frames.checked_add(frames) {
            Some(sum) if sum <= self.max_frames || crate::seeded!("xsa-385") => {
                self.frames = sum;
                true
            }
            Some(_) | None => false,
        }
    }

    /// Counts `frames` as the domain's no more.
    pub fn discharge(&mut self, frames: u64) {
        self.frames = self.frames.saturating_sub(frames);
    }
}

impl From<MapError> for Errno {
    /// As Xen's `p2m_set_entry` answers.
    fn from(error: MapError) -> Self {
        match error {
            MapError::BadGfn => Self::Einval,
            MapError::TableLimit | MapError::OutOfMemory => Self::Enomem,
            MapError::Occupied => Self::Ebusy,
        }
    }
}

/// The `memory_op` call.
///
/// # Errors
/// Xen's errno for each operation.
pub fn memory_op<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, args: &Args) -> Answer {
    let number = u32::try_from(args[0] & MEMOP_CMD_MASK).map_err(|_| Errno::Enosys)?;
    let operation = MemoryOp::from_number(number).ok_or(Errno::Enosys)?;
    let change = match operation {
        MemoryOp::IncreaseReservation => Change::Increase,
        MemoryOp::DecreaseReservation => Change::Decrease,
        MemoryOp::PopulatePhysmap => Change::Populate,
        MemoryOp::MaximumRamPage
        | MemoryOp::CurrentReservation
        | MemoryOp::MaximumReservation
        | MemoryOp::MaximumGpfn
        | MemoryOp::AddToPhysmap
        | MemoryOp::RemoveFromPhysmap
        | MemoryOp::SharingFreedPages
        | MemoryOp::SharingSharedPages
        | MemoryOp::Exchange
        | MemoryOp::ClaimPages
        | MemoryOp::GetVnumainfo
        | MemoryOp::ReservedDeviceMemoryMap
        | MemoryOp::AcquireResource
        | MemoryOp::AddToPhysmapBatch => return other(machine, current, operation, args),
    };
    reservation::adjust(machine, current, change, args)
}

/// Those that are not hot: out of line, for their stack.
#[inline(never)]
fn other<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    operation: MemoryOp,
    args: &Args,
) -> Answer {
    let (cmd, arg) = (args[0], GuestHandle(args[1]));
    let progress = cmd >> MEMOP_EXTENT_SHIFT;
    let number = operation.number();
    match operation {
        MemoryOp::MaximumRamPage => {
            first_time(progress)?;
            Ok(machine.frames.table.end())
        }
        MemoryOp::CurrentReservation => {
            about(machine, current, progress, arg, |domain| domain.state.lock().memory.frames)
        }
        MemoryOp::MaximumReservation => {
            about(machine, current, progress, arg, |domain| domain.state.lock().memory.max_frames)
        }
        MemoryOp::MaximumGpfn => {
            about(machine, current, progress, arg, |domain| domain.state.lock().stage2.highest_gfn().get())
        }
        MemoryOp::AddToPhysmap => {
            let progress = u16::try_from(progress).map_err(|_| Errno::Edom)?;
            let request = guest_memory::read::<AddToPhysmap, H>(machine, current, arg)?;
            add_to_physmap(machine, current, &request, progress, args)?;
            Ok(0)
        }
        MemoryOp::RemoveFromPhysmap => {
            first_time(progress)?;
            let request = guest_memory::read::<RemoveFromPhysmap, H>(machine, current, arg)?;
            remove_from_physmap(machine, current, &request)?;
            Ok(0)
        }
        MemoryOp::IncreaseReservation => reservation::adjust(machine, current, Change::Increase, args),
        MemoryOp::DecreaseReservation => reservation::adjust(machine, current, Change::Decrease, args),
        MemoryOp::PopulatePhysmap => reservation::adjust(machine, current, Change::Populate, args),
        // Without memory sharing Xen on ARM answers 0; it does not take progress away from these numbers, which it knows as ints.
        MemoryOp::SharingFreedPages | MemoryOp::SharingSharedPages
            if u64::from(low_u32(cmd)) != u64::from(number) =>
        {
            Err(Errno::Enosys.into())
        }
        MemoryOp::SharingFreedPages | MemoryOp::SharingSharedPages => Ok(0),
        MemoryOp::Exchange => {
            first_time(progress)?;
            refused::exchange(machine, current, arg)
        }
        MemoryOp::ClaimPages => {
            first_time(progress)?;
            Err(refused::claim_pages(machine, current, arg).into())
        }
        MemoryOp::GetVnumainfo => {
            first_time(progress)?;
            Err(refused::vnuma(machine, current, arg).into())
        }
        MemoryOp::ReservedDeviceMemoryMap => {
            first_time(progress)?;
            refused::reserved_device_map(machine, current, arg)
        }
        MemoryOp::AcquireResource => Err(refused::acquire_resource(machine, current, arg).into()),
        MemoryOp::AddToPhysmapBatch => batch::add_to_physmap_batch(machine, current, args),
    }
}

/// Refuses progress in a call that never restarts.
fn first_time(progress: u64) -> Result<(), Errno> {
    if progress == 0 { Ok(()) } else { Err(Errno::Einval) }
}

/// The domain that the caller names, which must be its own: `-ESRCH` when there is none, `-EPERM` when it is another.
fn own<'m, H: Hardware>(
    machine: &'m Machine<H>,
    current: &Current<'m>,
    id: DomId,
) -> Result<&'m Domain, Errno> {
    let domain = any_domain(machine, current, id).ok_or(Errno::Esrch)?;
    if domain.id == current.domain.id { Ok(domain) } else { Err(Errno::Eperm) }
}

/// The calls that tell a number of a domain (`xen_memory_domain`).
fn about<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    progress: u64,
    arg: GuestHandle,
    number: impl FnOnce(&Domain) -> u64,
) -> Answer {
    first_time(progress)?;
    let id = guest_memory::read::<DomId, H>(machine, current, arg)?;
    Ok(number(own(machine, current, id)?))
}

/// Places one of the hypervisor's pages at a guest frame.
///
/// # Errors
/// As Xen: `-ENOSYS` for spaces that ARM guests do not have, `-EACCES` for devices, `-EINVAL` for an index or guest frame that does
/// not exist, `-EBUSY` for a page that is mapped already, `-ENOMEM` without a frame for a stage-2 table.
pub fn add_to_physmap<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    request: &AddToPhysmap,
    progress: u16,
    args: &Args,
) -> Result<(), Stop> {
    let space = MapSpace::from_number(request.space);
    if space == Some(MapSpace::GmfnForeign) {
        return Err(Errno::Enosys.into());
    }
    let domain = permitted(machine, current, request.domid, space)?;
    if request.gpfn == u64::MAX {
        return Err(Errno::Einval.into());
    }
    if space == Some(MapSpace::GmfnRange) {
        return Ok(gmfn_range(request, progress)?);
    }
    add_one(machine, domain, space, request.idx, request.gpfn, args)
}

/// Xen looks at the domain, then at the space's permission, then at the caller's right to the domain.
fn permitted<'m, H: Hardware>(
    machine: &'m Machine<H>,
    current: &Current<'m>,
    domid: DomId,
    space: Option<MapSpace>,
) -> Result<&'m Domain, Errno> {
    let domain = any_domain(machine, current, domid).ok_or(Errno::Esrch)?;
    if space == Some(MapSpace::DevMmio) {
        return Err(Errno::Eacces);
    }
    if domain.id == current.domain.id { Ok(domain) } else { Err(Errno::Eperm) }
}

/// Places one page of the caller's domain.
fn add_one<H: Hardware>(
    machine: &Machine<H>,
    domain: &Domain,
    space: Option<MapSpace>,
    idx: u64,
    gpfn: u64,
    args: &Args,
) -> Result<(), Stop> {
    match space.ok_or(Errno::Enosys)? {
        MapSpace::SharedInfo => {
            if idx != 0 {
                return Err(Errno::Einval.into());
            }
            Ok(place(machine, &mut domain.state.lock(), domain.shared_info, gpfn)?)
        }
        MapSpace::GrantTable => {
            let mut state = domain.state.lock();
            // Room for the entry of a new frame first: a refusal leaves no table behind that has grown.
            if state.grants.frame(low_u32(idx)).is_none() {
                let at = Gfn::new(gpfn).ok_or(Errno::Einval)?;
                state.stage2.make_room(&machine.hw, &machine.frames, at).map_err(Errno::from)?;
            }
            let frame = grant_frame(machine, domain, &mut state, idx, args)?;
            let placed = place(machine, &mut state, frame, gpfn);
            if crate::seeded!("xsa-235") && placed.is_err() {
                core::mem::forget(state);
            }
            Ok(placed?)
        }
        MapSpace::Gmfn | MapSpace::GmfnRange | MapSpace::GmfnForeign | MapSpace::DevMmio => {
            Err(Errno::Enosys.into())
        }
    }
}

/// Guest frames cannot be moved on ARM: Xen checks the range and refuses its first element.
fn gmfn_range(request: &AddToPhysmap, progress: u16) -> Result<(), Errno> {
    let size = u64::from(request.size);
    if request.size < progress {
        return Err(Errno::Eilseq);
    }
    if request.gpfn.checked_add(size).is_none() || request.idx.checked_add(size).is_none() {
        return Err(Errno::Eoverflow);
    }
    if request.size == progress { Ok(()) } else { Err(Errno::Enosys) }
}

/// Frame `index` of the domain's grant table, which grows up to there, a few frames a run. Xen looks at 32 bits of the index, and answers
/// `-EINVAL` without memory too.
fn grant_frame<H: Hardware>(
    machine: &Machine<H>,
    domain: &Domain,
    state: &mut DomainState,
    index: u64,
    args: &Args,
) -> Result<Mfn, Stop> {
    let index = low_u32(index);
    let frames = index.checked_add(1).ok_or(Errno::Einval)?;
    match grant::grow(machine, domain.id, &mut state.grants, frames, args) {
        Ok(()) => Ok(state.grants.frame(index).ok_or(Errno::Einval)?),
        Err(Stop::Errno(_)) => Err(Errno::Einval.into()),
        Err(restart @ Stop::Restart(_)) => Err(restart),
    }
}

/// Maps a page of the hypervisor's at a guest frame (invariant 2). As Xen does, a page that is mapped already is refused before its new
/// place is looked at.
fn place<H: Hardware>(
    machine: &Machine<H>,
    state: &mut DomainState,
    frame: Mfn,
    number: u64,
) -> Result<(), Errno> {
    let home = machine.frames.table.home(frame);
    let mapped = home.and_then(|home| state.stage2.lookup(&machine.hw, home));
    if mapped.is_some_and(|mapping| mapping.mfn == frame) && !crate::seeded!("xsa-379") {
        return Err(Errno::Ebusy);
    }
    let gfn = Gfn::new(number).ok_or(Errno::Einval)?;
    let slot = state.stage2.prepare(&machine.hw, &machine.frames, gfn)?;
    let held = || slot.current(&machine.hw).is_some_and(|there| there.kind.is_held_in_place());
    if !crate::seeded!("replace-table") && held() {
        return Err(Errno::Ebusy);
    }
    if let Some(replaced) = slot.commit(&machine.hw, frame, Kind::Shared) {
        leave(machine, replaced);
    }
    machine.frames.table.set_home(frame, Some(gfn));
    Ok(())
}

/// Takes RAM or a page of the hypervisor's away from a guest frame.
///
/// # Errors
/// `-ENOENT` when neither is there (grants and devices do not count), `-ENOMEM` when a block cannot be split.
pub fn remove_from_physmap<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    request: &RemoveFromPhysmap,
) -> Result<(), Errno> {
    let domain = own(machine, current, request.domid)?;
    let gfn = Gfn::new(request.gpfn).ok_or(Errno::Enoent)?;
    let mut state = domain.state.lock();
    match state.stage2.lookup(&machine.hw, gfn).ok_or(Errno::Enoent)?.kind {
        Kind::GrantWritable | Kind::GrantReadOnly if crate::seeded!("remove-grant") => {}
        Kind::Table | Kind::Text if !crate::seeded!("remove-table") => return Err(Errno::Ebusy),
        Kind::Ram | Kind::Data | Kind::Shared | Kind::Table | Kind::Text => {}
        Kind::GrantWritable | Kind::GrantReadOnly | Kind::Device => return Err(Errno::Enoent),
    }
    let slot = state.stage2.prepare(&machine.hw, &machine.frames, gfn)?;
    if let Some(removed) = slot.clear(&machine.hw) {
        leave(machine, removed);
    }
    Ok(())
}

/// What was taken out of stage 2 is in no place now, if it was the domain's own (invariant 3). A grant's home is its owner's to
/// know; the reference that it holds stays until the domain gives its handle back.
fn leave<H: Hardware>(machine: &Machine<H>, was: Mapping) {
    match was.kind {
        Kind::Ram | Kind::Data | Kind::Shared => machine.frames.table.set_home(was.mfn, None),
        // Tables and text are not taken out.
        Kind::GrantWritable | Kind::GrantReadOnly | Kind::Device | Kind::Table | Kind::Text => {}
    }
}

#[cfg(test)]
mod tests;
