//! What a guest needs from its device tree: memory, ramdisk, command line, interrupt controller, console, grant table.
//!
//! Bindings: Devicetree Specification 0.4; Linux `Documentation/devicetree/bindings/arm/xen.txt` and
//! `.../interrupt-controller/arm,gic*.yaml`. A part that is absent or damaged is absent here; nothing panics.
use fdt::Fdt;
use fdt::helpers::UnalignedFallibleNode;
use heapless::Vec;

/// A range of guest physical addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Region {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub size: u64,
}

impl Region {
    /// First byte behind it.
    pub const fn end(self) -> u64 {
        self.start.saturating_add(self.size)
    }
}

/// Register frames of the interrupt controller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gic {
    /// Memory-mapped CPU interface.
    V2 {
        /// Distributor.
        distributor: Region,
        /// CPU interface.
        cpu: Region,
    },
    /// CPU interface in system registers.
    V3 {
        /// Distributor.
        distributor: Region,
        /// Redistributors, one behind the other.
        redistributors: Region,
    },
}

/// A device of the machine's own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Device<'a> {
    /// The first name of what it is compatible with.
    pub compatible: &'a str,
    /// Its registers.
    pub registers: Region,
    /// INTID of its first interrupt.
    pub interrupt: Option<u32>,
}

/// Most banks of RAM that are used.
pub const MAX_BANKS: usize = 4;

/// What the tree says.
#[derive(Clone, Debug, Default)]
pub struct Tree<'a> {
    /// RAM.
    pub memory: Vec<Region, MAX_BANKS>,
    /// The ramdisk, if there is one that is not empty.
    pub ramdisk: Option<Region>,
    /// The command line.
    pub bootargs: &'a str,
    /// The interrupt controller.
    pub gic: Option<Gic>,
    /// The emulated PL011.
    pub uart: Option<Region>,
    /// Where the grant table may be mapped, from the `hypervisor` node.
    pub grants: Option<Region>,
    /// vCPUs.
    pub cpus: u32,
    /// The first device below `/passthrough`.
    pub device: Option<Device<'a>>,
}

/// Why a blob is no device tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotATree;

/// Bytes of the tree whose first words are `header`; `None` if it is no tree.
pub fn size(header: [u32; 2]) -> Option<u32> {
    (u32::from_be(header[0]) == 0xd00d_feed).then(|| u32::from_be(header[1]))
}

impl<'a> Tree<'a> {
    /// Reads a flattened tree.
    ///
    /// # Errors
    /// [`NotATree`] if its header or root is damaged.
    pub fn parse(blob: &'a [u8]) -> Result<Self, NotATree> {
        let fdt = Fdt::new_unaligned_fallible(blob).map_err(|_| NotATree)?;
        let nodes = fdt.all_nodes().map_err(|_| NotATree)?;
        let mut tree = Self::default();
        let mut passthrough = false;
        // Every step consumes bytes of the blob.
        for step in nodes {
            let Ok((depth, node)) = step else { break };
            let Ok(name) = node.name() else { continue };
            if depth == 1 {
                passthrough = name.name == "passthrough";
            }
            match (depth, name.name) {
                (1, "memory") => tree.memory.extend(regions(&node).take(MAX_BANKS - tree.memory.len())),
                (1, "chosen") => tree.read_chosen(&node),
                (1, "hypervisor") => tree.grants = regions(&node).next(),
                (2, _) if passthrough => tree.device = tree.device.or_else(|| own_device(&node)),
                (2, "cpu") => tree.cpus = tree.cpus.saturating_add(1),
                _ => tree.read_device(&node),
            }
        }
        Ok(tree)
    }

    fn read_chosen(&mut self, node: &UnalignedFallibleNode<'a>) {
        self.bootargs = property(node, "bootargs").and_then(text).unwrap_or("");
        let start = property(node, "linux,initrd-start").and_then(number);
        let end = property(node, "linux,initrd-end").and_then(number);
        if let (Some(start), Some(end)) = (start, end)
            && let Some(size @ 1..) = end.checked_sub(start)
        {
            self.ramdisk = Some(Region { start, size });
        }
    }

