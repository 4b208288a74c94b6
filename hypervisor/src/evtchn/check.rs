//! Self-check of channels, for tests and the debug console. No operation may be under way.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use pv_abi::{DomId, Port};

use super::port::{self, PortKind};
use crate::hardware::Hardware;
use crate::machine::Machine;

/// A port whose peer does not name it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OneSided(pub DomId, pub Port);

/// Checks that every interdomain port is its peer's peer, and that every port notifies a vCPU there is.
///
/// # Errors
/// The first port that does not.
pub fn check_channels<H: Hardware>(machine: &Machine<H>) -> Result<(), OneSided> {
    for domain in machine.domains {
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
