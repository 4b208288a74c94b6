//! Devices the EL2 image drives: consoles, interrupt controllers, power, the firmware's mailbox. What board it is comes from the
//! device tree; nothing here knows an address.
#![cfg_attr(not(test), no_std)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

#[cfg(target_os = "none")]
pub mod gicv2;
#[cfg(target_os = "none")]
pub mod gicv3;
pub mod mailbox;
#[cfg(target_os = "none")]
pub mod mini_uart;
pub mod passthrough;
#[cfg(target_os = "none")]
pub mod power;
#[cfg(any(test, target_os = "none"))]
mod redistributors;
#[cfg(target_os = "none")]
pub mod uart;
