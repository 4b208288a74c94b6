//! What entries may say, and what the guest can do by them.
use super::*;

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
fn xsa_248_only_what_the_domain_has_is_mapped() {
    // Every frame of the machine, and beyond.
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
