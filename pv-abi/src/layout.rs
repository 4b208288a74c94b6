//! The guest's physical memory map and its interrupts, as `public/arch-arm.h` and `public/device_tree_defs.h` fix
//! them for Xen on ARM.
//!
//! Addresses are guest physical (IPA), sizes in bytes, interrupts GIC INTIDs (SGI 0-15, PPI 16-31, SPI from 32).
//! A guest normally reads all of this from its device tree; a guest without a parser may use the constants.
//!
//! 1. No two regions that a guest can touch at once overlap (asserted below; the `GICv2` and `GICv3` register frames do, and
//!    a guest has one or the other).

/// Distributor of a guest's `GICv2` (`GUEST_GICD_BASE`).
pub const GICV2_GICD_BASE: u64 = 0x0300_1000;
/// Size of the `GICv2` distributor's frame (`GUEST_GICD_SIZE`).
pub const GICV2_GICD_SIZE: u64 = 0x1000;
/// CPU interface of a guest's `GICv2` (`GUEST_GICC_BASE`).
pub const GICV2_GICC_BASE: u64 = 0x0300_2000;
/// Size of the `GICv2` CPU interface's frame (`GUEST_GICC_SIZE`).
pub const GICV2_GICC_SIZE: u64 = 0x2000;

/// Distributor of a guest's `GICv3` (`GUEST_GICV3_GICD_BASE`).
pub const GICV3_GICD_BASE: u64 = 0x0300_1000;
/// Size of the `GICv3` distributor's frame (`GUEST_GICV3_GICD_SIZE`).
pub const GICV3_GICD_SIZE: u64 = 0x1_0000;
/// The one region of redistributors (`GUEST_GICV3_GICR0_BASE`).
pub const GICV3_GICR_BASE: u64 = 0x0302_0000;
/// Size of that region: room for [`MAX_VCPUS`] redistributors (`GUEST_GICV3_GICR0_SIZE`).
pub const GICV3_GICR_SIZE: u64 = 0x0100_0000;
/// Bytes of one redistributor without the frames of virtual LPIs: `RD_base` and `SGI_base`, 64 KiB each (Arm IHI 0069, 12.10).
pub const GICV3_GICR_STRIDE: u64 = 0x2_0000;

/// The emulated PL011, in domains that ask for one (`GUEST_PL011_BASE`).
pub const PL011_BASE: u64 = 0x2200_0000;
/// Size of the PL011's frame (`GUEST_PL011_SIZE`).
pub const PL011_SIZE: u64 = 0x1000;

/// Address space that a guest may map its grant table into (`GUEST_GNTTAB_BASE`).
pub const GRANT_TABLE_BASE: u64 = 0x3800_0000;
/// Size of that space, 4096 frames (`GUEST_GNTTAB_SIZE`).
pub const GRANT_TABLE_SIZE: u64 = 0x0100_0000;

/// Pages that the toolstack shares with the guest: console, xenstore, ... (`GUEST_MAGIC_BASE`).
pub const MAGIC_BASE: u64 = 0x3900_0000;
/// Size of that space (`GUEST_MAGIC_SIZE`).
pub const MAGIC_SIZE: u64 = 0x0100_0000;

/// Low RAM, filled first (`GUEST_RAM0_BASE`).
pub const RAM0_BASE: u64 = 0x4000_0000;
/// Emulated devices and room for grants; nothing of it is RAM.
pub const BELOW_RAM: core::ops::Range<u64> = GICV2_GICD_BASE..RAM0_BASE;
/// Room for low RAM, 3 GiB (`GUEST_RAM0_SIZE`).
pub const RAM0_SIZE: u64 = 0xc000_0000;
/// High RAM, for what the low bank does not hold (`GUEST_RAM1_BASE`).
pub const RAM1_BASE: u64 = 0x2_0000_0000;
/// Room for high RAM, 1016 GiB (`GUEST_RAM1_SIZE`).
pub const RAM1_SIZE: u64 = 0xfe_0000_0000;
/// The banks in the order in which they are filled, as (base, size).
pub const RAM_BANKS: [(u64, u64); 2] = [(RAM0_BASE, RAM0_SIZE), (RAM1_BASE, RAM1_SIZE)];
/// Most RAM that a guest can have (`GUEST_RAM_MAX`).
pub const RAM_MAX: u64 = RAM0_SIZE + RAM1_SIZE;

