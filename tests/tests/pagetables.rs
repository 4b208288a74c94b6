//! Paravirtual page tables: what a domain's kernel can make of its own tables, and what it cannot. Entries and numbers are the Arm ARM's
//! (D8.3) and `public/xen.h`'s, written down here once more.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]
use hypervisor::addr::Ipa;
use hypervisor::devicetree::Paging;
use hypervisor::fake::{GuestAccess, GuestFault, Op, RAM, Stage2Fault, World};
use hypervisor::frame::Role;
use hypervisor::hypercall::Outcome;
use hypervisor::pagetable::control::{Controls, Register};
use hypervisor::stage2::Kind;
use pavo_tests::{ARG, Guest, guest, number};
use pv_abi::memory::{AddToPhysmap, Reservation};
use pv_abi::{DomId, GuestHandle};

const MMU_UPDATE: u64 = 1;
const UPDATE_VA_MAPPING: u64 = 14;
const MMUEXT_OP: u64 = 26;
const SELF: u64 = 0x7FF0;
const EINVAL: i64 = -22;
const EBUSY: i64 = -16;
const EPERM: i64 = -1;
const ENOSYS: i64 = -38;
const ESRCH: i64 = -3;

const PIN: [u32; 4] = [3, 2, 1, 0];
const UNPIN: u32 = 4;
const NEW_BASEPTR: u32 = 5;
const NEW_USER_BASEPTR: u32 = 15;
const CLEAR_PAGE: u32 = 16;
const COPY_PAGE: u32 = 17;
const PIN_KERNEL_TEXT: u32 = 0x8000;
const PIN_USER_TEXT: u32 = 0x8001;
const SEAL: u32 = 0x8002;

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

#[test]
fn other_domains_do_not_have_the_calls() {
    let world = world();
    for number in [MMU_UPDATE, UPDATE_VA_MAPPING, MMUEXT_OP] {
        assert_eq!(guest(&world, 2).call(number, [ARG, 0, 0, SELF, 0]), ENOSYS);
    }
    assert_eq!(guest(&world, 1).call(MMU_UPDATE, [ARG, 0, 0, SELF, 0]), 0);
    assert_eq!(guest(&world, 1).call(MMUEXT_OP, [ARG, 0, 0, 1, 0]), 0);
    // Xen lets a privileged domain change another's tables; here nobody does.
    assert_eq!(guest(&world, 1).call(MMU_UPDATE, [ARG, 0, 0, 2, 0]), EPERM);
    assert_eq!(guest(&world, 1).call(MMU_UPDATE, [ARG, 0, 0, 3 << 16 | SELF, 0]), ESRCH);
    for id in [9, 0x7FF1, 0x7FF2, 0x7FF3, 0x7FF4] {
        assert_eq!(guest(&world, 1).call(MMU_UPDATE, [ARG, 0, 0, id, 0]), ESRCH);
    }
}

#[test]
fn a_pinned_table_can_be_read_and_not_written_by_nobody_in_the_domain() {
    let world = world();
    let one = guest(&world, 1);
    clear(&one, L3);
    // Warm in the TLB.
    tries_to_write(&one, L3).unwrap();
    clear(&one, L3);
    world.machine.hw.take_ops();
    assert_eq!(pin(&one, 3, L3), 0);
    let ops = world.machine.hw.take_ops();
    assert_eq!((role(&one, L3), one.mapping(L3 >> 12).unwrap().kind), ((Role::Table3, 0), Kind::Table));
    assert_eq!(tries_to_write(&one, L3), Err(Stage2Fault::Permission));
    // Flushed, then cleaned, then read: no other order shows EL2 what the walker will see.
    let frame = one.place(L3).frame();
    let flushed = ops.iter().rposition(|op| matches!(op, Op::FlushPage(_, ipa) if ipa.get() == L3)).unwrap();
    let cleaned = ops.iter().position(|op| *op == Op::CleanToMemory(frame)).unwrap();
    assert!(flushed < cleaned);
    assert_eq!(unpin(&one, L3), 0);
    assert_eq!(role(&one, L3), (Role::Data, 0));
    tries_to_write(&one, L3).unwrap();
}

