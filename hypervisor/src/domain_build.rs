//! Building a domain: memory, kernel, RAM disk, device tree, and the [`Domain`] itself, at boot.
//!
//! Invariants
//! 1. A domain that is refused leaves no frame behind: everything taken for it is free again.
//! 2. Every frame of its RAM was cleared, and cleaned to memory, before anything was loaded: a guest with its caches off sees
//!    the same bytes, and none of another's.
//! 3. What was loaded lies wholly in its RAM, and kernel, RAM disk and tree do not overlap.
//! 4. Boot storage is carved last, when nothing else can fail.
//!
//! Placement is Xen's (`xen/arch/arm/kernel.c`), so that a guest finds things where it found them there.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

mod again;
mod image;
mod load;
mod make;
mod place;
mod ram;
mod refusal;

pub(crate) use again::step;
pub use again::{Build, Plans};
use make::tree_room;
pub use make::{Shape, Storage, storage_of};
pub use refusal::Refusal;

use pv_abi::layout;

use crate::addr::{Gfn, Ipa, Mfn, Pa};
use crate::console::ring;
use crate::devicetree::{
    Assigned, DomainConfig, Enhanced, GuestGic, GuestTreeInput, HostGic, HostMachine, NotAssigned, PhysRange,
    Tree, guest_tree,
};
use crate::domain::Domain;
use crate::frame::Role;
use crate::frame_alloc::Frames;
use crate::hardware::{Hardware, Vmid};
use crate::stage2::{Kind, ROOT_TABLES, Stage2};
use crate::vgic::Spi;
use image::KernelImage;
use place::Placement;
use ram::Ram;

/// What of the board shows in its guests.
#[derive(Clone, Copy, Debug)]
pub struct Host<'a> {
    /// Raw `compatible` of the CPUs.
    pub cpu_compatible: &'a [u8],
    /// `clock-frequency` of the CPUs in Hz.
    pub cpu_clock_hz: Option<u32>,
    /// `clock-frequency` of the timer in Hz.
    pub timer_clock_hz: Option<u32>,
    /// The interrupt controller that guests see.
    pub gic: GuestGic,
    /// What a guest with a `GICv2` sees as its GICC: the machine's GICV.
    pub virtual_interface: Option<Pa>,
}

impl<'a> Host<'a> {
    /// The parts of a board that guests see.
    pub fn of(machine: &HostMachine<'a>) -> Self {
        let (gic, virtual_interface) = match &machine.gic {
            HostGic::V2 { virtual_interface, .. } => (GuestGic::V2, Pa::new(virtual_interface.start())),
            HostGic::V3 { .. } => (GuestGic::V3, None),
        };
        Self {
            cpu_compatible: machine.cpu_compatible,
            cpu_clock_hz: machine.cpu_clock_hz,
            timer_clock_hz: machine.timer_clock_hz,
            gic,
            virtual_interface,
        }
    }
}

/// Devices of the machine for one domain.
pub struct Devices<'a> {
    /// The tree that describes them to the guest.
    pub partial: Tree<'a>,
    /// What of the machine they are.
    pub assigned: Assigned,
}

/// How vCPU 0 starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BootState {
    /// Its first instruction.
    pub pc: Ipa,
    /// Its x0: the device tree.
    pub x0: Ipa,
}

/// A domain that is ready to run.
pub struct Built {
    /// The domain.
    pub domain: Domain,
    /// How its vCPU 0 starts.
    pub boot: BootState,
}

/// Where a domain's parts come from.
pub struct Builder<'a, H: Hardware, S: Storage> {
    /// The machine.
    pub hw: &'a H,
    /// Its frames.
    pub frames: &'a Frames,
    /// What guests see of it.
    pub host: Host<'a>,
    /// What lives as long as the hypervisor.
    pub storage: &'a S,
}

/// What a domain's memory holds before the domain exists.
struct Contents {
    stage2: Stage2,
    shared_info: Mfn,
    /// The PV console's page.
    console: Option<Mfn>,
    /// Frames of RAM.
    ram: u64,
    /// The guest's device tree, for its next lives.
    tree: &'static [u8],
    boot: BootState,
}

