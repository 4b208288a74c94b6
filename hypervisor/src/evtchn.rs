//! Event channels: ports, who they connect, and how an event reaches a vCPU, in two levels or by FIFO queues (`common/event_channel.c` is the
//! reference for results).
//!
//! Invariants
//! 1. An interdomain port's peer is an interdomain port whose peer is the first (the two change together, under both domains'
//!    locks). A self-check may ask for it whenever no lock is held.
//! 2. A port word changes only under its domain's lock; a sender reads it without.
//! 3. A port that is free is not pending, except for an event that was under way while it was closed.
//! 4. Nothing here waits for a guest: every operation on a shared word is bounded, and a guest that keeps a word busy is
//!    destroyed.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]
#![expect(
    clippy::inline_always,
    reason = "on the path of every hypercall: a call more would be seen in the numbers"
)]

mod bind;
mod check;
mod close;
mod deliver;
mod fifo;
mod port;

pub use bind::{bind_console, bind_static, rejoin_static};
pub use check::{OneSided, check_channels};
pub use fifo::{Fifo, Queues, held};
pub use port::{PortKind, PortWord, PortsState, find};

pub(crate) use fifo::forget as forget_fifo;
pub(crate) use port::{forget_all, in_use};

pub(crate) use deliver::{is_pending, resend_all, upcall_pending, word_contended};

use pv_abi::event::{
    AllocUnbound, BindInterdomain, BindIpi, BindVcpu, BindVirq, EventOp, ExpandArray, InitControl, PortArg,
    PortStatus, Reset, SetPriority, Status,
};
use pv_abi::{DomId, Errno, GuestHandle, Port};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::console::ring;
use crate::domain::Domain;
use crate::guest_memory;
use crate::hardware::Hardware;
use crate::hypercall::{Answer, Args, Stop, any_domain};
use crate::machine::{Current, Machine};
use bind::NotBound;
use close::Closed;
use port::{CONSOLE_VIRQ, End};

/// `event_channel_op`.
///
/// # Errors
/// As each operation; `-ENOSYS` for one that does not exist.
#[inline(always)]
pub fn event_channel_op<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, args: &Args) -> Answer {
    let [cmd, arg, ..] = *args;
    let arg = GuestHandle(arg);
    #[expect(clippy::cast_possible_truncation, reason = "the command is an int")]
    let cmd = cmd as u32;
    if cmd == EventOp::Send.number() {
        let send: PortArg = guest_memory::read(machine, current, arg)?;
        return send_event(machine, current, send.port, args);
    }
    others(machine, current, cmd, arg, args)
}

/// Raises the event at the other end of a port of the caller's. Takes no lock.
#[inline(always)]
fn send_event<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, port: Port, args: &Args) -> Answer {
    let local = current.domain;
    let raw = port::raw(local, port);
    let word = PortWord::unpack(raw);
    match word.kind {
        PortKind::Interdomain(dom, remote_port) => {
            let Some(remote) = machine.domain(dom) else {
                return ring::notified(machine, current, port, dom, args);
            };
            let end = port::raw(remote, remote_port);
            match port::end_of(end, local.id, port) {
                End::TwoLevel => {
                    deliver::set_pending(machine, current, remote, remote_port, PortWord::unpack(end).vcpu);
                }
                End::Fifo => {
                    fifo::set_pending(machine, current, remote, remote_port, PortWord::unpack(end).vcpu);
                }
                // The other side has just closed it.
                End::Gone => {}
            }
        }
        PortKind::Ipi if port::is_fifo(raw) => fifo::set_pending(machine, current, local, port, word.vcpu),
        PortKind::Ipi => deliver::set_pending(machine, current, local, port, word.vcpu),
        PortKind::Unbound(_) => {}
        PortKind::Free | PortKind::Virq(_) => return Err(Errno::Einval.into()),
    }
    Ok(0)
}

/// Tells the current domain that its console, at `port`, has done something. A port that it uses for something else since tells it nothing.
pub(crate) fn notify<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, port: Port) {
    let word = port::load(current.domain, port);
    if word.kind == port::CONSOLE {
        deliver::raise(machine, current, current.domain, port, word.vcpu);
    }
}

