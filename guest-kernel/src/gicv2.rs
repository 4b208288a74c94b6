//! A guest's view of the `GICv2` (Arm IHI 0048): distributor and CPU interface by MMIO.
use crate::gic::Intid;
use crate::mmio::Registers;
use crate::smp::Cpu;

const GICD_CTLR: usize = 0x000;
const GICD_ISENABLER0: usize = 0x100;
const GICD_ICENABLER0: usize = 0x180;
const GICD_IPRIORITYR: usize = 0x400;
/// Software generated interrupt register; target filter 2: the requester itself.
const GICD_SGIR: usize = 0xf00;
const TO_SELF: u32 = 2 << 24;
const GICC_CTLR: usize = 0x00;
const GICC_PMR: usize = 0x04;
const GICC_BPR: usize = 0x08;
const GICC_IAR: usize = 0x0c;
const GICC_EOIR: usize = 0x10;
const ENABLE: u32 = 1;
const PRIORITY: u8 = 0xa0;
const LOWEST: u32 = 0xff;

/// The controller, and the interface, which shows each vCPU its own.
pub(crate) struct GicV2 {
    distributor: Registers,
    cpu: Registers,
}

impl GicV2 {
    /// Switches everything on; no interrupt is enabled yet.
    pub(crate) fn start(distributor: Registers, cpu: Registers) -> Self {
        distributor.write32(GICD_CTLR, ENABLE);
        let gic = Self { distributor, cpu };
        gic.start_here();
        gic
    }

    /// Switches this vCPU's interface on: registers of private interrupts are each vCPU's own.
    pub(crate) fn start_here(&self) {
        self.distributor.write32(GICD_ICENABLER0, u32::MAX);
        for offset in (0..32).step_by(4) {
            self.distributor.write32(GICD_IPRIORITYR + offset, u32::from_le_bytes([PRIORITY; 4]));
        }
        self.cpu.write32(GICC_PMR, LOWEST);
        self.cpu.write32(GICC_BPR, 0);
        self.cpu.write32(GICC_CTLR, ENABLE);
    }

    pub(crate) fn enable(&self, intid: Intid) {
        self.distributor.write32(GICD_ISENABLER0, intid.bit());
    }

    pub(crate) fn disable(&self, intid: Intid) {
        self.distributor.write32(GICD_ICENABLER0, intid.bit());
    }

    pub(crate) const fn distributor(&self) -> Registers {
        self.distributor
    }

    /// Takes the highest pending interrupt: the register's value, with the sender of an SGI in its upper bits.
    pub(crate) fn acknowledge(&self) -> u32 {
        self.cpu.read32(GICC_IAR)
    }

    /// Ends the interrupt that `acknowledge` returned.
    pub(crate) fn end(&self, acknowledged: u32) {
        self.cpu.write32(GICC_EOIR, acknowledged);
    }

    /// Where and what to write to raise an SGI on this vCPU.
    pub(crate) fn own_sgi(intid: Intid) -> (usize, u32) {
        (GICD_SGIR, TO_SELF | (intid.number() & 0xf))
    }

    /// Raises an SGI on a vCPU.
    pub(crate) fn send(&self, target: Cpu, intid: Intid) {
        self.distributor.write32(GICD_SGIR, 1 << (16 + target.index()) | (intid.number() & 0xf));
    }

    /// Raises an SGI on this vCPU.
    pub(crate) fn send_to_self(&self, intid: Intid) {
        let (register, value) = Self::own_sgi(intid);
        self.distributor.write32(register, value);
    }
}
