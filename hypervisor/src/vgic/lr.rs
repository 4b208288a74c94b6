//! List registers: what one says, apart from how GICv2 and GICv3 spell it, and access to the file of them.

use super::ids::{PrivateIntid, low_mask};

/// Most list registers an implementation has (`ICH_VTR_EL2.ListRegs`).
pub const MAX_LRS: usize = 16;

/// Interrupt state in a list register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LrState {
    /// Nothing, or handled to the end.
    Inactive,
    /// Waiting to be acknowledged.
    Pending,
    /// Acknowledged, not yet deactivated.
    Active,
    /// Acknowledged, and raised again.
    PendingActive,
}

impl LrState {
    const fn field(self) -> u64 {
        match self {
            Self::Inactive => 0,
            Self::Pending => 1,
            Self::Active => 2,
            Self::PendingActive => 3,
        }
    }

    const fn from_field(field: u64) -> Self {
        match (field & 2 != 0, field & 1 != 0) {
            (false, false) => Self::Inactive,
            (false, true) => Self::Pending,
            (true, false) => Self::Active,
            (true, true) => Self::PendingActive,
        }
    }

    /// Whether the pending bit is set.
    pub const fn is_pending(self) -> bool {
        matches!(self, Self::Pending | Self::PendingActive)
    }

    /// Whether the active bit is set.
    pub const fn is_active(self) -> bool {
        matches!(self, Self::Active | Self::PendingActive)
    }
}

/// What the guest's deactivation does besides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backing {
    /// Nothing.
    Software,
    /// Raises a maintenance interrupt.
    SoftwareNotify,
    /// Deactivates this physical INTID. The architecture has no pending-and-active state for these.
    Hardware(u16),
}

/// Interrupt group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Group {
    /// Group 0 (FIQ).
    Zero,
    /// Group 1 (IRQ).
    One,
}

/// One list register's meaning.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ListRegister {
    /// Virtual INTID.
    pub intid: u16,
    /// Priority; of it the upper five bits count, in either layout.
    pub priority: u8,
    /// Group.
    pub group: Group,
    /// State.
    pub state: LrState,
    /// Physical interrupt or maintenance request behind it.
    pub backing: Backing,
    /// Of a SGI the vCPU that sent it, below 8. `GICv3` does not say.
    pub sender: u8,
}

/// How list registers are spelt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Layout {
    /// `ICH_LR<n>_EL2` (IHI 0069, 12.4.8).
    V3,
    /// `GICH_LR<n>` (IHI 0048, 5.3.10), in the low word.
    V2,
}

impl Layout {
    /// The group that guests' interrupts are in, so that they are IRQs: with `GICv3` a guest enables group 1, with `GICv2`
    /// (no security extensions, `GICV_CTLR.FIQEn` 0) it enables group 0.
    pub const fn group(self) -> Group {
        match self {
            Self::V3 => Group::One,
            Self::V2 => Group::Zero,
        }
    }

    /// Whether `irq` is pending once for each vCPU that sent it.
    #[inline(always)]
    pub(super) const fn counts_senders(self, irq: PrivateIntid) -> bool {
        match self {
            Self::V3 => false,
            Self::V2 => irq.number() < 16,
        }
    }

    const fn state_shift(self) -> u32 {
        match self {
            Self::V3 => 62,
            Self::V2 => 28,
        }
    }

    /// The register's value.
    #[inline]
    pub fn encode(self, lr: ListRegister) -> u64 {
        match self {
            Self::V3 => lr.encode_v3(),
            Self::V2 => u64::from(lr.encode_v2()),
        }
    }

    /// What the value means.
    #[inline]
    pub fn decode(self, raw: u64) -> ListRegister {
        match self {
            Self::V3 => ListRegister::decode_v3(raw),
            Self::V2 => ListRegister::decode_v2(low_word(raw)),
        }
    }

    /// The value's state alone.
    #[inline]
    pub const fn state(self, raw: u64) -> LrState {
        LrState::from_field(raw.wrapping_shr(self.state_shift()))
    }

    /// The value with another state.
    #[inline]
    #[must_use]
    pub const fn with_state(self, raw: u64, state: LrState) -> u64 {
        raw & !3_u64.wrapping_shl(self.state_shift()) | state.field().wrapping_shl(self.state_shift())
    }
}

impl ListRegister {
    /// `ICH_LR<n>_EL2`: State 63:62, HW 61, Group 60, Priority 55:48, pINTID 44:32 (without HW: EOI 41), vINTID 31:0.
    #[inline]
    pub fn encode_v3(self) -> u64 {
        let group = match self.group {
            Group::Zero => 0,
            Group::One => 1,
        };
        let backing = match self.backing {
            Backing::Software => 0,
            Backing::SoftwareNotify => 1 << 41,
            Backing::Hardware(pintid) => 1 << 61 | u64::from(pintid & 0x1fff) << 32,
        };
        self.state.field() << 62
            | group << 60
            | u64::from(self.priority & 0xf8) << 48
            | backing
            | u64::from(self.intid)
    }

