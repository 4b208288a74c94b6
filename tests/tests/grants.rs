//! Grants between two guests. Statuses are those of Xen's `public/grant_table.h` and of Xen 4.20 itself on ARM.
#![allow(clippy::unwrap_used, reason = "tests")]

use hypervisor::domain::{Fault, Life};
use hypervisor::fake::{Op, RAM, World};
use hypervisor::frame::Role;
use hypervisor::hypercall::Outcome;
use hypervisor::stage2::Kind;
use pavo_tests::{ARG, Guest, NOWHERE, guest, number, two};
use pv_abi::grant::{
    CacheFlush, CopyPtr, EntryFlags, GetVersion, GrantCopy, GrantOp, MapGrantRef, QuerySize, SetVersion,
    SetupTable, SwapGrantRef, UnmapGrantRef,
};
use pv_abi::memory::{AddToPhysmap, RemoveFromPhysmap};
use pv_abi::{DomId, GrantHandle, GrantRef, GuestHandle};
use zerocopy::{FromBytes, IntoBytes};

const EPERM: i64 = -1;
const ESRCH: i64 = -3;
const EFAULT: i64 = -14;
const EINVAL: i64 = -22;
const ENOSYS: i64 = -38;
const EOPNOTSUPP: i64 = -95;

const OKAY: i16 = 0;
const GENERAL_ERROR: i16 = -1;
const BAD_DOMAIN: i16 = -2;
const BAD_GNTREF: i16 = -3;
const BAD_HANDLE: i16 = -4;
const PERMISSION_DENIED: i16 = -8;
const BAD_PAGE: i16 = -9;
const BAD_COPY_ARG: i16 = -10;
const EAGAIN: i16 = -12;
const NO_SPACE: i16 = -13;

const HOST_MAP: u32 = 1 << 1;
const READONLY: u32 = 1 << 2;

/// The page that is granted, and its guest frame.
const PAGE: u64 = RAM + 0x3_0000;
const GFN: u64 = PAGE >> 12;
/// Where grants are mapped: no RAM there.
const AT: u64 = 0x5000_0000;

fn map_op(dom: u16, gref: u32, at: u64, flags: u32) -> MapGrantRef {
    MapGrantRef { host_addr: at, flags, gref: GrantRef(gref), dom: DomId(dom), ..MapGrantRef::default() }
}

fn map(guest: Guest<'_>, op: MapGrantRef) -> MapGrantRef {
    let (result, op) = guest.grant(GrantOp::MapGrantRef, op);
    assert_eq!(result, 0);
    op
}

fn unmap(guest: Guest<'_>, handle: GrantHandle, at: u64) -> i16 {
    let op = UnmapGrantRef { host_addr: at, handle, ..UnmapGrantRef::default() };
    let (result, op) = guest.grant(GrantOp::UnmapGrantRef, op);
    assert_eq!(result, 0);
    op.status
}

fn pins(world: &World, id: u16, gref: u32) -> (u8, u8) {
    world.domain(id).state.lock().grants.active(&world.machine, GrantRef(gref)).unwrap().pins()
}

#[test]
fn a_granted_page_is_shared_until_it_is_unmapped() {
    let world = two();
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    one.grants(8, 2, GFN, EntryFlags::empty());
    one.write(PAGE, b"from one");
    let done = map(two, map_op(1, 8, AT, HOST_MAP));
    assert_eq!(done.status, OKAY);
    assert_eq!(done.dev_bus_addr, one.place(PAGE).pa().get());
    assert_eq!(two.mapping(AT >> 12).unwrap().kind, Kind::GrantWritable);
    assert_eq!(world.guest_read::<8>(2, AT), *b"from one");
    world.guest_write(2, AT, b"from two");
    assert_eq!(world.guest_read::<8>(1, PAGE), *b"from two");
    let in_use = EntryFlags::READING | EntryFlags::WRITING;
    assert!(one.entry_flags(8).contains(in_use));
    assert_eq!(one.count(PAGE), 1);

    assert_eq!(unmap(two, done.handle, AT), OKAY);
    assert_eq!(two.mapping(AT >> 12), None);
    assert!(!one.entry_flags(8).intersects(in_use));
    assert_eq!((one.count(PAGE), pins(&world, 1, 8)), (0, (0, 0)));
    assert_eq!(unmap(two, done.handle, AT), BAD_HANDLE);
}

