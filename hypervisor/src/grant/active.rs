//! What the hypervisor remembers of a reference in use, and of a mapping.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use pv_abi::{DomId, GrantRef};

use crate::addr::{Gfn, Mfn};
use crate::stage2::GFN_LIMIT;

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

/// A reference in use, as one word a reference: 8 bytes for each of the 8-byte entries of the shared table. All zero is one that is not in
/// use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Active {
    /// The granted frame, meaningful while a pin is held.
    pub(super) frame: Mfn,
    /// Who uses it.
    pub(super) domid: DomId,
    /// Uses for reading.
    pub(super) reads: u8,
    /// Uses for writing.
    pub(super) writes: u8,
}

impl Active {
    /// frame `[63:32]` by its place in the frame table that begins at `base`, domain `[31:16]`, writes `[15:8]`, reads `[7:0]`.
    pub(super) fn pack(self, base: Mfn) -> u64 {
        if !self.is_pinned() {
            return 0;
        }
        // Frame tables have fewer than 2^32 frames.
        self.frame.get().wrapping_sub(base.get()) << 32
            | u64::from(self.domid.0) << 16
            | u64::from(self.writes) << 8
            | u64::from(self.reads)
    }

    #[expect(clippy::cast_possible_truncation, reason = "each field is cut to its width")]
    pub(super) fn unpack(word: u64, base: Mfn) -> Self {
        Self {
            frame: base.checked_add(word >> 32).unwrap_or(base),
            domid: DomId((word >> 16) as u16),
            reads: word as u8,
            writes: (word >> 8) as u8,
        }
    }

    /// What would be in use of a reference whose frame is an orphan now; for the self-check.
    pub(crate) const fn orphan(frame: Mfn, domid: DomId) -> Self {
        Self { frame, domid, reads: 1, writes: 1 }
    }

    /// Whether anybody uses it.
    pub fn is_pinned(&self) -> bool {
        self.reads != 0 || self.writes != 0
    }

    /// The frame in use.
    pub fn mfn(&self) -> Option<Mfn> {
        self.is_pinned().then_some(self.frame)
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
    /// Mapped, and its granter is no more: the frame is an orphan ([`crate::frame`]).
    Orphan {
        /// The frame, by its place in the frame table.
        frame: u32,
        /// Where it appears in the mapper's memory.
        gfn: Gfn,
        /// Whether it is mapped for writing.
        writable: bool,
    },
}

const MAPPED: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const GRANTER_SHIFT: u32 = 2;
const GREF_SHIFT: u32 = 18;
const GFN_SHIFT: u32 = 34;
const NEXT_SHIFT: u32 = 32;
const ORPHAN: u64 = 1 << 63;

/// References that a [`Track`] can name.
pub(crate) const GREF_LIMIT: u32 = 1 << (GFN_SHIFT - GREF_SHIFT);
const _: () = assert!(GFN_LIMIT <= 1 << (62 - GFN_SHIFT));

impl Track {
    /// Free: zero in bit 0, the next one in `[63:32]`. Mapped: one in bit 0, writable bit 1, granter `[17:2]`, reference `[33:18]`, guest
    /// frame `[61:34]`. Orphan: one in bits 63 and 0, writable bit 1, frame `[33:2]`, guest frame `[61:34]`.
    pub(super) fn pack(self) -> u64 {
        match self {
            Self::Free(next) => u64::from(next) << NEXT_SHIFT,
            Self::Mapped { granter, gref, gfn, writable } => {
                MAPPED
                    | if writable { WRITABLE } else { 0 }
                    | u64::from(granter.0) << GRANTER_SHIFT
                    | u64::from(gref.0) << GREF_SHIFT
                    | gfn.get() << GFN_SHIFT
            }
            Self::Orphan { frame, gfn, writable } => {
                ORPHAN
                    | MAPPED
                    | if writable { WRITABLE } else { 0 }
                    | u64::from(frame) << GRANTER_SHIFT
                    | gfn.get() << GFN_SHIFT
            }
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "each field is cut to its width")]
    pub(super) fn unpack(word: u64) -> Self {
        if word & MAPPED == 0 {
            return Self::Free((word >> NEXT_SHIFT) as u32);
        }
        let gfn = Gfn::new(word << 2 >> (GFN_SHIFT + 2)).unwrap_or_default();
        let writable = word & WRITABLE != 0;
        if word & ORPHAN != 0 {
            return Self::Orphan { frame: (word >> GRANTER_SHIFT) as u32, gfn, writable };
        }
        Self::Mapped {
            granter: DomId((word >> GRANTER_SHIFT) as u16),
            gref: GrantRef((word >> GREF_SHIFT) as u32 & (GREF_LIMIT - 1)),
            gfn,
            writable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_in_use_survives_its_word() {
        let base = Mfn::new(0x4_0000).unwrap();
        for (frame, domid, reads, writes) in
            [(0x4_0000, 1, 1, 0), (0x4_0000 + 0xFFFF_FFFE, 0x7FEF, 0x80, 0x80), (0x8_1234, 2, 0, 7)]
        {
            let active = Active { frame: Mfn::new(frame).unwrap(), domid: DomId(domid), reads, writes };
            assert_eq!(Active::unpack(active.pack(base), base), active);
        }
        let unused = Active { frame: base, domid: DomId(3), reads: 0, writes: 0 };
        assert_eq!(unused.pack(base), 0);
        assert!(!Active::unpack(0, base).is_pinned());
    }

    #[test]
    fn a_mapping_survives_its_word() {
        for (granter, gref, gfn, writable) in
            [(1, 8, 0x4_0000, true), (0xFFFF, GREF_LIMIT - 1, GFN_LIMIT - 1, false), (0, 0, 0, false)]
        {
            let gfn = Gfn::new(gfn).unwrap();
            let track = Track::Mapped { granter: DomId(granter), gref: GrantRef(gref), gfn, writable };
            assert_eq!(Track::unpack(track.pack()), track);
        }
        for frame in [0, 1, u32::MAX] {
            let gfn = Gfn::new(GFN_LIMIT - 1).unwrap();
            let track = Track::Orphan { frame, gfn, writable: frame == 1 };
            assert_eq!(Track::unpack(track.pack()), track);
        }
        for next in [0, 1, u32::MAX] {
            assert_eq!(Track::unpack(Track::Free(next).pack()), Track::Free(next));
        }
        assert_eq!(Track::unpack(0), Track::Free(0), "a cleared frame holds free ones");
    }
}
