//! Devices that a domain gets whole, as dom0less Xen describes them (`docs/misc/arm/passthrough.txt`): a partial tree whose nodes below
//! `/passthrough` name the host's node (`xen,path`), and where its registers go (`xen,reg`).
//!
//! 1. A device that may do DMA is refused unless `xen,force-assign-without-iommu` says that the administrator answers for it: there is no
//!    IOMMU. Only what is listed as having none may be given without that (Xen asks for it always).
//! 2. Interrupts are the host node's, SPIs of the machine's GIC, and have the same numbers in the guest.
//! 3. What a partial tree says of addresses is checked against RAM and the hypervisor's own devices by whoever maps them.
use heapless::Vec;

use super::cells::Cells;
use super::error::TreeError;
use super::gic::{HostGic, interrupt_cells};
use super::range::PhysRange;
use super::tree::{Path, Tree};
use super::writer::{FdtWriter, NoSpace};

/// Most register ranges, and most interrupts, that a domain gets.
const MAX_ASSIGNED: usize = 16;
const PAGE: u64 = 4096;
const FORCE: &str = "xen,force-assign-without-iommu";

/// Registers of a device, for the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AssignedRange {
    /// Whole pages of the machine.
    pub host: PhysRange,
    /// Where the guest sees them.
    pub guest: u64,
}

/// An interrupt of a device, for the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AssignedInterrupt {
    /// Its INTID, a SPI, there and here.
    pub intid: u32,
    /// Edge-triggered, else level-sensitive.
    pub edge: bool,
}

/// What a partial tree assigns.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Assigned {
    /// Registers.
    pub ranges: Vec<AssignedRange, MAX_ASSIGNED>,
    /// Interrupts.
    pub interrupts: Vec<AssignedInterrupt, MAX_ASSIGNED>,
}

/// Why devices are not assigned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotAssigned {
    /// One of the trees is damaged.
    Tree(TreeError),
    /// `xen,reg` without `xen,path`, or the reverse, or malformed.
    Incomplete,
    /// Addresses or sizes that are no whole pages.
    Unaligned,
    /// `xen,path` names no node of the host.
    NoSuchDevice,
    /// The device may do DMA.
    Dma,
    /// Its interrupts are not SPIs of the GIC.
    Interrupts,
    /// More than a domain can get.
    TooMany,
}

impl From<TreeError> for NotAssigned {
    fn from(error: TreeError) -> Self {
        Self::Tree(error)
    }
}

impl Assigned {
    /// Reads the partial tree of a domain; `without_dma` are the compatibles of devices that have none.
    ///
    /// # Errors
    /// [`NotAssigned`].
    pub fn read(partial: &Tree<'_>, host: &Tree<'_>, without_dma: &[&str]) -> Result<Self, NotAssigned> {
        let mut assigned = Self::default();
        let mut walk = partial.walk()?;
        while let Some(path) = walk.step()? {
            if !path.is_below("passthrough")? {
                continue;
            }
            let node = path.node()?;
            let forced = node.has(FORCE)?;
            match (node.bytes("xen,reg")?, node.str("xen,path")?) {
                (None, None) => {}
                (Some(ranges), None) if forced => assigned.add_ranges(path, ranges)?,
                (Some(ranges), Some(name)) => {
                    assigned.add_ranges(path, ranges)?;
                    assigned.add_device(host, name, forced, without_dma)?;
                }
                (Some(_), None) | (None, Some(_)) => return Err(NotAssigned::Incomplete),
            }
        }
        Ok(assigned)
    }

    /// `xen,reg`: address, size, guest address, in the cells of the node's bus.
    fn add_ranges(&mut self, path: Path<'_, '_>, value: &[u8]) -> Result<(), NotAssigned> {
        let (address_cells, size_cells) = path.parent()?.child_cells()?;
        if !(1..=2).contains(&address_cells) || !(1..=2).contains(&size_cells) {
            return Err(NotAssigned::Incomplete);
        }
        let mut cells = Cells::new(value);
        while !cells.is_empty() {
            let (start, size, guest) =
                (cells.number(address_cells), cells.number(size_cells), cells.number(address_cells));
            let (Some(start), Some(size), Some(guest)) = (start, size, guest) else {
                return Err(NotAssigned::Incomplete);
            };
            if (start | size | guest) % PAGE != 0 {
                return Err(NotAssigned::Unaligned);
            }
            let host = PhysRange::new(start, size).ok_or(NotAssigned::Incomplete)?;
            self.ranges.push(AssignedRange { host, guest }).map_err(|_| NotAssigned::TooMany)?;
        }
        Ok(())
    }