impl<H: Hardware, S: Storage> Builder<'_, H, S> {
    /// Builds a domain without devices of its own: [`Self::build_with`].
    ///
    /// # Errors
    /// As there.
    pub fn build(
        &self,
        config: &DomainConfig<'_>,
        shape: &Shape,
        scratch: &mut [u8],
    ) -> Result<Built, Refusal> {
        self.build_with(config, shape, None, scratch)
    }

    /// Builds a domain. `scratch` holds its device tree for a moment: 8 KiB are enough for 8 vCPUs and a command line of
    /// 2 KiB.
    ///
    /// # Errors
    /// Why it cannot be; every frame is back then.
    pub fn build_with(
        &self,
        config: &DomainConfig<'_>,
        shape: &Shape,
        devices: Option<&Devices<'_>>,
        scratch: &mut [u8],
    ) -> Result<Built, Refusal> {
        let built = self.contents(config, shape.vmid, devices, scratch).and_then(|contents| {
            let boot = contents.boot;
            let mut domain = self.make(config, shape, contents, devices)?;
            for interrupt in devices.into_iter().flat_map(|devices| &devices.assigned.interrupts) {
                let number = interrupt.intid.checked_sub(32).and_then(|number| u8::try_from(number).ok());
                let spi = Spi::new(number.ok_or(Refusal::Devices(NotAssigned::Interrupts))?);
                domain.state.get_mut().gic.declare_hw(spi, spi.intid());
            }
            Ok(Built { domain, boot })
        });
        if built.is_err() {
            self.hw.flush_all(shape.vmid);
            self.frames.free_owner(config.id);
        }
        built
    }

    fn contents(
        &self,
        config: &DomainConfig<'_>,
        vmid: Vmid,
        devices: Option<&Devices<'_>>,
        scratch: &mut [u8],
    ) -> Result<Contents, Refusal> {
        if config.device_tree.is_some() && devices.is_none() {
            return Err(Refusal::PartialTree);
        }
        let image = KernelImage::read(self.hw, config.kernel)?;
        let ram = Ram::of_kib(config.memory_kib)?;
        let ramdisk = config.ramdisk.map_or(0, PhysRange::size);
        let placement = Placement::find(&image, ramdisk, ram.first_bank())?;
        let out_of_memory = ram.out_of_memory(self.frames);

        let limit = u32::try_from(config.quotas.stage2_frames).unwrap_or(u32::MAX);
        let stage2 = Stage2::new(self.hw, self.frames, config.id, vmid, limit);
        let mut stage2 =
            stage2.ok_or(if limit < ROOT_TABLES { Refusal::TooFewTables } else { out_of_memory })?;
        ram.allocate(self.hw, self.frames, config.id, &mut stage2, out_of_memory)?;
        self.host.map_gic(self.hw, self.frames, &mut stage2)?;
        Host::map_devices(self.hw, self.frames, &mut stage2, devices)?;

        let tree =
            self.host.tree(config, &ram, &placement, devices.map(|devices| devices.partial), scratch)?;
        load::module(self.hw, &stage2, placement.kernel, config.kernel)?;
        if let Some(range) = config.ramdisk {
            load::module(self.hw, &stage2, placement.ramdisk, range)?;
        }
        load::bytes(self.hw, &stage2, placement.tree, tree)?;
        let kept = self.storage.slice(tree_room(config), |at| tree.get(at).copied().unwrap_or(0));
        let kept: &'static [u8] = kept.ok_or(Refusal::NoStorage)?;

        let shared_info =
            self.frames.allocate_clear(self.hw, 0, config.id, Role::Shared).ok_or(out_of_memory)?;
        let console = if config.console {
            let page = ring::attach(self.hw, self.frames, config.id, &mut stage2);
            Some(page.ok_or(out_of_memory)?)
        } else {
            None
        };
        Ok(Contents {
            console,
            stage2,
            shared_info,
            ram: ram.frames(),
            tree: kept.get(..tree.len()).unwrap_or_default(),
            boot: BootState { pc: placement.kernel, x0: placement.tree },
        })
    }
}

impl Host<'_> {
    /// Writes the guest's device tree.
    fn tree<'s>(
        &self,
        config: &DomainConfig<'_>,
        ram: &Ram,
        placement: &Placement,
        partial: Option<Tree<'_>>,
        scratch: &'s mut [u8],
    ) -> Result<&'s [u8], Refusal> {
        let initrd = config.ramdisk.and_then(|range| {
            let start = placement.ramdisk.get();
            Some((start, start.checked_add(range.size())?))
        });
        let banks = ram.banks();
        let input = GuestTreeInput {
            bootargs: config.bootargs,
            initrd,
            vcpus: config.vcpus,
            cpu_compatible: self.cpu_compatible,
            cpu_clock_hz: self.cpu_clock_hz,
            memory: banks.as_slice(),
            gic: self.gic,
            timer_clock_hz: self.timer_clock_hz,
            vpl011: config.vpl011,
            hypervisor: config.enhanced != Enhanced::None,
            partial,
        };
        let length = guest_tree(&input, scratch).map_err(|_| Refusal::TreeTooLarge)?;
        scratch.get(..length).filter(|tree| tree.len() <= place::TREE_ROOM).ok_or(Refusal::TreeTooLarge)
    }

    /// Shows its own devices to the guest, where their tree says.
    fn map_devices<H: Hardware>(
        hw: &H,
        frames: &Frames,
        stage2: &mut Stage2,
        devices: Option<&Devices<'_>>,
    ) -> Result<(), Refusal> {
        for range in devices.into_iter().flat_map(|devices| &devices.assigned.ranges) {
            for page in 0..range.host.size() >> pv_abi::PAGE_SHIFT {
                let gfn = Gfn::new(range.guest >> pv_abi::PAGE_SHIFT).and_then(|gfn| gfn.checked_add(page));
                let mfn =
                    Mfn::new(range.host.start() >> pv_abi::PAGE_SHIFT).and_then(|mfn| mfn.checked_add(page));
                let (gfn, mfn) = gfn.zip(mfn).ok_or(Refusal::Misplaced)?;
                stage2.map_blocks(hw, frames, gfn, mfn, 0, Kind::Device)?;
            }
        }
        Ok(())
    }

    /// Shows the machine's virtual CPU interface to a guest with a `GICv2`.
    fn map_gic<H: Hardware>(&self, hw: &H, frames: &Frames, stage2: &mut Stage2) -> Result<(), Refusal> {
        let Some(interface) = self.virtual_interface else { return Ok(()) };
        for page in 0..layout::GICV2_GICC_SIZE >> pv_abi::PAGE_SHIFT {
            let gfn =
                Gfn::new(layout::GICV2_GICC_BASE >> pv_abi::PAGE_SHIFT).and_then(|gfn| gfn.checked_add(page));
            let (gfn, mfn) = gfn.zip(interface.frame().checked_add(page)).ok_or(Refusal::Misplaced)?;
            stage2.map_blocks(hw, frames, gfn, mfn, 0, Kind::Device)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
