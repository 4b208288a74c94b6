//! The frame allocator: free lists by order, threaded through the frame table.
//!
//! Invariants
//! 1. A free block of order `n` is `2^n` frames at a multiple of `2^n`, all [`Role::Free`]; its first entry carries the order and
//!    the links, the others [`NO_ORDER`]. Each block is in the list of its order exactly once.
//! 2. Two free buddies of one order never stand beside each other: they are one block of the next order (up to
//!    [`MAX_ORDER`]).
//! 3. No call walks a list: lists are touched at their heads and at blocks that are known. Marking the frames of a block is
//!    linear in the block, nothing else is.
//! 4. Nothing is written into free frames. A frame is cleared before a domain sees it ([`Frames::allocate_clear`]).
//! 5. One lock, rank 30, taken below a domain's.
//! 6. A frame that a domain has seen may still be read or written by a CPU that looked it up without a lock: at run time it is given back
//!    by [`Frames::retire`], and is free when every CPU has left the hypervisor since ([`Quiescent`]). Whatever a
//!    CPU looks up without a lock, it has done with when it passes.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]
mod limbo;

use core::ops::Range;

use pv_abi::DomId;

use crate::addr::Mfn;
use crate::frame::{FrameEntry, FrameError, FrameState, FrameTable, NO_LINK, NO_ORDER, Role};
use crate::hardware::{CpuId, Hardware};
use crate::lock::{Lock, rank};
use limbo::Limbo;
pub use limbo::Quiescent;

/// The largest block is `2^MAX_ORDER` frames: 1 GiB, a stage-2 block of level 1.
pub const MAX_ORDER: u32 = 18;
const ORDERS: usize = 19;

/// The frames of the machine.
#[derive(Debug)]
pub struct Frames {
    /// Who owns what: read without the lock.
    pub table: FrameTable,
    /// When CPUs have left the hypervisor.
    pub quiescent: Quiescent,
    free: Lock<FreeLists, { rank::FRAMES }>,
    /// Allocations that still succeed before one fails, once; negative for none.
    #[cfg(any(test, feature = "fake"))]
    fail_after: core::sync::atomic::AtomicI64,
}

#[derive(Debug)]
struct FreeLists {
    /// First block of each order, as an index into the table.
    heads: [u32; ORDERS],
    /// Frames in all lists.
    frames: u64,
    /// Frames that are to be free.
    limbo: Limbo,
}

impl Frames {
    /// No frame is free yet.
    pub const fn new(table: FrameTable) -> Self {
        Self {
            table,
            quiescent: Quiescent::new(),
            free: Lock::new(FreeLists { heads: [NO_LINK; ORDERS], frames: 0, limbo: Limbo::new() }),
            #[cfg(any(test, feature = "fake"))]
            fail_after: core::sync::atomic::AtomicI64::new(-1),
        }
    }

    /// Tests: lets `calls` more allocations succeed and the one after fail, once.
    #[cfg(any(test, feature = "fake"))]
    pub fn fail_after(&self, calls: u32) {
        self.fail_after.store(i64::from(calls), core::sync::atomic::Ordering::SeqCst);
    }

    /// Tests: whether the allocation that was to fail has failed.
    #[cfg(any(test, feature = "fake"))]
    pub fn has_failed(&self) -> bool {
        self.fail_after.load(core::sync::atomic::Ordering::SeqCst) < 0
    }

