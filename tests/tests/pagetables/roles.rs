//! What becomes a table or text, what may be done with it then, and what becomes data again.
use super::*;

#[test]
fn xsa_402_a_pinned_table_was_cleaned_to_memory_before_it_was_checked_and_is_not_written_by_anybody_in_the_domain()
 {
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
fn xsa_292_a_table_goes_back_to_data_only_after_the_walk_caches_are_flushed() {
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