    /// The host's node: what it may do, and its interrupts.
    fn add_device(
        &mut self,
        host: &Tree<'_>,
        name: &str,
        forced: bool,
        without_dma: &[&str],
    ) -> Result<(), NotAssigned> {
        let gic = gic(host)?;
        let mut walk = host.walk()?;
        while let Some(path) = walk.step()? {
            if !path.matches(name)? {
                continue;
            }
            let node = path.node()?;
            let dma = !node.is_compatible(without_dma)? || node.has("dmas")? || node.has("iommus")?;
            if dma && !forced {
                return Err(NotAssigned::Dma);
            }
            if node.has("interrupts-extended")? {
                return Err(NotAssigned::Interrupts);
            }
            let Some(value) = node.bytes("interrupts")? else { return Ok(()) };
            if gic.is_none_or(|(phandle, cells)| cells != 3 || path.interrupt_parent() != Ok(Some(phandle))) {
                return Err(NotAssigned::Interrupts);
            }
            return self.add_interrupts(value);
        }
        Err(NotAssigned::NoSuchDevice)
    }

    /// Specifiers of three cells: class (0 for a SPI), number, flags (bindings, `arm,gic.yaml`).
    fn add_interrupts(&mut self, value: &[u8]) -> Result<(), NotAssigned> {
        let mut cells = Cells::new(value);
        while !cells.is_empty() {
            let (class, number, flags) = (cells.u32(), cells.u32(), cells.u32());
            let (Some(0), Some(number @ 0..256), Some(flags)) = (class, number, flags) else {
                return Err(NotAssigned::Interrupts);
            };
            // Trigger: 1 a rising edge, 4 a high level.
            let edge = match flags & 0xf {
                1 => true,
                4 => false,
                _ => return Err(NotAssigned::Interrupts),
            };
            let interrupt = AssignedInterrupt { intid: number.saturating_add(32), edge };
            self.interrupts.push(interrupt).map_err(|_| NotAssigned::TooMany)?;
        }
        Ok(())
    }
}

/// The machine's GIC: its phandle, and the cells of its interrupts.
fn gic(host: &Tree<'_>) -> Result<Option<(u32, u32)>, TreeError> {
    let mut walk = host.walk()?;
    while let Some(path) = walk.step()? {
        if HostGic::read(path)?.is_some() {
            let node = path.node()?;
            return Ok(node.phandle()?.zip(Some(interrupt_cells(node)?)));
        }
    }
    Ok(None)
}

/// The phandle that the partial tree's `/gic` stands for, which its devices refer to.
///
/// # Errors
/// [`TreeError`] when it is damaged.
pub(super) fn gic_placeholder(partial: &Tree<'_>) -> Result<Option<u32>, TreeError> {
    let mut walk = partial.walk()?;
    while let Some(path) = walk.step()? {
        if path.depth() == 1 && path.node()?.name()? == "gic" {
            return path.node()?.phandle();
        }
    }
    Ok(None)
}

