//! Closing ports.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use pv_abi::{Errno, Port};

use super::deliver;
use super::fifo;
use super::port::{self, PortKind, PortWord};
use crate::domain::{Domain, lock_two};
use crate::hardware::Hardware;
use crate::machine::{Current, Machine};

/// Active ports that one run of `reset` closes before it lets interrupts in, beside looking at [`LOOKS`] of them.
const BUDGET: u32 = 8;
const LOOKS: u32 = 1024;

/// What came of closing a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Closed {
    /// It is free now.
    Done,
    /// Its peer changed it meanwhile: to be tried again.
    Again,
}

/// Closes a port of the caller's; the other end, if there is one, waits for the caller again.
pub(super) fn close<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    port: Port,
) -> Result<Closed, Errno> {
    let domain = current.domain;
    let seen = port::find(domain, port)?;
    let peer = match seen.kind {
        PortKind::Interdomain(dom, _) => machine.domain(dom),
        PortKind::Free | PortKind::Unbound(_) | PortKind::Virq(_) | PortKind::Ipi => None,
    };
    let (mut state, peer_state) = lock_two(domain, peer.unwrap_or(domain));
    // Both locks were chosen by a look without them.
    match (port::load(domain, port).kind, peer) {
        (PortKind::Free, _) => return Err(Errno::Einval),
        (PortKind::Unbound(_) | PortKind::Virq(_) | PortKind::Ipi, _) => {}
        (PortKind::Interdomain(dom, remote_port), Some(peer)) if peer.id == dom => {
            disconnect(domain, port, peer, remote_port);
        }
        // The configuration connected it to a domain that could not be built.
        (PortKind::Interdomain(dom, _), _)
            if machine.domain(dom).is_none() || crate::seeded!("close-while-bound") => {}
        (PortKind::Interdomain(..), _) => return Ok(Closed::Again),
    }
    // Before anybody can make the port anew and get an event that is meant.
    if !crate::seeded!("close-pending") {
        deliver::clear_pending(machine, current, domain, port);
    }
    state.ports.vacate(domain, port);
    drop(peer_state);
    Ok(Closed::Done)
}

/// Makes the other end of a channel wait for this domain again. Both domains' locks are held.
fn disconnect(domain: &Domain, port: Port, peer: &Domain, peer_port: Port) {
    let other = port::load(peer, peer_port);
    if other.kind == PortKind::Interdomain(domain.id, port) && !crate::seeded!("close-one-end") {
        port::store(peer, peer_port, PortWord { kind: PortKind::Unbound(domain.id), vcpu: other.vcpu });
    }
}

/// Closes all ports of the caller's, and goes back to two levels. How far it came is kept with the ports, so that no run looks at what an earlier one
/// has closed.
///
/// # Errors
/// `-EBUSY` for one that begins while another is under way, or goes on with none; `-EAGAIN` when there are ports that it had passed before
/// they were made, and so queues stay.
pub(super) fn reset<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    goes_on: bool,
) -> Result<Closed, Errno> {
    let domain = current.domain;
    let from = domain.state.lock().ports.reset(goes_on)?;
    let next = close_from(machine, current, from);
    let mut state = domain.state.lock();
    let next = next.filter(|_| state.ports.open() != 0);
    state.ports.set_resetting(next);
    match next {
        Some(_) => Ok(Closed::Again),
        None if state.ports.open() != 0 => Err(Errno::Eagain),
        None => {
            fifo::leave(machine, domain);
            Ok(Closed::Done)
        }
    }
}

/// Closes ports of the domain, from this one on; where to go on, unless there is nothing left to look at.
pub(super) fn close_from<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    from: Port,
) -> Option<Port> {
    let mut budget = machine.hw.budget(BUDGET);
    let end = u32::try_from(current.domain.ports.len()).unwrap_or(u32::MAX);
    let pause = from.0.saturating_add(LOOKS);
    for port in (from.0..end.min(pause)).map(Port) {
        if port::load(current.domain, port).kind == PortKind::Free {
            continue;
        }
        // It is free by now where it cannot be closed.
        if budget == 0 || close(machine, current, port) == Ok(Closed::Again) {
            return Some(port);
        }
        budget = budget.wrapping_sub(1);
    }
    (pause < end).then_some(Port(pause))
}