#[test]
fn an_element_is_served_wherever_it_stands_and_nothing_beside_it_is_written() {
    let world = two();
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    one.grants(8, 2, GFN, EntryFlags::empty());
    // Aligned, or not; across a page's end.
    for at in [ARG, ARG + 1, ARG + 2, ARG + 4, ARG + 4096 - 8, ARG + 4096 - 20, ARG + 4096 - 21] {
        let serve = |op: GrantOp, element: &[u8]| {
            let around = [&[0xA5; 8][..], element, &[0xA5; 8]].concat();
            (at - 8..).zip(&around).for_each(|(at, byte)| two.write(at, &[*byte]));
            assert_eq!(two.call(number::GRANT_TABLE_OP, [op.number().into(), at, 1, 0, 0]), 0);
            let after: Vec<u8> =
                (at - 8..).take(around.len()).flat_map(|at| world.guest_read::<1>(2, at)).collect();
            let (done, behind) = after[8..].split_at(element.len());
            assert_eq!((&after[..8], behind), (&[0xA5; 8][..], &[0xA5; 8][..]), "{at:#x}");
            done.to_vec()
        };
        let mapped = serve(GrantOp::MapGrantRef, map_op(1, 8, AT, HOST_MAP).as_bytes());
        let mapped = MapGrantRef::read_from_bytes(&mapped).unwrap();
        assert_eq!((mapped.status, mapped.host_addr, mapped.gref), (OKAY, AT, GrantRef(8)), "{at:#x}");
        assert_eq!(mapped.dev_bus_addr, one.place(PAGE).pa().get());
        let op =
            UnmapGrantRef { host_addr: AT, handle: mapped.handle, status: 77, ..UnmapGrantRef::default() };
        let done = serve(GrantOp::UnmapGrantRef, op.as_bytes());
        assert_eq!(done, UnmapGrantRef { status: OKAY, ..op }.as_bytes(), "{at:#x}");
        assert_eq!((one.count(PAGE), two.mapping(AT >> 12)), (0, None));
    }
}

#[test]
fn a_read_only_grant_is_mapped_for_reading_only() {
    let world = two();
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    one.grants(8, 2, GFN, EntryFlags::READONLY);
    assert_eq!(map(two, map_op(1, 8, AT, HOST_MAP)).status, GENERAL_ERROR);
    assert!(!one.entry_flags(8).contains(EntryFlags::READING), "nothing is left of the attempt");
    let done = map(two, map_op(1, 8, AT, HOST_MAP | READONLY));
    assert_eq!(done.status, OKAY);
    assert_eq!(two.mapping(AT >> 12).unwrap().kind, Kind::GrantReadOnly);
    let flags = one.entry_flags(8);
    assert!(flags.contains(EntryFlags::READING) && !flags.contains(EntryFlags::WRITING));
    // The hypervisor does not write there for the mapper either: the status of this call has no place.
    let args = [GrantOp::QuerySize.number().into(), AT, 1, 0, 0];
    assert_eq!(two.call(number::GRANT_TABLE_OP, args), EFAULT);
    assert_eq!(unmap(two, done.handle, AT), OKAY);
}

#[test]
fn mapping_is_refused_as_xen_refuses() {
    let world = two();
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    one.grants(8, 2, GFN, EntryFlags::empty());
    one.grants(9, 7, GFN, EntryFlags::empty());
    one.grants(11, 2, 0x8_0000, EntryFlags::empty());
    one.grants(12, 2, GFN, EntryFlags::ACCEPT_TRANSFER);
    one.grants(13, 2, GFN, EntryFlags::from_bits_retain(1 << 8));
    let status = |op| map(two, op).status;
    assert_eq!(status(map_op(1, 8, AT, 0)), BAD_GNTREF, "for nobody");
    assert_eq!(status(map_op(1, 8, AT, 1)), GENERAL_ERROR, "for a device");
    assert_eq!(status(map_op(1, 8, AT, HOST_MAP | 1 << 4)), GENERAL_ERROR, "by page-table entry");
    assert_eq!(status(map_op(1, 8, AT, HOST_MAP | 1 << 16)), GENERAL_ERROR, "available bits");
    assert_eq!(status(map_op(3, 8, AT, HOST_MAP)), BAD_DOMAIN);
    assert_eq!(status(map_op(0x7FF0, 8, AT, HOST_MAP)), BAD_DOMAIN, "DOMID_SELF names nobody here");
    assert_eq!(status(map_op(1, 512, AT, HOST_MAP)), BAD_GNTREF, "the table has one frame");
    assert_eq!(status(map_op(1, u32::MAX, AT, HOST_MAP)), BAD_GNTREF);
    assert_eq!(status(map_op(1, 9, AT, HOST_MAP)), GENERAL_ERROR, "granted to another");
    assert_eq!(status(map_op(1, 10, AT, HOST_MAP)), GENERAL_ERROR, "not granted");
    assert_eq!(status(map_op(1, 11, AT, HOST_MAP)), BAD_PAGE, "no RAM");
    assert_eq!(status(map_op(1, 12, AT, HOST_MAP)), GENERAL_ERROR, "another type");
    assert_eq!(status(map_op(1, 13, AT, HOST_MAP)), GENERAL_ERROR, "part of a page");
    assert_eq!(status(map_op(1, 8, 1 << 52, HOST_MAP)), GENERAL_ERROR, "no such address");
    assert_eq!(status(map_op(1, 8, 1 << 40, HOST_MAP)), GENERAL_ERROR, "no such address");
    for gref in 8..14 {
        assert_eq!(pins(&world, 1, gref), (0, 0));
        assert!(!one.entry_flags(gref).intersects(EntryFlags::READING | EntryFlags::WRITING));
    }
    assert_eq!(one.count(PAGE), 0);
}

