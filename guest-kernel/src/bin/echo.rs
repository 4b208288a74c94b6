//! Repeats each line that is typed, and ends at `bye`. With `fill=` it writes so many bytes first: more than a ring holds.
#![no_std]
#![no_main]
extern crate alloc;

use alloc::format;
use alloc::vec::Vec;

use guest_kernel::Guest;
use guest_kernel::keyboard::Keyboard;
use pv_abi::Errno;

guest_kernel::main!(main);

fn main(guest: &Guest) -> Result<(), Errno> {
    let keyboard = Keyboard::open()?;
    let how = if keyboard.is_pv() { "PV console" } else { "calls" };
    for line in 0..guest.args().number("fill").unwrap_or(0) / 64 {
        keyboard.write(format!("{line:063}\n").as_bytes())?;
    }
    keyboard.write(format!("echo: ready, {how}\n").as_bytes())?;
    let mut line = Vec::new();
    loop {
        match keyboard.key()? {
            b'\r' | b'\n' => {
                let text = core::str::from_utf8(&line).unwrap_or("?");
                keyboard.write(format!("echo: {text}\n").as_bytes())?;
                if text == "bye" {
                    return Ok(());
                }
                line.clear();
            }
            key => line.push(key),
        }
    }
}
