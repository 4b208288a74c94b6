//! Guest accesses to the distributor and redistributor frames: shapes of accesses, and the one entry for each direction.

use super::dist::DistState;
use super::dist_v2;
use super::ids::VcpuMask;
use super::lr::ListRegisters;
use super::service::Serviced;
use super::shared::Vcpus;
use super::vcpu::VcpuGic;

/// Width of an access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AccessSize {
    /// 8 bits.
    Byte,
    /// 16 bits.
    Half,
    /// 32 bits.
    Word,
    /// 64 bits.
    Double,
}

/// Which frames an access goes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Frame {
    /// `GICD` of a `GICv3`, 64 KiB.
    Distributor,
    /// `GICD` of a `GICv2`, 4 KiB. Writes for which [`Access::is_sgir`] are `decode_sgir`'s.
    DistributorV2,
    /// `GICR`, two frames of 64 KiB for each vCPU in turn.
    Redistributor,
}

/// Where and how wide.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// Which frames.
    pub frame: Frame,
    /// Bytes from the start of the frame (the first redistributor's).
    pub offset: u64,
    /// Width.
    pub size: AccessSize,
}

/// Whether there is a register of that width.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Handling {
    /// There is.
    Handled,
    /// Reserved, not implemented or a width that the register does not have: read as zero, write ignored. Worth a line
    /// in the log, at a limited rate.
    Unhandled,
}

/// Result of a read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MmioRead {
    /// The value, zero-extended.
    pub value: u64,
    /// Whether there is such a register.
    pub handling: Handling,
    /// Set if the list registers were looked at: what the image has to do.
    pub serviced: Option<Serviced>,
}

/// Result of a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MmioWrite {
    /// Whether there is such a register.
    pub handling: Handling,
    /// Other vCPUs that have something to service now.
    pub kick: VcpuMask,
    /// Set if this vCPU was serviced: what the image has to do (its `kick` is in the above too).
    pub serviced: Option<Serviced>,
}

/// What a register write asks for: vCPUs to service, or nothing as there is no such register.
pub(super) type Written = Option<VcpuMask>;

impl Access {
    /// Whether a write is a request for a SGI, `GICD_SGIR` of a `GICv2`.
    pub fn is_sgir(self) -> bool {
        self == Self { frame: Frame::DistributorV2, offset: dist_v2::SGIR, size: AccessSize::Word }
    }

    /// Whether it reads pending or active state, which the list registers may hold.
    fn reads_state(self) -> bool {
        let offset = match self.frame {
            Frame::Distributor | Frame::DistributorV2 => self.offset,
            Frame::Redistributor => self.offset & 0x1_ffff ^ 0x1_0000,
        };
        // `ISPENDR<n>` to `ICACTIVER<n>`: 0x200 to 0x3ff, in all frames.
        offset >> 9 == 1 || self.frame == Frame::DistributorV2 && dist_v2::reads_senders(offset, self.size)
    }
}

impl VcpuGic {
    /// A read by this vCPU, under the domain's lock. `vcpus` are the domain's, `lrs` this vCPU's list registers.
    pub fn mmio_read<L: ListRegisters>(
        &mut self,
        dist: &mut DistState,
        vcpus: &(impl Vcpus + ?Sized),
        lrs: &mut L,
        access: Access,
    ) -> MmioRead {
        let serviced = access.reads_state().then(|| self.service(dist, vcpus, lrs));
        let value = match access.frame {
            Frame::Distributor => dist.dist_read(self.me, vcpus, access.offset, access.size),
            Frame::DistributorV2 => self.read_v2(dist, vcpus, lrs, access.offset, access.size),
            Frame::Redistributor => dist.redist_read(vcpus, access.offset, access.size),
        };
        let handling = if value.is_some() { Handling::Handled } else { Handling::Unhandled };
        MmioRead { value: value.unwrap_or(0), handling, serviced }
    }

    /// A write by this vCPU, under the domain's lock; what it changes for this vCPU has taken effect on return.
    pub fn mmio_write<L: ListRegisters>(
        &mut self,
        dist: &mut DistState,
        vcpus: &(impl Vcpus + ?Sized),
        lrs: &mut L,
        access: Access,
        value: u64,
    ) -> MmioWrite {
        let written = match access.frame {
            Frame::Distributor => dist.dist_write(self.me, vcpus, access.offset, access.size, value),
            Frame::DistributorV2 => self.write_v2(dist, vcpus, lrs, access.offset, access.size, value),
            Frame::Redistributor => dist.redist_write(vcpus, access.offset, access.size, value),
        };
        let Some(asked) = written else {
            return MmioWrite { handling: Handling::Unhandled, kick: VcpuMask::EMPTY, serviced: None };
        };
        let serviced = asked.contains(self.me).then(|| self.service(dist, vcpus, lrs));
        let more = serviced.map_or(VcpuMask::EMPTY, |done| done.kick);
        let kick = asked.union(more).without(self.me);
        MmioWrite { handling: Handling::Handled, kick, serviced }
    }
}

/// The part of a 64-bit register at `offset` that an access of `size` reads: all of it, or an aligned half.
pub(super) fn read_part(register: u64, offset: u64, size: AccessSize) -> Option<u64> {
    match (size, offset & 7) {
        (AccessSize::Double, 0) => Some(register),
        (AccessSize::Word, 0) => Some(register & 0xffff_ffff),
        (AccessSize::Word, 4) => Some(register >> 32),
        _ => None,
    }
}

/// A 64-bit register after a write to all or an aligned half of it.
pub(super) fn write_part(register: u64, offset: u64, size: AccessSize, value: u64) -> Option<u64> {
    match (size, offset & 7) {
        (AccessSize::Double, 0) => Some(value),
        (AccessSize::Word, 0) => Some(register & !0xffff_ffff | value & 0xffff_ffff),
        (AccessSize::Word, 4) => Some(register & 0xffff_ffff | value << 32),
        _ => None,
    }
}

/// The low word of what a guest wrote.
pub(super) fn word_of(value: u64) -> u32 {
    u32::try_from(value & 0xffff_ffff).unwrap_or(0)
}
