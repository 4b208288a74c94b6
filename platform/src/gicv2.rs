//! A `GICv2` with virtualization extensions (GIC-400 and its like): register frames, and setting it up for a hypervisor
//! (IHI 0048).
//!
//! All interrupts are left in the group that IRQs come from: group 0 without security extensions, and with them what
//! the firmware made non-secure, whose group registers cannot be written from here. Either way bit 0 of `GICD_CTLR` and
//! `GICC_CTLR` enables them.
//!
//! arm-gic's driver enables group 1 of a secure view, and has neither split end of interrupt nor list registers.
#![expect(unsafe_code, reason = "device registers")]
#![allow(
    missing_docs,
    reason = "types that tock-registers' macros make: fields have the architecture's names"
)]

use core::ptr::{NonNull, with_exposed_provenance_mut};

use tock_registers::interfaces::{Readable, Writeable};
use tock_registers::registers::{ReadOnly, ReadWrite, WriteOnly};
use tock_registers::{register_bitfields, register_structs};

register_bitfields! { u32,
    /// `GICD_CTLR` (4.3.1), as seen without security extensions or from the non-secure world.
    pub GICD_CTLR [
        /// Forward interrupts.
        ENABLE OFFSET(0) NUMBITS(1) []
    ],
    /// `GICD_TYPER` (4.3.2).
    pub GICD_TYPER [
        /// Words of 32 interrupts, minus one.
        LINES OFFSET(0) NUMBITS(5) []
    ],
    /// `GICD_SGIR` (4.3.15).
    pub GICD_SGIR [
        /// Targets, one bit an interface.
        TARGETS OFFSET(16) NUMBITS(8) [],
        /// Interrupt.
        INTID OFFSET(0) NUMBITS(4) []
    ],
    /// `GICC_CTLR` (4.4.1), as seen without security extensions or from the non-secure world.
    pub GICC_CTLR [
        /// `GICC_EOIR` only drops the priority.
        EOIMODE OFFSET(9) NUMBITS(1) [],
        /// Signal interrupts.
        ENABLE OFFSET(0) NUMBITS(1) []
    ],
    /// `GICH_HCR` (5.3.1).
    pub GICH_HCR [
        /// Maintenance interrupt when nothing is pending.
        NPIE OFFSET(3) NUMBITS(1) [],
        /// Maintenance interrupt when at most one list register is in use.
        UIE OFFSET(1) NUMBITS(1) [],
        /// Virtual interface on.
        EN OFFSET(0) NUMBITS(1) []
    ],
    /// `GICH_VTR` (5.3.2).
    pub GICH_VTR [
        /// List registers, minus one.
        LIST_REGISTERS OFFSET(0) NUMBITS(6) []
    ],
    /// `GICH_VMCR` (5.3.3).
    pub GICH_VMCR [
        /// Upper five bits of the guest's priority mask.
        PRIORITY_MASK OFFSET(27) NUMBITS(5) []
    ]
}

register_structs! {
    /// Distributor, `GICD`.
    pub Distributor {
        (0x000 => pub ctlr: ReadWrite<u32, GICD_CTLR::Register>),
        (0x004 => pub typer: ReadOnly<u32, GICD_TYPER::Register>),
        (0x008 => _identification),
        (0x080 => pub igroupr: [ReadWrite<u32>; 32]),
        (0x100 => pub isenabler: [ReadWrite<u32>; 32]),
        (0x180 => pub icenabler: [ReadWrite<u32>; 32]),
        (0x200 => pub ispendr: [ReadWrite<u32>; 32]),
        (0x280 => pub icpendr: [ReadWrite<u32>; 32]),
        (0x300 => pub isactiver: [ReadWrite<u32>; 32]),
        (0x380 => pub icactiver: [ReadWrite<u32>; 32]),
        (0x400 => pub ipriorityr: [ReadWrite<u32>; 256]),
        (0x800 => pub itargetsr: [ReadWrite<u8>; 1024]),
        (0xc00 => pub icfgr: [ReadWrite<u32>; 64]),
        (0xd00 => _implementation),
        (0xf00 => pub sgir: WriteOnly<u32, GICD_SGIR::Register>),
        (0xf04 => _reserved),
        (0x1000 => @END),
    }
}

register_structs! {
    /// CPU interface, `GICC`.
    pub CpuInterface {
        (0x0000 => pub ctlr: ReadWrite<u32, GICC_CTLR::Register>),
        (0x0004 => pub pmr: ReadWrite<u32>),
        (0x0008 => pub bpr: ReadWrite<u32>),
        (0x000c => pub iar: ReadOnly<u32>),
        (0x0010 => pub eoir: WriteOnly<u32>),
        (0x0014 => _others),
        (0x1000 => pub dir: WriteOnly<u32>),
        (0x1004 => @END),
    }
}

