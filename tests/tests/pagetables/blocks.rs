//! Blocks of stage 2: split for a page whose role differs, joined when none does any more. The tables of [`install`] are in the first one.
use hypervisor::domain::Life;
use hypervisor::log::Event;
use hypervisor::sched_op::end_domain;
use hypervisor::stage2::{Entry, walk};
use pv_abi::memory::RemoveFromPhysmap;
use pv_abi::sched::ShutdownReason;

use super::*;

/// Another 2 MiB of the domain's.
const BLOCK: u64 = RAM + 0x20_0000;
const NEXT: u64 = BLOCK + 0x1000;

fn tables(guest: &Guest<'_>) -> u32 {
    guest.world.domain(guest.id).state.lock().stage2.tables()
}

fn pin_empty(guest: &Guest<'_>, page: u64) {
    clear(guest, page);
    assert_eq!(pin(guest, 3, page), 0);
}

/// A page elsewhere becomes a table and data again.
fn change_elsewhere(guest: &Guest<'_>) {
    pin_empty(guest, PAGES + 0x8000);
    assert_eq!(unpin(guest, PAGES + 0x8000), 0);
}

#[test]
fn a_block_is_split_for_a_table_and_joined_when_the_next_page_becomes_data_elsewhere() {
    let world = world();
    let one = guest(&world, 1);
    install(&one);
    let whole = tables(&one);
    for _ in 0..3 {
        pin_empty(&one, BLOCK);
        pin_empty(&one, NEXT);
        assert_eq!(tables(&one), whole + 1);
        assert_eq!(unpin(&one, BLOCK), 0);
        change_elsewhere(&one);
        assert_eq!(tables(&one), whole + 1, "one is a table still");
        assert_eq!(unpin(&one, NEXT), 0);
        pin_empty(&one, NEXT);
        assert_eq!(unpin(&one, NEXT), 0);
        assert_eq!(tables(&one), whole + 1, "kept for the next one in it");
        // Warm in the TLB, as a page.
        tries_to_write(&one, BLOCK).unwrap();
        world.machine.hw.take_ops();
        change_elsewhere(&one);
        assert_eq!(tables(&one), whole);
        // Broken, flushed, made: a block (bit 1 clear) with its kind, then for the walker too.
        let ops = world.machine.hw.take_ops();
        let flushed = ops.iter().rposition(|op| matches!(op, Op::FlushAll(_))).unwrap();
        let block = |valid: u64| {
            let is = move |op: &Op| matches!(op, Op::TableWrite { entry, .. } if *entry & 3 == valid && *entry >> 55 & 15 == 6);
            ops.iter().rposition(is).unwrap()
        };
        assert!(block(0) < flushed && flushed < block(1), "{ops:?}");
        for page in [BLOCK, NEXT, BLOCK + 0x1F_F000] {
            assert_eq!(one.mapping(page >> 12).unwrap().kind, Kind::Data);
            tries_to_write(&one, page).unwrap();
        }
        world.check();
    }
}

#[test]
fn the_tables_of_joined_blocks_are_the_machines_again() {
    let world = world();
    let one = guest(&world, 1);
    install(&one);
    let frames = || {
        let owned = world.machine.frames.table.total(DomId(1), Role::Stage2Table);
        (owned, world.machine.frames.limbo_frames())
    };
    let (owned, limbo) = frames();
    pin_empty(&one, BLOCK);
    assert_eq!(frames(), (owned + 1, limbo));
    assert_eq!(unpin(&one, BLOCK), 0);
    change_elsewhere(&one);
    assert_eq!(frames(), (owned, limbo + 1));
    world.check();
}

#[test]
fn a_block_with_a_hole_or_another_frame_is_not_joined() {
    let world = world();
    let one = guest(&world, 1);
    install(&one);
    let gfn = (BLOCK + 0x10_0000) >> 12;
    let whole = tables(&one);
    one.write(ARG + 0x100, &gfn.to_le_bytes());
    let asked = Reservation {
        extent_start: GuestHandle(ARG + 0x100),
        nr_extents: 1,
        domid: DomId::SELF,
        ..Reservation::default()
    };
    for (number, cmd) in [(number::MEMORY_OP, 1), (number::MEMORY_OP, 6)] {
        assert_eq!(one.with(number, cmd, asked).0, 1);
        pin_empty(&one, BLOCK);
        assert_eq!(unpin(&one, BLOCK), 0);
        change_elsewhere(&one);
        assert_eq!(tables(&one), whole + 1, "{cmd}");
    }
    world.check();
}

