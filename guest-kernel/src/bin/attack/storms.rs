//! As much as it can of what costs the hypervisor something: events, interrupts, timers, yields, text.
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;

use guest_kernel::event::{self, Channel};
use guest_kernel::interrupt::{self, Intid};
use guest_kernel::smp::Cpu;
use guest_kernel::{Guest, cpu, hypercall, print, println, time, timer};
use pv_abi::{DomId, Port};

use crate::tap::Tap;

const TIMES: u32 = 20_000;
/// The ports that each victim offers (`victim.rs`): its first beside the static one.
const STORMED: Port = Port(2);
const MASKED: Port = Port(3);
static EVENTS: AtomicU32 = AtomicU32::new(0);
static SGIS: AtomicU32 = AtomicU32::new(0);
static TIMERS: AtomicU32 = AtomicU32::new(0);

pub(crate) fn check(tap: &mut Tap, guest: &Guest) {
    if interrupt::start(guest.tree.gic).is_err() {
        return tap.that("interrupts", false);
    }
    events(tap);
    at_others(tap);
    sgis(tap);
    timers(tap);
    waits(tap);
    text(tap);
}

/// Events to itself: with the port masked they coalesce, else each comes.
fn events(tap: &mut Tap) {
    let (Ok(channel), Ok(())) = (Channel::ipi(Cpu::FIRST), event::listen()) else {
        return tap.that("a channel", false);
    };
    channel.mask();
    let sent = (0..TIMES).filter(|_| channel.notify().is_ok()).count();
    let masked = (sent, channel.take(), channel.take());
    let handled = channel.handle(|_| {
        EVENTS.fetch_add(1, Ordering::SeqCst);
    });
    let sent = (0..TIMES).filter(|_| channel.notify().is_ok()).count();
    cpu::synchronize();
    let interrupting = (handled, sent, EVENTS.load(Ordering::SeqCst));
    drop(channel);
    tap.is("events to a masked port are taken", masked, (TIMES as usize, true, false));
    tap.is("row_89: every event that interrupts comes", interrupting, (Ok(()), TIMES as usize, TIMES));
}

/// Events to the victims: to the port at which they are interrupted, and to the one that they keep masked.
fn at_others(tap: &mut Tap) {
    for id in [1, 2].map(DomId) {
        for (port, what) in [
            (STORMED, "row_89: a storm of events that interrupt another domain is taken"),
            (MASKED, "a storm of events to a masked port of another domain is taken"),
        ] {
            // Offered as soon as they have begun.
            let end = time::now().after(Duration::from_secs(60));
            let channel = loop {
                match Channel::bind(id, port) {
                    Ok(channel) => break channel,
                    Err(_) if time::now() < end => _ = timer::sleep(Duration::from_micros(500)),
                    Err(_) => return tap.that("a victim's port", false),
                }
            };
            let sent = (0..TIMES).filter(|_| channel.notify().is_ok()).count();
            drop(channel);
            tap.is(what, sent, TIMES as usize);
        }
    }
}

fn sgis(tap: &mut Tap) {
    let Some(intid) = Intid::sgi(9) else { return tap.that("an interrupt", false) };
    let counted = interrupt::enable(intid, || {
        SGIS.fetch_add(1, Ordering::SeqCst);
    });
    for _ in 0..TIMES {
        let _ = interrupt::send_to_self(intid);
    }
    let done = counted.is_ok() && SGIS.load(Ordering::SeqCst) > 0;
    tap.that("row_134: a storm of software interrupts to itself ends", done);
    // With interrupts masked they become one.
    let before = SGIS.load(Ordering::SeqCst);
    cpu::without_interrupts(|| (0..TIMES).for_each(|_| _ = interrupt::send_to_self(intid)));
    cpu::synchronize();
    tap.is("masked, they become one", SGIS.load(Ordering::SeqCst) - before, 1);
}

/// Deadlines that have passed, that never come, and near the counter's wrap; always a new one as soon as one fires.
fn timers(tap: &mut Tap) {
    let counted = interrupt::enable(Intid::TIMER, || {
        TIMERS.fetch_add(1, Ordering::SeqCst);
        timer::disarm();
    });
    tap.is("the timer", counted, Ok(()));
    for _ in 0..TIMES {
        timer::arm(time::Instant::from_ticks(0));
        cpu::synchronize();
    }
    tap.is("xsa_20: every deadline that has passed fires once", TIMERS.load(Ordering::SeqCst), TIMES);
    for ticks in [u64::MAX, 1 << 63, (1 << 63) - 1, 0, 1, time::now().ticks()] {
        timer::arm(time::Instant::from_ticks(ticks));
        let _ = hypercall::sched_yield();
    }
    timer::disarm();
    let mut polled = 0;
    for deadline in [1, time::system_time().saturating_sub(1_000_000), time::system_time()] {
        polled += u32::from(hypercall::poll(&[], deadline).is_ok());
    }
    tap.is("polls until a time that has passed end at once", polled, 3);
}

fn waits(tap: &mut Tap) {
    (0..TIMES * 5).for_each(|_| _ = hypercall::sched_yield());
    tap.that("a hundred thousand yields", true);
    // Something is pending and masked: each wait ends at once.
    let Some(intid) = Intid::sgi(9) else { return tap.that("an interrupt", false) };
    cpu::without_interrupts(|| {
        let _ = interrupt::send_to_self(intid);
        (0..TIMES).for_each(|_| cpu::wait_for_interrupt());
    });
    tap.that("row_164: waiting while something masked is pending ends at once", true);
    for _ in 0..200 {
        let _ = timer::sleep(Duration::from_micros(50));
    }
    tap.that("200 sleeps", true);
}

/// Twice what may be written at once, in lines; what is more is dropped and counted, and the guest goes on. A line is what the hypervisor
/// takes or drops at once, 128 bytes.
fn text(tap: &mut Tap) {
    let line = "###############################################################";
    for _ in 0..4096 {
        println!("{line}#{line}");
    }
    print!("");
    // Time for what is left to be told.
    let _ = timer::sleep(Duration::from_millis(200));
    println!();
    tap.that("a flood of text ends, and what it dropped is counted", true);
}
