//! Self-check of channels, for tests and the debug console. No operation may be under way.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use pv_abi::{DomId, Port};

use super::port::{self, PortKind};
use crate::domain::DomainState;
use crate::hardware::Hardware;
use crate::machine::Machine;

/// A port whose peer does not name it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OneSided(pub DomId, pub Port);

/// Checks that every interdomain port is its peer's peer, that every port notifies a vCPU there is, and that so many are in use as are
/// counted, where nobody holds the domain's lock.
///
/// # Errors
/// The first port that does not; port 0 for the count.
pub fn check_channels<H: Hardware>(machine: &Machine<H>) -> Result<(), OneSided> {
    for domain in machine.domains {
        let miscounted = |state: &DomainState| state.ports.open() != port::in_use(domain);
        if domain.state.try_lock().is_some_and(|state| miscounted(&state)) {
            return Err(OneSided(domain.id, Port(0)));
        }
        for port in (0_u32..).map(Port).take(domain.ports.len()) {
            let word = port::load(domain, port);
            let agrees = match word.kind {
                port::CONSOLE | PortKind::Free | PortKind::Unbound(_) | PortKind::Virq(_) | PortKind::Ipi => {
                    true
                }
                PortKind::Interdomain(dom, remote) => machine.domain(dom).is_some_and(|peer| {
                    port::load(peer, remote).kind == PortKind::Interdomain(domain.id, port)
                }),
            };
            if !agrees || usize::from(word.vcpu) >= domain.vcpus.len() {
                return Err(OneSided(domain.id, port));
            }
        }
    }
    Ok(())
}
