//! What becomes of a domain that has ended, and of its peers: everything comes back, and what others hold stays until they let go.

#![allow(clippy::unwrap_used, clippy::panic, reason = "panics are how tests fail")]
mod building;

use hypervisor::domain::{Fault, Life, Stage};
use hypervisor::fake::{MEMORY_KIB, RAM, World};
use hypervisor::frame::Role;
use hypervisor::hardware::CpuId;
use hypervisor::life::{self, Action, Policy};
use hypervisor::log::Event;
use hypervisor::sched;
use hypervisor::vcpu::Run;
use pavo_tests::{ARG, Guest, guest, number};
use pv_abi::event::{AllocUnbound, BindInterdomain, EventOp, Status};
use pv_abi::grant::{EntryFlags, GrantOp, MapGrantRef, SetupTable, UnmapGrantRef};
use pv_abi::sched::ShutdownReason;
use pv_abi::vcpu::{RegisterRunstate, RegisterVcpuInfo};
use pv_abi::{DomId, GrantHandle, GrantRef, GuestHandle, Port};
use zerocopy::IntoBytes;

const ESRCH: i64 = -3;
const EINVAL: i64 = -22;
const BAD_DOMAIN: i16 = -2;
const HOST_MAP: u32 = 1 << 1;
const READONLY: u32 = 1 << 2;
const PAGE: u64 = RAM + 0x3_0000;
const AT: u64 = 0x5000_0000;
const CPU: CpuId = CpuId(0);

/// Lets the hypervisor work until it has nothing to do; returns in how many steps.
fn work(world: &World) -> u32 {
    let machine = &world.machine;
    for steps in 0..10_000 {
        machine.frames.reclaim();
        if life::work(machine, CPU, 0) == u64::MAX {
            return steps;
        }
    }
    panic!("it never ends");
}

fn end(world: &World, id: u16) {
    hypervisor::sched_op::end_domain(
        &world.machine,
        &world.current(id, 0),
        world.domain(id),
        Life::Shutdown(ShutdownReason::Poweroff),
    );
}

fn map(guest: Guest<'_>, dom: u16, gref: u32, at: u64, flags: u32) -> (i16, GrantHandle) {
    let op =
        MapGrantRef { host_addr: at, flags, gref: GrantRef(gref), dom: DomId(dom), ..Default::default() };
    let (result, op) = guest.grant(GrantOp::MapGrantRef, op);
    assert_eq!(result, 0);
    (op.status, op.handle)
}

fn unmap(guest: Guest<'_>, handle: GrantHandle, at: u64) -> i16 {
    let op = UnmapGrantRef { host_addr: at, handle, ..Default::default() };
    guest.grant(GrantOp::UnmapGrantRef, op).1.status
}

/// Frames of the domain by role: data, stage 2, shared, tables.
fn has(world: &World, id: u16) -> [u64; 4] {
    [Role::Data, Role::Stage2Table, Role::Shared, Role::DomainTable]
        .map(|role| world.machine.frames.table.total(DomId(id), role))
}

fn orphans(world: &World) -> u64 {
    world.machine.frames.table.total(DomId::XEN, Role::Data)
}

fn port_status(guest: Guest<'_>, port: Port) -> (u32, u32) {
    let (result, told) =
        guest.event(EventOp::Status, Status { dom: DomId::SELF, port, ..Default::default() });
    assert_eq!(result, 0);
    (told.status, told.peer)
}

/// `XEN_DOMCTL_destroydomain`.
fn destroy(world: &World, id: u16) -> i64 {
    domctl(world, 2, id)
}

fn domctl(world: &World, operation: u8, id: u16) -> i64 {
    let mut bytes = [0_u8; 144];
    bytes[0] = operation;
    bytes[4] = 0x17;
    bytes[8..10].copy_from_slice(&id.to_le_bytes());
    guest(world, 0).write(ARG, &bytes);
    guest(world, 0).call(36, [ARG, 0, 0, 0, 0])
}

