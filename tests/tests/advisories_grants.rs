//! Grant tables against what went wrong in Xen's: one test a row of `tests/advisories.toml`, named after it.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "tests")]

use hypervisor::domain::Life;
use hypervisor::fake::{Op, RAM, World};
use hypervisor::hypercall::Outcome;
use pavo_tests::{ARG, Guest, NOWHERE, Settled, guest, number};
use pv_abi::grant::{
    CacheFlush, CopyPtr, EntryFlags, GetVersion, GrantCopy, GrantOp, GrantStatus, MapGrantRef, QuerySize,
    SetVersion, SetupTable, SwapGrantRef, UnmapGrantRef,
};
use pv_abi::memory::AddToPhysmap;
use pv_abi::{DomId, GrantHandle, GrantRef, GuestHandle};
use zerocopy::IntoBytes;

const ENOSYS: i64 = -38;
const EOPNOTSUPP: i64 = -95;
const OKAY: i16 = 0;
const GENERAL_ERROR: i16 = -1;
const BAD_HANDLE: i16 = -4;
const BAD_COPY_ARG: i16 = -10;
const HOST_MAP: u32 = 2;
/// The page that is granted, and where it is mapped.
const PAGE: u64 = RAM + 0x3_0000;
const AT: u64 = 0x5000_0000;
/// Elements of a batch that restarts.
const COUNT: u64 = 90;
/// References at the edges of a table of one frame, and far beyond.
const EDGES: [u32; 8] = [0, 7, 8, 511, 512, 1 << 16, 1 << 31, u32::MAX];
/// Operations of `grant_table_op`, and one more.
const OPERATIONS: core::ops::RangeInclusive<u64> = 0..=13;

fn map_op(dom: u16, gref: u32, flags: u32) -> MapGrantRef {
    MapGrantRef { host_addr: AT, flags, gref: GrantRef(gref), dom: DomId(dom), ..MapGrantRef::default() }
}

fn map(guest: Guest<'_>, op: MapGrantRef) -> MapGrantRef {
    let (result, op) = guest.quick_grant(GrantOp::MapGrantRef, op);
    assert_eq!(result, 0);
    op
}

fn unmap(guest: Guest<'_>, op: UnmapGrantRef) -> i16 {
    let (result, op) = guest.quick_grant(GrantOp::UnmapGrantRef, op);
    assert_eq!(result, 0);
    op.status
}

fn undo(handle: GrantHandle) -> UnmapGrantRef {
    UnmapGrantRef { host_addr: AT, handle, ..UnmapGrantRef::default() }
}

/// Reading and writing uses of a reference.
fn pins(world: &World, gref: u32) -> (u8, u8) {
    world.domain(1).state.lock().grants.active(&world.machine, GrantRef(gref)).unwrap().pins()
}

/// Domain 1 grants [`PAGE`] to domain 2 by reference 8.
fn granting() -> Settled {
    let world = Settled::new(2);
    guest(&world, 1).grants(8, 2, PAGE >> 12, EntryFlags::empty());
    world
}

fn nothing_is_used(world: &World) {
    assert_eq!((pins(world, 8), guest(world, 1).count(PAGE)), ((0, 0), 0));
    assert!(!guest(world, 1).entry_flags(8).intersects(EntryFlags::READING | EntryFlags::WRITING));
}

fn side(domid: u16, named: u64, offset: u16) -> CopyPtr {
    CopyPtr { ref_or_gfn: named, domid: DomId(domid), offset, pad: 0 }
}

/// From reference 8 of domain 1 into a page of the caller.
fn copy_op(len: u16, from: u16, to: u16) -> GrantCopy {
    GrantCopy {
        source: side(1, 8, from),
        dest: side(0x7FF0, (RAM >> 12) + 0x90, to),
        len,
        flags: 1,
        status: 99,
        pad: 0,
    }
}

fn copy(guest: Guest<'_>, op: GrantCopy) -> i16 {
    let (result, op) = guest.quick_grant(GrantOp::Copy, op);
    assert_eq!(result, 0);
    op.status
}

