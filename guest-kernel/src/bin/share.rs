//! How much of a CPU a domain gets: it spins, from `from=` to `to=` (milliseconds of the counter, which all domains have in common), and tells how long
//! it ran, waited for a CPU, was blocked and was off meanwhile, by the run states that the hypervisor publishes, and how much it did:
//! `share RAN of TIME ns, WAITED waited, BLOCKED blocked, OFF off`, `work TURNS`. The times of one that spins all the time are those between the very
//! moments, also when it has no CPU then; of others those between the first things that it does after them. With `sleep=` it
//! sleeps so many microseconds at a time in between, and tells how much too late it woke, in half of all cases at most, in 99 %, and
//! ever: `late NS NS NS of TIMES`, and how often in each bin of a `histogram`. With `attack=` it makes all the trouble that it can (`events`, also to the domain that it has a channel to,
//! `yields`, `hypercalls`, `flushes` of the TLB, `sleeps` that end at once), and no `work`. Further vCPUs spin and tell as well.
#![no_std]
#![no_main]
extern crate alloc;
use alloc::vec::Vec;
use core::time::Duration;

use guest_kernel::event::Channel;
use guest_kernel::time::Accounts;
use guest_kernel::{Guest, cpu, hypercall, interrupt, println, smp, time};
use pv_abi::{DomId, Errno, Port};

guest_kernel::main!(main);

/// A moment, and what a vCPU did until then.
struct Books {
    at: Duration,
    accounts: Accounts,
}

impl Books {
    /// When the vCPU was last given its CPU, what it had done then, the counter and the system time now.
    fn look() -> (Accounts, Duration, u64) {
        loop {
            let (accounts, now, system) = (time::accounts(), time::now().since_start(), time::system_time());
            // Else it was stopped in between.
            if time::accounts().entered == accounts.entered {
                return (accounts, now, system);
            }
        }
    }

    /// Now.
    fn now() -> Self {
        let (accounts, at, system) = Self::look();
        Self { at, accounts: accounts.at(system) }
    }

    /// At a moment that has come and to which it has spun; now, if it came too late for it.
    fn at(milliseconds: u64, turns: u64) -> Self {
        if turns == 0 {
            return Self::now();
        }
        let ((accounts, now, system), at) = (Self::look(), Duration::from_millis(milliseconds));
        let since = u64::try_from(now.saturating_sub(at).as_nanos()).unwrap_or(u64::MAX);
        Self { at, accounts: accounts.at(system.saturating_sub(since)) }
    }

    /// Prints what it did since then.
    fn tell(&self, until: &Self) {
        let [ran, blocked, waited, off] = until.accounts.since(&self.accounts);
        let of = until.at.saturating_sub(self.at).as_nanos();
        println!("share {ran} of {of} ns, {waited} waited, {blocked} blocked, {off} off");
    }
}

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

/// Below 500 ns, below twice that, and so on; the last for all later ones, from 256 us.
const BINS: usize = 11;

/// Sleeps a while at a time, to a moment, and tells how much too late it woke. Now a quarter more, now less: else its wake-ups would come at the same
/// point of each turn of the others, and all be as late as there.
fn sleep(usual: Duration, from: u64, to: u64) -> Result<(), Errno> {
    let until = Duration::from_millis(to);
    let mut late = Vec::new();
    let mut dice = 1_u32;
    while time::now().since_start() < until {
        // Numerical Recipes' generator.
        dice = dice.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let pause = usual * 3 / 4 + usual * (dice >> 20) / 8192;
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
    let mut times = [0_u32; BINS];
    for late in late {
        let bin = usize::try_from((late / 500).checked_ilog2().map_or(0, |log| log + 1)).unwrap_or(BINS);
        if let Some(count) = times.get_mut(bin.min(BINS - 1)) {
            *count += 1;
        }
    }
    println!("histogram {times:?}");
    Ok(())
}

/// Spins to a moment and the next, and tells what it had in between.
fn spin(from: u64, to: u64) {
    let turns = spin_to(from);
    let began = Books::at(from, turns);
    let turns = spin_to(to);
    // Before it prints, which takes more than a turn.
    let ended = Books::at(to, turns);
    println!("work {turns}");
    began.tell(&ended);
}

fn main(guest: &Guest) -> Result<(), Errno> {
    let args = guest.args();
    let (from, to) = (args.number("from").unwrap_or(100), args.number("to").unwrap_or(1100));
    let _ = time::system_time();
    if smp::count() > 1 {
        interrupt::start(guest.tree.gic).map_err(|_| Errno::Enodev)?;
    }
    let others: Result<Vec<_>, _> =
        smp::all().skip(1).map(|cpu| smp::start(cpu, move || spin(from, to))).collect();
    let others = others.map_err(|_| Errno::Enodev)?;
    if let Some(how) = args.text("attack") {
        let _ = spin_to(from);
        let began = Books::now();
        let peer = args.number("port").and_then(|port| u32::try_from(port).ok()).map(Port);
        attack(how, peer, to)?;
        began.tell(&Books::now());
    } else if let Some(pause) = args.number("sleep") {
        let _ = spin_to(from);
        let began = Books::now();
        sleep(Duration::from_micros(pause), from, to)?;
        began.tell(&Books::now());
    } else {
        spin(from, to);
    }
    others.into_iter().for_each(smp::Started::join);
    Ok(())
}
