//! Domains that the control domain destroys and builds, what others keep of their former lives, and builds that fail.
use hypervisor::devicetree::Paging;
use hypervisor::domain::{Life, Stage};
use hypervisor::fake::{COUNTER_FREQUENCY, RAM, World};
use hypervisor::life;
use hypervisor::log::Event;
use hypervisor::vcpu::Run;
use pavo_tests::{ARG, guest, number};
use pv_abi::grant::EntryFlags;
use pv_abi::sched::ShutdownReason;
use pv_abi::vcpu::{RegisterRunstate, RegisterVcpuInfo};
use pv_abi::{DomId, GrantHandle, Port};
use zerocopy::IntoBytes;

use super::{
    AT, CPU, EEXIST, ENOMEM, ESRCH, HOST_MAP, PAGE, build, destroy, domctl, has, map, orphans, port_status,
    unmap, work,
};

#[test]
fn a_domain_is_built_again_as_it_was_at_first() {
    let world = World::with_control(2);
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    let before = ([0, 1, 2].map(|id| has(&world, id)), world.machine.frames.free_frames());
    for _ in 0..3 {
        one.write(PAGE, b"what nobody may find");
        one.set_info(100, b"nor this");
        let port = one.unbound(2);
        let peer = two.bind(1, port);
        one.grants(8, 2, PAGE >> 12, EntryFlags::empty());
        assert_eq!(destroy(&world, 1), 0);
        assert_eq!(build(&world, 1), 0);
        assert_eq!(world.domain(1).life.stage(), Stage::Running);
        assert_eq!(build(&world, 1), EEXIST);
        assert_eq!(([0, 1, 2].map(|id| has(&world, id)), world.machine.frames.free_frames()), before);
        assert_eq!(world.guest_read::<20>(1, PAGE), [0; 20]);
        assert_eq!(one.info_word(96) | one.info_word(104), 0);
        assert_eq!(world.guest_read::<4>(1, RAM + 56), *b"ARM\x64", "the kernel");
        assert!(one.entry_flags(8).is_empty());
        assert_eq!(port_status(one, Port(1)).0, 0, "closed");
        let vcpus = world.domain(1).vcpus.iter().map(|vcpu| vcpu.run.get()).collect::<Vec<_>>();
        assert_eq!(vcpus, [Run::Runnable, Run::Offline]);
        let first = world.domain(1).vcpu(0).unwrap();
        assert_eq!(world.pick(first.home.get()).map(|it| it.index), Some(first.index));
        first.run.set(Run::Blocked);
        // The peer's end waits for whoever has that number, as in Xen.
        assert_eq!(port_status(two, peer), (1, 1));
        assert_eq!(two.close(peer), 0);
        world.check();
    }
    assert_eq!(world.domain(1).fate.generation(), 4);
}

/// Grants pages of a domain's from [`PAGE`] on to another, which maps them from [`AT`] on; the handles.
fn hold(world: &World, from: u16, to: u16, pages: u64) -> Vec<GrantHandle> {
    let (granter, mapper) = (guest(world, from), guest(world, to));
    let held = (0..pages).map(|page| {
        let gref = u32::try_from(8 + page).unwrap();
        granter.grants(gref, to, (PAGE >> 12) + page, EntryFlags::empty());
        let at = AT + (page << 12);
        let free = (0..8).map(|n| at + n * 0x100_0000).find(|at| mapper.mapping(at >> 12).is_none()).unwrap();
        let (status, handle) = map(mapper, from, gref, free, HOST_MAP);
        assert_eq!(status, 0);
        handle
    });
    held.collect()
}

/// Lets the hypervisor work until it has nothing to do now, and says whether it waits for somebody.
fn work_or_wait(world: &World) -> bool {
    let machine = &world.machine;
    for _ in 0..10_000 {
        machine.frames.reclaim();
        machine.frames.quiescent.pass(CPU);
        match life::work(machine, CPU, 0) {
            u64::MAX => return false,
            // It looks again in a tenth of a second; while there is something to do, after 20 us.
            later if later >= COUNTER_FREQUENCY / 10 => return true,
            _ => {}
        }
    }
    panic!("it never ends");
}

