//! Registers of the redistributor frames, and the configuration of private interrupts.
//!
//! Any vCPU may access any redistributor of its domain. Configuration changes at once, in the atomics beside the vCPU;
//! pending and active state belongs to the vCPU's own CPU, so writes leave a request for it, and reads give what it
//! last published with the requests on top.

use super::bank::{Bank, Decoded, Op, decode, gather};
use super::dist::DistState;
use super::dist_mmio::{IIDR, PIDR2, replace_half};
use super::ids::{VcpuMask, VcpuNumber};
use super::mmio::{AccessSize, Written, read_part, word_of};
use super::shared::{VcpuShared, Vcpus};

/// Bytes of one vCPU's two frames.
const REDISTRIBUTOR_SIZE: u64 = 0x2_0000;
/// Where `SGI_base` starts in them.
const SGI_BASE: u64 = 0x1_0000;
/// `GICR_TYPER.Last`.
const TYPER_LAST: u64 = 1 << 4;

/// Where an access goes.
enum Place {
    /// `RD_base`, offset in it.
    Rd(VcpuNumber, u64),
    /// One of the arrays in `SGI_base`.
    Sgi(VcpuNumber, Bank),
}

/// Registers of `RD_base`.
enum Register {
    Typer,
    Iidr,
    Pidr2,
    /// CTLR, STATUSR, WAKER (never asleep), SYNCR (never busy), and the LPI registers: there are no LPIs.
    Zero,
}

fn register(offset: u64, size: AccessSize) -> Option<Register> {
    match (offset, size) {
        (0x0008..0x0010, _) => read_part(0, offset, size).map(|_| Register::Typer),
        // SETLPIR, CLRLPIR, PROPBASER, PENDBASER, INVLPIR, INVALLR.
        (0x0040..0x0050 | 0x0070..0x0080 | 0x00a0..0x00a8 | 0x00b0..0x00b8, _) => {
            read_part(0, offset, size).map(|_| Register::Zero)
        }
        (0x0000 | 0x0010 | 0x0014 | 0x00c0, AccessSize::Word) => Some(Register::Zero),
        (0x0004, AccessSize::Word) => Some(Register::Iidr),
        (0xffe8, AccessSize::Word) => Some(Register::Pidr2),
        _ => None,
    }
}

impl DistState {
    fn place(&self, offset: u64, size: AccessSize) -> Option<Place> {
        let index = usize::try_from(offset.checked_div(REDISTRIBUTOR_SIZE)?).ok()?;
        let vcpu = VcpuNumber::new(index).filter(|vcpu| vcpu.get() < self.vcpus())?;
        let within = offset & 0x1_ffff;
        let Some(offset) = within.checked_sub(SGI_BASE) else { return Some(Place::Rd(vcpu, within)) };
        match decode(offset, size) {
            // Only the first register of each array is here: 32 interrupts.
            Decoded::Bank(
                bank @ (Bank::Enable(_, 0)
                | Bank::Pending(_, 0)
                | Bank::Active(_, 0)
                | Bank::Priority(0..32, _)
                | Bank::Config(0 | 1)),
            ) => Some(Place::Sgi(vcpu, bank)),
            // IGROUPR0, IGRPMODR0, NSACR.
            Decoded::Bank(Bank::Zero) if matches!(offset, 0x80 | 0xd00 | 0xe00) => {
                Some(Place::Sgi(vcpu, Bank::Zero))
            }
            Decoded::Bank(
                Bank::Enable(..)
                | Bank::Pending(..)
                | Bank::Active(..)
                | Bank::Priority(..)
                | Bank::Config(_)
                | Bank::Zero,
            )
            | Decoded::BadWidth
            | Decoded::Elsewhere => None,
        }
    }

