//! Ends in the way that the command line asks for, so that what a hypervisor makes of each can be tested:
//! `how=` `poweroff`, `reboot`, `crash`, `error`, `panic`, `overflow` (of the stack), `exhaust` (the heap), `hang` or `spin`.
#![no_std]
#![no_main]
extern crate alloc;
use core::hint::black_box;

use guest_kernel::{Guest, interrupt, power, println};

guest_kernel::main!(main);

fn main(guest: &Guest) -> Result<(), &'static str> {
    let how = guest.args().text("how").ok_or("how= is missing")?;
    println!("faulty: {how}");
    match how {
        "poweroff" => power::power_off(),
        "reboot" => power::reboot(),
        "crash" => power::crash(),
        "error" => Err("as asked"),
        "panic" => panics(black_box(1)),
        "overflow" => Err(if dive(black_box(1)) == 0 { "0" } else { "the stack has no end" }),
        "exhaust" => loop {
            core::mem::forget(black_box(alloc::vec![1u8; 1 << 20]));
        },
        "hang" => {
            interrupt::wait_until(|| false);
            Ok(())
        }
        "spin" => loop {
            core::hint::spin_loop();
        },
        _ => Err("how= is not known"),
    }
}

#[expect(clippy::panic, reason = "what it is for")]
fn panics(number: u32) -> ! {
    panic!("as asked, {number}")
}

/// Goes down until the guard page stops it.
fn dive(depth: u64) -> u64 {
    let here = black_box([depth; 64]);
    if black_box(true) { dive(depth + 1).wrapping_add(here[7]) } else { 0 }
}
