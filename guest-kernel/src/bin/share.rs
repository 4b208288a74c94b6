//! How much of a CPU a domain gets: it spins, from `from=` to `to=` (milliseconds of the counter, which all domains have in common), and tells how long
//! it ran meanwhile, by the run states that the hypervisor publishes: `share RAN of TIME ns`. With `sleep=` it sleeps so many microseconds at a
//! time in between, and tells its longest delay: `late NS`.
#![no_std]
#![no_main]
use core::time::Duration;

use guest_kernel::{Guest, hypercall, println, time};
use pv_abi::Errno;

guest_kernel::main!(main);

/// Spins to a moment, in milliseconds of the counter.
fn spin_to(milliseconds: u64) {
    let until = Duration::from_millis(milliseconds);
    while time::now().since_start() < until {
        core::hint::spin_loop();
    }
}

fn ran() -> Result<Duration, Errno> {
    time::ran().ok_or(Errno::Enosys)
}

fn main(guest: &Guest) -> Result<(), Errno> {
    let args = guest.args();
    let (from, to) = (args.number("from").unwrap_or(100), args.number("to").unwrap_or(1100));
    let sleep = args.number("sleep").map(Duration::from_micros);
    let _ = time::system_time();
    spin_to(from);
    let (began, before) = (time::now(), ran()?);
    match sleep {
        None => spin_to(to),
        Some(pause) => {
            let (until, mut latest) = (Duration::from_millis(to), Duration::ZERO);
            while time::now().since_start() < until {
                let asked = time::now();
                let deadline =
                    time::system_time().saturating_add(u64::try_from(pause.as_nanos()).unwrap_or(0));
                hypercall::poll(&[], deadline)?;
                // It has spun until now, as the others: at first nothing is due to it.
                if asked.since_start() > Duration::from_millis(from.saturating_add(100)) {
                    latest = latest.max(asked.elapsed().saturating_sub(pause));
                }
            }
            println!("late {}", latest.as_nanos());
        }
    }
    let (spent, after) = (began.elapsed(), ran()?);
    println!("share {} of {} ns", after.saturating_sub(before).as_nanos(), spent.as_nanos());
    Ok(())
}
