//! The emulated UART that dom0less guests may have (`vpl011`): an SBSA UART, the subset of a PL011 that has data, flags and interrupt
//! registers only (SBSA, appendix B). What a guest writes goes to its console; nobody types.
//!
//! 1. The transmit FIFO is always empty: a byte is taken at once, so the transmit interrupt is raw-pending from the first byte on, until
//!    the guest clears it; the next byte raises it again.
//! 2. Registers are 32 bits wide; other widths and unknown offsets read as zero and are ignored, where Xen injects an abort.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use crate::vgic::Line;

/// Register offsets (PL011 TRM, DDI 0183, chapter 3.2).
mod offset {
    pub(super) const DR: u64 = 0x00;
    pub(super) const FR: u64 = 0x18;
    pub(super) const IMSC: u64 = 0x38;
    pub(super) const RIS: u64 = 0x3C;
    pub(super) const MIS: u64 = 0x40;
    pub(super) const ICR: u64 = 0x44;
}

/// `UARTFR`: receive FIFO empty, transmit FIFO empty.
const FLAGS: u32 = 1 << 4 | 1 << 7;
/// `UARTRIS`: transmit.
const TRANSMIT: u32 = 1 << 5;
/// Interrupts that can be masked.
const INTERRUPTS: u32 = 0x7FF;

/// One domain's UART; under its lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Vpl011 {
    enabled: u32,
    raw: u32,
}

impl Vpl011 {
    /// A UART with its interrupts off.
    pub const fn new() -> Self {
        Self { enabled: 0, raw: 0 }
    }

    /// Reads a register; `None` when there is none.
    pub const fn read(&self, at: u64) -> Option<u32> {
        match at {
            offset::DR => Some(0),
            offset::FR => Some(FLAGS),
            offset::IMSC => Some(self.enabled),
            offset::RIS => Some(self.raw),
            offset::MIS => Some(self.raw & self.enabled),
            _ => None,
        }
    }

    /// Writes a register; returns the byte that was sent, if one was.
    pub fn write(&mut self, at: u64, value: u32) -> Option<u8> {
        match at {
            offset::DR => {
                self.raw |= TRANSMIT;
                u8::try_from(value & 0xFF).ok()
            }
            offset::IMSC => {
                self.enabled = value & INTERRUPTS;
                None
            }
            offset::ICR => {
                self.raw &= !value;
                None
            }
            _ => None,
        }
    }

    /// The level of its interrupt.
    pub const fn line(&self) -> Line {
        if self.raw & self.enabled == 0 { Line::Low } else { Line::High }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_is_sent_at_once_and_raises_the_transmit_interrupt_when_it_is_enabled() {
        let mut uart = Vpl011::new();
        assert_eq!(uart.write(0x00, 0x1_0041), Some(b'A'));
        assert_eq!(uart.line(), Line::Low);
        assert_eq!(uart.write(0x38, 1 << 5), None);
        assert_eq!((uart.line(), uart.read(0x40)), (Line::High, Some(1 << 5)));
        assert_eq!(uart.write(0x44, 1 << 5), None);
        assert_eq!((uart.line(), uart.read(0x3C)), (Line::Low, Some(0)));
    }

    #[test]
    fn the_flags_say_that_there_is_room_and_nothing_to_read() {
        assert_eq!(Vpl011::new().read(0x18), Some(0x90));
        assert_eq!(Vpl011::new().read(0x00), Some(0));
    }

    #[test]
    fn other_registers_do_not_exist_and_change_nothing() {
        for at in (0..0x1000).filter(|at| ![0x00, 0x18, 0x38, 0x3C, 0x40, 0x44].contains(at)) {
            let mut uart = Vpl011::new();
            assert_eq!(uart.read(at), None);
            assert_eq!(uart.write(at, u32::MAX), None);
            assert_eq!(uart, Vpl011::new());
        }
    }
}