#[test]
fn a_table_goes_back_to_data_only_after_the_walk_caches_are_flushed() {
    let world = world();
    let one = guest(&world, 1);
    clear(&one, L3);
    assert_eq!(pin(&one, 3, L3), 0);
    world.machine.hw.take_ops();
    assert_eq!(unpin(&one, L3), 0);
    let ops = world.machine.hw.take_ops();
    let walks = ops.iter().position(|op| matches!(op, Op::FlushStage1(_))).unwrap();
    let opened = ops.iter().position(|op| matches!(op, Op::TableWrite { .. })).unwrap();
    assert!(walks < opened);
}

#[test]
fn a_tree_is_pinned_from_the_bottom_and_unpinned_from_the_top() {
    let world = world();
    let one = guest(&world, 1);
    clear(&one, L1);
    clear(&one, L2);
    put(&one, L1, L2 | LINK);
    assert_eq!(pin(&one, 1, L1), EINVAL, "what it links is no table yet");
    assert_eq!(role(&one, L1), (Role::Data, 0));
    tries_to_write(&one, L1 + 8).unwrap();
    clear(&one, L1);
    put(&one, L1, L2 | LINK);
    assert_eq!(pin(&one, 2, L2), 0);
    assert_eq!(pin(&one, 1, L1), 0);
    assert_eq!(role(&one, L2), (Role::Table2, 1));
    assert_eq!(unpin(&one, L2), EBUSY);
    assert_eq!(unpin(&one, L1), 0);
    assert_eq!(role(&one, L2), (Role::Table2, 0));
    assert_eq!(unpin(&one, L2), 0);
    assert_eq!(unpin(&one, L2), EINVAL);
}

#[test]
fn no_table_links_itself_or_its_own_level_or_above() {
    for level in 0..4_usize {
        for linked in 0..4_usize {
            let world = world();
            let one = guest(&world, 1);
            let (table, other) = (RAM + 0x2_8000, RAM + 0x2_9000);
            clear(&one, table);
            clear(&one, other);
            assert_eq!(pin(&one, linked, other), 0);
            assert_eq!(pin(&one, level, table), 0);
            let fits = linked == level + 1;
            assert_eq!(update(&one, table + 8, other | LINK), if fits { 0 } else { EINVAL });
            assert_eq!(update(&one, table + 16, table | LINK), EINVAL);
            // At pin time too.
            let third = RAM + 0x2_A000;
            clear(&one, third);
            put(&one, third + 4088, other | LINK);
            assert_eq!(pin(&one, level, third), if fits { 0 } else { EINVAL });
            clear_or_skip(&one, third, fits);
        }
    }
}

fn clear_or_skip(one: &Guest<'_>, page: u64, pinned: bool) {
    assert_eq!(tries_to_write(one, page).is_ok(), !pinned);
}

#[test]
fn a_bad_entry_anywhere_gives_everything_back() {
    // XSA-299: the k-th entry of a table is bad, at every k.
    for bad in [0, 1, 127, 128, 300, 511] {
        let world = world();
        let one = guest(&world, 1);
        clear(&one, L3);
        assert_eq!(pin(&one, 3, L3), 0);
        clear(&one, L2);
        for index in 0..bad {
            put(&one, L2 + index * 8, L3 | LINK);
        }
        put(&one, L2 + bad * 8, L2 | LINK);
        assert_eq!(pin(&one, 2, L2), EINVAL);
        assert_eq!((role(&one, L2), role(&one, L3)), ((Role::Data, 0), (Role::Table3, 0)));
        tries_to_write(&one, L2).unwrap();
    }
}

#[test]
fn every_bit_that_is_not_allowed_is_refused_alone_and_in_pairs() {
    let world = world();
    let one = guest(&world, 1);
    tree(&one);
    let allowed: u64 = 0b111 << 2 | 0b1111 << 6 | 1 << 10 | 1 << 11 | 0b1111 << 55;
    let address = 0xFFFF_FFFF_F000;
    for first in 0..64 {
        for second in first..64 {
            let bits = 1_u64 << first | 1 << second;
            if bits & (address | 0b11 | PXN | UXN) != 0 {
                continue;
            }
            let expected = if bits & !allowed == 0 { 0 } else { EINVAL };
            assert_eq!(quick(&one, L3 + 8 * 40, PAGES | (DATA | bits)), expected, "{bits:#x}");
            assert_eq!(quick(&one, L3 + 8 * 40, 0), 0);
        }
    }
    world.check();
}