#[test]
fn xsa_18_references_beyond_the_table_are_refused_by_every_operation() {
    let world = granting();
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    for gref in EDGES.into_iter().filter(|gref| *gref != 8) {
        assert_ne!(map(two, map_op(1, gref, HOST_MAP)).status, OKAY, "map {gref}");
        let op = GrantCopy { source: side(1, gref.into(), 0), ..copy_op(64, 0, 0) };
        assert_ne!(copy(two, op), OKAY, "copy {gref}");
        assert_eq!(unmap(two, undo(GrantHandle(gref))), BAD_HANDLE, "unmap {gref}");
    }
    for (a, b) in EDGES.iter().flat_map(|a| EDGES.map(|b| (*a, b))) {
        let op = SwapGrantRef { ref_a: GrantRef(a), ref_b: GrantRef(b), ..SwapGrantRef::default() };
        let (result, op) = one.quick_grant(GrantOp::SwapGrantRef, op);
        let inside = a < 512 && b < 512;
        assert_eq!((result, op.status == OKAY), (0, inside), "swap {a} {b}");
    }
}

#[test]
fn xsa_134_every_operation_may_be_the_first_of_a_domain() {
    for op in OPERATIONS {
        let world = Settled::new(2);
        let one = guest(&world, 1);
        one.write(ARG, &[0; 4096]);
        one.quick(number::GRANT_TABLE_OP, [op, ARG, 1, 0, 0]);
        one.quick(number::GRANT_TABLE_OP, [op, NOWHERE, 1, 0, 0]);
        assert_eq!(world.domain(1).life.get(), Life::Running);
    }
}

#[test]
fn xsa_224a_the_low_bits_of_a_bus_address_drop_no_second_reference() {
    let world = granting();
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    let bus = one.place(PAGE).pa().get();
    for address in [0, 1, 0xFFF, bus, bus + 1, bus + 0xFFF, !0] {
        let done = map(two, map_op(1, 8, HOST_MAP));
        for times in 0..3 {
            let status = unmap(two, UnmapGrantRef { dev_bus_addr: address, ..undo(done.handle) });
            assert_eq!(status == OKAY, times == 0, "{address:#x}");
        }
        nothing_is_used(&world);
    }
}

#[test]
fn xsa_224b_whatever_the_flags_a_mapping_is_one_use_and_unmapping_gives_it_back() {
    let world = granting();
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    for flags in 0..1 << 6 {
        let done = map(two, map_op(1, 8, flags));
        let used = u32::from(done.status == OKAY);
        assert_eq!(one.count(PAGE), used, "flags {flags:#x}");
        assert_eq!(done.status == OKAY, two.mapping(AT >> 12).is_some());
        for (host_addr, dev_bus_addr) in [(0, 0), (0, 1), (AT + 0x1000, 0), (AT, 0), (AT, 1)] {
            unmap(two, UnmapGrantRef { host_addr, dev_bus_addr, ..undo(done.handle) });
        }
        nothing_is_used(&world);
        assert_eq!(two.mapping(AT >> 12), None);
    }
}

#[test]
fn xsa_224c_a_mapping_for_a_device_maps_nothing() {
    let world = granting();
    assert_ne!(map(guest(&world, 2), map_op(1, 8, 1)).status, OKAY);
    assert_ne!(map(guest(&world, 2), map_op(1, 8, 1 | HOST_MAP)).status, OKAY);
    assert_eq!(guest(&world, 2).mapping(AT >> 12), None);
    nothing_is_used(&world);
}

#[test]
fn xsa_224d_an_unmapping_that_is_refused_has_undone_nothing() {
    let world = granting();
    let two = guest(&world, 2);
    let done = map(two, map_op(1, 8, HOST_MAP));
    for host_addr in [AT + 0x1000, RAM, 1 << 52, !0] {
        assert_eq!(unmap(two, UnmapGrantRef { host_addr, ..undo(done.handle) }), GENERAL_ERROR);
        assert_eq!(pins(&world, 8), (0, 1));
        assert!(two.mapping(AT >> 12).is_some());
    }
    assert_eq!(unmap(two, undo(done.handle)), OKAY);
    nothing_is_used(&world);
}