    fn read_device(&mut self, node: &UnalignedFallibleNode<'a>) {
        let Some(compatible) = property(node, "compatible") else { return };
        let is = |names: &[&str]| {
            compatible.split(|byte| *byte == 0).any(|one| names.iter().any(|name| one == name.as_bytes()))
        };
        let mut frames = regions(node);
        if is(&["arm,gic-v3"]) {
            if let (Some(distributor), Some(redistributors)) = (frames.next(), frames.next()) {
                self.gic = Some(Gic::V3 { distributor, redistributors });
            }
        } else if is(&["arm,gic-400", "arm,cortex-a15-gic", "arm,cortex-a9-gic"]) {
            if let (Some(distributor), Some(cpu)) = (frames.next(), frames.next()) {
                self.gic = Some(Gic::V2 { distributor, cpu });
            }
        } else if is(&["arm,sbsa-uart", "arm,pl011"]) && self.uart.is_none() {
            self.uart = frames.next();
        }
    }

    /// Bytes of RAM.
    pub fn memory_size(&self) -> u64 {
        self.memory.iter().map(|bank| bank.size).fold(0, u64::saturating_add)
    }
}

/// A device that has registers; specifiers of interrupts have three cells, of which the first is 0 for a SPI.
fn own_device<'a>(node: &UnalignedFallibleNode<'a>) -> Option<Device<'a>> {
    let compatible = text(property(node, "compatible")?.split(|byte| *byte == 0).next()?)?;
    let cell = |index: usize| {
        let bytes = property(node, "interrupts")?.get(index * 4..index * 4 + 4)?;
        Some(u32::from_be_bytes(bytes.try_into().ok()?))
    };
    let interrupt = cell(0).filter(|class| *class == 0).and_then(|_| cell(1)?.checked_add(32));
    Some(Device { compatible, registers: regions(node).next()?, interrupt })
}

fn property<'a>(node: &UnalignedFallibleNode<'a>, name: &str) -> Option<&'a [u8]> {
    node.raw_property(name).ok().flatten().map(|property| property.value)
}

/// A string property without its end mark.
fn text(value: &[u8]) -> Option<&str> {
    core::str::from_utf8(value).ok().map(|text| text.trim_end_matches('\0'))
}

/// A number of one or two cells.
fn number(value: &[u8]) -> Option<u64> {
    match value {
        [_, _, _, _] | [_, _, _, _, _, _, _, _] => {
            Some(value.iter().fold(0, |sum, byte| (sum << 8) | u64::from(*byte)))
        }
        _ => None,
    }
}

/// The ranges of `reg`: guests' trees have two address and two size cells (`GUEST_ROOT_ADDRESS_CELLS`, `GUEST_ROOT_SIZE_CELLS`).
fn regions<'a>(node: &UnalignedFallibleNode<'a>) -> impl Iterator<Item = Region> + use<'a> {
    property(node, "reg").unwrap_or(&[]).chunks_exact(16).filter_map(|pair| {
        let (start, size) = pair.split_at(8);
        Some(Region { start: number(start)?, size: number(size)? })
    })
}

#[cfg(test)]
mod tests {
    use vm_fdt::FdtWriter;

    use super::*;

    /// What Xen's dom0less builder gives a guest, as far as it is read here.
    fn guest_tree(gic: impl FnOnce(&mut FdtWriter), initrd: Option<(u64, u64)>) -> Vec<u8, 4096> {
        let mut fdt = FdtWriter::new().unwrap();
        let root = fdt.begin_node("").unwrap();
        fdt.property_u32("#address-cells", 2).unwrap();
        fdt.property_u32("#size-cells", 2).unwrap();
        let cpus = fdt.begin_node("cpus").unwrap();
        for name in ["cpu@0", "cpu@1"] {
            let cpu = fdt.begin_node(name).unwrap();
            fdt.property_string("device_type", "cpu").unwrap();
            fdt.end_node(cpu).unwrap();
        }
        fdt.end_node(cpus).unwrap();
        for (name, reg) in [
            ("memory@40000000", [0x4000_0000, 0x200_0000]),
            ("memory@200000000", [0x2_0000_0000, 0x100_0000]),
        ] {
            let memory = fdt.begin_node(name).unwrap();
            fdt.property_array_u64("reg", &reg).unwrap();
            fdt.end_node(memory).unwrap();
        }
        gic(&mut fdt);
        let hypervisor = fdt.begin_node("hypervisor").unwrap();
        fdt.property_string_list("compatible", vec!["xen,xen-4.20".into(), "xen,xen".into()]).unwrap();
        fdt.property_array_u64("reg", &[0x3800_0000, 0x100_0000, 0x4200_0000, 0xbe00_0000]).unwrap();
        fdt.end_node(hypervisor).unwrap();
        let chosen = fdt.begin_node("chosen").unwrap();
        fdt.property_string("bootargs", "peer=2 port=1").unwrap();
        if let Some((start, end)) = initrd {
            fdt.property_u64("linux,initrd-start", start).unwrap();
            fdt.property_u64("linux,initrd-end", end).unwrap();
        }
        fdt.end_node(chosen).unwrap();
        fdt.end_node(root).unwrap();
        Vec::from_slice(&fdt.finish().unwrap()).unwrap()
    }