/// Raises the console's virtual interrupt of the current domain, whose ports these are, if it has bound that.
pub(crate) fn raise_console<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, ports: &PortsState) {
    let port = ports.virq(port::virq_index(CONSOLE_VIRQ, 0));
    let word = port::load(current.domain, port);
    if word.kind == PortKind::Virq(CONSOLE_VIRQ) {
        deliver::raise(machine, current, current.domain, port, word.vcpu);
    }
}

/// All but the hottest.
#[cold]
#[inline(never)]
fn others<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    cmd: u32,
    arg: GuestHandle,
    args: &Args,
) -> Answer {
    if cmd == fifo::CONTINUE && fifo::is_used(current.domain) {
        return raised(fifo::raise_kept(machine, current), args);
    }
    let search = searches(current.domain, cmd);
    let (op, from) = search.or_else(|| Some((EventOp::from_number(cmd)?, Port(0)))).ok_or(Errno::Enosys)?;
    match op {
        EventOp::Send => send_event(machine, current, read::<PortArg, H>(machine, current, arg)?.port, args),
        EventOp::AllocUnbound => answer_made(machine, current, (op, args), |it: &AllocUnbound| {
            bind::alloc_unbound(machine, current, *it, from)
        }),
        EventOp::BindInterdomain => answer_made(machine, current, (op, args), |it: &BindInterdomain| {
            bind::bind_interdomain(machine, current, it, from)
        }),
        EventOp::BindVirq => answer_made(machine, current, (op, args), |it: &BindVirq| {
            bind::bind_virq(machine, current, it, from)
        }),
        EventOp::BindIpi => answer_made(machine, current, (op, args), |it: &BindIpi| {
            bind::bind_ipi(machine, current, *it, from)
        }),
        EventOp::Status => answer(machine, current, arg, |it: &Status| status(machine, current, it)),
        EventOp::Close => {
            let port = read::<PortArg, H>(machine, current, arg)?.port;
            finished(close::close(machine, current, port)?, args)
        }
        EventOp::Reset | EventOp::ResetContinuation => {
            let dom = read::<Reset, H>(machine, current, arg)?.dom;
            own(machine, current, dom)?;
            let [_, rest @ ..] = *args;
            let [a, b, c, d] = rest;
            let again = [EventOp::ResetContinuation.number().into(), a, b, c, d];
            finished(close::reset(machine, current, op == EventOp::ResetContinuation)?, &again)
        }
        EventOp::BindVcpu => {
            let it: BindVcpu = read(machine, current, arg)?;
            Ok(bind::bind_vcpu(current, it.port, it.vcpu).map(|()| 0)?)
        }
        EventOp::Unmask => {
            let port = read::<PortArg, H>(machine, current, arg)?.port;
            let word = port::find(current.domain, port)?;
            if word.kind != PortKind::Free {
                deliver::unmask(machine, current, current.domain, port, word.vcpu);
            }
            Ok(0)
        }
        // Physical interrupts are not bound to ports on ARM.
        EventOp::BindPirq => read::<BindVirq, H>(machine, current, arg).and(Err(Errno::Eopnotsupp.into())),
        EventOp::InitControl => {
            answer(machine, current, arg, |it: &InitControl| fifo::init_control(machine, current, it))
        }
        EventOp::ExpandArray => {
            let it: ExpandArray = read(machine, current, arg)?;
            fifo::expand_array(machine, current, it.array_gfn)?;
            raised(fifo::raise_kept(machine, current), args)
        }
        EventOp::SetPriority => {
            let it: SetPriority = read(machine, current, arg)?;
            Ok(fifo::set_priority(current, it).map(|()| 0)?)
        }
    }
}

fn read<T: FromBytes + IntoBytes, H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    arg: GuestHandle,
) -> Result<T, Stop> {
    Ok(guest_memory::read(machine, current, arg)?)
}

/// In a command: the rest says what an operation that makes a port goes on with, which no run of the guest's own has said.
const GOES_ON: u32 = 1 << 31;
/// Where in such a command the port is at which the search goes on.
const PORT_SHIFT: u32 = 8;
const _: () = assert!(fifo::CONTINUE == GOES_ON | EventOp::ExpandArray.number());