    /// Boot: makes frames free, those that were not RAM so far and those that the hypervisor used ([`FrameTable::claim`]) alike.
    /// Returns how many became free; frames outside the table and frames in other roles are left as they are.
    pub fn give(&self, range: Range<Mfn>) -> u64 {
        let (first, end) = (range.start.get(), range.end.get().min(self.table.end()));
        let mut lists = self.free.lock();
        let (mut number, mut given): (u64, u64) = (first, 0);
        while number < end {
            let state = Mfn::new(number).and_then(|mfn| self.table.state(mfn));
            let next = number.saturating_add(1);
            let Some(state) = state.filter(|state| matches!(state.role, Role::NotRam | Role::Hypervisor))
            else {
                number = next;
                continue;
            };
            let same = |at: &u64| Mfn::new(*at).and_then(|mfn| self.table.state(mfn)) == Some(state);
            let stop = (next..end).find(|at| !same(at)).unwrap_or(end);
            self.table.transit_block(number..stop, state, FREE);
            let run = stop.saturating_sub(number);
            lists.put_run(&self.table, number, run);
            given = given.wrapping_add(run);
            number = stop;
        }
        lists.frames = lists.frames.wrapping_add(given);
        given
    }

    /// Takes `2^order` frames at a multiple of their size and gives each of them `owner` and `role`. Their contents are whatever they
    /// were; `None` when there is no such block.
    pub fn allocate(&self, order: u32, owner: DomId, role: Role) -> Option<Mfn> {
        #[cfg(any(test, feature = "fake"))]
        if self.fail_after.fetch_sub(1, core::sync::atomic::Ordering::SeqCst) == 0 {
            return None;
        }
        let mut lists = self.free.lock();
        let start = match lists.take(&self.table, order) {
            Some(start) => start,
            None if lists.reclaim(&self.table, &self.quiescent) != 0 => lists.take(&self.table, order)?,
            None => return None,
        };
        let to = FrameState::unreferenced(owner, role);
        // Free frames change under this lock only, so the change cannot fail.
        if order == 0 {
            self.table.transit_single(Mfn::new(start)?, FREE, to);
        } else {
            self.table.transit_block(block(start, order), FREE, to);
        }
        lists.frames = lists.frames.saturating_sub(frames_in(order));
        Mfn::new(start)
    }

    /// [`Frames::allocate`], cleared; what a guest may see is also cleaned to memory, where it could look with its caches off.
    pub fn allocate_clear<H: Hardware>(&self, hw: &H, order: u32, owner: DomId, role: Role) -> Option<Mfn> {
        let start = self.allocate(order, owner, role)?;
        for number in block(start.get(), order) {
            if let Some(frame) = Mfn::new(number) {
                let shown = role.is_ram() || role == Role::Shared;
                if crate::seeded!("xsa-100") && role == Role::Data {
                    hw.clean_to_memory(frame);
                } else if shown {
                    hw.clear_to_memory(frame);
                } else {
                    hw.clear(frame);
                }
            }
        }
        Some(start)
    }

    /// Gives one frame back.
    ///
    /// # Errors
    /// The frame has references, is free already, is not RAM or does not exist: nothing is changed.
    pub fn free(&self, mfn: Mfn) -> Result<(), FrameError> {
        let mut lists = self.free.lock();
        let state = self.table.state(mfn).ok_or(FrameError::NoFrame)?;
        if matches!(state.role, Role::NotRam | Role::Free | Role::Limbo) {
            return Err(FrameError::WrongRole);
        }
        if state.count != 0 {
            return Err(FrameError::Referenced);
        }
        self.table.transit(mfn, state, FREE)?;
        lists.put(&self.table, mfn.get(), 0);
        lists.frames = lists.frames.wrapping_add(1);
        Ok(())
    }

    /// Gives up a frame of RAM of `owner`'s that nobody refers to, unmapped and flushed, or of a table of its stage 2 that nothing links: it is free
    /// when every CPU has passed.
    ///
    /// # Errors
    /// It is no such frame: nothing is changed.
    pub fn retire(&self, mfn: Mfn, owner: DomId) -> Result<(), FrameError> {
        self.free.lock().limbo.take(&self.table, mfn, owner)
    }

