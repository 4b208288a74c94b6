//! Every entry of a stage 2, in order of guest frames, without recursion: for the self-check and for tests.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]
use super::descriptor::{Descriptor, ENTRIES, INDEX_BITS, LAST_LEVEL};
use super::{FIRST_LEVEL, Mapping, ROOT_TABLES, level_order};
use crate::addr::{Gfn, Mfn};
use crate::hardware::Hardware;

/// An entry that is not empty.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// A link to a table of `level`.
    Table {
        /// The table.
        table: Mfn,
        /// The level of its entries.
        level: u32,
    },
    /// A block or page.
    Leaf {
        /// The first guest frame.
        gfn: Gfn,
        /// Binary logarithm of the frames.
        order: u32,
        /// The first frame, and the kind of all.
        mapping: Mapping,
        /// Whether the walker may use it; false while it is being split.
        valid: bool,
    },
    /// Bits that no entry of ours has.
    Malformed {
        /// The guest frame it is for.
        gfn: Gfn,
        /// The entry.
        raw: u64,
    },
}

/// Shows every entry to `visit`, until that returns false. The caller holds the domain's lock.
///
/// Bounded: each of the root's 1024 entries, and of the at most 512 tables below each, is read once.
pub fn walk<H: Hardware>(hw: &H, root: Mfn, mut visit: impl FnMut(Entry) -> bool) {
    let roots = (0..u64::from(ROOT_TABLES)).filter_map(|n| Some((root.checked_add(n)?, n)));
    for (table, n) in roots {
        for one in 0..ENTRIES {
            let gfn = (n << INDEX_BITS | one as u64) << level_order(FIRST_LEVEL);
            let Some((table, level)) = show(hw, table, one, FIRST_LEVEL, gfn, &mut visit) else { return };
            let Some(table) = table else { continue };
            for two in 0..ENTRIES {
                let gfn = gfn | (two as u64) << level_order(level);
                let Some((table, level)) = show(hw, table, two, level, gfn, &mut visit) else { return };
                let Some(table) = table else { continue };
                for three in 0..ENTRIES {
                    if show(hw, table, three, level, gfn | three as u64, &mut visit).is_none() {
                        return;
                    }
                }
            }
        }
    }
}

/// Shows one entry; `None` to stop, else the table below it, if any, and that table's level.
fn show<H: Hardware>(
    hw: &H,
    table: Mfn,
    index: usize,
    level: u32,
    gfn: u64,
    visit: &mut impl FnMut(Entry) -> bool,
) -> Option<(Option<Mfn>, u32)> {
    let entry = Descriptor::from_raw(hw.table_read(table, index));
    let below = level.wrapping_add(1);
    if entry == Descriptor::INVALID {
        return Some((None, below));
    }
    let gfn = Gfn::new(gfn)?;
    let (seen, next) = match (entry.kind(), entry.as_table()) {
        (Some(kind), _) => {
            let mapping = Mapping { mfn: entry.frame(), kind };
            let leaf = Descriptor::leaf(mapping.mfn, kind, level);
            if entry == leaf || (level < LAST_LEVEL && entry == leaf.in_transit()) {
                (Entry::Leaf { gfn, order: level_order(level), mapping, valid: entry.is_valid() }, None)
            } else {
                (Entry::Malformed { gfn, raw: entry.raw() }, None)
            }
        }
        (None, Some(table)) if level < LAST_LEVEL && entry == Descriptor::table(table) => {
            (Entry::Table { table, level: below }, Some(table))
        }
        (None, _) => (Entry::Malformed { gfn, raw: entry.raw() }, None),
    };
    visit(seen).then_some((next, below))
}
