//! The console's UART: one byte out, with a bound on the wait, and one byte in, if there is one.
#![expect(unsafe_code, reason = "device registers")]

use core::ptr::{NonNull, with_exposed_provenance, with_exposed_provenance_mut};

use arm_pl011_uart::{
    DataBits, Interrupts, LineConfig, PL011Registers, Parity, StopBits, Uart, UniqueMmioPointer,
};

use crate::mailbox::Question;
use crate::mini_uart::{self, Auxiliary};

/// How often the flag register is read before a byte is dropped: a 16-byte FIFO at 9600 baud drains in 17 ms, and a register read
/// takes 100 ns or more.
const PATIENCE: u32 = 200_000;
/// The rate where nobody says another, in baud.
const BAUD: u32 = 115_200;
/// `UARTCR.UARTEN`, `TXE`.
const PL011_ON: u32 = 0x101;
const PL011_CR: usize = 0x30;

/// UARTs with a driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Arm `PrimeCell` PL011.
    Pl011,
    /// The Raspberry Pi's mini-UART.
    MiniUart,
}

impl Kind {
    /// What the device tree calls each.
    pub const ALL: [(&'static str, Self); 2] =
        [("arm,pl011", Self::Pl011), ("brcm,bcm2835-aux-uart", Self::MiniUart)];

    /// Which of the firmware's clocks drives it.
    pub const fn clock(self) -> Question {
        match self {
            Self::Pl011 => Question::UartClock,
            Self::MiniUart => Question::CoreClock,
        }
    }
}

/// A UART that can print.
pub enum Console {
    /// Arm `PrimeCell` PL011.
    Pl011(Uart<'static>),
    /// The Raspberry Pi's mini-UART.
    MiniUart(&'static Auxiliary),
    /// Whatever it is: what a packer wrote into the image ([`Early`]).
    Early(Early, usize),
}

// SAFETY: device registers belong to no CPU; whoever has the console has them alone (`open`).
unsafe impl Send for Console {}

/// A UART that is polled and written blindly: the words that follow the image's header, where something put them there. All offsets are
/// bytes from `address`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Early {
    /// Physical address of the data register; 0 for none.
    pub address: u64,
    /// Where the status register is, from the data register.
    pub status: u32,
    /// Bits of it that say whether a byte can be sent.
    pub mask: u32,
    /// What these bits are then.
    pub ready: u32,
    /// Not of the UART: 1 where the firmware's stub lets EL2 set `CPUACTLR_EL1`. Read by boot.S alone.
    pub may_set_cpuactlr: u32,
}

impl Console {
    /// The UART whose registers are mapped at `address`. One that the firmware left off is set up: 8N1 at `baud`; `clock` says the
    /// rate of its clock in Hz, where somebody knows.
    ///
    /// # Safety
    /// The register pages of such a UART are mapped there as device memory for ever, and nothing else uses them.
    pub unsafe fn open(
        kind: Kind,
        address: usize,
        baud: Option<u32>,
        clock: impl FnOnce() -> Option<u32>,
    ) -> Option<Self> {
        let baud = baud.unwrap_or(BAUD);
        match kind {
            Kind::Pl011 => {
                let control = with_exposed_provenance::<u32>(address.checked_add(PL011_CR)?);
                // SAFETY: the caller's promise; `UARTCR` may be read at any time.
                let on = unsafe { control.read_volatile() } & PL011_ON == PL011_ON;
                let registers = NonNull::new(with_exposed_provenance_mut::<PL011Registers>(address))?;
                // SAFETY: the caller's promise.
                let mut uart = Uart::new(unsafe { UniqueMmioPointer::new(registers) });
                if !on {
                    let line = LineConfig {
                        data_bits: DataBits::Bits8,
                        parity: Parity::None,
                        stop_bits: StopBits::One,
                    };
                    // Without a clock the divisors must be right by chance: a rate that is off is better than silence.
                    let _ = uart.enable(line, baud, clock().unwrap_or(24_000_000));
                }
                Some(Self::Pl011(uart))
            }
            Kind::MiniUart => {
                let registers = with_exposed_provenance::<Auxiliary>(address.checked_sub(mini_uart::OFFSET)?);
                // SAFETY: the caller's promise; the block's first registers share the page (const assertion below).
                let uart = unsafe { registers.as_ref() }?;
                if !uart.is_on() {
                    uart.set_up(clock().and_then(|clock| mini_uart::divisor(clock, baud)));
                }
                Some(Self::MiniUart(uart))
            }
        }
    }

    /// Sends a byte, waiting for room for a bounded time; then drops it.
    pub fn put(&mut self, byte: u8) {
        for _ in 0..PATIENCE {
            if self.has_room() {
                self.send(byte);
                return;
            }
        }
    }

    /// Whether a byte can be sent now.
    pub fn has_room(&self) -> bool {
        match self {
            Self::Pl011(uart) => !uart.is_tx_fifo_full(),
            Self::MiniUart(uart) => uart.has_room(),
            Self::Early(early, data) => {
                let status = with_exposed_provenance::<u32>(data.wrapping_add(early.status as usize));
                // SAFETY: whoever made this mapped the page as a device.
                unsafe { status.read_volatile() & early.mask == early.ready }
            }
        }
    }

    /// Asks for an interrupt when bytes have come. A UART that is written blindly has none.
    pub fn listen(&mut self) {
        match self {
            Self::Pl011(uart) => uart.set_interrupt_masks(Interrupts::RXI | Interrupts::RTI),
            Self::MiniUart(uart) => uart.listen(),
            Self::Early(..) => {}
        }
    }

    /// A byte that has come. One that came damaged is dropped, and ends the row: the interrupt tells of what follows.
    pub fn take(&mut self) -> Option<u8> {
        match self {
            Self::Pl011(uart) => uart.read_word().ok().flatten(),
            Self::MiniUart(uart) => uart.take(),
            Self::Early(..) => None,
        }
    }

    /// Whether everything that was sent has left.
    pub fn is_idle(&self) -> bool {
        match self {
            Self::Pl011(uart) => !uart.is_busy(),
            Self::MiniUart(uart) => uart.is_idle(),
            Self::Early(..) => self.has_room(),
        }
    }

    fn send(&mut self, byte: u8) {
        match self {
            Self::Pl011(uart) => uart.write_word(byte),
            Self::MiniUart(uart) => uart.send(byte),
            Self::Early(_, data) => {
                let register = with_exposed_provenance_mut::<u32>(*data);
                // SAFETY: as above.
                unsafe { register.write_volatile(byte.into()) };
            }
        }
    }
}
