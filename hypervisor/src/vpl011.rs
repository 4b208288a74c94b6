//! The emulated UART that dom0less guests may have (`vpl011`): an SBSA UART, the subset of a PL011 that has data, flags and interrupt
//! registers only (SBSA, appendix B). What a guest writes goes to its console; what it reads is the keyboard, while it has that.
//!
//! 1. The transmit FIFO is always empty: a byte is taken at once, so the transmit interrupt is raw-pending from the first byte on, until
//!    the guest clears it; the next byte raises it again.
//! 2. The receive FIFO is what waits at the keyboard. Its interrupt is as an empty or full FIFO says: clearing it has no effect.
//! 3. Registers are 32 bits wide; other widths and unknown offsets read as zero and are ignored, where Xen injects an abort.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use pv_abi::{DomId, layout};

use crate::console::keyboard::Keyboard;
use crate::vgic::{Line, Spi};

/// Its shared interrupt (`GUEST_VPL011_SPI`), counted from the first.
#[expect(clippy::cast_possible_truncation, reason = "it is 0")]
pub const SPI: Spi = Spi::new((layout::VPL011_SPI - 32) as u8);

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
/// `UARTFR.RXFE`.
const EMPTY: u32 = 1 << 4;
/// `UARTRIS`: receive.
const RECEIVE: u32 = 1 << 4;
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

    /// Says whether bytes wait to be read.
    pub const fn receives(&mut self, any: bool) {
        self.raw = if any { self.raw | RECEIVE } else { self.raw & !RECEIVE };
    }

    /// Reads a register, for a domain; `None` when there is none.
    pub fn read(&mut self, at: u64, keyboard: &Keyboard, domain: DomId) -> Option<u32> {
        match at {
            offset::DR => {
                let key = keyboard.take(domain);
                self.receives(keyboard.waits(domain));
                Some(key.map_or(0, u32::from))
            }
            offset::FR if self.raw & RECEIVE != 0 => Some(FLAGS & !EMPTY),
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
                self.raw &= !value | RECEIVE;
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

    fn read(uart: &mut Vpl011, at: u64) -> Option<u32> {
        uart.read(at, &Keyboard::default(), DomId(1))
    }

    #[test]
    fn a_byte_is_sent_at_once_and_raises_the_transmit_interrupt_when_it_is_enabled() {
        let mut uart = Vpl011::new();
        assert_eq!(uart.write(0x00, 0x1_0041), Some(b'A'));
        assert_eq!(uart.line(), Line::Low);
        assert_eq!(uart.write(0x38, 1 << 5), None);
        assert_eq!((uart.line(), read(&mut uart, 0x40)), (Line::High, Some(1 << 5)));
        assert_eq!(uart.write(0x44, 1 << 5), None);
        assert_eq!((uart.line(), read(&mut uart, 0x3C)), (Line::Low, Some(0)));
    }

    #[test]
    fn the_flags_say_that_there_is_room_and_nothing_to_read() {
        assert_eq!(read(&mut Vpl011::new(), 0x18), Some(0x90));
        assert_eq!(read(&mut Vpl011::new(), 0x00), Some(0));
    }

    #[test]
    fn other_registers_do_not_exist_and_change_nothing() {
        for at in (0..0x1000).filter(|at| ![0x00, 0x18, 0x38, 0x3C, 0x40, 0x44].contains(at)) {
            let mut uart = Vpl011::new();
            assert_eq!(read(&mut uart, at), None);
            assert_eq!(uart.write(at, u32::MAX), None);
            assert_eq!(uart, Vpl011::new());
        }
    }
}
