//! What the hypervisor remembers of a reference in use, and of a mapping.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use pv_abi::{DomId, GrantRef};

use crate::addr::{Gfn, Mfn};

/// Most uses of one kind that a reference counts (Xen refuses another once the top bit of its eight is set).
pub const MAX_PINS: u8 = 0x80;

/// What a use of a reference is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Use {
    /// Reading only.
    Read,
    /// Reading and writing.
    Write,
}

/// A reference in use: 16 bytes for each entry of the shared table. All zero is one that is not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Active {
    /// Number of the granted frame, meaningful while a pin is held.
    pub(super) frame: u64,
    /// Who uses it.
    pub(super) domid: DomId,
    /// Uses for reading.
    pub(super) reads: u8,
    /// Uses for writing.
    pub(super) writes: u8,
}

impl Active {
    /// A reference not in use.
    pub const UNUSED: Self = Self { frame: 0, domid: DomId(0), reads: 0, writes: 0 };

    /// Whether anybody uses it.
    pub fn is_pinned(&self) -> bool {
        self.reads != 0 || self.writes != 0
    }

    /// The frame in use.
    pub fn mfn(&self) -> Option<Mfn> {
        if self.is_pinned() { Mfn::new(self.frame) } else { None }
    }

    /// Uses for reading and for writing.
    pub fn pins(&self) -> (u8, u8) {
        (self.reads, self.writes)
    }

    /// Who uses it.
    pub fn user(&self) -> Option<DomId> {
        self.is_pinned().then_some(self.domid)
    }

    /// Whether one more use would be too many.
    pub(super) fn is_full(&self, how: Use) -> bool {
        match how {
            Use::Read => self.reads >= MAX_PINS,
            Use::Write => self.writes >= MAX_PINS,
        }
    }

    /// Counts a use more; [`Self::is_full`] was asked.
    pub(super) fn pin(&mut self, how: Use) {
        match how {
            Use::Read => self.reads = self.reads.saturating_add(1),
            Use::Write => self.writes = self.writes.saturating_add(1),
        }
    }

    /// Counts a use less.
    pub(super) fn unpin(&mut self, how: Use) {
        match how {
            Use::Read => self.reads = self.reads.saturating_sub(1),
            Use::Write => self.writes = self.writes.saturating_sub(1),
        }
    }
}

/// A mapping that a domain made: what its handle names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Track {
    /// Not in use; the next one that is not, as handle + 1, 0 for none.
    Free(u32),
    /// Mapped.
    Mapped {
        /// The granter.
        granter: DomId,
        /// The reference.
        gref: GrantRef,
        /// Where it appears in the mapper's memory.
        gfn: Gfn,
        /// Whether it is mapped for writing.
        writable: bool,
    },
}

impl Track {
    /// One never used.
    pub const UNUSED: Self = Self::Free(0);
}
