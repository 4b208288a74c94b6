//! What the author of a guest needs, so that a guest is a screenful of safe Rust: boot, page tables, exceptions, heap, console, keyboard,
//! events, grants, shared rings, time, power, further vCPUs, and processes at EL0 with address spaces of their own.
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
//! # A guest in a crate of its own
//!
//! That is its `src/main.rs`. Beside it `Cargo.toml`, with the path of your copy of Pavo:
//!
//! ```toml
//! [package]
//! name = "mine"
//! version = "0.1.0"
//! edition = "2024"
//!
//! [dependencies]
//! guest-kernel = { path = "../pavo/guest-kernel" }
//! pv-abi = { path = "../pavo/pv-abi" } # Errno, DomId, Port and the like
//!
//! [[bin]]
//! name = "mine"
//! test = false
//!
//! [profile.release]
//! panic = "abort"
//! lto = "fat"
//! ```
//!
//! `build.rs`, which links it with this crate's script:
//!
//! ```ignore
//! fn main() {
//!     let script = std::env::var("DEP_GUEST_KERNEL_LINKER_SCRIPT").unwrap();
//!     println!("cargo::rustc-link-arg-bins=-T{script}");
//!     println!("cargo::rustc-link-arg-bins=-zmax-page-size=4096");
//! }
//! ```
//!
//! and `.cargo/config.toml`, so that the log of a crash tells who called whom:
//!
//! ```toml
//! [target.aarch64-unknown-none-softfloat]
//! rustflags = ["-Cforce-frame-pointers=yes"]
//! ```
//!
//! Then (`rustup target add aarch64-unknown-none-softfloat` once; `llvm-objcopy` is LLVM's, and GNU's for this architecture does as well)
//!
//! ```text
//! cargo build --release --target aarch64-unknown-none-softfloat
//! llvm-objcopy -O binary target/aarch64-unknown-none-softfloat/release/mine mine.img
//! ```
//!
//! and `kernel = "mine.img"` in a system file beside it boots it.
//!
//! # On Xen
//!
//! The calls are Xen's for ARM64, so such an image runs on real Xen too. What Xen does not have there: checked page tables (`pv`, and
//! `space` with them; without, it manages the guest's own tables anywhere), and of `control` the hypervisor's counters,
//! building a domain and the self-check.
//!
//! The parts that need no hardware are compiled and tested on the host; the rest is compiled for the bare-metal target only.
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
