//! How the tables grow: new tables, split blocks, and mapping in the largest blocks that fit.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]
use super::descriptor::{Descriptor, ENTRIES, Kind, LAST_LEVEL};
use super::{FIRST_LEVEL, GFN_LIMIT, MapError, Place, Stage2, level_order};
use crate::addr::{Gfn, Mfn};
use crate::frame::Role;
use crate::frame_alloc::Frames;
use crate::hardware::Hardware;

/// Frames of a block of level 2.
pub(super) const BLOCK_FRAMES: i64 = 512;
const _: () = assert!(1 << level_order(LAST_LEVEL - 1) == BLOCK_FRAMES);

impl Stage2 {
    /// Maps `2^order` frames from `mfn` at `gfn`, both multiples of `2^order`, in the largest blocks.
    ///
    /// # Errors
    /// Something is there, the numbers are not aligned or beyond the address space, or there is no table: what was
    /// mapped until then stays, for the caller to throw away with the whole address space.
    pub fn map_blocks<H: Hardware>(
        &mut self,
        hw: &H,
        frames: &Frames,
        gfn: Gfn,
        mfn: Mfn,
        order: u32,
        kind: Kind,
    ) -> Result<(), MapError> {
        if order >= GFN_LIMIT.trailing_zeros() || !gfn.is_aligned(order) || !mfn.is_aligned(order) {
            return Err(MapError::BadGfn);
        }
        let level =
            (FIRST_LEVEL..LAST_LEVEL).find(|level| level_order(*level) <= order).unwrap_or(LAST_LEVEL);
        let blocks = 1u64.wrapping_shl(order.saturating_sub(level_order(level)));
        for block in 0..blocks {
            let offset = block.wrapping_shl(level_order(level));
            let gfn = gfn.checked_add(offset).ok_or(MapError::BadGfn)?;
            let mfn = mfn.checked_add(offset).ok_or(MapError::BadGfn)?;
            let place = self.descend(hw, frames, gfn, level)?;
            if place.read(hw) != Descriptor::INVALID {
                return Err(MapError::Occupied);
            }
            place.write(hw, Descriptor::leaf(mfn, kind, level));
            if level < LAST_LEVEL && kind.is_own_data() {
                self.more_in_blocks(frames, 1 << level_order(level));
            }
            let last =
                gfn.checked_add((1u64 << level_order(level)).wrapping_sub(1)).ok_or(MapError::BadGfn)?;
            self.highest = self.highest.max(last);
        }
        hw.tables_written();
        Ok(())
    }

    /// The entry of `level` for a guest frame, with tables made and blocks split on the way there.
    #[inline(never)]
    pub(super) fn descend<H: Hardware>(
        &mut self,
        hw: &H,
        frames: &Frames,
        gfn: Gfn,
        level: u32,
    ) -> Result<Place, MapError> {
        let mut place = Place::first(self.root, gfn).ok_or(MapError::BadGfn)?;
        // At most twice.
        while place.level < level {
            let entry = place.read(hw);
            let table = match (entry.as_table(), entry.kind()) {
                (Some(table), _) => table,
                (None, None) => {
                    let table = self.new_table(hw, frames)?;
                    // The walker must not see the link before the empty table.
                    hw.tables_written();
                    place.write(hw, Descriptor::table(table));
                    hw.tables_written();
                    table
                }
                (None, Some(kind)) => self.split(hw, frames, place, kind)?,
            };
            place = place.below(table, gfn);
        }
        Ok(place)
    }

    /// Replaces a block by a table of smaller leaves that map the same (invariants 2 and 3).
    fn split<H: Hardware>(
        &mut self,
        hw: &H,
        frames: &Frames,
        place: Place,
        kind: Kind,
    ) -> Result<Mfn, MapError> {
        let table = self.new_table(hw, frames)?;
        let block = place.read(hw);
        let level = place.level.wrapping_add(1);
        for index in 0..ENTRIES {
            let offset = (index as u64).wrapping_shl(level_order(level));
            let mfn = block.frame().checked_add(offset).ok_or(MapError::BadGfn)?;
            hw.table_write(table, index, Descriptor::leaf(mfn, kind, level).raw());
        }
        place.write(hw, block.in_transit());
        // The TLB may hold the block in pieces, which a flush of one page would leave.
        hw.flush_all(self.vmid);
        place.write(hw, Descriptor::table(table));
        hw.tables_written();
        if level == LAST_LEVEL && kind.is_own_data() {
            self.more_in_blocks(frames, -BLOCK_FRAMES);
        }
        Ok(table)
    }

    /// Notes that so many frames more of the domain's RAM are mapped in blocks.
    pub(super) fn more_in_blocks(&self, frames: &Frames, more: i64) {
        let before = frames.table.in_blocks(self.owner);
        frames.table.set_in_blocks(self.owner, before.wrapping_add_signed(more));
    }

    /// An empty table, charged to the domain.
    fn new_table<H: Hardware>(&mut self, hw: &H, frames: &Frames) -> Result<Mfn, MapError> {
        if self.tables >= self.limit {
            return Err(MapError::TableLimit);
        }
        let table =
            frames.allocate_clear(hw, 0, self.owner, Role::Stage2Table).ok_or(MapError::OutOfMemory)?;
        self.tables = self.tables.saturating_add(1);
        Ok(table)
    }
}
