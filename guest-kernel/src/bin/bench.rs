//! What operations cost, in instructions: `bench NAME instructions N` (the median), or `bench NAME unsupported WHY`.
//! Meant for QEMU with `-icount shift=0,sleep=off -cpu max`, where a tick of the virtual counter is an instruction; where the
//! counter does not run at 1 GHz the unit is `ticks`. `n=` on the command line sets how often each operation is measured. With `serve` it is the
//! other domain, whose page is mapped and which answers events; both know each other by `peer=`, `port=` and `ref=`.
#![no_std]
#![no_main]
extern crate alloc;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt::Debug;
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;

use guest_kernel::event::{self, Channel};
use guest_kernel::frame::Frame;
use guest_kernel::grant::{Access, Grant};
use guest_kernel::interrupt::{self, Intid};
use guest_kernel::{Guest, hypercall, measure, println, time, timer};
use pv_abi::{DomId, Errno, GrantRef, Port};

#[path = "bench/switches.rs"]
mod switches;

guest_kernel::main!(main);

/// Offset of `GICD_CTLR`.
const GICD_CTLR: usize = 0;

/// Until the answers to the first events have all come.
const SETTLING: Duration = Duration::from_millis(20);

/// What could not be measured for want of an interrupt.
#[derive(Debug)]
struct NoInterrupt;

struct Bench {
    times: u64,
    pair: u64,
    unit: &'static str,
}

impl Bench {
    /// Measures one operation.
    fn run<E: Debug>(&self, name: &str, mut operation: impl FnMut() -> Result<u64, E>) {
        match (0..self.times).map(|_| operation()).collect::<Result<Vec<u64>, E>>() {
            Ok(mut samples) => {
                samples.sort_unstable();
                let median = samples.get(samples.len() / 2).copied().unwrap_or(0);
                println!("bench {name} {} {}", self.unit, median.saturating_sub(self.pair));
            }
            Err(why) => println!("bench {name} unsupported {why:?}"),
        }
    }
}

/// The other domain: its id, the channel to it, and its page, which has the first reference that is free.
#[derive(Clone, Copy)]
struct Peer {
    id: DomId,
    port: Port,
    page: GrantRef,
}

impl Peer {
    fn of(guest: &Guest) -> Option<Self> {
        let number = |key| guest.args().number(key).and_then(|value| u32::try_from(value).ok());
        let id = u16::try_from(number("peer")?).ok()?;
        Some(Self { id: DomId(id), port: Port(number("port")?), page: GrantRef(number("ref")?) })
    }

    /// Grants a page, and answers each event with one, or does what the page asks for, for ever.
    fn serve(self, guest: &Guest) -> Result<(), Errno> {
        let page = Grant::new(Frame::boxed(), self.id, Access::ReadWrite).map_err(|_| Errno::Enospc)?;
        if page.reference() != self.page || interrupt::start(guest.tree.gic).is_err() {
            return Err(Errno::Einval);
        }
        let channel = Channel::fixed(self.port)?;
        let answer = |port| {
            let _ = hypercall::event_send(port);
        };
        channel.handle(answer).map_err(|_| Errno::Einval)?;
        // Until it answers, the other asks in vain.
        loop {
            interrupt::wait_until(|| switches::wanted(page.frame()));
            switches::play(page.frame(), &channel)?;
        }
    }
}

fn main(guest: &Guest) -> Result<(), Errno> {
    let peer = Peer::of(guest);
    if let Some(peer) = peer.filter(|_| guest.args().has("serve")) {
        return peer.serve(guest);
    }
    let mut bench = Bench { times: guest.args().number("n").unwrap_or(1000).max(1), pair: 0, unit: "ticks" };
    if time::frequency() == 1_000_000_000 {
        bench.unit = "instructions";
    }
    bench.pair = measure::nothing();
    // Elsewhere than on this CPU: all else is measured on one.
    if guest.args().has("wake") {
        interrupt::start(guest.tree.gic).map_err(|_| Errno::Einval)?;
        let peer = peer.ok_or(Errno::Einval)?;
        ping_pong(&bench, "event_ping_pong_other_cpu", peer)?;
        switches::wake(&bench, "wake_other_cpu", peer)?;
        println!("bench done");
        return Ok(());
    }
    bench.run("null_hypercall", measure::null_hypercall);
    bench.run("invalid_hypercall", measure::invalid_hypercall);
    bench.run("sched_yield", measure::sched_yield);
    if interrupt::start(guest.tree.gic).is_ok() {
        interrupts(&bench);
    } else {
        println!("bench interrupts unsupported NoController");
    }
    match event::own_id() {
        Ok(own) => {
            events(&bench, own)?;
            match peer {
                Some(peer) => {
                    ping_pong(&bench, "event_ping_pong", peer)?;
                    switches::all(&bench, peer)?;
                    grants(&bench, peer);
                }
                None => println!("bench grants unsupported NoPeer"),
            }
        }
        Err(errno) => println!("bench events unsupported {errno:?}"),
    }
    memory(&bench);
    println!("bench done");
    Ok(())
}