/// Operation 0x8001 of `sysctl`.
fn build(world: &World, id: u16) -> i64 {
    let mut bytes = [0_u8; 136];
    bytes[..4].copy_from_slice(&0x8001_u32.to_le_bytes());
    bytes[4] = 0x15;
    bytes[8..10].copy_from_slice(&id.to_le_bytes());
    guest(world, 0).write(ARG, &bytes);
    guest(world, 0).call(35, [ARG, 0, 0, 0, 0])
}

#[test]
fn everything_comes_back_when_a_domain_ends() {
    let world = World::new(3);
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    let before = world.machine.frames.free_frames();
    let owned: u64 = has(&world, 1).iter().sum();
    // Ports of all kinds, areas, a larger grant table, mappings in both directions, a watchdog, a pause.
    let with_two = one.unbound(2);
    let at_two = two.bind(1, with_two);
    let from_two = two.unbound(1);
    let bound = one.bind(2, from_two);
    one.unbound(3);
    let info = RegisterVcpuInfo { gfn: (RAM + 0x5_0000) >> 12, offset: 64, rsvd: 0 };
    one.write(ARG, info.as_bytes());
    assert_eq!(one.call(number::VCPU_OP, [10, 1, ARG, 0, 0]), 0);
    one.write(ARG, RegisterRunstate { addr: RAM + 0x6_0FF0 }.as_bytes());
    assert_eq!(one.call(number::VCPU_OP, [5, 0, ARG, 0, 0]), 0);
    let setup = SetupTable {
        dom: DomId::SELF,
        nr_frames: 3,
        status: 1,
        frame_list: GuestHandle(ARG + 64),
        ..Default::default()
    };
    assert_eq!(one.grant(GrantOp::SetupTable, setup).1.status, 0);
    two.grants(8, 1, PAGE >> 12, EntryFlags::empty());
    assert_eq!(map(one, 2, 8, AT, HOST_MAP).0, 0);
    assert_eq!(map(one, 2, 8, AT + 0x1000, HOST_MAP | READONLY).0, 0);
    assert_eq!(two.count(PAGE), 1);
    one.write(ARG, &[0, 0, 0, 0, 9, 0, 0, 0]);
    assert_eq!(one.call(number::SCHED_OP, [6, ARG, 0, 0, 0]), 1);
    assert!(sched::start(&world.machine, world.domain(1).vcpu(0).unwrap()));
    world.domain(1).vcpu(0).unwrap().run.set(Run::Blocked);
    let tables_of_two = has(&world, 2);

    end(&world, 1);
    assert_eq!(world.domain(1).life.stage(), Stage::Dying);
    let steps = work(&world);
    assert!(steps > 10, "in small steps");
    assert_eq!(world.domain(1).life.stage(), Stage::Dead);
    world.check();
    assert_eq!(has(&world, 1), [0, 2, 1, 0], "the root and the shared info stay with the number");
    assert_eq!(world.machine.frames.free_frames(), before + owned - 3);
    assert_eq!((two.count(PAGE), has(&world, 2)), (0, tables_of_two));
    assert!(!two.entry_flags(8).intersects(EntryFlags::READING | EntryFlags::WRITING));
    // As after Xen's evtchn_destroy: the peers' ends wait for the domain, status 1.
    assert_eq!(port_status(two, at_two), (1, 1));
    assert_eq!(port_status(two, from_two), (1, 1));
    assert_eq!(two.send(at_two), 0);
    let alloc = AllocUnbound { dom: DomId(1), remote_dom: DomId(2), port: Port(0) };
    assert_eq!(two.event(EventOp::AllocUnbound, alloc).0, ESRCH);
    let again = BindInterdomain { remote_dom: DomId(1), remote_port: bound, ..Default::default() };
    assert_eq!(two.event(EventOp::BindInterdomain, again).0, ESRCH);
    assert_eq!(world.domain(1).vcpu(0).unwrap().run.get(), Run::Offline);
}

