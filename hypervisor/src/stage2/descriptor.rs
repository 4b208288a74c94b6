//! Stage-2 descriptors (Arm ARM D8.3, VMSAv8-64, 4 KiB granule, 48-bit output addresses, no `FEAT_XNX`).
//!
//! 1. The software bits of a leaf say its [`Kind`]; zero there means that nothing is mapped. Whether the walker may use the
//!    entry is bit 0 alone: a leaf in transit (being split) has its kind and address with bit 0 clear, so that software sees the
//!    mapping that hardware is kept from for a moment.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]
use pv_abi::PAGE_SHIFT;

use super::Mapping;
use crate::addr::{Gfn, Mfn, Pa};

/// Entries in a table.
pub const ENTRIES: usize = 512;
/// Bits of a frame number that select an entry at each level.
pub(super) const INDEX_BITS: u32 = 9;
/// Deepest level, where leaves are pages.
pub(super) const LAST_LEVEL: u32 = 3;

/// Bit 0: the walker may use the entry (D8.3.1).
const VALID: u64 = 1;
/// Bit 1: a table at levels 0 to 2, a page at level 3; clear, a block (D8.3.1).
const TABLE_OR_PAGE: u64 = 1 << 1;
/// `MemAttr[5:2]` = 0b1111: Normal, inner and outer write-back (D8.6.5).
const NORMAL_WRITE_BACK: u64 = 0b1111 << 2;
/// `MemAttr[5:2]` = 0b0001: Device-nGnRE (D8.6.5).
const DEVICE_NGNRE: u64 = 0b0001 << 2;
/// `S2AP[0]`, bit 6: readable (D8.4.1).
const READ: u64 = 1 << 6;
/// `S2AP[1]`, bit 7: writable (D8.4.1).
const WRITE: u64 = 1 << 7;
/// `SH[9:8]` = 0b11: inner shareable (D8.6.2).
const INNER_SHAREABLE: u64 = 0b11 << 8;
/// AF, bit 10: accessed; there are no access faults (D8.4.6).
const ACCESSED: u64 = 1 << 10;
/// Bits 47:12: the frame.
const ADDRESS: u64 = 0x0000_FFFF_FFFF_F000;
/// XN, bit 54: never executed (D8.4.2; bit 53 is RES0 without `FEAT_XNX`).
const EXECUTE_NEVER: u64 = 1 << 54;
/// Bits 58:55 are software's (D8.3.2): the kind.
const KIND_SHIFT: u32 = 55;
const KIND_MASK: u64 = 0b1111;

/// What a leaf maps, and so what the guest may do there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// The domain's own RAM: read, write, execute.
    Ram = 1,
    /// A frame of the hypervisor's that it shows to this domain: read, write.
    Shared = 2,
    /// Another domain's frame by a grant: read, write.
    GrantWritable = 3,
    /// Another domain's frame by a grant: read.
    GrantReadOnly = 4,
    /// Device registers: read, write.
    Device = 5,
    /// RAM of a domain with paravirtual page tables: read, write.
    Data = 6,
    /// A page table of such a domain: read.
    Table = 7,
    /// Its text, for EL1 or EL0: read, execute. Stage 1, which is checked, says for which.
    Text = 8,
}

impl Kind {
    /// Whether this is memory that the guest may read: all but devices.
    #[inline]
    pub const fn is_readable_memory(self) -> bool {
        match self {
            Self::Ram
            | Self::Shared
            | Self::GrantWritable
            | Self::GrantReadOnly
            | Self::Data
            | Self::Table
            | Self::Text => true,
            Self::Device => false,
        }
    }

    /// Whether this is the domain's own RAM, used as data: what it may grant, give back, and have written to.
    #[inline]
    pub const fn is_own_data(self) -> bool {
        match self {
            Self::Ram | Self::Data => true,
            Self::Shared
            | Self::GrantWritable
            | Self::GrantReadOnly
            | Self::Device
            | Self::Table
            | Self::Text => false,
        }
    }

    /// Whether nothing may take the place of this: entries of checked page tables rely on it.
    #[inline]
    pub const fn is_held_in_place(self) -> bool {
        match self {
            Self::Table | Self::Text => true,
            Self::Ram
            | Self::Data
            | Self::Shared
            | Self::GrantWritable
            | Self::GrantReadOnly
            | Self::Device => false,
        }
    }