/// vCPUs that the memory map has room for (`GUEST_MAX_VCPUS`).
pub const MAX_VCPUS: u32 = 128;

/// PPI of the EL1 virtual timer (`GUEST_TIMER_VIRT_PPI`).
pub const TIMER_VIRT_PPI: u32 = 27;
/// PPI that the tree names for the secure EL1 physical timer (`GUEST_TIMER_PHYS_S_PPI`).
pub const TIMER_PHYS_S_PPI: u32 = 29;
/// PPI of the non-secure EL1 physical timer (`GUEST_TIMER_PHYS_NS_PPI`).
pub const TIMER_PHYS_NS_PPI: u32 = 30;
/// PPI of event channel notifications (`GUEST_EVTCHN_PPI`).
pub const EVTCHN_PPI: u32 = 31;
/// SPI of the emulated PL011 (`GUEST_VPL011_SPI`).
pub const VPL011_SPI: u32 = 32;

/// phandle of the guest's interrupt controller (`GUEST_PHANDLE_GIC`).
pub const PHANDLE_GIC: u32 = 65000;
/// `#address-cells` of a guest tree's root (`GUEST_ROOT_ADDRESS_CELLS`).
pub const ROOT_ADDRESS_CELLS: u32 = 2;
/// `#size-cells` of a guest tree's root (`GUEST_ROOT_SIZE_CELLS`).
pub const ROOT_SIZE_CELLS: u32 = 2;

/// PSCI 0.1 function id of `CPU_OFF`, in the guest's `/psci` node (`PSCI_cpu_off`).
pub const PSCI_0_1_CPU_OFF: u32 = 1;
/// PSCI 0.1 function id of `CPU_ON`, in the guest's `/psci` node (`PSCI_cpu_on`).
pub const PSCI_0_1_CPU_ON: u32 = 2;

/// MPIDR affinity of vCPU `index`: four bits in Aff0 (what a `GICv3` target list reaches), the rest in Aff1.
pub const fn vcpu_affinity(index: u32) -> u32 {
    (index & 0xf) | (((index >> 4) & 0xff) << 8)
}

/// The map in ascending order: every region starts where the one before has ended, or later.
const ASCENDING: [(u64, u64); 8] = [
    (GICV2_GICD_BASE, GICV2_GICD_SIZE),
    (GICV2_GICC_BASE, GICV2_GICC_SIZE),
    (GICV3_GICR_BASE, GICV3_GICR_SIZE),
    (PL011_BASE, PL011_SIZE),
    (GRANT_TABLE_BASE, GRANT_TABLE_SIZE),
    (MAGIC_BASE, MAGIC_SIZE),
    (RAM0_BASE, RAM0_SIZE),
    (RAM1_BASE, RAM1_SIZE),
];

const _: () = {
    let mut rest: &[(u64, u64)] = &ASCENDING;
    while let [(base, size), tail @ ..] = rest {
        if let [(next, _), ..] = tail {
            assert!(*base + *size <= *next);
        }
        rest = tail;
    }
    assert!(GICV3_GICD_BASE + GICV3_GICD_SIZE <= GICV3_GICR_BASE);
    assert!(GICV3_GICR_STRIDE * (MAX_VCPUS as u64) <= GICV3_GICR_SIZE);
    // The second bank ends at 1 TiB: 40 bits of IPA are enough for every guest.
    assert!(RAM1_BASE + RAM1_SIZE == 1 << 40);
};
