//! The interrupt controller that the device tree names, `GICv2` or `GICv3`.
use pv_abi::layout::{EVTCHN_PPI, TIMER_VIRT_PPI};

use crate::gicv2::GicV2;
use crate::gicv3::GicV3;
use crate::mmio::Registers;
use crate::paging;
use crate::psci;
use crate::smp::Cpu;
use crate::tree::{self, Region};

/// A private interrupt: an SGI (0-15) or a PPI (16-31).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Intid(u32);

/// A shared interrupt (SPI), by its INTID.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shared(u32);

impl Shared {
    /// The SPI with this INTID, 32 to 1019.
    pub const fn new(intid: u32) -> Option<Self> {
        if intid >= 32 && intid < 1020 { Some(Self(intid)) } else { None }
    }

    /// Its INTID.
    pub const fn number(self) -> u32 {
        self.0
    }
}

impl Intid {
    /// Event channel notifications.
    pub const EVENTS: Self = Self(EVTCHN_PPI);
    /// The virtual timer.
    pub const TIMER: Self = Self(TIMER_VIRT_PPI);

    /// Ends a wait of another vCPU.
    pub(crate) const WAKE: Self = Self(15);

    /// A software generated interrupt, 0 to 15; this crate uses 15 itself.
    pub const fn sgi(number: u32) -> Option<Self> {
        if number < 16 { Some(Self(number)) } else { None }
    }

    /// A private interrupt, from what a controller returned.
    pub(crate) const fn private(number: u32) -> Option<Self> {
        if number < 32 { Some(Self(number)) } else { None }
    }

    /// Its number.
    pub const fn number(self) -> u32 {
        self.0
    }

    pub(crate) const fn bit(self) -> u32 {
        1 << self.0
    }
}

/// An interrupt that was taken.
pub(crate) enum Taken {
    Private(Intid),
    Shared(Shared),
}

/// The controller.
pub(crate) enum Gic {
    V2(GicV2),
    V3(GicV3),
}

fn map(region: Region) -> Option<Registers> {
    paging::map_device(region).ok()?;
    Some(Registers::new(usize::try_from(region.start).ok()?, usize::try_from(region.size).ok()?))
}

impl Gic {
    /// Maps the controller's frames and switches it on.
    pub(crate) fn start(frames: tree::Gic) -> Option<Self> {
        match frames {
            tree::Gic::V2 { distributor, cpu } => Some(Self::V2(GicV2::start(map(distributor)?, map(cpu)?))),
            tree::Gic::V3 { distributor, redistributors } => {
                GicV3::start(map(distributor)?, map(redistributors)?).map(Self::V3)
            }
        }
    }

    /// Switches this vCPU's part on.
    pub(crate) fn start_here(&self) -> Option<()> {
        match self {
            Self::V2(gic) => {
                gic.start_here();
                Some(())
            }
            Self::V3(gic) => gic.start_here(),
        }
    }

    pub(crate) fn enable(&self, intid: Intid) {
        match self {
            Self::V2(gic) => gic.enable(intid),
            Self::V3(gic) => gic.enable(intid),
        }
    }

    /// Enables a shared interrupt, for the first vCPU.
    pub(crate) fn enable_shared(&self, shared: Shared) {
        const GROUPS: usize = 0x080;
        const ENABLES: usize = 0x100;
        const PRIORITIES: usize = 0x400;
        const TARGETS: usize = 0x800;
        const PRIORITY: u8 = 0xa0;
        let (number, distributor) = (shared.0 as usize, self.distributor());
        let (word, bit) = (number / 32 * 4, 1_u32 << (number % 32));
        distributor.write8(PRIORITIES + number, PRIORITY);
        match self {
            Self::V2(_) => distributor.write8(TARGETS + number, 1),
            // Routed to affinity 0 after reset; group 1 as everything.
            Self::V3(_) => distributor.write32(GROUPS + word, distributor.read32(GROUPS + word) | bit),
        }
        distributor.write32(ENABLES + word, bit);
    }

    pub(crate) fn disable(&self, intid: Intid) {
        match self {
            Self::V2(gic) => gic.disable(intid),
            Self::V3(gic) => gic.disable(intid),
        }
    }

    /// Takes a pending interrupt and runs `handle` for it; whether there was one.
    pub(crate) fn take(&self, handle: impl FnOnce(Taken)) -> bool {
        self.take_any(|number, _| match (Intid::private(number), Shared::new(number)) {
            (Some(intid), _) => handle(Taken::Private(intid)),
            (None, Some(shared)) => handle(Taken::Shared(shared)),
            (None, None) => {}
        })
    }

    /// Takes a pending interrupt and runs `handle` for it, with its number and, of a `GICv2`'s SGI, its sender; whether there was one.
    pub(crate) fn take_any(&self, handle: impl FnOnce(u32, u32)) -> bool {
        let acknowledged = match self {
            Self::V2(gic) => gic.acknowledge(),
            Self::V3(_) => GicV3::acknowledge(),
        };
        // The lower ten bits are the INTID in both; 1020 and above mean that there is none.
        let number = acknowledged & 0x3ff;
        if number >= 1020 {
            return false;
        }
        handle(number, acknowledged >> 10 & 7);
        match self {
            Self::V2(gic) => gic.end(acknowledged),
            Self::V3(_) => GicV3::end(acknowledged),
        }
        true
    }

    pub(crate) fn send(&self, target: Cpu, intid: Intid) {
        match self {
            Self::V2(gic) => gic.send(target, intid),
            Self::V3(_) => GicV3::send(psci::affinity(target.number()), intid),
        }
    }

    pub(crate) fn send_to_self(&self, intid: Intid) {
        match self {
            Self::V2(gic) => gic.send_to_self(intid),
            Self::V3(_) => GicV3::send_to_self(intid),
        }
    }

    pub(crate) const fn distributor(&self) -> Registers {
        match self {
            Self::V2(gic) => gic.distributor(),
            Self::V3(gic) => gic.distributor(),
        }
    }

    /// How to raise an SGI on this vCPU with one instruction.
    pub(crate) fn own_sgi(&self, intid: Intid) -> Option<OwnSgi> {
        match self {
            Self::V2(gic) => {
                let (register, value) = GicV2::own_sgi(intid);
                gic.distributor().address(register).map(|address| OwnSgi::Store { address, value })
            }
            Self::V3(_) => Some(OwnSgi::Icc(GicV3::own_sgi(intid))),
        }
    }
}

/// The one instruction that raises an SGI.
#[derive(Clone, Copy)]
pub(crate) enum OwnSgi {
    /// A store to the distributor.
    Store { address: usize, value: u32 },
    /// A write of `ICC_SGI1R_EL1`.
    Icc(u64),
}
