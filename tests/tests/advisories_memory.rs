//! Memory, information and calls in general against what went wrong in Xen's: one test a row of `tests/advisories.toml`, named after it.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "tests")]

use std::sync::mpsc;

use hypervisor::domain::lock_two;
use hypervisor::fake::{MEMORY_KIB, Op, RAM, World};
use hypervisor::frame::Role;
use hypervisor::hypercall::Outcome;
use hypervisor::psci::{BranchTraining, Request, decode};
use hypervisor::stage2::Kind;
use pavo_tests::{ARG, Guest, NOWHERE, Settled, guest, number};
use pv_abi::event::{BindIpi, EventOp};
use pv_abi::grant::{CopyPtr, EntryFlags, GrantCopy, GrantOp, MapGrantRef};
use pv_abi::memory::{AddToPhysmap, AddToPhysmapBatch, RemoveFromPhysmap, Reservation};
use pv_abi::vcpu::RegisterVcpuInfo;
use pv_abi::{DomId, GrantRef, GuestHandle, Port};
use zerocopy::IntoBytes;

const INCREASE: u64 = 0;
const DECREASE: u64 = 1;
const POPULATE: u64 = 6;
const PLACE: u64 = 7;
const REMOVE: u64 = 15;
const BATCH: u64 = 23;
const LIST: u64 = ARG + 0x1000;
const GFN: u64 = (RAM >> 12) + 0x80;
/// Guest frames that are none: more than 40 bits of address, one bit at a time and all.
fn impossible() -> impl Iterator<Item = u64> {
    (28..64).map(|bit| 1_u64 << bit | GFN).chain([1 << 28, (1 << 28) + GFN, u64::MAX, u64::MAX - 1])
}

fn change(guest: Guest<'_>, op: u64, gfns: &[u64], order: u32) -> i64 {
    guest.write(LIST, gfns.as_bytes());
    let arg = Reservation {
        extent_start: GuestHandle(LIST),
        nr_extents: gfns.len() as u64,
        extent_order: order,
        mem_flags: 0,
        domid: DomId::SELF,
        pad: [0; 3],
    };
    guest.quick_with(number::MEMORY_OP, op as u32, arg).0
}

fn place(guest: Guest<'_>, space: u32, idx: u64, gpfn: u64) -> i64 {
    guest
        .with(number::MEMORY_OP, PLACE as u32, AddToPhysmap { domid: DomId::SELF, size: 1, space, idx, gpfn })
        .0
}

fn remove(guest: Guest<'_>, gpfn: u64) -> i64 {
    guest
        .with(number::MEMORY_OP, REMOVE as u32, RemoveFromPhysmap { domid: DomId::SELF, pad: [0; 3], gpfn })
        .0
}

fn frames(world: &World, id: u16) -> u64 {
    world.domain(id).state.lock().memory.frames
}

/// Every lock of a domain can be had: no call has kept one.
fn unlocked(world: &World) {
    for domain in world.machine.domains {
        assert!(domain.state.try_lock().is_some());
    }
}

#[test]
fn xsa_222_a_page_whose_block_cannot_be_split_stays_mapped_and_stays_the_domains() {
    let world = Settled::new(2);
    let one = guest(&world, 1);
    let before = one.mapping(GFN).unwrap();
    world.machine.frames.fail_after(0);
    assert_eq!(change(one, DECREASE, &[GFN], 0), 0);
    assert_eq!(one.mapping(GFN), Some(before));
    let state = world.machine.frames.table.state(before.mfn).unwrap();
    assert_eq!((state.owner, state.role), (DomId(1), Role::Data));
    assert_eq!(world.machine.frames.limbo_frames(), 0);
}

#[test]
fn xsa_277_an_absent_frame_given_up_again_and_again_keeps_no_lock() {
    let world = Settled::new(2);
    let one = guest(&world, 1);
    assert_eq!(change(one, DECREASE, &[GFN], 0), 1);
    for _ in 0..3 {
        assert_eq!(change(one, DECREASE, &[GFN], 0), 0);
        assert!(remove(one, GFN) < 0);
        unlocked(&world);
    }
    assert_eq!(change(one, POPULATE, &[GFN], 0), 1);
}

