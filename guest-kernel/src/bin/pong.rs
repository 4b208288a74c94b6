//! Answers each event of the control domain with one, `pings=` times (1), and powers off. Its port is the first one of a domain, 1.
#![no_std]
#![no_main]
use guest_kernel::Guest;
use guest_kernel::event::Channel;
use pv_abi::{DomId, Errno};

guest_kernel::main!(main);

fn main(guest: &Guest) -> Result<(), Errno> {
    let channel = Channel::unbound(DomId(0))?;
    for _ in 0..guest.args().number("pings").unwrap_or(1) {
        channel.wait()?;
        channel.notify()?;
    }
    Ok(())
}
