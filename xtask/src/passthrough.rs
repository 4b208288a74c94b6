//! Devices of the machine for one domain: the partial device tree that the guest gets, from the machine's own.
//!
//! Source: Xen `docs/misc/arm/passthrough.txt`, "Dom0-less Device Passthrough".

use crate::failure::{Failure, Outcome};
use crate::fdt::{self, Node};
use crate::system::Domain;

/// Where guests see their devices: a hole in the guest's map (Xen `public/arch-arm.h`).
const FIRST: u64 = 0x0a00_0000;
const STEP: u64 = 0x1_0000;
const PAGE: u64 = 0x1000;
/// How the partial tree names the controller that the hypervisor puts there, and a clock for drivers that ask for one.
const GIC: u32 = 1;
const CLOCK: u32 = 2;
/// Properties that mean something on the machine only.
const DROPPED: [&str; 11] = [
    "reg",
    "phandle",
    "linux,phandle",
    "clocks",
    "pinctrl-0",
    "pinctrl-names",
    "interrupt-parent",
    "status",
    "dmas",
    "dma-names",
    "power-domains",
];

/// The partial tree of a domain; `place` names the key in messages.
pub(crate) fn partial(base: &Node, domain: &Domain, place: &str) -> Outcome<Vec<u8>> {
    let mut root = Node::new("");
    root.set_cells("#address-cells", &[2]).set_cells("#size-cells", &[2]);
    let gic = root.child("gic");
    gic.set_cells("#interrupt-cells", &[3]).set("interrupt-controller", []).set_cells("phandle", &[GIC]);
    let bus = root.child("passthrough");
    bus.set_strings("compatible", &["simple-bus"]).set("ranges", []);
    bus.set_cells("#address-cells", &[2]).set_cells("#size-cells", &[2]);
    for (path, start) in domain.passthrough.iter().zip((FIRST..).step_by(65_536)) {
        let refuse = |why: &str| Failure::usage(format!("{place}: {path}: {why}"));
        let host = base.at_path(path).ok_or_else(|| refuse("the machine has no such node"))?;
        let registers = fdt::registers(base, path).filter(|registers| !registers.is_empty());
        let registers =
            registers.ok_or_else(|| refuse("the node has no registers that the CPU can reach"))?;
        let name = host.name.split('@').next().unwrap_or_default();
        let node = bus.child(&format!("{name}@{start:x}"));
        node.set_cells("interrupt-parent", &[GIC]);
        for (name, bytes) in host.properties().filter(|(name, _)| !DROPPED.contains(name)) {
            node.set(name, bytes);
        }
        let (mut own, mut assigned, mut guest) = (Vec::new(), Vec::new(), start);
        for (address, size) in registers {
            let page = address / PAGE * PAGE;
            let pages = (address + size).next_multiple_of(PAGE) - page;
            own.extend([guest + address % PAGE, size]);
            assigned.extend([page, pages, guest]);
            guest += pages;
        }
        if guest - start > STEP {
            return Err(refuse("more than 64 KiB of registers"));
        }
        node.set_u64s("reg", &own).set_u64s("xen,reg", &assigned).set_strings("xen,path", &[path]);
        if host.get("clocks").is_some() {
            let names = host.get("clock-names").map_or(1, |names| names.split(|byte| *byte == 0).count() - 1);
            node.set_cells("clocks", &vec![CLOCK; names.max(1)]);
        }
        if domain.unsafe_dma {
            node.set("xen,force-assign-without-iommu", []);
        }
    }
    let clock = bus.child("clock");
    clock.set_strings("compatible", &["fixed-clock"]).set_cells("#clock-cells", &[0]);
    clock.set_cells("clock-frequency", &[48_000_000]).set_cells("phandle", &[CLOCK]);
    fdt::write(&root)
}
