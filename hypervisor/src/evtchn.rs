//! Event channels, 2-level ABI: ports, who they connect, and how an event reaches a vCPU.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

mod port;
pub use port::{PortKind, PortWord};

/// What changes under the domain's lock beside the port words themselves.
#[derive(Debug, Default)]
pub struct PortsState {
    /// Every port below is in use: where the search for a free one starts.
    lowest_free: u32,
}

impl PortsState {
    /// All ports free, except port 0, which is nobody's.
    pub const fn new() -> Self {
        Self { lowest_free: 1 }
    }
}
