//! Boundary values of `event_channel_op`: the last that is taken and the first that is not. Each case begins with the name of its sub-call.
use guest_kernel::event::Channel;
use guest_kernel::hypercall;
use pv_abi::event::{
    AllocUnbound, BindInterdomain, BindIpi, BindVcpu, BindVirq, EventOp, InitControl, NR_VIRQS, PortArg,
    PortStatus, Reset, Status, Virq,
};
use pv_abi::{DomId, Errno, Hypercall, Port};

use super::event::{close, status};
use super::raw::{self, with};
use super::tap::Tap;

/// The last port of a domain that Xen builds without a toolstack, and so of ours (`max_evtchn_port`).
const LAST_PORT: u32 = 1023;

fn event(op: EventOp, argument: &mut (impl zerocopy::IntoBytes + zerocopy::FromBytes)) -> raw::Answer {
    with(Hypercall::EventChannelOp, u64::from(op.number()), argument)
}

#[expect(clippy::too_many_lines, reason = "a list of cases")]
pub(crate) fn check(tap: &mut Tap) {
    let (Ok(end), Ok(_)) = (Channel::unbound(DomId::SELF), guest_kernel::event::shared_page()) else {
        return tap.that("a channel", false);
    };
    // Ports are known in groups of 64.
    let (known, unknown) = (Port(63), Port(64));
    tap.is(
        "event_channel_op.status of the last known port",
        status(known).map(|it| it.0),
        Ok(PortStatus::Closed.number()),
    );
    tap.is("event_channel_op.status of the first unknown one", status(unknown), Err(Errno::Einval));
    tap.is(
        "event_channel_op.unmask of the last known port",
        hypercall::event_unmask(&mut PortArg { port: known }),
        Ok(()),
    );
    tap.is(
        "event_channel_op.unmask of the first unknown one",
        hypercall::event_unmask(&mut PortArg { port: unknown }),
        Err(Errno::Einval),
    );
    for port in [known, unknown, Port(LAST_PORT), Port(LAST_PORT + 1), Port(u32::MAX)] {
        tap.is(
            format_args!("event_channel_op.close of port {:#x}, that is not open", port.0),
            close(port),
            Err(Errno::Einval),
        );
        tap.is(
            format_args!("event_channel_op.send to port {:#x}, that is not open", port.0),
            hypercall::event_send(port),
            Err(Errno::Einval),
        );
        let mut bind = BindInterdomain { remote_dom: DomId::SELF, remote_port: port, ..Default::default() };
        tap.is(
            format_args!("event_channel_op.bind_interdomain to port {:#x}, that is not open", port.0),
            hypercall::event_bind_interdomain(&mut bind),
            Err(Errno::Einval),
        );
        let mut place = BindVcpu { port, vcpu: 0 };
        tap.is(
            format_args!("event_channel_op.bind_vcpu of port {:#x}, that is not open", port.0),
            hypercall::event_bind_vcpu(&mut place),
            Err(Errno::Einval),
        );
        let mut place = BindVcpu { port, vcpu: 7 };
        // There are no priorities with two levels, and a known port is looked at first.
        let expected = if port == known { Err(Errno::Enosys) } else { Err(Errno::Einval) };
        tap.is(
            format_args!("event_channel_op.set_priority of port {:#x}, that is not open", port.0),
            event(EventOp::SetPriority, &mut place),
            expected,
        );
    }
    for vcpu in [guest_kernel::smp::count() - 1, guest_kernel::smp::count(), 128, u32::MAX] {
        let expected = if vcpu < guest_kernel::smp::count() { Ok(()) } else { Err(Errno::Enoent) };
        let mut ipi = BindIpi { vcpu, port: Port(0) };
        tap.is(
            format_args!("event_channel_op.bind_ipi to vCPU {vcpu:#x}"),
            hypercall::event_bind_ipi(&mut ipi),
            expected,
        );
        let mut place = BindVcpu { port: end.port(), vcpu };
        tap.is(
            format_args!("event_channel_op.bind_vcpu to vCPU {vcpu:#x}"),
            hypercall::event_bind_vcpu(&mut place),
            expected,
        );
        let mut virq = BindVirq { virq: Virq::Timer.number(), vcpu, port: Port(0) };
        tap.is(
            format_args!("event_channel_op.bind_virq to vCPU {vcpu:#x}"),
            hypercall::event_bind_virq(&mut virq),
            expected,
        );
        if expected.is_ok() {
            let _ = (close(ipi.port), close(virq.port));
        }
    }
    for (virq, expected) in
        [(NR_VIRQS - 1, Err(Errno::Einval)), (NR_VIRQS, Err(Errno::Einval)), (u32::MAX, Err(Errno::Einval))]
    {
        // On a vCPU that is not the first: the last number is one that only vCPU 0 can have.
        let mut bind = BindVirq { virq, vcpu: 1, port: Port(0) };
        tap.is(
            format_args!("event_channel_op.bind_virq of number {virq:#x}"),
            hypercall::event_bind_virq(&mut bind),
            expected,
        );
    }
    for virq in [Virq::Timer, Virq::Debug, Virq::Xenoprof, Virq::Xenpmu]
        .map(Virq::number)
        .into_iter()
        .chain([14, 15, 5])
    {
        let mut bind = BindVirq { virq, vcpu: 0, port: Port(0) };
        tap.is(
            format_args!("event_channel_op.bind_virq of number {virq} is no privilege"),
            hypercall::event_bind_virq(&mut bind),
            Ok(()),
        );
        let _ = close(bind.port);
    }
    for domain in [DomId(0), DomId::IO, DomId::XEN, DomId::INVALID, DomId(u16::MAX)] {
        let mut alloc = AllocUnbound { dom: DomId::SELF, remote_dom: domain, port: Port(0) };
        tap.is(
            format_args!("event_channel_op.alloc_unbound for domain {:#x}", domain.0),
            hypercall::event_alloc_unbound(&mut alloc),
            Ok(()),
        );
        let seen = status(alloc.port).map(|it| it.2);
        tap.is(
            format_args!("event_channel_op.alloc_unbound names domain {:#x}", domain.0),
            seen,
            Ok(u32::from(domain.0)),
        );
        let _ = close(alloc.port);
        let mut reset = Reset { dom: domain };
        tap.is(
            format_args!("event_channel_op.reset of domain {:#x}, that there is not", domain.0),
            event(EventOp::Reset, &mut reset),
            Err(Errno::Esrch),
        );
        tap.is(
            format_args!("event_channel_op.reset_cont of domain {:#x}, that there is not", domain.0),
            event(EventOp::ResetContinuation, &mut reset),
            Err(Errno::Esrch),
        );
        let mut status = Status { dom: domain, port: Port(1), ..Default::default() };
        tap.is(
            format_args!("event_channel_op.status of domain {:#x}, that there is not", domain.0),
            hypercall::event_status(&mut status),
            Err(Errno::Esrch),
        );
    }
    tap.is(
        "event_channel_op.reset_cont with none under way",
        event(EventOp::ResetContinuation, &mut Reset { dom: DomId::SELF }),
        Err(Errno::Ebusy),
    );
    for offset in [4096 - 68, 4096 - 71, 4096, 12, u32::MAX] {
        let mut control = InitControl { control_gfn: 0, offset, vcpu: 0, ..Default::default() };
        tap.is(
            format_args!("event_channel_op.init_control at offset {offset}, that cannot be"),
            event(EventOp::InitControl, &mut control),
            Err(Errno::Einval),
        );
    }
    let mut array = [u64::MAX];
    tap.is(
        "event_channel_op.expand_array with two levels",
        event(EventOp::ExpandArray, &mut array),
        Err(Errno::Eopnotsupp),
    );
    full(tap);
}

