//! Address spaces made of pages: the upper half of the kernel's, and those of processes. The same in both kinds of domain: with
//! paravirtual page tables ([`pv`]) every change is a call, else a store and the invalidation that it needs.
//!
//! 1. A table is a page of the heap, at the address where it is for the hypervisor too. From its pin to its unpin it is written by calls only.
//! 2. What an entry maps belongs to the owner of the space: dropping a space frees its tables, not the pages.
#![expect(unsafe_code, reason = "page tables")]
use core::alloc::Layout;

use alloc::vec::Vec;
use pv_abi::paging::{ExtOp, MmuExtOp, MmuUpdate};
use pv_abi::{Errno, PAGE_SIZE};

use crate::cpu;
use crate::pv::{self, Page};

/// A page, bytes.
pub const PAGE: u64 = PAGE_SIZE as u64;
const ENTRIES: u64 = 512;
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
const VALID: u64 = 1 << 0;
/// A link, or a page.
const TABLE: u64 = 1 << 1;
/// Valid, page, normal memory, inner shareable, accessed, of this ASID.
const LEAF: u64 = VALID | TABLE | 3 << 8 | 1 << 10 | 1 << 11;
const EL0: u64 = 1 << 6;
const READ_ONLY: u64 = 1 << 7;
const PXN: u64 = 1 << 53;
const UXN: u64 = 1 << 54;
/// For the owner: a private page that is shared until somebody writes to it.
const COPY_ON_WRITE: u64 = 1 << 55;

/// What may be done with a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rights {
    /// The kernel reads.
    Constant,
    /// The kernel reads and writes.
    Data,
    /// EL0 reads and executes; the kernel does not execute.
    UserText,
    /// EL0 reads.
    UserConstant,
    /// EL0 reads and writes.
    UserData,
    /// EL0 reads, and gets a page of its own when it writes.
    UserCopied,
}

/// An entry of level 3.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Entry(u64);

impl Entry {
    /// Nothing.
    pub const EMPTY: Self = Self(0);

    /// The page at a physical address.
    pub const fn page(at: u64, rights: Rights) -> Self {
        let rights = match rights {
            Rights::Constant => READ_ONLY | PXN | UXN,
            Rights::Data => PXN | UXN,
            Rights::UserText => READ_ONLY | PXN | EL0,
            Rights::UserConstant => READ_ONLY | PXN | UXN | EL0,
            Rights::UserData => PXN | UXN | EL0,
            Rights::UserCopied => READ_ONLY | PXN | UXN | EL0 | COPY_ON_WRITE,
        };
        Self(at & ADDRESS | LEAF | rights)
    }

    /// Any 64 bits: what they mean is for the hypervisor to say.
    pub const fn raw(bits: u64) -> Self {
        Self(bits)
    }

    /// Its bits.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The page that it maps.
    pub const fn target(self) -> Option<u64> {
        if self.0 & VALID != 0 { Some(self.0 & ADDRESS) } else { None }
    }

    /// Whether writing makes a copy.
    pub const fn is_copied(self) -> bool {
        self.0 & COPY_ON_WRITE != 0
    }

    /// Whether it is text.
    pub const fn is_text(self) -> bool {
        self.0 & (VALID | UXN) == VALID
    }
}

// SAFETY: a power of two, and far from the end of addresses.
const LAYOUT: Layout = unsafe { Layout::from_size_align_unchecked(PAGE_SIZE, PAGE_SIZE) };

/// Takes a page of zeros; its physical address.
///
/// # Errors
/// `-ENOMEM`
pub fn take_page() -> Result<u64, Errno> {
    // SAFETY: the layout has a size.
    let page = unsafe { alloc::alloc::alloc_zeroed(LAYOUT) };
    if page.is_null() { Err(Errno::Enomem) } else { Ok(page.expose_provenance() as u64) }
}

/// Gives a page back.
///
/// # Safety
/// It came from [`take_page`], nobody uses it, and it is data.
pub unsafe fn give_page(at: u64) {
    let page = core::ptr::with_exposed_provenance_mut(at as usize);
    // SAFETY: the caller's promise.
    unsafe { alloc::alloc::dealloc(page, LAYOUT) };
}

