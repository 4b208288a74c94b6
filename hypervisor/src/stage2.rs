//! Stage 2: what a domain's physical addresses are in the machine.
//!
//! Geometry (Arm ARM D8.2): 4 KiB granule, 40-bit IPA (`T0SZ` = 24), the walk starts at level 1 (`SL0` = 1) in two concatenated tables
//! of 512 entries, 8 KiB at a multiple of 8 KiB. Leaves are blocks of 1 GiB (level 1) and 2 MiB (level 2) and pages
//! (level 3). `VTCR_EL2` also says write-back, inner-shareable walks, and `VTTBR_EL2` is [`Stage2::vttbr`].
//!
//! Invariants
//! 1. Tables change under the domain's lock (rank 20) only. [`lookup`] reads them without: an entry is one 64-bit word, and a table that
//!    was linked once is not reused before every CPU has passed (limbo) or the domain is no more.
//! 2. No entry goes from one valid leaf to another, or from leaf to table, without invalid and a flush between
//!    (break-before-make, D8.16.1). A flush orders the writes before it itself; invalid to valid needs only the barrier of
//!    `tables_written`.
//! 3. While a block is split its entry is invalid for the walker but whole for [`lookup`]: software never sees a mapping
//!    vanish that is there. A guest access that faults in that moment is made again: when [`lookup`] finds what the fault
//!    did not, the image returns to the same instruction.
//! 4. Every table is a frame of role [`Role::Stage2Table`] of the domain and is counted in `tables`, at most `limit`.
//! 5. Guest frames beyond 40 bits of address are refused (XSA-301).
//! 6. Only [`Kind::Ram`] and [`Kind::Text`] are executable.
//! 7. A leaf that changes its permissions only (write, execute, kind; same frame, size and memory type) goes straight from one to the other
//!    (D8.16.1 asks for a break only where address, size or memory type change), with a flush after. No vCPU takes a fault that it should not.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

mod build;
mod descriptor;
mod join;
mod protect;
mod walk;

pub use descriptor::{Descriptor, ENTRIES, Kind};
pub use walk::{Entry, walk};

use pv_abi::{DomId, PAGE_SHIFT};

use crate::addr::{Gfn, Ipa, Mfn};
use crate::frame::Role;
use crate::frame_alloc::Frames;
use crate::hardware::{Hardware, Vmid};
use descriptor::{INDEX_BITS, LAST_LEVEL};

/// Bits of a guest's physical addresses.
pub const IPA_BITS: u32 = 40;
/// Tables of the root, side by side.
pub const ROOT_TABLES: u32 = 2;
/// The level at which the walk starts.
const FIRST_LEVEL: u32 = 1;
/// The first guest frame number that does not exist.
pub const GFN_LIMIT: u64 = 1 << (IPA_BITS - PAGE_SHIFT);

const _: () = assert!(GFN_LIMIT >> level_order(FIRST_LEVEL) == (ROOT_TABLES as u64) * (ENTRIES as u64));

/// Binary logarithm of the frames that an entry of this level maps: 18, 9, 0.
const fn level_order(level: u32) -> u32 {
    LAST_LEVEL.wrapping_sub(level).wrapping_mul(INDEX_BITS)
}

/// What is at a guest frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// The machine's frame.
    pub mfn: Mfn,
    /// What it is to the guest.
    pub kind: Kind,
}

/// Why nothing can be mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapError {
    /// The guest frame does not exist.
    BadGfn,
    /// The domain has as many tables as it may have.
    TableLimit,
    /// The machine has no frame for a table.
    OutOfMemory,
    /// Something is mapped there ([`Stage2::map_blocks`] only).
    Occupied,
}

/// A domain's stage 2. Under the domain's lock.
#[derive(Debug)]
pub struct Stage2 {
    root: Mfn,
    vmid: Vmid,
    owner: DomId,
    tables: u32,
    limit: u32,
    highest: Gfn,
}

/// The level-3 entry of one guest frame: made by [`Stage2::prepare`], used under the same hold of the lock.
#[must_use = "nothing is mapped until the slot is committed"]
#[derive(Debug)]
pub struct Slot {
    table: Mfn,
    index: usize,
    gfn: Gfn,
    vmid: Vmid,
}

/// Where a walk stands: an entry of a table of some level.
#[derive(Clone, Copy)]
struct Place {
    table: Mfn,
    index: usize,
    level: u32,
}

