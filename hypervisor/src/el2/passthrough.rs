//! Devices that belong to a domain: who gets what, and the way of their interrupts.
//!
//! A device's interrupt is taken here, its priority is dropped, and it stays active: the guest's own deactivation, through the list
//! register's hardware link, is the physical one, so it comes again only after that. It is enabled from the start: one that comes before
//! the guest wants it waits, as at a real controller.
//!
//! Invariants
//! 1. [`OWNERS`] changes at boot only, before guests run. One interrupt has one owner, one page of registers too.
//! 2. No domain gets what EL2 maps: RAM, or a device that EL2 drives.
#![expect(unsafe_code, reason = "reads partial device trees where they were loaded")]

use core::ptr::with_exposed_provenance;
use core::slice;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};

use hypervisor::devicetree::{Assigned, DomainConfig, HostGic, HostMachine, NotAssigned, PhysRange, Tree};
use hypervisor::domain_build::{Devices, Refusal};
use hypervisor::hardware::CpuId;
use hypervisor::sched;
use hypervisor::vgic::{DistState, Intid, Spi};
use platform::passthrough::WITHOUT_DMA;
use pv_abi::{DomId, layout};

use super::percpu::{ENTRIES, PerCpu};
use super::{direct, gic, mmu};

/// First shared interrupt.
const FIRST: u32 = 32;
/// For each SPI that a guest can have, the id of the domain that has it, plus 1.
static OWNERS: [AtomicU16; 256] = [const { AtomicU16::new(0) }; 256];

/// For each of them the CPU that it goes to.
static HOMES: [AtomicU8; 256] = [const { AtomicU8::new(0) }; 256];

/// Whether any domain has an interrupt of a device.
static ANY: AtomicBool = AtomicBool::new(false);

/// Ranges that domains have been given.
pub type Given = heapless::Vec<PhysRange, 64>;

/// Reads a domain's partial tree, and checks that nobody else has what it names.
pub fn devices(
    tree: &Tree<'static>,
    host: &HostMachine<'_>,
    config: &DomainConfig<'_>,
    given: &Given,
) -> Result<Option<Devices<'static>>, Refusal> {
    let Some(place) = config.device_tree else { return Ok(None) };
    let in_ram =
        host.ram.as_slice().iter().any(|bank| bank.start() <= place.start() && place.end() <= bank.end());
    if !in_ram || place.start() % 4 != 0 || place.end() > direct::LIMIT {
        return Err(Refusal::PartialTree);
    }
    let first = with_exposed_provenance::<u32>(direct::virt(place.start()));
    // SAFETY: RAM, mapped; `boot::memory` keeps modules out of the allocator, so nobody writes it.
    let words = unsafe { slice::from_raw_parts(first, place.size().div_ceil(4) as usize) };
    let partial = Tree::new(words).map_err(|_| Refusal::PartialTree)?;
    let assigned = Assigned::read(&partial, tree, &WITHOUT_DMA).map_err(Refusal::Devices)?;
    for range in assigned.ranges.iter().map(|range| range.host) {
        let used = host.ram.as_slice().iter().chain(given).any(|other| other.overlaps(range));
        if used || virtual_interface(host).is_some_and(|other| other.overlaps(range)) || mmu::maps_any(range)
        {
            return Err(Refusal::DeviceTaken);
        }
    }
    if given.len().saturating_add(assigned.ranges.len()) > given.capacity() {
        return Err(Refusal::Devices(NotAssigned::TooMany));
    }
    let emulated = config.vpl011 && assigned.interrupts.iter().any(|own| own.intid == layout::VPL011_SPI);
    if emulated {
        return Err(Refusal::DeviceTaken);
    }
    let mut interrupts = assigned.interrupts.iter();
    if interrupts
        .any(|interrupt| owner(interrupt.intid).is_none_or(|owner| owner.load(Ordering::Relaxed) != 0))
    {
        return Err(Refusal::DeviceTaken);
    }
    Ok(Some(Devices { partial, assigned }))
}

/// What EL2 shows to guests, and maps nowhere itself.
fn virtual_interface(host: &HostMachine<'_>) -> Option<PhysRange> {
    match &host.gic {
        HostGic::V2 { virtual_interface, .. } => Some(*virtual_interface),
        HostGic::V3 { .. } => None,
    }
}

