//! Answers each event of the control domain with one, `pings=` times (1), and powers off. Its port is the first one of a domain, 1. It waits in the
//! hypervisor, by a call; with `asleep=wfi` by that instruction, with the event as an interrupt.
#![no_std]
#![no_main]
use core::sync::atomic::{AtomicU64, Ordering};

use guest_kernel::event::Channel;
use guest_kernel::{Guest, interrupt};
use pv_abi::{DomId, Errno};

guest_kernel::main!(main);

/// Events that came as interrupts.
static CAME: AtomicU64 = AtomicU64::new(0);

fn main(guest: &Guest) -> Result<(), Errno> {
    let args = guest.args();
    let by_wfi = args.text("asleep") == Some("wfi");
    if by_wfi {
        interrupt::start(guest.tree.gic).map_err(|_| Errno::Enodev)?;
    }
    let channel = Channel::unbound(DomId(0))?;
    if by_wfi {
        channel.handle(|_| _ = CAME.fetch_add(1, Ordering::Relaxed)).map_err(|_| Errno::Enodev)?;
    }
    for ping in 0..args.number("pings").unwrap_or(1) {
        if by_wfi {
            interrupt::wait_until(|| CAME.load(Ordering::Relaxed) > ping);
        } else {
            channel.wait()?;
        }
        channel.notify()?;
    }
    Ok(())
}