#[test]
fn data_is_never_executed_and_text_never_written() {
    let world = world();
    let one = guest(&world, 1);
    install(&one);
    // Data, at either level, by any combination.
    for entry in [PAGE | UXN, PAGE | PXN, PAGE, PAGE | UXN | READ_ONLY, PAGE | PXN | EL0] {
        assert_eq!(update(&one, L3 + 8 * 8, PAGES | entry), EINVAL);
    }
    // Each text by the other's right; text that EL0 can reach, at EL1.
    assert_eq!(update(&one, L3 + 8 * 8, TEXT | USER_TEXT), EINVAL);
    assert_eq!(update(&one, L3 + 8 * 8, USER | KERNEL_TEXT), EINVAL);
    assert_eq!(update(&one, L3 + 8 * 8, TEXT | KERNEL_TEXT | EL0), EINVAL);
    // A writable alias of text is only a wish.
    assert_eq!(update(&one, L3 + 8 * 8, TEXT | DATA), 0);
    assert_eq!(access(&one, VA + 7 * 0x1000, GuestAccess::Write), Err(GuestFault::Stage2));
    assert_eq!(access(&one, VA + 0x1000, GuestAccess::Execute), Ok(one.place(TEXT).frame().get()));
    assert_eq!(access(&one, VA + 0x2000, GuestAccess::ExecuteUser), Ok(one.place(USER).frame().get()));
    assert_eq!(access(&one, VA + 0x2000, GuestAccess::Execute), Err(GuestFault::Stage1));
    assert_eq!(access(&one, VA, GuestAccess::Execute), Err(GuestFault::Stage1));
    // And so is one of a table.
    assert_eq!(update(&one, L3 + 8 * 9, L3 | DATA), 0);
    assert_eq!(access(&one, VA + 8 * 0x1000, GuestAccess::Write), Err(GuestFault::Stage2));
    world.check();
}

#[test]
fn a_warm_translation_does_not_outlive_its_entry() {
    let world = world();
    let one = guest(&world, 1);
    install(&one);
    access(&one, VA, GuestAccess::Write).unwrap();
    // Read-only: in one step, and at once.
    assert_eq!(update(&one, L3 + 8, PAGES | DATA | READ_ONLY), 0);
    assert_eq!(access(&one, VA, GuestAccess::Write), Err(GuestFault::Stage1));
    // Another page: broken, flushed, made (the fake machine fails otherwise).
    assert_eq!(update(&one, L3 + 8, (PAGES + 0x1000) | DATA), 0);
    assert_eq!(access(&one, VA, GuestAccess::Write), Ok(one.place(PAGES + 0x1000).frame().get()));
    // Gone, with the table above it.
    assert_eq!(update(&one, L2, 0), 0);
    assert_eq!(access(&one, VA, GuestAccess::Read), Err(GuestFault::Stage1));
    assert_eq!(role(&one, L3), (Role::Table3, 0));
    // Executed, then taken from the tables, then data again: written, and not executed.
    assert_eq!(update(&one, L2, L3 | LINK), 0);
    access(&one, VA + 0x1000, GuestAccess::Execute).unwrap();
    assert_eq!(unpin(&one, TEXT), EBUSY);
    assert_eq!(update(&one, L3 + 16, 0), 0);
    assert_eq!(unpin(&one, TEXT), 0);
    tries_to_write(&one, TEXT).unwrap();
    assert_eq!(access(&one, VA + 0x1000, GuestAccess::Execute), Err(GuestFault::Stage1));
}

#[test]
fn a_batch_counts_what_it_did_and_stops_at_the_first_refusal() {
    let world = world();
    let one = guest(&world, 1);
    tree(&one);
    for (count, bad) in [(0, None), (1, None), (8, Some(3)), (64, None), (512 - 16, None), (200, Some(130))] {
        let page = RAM + 0x6_0000;
        for index in 0..count {
            let entry =
                if Some(index) == bad { L3 | LINK | 1 << 52 } else { PAGES | DATA | (index & 7) << 55 };
            let words = [L3 + (16 + index) * 8, entry].map(u64::to_le_bytes).concat();
            one.write(page + index * 16, &words);
        }
        one.write(DONE, &[0xFF; 4]);
        let result = one.call(MMU_UPDATE, [page, count, DONE, SELF, 0]);
        let done = bad.unwrap_or(count);
        assert_eq!((result, one.read::<u32>(DONE)), (if bad.is_some() { EINVAL } else { 0 }, done as u32));
        let present = (0..count).take_while(|index| one.read::<u64>(L3 + (16 + index) * 8) & 1 == 1);
        assert_eq!(present.count() as u64, done);
        for index in 0..done {
            assert_eq!(quick(&one, L3 + (16 + index) * 8, 0), 0);
        }
    }
}

