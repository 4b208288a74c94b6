//! What the fake machine's caches may hold against memory: bytes that EL2 put into frames before a domain gets them.
use std::collections::BTreeSet;

use crate::addr::Mfn;

/// A valid entry; the access flag, which a leaf of stage 2 has and a table's address has not.
const VALID: u64 = 1;
const LEAF: u64 = 1 << 10;
/// A page at level 3, where a block of level 1 or 2 has 0 here.
const PAGE: u64 = 1 << 1;
const ADDRESS: u64 = 0x0000_FFFF_FFFF_F000;

/// Frames by who saw them. One that a domain has is its own affair: whoever turns caches off loses what is written by others, here as on
/// every machine.
#[derive(Debug, Default)]
pub(super) struct Caches {
    /// Whether what is handed out is looked at.
    pub(super) watched: bool,
    /// Cleared or written by EL2, and not cleaned since, before a domain has them.
    held: BTreeSet<u64>,
    /// Frames that were cleaned for a domain, or that it has, until they are cleared for the next one.
    handed: BTreeSet<u64>,
}

impl Caches {
    pub(super) fn cleared(&mut self, frame: Mfn) {
        self.handed.remove(&frame.get());
        self.held.insert(frame.get());
    }

    pub(super) fn written(&mut self, frame: Mfn) {
        if !self.handed.contains(&frame.get()) {
            self.held.insert(frame.get());
        }
    }

    pub(super) fn cleaned(&mut self, frame: Mfn) {
        self.held.remove(&frame.get());
        self.handed.insert(frame.get());
    }

    /// Instructions are fetched past data caches.
    pub(super) fn fetched(&self, frame: Mfn) {
        assert!(
            !self.held.contains(&frame.get()),
            "frame {frame:?} is executed before it was cleaned to memory"
        );
    }

    /// Whether a domain has a frame, as far as is known: one that it may use for tables of its own.
    pub(super) fn is_handed(&self, frame: Mfn) -> bool {
        self.handed.contains(&frame.get())
    }

    /// A leaf of stage 2 hands frames to a domain: memory has all that was written to them.
    pub(super) fn table_written(&mut self, table: Mfn, entry: u64, ram: &core::ops::Range<u64>) {
        // A table is no domain's to see.
        self.held.remove(&table.get());
        // Stage 1's tables are memory that a domain has.
        if !self.watched || entry & VALID == 0 || entry & LEAF == 0 || self.handed.contains(&table.get()) {
            return;
        }
        let first = (entry & ADDRESS) >> 12;
        let end =
            if entry & PAGE != 0 { first + 1 } else { first + (1_u64 << first.trailing_zeros().min(9)) };
        let of_ram = first.max(ram.start)..end.min(ram.end);
        if of_ram.is_empty() {
            return;
        }
        if let Some(frame) = self.held.range(of_ram.clone()).next() {
            panic!("frame {frame:#x} reaches a domain before it was cleaned to memory");
        }
        self.handed.extend(of_ram);
    }
}