register_structs! {
    /// Virtual interface control, `GICH`.
    pub VirtualInterface {
        (0x000 => pub hcr: ReadWrite<u32, GICH_HCR::Register>),
        (0x004 => pub vtr: ReadOnly<u32, GICH_VTR::Register>),
        (0x008 => pub vmcr: ReadWrite<u32, GICH_VMCR::Register>),
        (0x00c => _reserved0),
        (0x030 => pub elsr0: ReadOnly<u32>),
        (0x034 => _reserved1),
        (0x0f0 => pub apr: ReadWrite<u32>),
        (0x0f4 => _reserved2),
        (0x100 => pub lr: [ReadWrite<u32>; 64]),
        (0x200 => @END),
    }
}

/// Priority of everything that EL2 takes, four interrupts a word.
const PRIORITIES: u32 = 0x8080_8080;

/// The controller did not answer as a `GICv2` does.
#[derive(Clone, Copy, Debug)]
pub struct Unresponsive;

/// A register frame at an address.
///
/// # Safety
/// `address` maps that frame as device memory for ever. Frames are shared by all CPUs; the accesses made through them are the
/// caller's matter.
#[inline]
pub unsafe fn frame<T>(address: usize) -> Option<&'static T> {
    let registers = NonNull::new(with_exposed_provenance_mut::<T>(address))?;
    // SAFETY: the caller's promise.
    Some(unsafe { registers.as_ref() })
}

/// Sets the distributor up, on the first CPU: nothing enabled, shared interrupts to this CPU.
///
/// # Errors
/// It cannot be switched on.
pub fn init_distributor(distributor: &Distributor) -> Result<(), Unresponsive> {
    distributor.ctlr.write(GICD_CTLR::ENABLE::CLEAR);
    let words = distributor.typer.read(GICD_TYPER::LINES) as usize;
    let own = own_interface(distributor);
    // Word 0 is banked: each CPU's own.
    let words = 1..words.saturating_add(1);
    for arrays in [&distributor.icenabler, &distributor.icactiver, &distributor.icpendr] {
        fill(arrays, words.clone(), u32::MAX);
    }
    fill(&distributor.igroupr, words.clone(), 0);
    let of = |each: usize| each..words.end.saturating_mul(each);
    fill(&distributor.icfgr, of(2), 0);
    fill(&distributor.ipriorityr, of(8), PRIORITIES);
    for target in distributor.itargetsr.iter().take(of(32).end).skip(of(32).start) {
        target.set(own);
    }
    distributor.ctlr.write(GICD_CTLR::ENABLE::SET);
    if distributor.ctlr.is_set(GICD_CTLR::ENABLE) { Ok(()) } else { Err(Unresponsive) }
}

/// Enables exactly these private interrupts of this CPU.
pub fn init_private(distributor: &Distributor, enabled: &[u32]) {
    for arrays in [&distributor.icenabler, &distributor.icactiver, &distributor.icpendr] {
        fill(arrays, 0..1, u32::MAX);
    }
    fill(&distributor.igroupr, 0..1, 0);
    fill(&distributor.ipriorityr, 0..8, PRIORITIES);
    let set = enabled.iter().fold(0, |set, intid| set | 1_u32.wrapping_shl(*intid));
    fill(&distributor.isenabler, 0..1, set);
}

/// Makes a shared interrupt come to this CPU. Targets are bytes, and may be written as such (4.3.12): CPUs need no turns.
pub fn target_here(distributor: &Distributor, intid: u32) {
    let own = own_interface(distributor);
    if let Some(target) = distributor.itargetsr.get(intid as usize).filter(|_| own != 0) {
        target.set(own);
    }
}

/// Enables a shared interrupt, which goes to the CPU that set the distributor up until another one asks for it ([`target_here`]).
pub fn enable_shared(distributor: &Distributor, intid: u32, edge: bool) {
    let (word, bit) = ((intid / 32) as usize, intid % 32);
    let (field, shift) = ((intid / 16) as usize, (intid % 16).wrapping_mul(2));
    if let Some(config) = distributor.icfgr.get(field) {
        // Bit 1 of the field: edge-triggered (4.3.13).
        let kept = config.get() & !2_u32.wrapping_shl(shift);
        config.set(kept | if edge { 2_u32.wrapping_shl(shift) } else { 0 });
    }
    if let Some(enable) = distributor.isenabler.get(word) {
        enable.set(1_u32.wrapping_shl(bit));
    }
}

/// This CPU's interface, the bit that target lists name it by; none on a machine with one CPU, where nobody needs it. Targets of
/// private interrupts read as it (4.3.12), though not all need to be implemented.
pub fn own_interface(distributor: &Distributor) -> u8 {
    distributor.itargetsr.iter().take(32).map(ReadWrite::get).find(|byte| *byte != 0).unwrap_or(0)
}

/// Signals interrupts to this CPU, with split end of interrupt.
pub fn init_cpu_interface(interface: &CpuInterface) {
    interface.ctlr.set(0);
    interface.pmr.set(0xff);
    interface.bpr.set(0);
    interface.ctlr.set(GICC_CTLR::ENABLE::SET.value | GICC_CTLR::EOIMODE::SET.value);
}

fn fill(registers: &[ReadWrite<u32>], which: core::ops::Range<usize>, value: u32) {
    for register in registers.iter().take(which.end).skip(which.start) {
        register.set(value);
    }
}