    /// A read of the redistributors; `None` if there is no register of that width.
    pub(super) fn redist_read(
        &self,
        vcpus: &(impl Vcpus + ?Sized),
        offset: u64,
        size: AccessSize,
    ) -> Option<u64> {
        match self.place(offset, size)? {
            Place::Sgi(vcpu, bank) => Some(self.read_bank(vcpu, vcpus, bank)),
            Place::Rd(vcpu, offset) => match register(offset, size)? {
                Register::Typer => read_part(self.redist_typer(vcpu), offset, size),
                Register::Iidr => Some(IIDR),
                Register::Pidr2 => Some(PIDR2),
                Register::Zero => Some(0),
            },
        }
    }

    /// `GICR_TYPER`: affinity 63:32, `Processor_Number` 23:8, `Last` 4.
    fn redist_typer(&self, vcpu: VcpuNumber) -> u64 {
        let last = if vcpu.get().wrapping_add(1) == self.vcpus() { TYPER_LAST } else { 0 };
        vcpu.affinity() << 32 | u64::try_from(vcpu.get()).unwrap_or(0) << 8 | last
    }

    /// A write to the redistributors: the vCPUs that have something to service.
    pub(super) fn redist_write(
        &mut self,
        vcpus: &(impl Vcpus + ?Sized),
        offset: u64,
        size: AccessSize,
        value: u64,
    ) -> Written {
        match self.place(offset, size)? {
            Place::Sgi(vcpu, bank) => Some(self.write_bank(vcpu, vcpus, bank, word_of(value))),
            Place::Rd(_, offset) => match register(offset, size)? {
                Register::Typer | Register::Iidr | Register::Pidr2 | Register::Zero => Some(VcpuMask::EMPTY),
            },
        }
    }

    /// Private interrupts of `vcpu` that are pending, as far as is known here.
    pub(super) fn private_pending(&self, vcpu: VcpuNumber, shared: &VcpuShared) -> u32 {
        let asked = self.asked(vcpu);
        shared.published_pending() & !asked.clear_pending | asked.set_pending
    }

    /// Private interrupts of `vcpu` that are active, as far as is known here.
    pub(super) fn private_active(&self, vcpu: VcpuNumber, shared: &VcpuShared) -> u32 {
        let asked = self.asked(vcpu);
        shared.published_active() & !asked.clear_active | asked.set_active
    }

    /// A write to the first registers of the arrays: the private interrupts of `of`.
    pub(super) fn write_private(
        &mut self,
        of: VcpuNumber,
        vcpus: &(impl Vcpus + ?Sized),
        bank: Bank,
        value: u32,
    ) -> VcpuMask {
        let forwarding = self.forwarding;
        let (Some(shared), Some(requests)) = (vcpus.vcpu(of), self.requests(of)) else {
            return VcpuMask::EMPTY;
        };
        let changed = match bank {
            Bank::Enable(op, _) => {
                let before = shared.enabled();
                let after = combine(op, before, value);
                shared.set_enabled(after);
                shared.update_deliverable(forwarding);
                before ^ after
            }
            Bank::Pending(op, _) => {
                requests.set_pending = combine(op, requests.set_pending, value);
                if op == Op::Clear {
                    requests.clear_pending |= value;
                }
                value
            }
            Bank::Active(op, _) => {
                requests.set_active = combine(op, requests.set_active, value);
                if op == Op::Clear {
                    requests.clear_active |= value;
                }
                value
            }
            Bank::Config(n @ 1) => {
                let before = shared.edge();
                let after = replace_half(before, n, gather(value));
                shared.set_edge(after);
                before ^ after
            }
            // SGIs are edge-triggered, ICFGR0 is read-only; the others are not private alone.
            Bank::Config(_) | Bank::Priority(..) | Bank::Zero => 0,
        };
        if changed == 0 { VcpuMask::EMPTY } else { Self::request(of, vcpus) }
    }
}

fn combine(op: Op, before: u32, value: u32) -> u32 {
    match op {
        Op::Set => before | value,
        Op::Clear => before & !value,
    }
}
