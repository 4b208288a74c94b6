//! Whichever frame is missing while a domain changes its page tables: a page that becomes table or text may lie in a block of stage 2, which
//! is split then. That fails for every n, and nothing is changed but for stage-2 tables; all else takes no frame, and works without any.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

use hypervisor::addr::{Gfn, Mfn};
use hypervisor::devicetree::Paging;
use hypervisor::fake::{MEMORY_KIB, RAM, World};
use hypervisor::frame::Role;
use hypervisor::hardware::Hardware;
use hypervisor::pagetable::control::Controls;
use hypervisor::stage2::{Mapping, lookup};
use pavo_tests::mmuext::{
    CLEAR_PAGE, COPY_PAGE, NEW_BASEPTR, NEW_USER_BASEPTR, PIN, PIN_KERNEL_TEXT, PIN_USER_TEXT, SEAL, UNPIN,
};
use pavo_tests::number::{MMU_UPDATE, MMUEXT_OP, UPDATE_VA_MAPPING};
use pavo_tests::{ARG, Guest, guest};
use pv_abi::DomId;

const SELF: u64 = 0x7FF0;
const ENOMEM: i64 = -12;

/// In the first block of the domain's RAM, as its arguments are.
const FRESH: u64 = RAM + 0x2_0000;
/// Tables of a tree, from the root down, and pages; all in that block.
const TABLES: [u64; 4] = [RAM + 0x3_0000, RAM + 0x3_1000, RAM + 0x3_2000, RAM + 0x3_3000];
const PAGES: u64 = RAM + 0x4_0000;
const VA: u64 = 0x40_0000_0000;

/// Valid, normal memory, inner shareable, accessed, never executed.
const DATA: u64 = 0b11 | 3 << 8 | 1 << 10 | 1 << 53 | 1 << 54;
const LINK: u64 = 0b11;

fn words(guest: Guest<'_>, at: u64, words: &[u64]) {
    guest.write(at, &words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>());
}

fn ext(guest: Guest<'_>, cmd: u32, arg1: u64, arg2: u64) -> i64 {
    words(guest, ARG, &[u64::from(cmd), arg1, arg2]);
    guest.call(MMUEXT_OP, [ARG, 1, 0, SELF, 0])
}

fn tree(guest: Guest<'_>) {
    for page in TABLES.into_iter().chain([PAGES, PAGES + 0x1000, FRESH]) {
        guest.write(page, &[0; 4096]);
    }
    let [root, l1, l2, l3] = TABLES;
    words(guest, l3, &[PAGES | DATA]);
    words(guest, l2, &[l3 | LINK]);
    words(guest, l1 + 0x100 * 8, &[l2 | LINK]);
    words(guest, root, &[l1 | LINK]);
    for level in (0..4).rev() {
        assert_eq!(ext(guest, PIN[level], TABLES[level] >> 12, 0), 0);
    }
    // 4 KiB, 48 bits, walks inner shareable and write-back; MMU and caches on.
    let tcr = 16 | 1 << 8 | 1 << 10 | 3 << 12 | 16 << 16 | 1 << 24 | 1 << 26 | 3 << 28 | 2 << 30 | 2 << 32;
    guest.world.machine.hw.set_controls(Controls { sctlr: 0x30D0_1805, tcr, mair: 0x04FF });
}

/// All that can be seen of the two domains, apart from stage-2 tables: where what is mapped and as what, every frame's owner, role and
/// count, and what is in it.
#[derive(PartialEq)]
struct Seen(Vec<Option<Mapping>>, Vec<(Mfn, DomId, Role, u32)>, Vec<[u8; 4096]>, [u64; 2]);

fn seen(world: &World) -> Seen {
    let table = &world.machine.frames.table;
    let root = |id: u16| world.domain(id).stage2_root;
    let places = RAM >> 12..(RAM >> 12) + MEMORY_KIB / 4;
    let mappings = (1..=2).flat_map(|id| {
        places.clone().map(move |gfn| lookup(&world.machine.hw, root(id), Gfn::new(gfn).unwrap()))
    });
    let frames = (table.base().get()..table.end()).filter_map(Mfn::new);
    let owned: Vec<_> = frames
        .filter_map(|mfn| table.state(mfn).map(|state| (mfn, state.owner, state.role, state.count)))
        .filter(|(_, owner, role, _)| *owner == DomId(1) && *role != Role::Stage2Table)
        .collect();
    let contents = owned.iter().map(|(mfn, ..)| {
        let mut bytes = [0; 4096];
        world.machine.hw.read(hypervisor::addr::FrameAddr::new(*mfn, 0).unwrap(), &mut bytes);
        bytes
    });
    let bases = world.machine.hw.bases();
    Seen(mappings.collect(), owned.clone(), contents.collect(), bases)
}

