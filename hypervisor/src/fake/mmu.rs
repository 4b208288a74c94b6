//! Stage 2 as the architecture walks it, decoded here once more and independently of [`crate::stage2`], and a TLB that forgets only what it is
//! told to.
use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::memory::Ram;
use crate::addr::{FrameAddr, Ipa, Mfn, Pa};
use crate::hardware::{Access, Vmid};

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

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Translation {
    page: u64,
    writable: bool,
}

#[derive(Debug, Default)]
pub(super) struct Tlb {
    entries: HashMap<(u16, u64), (Mfn, Translation)>,
    /// Entries that were valid and are not, with what they were, until the flush that they need.
    broken: HashMap<(u64, usize), u64>,
}

const VALID: u64 = 1;
const ADDRESS: u64 = 0x0000_FFFF_FFFF_F000;

/// D8.2: 40 bits from level 1, two concatenated root tables.
fn walk(ram: &Ram, root: Mfn, ipa: u64) -> Option<Translation> {
    if ipa >> 40 != 0 {
        return None;
    }
    let mut table = root.base().get() + (ipa >> 39) * 4096;
    for (level, shift) in [(1, 30), (2, 21), (3, 12)] {
        let index = usize::try_from(ipa >> shift & 511).unwrap();
        let entry = ram.entry(Pa::new(table).unwrap().frame(), index);
        match (entry & 0b11, level) {
            (0b11, 1 | 2) => table = entry & ADDRESS,
            (0b01, 1 | 2) | (0b11, 3) => {
                assert!(entry >> 10 & 1 == 1, "access flag clear in a leaf: {entry:#x}");
                assert!(entry >> 6 & 1 == 1, "a leaf that cannot be read: {entry:#x}");
                let within = ipa & ((1 << shift) - 1) & !0xFFF;
                let base = entry & ADDRESS;
                assert!(base & ((1 << shift) - 1) == 0, "misaligned block: {entry:#x}");
                return Some(Translation { page: base + within, writable: entry >> 7 & 1 == 1 });
            }
            _ => return None,
        }
    }
    None
}

impl Tlb {
    pub(super) fn access(
        &mut self,
        ram: &Ram,
        vmid: Vmid,
        root: Mfn,
        ipa: Ipa,
        access: Access,
    ) -> Result<FrameAddr, Stage2Fault> {
        let page = ipa.frame().base().get();
        let (_, found) = match self.entries.entry((vmid.0, page)) {
            Entry::Occupied(entry) => *entry.get(),
            Entry::Vacant(entry) => {
                *entry.insert((root, walk(ram, root, ipa.get()).ok_or(Stage2Fault::Translation)?))
            }
        };
        if access == Access::Write && !found.writable {
            return Err(Stage2Fault::Permission);
        }
        Ok(FrameAddr::new(Pa::new(found.page).unwrap().frame(), ipa.page_offset()).unwrap())
    }

    pub(super) fn stale(&self, ram: &Ram) -> Option<Stale> {
        self.entries.iter().find_map(|((vmid, ipa), (root, kept))| {
            (walk(ram, *root, *ipa) != Some(*kept)).then_some(Stale { vmid: Vmid(*vmid), ipa: *ipa })
        })
    }

    /// Break-before-make (D8.16.1): between two valid and different values of an entry it is invalid and flushed.
    pub(super) fn table_written(&mut self, table: Mfn, index: usize, old: u64, new: u64) {
        let at = (table.get(), index);
        if old & VALID != 0 {
            assert!(
                new & VALID == 0 || new == old,
                "entry {index} of {:#x}: {old:#x} to {new:#x} without a break",
                at.0
            );
            if new & VALID == 0 {
                self.broken.insert(at, old);
            }
        } else if new & VALID != 0
            && let Some(broken) = self.broken.remove(&at)
        {
            assert!(broken == new, "entry {index} of {:#x}: {:#x} to {new:#x} without a flush", at.0, broken);
        }
    }

    pub(super) fn flush_page(&mut self, vmid: Vmid, ipa: Ipa) {
        self.entries.remove(&(vmid.0, ipa.frame().base().get()));
        let index = usize::try_from(ipa.get() >> 12 & 511).unwrap();
        // Only a page's own entry: a table or block needs `flush_all`.
        self.broken.retain(|(_, at), old| *at != index || *old & 0b11 != 0b11);
    }

    pub(super) fn flush_all(&mut self, vmid: Vmid) {
        self.entries.retain(|(of, _), _| *of != vmid.0);
        self.broken.clear();
    }
}
