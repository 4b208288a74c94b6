//! Entries of stage 1 (Arm ARM D8.3, VMSAv8-64, 4 KiB granule, 48 bits): which are allowed, what they name, and holding that.
//!
//! 1. An entry whose bit 0 is clear is empty, whatever else it says: the walker looks no further, and the guest may keep there what it likes.
//! 2. A bit that is not allowed by list refuses the entry: contiguous hint, DBM, guarded pages, non-secure, attributes of tables, and
//!    whatever an extension calls its own.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]
use pv_abi::{Errno, PAGE_SHIFT, layout};

use crate::addr::{Gfn, Mfn};
use crate::domain::Domain;
use crate::frame::Role;
use crate::hardware::Hardware;
use crate::machine::Machine;
use crate::stage2::{self, ENTRIES, GFN_LIMIT, Near};

/// A level of tables: 0 is the root.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Level {
    /// The root: links only.
    Zero = 0,
    /// Links and blocks of 1 GiB.
    One = 1,
    /// Links and blocks of 2 MiB.
    Two = 2,
    /// Pages.
    Three = 3,
}

impl Level {
    /// From the root down.
    pub const ALL: [Self; 4] = [Self::Zero, Self::One, Self::Two, Self::Three];

    /// The role of a table of this level.
    #[inline]
    pub const fn role(self) -> Role {
        match self {
            Self::Zero => Role::Table0,
            Self::One => Role::Table1,
            Self::Two => Role::Table2,
            Self::Three => Role::Table3,
        }
    }

    /// The level of tables with this role.
    #[inline]
    pub fn of(role: Role) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.role() == role)
    }

    /// The role of what a link of this level names.
    const fn linked(self) -> Option<Role> {
        match self {
            Self::Zero => Some(Role::Table1),
            Self::One => Some(Role::Table2),
            Self::Two => Some(Role::Table3),
            Self::Three => None,
        }
    }

    /// Address bits that a leaf of this level maps by itself; `None` where there are no leaves.
    const fn leaf_bits(self) -> Option<u32> {
        match self {
            Self::Zero => None,
            Self::One => Some(30),
            Self::Two => Some(21),
            Self::Three => Some(12),
        }
    }

    /// The lowest address bit that selects an entry of this level.
    pub(super) const fn shift(self) -> u32 {
        match self {
            Self::Zero => 39,
            Self::One => 30,
            Self::Two => 21,
            Self::Three => 12,
        }
    }
}

/// Bit 0: not empty.
pub(super) const VALID: u64 = 1 << 0;
/// Bit 1: a link at levels 0 to 2, a page at level 3.
const TABLE_OR_PAGE: u64 = 1 << 1;
/// `AttrIndx[4:2]`, `SH[9:8]`, AF, nG: what they mean is fixed with `MAIR_EL1`, and harms nobody.
const FREE: u64 = 0b111 << 2 | 0b11 << 8 | 1 << 10 | 1 << 11;
/// `AP[1]`: EL0 may access.
const EL0: u64 = 1 << 6;
/// `AP[2]`: read-only.
const READ_ONLY: u64 = 1 << 7;
const ADDRESS: u64 = 0x0000_FFFF_FFFF_F000;
/// PXN: never executed at EL1.
const PXN: u64 = 1 << 53;
/// UXN: never executed at EL0.
const UXN: u64 = 1 << 54;
/// Bits 58:55 are software's.
const SOFTWARE: u64 = 0b1111 << 55;
const LEAF: u64 = VALID | TABLE_OR_PAGE | FREE | EL0 | READ_ONLY | ADDRESS | PXN | UXN | SOFTWARE;
const LINK: u64 = VALID | TABLE_OR_PAGE | ADDRESS | SOFTWARE;
/// What changes without a break (D8.16.1): permissions, access flag, software's bits. Address, size, memory type, shareability and nG do not.
const PERMISSIONS: u64 = EL0 | READ_ONLY | 1 << 10 | PXN | UXN | SOFTWARE;

/// Where an entry leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Target {
    /// Nowhere.
    Nothing,
    /// To what nobody executes: not counted.
    Data(Gfn),
    /// To a table of the next level, or to text: counted. The role that it must have.
    Counted(Gfn, Role),
}

/// What a page that nobody executes must say, and what it may not.
const DATA_PAGE: u64 = VALID | TABLE_OR_PAGE | PXN | UXN;

/// The frame of an entry of level 3 that maps data: the short way through [`decode`], for the entries that there are most of.
#[inline]
pub(super) fn data_page(entry: u64) -> Option<Gfn> {
    // One comparison: what it must say, nothing that it may not, and no address that stage 2 does not have.
    const BEYOND: u64 = ADDRESS & !((GFN_LIMIT << PAGE_SHIFT) - 1);
    if entry & (DATA_PAGE | !LEAF | BEYOND) != DATA_PAGE || !super::CHECKED {
        return None;
    }
    Gfn::new((entry & ADDRESS) >> PAGE_SHIFT)
}

/// Which entries of level 3 map data that is there, as long as the domain's lock is held: those of one 2 MiB of guest frames, by one comparison.
#[derive(Clone, Copy)]
pub(super) struct There {
    /// Bits of an entry that must be `is`: all that [`data_page`] looks at, and which 2 MiB it names.
    bits: u64,
    is: u64,
    /// Stage 2's table of these 2 MiB; none when a block maps them all.
    table: Option<Mfn>,
}

impl There {
    /// None: an entry that is not empty is never 0.
    pub(super) const NOWHERE: Self = Self { bits: u64::MAX, is: 0, table: None };