fn entry_at(table: u64, index: u64) -> *mut u64 {
    core::ptr::with_exposed_provenance_mut((table + 8 * index) as usize)
}

fn get(table: u64, index: u64) -> u64 {
    // SAFETY: invariant 1: tables are mapped to themselves; the hypervisor may have written it.
    unsafe { entry_at(table, index).read_volatile() }
}

/// Writes an entry of a table that is not pinned.
fn put(at: u64, entry: u64) {
    // SAFETY: invariant 1: an entry of a table of a space; a table that is pinned cannot be written, which is a fault.
    unsafe { entry_at(at, 0).write_volatile(entry) };
}

const fn index(address: u64, level: u64) -> u64 {
    address >> (39 - 9 * level) & (ENTRIES - 1)
}

/// The tables of one half of the addresses.
pub struct Space {
    root: u64,
    asid: u16,
}

/// Changes that are collected, and made together.
#[derive(Default)]
pub struct Changes {
    updates: Vec<MmuUpdate>,
}

impl Changes {
    /// None yet, with room.
    pub fn with_room(count: usize) -> Self {
        Self { updates: Vec::with_capacity(count) }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.updates.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.updates.is_empty()
    }

    /// Makes them, in order; complete on all CPUs when this returns.
    ///
    /// # Errors
    /// Those of `mmu_update.mmu_update` in docs/abi.md with checked page tables, otherwise none; the changes before are made.
    ///
    /// # Safety
    /// Nobody relies on what was mapped, and what is mapped then is the owner's.
    pub unsafe fn make(self) -> Result<(), Errno> {
        if self.updates.is_empty() {
            return Ok(());
        }
        if pv::is_on() {
            // SAFETY: the caller's promise.
            return unsafe { pv::update(&self.updates) }.map_err(|(errno, _)| errno);
        }
        for update in &self.updates {
            put(update.ptr, update.val);
        }
        cpu::flush_tlb();
        Ok(())
    }
}

impl Space {
    /// The upper half of the kernel's, whose root is there for ever.
    pub(crate) const fn upper(root: u64) -> Self {
        Self { root, asid: 0 }
    }

    /// A lower half that has the kernel's part in common, and nothing else yet.
    ///
    /// # Errors
    /// `-ENOMEM`, or with checked page tables those of `mmuext_op.pin_l4_table` in docs/abi.md.
    pub fn new(kernel: u64, asid: u16) -> Result<Self, Errno> {
        let root = take_page()?;
        put(root, kernel);
        let space = Self { root, asid };
        Self::pin(&[(0, root)])?;
        Ok(space)
    }

    /// Its root.
    pub const fn root(&self) -> u64 {
        self.root
    }

    /// Its ASID.
    pub const fn asid(&self) -> u16 {
        self.asid
    }

    /// Has tables checked that were made, in this order.
    fn pin(tables: &[(usize, u64)]) -> Result<(), Errno> {
        if !pv::is_on() {
            cpu::synchronize();
            return Ok(());
        }
        let pins: Vec<MmuExtOp> =
            tables.iter().map(|(level, table)| pv::pin_op(Page::Table(*level), *table)).collect();
        // SAFETY: they are written by calls only from here on (invariant 1).
        unsafe { pv::extended(&pins) }.map_err(|(errno, _)| errno)
    }

    /// The table of level 3 that maps an address, if there is one.
    pub fn last_table(&self, address: u64) -> Option<u64> {
        let mut table = self.root;
        for level in 0..3 {
            let entry = get(table, index(address, level));
            if entry & (VALID | TABLE) != VALID | TABLE {
                return None;
            }
            table = entry & ADDRESS;
        }
        Some(table)
    }