#[test]
fn a_page_that_was_granted_to_oneself_is_not_granted_on() {
    let world = two();
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    one.grants(8, 2, GFN, EntryFlags::empty());
    let done = map(two, map_op(1, 8, AT, HOST_MAP));
    two.grants(8, 1, AT >> 12, EntryFlags::empty());
    assert_eq!(map(one, map_op(2, 8, AT, HOST_MAP)).status, BAD_PAGE);
    assert_eq!(unmap(two, done.handle, AT), OKAY);
}

#[test]
fn one_may_map_ones_own_grant() {
    let world = two();
    let one = guest(&world, 1);
    one.grants(8, 1, GFN, EntryFlags::empty());
    one.write(PAGE, b"mine");
    let done = map(one, map_op(1, 8, AT, HOST_MAP));
    assert_eq!(done.status, OKAY);
    assert_eq!(world.guest_read::<4>(1, AT), *b"mine");
    assert_eq!(unmap(one, done.handle, AT), OKAY);
    assert_eq!(one.count(PAGE), 0);
}

#[test]
fn several_mappings_of_a_reference_are_counted() {
    let world = two();
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    one.grants(8, 2, GFN, EntryFlags::empty());
    let reader = map(two, map_op(1, 8, AT, HOST_MAP | READONLY));
    // What the granter writes into the entry now changes nothing for a reference in use.
    one.grants(8, 2, GFN + 1, EntryFlags::READING);
    let writer = map(two, map_op(1, 8, AT + 0x1000, HOST_MAP));
    assert_eq!((reader.status, writer.status), (OKAY, OKAY));
    assert_eq!(pins(&world, 1, 8), (1, 1));
    assert_eq!(two.mapping(AT >> 12).unwrap().mfn, two.mapping((AT >> 12) + 1).unwrap().mfn);
    assert_eq!(unmap(two, writer.handle, AT + 0x1000), OKAY);
    let flags = one.entry_flags(8);
    assert!(flags.contains(EntryFlags::READING) && !flags.contains(EntryFlags::WRITING));
    assert_eq!(unmap(two, reader.handle, AT), OKAY);
    assert_eq!((pins(&world, 1, 8), one.count(PAGE)), ((0, 0), 0));
}

#[test]
fn a_reference_that_one_domain_uses_is_no_other_domains() {
    let world = World::new(3);
    let (one, two, three) = (guest(&world, 1), guest(&world, 2), guest(&world, 3));
    one.grants(8, 2, GFN, EntryFlags::empty());
    let done = map(two, map_op(1, 8, AT, HOST_MAP));
    assert_eq!(map(three, map_op(1, 8, AT, HOST_MAP)).status, GENERAL_ERROR);
    one.grants(8, 3, GFN, EntryFlags::empty());
    assert_eq!(map(three, map_op(1, 8, AT, HOST_MAP | READONLY)).status, GENERAL_ERROR, "while it is in use");
    let own = RAM >> 12;
    let copied = three.grant(GrantOp::Copy, copy_op((1, 8, 0), (SELF, own, 0), 4, SOURCE_GREF)).1.status;
    assert_eq!(copied, GENERAL_ERROR);
    assert_eq!(pins(&world, 1, 8), (0, 1));
    assert_eq!(unmap(three, done.handle, AT), BAD_HANDLE, "handles are each domain's own");
    assert_eq!(unmap(two, done.handle, AT), OKAY);
    assert_eq!(map(three, map_op(1, 8, AT, HOST_MAP)).status, OKAY);
}