impl Place {
    /// The entry of level 1 for a guest frame.
    #[inline]
    fn first(root: Mfn, gfn: Gfn) -> Option<Self> {
        let gfn = if crate::seeded!("xsa-301") { Gfn::new(gfn.get() % GFN_LIMIT)? } else { gfn };
        if gfn.get() >= GFN_LIMIT {
            return None;
        }
        let number = gfn.get() >> level_order(FIRST_LEVEL);
        // The root is at a multiple of its two frames.
        let table = descriptor::frame_at(root.base().get() | (number >> INDEX_BITS) << PAGE_SHIFT);
        Some(Self { table, index: index(number), level: FIRST_LEVEL })
    }

    /// The entry for the same guest frame in the table of the next level.
    #[inline]
    fn below(self, table: Mfn, gfn: Gfn) -> Self {
        let level = self.level.wrapping_add(1);
        Self { table, index: index(gfn.get() >> level_order(level)), level }
    }

    #[inline]
    fn read<H: Hardware>(self, hw: &H) -> Descriptor {
        Descriptor::from_raw(hw.table_read(self.table, self.index))
    }

    fn write<H: Hardware>(self, hw: &H, entry: Descriptor) {
        hw.table_write(self.table, self.index, entry.raw());
    }
}

#[inline]
const fn index(number: u64) -> usize {
    (number & 0x1FF) as usize
}

/// What is at a guest frame, without the lock (invariants 1 and 3). Every translation of a handle passes here: three loads at most, no
/// loop.
#[inline]
pub fn lookup<H: Hardware>(hw: &H, root: Mfn, gfn: Gfn) -> Option<Mapping> {
    let one = Place::first(root, gfn)?;
    let entry = one.read(hw);
    let Some(table) = entry.as_table() else { return entry.mapping(gfn, level_order(1)) };
    let two = one.below(table, gfn);
    let entry = two.read(hw);
    let Some(table) = entry.as_table() else { return entry.mapping(gfn, level_order(2)) };
    two.below(table, gfn).read(hw).mapping(gfn, level_order(3))
}

/// What maps the 2 MiB around a guest frame, while the domain's lock is held.
#[derive(Clone, Copy, Debug)]
pub struct Near(Option<Mfn>);

impl Near {
    /// Looks them up; `None` when nothing is there.
    #[inline(never)]
    pub fn find<H: Hardware>(hw: &H, root: Mfn, gfn: Gfn) -> Option<Self> {
        let one = Place::first(root, gfn)?;
        let entry = one.read(hw);
        let Some(table) = entry.as_table() else { return entry.kind().map(|_| Self(None)) };
        let entry = one.below(table, gfn).read(hw);
        let table = entry.as_table();
        (table.is_some() || entry.kind().is_some()).then_some(Self(table))
    }

    /// Their table; none when a block maps them all.
    #[inline]
    pub const fn table(self) -> Option<Mfn> {
        self.0
    }
}

impl Stage2 {
    /// An empty address space of `owner`, which may have `limit` tables in all, the two of the root counted. `None` when the limit or
    /// the machine's memory does not allow the root.
    pub fn new<H: Hardware>(hw: &H, frames: &Frames, owner: DomId, vmid: Vmid, limit: u32) -> Option<Self> {
        if limit < ROOT_TABLES {
            return None;
        }
        let root = frames.allocate_clear(hw, ROOT_TABLES.trailing_zeros(), owner, Role::Stage2Table)?;
        hw.tables_written();
        Some(Self { root, vmid, owner, tables: ROOT_TABLES, limit, highest: Gfn::default() })
    }

    /// Forgets everything but the root, which is cleared: nothing walks these tables any more, and the others are being taken back.
    pub(crate) fn forget<H: Hardware>(&mut self, hw: &H) {
        hw.clear(self.root);
        if let Some(second) = self.root.checked_add(1) {
            hw.clear(second);
        }
        hw.tables_written();
        self.tables = ROOT_TABLES;
        self.highest = Gfn::default();
    }

    /// The first of the two root tables.
    pub const fn root(&self) -> Mfn {
        self.root
    }

    /// The address space's name in the TLB.
    pub const fn vmid(&self) -> Vmid {
        self.vmid
    }

    /// Frames that the tables take.
    pub const fn tables(&self) -> u32 {
        self.tables
    }

    /// Frames that the tables may take.
    pub const fn limit(&self) -> u32 {
        self.limit
    }

    /// The highest guest frame that a mapping was prepared for; never falls (Xen's `max_mapped_gfn`).
    pub const fn highest_gfn(&self) -> Gfn {
        self.highest
    }