    /// Makes the tables that an address needs.
    ///
    /// # Errors
    /// `-ENOMEM`, or with checked page tables those of `mmuext_op.pin_l1_table` to `mmuext_op.pin_l4_table` and `mmu_update.mmu_update` in docs/abi.md.
    pub fn make_tables(&mut self, address: u64) -> Result<u64, Errno> {
        let mut table = self.root;
        for level in 0..3 {
            let entry = get(table, index(address, level));
            if entry & VALID != 0 {
                table = entry & ADDRESS;
                continue;
            }
            // All that are missing, linked with each other, then checked from the bottom, then linked.
            let first = take_page()?;
            let mut made = [(level as usize + 1, first); 3];
            let mut count = 1;
            for below in level + 1..3 {
                let next = take_page()?;
                let (_, above) = made[count - 1];
                put(above + 8 * index(address, below), next | VALID | TABLE);
                made[count] = (below as usize + 1, next);
                count += 1;
            }
            let made = &mut made[..count];
            made.reverse();
            Self::pin(made)?;
            let mut changes = Changes::default();
            changes
                .updates
                .push(MmuUpdate { ptr: table + 8 * index(address, level), val: first | VALID | TABLE });
            // SAFETY: nothing was there.
            unsafe { changes.make() }?;
            return Ok(made.first().map_or(first, |(_, last)| *last));
        }
        Ok(table)
    }

    /// What maps an address.
    pub fn entry(&self, address: u64) -> Entry {
        self.last_table(address).map_or(Entry::EMPTY, |table| Entry(get(table, index(address, 3))))
    }

    /// Adds a change of what maps an address, whose tables are there.
    ///
    /// # Errors
    /// `-EINVAL`: there is no table.
    pub fn change(&self, changes: &mut Changes, address: u64, entry: Entry) -> Result<(), Errno> {
        let table = self.last_table(address).ok_or(Errno::Einval)?;
        changes.updates.push(MmuUpdate { ptr: table + 8 * index(address, 3), val: entry.0 });
        Ok(())
    }

    /// Changes what maps one address of the space that this vCPU uses; `fresh` when nothing did.
    ///
    /// # Errors
    /// `-ENOMEM`, or with checked page tables those of [`Space::make_tables`] and `update_va_mapping.update_va_mapping` in docs/abi.md.
    ///
    /// # Safety
    /// As [`Changes::make`].
    pub unsafe fn set(&mut self, address: u64, entry: Entry) -> Result<(), Errno> {
        let table = self.make_tables(address)?;
        if pv::is_on() {
            // SAFETY: the caller's promise.
            return unsafe { pv::update_va(address, entry.0) };
        }
        let entry_of = table + 8 * index(address, 3);
        let before = get(entry_of, 0);
        if before & VALID != 0 && (before ^ entry.0) & ADDRESS != 0 {
            // Another page: broken first (Arm ARM D8.16.1).
            put(entry_of, 0);
            cpu::flush_page(address);
        }
        put(entry_of, entry.0);
        if before & VALID == 0 {
            cpu::synchronize();
        } else {
            cpu::flush_page(address);
        }
        Ok(())
    }

    /// Calls `each` with the address and entry of every page that the lower half maps beyond the kernel's part.
    pub fn pages(&self, mut each: impl FnMut(u64, Entry)) {
        self.tables(|level, first, table| {
            if level == 3 {
                for n in 0..ENTRIES {
                    let entry = get(table, n);
                    if entry & VALID != 0 {
                        each(first + n * PAGE, Entry(entry));
                    }
                }
            }
        });
    }

    /// Calls `each` with level, first address and place of every table below the root, from the bottom, but the kernel's part.
    fn tables(&self, mut each: impl FnMut(usize, u64, u64)) {
        let below = |table: u64, from: u64| {
            (from..ENTRIES)
                .map(move |n| (n, get(table, n)))
                .filter(|(_, entry)| entry & (VALID | TABLE) == VALID | TABLE)
                .map(|(n, entry)| (n, entry & ADDRESS))
        };
        for (zero, one) in below(self.root, 1) {
            for (first, two) in below(one, 0) {
                for (second, three) in below(two, 0) {
                    each(3, zero << 39 | first << 30 | second << 21, three);
                }
                each(2, zero << 39 | first << 30, two);
            }
            each(1, zero << 39, one);
        }
    }