#[test]
fn xsa_301_no_bit_of_a_frame_number_is_ignored() {
    let world = Settled::new(2);
    let one = guest(&world, 1);
    let before = (one.mapping(GFN).unwrap(), frames(&world, 1));
    for gfn in impossible() {
        for (op, order) in [(DECREASE, 0), (POPULATE, 0), (INCREASE, 0), (DECREASE, 9), (POPULATE, 9)] {
            assert_eq!(change(one, op, &[gfn], order), 0, "{op} {gfn:#x}");
        }
        assert!(remove(one, gfn) < 0 && place(one, 0, 0, gfn) < 0 && place(one, 1, 0, gfn) < 0);
        let info = RegisterVcpuInfo { gfn, offset: 0, rsvd: 0 };
        one.write(ARG, info.as_bytes());
        assert!(one.quick(number::VCPU_OP, [10, 0, ARG, 0, 0]) < 0);
        let side = |gfn| CopyPtr { ref_or_gfn: gfn, domid: DomId::SELF, offset: 0, pad: 0 };
        let op = GrantCopy { source: side(gfn), dest: side(GFN), len: 8, flags: 0, status: 0, pad: 0 };
        assert_ne!(one.quick_grant(GrantOp::Copy, op).1.status, 0);
    }
    assert_eq!((one.mapping(GFN).unwrap(), frames(&world, 1)), before);
}

#[test]
fn xsa_473_frames_of_others_are_not_placed() {
    let world = Settled::new(2);
    let one = guest(&world, 1);
    // Spaces: gmfn, gmfn range, foreign, device, and beyond.
    for space in 2..8 {
        assert!(place(one, space, GFN, 0x6_0000) < 0);
        assert_eq!(one.mapping(0x6_0000), None);
    }
}

#[test]
fn xsa_346_frames_that_a_batch_displaces_are_not_reused_before_the_tlb_has_forgotten_them() {
    for size in [1_u16, 15, 16, 17, 31, 32, 33] {
        let world = Settled::new(2);
        let one = guest(&world, 1);
        let gfns: Vec<u64> = (0..u64::from(size)).map(|index| GFN + index * 2).collect();
        // Read, so that the TLB remembers them.
        for gfn in &gfns {
            let _ = world.guest_read::<8>(1, gfn << 12);
        }
        one.write(LIST, &[0; 0x200]);
        one.write(LIST + 0x200, gfns.as_bytes());
        let batch = AddToPhysmapBatch {
            domid: DomId::SELF,
            space: 1,
            size,
            foreign_domid: DomId(0),
            idxs: GuestHandle(LIST),
            gpfns: GuestHandle(LIST + 0x200),
            errs: GuestHandle(LIST + 0x400),
        };
        // `call` checks that the TLB remembers nothing that is not there.
        one.quick_with(number::MEMORY_OP, BATCH as u32, batch);
        assert_eq!(change(one, DECREASE, &gfns[1..], 0), i64::from(size) - 1);
        world.check();
    }
}

#[test]
fn xsa_334_resources_cannot_be_acquired_and_no_lock_is_kept() {
    let world = Settled::new(2);
    let one = guest(&world, 1);
    for op in [5, 8, 9, 10, 11, 12, 13, 16, 17, 20, 21, 22, 24, 25, 26, 27, 28, 29, 63] {
        one.write(ARG, &[0xFF; 128]);
        for handle in [ARG, NOWHERE] {
            assert!(one.quick(number::MEMORY_OP, [op, handle, 0, 0, 0]) < 0, "operation {op}");
            unlocked(&world);
        }
    }
}

#[test]
fn xsa_383_a_domain_gets_what_it_may_have_and_no_page_more() {
    let world = Settled::new(2);
    let one = guest(&world, 1);
    let (most, theirs, free) = (frames(&world, 1), frames(&world, 2), world.machine.frames.free_frames());
    assert_eq!(most, MEMORY_KIB / 4);
    for start in [0x10_0000_u64, 0x20_0000, 0x700_0000] {
        assert_eq!(change(one, POPULATE, &[start], 0), 0);
        assert_eq!(change(one, INCREASE, &[start], 0), 0);
    }
    let gfns: Vec<u64> = (GFN..GFN + 10).collect();
    assert_eq!(change(one, DECREASE, &gfns, 0), 10);
    let far: Vec<u64> = (0x10_0000..0x10_0014).collect();
    assert_eq!(change(one, POPULATE, &far, 0), 10, "as many as it gave");
    assert_eq!((frames(&world, 1), frames(&world, 2)), (most, theirs));
    assert!(world.machine.frames.free_frames() <= free);
}

