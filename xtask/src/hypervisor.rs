//! What is booted under QEMU in the hypervisor's place: Pavo, a changed image of it, or Xen to compare with.

use std::path::PathBuf;

use crate::build::Variant;
use crate::console::Decoder;
use crate::failure::Outcome;
use crate::setup::{self, Xen};
use crate::system::System;
use crate::{build, workspace};

/// What Xen's own command line must say: its console is the board's, it shows what guests print, and domains may signal
/// and grant to each other, as under Pavo. Source: Xen `docs/misc/xen-command-line.pandoc`.
const XEN_BOOTARGS: &str = "console=dtuart guest_loglvl=all loglvl=info xsm=dummy bootscrub=0 noreboot";

/// Which hypervisor, on the command line.
#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum On {
    /// This workspace's.
    Pavo,
    /// Debian's Xen 4.20.
    Xen,
}

/// Which of them to measure.
#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Measured {
    /// This workspace's, beside what is known of Xen.
    Pavo,
    /// Debian's Xen 4.20.
    Xen,
    /// One after the other.
    Both,
}

/// An image that takes its guests from a dom0less device tree.
#[derive(Debug, Clone)]
pub(crate) struct Hypervisor {
    /// An arm64 image.
    pub(crate) image: PathBuf,
    /// `xen,xen-bootargs` under `/chosen`.
    pub(crate) bootargs: Option<&'static str>,
    /// The file with the strings of its log.
    strings: Option<PathBuf>,
}

impl Hypervisor {
    /// The image that `build` makes.
    pub(crate) fn pavo() -> Self {
        Self::changed(workspace::pavo_img())
    }

    /// What a system needs: that image, or the one with self-check, which is built then.
    pub(crate) fn of(system: &System) -> Outcome<Self> {
        if !system.machine.self_check {
            return Ok(Self::pavo());
        }
        Self::variant(Variant::SelfCheck)
    }

    /// An image for tests, which is built now.
    pub(crate) fn variant(variant: Variant) -> Outcome<Self> {
        let elf = build::variant(&setup::toolchain()?, variant)?;
        Ok(Self { image: elf.with_extension("img"), bootargs: None, strings: Some(elf) })
    }

    /// A changed copy of that image.
    pub(crate) fn changed(image: PathBuf) -> Self {
        Self { image, bootargs: None, strings: Some(workspace::pavo_elf()) }
    }

    /// Xen.
    pub(crate) fn xen(xen: &Xen) -> Self {
        Self { image: xen.image.clone(), bootargs: Some(XEN_BOOTARGS), strings: None }
    }

    /// Which it is: Xen's log has no strings of ours.
    pub(crate) fn on(&self) -> On {
        if self.strings.is_some() { On::Pavo } else { On::Xen }
    }

    /// A decoder for its console.
    pub(crate) fn decoder(&self) -> Outcome<Decoder> {
        match &self.strings {
            Some(elf) => Decoder::new(&workspace::read(elf)?),
            None => Decoder::plain(),
        }
    }
}