#[test]
fn xsa_291_a_page_whose_block_cannot_be_split_becomes_neither_table_nor_text() {
    for cmd in PIN.into_iter().chain([PIN_KERNEL_TEXT, PIN_USER_TEXT]) {
        let mut refused = 0;
        for missing in 0..10 {
            let world = World::with_paging(2, Paging::Pv);
            let one = guest(&world, 1);
            one.write(FRESH, &[0; 4096]);
            words(one, ARG, &[u64::from(cmd), FRESH >> 12, 0]);
            let before = seen(&world);
            world.machine.frames.fail_after(missing);
            let result = one.call(MMUEXT_OP, [ARG, 1, 0, SELF, 0]);
            world.machine.frames.fail_after(u32::MAX);
            if result == 0 {
                assert!(seen(&world) != before, "{cmd:#x} does something");
                break;
            }
            assert_eq!(result, ENOMEM, "{cmd:#x}");
            assert!(seen(&world) == before, "{cmd:#x}, without the {missing}th");
            refused += 1;
            // It can still be written, and everything works when there is a frame.
            one.write(FRESH, &[0; 4096]);
            assert_eq!(ext(one, cmd, FRESH >> 12, 0), 0);
        }
        assert_eq!(refused, 1, "{cmd:#x}: a table of level 3");
    }
}

#[test]
fn in_a_batch_what_came_before_the_missing_frame_is_done_and_counted() {
    let world = World::with_paging(2, Paging::Pv);
    let one = guest(&world, 1);
    tree(one);
    // One in the block that is split, one in the next.
    let far = RAM + 0x20_0000;
    one.write(far, &[0; 4096]);
    words(one, ARG, &[PIN[3].into(), FRESH >> 12, 0, PIN[3].into(), far >> 12, 0]);
    let done = ARG + 0x800;
    let split = lookup(&world.machine.hw, world.domain(1).stage2_root, Gfn::new(far >> 12).unwrap());
    assert!(split.is_some());
    world.machine.frames.fail_after(0);
    let result = one.call(MMUEXT_OP, [ARG, 2, done, SELF, 0]);
    world.machine.frames.fail_after(u32::MAX);
    let role = |page: u64| {
        let mfn = one.place(page).frame();
        world.machine.frames.table.state(mfn).unwrap().role
    };
    assert_eq!((result, one.read::<u32>(done)), (ENOMEM, 1));
    assert_eq!((role(FRESH), role(far)), (Role::Table3, Role::Data));
}

#[test]
fn nothing_else_that_is_done_to_page_tables_takes_a_frame() {
    let [root, _, _, l3] = TABLES;
    let update = |guest: Guest<'_>, at: u64, entry: u64| {
        words(guest, ARG, &[at, entry]);
        guest.call(MMU_UPDATE, [ARG, 1, 0, SELF, 0])
    };
    let world = World::with_paging(2, Paging::Pv);
    let one = guest(&world, 1);
    tree(one);
    world.machine.frames.fail_after(0);
    let page = PAGES + 0x1000;
    assert_eq!(update(one, l3 + 8, page | DATA), 0);
    assert_eq!(update(one, l3 + 8, 0), 0);
    assert_eq!(ext(one, NEW_USER_BASEPTR, root >> 12, 5), 0);
    assert_eq!(ext(one, NEW_BASEPTR, root >> 12, 0), 0);
    assert_eq!(ext(one, CLEAR_PAGE, page >> 12, 0), 0);
    assert_eq!(ext(one, COPY_PAGE, page >> 12, PAGES >> 12), 0);
    assert_eq!(one.call(UPDATE_VA_MAPPING, [VA + 0x1000, page | DATA, 0, 0, 0]), 0);
    assert_eq!(ext(one, PIN[3], FRESH >> 12, 0), 0, "in a block that is split");
    assert_eq!(ext(one, UNPIN, FRESH >> 12, 0), 0);
    assert_eq!(ext(one, SEAL, 0, 0), 0);
    // It is still to come: nothing asked for a frame.
    assert!(world.machine.frames.allocate(0, DomId(2), Role::Data).is_none());
}
