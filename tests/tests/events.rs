//! Event channels, seen by two guests. Expected results are those of Xen's `public/event_channel.h` and of Xen 4.20 itself.
#![allow(clippy::unwrap_used, reason = "tests")]

use hypervisor::domain::{Fault, Life};
use hypervisor::evtchn::bind_static;
use hypervisor::fake::{Op, World};
use hypervisor::hypercall::Outcome;
use hypervisor::log::Event;
use hypervisor::vcpu::Run;
use hypervisor::vgic::PrivateIntid;
use pavo_tests::{ARG, Guest, MASK, NOWHERE, SELECTOR, guest, number, two};
use pv_abi::event::{
    AllocUnbound, BindInterdomain, BindIpi, BindVcpu, BindVirq, EventOp, PortArg, Reset, Status,
};
use pv_abi::{DomId, Errno, Port};
use zerocopy::IntoBytes;

const EPERM: i64 = -1;
const ENOENT: i64 = -2;
const ESRCH: i64 = -3;
const EAGAIN: i64 = -11;
const EFAULT: i64 = -14;
const EBUSY: i64 = -16;
const EEXIST: i64 = -17;
const EINVAL: i64 = -22;
const ENOSPC: i64 = -28;
const ENOSYS: i64 = -38;
const EOPNOTSUPP: i64 = -95;

fn status(guest: Guest<'_>, port: Port) -> (i64, Status) {
    guest.event(EventOp::Status, Status { dom: DomId::SELF, port, ..Status::default() })
}

#[test]
fn the_first_port_is_one_and_the_lowest_free_one_is_next() {
    let world = two();
    let one = guest(&world, 1);
    assert_eq!([one.unbound(2), one.unbound(2), one.unbound(2)], [Port(1), Port(2), Port(3)]);
    assert_eq!(one.close(Port(2)), 0);
    assert_eq!(one.unbound(2), Port(2));
    assert_eq!(one.unbound(2), Port(4));
}

#[test]
fn a_channel_carries_events_both_ways() {
    let world = two();
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    let there = two.unbound(1);
    let here = one.bind(2, there);
    assert!(one.is_pending(here), "what the other side sent before is made up for");
    one.take_events();

    assert_eq!(one.send(here), 0);
    assert!(two.is_pending(there) && !one.is_pending(here));
    assert_eq!(two.info_word(SELECTOR), 1);
    assert_eq!(two.info_word(0) & 0xFF, 1, "upcall pending");
    assert_eq!(two.send(there), 0);
    assert!(one.is_pending(here));
}

#[test]
fn an_event_that_is_pending_or_masked_tells_nobody_again() {
    let world = two();
    let one = guest(&world, 1);
    let (_, ipi) = one.event(EventOp::BindIpi, BindIpi { vcpu: 0, port: Port(0) });
    let raises = || world.machine.hw.take_ops().iter().filter(|op| matches!(op, Op::Raise(_))).count();
    raises();
    assert_eq!(one.send(ipi.port), 0);
    assert_eq!(raises(), 1);
    assert_eq!(one.send(ipi.port), 0);
    assert_eq!(raises(), 0, "pending already");
    // Even when the guest has taken the upcall, and not yet the event.
    one.set_info(0, &[0; 16]);
    assert_eq!(one.send(ipi.port), 0);
    assert_eq!((raises(), one.info_word(SELECTOR)), (0, 0));

    one.take_events();
    one.mask(ipi.port);
    assert_eq!(one.send(ipi.port), 0);
    assert_eq!(raises(), 0);
    assert!(one.is_pending(ipi.port));
    assert_eq!(one.info_word(SELECTOR), 0);
    assert_eq!(one.event(EventOp::Unmask, PortArg { port: ipi.port }).0, 0);
    assert_eq!(raises(), 1, "unmasking tells of what is pending");
    assert_eq!(one.info_word(MASK), 0);
    assert_eq!(one.event(EventOp::Unmask, PortArg { port: ipi.port }).0, 0);
    assert_eq!(raises(), 0, "it was not masked");
}

#[test]
fn a_second_event_in_another_word_does_not_raise_while_the_upcall_is_pending() {
    let world = two();
    let one = guest(&world, 1);
    let ports: Vec<Port> =
        (0..70).map(|_| one.event(EventOp::BindIpi, BindIpi { vcpu: 0, port: Port(0) }).1.port).collect();
    one.send(ports[0]);
    world.machine.hw.take_ops();
    one.send(*ports.last().unwrap());
    let ops = world.machine.hw.take_ops();
    assert!(!ops.contains(&Op::Raise(PrivateIntid::EVENT_UPCALL)));
    assert_eq!(one.info_word(SELECTOR), 0b11);
}