#[test]
fn what_others_keep_of_former_lives_is_charged_to_the_next_ones() {
    let world = World::with_control(3);
    let (machine, one, three) = (&world.machine, world.domain(1), guest(&world, 3));
    let reboot = || {
        let reboot = Life::Shutdown(ShutdownReason::Reboot);
        hypervisor::sched_op::end_domain(machine, &world.current(1, 0), one, reboot);
    };
    let came_back = |generation| {
        assert_eq!((one.life.stage(), one.fate.generation()), (Stage::Running, generation));
        world.pick(one.vcpu(0).unwrap().home.get()).unwrap().run.set(Run::Blocked);
        world.check();
    };
    let frames = &machine.frames;
    let quota = has(&world, 1)[0];
    // What rings of drivers take is no reason to wait, however often it reboots.
    let mut rings = Vec::new();
    for life in 1..5 {
        rings.extend(hold(&world, 1, 2, 16));
        reboot();
        assert!(!work_or_wait(&world));
        came_back(life + 1);
        assert_eq!((orphans(&world), has(&world, 1)[0]), (16 * u64::from(life), quota));
    }
    // Two accomplices that keep more: the next life waits, and the log says for whom.
    let more = hold(&world, 1, 3, 40);
    machine.hw.take_events();
    reboot();
    assert!(work_or_wait(&world));
    assert_eq!((one.life.stage(), has(&world, 1), orphans(&world)), (Stage::Dying, [0, 2, 1, 0], 104));
    let told = machine.hw.take_events();
    assert!(told.contains(&Event::Holds(DomId(3), DomId(1), 40)), "{told:?}");
    assert!(told.contains(&Event::Waits(DomId(1), 104)), "{told:?}");
    assert!(work_or_wait(&world) && machine.hw.take_events().is_empty(), "told once");
    assert_eq!(
        (machine.reaper.alive(), frames.table.orphans(DomId(1))),
        (4, 104),
        "it is no domain that has ended"
    );
    // Another domain's end is not kept waiting by it.
    let reboot_two = Life::Shutdown(ShutdownReason::Reboot);
    for (page, handle) in (0..).zip(&more).take(39) {
        assert_eq!(unmap(three, *handle, AT + (page << 12)), 0);
    }
    assert!(work_or_wait(&world), "65 are still one too many");
    hypervisor::sched_op::end_domain(machine, &world.current(2, 0), world.domain(2), reboot_two);
    assert!(!work_or_wait(&world), "the other has let go with its end");
    assert_eq!((orphans(&world), frames.table.orphans(DomId(1)), has(&world, 1)[0]), (1, 1, quota));
    world.pick(world.domain(2).vcpu(0).unwrap().home.get()).unwrap().run.set(Run::Blocked);
    came_back(6);
    assert_eq!(unmap(three, more[39], AT + (39 << 12)), 0);
    assert_eq!((orphans(&world), frames.table.orphans(DomId(1))), (0, 0));
}

#[test]
fn who_waits_for_others_to_let_go_can_be_destroyed() {
    let world = World::with_control(2);
    let (machine, one, two) = (&world.machine, world.domain(1), guest(&world, 2));
    let held = hold(&world, 1, 2, 65);
    let reboot = Life::Shutdown(ShutdownReason::Reboot);
    hypervisor::sched_op::end_domain(machine, &world.current(1, 0), one, reboot);
    assert!(work_or_wait(&world));
    assert_eq!(destroy(&world, 1), 0, "at once");
    assert_eq!((one.life.stage(), machine.reaper.alive()), (Stage::Dead, 2));
    assert!(!work_or_wait(&world));
    assert_eq!(build(&world, 1), ENOMEM, "others have too much of it");
    assert_eq!(unmap(two, held[0], AT), 0);
    assert_eq!(build(&world, 1), 0);
    world.check();
}

/// Each reservation of a life that is built anew fails in turn; returns how many there are.
fn build_without_each(world: &World) -> u32 {
    assert_eq!(destroy(world, 1), 0);
    let all = || (has(world, 0), has(world, 1), world.machine.frames.free_frames());
    let dead = all();
    let mut refused = 0;
    for calls in 0.. {
        world.machine.frames.fail_after(calls);
        let result = build(world, 1);
        let failed = world.machine.frames.has_failed();
        world.machine.frames.fail_after(u32::MAX);
        match result {
            // Without a failure; else a large block that is refused is made up for by smaller ones.
            0 => {
                let first = world.domain(1).vcpu(0).unwrap();
                assert!(world.pick(first.home.get()).is_some());
                first.run.set(Run::Blocked);
                assert_eq!(destroy(world, 1), 0);
            }
            ENOMEM => {
                refused += 1;
                work(world);
                assert_eq!(world.domain(1).life.stage(), Stage::Dead);
            }
            other => panic!("{other}"),
        }
        world.check();
        assert_eq!(all(), dead, "after {calls}");
        if !failed {
            assert!(refused > 3, "{refused} of {calls} were missed");
            return calls;
        }
    }
    0
}