#[test]
fn a_grant_that_lost_its_place_is_given_back_when_the_place_is_empty() {
    let world = two();
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    one.grants(8, 2, GFN, EntryFlags::empty());
    let done = map(two, map_op(1, 8, AT, HOST_MAP));
    // The mapper puts its shared-info page there, then takes it away.
    let place = AddToPhysmap { domid: DomId::SELF, size: 1, space: 0, idx: 0, gpfn: AT >> 12 };
    assert_eq!(two.with(number::MEMORY_OP, 7, place).0, 0);
    assert_eq!(unmap(two, done.handle, AT), GENERAL_ERROR, "something else is there");
    assert_eq!((pins(&world, 1, 8), one.count(PAGE)), ((0, 1), 1));
    let remove = RemoveFromPhysmap { domid: DomId::SELF, pad: [0; 3], gpfn: AT >> 12 };
    assert_eq!(two.with(number::MEMORY_OP, 15, remove).0, 0);
    assert_eq!(unmap(two, done.handle, AT), OKAY);
    assert_eq!((pins(&world, 1, 8), one.count(PAGE)), ((0, 0), 0));
}

#[test]
fn a_reference_counts_128_uses_of_a_kind() {
    let world = two();
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    one.grants(8, 2, GFN, EntryFlags::empty());
    for n in 0..128 {
        assert_eq!(map(two, map_op(1, 8, AT + n * 0x1000, HOST_MAP)).status, OKAY);
    }
    assert_eq!(map(two, map_op(1, 8, AT + 0x10_0000, HOST_MAP)).status, GENERAL_ERROR);
    assert_eq!(pins(&world, 1, 8), (0, 128));
}

#[test]
fn mappings_end_with_the_quota_of_handles() {
    let world = two();
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    one.grants(8, 2, GFN, EntryFlags::empty());
    one.grants(9, 2, GFN + 1, EntryFlags::empty());
    one.grants(10, 2, GFN + 2, EntryFlags::empty());
    let mut handles = Vec::new();
    // One frame of handles, of which Xen keeps one.
    for n in 0..255 {
        let done = map(two, map_op(1, 8 + u32::try_from(n / 128).unwrap(), AT + n * 0x1000, HOST_MAP));
        assert_eq!(done.status, OKAY);
        handles.push(done.handle.0);
    }
    assert_eq!(map(two, map_op(1, 10, AT + 0x20_0000, HOST_MAP)).status, NO_SPACE);
    handles.sort_unstable();
    handles.dedup();
    assert_eq!(handles.len(), 255, "each names one mapping");
    assert_eq!(unmap(two, GrantHandle(17), 0), OKAY, "without an address nothing is undone");
    let freed = AT + handles.iter().position(|handle| *handle == 17).unwrap() as u64 * 0x1000;
    assert_eq!(unmap(two, GrantHandle(17), freed + 0x1000), GENERAL_ERROR, "another place");
    assert_eq!(unmap(two, GrantHandle(17), freed), OKAY);
    assert_eq!(map(two, map_op(1, 10, AT + 0x20_0000, HOST_MAP)).handle, GrantHandle(17));
    for handle in [255, 256, u32::MAX] {
        assert_eq!(unmap(two, GrantHandle(handle), AT), BAD_HANDLE);
    }
}

#[test]
fn mapping_over_ram_hides_the_page_and_over_a_grant_is_refused() {
    let world = two();
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    one.grants(8, 2, GFN, EntryFlags::empty());
    one.grants(9, 2, GFN + 1, EntryFlags::empty());
    let had = world.machine.frames.table.total(DomId(2), Role::Data);
    let done = map(two, map_op(1, 8, PAGE, HOST_MAP));
    assert_eq!(done.status, OKAY);
    assert_eq!(world.machine.frames.table.total(DomId(2), Role::Data), had, "the page stays the domain's");
    assert_eq!(map(two, map_op(1, 9, PAGE, HOST_MAP)).status, GENERAL_ERROR);
    assert_eq!(pins(&world, 1, 9), (0, 0));
    assert_eq!(unmap(two, done.handle, PAGE), OKAY);
}

