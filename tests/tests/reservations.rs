//! What a domain has of memory changes while it runs, and what it gave up becomes free when every CPU has left the hypervisor.
#![allow(clippy::unwrap_used, reason = "tests")]

use hypervisor::fake::{Op, RAM, World};
use hypervisor::frame::Role;
use hypervisor::hardware::CpuId;
use hypervisor::hypercall::Outcome;
use hypervisor::sched::pass;
use hypervisor::stage2::Kind;
use pavo_tests::{ARG, Guest, NOWHERE, guest, number, two};
use pv_abi::grant::EntryFlags;
use pv_abi::memory::{AddToPhysmapBatch, Reservation};
use pv_abi::{DomId, GuestHandle};
use zerocopy::IntoBytes;

const INCREASE: u64 = 0;
const DECREASE: u64 = 1;
const POPULATE: u64 = 6;
const LIST: u64 = ARG + 0x1000;
/// Guest frames of RAM that nothing else uses.
const GFN: u64 = (RAM >> 12) + 0x80;

fn asked(gfns: &[u64], order: u32) -> Reservation {
    Reservation {
        extent_start: GuestHandle(LIST),
        nr_extents: gfns.len() as u64,
        extent_order: order,
        mem_flags: 0,
        domid: DomId::SELF,
        pad: [0; 3],
    }
}

fn change(guest: Guest<'_>, op: u64, gfns: &[u64], order: u32) -> i64 {
    guest.write(LIST, gfns.as_bytes());
    guest.with(number::MEMORY_OP, u32::try_from(op).unwrap(), asked(gfns, order)).0
}

fn counters(world: &World, id: u16) -> (u64, u64, u64) {
    let frames = &world.machine.frames;
    let has = world.domain(id).state.lock().memory.frames;
    (has, frames.table.total(DomId(id), Role::Data), frames.free_frames() + frames.limbo_frames())
}

#[test]
fn pages_given_up_and_asked_back_leave_every_counter_where_it_began() {
    let world = two();
    let one = guest(&world, 1);
    // The block that they are in is split first.
    assert_eq!(change(one, DECREASE, &[GFN], 0), 1);
    assert_eq!(change(one, POPULATE, &[GFN], 0), 1);
    let before = counters(&world, 1);
    let gfns: Vec<u64> = (GFN..GFN + 40).collect();
    one.write(GFN << 12, b"secret");
    assert_eq!(change(one, DECREASE, &gfns, 0), 40);
    assert_eq!(counters(&world, 1), (before.0 - 40, before.1 - 40, before.2 + 40));
    assert!(gfns.iter().all(|gfn| one.mapping(*gfn).is_none()));
    assert_eq!(change(one, DECREASE, &gfns[..1], 0), 0, "it is gone");
    assert_eq!(change(one, POPULATE, &gfns, 0), 40);
    assert_eq!(counters(&world, 1), before);
    for gfn in gfns {
        assert_eq!(one.mapping(gfn).unwrap().kind, Kind::Ram);
        assert_eq!(one.read::<[u8; 4096]>(gfn << 12), [0; 4096], "cleared");
    }
    pass(&world.machine, CpuId(0), 0);
    pass(&world.machine, CpuId(0), 0);
}

#[test]
fn extents_of_several_pages_are_done_page_by_page_and_restart() {
    let world = two();
    let one = guest(&world, 1);
    let before = counters(&world, 1);
    one.write(LIST, [GFN, GFN + 32].as_bytes());
    one.write(ARG, asked(&[0, 0], 5).as_bytes());
    let Outcome::Restart(left) = one.once(number::MEMORY_OP, [DECREASE, ARG, 7, 8, 9]) else {
        panic!("64 pages at once")
    };
    assert_eq!((left[0] & 0x3F, left[0] >> 6 & 0x3FF_FFFF, &left[1..]), (DECREASE, 0, &[ARG, 7, 8, 9][..]));
    assert!(left[0] >> 32 != 0, "some pages of the first extent are done");
    assert_eq!(one.call(number::MEMORY_OP, left), 2);
    assert_eq!(counters(&world, 1).0, before.0 - 64);
    assert_eq!(change(one, POPULATE, &[GFN, GFN + 32], 5), 2);
    assert_eq!(counters(&world, 1).0, before.0);
}