    /// Takes a frame of RAM away from a domain that is dying while another has it mapped: it is nobody's ([`DomId::XEN`]'s) and counts those
    /// mappings from now on, one for each call. Its last owner's next life waits for it ([`FrameTable::orphans`]).
    ///
    /// # Errors
    /// It is no such frame.
    pub fn orphan(&self, mfn: Mfn, owner: DomId) -> Result<(), FrameError> {
        let _lists = self.free.lock();
        let state = self.table.state(mfn).ok_or(FrameError::NoFrame)?;
        match (state.owner, state.role) {
            (DomId::XEN, Role::Data) => self.table.reference(mfn, DomId::XEN),
            (of, Role::Data) if of == owner => {
                let nobodys = FrameState::unreferenced(DomId::XEN, Role::Data);
                self.table.transit(mfn, state, FrameState { count: 1, ..nobodys })?;
                self.table.orphaned(mfn, owner);
                Ok(())
            }
            _ => Err(FrameError::WrongOwner),
        }
    }

    /// A mapping of an orphan is gone, flushed on every CPU; after the last one its frame goes to limbo.
    ///
    /// # Errors
    /// It is no orphan.
    pub fn release_orphan(&self, mfn: Mfn) -> Result<(), FrameError> {
        let mut lists = self.free.lock();
        if self.table.state(mfn).is_none_or(|state| (state.owner, state.role) != (DomId::XEN, Role::Data)) {
            return Err(FrameError::WrongOwner);
        }
        self.table.release(mfn)?;
        match self.table.state(mfn) {
            Some(state) if state.count == 0 => {
                self.table.let_go(mfn);
                lists.limbo.take(&self.table, mfn, DomId::XEN)
            }
            _ => Ok(()),
        }
    }

    /// Makes a few frames free that were given up and have waited long enough. Cheap when there are none; leaves it to others when
    /// the lock is taken, as every CPU comes here between guests.
    #[inline]
    pub fn reclaim(&self) {
        if self.limbo_frames() != 0 {
            self.reclaim_some();
        }
    }

    #[inline(never)]
    fn reclaim_some(&self) {
        if let Some(mut lists) = self.free.try_lock() {
            lists.reclaim(&self.table, &self.quiescent);
        }
    }

    /// The CPUs that frames in limbo wait for; makes frames free that wait no longer.
    pub fn waited_for(&self) -> impl Iterator<Item = CpuId> + use<> {
        let mut lists = self.free.lock();
        lists.reclaim(&self.table, &self.quiescent);
        let since = lists.limbo.since();
        drop(lists);
        self.quiescent.late(&since)
    }

    /// Frames that were given up and are not free yet.
    pub fn limbo_frames(&self) -> u64 {
        self.table.total(DomId::XEN, Role::Limbo)
    }

    /// Gives `2^order` frames back, one by one; they may be of several allocations.
    ///
    /// # Errors
    /// The first frame that [`Frames::free`] refuses; those before it are free.
    pub fn free_block(&self, mfn: Mfn, order: u32) -> Result<(), FrameError> {
        for number in block(mfn.get(), order.min(MAX_ORDER)) {
            self.free(Mfn::new(number).ok_or(FrameError::NoFrame)?)?;
        }
        Ok(())
    }

    /// Boot: gives back every frame of `owner` that nobody refers to; returns how many. Linear in the machine's memory.
    pub fn free_owner(&self, owner: DomId) -> u64 {
        let mut freed: u64 = 0;
        for number in self.table.base().get()..self.table.end() {
            let Some(mfn) = Mfn::new(number) else { break };
            if self.table.state(mfn).is_some_and(|state| state.owner == owner) && self.free(mfn).is_ok() {
                freed = freed.wrapping_add(1);
            }
        }
        freed
    }

    /// Frames in the two lists of limbo; for the self-check.
    pub(crate) fn linked_in_limbo(&self) -> u64 {
        self.free.lock().limbo.frames()
    }

    /// Frames that are free at the moment, by the table's sums: no lock, and by the next moment there may be others.
    #[inline]
    pub fn free_now(&self) -> u64 {
        self.table.total(DomId::XEN, Role::Free)
    }

