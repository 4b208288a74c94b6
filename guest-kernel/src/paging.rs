//! The guest's own page tables: an identity map, writable or executable but never both.
//!
//! 48-bit addresses, 4 KiB granule; the image and RAM lie in what the first entry of the root maps. RAM is mapped in blocks as large as fit, the image in pages with the permissions
//! of its sections, one guard page under each stack not at all.
//!
//! 1. Tables are written only here and only before the register that names them is set. Where the hypervisor checks page tables
//!    ([`pv`]), it writes them from then on.
//! 2. The final tables are used under ASID 1; the boot tables under 0: their entries never meet in the TLB.
#![expect(unsafe_code, reason = "addresses of linker symbols")]
use aarch64_cpu::registers::{ReadWriteable, Readable, SCTLR_EL1, TCR_EL1, TTBR0_EL1, TTBR1_EL1, Writeable};
use bitflags::bitflags;
use pv_abi::Errno;
use pv_abi::paging::{ExtOp, MmuUpdate};

use crate::frame::Frame;
use crate::lock::Lock;
use crate::pv::{self, Page};
use crate::tree::Region;
use crate::{cpu, smp, space};

bitflags! {
    /// Bits of a stage 1 descriptor (Arm ARM D8.3.1).
    #[derive(Clone, Copy)]
    struct Entry: u64 {
        const VALID = 1 << 0;
        /// Next level, or a page at level 3.
        const TABLE = 1 << 1;
        /// MAIR index 1: device.
        const DEVICE = 1 << 2;
        /// EL0 has the same rights.
        const USER = 1 << 6;
        const READ_ONLY = 1 << 7;
        const INNER_SHARED = 3 << 8;
        const ACCESSED = 1 << 10;
        const NOT_GLOBAL = 1 << 11;
        const PRIVILEGED_NEVER_EXECUTES = 1 << 53;
        const USER_NEVER_EXECUTES = 1 << 54;
    }
}

/// What may be done with a range.
#[derive(Clone, Copy)]
pub(crate) enum Access {
    /// Read and execute.
    Text,
    /// Read.
    Constant,
    /// Read and write.
    Data,
    /// Device registers, read and write.
    Device,
    /// The same at EL1 and EL0.
    SharedDevice,
    /// Read and execute, at EL1 and EL0.
    SharedText,
}

impl Access {
    const fn leaf(self) -> Entry {
        let common =
            Entry::VALID.union(Entry::ACCESSED).union(Entry::NOT_GLOBAL).union(Entry::USER_NEVER_EXECUTES);
        let never = common.union(Entry::PRIVILEGED_NEVER_EXECUTES);
        match self {
            Self::Text => common.union(Entry::READ_ONLY).union(Entry::INNER_SHARED),
            Self::Constant => never.union(Entry::READ_ONLY).union(Entry::INNER_SHARED),
            Self::Data => never.union(Entry::INNER_SHARED),
            Self::Device => never.union(Entry::DEVICE),
            Self::SharedDevice => never.union(Entry::DEVICE).union(Entry::USER),
            Self::SharedText => Entry::VALID
                .union(Entry::ACCESSED)
                .union(Entry::NOT_GLOBAL)
                .union(Entry::READ_ONLY)
                .union(Entry::INNER_SHARED)
                .union(Entry::USER),
        }
    }
}

const ENTRIES: usize = 512;
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
const PAGE: u64 = 1 << 12;
/// Bytes that one entry of level 1, 2, 3 covers.
const SPAN: [u64; 3] = [1 << 30, 1 << 21, PAGE];
/// First address beyond the map: that of one entry of the root.
pub(crate) const LIMIT: u64 = 1 << 39;
/// Tables: that of level 1, and what the ends of RAM, the image and the devices need.
const TABLES: usize = 24;
const ASID: u16 = 1;

#[repr(C, align(4096))]
struct Table([u64; ENTRIES]);

/// The pool; the first table is that of level 1, so that all zeros is the empty map (and needs no room in the image).
struct Tables {
    pool: [Table; TABLES],
    used_beyond_first: usize,
    /// The roots of both halves; the upper one is there for paravirtual page tables only.
    roots: [Table; 2],
    /// Whether the hypervisor writes them.
    checked: bool,
}

static TABLES_LOCK: Lock<Tables> = Lock::new(Tables {
    pool: [const { Table([0; ENTRIES]) }; TABLES],
    used_beyond_first: 0,
    roots: [const { Table([0; ENTRIES]) }; 2],
    checked: false,
});