#[test]
fn xsa_226_transitive_grants_do_not_exist() {
    let world = granting();
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    // GTF_transitive is type 3.
    one.grants(9, 2, PAGE >> 12, EntryFlags::from_bits_retain(3));
    assert_eq!(map(two, map_op(1, 9, HOST_MAP)).status, GENERAL_ERROR);
    assert_eq!(copy(two, GrantCopy { source: side(1, 9, 0), ..copy_op(64, 0, 0) }), GENERAL_ERROR);
}

#[test]
fn xsa_230_a_copy_leaves_the_marks_of_a_mapping_alone() {
    let world = granting();
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    let done = map(two, map_op(1, 8, HOST_MAP));
    for _ in 0..3 {
        assert_eq!(copy(two, copy_op(4096, 0, 0)), OKAY);
        assert!(one.entry_flags(8).contains(EntryFlags::READING | EntryFlags::WRITING));
    }
    assert_eq!(unmap(two, undo(done.handle)), OKAY);
    nothing_is_used(&world);
}

#[test]
fn xsa_232_caches_are_cleaned_over_the_callers_frames_and_no_others() {
    let world = Settled::new(2);
    let (one, other) = (guest(&world, 1), guest(&world, 2));
    let table = &world.machine.frames.table;
    let own = DomId(1);
    world.machine.hw.take_ops();
    for number in (table.base().get() - 4..table.end() + 4).step_by(7).chain([0, 0x0800_0000 >> 12, 1 << 36])
    {
        let op = CacheFlush { addr_or_ref: number << 12, offset: 0, length: 64, op: 3 };
        let (result, _) = one.quick_grant(GrantOp::CacheFlush, op);
        let mfn = hypervisor::addr::Mfn::new(number).unwrap();
        let owned = table.state(mfn).is_some_and(|state| state.owner == own);
        assert_eq!(result == 0, owned, "frame {number:#x}");
    }
    let theirs = other.place(RAM).pa().get();
    let (result, _) = one
        .quick_grant(GrantOp::CacheFlush, CacheFlush { addr_or_ref: theirs, offset: 0, length: 64, op: 1 });
    assert_ne!(result, 0);
}

#[test]
fn xsa_437_a_range_of_cache_maintenance_never_leaves_its_page() {
    let world = Settled::new(2);
    let one = guest(&world, 1);
    let place = one.place(RAM);
    for offset in (0..=4096_u16).step_by(113).chain([1, 4095, 4096, 0x8000, u16::MAX]) {
        for length in [0, 1, 63, 64, 4095, 4096, 4097, 0x8000, u16::MAX] {
            world.machine.hw.take_ops();
            let op = CacheFlush { addr_or_ref: place.pa().get(), offset, length, op: 1 };
            let (result, _) = one.quick_grant(GrantOp::CacheFlush, op);
            let fits = offset < 4096 && u32::from(offset) + u32::from(length) <= 4096;
            assert_eq!(result == 0, fits, "{offset} {length}");
            let cleaned = world.machine.hw.take_ops().into_iter().filter_map(|op| match op {
                Op::CleanToMemory(mfn) => Some(mfn),
                _ => None,
            });
            for mfn in cleaned {
                assert_eq!(mfn, place.frame());
            }
        }
    }
}

#[test]
fn xsa_235_a_table_page_that_cannot_be_placed_leaves_no_lock_held() {
    let world = Settled::new(2);
    let one = guest(&world, 1);
    let place = |idx, gpfn| {
        one.quick_with(
            number::MEMORY_OP,
            7,
            AddToPhysmap { domid: DomId::SELF, size: 0, space: 1, idx, gpfn },
        )
        .0
    };
    for (idx, gpfn) in [(9, 0x3_8000), (u64::MAX, 0x3_8000), (0, 1 << 40), (0, u64::MAX)] {
        assert!(place(idx, gpfn) < 0);
        for domain in world.machine.domains {
            assert!(domain.state.try_lock().is_some());
        }
    }
    world.machine.frames.fail_after(0);
    assert!(place(0, 0x700_0000) < 0);
    assert_eq!(place(0, 0x3_8000), 0);
}

#[test]
fn xsa_268_there_is_no_second_version() {
    let world = Settled::new(2);
    let one = guest(&world, 1);
    let (result, told) = one.quick_grant(GrantOp::SetVersion, SetVersion { version: 2 });
    assert_eq!((result, told.version), (ENOSYS, 1));
    let (result, told) =
        one.quick_grant(GrantOp::GetVersion, GetVersion { dom: DomId::SELF, ..GetVersion::default() });
    assert_eq!((result, told.version), (0, 1));
}