#[test]
fn the_result_is_how_far_the_call_came() {
    let world = two();
    let one = guest(&world, 1);
    assert_eq!(change(one, POPULATE, &[GFN], 0), 0, "it has all that it may");
    assert_eq!(change(one, INCREASE, &[GFN], 0), 0);
    assert_eq!(change(one, DECREASE, &[GFN, 0x1, GFN + 1], 0), 1, "the second is not there");
    assert!(one.mapping(GFN + 1).is_some());
    assert_eq!(change(one, POPULATE, &[1 << 28], 0), 0, "beyond 40 bits");
    assert_eq!(change(one, POPULATE, &[u64::MAX], 0), 0);
    assert_eq!(change(one, DECREASE, &[GFN + 1], 10), 0, "larger than a domain may ask for");
    for bad in [
        Reservation { domid: DomId(2), ..asked(&[0], 0) },
        Reservation { domid: DomId(3), ..asked(&[0], 0) },
        Reservation { mem_flags: 12, ..asked(&[0], 0) },
        Reservation { nr_extents: 1 << 26, ..asked(&[0], 0) },
        Reservation { nr_extents: 0, ..asked(&[0], 0) },
        Reservation { extent_start: GuestHandle(NOWHERE), ..asked(&[0], 0) },
        Reservation { mem_flags: 1 << 16, ..asked(&[0], 0) },
    ] {
        one.write(LIST, [GFN].as_bytes());
        assert_eq!(one.with(number::MEMORY_OP, 6, bad).0, 0, "{bad:?}");
    }
    assert_eq!(one.call(number::MEMORY_OP, [DECREASE, NOWHERE, 0, 0, 0]), 0);
    assert_eq!(
        one.call(number::MEMORY_OP, [DECREASE | 5 << 6, NOWHERE, 0, 0, 0]),
        5,
        "progress is given back"
    );
    one.write(ARG, asked(&[0], 0).as_bytes());
    assert_eq!(one.call(number::MEMORY_OP, [DECREASE | 1 << 6, ARG, 0, 0, 0]), 1);
    assert_eq!(
        one.call(number::MEMORY_OP, [DECREASE | 1 << 32, ARG, 0, 0, 0]),
        1 << 26,
        "as a number of extents"
    );
    assert_eq!(change(one, POPULATE, &[GFN], 0), 1, "there is room for the one that went");
}

#[test]
fn a_domain_grows_up_to_its_maximum_and_no_further() {
    let world = two();
    let one = guest(&world, 1);
    let before = counters(&world, 1);
    world.domain(1).state.lock().memory.max_frames += 20;
    let new: Vec<u64> = (GFN + 0x1000..).take(32).collect();
    assert_eq!(change(one, POPULATE, &new, 0), 20);
    assert_eq!(counters(&world, 1), (before.0 + 20, before.1 + 20, before.2 - 20 - 1), "and a stage-2 table");
    assert!(one.mapping(new[19]).is_some() && one.mapping(new[20]).is_none());
    assert_eq!(change(one, DECREASE, &new[..20], 0), 20);
    assert_eq!(counters(&world, 1).0, before.0);
}

#[test]
fn a_page_that_somebody_refers_to_stays() {
    let world = two();
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    one.write(ARG, (GFN << 12).as_bytes());
    assert_eq!(one.call(number::VCPU_OP, [5, 0, ARG, 0, 0]), 0);
    assert_eq!(change(one, DECREASE, &[GFN], 0), 0);
    one.write(ARG, 0_u64.as_bytes());
    assert_eq!(one.call(number::VCPU_OP, [5, 0, ARG, 0, 0]), 0);
    assert_eq!(change(one, DECREASE, &[GFN], 0), 1);
    // The hypervisor's own pages and grants are not the domain's to give up.
    one.grants(8, 2, GFN + 1, EntryFlags::empty());
    let op = pv_abi::grant::MapGrantRef {
        host_addr: 0x5000_0000,
        flags: 2,
        gref: pv_abi::GrantRef(8),
        dom: DomId(1),
        ..Default::default()
    };
    assert_eq!(two.grant(pv_abi::grant::GrantOp::MapGrantRef, op).1.status, 0);
    assert_eq!(change(two, DECREASE, &[0x5_0000], 0), 0);
    assert_eq!(change(one, DECREASE, &[GFN + 1], 0), 0, "granted and mapped");
}