    fn gicv3(fdt: &mut FdtWriter) {
        let gic = fdt.begin_node("interrupt-controller@3001000").unwrap();
        fdt.property_string("compatible", "arm,gic-v3").unwrap();
        fdt.property_array_u64("reg", &[0x300_1000, 0x1_0000, 0x302_0000, 0x100_0000]).unwrap();
        fdt.end_node(gic).unwrap();
    }

    #[test]
    fn a_guest_tree_is_read() {
        let blob = guest_tree(gicv3, Some((0x41a0_0000, 0x41a0_1001)));
        let tree = Tree::parse(&blob).unwrap();
        assert_eq!(tree.memory_size(), 0x300_0000);
        assert_eq!(tree.memory[1], Region { start: 0x2_0000_0000, size: 0x100_0000 });
        assert_eq!(tree.ramdisk, Some(Region { start: 0x41a0_0000, size: 0x1001 }));
        assert_eq!(tree.bootargs, "peer=2 port=1");
        assert_eq!(tree.cpus, 2);
        assert_eq!(tree.grants, Some(Region { start: 0x3800_0000, size: 0x100_0000 }));
        let distributor = Region { start: 0x300_1000, size: 0x1_0000 };
        let redistributors = Region { start: 0x302_0000, size: 0x100_0000 };
        assert_eq!(tree.gic, Some(Gic::V3 { distributor, redistributors }));
        assert_eq!(tree.uart, None);
    }

    #[test]
    fn a_gicv2_and_a_uart_are_found_and_an_empty_ramdisk_is_none() {
        let devices = |fdt: &mut FdtWriter| {
            let gic = fdt.begin_node("interrupt-controller@3001000").unwrap();
            fdt.property_string("compatible", "arm,gic-400").unwrap();
            fdt.property_array_u64("reg", &[0x300_1000, 0x1000, 0x300_2000, 0x2000]).unwrap();
            fdt.end_node(gic).unwrap();
            let uart = fdt.begin_node("sbsa-uart@22000000").unwrap();
            fdt.property_string("compatible", "arm,sbsa-uart").unwrap();
            fdt.property_array_u64("reg", &[0x2200_0000, 0x1000]).unwrap();
            fdt.end_node(uart).unwrap();
        };
        let blob = guest_tree(devices, Some((0x41a0_0000, 0x41a0_0000)));
        let tree = Tree::parse(&blob).unwrap();
        let cpu = Region { start: 0x300_2000, size: 0x2000 };
        assert_eq!(tree.gic, Some(Gic::V2 { distributor: Region { start: 0x300_1000, size: 0x1000 }, cpu }));
        assert_eq!(tree.uart, Some(Region { start: 0x2200_0000, size: 0x1000 }));
        assert_eq!(tree.ramdisk, None);
    }

    #[test]
    fn damaged_trees_do_not_panic() {
        let blob = guest_tree(gicv3, None);
        for index in 0..blob.len() {
            for value in [0x00, 0x01, 0x7f, 0xff] {
                let mut damaged = blob.clone();
                damaged[index] = value;
                let _ = Tree::parse(&damaged);
            }
        }
        for length in 0..blob.len() {
            let _ = Tree::parse(&blob[..length]);
        }
    }

    #[test]
    fn the_size_is_read_from_the_header_only_of_a_tree() {
        assert_eq!(size([0xd00d_feed_u32.to_be(), 0x1234_u32.to_be()]), Some(0x1234));
        assert_eq!(size([0xd00d_feed, 0x1234]), None);
    }
}
