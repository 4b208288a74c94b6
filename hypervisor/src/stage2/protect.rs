//! Changing what may be done with the domain's own RAM, without moving it (invariant 7 of [`super`]).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]
use super::descriptor::{Descriptor, Kind, LAST_LEVEL};
use super::{GFN_LIMIT, Place, Slot, Stage2, level_order};
use crate::addr::Gfn;
use crate::hardware::Hardware;

impl Slot {
    /// Makes the domain's own RAM that is mapped here another kind of it; complete on every CPU when this returns: no access by the old
    /// permissions is under way any more (a DSB after the invalidation waits for them, D8.16.3).
    pub fn protect<H: Hardware>(self, hw: &H, kind: Kind) {
        if let Some(there) = self.current(hw) {
            let early = crate::seeded!("protect-early");
            if early {
                hw.flush_page(self.vmid, self.ipa());
            }
            hw.table_write(self.table, self.index, Descriptor::leaf(there.mfn, kind, LAST_LEVEL).raw());
            if !(early || crate::seeded!("xsa-408")) {
                hw.flush_page(self.vmid, self.ipa());
            }
        }
    }
}

impl Stage2 {
    /// Takes the right to execute from RAM that has it ([`Kind::Ram`]), from guest frame `from` on, `budget` entries of tables at most. Returns
    /// where to go on, `None` at the end. The caller flushes the whole address space then.
    pub fn forbid_execution<H: Hardware>(&self, hw: &H, from: Gfn, budget: u32) -> Option<Gfn> {
        let mut gfn = from;
        for _ in 0..budget {
            if gfn > self.highest || gfn.get() >= GFN_LIMIT {
                return None;
            }
            let mut place = Place::first(self.root, gfn)?;
            let mut entry = place.read(hw);
            // Twice at most.
            while place.level < LAST_LEVEL
                && let Some(table) = entry.as_table()
            {
                place = place.below(table, gfn);
                entry = place.read(hw);
            }
            if entry.kind() == Some(Kind::Ram) && crate::pagetable::CHECKED {
                place.write(hw, Descriptor::leaf(entry.frame(), Kind::Data, place.level));
            }
            let covered = 1_u64.wrapping_shl(level_order(place.level)).wrapping_sub(1);
            gfn = Gfn::new((gfn.get() | covered).wrapping_add(1))?;
        }
        Some(gfn)
    }
}
