//! How much of a CPU a domain gets: it spins, from `from=` to `to=` (milliseconds of the counter, which all domains have in common), and tells how long
//! it ran meanwhile, by the run states that the hypervisor publishes, and how much it did: `share RAN of TIME ns`, `work TURNS`. With `sleep=` it
//! sleeps so many microseconds at a time in between, and tells how much too late it woke, in half of all cases at most, in 99 %, and
//! ever: `late NS NS NS`. With `attack=` it makes all the trouble that it can (`events`, also to the domain that it has a channel to,
//! `yields`, `hypercalls`, `flushes` of the TLB, `sleeps` that end at once), and no `work`.
#![no_std]
#![no_main]
extern crate alloc;
use alloc::vec::Vec;
use core::time::Duration;

use guest_kernel::event::Channel;
use guest_kernel::{Guest, cpu, hypercall, println, time};
use pv_abi::{DomId, Errno, Port};

guest_kernel::main!(main);

/// Spins to a moment, in milliseconds of the counter; how often it looked.
fn spin_to(milliseconds: u64) -> u64 {
    let until = Duration::from_millis(milliseconds);
    let mut turns = 0;
    while time::now().since_start() < until {
        turns += 1;
        core::hint::spin_loop();
    }
    turns
}

/// Storms to a moment.
fn attack(how: &str, peer: Option<Port>, milliseconds: u64) -> Result<(), Errno> {
    let until = Duration::from_millis(milliseconds);
    let own = Channel::unbound(DomId::SELF)?;
    let other = Channel::bind(DomId::SELF, own.port())?;
    while time::now().since_start() < until {
        for _ in 0..16 {
            match how {
                "events" => {
                    own.take();
                    other.notify()?;
                    peer.map_or(Ok(()), hypercall::event_send)?;
                }
                "yields" => hypercall::sched_yield()?,
                "hypercalls" => {
                    let _ = hypercall::xen_version()?;
                }
                "flushes" => cpu::flush_tlb(),
                "sleeps" => hypercall::poll(&[], time::system_time() + 1000)?,
                _ => return Err(Errno::Einval),
            }
        }
    }
    Ok(())
}

fn ran() -> Result<Duration, Errno> {
    time::ran().ok_or(Errno::Enosys)
}

fn main(guest: &Guest) -> Result<(), Errno> {
    let args = guest.args();
    let (from, to) = (args.number("from").unwrap_or(100), args.number("to").unwrap_or(1100));
    let sleep = args.number("sleep").map(Duration::from_micros);
    let _ = time::system_time();
    let _ = spin_to(from);
    let (began, before) = (time::now(), ran()?);
    if let Some(how) = args.text("attack") {
        let peer = args.number("port").and_then(|port| u32::try_from(port).ok()).map(Port);
        attack(how, peer, to)?;
    } else if let Some(pause) = sleep {
        let until = Duration::from_millis(to);
        let mut late = Vec::new();
        while time::now().since_start() < until {
            let asked = time::now();
            let deadline = time::system_time().saturating_add(u64::try_from(pause.as_nanos()).unwrap_or(0));
            hypercall::poll(&[], deadline)?;
            // It has spun until now, as the others: at first nothing is due to it.
            if asked.since_start() > Duration::from_millis(from.saturating_add(100)) {
                late.push(asked.elapsed().saturating_sub(pause).as_nanos());
            }
        }
        late.sort_unstable();
        let of = |part: usize| late.get((late.len() * part / 100).min(late.len().saturating_sub(1)));
        let [half, most, all] = [50, 99, 100].map(|part| of(part).copied().unwrap_or(0));
        println!("late {half} {most} {all} of {}", late.len());
    } else {
        println!("work {}", spin_to(to));
    }
    let (spent, after) = (began.elapsed(), ran()?);
    println!("share {} of {} ns", after.saturating_sub(before).as_nanos(), spent.as_nanos());
    Ok(())
}
