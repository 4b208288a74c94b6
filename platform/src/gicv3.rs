//! Setting a GICv3 up for a hypervisor in the non-secure world: affinity routing, everything in group 1, nothing enabled but what is
//! asked for. Acknowledging, split end of interrupt and list registers are the image's.
#![expect(unsafe_code, reason = "device registers")]

use core::ptr::{NonNull, with_exposed_provenance, with_exposed_provenance_mut};

use crate::redistributors;

use arm_gic::gicv3::GicDistributor;
use arm_gic::gicv3::GicRedistributor;
use arm_gic::gicv3::registers::{Gicd, GicdCtlr, GicrSgi};
use arm_gic::{IntId, Trigger, UniqueMmioPointer};

/// `GICR_TYPER`, from the start of a redistributor.
const GICR_TYPER: usize = 0x8;
/// Shared interrupts that a controller can have.
const MAX_SPIS: u32 = 988;
/// Priority of everything EL2 takes.
const PRIORITY: u8 = 0x80;

/// The controller did not answer as a GICv3 does.
#[derive(Clone, Copy, Debug)]
pub struct Unresponsive;

/// Sets the distributor up; once, by the first CPU.
///
/// # Safety
/// `address` maps the distributor's 64 KiB as device memory; nothing else uses it meanwhile.
///
/// # Errors
/// [`Unresponsive`] for a null address.
pub unsafe fn init_distributor(address: usize) -> Result<(), Unresponsive> {
    let registers = NonNull::new(with_exposed_provenance_mut::<Gicd>(address)).ok_or(Unresponsive)?;
    // SAFETY: the caller's promise.
    let pointer = unsafe { UniqueMmioPointer::new(registers) };
    let mut distributor = GicDistributor::new(pointer);
    distributor.enable_affinity_routing_non_secure(true);
    distributor.modify_control(GicdCtlr::EnableGrp1NS, true);
    distributor.configure_default_settings();
    // Firmware may have left some on. Those beyond what the controller has are refused, which is as well.
    for number in 0..MAX_SPIS {
        let _ = distributor.enable_interrupt(IntId::spi(number), false);
    }
    distributor.wait_for_pending_write();
    Ok(())
}

/// Enables a shared interrupt, which goes to the CPU with this affinity.
///
/// # Safety
/// As for [`init_distributor`].
///
/// # Errors
/// [`Unresponsive`] when it cannot be set up.
pub unsafe fn enable_shared(address: usize, intid: u32, edge: bool, mpidr: u64) -> Result<(), Unresponsive> {
    let registers = NonNull::new(with_exposed_provenance_mut::<Gicd>(address)).ok_or(Unresponsive)?;
    // SAFETY: the caller's promise.
    let pointer = unsafe { UniqueMmioPointer::new(registers) };
    let mut distributor = GicDistributor::new(pointer);
    let id = IntId::spi(intid.checked_sub(32).ok_or(Unresponsive)?);
    let trigger = if edge { Trigger::Edge } else { Trigger::Level };
    distributor.set_trigger(id, trigger).map_err(|_| Unresponsive)?;
    distributor.set_interrupt_priority(id, PRIORITY).map_err(|_| Unresponsive)?;
    distributor.set_routing(id, Some(mpidr)).map_err(|_| Unresponsive)?;
    distributor.enable_interrupt(id, true).map_err(|_| Unresponsive)
}

/// Finds the redistributor of the CPU with this affinity (`MPIDR_EL1`) in a region.
///
/// # Safety
/// `address..address+size` maps redistributors as device memory.
pub unsafe fn find_redistributor(address: usize, size: usize, mpidr: u64) -> Option<usize> {
    let typer = |at: usize| {
        let register = with_exposed_provenance::<u64>(address.wrapping_add(at).wrapping_add(GICR_TYPER));
        // SAFETY: `find` stays inside the region: the caller's promise; reading has no effect.
        unsafe { register.read_volatile() }
    };
    redistributors::find(size, mpidr, typer).and_then(|at| address.checked_add(at))
}

/// Wakes a CPU's redistributor and enables these private interrupts.
///
/// # Safety
/// `address` is this CPU's redistributor, from [`find_redistributor`].
///
/// # Errors
/// [`Unresponsive`] when an interrupt cannot be set up.
pub unsafe fn init_redistributor(address: usize, enabled: &[u32]) -> Result<(), Unresponsive> {
    let registers = NonNull::new(with_exposed_provenance_mut::<GicrSgi>(address)).ok_or(Unresponsive)?;
    // SAFETY: the caller's promise.
    let pointer = unsafe { UniqueMmioPointer::new(registers) };
    let mut redistributor = GicRedistributor::new(pointer);
    // Already awake is fine: the firmware may have done it.
    let _ = redistributor.mark_core_awake();
    redistributor.configure_default_settings();
    for intid in enabled {
        let id = if *intid < 16 { IntId::sgi(*intid) } else { IntId::ppi(intid.wrapping_sub(16)) };
        redistributor.set_interrupt_priority(id, PRIORITY).map_err(|_| Unresponsive)?;
        redistributor.enable_interrupt(id, true).map_err(|_| Unresponsive)?;
    }
    Ok(())
}