#[test]
fn what_others_have_mapped_stays_until_they_let_go() {
    let world = World::new(3);
    let (one, two, three) = (guest(&world, 1), guest(&world, 2), guest(&world, 3));
    let before = world.machine.frames.free_frames();
    let owned: u64 = has(&world, 1).iter().sum();
    one.write(PAGE, b"of the first");
    one.grants(8, 2, PAGE >> 12, EntryFlags::empty());
    one.grants(9, 3, PAGE >> 12, EntryFlags::READONLY);
    one.grants(10, 2, (PAGE >> 12) + 1, EntryFlags::empty());
    let (_, first) = map(two, 1, 8, AT, HOST_MAP);
    let (_, second) = map(two, 1, 8, AT + 0x1000, HOST_MAP | READONLY);
    let (_, third) = map(three, 1, 9, AT, HOST_MAP | READONLY);
    assert_eq!(map(two, 1, 10, AT + 0x2000, HOST_MAP).0, 0);
    let frame = one.place(PAGE).frame();
    end(&world, 1);
    assert_eq!(map(two, 1, 8, AT + 0x3000, HOST_MAP).0, BAD_DOMAIN, "nothing more of it is given");
    work(&world);
    world.check();
    assert_eq!(world.domain(1).life.stage(), Stage::Dead);
    assert_eq!((orphans(&world), has(&world, 1)), (2, [0, 2, 1, 0]));
    assert_eq!(world.machine.frames.free_frames(), before + owned - 3 - 2 - tables(&world));
    let state = world.machine.frames.table.state(frame).unwrap();
    assert_eq!((state.owner, state.count), (DomId::XEN, 3), "mapped three times");
    assert_eq!(world.guest_read::<12>(2, AT), *b"of the first");
    world.guest_write(2, AT, b"of nobody now");
    assert_eq!(world.guest_read::<13>(3, AT), *b"of nobody now");

    assert_eq!(unmap(two, first, AT + 0x1000), -1, "not where it is");
    assert_eq!(unmap(two, first, AT), 0);
    assert_eq!(unmap(two, first, AT), -4, "once");
    assert_eq!(two.mapping(AT >> 12), None);
    assert_eq!(unmap(three, third, AT), 0);
    assert_eq!(orphans(&world), 2, "the second mapping holds it still");
    assert_eq!(unmap(two, second, AT + 0x1000), 0);
    assert_eq!(orphans(&world), 1);
    assert!(two.mapping((AT + 0x2000) >> 12).is_some());
    // The other goes with its mapper.
    end(&world, 2);
    work(&world);
    world.check();
    assert_eq!(orphans(&world), 0);
    assert_eq!((has(&world, 2), world.machine.frames.limbo_frames()), ([0, 2, 1, 0], 0));
}

/// Of a page that was all of it: area of a run state, a vCPU's information, and mapped by another, twice.
#[test]
fn a_page_with_areas_that_another_has_mapped_stays_until_the_last_mapping_is_gone() {
    let world = World::new(2);
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    one.write(ARG, RegisterVcpuInfo { gfn: PAGE >> 12, offset: 64, rsvd: 0 }.as_bytes());
    assert_eq!(one.call(number::VCPU_OP, [10, 1, ARG, 0, 0]), 0);
    for vcpu in 0..2 {
        one.write(ARG, RegisterRunstate { addr: PAGE + 1024 + vcpu * 64 }.as_bytes());
        assert_eq!(one.call(number::VCPU_OP, [5, vcpu, ARG, 0, 0]), 0);
    }
    one.grants(8, 2, PAGE >> 12, EntryFlags::empty());
    let (_, first) = map(two, 1, 8, AT, HOST_MAP);
    let (_, second) = map(two, 1, 8, AT + 0x1000, HOST_MAP);
    let frame = one.place(PAGE).frame();
    let state = || world.machine.frames.table.state(frame).map(|it| (it.owner, it.role, it.count));
    end(&world, 1);
    work(&world);
    assert_eq!(state(), Some((DomId::XEN, Role::Data, 2)), "two mappings");
    assert_eq!(unmap(two, first, AT), 0);
    assert_eq!(state(), Some((DomId::XEN, Role::Data, 1)), "one that two may use");
    world.check();
    assert_eq!(unmap(two, second, AT + 0x1000), 0);
    assert_eq!(orphans(&world), 0);
    work(&world);
    assert_eq!(world.machine.frames.limbo_frames(), 0);
    world.check();
}

