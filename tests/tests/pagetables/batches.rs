//! Whose calls they are, and how batches end.
use super::*;

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
fn xsa_294_an_address_is_changed_by_the_root_of_its_half_and_by_this_vcpus() {
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
fn flushes_are_for_the_vcpus_of_a_mask() {
    let world = world();
    let one = guest(&world, 1);
    let vcpus = world.domain(1).vcpus.len() as u32;
    let hw = &world.machine.hw;
    let flushes = |ops: &[Op]| {
        ops.iter().filter(|op| matches!(op, Op::FlushStage1(_) | Op::FlushStage1Address(..))).count()
    };
    for cmd in [8, 9] {
        for (mask, expected) in
            [(1_u64, 1), (2, 1), (3, 1), (0, 0), (1 << vcpus, 0), (u64::MAX << vcpus, 0), (u64::MAX, 1)]
        {
            one.write(ARG + 0x100, &mask.to_le_bytes());
            hw.take_ops();
            assert_eq!(ext(&one, cmd, VA, ARG + 0x100), 0);
            assert_eq!(flushes(&hw.take_ops()), expected, "{cmd}, {mask:#x}");
        }
        assert_eq!(ext(&one, cmd, VA, 1 << 50), EFAULT, "no mask is there");
    }
    for cmd in [6, 7, 10, 11] {
        hw.take_ops();
        assert_eq!(ext(&one, cmd, VA, 1 << 50), 0);
        assert_eq!(flushes(&hw.take_ops()), 1, "{cmd}");
    }
}

#[test]
fn a_change_by_address_flushes_for_the_vcpus_of_a_mask_and_is_not_made_without_the_mask() {
    let world = world();
    let one = guest(&world, 1);
    install(&one);
    let (free, page) = (VA + 0x9000, PAGES + 0x3000);
    let hw = &world.machine.hw;
    let flushes = |flags: u64, entry: u64| {
        hw.take_ops();
        let result = one.call(UPDATE_VA_MAPPING, [free, entry, flags, 0, 0]);
        (result, hw.take_ops().iter().filter(|op| matches!(op, Op::FlushStage1(_))).count())
    };
    let mask = ARG + 0x100;
    let entry = || one.read::<u64>(L3 + 8 * 10);
    for kind in [1, 2] {
        for (vcpus, expected) in [(1_u64, 1), (2, 1), (0, 0), (1 << 2, 0), (u64::MAX << 2, 0), (u64::MAX, 1)]
        {
            one.write(mask, &vcpus.to_le_bytes());
            // Of itself a new entry needs no flush, one that goes does.
            assert_eq!(flushes(mask | kind, page | DATA), (0, expected), "{vcpus:#x}");
            assert_eq!(entry(), page | DATA);
            assert_eq!(flushes(mask | kind, 0), (0, 1), "{vcpus:#x}");
        }
        assert_eq!(flushes(1 << 50 | kind, page | DATA), (EFAULT, 0));
        assert_eq!(entry(), 0);
    }
    // UVMF_NONE: nobody looks for a mask.
    assert_eq!(flushes(1 << 50, page | DATA), (0, 0));
    assert_eq!(flushes(mask | 3, 0), (EINVAL, 0));
    assert_eq!(entry(), page | DATA);
}