#[test]
fn batches_give_every_element_its_status_and_restart() {
    let world = two();
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    for gref in 8..48 {
        one.grants(gref, if gref == 30 { 9 } else { 2 }, GFN + u64::from(gref), EntryFlags::empty());
    }
    for gref in 8..48_u32 {
        let op = map_op(1, gref, AT + u64::from(gref) * 0x1000, HOST_MAP);
        two.write(ARG + u64::from(gref - 8) * 32, zerocopy::IntoBytes::as_bytes(&op));
    }
    let outcome = two.once(number::GRANT_TABLE_OP, [0, ARG, 40, 0, 0]);
    assert_eq!(outcome, Outcome::Restart([0, ARG + 16 * 32, 24, 0, 0]));
    world.check();
    assert_eq!(two.call(number::GRANT_TABLE_OP, [0, ARG + 16 * 32, 24, 0, 0]), 0);
    for gref in 8..48_u32 {
        let op: MapGrantRef = two.read(ARG + u64::from(gref - 8) * 32);
        assert_eq!(op.status, if gref == 30 { GENERAL_ERROR } else { OKAY });
    }
}

#[test]
fn counts_and_commands_are_checked() {
    let world = two();
    let one = guest(&world, 1);
    let call = |cmd: u64, at, count| one.call(number::GRANT_TABLE_OP, [cmd, at, count, 0, 0]);
    for cmd in [0, 1, 5, 7, 11, 12] {
        assert_eq!(call(cmd, NOWHERE, 0), 0, "a batch of none is done");
        assert_eq!(call(cmd, NOWHERE, 1), EFAULT);
        assert_eq!(call(cmd, ARG, 1 << 31), EINVAL);
    }
    for cmd in [2, 6, 9] {
        assert_eq!(call(cmd, ARG, 0), EINVAL);
        assert_eq!(call(cmd, ARG, 2), EINVAL);
        assert_eq!(call(cmd, NOWHERE, 1), EFAULT);
    }
    assert_eq!(call(4, ARG, 1), EOPNOTSUPP, "transfer");
    assert_eq!(call(3, ARG, 1), ENOSYS, "dump_table");
    assert_eq!(call(13, ARG, 1), ENOSYS);
    assert_eq!(call(0x1000, ARG, 1), EINVAL, "progress that only a cache flush has");
    // Addresses that wrap.
    assert_eq!(call(5, u64::MAX - 40, 2), EFAULT);
}

#[test]
fn the_table_starts_with_one_frame_and_grows_to_its_quota() {
    let world = two();
    let one = guest(&world, 1);
    let query = |dom| one.grant(GrantOp::QuerySize, QuerySize { dom, ..QuerySize::default() }).1;
    let size = query(DomId::SELF);
    assert_eq!((size.status, size.nr_frames, size.max_nr_frames), (OKAY, 1, 4));
    assert_eq!(query(DomId(2)).status, PERMISSION_DENIED);
    assert_eq!(query(DomId(3)).status, BAD_DOMAIN);

    let list = GuestHandle(ARG + 0x100);
    let setup = |dom, nr_frames| {
        let arg = SetupTable { dom, nr_frames, frame_list: list, ..SetupTable::default() };
        one.grant(GrantOp::SetupTable, arg).1.status
    };
    assert_eq!(setup(DomId::SELF, 5), GENERAL_ERROR);
    assert_eq!(setup(DomId(2), 1), PERMISSION_DENIED);
    assert_eq!(setup(DomId(3), 1), BAD_DOMAIN);
    assert_eq!(query(DomId::SELF).nr_frames, 1);
    assert_eq!(setup(DomId::SELF, 3), OKAY);
    assert_eq!(query(DomId::SELF).nr_frames, 3);
    assert_eq!(one.read::<[u64; 3]>(list.0), [u64::MAX; 3], "no frame is mapped anywhere");
    assert_eq!(setup(DomId::SELF, 1), OKAY);
    assert_eq!(query(DomId::SELF).nr_frames, 3, "it never shrinks");
    one.grants(1535, 2, GFN, EntryFlags::empty());
    assert_eq!(map(guest(&world, 2), map_op(1, 1535, AT, HOST_MAP)).status, OKAY);
}

#[test]
fn there_is_version_one_only() {
    let world = two();
    let one = guest(&world, 1);
    let set = |version| one.grant(GrantOp::SetVersion, SetVersion { version });
    assert_eq!(set(1), (0, SetVersion { version: 1 }));
    assert_eq!(set(2), (ENOSYS, SetVersion { version: 1 }), "what is in force is told");
    assert_eq!(set(3), (EINVAL, SetVersion { version: 1 }));
    let get = |dom| one.grant(GrantOp::GetVersion, GetVersion { dom, pad: 0, version: 77 });
    assert_eq!((get(DomId::SELF).0, get(DomId::SELF).1.version), (0, 1));
    assert_eq!(get(DomId(2)).0, EPERM);
    assert_eq!(get(DomId(3)).0, ESRCH);
}