#[test]
fn a_page_that_was_held_is_scrubbed_before_anybody_has_it_again() {
    let world = World::with_control(2);
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    let frames = &world.machine.frames;
    one.write(PAGE, b"of the first");
    one.grants(8, 2, PAGE >> 12, EntryFlags::empty());
    let (status, held) = map(two, 1, 8, AT, HOST_MAP);
    assert_eq!(status, 0);
    let frame = one.place(PAGE).frame();
    // Whoever is built next has to take what there is: all else is taken.
    while frames.allocate(0, DomId::XEN, Role::Hypervisor).is_some() {}
    assert_eq!(destroy(&world, 1), 0);
    world.guest_write(2, AT, b"of nobody now");
    assert_eq!(build(&world, 1), ENOMEM, "one page is held");
    work(&world);
    assert_eq!(unmap(two, held, AT), 0);
    for _ in 0..2 {
        frames.reclaim();
        frames.quiescent.pass(CPU);
    }
    frames.reclaim();
    assert_eq!(build(&world, 1), 0);
    let gfn = (RAM >> 12..(RAM + (MEMORY_KIB << 10)) >> 12).find(|gfn| one.place(gfn << 12).frame() == frame);
    let gfn = gfn.expect("that page is used again");
    assert_eq!(world.guest_read::<4096>(1, gfn << 12), [0; 4096]);
    for page in (RAM..RAM + (MEMORY_KIB << 10)).step_by(4096) {
        let bytes = world.guest_read::<13>(1, page);
        assert_ne!(&bytes, b"of nobody now", "{page:#x}");
    }
    world.check();
}

#[test]
fn a_domain_is_built_again_as_often_as_it_may_and_no_more() {
    let world =
        World::limited(Policy { on_reboot: Action::Preserve, on_crash: Action::Restart, max_restarts: 2 });
    let (machine, one) = (&world.machine, world.domain(1));
    let crash = |end: Life| {
        machine.hw.take_events();
        hypervisor::sched_op::end_domain(machine, &world.current(1, 0), one, end);
        work(&world);
        if let Some(first) = world.pick(one.vcpu(0).unwrap().home.get()) {
            first.run.set(Run::Blocked);
        }
        world.check();
        machine.hw.take_events()
    };
    let (id, crashed) = (DomId(1), Life::Shutdown(ShutdownReason::Crash));
    assert_eq!(crash(crashed), [Event::Ended(id, crashed), Event::BuiltAgain(id, 2)]);
    let fault = Life::Destroyed(Fault::WordContended);
    assert_eq!(crash(fault), [Event::Ended(id, fault), Event::BuiltAgain(id, 3)]);
    let bitten = Life::Shutdown(ShutdownReason::Watchdog);
    assert_eq!(crash(bitten), [Event::Ended(id, bitten), Event::TooOften(id)]);
    assert_eq!((one.life.stage(), has(&world, 1)), (Stage::Dead, [0, 2, 1, 0]));
    assert_eq!(build(&world, 1), 0);
    assert!(world.pick(one.vcpu(0).unwrap().home.get()).is_some());
    one.vcpu(0).unwrap().run.set(Run::Blocked);
    // Kept: it has all that it had, until the control domain destroys it.
    let before = has(&world, 1);
    let reboot = Life::Shutdown(ShutdownReason::Reboot);
    assert_eq!(crash(reboot), [Event::Ended(id, reboot)]);
    assert_eq!((one.life.stage(), has(&world, 1)), (Stage::Ended, before));
    assert_eq!(domctl(&world, 5, 1), 0);
    let told = guest(&world, 0).read::<u32>(ARG + 20);
    // `XEN_DOMINF_shutdown`, with the reason from bit 16 on, and not dying.
    assert_eq!((told & 0b101, told >> 16), (0b100, 1));
    assert_eq!(destroy(&world, 1), 0);
    assert_eq!((one.life.stage(), has(&world, 1)), (Stage::Dead, [0, 2, 1, 0]));
}

