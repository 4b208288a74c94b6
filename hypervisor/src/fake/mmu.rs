//! Stage 2 as the architecture walks it, decoded here once more and independently of [`crate::stage2`], and a TLB that forgets only what it is
//! told to.
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::vec::Vec;

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

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Translation {
    page: u64,
    writable: bool,
    executable: bool,
}

/// A leaf of stage 1, with everything that was read to find it.
#[derive(Clone, Debug)]
struct Stage1 {
    leaf: u64,
    page: u64,
    /// (place, entry) of each level.
    path: Vec<(u64, usize, u64)>,
}

#[derive(Debug, Default)]
pub(super) struct Tlb {
    entries: HashMap<(u16, u64), (Mfn, Translation)>,
    /// By VMID, base and page: what stage 1 said.
    first: HashMap<(u16, u64, u64), Stage1>,
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
                return Some(Translation {
                    page: base + within,
                    writable: entry >> 7 & 1 == 1,
                    executable: entry >> 54 & 1 == 0,
                });
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

    /// D8.2: 48 bits, 4 KiB pages, from level 0. Every table is read through stage 2.
    pub(super) fn access_both(
        &mut self,
        ram: &Ram,
        vmid: Vmid,
        root: Mfn,
        base: u64,
        va: u64,
        access: GuestAccess,
    ) -> Result<FrameAddr, GuestFault> {
        let key = (vmid.0, base, va >> 12);
        let found = match self.first.get(&key) {
            Some(found) => found.clone(),
            None => self.walk_first(ram, vmid, root, base, va)?,
        };
        self.first.insert(key, found.clone());
        let bit = |n: u32| found.leaf >> n & 1 == 1;
        let allowed = match access {
            GuestAccess::Read => true,
            GuestAccess::Write => !bit(7),
            GuestAccess::Execute => !bit(53),
            GuestAccess::ExecuteUser => !bit(54),
        };
        if !allowed {
            return Err(GuestFault::Stage1);
        }
        let ipa = Ipa::new(found.page | va & 0xFFF).ok_or(GuestFault::Stage1)?;
        let how = if access == GuestAccess::Write { Access::Write } else { Access::Read };
        let at = self.access(ram, vmid, root, ipa, how).map_err(|_| GuestFault::Stage2)?;
        let (_, second) = self.entries[&(vmid.0, ipa.frame().base().get())];
        let executes = matches!(access, GuestAccess::Execute | GuestAccess::ExecuteUser);
        if executes && !second.executable { Err(GuestFault::Stage2) } else { Ok(at) }
    }

    fn walk_first(
        &mut self,
        ram: &Ram,
        vmid: Vmid,
        root: Mfn,
        base: u64,
        va: u64,
    ) -> Result<Stage1, GuestFault> {
        let mut table = base & ADDRESS;
        let mut path = Vec::new();
        for (level, shift) in [(0, 39), (1, 30), (2, 21), (3, 12)] {
            let ipa = Ipa::new(table).ok_or(GuestFault::Stage1)?;
            let at = self.access(ram, vmid, root, ipa, Access::Read).map_err(|_| GuestFault::Stage2)?;
            let index = usize::try_from(va >> shift & 511).unwrap();
            let entry = ram.entry(at.frame(), index);
            path.push((at.frame().get(), index, entry));
            match (entry & 0b11, level) {
                (0b11, 0..=2) => table = entry & ADDRESS,
                (0b01, 1 | 2) | (0b11, 3) => {
                    let page = entry & ADDRESS | va & ((1 << shift) - 1) & !0xFFF;
                    return Ok(Stage1 { leaf: entry, page, path });
                }
                _ => return Err(GuestFault::Stage1),
            }
        }
        Err(GuestFault::Stage1)
    }

    /// A translation of stage 1 that the tables do not give any more.
    fn stale_first(&self, ram: &Ram) -> Option<Stale> {
        self.first.iter().find_map(|((vmid, _, page), found)| {
            let changed = |(frame, index, entry): &(u64, usize, u64)| {
                ram.entry(Mfn::new(*frame).unwrap(), *index) != *entry
            };
            found.path.iter().any(changed).then_some(Stale { vmid: Vmid(*vmid), ipa: *page << 12 })
        })
    }

    pub(super) fn flush_stage1(&mut self, vmid: Vmid) {
        self.first.retain(|(of, ..), _| *of != vmid.0);
        self.broken.clear();
    }

    pub(super) fn flush_stage1_address(&mut self, vmid: Vmid, va: u64) {
        self.first.retain(|(of, _, page), _| *of != vmid.0 || *page != va << 16 >> 28);
    }

    pub(super) fn stale(&self, ram: &Ram) -> Option<Stale> {
        if let Some(stale) = self.stale_first(ram) {
            return Some(stale);
        }
        self.entries.iter().find_map(|((vmid, ipa), (root, kept))| {
            (walk(ram, *root, *ipa) != Some(*kept)).then_some(Stale { vmid: Vmid(*vmid), ipa: *ipa })
        })
    }

    /// Break-before-make (D8.16.1): between two valid and different values of an entry it is invalid and flushed, unless they differ in
    /// permissions only: AP, S2AP (7:6), AF (10), PXN and XN (54:53), software's bits (58:55).
    pub(super) fn table_written(&mut self, table: Mfn, index: usize, old: u64, new: u64) {
        let at = (table.get(), index);
        if old & VALID != 0 {
            assert!(
                new & VALID == 0 || (new ^ old) & !(0b11 << 6 | 1 << 10 | 0b11 << 53 | 0b1111 << 55) == 0,
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

    /// A leaf of stage 2 is written: a page that the guest may write from here on is none by which a TLB walks.
    pub(super) fn stage2_written(&self, old: u64, new: u64) {
        const WRITE: u64 = 1 << 7;
        if old & new & VALID != 0 && !old & new & WRITE != 0 {
            let page = (new & ADDRESS) >> 12;
            let walked = |found: &Stage1| found.path.iter().any(|(frame, ..)| *frame == page);
            assert!(
                !self.first.values().any(walked),
                "frame {page:#x} can be written while a TLB walks by it"
            );
        }
    }

    pub(super) fn flush_page(&mut self, vmid: Vmid, ipa: Ipa) {
        self.entries.remove(&(vmid.0, ipa.frame().base().get()));
        self.first.retain(|(of, ..), _| *of != vmid.0);
        let index = usize::try_from(ipa.get() >> 12 & 511).unwrap();
        // Only a page's own entry: a table or block needs `flush_all`.
        self.broken.retain(|(_, at), old| *at != index || *old & 0b11 != 0b11);
    }

    pub(super) fn flush_all(&mut self, vmid: Vmid) {
        self.entries.retain(|(of, _), _| *of != vmid.0);
        self.first.retain(|(of, ..), _| *of != vmid.0);
        self.broken.clear();
    }
}