#[test]
fn xsa_284_frames_are_not_transferred() {
    let world = Settled::new(2);
    let one = guest(&world, 1);
    for count in [0, 1, 17, 0x7FFF_FFFF] {
        assert_eq!(one.quick(number::GRANT_TABLE_OP, [4, ARG, count, 0, 0]), EOPNOTSUPP);
    }
}

#[test]
fn xsa_295_a_guest_that_keeps_a_word_busy_ends_itself_and_leaves_nothing_used() {
    // The n-th exclusive access does not succeed, for every n that a map, a copy and an unmap make.
    for after in 0..8 {
        let world = granting();
        let two = guest(&world, 2);
        world.machine.hw.contend_after(after);
        let done = map(two, map_op(1, 8, HOST_MAP));
        copy(two, copy_op(64, 0, 0));
        if done.status == OKAY {
            assert_eq!(unmap(two, undo(done.handle)), OKAY);
        }
        assert_eq!((pins(&world, 8), guest(&world, 1).count(PAGE)), ((0, 0), 0), "after {after}");
        assert_eq!(world.domain(2).life.get(), Life::Running, "the caller is not to blame");
    }
}

#[test]
fn xsa_316_every_status_is_zero_or_a_negative_that_is_documented() {
    let world = granting();
    let two = guest(&world, 2);
    let known = |status: i16| GrantStatus::ALL.iter().any(|known| known.value() == status) && status <= 0;
    for dom in [0, 1, 2, 3, 0x7FF0, 0x7FF1, 0x7FFF, 0xFFFF] {
        for gref in EDGES {
            for host_addr in [0, 1, AT, RAM, 1 << 40, u64::MAX] {
                let done = map(two, MapGrantRef { host_addr, ..map_op(dom, gref, HOST_MAP) });
                assert!(known(done.status), "{}", done.status);
                if done.status == OKAY {
                    assert_eq!(unmap(two, UnmapGrantRef { host_addr, ..undo(done.handle) }), OKAY);
                }
            }
        }
        let (_, size) =
            two.quick_grant(GrantOp::QuerySize, QuerySize { dom: DomId(dom), ..QuerySize::default() });
        assert!(known(size.status));
    }
}

#[test]
fn xsa_318_every_element_of_a_batch_that_restarts_gets_its_status() {
    let world = granting();
    let two = guest(&world, 2);
    let list = RAM + 0x2_0000;
    for index in 0..COUNT {
        // Every third is wrong.
        let op = if index % 3 == 0 { copy_op(64, 4095, 0) } else { copy_op(64, 0, 0) };
        two.write(list + index * 40, op.as_bytes());
    }
    let mut args = [u64::from(GrantOp::Copy.number()), list, COUNT, 0, 0];
    let mut runs = 1;
    while let Outcome::Restart(left) = two.once(number::GRANT_TABLE_OP, args) {
        (args, runs) = (left, runs + 1);
    }
    assert!(runs > 3, "it restarts");
    for index in 0..COUNT {
        let expected = if index % 3 == 0 { BAD_COPY_ARG } else { OKAY };
        assert_eq!(two.read::<i16>(list + index * 40 + 36), expected, "element {index}");
    }
}

#[test]
fn xsa_379_a_page_of_the_table_is_at_one_place() {
    let world = Settled::new(2);
    let one = guest(&world, 1);
    for gpfn in [0x3_8000, 0x3_8001, 0x3_8002] {
        let arg = AddToPhysmap { domid: DomId::SELF, size: 0, space: 1, idx: 0, gpfn };
        one.quick_with(number::MEMORY_OP, 7, arg);
        let there = [0x3_8000, 0x3_8001, 0x3_8002].iter().filter(|gfn| one.mapping(**gfn).is_some());
        assert_eq!(there.count(), 1);
    }
}