/// A copy of `len` bytes.
fn copy_op(source: (u16, u64, u16), dest: (u16, u64, u16), len: u16, flags: u16) -> GrantCopy {
    let ptr = |(dom, ref_or_gfn, offset)| CopyPtr { ref_or_gfn, domid: DomId(dom), offset, pad: 0 };
    GrantCopy { source: ptr(source), dest: ptr(dest), len, flags, status: 99, pad: 0 }
}

const SELF: u16 = 0x7FF0;
const SOURCE_GREF: u16 = 1;
const DEST_GREF: u16 = 2;

#[test]
fn copies_go_between_frames_and_grants_of_all_combinations() {
    let world = two();
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    one.grants(8, 2, GFN, EntryFlags::empty());
    two.grants(8, 2, GFN + 2, EntryFlags::empty());
    let own = RAM + 0x4_0000;
    let copy = |op: GrantCopy| two.grant(GrantOp::Copy, op).1.status;
    one.write(PAGE + 16, b"grant of one");
    two.write(own + 5, b"frame of two");

    assert_eq!(copy(copy_op((1, 8, 16), (SELF, own >> 12, 100), 12, SOURCE_GREF)), OKAY);
    assert_eq!(world.guest_read::<12>(2, own + 100), *b"grant of one");
    assert_eq!(copy(copy_op((SELF, own >> 12, 5), (1, 8, 4000), 12, DEST_GREF)), OKAY);
    assert_eq!(world.guest_read::<12>(1, PAGE + 4000), *b"frame of two");
    assert_eq!(copy(copy_op((SELF, own >> 12, 100), (SELF, (own >> 12) + 1, 0), 12, 0)), OKAY);
    assert_eq!(world.guest_read::<12>(2, own + 0x1000), *b"grant of one");
    assert_eq!(copy(copy_op((1, 8, 4000), (2, 8, 0), 12, SOURCE_GREF | DEST_GREF)), OKAY);
    assert_eq!(world.guest_read::<12>(2, PAGE + 0x2000), *b"frame of two");
    // From and to one and the same grant.
    assert_eq!(copy(copy_op((1, 8, 16), (1, 8, 2048), 12, SOURCE_GREF | DEST_GREF)), OKAY);
    assert_eq!(world.guest_read::<12>(1, PAGE + 2048), *b"grant of one");
    assert!(!one.entry_flags(8).intersects(EntryFlags::READING | EntryFlags::WRITING));
    assert_eq!((pins(&world, 1, 8), one.count(PAGE)), ((0, 0), 0));
}

#[test]
fn copies_are_refused_as_xen_refuses() {
    let world = two();
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    one.grants(8, 2, GFN, EntryFlags::READONLY);
    one.grants(9, 1, GFN, EntryFlags::empty());
    let own = (RAM + 0x4_0000) >> 12;
    let copy = |op: GrantCopy| two.grant(GrantOp::Copy, op).1.status;
    assert_eq!(copy(copy_op((9, 999, 5000), (9, 999, 0), 0, 0)), OKAY, "of nothing");
    assert_eq!(copy(copy_op((1, GFN, 0), (SELF, own, 0), 4, 0)), PERMISSION_DENIED, "another's frame");
    assert_eq!(copy(copy_op((2, own, 0), (SELF, own, 0), 4, 0)), PERMISSION_DENIED, "one's own by number");
    assert_eq!(copy(copy_op((9, 8, 0), (SELF, own, 0), 4, SOURCE_GREF)), BAD_DOMAIN);
    assert_eq!(copy(copy_op((1, 512, 0), (SELF, own, 0), 4, SOURCE_GREF)), BAD_GNTREF);
    assert_eq!(copy(copy_op((1, 9, 0), (SELF, own, 0), 4, SOURCE_GREF)), GENERAL_ERROR, "granted to another");
    assert_eq!(copy(copy_op((SELF, own, 0), (1, 8, 0), 4, DEST_GREF)), GENERAL_ERROR, "for reading only");
    assert_eq!(copy(copy_op((SELF, 0x8_0000, 0), (SELF, own, 0), 4, 0)), BAD_PAGE);
    assert_eq!(copy(copy_op((SELF, own, 0), (SELF, u64::MAX, 0), 4, 0)), BAD_PAGE);
    assert_eq!(copy(copy_op((1, 8, 4093), (SELF, own, 0), 4, SOURCE_GREF)), BAD_COPY_ARG);
    assert_eq!(copy(copy_op((1, 8, 0), (SELF, own, 1), 4096, SOURCE_GREF)), BAD_COPY_ARG);
    assert_eq!(copy(copy_op((1, 8, u16::MAX), (SELF, own, 0), u16::MAX, SOURCE_GREF)), BAD_COPY_ARG);
    assert_eq!((pins(&world, 1, 8), pins(&world, 1, 9), one.count(PAGE)), ((0, 0), (0, 0), 0));
}