    /// Whether this is memory that the guest may write.
    #[inline]
    pub const fn is_writable_memory(self) -> bool {
        match self {
            Self::Ram | Self::Shared | Self::GrantWritable | Self::Data => true,
            Self::GrantReadOnly | Self::Device | Self::Table | Self::Text => false,
        }
    }

    #[inline]
    const fn from_bits(bits: u64) -> Option<Self> {
        match bits {
            1 => Some(Self::Ram),
            2 => Some(Self::Shared),
            3 => Some(Self::GrantWritable),
            4 => Some(Self::GrantReadOnly),
            5 => Some(Self::Device),
            6 => Some(Self::Data),
            7 => Some(Self::Table),
            8 => Some(Self::Text),
            _ => None,
        }
    }

    const fn attributes(self) -> u64 {
        const MEMORY: u64 = NORMAL_WRITE_BACK | INNER_SHAREABLE | ACCESSED | READ;
        match self {
            Self::Ram => MEMORY | WRITE | 1 << KIND_SHIFT,
            Self::Shared => MEMORY | WRITE | EXECUTE_NEVER | 2 << KIND_SHIFT,
            Self::GrantWritable => MEMORY | WRITE | EXECUTE_NEVER | 3 << KIND_SHIFT,
            Self::GrantReadOnly => MEMORY | EXECUTE_NEVER | 4 << KIND_SHIFT,
            Self::Device => DEVICE_NGNRE | ACCESSED | READ | WRITE | EXECUTE_NEVER | 5 << KIND_SHIFT,
            Self::Data => MEMORY | WRITE | EXECUTE_NEVER | 6 << KIND_SHIFT,
            Self::Table => MEMORY | EXECUTE_NEVER | 7 << KIND_SHIFT,
            Self::Text => MEMORY | 8 << KIND_SHIFT,
        }
    }
}

/// The frame at bits 47:12.
#[inline]
pub(super) fn frame_at(bits: u64) -> Mfn {
    // 48 bits are always an address.
    Pa::new(bits & ADDRESS).map_or(Mfn::default(), Pa::frame)
}

/// One entry of a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct Descriptor(u64);

impl Descriptor {
    /// Nothing.
    pub const INVALID: Self = Self(0);

    /// What the table holds.
    #[inline]
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// What the table is to hold.
    #[inline]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// A link to the table of the next level.
    pub const fn table(table: Mfn) -> Self {
        Self(table.base().get() & ADDRESS | TABLE_OR_PAGE | VALID)
    }

    /// A block (level 1 or 2) or page (level 3).
    #[inline]
    pub const fn leaf(mfn: Mfn, kind: Kind, level: u32) -> Self {
        let page = if level == LAST_LEVEL { TABLE_OR_PAGE } else { 0 };
        Self(mfn.base().get() & ADDRESS | kind.attributes() | page | VALID)
    }

    /// The same leaf for software, nothing for the walker (1).
    #[must_use]
    pub const fn in_transit(self) -> Self {
        Self(self.0 & !VALID)
    }

    /// Whether the walker may use it.
    #[inline]
    pub const fn is_valid(self) -> bool {
        self.0 & VALID != 0
    }

    /// The next table, when this entry of level 1 or 2 links one.
    #[inline]
    pub fn as_table(self) -> Option<Mfn> {
        if self.0 & (TABLE_OR_PAGE | VALID) == TABLE_OR_PAGE | VALID { Some(self.frame()) } else { None }
    }

    /// The kind, when this entry is a leaf.
    #[inline]
    pub const fn kind(self) -> Option<Kind> {
        Kind::from_bits(self.0 >> KIND_SHIFT & KIND_MASK)
    }

    /// The frame that the entry names.
    #[inline]
    pub fn frame(self) -> Mfn {
        frame_at(self.0)
    }

