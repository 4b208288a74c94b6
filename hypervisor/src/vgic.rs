//! The virtual GIC: interrupt state of one domain, list registers included, as a pure state machine.
//!
//! What owns what:
//! - [`VcpuGic`], one a vCPU, belongs to the CPU that the vCPU is assigned to and needs no lock: the pending latches
//!   and lines of SGIs and PPIs, and what each list register holds.
//! - [`DistState`], one a domain, under the domain's lock: the distributor, all SPI state, and what guests asked of
//!   private interrupts through the redistributor frames.
//! - [`VcpuShared`], one a vCPU, atomics: private configuration (written under the domain's lock, read without), and
//!   the word through which other CPUs raise interrupts and ask for [`VcpuGic::service`].
//!
//! How an interrupt travels: [`VcpuGic::raise`] (own CPU) or [`VcpuShared::raise_remote`] (any CPU) latches it; the
//! first writes a list register at once in the common case, without the lock. All else (more interrupts than list
//! registers, SPIs, MMIO writes, lines, maintenance interrupts) is one procedure, [`VcpuGic::service`], which runs
//! on the owner's CPU under the domain's lock: fold the list registers back, apply requests, place the best again.
//!
//! What the image does with it:
//! - it implements [`ListRegisters`], enables the virtual interface, and takes its physical interrupts with split
//!   priority drop and deactivation;
//! - a trapped `ICC_SGI1R_EL1` goes through [`decode_sgi1r`]: `raise` for the sender, `raise_remote` and a kick for others;
//!   a write to `GICD_SGIR` through [`decode_sgir`] in the same way, after [`VcpuShared::note_sender`] of each target;
//! - before each return to the guest, [`VcpuGic::take_remote`] (one load when there is nothing);
//! - after each [`Serviced`]: request its [`Maintenance`] interrupt, deactivate what it lists, kick whom it names;
//! - around a switch: [`VcpuGic::save`] and [`VcpuGic::restore`], and the physical active state of what
//!   they name;
//! - before a vCPU sleeps: [`VcpuGic::has_deliverable`].
//!
//! Invariants (tests cite them):
//! 1. An INTID is in at most one list register of the whole domain.
//! 2. A pending interrupt is in exactly one place: a latch (or its line), or a list register. None is lost, and none
//!    is made up.
//! 3. A list register is given only to an interrupt that is enabled while the distributor forwards.
//! 4. An unassigned list register is inactive.
//! 5. After `service`, no interrupt waits that comes before one that is pending in a list register.
//! 6. Nothing here depends on the encoding of list registers: that is [`Layout`]'s.
//!
//! With list registers of a `GICv2` ([`Layout::V2`]) SGIs are pending once for each sender: `senders.rs` has the rules.
//!
//! Deliberate differences from Xen, whose register contents we follow: pending and active state reads back, ISACTIVER
//! writes work, and a bad offset or width reads as zero and is ignored ([`Handling::Unhandled`]) where Xen injects an
//! abort; `GICD_CTLR` gates delivery; SGIs read as edge-triggered. Active interrupts are never taken out of list registers: a guest that leaves
//! as many interrupts active as there are list registers waits for itself.
//!
//! It never touches a register, a device or guest memory.
#![cfg_attr(
    not(test),
    deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::as_conversions)
)]

mod bank;
mod dist;
mod dist_mmio;
mod dist_v2;
mod ids;
mod lr;
mod mmio;
mod place;
mod redist_mmio;
mod senders;
mod service;
mod sgi;
mod shared;
mod vcpu;

#[cfg(test)]
mod tests;

pub use dist::{DistState, Line};
pub use ids::{Intid, MAX_SPIS, MAX_VCPUS, PrivateIntid, Spi, SpiBits, VcpuMask, VcpuNumber};
pub use lr::{Backing, Group, Layout, ListRegister, ListRegisters, LrState, MAX_LRS, ParkedLrs};
pub use mmio::{Access, AccessSize, Frame, Handling, MmioRead, MmioWrite};
pub use service::{Maintenance, Serviced};
pub use sgi::{Sgi, decode_sgi1r, decode_sgir};
pub use shared::{VcpuShared, Vcpus};
pub use vcpu::{Raised, VcpuGic};
