//! The tree a guest starts with: what dom0less Xen 4.20 gives, node by node and in its order.
//!
//! Nodes: `/chosen`, `/psci`, `/cpus`, `/memory@..`, the interrupt controller, `/timer`, `/sbsa-uart@..` (if asked for),
//! `/hypervisor` (if asked for). As in Xen, the root has neither `model` nor `compatible`, and static channels do not
//! appear: guests learn of ports from their command line. There are no extended regions.
use pv_abi::layout;

use super::passthrough;
use super::tree::Tree;
use super::writer::{FdtWriter, NoSpace};

/// `IRQ_TYPE_LEVEL_HIGH` in an interrupt specifier.
const LEVEL_HIGH: u32 = 4;
/// `IRQ_TYPE_LEVEL_LOW`.
const LEVEL_LOW: u32 = 8;
/// All of the first four CPUs, in the specifier's mask that only `GICv2` bindings know; Xen writes it always.
const CPU_MASK: u32 = 0xf << 8;
/// What guests get when the host tree does not say what its CPUs are.
const DEFAULT_CPU: &[u8] = b"arm,armv8\0";

/// The guest's interrupt controller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GuestGic {
    /// `GICv2`.
    V2,
    /// `GICv3`.
    V3,
}

/// What a guest's tree says. Addresses are guest physical, sizes in bytes.
#[derive(Clone, Copy)]
pub struct GuestTreeInput<'a> {
    /// The command line; left out when empty.
    pub bootargs: &'a [u8],
    /// Where the RAM disk is: (start, end), end exclusive.
    pub initrd: Option<(u64, u64)>,
    /// vCPUs.
    pub vcpus: u32,
    /// Raw `compatible` of the CPUs: the host's ([`HostMachine::cpu_compatible`](super::HostMachine::cpu_compatible)), as in
    /// Xen.
    pub cpu_compatible: &'a [u8],
    /// `clock-frequency` of the CPUs in Hz, as the host's.
    pub cpu_clock_hz: Option<u32>,
    /// RAM banks: (start, size).
    pub memory: &'a [(u64, u64)],
    /// The interrupt controller.
    pub gic: GuestGic,
    /// `clock-frequency` of the timer in Hz, as the host's.
    pub timer_clock_hz: Option<u32>,
    /// Whether there is an emulated PL011.
    pub vpl011: bool,
    /// Whether the guest is told that it runs on Xen.
    pub hypervisor: bool,
    /// A partial tree that is added, as [`Assigned::read`](super::Assigned::read) accepted it.
    pub partial: Option<Tree<'a>>,
}

/// Writes the tree into `buffer`; gives its length in bytes.
///
/// # Errors
/// [`NoSpace`]: 8 KiB are enough for 8 vCPUs and a command line of 2 KiB.
pub fn guest_tree(input: &GuestTreeInput<'_>, buffer: &mut [u8]) -> Result<usize, NoSpace> {
    let mut tree = FdtWriter::new(buffer)?;
    tree.begin_node("")?;
    tree.property_u32("#address-cells", layout::ROOT_ADDRESS_CELLS)?;
    tree.property_u32("#size-cells", layout::ROOT_SIZE_CELLS)?;
    chosen(&mut tree, input)?;
    psci(&mut tree)?;
    cpus(&mut tree, input)?;
    memory(&mut tree, input.memory)?;
    let phandle = gic_phandle(input);
    gic(&mut tree, input.gic, phandle)?;
    timer(&mut tree, input.timer_clock_hz, phandle)?;
    if input.vpl011 {
        uart(&mut tree, phandle)?;
    }
    if input.hypervisor {
        hypervisor(&mut tree, phandle)?;
    }
    if let Some(partial) = input.partial {
        passthrough::copy(&mut tree, &partial)?;
    }
    tree.end_node()?;
    tree.finish()
}

/// How the GIC is referred to: as the partial tree does, if there is one.
fn gic_phandle(input: &GuestTreeInput<'_>) -> u32 {
    let own = input.partial.and_then(|partial| passthrough::gic_placeholder(&partial).ok().flatten());
    own.unwrap_or(layout::PHANDLE_GIC)
}

fn chosen(tree: &mut FdtWriter<'_>, input: &GuestTreeInput<'_>) -> Result<(), NoSpace> {
    tree.begin_node("chosen")?;
    if !input.bootargs.is_empty() {
        tree.property_text("bootargs", input.bootargs)?;
    }
    if let Some((start, end)) = input.initrd {
        tree.property_u64("linux,initrd-start", start)?;
        tree.property_u64("linux,initrd-end", end)?;
    }
    tree.end_node()
}

fn psci(tree: &mut FdtWriter<'_>) -> Result<(), NoSpace> {
    tree.begin_node("psci")?;
    tree.property_strs("compatible", &["arm,psci-1.0", "arm,psci-0.2", "arm,psci"])?;
    tree.property_str("method", "hvc")?;
    tree.property_u32("cpu_off", layout::PSCI_0_1_CPU_OFF)?;
    tree.property_u32("cpu_on", layout::PSCI_0_1_CPU_ON)?;
    tree.end_node()
}