#[test]
fn an_entry_begins_at_a_multiple_of_eight_in_a_table() {
    let world = world();
    let one = guest(&world, 1);
    tree(&one);
    for offset in 1..8 {
        let expected = if offset == 4 { EINVAL } else { ENOSYS };
        assert_eq!(update(&one, L3 + 64 + offset, PAGES | DATA), expected);
    }
    for page in [PAGES, TEXT, 0, 0x3900_0000, 1 << 40, 1 << 51, 0_u64.wrapping_sub(0x1000)] {
        assert_eq!(update(&one, page, 0), EINVAL);
    }
}

#[test]
fn only_what_the_domain_has_is_mapped() {
    // XSA-248: every frame of the machine, and beyond.
    let world = world();
    let one = guest(&world, 1);
    tree(&one);
    let table = &world.machine.frames.table;
    for gfn in (table.base().get()..table.end()).chain([0, 1, 1 << 27, (1 << 28) - 1, 1 << 28, (1 << 36) - 1])
    {
        let there = gfn < 1 << 28 && one.mapping(gfn).is_some();
        assert_eq!(quick(&one, L3 + 8 * 50, gfn << 12 | DATA) == 0, there, "{gfn:#x}");
        if !there {
            one.write(OPS, &[u64::from(PIN[3]), gfn, 0].map(u64::to_le_bytes).concat());
            assert_eq!(one.once(MMUEXT_OP, [OPS, 1, 0, SELF, 0]), Outcome::Done(EINVAL));
        }
    }
    // What EL2 emulates is nothing to stage 2, and is mapped all the same: distributor, UART; room for grants.
    for (gfn, expected) in [(0x3000, EINVAL), (0x3001, 0), (0x2_2000, 0), (0x3_8000, 0), (0x3_FFFF, 0)] {
        assert_eq!(quick(&one, L3 + 8 * 50, gfn << 12 | DATA), expected, "{gfn:#x}");
    }
    for gfn in [1 << 40, (1 << 52) - 1, u64::MAX] {
        for cmd in [0, 1, 2, 3, 4, 5, 15, 16, 17, 0x8000, 0x8001] {
            assert_eq!(ext(&one, cmd, gfn, 0), EINVAL);
        }
    }
}

#[test]
fn what_an_entry_names_stays_where_it_is() {
    let world = world();
    let one = guest(&world, 1);
    install(&one);
    for page in [ROOT, L1, L2, L3, TEXT, USER] {
        let gfn = page >> 12;
        let before = (role(&one, page), one.mapping(gfn));
        one.write(ARG + 0x100, &gfn.to_le_bytes());
        let asked = Reservation {
            extent_start: GuestHandle(ARG + 0x100),
            nr_extents: 1,
            domid: DomId::SELF,
            ..Reservation::default()
        };
        // decrease_reservation and populate_physmap count the extents that they did.
        for cmd in [1, 6] {
            assert_eq!(one.with(number::MEMORY_OP, cmd, asked).0, 0);
        }
        for (space, idx) in [(0, 0), (1, 0)] {
            let place = AddToPhysmap { domid: DomId::SELF, space, idx, gpfn: gfn, ..AddToPhysmap::default() };
            assert_eq!(one.with(number::MEMORY_OP, 7, place).0, EBUSY);
        }
        assert_eq!((role(&one, page), one.mapping(gfn)), before);
    }
}

#[test]
fn the_hypervisor_does_not_write_tables_or_text_for_the_guest() {
    let world = world();
    let one = guest(&world, 1);
    install(&one);
    for page in [ROOT, L1, L2, L3, TEXT, USER] {
        let before = world.machine.hw.frame_bytes(one.place(page).frame());
        assert_eq!(ext(&one, CLEAR_PAGE, page >> 12, 0), EINVAL);
        assert_eq!(ext(&one, COPY_PAGE, page >> 12, PAGES >> 12), EINVAL);
        // vcpu_info, and the result of a call.
        let words = [page >> 12, 0].map(u64::to_le_bytes).concat();
        one.write(ARG, &words);
        assert_eq!(one.call(number::VCPU_OP, [10, 1, ARG, 0, 0]), EINVAL);
        assert_eq!(one.call(number::XEN_VERSION, [1, page, 0, 0, 0]), -14);
        one.write(ARG, &page.to_le_bytes());
        assert_eq!(one.call(number::VCPU_OP, [5, 0, ARG, 0, 0]), 0, "told as done, and nothing registered");
        assert_eq!(world.machine.hw.frame_bytes(one.place(page).frame()), before);
    }
    // A page that the hypervisor writes to does not become a table.
    clear(&one, PAGES + 0x5000);
    one.write(ARG, &[(PAGES + 0x5000) >> 12, 0].map(u64::to_le_bytes).concat());
    assert_eq!(one.call(number::VCPU_OP, [10, 1, ARG, 0, 0]), 0);
    assert_eq!(pin(&one, 3, PAGES + 0x5000), EBUSY);
    assert_eq!(ext(&one, PIN_USER_TEXT, (PAGES + 0x5000) >> 12, 0), EBUSY);
}

