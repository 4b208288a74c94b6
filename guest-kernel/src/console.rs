//! The console: `print!` and `println!`, a line at a time. Through the emulated PL011 where the tree has one, else `console_io`.
//!
//! 1. One line is one hypercall, so lines of several guests never mix.
use core::fmt::{self, Write};

use heapless::Vec;

use crate::lock::Lock;
use crate::mmio::Registers;
use crate::{cpu, hypercall};

/// Longest line that goes out whole, bytes with its end.
const LINE: usize = 256;
/// Data register of the PL011 (Arm DDI 0183, 3.3.1).
const UARTDR: usize = 0x00;
/// Flag register (3.3.3).
const UARTFR: usize = 0x18;
/// In UARTFR: the transmit FIFO is full.
const TXFF: u32 = 1 << 5;
/// Reads of a full FIFO before a byte is given up.
const PATIENCE: u32 = 1 << 20;

struct Console {
    line: Vec<u8, LINE>,
    uart: Option<Registers>,
}

static CONSOLE: Lock<Console> = Lock::new(Console { line: Vec::new(), uart: None });

impl Console {
    /// Ends a line that was begun by `print!`.
    fn end_line(&mut self) {
        if !self.line.is_empty() && self.line.push(b'\n').is_ok() {
            self.flush();
        }
    }

    fn flush(&mut self) {
        match self.uart {
            Some(uart) => self.line.iter().for_each(|byte| send(uart, *byte)),
            // A refusal leaves nobody to tell.
            None => drop(hypercall::console_write(&self.line)),
        }
        self.line.clear();
    }
}

fn send(uart: Registers, byte: u8) {
    for _ in 0..PATIENCE {
        if uart.read32(UARTFR) & TXFF == 0 {
            break;
        }
    }
    uart.write32(UARTDR, u32::from(byte));
}

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if self.line.len() + 1 == LINE {
                let _ = self.line.push(b'\n');
                self.flush();
            }
            let _ = self.line.push(byte);
            if byte == b'\n' {
                self.flush();
            }
        }
        Ok(())
    }
}

/// Chooses the emulated PL011 for what follows.
pub(crate) fn use_uart(uart: Registers) {
    cpu::without_interrupts(|| CONSOLE.lock().uart = Some(uart));
}

/// Prints; what [`print!`](crate::print) calls.
pub fn print(arguments: fmt::Arguments<'_>) {
    cpu::without_interrupts(|| {
        let _ = CONSOLE.lock().write_fmt(arguments);
    });
}

/// Prints from a fault or a panic, even if that came while a line was being printed.
pub(crate) fn print_last_words(arguments: fmt::Arguments<'_>) {
    cpu::mask_interrupts();
    if let Some(mut console) = CONSOLE.try_lock() {
        console.end_line();
        let _ = console.write_fmt(arguments);
    } else {
        let mut console = Console { line: Vec::new(), uart: None };
        let _ = console.write_fmt(arguments);
        console.flush();
    }
}

/// Prints to the console.
#[macro_export]
macro_rules! print {
    ($($argument:tt)*) => { $crate::console::print(format_args!($($argument)*)) };
}

/// Prints a line to the console.
#[macro_export]
macro_rules! println {
    () => { $crate::print!("\n") };
    ($($argument:tt)*) => { $crate::console::print(format_args!("{}\n", format_args!($($argument)*))) };
}