#[test]
fn how_much_of_its_memory_is_in_small_pages_is_told_when_a_domain_ends() {
    // The fake machine's domains have 2 MiB twice, and 128 KiB.
    const BLOCK_FRAMES: u64 = 512;
    const REST: u64 = 32;
    let world = world();
    let one = guest(&world, 1);
    let table = &world.machine.frames.table;
    let told = || table.ram_total(DomId(1)) - table.in_blocks(DomId(1));
    // What stage 2 has, page by page.
    let there = || {
        let mut frames = 0;
        walk(&world.machine.hw, world.domain(1).stage2_root, |entry| {
            if let Entry::Leaf { order: 0, mapping, .. } = entry {
                frames += u64::from(mapping.kind != Kind::Shared);
            }
            true
        });
        frames
    };
    assert_eq!((told(), there()), (REST, REST), "blocks at first");
    install(&one);
    assert_eq!(
        (told(), there()),
        (REST + BLOCK_FRAMES, REST + BLOCK_FRAMES),
        "tables and text are in one block"
    );
    for page in [BLOCK, NEXT] {
        pin_empty(&one, page);
        assert_eq!((told(), there()), (REST + 2 * BLOCK_FRAMES, REST + 2 * BLOCK_FRAMES));
    }
    assert_eq!(unpin(&one, BLOCK), 0);
    assert_eq!(unpin(&one, NEXT), 0);
    change_elsewhere(&one);
    assert_eq!((told(), there()), (REST + BLOCK_FRAMES, REST + BLOCK_FRAMES), "joined");
    world.check();
    world.machine.hw.take_events();
    end_domain(
        &world.machine,
        &world.current(1, 0),
        world.domain(1),
        Life::Shutdown(ShutdownReason::Poweroff),
    );
    assert_eq!(
        world.machine.hw.take_events(),
        [
            Event::Ended(DomId(1), Life::Shutdown(ShutdownReason::Poweroff)),
            Event::Pages(DomId(1), REST + BLOCK_FRAMES, REST + 2 * BLOCK_FRAMES)
        ]
    );
}

/// Places the shared-info page at so many blocks of the guest's that stage 2 has all the tables that it may have.
fn use_up_tables(guest: &Guest<'_>) {
    let state = &guest.world.domain(guest.id).state;
    for block in 1..64 {
        let gfn = 0x10_0000 + 0x200 * block;
        let remove = RemoveFromPhysmap { domid: DomId::SELF, pad: [0; 3], gpfn: gfn - 0x200 };
        assert!(block == 1 || guest.with(number::MEMORY_OP, 15, remove).0 == 0);
        let place =
            AddToPhysmap { domid: DomId::SELF, space: 0, idx: 0, gpfn: gfn, ..AddToPhysmap::default() };
        if guest.with(number::MEMORY_OP, 7, place).0 != 0 {
            break;
        }
    }
    let state = state.lock();
    assert_eq!(state.stage2.tables(), state.stage2.limit());
}

#[test]
fn a_block_that_waits_is_joined_when_another_needs_its_table() {
    let world = world();
    let one = guest(&world, 1);
    // Its root is behind the blocks, in pages that are none.
    let root = RAM + 0x40_1000;
    clear(&one, root);
    assert_eq!(pin(&one, 0, root), 0);
    world.machine.hw.set_controls(controls());
    assert_eq!(ext(&one, NEW_USER_BASEPTR, root >> 12, 5), 0);
    assert_eq!(ext(&one, NEW_BASEPTR, root >> 12, 0), 0);
    // The first block waits to be joined.
    pin_empty(&one, PAGES);
    assert_eq!(unpin(&one, PAGES), 0);
    use_up_tables(&one);
    for text in [false, true] {
        let make =
            |page: u64| if text { ext(&one, PIN_USER_TEXT, page >> 12, 0) } else { pin(&one, 3, page) };
        for (page, other) in [(BLOCK, PAGES), (PAGES, BLOCK)] {
            clear(&one, page);
            assert_eq!(make(page), 0, "the other one's table");
            // That one is a block again, and there is no table for it.
            clear(&one, other);
            assert_eq!(make(other), ENOMEM);
            assert_eq!(role(&one, other), (Role::Data, 0));
            tries_to_write(&one, other).unwrap();
            assert_eq!(unpin(&one, page), 0);
            world.check();
        }
    }
}