    /// Whether an entry that is not empty maps data that is there; false when it maps something else, or elsewhere.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "a few instructions")]
    pub(super) fn is_data<H: Hardware>(self, hw: &H, entry: u64) -> bool {
        // At level 3 of stage 2 nothing is in transit and nothing is a link: what is there is not 0.
        entry & self.bits == self.is
            && self
                .table
                .is_none_or(|table| hw.table_read(table, (entry >> PAGE_SHIFT) as usize & (ENTRIES - 1)) != 0)
    }

    /// What is near what an entry maps, if it may map data.
    #[inline(never)]
    pub(super) fn find<H: Hardware>(machine: &Machine<H>, domain: &Domain, entry: u64) -> Option<Self> {
        let near = Near::find(&machine.hw, domain.stage2_root, data_page(entry)?)?;
        let bits = DATA_PAGE | !LEAF | ADDRESS & !(REGION - 1);
        Some(Self { bits, is: DATA_PAGE | entry & ADDRESS & !(REGION - 1), table: near.table() })
    }
}

/// Bytes that a table of level 3 maps.
const REGION: u64 = (ENTRIES as u64) << PAGE_SHIFT;

/// Whether an entry is empty.
#[inline]
pub(super) const fn is_empty(entry: u64) -> bool {
    entry & VALID == 0
}

/// Whether an entry may be replaced by another in one step.
#[inline]
pub(super) const fn differ_in_permissions(old: u64, new: u64) -> bool {
    (old ^ new) & !PERMISSIONS == 0
}

/// Whether two entries, one of which maps data, differ in what may be done with it, and in nothing else: then the other maps the same data.
#[inline]
pub(super) const fn differ_in_rights(old: u64, new: u64) -> bool {
    (old ^ new) & !(PERMISSIONS & !(PXN | UXN)) == 0
}

/// Decodes an entry of a table of a level. `None` for one that is not allowed.
#[inline(never)]
pub(super) fn decode(entry: u64, level: Level) -> Option<Target> {
    if is_empty(entry) {
        return Some(Target::Nothing);
    }
    if !super::CHECKED {
        return Gfn::new((entry & ADDRESS) >> PAGE_SHIFT).map(Target::Data);
    }
    let gfn = Gfn::new((entry & ADDRESS) >> PAGE_SHIFT).filter(|gfn| gfn.get() < GFN_LIMIT)?;
    let marked = entry & TABLE_OR_PAGE != 0;
    if marked && level != Level::Three {
        return (entry & !LINK == 0).then_some(Target::Counted(gfn, level.linked()?));
    }
    let leaf = if crate::seeded!("xsa-182") { LEAF | 1 << 51 } else { LEAF };
    if marked != (level == Level::Three) || entry & !leaf != 0 {
        return None;
    }
    if !gfn.is_aligned(level.leaf_bits()?.wrapping_sub(PAGE_SHIFT)) && !crate::seeded!("xsa-148") {
        return None;
    }
    match (entry & PXN != 0, entry & UXN != 0) {
        (true, true) => Some(Target::Data(gfn)),
        // Text has pages of its own; what EL1 executes, EL0 has no access to.
        (false, true)
            if level == Level::Three && (entry & EL0 == 0 || crate::seeded!("kernel-text-of-el0")) =>
        {
            Some(Target::Counted(gfn, Role::KernelText))
        }
        (true, false) if level == Level::Three => Some(Target::Counted(gfn, Role::UserText)),
        (false, true | false) | (true, false) => None,
    }
}

/// Checks where an entry leads, and holds it. The domain's lock is held.
///
/// # Errors
/// `-EINVAL`: what it names is not there, or has not the role; `-EBUSY`: it has as many references as can be counted.
#[inline]
pub(super) fn hold<H: Hardware>(machine: &Machine<H>, domain: &Domain, target: Target) -> Result<(), Errno> {
    match target {
        Target::Nothing => Ok(()),
        Target::Data(_) if !super::CHECKED => Ok(()),
        // What EL2 emulates is nothing to stage 2, and where grants come later there may be nothing yet.
        Target::Data(gfn) if layout::BELOW_RAM.contains(&gfn.base().get()) => Ok(()),
        Target::Data(_) if crate::seeded!("xsa-248") => Ok(()),
        Target::Data(gfn) => at(machine, domain, gfn).map(|_| ()),
        Target::Counted(gfn, role) => {
            let mfn = at(machine, domain, gfn)?;
            if crate::seeded!("execute-data") && Level::of(role).is_none() {
                return Ok(());
            }
            let role = if crate::seeded!("xsa-240") { table_at(machine, mfn).unwrap_or(role) } else { role };
            super::role::refer(machine, domain, mfn, role)
        }
    }
}

/// The role of a table, whatever its level.
fn table_at<H: Hardware>(machine: &Machine<H>, mfn: Mfn) -> Option<Role> {
    machine.frames.table.state(mfn).map(|state| state.role).filter(|role| Level::of(*role).is_some())
}

/// Gives back what [`hold`] took.
#[inline(never)]
pub(super) fn release<H: Hardware>(machine: &Machine<H>, domain: &Domain, target: Target) {
    match target {
        Target::Nothing | Target::Data(_) => {}
        Target::Counted(gfn, _) => {
            if let Ok(mfn) = at(machine, domain, gfn) {
                // `hold` took it, and nothing has moved (invariant 2).
                let _ = machine.frames.table.release(mfn);
            }
        }
    }
}

/// The frame at a guest frame.
#[inline]
pub(super) fn at<H: Hardware>(machine: &Machine<H>, domain: &Domain, gfn: Gfn) -> Result<Mfn, Errno> {
    Ok(stage2::lookup(&machine.hw, domain.stage2_root, gfn).ok_or(Errno::Einval)?.mfn)
}