#[test]
fn the_first_root_ends_the_trust() {
    let world = world();
    let one = guest(&world, 1);
    assert_eq!(one.mapping(PAGES >> 12).unwrap().kind, Kind::Ram);
    tree(&one);
    assert_eq!(ext(&one, NEW_BASEPTR, ROOT >> 12, 0), EINVAL, "no root for the lower half");
    assert_eq!(ext(&one, NEW_USER_BASEPTR, L1 >> 12, 0), EINVAL, "no root");
    assert_eq!(ext(&one, NEW_USER_BASEPTR, ROOT >> 12, 1 << 16), EINVAL, "no ASID");
    assert_eq!(ext(&one, NEW_USER_BASEPTR, ROOT >> 12, 5), 0);
    for wrong in [
        Controls { sctlr: controls().sctlr & !1, ..controls() },
        Controls { sctlr: controls().sctlr & !4, ..controls() },
        Controls { sctlr: controls().sctlr | 1 << 25, ..controls() },
        Controls { tcr: controls().tcr | 1 << 39, ..controls() },
        Controls { tcr: controls().tcr | 1 << 40, ..controls() },
        Controls { tcr: controls().tcr + 1, ..controls() },
        Controls { tcr: controls().tcr | 1 << 14, ..controls() },
        Controls { tcr: controls().tcr & !(3 << 12), ..controls() },
        Controls { tcr: controls().tcr | 1 << 59, ..controls() },
    ] {
        world.machine.hw.set_controls(wrong);
        assert_eq!(ext(&one, NEW_BASEPTR, ROOT >> 12, 0), EINVAL);
    }
    world.machine.hw.set_controls(controls());
    assert!(world.domain(1).permits(Register::Base, 0));
    assert_eq!(ext(&one, NEW_BASEPTR, ROOT >> 12, 0), 0);
    assert_eq!(world.machine.hw.bases(), [5 << 48 | ROOT, ROOT]);
    // Both halves, and both as the first ones.
    assert_eq!(role(&one, ROOT), (Role::Table0, 4));
    assert_eq!(one.mapping(PAGES >> 12).unwrap().kind, Kind::Data);
    assert_eq!(one.mapping(TEXT >> 12).unwrap().kind, Kind::Text);
    let domain = world.domain(1);
    let (sctlr, tcr) = (controls().sctlr, controls().tcr);
    for (register, value, permitted) in [
        (Register::Base, ROOT, false),
        (Register::Mair, controls().mair, true),
        (Register::Mair, 0, false),
        (Register::Sctlr, sctlr ^ 1 << 12, true),
        (Register::Sctlr, sctlr & !1, false),
        (Register::Sctlr, sctlr & !4, false),
        (Register::Sctlr, sctlr | 1 << 25, false),
        (Register::Tcr, tcr | 1 << 7, true),
        (Register::Tcr, tcr | 1 << 39, false),
        (Register::Tcr, tcr | 1 << 40, false),
        (Register::Tcr, tcr | 1 << 41, false),
        (Register::Tcr, tcr + 9, false),
        (Register::Harmless, 77, true),
    ] {
        assert_eq!(domain.permits(register, value), permitted, "{register:?} {value:#x}");
    }
    world.check();
}

#[test]
fn no_kernel_text_comes_after_the_seal() {
    let world = world();
    let one = guest(&world, 1);
    install(&one);
    assert_eq!(ext(&one, PIN_KERNEL_TEXT, PAGES >> 12, 0), 0);
    assert_eq!(ext(&one, SEAL, 0, 0), 0);
    assert_eq!(ext(&one, PIN_KERNEL_TEXT, (PAGES + 0x1000) >> 12, 0), EPERM);
    assert_eq!(ext(&one, PIN_USER_TEXT, (PAGES + 0x1000) >> 12, 0), 0);
}