    /// A copy of this space: the same pages, all but text to be copied when somebody writes, in both. `shared` hears of each page.
    ///
    /// # Errors
    /// `-ENOMEM`, or with checked page tables those of `mmuext_op.pin_l1_table` to `mmuext_op.pin_l4_table` and `mmu_update.mmu_update` in docs/abi.md.
    ///
    /// # Safety
    /// The owner counts who maps a page.
    pub unsafe fn fork(&self, asid: u16, mut shared: impl FnMut(Entry)) -> Result<Self, Errno> {
        let root = take_page()?;
        put(root, get(self.root, 0));
        let copy = Self { root, asid };
        let (mut changes, mut made, mut failed) = (Changes::default(), Vec::new(), None);
        self.tables(|level, first, table| {
            if failed.is_some() {
                return;
            }
            // The copy's table for this one; what is above it follows later, and finds it here.
            let Ok(fresh) = take_page() else {
                failed = Some(Errno::Enomem);
                return;
            };
            for n in 0..ENTRIES {
                let mut entry = get(table, n);
                if entry & VALID == 0 {
                    continue;
                }
                if level == 3 {
                    if !Entry(entry).is_text() && !Entry(entry).is_copied() {
                        entry |= READ_ONLY | COPY_ON_WRITE;
                        changes.updates.push(MmuUpdate { ptr: table + 8 * n, val: entry });
                    }
                    shared(Entry(entry));
                } else {
                    let child = first + (n << (39 - 9 * level as u64));
                    let found = made.iter().rev().find(|(below, at, _)| *below == level + 1 && *at == child);
                    entry = found.map_or(0, |(_, _, table): &(usize, u64, u64)| table | VALID | TABLE);
                }
                put(fresh + 8 * n, entry);
            }
            made.push((level, first, fresh));
        });
        if let Some(errno) = failed {
            for table in made.iter().map(|(_, _, table)| *table).chain([root]) {
                // SAFETY: nobody uses them yet.
                unsafe { give_page(table) };
            }
            return Err(errno);
        }
        for (level, first, table) in &made {
            if *level == 1 {
                put(root + 8 * index(*first, 0), table | VALID | TABLE);
            }
        }
        // SAFETY: rights are taken only; the parent gets them back, or a copy, when it writes.
        unsafe { changes.make() }?;
        let mut pins: Vec<_> = made.iter().map(|(level, _, table)| (*level, *table)).collect();
        pins.push((0, root));
        Self::pin(&pins)?;
        Ok(copy)
    }

    /// Goes over to this space: the walker's root for the lower half.
    ///
    /// # Errors
    /// Those of `mmuext_op.new_user_baseptr` in docs/abi.md with checked page tables, otherwise none.
    pub fn enter(&self) -> Result<(), Errno> {
        enter(self.root, self.asid)
    }

    /// Frees its tables.
    ///
    /// # Errors
    /// Those of `mmuext_op.unpin_table` in docs/abi.md: it is in use. Then nothing is freed.
    ///
    /// # Safety
    /// No vCPU uses it, and nobody has anything of it.
    pub unsafe fn free(self) -> Result<(), Errno> {
        let mut all = Vec::new();
        self.tables(|_, _, table| all.push(table));
        all.push(self.root);
        all.reverse();
        if pv::is_on() {
            let unpins: Vec<_> = all.iter().map(|table| pv::op(ExtOp::Unpin, table / PAGE, 0)).collect();
            // SAFETY: the caller's promise; from the root down, so that nothing refers to what is next.
            unsafe { pv::extended(&unpins) }.map_err(|(errno, _)| errno)?;
        } else {
            cpu::flush_tlb();
        }
        for table in all {
            // SAFETY: they are data, and nobody uses them.
            unsafe { give_page(table) };
        }
        Ok(())
    }
}

/// Takes a root for the lower half.
///
/// # Errors
/// Those of `mmuext_op.new_user_baseptr` in docs/abi.md with checked page tables, otherwise none.
pub(crate) fn enter(root: u64, asid: u16) -> Result<(), Errno> {
    if pv::is_on() {
        // SAFETY: every lower half has the kernel's part.
        return unsafe { pv::extended(&[pv::op(ExtOp::NewUserBase, root / PAGE, u64::from(asid))]) }
            .map_err(|(errno, _)| errno);
    }
    cpu::set_lower_root(u64::from(asid) << 48 | root);
    Ok(())
}