#[test]
fn whichever_reservation_fails_nothing_is_left_of_the_attempt() {
    let plain = build_without_each(&World::with_control(1));
    for paging in [Paging::Nested, Paging::Pv] {
        let with_console = build_without_each(&World::with_control_and(paging));
        assert!(with_console > plain, "the page of its console, {paging:?}");
    }
}

#[test]
fn who_is_between_two_lives_is_there_for_the_control_domain() {
    const DYING: u32 = 1;
    let mut seen = Vec::new();
    for steps in [0, 1, 8, 15, 40, 100] {
        let world = World::with_control(1);
        let (machine, one) = (&world.machine, world.domain(1));
        let first = one.vcpu(0).unwrap();
        let reboot = |steps| {
            let reboot = Life::Shutdown(ShutdownReason::Reboot);
            hypervisor::sched_op::end_domain(machine, &world.current(1, 0), one, reboot);
            (0..steps).for_each(|_| assert_ne!(life::work(machine, CPU, 0), u64::MAX));
            seen.push(one.life.stage());
        };
        let mut reboot = reboot;
        reboot(steps);
        assert_eq!(domctl(&world, 3, 1), 0, "paused, {steps}");
        assert_eq!(domctl(&world, 5, 1), 0, "told of, {steps}");
        assert_eq!(guest(&world, 0).read::<u32>(ARG + 20) & DYING, DYING);
        work(&world);
        assert_eq!((one.life.stage(), one.fate.generation()), (Stage::Running, 2));
        assert!(world.pick(first.home.get()).is_none(), "it begins paused, {steps}");
        assert_eq!(domctl(&world, 4, 1), 0);
        assert!(world.pick(first.home.get()).is_some());
        first.run.set(Run::Blocked);
        reboot(steps);
        assert_eq!(destroy(&world, 1), 0, "destroyed, {steps}");
        assert_eq!(one.life.stage(), Stage::Dead);
        assert_eq!(destroy(&world, 1), ESRCH);
        assert_eq!(machine.reaper.alive(), 1);
        assert_eq!(build(&world, 1), 0);
        assert!(world.pick(first.home.get()).is_some(), "nobody has paused it, {steps}");
    }
    assert!(seen.contains(&Stage::Dying) && seen.contains(&Stage::Building));
}

#[test]
fn everything_agrees_between_any_two_steps_of_an_end_and_a_beginning() {
    let world = World::with_control(2);
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    one.grants(8, 2, PAGE >> 12, EntryFlags::empty());
    two.grants(8, 1, PAGE >> 12, EntryFlags::empty());
    let (_, held) = map(two, 1, 8, AT, HOST_MAP);
    assert_eq!(map(one, 2, 8, AT, HOST_MAP).0, 0);
    one.bind(2, two.unbound(1));
    one.unbound(2);
    one.write(ARG, RegisterVcpuInfo { gfn: (RAM + 0x5_0000) >> 12, offset: 64, rsvd: 0 }.as_bytes());
    assert_eq!(one.call(number::VCPU_OP, [10, 1, ARG, 0, 0]), 0);
    one.write(ARG, RegisterRunstate { addr: RAM + 0x6_0FF0 }.as_bytes());
    assert_eq!(one.call(number::VCPU_OP, [5, 0, ARG, 0, 0]), 0);
    let reboot = Life::Shutdown(ShutdownReason::Reboot);
    hypervisor::sched_op::end_domain(&world.machine, &world.current(1, 0), world.domain(1), reboot);
    let mut steps = 0;
    while life::work(&world.machine, CPU, 0) != u64::MAX {
        world.check();
        steps += 1;
    }
    assert!(steps > 100 && world.domain(1).life.stage() == Stage::Running, "{steps}");
    assert_eq!(unmap(two, held, AT), 0);
    world.check();
}
