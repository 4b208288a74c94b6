//! `event_channel_op`: what is refused.
use guest_kernel::event::Channel;
use guest_kernel::{hypercall, smp};
use pv_abi::event::{
    AllocUnbound, BindInterdomain, BindIpi, BindVcpu, BindVirq, EventOp, InitControl, NR_CHANNELS_2L,
    NR_VIRQS, PortArg, PortStatus, Status, Virq,
};
use pv_abi::{DomId, Errno, Hypercall, Port};

use super::event::{close, status};
use super::raw::{NOBODY, with, without};
use super::tap::Tap;

pub(crate) fn check(tap: &mut Tap) {
    let absent = smp::count();
    let (mut unused, far, zero) = (Port(1000), Port(NR_CHANNELS_2L), Port(0));
    if let Ok(channel) = Channel::unbound(DomId::SELF) {
        // The ports behind the last one that was given out are free, and known to the hypervisor.
        unused = Port(channel.port().0 + 1);
    }
    let mut alloc = AllocUnbound { dom: NOBODY, remote_dom: DomId::SELF, port: zero };
    tap.is("alloc_unbound in nobody", hypercall::event_alloc_unbound(&mut alloc), Err(Errno::Esrch));
    let mut bind = BindInterdomain { remote_dom: NOBODY, pad: 0, remote_port: Port(1), local_port: zero };
    tap.is("bind_interdomain to nobody", hypercall::event_bind_interdomain(&mut bind), Err(Errno::Esrch));
    bind.remote_dom = DomId::SELF;
    for (what, port) in [("a free port", unused), ("a port that cannot be", far), ("port 0", zero)] {
        bind.remote_port = port;
        tap.is(
            format_args!("bind_interdomain to {what}"),
            hypercall::event_bind_interdomain(&mut bind),
            Err(Errno::Einval),
        );
    }
    if let Ok(taken) = Channel::unbound(DomId::SELF)
        && let Ok(_peer) = Channel::bind(DomId::SELF, taken.port())
    {
        bind.remote_port = taken.port();
        tap.is(
            "bind_interdomain to a bound port",
            hypercall::event_bind_interdomain(&mut bind),
            Err(Errno::Einval),
        );
    }

    let mut ipi = BindIpi { vcpu: absent, port: zero };
    tap.is("bind_ipi to a vCPU that does not exist", hypercall::event_bind_ipi(&mut ipi), Err(Errno::Enoent));
    let mut virq = BindVirq { virq: NR_VIRQS, vcpu: 0, port: zero };
    tap.is("bind_virq of a number that cannot be", hypercall::event_bind_virq(&mut virq), Err(Errno::Einval));
    virq = BindVirq { virq: Virq::Timer.number(), vcpu: absent, port: zero };
    tap.is(
        "bind_virq to a vCPU that does not exist",
        hypercall::event_bind_virq(&mut virq),
        Err(Errno::Enoent),
    );
    virq = BindVirq { virq: Virq::Console.number(), vcpu: 1, port: zero };
    tap.is(
        "bind_virq of a global one elsewhere than at vCPU 0",
        hypercall::event_bind_virq(&mut virq),
        Err(Errno::Einval),
    );

    for (what, port) in [("a free port", unused), ("a port that cannot be", far), ("port 0", zero)] {
        tap.is(format_args!("send to {what}"), hypercall::event_send(port), Err(Errno::Einval));
        tap.is(format_args!("close of {what}"), close(port), Err(Errno::Einval));
        let mut place = BindVcpu { port, vcpu: 0 };
        tap.is(
            format_args!("bind_vcpu of {what}"),
            hypercall::event_bind_vcpu(&mut place),
            Err(Errno::Einval),
        );
    }
    tap.is("status of a free port", status(unused).map(|state| state.0), Ok(PortStatus::Closed.number()));
    tap.is("status of port 0", status(zero).map(|state| state.0), Ok(PortStatus::Closed.number()));
    tap.is("status of a port that cannot be", status(far), Err(Errno::Einval));
    tap.is(
        "unmask of a port that cannot be",
        hypercall::event_unmask(&mut PortArg { port: far }),
        Err(Errno::Einval),
    );
    let mut foreign = Status { dom: NOBODY, port: Port(1), ..Default::default() };
    tap.is("status of nobody's port", hypercall::event_status(&mut foreign), Err(Errno::Esrch));
    let mut elsewhere = BindVcpu { port: unused, vcpu: smp::count() };
    tap.is(
        "bind_vcpu to a vCPU that does not exist",
        hypercall::event_bind_vcpu(&mut elsewhere),
        Err(Errno::Enoent),
    );
    virq = BindVirq { virq: Virq::Timer.number(), vcpu: 0, port: zero };
    if hypercall::event_bind_virq(&mut virq).is_ok() {
        let mut place = BindVcpu { port: virq.port, vcpu: 0 };
        tap.is(
            "bind_vcpu of a vCPU's own virtual interrupt",
            hypercall::event_bind_vcpu(&mut place),
            Err(Errno::Einval),
        );
        tap.is("the timer's port closes", close(virq.port), Ok(()));
    }

    addresses(tap);
}

fn addresses(tap: &mut Tap) {
    for (what, op) in [
        ("bind_interdomain", EventOp::BindInterdomain),
        ("bind_virq", EventOp::BindVirq),
        ("close", EventOp::Close),
        ("send", EventOp::Send),
        ("status", EventOp::Status),
        ("alloc_unbound", EventOp::AllocUnbound),
        ("bind_ipi", EventOp::BindIpi),
        ("bind_vcpu", EventOp::BindVcpu),
        ("unmask", EventOp::Unmask),
        ("reset", EventOp::Reset),
        ("reset_cont", EventOp::ResetContinuation),
        ("bind_pirq", EventOp::BindPirq),
        ("init_control", EventOp::InitControl),
        ("expand_array", EventOp::ExpandArray),
        ("set_priority", EventOp::SetPriority),
    ] {
        let answer = without(Hypercall::EventChannelOp, u64::from(op.number()));
        tap.is(format_args!("a bad address for {what}"), answer, Err(Errno::Efault));
    }
    let mut pirq = [0u32; 3];
    let bind_pirq = u64::from(EventOp::BindPirq.number());
    tap.is(
        "bind_pirq does not exist",
        with(Hypercall::EventChannelOp, bind_pirq, &mut pirq),
        Err(Errno::Eopnotsupp),
    );
    tap.is("an unknown operation", without(Hypercall::EventChannelOp, 99), Err(Errno::Enosys));
    let mut control = InitControl { control_gfn: 0, offset: 0, vcpu: smp::count(), ..Default::default() };
    let init = u64::from(EventOp::InitControl.number());
    tap.is(
        "init_control of a vCPU that does not exist",
        with(Hypercall::EventChannelOp, init, &mut control),
        Err(Errno::Enoent),
    );
    control = InitControl { control_gfn: 0, offset: 4, vcpu: 0, ..Default::default() };
    tap.is(
        "init_control off its alignment",
        with(Hypercall::EventChannelOp, init, &mut control),
        Err(Errno::Einval),
    );
    control = InitControl { control_gfn: 0, offset: 4096, vcpu: 0, ..Default::default() };
    tap.is(
        "init_control beyond the page",
        with(Hypercall::EventChannelOp, init, &mut control),
        Err(Errno::Einval),
    );
}
