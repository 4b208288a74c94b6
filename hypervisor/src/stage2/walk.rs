//! Every entry of a stage 2, in order of guest frames, without recursion: for the self-check and for tests.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]
use core::ops::ControlFlow;

use super::descriptor::{Descriptor, INDEX_BITS, LAST_LEVEL};
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
    const SECOND_LEVEL: u32 = FIRST_LEVEL + 1;
    for n in 0..u64::from(ROOT_TABLES) {
        let Some(table) = root.checked_add(n) else { return };
        let gfn = n << INDEX_BITS << level_order(FIRST_LEVEL);
        let goes_on = each(hw, table, gfn, FIRST_LEVEL, |gfn, entry| {
            below(show(gfn, entry, FIRST_LEVEL, &mut visit), |table| {
                each(hw, table, gfn, SECOND_LEVEL, |gfn, entry| {
                    below(show(gfn, entry, SECOND_LEVEL, &mut visit), |table| {
                        each(hw, table, gfn, LAST_LEVEL, |gfn, entry| {
                            show(gfn, entry, LAST_LEVEL, &mut visit).is_continue()
                        })
                    })
                })
            })
        });
        if !goes_on {
            return;
        }
    }
}

/// Goes on with the table below what was shown, if there is one.
fn below(shown: ControlFlow<(), Option<Mfn>>, table: impl FnOnce(Mfn) -> bool) -> bool {
    match shown {
        ControlFlow::Break(()) => false,
        ControlFlow::Continue(below) => below.is_none_or(table),
    }
}

/// Shows every entry of a table that is not empty, with the first guest frame that it is for; false when `visit` said so.
fn each<H: Hardware>(
    hw: &H,
    table: Mfn,
    first: u64,
    level: u32,
    mut visit: impl FnMut(u64, Descriptor) -> bool,
) -> bool {
    hw.table_entries(table, |index, word| {
        visit(first | (index as u64) << level_order(level), Descriptor::from_raw(word))
    })
}

/// Shows one entry; goes on with the table below it, if any.
fn show(
    gfn: u64,
    entry: Descriptor,
    level: u32,
    visit: &mut impl FnMut(Entry) -> bool,
) -> ControlFlow<(), Option<Mfn>> {
    let Some(gfn) = Gfn::new(gfn) else { return ControlFlow::Break(()) };
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
            (Entry::Table { table, level: level.wrapping_add(1) }, Some(table))
        }
        (None, _) => (Entry::Malformed { gfn, raw: entry.raw() }, None),
    };
    if visit(seen) { ControlFlow::Continue(next) } else { ControlFlow::Break(()) }
}