#[test]
fn a_copy_to_a_grant_that_names_another_frame_than_the_one_in_use_is_refused() {
    let world = two();
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    one.grants(8, 2, GFN, EntryFlags::empty());
    let done = map(two, map_op(1, 8, AT, HOST_MAP | READONLY));
    one.grants(8, 2, GFN + 1, EntryFlags::READING);
    let own = (RAM + 0x4_0000) >> 12;
    let copied = two.grant(GrantOp::Copy, copy_op((SELF, own, 0), (1, 8, 0), 4, DEST_GREF)).1.status;
    assert_eq!(copied, GENERAL_ERROR);
    assert_eq!(pins(&world, 1, 8), (1, 0));
    assert!(!one.entry_flags(8).contains(EntryFlags::WRITING));
    assert_eq!(unmap(two, done.handle, AT), OKAY);
}

#[test]
fn entries_that_are_not_in_use_can_be_exchanged() {
    let world = two();
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    one.grants(8, 2, GFN, EntryFlags::empty());
    let swap = |a, b| {
        let arg = SwapGrantRef { ref_a: GrantRef(a), ref_b: GrantRef(b), ..SwapGrantRef::default() };
        one.grant(GrantOp::SwapGrantRef, arg).1.status
    };
    assert_eq!(swap(8, 20), OKAY);
    assert_eq!((one.entry_flags(8), one.entry_flags(20)), (EntryFlags::empty(), EntryFlags::PERMIT_ACCESS));
    let done = map(two, map_op(1, 20, AT, HOST_MAP));
    assert_eq!(done.status, OKAY);
    assert_eq!((swap(8, 20), swap(20, 8)), (EAGAIN, EAGAIN));
    assert_eq!(swap(20, 20), OKAY, "with itself");
    assert_eq!((swap(512, 8), swap(8, 512)), (BAD_GNTREF, BAD_GNTREF));
}

#[test]
fn caches_are_cleaned_over_ones_own_and_mapped_frames() {
    let world = two();
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    let of_one = one.place(PAGE).pa().get();
    let flush = |guest: Guest<'_>, addr, offset, length, op| {
        guest.grant(GrantOp::CacheFlush, CacheFlush { addr_or_ref: addr, offset, length, op }).0
    };
    world.machine.hw.take_ops();
    assert_eq!(flush(one, of_one, 0, 4096, 1), 0);
    assert!(world.machine.hw.take_ops().contains(&Op::CleanToMemory(one.place(PAGE).frame())));
    assert_eq!(flush(two, of_one, 0, 64, 2), EINVAL, "not mapped");
    one.grants(8, 2, GFN, EntryFlags::empty());
    map(two, map_op(1, 8, AT, HOST_MAP));
    assert_eq!(flush(two, of_one, 0, 64, 2), 0);
    assert_eq!(flush(one, of_one, 4096, 0, 1), EINVAL);
    assert_eq!(flush(one, of_one, 1, 4096, 1), EINVAL);
    assert_eq!(flush(one, of_one, 0, 64, 4), EINVAL);
    assert_eq!(flush(one, of_one, 0, 64, 1 << 31), EINVAL);
    assert_eq!(flush(one, 0x1000, 0, 64, 1), EINVAL, "no RAM");
    assert_eq!(flush(one, 0x1000, 0, 0, 1), 0, "nothing to do");
    let free = world.machine.frames.allocate(0, DomId::XEN, Role::Hypervisor).unwrap();
    assert_eq!(flush(one, free.base().get(), 0, 64, 1), EPERM, "the hypervisor's");
    world.machine.frames.free(free).unwrap();
    assert_eq!(flush(one, free.base().get(), 0, 64, 1), EPERM, "nobody's");
}

#[test]
fn a_granter_that_keeps_its_entry_busy_is_destroyed() {
    let world = two();
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    one.grants(8, 2, GFN, EntryFlags::empty());
    world.machine.hw.contend_after(0);
    assert_eq!(map(two, map_op(1, 8, AT, HOST_MAP)).status, GENERAL_ERROR);
    assert_eq!(world.domain(1).life.get(), Life::Destroyed(Fault::WordContended));
    assert_eq!(world.domain(2).life.get(), Life::Running);
}

