//! Paravirtual page tables: what a domain's kernel can make of its own tables, and what it cannot. Entries and numbers are the Arm ARM's
//! (D8.3) and `public/xen.h`'s, written down here once more.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]
mod advisories;
mod batches;
mod blocks;
mod entries;
mod restarts;
mod roles;
mod trust;

use hypervisor::addr::Ipa;
use hypervisor::devicetree::Paging;
use hypervisor::fake::{GuestAccess, GuestFault, Op, RAM, Stage2Fault, World};
use hypervisor::frame::Role;
use hypervisor::hypercall::Outcome;
use hypervisor::pagetable::control::{Controls, Register};
use hypervisor::stage2::Kind;
use pavo_tests::mmuext::{
    CLEAR_PAGE, COPY_PAGE, NEW_BASEPTR, NEW_USER_BASEPTR, PIN, PIN_KERNEL_TEXT, PIN_USER_TEXT, SEAL, UNPIN,
};
use pavo_tests::number::{MMU_UPDATE, MMUEXT_OP, UPDATE_VA_MAPPING};
use pavo_tests::{ARG, Guest, guest, number};
use pv_abi::memory::{AddToPhysmap, Reservation};
use pv_abi::{DomId, GuestHandle};

const SELF: u64 = 0x7FF0;
const EINVAL: i64 = -22;
const EBUSY: i64 = -16;
const ENOMEM: i64 = -12;
const EPERM: i64 = -1;
const ENOSYS: i64 = -38;
const ESRCH: i64 = -3;
const EFAULT: i64 = -14;

/// Valid, page, normal memory, inner shareable, accessed.
const PAGE: u64 = 0b11 | 3 << 8 | 1 << 10;
const LINK: u64 = 0b11;
const PXN: u64 = 1 << 53;
const UXN: u64 = 1 << 54;
const READ_ONLY: u64 = 1 << 7;
const EL0: u64 = 1 << 6;
const DATA: u64 = PAGE | PXN | UXN;
const KERNEL_TEXT: u64 = PAGE | UXN | READ_ONLY;
const USER_TEXT: u64 = PAGE | PXN | READ_ONLY | EL0;

/// Pages of the domain that the tests use: in its block of 2 MiB, so that stage 2 must be split.
const ROOT: u64 = RAM + 0x2_0000;
const L1: u64 = RAM + 0x2_1000;
const L2: u64 = RAM + 0x2_2000;
const L3: u64 = RAM + 0x2_3000;
const PAGES: u64 = RAM + 0x3_0000;
const TEXT: u64 = RAM + 0x4_0000;
const USER: u64 = RAM + 0x4_1000;
const OPS: u64 = ARG;
const DONE: u64 = ARG + 0xFF8;
/// Where the tables that [`tree`] makes map things.
const VA: u64 = 0x40_0000_0000 + 0x1000;

fn world() -> World {
    World::with_paging(2, Paging::Pv)
}

fn controls() -> Controls {
    // T0SZ, T1SZ 16; TG1 4 KiB; walks inner shareable, write-back; IPS 40 bits.
    let tcr = 16 | 1 << 8 | 1 << 10 | 3 << 12 | 16 << 16 | 1 << 24 | 1 << 26 | 3 << 28 | 2 << 30 | 2 << 32;
    Controls { sctlr: 0x30D0_1805 | 1 << 12, tcr, mair: 0x04FF }
}

fn ext(guest: &Guest<'_>, cmd: u32, arg1: u64, arg2: u64) -> i64 {
    let words = [u64::from(cmd), arg1, arg2];
    guest.write(OPS, &words.map(u64::to_le_bytes).concat());
    guest.call(MMUEXT_OP, [OPS, 1, 0, SELF, 0])
}

fn pin(guest: &Guest<'_>, level: usize, page: u64) -> i64 {
    ext(guest, PIN[level], page >> 12, 0)
}

fn unpin(guest: &Guest<'_>, page: u64) -> i64 {
    ext(guest, UNPIN, page >> 12, 0)
}

fn update(guest: &Guest<'_>, at: u64, entry: u64) -> i64 {
    guest.write(OPS, &[at, entry].map(u64::to_le_bytes).concat());
    guest.call(MMU_UPDATE, [OPS, 1, 0, SELF, 0])
}

fn clear(guest: &Guest<'_>, page: u64) {
    guest.write(page, &[0; 4096]);
}

/// [`update`], without a look at the whole machine after it.
fn quick(guest: &Guest<'_>, at: u64, entry: u64) -> i64 {
    guest.write(OPS, &[at, entry].map(u64::to_le_bytes).concat());
    match guest.once(MMU_UPDATE, [OPS, 1, 0, SELF, 0]) {
        Outcome::Done(result) => result,
        Outcome::Restart(_) => unreachable!("one entry is done at once"),
    }
}

fn put(guest: &Guest<'_>, at: u64, entry: u64) {
    guest.write(at, &entry.to_le_bytes());
}

fn role(guest: &Guest<'_>, page: u64) -> (Role, u32) {
    let state = guest.world.machine.frames.table.state(guest.place(page).frame()).unwrap();
    (state.role, state.count)
}

fn tries_to_write(guest: &Guest<'_>, page: u64) -> Result<(), Stage2Fault> {
    let domain = guest.world.domain(guest.id);
    let hw = &guest.world.machine.hw;
    hw.guest_write(domain.vmid, domain.stage2_root, Ipa::new(page).unwrap(), &[1])
}

/// Accesses an address through both stages and what the TLB remembers, by the given root.
fn access(guest: &Guest<'_>, va: u64, how: GuestAccess) -> Result<u64, GuestFault> {
    let domain = guest.world.domain(guest.id);
    let hw = &guest.world.machine.hw;
    hw.guest_access(domain.vmid, domain.stage2_root, ROOT, va, how).map(|at| at.frame().get())
}

/// Four tables, pinned, that map [`PAGES`] at [`VA`], [`TEXT`] and [`USER`] after it.
fn tree(guest: &Guest<'_>) {
    for page in [ROOT, L1, L2, L3, PAGES] {
        clear(guest, page);
    }
    assert_eq!(ext(guest, PIN_KERNEL_TEXT, TEXT >> 12, 0), 0);
    assert_eq!(ext(guest, PIN_USER_TEXT, USER >> 12, 0), 0);
    put(guest, L3 + 8, PAGES | DATA);
    put(guest, L3 + 16, TEXT | KERNEL_TEXT);
    put(guest, L3 + 24, USER | USER_TEXT);
    put(guest, L2, L3 | LINK);
    put(guest, L1 + 0x100 * 8, L2 | LINK);
    put(guest, ROOT, L1 | LINK);
    for (level, page) in [(3, L3), (2, L2), (1, L1), (0, ROOT)] {
        assert_eq!(pin(guest, level, page), 0, "level {level}");
    }
}

/// [`tree`], and its root installed for both halves.
fn install(guest: &Guest<'_>) {
    tree(guest);
    guest.world.machine.hw.set_controls(controls());
    assert_eq!(ext(guest, NEW_USER_BASEPTR, ROOT >> 12, 5), 0);
    assert_eq!(ext(guest, NEW_BASEPTR, ROOT >> 12, 0), 0);
}