    /// The meaning of an `ICH_LR<n>_EL2` value.
    pub fn decode_v3(raw: u64) -> Self {
        let backing = if raw & 1 << 61 != 0 {
            Backing::Hardware(half_word(raw >> 32 & 0x1fff))
        } else if raw & 1 << 41 != 0 {
            Backing::SoftwareNotify
        } else {
            Backing::Software
        };
        Self {
            intid: half_word(raw & 0xffff),
            priority: byte(raw >> 48 & 0xf8),
            group: if raw & 1 << 60 == 0 { Group::Zero } else { Group::One },
            state: LrState::from_field(raw >> 62),
            backing,
            sender: 0,
        }
    }

    /// `GICH_LR<n>`: HW 31, Grp1 30, State 29:28, Priority 27:23, `PhysicalID` 19:10 (without HW: EOI 19, CPUID 12:10, not 0
    /// for SGIs alone), `VirtualID` 9:0.
    #[inline]
    pub fn encode_v2(self) -> u32 {
        let group = match self.group {
            Group::Zero => 0,
            Group::One => 1,
        };
        let sender = u32::from(self.sender & 7) << 10;
        let backing = match self.backing {
            Backing::Software => sender,
            Backing::SoftwareNotify => 1 << 19 | sender,
            Backing::Hardware(pintid) => 1 << 31 | u32::from(pintid & 0x3ff) << 10,
        };
        group << 30
            | low_word(self.state.field()) << 28
            | u32::from(self.priority >> 3) << 23
            | backing
            | u32::from(self.intid & 0x3ff)
    }

    /// The meaning of a `GICH_LR<n>` value.
    pub fn decode_v2(raw: u32) -> Self {
        let backing = if raw & 1 << 31 != 0 {
            Backing::Hardware(half_word(u64::from(raw >> 10 & 0x3ff)))
        } else if raw & 1 << 19 != 0 {
            Backing::SoftwareNotify
        } else {
            Backing::Software
        };
        let sender = if raw & 1 << 31 == 0 { byte(u64::from(raw >> 10 & 7)) } else { 0 };
        Self {
            intid: half_word(u64::from(raw & 0x3ff)),
            priority: byte(u64::from(raw >> 20 & 0xf8)),
            group: if raw & 1 << 30 == 0 { Group::Zero } else { Group::One },
            state: LrState::from_field(u64::from(raw >> 28)),
            backing,
            sender,
        }
    }
}

fn low_word(value: u64) -> u32 {
    u32::try_from(value & 0xffff_ffff).unwrap_or(0)
}

fn half_word(value: u64) -> u16 {
    u16::try_from(value & 0xffff).unwrap_or(0)
}

fn byte(value: u64) -> u8 {
    u8::try_from(value & 0xff).unwrap_or(0)
}

/// The list registers of the CPU that runs the vCPU: the image has them on the hardware.
///
/// Indices are below [`count`](Self::count); beyond it reads give 0 and writes do nothing.
pub trait ListRegisters {
    /// How values are spelt.
    fn layout(&self) -> Layout;
    /// How many there are, at most [`MAX_LRS`].
    fn count(&self) -> usize;
    /// The value of one.
    fn read(&self, n: usize) -> u64;
    /// Sets the value of one.
    fn write(&mut self, n: usize, value: u64);
    /// `ICH_ELRSR_EL2`: one bit for each that is inactive with no maintenance interrupt due, all writes before this counted.
    fn empty_mask(&self) -> u32;
}

/// The list registers of a vCPU that is not loaded, in memory.
#[derive(Clone, Copy, Debug)]
pub struct ParkedLrs {
    pub(super) layout: Layout,
    pub(super) count: usize,
    pub(super) values: [u64; MAX_LRS],
}

impl ParkedLrs {
    pub(super) const fn new(layout: Layout, count: usize) -> Self {
        Self { layout, count: if count < MAX_LRS { count } else { MAX_LRS }, values: [0; MAX_LRS] }
    }
}

impl ListRegisters for ParkedLrs {
    fn layout(&self) -> Layout {
        self.layout
    }

    fn count(&self) -> usize {
        self.count
    }

    fn read(&self, n: usize) -> u64 {
        self.values.get(n).copied().unwrap_or(0)
    }

    fn write(&mut self, n: usize, value: u64) {
        if let Some(slot) = self.values.get_mut(n) {
            *slot = value;
        }
    }

    fn empty_mask(&self) -> u32 {
        let empty = |raw: &u64| {
            let lr = self.layout.decode(*raw);
            lr.state == LrState::Inactive && lr.backing != Backing::SoftwareNotify
        };
        let mask = self.values.iter().rev().fold(0_u32, |mask, raw| mask << 1 | u32::from(empty(raw)));
        mask & low_mask(self.count)
    }
}
