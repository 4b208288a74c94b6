//! The TLBs of the fake machine's CPUs, which forget only what they are told to, and fill themselves whenever they may.
//!
//! Invariants
//! 1. Each CPU remembers three things (D8.14): what stage 2 alone says of a page; what stage 1 says of an address, by ASID or for all, with every entry
//!    on the way; and with that what both say together. An invalidation takes of these what the Arm ARM says of the instruction, and nothing
//!    else, from the CPUs that it reaches.
//! 2. It has done so only when a DSB of the CPU that executed it says so. Of several that wait for one DSB the last may come first.
//! 3. Before a table changes, and before and after each invalidation, every CPU translates again what it did last by the roots that it has: speculation
//!    may do that at any time, and these are the times that matter.
//! 4. A translation is found by root and ASID, though hardware looks at the ASID alone: a guest that gives two roots one ASID confuses itself.
use std::collections::HashMap;
use std::vec::Vec;

use super::memory::Ram;
use super::mmu::{
    ADDRESS, At, Breaks, GuestAccess, GuestFault, Stage2Fault, Stale, Translation, Unseen, VALID,
    allows_writing, walk,
};
use crate::addr::{FrameAddr, Ipa, Mfn, Pa};
use crate::hardware::{Access, CpuId, Vmid};
use crate::tlb::{Barrier, Tlbi};

/// CPUs of a fake machine.
pub(super) const CPUS: usize = 8;
/// Addresses that a CPU translates by itself.
const WANTED: usize = 4;
/// `nG`.
const NOT_GLOBAL: u64 = 1 << 11;

/// A page of stage 2, with the root that says so.
type Second = (Mfn, u64, Translation);

/// A leaf of stage 1.
#[derive(Clone, Debug)]
struct First {
    leaf: u64,
    page: u64,
    /// None when it is for all.
    asid: Option<u16>,
    /// Place and entry of each level.
    path: Vec<(At, u64)>,
    /// Where stage 2 says that the tables are.
    tables: Vec<Second>,
    /// Where it says that the page is, once it was used: both stages together.
    both: Option<Second>,
}

/// VMID, root and ASID as a `TTBR`, bits 55:12 of the address.
type Key = (u16, u64, u64);

#[derive(Debug, Default)]
struct Cpu {
    second: HashMap<(u16, u64), (Mfn, Translation)>,
    first: HashMap<Key, First>,
    /// `TTBR0_EL1` and `TTBR1_EL1`.
    bases: [u64; 2],
    /// What it has translated last by these, and the root of stage 2.
    wanted: Vec<(Key, Mfn)>,
}

#[derive(Debug, Default)]
pub(super) struct Tlbs {
    cpus: [Cpu; CPUS],
    /// Who executes what comes.
    current: usize,
    /// Invalidations that no DSB has waited for, by who executed them.
    pending: Vec<(usize, Vmid, Tlbi)>,
    unseen: Unseen,
    breaks: Breaks,
}

/// A page's number by bits 55:12 of an address, which are what TLBs compare.
const fn page_of(va: u64) -> u64 {
    va << 8 >> 20
}

impl Cpu {
    fn second(
        &mut self,
        read: impl Fn(Mfn, usize) -> u64,
        vmid: u16,
        root: Mfn,
        ipa: u64,
    ) -> Option<Translation> {
        let page = ipa & !0xFFF;
        if let Some((_, found)) = self.second.get(&(vmid, page)) {
            return Some(*found);
        }
        let found = walk(read, root, page)?;
        self.second.insert((vmid, page), (root, found));
        Some(found)
    }

    /// What stage 1 says. D8.2: 48 bits, 4 KiB pages, from level 0. Every table is read where stage 2 says that it is.
    fn first(
        &mut self,
        read: impl Fn(Mfn, usize) -> u64 + Copy,
        (vmid, base, page): Key,
        root: Mfn,
    ) -> Result<First, GuestFault> {
        if let Some(found) = self.first.get(&(vmid, base, page)) {
            return Ok(found.clone());
        }
        let (mut table, mut path, mut tables) = (base & ADDRESS, Vec::new(), Vec::new());
        for (level, shift) in [(0, 39), (1, 30), (2, 21), (3, 12)] {
            let there = self.second(read, vmid, root, table).ok_or(GuestFault::Stage2)?;
            tables.push((root, table, there));
            let at = Pa::new(there.page).unwrap().frame();
            let index = usize::try_from(page << 12 >> shift & 511).unwrap();
            let entry = read(at, index);
            path.push(((at.get(), index), entry));
            match (entry & 0b11, level) {
                (0b11, 0..=2) => table = entry & ADDRESS,
                (0b01, 1 | 2) | (0b11, 3) => {
                    let page = entry & ADDRESS | page << 12 & ((1 << shift) - 1) & !0xFFF;
                    let asid = (entry & NOT_GLOBAL != 0).then_some((base >> 48) as u16);
                    return Ok(First { leaf: entry, page, asid, path, tables, both: None });
                }
                _ => return Err(GuestFault::Stage1),
            }
        }
        Err(GuestFault::Stage1)
    }

