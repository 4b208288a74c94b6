//! Joining what was split: a table whose 512 entries map neighbours as one block would goes, and its frame goes back to the machine.
//!
//! 1. The size of a mapping changes, so the table is broken first (D8.16.1): its place is invalid for the walker and whole for [`super::lookup`], everything
//!    of the address space is flushed on every CPU, walk caches too (a TLB may hold the pages and the way to them), and only then is the block
//!    there. A guest that faults in that moment makes its access again, as while a block is split.
//! 2. A CPU that looked the table up without the lock may still read it: its frame waits in limbo, and until it is used anew it says what
//!    was true. Nobody walks it.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]
use pv_abi::PAGE_SHIFT;

use super::build::BLOCK_FRAMES;
use super::descriptor::{Descriptor, ENTRIES, LAST_LEVEL};
use super::{FIRST_LEVEL, Place, Stage2, level_order};
use crate::addr::{Gfn, Mfn};
use crate::frame_alloc::Frames;
use crate::hardware::Hardware;

impl Stage2 {
    /// Joins the pages around a guest frame, if they are one block's, and then the blocks around that. Some 3000 instructions.
    pub fn join<H: Hardware>(&mut self, hw: &H, frames: &Frames, gfn: Gfn) {
        for level in (FIRST_LEVEL..LAST_LEVEL).rev() {
            let Some((place, table, block)) = self.joinable(hw, gfn, level) else { return };
            place.write(hw, block.in_transit());
            hw.flush_all(self.vmid);
            place.write(hw, block);
            hw.tables_written();
            if level.wrapping_add(1) == LAST_LEVEL {
                self.more_in_blocks(frames, BLOCK_FRAMES);
            }
            if frames.retire(table, self.owner).is_ok() {
                self.tables = self.tables.saturating_sub(1);
            }
        }
    }

    /// The entry of a level that links a table which one block would do for, with both.
    #[inline(never)]
    fn joinable<H: Hardware>(&self, hw: &H, gfn: Gfn, level: u32) -> Option<(Place, Mfn, Descriptor)> {
        let mut place = Place::first(self.root, gfn)?;
        // Once at most.
        while place.level < level {
            place = place.below(place.read(hw).as_table()?, gfn);
        }
        let table = place.read(hw).as_table()?;
        let first = Descriptor::from_raw(hw.table_read(table, 0));
        // A link has no kind.
        let kind = first.kind().filter(|kind| kind.is_own_data())?;
        if !first.is_valid() || !first.frame().is_aligned(level_order(level)) {
            return None;
        }
        let step = 1_u64.wrapping_shl(PAGE_SHIFT.wrapping_add(level_order(level.wrapping_add(1))));
        let mut expected = first.raw();
        for index in 0..ENTRIES {
            if hw.table_read(table, index) != expected {
                return None;
            }
            expected = expected.wrapping_add(step);
        }
        Some((place, table, Descriptor::leaf(first.frame(), kind, level)))
    }
}