    /// `VTTBR_EL2`: VMID in bits 63:48, root in 47:1, bit 0 (`CnP`) clear.
    pub fn vttbr(root: Mfn, vmid: Vmid) -> u64 {
        u64::from(vmid.0) << 48 | root.base().get()
    }

    /// What is at a guest frame.
    pub fn lookup<H: Hardware>(&self, hw: &H, gfn: Gfn) -> Option<Mapping> {
        lookup(hw, self.root, gfn)
    }

    /// Makes the tables down to a guest frame's own entry, splitting blocks that are in the way. What is mapped stays mapped, as it was; without
    /// [`Slot::commit`] nothing but the domain's tables has grown.
    ///
    /// # Errors
    /// No such guest frame, or no table to be had; no mapping is changed.
    #[inline(never)]
    pub fn prepare<H: Hardware>(&mut self, hw: &H, frames: &Frames, gfn: Gfn) -> Result<Slot, MapError> {
        self.prepare_here(hw, frames, gfn)
    }

    /// [`Self::prepare`] at the place: for the hottest calls.
    ///
    /// # Errors
    /// Likewise.
    #[inline(always)]
    pub fn prepare_here<H: Hardware>(&mut self, hw: &H, frames: &Frames, gfn: Gfn) -> Result<Slot, MapError> {
        let slot = if let Some(slot) = self.page(hw, gfn) {
            slot
        } else {
            let place = self.descend(hw, frames, gfn, LAST_LEVEL)?;
            Slot { table: place.table, index: place.index, gfn, vmid: self.vmid }
        };
        self.highest = self.highest.max(gfn);
        Ok(slot)
    }

    /// Makes the tables that a mapping of this guest frame will need, and maps nothing.
    ///
    /// # Errors
    /// As [`Stage2::prepare`].
    pub fn make_room<H: Hardware>(&mut self, hw: &H, frames: &Frames, gfn: Gfn) -> Result<(), MapError> {
        self.descend(hw, frames, gfn, LAST_LEVEL).map(|_| ())
    }

    /// The entry of a guest frame that has one of its own: no table is missing, and it is inside no block.
    #[inline]
    pub fn page<H: Hardware>(&self, hw: &H, gfn: Gfn) -> Option<Slot> {
        let one = Place::first(self.root, gfn)?;
        let two = one.below(one.read(hw).as_table()?, gfn);
        let place = two.below(two.read(hw).as_table()?, gfn);
        Some(Slot { table: place.table, index: place.index, gfn, vmid: self.vmid })
    }
}

impl Slot {
    /// Maps a frame there and returns what was mapped before. When something was: break, flush, make (invariant 2).
    pub fn commit<H: Hardware>(self, hw: &H, mfn: Mfn, kind: Kind) -> Option<Mapping> {
        let replaced = self.unmap(hw);
        self.fill(hw, mfn, kind);
        replaced
    }

    /// Maps a frame where [`Slot::current`] has just shown that nothing is, under the same hold of the lock: nothing to break.
    #[inline]
    pub fn fill<H: Hardware>(self, hw: &H, mfn: Mfn, kind: Kind) {
        hw.table_write(self.table, self.index, Descriptor::leaf(mfn, kind, LAST_LEVEL).raw());
        hw.tables_written();
    }

    /// Unmaps what is there, flushed on every CPU, and returns it.
    pub fn clear<H: Hardware>(self, hw: &H) -> Option<Mapping> {
        self.unmap(hw)
    }

    /// Unmaps what [`Slot::current`] has just shown, under the same hold of the lock, flushed on every CPU.
    #[inline]
    pub fn empty<H: Hardware>(&self, hw: &H) {
        hw.table_write(self.table, self.index, Descriptor::INVALID.raw());
        if !crate::seeded!("xsa-241") {
            hw.flush_page(self.vmid, self.ipa());
        }
    }

    /// What is there.
    #[inline]
    pub fn current<H: Hardware>(&self, hw: &H) -> Option<Mapping> {
        let entry = Descriptor::from_raw(hw.table_read(self.table, self.index));
        Some(Mapping { mfn: entry.frame(), kind: entry.kind()? })
    }

    #[inline]
    fn unmap<H: Hardware>(&self, hw: &H) -> Option<Mapping> {
        let mapping = self.current(hw)?;
        self.empty(hw);
        Some(mapping)
    }

    fn ipa(&self) -> Ipa {
        self.gfn.base()
    }
}

#[cfg(test)]
mod tests;