/// Why a range cannot be mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum MapError {
    /// All tables are in use.
    OutOfTables,
    /// Beyond the map, or not page-aligned.
    BadRange,
    /// The hypervisor, which checks them.
    Refused(Errno),
}

impl From<Errno> for MapError {
    fn from(errno: Errno) -> Self {
        Self::Refused(errno)
    }
}

/// Where a table is.
fn address(table: &Table) -> u64 {
    core::ptr::from_ref(table).addr() as u64
}

impl Tables {
    /// Maps `[start, end)`, both page-aligned, to itself.
    fn map(&mut self, start: u64, end: u64, access: Access) -> Result<(), MapError> {
        self.map_to(start, end, start, access)
    }

    /// Maps `[start, end)` to what begins at `to`, all page-aligned, in the largest pieces that fit. Depth is bounded by the three levels.
    fn map_to(&mut self, start: u64, end: u64, to: u64, access: Access) -> Result<(), MapError> {
        let aligned = [start, end, to].iter().all(|address| address.is_multiple_of(PAGE));
        if !aligned || start > end || end > LIMIT || to & !ADDRESS != 0 {
            return Err(MapError::BadRange);
        }
        let mut at = start;
        while at < end {
            let mut table = 0;
            for (level, span) in SPAN.iter().enumerate() {
                let index = usize::try_from(at / span).map_err(|_| MapError::BadRange)? % ENTRIES;
                let empty_or_leaf = self.get(table, index) & Entry::TABLE.bits() == 0;
                let output = to + (at - start);
                let fits = at.is_multiple_of(*span) && output.is_multiple_of(*span) && end - at >= *span;
                if level == 2 || (empty_or_leaf && fits) {
                    let page = if level == 2 { Entry::TABLE } else { Entry::empty() };
                    self.set(table, index, output | access.leaf().union(page).bits())?;
                    at += span;
                    break;
                }
                table = self.next(table, index, level)?;
            }
        }
        Ok(())
    }

    /// Writes an entry, or has it written.
    fn set(&mut self, table: usize, index: usize, entry: u64) -> Result<(), MapError> {
        let table = self.pool.get_mut(table).ok_or(MapError::BadRange)?;
        if !self.checked {
            table.0[index] = entry;
            return Ok(());
        }
        let ptr = address(table) + 8 * index as u64;
        // SAFETY: what is mapped is what the caller maps otherwise.
        unsafe { pv::update(&[MmuUpdate { ptr, val: entry }]) }.map_err(|(errno, _)| errno.into())
    }

    /// What an entry says; the hypervisor may have written it.
    fn get(&self, table: usize, index: usize) -> u64 {
        // SAFETY: it is in the pool, or the indices would be refused here.
        unsafe { (&raw const self.pool[table].0[index]).read_volatile() }
    }

    /// The table that entry `index` of `table`, whose place in [`SPAN`] is `level`, points at, made if the entry is empty.
    fn next(&mut self, table: usize, index: usize, level: usize) -> Result<usize, MapError> {
        let entry = self.get(table, index);
        if entry == 0 {
            let fresh = self.used_beyond_first + 1;
            let address = self.pool.get(fresh).map(address).ok_or(MapError::OutOfTables)?;
            if self.checked {
                pv::pin(Page::Table(level + 2), address)?;
            }
            self.used_beyond_first += 1;
            self.set(table, index, address | Entry::VALID.union(Entry::TABLE).bits())?;
            return Ok(fresh);
        }
        let base = core::ptr::from_ref(&self.pool).addr() as u64;
        let offset = (entry & ADDRESS).checked_sub(base).ok_or(MapError::OutOfTables)?;
        usize::try_from(offset / PAGE).map_err(|_| MapError::OutOfTables)
    }
}

/// Where [`show_page`] shows one: behind all RAM and devices.
const WINDOW: u64 = LIMIT - (1 << 30);

impl Tables {
    /// The table and entry of the page at `address`, with the tables above it.
    fn entry(&mut self, address: u64) -> Result<(usize, usize), MapError> {
        let index = |level: usize| usize::try_from(address / SPAN[level]).map(|n| n % ENTRIES);
        let mut table = 0;
        for level in 0..2 {
            table = self.next(table, index(level).map_err(|_| MapError::BadRange)?, level)?;
        }
        Ok((table, index(2).map_err(|_| MapError::BadRange)?))
    }
}