#[test]
fn sending_is_refused_on_ports_that_have_no_other_end() {
    let world = two();
    let one = guest(&world, 1);
    for port in [0, 1, 5, 63, 64, 1023, 1024, 4096, u32::MAX] {
        assert_eq!(one.send(Port(port)), EINVAL, "port {port}");
    }
    let unbound = one.unbound(2);
    assert_eq!(one.send(unbound), 0, "dropped");
    let (_, virq) = one.event(EventOp::BindVirq, BindVirq { virq: 0, vcpu: 0, port: Port(0) });
    assert_eq!(one.send(virq.port), EINVAL);
    let call = [EventOp::Send.number().into(), NOWHERE, 0, 0, 0];
    assert_eq!(one.call(number::EVENT_CHANNEL_OP, call), EFAULT);
}

#[test]
fn binding_needs_an_unbound_port_that_waits_for_the_caller() {
    let world = two();
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    let bind = |remote_dom, remote_port| {
        let arg = BindInterdomain { remote_dom, pad: 0, remote_port, local_port: Port(0) };
        one.event(EventOp::BindInterdomain, arg).0
    };
    let for_two = two.unbound(2);
    let for_one = two.unbound(1);
    assert_eq!(bind(DomId(3), Port(1)), ESRCH);
    assert_eq!(bind(DomId(0), Port(1)), ESRCH);
    assert_eq!(bind(DomId(2), for_two), EINVAL, "it waits for another");
    assert_eq!(bind(DomId(2), Port(9)), EINVAL, "free");
    assert_eq!(bind(DomId(2), Port(5000)), EINVAL, "no such port");
    assert_eq!(bind(DomId(2), for_one), 0);
    assert_eq!(bind(DomId(2), for_one), EINVAL, "it waits no more");
    // With oneself.
    let own = one.unbound(1);
    assert_eq!(bind(DomId::SELF, own), 0);
}

#[test]
fn ports_are_made_for_oneself_only() {
    let world = two();
    let one = guest(&world, 1);
    let alloc = |dom| {
        let arg = AllocUnbound { dom, remote_dom: DomId(2), port: Port(0) };
        one.event(EventOp::AllocUnbound, arg).0
    };
    assert_eq!(alloc(DomId(2)), EPERM);
    assert_eq!(alloc(DomId(7)), ESRCH);
    assert_eq!(alloc(DomId(1)), 0);
    assert_eq!(status(one, Port(1)).1.peer, 2);
}

#[test]
fn a_domain_has_as_many_ports_as_its_quota() {
    let world = two();
    let one = guest(&world, 1);
    let limit = world.domain(1).ports.len();
    let cmd = [EventOp::AllocUnbound.number().into(), ARG, 0, 0, 0];
    for expected in 1..u32::try_from(limit).unwrap() {
        one.write(ARG, &[0xF0, 0x7F, 2, 0, 0, 0, 0, 0]);
        one.once(number::EVENT_CHANNEL_OP, cmd);
        assert_eq!(one.read::<AllocUnbound>(ARG).port, Port(expected));
    }
    let full = AllocUnbound { dom: DomId::SELF, remote_dom: DomId(2), port: Port(0) };
    assert_eq!(one.event(EventOp::AllocUnbound, full).0, ENOSPC);
    assert_eq!(one.event(EventOp::BindIpi, BindIpi { vcpu: 0, port: Port(0) }).0, ENOSPC);
    assert_eq!(one.close(Port(77)), 0);
    assert_eq!(one.unbound(2), Port(77));
    assert_eq!(one.event(EventOp::Reset, Reset { dom: DomId::SELF }).0, 0);
    assert_eq!(one.unbound(2), Port(1));
}

#[test]
fn a_reset_goes_on_where_it_was_while_no_other_begins_and_finds_what_was_made_behind_it() {
    let world = two();
    let one = guest(&world, 1);
    for port in 1..=20 {
        assert_eq!(one.unbound(2), Port(port));
    }
    let is_open = |port| {
        one.event(EventOp::Status, Status { dom: DomId::SELF, port, ..Status::default() }).1.status != 0
    };
    let made = |args| {
        one.write(ARG, Reset { dom: DomId::SELF }.as_bytes());
        one.once(number::EVENT_CHANNEL_OP, args)
    };
    let call = |op: EventOp| [op.number().into(), ARG, 0, 0, 0];
    let Outcome::Restart(left) = made(call(EventOp::Reset)) else {
        panic!("20 ports are more than one run closes")
    };
    assert_eq!(left, call(EventOp::ResetContinuation));
    assert_eq!((is_open(Port(1)), is_open(Port(20))), (false, true));
    assert_eq!(made(call(EventOp::Reset)), Outcome::Done(EBUSY));
    assert_eq!(one.unbound(2), Port(1));
    let mut answer = made(left);
    while let Outcome::Restart(left) = answer {
        answer = made(left);
    }
    assert_eq!(answer, Outcome::Done(EAGAIN));
    assert!(is_open(Port(1)), "made when the reset had passed it");
    assert!((2..=20).all(|port| !is_open(Port(port))));
    assert_eq!(made(call(EventOp::ResetContinuation)), Outcome::Done(EBUSY), "none is under way");
    assert_eq!(one.event(EventOp::Reset, Reset { dom: DomId::SELF }).0, 0);
    assert!(!is_open(Port(1)));
}

