//! A domain's grant table: the frames it shares with the hypervisor, what is in use of it, and what the domain has mapped of others.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use pv_abi::grant::ENTRIES_PER_FRAME;
use pv_abi::{Errno, GrantHandle, GrantRef};

use super::active::{Active, Track};
use crate::addr::{FrameAddr, Mfn};

/// A frame of the shared table, once the table has grown to it. Where the domain has it is the frame table's to know
/// (`FrameTable::home`).
pub type SharedFrame = Option<Mfn>;

/// The storage of a domain's table, sized by its quota at boot.
#[derive(Debug)]
pub struct GrantTables {
    /// One for each frame that the table may have.
    pub shared: &'static mut [SharedFrame],
    /// [`ENTRIES_PER_FRAME`] for each of them.
    pub active: &'static mut [Active],
    /// Mappings of other domains' grants that the domain may hold at once.
    pub maptrack: &'static mut [Track],
}

/// A domain's grant table; under its lock.
#[derive(Debug)]
pub struct GrantState {
    pub(super) tables: GrantTables,
    /// Frames that the table has now.
    pub(super) frames: u32,
    /// Head of the free mappings, as handle + 1; 0 for none.
    pub(super) free_track: u32,
    /// Mappings that were ever used: those from here on are free without being linked.
    pub(super) used_tracks: u32,
}

impl GrantState {
    /// An empty table. It gets its first frame by [`Self::append`], as Xen's has one from the start.
    pub const fn new(tables: GrantTables) -> Self {
        Self { tables, frames: 0, free_track: 0, used_tracks: 0 }
    }

    /// Frames that it has.
    pub const fn frames(&self) -> u32 {
        self.frames
    }

    /// Frames that it may have.
    pub fn max_frames(&self) -> u32 {
        let by_active = self.tables.active.len().wrapping_shr(ENTRIES_PER_FRAME.trailing_zeros());
        u32::try_from(self.tables.shared.len().min(by_active)).unwrap_or(u32::MAX)
    }

    /// Entries that it has.
    pub const fn entries(&self) -> u32 {
        self.frames.saturating_mul(ENTRIES_PER_FRAME)
    }

    /// Makes a cleared frame of the hypervisor the table's next.
    ///
    /// # Errors
    /// `-EINVAL` when the table may not grow; the frame is then still the caller's.
    pub fn append(&mut self, mfn: Mfn) -> Result<(), Errno> {
        if self.frames >= self.max_frames() {
            return Err(Errno::Einval);
        }
        let index = usize::try_from(self.frames).map_err(|_| Errno::Einval)?;
        let slot = self.tables.shared.get_mut(index).ok_or(Errno::Einval)?;
        *slot = Some(mfn);
        self.frames = self.frames.saturating_add(1);
        Ok(())
    }

    /// Frame `index` of the table, if it has grown that far.
    pub fn frame(&self, index: u32) -> Option<Mfn> {
        *self.tables.shared.get(usize::try_from(index).ok()?)?
    }

    /// Which frame of the table a frame is.
    pub fn index_of(&self, mfn: Mfn) -> Option<u32> {
        let position = self.tables.shared.iter().position(|slot| *slot == Some(mfn))?;
        u32::try_from(position).ok()
    }

    /// Takes the table's last frame back, if none of its entries is in use and more than `keep` are left: undoes
    /// [`Self::append`].
    pub(super) fn remove_last(&mut self, keep: u32) -> Option<Mfn> {
        let index = self.frames.checked_sub(1).filter(|index| *index >= keep)?;
        let mfn = self.tables.shared.get_mut(usize::try_from(index).ok()?)?.take()?;
        self.frames = index;
        Some(mfn)
    }

    /// Where an entry's 8 bytes are.
    pub(super) fn entry_at(&self, gref: GrantRef) -> Option<FrameAddr> {
        let mfn = self.frame(gref.0 / ENTRIES_PER_FRAME)?;
        let offset = usize::try_from(gref.0 % ENTRIES_PER_FRAME).ok()?.checked_mul(8)?;
        FrameAddr::new(mfn, offset)
    }

    /// What is in use of a reference; `None` when it is not in the table.
    pub fn active(&self, gref: GrantRef) -> Option<&Active> {
        if gref.0 >= self.entries() {
            return None;
        }
        self.tables.active.get(usize::try_from(gref.0).ok()?)
    }

    /// [`Self::active`], to change.
    pub(super) fn active_mut(&mut self, gref: GrantRef) -> Option<&mut Active> {
        if gref.0 >= self.entries() {
            return None;
        }
        self.tables.active.get_mut(usize::try_from(gref.0).ok()?)
    }

    /// The mappings that the domain holds, as (handle, mapping); for the self-check.
    pub fn mappings(&self) -> impl Iterator<Item = (u32, &Track)> {
        (0_u32..).zip(self.tables.maptrack.iter()).filter(|(_, track)| !matches!(track, Track::Free(_)))
    }

    /// The references in use; for the self-check.
    pub fn pinned(&self) -> impl Iterator<Item = (GrantRef, &Active)> {
        (0_u32..).map(GrantRef).zip(self.tables.active.iter()).filter(|(_, active)| active.is_pinned())
    }

    /// A handle that is free, without taking it.
    pub(super) fn free_handle(&self) -> Option<GrantHandle> {
        let next = match self.free_track.checked_sub(1) {
            Some(linked) => linked,
            None => self.used_tracks,
        };
        (usize::try_from(next).ok()? < self.tables.maptrack.len()).then_some(GrantHandle(next))
    }

    /// Lets a handle that [`Self::free_handle`] gave name a mapping.
    pub(super) fn track(&mut self, handle: GrantHandle, mapping: Track) {
        let Some(slot) = usize::try_from(handle.0).ok().and_then(|index| self.tables.maptrack.get_mut(index))
        else {
            return;
        };
        match *slot {
            Track::Free(next) if self.free_track == handle.0.wrapping_add(1) => self.free_track = next,
            Track::Free(_) => self.used_tracks = self.used_tracks.max(handle.0.wrapping_add(1)),
            Track::Mapped { .. } => return,
        }
        *slot = mapping;
    }

    /// What a handle names.
    pub(super) fn tracked(&self, handle: GrantHandle) -> Option<Track> {
        match *self.tables.maptrack.get(usize::try_from(handle.0).ok()?)? {
            Track::Free(_) => None,
            mapped @ Track::Mapped { .. } => Some(mapped),
        }
    }

    /// Frees a handle.
    pub(super) fn untrack(&mut self, handle: GrantHandle) {
        let Some(slot) = usize::try_from(handle.0).ok().and_then(|index| self.tables.maptrack.get_mut(index))
        else {
            return;
        };
        if matches!(slot, Track::Mapped { .. }) {
            *slot = Track::Free(self.free_track);
            self.free_track = handle.0.wrapping_add(1);
        }
    }
}