#[test]
fn a_frame_is_free_when_every_cpu_that_runs_guests_has_left_the_hypervisor() {
    let world = two();
    let one = guest(&world, 1);
    let (machine, frames) = (&world.machine, &world.machine.frames);
    for cpu in 0..2 {
        pass(machine, CpuId(cpu), 0);
    }
    assert_eq!(change(one, DECREASE, &[GFN, GFN + 1], 0), 2);
    for _ in 0..3 {
        pass(machine, CpuId(0), 0);
    }
    assert_eq!(frames.limbo_frames(), 2, "CPU 1 may still use them");
    // Nothing else is free: the call waits, and tells the others to come by.
    let mut taken = Vec::new();
    while let Some(mfn) = frames.allocate(0, DomId::XEN, Role::Hypervisor) {
        taken.push(mfn);
    }
    machine.hw.take_ops();
    one.write(LIST, [GFN].as_bytes());
    one.write(ARG, asked(&[0], 0).as_bytes());
    let args = [POPULATE, ARG, 0, 0, 0];
    assert_eq!(one.once(number::MEMORY_OP, args), Outcome::Restart(args));
    let kicks: Vec<Op> = machine.hw.take_ops().into_iter().filter(|op| matches!(op, Op::Kick(_))).collect();
    assert_eq!(kicks, [Op::Kick(CpuId(1))], "CPUs that never ran a guest are left alone");
    assert!(world.take_reschedule());
    pass(machine, CpuId(1), 0);
    assert_eq!(one.call(number::MEMORY_OP, args), 1);
    assert_eq!(frames.limbo_frames(), 0);
    for mfn in taken {
        frames.free(mfn).unwrap();
    }
    assert_eq!(change(one, POPULATE, &[GFN + 1], 0), 1);
}

#[test]
fn whichever_frame_is_missing_nothing_is_half_done() {
    let world = two();
    let one = guest(&world, 1);
    assert_eq!(change(one, DECREASE, &[GFN], 0), 1);
    // No frame is in limbo, for which a call would wait.
    while world.machine.frames.limbo_frames() != 0 {
        pass(&world.machine, CpuId(0), 0);
    }
    let before = counters(&world, 1);
    // Far away, and elsewhere each time, since tables stay: a table of level 2, one of level 3, and the page itself.
    let far = 0x700_0000;
    for (missing, far) in (0..3).zip((far..).step_by(1 << 18)) {
        world.machine.frames.fail_after(missing);
        assert_eq!(change(one, POPULATE, &[far], 0), 0, "after {missing}");
        assert_eq!(one.mapping(far), None);
        assert_eq!((counters(&world, 1).0, counters(&world, 1).1), (before.0, before.1));
    }
    world.machine.frames.fail_after(1000);
    assert_eq!(change(one, POPULATE, &[far], 0), 1);
    assert_eq!(one.read::<[u8; 8]>(far << 12), [0; 8]);
}

#[test]
fn a_batch_places_pages_and_tells_of_each() {
    let world = two();
    let one = guest(&world, 1);
    let batch = |space, size, foreign: u16| AddToPhysmapBatch {
        domid: DomId::SELF,
        space,
        size,
        foreign_domid: DomId(foreign),
        idxs: GuestHandle(LIST),
        gpfns: GuestHandle(LIST + 0x200),
        errs: GuestHandle(LIST + 0x400),
    };
    one.write(LIST, [0_u64, 1, 1, 9].as_bytes());
    one.write(LIST + 0x200, [0x3_8000_u64, 0x3_8001, 0x3_8002, 0x3_8003].as_bytes());
    let call = |arg| one.with(number::MEMORY_OP, 23, arg).0;
    assert_eq!(call(batch(1, 4, 0)), 0);
    assert_eq!(one.read::<[i32; 4]>(LIST + 0x400), [0, 0, -16, -22], "twice the same, and beyond the limit");
    assert!(one.mapping(0x3_8001).is_some() && one.mapping(0x3_8002).is_none());
    assert_eq!((call(batch(3, 4, 0)), call(batch(5, 4, 0)), call(batch(1, 0, 0))), (-95, -13, 0));
    for (foreign, errno) in [(0x7FF0, -3), (1, -1), (2, -1), (9, -3), (0x7FF2, -1)] {
        assert_eq!(call(batch(4, 1, foreign)), 0);
        assert_eq!(one.read::<i32>(LIST + 0x400), errno, "of {foreign:#x}");
    }
    assert_eq!(call(AddToPhysmapBatch { domid: DomId(2), ..batch(1, 1, 0) }), -1);
    assert_eq!(call(AddToPhysmapBatch { domid: DomId(3), ..batch(1, 1, 0) }), -3);
    assert_eq!(call(AddToPhysmapBatch { idxs: GuestHandle(NOWHERE), ..batch(1, 1, 0) }), -14);
    one.write(ARG, batch(1, 4, 0).as_bytes());
    assert_eq!(one.call(number::MEMORY_OP, [0x17 | 4 << 6, ARG, 0, 0, 0]), -84);
    assert_eq!(one.call(number::MEMORY_OP, [0x17 | 1 << 22, ARG, 0, 0, 0]), -33);
    one.write(LIST + 0x200, u64::MAX.as_bytes());
    assert_eq!(call(batch(1, 1, 0)), -22);
}