fn interrupts(bench: &Bench) {
    if let Ok(distributor) = interrupt::distributor() {
        bench.run("mmio_gicd_ctlr", || measure::mmio_read(distributor, GICD_CTLR).ok_or(NoInterrupt));
    }
    if let Some(sgi) = Intid::sgi(3) {
        let _ = interrupt::enable(sgi, || {});
        bench.run("sgi_self_vector", || measure::sgi_to_vector(sgi).ok_or(NoInterrupt));
    }
    let _ = interrupt::enable(Intid::TIMER, timer::disarm);
    bench.run("timer_vector", || measure::timer_to_vector().ok_or(NoInterrupt));
}

fn events(bench: &Bench, own: DomId) -> Result<(), Errno> {
    let unbound = Channel::unbound(own)?;
    let bound = Channel::bind(own, unbound.port())?;
    bench.run("event_send_masked", || {
        unbound.take();
        measure::event_send(bound.port())
    });
    unbound.take();
    match unbound.handle(|_| {}) {
        Ok(()) => {
            bench.run("event_send_vector", || measure::event_send_to_vector(bound.port()).ok_or(NoInterrupt));
        }
        Err(why) => println!("bench event_send_vector unsupported {why:?}"),
    }
    Ok(())
}

/// An event there, the other domain's turn on the same CPU, its event back, and this one's turn again; both wait with WFI.
fn ping_pong(bench: &Bench, name: &str, peer: Peer) -> Result<(), Errno> {
    static ANSWERS: AtomicU32 = AtomicU32::new(0);
    let channel = Channel::fixed(peer.port)?;
    let answered = |_| {
        ANSWERS.fetch_add(1, Ordering::SeqCst);
    };
    if channel.handle(answered).is_err() {
        println!("bench {name} unsupported NoInterrupt");
        return Ok(());
    }
    let mut answers = 0;
    // The first is answered when the other has come up.
    while ANSWERS.load(Ordering::SeqCst) == 0 {
        channel.notify()?;
        hypercall::sched_yield()?;
    }
    let settled = time::now();
    while settled.elapsed() < SETTLING {
        answers = ANSWERS.load(Ordering::SeqCst);
    }
    bench.run(name, || {
        let began = time::now();
        channel.notify()?;
        interrupt::wait_until(|| ANSWERS.load(Ordering::SeqCst) != answers);
        answers = ANSWERS.load(Ordering::SeqCst);
        Ok::<_, Errno>(time::now().ticks() - began.ticks())
    });
    Ok(())
}

/// The other domain's page.
fn grants(bench: &Bench, peer: Peer) {
    let (id, page) = (peer.id, peer.page);
    bench.run("grant_map", || measure::grant_map(id, page).map(|(_mapped, ticks)| ticks));
    bench.run("grant_unmap", || {
        measure::grant_map(id, page).and_then(|(mapped, _)| measure::grant_unmap(mapped))
    });
    let target = Frame::boxed();
    bench.run("grant_copy_4096", || measure::grant_copy(id, page, &target, 4096));
}

/// A page given back, and another in its place.
fn memory(bench: &Bench) {
    let page: &'static Frame = Box::leak(Frame::boxed());
    bench.run("decrease_page", || {
        let cost = measure::decrease_page(page)?;
        measure::populate_page(page).map(|_| cost)
    });
    bench.run("populate_page", || measure::decrease_page(page).and_then(|_| measure::populate_page(page)));
}
