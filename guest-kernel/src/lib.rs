//! What the author of a guest needs, so that a guest is a screenful of safe Rust: boot, page tables, exceptions, heap, console,
//! events, grants, shared rings, time, power, and further vCPUs.
//!
//! ```ignore
//! #![no_std]
//! #![no_main]
//! use guest_kernel::{Guest, println};
//! guest_kernel::main!(main);
//! fn main(guest: &Guest) {
//!     println!("Hello with {} KiB.", guest.tree.memory_size() / 1024);
//! }
//! ```
//!
//! Built for `aarch64-unknown-none-softfloat` and flattened (`llvm-objcopy -O binary`), that is a kernel image for Pavo and for Xen. A
//! guest in a crate of its own links with this crate's script; its `build.rs` says
//!
//! ```ignore
//! let script = std::env::var("DEP_GUEST_KERNEL_LINKER_SCRIPT").unwrap();
//! println!("cargo::rustc-link-arg-bins=-T{script}");
//! println!("cargo::rustc-link-arg-bins=-zmax-page-size=4096");
//! ```
//!
//! Everything here also runs on real Xen for ARM64: the calls are Xen's. The parts that need no hardware are compiled and
//! tested on the host; the rest is compiled for the bare-metal target only.
#![cfg_attr(not(test), no_std)]
// Addresses are 64 bits wide in the interface and on the one target.
#![cfg_attr(
    target_os = "none",
    allow(clippy::cast_possible_truncation, reason = "usize has 64 bits, asserted below")
)]

extern crate alloc;

#[cfg(target_os = "none")]
const _: () = assert!(usize::BITS == 64);

pub mod bootargs;
pub mod entry;
pub mod frame;
pub mod record;
pub mod ring;
pub mod shared_info;
pub mod stream;
mod text;
pub mod tree;

#[cfg(target_os = "none")]
pub mod attempt;
#[cfg(target_os = "none")]
mod boot;
#[cfg(target_os = "none")]
pub mod console;
#[cfg(target_os = "none")]
pub mod control;
#[cfg(target_os = "none")]
pub mod cpu;
#[cfg(target_os = "none")]
pub mod device;
#[cfg(target_os = "none")]
pub mod event;
#[cfg(target_os = "none")]
pub mod exception;
#[cfg(target_os = "none")]
pub mod fifo;
#[cfg(target_os = "none")]
mod gic;
#[cfg(target_os = "none")]
mod gicv2;
#[cfg(target_os = "none")]
mod gicv3;
#[cfg(target_os = "none")]
pub mod grant;
#[cfg(target_os = "none")]
pub mod heap;
#[cfg(target_os = "none")]
pub mod hypercall;
#[cfg(target_os = "none")]
pub mod interrupt;
#[cfg(target_os = "none")]
pub mod keyboard;
#[cfg(target_os = "none")]
pub mod lock;
#[cfg(target_os = "none")]
pub mod measure;
#[cfg(target_os = "none")]
pub mod mmio;
#[cfg(target_os = "none")]
pub mod paging;
#[cfg(target_os = "none")]
pub mod power;
#[cfg(target_os = "none")]
pub mod process;
#[cfg(target_os = "none")]
pub mod psci;
#[cfg(target_os = "none")]
pub mod pv;
#[cfg(target_os = "none")]
pub mod smp;
#[cfg(target_os = "none")]
pub mod space;
#[cfg(target_os = "none")]
pub mod time;
#[cfg(target_os = "none")]
pub mod timer;
#[cfg(target_os = "none")]
pub mod vmap;

#[cfg(target_os = "none")]
pub use boot::{Guest, Outcome};
pub use text::{Rate, hex};
