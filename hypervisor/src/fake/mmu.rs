//! Walks of both stages as the architecture makes them, decoded here once more and independently of [`crate::stage2`], and its rule of breaking before
//! making.
//!
//! A walker sees of a table what was written before the last barrier for stores; what was written since it may see or not, and here does not.
use std::collections::HashMap;

use super::memory::Ram;
use crate::addr::{Ipa, Mfn, Pa};
use crate::hardware::Vmid;

/// What a guest's access ends in when stage 2 does not allow it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage2Fault {
    /// Nothing is mapped there.
    Translation,
    /// It may not be written.
    Permission,
}

/// A translation that the TLB remembers against the tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stale {
    /// The address space.
    pub vmid: Vmid,
    /// The page.
    pub ipa: u64,
}

/// What a guest does at an address of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GuestAccess {
    /// Reads at EL1.
    Read,
    /// Writes at EL1.
    Write,
    /// Executes at EL1.
    Execute,
    /// Executes at EL0.
    ExecuteUser,
}

/// Whose fault an access of a guest's is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GuestFault {
    /// Its own tables'.
    Stage1,
    /// The hypervisor's.
    Stage2,
}

/// What stage 2 says of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Translation {
    pub(super) page: u64,
    pub(super) writable: bool,
    pub(super) executable: bool,
}

pub(super) const VALID: u64 = 1;
pub(super) const ADDRESS: u64 = 0x0000_FFFF_FFFF_F000;
/// `S2AP[1]`.
const WRITE: u64 = 1 << 7;

/// An entry's place: table and index.
pub(super) type At = (u64, usize);

/// What walkers may still read, by place: the entry before the writes that no barrier has shown them.
#[derive(Debug, Default)]
pub(super) struct Unseen(HashMap<At, u64>);

impl Unseen {
    /// The entry as a walker reads it.
    pub(super) fn entry(&self, ram: &Ram, table: Mfn, index: usize) -> u64 {
        let before = if self.0.is_empty() { None } else { self.0.get(&(table.get(), index)) };
        before.copied().unwrap_or_else(|| ram.entry(table, index))
    }

    pub(super) fn written(&mut self, at: At, old: u64) {
        self.0.entry(at).or_insert(old);
    }

    pub(super) fn show(&mut self) {
        self.0.clear();
    }
}

/// D8.2: 40 bits from level 1, two concatenated root tables.
pub(super) fn walk(entry: impl Fn(Mfn, usize) -> u64, root: Mfn, ipa: u64) -> Option<Translation> {
    if ipa >> 40 != 0 {
        return None;
    }
    let mut table = root.base().get() + (ipa >> 39) * 4096;
    for (level, shift) in [(1, 30), (2, 21), (3, 12)] {
        let index = usize::try_from(ipa >> shift & 511).unwrap();
        let entry = entry(Pa::new(table).unwrap().frame(), index);
        match (entry & 0b11, level) {
            (0b11, 1 | 2) => table = entry & ADDRESS,
            (0b01, 1 | 2) | (0b11, 3) => {
                assert!(entry >> 10 & 1 == 1, "access flag clear in a leaf: {entry:#x}");
                assert!(entry >> 6 & 1 == 1, "a leaf that cannot be read: {entry:#x}");
                let within = ipa & ((1 << shift) - 1) & !0xFFF;
                let base = entry & ADDRESS;
                assert!(base & ((1 << shift) - 1) == 0, "misaligned block: {entry:#x}");
                return Some(Translation {
                    page: base + within,
                    writable: entry & WRITE != 0,
                    executable: entry >> 54 & 1 == 0,
                });
            }
            _ => return None,
        }
    }
    None
}

/// An entry that was valid and is not, and what has been invalidated since, on all CPUs.
#[derive(Clone, Copy, Debug)]
struct Broken {
    old: u64,
    /// An entry of stage 2, of which what says so alone is not invalidated yet: what combines both stages goes after that (D8.14.5).
    second: bool,
}

impl Broken {
    /// Whether it mapped a page by an entry of its own, for which an invalidation by address is enough: bits 1:0 and, which a link has not, the access flag.
    const fn is_page(self) -> bool {
        self.old & (0b11 | 1 << 10) == (0b11 | 1 << 10)
    }
}

/// Entries that were valid and are not, until all that came of them is invalidated.
#[derive(Debug, Default)]
pub(super) struct Breaks(HashMap<At, Broken>);

impl Breaks {
    /// Break-before-make (D8.16.1): between two valid and different values of an entry it is invalid and flushed, unless they differ in
    /// permissions only: AP, S2AP (7:6), AF (10), PXN and XN (54:53), software's bits (58:55).
    pub(super) fn written(&mut self, at: At, old: u64, new: u64, second: bool) {
        if old & VALID != 0 {
            assert!(
                new & VALID == 0 || (new ^ old) & !(0b11 << 6 | 1 << 10 | 0b11 << 53 | 0b1111 << 55) == 0,
                "entry {} of {:#x}: {old:#x} to {new:#x} without a break",
                at.1,
                at.0
            );
            if new & VALID == 0 {
                self.0.insert(at, Broken { old, second });
            }
        } else if new & VALID != 0
            && let Some(broken) = self.0.remove(&at)
        {
            assert!(
                broken.old == new,
                "entry {} of {:#x}: {:#x} to {new:#x} without a flush",
                at.1,
                at.0,
                broken.old
            );
        }
    }

    /// What stage 2 alone says of a page is gone everywhere. A link or block needs more than that.
    pub(super) fn second_page(&mut self, ipa: Ipa) {
        let index = usize::try_from(ipa.get() >> 12 & 511).unwrap();
        for ((_, at), broken) in &mut self.0 {
            broken.second &= *at != index || !broken.is_page();
        }
    }

    /// Stage 1 and what combines both is gone everywhere.
    pub(super) fn first(&mut self) {
        self.0.retain(|_, broken| broken.second);
    }

    /// What stage 1 says of an address is gone everywhere.
    pub(super) fn first_address(&mut self, va: u64) {
        let index = usize::try_from(va >> 12 & 511).unwrap();
        self.0.retain(|(_, at), broken| broken.second || *at != index || !broken.is_page());
    }

    /// Everything is gone everywhere.
    pub(super) fn all(&mut self) {
        self.0.clear();
    }
}

/// Whether an entry of stage 2 lets its page be written that could not be before.
pub(super) const fn allows_writing(old: u64, new: u64) -> bool {
    old & new & VALID != 0 && !old & new & WRITE != 0
}
