//! Time that vCPUs are told they spent (run states), and time that domains have left (watchdogs).
#![allow(clippy::unwrap_used, reason = "tests")]

use hypervisor::domain::Life;
use hypervisor::fake::{COUNTER_FREQUENCY, Op, RAM, World};
use hypervisor::hardware::{CpuId, Hardware};
use hypervisor::log::Event;
use hypervisor::runstate::switched;
use hypervisor::sched::{self, pass};
use hypervisor::vcpu::Run;
use pavo_tests::{ARG, Guest, NOWHERE, guest, number, two};
use pv_abi::DomId;
use pv_abi::sched::{Shutdown, ShutdownReason, Watchdog};
use pv_abi::vcpu::{RegisterRunstate, RunstateInfo};
use zerocopy::IntoBytes;

const EINVAL: i64 = -22;
const SECOND: u64 = COUNTER_FREQUENCY;
const NANOSECONDS: u64 = 1_000_000_000;
const UPDATE: u64 = 1 << 63;
/// Where areas are registered: across the end of a page.
const ACROSS: u64 = RAM + 0x6_0000 - 20;

fn register(guest: Guest<'_>, vcpu: u64, addr: u64) -> i64 {
    guest.write(ARG, RegisterRunstate { addr }.as_bytes());
    guest.call(number::VCPU_OP, [5, vcpu, ARG, 0, 0])
}

fn told(guest: Guest<'_>, addr: u64) -> RunstateInfo {
    let mut bytes = [0; 48];
    for (at, byte) in (addr..).zip(&mut bytes) {
        *byte = guest.read::<u8>(at);
    }
    zerocopy::transmute!(bytes)
}

/// Starts a vCPU and lets its CPU choose it, as the image does.
fn start(guest: Guest<'_>) {
    let machine = &guest.world.machine;
    let vcpu = guest.world.domain(guest.id).vcpu(guest.vcpu).unwrap();
    assert!(sched::start(machine, vcpu));
    run(guest);
}

fn run(guest: Guest<'_>) {
    let machine = &guest.world.machine;
    let vcpu = guest.world.domain(guest.id).vcpu(guest.vcpu).unwrap();
    assert_eq!(guest.world.pick(vcpu.home.get()).unwrap().index, vcpu.index);
    switched(machine, None, vcpu);
}

#[test]
fn a_vcpu_is_told_of_its_time_whenever_it_runs_again() {
    let world = two();
    let one = guest(&world, 1);
    let (machine, vcpu) = (&world.machine, world.domain(1).vcpu(0).unwrap());
    machine.hw.advance(SECOND);
    start(one);
    assert_eq!(register(one, 0, ACROSS), 0);
    let info = told(one, ACROSS);
    assert_eq!((info.state, info.state_entry_time, info.time), (0, NANOSECONDS, [0, 0, 0, NANOSECONDS]));

    // Two seconds on the CPU, three without a wish, five waiting for it.
    machine.hw.advance(2 * SECOND);
    assert_eq!(one.call(number::SCHED_OP, [1, 0, 0, 0, 0]), 0);
    let info = told(one, ACROSS);
    assert_eq!((info.state, info.state_entry_time), (2, 3 * NANOSECONDS), "others see it blocked");
    assert_eq!(info.time[0], 2 * NANOSECONDS);
    machine.hw.advance(3 * SECOND);
    sched::wake(machine, &world.current(2, 0), vcpu);
    machine.hw.advance(5 * SECOND);
    run(one);
    let info = told(one, ACROSS);
    assert_eq!((info.state, info.state_entry_time), (0, 11 * NANOSECONDS));
    assert_eq!(info.time.map(|time| time / NANOSECONDS), [2, 5, 3, 1]);

    // Taken off the CPU by another vCPU.
    machine.hw.advance(SECOND);
    let two = guest(&world, 2);
    let other = world.domain(2).vcpu(0).unwrap();
    assert!(sched::start(machine, other));
    let choice = machine.sched.choose(machine, CpuId(0), machine.hw.counter(), Some(vcpu));
    assert_eq!(choice.next.unwrap().index, other.index);
    switched(machine, Some(vcpu), other);
    let info = told(one, ACROSS);
    assert_eq!((info.state, info.state_entry_time), (1, 12 * NANOSECONDS));
    assert_eq!(info.time.map(|time| time / NANOSECONDS), [3, 5, 3, 1]);
    assert_eq!(
        told(two, ACROSS),
        RunstateInfo { pad: told(two, ACROSS).pad, ..told(two, ACROSS) },
        "has none"
    );
    world.check();
}