#[test]
fn xsa_382_status_frames_are_not_listed_whatever_their_number() {
    let world = Settled::new(2);
    let one = guest(&world, 1);
    for frames in [0_u32, 1, 8, 9, 512, 1 << 16, u32::MAX] {
        let mut op = [0_u8; 24];
        op[..4].copy_from_slice(&frames.to_le_bytes());
        op[4..6].copy_from_slice(&0x7FF0_u16.to_le_bytes());
        op[8..16].copy_from_slice(&(RAM + 0x2_0000).to_le_bytes());
        one.write(RAM + 0x2_0000, &[0x77; 4096]);
        one.write(ARG, &op);
        assert_eq!(one.quick(number::GRANT_TABLE_OP, [9, ARG, 1, 0, 0]), 0);
        assert_eq!(one.read::<[u8; 4096]>(RAM + 0x2_0000), [0x77; 4096], "nothing is written");
    }
}

#[test]
fn xsa_394_unmapping_a_part_again_and_again_takes_no_reference() {
    let world = granting();
    let two = guest(&world, 2);
    let done = map(two, map_op(1, 8, HOST_MAP));
    for _ in 0..1000 {
        assert_eq!(unmap(two, UnmapGrantRef { host_addr: 0, ..undo(done.handle) }), OKAY);
    }
    assert_eq!(pins(&world, 8), (0, 1));
    assert_eq!(unmap(two, undo(done.handle)), OKAY);
    nothing_is_used(&world);
}

#[test]
fn xsa_500_what_is_copied_comes_from_the_frame_in_use_whatever_the_entry_says_now() {
    let world = granting();
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    one.write(PAGE, b"in use..");
    one.write(PAGE + 0x1000, b"another.");
    let done = map(two, map_op(1, 8, HOST_MAP));
    let marks = one.entry_flags(8);
    let to = RAM + 0x9_0000;
    for (gfn, dom, flags) in [
        ((PAGE >> 12) + 1, 2, EntryFlags::empty()),
        (PAGE >> 12, 1, EntryFlags::empty()),
        (0xFFFF_FFFF, 2, EntryFlags::READONLY),
        ((PAGE >> 12) + 1, 2, EntryFlags::ACCEPT_TRANSFER),
    ] {
        one.grants(8, dom, gfn, flags | marks);
        two.write(to, &[0; 8]);
        let status = copy(two, copy_op(8, 0, 0));
        let came = two.read::<[u8; 8]>(to);
        assert!(came == *b"in use.." || status != OKAY && came == [0; 8], "{status} {came:?}");
    }
    assert_eq!(unmap(two, undo(done.handle)), OKAY);
    assert_eq!((pins(&world, 8), one.count(PAGE)), ((0, 0), 0));
}

#[test]
fn xsa_101_the_list_of_a_table_that_is_nowhere_has_no_addresses() {
    let world = Settled::new(2);
    let one = guest(&world, 1);
    let list = RAM + 0x2_0000;
    one.write(list, &[0x77; 64]);
    let op =
        SetupTable { dom: DomId::SELF, nr_frames: 4, frame_list: GuestHandle(list), ..SetupTable::default() };
    let (result, told) = one.quick_grant(GrantOp::SetupTable, op);
    assert_eq!((result, told.status), (0, OKAY));
    assert_eq!(one.read::<[u64; 4]>(list), [u64::MAX; 4], "in no place: no frame number of the machine's");
    assert_eq!(one.read::<[u8; 8]>(list + 32), [0x77; 8]);
}

#[test]
fn xsa_448_copies_of_nothing_look_at_nothing_and_others_stay_in_their_pages() {
    let world = granting();
    let two = guest(&world, 2);
    let nothing =
        GrantCopy { source: side(77, u64::MAX, 0xFFFF), dest: side(99, 1 << 50, 0xFFFF), ..copy_op(0, 0, 0) };
    assert_eq!(copy(two, nothing), OKAY);
    for offset in [0_u16, 1, 4032, 4095, 4096, 0x8000, 0xFFFF] {
        for len in [1_u16, 64, 4095, 4096, 4097, 0xFFFF] {
            let fits = u32::from(offset) + u32::from(len) <= 4096;
            let expected = if fits { OKAY } else { BAD_COPY_ARG };
            assert_eq!(copy(two, copy_op(len, offset, 0)), expected, "{offset} {len}");
            assert_eq!(copy(two, copy_op(len, 0, offset)), expected, "{offset} {len}");
        }
    }
    nothing_is_used(&world);
}
