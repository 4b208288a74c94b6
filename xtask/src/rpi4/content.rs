//! The files of the SD card's first partition, apart from the firmware's own.

use std::collections::BTreeMap;

use super::early::Stub;
use super::overlay::Overlay;
use super::{config_txt, early, overlay};
use crate::dom0less::{self, Modules};
use crate::failure::{Doing, Failure, Outcome};
use crate::fdt::{self, Node};
use crate::setup;
use crate::system::System;

/// The hypervisor.
pub(crate) const KERNEL: &str = "kernel8.img";
/// What the firmware is told.
const CONFIG: &str = "config.txt";
/// The board's device tree, by the name under which the firmware looks for it.
pub(crate) const TREE: &str = "bcm2711-rpi-4-b.dtb";
/// Where the guests' file goes, physical: above the kernel and what the firmware puts near it, in the first GiB, which every board has.
pub(crate) const GUESTS: u64 = 0x1000_0000;
/// Where it must end: the firmware puts the device tree and its own memory above.
pub(crate) const GUESTS_END: u64 = 0x2c00_0000;
/// The console, as a path that the board's trees of all origins know.
const STDOUT: &str = "/soc/serial@7e215040:115200n8";

/// Files by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) files: BTreeMap<String, Vec<u8>>,
}

impl Content {
    /// Packs a system: the image, the modules (each with its physical address) and the nodes that name them.
    pub(crate) fn pack(
        system: &System,
        image: Vec<u8>,
        packed: &[(u64, Vec<u8>)],
        modules: &[Modules],
    ) -> Outcome<Self> {
        let mut guests = Vec::new();
        for (address, bytes) in packed {
            let start = address.checked_sub(GUESTS).and_then(|start| usize::try_from(start).ok());
            let start = start.filter(|start| *start >= guests.len());
            guests.resize(start.ok_or_else(|| Failure::failed("a module lies outside guests.bin"))?, 0);
            guests.extend_from_slice(bytes);
        }
        let files = [
            (KERNEL, image),
            (CONFIG, config_txt::write(GUESTS, None).into_bytes()),
            ("guests.bin", guests),
            ("overlays/pavo.dtbo", fdt::write(&domains(system, modules))?),
        ];
        Ok(Self { files: files.map(|(name, bytes)| (name.to_owned(), bytes)).into() })
    }

    /// Puts a file in the place of the firmware's stub. The tree is added after that.
    pub(crate) fn set_stub(&mut self, name: &str, bytes: Vec<u8>) {
        self.files.insert(CONFIG.to_owned(), config_txt::write(GUESTS, Some(name)).into_bytes());
        self.files.insert(name.to_owned(), bytes);
    }

    /// Adds the board's device tree, which is free software beside the firmware's own files, and names its console in the image.
    pub(crate) fn add_tree(&mut self) -> Outcome<()> {
        let bytes = setup::board_tree()?;
        let mut tree = fdt::parse(&bytes)?;
        overlay::apply(&mut tree, fdt::parse(self.file("overlays/pavo.dtbo")?)?)?;
        let config = config_txt::read(std::str::from_utf8(self.file(CONFIG)?).doing(CONFIG)?)?;
        let stub = if config.stub.is_none() { Stub::Stock } else { Stub::Own };
        if let Some(image) = self.files.get_mut(KERNEL) {
            early::name(image, &tree, stub)?;
        }
        self.files.insert(TREE.to_owned(), bytes);
        Ok(())
    }

    /// A file's bytes.
    pub(crate) fn file(&self, name: &str) -> Outcome<&[u8]> {
        let bytes = self.files.get(name).map(|bytes| &bytes[..]);
        bytes.ok_or_else(|| Failure::failed(format!("the card has no {name}")))
    }
}

/// The overlay with the domains. CPUs beyond those that the system wants are switched off.
fn domains(system: &System, modules: &[Modules]) -> Node {
    let mut tree = Node::new("");
    dom0less::add_domains(&mut tree, system, modules);
    let mut overlay = Overlay::default();
    let stdout = system.machine.console.as_deref().unwrap_or(STDOUT);
    overlay.at("/chosen").set_strings("stdout-path", &[stdout]).merge(tree.child("chosen"));
    for cpu in system.machine.cpus..super::CPUS {
        overlay.at(&format!("/cpus/cpu@{cpu}")).set_strings("status", &["disabled"]);
    }
    for path in system.domains.iter().flat_map(|domain| &domain.passthrough) {
        overlay.at(path).set("xen,passthrough", []);
    }
    overlay.tree(&[("xen,evtchn", 4)])
}
