//! `sched_op`.
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;

use guest_kernel::event::{self, Channel, Wake};
use guest_kernel::interrupt::{self, Intid};
use guest_kernel::{Guest, cpu, hypercall, time, timer};
use pv_abi::sched::{POLL_PORTS_MAX, Poll, RemoteShutdown, SchedOp, ShutdownReason, Watchdog};
use pv_abi::{DomId, Errno, GuestHandle, Hypercall, Port};

use super::raw::{Answer, NOBODY, NOWHERE, call, low_word, with, without};
use super::tap::Tap;

fn op(op: SchedOp) -> u64 {
    u64::from(op.number())
}

pub(crate) fn check(tap: &mut Tap, guest: &Guest) {
    tap.is("yield", call(u64::from(Hypercall::SchedOp.number()), &[op(SchedOp::Yield)]), Ok(0));
    poll(tap);
    watchdog(tap);
    let mut remote = RemoteShutdown { domain: NOBODY, pad: 0, reason: ShutdownReason::Poweroff.number() };
    tap.is(
        "remote_shutdown of nobody",
        with(Hypercall::SchedOp, op(SchedOp::RemoteShutdown), &mut remote),
        Err(Errno::Esrch),
    );
    remote.domain = DomId::SELF;
    tap.is(
        "remote_shutdown takes no DOMID_SELF",
        with(Hypercall::SchedOp, op(SchedOp::RemoteShutdown), &mut remote),
        Err(Errno::Esrch),
    );
    for (what, which) in [
        ("shutdown with a bad address", SchedOp::Shutdown),
        ("shutdown_code with a bad address", SchedOp::ShutdownCode),
        ("remote_shutdown with a bad address", SchedOp::RemoteShutdown),
        ("poll with a bad address", SchedOp::Poll),
        ("watchdog with a bad address", SchedOp::Watchdog),
    ] {
        tap.is(what, without(Hypercall::SchedOp, op(which)), Err(Errno::Efault));
    }
    tap.is(
        "pin_override is not for guests",
        without(Hypercall::SchedOp, op(SchedOp::PinOverride)),
        Err(Errno::Eperm),
    );
    tap.is("an unknown operation", without(Hypercall::SchedOp, 99), Err(Errno::Enosys));
    tap.that("the interrupt controller starts", interrupt::start(guest.tree.gic).is_ok());
    block(tap);
    masked(tap);
    let clock = event::shared_page().map(guest_kernel::shared_info::SharedPage::wall_clock);
    tap.is("nobody has set the wall clock, which was told once", clock, Ok((2, 0, 0)));
}

/// Counts, and never ends them: they stay away until they are.
static SGIS: AtomicU32 = AtomicU32::new(0);

/// A poll with interrupts masked, one of which is pending: it is not ended by that, but by the timer's, which comes later. The system time until when it
/// polls may be computed too early.
fn masked(tap: &mut Tap) {
    let Some(sgi) = Intid::sgi(9) else { return tap.that("an interrupt", false) };
    let counted = interrupt::enable(sgi, || {
        SGIS.fetch_add(1, Ordering::SeqCst);
    });
    tap.that("an interrupt of its own is enabled", counted.is_ok());
    cpu::mask_interrupts();
    let sent = interrupt::send_to_self(sgi);
    tap.that("it is sent, and masked", sent.is_ok() && SGIS.load(Ordering::SeqCst) == 0);
    let until = |wait: Duration| time::system_time() + u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
    let began = time::now();
    let answer = hypercall::poll(&[], until(WAIT));
    tap.is("poll with a masked interrupt pending", answer, Ok(()));
    tap.that("waits all the same", began.elapsed() >= WAIT / 2);
    timer::arm(time::now().after(WAIT / 4));
    let began = time::now();
    tap.is("poll until a timer that is masked fires", hypercall::poll(&[], until(LONG)), Ok(()));
    tap.that("which ends it", began.elapsed() < LONG / 2);
    cpu::unmask_interrupts();
    tap.is("the masked one comes then", SGIS.load(Ordering::SeqCst), 1);
    timer::disarm();
}

fn poll_with(ports: GuestHandle, nr_ports: u32, timeout: u64) -> Answer {
    with(Hypercall::SchedOp, op(SchedOp::Poll), &mut Poll { ports, nr_ports, pad: 0, timeout })
}

