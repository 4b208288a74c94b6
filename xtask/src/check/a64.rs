//! Where an A64 instruction can go next. Only control flow is decoded.
//!
//! Source: Arm ARM (DDI 0487), C4.1 "A64 instruction set encoding", "Branches, Exception Generating and System
//! instructions".

/// What an instruction does to the flow of control.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    /// Goes on with the next instruction.
    Next,
    /// May go to an address, and may go on.
    Branch(u64),
    /// Goes to an address, and nowhere else.
    Jump(u64),
    /// `BLR`, and its forms with pointer authentication.
    IndirectCall,
    /// `BR` through this register, and its forms with pointer authentication.
    IndirectJump(u32),
    /// `RET`, `ERET` and the like: where to is not this function's decision.
    Return,
}

impl Flow {
    /// The address it can go to, if the instruction says one.
    pub(super) fn target(self) -> Option<u64> {
        match self {
            Self::Branch(to) | Self::Jump(to) => Some(to),
            Self::Next | Self::IndirectCall | Self::IndirectJump(_) | Self::Return => None,
        }
    }
}

/// Decodes one instruction at an address.
pub(super) fn flow(word: u32, at: u64) -> Flow {
    let to = |bits: u32, lowest: u32| at.wrapping_add_signed(signed(word >> lowest, bits) * 4);
    if word & 0xfc00_0000 == 0x9400_0000 {
        Flow::Branch(to(26, 0)) // BL
    } else if word & 0xfc00_0000 == 0x1400_0000 {
        Flow::Jump(to(26, 0)) // B
    } else if word & 0xff00_0000 == 0x5400_0000 || word & 0x7e00_0000 == 0x3400_0000 {
        Flow::Branch(to(19, 5)) // B.cond, BC.cond, CBZ, CBNZ
    } else if word & 0x7e00_0000 == 0x3600_0000 {
        Flow::Branch(to(14, 5)) // TBZ, TBNZ
    } else if word & 0xfe00_0000 == 0xd600_0000 {
        // Unconditional branch (register); bit 24 tells the forms with a modifier register.
        match (word >> 21) & 7 {
            0 => Flow::IndirectJump((word >> 5) & 31),
            1 => Flow::IndirectCall,
            _ => Flow::Return,
        }
    } else {
        Flow::Next
    }
}

/// `ADR Xd, label`: the register and the address.
pub(super) fn adr(word: u32, at: u64) -> Option<(u32, u64)> {
    let immediate = signed(((word >> 5) & 0x7_ffff) << 2 | (word >> 29) & 3, 21);
    (word & 0x9f00_0000 == 0x1000_0000).then(|| (word & 31, at.wrapping_add_signed(immediate)))
}

/// `ADD Xd, Xd, Xm` or `ADD Xd, Xd, Xm, LSL #2`: `d`. The last step before a jump through a table of offsets, which are
/// words, or bytes or halves that count instructions.
pub(super) fn add_table_offset(word: u32) -> Option<u32> {
    let (d, n) = (word & 31, (word >> 5) & 31);
    let is_add = matches!(word & 0xffe0_fc00, 0x8b00_0000 | 0x8b00_0800);
    (is_add && d == n).then_some(d)
}

/// The lowest `bits` bits as a two's complement number.
fn signed(value: u32, bits: u32) -> i64 {
    let shift = 64 - bits;
    ((u64::from(value) << shift).cast_signed()) >> shift
}

#[cfg(test)]
mod tests {
    use super::*;

    // The words were assembled by hand from the encodings.
    #[test]
    fn branches_reach_forwards_and_backwards() {
        assert_eq!(flow(0x9400_0002, 0x1000), Flow::Branch(0x1008)); // bl .+8
        assert_eq!(flow(0x97ff_ffff, 0x1000), Flow::Branch(0xffc)); // bl .-4
        assert_eq!(flow(0x1400_0001, 0x1000), Flow::Jump(0x1004)); // b .+4
        assert_eq!(flow(0x5400_0040, 0x1000), Flow::Branch(0x1008)); // b.eq .+8
        assert_eq!(flow(0xb4ff_ffe0, 0x1000), Flow::Branch(0xffc)); // cbz x0, .-4
        assert_eq!(flow(0x3500_0041, 0x1000), Flow::Branch(0x1008)); // cbnz w1, .+8
        assert_eq!(flow(0x3607_ffe0, 0x1000), Flow::Branch(0xffc)); // tbz w0, #0, .-4
        assert_eq!(flow(0xb708_0040, 0x1000), Flow::Branch(0x1008)); // tbnz x0, #33, .+8
    }

    #[test]
    fn register_branches_are_told_apart() {
        assert_eq!(flow(0xd63f_0200, 0), Flow::IndirectCall); // blr x16
        assert_eq!(flow(0xd61f_0120, 0), Flow::IndirectJump(9)); // br x9
        assert_eq!(flow(0xd65f_03c0, 0), Flow::Return); // ret
        assert_eq!(flow(0xd69f_03e0, 0), Flow::Return); // eret
        assert_eq!(flow(0xd73f_0800, 0), Flow::IndirectCall); // blraa x0, x0
        assert_eq!(flow(0xd61f_081f, 0), Flow::IndirectJump(0)); // braaz x0
        assert_eq!(flow(0xd503_201f, 0), Flow::Next); // nop
    }

    #[test]
    fn table_jumps_have_a_base_and_an_offset() {
        assert_eq!(adr(0x1000_0049, 0x2000), Some((9, 0x2008))); // adr x9, .+8
        assert_eq!(adr(0x9000_0049, 0x2000), None); // adrp
        assert_eq!(add_table_offset(0x8b0a_0929), Some(9)); // add x9, x9, x10, lsl #2
        assert_eq!(add_table_offset(0x8b0c_016b), Some(11)); // add x11, x11, x12
        assert_eq!(add_table_offset(0x8b0a_0528), None); // add x8, x9, x10, lsl #1
        assert_eq!(add_table_offset(0x8b0a_0928), None); // add x8, x9, x10, lsl #2
    }
}
