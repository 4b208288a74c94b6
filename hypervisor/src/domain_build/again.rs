//! Building a domain anew at run time, from the modules and the configuration of its first life: the same steps as at boot, each small, and nothing that can
//! stop the machine.
//!
//! Invariants
//! 1. The domain is seen by nobody until its first vCPU is started, the last thing that is done.
//! 2. A step that is refused leaves what was done before: the domain is undone as one that has ended ([`crate::life`]).
//! 3. Every frame is cleared, and cleaned to memory, before it is mapped.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use core::sync::atomic::Ordering;

use pv_abi::PAGE_SHIFT;

use super::image::KernelImage;
use super::make::max_frames;
use super::place::Placement;
use super::ram::{Ram, settle};
use super::{Host, Refusal, load};
use crate::addr::{Gfn, Mfn};
use crate::console::ring;
use crate::devicetree::{DomainConfig, PhysRange};
use crate::domain::{Domain, DomainState};
use crate::evtchn;
use crate::frame::Role;
use crate::hardware::Hardware;
use crate::hvm::Params;
use crate::machine::Machine;
use crate::stage2::Kind;
use crate::vgic::DistState;
use crate::vpl011::Vpl011;

/// The largest block that one step takes: 2 MiB, some 8000 instructions to mark.
const LARGEST: u32 = 9;
/// Frames that one step clears, some 1000 instructions each.
const CLEARED: u64 = 8;
/// Parts of a module that one step copies, a frame each at most.
const COPIED: u32 = 6;

/// What domains are built anew of.
pub struct Plans {
    /// In the order of the domains.
    configs: &'static [DomainConfig<'static>],
    host: Host<'static>,
    spis: usize,
}

impl Plans {
    /// Of what the domains were built of at boot, in their order, with so many shared interrupts.
    pub const fn new(configs: &'static [DomainConfig<'static>], host: Host<'static>, spis: usize) -> Self {
        Self { configs, host, spis }
    }

    fn of(&self, domain: &Domain) -> Option<&DomainConfig<'static>> {
        let at = self.configs.binary_search_by(|config| config.id.cmp(&domain.id)).ok()?;
        self.configs.get(at)
    }
}

/// What is to be done next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Build {
    /// Look at what it is built of.
    Begin,
    /// Take a block of RAM for the frame that is so many frames into its RAM.
    Take(u64),
    /// Clear a block that was taken, of this order, from so many frames on.
    Clear {
        /// Frames of RAM before it.
        at: u64,
        /// Its first frame.
        first: Mfn,
        /// Its size.
        order: u32,
        /// Frames that are clear.
        done: u64,
    },
    /// Copy the kernel, from this byte on.
    Kernel(u64),
    /// Copy the RAM disk, from this byte on.
    Ramdisk(u64),
    /// Copy the device tree.
    Tree,
    /// Everything else, and let it run.
    Start,
}

/// Makes one step; true when the domain is ready to run.
pub(crate) fn step<H: Hardware>(machine: &Machine<H>, domain: &Domain) -> Result<bool, Refusal> {
    let config = machine.plans.of(domain).ok_or(Refusal::NoStorage)?;
    // Nobody resets its devices: they are as the old one left them, interrupts included.
    if config.device_tree.is_some() {
        return Err(Refusal::DevicesInUse);
    }
    let mut state = domain.state.lock();
    let (hw, frames) = (&machine.hw, &machine.frames);
    let image = KernelImage::read(hw, config.kernel)?;
    let ram = Ram::of_kib(config.memory_kib)?;
    let placement = Placement::find(&image, config.ramdisk.map_or(0, PhysRange::size), ram.first_bank())?;
    state.build = match state.build {
        Build::Begin if frames.free_frames() < ram.frames() => return Err(ram.out_of_memory(frames)),
        Build::Begin => Build::Take(0),
        Build::Take(at) => match ram.place(at) {
            Some((gfn, left)) => {
                take(machine, domain, &mut state, at, gfn, left).ok_or_else(|| ram.out_of_memory(frames))?
            }
            None => Build::Kernel(0),
        },
        Build::Clear { at, first, order, done } => {
            let (gfn, _) = ram.place(at).ok_or(Refusal::Misplaced)?;
            let count = 1_u64.wrapping_shl(order);
            let until = done.saturating_add(CLEARED).min(count);
            for frame in (done..until).filter_map(|frame| first.checked_add(frame)) {
                hw.clear(frame);
                hw.clean_to_memory(frame);
            }
            // Marking a large block is a step of its own.
            if until < count || (done < count && count > CLEARED) {
                Build::Clear { at, first, order, done: until }
            } else {
                settle(frames, gfn, first, count);
                state.stage2.map_blocks(hw, frames, gfn, first, order, Kind::Ram)?;
                Build::Take(at.saturating_add(count))
            }
        }
        Build::Kernel(done) => {
            let done = copy(hw, &state, placement.kernel, config.kernel, done)?;
            if done < config.kernel.size() { Build::Kernel(done) } else { Build::Ramdisk(0) }
        }
        Build::Ramdisk(done) => match config.ramdisk {
            Some(range) if done < range.size() => {
                Build::Ramdisk(copy(hw, &state, placement.ramdisk, range, done)?)
            }
            Some(_) | None => Build::Tree,
        },
        Build::Tree => {
            // To write it takes long, and what it says has not changed.
            load::bytes(hw, &state.stage2, placement.tree, domain.tree)?;
            Build::Start
        }
        Build::Start => {
            fresh(machine, domain, config, &mut state)?;
            drop(state);
            for channel in &config.channels {
                evtchn::rejoin_static(machine, domain, channel.local_port, channel.peer, channel.peer_port)
                    .map_err(|_| Refusal::Channel)?;
            }
            if !ring::connect(&machine.hw, domain, &mut domain.state.lock()) {
                return Err(Refusal::Channel);
            }
            for vcpu in domain.vcpus {
                hw.reset_vcpu(vcpu.index, placement.kernel, placement.tree);
            }
            return Ok(true);
        }
    };
    Ok(false)
}