#[test]
fn xsa_385_an_order_does_not_wrap_around_the_limit() {
    let world = Settled::new(2);
    let one = guest(&world, 1);
    assert_eq!(change(one, DECREASE, &[GFN], 0), 1);
    for order in (1..=63).chain([64, 255, 0x7FFF_FFFF, u32::MAX]) {
        assert_eq!(change(one, POPULATE, &[0x10_0000], order), 0, "order {order}");
        assert_eq!(change(one, INCREASE, &[0x10_0000], order), 0);
    }
    assert_eq!(change(one, POPULATE, &[0x10_0000], 0), 1);
}

#[test]
fn xsa_409_tables_are_the_domains_own_and_end_with_its_quota() {
    let world = Settled::new(2);
    let one = guest(&world, 1);
    let tables = |id| world.machine.frames.table.total(DomId(id), Role::Stage2Table);
    let (theirs, mut placed) = (tables(2), 0);
    // The shared page at one address after another, a table further each time: tables stay.
    for gfn in (0..80_u64).map(|index| 0x20_0000 + index * 512) {
        if place(one, 0, 0, gfn) == 0 {
            placed += 1;
            assert_eq!(remove(one, gfn), 0);
        }
    }
    assert!(placed > 10 && placed < 100, "{placed}");
    let limit = world.domain(1).state.lock().stage2.limit();
    assert!(tables(1) <= u64::from(limit) && tables(2) == theirs);
    // And it still works where no table is needed.
    let page = (RAM >> 12) + 0x405;
    assert_eq!(change(one, DECREASE, &[page], 0), 1);
    assert_eq!(change(one, POPULATE, &[page], 0), 1);
}

#[test]
fn xsa_32_a_frame_that_is_not_there_is_no_page() {
    let world = Settled::new(2);
    let one = guest(&world, 1);
    let side = |gfn| CopyPtr { ref_or_gfn: gfn, domid: DomId::SELF, offset: 0, pad: 0 };
    for gfn in (0..0x5_0000_u64).step_by(97).chain(impossible()) {
        let there = one_has(one, gfn);
        let op = GrantCopy { source: side(gfn), dest: side(GFN), len: 8, flags: 0, status: 0, pad: 0 };
        assert_eq!(one.quick_grant(GrantOp::Copy, op).1.status == 0, there, "{gfn:#x}");
    }
}

fn one_has(guest: Guest<'_>, gfn: u64) -> bool {
    gfn < 1 << 28 && guest.mapping(gfn).is_some_and(|mapping| mapping.kind == Kind::Ram)
}

#[test]
fn xsa_141_refusals_print_nothing() {
    let world = Settled::new(2);
    let one = guest(&world, 1);
    world.machine.hw.take_console();
    world.machine.hw.take_events();
    for index in 0..200 {
        assert!(place(one, 4, index, 0x6_0000 + index) < 0);
        assert!(one.quick(index % 64 + 100, [index; 5]) < 0);
    }
    assert!(world.machine.hw.take_console().is_empty() && world.machine.hw.take_events().is_empty());
}

#[test]
fn xsa_327_a_vcpu_info_at_any_offset_is_used_or_refused_and_never_misaligned() {
    for offset in (0..64).chain(4030..4100).chain([1 << 31, u32::MAX]) {
        let world = Settled::new(2);
        let one = guest(&world, 1);
        one.write(ARG, RegisterVcpuInfo { gfn: GFN, offset, rsvd: 0 }.as_bytes());
        let accepted = one.quick(number::VCPU_OP, [10, 0, ARG, 0, 0]) == 0;
        // 48 bytes, aligned for a word.
        assert_eq!(accepted, offset % 8 == 0 && offset <= 4096 - 48, "offset {offset}");
        let (_, ipi) = one.quick_event(EventOp::BindIpi, BindIpi { vcpu: 0, port: Port(0) });
        assert_eq!(one.send(ipi.port), 0);
    }
    let world = Settled::new(2);
    let one = guest(&world, 1);
    for address in (0..64)
        .chain([u64::MAX, u64::MAX - 47, NOWHERE, 1 << 40])
        .map(|offset: u64| ((GFN << 12) + 4060).wrapping_add(offset))
    {
        one.write(ARG, &address.to_le_bytes());
        one.quick(number::VCPU_OP, [5, 0, ARG, 0, 0]);
    }
}