    /// Frames that are free.
    pub fn free_frames(&self) -> u64 {
        self.free.lock().frames
    }
}

/// A free frame that starts no block.
const FREE: FrameState = FrameState::unreferenced(DomId::XEN, Role::Free);

const fn frames_in(order: u32) -> u64 {
    1u64.wrapping_shl(order)
}

const fn block(start: u64, order: u32) -> Range<u64> {
    start..start.saturating_add(frames_in(order))
}

impl FreeLists {
    /// Puts frames that are [`FREE`] into the lists, in the largest blocks.
    fn put_run(&mut self, table: &FrameTable, start: u64, count: u64) {
        let (mut start, mut left) = (start, count);
        // Each turn puts a block; at most two of each order below the largest.
        while left != 0 {
            let order = MAX_ORDER.min(start.trailing_zeros()).min(left.ilog2());
            self.put(table, start, order);
            start = start.saturating_add(frames_in(order));
            left = left.saturating_sub(frames_in(order));
        }
    }

    /// Puts a block of frames that are [`FREE`] into its list, joined with its buddies.
    fn put(&mut self, table: &FrameTable, start: u64, order: u32) {
        let (mut start, mut order) = (start, order);
        while order < MAX_ORDER {
            let buddy = start ^ frames_in(order);
            let Some(entry) = Mfn::new(buddy).and_then(|mfn| table.entry(mfn)) else { break };
            if !entry.is(head(order)) {
                break;
            }
            self.unlink(table, entry, order);
            start = start.min(buddy);
            order = order.wrapping_add(1);
        }
        self.link(table, start, order);
    }

    /// Takes a block of this order out of the lists, splitting a larger one when there is none.
    fn take(&mut self, table: &FrameTable, order: u32) -> Option<u64> {
        let (index, mut found) = (order..=MAX_ORDER).find_map(|larger| {
            let head = *self.heads.get(usize::try_from(larger).ok()?)?;
            (head != NO_LINK).then_some((head, larger))
        })?;
        let start = table.base().get().checked_add(u64::from(index))?;
        let entry = table.entry(Mfn::new(start)?)?;
        self.unlink(table, entry, found);
        while found > order {
            found = found.wrapping_sub(1);
            self.link(table, start ^ frames_in(found), found);
        }
        Some(start)
    }

    fn link(&mut self, table: &FrameTable, start: u64, order: u32) {
        let Some(entry) = Mfn::new(start).and_then(|mfn| table.entry(mfn)) else { return };
        let Some(index) = start.checked_sub(table.base().get()).and_then(|index| u32::try_from(index).ok())
        else {
            return;
        };
        let Some(first) = usize::try_from(order).ok().and_then(|order| self.heads.get_mut(order)) else {
            return;
        };
        entry.change(FREE, head(order));
        entry.set_prev(NO_LINK);
        entry.set_next(*first);
        if let Some(second) = linked(table, *first) {
            second.set_prev(index);
        }
        *first = index;
    }

    fn unlink(&mut self, table: &FrameTable, entry: &FrameEntry, order: u32) {
        entry.change(head(order), FREE);
        let (prev, next) = (entry.prev(), entry.next());
        if let Some(after) = linked(table, next) {
            after.set_prev(prev);
        }
        if let Some(before) = linked(table, prev) {
            before.set_next(next);
        } else if let Some(first) = usize::try_from(order).ok().and_then(|order| self.heads.get_mut(order)) {
            *first = next;
        }
    }
}

/// The first frame of a free block.
fn head(order: u32) -> FrameState {
    FrameState { order: u8::try_from(order).unwrap_or(NO_ORDER), ..FREE }
}

/// The entry that a link names.
fn linked(table: &FrameTable, link: u32) -> Option<&FrameEntry> {
    if link == NO_LINK {
        return None;
    }
    table.entry(table.base().checked_add(u64::from(link))?)
}

#[cfg(test)]
mod tests;
