//! A domain's grant table: the frames it shares with the hypervisor, what is in use of it, and what the domain has mapped of others.
//!
//! What the hypervisor remembers of a domain's grants grows with them, in frames of role [`Role::DomainTable`] charged to the domain: one
//! beside each frame of the shared table, and one for each 512 mappings. They are cleared when they come and stay with the table, as in
//! Xen. No guest sees them.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use pv_abi::grant::ENTRIES_PER_FRAME;
use pv_abi::{DomId, Errno, GrantHandle, GrantRef, PAGE_SIZE};
use zerocopy::IntoBytes;

use super::active::{Active, Track};
use crate::addr::{FrameAddr, Mfn};
use crate::frame::Role;
use crate::frame_alloc::Frames;
use crate::hardware::Hardware;
use crate::machine::Machine;

/// A frame of the shared table, and the one beside it that says what is in use of its entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TableFrame {
    /// Shown to the domain. Where it has it is the frame table's to know ([`crate::frame::FrameTable::home`]).
    pub(super) shared: Mfn,
    /// One word an entry ([`Active`]).
    pub(super) active: Mfn,
}

const WORD: usize = 8;
/// References that are looked at at once.
pub(super) const LOOK: u32 = 64;
/// Mappings that one frame tells of.
pub const TRACKS_PER_FRAME: u32 = 512;
const _: () = assert!(TRACKS_PER_FRAME as usize * WORD == PAGE_SIZE);
const _: () = assert!(ENTRIES_PER_FRAME as usize * WORD == PAGE_SIZE);

/// The storage of a domain's table, sized by its quota at boot.
#[derive(Debug)]
pub struct GrantTables {
    /// One for each frame that the table may have.
    pub frames: &'static mut [Option<TableFrame>],
    /// One for each [`TRACKS_PER_FRAME`] mappings that the domain may hold.
    pub tracks: &'static mut [Option<Mfn>],
    /// Mappings of others' grants that the domain may hold at once.
    pub max_tracks: u32,
}

/// A domain's grant table; under its lock.
#[derive(Debug)]
pub struct GrantState {
    tables: GrantTables,
    /// Frames that the table has now.
    frames: u32,
    /// Head of the free mappings, as handle + 1; 0 for none.
    free_track: u32,
    /// Mappings that were ever used: those from here on are free without being linked.
    used_tracks: u32,
    /// Mappings that it holds.
    mapped: u32,
}

/// Where a word of a table of words is.
fn word_at(frame: Mfn, index: u32) -> Option<FrameAddr> {
    FrameAddr::new(frame, usize::try_from(index % ENTRIES_PER_FRAME).ok()?.checked_mul(WORD)?)
}

impl GrantState {
    /// An empty table. It gets its first frame by [`Self::grow`], as Xen's has one from the start.
    pub const fn new(tables: GrantTables) -> Self {
        Self { tables, frames: 0, free_track: 0, used_tracks: 0, mapped: 0 }
    }

    /// Frames that it has.
    pub const fn frames(&self) -> u32 {
        self.frames
    }

    /// Frames that it may have.
    pub fn max_frames(&self) -> u32 {
        u32::try_from(self.tables.frames.len()).unwrap_or(u32::MAX)
    }

    /// Others' grants that the domain has mapped.
    pub const fn mapped(&self) -> u32 {
        self.mapped
    }

    /// Entries that it has.
    pub const fn entries(&self) -> u32 {
        self.frames.saturating_mul(ENTRIES_PER_FRAME)
    }

    /// Grows to `to` frames of its owner's, or stays as it was. Each frame takes two of the machine's.
    ///
    /// # Errors
    /// `-EINVAL` for more than the table may have, `-ENOMEM`.
    pub fn grow<H: Hardware>(&mut self, hw: &H, frames: &Frames, owner: DomId, to: u32) -> Result<(), Errno> {
        if to > self.max_frames() {
            return Err(Errno::Einval);
        }
        let before = self.frames;
        for index in before..to {
            let slot = usize::try_from(index).ok().and_then(|index| self.tables.frames.get_mut(index));
            let added = slot.zip(TableFrame::allocate(hw, frames, owner));
            let Some((slot, added)) = added else {
                self.shrink(frames, before);
                return Err(Errno::Enomem);
            };
            *slot = Some(added);
            self.frames = index.saturating_add(1);
        }
        Ok(())
    }

    /// Gives back frames that were added in this hold of the lock, of which nobody knows yet.
    fn shrink(&mut self, frames: &Frames, to: u32) {
        for index in (to..self.frames).rev() {
            let slot = usize::try_from(index).ok().and_then(|index| self.tables.frames.get_mut(index));
            if let Some(frame) = slot.and_then(Option::take) {
                frame.free(frames);
            }
        }
        self.frames = self.frames.min(to);
    }