fn poll(tap: &mut Tap) {
    let nowhere = GuestHandle(NOWHERE);
    tap.is("poll of too many ports", poll_with(nowhere, POLL_PORTS_MAX + 1, 1), Err(Errno::Einval));
    tap.is("poll of ports at a bad address", poll_with(nowhere, 1, 1), Err(Errno::Efault));
    tap.is("poll of no port until a time that is past", poll_with(nowhere, 0, 1), Ok(0));
    tap.is("poll of a port that cannot be", hypercall::poll(&[Port(1 << 20)], 1), Err(Errno::Einval));
    let Ok(end) = Channel::unbound(DomId::SELF) else {
        return tap.that("a channel to oneself", false);
    };
    let Ok(other) = Channel::bind(DomId::SELF, end.port()) else {
        return tap.that("a bound channel to oneself", false);
    };
    tap.is("an event is sent", other.notify(), Ok(()));
    tap.is("poll of a pending port returns at once", hypercall::poll(&[end.port()], 0), Ok(()));
    tap.that("and leaves it pending", end.take());
    let began = time::now();
    tap.is("a wait ends in time", end.wait_for(WAIT), Ok(Wake::TimedOut));
    tap.that("and not early", began.elapsed() >= WAIT);
    waits(tap, end.port());
}

/// How long nothing must be late that is waited for.
const LONG: Duration = Duration::from_secs(20);
/// How long these cases wait.
const WAIT: Duration = Duration::from_millis(20);
/// Waits until the machine, which may be busy with other things, lets one begin at once.
const MOST_WAITS: usize = 50;

/// Waits as the run state tells of them. How fast the machine is changes when a call arrives, but not what is asked here of what comes then.
fn waits(tap: &mut Tap, port: Port) {
    let (mut early, mut wrong, mut blocked) = (0, 0, false);
    let wait = u64::try_from(WAIT.as_nanos()).unwrap_or(u64::MAX);
    for _ in 0..MOST_WAITS {
        let (before, asked) = (time::accounts(), time::system_time());
        if hypercall::poll(&[port], asked + wait).is_err() {
            break;
        }
        let after = time::accounts();
        // It was told when it went on, and what it did in between adds up.
        early += u32::from(after.entered < asked + wait);
        let [ran, was_blocked, waited, _] = after.since(&before);
        wrong += u32::from((after.entered - before.entered).abs_diff(ran + was_blocked + waited) > ROUNDING);
        // Until it was blocked it ran since it was asked, and since `before.entered`.
        let late = (before.entered + ran + waited).saturating_sub(asked);
        blocked = late < wait / 4 && was_blocked >= wait - late && after.entered < asked + wait * 2;
        if blocked {
            break;
        }
    }
    tap.is("no poll ends before its time", early, 0);
    tap.is("what it ran, waited for a CPU and was blocked is the time that passed", wrong, 0);
    tap.that("and one is blocked in the hypervisor most of it, and ends soon after", blocked);
}

/// Nanoseconds: each of three times and two moments is cut to one.
const ROUNDING: u64 = 5;

fn watchdog(tap: &mut Tap) {
    let dog = |id, timeout| with(Hypercall::SchedOp, op(SchedOp::Watchdog), &mut Watchdog { id, timeout });
    // Not tried: a new watchdog of no seconds, which ends the domain at once.
    tap.is("a watchdog number that cannot be", dog(3, 1000), Err(Errno::Einval));
    tap.is("a watchdog that is not set", dog(1, 1000), Err(Errno::Einval));
    tap.is("the first watchdog is 1", dog(0, 1000), Ok(1));
    tap.is("the second is 2", dog(0, 1000), Ok(2));
    // Xen's answer is 32 bits wide here: the refusal is not sign-extended.
    let third = low_word(dog(0, 1000).map_or_else(Errno::to_result, u64::cast_signed));
    tap.is("there is no third", Errno::check(i64::from(third)), Err(Errno::Enospc));
    tap.is("1 is set again", dog(1, 1000), Ok(0));
    tap.is("1 is cancelled", dog(1, 0), Ok(0));
    tap.is("2 is cancelled", dog(2, 0), Ok(0));
}

fn block(tap: &mut Tap) {
    tap.that("the timer's interrupt is enabled", interrupt::enable(Intid::TIMER, timer::disarm).is_ok());
    // Masked until the call, which unmasks: else the interrupt could come before it, and nothing would end the wait.
    cpu::mask_interrupts();
    let began = time::now();
    timer::arm(began.after(Duration::from_millis(5)));
    tap.is("block returns", hypercall::sched_block(), Ok(()));
    tap.that("sleep works", timer::sleep(Duration::from_millis(5)).is_ok());
    tap.that("after the time", began.elapsed() >= Duration::from_millis(5));
}