/// Copies `/aliases` and `/passthrough` of a partial tree, as Xen does, without what was for the hypervisor.
pub(super) fn copy(writer: &mut FdtWriter<'_>, partial: &Tree<'_>) -> Result<(), NoSpace> {
    const OURS: [&str; 3] = ["xen,reg", "xen,path", FORCE];
    let mut open = 0_usize;
    let Ok(mut walk) = partial.walk() else { return Ok(()) };
    // A tree that is damaged further on was refused when it was read.
    while let Ok(Some(path)) = walk.step() {
        let wanted = [path.is_below("passthrough"), path.is_at("passthrough"), path.is_at("aliases")];
        if !wanted.contains(&Ok(true)) {
            continue;
        }
        let Ok(node) = path.node() else { break };
        while open >= path.depth() {
            writer.end_node()?;
            open = open.saturating_sub(1);
        }
        node.begin(writer)?;
        open = open.saturating_add(1);
        for (name, value) in node.properties() {
            if !OURS.contains(&name) {
                writer.property(name, value)?;
            }
        }
    }
    for _ in 0..open {
        writer.end_node()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::super::fixtures::{Blob, list, node, qemu_virt, raspberry_pi4, tree};
    use super::*;
    use vm_fdt::FdtWriter as TestWriter;

    const WITHOUT_DMA: [&str; 1] = ["arm,pl011"];

    fn partial(path: &str, reg: &[u64], forced: bool) -> Blob {
        tree(&[], &|w: &mut TestWriter| {
            w.property_u32("#address-cells", 2).unwrap();
            w.property_u32("#size-cells", 2).unwrap();
            node(w, "gic", &|w| w.property_phandle(0xfde8).unwrap());
            node(w, "passthrough", &|w| {
                list(w, "compatible", &["simple-bus"]);
                w.property_u32("#address-cells", 2).unwrap();
                w.property_u32("#size-cells", 2).unwrap();
                w.property_null("ranges").unwrap();
                node(w, "serial@a000000", &|w| {
                    list(w, "compatible", &["arm,pl011", "arm,primecell"]);
                    w.property_array_u64("xen,reg", reg).unwrap();
                    w.property_string("xen,path", path).unwrap();
                    w.property_u32("interrupt-parent", 0xfde8).unwrap();
                    if forced {
                        w.property_null(FORCE).unwrap();
                    }
                });
            });
            node(w, "secret", &|_| {});
        })
    }

    const UART: [u64; 3] = [0xfe20_1000, 0x1000, 0x0a00_0000];

    fn read(partial: &Blob, host: &Blob) -> Result<Assigned, NotAssigned> {
        Assigned::read(&partial.tree(), &host.tree(), &WITHOUT_DMA)
    }

    #[test]
    fn a_uart_comes_with_its_registers_and_its_interrupt() {
        let found = read(&partial("/soc/serial@7e201000", &UART, false), &raspberry_pi4()).unwrap();
        let host = PhysRange::new(0xfe20_1000, 0x1000).unwrap();
        assert_eq!(found.ranges.as_slice(), [AssignedRange { host, guest: 0x0a00_0000 }]);
        // <0 121 4> in the board's tree: SPI 121, level-sensitive.
        assert_eq!(found.interrupts.as_slice(), [AssignedInterrupt { intid: 153, edge: false }]);
    }

    #[test]
    fn a_device_that_may_do_dma_needs_the_administrators_word() {
        let path = "/soc/watchdog@7e100000";
        assert_eq!(read(&partial(path, &UART, false), &raspberry_pi4()), Err(NotAssigned::Dma));
        assert!(read(&partial(path, &UART, true), &raspberry_pi4()).is_ok());
    }

    #[test]
    fn what_is_no_whole_page_or_names_nothing_is_refused() {
        let board = raspberry_pi4();
        let path = "/soc/serial@7e201000";
        assert_eq!(
            read(&partial(path, &[0xfe20_1400, 0x200, 0x0a00_0000], false), &board),
            Err(NotAssigned::Unaligned)
        );
        assert_eq!(read(&partial(path, &UART[..2], false), &board), Err(NotAssigned::Incomplete));
        assert_eq!(read(&partial("/soc/nothing", &UART, false), &board), Err(NotAssigned::NoSuchDevice));
        let virt = qemu_virt(3, 1, &[(0x4000_0000, 1 << 30)], &|_| {});
        assert!(read(&partial("/pl011@9000000", &[0x0900_0000, 0x1000, 0x0a00_0000], false), &virt).is_ok());
    }

    #[test]
    fn the_guest_sees_the_device_and_nothing_that_was_for_the_hypervisor() {
        let given = partial("/soc/serial@7e201000", &UART, true);
        let mut buffer = [0; 4096];
        let mut writer = FdtWriter::new(&mut buffer).unwrap();
        writer.begin_node("").unwrap();
        copy(&mut writer, &given.tree()).unwrap();
        writer.begin_node("after").unwrap();
        let length = writer.finish().unwrap();
        let blob = Blob::from_bytes(&buffer[..length]);
        let copied = blob.tree();
        let mut walk = copied.walk().unwrap();
        let mut seen = Vec::new();
        while let Some(path) = walk.step().unwrap() {
            let node = path.node().unwrap();
            seen.push((path.depth(), node.name().unwrap()));
            assert!(
                !node.has("xen,reg").unwrap() && !node.has("xen,path").unwrap() && !node.has(FORCE).unwrap()
            );
        }
        assert_eq!(seen, [(1, "passthrough"), (2, "serial"), (1, "after")]);
        assert_eq!(gic_placeholder(&given.tree()), Ok(Some(0xfde8)));
    }
}