    fn table_frame(&self, index: u32) -> Option<TableFrame> {
        *self.tables.frames.get(usize::try_from(index).ok()?)?
    }

    /// Frame `index` of the shared table, if it has grown that far.
    pub fn frame(&self, index: u32) -> Option<Mfn> {
        Some(self.table_frame(index)?.shared)
    }

    /// Where an entry's 8 bytes are.
    pub(super) fn entry_at(&self, gref: GrantRef) -> Option<FrameAddr> {
        let index = gref.0 / ENTRIES_PER_FRAME;
        let index = if crate::seeded!("xsa-18") { index.min(self.frames.saturating_sub(1)) } else { index };
        word_at(self.frame(index)?, gref.0)
    }

    /// Where an entry's 8 bytes are, and where the word that says what is in use of it ([`Active`]); both stay there while the lock is held.
    #[inline]
    pub(super) fn places(&self, gref: GrantRef) -> Option<(FrameAddr, FrameAddr)> {
        let index = gref.0 / ENTRIES_PER_FRAME;
        let index = if crate::seeded!("xsa-18") { index.min(self.frames.saturating_sub(1)) } else { index };
        let table = self.table_frame(index)?;
        Some((word_at(table.shared, gref.0)?, word_at(table.active, gref.0)?))
    }

    fn active_at(&self, gref: GrantRef) -> Option<FrameAddr> {
        let index = gref.0 / ENTRIES_PER_FRAME;
        let index = if crate::seeded!("xsa-18") { index.min(self.frames.saturating_sub(1)) } else { index };
        word_at(self.table_frame(index)?.active, gref.0)
    }

    /// What is in use of a reference; `None` when it is not in the table.
    pub fn active<H: Hardware>(&self, machine: &Machine<H>, gref: GrantRef) -> Option<Active> {
        let word = machine.hw.load_u64(self.active_at(gref)?);
        Some(Active::unpack(word, machine.frames.table.base()))
    }

    /// Notes what is in use of a reference that is in the table.
    #[inline]
    pub(super) fn set_active<H: Hardware>(&mut self, machine: &Machine<H>, gref: GrantRef, active: Active) {
        if let Some(at) = self.active_at(gref) {
            machine.hw.store_u64(at, active.pack(machine.frames.table.base()));
        }
    }

    /// Shows every reference in use; for the self-check.
    pub fn pinned<H: Hardware>(&self, machine: &Machine<H>, mut visit: impl FnMut(GrantRef, Active)) {
        const CHUNK: usize = 64;
        let base = machine.frames.table.base();
        for first in (0..self.entries()).step_by(CHUNK) {
            let mut words = [0_u64; CHUNK];
            let Some(at) = self.active_at(GrantRef(first)) else { break };
            machine.hw.read(at, words.as_mut_bytes());
            for (gref, word) in (first..).zip(words).filter(|(_, word)| *word != 0) {
                visit(GrantRef(gref), Active::unpack(word, base));
            }
        }
    }