#[test]
fn updates_are_marked_when_the_guest_asks_for_it() {
    let world = two();
    let one = guest(&world, 1);
    start(one);
    let at = RAM + 0x5_0000;
    assert_eq!(register(one, 0, at), 0);
    let place = one.place(at);
    let writes = |one: Guest<'_>| {
        world.machine.hw.take_ops();
        hypervisor::runstate::publish(&one.world.machine, world.domain(1).vcpu(0).unwrap());
        let ops = world.machine.hw.take_ops();
        ops.iter().filter(|op| matches!(op, Op::Write { .. })).copied().collect::<Vec<_>>()
    };
    assert_eq!(writes(one), [Op::Write { at: place, len: 48 }]);
    assert_eq!(one.call(number::VM_ASSIST, [0, 5, 0, 0, 0]), 0);
    let mark = Op::Write { at: one.place(at + 8), len: 8 };
    assert_eq!(writes(one), [mark, Op::Write { at: place, len: 48 }, mark]);
    assert_eq!(told(one, at).state_entry_time & UPDATE, 0, "the mark is gone in the end");
    assert_eq!(one.call(number::VM_ASSIST, [1, 5, 0, 0, 0]), 0);
    assert_eq!(writes(one), [Op::Write { at: place, len: 48 }]);
}

#[test]
fn the_frames_of_an_area_are_held_until_another_is_registered() {
    let world = two();
    let one = guest(&world, 1);
    start(one);
    assert_eq!(register(one, 0, ACROSS), 0);
    assert_eq!((one.count(ACROSS), one.count(ACROSS + 20)), (1, 1));
    assert_eq!(register(one, 1, ACROSS + 1), 0, "another vCPU's may overlap it");
    assert_eq!((one.count(ACROSS), one.count(ACROSS + 20)), (2, 2));
    assert_eq!(register(one, 0, RAM + 0x5_0000), 0);
    assert_eq!((one.count(ACROSS), one.count(ACROSS + 20), one.count(RAM + 0x5_0000)), (1, 1, 1));
    // Bad addresses are the guest's loss: nothing is told any more.
    for nowhere in [NOWHERE, 0, RAM + 4 * 1024 * 1024 + 128 * 1024 - 8, u64::MAX - 8] {
        assert_eq!(register(one, 0, RAM + 0x5_0000), 0);
        assert_eq!(register(one, 0, nowhere), 0);
        assert_eq!(one.count(RAM + 0x5_0000), 0);
        assert_eq!(world.domain(1).vcpu(0).unwrap().runstate.area(), [None; 2]);
    }
    assert_eq!(register(one, 1, 0), 0);
    assert_eq!((one.count(ACROSS), one.count(ACROSS + 20)), (0, 0));
}

#[test]
fn a_vcpu_of_the_domain_that_is_not_the_caller_is_told_up_to_now() {
    let world = two();
    let one = guest(&world, 1);
    world.machine.hw.advance(7 * SECOND);
    assert_eq!(register(one, 1, RAM + 0x5_0000), 0);
    let info = told(one, RAM + 0x5_0000);
    assert_eq!((info.state, info.state_entry_time, info.time), (3, 0, [0, 0, 0, 7 * NANOSECONDS]));
}

// --- watchdogs ---

/// When the first CPU looks again, with nobody to run.
fn next_look(world: &World) -> u64 {
    let (machine, now) = (&world.machine, world.machine.hw.counter());
    pass(machine, CpuId(0), now);
    machine.sched.choose(machine, CpuId(0), now, None).look
}

fn watchdog(guest: Guest<'_>, id: u32, timeout: u32) -> i64 {
    guest.write(ARG, Watchdog { id, timeout }.as_bytes());
    guest.call(number::SCHED_OP, [6, ARG, 0, 0, 0])
}

#[test]
fn a_domain_has_two_watchdogs() {
    let world = two();
    let one = guest(&world, 1);
    assert_eq!(
        (watchdog(one, 1, 10), watchdog(one, 3, 10), watchdog(one, u32::MAX, 10)),
        (EINVAL, EINVAL, EINVAL)
    );
    assert_eq!((watchdog(one, 0, 10), watchdog(one, 0, 20)), (1, 2));
    assert_eq!(watchdog(one, 0, 10), 0xFFFF_FFE4, "-ENOSPC in 32 bits");
    assert_eq!(next_look(&world), 5 * SECOND, "halfway");
    world.machine.hw.advance(5 * SECOND);
    assert_eq!(next_look(&world), 10 * SECOND);
    assert_eq!((watchdog(one, 1, 25), watchdog(one, 2, 0), watchdog(one, 2, 10)), (0, 0, EINVAL));
    world.machine.hw.advance(5 * SECOND);
    assert_eq!(next_look(&world), 30 * SECOND, "looked at when the first moment came, and found to be over");
    assert_eq!(
        (watchdog(one, 0, u32::MAX), watchdog(guest(&world, 2), 0, 10)),
        (2, 1),
        "others have their own"
    );
    assert_eq!((watchdog(one, 1, 0), watchdog(one, 2, 0)), (0, 0));
    assert_eq!(watchdog(guest(&world, 2), 1, 0), 0);
    world.machine.hw.advance(20 * SECOND);
    assert_eq!(next_look(&world), u64::MAX);
}

