//! Registers of a `GICv2`'s distributor (IHI 0048, 4.3), with the contents that Xen gives them.
//!
//! The arrays are those of `GICv3`. Interrupts 0 to 31 are the accessing vCPU's own; SPIs have one target, the lowest of
//! the vCPUs that the guest names, as in Xen. What Xen leaves out works: the pending bits of SGIs, by sender.

use super::bank::{Bank, Decoded, Op, decode};
use super::dist::DistState;
use super::ids::{Intid, PrivateIntid, Spi, VcpuMask, VcpuNumber, bits};
use super::lr::ListRegisters;
use super::mmio::{AccessSize, Written, word_of};
use super::shared::{VcpuShared, Vcpus};
use super::vcpu::VcpuGic;

/// `GICD_CTLR.Enable`.
const CTLR_ENABLE: u64 = 1 << 0;
/// `GICD_IIDR` as in Xen: Arm.
const IIDR: u64 = 0x43b;
/// `GICD_PIDR2`: `ArchRev` 7:4 is 2, a JEP106 code is used, and its bits 6:4 are those of Arm (0x3b), as in the GIC-400.
const PIDR2: u64 = 0x2b;
/// Offset of `GICD_SGIR`.
pub(super) const SGIR: u64 = 0xf00;

/// Registers outside the arrays that `GICv3` has too.
enum Register {
    Ctlr,
    Typer,
    Iidr,
    Pidr2,
    /// Bytes of `ITARGETSR<n>`: the first interrupt and how many.
    Targets(usize, usize),
    /// `GICD_SGIR`, write-only: writes are [`decode_sgir`](super::sgi::decode_sgir)'s and do not come here.
    Sgir,
    /// Bytes of `SPENDSGIR<n>` or `CPENDSGIR<n>`: the first SGI and how many.
    Senders(Op, usize, usize),
}

/// The register at `offset`, if there is one of that width there.
fn register(offset: u64, size: AccessSize) -> Option<Register> {
    let count = match size {
        AccessSize::Byte => 1,
        AccessSize::Word if offset.trailing_zeros() >= 2 => 4,
        AccessSize::Word | AccessSize::Half | AccessSize::Double => return None,
    };
    let within = |base: u64| offset.checked_sub(base).and_then(|first| usize::try_from(first).ok());
    match (offset, size) {
        (0x800..0xbfc, _) => Some(Register::Targets(within(0x800)?, count)),
        (0xf10..0xf20, _) => Some(Register::Senders(Op::Clear, within(0xf10)?, count)),
        (0xf20..0xf30, _) => Some(Register::Senders(Op::Set, within(0xf20)?, count)),
        (0x000, AccessSize::Word) => Some(Register::Ctlr),
        (0x004, AccessSize::Word) => Some(Register::Typer),
        (0x008, AccessSize::Word) => Some(Register::Iidr),
        (SGIR, AccessSize::Word) => Some(Register::Sgir),
        (0xfe8, AccessSize::Word) => Some(Register::Pidr2),
        _ => None,
    }
}

/// Whether a read at `offset` is of state that list registers may hold.
pub(super) fn reads_senders(offset: u64, size: AccessSize) -> bool {
    matches!(register(offset, size), Some(Register::Senders(..)))
}

impl VcpuGic {
    /// A read of the distributor by this vCPU; `None` if there is no register of that width.
    pub(super) fn read_v2<L: ListRegisters>(
        &self,
        dist: &DistState,
        vcpus: &(impl Vcpus + ?Sized),
        lrs: &L,
        offset: u64,
        size: AccessSize,
    ) -> Option<u64> {
        match decode(offset, size) {
            Decoded::Bank(bank) => Some(dist.read_bank(self.me, vcpus, bank)),
            Decoded::BadWidth => None,
            Decoded::Elsewhere => match register(offset, size)? {
                Register::Ctlr => Some(if dist.forwarding { CTLR_ENABLE } else { 0 }),
                Register::Typer => Some(dist.typer_v2()),
                Register::Iidr => Some(IIDR),
                Register::Pidr2 => Some(PIDR2),
                Register::Targets(first, count) => {
                    Some(bytes(first, count, |number| dist.read_target(number, self.me)))
                }
                Register::Sgir => Some(0),
                Register::Senders(_, first, count) => {
                    let shared = vcpus.vcpu(self.me)?;
                    Some(bytes(first, count, |number| {
                        sgi(number).map_or(0, |irq| self.pending_senders(irq, shared, lrs))
                    }))
                }
            },
        }
    }

