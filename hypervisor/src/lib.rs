//! Pavo: portable library.
#![cfg_attr(not(any(test, feature = "fake")), no_std)]
#![forbid(unsafe_code)]
#![allow(
    clippy::inline_always,
    reason = "on the path of every hypercall: a call more would be seen in the numbers"
)]
pub mod addr;
pub mod console;
pub mod devicetree;
pub mod domain;
pub mod domain_build;
pub mod evtchn;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
pub mod frame;
pub mod frame_alloc;
pub mod grant;
pub mod guest_memory;
pub mod hardware;
pub mod hvm;
pub mod hypercall;
pub mod life;
pub mod lock;
pub mod log;
pub mod machine;
pub mod memory;
pub mod multicall;
pub mod pagetable;
pub mod pause;
pub mod privileged;
pub mod psci;
pub mod runstate;
pub mod sched;
pub mod sched_op;
pub mod seeded;
pub mod selfcheck;
pub mod stage2;
pub mod stretch;
pub mod tlb;
pub mod vcpu;
pub mod vcpu_op;
pub mod version;
pub mod vgic;
pub mod vmid;
pub mod vpl011;
pub mod wallclock;
pub mod watchdog;
