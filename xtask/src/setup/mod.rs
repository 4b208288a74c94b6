//! `cargo xtask setup`: the Rust target and QEMU. Every command that needs one of them asks here first.
//!
//! Invariants:
//! 1. What is there is used: a second run downloads nothing.
//! 2. Each installation is announced by one line before it starts.
//! 3. Nothing outside the project's target folder changes, except through rustup and, as root, through apt.

mod apt;
mod board_tree;
mod debian_rust;
mod linux;
mod qemu;
mod target;
mod xen;

pub(crate) use board_tree::board_tree;
pub(crate) use linux::linux;
pub(crate) use qemu::{Qemu, qemu};
pub(crate) use target::{Toolchain, toolchain};
pub(crate) use xen::{Xen, xen};

use crate::failure::Outcome;

/// Sets everything up and says what is used.
pub(crate) fn command() -> Outcome<()> {
    let toolchain = toolchain()?;
    println!("Rust target  {toolchain}");
    let qemu = qemu()?;
    println!("QEMU         {qemu}");
    Ok(())
}

/// Says what is about to be installed.
fn announce(what: &str) {
    eprintln!("setup: {what}");
}
