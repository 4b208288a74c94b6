//! EL2's own translation: the image with each part's rights, all RAM in the direct map, devices.
//!
//! Invariants
//! 1. Nothing is writable and executable (`SCTLR_EL2.WXN` besides). Only the image's text executes.
//! 2. The image's own bytes have no other mapping: the direct map leaves them out.
//! 3. Tables change at boot only, by the first CPU, before others and guests run.
#![expect(unsafe_code, reason = "writes EL2's translation tables")]

use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::direct;
use super::percpu::{BOOT_STACK, STACKS};
use super::regs::{MAIR_DEVICE, MAIR_NORMAL};
use hypervisor::devicetree::PhysRange;
use hypervisor::sched::MAX_CPUS;

/// Where the image is linked (image.ld).
pub const IMAGE_VA: u64 = 0xC000_0000;

const PAGE: u64 = 4096;
const BLOCK2: u64 = 1 << 21;
const BLOCK1: u64 = 1 << 30;

/// Descriptor fields of EL2's stage 1 (Arm ARM D8.3).
const VALID: u64 = 1;
const TABLE_OR_PAGE: u64 = 2;
const AP_RES1: u64 = 1 << 6;
const READ_ONLY: u64 = 1 << 7;
const INNER_SHAREABLE: u64 = 3 << 8;
const ACCESSED: u64 = 1 << 10;
const EXECUTE_NEVER: u64 = 1 << 54;
const OUTPUT: u64 = 0x0000_FFFF_FFFF_F000;

const NORMAL: u64 = VALID | AP_RES1 | INNER_SHAREABLE | ACCESSED | MAIR_NORMAL << 2;
const DEVICE: u64 = VALID | AP_RES1 | ACCESSED | MAIR_DEVICE << 2 | EXECUTE_NEVER;

/// Rights of the image's parts, for boot.S.
pub const TEXT: u64 = NORMAL | TABLE_OR_PAGE | READ_ONLY;
/// Read-only data.
pub const RODATA: u64 = NORMAL | TABLE_OR_PAGE | READ_ONLY | EXECUTE_NEVER;
/// Writable data.
pub const DATA: u64 = NORMAL | TABLE_OR_PAGE | EXECUTE_NEVER;
/// The block around the switch, at its physical address.
pub const IDENTITY: u64 = NORMAL | READ_ONLY;

/// What a mapping is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// RAM: read and write.
    Memory,
    /// A device: Device-nGnRE.
    Device,
}

/// The tables cannot hold the mapping: more scattered memory than [`TABLES`] allow, or addresses beyond the direct map.
#[derive(Clone, Copy, Debug)]
pub struct OutOfTables;

const TABLE_COUNT: usize = 20;

#[repr(C, align(4096))]
struct Tables(UnsafeCell<[[u64; 512]; TABLE_COUNT]>);

// SAFETY: written by the first CPU at boot only (invariant 3).
unsafe impl Sync for Tables {}

static TABLES: Tables = Tables(UnsafeCell::new([[0; 512]; TABLE_COUNT]));
static USED: AtomicUsize = AtomicUsize::new(2);
static LOAD: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" {
    static mut boot_tables: [[u64; 512]; 4];
}

/// Where the image was loaded.
pub fn load_address() -> u64 {
    LOAD.load(Ordering::Relaxed)
}

/// Physical address of something in the image.
pub fn image_pa(va: usize) -> u64 {
    (va as u64).wrapping_sub(IMAGE_VA).wrapping_add(load_address())
}

/// Index of a table in [`TABLES`].
#[derive(Clone, Copy)]
struct Table(usize);

impl Table {
    const ROOT: Self = Self(0);

    fn entry(self, index: u64) -> *mut u64 {
        let tables = TABLES.0.get().cast::<u64>();
        tables.wrapping_add((self.0 % TABLE_COUNT).wrapping_mul(512).wrapping_add((index & 511) as usize))
    }

    fn get(self, index: u64) -> u64 {
        // SAFETY: `entry` stays inside TABLES; invariant 3 excludes races.
        unsafe { self.entry(index).read_volatile() }
    }

    fn set(self, index: u64, value: u64) {
        // SAFETY: as in `get`.
        unsafe { self.entry(index).write_volatile(value) }
    }

    fn pa(self) -> u64 {
        image_pa(self.entry(0).addr())
    }

    fn new() -> Result<Self, OutOfTables> {
        let n = USED.fetch_add(1, Ordering::Relaxed);
        if n < TABLE_COUNT { Ok(Self(n)) } else { Err(OutOfTables) }
    }

    /// The table below an entry, made when there is none.
    fn below(self, index: u64) -> Result<Self, OutOfTables> {
        let entry = self.get(index);
        if entry & VALID != 0 {
            let offset = (entry & OUTPUT).wrapping_sub(Self::ROOT.pa());
            return Ok(Self((offset / PAGE) as usize));
        }
        let table = Self::new()?;
        self.set(index, table.pa() | VALID | TABLE_OR_PAGE);
        Ok(table)
    }
}

