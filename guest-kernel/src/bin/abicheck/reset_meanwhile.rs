//! What comes in while all ports are being closed: another reset, a new port. An interrupt brings it, later each time until it came in between.
extern crate alloc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicI64, Ordering};
use core::time::Duration;

use guest_kernel::interrupt::{self, Intid};
use guest_kernel::{hypercall, time, timer};
use pv_abi::event::{AllocUnbound, PortStatus, Reset};
use pv_abi::{DomId, Errno, Port};

use super::event::status;
use super::raw;
use super::tap::Tap;

/// Ports that are open when the reset begins: a millisecond of work.
const PORTS: usize = 900;
/// How often it is tried, each time later.
const TRIES: u64 = 400;
const STEP: Duration = Duration::from_micros(25);
/// Nothing came.
const NOTHING: i64 = 1;

/// What the reset was answered, and what the interrupt's own call.
type Met = (Result<(), Errno>, raw::Answer);

/// What the interrupt's own call was answered.
static ANSWER: AtomicI64 = AtomicI64::new(NOTHING);

/// The interrupts of the controller were set up before.
pub(crate) fn check(tap: &mut Tap) {
    let expected = (Ok(()), Err(Errno::Ebusy));
    let other = meeting(reset_too, expected);
    tap.is("event_channel_op.reset while another is under way", other, Some(expected));
    let expected = (Err(Errno::Eagain), Ok(0));
    let port = meeting(new_port, expected);
    tap.is("event_channel_op.reset that leaves a port made meanwhile", port, Some(expected));
    // The interrupt's is the lowest that was closed by then; what was behind was closed by what went on.
    let open = |port: &u32| status(Port(*port)).is_ok_and(|it| it.0 != PortStatus::Closed.number());
    let left: Vec<u32> = (1..).take(PORTS).filter(open).collect();
    tap.is(
        "event_channel_op.reset_cont of the interrupted one closes all others",
        left.as_slice(),
        [1].as_slice(),
    );
    tap.is("event_channel_op.reset of that port", reset(), Ok(()));
    let _ = interrupt::enable(Intid::TIMER, timer::disarm);
}

/// The first meeting of a reset and an interrupt's call that came out so; else the last.
fn meeting(handler: fn(), wanted: Met) -> Option<Met> {
    interrupt::enable(Intid::TIMER, handler).ok()?;
    let mut last = None;
    for after in (1..=TRIES).map(|tries| STEP.saturating_mul(u32::try_from(tries).unwrap_or(u32::MAX))) {
        for _ in 0..PORTS {
            let _ = alloc();
        }
        ANSWER.store(NOTHING, Ordering::Relaxed);
        timer::arm(time::now().after(after));
        let own = reset();
        timer::disarm();
        let met = (own, Errno::check(ANSWER.load(Ordering::Relaxed)));
        last = Some(met);
        if met == wanted {
            break;
        }
    }
    last
}

fn reset_too() {
    timer::disarm();
    ANSWER.store(code(reset()), Ordering::Relaxed);
}

fn new_port() {
    timer::disarm();
    ANSWER.store(code(alloc()), Ordering::Relaxed);
}

fn reset() -> Result<(), Errno> {
    hypercall::event_reset(&mut Reset { dom: DomId::SELF })
}

fn alloc() -> Result<(), Errno> {
    let mut alloc = AllocUnbound { dom: DomId::SELF, remote_dom: DomId::SELF, port: Port(0) };
    hypercall::event_alloc_unbound(&mut alloc)
}

fn code(answer: Result<(), Errno>) -> i64 {
    answer.map_or_else(|errno| -i64::from(errno.value().unsigned_abs()), |()| 0)
}
