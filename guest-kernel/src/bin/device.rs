//! A device of the machine's own, given to this domain: a PL011 that sends a line, or a PL031 clock that gives an alarm. Either must
//! raise its interrupt here. The Raspberry Pi's pins: one is an output, and follows what it is told. Devices that do DMA must say what they
//! are: QEMU's configuration device its name, a controller of SD cards its version; what they write by themselves is not tried.
//!
//! With `touch=ADDRESS` on the command line (hexadecimal) the guest reads that address instead, which is no device of its own, and must
//! fault. With `listen=INTID` it has no device: it enables that shared interrupt, and must get none while the owner, at the other end of
//! its channel, gets its own.
#![no_std]
#![no_main]
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;

use guest_kernel::device::{self, Registers};
use guest_kernel::event::Channel;
use guest_kernel::interrupt::{self, Intid, Shared};
use guest_kernel::tree::Region;
use guest_kernel::{Guest, println, time, timer};
use pv_abi::Port;
use spin::Once;

guest_kernel::main!(main);

/// PL011 (TRM 3.2): data, interrupt mask, raw and clear; transmit interrupt.
mod pl011 {
    pub(super) const DR: usize = 0x00;
    pub(super) const IMSC: usize = 0x38;
    pub(super) const ICR: usize = 0x44;
    pub(super) const CR: usize = 0x30;
    pub(super) const ON: u32 = 0x301;
    pub(super) const TRANSMIT: u32 = 1 << 5;
}

/// PL031 (TRM 3.2): data (seconds), match, interrupt mask and clear.
mod pl031 {
    pub(super) const DR: usize = 0x00;
    pub(super) const MR: usize = 0x04;
    pub(super) const IMSC: usize = 0x10;
    pub(super) const ICR: usize = 0x1c;
}

/// The pins (BCM2711 ARM Peripherals 5.2): function of pins 20 to 29, three bits each; set, clear and level of pins 0 to 31.
mod gpio {
    pub(super) const FUNCTION_20: usize = 0x08;
    pub(super) const SET: usize = 0x1c;
    pub(super) const CLEAR: usize = 0x28;
    pub(super) const LEVEL: usize = 0x34;
    pub(super) const OUTPUT: u32 = 1;
    pub(super) const PIN_20: u32 = 1 << 20;
}

/// Of a controller of SD cards: the word with its version, of the specification in bits 23:16, 2 for 3.00 (SD Host Controller Simplified
/// Specification 3.00, 2.2.29).
const SD_VERSION: usize = 0xfc;

static DEVICE: Once<(Registers, usize)> = Once::new();
static CAME: AtomicU32 = AtomicU32::new(0);

#[derive(Debug)]
#[expect(dead_code, reason = "shown when the guest ends")]
enum Failed {
    NoDevice,
    Mapping,
    NoController,
    NoInterrupt,
    Touched(u32),
    Signature(u32),
    Pin(u32),
    NoChannel,
    Heard(u32),
}

/// Clears the device's interrupt, so that its line drops before this interrupt ends.
fn served() {
    if let Some((registers, clear)) = DEVICE.get() {
        registers.write32(*clear, u32::MAX);
    }
    CAME.fetch_add(1, Ordering::SeqCst);
}

fn map(region: Region) -> Result<Registers, Failed> {
    device::map(region).map_err(|_| Failed::Mapping)
}

/// The channel to the domain with the device, or to the one that listens.
fn channel(guest: &Guest) -> Result<Option<Channel>, Failed> {
    let port = guest.args().number("port").and_then(|port| u32::try_from(port).ok());
    port.map(|port| Channel::fixed(Port(port)).map_err(|_| Failed::NoChannel)).transpose()
}

/// Another's interrupt, enabled here, must not come.
fn listen(guest: &Guest, intid: u64) -> Result<(), Failed> {
    let shared = u32::try_from(intid).ok().and_then(Shared::new).ok_or(Failed::NoInterrupt)?;
    let channel = channel(guest)?.ok_or(Failed::NoChannel)?;
    interrupt::start(guest.tree.gic).map_err(|_| Failed::NoController)?;
    interrupt::enable_shared(shared, served).map_err(|_| Failed::NoController)?;
    println!("device: listening for interrupt {}", shared.number());
    channel.notify().map_err(|_| Failed::NoChannel)?;
    channel.wait().map_err(|_| Failed::NoChannel)?;
    match CAME.load(Ordering::SeqCst) {
        0 => {
            println!("device: heard nothing");
            Ok(())
        }
        count => Err(Failed::Heard(count)),
    }
}

