//! Why a domain is not built, in one line each.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]
use core::fmt;

use crate::devicetree::NotAssigned;
use crate::stage2::MapError;

/// Why a domain is not built.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The machine has too little memory left.
    OutOfMemory {
        /// What the domain was to have, KiB.
        asked_kib: u64,
        /// What there is, KiB.
        free_kib: u64,
    },
    /// Its quota of stage-2 tables does not map its memory.
    TooFewTables,
    /// More memory than a guest's map has room for, or none.
    MemorySize,
    /// The kernel has no arm64 Image header.
    NotAnImage,
    /// The kernel does not fit its memory.
    KernelTooLarge {
        /// What it needs from the start of memory, KiB.
        needs_kib: u64,
        /// The memory, KiB.
        has_kib: u64,
    },
    /// RAM disk and device tree do not fit beside the kernel.
    RamdiskTooLarge {
        /// What they need, KiB.
        needs_kib: u64,
        /// The memory, KiB.
        has_kib: u64,
    },
    /// The device tree, mostly its command line, is too large.
    TreeTooLarge,
    /// Its partial device tree cannot be read.
    PartialTree,
    /// The devices of its partial tree cannot be given to it.
    Devices(NotAssigned),
    /// A device of its partial tree is another domain's or the hypervisor's, or is RAM.
    DeviceTaken,
    /// It has devices, and is to be built anew.
    DevicesInUse,
    /// Something lies at an address that cannot be.
    Misplaced,
    /// The hypervisor has no room for its tables.
    NoStorage,
    /// A static channel names a port that it may not have.
    Channel,
}

impl From<MapError> for Refusal {
    fn from(error: MapError) -> Self {
        match error {
            MapError::TableLimit => Self::TooFewTables,
            MapError::OutOfMemory => Self::OutOfMemory { asked_kib: 4, free_kib: 0 },
            MapError::BadGfn | MapError::Occupied => Self::Misplaced,
        }
    }
}

/// A size as people say it.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            kib if kib.is_multiple_of(1024) => write!(f, "{} MiB", kib >> 10),
            kib => write!(f, "{kib} KiB"),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::OutOfMemory { asked_kib, free_kib } => {
                write!(f, "out of memory: {} asked, {} free", Size(asked_kib), Size(free_kib))
            }
            Self::TooFewTables => {
                f.write_str("too few stage-2 tables: less memory, or xen,domain-p2m-mem-mb raised")
            }
            Self::MemorySize => f.write_str("memory: 4 KiB to 1019 GiB expected"),
            Self::NotAnImage => f.write_str("kernel: arm64 Image expected"),
            Self::KernelTooLarge { needs_kib, has_kib } => {
                write!(f, "kernel too large: {} needed, {} of memory", Size(needs_kib), Size(has_kib))
            }
            Self::RamdiskTooLarge { needs_kib, has_kib } => {
                write!(
                    f,
                    "ramdisk too large: {} needed beside the kernel, {} of memory",
                    Size(needs_kib),
                    Size(has_kib)
                )
            }
            Self::TreeTooLarge => f.write_str("device tree too large: shorten the command line (bootargs)"),
            Self::PartialTree => f.write_str("multiboot,device-tree: no device tree in RAM"),
            Self::Devices(why) => f.write_str(match why {
                NotAssigned::Tree(_) => "passthrough: the tree is damaged",
                NotAssigned::Incomplete => "passthrough: xen,reg and xen,path expected",
                NotAssigned::Unaligned => "passthrough: xen,reg: whole pages expected",
                NotAssigned::NoSuchDevice => "passthrough: xen,path names no device of the machine",
                NotAssigned::Dma => {
                    "passthrough: the device may do DMA: unsafe_dma (xen,force-assign-without-iommu) is missing"
                }
                NotAssigned::Interrupts => "passthrough: the device's interrupts are not SPIs of the GIC",
                NotAssigned::TooMany => "passthrough: too many ranges or interrupts",
            }),
            Self::DevicesInUse => f.write_str("passthrough: a domain with devices is not built anew"),
            Self::DeviceTaken => f.write_str("passthrough: the device belongs to somebody else"),
            Self::Misplaced => f.write_str("a module lies outside of memory"),
            Self::NoStorage => f.write_str("out of memory for the hypervisor's tables of the domain"),
            Self::Channel => {
                f.write_str("static channel: port beyond pavo,max-ports: fewer channels, or that raised")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn a_refusal_is_one_line_with_sizes() {
        let refusal = Refusal::OutOfMemory { asked_kib: 64 << 10, free_kib: 12 << 10 };
        assert_eq!(refusal.to_string(), "out of memory: 64 MiB asked, 12 MiB free");
        let refusal = Refusal::KernelTooLarge { needs_kib: 2052, has_kib: 1024 };
        assert_eq!(refusal.to_string(), "kernel too large: 2052 KiB needed, 1 MiB of memory");
    }
}