#[test]
fn closing_lets_the_other_end_wait_again() {
    let world = two();
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    let there = two.unbound(1);
    let here = one.bind(2, there);
    two.send(there);
    assert!(one.is_pending(here));
    assert_eq!(one.close(here), 0);
    assert!(!one.is_pending(here), "a port made anew is not pending");
    assert_eq!(one.close(here), EINVAL);
    let (_, waits) = status(two, there);
    assert_eq!((waits.status, waits.peer), (1, 1));
    assert_eq!(two.send(there), 0, "dropped");
    assert_eq!(one.bind(2, there), here);
    assert_eq!(one.close(Port(0)), EINVAL);
    assert_eq!(one.close(Port(4095)), EINVAL);
}

#[test]
fn status_tells_what_a_port_is() {
    let world = two();
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    let there = two.unbound(1);
    let here = one.bind(2, there);
    let (result, channel) = status(one, here);
    assert_eq!((result, channel.status, channel.peer, channel.peer_port), (0, 2, 2, there));
    let (_, virq) = one.event(EventOp::BindVirq, BindVirq { virq: 0, vcpu: 1, port: Port(0) });
    let (_, timer) = status(one, virq.port);
    assert_eq!((timer.status, timer.vcpu, timer.peer), (4, 1, 0));
    let (_, ipi) = one.event(EventOp::BindIpi, BindIpi { vcpu: 1, port: Port(0) });
    assert_eq!((status(one, ipi.port).1.status, status(one, ipi.port).1.vcpu), (5, 1));
    assert_eq!((status(one, Port(0)).0, status(one, Port(0)).1.status), (0, 0), "closed");
    assert_eq!(status(one, Port(63)).0, 0, "the first group of ports is there from the start");
    assert_eq!(status(one, Port(64)).0, EINVAL, "the next is not");
    assert_eq!(
        one.event(EventOp::Status, Status { dom: DomId(2), port: there, ..Status::default() }).0,
        EPERM
    );
    assert_eq!(
        one.event(EventOp::Status, Status { dom: DomId(9), port: there, ..Status::default() }).0,
        ESRCH
    );
}

#[test]
fn virtual_interrupts_are_bound_once() {
    let world = two();
    let one = guest(&world, 1);
    let bind = |virq, vcpu| one.event(EventOp::BindVirq, BindVirq { virq, vcpu, port: Port(0) }).0;
    assert_eq!(bind(0, 0), 0);
    assert_eq!(bind(0, 0), EEXIST);
    assert_eq!(bind(0, 1), 0, "each vCPU has its timer");
    assert_eq!(bind(0, 2), ENOENT);
    assert_eq!(bind(2, 1), EINVAL, "a domain's interrupt is bound on vCPU 0");
    assert_eq!(bind(2, 0), 0);
    assert_eq!(bind(2, 0), EEXIST);
    assert_eq!(bind(24, 0), EINVAL);
    assert_eq!(bind(u32::MAX, 0), EINVAL);
}

#[test]
fn a_port_notifies_the_vcpu_it_is_told_to() {
    let world = two();
    let one = guest(&world, 1);
    let bind = |port, vcpu| one.event(EventOp::BindVcpu, BindVcpu { port, vcpu }).0;
    let port = one.unbound(2);
    assert_eq!(bind(port, 1), 0);
    assert_eq!(status(one, port).1.vcpu, 1);
    assert_eq!(bind(port, 2), ENOENT);
    assert_eq!(bind(Port(2000), 0), EINVAL);
    assert_eq!(bind(Port(9), 0), EINVAL);
    let (_, ipi) = one.event(EventOp::BindIpi, BindIpi { vcpu: 1, port: Port(0) });
    assert_eq!(bind(ipi.port, 0), EINVAL);
    let (_, timer) = one.event(EventOp::BindVirq, BindVirq { virq: 0, vcpu: 0, port: Port(0) });
    assert_eq!(bind(timer.port, 1), EINVAL);
    let (_, console) = one.event(EventOp::BindVirq, BindVirq { virq: 2, vcpu: 0, port: Port(0) });
    assert_eq!(bind(console.port, 1), 0);
    assert_eq!(one.event(EventOp::BindIpi, BindIpi { vcpu: 5, port: Port(0) }).0, ENOENT);
}

