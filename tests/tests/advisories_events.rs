//! Event channels against what went wrong in Xen's: one test a row of `tests/advisories.toml`, named after it.
#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation, reason = "tests")]

use hypervisor::domain::Life;
use hypervisor::evtchn::check_channels;
use hypervisor::hypercall::Outcome;
use pavo_tests::{ARG, Guest, Settled, guest, number};
use pv_abi::event::{AllocUnbound, BindInterdomain, BindIpi, BindVcpu, BindVirq, EventOp, PortArg, Status};
use pv_abi::{DomId, Port};

const EINVAL: i64 = -22;
const ENOSPC: i64 = -28;

/// Makes ports until there are no more; how many.
fn exhaust(guest: Guest<'_>) -> u32 {
    let arg = AllocUnbound { dom: DomId::SELF, remote_dom: DomId(2), port: Port(0) };
    let mut made = 0;
    loop {
        match guest.quick_event(EventOp::AllocUnbound, arg).0 {
            0 => made += 1,
            refused => {
                assert_eq!(refused, ENOSPC);
                return made;
            }
        }
    }
}

fn status(guest: Guest<'_>, port: Port) -> Status {
    guest.quick_event(EventOp::Status, Status { dom: DomId::SELF, port, ..Status::default() }).1
}

fn reset(guest: Guest<'_>) -> (i64, u32) {
    guest.write(ARG, &0x7FF0_u16.to_le_bytes());
    let args = [EventOp::Reset.number().into(), ARG, 0, 0, 0];
    let (result, interruptions) = guest.by_runs(number::EVENT_CHANNEL_OP, args, |_| {});
    (result, interruptions + 1)
}

#[test]
fn xsa_47_offers_that_are_refused_leave_no_port_behind() {
    let world = Settled::new(2);
    let one = guest(&world, 1);
    for _ in 0..50 {
        for (dom, remote_dom) in [(2, 1), (0x7FF1, 1), (3, 1)] {
            let arg = AllocUnbound { dom: DomId(dom), remote_dom: DomId(remote_dom), port: Port(0) };
            assert_ne!(one.quick_event(EventOp::AllocUnbound, arg).0, 0);
        }
    }
    // Port 0 is none.
    assert_eq!(exhaust(one), 1023);
    world.check();
}

#[test]
fn xsa_317_there_are_as_many_ports_as_the_quota_and_the_next_one_is_none() {
    let world = Settled::new(2);
    let one = guest(&world, 1);
    let last = exhaust(one);
    for port in [last, last + 1, last + 2, 4095, 4096, 1 << 17, u32::MAX] {
        let inside = port <= last;
        let answers = [
            one.send(Port(port)),
            one.quick_event(EventOp::Unmask, PortArg { port: Port(port) }).0,
            one.quick_event(EventOp::BindVcpu, BindVcpu { port: Port(port), vcpu: 1 }).0,
            one.close(Port(port)),
        ];
        assert_eq!(answers.map(|answer| answer == 0), [inside; 4], "port {port}: {answers:?}");
    }
}

#[test]
fn xsa_342_no_port_beyond_the_last_word_touches_the_shared_page() {
    let world = Settled::new(2);
    let one = guest(&world, 1);
    // Behind the two bitmaps of 4096 ports: wall clock and what follows.
    let behind = 48 + 512 + 512;
    let mark = [0x5A; 64];
    one.set_info(behind, &mark);
    for port in [4095, 4096, 4097, 4096 + 64 * 8, 8191, 1 << 31] {
        one.send(Port(port));
        one.quick_event(EventOp::Unmask, PortArg { port: Port(port) });
    }
    for offset in (0..64).step_by(8) {
        assert_eq!(one.info_word(behind + offset), u64::from_le_bytes([0x5A; 8]));
    }
}

#[test]
fn xsa_343_after_a_reset_no_port_is_open() {
    let world = Settled::new(2);
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    for index in 0..40 {
        let offer = two.unbound(1);
        match index % 4 {
            0 => drop(one.bind(2, offer)),
            1 => drop(one.unbound(2)),
            2 => drop(one.quick_event(EventOp::BindIpi, BindIpi { vcpu: 0, port: Port(0) })),
            _ => drop(
                one.quick_event(EventOp::BindVirq, BindVirq { virq: 1 + index % 2, vcpu: 0, port: Port(0) }),
            ),
        }
    }
    assert_eq!(reset(one).0, 0);
    for port in 1..64 {
        assert_eq!(status(one, Port(port)).status, 0, "port {port}");
        assert_eq!(one.send(Port(port)), EINVAL);
    }
    check_channels(&world.machine).unwrap();
}

#[test]
fn xsa_344_a_reset_of_all_ports_is_done_piece_by_piece() {
    let world = Settled::new(2);
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    for _ in 0..1000 {
        let offer = AllocUnbound { dom: DomId::SELF, remote_dom: DomId(1), port: Port(0) };
        let (_, offer) = two.quick_event(EventOp::AllocUnbound, offer);
        let bind =
            BindInterdomain { remote_dom: DomId(2), pad: 0, remote_port: offer.port, local_port: Port(0) };
        assert_eq!(one.quick_event(EventOp::BindInterdomain, bind).0, 0);
    }
    let (result, runs) = reset(one);
    assert_eq!(result, 0);
    // 32 ports at most in one run.
    assert!(runs >= 1000 / 32, "{runs} runs");
    // The other ends wait again.
    assert_eq!(status(two, Port(1)).status, 1);
}

