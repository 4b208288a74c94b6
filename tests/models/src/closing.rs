//! A port is closed while another domain binds to it: the close had looked at a port that nobody is bound to, and taken that for all there is to lock.
use std::sync::atomic::{AtomicU64, Ordering};

use hypervisor::evtchn::check_channels;
use hypervisor::fake::FakeHardware;
use hypervisor::hypercall::{Outcome, hypercall};
use hypervisor::machine::{Current, Machine};

use crate::protocols::{ARG, EVENT_CHANNEL_OP, argument, both, call, channel, current, machine};

/// `EVTCHNOP_*`, an errno.
const BIND_INTERDOMAIN: u64 = 0;
const CLOSE: u64 = 3;
const ALLOC_UNBOUND: u64 = 6;
const EINVAL: i64 = -22;
/// A model that must come to where a call is made again, and how often it came there in all executions.
const NAME: &str = "close-again";
static AGAIN: AtomicU64 = AtomicU64::new(0);

/// Closes port 1, in as many calls as it takes.
fn close(machine: &Machine<FakeHardware>, current: &Current<'_>) -> i64 {
    let args = [CLOSE, ARG, 1, 0, 0];
    argument(machine, current, &[1]);
    for _ in 0..3 {
        match hypercall(machine, current, EVENT_CHANNEL_OP, args) {
            Outcome::Done(result) => return result,
            Outcome::Restart(left) => {
                assert_eq!(left, args, "nothing was done yet");
                AGAIN.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    panic!("it is made again without end");
}

/// Domain 1 closes its port 1, which waits for domain 2, while that binds to it.
pub fn again() {
    let machine = machine();
    let (one, other) = (current(machine, 1, 0), current(machine, 2, 1));
    model_core::begin();
    // Rehearsal.
    channel(&one, &other, machine);
    assert_eq!((close(machine, &one), close(machine, &other)), (0, 0));
    assert_eq!(call(machine, &one, EVENT_CHANNEL_OP, ALLOC_UNBOUND, &[0x2_7FF0, 0]), 0);
    let closes = move || (close(machine, &one), one);
    let binds = move || (call(machine, &other, EVENT_CHANNEL_OP, BIND_INTERDOMAIN, &[1, 1, 0]), other);
    let ((closed, one), (bound, other)) = both(closes, binds);
    assert_eq!(closed, 0);
    assert!([0, EINVAL].contains(&bound), "it is bound, or is no port any more: {bound}");
    check_channels(machine).expect("a channel has two ends");
    assert_eq!(close(machine, &one), EINVAL, "it is free");
    if bound == 0 {
        // What is left of it waits for domain 1 again.
        assert_eq!(call(machine, &one, EVENT_CHANNEL_OP, BIND_INTERDOMAIN, &[2, 1, 0]), 0);
    } else {
        assert_eq!(close(machine, &other), EINVAL, "nothing was bound");
    }
}

/// Fails when a model that must come to where a call is made again, did not.
pub fn reached(name: &str) {
    assert!(name != NAME || AGAIN.load(Ordering::Relaxed) != 0, "no close was made again: what is shown?");
}
