//! What operations cost, in instructions: `bench NAME instructions N` (the median), or `bench NAME unsupported WHY`.
//! Meant for QEMU with `-icount shift=0,sleep=off -cpu max`, where a tick of the virtual counter is an instruction; where the
//! counter does not run at 1 GHz the unit is `ticks`. `n=` on the command line sets how often each operation is measured.
#![no_std]
#![no_main]
extern crate alloc;
use alloc::vec::Vec;
use core::fmt::Debug;

use guest_kernel::event::{self, Channel};
use guest_kernel::frame::Frame;
use guest_kernel::grant::{Access, Grant};
use guest_kernel::interrupt::{self, Intid};
use guest_kernel::{Guest, measure, println, time, timer};
use pv_abi::{DomId, Errno};

guest_kernel::main!(main);

/// Offset of `GICD_CTLR`.
const GICD_CTLR: usize = 0;

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

fn main(guest: &Guest) -> Result<(), Errno> {
    let mut bench = Bench { times: guest.args().number("n").unwrap_or(1000).max(1), pair: 0, unit: "ticks" };
    if time::frequency() == 1_000_000_000 {
        bench.unit = "instructions";
    }
    bench.pair = measure::nothing();
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
            grants(&bench, own);
        }
        Err(errno) => println!("bench events unsupported {errno:?}"),
    }
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

fn grants(bench: &Bench, own: DomId) {
    let Ok(grant) = Grant::new(Frame::boxed(), own, Access::ReadWrite) else {
        println!("bench grants unsupported");
        return;
    };
    let reference = grant.reference();
    bench.run("grant_map", || measure::grant_map(own, reference).map(|(_mapped, ticks)| ticks));
    bench.run("grant_unmap", || {
        measure::grant_map(own, reference).and_then(|(mapped, _)| measure::grant_unmap(mapped))
    });
    let target = Frame::boxed();
    bench.run("grant_copy_4096", || measure::grant_copy(own, reference, &target, 4096));
}
