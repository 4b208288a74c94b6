//! The console's UART: one byte out, with a bound on the wait.
#![expect(unsafe_code, reason = "device registers")]

use core::ptr::{NonNull, with_exposed_provenance_mut};

use arm_pl011_uart::{PL011Registers, Uart, UniqueMmioPointer};

/// How often the flag register is read before a byte is dropped: a 16-byte FIFO at 9600 baud drains in 17 ms, and a register read
/// takes 100 ns or more.
const PATIENCE: u32 = 200_000;

/// A UART that can print.
pub enum Console {
    /// Arm `PrimeCell` PL011, as the firmware set it up (line rate, enabled).
    Pl011(Uart<'static>),
}

impl Console {
    /// A PL011 whose registers are mapped at `address`.
    ///
    /// # Safety
    /// The register page of a PL011 is mapped there as device memory for ever, and nothing else uses it.
    pub unsafe fn pl011(address: usize) -> Option<Self> {
        let registers = NonNull::new(with_exposed_provenance_mut::<PL011Registers>(address))?;
        // SAFETY: the caller's promise.
        let pointer = unsafe { UniqueMmioPointer::new(registers) };
        Some(Self::Pl011(Uart::new(pointer)))
    }

    /// Sends a byte, waiting for room for a bounded time; then drops it.
    pub fn put(&mut self, byte: u8) {
        match self {
            Self::Pl011(uart) => {
                for _ in 0..PATIENCE {
                    if !uart.is_tx_fifo_full() {
                        uart.write_word(byte);
                        return;
                    }
                }
            }
        }
    }
}
