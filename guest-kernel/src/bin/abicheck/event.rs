//! `event_channel_op`: what succeeds.
use guest_kernel::event::{Channel, own_id, shared_page};
use guest_kernel::hypercall;
use pv_abi::event::{BindIpi, BindVcpu, BindVirq, EventOp, PortArg, PortStatus, Reset, Status, Virq};
use pv_abi::{DomId, Errno, Hypercall, Port};

use super::raw::with;
use super::tap::Tap;

/// What `status` says of one's own port: state, vCPU, peer, the peer's port.
pub(crate) fn status(port: Port) -> Result<(u32, u32, u32, u32), Errno> {
    let mut argument = Status { dom: DomId::SELF, port, ..Default::default() };
    hypercall::event_status(&mut argument)?;
    Ok((argument.status, argument.vcpu, argument.peer, argument.peer_port.0))
}

pub(crate) fn close(port: Port) -> Result<(), Errno> {
    hypercall::event_close(&mut PortArg { port })
}

pub(crate) fn check(tap: &mut Tap) {
    let (Ok(own), Ok(page)) = (own_id(), shared_page()) else {
        return tap.that("own id and shared page", false);
    };
    let (Ok(unbound), Ok(by_number)) = (Channel::unbound(DomId::SELF), Channel::unbound(own)) else {
        return tap.that("alloc_unbound", false);
    };
    let own = u32::from(own.0);
    tap.that("ports are not 0 and differ", unbound.port().0 != 0 && unbound.port() != by_number.port());
    tap.is(
        "an unbound port names who may bind",
        status(unbound.port()),
        Ok((PortStatus::Unbound.number(), 0, own, 0)),
    );
    tap.is("sending to an unbound port is silent", unbound.notify(), Ok(()));
    tap.that("and leaves nothing pending", !page.is_pending(unbound.port()));

    let Ok(bound) = Channel::bind(DomId::SELF, unbound.port()) else {
        return tap.that("bind_interdomain", false);
    };
    let interdomain = PortStatus::Interdomain.number();
    tap.is("a bound port names its peer", status(bound.port()), Ok((interdomain, 0, own, unbound.port().0)));
    tap.is("and so does the other", status(unbound.port()), Ok((interdomain, 0, own, bound.port().0)));
    tap.that("binding raises an event at the new port", bound.take());
    tap.is("an event is sent", bound.notify(), Ok(()));
    tap.that("it is pending at the other end only", unbound.take() && !bound.take());
    tap.is("unmask of a port without event", bound.unmask(), Ok(()));

    let mut move_it = BindVcpu { port: bound.port(), vcpu: 0 };
    tap.is("bind_vcpu of an interdomain port", hypercall::event_bind_vcpu(&mut move_it), Ok(()));
    drop(bound);
    tap.is(
        "closing one end makes the other unbound",
        status(unbound.port()),
        Ok((PortStatus::Unbound.number(), 0, own, 0)),
    );

    let mut ipi = BindIpi { vcpu: 0, port: Port(0) };
    tap.is("bind_ipi", hypercall::event_bind_ipi(&mut ipi), Ok(()));
    tap.is(
        "the state of an IPI",
        status(ipi.port).map(|state| (state.0, state.1)),
        Ok((PortStatus::Ipi.number(), 0)),
    );
    tap.is("an event to oneself", hypercall::event_send(ipi.port), Ok(()));
    tap.that("is pending", page.take(ipi.port));
    tap.is("close of an IPI port", close(ipi.port), Ok(()));

    let mut virq = BindVirq { virq: Virq::Timer.number(), vcpu: 0, port: Port(0) };
    tap.is("bind_virq of the timer", hypercall::event_bind_virq(&mut virq), Ok(()));
    let state = Ok((PortStatus::Virq.number(), 0, Virq::Timer.number()));
    tap.is("the state of a timer", status(virq.port).map(|state| (state.0, state.1, state.2)), state);
    tap.is("a second binding is refused", hypercall::event_bind_virq(&mut virq.clone()), Err(Errno::Eexist));
    tap.is("sending to a virtual interrupt is refused", hypercall::event_send(virq.port), Err(Errno::Einval));
    tap.is("close of a virtual interrupt's port", close(virq.port), Ok(()));
    tap.is("it can be bound again", hypercall::event_bind_virq(&mut virq), Ok(()));

    let mut reset = Reset { dom: DomId::SELF };
    tap.is("reset", with(Hypercall::EventChannelOp, u64::from(EventOp::Reset.number()), &mut reset), Ok(0));
    tap.is("closes every port", status(virq.port).map(|state| state.0), Ok(PortStatus::Closed.number()));
}
