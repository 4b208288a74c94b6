//! The controls of EL1's translation, and what a guest may write to them (`HCR_EL2.TVM` traps every write).
//!
//! 1. While the domain is trusted with itself, everything. Afterwards, that the MMU is on, caches are on, words are little-endian and
//!    tables are walked as EL2 reads them cannot be changed: a table that means one thing to EL2 must not mean another to the walker.
//! 2. Bits are allowed by list: what an extension adds is refused until it is looked at.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

/// `SCTLR_EL1`, `TCR_EL1` and `MAIR_EL1` of a vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Controls {
    /// `SCTLR_EL1` (Arm ARM D24.2.175).
    pub sctlr: u64,
    /// `TCR_EL1` (D24.2.186).
    pub tcr: u64,
    /// `MAIR_EL1` (D24.2.118).
    pub mair: u64,
}

/// `SCTLR_EL1`: MMU and data caches on.
const SCTLR_SET: u64 = 1 << 0 | 1 << 2;
/// `SCTLR_EL1`: big-endian EL0 data (`E0E`); big-endian EL1 data and tables (`EE`).
const SCTLR_CLEAR: u64 = 1 << 24 | 1 << 25;
/// `SCTLR_EL1`, what may change at any time: alignment checks (A, SA, SA0), instruction cache (I), what EL0 may do (DZE, UCT, nTWI, nTWE,
/// UMA, UCI), PAN on exceptions (SPAN), branch targets (BT0, BT1), SSBS (DSSBS). `WXN` too: stage 2 says what is never both.
const SCTLR_FREE: u64 = 1 << 1
    | 1 << 3
    | 1 << 4
    | 1 << 9
    | 1 << 12
    | 1 << 14
    | 1 << 15
    | 1 << 16
    | 1 << 18
    | 1 << 19
    | 1 << 23
    | 1 << 26
    | 1 << 35
    | 1 << 36
    | 1 << 44;
/// `TCR_EL1`: whether each half is walked at all (EPD0, EPD1): free at any time.
const TCR_WALKED: u64 = 1 << 7 | 1 << 23;
/// `TCR_EL1`, the guest's choice when the trust ends: size of ASIDs (AS), tagged addresses (TBI0, TBI1).
const TCR_CHOICE: u64 = 1 << 36 | 1 << 37 | 1 << 38;
/// `TCR_EL1`, all others: 48-bit addresses in both halves (T0SZ, T1SZ = 16), 4 KiB pages (TG0 = 0, TG1 = 2), walks inner and outer
/// write-back (IRGN, ORGN = 1), inner shareable (SH = 3), 40-bit outputs (IPS = 2), ASID from the lower half, no hardware access flag or dirty
/// state, nothing that came later.
const TCR_FIXED: u64 =
    16 | 1 << 8 | 1 << 10 | 3 << 12 | 16 << 16 | 1 << 24 | 1 << 26 | 3 << 28 | 2 << 30 | 2 << 32;

/// A register whose writes trap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Register {
    /// `SCTLR_EL1`.
    Sctlr,
    /// `TCR_EL1`.
    Tcr,
    /// `MAIR_EL1`.
    Mair,
    /// `TTBR0_EL1` or `TTBR1_EL1`: a root is taken by `mmuext_op` alone.
    Base,
    /// Syndrome, fault address, context identifier, auxiliary ones: they change no translation.
    Harmless,
}

impl Controls {
    /// Whether the trust may end with these: as fixed.
    pub const fn are_sound(self) -> bool {
        self.sctlr & SCTLR_SET == SCTLR_SET
            && self.sctlr & SCTLR_CLEAR == 0
            && self.tcr & !(TCR_WALKED | TCR_CHOICE) == TCR_FIXED
    }

    /// Whether a guest whose controls were fixed as these may write a value.
    pub const fn permit(self, register: Register, value: u64) -> bool {
        match register {
            Register::Sctlr => (value ^ self.sctlr) & !SCTLR_FREE == 0,
            Register::Tcr => (value ^ self.tcr) & !TCR_WALKED == 0,
            Register::Mair => value == self.mair,
            Register::Base => false,
            Register::Harmless => true,
        }
    }
}
