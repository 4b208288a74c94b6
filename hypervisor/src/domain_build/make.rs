//! The [`Domain`] value: its tables in boot storage, its first frames in the grant table, its static channels.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pv_abi::PAGE_SHIFT;
use pv_abi::event::NR_CHANNELS_2L;
use pv_abi::grant::ENTRIES_PER_FRAME;

use super::refusal::Refusal;
use super::{Builder, Contents, Devices};
use crate::addr::Mfn;
use crate::console::{LineBuffer, ring};
use crate::devicetree::{DomainConfig, Enhanced, Paging, Quotas};
use crate::domain::{Domain, DomainState, LifeCell};
use crate::evtchn::{Fifo, PortsState, bind_static};
use crate::grant::{GREF_LIMIT, GrantState, GrantTables, TRACKS_PER_FRAME, TableFrame};
use crate::hardware::{CpuId, Hardware, Vmid};
use crate::hvm::Params;
use crate::life::{Build, Fate, Undo};
use crate::lock::Lock;
use crate::memory::MemoryState;
use crate::pagetable;
use crate::pause::Pauses;
use crate::sched::pool::CpuMask;
use crate::sched::share::Cap;
use crate::vcpu::{Place, Vcpu, VcpuIndex};
use crate::vgic::{DistState, VcpuShared};
use crate::vpl011::Vpl011;
use crate::watchdog::Watchdogs;

/// Mappings of others' grants that Xen tracks in one frame of maptrack.
const XEN_TRACKS_PER_FRAME: u32 = 256;
/// Mappings that a domain may hold at once whatever its configuration says: Xen's default.
const MAX_TRACKS: u32 = 1024 * XEN_TRACKS_PER_FRAME;

/// Mappings that a domain may hold at once. Of its last handle Xen makes no use: its list of free ones never becomes empty.
fn max_tracks(maptrack_frames: u32) -> u32 {
    maptrack_frames.saturating_mul(XEN_TRACKS_PER_FRAME).saturating_sub(1).min(MAX_TRACKS)
}
/// Frames of a grant table whatever the configuration says.
const MAX_GRANT_FRAMES: u32 = 64;
const _: () = assert!(MAX_GRANT_FRAMES * ENTRIES_PER_FRAME <= GREF_LIMIT);

/// Bytes of a guest's device tree at most: 8 vCPUs and a command line of 2 KiB.
const TREE: usize = 8 << 10;

/// Memory for what lives as long as the hypervisor, carved at boot and never given back.
pub trait Storage {
    /// `n` values, made by their index; `None` when there is no room.
    fn slice<T: Send + Sync + 'static>(
        &self,
        n: usize,
        make: impl FnMut(usize) -> T,
    ) -> Option<&'static mut [T]>;
}

/// Bytes of boot storage that a domain takes by [`Storage::slice`] while it is built, each slice rounded up to a power of two as a buddy allocator
/// does.
pub fn storage_of(config: &DomainConfig<'_>) -> u64 {
    fn bytes<T>(count: u32) -> u64 {
        let size = u64::try_from(size_of::<T>()).unwrap_or(0);
        u64::from(count).saturating_mul(size).checked_next_power_of_two().unwrap_or(u64::MAX)
    }
    let Quotas { max_ports, grant_frames, maptrack_frames, .. } = config.quotas;
    let tracks = max_tracks(maptrack_frames);
    [
        bytes::<AtomicU64>(max_ports.min(NR_CHANNELS_2L)),
        bytes::<Vcpu>(config.vcpus),
        bytes::<VcpuShared>(config.vcpus),
        bytes::<Option<TableFrame>>(grant_frames.min(MAX_GRANT_FRAMES)),
        bytes::<Option<Mfn>>(tracks.div_ceil(TRACKS_PER_FRAME)),
        tree_room(config) as u64,
    ]
    .into_iter()
    .fold(0, u64::saturating_add)
}

/// Bytes of boot storage in which a domain's device tree is kept: as many as it may have, but for a domain with devices, which is not built again.
pub(super) fn tree_room(config: &DomainConfig<'_>) -> usize {
    if config.device_tree.is_some() { 0 } else { TREE }
}

/// A domain's place among the others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Its address space's name in the TLB.
    pub vmid: Vmid,
    /// Index of its first vCPU in the machine; the others follow.
    pub first_vcpu: VcpuIndex,
    /// CPU of its first vCPU; the others follow, round after round.
    pub first_cpu: CpuId,
    /// CPUs of the machine, at least 1.
    pub cpus: u8,
    /// Shared interrupts that its distributor has, a multiple of 32.
    pub spis: usize,
}

impl Shape {
    /// All CPUs of the machine.
    fn all_cpus(&self) -> CpuMask {
        CpuMask::MAX.checked_shr(CpuMask::BITS.saturating_sub(u32::from(self.cpus))).unwrap_or(1)
    }