#[test]
fn one_address_is_changed_by_this_vcpus_roots() {
    let world = world();
    let one = guest(&world, 1);
    install(&one);
    let page = PAGES + 0x3000;
    for va in [VA + 0x9000, 0xFFFF_0000_0000_0000 | (VA + 0xA000)] {
        assert_eq!(one.call(UPDATE_VA_MAPPING, [va, page | DATA, 1, 0, 0]), 0);
        assert_eq!(
            access(&one, va & 0xFFFF_FFFF_FFFF, GuestAccess::Write),
            Ok(one.place(page).frame().get())
        );
    }
    // XSA-279: whatever is no address is refused, and nothing is flushed by it.
    for va in [1 << 48, 0x00FF_0000_0000_0000, 0xFFFE_FFFF_FFFF_F000, 1 << 63, 0] {
        assert_eq!(one.call(UPDATE_VA_MAPPING, [va, page | DATA, 2, 0, 0]), EINVAL);
    }
    assert_eq!(one.call(UPDATE_VA_MAPPING, [VA, page | DATA, 3, 0, 0]), EINVAL);
    let other = Guest { world: &world, id: 1, vcpu: 1 };
    assert_eq!(other.call(UPDATE_VA_MAPPING, [VA, page | DATA, 0, 0, 0]), EINVAL, "it has no roots");
}

#[test]
fn a_pin_that_is_interrupted_goes_on_on_any_vcpu() {
    let world = world();
    let one = guest(&world, 1);
    let two = Guest { world: &world, id: 1, vcpu: 1 };
    clear(&one, L3);
    assert_eq!(pin(&one, 3, L3), 0);
    clear(&one, L2);
    for index in 0..512 {
        put(&one, L2 + index * 8, L3 | LINK);
    }
    one.write(OPS, &[u64::from(PIN[2]), L2 >> 12, 0].map(u64::to_le_bytes).concat());
    let args = [OPS, 1, 0, SELF, 0];
    let Outcome::Restart(rest) = one.once(MMUEXT_OP, args) else {
        unreachable!("512 entries are more than a run")
    };
    world.check();
    assert_eq!(role(&one, L2).0, Role::Validating);
    // Neither a table yet, nor data.
    assert_eq!(tries_to_write(&one, L2), Err(Stage2Fault::Permission));
    assert_eq!(update(&one, L2, 0), EINVAL);
    one.write(OPS, &[u64::from(PIN[2]), L2 >> 12, 0].map(u64::to_le_bytes).concat());
    assert_eq!(two.call(MMUEXT_OP, args), 0);
    assert_eq!(one.call(MMUEXT_OP, rest), 0);
    assert_eq!((role(&one, L2), role(&one, L3)), ((Role::Table2, 0), (Role::Table3, 512)));
    // Unpinned in the middle of a pin.
    assert_eq!(unpin(&one, L2), 0);
    let Outcome::Restart(rest) = ({
        one.write(OPS, &[u64::from(PIN[2]), L2 >> 12, 0].map(u64::to_le_bytes).concat());
        one.once(MMUEXT_OP, args)
    }) else {
        unreachable!()
    };
    assert_eq!(unpin(&two, L2), 0);
    assert_eq!((role(&one, L2), role(&one, L3)), ((Role::Data, 0), (Role::Table3, 0)));
    let _ = rest;
}

#[test]
fn the_other_vcpu_starts_by_the_first_roots_with_the_mmu_on() {
    let world = world();
    let one = guest(&world, 1);
    let domain = world.domain(1);
    let start =
        || hypervisor::pagetable::start(&world.machine, domain, &mut domain.state.lock(), &domain.vcpus[1]);
    assert_eq!(start(), None, "trusted with itself: MMU off");
    install(&one);
    let bases = start().unwrap();
    assert_eq!((bases.lower, bases.upper, bases.controls), (5 << 48 | ROOT, ROOT, controls()));
    assert_eq!(role(&one, ROOT), (Role::Table0, 6));
    start().unwrap();
    assert_eq!(role(&one, ROOT), (Role::Table0, 6));
    world.check();
    assert_eq!(unpin(&one, ROOT), EBUSY);
}
