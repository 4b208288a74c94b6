//! The `GICv2` of this CPU: its CPU interface and virtual interface, banked by CPU behind the same addresses.
//!
//! Frames are Device-nGnRE and one peripheral: accesses of a CPU to them arrive in order. A barrier stands where memory is to be
//! ordered with them, or where a write must have arrived before something else happens.
#![expect(unsafe_code, reason = "barriers, and register frames at the addresses that the device tree gives")]

use core::arch::asm;
use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use hypervisor::hardware::CpuId;
use hypervisor::sched::MAX_CPUS;
use hypervisor::vgic::{Layout, ListRegisters, Maintenance};
use platform::gicv2::{
    self, CpuInterface, Distributor, GICD_SGIR, GICH_HCR, GICH_VMCR, GICH_VTR, Unresponsive,
};
use tock_registers::interfaces::{Readable, Writeable};

use super::super::percpu::PerCpu;
use super::{Controller, IS_V2, KICK, VirtualInterface};

/// Addresses of the frames, 0 until they are known.
static DISTRIBUTOR: AtomicUsize = AtomicUsize::new(0);
static CPU_INTERFACE: AtomicUsize = AtomicUsize::new(0);
static VIRTUAL_INTERFACE: AtomicUsize = AtomicUsize::new(0);

/// The bit of each CPU's interface in target lists; 0 while it is not known.
static INTERFACES: [AtomicU8; MAX_CPUS] = [const { AtomicU8::new(0) }; MAX_CPUS];

/// Where the frames are mapped.
#[derive(Clone, Copy)]
pub struct Frames {
    /// `GICD`, 4 KiB.
    pub distributor: usize,
    /// `GICC`, 8 KiB.
    pub cpu_interface: usize,
    /// `GICH`, 4 KiB.
    pub virtual_interface: usize,
}

/// This CPU's `GICv2`, and its list registers `GICH_LR<n>`.
#[derive(Clone, Copy)]
pub struct V2;

#[inline(always)]
fn distributor() -> Option<&'static Distributor> {
    // SAFETY: 0, or what `init_distributor`'s caller promised.
    unsafe { gicv2::frame(DISTRIBUTOR.load(Ordering::Relaxed)) }
}

#[inline(always)]
fn cpu_interface() -> Option<&'static CpuInterface> {
    // SAFETY: as above.
    unsafe { gicv2::frame(CPU_INTERFACE.load(Ordering::Relaxed)) }
}

#[inline(always)]
fn virtual_interface() -> Option<&'static gicv2::VirtualInterface> {
    // SAFETY: as above.
    unsafe { gicv2::frame(VIRTUAL_INTERFACE.load(Ordering::Relaxed)) }
}

/// Says where the frames are, and sets the distributor up; once, by the first CPU.
///
/// # Safety
/// The frames are mapped there as device memory for ever, and nothing else uses them.
pub unsafe fn init_distributor(frames: Frames) -> Result<(), Unresponsive> {
    DISTRIBUTOR.store(frames.distributor, Ordering::Relaxed);
    CPU_INTERFACE.store(frames.cpu_interface, Ordering::Relaxed);
    VIRTUAL_INTERFACE.store(frames.virtual_interface, Ordering::Relaxed);
    IS_V2.store(true, Ordering::Release);
    gicv2::init_distributor(distributor().ok_or(Unresponsive)?)
}

/// Enables these private interrupts of this CPU.
pub fn init_private(enabled: &[u32]) {
    if let Some(distributor) = distributor() {
        gicv2::init_private(distributor, enabled);
    }
}

/// Enables a shared interrupt.
pub fn enable_shared(intid: u32, edge: bool) {
    if let Some(distributor) = distributor() {
        gicv2::enable_shared(distributor, intid, edge);
    }
}

/// Makes a shared interrupt come to this CPU.
pub fn target_here(intid: u32) {
    if let Some(distributor) = distributor() {
        gicv2::target_here(distributor, intid);
    }
}

/// Sets this CPU's interfaces up; returns how many list registers it has.
pub fn init_cpu(cpu: &PerCpu) -> usize {
    let (Some(distributor), Some(physical), Some(interface)) =
        (distributor(), cpu_interface(), virtual_interface())
    else {
        return 0;
    };
    gicv2::init_cpu_interface(physical);
    interface.hcr.set(0);
    let count = (interface.vtr.read(GICH_VTR::LIST_REGISTERS) as usize).saturating_add(1);
    for register in interface.lr.iter().take(count) {
        register.set(0);
    }
    load(&VirtualInterface::default());
    interface.hcr.write(GICH_HCR::EN::SET);
    arrived();
    if let Some(bit) = INTERFACES.get(usize::from(cpu.id.0)) {
        bit.store(gicv2::own_interface(distributor), Ordering::Release);
    }
    count
}