fn full(tap: &mut Tap) {
    let mut last = Port(0);
    let mut refused = Ok(());
    // What is open already is not known: until there are no more.
    for _ in 0..=LAST_PORT {
        let mut alloc = AllocUnbound { dom: DomId::SELF, remote_dom: DomId::SELF, port: Port(0) };
        refused = hypercall::event_alloc_unbound(&mut alloc);
        if refused.is_err() {
            break;
        }
        last = alloc.port;
    }
    tap.is("event_channel_op.alloc_unbound without a free port", refused, Err(Errno::Enospc));
    tap.is("event_channel_op.alloc_unbound gave the last", last, Port(LAST_PORT));
    let mut bind = BindInterdomain { remote_dom: DomId::SELF, remote_port: last, ..Default::default() };
    tap.is(
        "event_channel_op.bind_interdomain without a free port",
        hypercall::event_bind_interdomain(&mut bind),
        Err(Errno::Enospc),
    );
    bind.remote_port = Port(LAST_PORT + 1);
    tap.is(
        "event_channel_op.bind_interdomain looks for a port first",
        hypercall::event_bind_interdomain(&mut bind),
        Err(Errno::Enospc),
    );
    let mut ipi = BindIpi { vcpu: 0, port: Port(0) };
    tap.is(
        "event_channel_op.bind_ipi without a free port",
        hypercall::event_bind_ipi(&mut ipi),
        Err(Errno::Enospc),
    );
    let mut virq = BindVirq { virq: Virq::Debug.number(), vcpu: 0, port: Port(0) };
    tap.is(
        "event_channel_op.bind_virq without a free port",
        hypercall::event_bind_virq(&mut virq),
        Err(Errno::Enospc),
    );
    tap.is("event_channel_op.close of the last port", close(last), Ok(()));
    let mut ipi = BindIpi { vcpu: 0, port: Port(0) };
    tap.is(
        "event_channel_op.bind_ipi gets it",
        (hypercall::event_bind_ipi(&mut ipi), ipi.port),
        (Ok(()), last),
    );
    tap.is("event_channel_op.send to the last port", hypercall::event_send(last), Ok(()));
    tap.is(
        "event_channel_op.reset of all of them",
        event(EventOp::Reset, &mut Reset { dom: DomId::SELF }),
        Ok(0),
    );
    tap.is(
        "event_channel_op.status of the last, closed",
        status(last).map(|it| it.0),
        Ok(PortStatus::Closed.number()),
    );
    let mut alloc = AllocUnbound { dom: DomId::SELF, remote_dom: DomId::SELF, port: Port(0) };
    tap.is(
        "event_channel_op.alloc_unbound gives the first again",
        (hypercall::event_alloc_unbound(&mut alloc), alloc.port),
        (Ok(()), Port(1)),
    );
    let _ = close(alloc.port);
}
