//! The Raspberry Pi 4: what goes on its SD card, and QEMU's `raspi4b` in the place of board and firmware.

mod command;
mod config_txt;
mod content;
mod disk;
mod early;
mod firmware;
mod overlay;
#[cfg(test)]
mod pages;

use std::collections::BTreeMap;

use crate::failure::Outcome;

/// The board has four CPUs.
pub(crate) const CPUS: u32 = 4;
/// QEMU's board has 2 GiB.
pub(crate) const MEMORY: u64 = 2 << 30;

pub(crate) use command::{Options, command};
pub(crate) use content::{Content, GUESTS, GUESTS_END, KERNEL};
pub(crate) use firmware::{boot, handed_over};

/// The files of an image of a card.
pub(crate) fn read_card(image: Vec<u8>) -> Outcome<BTreeMap<String, Vec<u8>>> {
    disk::read(image).map(|content| content.files)
}