#[test]
fn a_watchdog_that_is_not_set_again_in_time_ends_its_domain() {
    let world = two();
    let one = guest(&world, 1);
    let machine = &world.machine;
    assert_eq!(watchdog(one, 0, 2), 1);
    assert!(world.take_reschedule(), "the timer is programmed anew");
    pass(machine, CpuId(0), 2 * SECOND - 1);
    pass(machine, CpuId(1), 3 * SECOND);
    assert_eq!(world.domain(1).life.get(), Life::Running, "not yet, and not by another CPU");
    machine.hw.advance(SECOND);
    assert_eq!(watchdog(one, 1, 2), 0);
    pass(machine, CpuId(0), 2 * SECOND);
    assert_eq!(world.domain(1).life.get(), Life::Running);
    world.domain(1).vcpu(1).unwrap().run.set(Run::Running);
    machine.hw.take_ops();
    pass(machine, CpuId(0), 3 * SECOND);
    let end = Life::Shutdown(ShutdownReason::Watchdog);
    assert_eq!(world.domain(1).life.get(), end);
    assert_eq!(machine.hw.take_events(), [Event::Ended(DomId(1), end)]);
    assert_eq!(
        machine.hw.take_ops(),
        [Op::Kick(CpuId(1)), Op::Kick(CpuId(0))],
        "its other vCPU runs elsewhere, and somebody takes back what it had"
    );
    pass(machine, CpuId(0), 3 * SECOND);
    assert_eq!(next_look(&world), u64::MAX);
    assert_eq!(world.domain(2).life.get(), Life::Running);
}

#[test]
fn who_sets_earlier_and_earlier_watchdogs_interrupts_the_cpu_that_looks_a_few_times_only() {
    let world = two();
    let mut current = world.current(1, 1);
    current.cpu = CpuId(1);
    let (one, machine) = (guest(&world, 1), &world.machine);
    assert_eq!(watchdog(one, 0, u32::MAX), 1);
    machine.hw.take_ops();
    let mut kicks = 0;
    for earlier in 1..20_000 {
        one.write(ARG, Watchdog { id: 1, timeout: u32::MAX - earlier }.as_bytes());
        let outcome =
            hypervisor::hypercall::hypercall(machine, &current, number::SCHED_OP, [6, ARG, 0, 0, 0]);
        assert_eq!(outcome, hypervisor::hypercall::Outcome::Done(0));
        machine.hw.advance(SECOND / 1_000_000);
        let ops = machine.hw.take_ops();
        if ops.contains(&Op::Kick(CpuId(0))) {
            kicks += 1;
            next_look(&world);
        }
    }
    assert_eq!(kicks, 0, "the first look is due halfway");
    for halves in 1..31 {
        one.write(ARG, Watchdog { id: 1, timeout: u32::MAX >> halves }.as_bytes());
        let _ = hypervisor::hypercall::hypercall(machine, &current, number::SCHED_OP, [6, ARG, 0, 0, 0]);
        kicks += u32::from(machine.hw.take_ops().contains(&Op::Kick(CpuId(0))));
        next_look(&world);
    }
    assert!((1..=33).contains(&kicks), "{kicks}");
    assert_eq!(world.domain(1).life.get(), Life::Running);
}

#[test]
fn of_watchdogs_that_come_together_each_has_a_look_of_its_own() {
    let world = two();
    let machine = &world.machine;
    assert_eq!((watchdog(guest(&world, 1), 0, 2), watchdog(guest(&world, 2), 0, 2)), (1, 1));
    machine.hw.advance(3 * SECOND);
    let running = || [1, 2].map(|id| world.domain(id).life.is_running());
    assert!(next_look(&world) <= 3 * SECOND, "the next look is at once");
    assert_eq!(running(), [false, true]);
    assert!(next_look(&world) <= 3 * SECOND);
    assert_eq!(running(), [false, false]);
    assert_eq!(next_look(&world), u64::MAX);
}

#[test]
fn a_watchdog_of_no_seconds_ends_its_domain_at_once_and_one_set_elsewhere_tells_the_cpu_that_looks() {
    let world = two();
    let elsewhere = world.domain(1).vcpu(1).unwrap();
    let machine = &world.machine;
    let one = guest(&world, 1);
    one.write(ARG, Shutdown { reason: 1 }.as_bytes());
    assert_eq!(one.call(number::SCHED_OP, [5, ARG, 0, 0, 0]), 0);
    machine.hw.take_ops();
    one.write(ARG, Watchdog { id: 0, timeout: 0 }.as_bytes());
    let mut current = world.current(1, 1);
    current.cpu = elsewhere.home.get();
    let outcome = hypervisor::hypercall::hypercall(machine, &current, number::SCHED_OP, [6, ARG, 0, 0, 0]);
    assert_eq!(outcome, hypervisor::hypercall::Outcome::Done(1));
    assert!(machine.hw.take_ops().contains(&Op::Kick(CpuId(0))));
    pass(machine, CpuId(0), 0);
    assert_eq!(
        world.domain(1).life.get(),
        Life::Shutdown(ShutdownReason::Reboot),
        "the reason it gave before"
    );
}