/// Shows a page, or none, at one address, the same each time, to all vCPUs; break-before-make (Arm ARM D8.16.1). The address, unless all
/// tables are in use.
pub fn show_page(page: Option<&'static Frame>) -> Option<usize> {
    cpu::without_interrupts(|| {
        let mut tables = TABLES_LOCK.lock();
        let (table, index) = tables.entry(WINDOW).ok()?;
        tables.set(table, index, 0).ok()?;
        cpu::flush_page(WINDOW);
        if let Some(page) = page {
            let at = core::ptr::from_ref(page).addr() as u64;
            tables.set(table, index, at | Access::Data.leaf().union(Entry::TABLE).bits()).ok()?;
        }
        cpu::synchronize();
        usize::try_from(WINDOW).ok()
    })
}

/// The link to what the kernel has of the lower half: entry 0 of every root.
pub fn kernel_link() -> u64 {
    address(&TABLES_LOCK.lock().pool[0]) | Entry::VALID.union(Entry::TABLE).bits()
}

/// The root of the upper half.
pub(crate) fn upper_root() -> u64 {
    address(&TABLES_LOCK.lock().roots[1])
}

/// Goes back to the kernel's own root for the lower half.
///
/// # Errors
/// Those of `mmuext_op.new_user_baseptr` in docs/abi.md with checked page tables, otherwise none.
pub fn enter_kernel() -> Result<(), Errno> {
    let root = address(&TABLES_LOCK.lock().roots[0]);
    space::enter(root, ASID)
}

/// Lets this vCPU use the upper half.
pub(crate) fn enter_upper() {
    TTBR1_EL1.set(upper_root());
    TCR_EL1.modify(TCR_EL1::EPD1::EnableTTBR1Walks);
    cpu::synchronize();
}

/// Maps `region` as device registers, rounded out to pages.
pub(crate) fn map_device(region: Region) -> Result<(), MapError> {
    map(region, Access::Device)
}

/// Maps `region` as ordinary memory, rounded out to pages.
pub(crate) fn map_memory(region: Region) -> Result<(), MapError> {
    map(region, Access::Data)
}

fn map(region: Region, access: Access) -> Result<(), MapError> {
    let start = region.start & !(PAGE - 1);
    let end = region.end().checked_next_multiple_of(PAGE).ok_or(MapError::BadRange)?;
    let outcome = cpu::without_interrupts(|| TABLES_LOCK.lock().map(start, end, access));
    cpu::synchronize();
    outcome
}

/// Maps `size` bytes of ordinary memory from `from` a second time at `at`, both page-aligned.
pub(crate) fn map_alias(at: u64, from: u64, size: u64, access: Access) -> Result<(), MapError> {
    let outcome = cpu::without_interrupts(|| TABLES_LOCK.lock().map_to(at, at + size, from, access));
    cpu::synchronize();
    outcome
}

/// Shows the GiB of guest physical addresses that contains `address` at the GiB `window`, which nothing else uses: as device registers
/// or as ordinary memory. What the window showed before is gone.
pub(crate) fn show(window: u64, address: u64, access: Access) -> Result<(), MapError> {
    let gib = SPAN[0];
    let index = usize::try_from(window / gib).map_err(|_| MapError::BadRange)? % ENTRIES;
    cpu::without_interrupts(|| {
        let mut tables = TABLES_LOCK.lock();
        // Break before make.
        tables.set(0, index, 0)?;
        cpu::flush_tlb();
        tables.map_to(window, window + gib, address & !(gib - 1), access)
    })?;
    cpu::synchronize();
    Ok(())
}

unsafe extern "C" {
    static __image_start: u8;
    static __text_end: u8;
    static __rodata_end: u8;
    static __stack_guard: u8;
    static __fault_guard: u8;
    static __image_end: u8;
}

/// Where the image's parts are.
#[derive(Clone, Copy)]
pub(crate) struct Image {
    pub(crate) start: u64,
    pub(crate) text_end: u64,
    pub(crate) rodata_end: u64,
    pub(crate) stack_guard: u64,
    pub(crate) fault_guard: u64,
    pub(crate) end: u64,
}

