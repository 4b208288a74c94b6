//! The interrupt controller and the timer's interrupts, as the host tree describes them.
//!
//! Bindings: `arm,gic.yaml`, `arm,gic-v3.yaml`, `arm,arch_timer.yaml`. Interrupts are GIC INTIDs.
use heapless::Vec;

use super::cells::Cells;
use super::error::TreeError;
use super::node::Node;
use super::range::PhysRange;
use super::tree::Path;

/// Most regions of redistributors.
const MAX_REDISTRIBUTOR_REGIONS: usize = 8;

/// The host's interrupt controller.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HostGic {
    /// `GICv2` with virtualization, such as the GIC-400.
    V2 {
        /// GICD.
        distributor: PhysRange,
        /// GICC.
        cpu_interface: PhysRange,
        /// GICH: list registers.
        hypervisor_interface: PhysRange,
        /// GICV: what a guest sees as its GICC.
        virtual_interface: PhysRange,
        /// INTID of the maintenance interrupt.
        maintenance: u32,
    },
    /// `GICv3` or later; CPU interfaces are system registers.
    V3 {
        /// GICD.
        distributor: PhysRange,
        /// GICR, one or more regions.
        redistributors: Vec<PhysRange, MAX_REDISTRIBUTOR_REGIONS>,
        /// Bytes from one redistributor to the next where the tree says so; else `GICR_TYPER.VLPIS` decides.
        stride: Option<u64>,
        /// INTID of the maintenance interrupt.
        maintenance: u32,
    },
}

const V2_COMPATIBLE: [&str; 2] = ["arm,cortex-a15-gic", "arm,gic-400"];
const V3_COMPATIBLE: [&str; 1] = ["arm,gic-v3"];

impl HostGic {
    /// The controller at `path`, if it is one.
    pub(super) fn read(path: Path<'_, '_>) -> Result<Option<Self>, TreeError> {
        let node = path.node()?;
        if !node.has("interrupt-controller")? {
            return Ok(None);
        }
        if node.is_compatible(&V3_COMPATIBLE)? {
            Self::read_v3(path, node).map(Some)
        } else if node.is_compatible(&V2_COMPATIBLE)? {
            Self::read_v2(path, node).map(Some)
        } else {
            Ok(None)
        }
    }

    fn read_v2(path: Path<'_, '_>, node: Node<'_>) -> Result<Self, TreeError> {
        Ok(Self::V2 {
            distributor: path.reg(0)?.ok_or(TreeError::Missing("GICD"))?,
            cpu_interface: path.reg(1)?.ok_or(TreeError::Missing("GICC"))?,
            hypervisor_interface: path.reg(2)?.ok_or(TreeError::Missing("GICH (no virtualization?)"))?,
            virtual_interface: path.reg(3)?.ok_or(TreeError::Missing("GICV (no virtualization?)"))?,
            maintenance: maintenance(node)?,
        })
    }

    fn read_v3(path: Path<'_, '_>, node: Node<'_>) -> Result<Self, TreeError> {
        let regions = node.u32("#redistributor-regions")?.unwrap_or(1);
        let regions = usize::try_from(regions).map_err(|_| TreeError::TooMany("GICR regions"))?;
        if regions > MAX_REDISTRIBUTOR_REGIONS {
            return Err(TreeError::TooMany("GICR regions"));
        }
        let mut redistributors = Vec::new();
        for region in 1..=regions {
            let range = path.reg(region)?.ok_or(TreeError::Missing("GICR"))?;
            redistributors.push(range).map_err(|_| TreeError::TooMany("GICR regions"))?;
        }
        if redistributors.is_empty() {
            return Err(TreeError::Missing("GICR"));
        }
        Ok(Self::V3 {
            distributor: path.reg(0)?.ok_or(TreeError::Missing("GICD"))?,
            redistributors,
            stride: node.u64("redistributor-stride")?.filter(|stride| *stride != 0),
            maintenance: maintenance(node)?,
        })
    }
}

fn maintenance(node: Node<'_>) -> Result<u32, TreeError> {
    let value = node.bytes("interrupts")?.ok_or(TreeError::Missing("GIC maintenance interrupt"))?;
    nth_interrupt(value, interrupt_cells(node)?, 0).ok_or(TreeError::Malformed("GIC maintenance interrupt"))
}

/// Cells of one interrupt specifier of the controller `node`.
pub(super) fn interrupt_cells(node: Node<'_>) -> Result<u32, TreeError> {
    Ok(node.u32("#interrupt-cells")?.unwrap_or(3))
}

/// INTID of specifier `index` in `value`, of `width` cells each: type (0 SPI, 1 PPI), number, flags.
pub(super) fn nth_interrupt(value: &[u8], width: u32, index: usize) -> Option<u32> {
    let bytes = usize::try_from(width).ok()?.checked_mul(4)?;
    let mut cells = Cells::new(value.get(bytes.checked_mul(index)?..)?);
    let (class, number) = (cells.u32()?, cells.u32()?);
    match class {
        0 if number <= 1019 - 32 => number.checked_add(32),
        1 if number < 16 => number.checked_add(16),
        _ => None,
    }
}

/// INTIDs of the generic timer's interrupts. The secure timer's is not ours to use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TimerPpis {
    /// Secure EL1 physical timer.
    pub secure: Option<u32>,
    /// Non-secure EL1 physical timer.
    pub non_secure: u32,
    /// EL1 virtual timer.
    pub virtual_: u32,
    /// EL2 physical timer.
    pub hypervisor: u32,
}

impl TimerPpis {
    /// The interrupts of timer `node`, whose controller has specifiers of `width` cells. Their order is fixed unless
    /// `interrupt-names` gives another.
    pub(super) fn read(node: Node<'_>, width: u32) -> Result<Self, TreeError> {
        const BY_POSITION: [&str; 4] = ["sec-phys", "phys", "virt", "hyp-phys"];
        let value = node.bytes("interrupts")?.ok_or(TreeError::Missing("timer interrupts"))?;
        let names = node.bytes("interrupt-names")?;
        let find = |name: &str| {
            let position = match names {
                Some(list) => list.split(|byte| *byte == 0).position(|entry| entry == name.as_bytes())?,
                None => BY_POSITION.iter().position(|entry| *entry == name)?,
            };
            nth_interrupt(value, width, position)
        };
        Ok(Self {
            secure: find("sec-phys"),
            non_secure: find("phys").ok_or(TreeError::Missing("EL1 physical timer interrupt"))?,
            virtual_: find("virt").ok_or(TreeError::Missing("virtual timer interrupt"))?,
            hypervisor: find("hyp-phys").ok_or(TreeError::Missing("EL2 timer interrupt"))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interrupt_specifiers_become_intids() {
        // <0 93 4>, <1 9 4>, <1 16 4>: SPI 93, PPI 9, and no PPI at all.
        let value = [
            0, 0, 0, 0, 0, 0, 0, 93, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0, 9, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0, 16,
            0, 0, 0, 4,
        ];
        assert_eq!(nth_interrupt(&value, 3, 0), Some(125));
        assert_eq!(nth_interrupt(&value, 3, 1), Some(25));
        assert_eq!(nth_interrupt(&value, 3, 2), None);
        assert_eq!(nth_interrupt(&value, 3, 3), None);
    }
}
