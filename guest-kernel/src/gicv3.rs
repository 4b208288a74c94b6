//! A guest's view of the `GICv3` (Arm IHI 0069): distributor and redistributor by MMIO, CPU interface in system registers.
#![expect(unsafe_code, reason = "ICC system registers")]
use core::arch::asm;

use aarch64_cpu::registers::{MPIDR_EL1, Readable};

use spin::Once;

use crate::cpu;
use crate::gic::Intid;
use crate::mmio::Registers;
use crate::smp::{self, MAX_CPUS};

const GICD_CTLR: usize = 0x0000;
/// In `GICD_CTLR`, seen from the non-secure side: group 1 on (both names), affinity routing on.
const ENABLE_GROUP1: u32 = 1 << 0 | 1 << 1;
const AFFINITY_ROUTING: u32 = 1 << 4;

const GICR_TYPER: usize = 0x0008;
const TYPER_VLPIS: u64 = 1 << 1;
const TYPER_LAST: u64 = 1 << 4;
const GICR_WAKER: usize = 0x0014;
const PROCESSOR_SLEEP: u32 = 1 << 1;
const CHILDREN_ASLEEP: u32 = 1 << 2;
/// Second frame of a redistributor: SGIs and PPIs.
const SGI_FRAME: usize = 0x1_0000;
const GICR_IGROUPR0: usize = SGI_FRAME + 0x0080;
const GICR_ISENABLER0: usize = SGI_FRAME + 0x0100;
const GICR_ICENABLER0: usize = SGI_FRAME + 0x0180;
const GICR_IPRIORITYR: usize = SGI_FRAME + 0x0400;
/// Bytes of a redistributor without and with the frames of virtual LPIs.
const STRIDES: [usize; 2] = [0x2_0000, 0x4_0000];
/// Affinity fields of `MPIDR_EL1`.
const AFFINITY: u64 = 0xff_00ff_ffff;
/// Priority of every interrupt, and the mask that lets it pass.
const PRIORITY: u8 = 0xa0;
const LOWEST: u64 = 0xff;
/// Reads of `GICR_WAKER` before the redistributor is given up.
const PATIENCE: u32 = 1 << 16;

macro_rules! write_register {
    ($name:literal, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: a CPU interface register that affects only which interrupts this vCPU takes; the barrier orders it.
        unsafe { asm!(concat!("msr ", $name, ", {0}"), "isb", in(reg) value, options(nostack, preserves_flags)); }
    }};
}

/// The controller, and each vCPU's redistributor once that has found it.
pub(crate) struct GicV3 {
    distributor: Registers,
    redistributors: Registers,
    own: [Once<Registers>; MAX_CPUS],
}

impl GicV3 {
    /// Switches everything on for this vCPU; no interrupt is enabled yet.
    pub(crate) fn start(distributor: Registers, redistributors: Registers) -> Option<Self> {
        distributor.write32(GICD_CTLR, AFFINITY_ROUTING | ENABLE_GROUP1);
        let gic = Self { distributor, redistributors, own: [const { Once::new() }; MAX_CPUS] };
        gic.start_here()?;
        Some(gic)
    }

    /// Finds this vCPU's redistributor and switches it and the CPU interface on.
    pub(crate) fn start_here(&self) -> Option<()> {
        let own = self.own.get(smp::this().index())?;
        let redistributor = *own.try_call_once(|| find_own(self.redistributors).ok_or(())).ok()?;
        redistributor.write32(GICR_WAKER, redistributor.read32(GICR_WAKER) & !PROCESSOR_SLEEP);
        (0..PATIENCE).find(|_| redistributor.read32(GICR_WAKER) & CHILDREN_ASLEEP == 0)?;
        redistributor.write32(GICR_ICENABLER0, u32::MAX);
        redistributor.write32(GICR_IGROUPR0, u32::MAX);
        for offset in (0..32).step_by(4) {
            redistributor.write32(GICR_IPRIORITYR + offset, u32::from_le_bytes([PRIORITY; 4]));
        }
        write_register!("S3_0_C12_C12_5", 1); // ICC_SRE_EL1.SRE
        write_register!("S3_0_C4_C6_0", LOWEST); // ICC_PMR_EL1
        write_register!("S3_0_C12_C12_3", 0); // ICC_BPR1_EL1
        write_register!("S3_0_C12_C12_4", 0); // ICC_CTLR_EL1: one write both drops priority and deactivates
        write_register!("S3_0_C12_C12_7", 1); // ICC_IGRPEN1_EL1
        Some(())
    }