#[test]
fn operations_that_arm_does_not_have_answer_as_xen_does() {
    let world = two();
    let one = guest(&world, 1);
    let call = |cmd: u64| one.call(number::EVENT_CHANNEL_OP, [cmd, ARG, 0, 0, 0]);
    one.write(ARG, &[0; 64]);
    assert_eq!(call(2), EOPNOTSUPP, "bind_pirq");
    assert_eq!(call(13), ENOSYS, "set_priority");
    assert_eq!(call(99), ENOSYS);
    assert_eq!(one.event(EventOp::Reset, Reset { dom: DomId(2) }).0, EPERM);
    assert_eq!(one.event(EventOp::Reset, Reset { dom: DomId(12) }).0, ESRCH);
}

#[test]
fn an_event_wakes_who_polls_for_it() {
    let world = two();
    let one = guest(&world, 1);
    let port = one.event(EventOp::BindIpi, BindIpi { vcpu: 0, port: Port(0) }).1.port;
    one.mask(port);
    let sleeper = world.domain(1).vcpu(1).unwrap();
    world.domain(1).polled.store(true, core::sync::atomic::Ordering::Relaxed);
    for (polled, wakes) in [(port.0, true), (u32::MAX, true), (port.0 + 1, false)] {
        sleeper.run.set(Run::Blocked);
        sleeper.poll.store(polled, core::sync::atomic::Ordering::Relaxed);
        one.take_events();
        one.send(port);
        assert_eq!(sleeper.run.get() == Run::Runnable, wakes, "polls {polled}");
        sleeper.run.set(Run::Blocked);
        let _ = world.pick(sleeper.home.get());
    }
}

#[test]
fn a_domain_that_keeps_a_word_busy_is_destroyed_and_no_other() {
    let world = two();
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    let there = two.unbound(1);
    let here = one.bind(2, there);
    one.take_events();
    world.machine.hw.contend_after(0);
    assert_eq!(one.send(here), 0, "the sender is not at fault");
    assert_eq!(world.domain(2).life.get(), Life::Destroyed(Fault::WordContended));
    assert_eq!(world.domain(1).life.get(), Life::Running);
    let events = world.machine.hw.take_events();
    assert!(events.contains(&Event::WordContended(DomId(2))));
    assert!(events.contains(&Event::Ended(DomId(2), Life::Destroyed(Fault::WordContended))));
}

#[test]
fn static_channels_are_there_at_boot_and_may_be_closed() {
    let world = two();
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    let hw = &world.machine.hw;
    let bind = |id: u16, port, peer, peer_port| {
        bind_static(hw, world.domain(id), Port(port), DomId(peer), Port(peer_port))
    };
    bind(2, 0xC, 1, 0xA).unwrap();
    bind(1, 0xA, 2, 0xC).unwrap();
    assert!(two.is_pending(Port(0xC)) && !one.is_pending(Port(0xA)), "the later domain's end is the second");
    two.take_events();
    assert_eq!(one.send(Port(0xA)), 0);
    assert!(two.is_pending(Port(0xC)));
    assert_eq!((bind(1, 0xA, 2, 1), bind(1, 5, 1, 5)), (Err(Errno::Ebusy), Err(Errno::Ebusy)));
    assert_eq!((bind(1, 0, 2, 1), bind(1, 4096, 2, 5)), (Err(Errno::Enospc), Err(Errno::Enospc)));
    bind(1, 20, 1, 21).unwrap();
    bind(1, 21, 1, 20).unwrap();
    assert!(one.is_pending(Port(21)) && !one.is_pending(Port(20)), "the later one of two of one domain");
    assert_eq!(one.unbound(2), Port(1), "dynamic ports are around them");
    assert_eq!(two.close(Port(0xC)), 0);
    assert_eq!(status(one, Port(0xA)).1.status, 1);
}

#[test]
fn a_domain_that_keeps_to_itself_has_channels_with_nobody_but_itself() {
    let world = World::with_isolated(3, 2);
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    let offer = |guest: Guest<'_>, remote_dom: u16| {
        let ask = AllocUnbound { dom: DomId::SELF, remote_dom: DomId(remote_dom), port: Port(0) };
        guest.event(EventOp::AllocUnbound, ask).0
    };
    assert_eq!((offer(two, 1), offer(one, 2)), (EPERM, EPERM));
    assert_eq!((offer(two, 777), offer(one, 777)), (ESRCH, 0), "whom it does not know it cannot judge");
    assert_eq!((offer(two, 2), offer(two, DomId::SELF.0), offer(one, 3)), (0, 0, 0));
    world.check();
}