/// Replaces the boot tables by the final ones: the image, without the guard pages, and nothing else yet.
pub fn init(load: u64) {
    LOAD.store(load, Ordering::Relaxed);
    let image_l3 = image_pa((&raw const boot_tables).addr()).wrapping_add(2 * PAGE);
    // A level-2 table of its own: the boot's may hold the identity block, which secondary CPUs still need.
    let image_l2 = Table(1);
    image_l2.set(0, image_l3 | VALID | TABLE_OR_PAGE);
    Table::ROOT.set(IMAGE_VA / BLOCK1, image_l2.pa() | VALID | TABLE_OR_PAGE);
    let guards = (0..=MAX_CPUS).map(|n| STACKS.guard(n)).chain([BOOT_STACK.guard()]);
    for guard in guards {
        let page = (guard as u64).wrapping_sub(IMAGE_VA) / PAGE;
        let boot = (&raw mut boot_tables).cast::<u64>();
        let entry = boot.wrapping_add(2 * 512).wrapping_add((page & 511) as usize);
        // SAFETY: entry of the third boot table, the image's pages; nobody else writes it.
        unsafe { entry.write_volatile(0) };
    }
    let root = Table::ROOT.pa();
    // SAFETY: the new root maps everything this CPU uses: the image with its stacks. Break-before-make: the translations that
    // change are only removed (the identity block, the guards), and forgotten before anything can use them again.
    unsafe {
        asm!("dsb ishst", "msr ttbr0_el2, {}", "isb", "tlbi alle2", "dsb nsh", "isb", in(reg) root,
            options(nostack, preserves_flags));
    }
}

/// Moves a secondary CPU from the boot tables to the final ones.
pub fn adopt() {
    let root = Table::ROOT.pa();
    // SAFETY: as in `init`.
    unsafe {
        asm!("msr ttbr0_el2, {}", "isb", "tlbi alle2", "dsb nsh", "isb", in(reg) root, options(nostack, preserves_flags));
    }
}

/// Maps physical memory or a device into the direct map, leaving out the image; what is mapped already stays.
///
/// # Errors
/// [`OutOfTables`].
pub fn map(pa: u64, size: u64, kind: Kind) -> Result<(), OutOfTables> {
    let start = pa & !(PAGE - 1);
    let end = pa.saturating_add(size).saturating_add(PAGE - 1) & !(PAGE - 1);
    if end > direct::LIMIT {
        return Err(OutOfTables);
    }
    let image = load_address();
    let image_end = image.wrapping_add(super::image_size());
    let mut at = start;
    while at < end {
        let va = direct::virt(at) as u64;
        let left = end.wrapping_sub(at);
        let clear_of_image = |size: u64| at.wrapping_add(size) <= image || at >= image_end;
        let l1 = (va / BLOCK1) & 511;
        let attributes = match kind {
            Kind::Memory => NORMAL | EXECUTE_NEVER,
            Kind::Device => DEVICE,
        };
        if at.is_multiple_of(BLOCK1)
            && left >= BLOCK1
            && clear_of_image(BLOCK1)
            && Table::ROOT.get(l1) & VALID == 0
        {
            Table::ROOT.set(l1, at | attributes);
            at = at.wrapping_add(BLOCK1);
            continue;
        }
        if is_block(Table::ROOT.get(l1)) {
            at = (at & !(BLOCK1 - 1)).wrapping_add(BLOCK1);
            continue;
        }
        let level2 = Table::ROOT.below(l1)?;
        let l2 = (va / BLOCK2) & 511;
        if at.is_multiple_of(BLOCK2)
            && left >= BLOCK2
            && clear_of_image(BLOCK2)
            && level2.get(l2) & VALID == 0
        {
            level2.set(l2, at | attributes);
            at = at.wrapping_add(BLOCK2);
            continue;
        }
        if is_block(level2.get(l2)) {
            at = (at & !(BLOCK2 - 1)).wrapping_add(BLOCK2);
            continue;
        }
        let level3 = level2.below(l2)?;
        let l3 = (va / PAGE) & 511;
        if clear_of_image(PAGE) && level3.get(l3) & VALID == 0 {
            level3.set(l3, at | attributes | TABLE_OR_PAGE);
        }
        at = at.wrapping_add(PAGE);
    }
    // SAFETY: invalid-to-valid changes need no invalidation, only that the walker sees them (Arm ARM D8.14.1).
    unsafe { asm!("dsb ishst", "isb", options(nostack, preserves_flags)) };
    Ok(())
}

/// Whether any page of physical memory or devices is mapped.
pub fn maps_any(range: PhysRange) -> bool {
    let mut at = range.start() & !(PAGE - 1);
    while at < range.end().min(direct::LIMIT) {
        let va = direct::virt(at) as u64;
        let l1 = Table::ROOT.get((va / BLOCK1) & 511);
        let mut entry = l1;
        for bits in [21, 12] {
            if entry & VALID == 0 || is_block(entry) {
                break;
            }
            let table = Table(((entry & OUTPUT).wrapping_sub(Table::ROOT.pa()) / PAGE) as usize);
            entry = table.get(va.wrapping_shr(bits) & 511);
        }
        if entry & VALID != 0 {
            return true;
        }
        at = at.wrapping_add(PAGE);
    }
    false
}

fn is_block(entry: u64) -> bool {
    entry & (VALID | TABLE_OR_PAGE) == VALID
}