#[test]
fn xsa_155_no_byte_of_an_argument_is_read_twice() {
    let world = Settled::new(2);
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    two.grants(8, 1, GFN, EntryFlags::empty());
    // Ports, copies and the like that succeed, and what is refused late.
    let map = MapGrantRef {
        host_addr: 0x5000_0000,
        flags: 2,
        gref: GrantRef(8),
        dom: DomId(2),
        ..MapGrantRef::default()
    };
    let side = |gfn| CopyPtr { ref_or_gfn: gfn, domid: DomId::SELF, offset: 0, pad: 0 };
    let copy = GrantCopy { source: side(GFN), dest: side(GFN + 1), len: 8, flags: 0, status: 0, pad: 0 };
    let calls: [(u64, u64, &[u8]); 9] = [
        (number::EVENT_CHANNEL_OP, 6, &[0xF0, 0x7F, 2, 0, 0, 0, 0, 0]),
        (number::EVENT_CHANNEL_OP, 4, &[1, 0, 0, 0]),
        (
            number::EVENT_CHANNEL_OP,
            5,
            &[0xF0, 0x7F, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ),
        (number::GRANT_TABLE_OP, 0, map.as_bytes()),
        (number::GRANT_TABLE_OP, 1, &[0; 24]),
        (number::GRANT_TABLE_OP, 5, copy.as_bytes()),
        (number::MEMORY_OP, 15, &[0xF0, 0x7F, 0, 0, 0, 0, 0, 0, 0x90, 0, 4, 0, 0, 0, 0, 0]),
        (number::HVM_OP, 1, &[0xF0, 0x7F, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        (number::MULTICALL, 0, &[0; 64]),
    ];
    for (number, cmd, bytes) in calls {
        one.write(ARG, bytes);
        let page = one.place(ARG);
        world.machine.hw.take_ops();
        world.machine.hw.record_loads(true);
        let args = if number == number::MULTICALL { [ARG, 1, 0, 0, 0] } else { [cmd, ARG, 1, 0, 0] };
        one.once(number, args);
        world.machine.hw.record_loads(false);
        let mut read = [0_u8; 4096];
        for op in world.machine.hw.take_ops() {
            if let Op::Read { at, len } | Op::Load { at, len } = op
                && at.frame() == page.frame()
            {
                let start = (at.pa().get() & 0xFFF) as usize;
                read[start..start + len].iter_mut().for_each(|times| *times += 1);
            }
        }
        assert!(read.contains(&1), "call {number} {cmd} is read at all");
        assert!(read.iter().all(|times| *times <= 1), "call {number} {cmd} reads a byte twice");
    }
}

#[test]
fn xsa_145_a_call_that_restarts_may_stand_at_any_place_of_a_multicall() {
    let list = RAM + 0x2_0000;
    for slot in 0..12_u64 {
        let world = Settled::new(2);
        let one = guest(&world, 1);
        one.write(list, &[0; 4096]);
        for index in 0..12 {
            one.write(list + index * 64, &number::XEN_VERSION.to_le_bytes());
        }
        let gfns: Vec<u64> = (GFN..GFN + 60).collect();
        one.write(LIST, gfns.as_bytes());
        let reservation = Reservation {
            extent_start: GuestHandle(LIST),
            nr_extents: 60,
            extent_order: 0,
            mem_flags: 0,
            domid: DomId::SELF,
            pad: [0; 3],
        };
        one.write(ARG, reservation.as_bytes());
        one.write(list + slot * 64, &[number::MEMORY_OP, 0, DECREASE, ARG].map(u64::to_le_bytes).concat());
        let mut args = [list, 12, 0, 0, 0];
        let mut runs = 1;
        while let Outcome::Restart(left) = one.once(number::MULTICALL, args) {
            (args, runs) = (left, runs + 1);
            assert!(runs < 100);
        }
        assert!(runs > 3, "it was interrupted");
        for index in 0..12 {
            let expected = if index == slot { 60 } else { 0x4_0014 };
            assert_eq!(one.read::<i64>(list + index * 64 + 8), expected, "slot {slot}, call {index}");
        }
        world.check();
    }
}

#[test]
fn xsa_213_a_multicall_stops_where_its_domain_ends() {
    let list = RAM + 0x2_0000;
    for slot in 0..4_u64 {
        let world = Settled::new(2);
        let one = guest(&world, 1);
        one.write(list, &[0; 512]);
        for index in 0..4 {
            one.write(list + index * 64, &number::XEN_VERSION.to_le_bytes());
            one.write(list + index * 64 + 8, &0x7777_u64.to_le_bytes());
        }
        one.write(ARG, &0_u32.to_le_bytes());
        one.write(list + slot * 64, &[number::SCHED_OP, 0x7777, 2, ARG].map(u64::to_le_bytes).concat());
        let outcome = one.once(number::MULTICALL, [list, 4, 0, 0, 0]);
        assert!(!world.domain(1).life.is_running());
        if slot < 3 {
            assert!(matches!(outcome, Outcome::Restart(_)), "the rest is not done");
        }
        for index in slot + 1..4 {
            assert_eq!(one.read::<u64>(list + index * 64 + 8), 0x7777, "slot {slot}");
        }
    }
}

#[test]
fn xsa_296_progress_in_a_command_that_has_none_is_refused() {
    let world = Settled::new(2);
    let one = guest(&world, 1);
    one.write(ARG, &[0; 512]);
    for number in
        [number::VCPU_OP, number::EVENT_CHANNEL_OP, number::SCHED_OP, number::HVM_OP, number::VM_ASSIST]
    {
        for bit in 8..31 {
            assert!(one.quick(number, [5 | 1 << bit, ARG, ARG, 0, 0]) < 0, "call {number}, bit {bit}");
        }
    }
    for bit in 12..31 {
        for op in (0..14).filter(|op| *op != 12) {
            assert!(one.quick(number::GRANT_TABLE_OP, [op | 1 << bit, ARG, 1, 0, 0]) < 0);
        }
    }
}

#[test]
fn xsa_111_the_upper_halves_of_32_bit_arguments_mean_nothing() {
    let world = Settled::new(2);
    let one = guest(&world, 1);
    for upper in [1_u64 << 32, 0xFFFF_FFFF << 32, 0x5A5A_5A5A << 32] {
        assert_eq!(one.quick(number::XEN_VERSION, [upper, upper, upper, upper, upper]), 0x4_0014);
        one.write(ARG, &[0x41; 4]);
        assert_eq!(one.quick(number::CONSOLE_IO, [upper, upper | 4, ARG, upper, upper]), 0);
        one.write(ARG, &0x7FF0_0001_u64.to_le_bytes());
        assert_eq!(one.quick(number::VM_ASSIST, [upper, upper | 5, upper, upper, upper]), 0);
        one.write(ARG, &[0; 64]);
        assert_eq!(one.quick(number::EVENT_CHANNEL_OP, [upper | 4, ARG, upper, upper, upper]), -22);
    }
}

#[test]
fn xsa_499_a_call_without_rights_waits_for_no_lock_of_others() {
    let world = World::with_control(2);
    let one = guest(&world, 1);
    let ask = |number: u64, cmd: u32, version: u32| {
        let mut bytes = [0_u8; 144];
        bytes[..4].copy_from_slice(&cmd.to_le_bytes());
        bytes[4..8].copy_from_slice(&version.to_le_bytes());
        bytes[8..10].copy_from_slice(&2_u16.to_le_bytes());
        one.write(ARG, &bytes);
        let outcome = one.once(number, [ARG, 0, 0, 0, 0]);
        assert!(matches!(outcome, Outcome::Done(-1)), "{number} {cmd:#x}: {outcome:?}");
    };
    // As if another CPU were in a call of the control domain: every lock but the caller's own is held.
    let (first, second) = (world.domain(0), world.domain(2));
    let ((held, is_held), (done, is_done)) = (mpsc::channel(), mpsc::channel::<()>());
    std::thread::scope(|threads| {
        threads.spawn(move || {
            let _both = lock_two(first, second);
            held.send(()).unwrap();
            // Until the other end is dropped.
            is_done.recv().unwrap_err();
        });
        is_held.recv().unwrap();
        for cmd in [2, 3, 4, 5, 9, 16] {
            ask(36, cmd, 0x17);
        }
        for cmd in [6, 0x8000] {
            ask(35, cmd, 0x15);
        }
        drop(done);
    });
}

#[test]
fn xsa_100_a_frame_that_one_domain_gave_back_shows_the_next_nothing() {
    let world = Settled::new(2);
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    let gfns: Vec<u64> = (GFN..GFN + 32).collect();
    for gfn in &gfns {
        one.write(gfn << 12, &[0x53; 4096]);
    }
    assert_eq!(change(one, DECREASE, &gfns, 0), 32);
    assert_eq!(change(two, DECREASE, &gfns, 0), 32);
    // Nothing else is left, so the second gets what the first had.
    let frames = &world.machine.frames;
    let mut taken = Vec::new();
    while let Some(mfn) = frames.allocate(0, DomId::XEN, Role::Hypervisor) {
        taken.push(mfn);
    }
    for mfn in taken.iter().rev().take(32) {
        frames.free(*mfn).unwrap();
    }
    assert_eq!(change(two, POPULATE, &gfns, 0), 32);
    for gfn in gfns {
        assert_eq!(two.read::<[u8; 4096]>(gfn << 12), [0; 4096]);
    }
}

#[test]
fn xsa_245_no_byte_of_what_was_in_ram_before_reaches_a_domain() {
    // What the fake machine's RAM holds at the start is not zero.
    let world = Settled::new(2);
    for id in 1..=2 {
        let domain = guest(&world, id);
        let mut zeros = 0;
        for gfn in (RAM >> 12)..(RAM >> 12) + MEMORY_KIB / 4 {
            let page = domain.read::<[u8; 4096]>(gfn << 12);
            assert!(!page.chunks(64).any(|bytes| bytes == [hypervisor::fake::GARBAGE; 64]), "page {gfn:#x}");
            zeros += u64::from(page == [0; 4096]);
        }
        assert!(zeros > MEMORY_KIB / 4 - 16, "all but kernel and tree");
    }
}

#[test]
fn xsa_364_a_page_is_clear_in_memory_before_it_is_mapped() {
    let world = Settled::new(2);
    let one = guest(&world, 1);
    assert_eq!(change(one, DECREASE, &[GFN], 0), 1);
    world.machine.hw.take_ops();
    assert_eq!(change(one, POPULATE, &[GFN], 0), 1);
    let mfn = one.mapping(GFN).unwrap().mfn;
    let ops = world.machine.hw.take_ops();
    let first = |wanted: &dyn Fn(&Op) -> bool| ops.iter().position(wanted).unwrap();
    let cleared = first(&|op| *op == Op::Clear(mfn));
    let in_memory = first(&|op| *op == Op::CleanToMemory(mfn));
    let mapped =
        first(&|op| matches!(op, Op::TableWrite { entry, .. } if *entry >> 12 & 0xF_FFFF_FFFF == mfn.get()));
    assert!(cleared < in_memory && in_memory < mapped, "{cleared} {in_memory} {mapped}");
}

#[test]
fn row_162_the_upper_half_of_a_psci_function_means_nothing() {
    let world = Settled::new(2);
    let ask = |x: [u64; 4]| decode(world.domain(1), BranchTraining::Contained, x);
    for low in (0x8400_0000_u64..0x8400_0020).chain(0xC400_0000..0xC400_0020) {
        for argument in [0, 1, 2, 0x8400_0000, u64::MAX] {
            let plain = ask([low, argument, 0x4000_0000, 0]);
            for upper in [1_u64 << 32, 0xDEAD_BEEF << 32, 0xFFFF_FFFF << 32] {
                assert_eq!(ask([low | upper, argument, 0x4000_0000, 0]), plain, "{low:#x}");
            }
        }
    }
}

#[test]
fn row_165_a_vcpu_is_started_once_where_it_can_run_or_not_at_all() {
    let world = Settled::new(2);
    let ask = |target: u64, entry: u64| {
        decode(world.domain(1), BranchTraining::Contained, [0xC400_0003, target, entry, 7])
    };
    // Itself and what is not there, whatever the higher affinities say.
    for target in [2_u64, 3, 15, 16, 0xFF, 0xFFFF] {
        assert!(matches!(ask(target, RAM), Request::Return(value) if value < 0), "{target:#x}");
    }
    // Addresses that are no RAM are refused, or it starts and takes its own abort there.
    for entry in [0, 0x1000, RAM + MEMORY_KIB * 1024, u64::MAX - 3, 1 << 52] {
        match ask(1, entry) {
            Request::CpuOn { vcpu, entry: at, context } => assert_eq!((vcpu, at, context), (1, entry, 7)),
            Request::Return(value) => assert!(value < 0),
            other => panic!("{other:?}"),
        }
    }
}
