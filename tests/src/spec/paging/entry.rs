//! Entries of stage 1 (Arm ARM D8.3, 4 KiB granule, 48 bits) and the registers that control how they are walked (D24.2): what they may say, wherever
//! they lead.
use super::super::{GFN_LIMIT, Gfn};
use super::Role;

/// `SCTLR_EL1`, `TCR_EL1`, `MAIR_EL1`.
pub type Controls = [u64; 3];

/// What an entry says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Meaning {
    /// Nothing.
    Empty,
    /// Maps what nobody executes.
    Data(Gfn),
    /// Links a table, or lets text be executed: what is there must have this role, and is counted.
    Counted(Gfn, Role),
}

/// Bits of an entry.
pub(super) mod bit {
    pub(in crate::spec) const VALID: u64 = 1;
    /// A link at levels 0 to 2, a page at level 3.
    pub(in crate::spec) const KIND: u64 = 1 << 1;
    pub(in crate::spec) const MEMORY_TYPE: u64 = 7 << 2;
    pub(in crate::spec) const EL0: u64 = 1 << 6;
    pub(in crate::spec) const READ_ONLY: u64 = 1 << 7;
    pub(in crate::spec) const SHAREABILITY: u64 = 3 << 8;
    pub(in crate::spec) const ACCESSED: u64 = 1 << 10;
    pub(in crate::spec) const NOT_GLOBAL: u64 = 1 << 11;
    pub(in crate::spec) const OUTPUT: u64 = 0xFFFF_FFFF_F000;
    pub(in crate::spec) const PXN: u64 = 1 << 53;
    pub(in crate::spec) const UXN: u64 = 1 << 54;
    /// Left to software.
    pub(in crate::spec) const IGNORED: u64 = 15 << 55;
    pub(in crate::spec) const OF_LINK: u64 = VALID | KIND | OUTPUT | IGNORED;
    pub(in crate::spec) const OF_LEAF: u64 =
        OF_LINK | MEMORY_TYPE | EL0 | READ_ONLY | SHAREABILITY | ACCESSED | NOT_GLOBAL | PXN | UXN;
}

/// What an entry of a table of a level says; nothing for one that is refused, wherever it leads.
pub fn meaning(entry: u64, level: u8) -> Option<Meaning> {
    if entry & bit::VALID == 0 {
        return Some(Meaning::Empty);
    }
    let gfn = (entry & bit::OUTPUT) >> 12;
    if gfn >= GFN_LIMIT {
        return None;
    }
    match (level, entry & bit::KIND != 0) {
        (0..=2, true) => {
            let table = Role::Table(level + 1);
            (entry & !bit::OF_LINK == 0).then_some(Meaning::Counted(gfn, table))
        }
        (1 | 2, false) | (3, true) => {
            let pages = 1_u64 << (9 * (3 - level));
            if entry & !bit::OF_LEAF != 0 || !gfn.is_multiple_of(pages) {
                return None;
            }
            match (entry & bit::PXN == 0, entry & bit::UXN == 0) {
                (false, false) => Some(Meaning::Data(gfn)),
                // Text is mapped by pages, for one level, and the kernel's is none of EL0's.
                (true, false) if level == 3 && entry & bit::EL0 == 0 => {
                    Some(Meaning::Counted(gfn, Role::KernelText))
                }
                (false, true) if level == 3 => Some(Meaning::Counted(gfn, Role::UserText)),
                _ => None,
            }
        }
        _ => None,
    }
}

/// Whether the trust in a domain may end with these controls.
pub fn sound([sctlr, tcr, _]: Controls) -> bool {
    let mmu_and_caches = 1 | 1 << 2;
    let big_endian = 1 << 24 | 1 << 25;
    // T0SZ and T1SZ 16 (48 bits), TG0 0 and TG1 2 (4 KiB), IRGN and ORGN 1, SH 3, IPS 2 (40 bits); all but EPD0, EPD1, AS, TBI0, TBI1.
    let walks = |shift: u32| (16 | 1 << 8 | 1 << 10 | 3 << 12) << shift;
    let fixed = walks(0) | walks(16) | 2 << 30 | 2 << 32;
    let open = 1 << 7 | 1 << 23 | 1 << 36 | 1 << 37 | 1 << 38;
    sctlr & mmu_and_caches == mmu_and_caches && sctlr & big_endian == 0 && tcr & !open == fixed
}

/// Whether a guest whose controls are `fixed` may write register `which` of them.
pub fn permits(fixed: Controls, which: usize, value: u64) -> bool {
    let changed = fixed[which] ^ value;
    let open = match which {
        // A, SA, SA0, UMA, I, DZE, UCT, nTWI, nTWE, WXN, SPAN, UCI, BT0, BT1, DSSBS.
        0 => [1, 3, 4, 9, 12, 14, 15, 16, 18, 19, 23, 26, 35, 36, 44].iter().map(|bit| 1 << bit).sum(),
        // EPD0, EPD1.
        1 => 1 << 7 | 1 << 23,
        _ => 0,
    };
    changed & !open == 0
}

/// The levels that an address is translated by, with the entry of each.
pub(super) fn indices(va: u64) -> [usize; 4] {
    [39, 30, 21, 12].map(|shift| (va >> shift & 511) as usize)
}

/// Half of the address space that an address is in: 0 the lower, 1 the upper.
pub(super) fn half(va: u64) -> Option<usize> {
    match va >> 48 {
        0 => Some(0),
        0xFFFF => Some(1),
        _ => None,
    }
}
