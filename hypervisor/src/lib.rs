//! Pavo: portable library.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
pub mod devicetree;
pub mod addr;
pub mod domain;
pub mod hardware;
pub mod log;
pub mod machine;
pub mod sched;
pub mod vcpu;
pub mod vgic;
pub mod console;
pub mod evtchn;
pub mod grant;
pub mod guest_memory;
pub mod hvm;
pub mod hypercall;