/// Reads the linker's symbols.
pub(crate) fn image() -> Image {
    Image {
        start: (&raw const __image_start).addr() as u64,
        text_end: (&raw const __text_end).addr() as u64,
        rodata_end: (&raw const __rodata_end).addr() as u64,
        stack_guard: (&raw const __stack_guard).addr() as u64,
        fault_guard: (&raw const __fault_guard).addr() as u64,
        end: ((&raw const __image_end).addr() as u64).next_multiple_of(PAGE),
    }
}

/// Builds the map of the image and of RAM, and switches to it.
pub(crate) fn start(memory: &[Region]) -> Result<(), MapError> {
    let image = image();
    {
        let mut tables = TABLES_LOCK.lock();
        tables.map(image.start, image.text_end, Access::Text)?;
        tables.map(image.text_end, image.rodata_end, Access::Constant)?;
        tables.map(image.rodata_end, image.stack_guard, Access::Data)?;
        tables.map(image.stack_guard + PAGE, image.fault_guard, Access::Data)?;
        let mut start = image.fault_guard + PAGE;
        for guard in smp::guard_pages() {
            tables.map(start, guard, Access::Data)?;
            start = guard + PAGE;
        }
        tables.map(start, image.end, Access::Data)?;
        for bank in memory {
            let end = (bank.end() & !(PAGE - 1)).min(LIMIT);
            let start = if bank.start <= image.start && image.end <= end { image.end } else { bank.start };
            tables.map(start, end, Access::Data)?;
        }
        tables.roots[0].0[0] = address(&tables.pool[0]) | Entry::VALID.union(Entry::TABLE).bits();
        let root = address(&tables.roots[0]);
        cpu::synchronize();
        if pv::ask() {
            return start_checked(&mut tables, image);
        }
        TTBR0_EL1.write(TTBR0_EL1::ASID.val(u64::from(ASID)) + TTBR0_EL1::BADDR.val(root >> 1));
        smp::share_translation(TTBR0_EL1.get());
    }
    cpu::flush_tlb();
    SCTLR_EL1.modify(SCTLR_EL1::WXN::Enable);
    enter_upper();
    Ok(())
}

/// From here on EL1 executes nothing but this image's text, whoever asks, where page tables are checked. A guest whose kernel text comes later says
/// `unsealed` on its command line.
pub(crate) fn seal() -> Result<(), Errno> {
    if !pv::is_on() {
        return Ok(());
    }
    // SAFETY: it changes nothing that is there.
    unsafe { pv::extended(&[pv::op(ExtOp::Seal, 0, 0)]) }.map_err(|(errno, _)| errno)
}

/// Has the map checked, and ends the hypervisor's trust in this domain: what is executed is text, tables are written by calls, and the controls of
/// translation stay as they are.
fn start_checked(tables: &mut Tables, image: Image) -> Result<(), MapError> {
    for page in (image.start..image.text_end).step_by(1 << 12) {
        pv::pin(Page::KernelText, page)?;
    }
    // From the bottom. A table of the pool is of level 3 if a table links it that the first one links.
    let links = |table: usize, tables: &Tables| {
        let base = address(&tables.pool[0]);
        let entries = tables.pool[table].0;
        entries
            .into_iter()
            .filter(|entry| entry & 3 == 3)
            .map(move |entry| usize::try_from(((entry & ADDRESS) - base) / PAGE).unwrap_or(0))
    };
    for middle in links(0, tables) {
        for last in links(middle, tables) {
            pv::pin(Page::Table(3), address(&tables.pool[last]))?;
        }
        pv::pin(Page::Table(2), address(&tables.pool[middle]))?;
    }
    let [lower, upper] = [address(&tables.roots[0]), address(&tables.roots[1])];
    tables.checked = true;
    for (level, table) in [(1, address(&tables.pool[0])), (0, lower), (0, upper)] {
        pv::pin(Page::Table(level), table)?;
    }
    let take = |operation| {
        // SAFETY: the roots map what this code runs in, with the rights of its sections.
        unsafe { pv::extended(&[operation]) }.map_err(|(errno, _)| errno)
    };
    take(pv::op(ExtOp::NewUserBase, lower / PAGE, u64::from(ASID)))?;
    TCR_EL1.modify(TCR_EL1::EPD1::EnableTTBR1Walks);
    SCTLR_EL1.modify(SCTLR_EL1::WXN::Enable);
    cpu::synchronize();
    smp::share_translation(TTBR0_EL1.get());
    take(pv::op(ExtOp::NewBase, upper / PAGE, 0))?;
    Ok(())
}
