//! Pavo: portable library.
#![cfg_attr(not(any(test, feature = "fake")), no_std)]
#![forbid(unsafe_code)]
#![allow(clippy::inline_always, reason = "on the path of every hypercall: a call more would be seen in the numbers")]
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
pub mod frame;
pub mod frame_alloc;
pub mod stage2;
pub mod memory;
pub mod domain_build;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
pub mod selfcheck;
pub mod multicall;
pub mod privileged;
pub mod psci;
pub mod runstate;
pub mod sched_op;
pub mod vcpu_op;
pub mod version;
pub mod watchdog;
pub mod vpl011;