#[test]
fn xsa_496_a_virtual_interrupt_that_cannot_be_bound_takes_nobody_elses_away() {
    let world = Settled::new(2);
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    let (_, theirs) = two.quick_event(EventOp::BindVirq, BindVirq { virq: 1, vcpu: 0, port: Port(0) });
    exhaust(one);
    for virq in (0..30).chain([0x7FFF_FFFF, u32::MAX]) {
        for vcpu in [0, 1, 2, u32::MAX] {
            assert_ne!(one.quick_event(EventOp::BindVirq, BindVirq { virq, vcpu, port: Port(0) }).0, 0);
        }
    }
    assert_eq!(status(two, theirs.port).status, 4, "a virtual interrupt still");
    assert_eq!(one.close(Port(5)), 0);
    assert_eq!(one.quick_event(EventOp::BindVirq, BindVirq { virq: 1, vcpu: 0, port: Port(0) }).0, 0);
}

#[test]
fn row_88_a_port_that_is_given_out_again_has_nothing_of_its_old_peer() {
    let world = Settled::new(3);
    let (one, two, three) = (guest(&world, 1), guest(&world, 2), guest(&world, 3));
    let offer = one.unbound(2);
    let old = two.bind(1, offer);
    assert_eq!(one.close(offer), 0);
    // The same number, for another.
    assert_eq!(one.unbound(3), offer);
    let new = three.bind(1, offer);
    one.take_events();
    two.send(old);
    assert!(!one.is_pending(offer), "the old peer's event goes nowhere");
    assert_eq!(three.send(new), 0);
    assert!(one.is_pending(offer));
    let bind = BindInterdomain { remote_dom: DomId(1), pad: 0, remote_port: offer, local_port: Port(0) };
    assert_ne!(two.quick_event(EventOp::BindInterdomain, bind).0, 0);
}

/// Four vCPUs of two domains on four threads, two of which reset their domain's ports again and again.
#[test]
fn xsa_338_ports_that_are_reset_while_others_use_them_end_in_agreement() {
    use core::cell::Cell;
    use hypervisor::addr::Ipa;
    use hypervisor::fake::{RAM, Random};
    use hypervisor::hardware::CpuId;
    use hypervisor::hypercall::hypercall;
    use hypervisor::machine::Current;
    let world = Settled::new(2);
    let machine = &world.machine;
    let run = |id: u16, vcpu: u32| {
        let domain = machine.domain(DomId(id)).unwrap();
        let reschedule = Cell::new(false);
        let cpu = CpuId(vcpu as u8);
        let current = Current { domain, vcpu: domain.vcpu(vcpu).unwrap(), cpu, reschedule: &reschedule };
        let arg = RAM + 0x1_0000 + u64::from(vcpu) * 0x1000;
        let mut random = Random::new(u64::from(id * 7) + u64::from(vcpu) + 1);
        for _ in 0..600 {
            let mut bytes = [0; 24];
            let port = 1 + random.below(12) as u32;
            let op = match (vcpu, random.below(8)) {
                (0, 0) => EventOp::Reset,
                (_, 0..=2) => EventOp::AllocUnbound,
                (_, 3) => EventOp::BindInterdomain,
                (_, 4) => EventOp::Close,
                (_, 5) => EventOp::Status,
                (_, 6) => EventOp::BindVcpu,
                _ => EventOp::Send,
            };
            let fields: [u32; 2] = match op {
                EventOp::Reset => [0x7FF0, 0],
                EventOp::AllocUnbound => [0x7FF0 | u32::from(3 - id) << 16, 0],
                EventOp::BindInterdomain => [u32::from(3 - id), port],
                EventOp::Status => [0x7FF0, port],
                EventOp::BindVcpu => [port, random.below(2) as u32],
                _ => [port, 0],
            };
            for (chunk, field) in bytes.chunks_mut(4).zip(fields) {
                chunk.copy_from_slice(&field.to_le_bytes());
            }
            let at = Ipa::new(arg).unwrap();
            machine.hw.guest_write(domain.vmid, domain.stage2_root, at, &bytes).unwrap();
            let mut args = [op.number().into(), arg, 0, 0, 0];
            // Each goes on to its end, or a reset would be under way for ever.
            while let Outcome::Restart(left) = hypercall(machine, &current, number::EVENT_CHANNEL_OP, args) {
                args = left;
            }
        }
    };
    std::thread::scope(|threads| {
        for (id, vcpu) in [(1, 0), (1, 1), (2, 0), (2, 1)] {
            let run = &run;
            threads.spawn(move || run(id, vcpu));
        }
    });
    check_channels(machine).unwrap();
    world.check();
    for id in 1..=2 {
        assert_eq!(world.domain(id).life.get(), Life::Running);
        assert_eq!(reset(guest(&world, id)).0, 0);
        assert_eq!(status(guest(&world, id), Port(1)).status, 0);
    }
}