/// Tables that mappers needed for grants.
fn tables(world: &World) -> u64 {
    let fresh = World::new(3);
    [2, 3].iter().map(|id| has(world, *id).iter().sum::<u64>() - has(&fresh, *id).iter().sum::<u64>()).sum()
}

#[test]
fn two_that_hold_each_others_pages_both_go() {
    let world = World::new(2);
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    let fresh: u64 = world.machine.frames.free_frames()
        + [1, 2].map(|id| has(&world, id).iter().sum::<u64>()).iter().sum::<u64>();
    one.grants(8, 2, PAGE >> 12, EntryFlags::empty());
    two.grants(8, 1, PAGE >> 12, EntryFlags::empty());
    one.grants(9, 1, (PAGE >> 12) + 1, EntryFlags::empty());
    assert_eq!(map(two, 1, 8, AT, HOST_MAP).0, 0);
    assert_eq!(map(one, 2, 8, AT, HOST_MAP).0, 0);
    assert_eq!(map(one, 1, 9, AT + 0x1000, HOST_MAP).0, 0, "its own");
    end(&world, 1);
    end(&world, 2);
    work(&world);
    world.check();
    assert_eq!((orphans(&world), world.machine.frames.limbo_frames()), (0, 0));
    assert_eq!(world.machine.frames.free_frames(), fresh - 6);
}

#[test]
fn a_domain_whose_vcpu_still_runs_waits_for_it() {
    let world = World::new(2);
    let vcpu = world.domain(1).vcpu(0).unwrap();
    assert!(sched::start(&world.machine, vcpu));
    assert!(world.pick(vcpu.home.get()).is_some());
    end(&world, 1);
    for _ in 0..20 {
        assert_ne!(life::work(&world.machine, CPU, 0), u64::MAX);
    }
    assert_eq!(has(&world, 1)[0], world.domain(1).state.lock().memory.frames, "nothing is taken yet");
    vcpu.run.set(Run::Offline);
    work(&world);
    assert_eq!(world.domain(1).life.stage(), Stage::Dead);
}

#[test]
fn frames_wait_for_cpus_that_may_still_use_them() {
    let world = World::new(2);
    world.machine.frames.quiescent.pass(CpuId(1));
    end(&world, 1);
    for _ in 0..20 {
        assert_ne!(life::work(&world.machine, CPU, 0), u64::MAX);
    }
    world.machine.frames.quiescent.pass(CpuId(1));
    for _ in 0..100 {
        assert_ne!(life::work(&world.machine, CPU, 0), u64::MAX);
    }
    assert_ne!(has(&world, 1)[0], 0, "it has to pass twice");
    world.machine.frames.quiescent.pass(CpuId(1));
    work(&world);
    assert_eq!(has(&world, 1), [0, 2, 1, 0]);
    assert_eq!(
        guest(&world, 2)
            .event(EventOp::Status, Status { dom: DomId::SELF, port: Port(9999), ..Default::default() })
            .0,
        EINVAL
    );
}

const ENOMEM: i64 = -12;
const EEXIST: i64 = -17;
