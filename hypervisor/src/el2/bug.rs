//! Bugs of ours: exceptions taken from EL2 itself, and the panics that boot may have. Prints plain text and halts.
#![expect(unsafe_code, reason = "WFE, and a name that the assembly calls")]

use core::arch::asm;
use core::fmt::{self, Write};

use super::console;

struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        console::write_anyway(text.as_bytes());
        Ok(())
    }
}

/// An exception from EL2: kind is the vector's number, the registers are what they were.
#[unsafe(no_mangle)]
extern "C" fn bug_entry(kind: u64, esr: u64, elr: u64, far: u64, sp: u64) -> ! {
    // No formatting machinery: this runs when the hypervisor itself is broken, and must not be able to panic.
    for (name, value) in
        [("\nBUG: exception ", kind), (" ESR ", esr), (" ELR ", elr), (" FAR ", far), (" SP ", sp)]
    {
        console::write_anyway(name.as_bytes());
        hexadecimal(value);
    }
    console::write_anyway(b"\n");
    halt()
}

fn hexadecimal(value: u64) {
    let mut text = *b"0x0000000000000000";
    let mut rest = value;
    for slot in text.iter_mut().rev().take(16) {
        let digit = (rest & 15) as u8;
        *slot = if digit < 10 { b'0'.wrapping_add(digit) } else { b'a'.wrapping_add(digit.wrapping_sub(10)) };
        rest >>= 4;
    }
    console::write_anyway(&text);
}

/// Stops with a message: boot only.
pub fn stop(why: &str) -> ! {
    console::write_anyway(b"\npavo: cannot start: ");
    console::write_anyway(why.as_bytes());
    console::write_anyway(b"\n");
    super::finish::power_off()
}

/// Says what the self-check found wrong with a CPU, and halts it.
#[cfg(feature = "selfcheck")]
pub fn found(what: &str) -> ! {
    console::write_anyway(b"\nBUG: ");
    console::write_anyway(what.as_bytes());
    console::write_anyway(b"\n");
    halt()
}

/// Halts this CPU for ever.
pub fn halt() -> ! {
    loop {
        // SAFETY: waits; all exceptions are masked.
        unsafe { asm!("msr daifset, #0xF", "wfe", options(nomem, nostack)) };
    }
}

/// Reachable from boot code only: `cargo xtask check` proves that no guest gets here.
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let _ = writeln!(Console, "\nBUG: {info}");
    halt()
}

/// What defmt would call instead of a panic.
#[defmt::panic_handler]
fn defmt_panic() -> ! {
    halt()
}