impl Controller for V2 {
    const LRS: Self = Self;

    #[inline(always)]
    fn acknowledge() -> u32 {
        let acknowledged = cpu_interface().map_or(super::SPECIAL, |interface| interface.iar.get());
        // What a kick's sender wrote before is read after: the barrier keeps loads behind the acknowledgement.
        arrived();
        acknowledged
    }

    /// Bits 12:10 name the CPU that sent a SGI; they go back with the end of interrupt (IHI 0048, 4.4.4 and 4.4.5).
    #[inline(always)]
    fn intid(acknowledged: u32) -> u32 {
        acknowledged & 0x3FF
    }

    #[inline(always)]
    fn drop_priority(acknowledged: u32) {
        if let Some(interface) = cpu_interface() {
            interface.eoir.set(acknowledged);
        }
    }

    #[inline(always)]
    fn deactivate(acknowledged: u32) {
        if let Some(interface) = cpu_interface() {
            interface.dir.set(acknowledged);
        }
    }
}

/// Makes a CPU enter the hypervisor.
pub fn kick(cpu: CpuId) {
    let bit = INTERFACES.get(usize::from(cpu.0)).map_or(0, |bit| bit.load(Ordering::Acquire));
    let Some(distributor) = distributor() else { return };
    if bit == 0 {
        return;
    }
    // SAFETY: a barrier: stores before the signal are seen by who gets it.
    unsafe { asm!("dsb ishst", options(nostack, preserves_flags)) };
    distributor.sgir.set(GICD_SGIR::TARGETS.val(u32::from(bit)).value | GICD_SGIR::INTID.val(KICK).value);
}

/// Makes physical interrupts active on this CPU, and waits until that and the list registers are what the guest meets.
pub fn activate(intids: u32) {
    if intids != 0
        && let Some(register) = distributor().and_then(|distributor| distributor.isactiver.first())
    {
        register.set(intids);
        let _ = register.get();
    }
    arrived();
}

/// Asks for a maintenance interrupt.
pub fn request_maintenance(wanted: Maintenance) {
    let which = match wanted {
        Maintenance::None => 0,
        Maintenance::NoPending => GICH_HCR::NPIE::SET.value,
        Maintenance::Underflow => GICH_HCR::UIE::SET.value,
    };
    if let Some(interface) = virtual_interface() {
        interface.hcr.set(GICH_HCR::EN::SET.value | which);
    }
}

/// What the loaded guest set in its CPU interface.
pub fn save(into: &mut VirtualInterface) {
    if let Some(interface) = virtual_interface() {
        into.control = interface.vmcr.get().into();
        into.active = [interface.apr.get().into(), 0];
    }
}

/// Puts it back.
pub fn load(saved: &VirtualInterface) {
    let [active, _] = saved.active;
    if let Some(interface) = virtual_interface() {
        interface.vmcr.set(saved.control as u32);
        interface.apr.set(active as u32);
    }
}

/// The loaded guest's priority mask, of which `GICH_VMCR` has the upper five bits.
pub fn priority_mask() -> u8 {
    virtual_interface().map_or(0, |interface| (interface.vmcr.read(GICH_VMCR::PRIORITY_MASK) << 3) as u8)
}

/// Waits until all accesses before have been answered.
#[inline(always)]
fn arrived() {
    // SAFETY: a barrier.
    unsafe { asm!("dsb sy", options(nostack, preserves_flags)) };
}

impl ListRegisters for V2 {
    #[inline(always)]
    fn layout(&self) -> Layout {
        Layout::V2
    }

    #[inline(always)]
    fn count(&self) -> usize {
        super::list_register_count()
    }

    #[inline]
    fn read(&self, n: usize) -> u64 {
        let register = virtual_interface().and_then(|interface| interface.lr.get(n));
        register.map_or(0, |register| register.get().into())
    }

    #[inline]
    fn write(&mut self, n: usize, value: u64) {
        if let Some(register) = virtual_interface().and_then(|interface| interface.lr.get(n)) {
            register.set(value as u32);
        }
    }

    /// Behind EL2's own writes, as all accesses to the frames are.
    #[inline(always)]
    fn empty_mask(&self) -> u32 {
        virtual_interface().map_or(0, |interface| interface.elsr0.get())
    }
}
