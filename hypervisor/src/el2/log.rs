//! The hypervisor's log: defmt frames, each one printable line on the console.
//!
//! A line is the mark `§`, the frame in base64, a newline. Guests' lines start with `(dN)` and have the mark removed, so none can
//! be forged; a plain terminal stays readable, `cargo xtask run` decodes.
//!
//! Invariants
//! 1. Between `acquire` and `release` the frame lock is held: frames never mix.
//! 2. A frame longer than [`FRAME`] is cut; it then decodes as garbage, never as another event.
#![expect(unsafe_code, reason = "defmt's logger interface is unsafe")]

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering};

use hypervisor::domain::{Fault, Life};
use hypervisor::log::Event;
use hypervisor::selfcheck;
use pv_abi::sched::ShutdownReason;

use super::{console, report, timer};

const MARK: [u8; 2] = [0xC2, 0xA7];
const FRAME: usize = 240;
const LINE: usize = MARK.len() + FRAME.div_ceil(3) * 4 + 1;

struct Buffer {
    bytes: [u8; FRAME],
    used: usize,
}

struct Frames {
    busy: AtomicBool,
    buffer: UnsafeCell<Buffer>,
    encoder: UnsafeCell<defmt::Encoder>,
}

// SAFETY: `busy` gives the cells to one CPU at a time.
unsafe impl Sync for Frames {}

static FRAMES: Frames = Frames {
    busy: AtomicBool::new(false),
    buffer: UnsafeCell::new(Buffer { bytes: [0; FRAME], used: 0 }),
    encoder: UnsafeCell::new(defmt::Encoder::new()),
};

#[defmt::global_logger]
struct Logger;

fn append(bytes: &[u8]) {
    // SAFETY: called by the encoder between acquire and release, so this CPU holds `busy`.
    let buffer = unsafe { &mut *FRAMES.buffer.get() };
    for byte in bytes {
        if let Some(slot) = buffer.bytes.get_mut(buffer.used) {
            *slot = *byte;
            buffer.used = buffer.used.wrapping_add(1);
        }
    }
}

// SAFETY: acquire and release bracket exclusive use (invariant 1); EL2 takes no interrupt in between.
unsafe impl defmt::Logger for Logger {
    fn acquire() {
        while FRAMES.busy.compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            core::hint::spin_loop();
        }
        // SAFETY: `busy` is ours.
        let buffer = unsafe { &mut *FRAMES.buffer.get() };
        buffer.used = 0;
        // SAFETY: `busy` is ours.
        let encoder = unsafe { &mut *FRAMES.encoder.get() };
        encoder.start_frame(append);
    }

    unsafe fn flush() {}

    unsafe fn release() {
        // SAFETY: `busy` is ours since acquire.
        let encoder = unsafe { &mut *FRAMES.encoder.get() };
        encoder.end_frame(append);
        // SAFETY: as above.
        let buffer = unsafe { &*FRAMES.buffer.get() };
        emit(buffer.bytes.get(..buffer.used).unwrap_or(&[]));
        FRAMES.busy.store(false, Ordering::Release);
    }

    unsafe fn write(bytes: &[u8]) {
        // SAFETY: `busy` is ours since acquire.
        let encoder = unsafe { &mut *FRAMES.encoder.get() };
        encoder.write(bytes, append);
    }
}

/// Prints one frame as a marked line.
fn emit(frame: &[u8]) {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut line = [0_u8; LINE];
    let mut used = 0_usize;
    let mut push = |byte: u8| {
        if let Some(slot) = line.get_mut(used) {
            *slot = byte;
            used = used.wrapping_add(1);
        }
    };
    MARK.into_iter().for_each(&mut push);
    for group in frame.chunks(3) {
        let byte = |n: usize| u32::from(group.get(n).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for n in 0..=group.len() {
            let shift = 18_u32.wrapping_sub((n as u32).wrapping_mul(6));
            push(ALPHABET.get((bits >> shift & 63) as usize).copied().unwrap_or(b'A'));
        }
    }
    push(b'\n');
    console::write(line.get(..used).unwrap_or(&[]));
}

defmt::timestamp!("{=u64:us}", timer::microseconds());

/// Says an event of the portable half.
pub fn event(event: Event) {
    say(event);
    if let Event::Ended(domain, end) = event {
        report::waiting(domain, end);
    }
}

fn say(event: Event) {
    match event {
        Event::Ended(domain, Life::Running) => defmt::info!("d{=u16}: runs", domain.0),
        Event::Ended(domain, Life::Shutdown(reason)) => match reason {
            ShutdownReason::Poweroff => defmt::info!("d{=u16}: shutdown poweroff", domain.0),
            ShutdownReason::Reboot => defmt::info!("d{=u16}: shutdown reboot", domain.0),
            ShutdownReason::Suspend => defmt::info!("d{=u16}: shutdown suspend", domain.0),
            ShutdownReason::Crash => defmt::warn!("d{=u16}: shutdown crash", domain.0),
            ShutdownReason::Watchdog => defmt::warn!("d{=u16}: shutdown watchdog", domain.0),
            ShutdownReason::SoftReset => defmt::info!("d{=u16}: shutdown soft-reset", domain.0),
        },
        Event::Ended(domain, Life::Destroyed(fault)) => match fault {
            Fault::WordContended => {
                defmt::warn!("d{=u16}: destroyed: it kept a shared word busy", domain.0);
            }
            Fault::ByControl => defmt::info!("d{=u16}: destroyed: by the control domain", domain.0),
            Fault::SystemError => defmt::warn!("d{=u16}: destroyed: SError", domain.0),
            Fault::UnknownException => defmt::warn!("d{=u16}: destroyed: unknown exception class", domain.0),
        },
        Event::Pages(domain, pages, all) => {
            defmt::info!("d{=u16}: {=u64} of {=u64} frames of RAM in pages of 4 KiB", domain.0, pages, all);
        }
        Event::BuiltAgain(domain, generation) => {
            defmt::info!("d{=u16}: built again, {=u32} times by now", domain.0, generation);
        }
        Event::NotBuilt(domain) => defmt::error!("d{=u16}: refused: it cannot be built again", domain.0),
        Event::Holds(holder, of, mappings) => {
            defmt::info!("d{=u16}: d{=u16} has {=u32} mappings of its pages still", of.0, holder.0, mappings);
        }
        Event::Waits(domain, frames) => {
            defmt::warn!(
                "d{=u16}: not built again before others let go of its {=u64} frames",
                domain.0,
                frames
            );
        }
        Event::TooOften(domain) => {
            defmt::warn!("d{=u16}: not built again: too many restarts in a minute", domain.0);
        }
        Event::Keyboard(domain) => defmt::info!("keyboard: d{=u16}", domain.0),
        Event::Violation(violation) if selfcheck::OFFERED => {
            let (what, at) = violation.told();
            defmt::error!("self-check: {=str}: {=u64:#x}", what, at);
        }
        Event::Violation(_) => {}
        Event::WordContended(domain) => defmt::warn!("d{=u16}: keeps a shared word busy", domain.0),
    }
}