/// What a command goes on with that an interrupted search has left: in a domain whose guest may call free ports busy. Whoever invents one skips ports of
/// its own.
fn searches(domain: &Domain, cmd: u32) -> Option<(EventOp, Port)> {
    if cmd & GOES_ON == 0 || !fifo::is_used(domain) {
        return None;
    }
    let op = EventOp::from_number(cmd & 0xFF).filter(|op| {
        matches!(op, EventOp::AllocUnbound | EventOp::BindInterdomain | EventOp::BindVirq | EventOp::BindIpi)
    })?;
    Some((op, Port((cmd & !GOES_ON) >> PORT_SHIFT)))
}

/// [`answer`] of an operation that makes a port: the search for a free one may go on in another run.
fn answer_made<T: FromBytes + IntoBytes + Immutable, H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    (op, args): (EventOp, &Args),
    deed: impl FnOnce(&T) -> Result<T, NotBound>,
) -> Answer {
    let [cmd, arg, a, b, c] = *args;
    let arg = GuestHandle(arg);
    let made = deed(&guest_memory::read(machine, current, arg)?).map_err(|why| match why {
        NotBound::Errno(errno) => Stop::Errno(errno),
        NotBound::Later(None) => Stop::Restart(*args),
        NotBound::Later(Some(port)) => {
            let next = GOES_ON | port.0 << PORT_SHIFT | op.number();
            Stop::Restart([cmd & !0xFFFF_FFFF | u64::from(next), arg.0, a, b, c])
        }
    })?;
    guest_memory::write(machine, current, arg, &made)?;
    Ok(0)
}

/// Reads an argument, does what it asks and writes it back with its results. When they cannot be written the deed stays done, as in
/// Xen: the guest gave an address that is read-only for itself.
fn answer<T: FromBytes + IntoBytes + Immutable, H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    arg: GuestHandle,
    deed: impl FnOnce(&T) -> Result<T, Errno>,
) -> Answer {
    let result = deed(&guest_memory::read(machine, current, arg)?)?;
    guest_memory::write(machine, current, arg, &result)?;
    Ok(0)
}

/// Closes ports of a domain that is dying, whose stand-in is `current`, from this one on; where to go on.
pub(crate) fn close_from<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    from: Port,
) -> Option<Port> {
    close::close_from(machine, current, from)
}

/// The page is in the array: from here on only events are raised.
fn raised(all: bool, args: &Args) -> Answer {
    let [_, rest @ ..] = *args;
    let [a, b, c, d] = rest;
    if all { Ok(0) } else { Err(Stop::Restart([fifo::CONTINUE.into(), a, b, c, d])) }
}

fn finished(closed: Closed, args: &Args) -> Answer {
    match closed {
        Closed::Done => Ok(0),
        Closed::Again => Err(Stop::Restart(*args)),
    }
}

/// Nobody is privileged over others: a domain named must be the caller itself.
fn own<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, dom: DomId) -> Result<(), Errno> {
    let domain = any_domain(machine, current, dom).ok_or(Errno::Esrch)?;
    if domain.id == current.domain.id { Ok(()) } else { Err(Errno::Eperm) }
}

/// Describes a port. Fields without a meaning for its kind are returned as they came.
fn status<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, arg: &Status) -> Result<Status, Errno> {
    let domain = any_domain(machine, current, arg.dom).ok_or(Errno::Esrch)?;
    let word = port::find(domain, arg.port)?;
    if !crate::seeded!("status-of-another") {
        own(machine, current, arg.dom)?;
    }
    // A domain is the low half of its word.
    let named = |dom: DomId| (arg.peer & 0xFFFF_0000) | u32::from(dom.0);
    let (status, peer, peer_port) = match word.kind {
        PortKind::Free => (PortStatus::Closed, arg.peer, arg.peer_port),
        PortKind::Unbound(dom) => (PortStatus::Unbound, named(dom), arg.peer_port),
        PortKind::Interdomain(dom, port) => (PortStatus::Interdomain, named(dom), port),
        PortKind::Virq(virq) => (PortStatus::Virq, u32::from(virq), arg.peer_port),
        PortKind::Ipi => (PortStatus::Ipi, arg.peer, arg.peer_port),
    };
    Ok(Status { status: status.number(), vcpu: u32::from(word.vcpu), peer, peer_port, ..*arg })
}
