//! Says a lot: from `from=` (milliseconds of the counter) on `lines=` numbered lines of 60 characters, as fast as the console takes them.
#![no_std]
#![no_main]
use core::time::Duration;

use guest_kernel::{Guest, hypercall, println, time};
use pv_abi::Errno;

guest_kernel::main!(main);

fn main(guest: &Guest) -> Result<(), Errno> {
    let args = guest.args();
    let from = Duration::from_millis(args.number("from").unwrap_or(0));
    while time::now().since_start() < from {
        hypercall::sched_yield()?;
    }
    for line in 0..args.number("lines").unwrap_or(100) {
        println!("line {line:06} {:.<48}", "");
    }
    Ok(())
}
