//! Closing ports.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use pv_abi::{Errno, Port};

use super::deliver;
use super::fifo;
use super::port::{self, PortKind, PortWord};
use crate::domain::{Domain, lock_two};
use crate::hardware::Hardware;
use crate::machine::{Current, Machine};

/// Active ports that one run of `reset` closes before it lets interrupts in, beside looking at 4096 of them, 15,000 instructions.
const RESET_BUDGET: u32 = 8;

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

/// Closes all ports of the caller's, and goes back to two levels; [`Closed::Again`] when the budget was used up first.
pub(super) fn reset<H: Hardware>(machine: &Machine<H>, current: &Current<'_>) -> Result<Closed, Errno> {
    let mut budget = machine.hw.budget(RESET_BUDGET);
    // Bounded by the domain's ports; closed ones are passed at a load each.
    for port in (1_u32..).map(Port).take(current.domain.ports.len()) {
        if port::load(current.domain, port).kind == PortKind::Free {
            continue;
        }
        if budget == 0 || close(machine, current, port)? == Closed::Again {
            return Ok(Closed::Again);
        }
        budget = budget.wrapping_sub(1);
    }
    // Another vCPU may have made one meanwhile.
    Ok(if fifo::leave(machine, current.domain) { Closed::Done } else { Closed::Again })
}