#[test]
fn without_frames_for_tables_nothing_changes() {
    let world = two();
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    one.grants(8, 2, GFN, EntryFlags::empty());
    // All free frames are taken, then given back one at a time until the mapping finds what it needs.
    let frames = &world.machine.frames;
    let mut taken = Vec::new();
    while let Some(mfn) = frames.allocate(0, DomId::XEN, Role::Hypervisor) {
        taken.push(mfn);
    }
    let far = 0x70_0000_0000;
    let mut refused = 0;
    let done = loop {
        let before = world.machine.frames.free_frames();
        let done = map(two, map_op(1, 8, far, HOST_MAP));
        if done.status == OKAY {
            break done;
        }
        // The first is for the handle, the others for stage 2.
        let status = if refused == 0 { NO_SPACE } else { GENERAL_ERROR };
        assert_eq!((done.status, pins(&world, 1, 8), one.count(PAGE)), (status, (0, 0), 0));
        assert_eq!(two.mapping(far >> 12), None);
        assert!(world.machine.frames.free_frames() <= before);
        refused += 1;
        frames.free(taken.pop().unwrap()).unwrap();
        assert!(refused < 10);
    };
    assert!(refused > 0, "it needs tables of two levels");
    assert_eq!(unmap(two, done.handle, far), OKAY);

    // The table does not grow by halves.
    while let Some(mfn) = frames.allocate(0, DomId::XEN, Role::Hypervisor) {
        taken.push(mfn);
    }
    for missing in (1..3).rev() {
        let setup = SetupTable {
            dom: DomId::SELF,
            nr_frames: 4,
            frame_list: GuestHandle(ARG + 64),
            ..SetupTable::default()
        };
        assert_eq!(one.grant(GrantOp::SetupTable, setup).1.status, GENERAL_ERROR);
        assert_eq!(world.domain(1).state.lock().grants.frames(), 1, "{missing} more would do");
        frames.free(taken.pop().unwrap()).unwrap();
    }
}

#[test]
fn a_domain_that_keeps_to_itself_shares_with_nobody_but_itself() {
    let world = World::with_isolated(3, 2);
    let (one, two, three) = (guest(&world, 1), guest(&world, 2), guest(&world, 3));
    for (granter, gref, user) in [(one, 8, 2), (two, 8, 1), (two, 9, 2), (one, 9, 3)] {
        granter.grants(gref, user, GFN, EntryFlags::empty());
    }
    assert_eq!(map(two, map_op(1, 8, AT, HOST_MAP)).status, PERMISSION_DENIED);
    assert_eq!(map(one, map_op(2, 8, AT, HOST_MAP)).status, PERMISSION_DENIED);
    assert_eq!(map(two, map_op(2, 9, AT, HOST_MAP)).status, OKAY, "its own page");
    assert_eq!(map(three, map_op(1, 9, AT, HOST_MAP)).status, OKAY, "two others");
    let from_other = copy_op((1, 8, 0), (DomId::SELF.0, GFN, 0), 1, 1);
    assert_eq!(two.grant(GrantOp::Copy, from_other).1.status, PERMISSION_DENIED);
    let to_it = copy_op((DomId::SELF.0, GFN, 0), (2, 8, 0), 1, 2);
    assert_eq!(one.grant(GrantOp::Copy, to_it).1.status, PERMISSION_DENIED);

    // Both sides its own, a third one copies: that would tell it what is in its pages, and by which it copied.
    two.grants(10, 1, GFN, EntryFlags::READONLY);
    two.grants(11, 1, GFN + 1, EntryFlags::empty());
    let inside = copy_op((2, 10, 0), (2, 11, 0), 1, 3);
    world.guest_write(2, GFN << 12, &[0x5A]);
    assert_eq!(one.grant(GrantOp::Copy, inside).1.status, PERMISSION_DENIED);
    assert_eq!(world.guest_read::<1>(2, (GFN + 1) << 12), [0]);
    // It may copy so itself, and two others may have a third one between them.
    two.grants(12, 2, GFN, EntryFlags::READONLY);
    let own = copy_op((2, 12, 0), (DomId::SELF.0, GFN + 1, 0), 1, 1);
    assert_eq!(two.grant(GrantOp::Copy, own).1.status, OKAY);
    assert_eq!(world.guest_read::<1>(2, (GFN + 1) << 12), [0x5A]);
    one.grants(10, 3, GFN, EntryFlags::READONLY);
    one.grants(11, 3, GFN + 1, EntryFlags::empty());
    let between = copy_op((1, 10, 0), (1, 11, 0), 1, 3);
    assert_eq!(three.grant(GrantOp::Copy, between).1.status, OKAY);
    world.check();
}
