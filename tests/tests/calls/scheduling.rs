//! `sched_op`: yield, block, poll and shut down.
use core::sync::atomic::Ordering;

use hypervisor::domain::Life;
use hypervisor::fake::{COUNTER_FREQUENCY, Op, RAM};
use hypervisor::hardware::CpuId;
use hypervisor::log::Event;
use hypervisor::vcpu::{NOT_POLLING, POLLING_MANY, Run};
use pavo_tests::{ARG, Guest, NOWHERE, guest, number, two};
use pv_abi::event::{BindIpi, EventOp};
use pv_abi::sched::{Poll, RemoteShutdown, Shutdown, ShutdownReason};
use pv_abi::{DomId, GuestHandle, Port};
use zerocopy::IntoBytes;

use super::{EFAULT, EINVAL, ENOSYS, EPERM, ESRCH, call};

fn sched(guest: Guest<'_>, cmd: u64, arg: &[u8]) -> i64 {
    guest.write(ARG, arg);
    call(guest, number::SCHED_OP, cmd, ARG)
}

#[test]
fn yielding_asks_for_another_turn() {
    let world = two();
    assert_eq!(call(guest(&world, 1), number::SCHED_OP, 0, 0), 0);
    assert!(world.take_reschedule());
}

#[test]
fn blocking_waits_unless_an_upcall_is_pending() {
    let world = two();
    let one = guest(&world, 1);
    let vcpu = world.domain(1).vcpu(0).unwrap();
    vcpu.run.set(Run::Running);
    assert_eq!(call(one, number::SCHED_OP, 1, 0), 0);
    assert_eq!(vcpu.run.get(), Run::Blocked);
    assert!(world.take_reschedule());
    // Another domain's event wakes it.
    let two = guest(&world, 2);
    let there = one.unbound(2);
    let here = two.bind(1, there);
    two.send(here);
    assert_eq!(vcpu.run.get(), Run::Runnable);

    let _ = world.pick(CpuId(0));
    assert_eq!(call(one, number::SCHED_OP, 1, 0), 0);
    assert_eq!(vcpu.run.get(), Run::Runnable, "the upcall is still pending");
}

#[test]
fn a_domain_shuts_down_once_and_for_the_reason_it_gave_first() {
    for (reason, ends) in [
        (0, ShutdownReason::Poweroff),
        (1, ShutdownReason::Reboot),
        (2, ShutdownReason::Suspend),
        (3, ShutdownReason::Crash),
        (4, ShutdownReason::Watchdog),
        (5, ShutdownReason::SoftReset),
        (200, ShutdownReason::Crash),
        (0x100, ShutdownReason::Poweroff),
    ] {
        let world = two();
        let one = guest(&world, 1);
        world.domain(1).vcpu(1).unwrap().run.set(Run::Running);
        one.write(RAM + 0x7_0000, b"last words");
        one.call(number::CONSOLE_IO, [0, 10, RAM + 0x7_0000, 0, 0]);
        world.machine.hw.take_ops();
        assert_eq!(sched(one, 2, Shutdown { reason }.as_bytes()), 0);
        assert_eq!(world.domain(1).life.get(), Life::Shutdown(ends));
        assert_eq!(world.machine.hw.take_events(), [Event::Ended(DomId(1), Life::Shutdown(ends))]);
        assert_eq!(world.machine.hw.take_console(), b"(d1) last words\n");
        assert!(world.machine.hw.take_ops().contains(&Op::Kick(CpuId(1))), "its other vCPU runs there");
        assert!(world.take_reschedule());
        assert_eq!(sched(one, 2, Shutdown { reason: 3 }.as_bytes()), 0);
        assert_eq!(world.domain(1).life.get(), Life::Shutdown(ends));
        assert!(world.machine.hw.take_events().is_empty());
        assert_eq!(world.domain(2).life.get(), Life::Running);
    }
    let world = two();
    let one = guest(&world, 1);
    assert_eq!(sched(one, 5, Shutdown { reason: 3 }.as_bytes()), 0);
    assert_eq!(world.domain(1).life.get(), Life::Running);
    assert_eq!(sched(one, 2, Shutdown { reason: 0 }.as_bytes()), 0);
    assert_eq!(world.domain(1).life.get(), Life::Shutdown(ShutdownReason::Crash), "it said so before");
}