/// Takes the largest block for what is next of its RAM; `None` when there is no frame.
fn take<H: Hardware>(
    machine: &Machine<H>,
    domain: &Domain,
    state: &mut DomainState,
    at: u64,
    gfn: Gfn,
    left: u64,
) -> Option<Build> {
    let largest = LARGEST.min(gfn.get().trailing_zeros()).min(left.checked_ilog2().unwrap_or(0));
    let (first, order) = (0..=largest)
        .rev()
        .find_map(|order| Some((machine.frames.allocate(order, domain.id, Role::Data)?, order)))?;
    state.memory.frames = state.memory.frames.saturating_add(1_u64.wrapping_shl(order));
    Some(Build::Clear { at, first, order, done: 0 })
}

/// Copies a few frames of a module; returns how far that came.
fn copy<H: Hardware>(
    hw: &H,
    state: &DomainState,
    to: crate::addr::Ipa,
    module: PhysRange,
    done: u64,
) -> Result<u64, Refusal> {
    let mut done = done;
    for _ in 0..COPIED {
        if done < module.size() {
            done = load::part(hw, &state.stage2, to, module, done)?;
        }
    }
    Ok(done)
}

/// Everything but its memory, as it was at first.
fn fresh<H: Hardware>(
    machine: &Machine<H>,
    domain: &Domain,
    config: &DomainConfig<'_>,
    state: &mut DomainState,
) -> Result<(), Refusal> {
    let Plans { host, spis, .. } = &machine.plans;
    host.map_gic(&machine.hw, &machine.frames, &mut state.stage2)?;
    state
        .grants
        .grow(&machine.hw, &machine.frames, domain.id, 1)
        .map_err(|_| Refusal::OutOfMemory { asked_kib: 8, free_kib: 0 })?;
    state.memory.max_frames = state.memory.frames.max(max_frames(config));
    state.params = Params::new();
    if config.console {
        let page = ring::attach(&machine.hw, &machine.frames, domain.id, &mut state.stage2);
        state.params.console = Some(page.ok_or(Refusal::OutOfMemory { asked_kib: 8, free_kib: 0 })?);
    }
    machine.keyboard.forget(domain.id);
    state.uart = config.vpl011.then(Vpl011::new);
    state.gic = DistState::new(domain.vcpus.len(), *spis);
    state.build = Build::Begin;
    domain.marks_runstate.store(false, Ordering::Relaxed);
    domain.gic.iter().for_each(crate::vgic::VcpuShared::reset);
    let now = machine.hw.counter();
    domain.vcpus.iter().for_each(|vcpu| vcpu.runstate.reset(now));
    Ok(())
}

impl Ram {
    /// The guest frame that is so many frames into the RAM, and how many follow in its bank, itself counted.
    fn place(&self, at: u64) -> Option<(Gfn, u64)> {
        let mut before: u64 = 0;
        for (start, size) in self.banks() {
            let frames = size >> PAGE_SHIFT;
            let inside = at.checked_sub(before)?;
            if inside < frames {
                let gfn = Gfn::new((start >> PAGE_SHIFT).saturating_add(inside))?;
                return Some((gfn, frames.saturating_sub(inside)));
            }
            before = before.saturating_add(frames);
        }
        None
    }
}