    fn vcpu(&self, config: &DomainConfig<'_>, number: usize) -> Vcpu {
        // vCPUs of the machine are far fewer than 65536, those of a domain than 256.
        let number = u16::try_from(number).unwrap_or(u16::MAX);
        let turn =
            u16::from(self.first_cpu.0).wrapping_add(number).checked_rem(u16::from(self.cpus)).unwrap_or(0);
        let home = CpuId(u8::try_from(turn).unwrap_or(0));
        let place = Place { pool: 0, allowed: self.all_cpus(), home };
        Vcpu::new(config.id, u32::from(number), VcpuIndex(self.first_vcpu.0.wrapping_add(number)), place)
    }
}

/// RAM that a domain may have, in frames.
pub(super) const fn max_frames(config: &DomainConfig<'_>) -> u64 {
    config.quotas.memory_kib >> (PAGE_SHIFT - 10)
}

impl<H: Hardware, S: Storage> Builder<'_, H, S> {
    /// Makes the domain of its configuration and contents.
    pub(super) fn make(
        &self,
        config: &DomainConfig<'_>,
        shape: &Shape,
        contents: Contents,
        devices: Option<&Devices<'_>>,
    ) -> Result<Domain, Refusal> {
        let last = devices.and_then(|devices| devices.assigned.interrupts.iter().map(|own| own.intid).max());
        let spis =
            last.map_or(0, |intid| usize::try_from(intid).unwrap_or(0).saturating_sub(31)).max(shape.spis);
        let vcpus = usize::try_from(config.vcpus).map_err(|_| Refusal::NoStorage)?;
        // No port beyond the 2-level ABI can be used.
        let ports = config.quotas.max_ports.min(NR_CHANNELS_2L);
        let ports = usize::try_from(ports).map_err(|_| Refusal::NoStorage)?;
        let mut grants = GrantState::new(self.grant_tables(config)?);
        grants.grow(self.hw, self.frames, config.id, 1).map_err(|_| Refusal::NoStorage)?;

        let ports: &'static [AtomicU64] = self.carve(ports, |_| AtomicU64::new(0))?;
        let all: &'static [Vcpu] = self.carve(vcpus, |number| shape.vcpu(config, number))?;
        if let Some(first) = all.first() {
            // Xen's legacy place for the first vCPU's info: the start of the shared-info page.
            first.info.store(contents.shared_info.base().get(), Ordering::Release);
        }
        let state = DomainState {
            ports: PortsState::new(),
            grants,
            memory: MemoryState { frames: contents.ram, max_frames: contents.ram.max(max_frames(config)) },
            params: Params { console: contents.console, ..Params::new() },
            uart: config.vpl011.then(Vpl011::new),
            gic: DistState::new(vcpus, spis),
            stage2: contents.stage2,
            undo: Undo::Stop,
            build: Build::Begin,
            paging: (config.paging == Paging::Pv).then(pagetable::Paging::new),
        };
        let domain = Domain {
            id: config.id,
            vmid: shape.vmid,
            stage2_root: state.stage2.root(),
            shared_info: contents.shared_info,
            enhanced: config.enhanced != Enhanced::None,
            isolated: config.isolated,
            life: LifeCell::default(),
            marks_runstate: AtomicBool::new(false),
            fate: Fate::new(config.policy),
            pauses: Pauses::new(),
            cap: Cap::new(),
            paging: (config.paging == Paging::Pv).then(pagetable::Shared::new),
            polled: AtomicBool::new(false),
            watchdogs: Watchdogs::new(),
            ports,
            fifo: Fifo::new(),
            vcpus: all,
            tree: contents.tree,
            gic: self.carve(vcpus, |_| VcpuShared::new())?,
            state: Lock::new(state),
            console: Lock::new(LineBuffer::new()),
        };
        for channel in &config.channels {
            bind_static(self.hw, &domain, channel.local_port, channel.peer, channel.peer_port)
                .map_err(|_| Refusal::Channel)?;
        }
        let connected = ring::connect(self.hw, &domain, &mut domain.state.lock());
        if connected { Ok(domain) } else { Err(Refusal::Channel) }
    }

    fn grant_tables(&self, config: &DomainConfig<'_>) -> Result<GrantTables, Refusal> {
        let count = |number: u32| usize::try_from(number).map_err(|_| Refusal::NoStorage);
        let max_tracks = max_tracks(config.quotas.maptrack_frames);
        Ok(GrantTables {
            frames: self.carve(count(config.quotas.grant_frames.min(MAX_GRANT_FRAMES))?, |_| None)?,
            tracks: self.carve(count(max_tracks.div_ceil(TRACKS_PER_FRAME))?, |_| None)?,
            max_tracks,
        })
    }

    fn carve<T: Send + Sync + 'static>(
        &self,
        n: usize,
        make: impl FnMut(usize) -> T,
    ) -> Result<&'static mut [T], Refusal> {
        self.storage.slice(n, make).ok_or(Refusal::NoStorage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_may_hold_as_many_mappings_as_on_xen() {
        // A frame of Xen's tells of 256, and the last of all is never given out; 1024 frames are its default.
        assert_eq!([0, 1, 2, 1024].map(max_tracks), [0, 255, 511, 262_143]);
        // More than the default is not had here.
        assert_eq!([1025, u32::MAX].map(max_tracks), [262_144; 2]);
    }
}