#[test]
fn polling_returns_at_once_for_a_pending_port_and_waits_for_others() {
    let world = two();
    let one = guest(&world, 1);
    let vcpu = world.domain(1).vcpu(0).unwrap();
    vcpu.run.set(Run::Running);
    let ports: Vec<Port> =
        (0..2).map(|_| one.event(EventOp::BindIpi, BindIpi { vcpu: 0, port: Port(0) }).1.port).collect();
    one.write(ARG + 64, ports.as_slice().as_bytes());
    let poll = |nr_ports, timeout| {
        sched(one, 3, Poll { ports: GuestHandle(ARG + 64), nr_ports, pad: 0, timeout }.as_bytes())
    };
    assert_eq!(poll(129, 0), EINVAL);
    assert_eq!(poll(3, 0), EINVAL, "port 0 is nobody's");
    assert_eq!(vcpu.run.get(), Run::Running);

    one.send(ports[1]);
    assert_eq!(poll(2, 0), 0);
    assert_eq!(vcpu.run.get(), Run::Running, "pending already");
    one.take_events();

    assert_eq!(poll(1, 0), 0);
    assert_eq!((vcpu.run.get(), vcpu.poll.load(Ordering::Relaxed)), (Run::Blocked, ports[0].0));
    assert_eq!(vcpu.deadline.load(Ordering::Relaxed), u64::MAX);
    vcpu.run.set(Run::Running);
    assert_eq!(poll(2, 1_000_000_000), 0);
    assert_eq!((vcpu.run.get(), vcpu.poll.load(Ordering::Relaxed)), (Run::Blocked, POLLING_MANY));
    assert_eq!(vcpu.deadline.load(Ordering::Relaxed), COUNTER_FREQUENCY);

    // A masked event of the other vCPU's wakes it through its poll.
    one.mask(ports[1]);
    Guest { vcpu: 1, ..one }.send(ports[1]);
    assert_eq!((vcpu.run.get(), vcpu.poll.load(Ordering::Relaxed)), (Run::Runnable, NOT_POLLING));

    // An upcall that is pending is no port that is polled.
    let _ = world.pick(CpuId(0));
    one.take_events();
    one.set_info(0, &[1]);
    assert_eq!(poll(1, 0), 0);
    assert_eq!(vcpu.run.get(), Run::Blocked);

    vcpu.run.set(Run::Running);
    one.take_events();
    world.machine.hw.advance(2 * COUNTER_FREQUENCY);
    assert_eq!(poll(0, 1_000_000_000), 0);
    assert_eq!(vcpu.run.get(), Run::Runnable, "the time is over already");
    let list = Poll { ports: GuestHandle(NOWHERE), nr_ports: 1, pad: 0, timeout: 0 };
    assert_eq!(sched(one, 3, list.as_bytes()), EFAULT);
}

#[test]
fn what_needs_a_toolstack_is_refused() {
    let world = two();
    let one = guest(&world, 1);
    let remote =
        |domain| sched(one, 4, RemoteShutdown { domain: DomId(domain), pad: 0, reason: 0 }.as_bytes());
    assert_eq!((remote(1), remote(2), remote(3), remote(0x7FF0)), (EPERM, EPERM, ESRCH, ESRCH));
    assert_eq!((sched(one, 7, &[0; 8]), sched(one, 8, &[0; 8])), (EPERM, ENOSYS));
    for cmd in 2..7 {
        assert_eq!(call(one, number::SCHED_OP, cmd, NOWHERE), EFAULT);
    }
    assert_eq!(world.domain(2).life.get(), Life::Running);
}