    fn write_own(&self, register: usize, value: u32) {
        if let Some(own) = self.own.get(smp::this().index()).and_then(Once::get) {
            own.write32(register, value);
        }
    }

    pub(crate) fn enable(&self, intid: Intid) {
        self.write_own(GICR_ISENABLER0, intid.bit());
    }

    pub(crate) fn disable(&self, intid: Intid) {
        self.write_own(GICR_ICENABLER0, intid.bit());
    }

    pub(crate) const fn distributor(&self) -> Registers {
        self.distributor
    }

    /// Takes the highest pending interrupt: a raw INTID.
    pub(crate) fn acknowledge() -> u32 {
        let intid: u64;
        // SAFETY: ICC_IAR1_EL1; reading it activates the interrupt that is then handled.
        unsafe {
            asm!("mrs {0}, S3_0_C12_C12_0", "dsb sy", out(reg) intid, options(nostack, preserves_flags));
        }
        (intid & 0xff_ffff) as u32
    }

    /// Ends the interrupt that `acknowledge` returned.
    pub(crate) fn end(intid: u32) {
        write_register!("S3_0_C12_C12_1", u64::from(intid)); // ICC_EOIR1_EL1
    }

    /// What `ICC_SGI1R_EL1` takes to raise an SGI on this vCPU.
    pub(crate) fn own_sgi(intid: Intid) -> u64 {
        Self::sgi(MPIDR_EL1.get(), intid)
    }

    /// What `ICC_SGI1R_EL1` takes to raise an SGI on the vCPU with these affinity fields.
    fn sgi(mpidr: u64, intid: Intid) -> u64 {
        let [aff0, aff1, aff2, _, aff3, ..] = mpidr.to_le_bytes();
        1 << (aff0 & 0xf)
            | u64::from(aff1) << 16
            | u64::from(intid.number() & 0xf) << 24
            | u64::from(aff2) << 32
            | u64::from(aff0 >> 4) << 44
            | u64::from(aff3) << 48
    }

    /// Raises an SGI on the vCPU with these affinity fields. What was written before is visible to its handler.
    pub(crate) fn send(affinity: u64, intid: Intid) {
        cpu::synchronize();
        write_register!("S3_0_C12_C11_5", Self::sgi(affinity, intid)); // ICC_SGI1R_EL1
    }

    /// Raises an SGI on this vCPU.
    pub(crate) fn send_to_self(intid: Intid) {
        write_register!("S3_0_C12_C11_5", Self::own_sgi(intid)); // ICC_SGI1R_EL1
    }
}

/// The redistributor whose affinity is this vCPU's. Bounded by the region.
fn find_own(all: Registers) -> Option<Registers> {
    let own = MPIDR_EL1.get() & AFFINITY;
    // TYPER has Aff3 beside Aff2, MPIDR has a gap.
    let own = own & 0xff_ffff | own >> 32 << 24;
    let mut base = 0;
    while let Some(one) = all.part(base, STRIDES[0]) {
        let typer = one.read64(GICR_TYPER);
        if typer >> 32 == own {
            return Some(one);
        }
        if typer & TYPER_LAST != 0 {
            break;
        }
        base += STRIDES[usize::from(typer & TYPER_VLPIS != 0)];
    }
    None
}
