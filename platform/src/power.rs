//! The Raspberry Pi's power manager (`brcm,bcm2835-pm-wdt`): its watchdog resets the board, and a mark in the reset status asks the
//! boot ROM to stay off. No datasheet has it; facts from Linux's `drivers/watchdog/bcm2835_wdt.c`.
use tock_registers::interfaces::{Readable, Writeable};
use tock_registers::register_structs;
use tock_registers::registers::ReadWrite;

/// What the device tree calls it.
pub const COMPATIBLE: &[&str] = &["brcm,bcm2835-pm-wdt"];

register_structs! {
    #[allow(missing_docs, reason = "fields have the hardware's names")]
    /// The registers that matter.
    pub PowerManager {
        (0x00 => _others),
        (0x1c => rstc: ReadWrite<u32>),
        (0x20 => rsts: ReadWrite<u32>),
        (0x24 => wdog: ReadWrite<u32>),
        (0x28 => @END),
    }
}

/// Writes without it are ignored.
const PASSWORD: u32 = 0x5a00_0000;
/// What the watchdog does when its time is over, in `rstc`: a full reset.
const RSTC_FULL_RESET: u32 = 0x20;
const RSTC_ACTION: u32 = 0x30;
/// The partition number 63, in every second bit of `rsts`: "halt".
const RSTS_HALT: u32 = 0x555;
/// Some 150 microseconds, in ticks of 16.
const SOON: u32 = 10;

impl PowerManager {
    /// Resets the board within a millisecond, to boot as usual; the caller waits.
    pub fn reset(&self) {
        self.rsts.set(PASSWORD | self.rsts.get() & 0x00ff_ffff & !RSTS_HALT);
        self.fire();
    }

    fn fire(&self) {
        self.wdog.set(PASSWORD | SOON);
        self.rstc.set(PASSWORD | self.rstc.get() & !(RSTC_ACTION | 0xff00_0000) | RSTC_FULL_RESET);
    }

    /// Resets into the halted state, in which the board draws least; only a power cycle or its button end it.
    pub fn off(&self) {
        self.rsts.set(PASSWORD | self.rsts.get() & 0x00ff_ffff | RSTS_HALT);
        self.fire();
    }
}