/// Pin 20 up, down, and up again.
fn pin(registers: Registers) -> Result<(), Failed> {
    registers.write32(gpio::FUNCTION_20, gpio::OUTPUT);
    for (register, up) in [(gpio::SET, true), (gpio::CLEAR, false), (gpio::SET, true)] {
        registers.write32(register, gpio::PIN_20);
        let level = registers.read32(gpio::LEVEL);
        if (level & gpio::PIN_20 != 0) != up {
            return Err(Failed::Pin(level));
        }
    }
    println!("device: pin 20 follows");
    Ok(())
}

fn main(guest: &Guest) -> Result<(), Failed> {
    if let Some(intid) = guest.args().number("listen") {
        return listen(guest, intid);
    }
    if let Some(address) = guest.args().text("touch").and_then(|text| u64::from_str_radix(text, 16).ok()) {
        println!("device: touching {address:#x}");
        let registers = map(Region { start: address, size: 0x1000 })?;
        return Err(Failed::Touched(registers.read32(0)));
    }
    let device = guest.tree.device.ok_or(Failed::NoDevice)?;
    match device.compatible {
        "qemu,fw-cfg-mmio" => {
            // Its data register, after reset that of the signature (QEMU `docs/specs/fw_cfg.rst`).
            let word = map(device.registers)?.read32(0);
            println!("device: {} says {word:#x}", device.compatible);
            return if word.to_le_bytes() == *b"QEMU" { Ok(()) } else { Err(Failed::Signature(word)) };
        }
        "brcm,bcm2835-sdhci" => {
            let word = map(device.registers)?.read32(SD_VERSION);
            println!("device: {} of version {}", device.compatible, word >> 16 & 0xff);
            return if word >> 16 & 0xff == 2 { Ok(()) } else { Err(Failed::Signature(word)) };
        }
        "brcm,bcm2711-gpio" => return pin(map(device.registers)?),
        _ => {}
    }
    let listener = channel(guest)?;
    let shared = Shared::new(device.interrupt.ok_or(Failed::NoInterrupt)?).ok_or(Failed::NoInterrupt)?;
    println!("device: {} at {:#x}, interrupt {}", device.compatible, device.registers.start, shared.number());
    let registers = map(device.registers)?;
    interrupt::start(guest.tree.gic).map_err(|_| Failed::NoController)?;
    let clock = device.compatible == "arm,pl031";
    DEVICE.call_once(|| (registers, if clock { pl031::ICR } else { pl011::ICR }));
    interrupt::enable_shared(shared, served).map_err(|_| Failed::NoController)?;
    if let Some(listener) = &listener {
        listener.wait().map_err(|_| Failed::NoChannel)?;
    }
    for round in 1..=3 {
        if clock {
            registers.write32(pl031::MR, registers.read32(pl031::DR).wrapping_add(1));
            registers.write32(pl031::IMSC, 1);
        } else {
            registers.write32(pl011::CR, pl011::ON);
            registers.write32(pl011::IMSC, pl011::TRANSMIT);
            for byte in *b"sent by the device's own domain\r\n" {
                registers.write32(pl011::DR, byte.into());
            }
        }
        // The alarm is a second away; a device whose interrupt is lost must not hold the run up for ever.
        let deadline = time::now().after(Duration::from_secs(10));
        interrupt::enable(Intid::TIMER, timer::disarm).map_err(|_| Failed::NoController)?;
        timer::arm(deadline);
        interrupt::wait_until(|| CAME.load(Ordering::SeqCst) >= round || time::now() >= deadline);
        if CAME.load(Ordering::SeqCst) < round {
            return Err(Failed::NoInterrupt);
        }
    }
    println!("device: {} interrupts", CAME.load(Ordering::SeqCst));
    listener.map_or(Ok(()), |listener| listener.notify().map_err(|_| Failed::NoChannel))
}