fn cpus(tree: &mut FdtWriter<'_>, input: &GuestTreeInput<'_>) -> Result<(), NoSpace> {
    let compatible = if input.cpu_compatible.is_empty() { DEFAULT_CPU } else { input.cpu_compatible };
    tree.begin_node("cpus")?;
    tree.property_u32("#address-cells", 1)?;
    tree.property_u32("#size-cells", 0)?;
    for index in 0..input.vcpus.min(layout::MAX_VCPUS) {
        let affinity = layout::vcpu_affinity(index);
        tree.begin_node_at("cpu", u64::from(affinity))?;
        tree.property("compatible", compatible)?;
        tree.property_str("device_type", "cpu")?;
        tree.property_u32("reg", affinity)?;
        if let Some(hertz) = input.cpu_clock_hz {
            tree.property_u32("clock-frequency", hertz)?;
        }
        tree.property_str("enable-method", "psci")?;
        tree.end_node()?;
    }
    tree.end_node()
}

fn memory(tree: &mut FdtWriter<'_>, banks: &[(u64, u64)]) -> Result<(), NoSpace> {
    let Some((first, _)) = banks.first() else { return Ok(()) };
    tree.begin_node_at("memory", *first)?;
    tree.property_str("device_type", "memory")?;
    tree.property_ranges("reg", banks)?;
    tree.end_node()
}

fn gic(tree: &mut FdtWriter<'_>, gic: GuestGic, phandle: u32) -> Result<(), NoSpace> {
    let distributor = match gic {
        GuestGic::V2 => layout::GICV2_GICD_BASE,
        GuestGic::V3 => layout::GICV3_GICD_BASE,
    };
    tree.begin_node_at("interrupt-controller", distributor)?;
    tree.property_u32("#address-cells", 0)?;
    tree.property_u32("#interrupt-cells", 3)?;
    tree.property_empty("interrupt-controller")?;
    match gic {
        GuestGic::V2 => {
            tree.property_str("compatible", "arm,gic-400")?;
            let distributor = (layout::GICV2_GICD_BASE, layout::GICV2_GICD_SIZE);
            let cpu_interface = (layout::GICV2_GICC_BASE, layout::GICV2_GICC_SIZE);
            tree.property_ranges("reg", &[distributor, cpu_interface])?;
        }
        GuestGic::V3 => {
            tree.property_str("compatible", "arm,gic-v3")?;
            tree.property_u32("#redistributor-regions", 1)?;
            let distributor = (layout::GICV3_GICD_BASE, layout::GICV3_GICD_SIZE);
            let redistributors = (layout::GICV3_GICR_BASE, layout::GICV3_GICR_SIZE);
            tree.property_ranges("reg", &[distributor, redistributors])?;
        }
    }
    tree.property_u32("linux,phandle", phandle)?;
    tree.property_u32("phandle", phandle)?;
    tree.end_node()
}

fn timer(tree: &mut FdtWriter<'_>, clock_hz: Option<u32>, gic: u32) -> Result<(), NoSpace> {
    tree.begin_node("timer")?;
    tree.property_str("compatible", "arm,armv8-timer")?;
    let timers = [layout::TIMER_PHYS_S_PPI, layout::TIMER_PHYS_NS_PPI, layout::TIMER_VIRT_PPI];
    tree.property_cells("interrupts", timers.map(|intid| interrupt(intid, LEVEL_LOW)).as_flattened())?;
    tree.property_u32("interrupt-parent", gic)?;
    if let Some(hertz) = clock_hz {
        tree.property_u32("clock-frequency", hertz)?;
    }
    tree.end_node()
}

fn uart(tree: &mut FdtWriter<'_>, gic: u32) -> Result<(), NoSpace> {
    tree.begin_node_at("sbsa-uart", layout::PL011_BASE)?;
    tree.property_str("compatible", "arm,sbsa-uart")?;
    tree.property_ranges("reg", &[(layout::PL011_BASE, layout::PL011_SIZE)])?;
    tree.property_cells("interrupts", &interrupt(layout::VPL011_SPI, LEVEL_HIGH))?;
    tree.property_u32("interrupt-parent", gic)?;
    tree.property_u32("current-speed", 115_200)?;
    tree.end_node()
}

fn hypervisor(tree: &mut FdtWriter<'_>, gic: u32) -> Result<(), NoSpace> {
    tree.begin_node("hypervisor")?;
    tree.property_strs("compatible", &["xen,xen-4.20", "xen,xen"])?;
    tree.property_ranges("reg", &[(layout::GRANT_TABLE_BASE, layout::GRANT_TABLE_SIZE)])?;
    tree.property_cells("interrupts", &interrupt(layout::EVTCHN_PPI, LEVEL_LOW))?;
    tree.property_u32("interrupt-parent", gic)?;
    tree.end_node()
}

/// The specifier of interrupt `intid`: type (0 SPI, 1 PPI), number within the type, mask and trigger.
const fn interrupt(intid: u32, trigger: u32) -> [u32; 3] {
    let flags = CPU_MASK | trigger;
    if intid < 32 { [1, intid.saturating_sub(16), flags] } else { [0, intid.saturating_sub(32), flags] }
}

#[cfg(test)]
mod tests;