fn owner(intid: u32) -> Option<&'static AtomicU16> {
    OWNERS.get(intid.checked_sub(FIRST)? as usize)
}

/// Notes whose the devices are from now on, and lets their interrupts in. They go to `cpu`, where the domain's first vCPU starts: one that has its
/// CPU for itself gets them there, and nobody else's CPU is interrupted.
pub fn give(host: &HostMachine<'_>, id: DomId, cpu: CpuId, assigned: &Assigned, given: &mut Given) {
    // There is room: `devices` looked.
    given.extend(assigned.ranges.iter().map(|range| range.host));
    for interrupt in &assigned.interrupts {
        if let Some(owner) = owner(interrupt.intid) {
            owner.store(id.0.wrapping_add(1), Ordering::Relaxed);
            ANY.store(true, Ordering::Relaxed);
            if let Some(home) = home(interrupt.intid) {
                home.store(cpu.0, Ordering::Relaxed);
            }
            enable(host, interrupt.intid, interrupt.edge, cpu);
        }
    }
}

/// Lets a shared interrupt in, on a CPU (of a `GICv2`, once that CPU arrives): by the first one, during boot.
pub fn enable(host: &HostMachine<'_>, intid: u32, edge: bool, cpu: CpuId) {
    match &host.gic {
        HostGic::V2 { .. } => gic::enable_shared(intid, edge),
        HostGic::V3 { distributor, .. } => {
            let address = direct::virt(distributor.start());
            // SAFETY: the distributor, which `boot::interrupt_controller` mapped; boot runs on one CPU.
            let _ = unsafe { platform::gicv3::enable_shared(address, intid, edge, affinity(cpu)) };
        }
    }
}

fn home(intid: u32) -> Option<&'static AtomicU8> {
    HOMES.get(intid.checked_sub(FIRST)? as usize)
}

/// This CPU, another than the first, takes interrupts from now on: those of a `GICv2` that are to come here do; by the number of its interface, which
/// only the CPU itself can read.
pub fn arrive(cpu: CpuId) {
    if gic::is_v2() && ANY.load(Ordering::Relaxed) {
        for (intid, _) in (FIRST..).zip(&HOMES).filter(|(_, home)| home.load(Ordering::Relaxed) == cpu.0) {
            gic::target_here(intid);
        }
    }
}

/// A CPU's affinity.
fn affinity(cpu: CpuId) -> u64 {
    let entry = ENTRIES.get(usize::from(cpu.0)).filter(|_| cpu.0 != 0);
    let known = entry.map(|entry| entry.mpidr.load(Ordering::Relaxed)).filter(|mpidr| *mpidr != u64::MAX);
    known.unwrap_or_else(|| super::regs::mpidr_el1::read() & super::boot::AFFINITY)
}

/// Ends physical interrupts that their guest cancelled before it took them, after a service.
#[inline(always)]
pub fn release(distributor: &mut DistState) {
    if ANY.load(Ordering::Relaxed) {
        deactivate(distributor);
    }
}

#[cold]
#[inline(never)]
fn deactivate(distributor: &mut DistState) {
    for spi in distributor.take_released().iter() {
        gic::deactivate(spi.intid().into());
    }
}

/// Takes a shared interrupt to the domain that has it; false when nobody has.
#[cold]
#[inline(never)]
pub fn take(cpu: &'static PerCpu, intid: u32) -> bool {
    let owner = owner(intid).map_or(0, |owner| owner.load(Ordering::Relaxed));
    let (Some(id), Some(machine)) = (owner.checked_sub(1), cpu.machine.get()) else { return false };
    // Of a domain that has ended it stays active, and so comes no more.
    let Some(domain) = machine.domain(DomId(id)).filter(|domain| domain.life.is_running()) else {
        return true;
    };
    let Some(spi) = intid.checked_sub(FIRST).and_then(|number| u8::try_from(number).ok()) else {
        return true;
    };
    let (Some(vcpu), Some(mailbox)) = (domain.vcpus.first(), domain.gic.first()) else { return true };
    // Any vCPU hands it on to the one that it is routed to.
    if mailbox.raise_remote(Intid::Shared(Spi::new(spi))) {
        sched::wake_for_device(machine, cpu.id, vcpu);
        cpu.reschedule.set(true);
    }
    true
}