    /// What both say together, remembered.
    fn both(
        &mut self,
        read: impl Fn(Mfn, usize) -> u64 + Copy,
        key: Key,
        root: Mfn,
        permits: impl Fn(u64) -> bool,
    ) -> Result<Translation, GuestFault> {
        let mut found = self.first(read, key, root)?;
        self.first.insert(key, found.clone());
        if !permits(found.leaf) {
            return Err(GuestFault::Stage1);
        }
        if let Some((.., there)) = found.both {
            return Ok(there);
        }
        let there = self.second(read, key.0, root, found.page).ok_or(GuestFault::Stage2)?;
        found.both = Some((root, found.page, there));
        self.first.insert(key, found);
        Ok(there)
    }

    /// Translates again what it did last.
    fn speculate(&mut self, read: impl Fn(Mfn, usize) -> u64 + Copy) {
        for (key, root) in self.wanted.clone() {
            let _ = self.both(read, key, root, |_| true);
        }
    }

    fn forget(&mut self, of: u16, what: Tlbi) {
        match what {
            Tlbi::Stage2Page(ipa) => {
                self.second.remove(&(of, ipa.frame().base().get()));
            }
            Tlbi::Stage1 | Tlbi::Stage1Here => self.first.retain(|(vmid, ..), _| *vmid != of),
            Tlbi::Stage1Address(va) => {
                self.first.retain(|(vmid, _, page), _| *vmid != of || *page != page_of(va.get()));
            }
            Tlbi::All | Tlbi::AllHere => {
                self.first.retain(|(vmid, ..), _| *vmid != of);
                self.second.retain(|(vmid, _), _| *vmid != of);
            }
            Tlbi::Stage1Asid(asid) => {
                self.first.retain(|(vmid, ..), found| *vmid != of || found.asid != Some(asid));
            }
        }
    }
}

impl Tlbs {
    /// Who executes what comes.
    pub(super) fn run_on(&mut self, cpu: CpuId) {
        self.current = usize::from(cpu.0) % CPUS;
    }

    pub(super) fn bases(&self) -> [u64; 2] {
        self.cpus[self.current].bases
    }

    /// Walks of this CPU begin here from now on.
    pub(super) fn set_base(&mut self, half: usize, base: u64) {
        let cpu = &mut self.cpus[self.current];
        cpu.bases[half] = base;
        let bases = cpu.bases;
        cpu.wanted.retain(|((_, by, _), _)| bases.contains(by));
    }

    fn speculate(&mut self, ram: &Ram) {
        let unseen = &self.unseen;
        for cpu in &mut self.cpus {
            cpu.speculate(|table, index| unseen.entry(ram, table, index));
        }
    }

    /// A guest's access past its stage 1.
    pub(super) fn access(
        &mut self,
        ram: &Ram,
        vmid: Vmid,
        root: Mfn,
        ipa: Ipa,
        access: Access,
    ) -> Result<FrameAddr, Stage2Fault> {
        let unseen = &self.unseen;
        let found = self.cpus[self.current]
            .second(|table, index| unseen.entry(ram, table, index), vmid.0, root, ipa.get())
            .ok_or(Stage2Fault::Translation)?;
        if access == Access::Write && !found.writable {
            return Err(Stage2Fault::Permission);
        }
        Ok(FrameAddr::new(Pa::new(found.page).unwrap().frame(), ipa.page_offset()).unwrap())
    }