    /// What this entry, as a leaf of `2^order` frames, maps a guest frame to.
    #[inline]
    pub(super) fn mapping(self, gfn: Gfn, order: u32) -> Option<Mapping> {
        let kind = self.kind()?;
        // A block lies at a multiple of its size, so that the offset fills bits that are clear.
        let within = gfn.get() & (1u64 << order).wrapping_sub(1);
        Some(Mapping { mfn: frame_at(self.0 | within << PAGE_SHIFT), kind })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(kind: Kind, level: u32) -> u64 {
        Descriptor::leaf(Mfn::new(0x12_3456).unwrap(), kind, level).raw()
    }

    /// AF 10, SH 9:8, S2AP 7:6, `MemAttr` 5:2, type 1:0.
    fn bits(shareability: u64, permission: u64, memory: u64, kind: u64) -> u64 {
        1 << 10 | shareability << 8 | permission << 6 | memory << 2 | kind
    }

    #[test]
    fn descriptors_are_those_of_the_architecture() {
        // Kind 58:55, XN 54, and the low bits.
        assert_eq!(leaf(Kind::Ram, 3), (1 << 55) | 0x1_2345_6000 | bits(0b11, 0b11, 0b1111, 0b11));
        assert_eq!(leaf(Kind::Ram, 2), (1 << 55) | 0x1_2345_6000 | bits(0b11, 0b11, 0b1111, 0b01));
        assert_eq!(
            leaf(Kind::Shared, 3),
            (2 << 55) | (1 << 54) | 0x1_2345_6000 | bits(0b11, 0b11, 0b1111, 0b11)
        );
        assert_eq!(
            leaf(Kind::GrantWritable, 3),
            (3 << 55) | (1 << 54) | 0x1_2345_6000 | bits(0b11, 0b11, 0b1111, 0b11)
        );
        assert_eq!(
            leaf(Kind::GrantReadOnly, 3),
            (4 << 55) | (1 << 54) | 0x1_2345_6000 | bits(0b11, 0b01, 0b1111, 0b11)
        );
        assert_eq!(
            leaf(Kind::Device, 3),
            (5 << 55) | (1 << 54) | 0x1_2345_6000 | bits(0b00, 0b11, 0b0001, 0b11)
        );
        assert_eq!(
            leaf(Kind::Data, 3),
            (6 << 55) | (1 << 54) | 0x1_2345_6000 | bits(0b11, 0b11, 0b1111, 0b11)
        );
        assert_eq!(
            leaf(Kind::Table, 3),
            (7 << 55) | (1 << 54) | 0x1_2345_6000 | bits(0b11, 0b01, 0b1111, 0b11)
        );
        assert_eq!(leaf(Kind::Text, 3), (8 << 55) | 0x1_2345_6000 | bits(0b11, 0b01, 0b1111, 0b11));
        assert_eq!(Descriptor::table(Mfn::new(0x12_3456).unwrap()).raw(), 0x1_2345_6000 | 0b11);
    }

    #[test]
    fn only_ram_and_text_can_be_executed_and_what_cannot_be_written_is_listed() {
        for kind in [
            Kind::Ram,
            Kind::Shared,
            Kind::GrantWritable,
            Kind::GrantReadOnly,
            Kind::Device,
            Kind::Data,
            Kind::Table,
            Kind::Text,
        ] {
            assert_eq!(leaf(kind, 3) & EXECUTE_NEVER == 0, matches!(kind, Kind::Ram | Kind::Text));
            let read_only = matches!(kind, Kind::GrantReadOnly | Kind::Table | Kind::Text);
            assert_eq!(leaf(kind, 3) & WRITE == 0, read_only);
            assert_eq!(Descriptor::from_raw(leaf(kind, 2)).kind(), Some(kind));
        }
    }

    /// Whatever stage 1 says: of both stages' memory types the stronger one holds (D8.6.5), Device in a block or a page.
    #[test]
    fn xsa_154_registers_of_devices_are_device_memory_in_every_leaf() {
        for level in 1..=3 {
            assert_eq!(leaf(Kind::Device, level) >> 2 & 0b1111, 0b0001);
        }
    }

    #[test]
    fn a_leaf_in_transit_is_seen_by_software_alone() {
        let block = Descriptor::leaf(Mfn::new(0x200).unwrap(), Kind::Ram, 2);
        let transit = block.in_transit();
        assert!(!transit.is_valid());
        assert_eq!(
            (transit.kind(), transit.frame(), transit.as_table()),
            (block.kind(), block.frame(), None)
        );
    }
}