    /// The frames of role [`Role::DomainTable`] that it has; for the self-check.
    pub fn own_frames(&self) -> impl Iterator<Item = Mfn> + '_ {
        let actives = self.tables.frames.iter().flatten().map(|frame| frame.active);
        actives.chain(self.tables.tracks.iter().copied().flatten())
    }

    fn track_at(&self, handle: GrantHandle) -> Option<FrameAddr> {
        let frame = usize::try_from(handle.0 / TRACKS_PER_FRAME).ok()?;
        word_at((*self.tables.tracks.get(frame)?)?, handle.0)
    }

    #[inline]
    fn set_track<H: Hardware>(&mut self, hw: &H, handle: GrantHandle, track: Track) {
        if let Some(at) = self.track_at(handle) {
            hw.store_u64(at, track.pack());
        }
    }

    #[inline]
    fn get_track<H: Hardware>(&self, hw: &H, handle: GrantHandle) -> Option<Track> {
        if handle.0 >= self.used_tracks {
            return None;
        }
        Some(Track::unpack(hw.load_u64(self.track_at(handle)?)))
    }

    /// The mappings among the next 64 handles from `from` on, and the handle behind them, if any was ever used; for the self-check.
    pub fn mappings<H: Hardware>(&self, hw: &H, from: u32, mut visit: impl FnMut(u32, Track)) -> Option<u32> {
        const CHUNK: usize = 64;
        let handles = (from..self.used_tracks).take(CHUNK);
        let mut words = [0_u64; CHUNK];
        let words = words.get_mut(..handles.len())?;
        let at = self.track_at(GrantHandle(handles.clone().next()?))?;
        hw.read(at, words.as_mut_bytes());
        let mut next = from;
        for (handle, word) in handles.zip(words) {
            next = handle.wrapping_add(1);
            match Track::unpack(*word) {
                track @ (Track::Mapped { .. } | Track::Orphan { .. }) => visit(handle, track),
                Track::Free(_) => {}
            }
        }
        Some(next)
    }

    /// Whether a domain uses one of the next [`LOOK`] references from `first` on, a multiple of that, for a frame.
    pub(super) fn is_used_from<H: Hardware>(
        &self,
        machine: &Machine<H>,
        first: u32,
        user: DomId,
        frame: Mfn,
    ) -> bool {
        let mut words = [0_u64; LOOK as usize];
        let Some(at) = self.active_at(GrantRef(first)) else { return false };
        machine.hw.read(at, words.as_mut_bytes());
        let base = machine.frames.table.base();
        let mut references = words.iter().map(|word| Active::unpack(*word, base));
        references.any(|active| active.user() == Some(user) && active.mfn() == Some(frame))
    }

    /// A handle that is free, without taking it. The frame that is to tell of it is there afterwards.
    ///
    /// `None` when the domain holds as many mappings as it may, or the machine has no frame.
    pub(super) fn free_handle<H: Hardware>(
        &mut self,
        hw: &H,
        frames: &Frames,
        owner: DomId,
    ) -> Option<GrantHandle> {
        if let Some(linked) = self.free_track.checked_sub(1) {
            return Some(GrantHandle(linked));
        }
        let next = self.used_tracks;
        if next >= self.tables.max_tracks && !crate::seeded!("handle-quota") {
            return None;
        }
        let slot = self.tables.tracks.get_mut(usize::try_from(next / TRACKS_PER_FRAME).ok()?)?;
        if slot.is_none() {
            *slot = Some(frames.allocate_clear(hw, 0, owner, Role::DomainTable)?);
        }
        Some(GrantHandle(next))
    }

    /// Lets a handle that [`Self::free_handle`] gave name a mapping.
    pub(super) fn track<H: Hardware>(&mut self, hw: &H, handle: GrantHandle, mapping: Track) {
        if self.free_track == handle.0.wrapping_add(1) {
            match self.get_track(hw, handle) {
                Some(Track::Free(next)) => self.free_track = next,
                Some(Track::Mapped { .. } | Track::Orphan { .. }) | None => return,
            }
        } else {
            self.used_tracks = self.used_tracks.max(handle.0.wrapping_add(1));
        }
        self.set_track(hw, handle, mapping);
        self.mapped = self.mapped.saturating_add(1);
    }

    /// What a handle names.
    pub(super) fn tracked<H: Hardware>(&self, hw: &H, handle: GrantHandle) -> Option<Track> {
        match self.get_track(hw, handle)? {
            Track::Free(_) => None,
            mapped @ (Track::Mapped { .. } | Track::Orphan { .. }) => Some(mapped),
        }
    }

    /// Handles that were ever used.
    pub(super) const fn used_tracks(&self) -> u32 {
        self.used_tracks
    }

    /// Lets the handle of a mapping name an orphan from now on.
    pub(super) fn retrack<H: Hardware>(&mut self, hw: &H, handle: GrantHandle, mapping: Track) {
        self.set_track(hw, handle, mapping);
    }

    /// Forgets everything: its frames are being taken back, and nothing is in use.
    pub(crate) fn forget(&mut self) {
        self.tables.frames.fill(None);
        self.tables.tracks.fill(None);
        (self.frames, self.free_track, self.used_tracks, self.mapped) = (0, 0, 0, 0);
    }

    /// Frees a handle.
    pub(super) fn untrack<H: Hardware>(&mut self, hw: &H, handle: GrantHandle) {
        if self.tracked(hw, handle).is_some() {
            self.untrack_seen(hw, handle);
        }
    }

    /// Frees a handle that [`Self::tracked`] has just told of, under the same hold of the lock.
    #[inline]
    pub(super) fn untrack_seen<H: Hardware>(&mut self, hw: &H, handle: GrantHandle) {
        self.set_track(hw, handle, Track::Free(self.free_track));
        self.free_track = handle.0.wrapping_add(1);
        self.mapped = self.mapped.saturating_sub(1);
    }
}

impl TableFrame {
    fn allocate<H: Hardware>(hw: &H, frames: &Frames, owner: DomId) -> Option<Self> {
        let shared = frames.allocate_clear(hw, 0, owner, Role::Shared)?;
        let Some(active) = frames.allocate_clear(hw, 0, owner, Role::DomainTable) else {
            // Nobody has seen it.
            let _ = frames.free(shared);
            return None;
        };
        Some(Self { shared, active })
    }

    fn free(self, frames: &Frames) {
        for frame in [self.shared, self.active] {
            let _ = frames.free(frame);
        }
    }
}
