//! Device trees: the machine's is read, the guests' are written.
//!
//! - [`Tree`] and [`Walk`]: a flattened tree in memory, walked without panics whatever its bytes are.
//! - [`HostMachine`]: what the hypervisor needs to know of the board it runs on.
//! - [`Domains`]: the guests that "dom0less" nodes under `/chosen` ask for, one [`DomainConfig`] or
//!   [`DomainRefusal`] each.
//! - [`guest_tree`] and [`FdtWriter`]: the tree a guest starts with.
//!
//! Invariants
//! 1. Trees are read only through the fallible interface of the `fdt` crate, after [`Tree::new`] has checked the header:
//!    a damaged tree gives a [`TreeError`] or less information, never a panic and never a read outside its slice.
//! 2. Nothing here allocates or recurses; every loop is bounded by the size of the tree.
//! 3. Only a board's boot loader writes the host tree: it is trusted to mean well, not to be intact.
//! 4. The writer never writes past its buffer, and what it finishes is a well-formed tree.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

mod cells;
mod channel;
mod dom0less;
mod error;
#[cfg(test)]
mod fixtures;
mod gic;
mod guest;
mod machine;
mod node;
mod passthrough;
mod range;
mod refusal;
mod tree;
mod uart;
mod writer;

pub use channel::{MAX_CHANNELS, StaticChannel};
pub use dom0less::{DomainConfig, Domains, Enhanced, MAX_VCPUS, Paging, Quotas, has_dom0_modules};
pub use error::TreeError;
pub use gic::{HostGic, TimerPpis};
pub use guest::{GuestGic, GuestTreeInput, guest_tree};
pub use machine::{CpuStart, HostCpu, HostMachine, MAX_CPUS, PsciConduit, find_device};
pub use node::Node;
pub use passthrough::{Assigned, AssignedInterrupt, AssignedRange, NotAssigned};
pub use range::{PhysRange, RangeSet};
pub use refusal::{DomainRefusal, Refusal};
pub use tree::{Path, Tree, Walk};
pub use uart::HostUart;
pub use writer::{FdtWriter, NoSpace};