    /// A write to the distributor by this vCPU: the vCPUs that have something to service.
    pub(super) fn write_v2<L: ListRegisters>(
        &mut self,
        dist: &mut DistState,
        vcpus: &(impl Vcpus + ?Sized),
        lrs: &mut L,
        offset: u64,
        size: AccessSize,
        value: u64,
    ) -> Written {
        let word = word_of(value);
        match decode(offset, size) {
            Decoded::Bank(bank) => Some(dist.write_bank_v2(self.me, vcpus, bank, word)),
            Decoded::BadWidth => None,
            Decoded::Elsewhere => match register(offset, size)? {
                Register::Ctlr => Some(dist.set_forwarding(value & CTLR_ENABLE != 0, vcpus)),
                Register::Targets(first, count) => Some(dist.write_targets(first, count, word, vcpus)),
                Register::Senders(op, first, count) => {
                    let shared = vcpus.vcpu(self.me)?;
                    self.write_senders(
                        op,
                        first,
                        word.to_le_bytes().into_iter().take(count),
                        dist.vcpus(),
                        shared,
                        lrs,
                    );
                    Some(VcpuMask::only(self.me))
                }
                Register::Typer | Register::Iidr | Register::Pidr2 | Register::Sgir => Some(VcpuMask::EMPTY),
            },
        }
    }

    fn write_senders<L: ListRegisters>(
        &mut self,
        op: Op,
        first: usize,
        written: impl Iterator<Item = u8>,
        vcpus: usize,
        shared: &VcpuShared,
        lrs: &mut L,
    ) {
        let existing = existing(vcpus);
        for (irq, set) in
            (first..).zip(written).filter_map(|(number, set)| Some((sgi(number)?, set & existing)))
        {
            match op {
                Op::Set => self.set_senders(irq, set, shared),
                Op::Clear => self.clear_senders(irq, set, shared, lrs),
            }
        }
    }
}

impl DistState {
    /// `GICD_TYPER`: `ITLinesNumber` 4:0, `CPUNumber` 7:5.
    fn typer_v2(&self) -> u64 {
        let cpus = u64::try_from(self.vcpus().clamp(1, 8)).unwrap_or(1).wrapping_sub(1);
        cpus << 5 | u64::try_from(self.spi_words()).unwrap_or(0)
    }

    /// `ITARGETSR` of one interrupt. That of a private one is the accessing vCPU.
    fn read_target(&self, number: usize, me: VcpuNumber) -> u8 {
        match u16::try_from(number).ok().and_then(Intid::new) {
            Some(Intid::Private(_)) => target_bit(me),
            Some(Intid::Shared(spi)) if self.has_spi(spi) => target_bit(self.route(spi)),
            Some(Intid::Shared(_)) | None => 0,
        }
    }

    /// The lowest vCPU that exists is the target; with none, nothing changes, as in Xen.
    fn write_targets(
        &mut self,
        first: usize,
        count: usize,
        value: u32,
        vcpus: &(impl Vcpus + ?Sized),
    ) -> VcpuMask {
        let existing = existing(self.vcpus());
        (first..).zip(value.to_le_bytes()).take(count).fold(VcpuMask::EMPTY, |asked, (number, byte)| {
            let to = bits(u32::from(byte & existing)).next().and_then(VcpuNumber::new);
            match (u16::try_from(number).ok().and_then(Intid::new), to) {
                (Some(Intid::Shared(spi)), Some(to)) if self.has_spi(spi) && to != self.route(spi) => {
                    asked.union(self.reroute(spi, to, vcpus))
                }
                (Some(Intid::Shared(_) | Intid::Private(_)) | None, _) => asked,
            }
        })
    }

    fn reroute(&mut self, spi: Spi, to: VcpuNumber, vcpus: &(impl Vcpus + ?Sized)) -> VcpuMask {
        self.set_route(spi, to);
        self.attend(spi, vcpus)
    }

    /// A write to the arrays. Read-only are the pending bits of SGIs (IHI 0048, 4.3.7) and, as in Xen, the configuration
    /// of PPIs.
    fn write_bank_v2(
        &mut self,
        me: VcpuNumber,
        vcpus: &(impl Vcpus + ?Sized),
        bank: Bank,
        value: u32,
    ) -> VcpuMask {
        match bank {
            Bank::Config(0 | 1) => VcpuMask::EMPTY,
            Bank::Pending(_, 0) => self.write_bank(me, vcpus, bank, value & !0xffff),
            Bank::Enable(..)
            | Bank::Pending(..)
            | Bank::Active(..)
            | Bank::Priority(..)
            | Bank::Config(_)
            | Bank::Zero => self.write_bank(me, vcpus, bank, value),
        }
    }
}

/// Up to four byte-wide fields of a register, the first lowest.
fn bytes(first: usize, count: usize, field: impl Fn(usize) -> u8) -> u64 {
    (0..count).rev().fold(0, |value, n| value << 8 | u64::from(field(first.wrapping_add(n))))
}

fn sgi(number: usize) -> Option<PrivateIntid> {
    u8::try_from(number).ok().filter(|number| *number < 16).and_then(PrivateIntid::new)
}

/// The vCPUs of the domain that target lists can name.
fn existing(vcpus: usize) -> u8 {
    u8::try_from(VcpuMask::first(vcpus.min(8)).bits()).unwrap_or(0)
}

fn target_bit(vcpu: VcpuNumber) -> u8 {
    u8::try_from(VcpuMask::only(vcpu).bits()).unwrap_or(0)
}
