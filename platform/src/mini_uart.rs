//! The Raspberry Pi's mini-UART (`brcm,bcm2835-aux-uart`; BCM2711 ARM Peripherals, chapter 2).
//!
//! Its rate follows the core clock: the firmware's `enable_uart=1` keeps that still.
use tock_registers::interfaces::{ReadWriteable, Readable, Writeable};
use tock_registers::registers::{ReadOnly, ReadWrite};
use tock_registers::{register_bitfields, register_structs};

register_bitfields! { u32,
    /// `AUX_ENABLES` (2.1.1).
    AUX_ENABLES [
        /// The mini-UART answers at all.
        MINI_UART OFFSET(0) NUMBITS(1) []
    ],
    /// `AUX_MU_LSR_REG` (2.2.2).
    AUX_MU_LSR [
        /// The transmit FIFO is empty and the last bit is out.
        TX_IDLE OFFSET(6) NUMBITS(1) [],
        /// The transmit FIFO takes at least one byte.
        TX_EMPTY OFFSET(5) NUMBITS(1) [],
        /// A byte has come.
        DATA_READY OFFSET(0) NUMBITS(1) []
    ]
}

register_structs! {
    #[allow(missing_docs, reason = "fields have the datasheet's names")]
    /// The auxiliary peripherals up to the mini-UART's last register.
    pub Auxiliary {
        (0x00 => _irq),
        (0x04 => enables: ReadWrite<u32, AUX_ENABLES::Register>),
        (0x08 => _spi),
        (0x40 => io: ReadWrite<u32>),
        (0x44 => ier: ReadWrite<u32>),
        (0x48 => iir: ReadWrite<u32>),
        (0x4c => lcr: ReadWrite<u32>),
        (0x50 => mcr: ReadWrite<u32>),
        (0x54 => lsr: ReadOnly<u32, AUX_MU_LSR::Register>),
        (0x58 => _status),
        (0x60 => cntl: ReadWrite<u32>),
        (0x64 => _stat),
        (0x68 => baud: ReadWrite<u32>),
        (0x6c => @END),
    }
}

/// Bytes from the auxiliary block to the mini-UART's own registers, which the device tree names.
pub const OFFSET: usize = 0x40;
/// 8 data bits. The datasheet says 1; its own errata and the hardware say 3.
const LCR_8_BITS: u32 = 3;
/// Both FIFOs emptied.
const IIR_CLEAR: u32 = 0xc6;
/// An interrupt when a byte has come. The datasheet's table has this bit and the transmitter's the wrong way round, and says of bits 2 and 3 that
/// interrupts need them.
const IER_RECEIVE: u32 = 0xd;
/// Receiver and transmitter on.
const CNTL_ON: u32 = 3;

impl Auxiliary {
    /// Whether the firmware left it switched on.
    pub fn is_on(&self) -> bool {
        self.enables.is_set(AUX_ENABLES::MINI_UART)
    }

    /// Switches it on: 8N1, no interrupts; `divisor` (2.2.1: core clock / (8 * baud) - 1) where it is known.
    pub fn set_up(&self, divisor: Option<u32>) {
        self.enables.modify(AUX_ENABLES::MINI_UART::SET);
        self.cntl.set(0);
        self.ier.set(0);
        self.lcr.set(LCR_8_BITS);
        self.mcr.set(0);
        self.iir.set(IIR_CLEAR);
        if let Some(divisor) = divisor {
            self.baud.set(divisor);
        }
        self.cntl.set(CNTL_ON);
    }

    /// Whether a byte can be given to it.
    pub fn has_room(&self) -> bool {
        self.lsr.is_set(AUX_MU_LSR::TX_EMPTY)
    }

    /// Whether everything that was sent has left.
    pub fn is_idle(&self) -> bool {
        self.lsr.is_set(AUX_MU_LSR::TX_IDLE)
    }

    /// Asks for an interrupt when a byte has come.
    pub fn listen(&self) {
        self.ier.set(IER_RECEIVE);
    }

    /// A byte that has come.
    pub fn take(&self) -> Option<u8> {
        self.lsr.is_set(AUX_MU_LSR::DATA_READY).then(|| self.io.get().to_le_bytes()[0])
    }

    /// Sends a byte.
    pub fn send(&self, byte: u8) {
        self.io.set(byte.into());
    }
}

/// The divisor for a rate in baud, from the core clock in Hz.
pub fn divisor(clock: u32, baud: u32) -> Option<u32> {
    clock.checked_div(baud.checked_mul(8)?)?.checked_sub(1)
}