    /// A guest's access by its own tables.
    pub(super) fn access_both(
        &mut self,
        ram: &Ram,
        vmid: Vmid,
        root: Mfn,
        base: u64,
        va: u64,
        access: GuestAccess,
    ) -> Result<FrameAddr, GuestFault> {
        let (unseen, cpu) = (&self.unseen, &mut self.cpus[self.current]);
        let key = (vmid.0, base, page_of(va));
        if cpu.bases.contains(&base) && !cpu.wanted.contains(&(key, root)) {
            if cpu.wanted.len() == WANTED {
                cpu.wanted.remove(0);
            }
            cpu.wanted.push((key, root));
        }
        let permits = |leaf: u64| match access {
            GuestAccess::Read => true,
            GuestAccess::Write => leaf >> 7 & 1 == 0,
            GuestAccess::Execute => leaf >> 53 & 1 == 0,
            GuestAccess::ExecuteUser => leaf >> 54 & 1 == 0,
        };
        let found = cpu.both(|table, index| unseen.entry(ram, table, index), key, root, permits)?;
        let refused = match access {
            GuestAccess::Read => false,
            GuestAccess::Write => !found.writable,
            GuestAccess::Execute | GuestAccess::ExecuteUser => !found.executable,
        };
        let offset = usize::try_from(va & 0xFFF).unwrap();
        let at = FrameAddr::new(Pa::new(found.page).unwrap().frame(), offset).unwrap();
        if refused { Err(GuestFault::Stage2) } else { Ok(at) }
    }

    /// The first translation of any CPU's that the tables do not give any more.
    pub(super) fn stale(&self, ram: &Ram) -> Option<Stale> {
        let now = |root: Mfn, ipa: u64| walk(|table, index| ram.entry(table, index), root, ipa);
        self.cpus.iter().find_map(|cpu| {
            let first = cpu.first.iter().find_map(|((vmid, _, page), found)| {
                let changed = |((table, index), entry): &(At, u64)| {
                    ram.entry(Mfn::new(*table).unwrap(), *index) != *entry
                };
                let moved = |(root, ipa, there): &Second| now(*root, *ipa) != Some(*there);
                let stale =
                    found.path.iter().any(changed) || found.tables.iter().chain(&found.both).any(moved);
                stale.then_some(Stale { vmid: Vmid(*vmid), ipa: *page << 12 })
            });
            first.or_else(|| {
                cpu.second.iter().find_map(|((vmid, ipa), (root, kept))| {
                    (now(*root, *ipa) != Some(*kept)).then_some(Stale { vmid: Vmid(*vmid), ipa: *ipa })
                })
            })
        })
    }

    /// An entry is about to be written, of stage 2 or by a domain's leave.
    pub(super) fn writes(&mut self, ram: &Ram, table: Mfn, index: usize, new: u64, second: bool) {
        let (at, old) = ((table.get(), index), ram.entry(table, index));
        if old == new {
            return;
        }
        self.speculate(ram);
        self.breaks.written(at, old, new, second);
        if second && allows_writing(old, new) {
            let page = (new & ADDRESS) >> 12;
            let walked = |found: &First| found.path.iter().any(|((table, _), _)| *table == page);
            assert!(
                !self.cpus.iter().any(|cpu| cpu.first.values().any(walked)),
                "frame {page:#x} can be written while a TLB walks by it"
            );
        }
        if (old | new) & VALID != 0 {
            self.unseen.written(at, old);
        }
    }

    /// An instruction is executed; it is not complete.
    pub(super) fn invalidate(&mut self, vmid: Vmid, what: Tlbi) {
        self.pending.push((self.current, vmid, what));
    }

    pub(super) fn wait(&mut self, ram: &Ram, barrier: Barrier) {
        match barrier {
            Barrier::Stores => self.unseen.show(),
            Barrier::Everywhere | Barrier::Here => {
                let all = core::mem::take(&mut self.pending);
                let (own, others) = all.into_iter().partition(|(by, ..)| *by == self.current);
                self.pending = others;
                for (by, vmid, what) in Vec::into_iter(own).rev() {
                    self.complete(ram, by, vmid, what, barrier);
                }
                // It is one for stores too.
                self.unseen.show();
            }
            Barrier::Context => {}
        }
    }

    fn complete(&mut self, ram: &Ram, by: usize, vmid: Vmid, what: Tlbi, barrier: Barrier) {
        let everywhere = match what {
            Tlbi::Stage1Here | Tlbi::AllHere => false,
            Tlbi::Stage2Page(_) | Tlbi::Stage1 | Tlbi::Stage1Address(_) | Tlbi::All | Tlbi::Stage1Asid(_) => {
                barrier == Barrier::Everywhere
            }
        };
        self.speculate(ram);
        for (number, cpu) in self.cpus.iter_mut().enumerate() {
            if everywhere || number == by {
                cpu.forget(vmid.0, what);
            }
        }
        if everywhere {
            match what {
                Tlbi::Stage2Page(ipa) => self.breaks.second_page(ipa),
                Tlbi::Stage1 => self.breaks.first(),
                Tlbi::Stage1Address(va) => self.breaks.first_address(va.get()),
                Tlbi::All => self.breaks.all(),
                Tlbi::Stage1Here | Tlbi::AllHere | Tlbi::Stage1Asid(_) => {}
            }
        }
        self.speculate(ram);
    }
}
