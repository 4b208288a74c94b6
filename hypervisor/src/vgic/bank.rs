//! The register arrays that `GICD` and the `SGI_base` frame of `GICR` have in common (IHI 0069, 12.9 and 12.11).

use super::mmio::AccessSize;

/// Which half of a set/clear pair of registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Op {
    Set,
    Clear,
}

/// One access to the arrays, its offset and width already found to be allowed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Bank {
    /// `ISENABLER<n>` or `ICENABLER<n>`: interrupts `32 * n` and on.
    Enable(Op, usize),
    /// `ISPENDR<n>` or `ICPENDR<n>`.
    Pending(Op, usize),
    /// `ISACTIVER<n>` or `ICACTIVER<n>`.
    Active(Op, usize),
    /// Bytes of `IPRIORITYR<n>`: the first interrupt and how many.
    Priority(usize, usize),
    /// `ICFGR<n>`: interrupts `16 * n` and on.
    Config(usize),
    /// Groups and non-secure access control: one security state, all interrupts in group 1, as Xen has it.
    Zero,
}

/// What an offset is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Decoded {
    Bank(Bank),
    /// In an array, but with a width or alignment that it does not have.
    BadWidth,
    /// Not in these arrays.
    Elsewhere,
}

/// Finds the array of `offset` (bytes in the frame).
pub(super) fn decode(offset: u64, size: AccessSize) -> Decoded {
    let Ok(offset) = usize::try_from(offset) else { return Decoded::Elsewhere };
    if let 0x400..0x7fc = offset {
        return priority(offset & 0x3ff, size);
    }
    let word = (offset & 0x7f) >> 2;
    let bank = match offset {
        0x080..0x100 | 0xd00..0xd80 | 0xe00..0xf00 => Bank::Zero,
        0x100..0x180 => Bank::Enable(Op::Set, word),
        0x180..0x200 => Bank::Enable(Op::Clear, word),
        0x200..0x280 => Bank::Pending(Op::Set, word),
        0x280..0x300 => Bank::Pending(Op::Clear, word),
        0x300..0x380 => Bank::Active(Op::Set, word),
        0x380..0x400 => Bank::Active(Op::Clear, word),
        0xc00..0xd00 => Bank::Config((offset & 0xff) >> 2),
        _ => return Decoded::Elsewhere,
    };
    if size == AccessSize::Word && offset.trailing_zeros() >= 2 {
        Decoded::Bank(bank)
    } else {
        Decoded::BadWidth
    }
}

fn priority(first: usize, size: AccessSize) -> Decoded {
    match size {
        AccessSize::Byte => Decoded::Bank(Bank::Priority(first, 1)),
        AccessSize::Word if first.trailing_zeros() >= 2 => Decoded::Bank(Bank::Priority(first, 4)),
        AccessSize::Word | AccessSize::Half | AccessSize::Double => Decoded::BadWidth,
    }
}

/// `ICFGR<n>` of 16 interrupts: 0b10 for edge, 0b00 for level.
pub(super) fn spread(edge: u32) -> u32 {
    (0..16).fold(0, |config, n| config | (edge >> n & 1) << (n << 1 | 1))
}

/// The edge-triggered ones of 16 interrupts by their `ICFGR<n>`.
pub(super) fn gather(config: u32) -> u32 {
    (0..16).fold(0, |edge, n| edge | (config >> (n << 1 | 1) & 1) << n)
}
