//! The FIFO ABI: what is refused, what a word, a queue and a control block say after each operation, priorities, vCPUs, and the way back.
//! Channels of this guest are closed afterwards. The vCPUs other than the first are off: what they are told is looked at from here.
extern crate alloc;
use alloc::boxed::Box;
use alloc::vec::Vec;

use guest_kernel::event::{Channel, shared_page};
use guest_kernel::frame::Frame;
use guest_kernel::{fifo, hypercall, smp};
use pv_abi::event::fifo::{LINKED, MASKED, MAX_PAGES, PENDING};
use pv_abi::event::{BindIpi, BindVcpu, EventOp, ExpandArray, InitControl, PortArg, Reset, SetPriority};
use pv_abi::{DomId, Errno, Hypercall, Port};

use super::event::close;
use super::raw::{self, FREE, gfn, with};
use super::tap::Tap;

const FLAGS: u32 = PENDING | MASKED | LINKED;

fn event(op: EventOp, argument: &mut (impl zerocopy::IntoBytes + zerocopy::FromBytes)) -> raw::Answer {
    with(Hypercall::EventChannelOp, u64::from(op.number()), argument)
}

fn init(control_gfn: u64, offset: u32, vcpu: u32) -> (raw::Answer, u8) {
    let mut control = InitControl { control_gfn, offset, vcpu, link_bits: 99, pad: [0; 7] };
    (event(EventOp::InitControl, &mut control), control.link_bits)
}

fn expand(array_gfn: u64) -> raw::Answer {
    event(EventOp::ExpandArray, &mut ExpandArray { array_gfn })
}

fn priority(port: Port, priority: u32) -> raw::Answer {
    event(EventOp::SetPriority, &mut SetPriority { port, priority })
}

fn ipi(vcpu: u32) -> Port {
    let mut ipi = BindIpi { vcpu, port: Port(0) };
    let made = hypercall::event_bind_ipi(&mut ipi);
    if made.is_ok() { ipi.port } else { Port(0) }
}

fn taken(number: u32) -> Vec<u32> {
    let mut ports = Vec::new();
    if let Some(cpu) = smp::cpu(number) {
        fifo::take_all(cpu, |port| ports.push(port.0));
    }
    ports
}

fn flags(port: Port) -> u32 {
    fifo::state(port) & FLAGS
}

pub(crate) fn check(tap: &mut Tap) {
    if shared_page().is_err() {
        return tap.that("the shared page", false);
    }
    for (what, done) in
        [("over to queues", fifo::begin()), ("and back", fifo::end()), ("once more", fifo::begin())]
    {
        tap.is(format_args!("over and back {what}"), done, Ok(()));
    }
    words(tap);
    order(tap);
    busy(tap);
    if smp::count() > 1 {
        vcpus(tap);
    }
    waits(tap);
    tap.is("event_channel_op.reset with queues", fifo::end(), Ok(()));
    two_levels(tap);
}

/// Arguments, in the order in which they are looked at, and the most that is taken.
pub(crate) fn limits(tap: &mut Tap) {
    // Leaked: the hypervisor may write there from now on.
    let (control, array): (&Frame, &Frame) = (Box::leak(Frame::boxed()), Box::leak(Frame::boxed()));
    let absent = smp::count();
    let einval = (Err(Errno::Einval), 99);
    for (what, got, expected) in [
        ("of a vCPU that is not there, at a bad offset", init(FREE, 4, absent), (Err(Errno::Enoent), 99)),
        ("of the highest vCPU", init(gfn(control), 0, u32::MAX), (Err(Errno::Enoent), 99)),
        ("in a page that is not there", init(FREE, 0, 0), einval),
        ("in a page that cannot be", init(u64::MAX, 0, 0), einval),
        ("four bytes off", init(gfn(control), 4, 0), einval),
        ("over the end of its page", init(gfn(control), 4096 - 64, 0), einval),
    ] {
        tap.is(format_args!("event_channel_op.init_control {what}"), got, expected);
    }
    tap.is("a refused one leaves two levels", expand(gfn(array)), Err(Errno::Eopnotsupp));
    tap.is("and no priorities", priority(Port(0), 0), Err(Errno::Enosys));
    let last = 4096 - 72;
    tap.is("event_channel_op.init_control at the last offset", init(gfn(control), last, 0), (Ok(0), 17));
    tap.is("event_channel_op.init_control a second time", init(gfn(control), 0, 0), einval);
    if absent > 1 {
        tap.is(
            "event_channel_op.init_control of another in the same page",
            init(gfn(control), 0, 1),
            (Ok(0), 17),
        );
    }
    for (what, page) in [("a page that is not there", FREE), ("a page that cannot be", u64::MAX)] {
        tap.is(format_args!("event_channel_op.expand_array by {what}"), expand(page), Err(Errno::Einval));
    }
    let added = (0..MAX_PAGES).filter(|_| expand(gfn(array)) == Ok(0)).count();
    tap.is("event_channel_op.expand_array as often as there can be pages", added, MAX_PAGES as usize);
    tap.is("event_channel_op.expand_array once more", expand(gfn(array)), Err(Errno::Enospc));
    tap.is("also by what is no page", expand(FREE), Err(Errno::Enospc));
    let port = ipi(0);
    for (what, at, level, expected) in [
        ("the first of a port", port, 0, Ok(0)),
        ("the last of a port", port, 15, Ok(0)),
        ("beyond the last", port, 16, Err(Errno::Einval)),
        ("far beyond", port, u32::MAX, Err(Errno::Einval)),
        ("of a port that is free", Port(63), 3, Err(Errno::Eacces)),
        ("of port 0", Port(0), 3, Err(Errno::Eacces)),
        ("beyond the last, of a port that is free", Port(63), 16, Err(Errno::Eacces)),
        ("of a port that cannot be", Port(1024), 0, Err(Errno::Einval)),
        ("of a port that no array has", Port(1 << 17), 0, Err(Errno::Einval)),
        ("of the highest number", Port(u32::MAX), 0, Err(Errno::Einval)),
    ] {
        tap.is(format_args!("event_channel_op.set_priority {what}"), priority(at, level), expected);
    }
    tap.is("event_channel_op.reset of queues", fifo::end(), Ok(()));
    two_levels(tap);
}

/// What came before the queues, and before the array: it is raised when its page comes. Last of all: Xen raises what a port has once kept at each
/// further array, whoever has the port then.
pub(crate) fn restart(tap: &mut Tap) {
    let (control, array): (&Frame, &Frame) = (Box::leak(Frame::boxed()), Box::leak(Frame::boxed()));
    let word = |port: Port| array.words()[port.0 as usize].load(core::sync::atomic::Ordering::Acquire);
    for count in [1, 31, 32, 33, 40, 65] {
        let before: Vec<Port> = (0..count).map(|_| ipi(0)).collect();
        for port in &before {
            let _ = hypercall::event_send(*port);
        }
        let begun = init(gfn(control), 0, 0).0;
        let after: Vec<Port> = (0..count).map(|_| ipi(0)).collect();
        for port in &after {
            let _ = hypercall::event_send(*port);
        }
        let quiet = ipi(0);
        let closed = ipi(0);
        let _ = (hypercall::event_send(closed), close(closed));
        let nothing = before.iter().chain(&after).all(|port| word(*port) == 0);
        let added = expand(gfn(array));
        let all = before.iter().chain(&after).all(|port| word(*port) & FLAGS == PENDING | LINKED);
        tap.is(
            format_args!("event_channel_op.expand_array raises what was kept of {count}"),
            (begun, nothing, added, all, word(quiet)),
            (Ok(0), true, Ok(0), true, 0),
        );
        let (ready, head) =
            (control.words()[0].load(core::sync::atomic::Ordering::Acquire), &control.words()[2 + 7]);
        let head = head.load(core::sync::atomic::Ordering::Acquire);
        tap.is(
            format_args!("the queue of the usual priority begins with the first of {count}"),
            (ready, head),
            (1 << 7, before[0].0),
        );
        let reset = event(EventOp::Reset, &mut Reset { dom: DomId::SELF });
        tap.is(format_args!("and all {count} are closed"), reset, Ok(0));
        [control, array].iter().flat_map(|page| page.words()).for_each(|word| {
            word.store(0, core::sync::atomic::Ordering::Release);
        });
    }
    let again = init(gfn(control), 0, 0).0;
    tap.is("a control block after the reset", again, Ok(0));
    tap.is("event_channel_op.reset after it", fifo::end(), Ok(()));
    two_levels(tap);
}

/// A channel by two levels works.
fn two_levels(tap: &mut Tap) {
    let Ok(page) = shared_page() else { return };
    let port = ipi(0);
    let sent = hypercall::event_send(port);
    tap.is("two levels: an event", (sent, page.take(port)), (Ok(()), true));
    tap.is("two levels: no array", expand(FREE), Err(Errno::Eopnotsupp));
    tap.is("two levels: no priority", priority(port, 0), Err(Errno::Enosys));
    tap.is("two levels: close", close(port), Ok(()));
}

/// What an event's word says after each operation.
fn words(tap: &mut Tap) {
    let port = ipi(0);
    tap.is("a new port is masked, as the guest set it", fifo::state(port), MASKED);
    tap.is("an event to it", (hypercall::event_send(port), fifo::state(port)), (Ok(()), PENDING | MASKED));
    tap.is("is in no queue", taken(0), Vec::new());
    let unmasked = hypercall::event_unmask(&mut PortArg { port });
    tap.is(
        "event_channel_op.unmask of a pending event",
        (unmasked, fifo::state(port)),
        (Ok(()), PENDING | LINKED),
    );
    tap.is("again", (hypercall::event_send(port), fifo::state(port)), (Ok(()), PENDING | LINKED));
    tap.is("it is taken once", (taken(0), taken(0)), (Vec::from([port.0]), Vec::new()));
    tap.is("and nothing is left", fifo::state(port), 0);
    tap.is(
        "unmask of nothing",
        (hypercall::event_unmask(&mut PortArg { port }), fifo::state(port)),
        (Ok(()), 0),
    );
    let there = Channel::unbound(DomId::SELF);
    if let Ok(there) = &there
        && let Ok(other) = Channel::bind(DomId::SELF, there.port())
    {
        tap.is("binding marks the new end", flags(other.port()), PENDING | MASKED);
        tap.is("a channel carries it", (other.notify(), flags(there.port())), (Ok(()), PENDING | MASKED));
        tap.is(
            "the usual calls take it",
            (there.take(), there.take(), flags(there.port())),
            (true, false, MASKED),
        );
        let closed = close(other.port());
        tap.is("closing takes what is pending", (closed, flags(other.port())), (Ok(()), MASKED));
        core::mem::forget(other);
    }
    tap.is("close of the event's port", close(port), Ok(()));
}

/// In order of priority, and of time; a change of priority is for later events.
fn order(tap: &mut Tap) {
    let ports: Vec<Port> = (0..6).map(|_| ipi(0)).collect();
    for port in &ports {
        let _ = fifo::unmask_quietly(*port);
    }
    let send =
        |order: &[usize]| order.iter().filter(|port| hypercall::event_send(ports[**port]) == Ok(())).count();
    let expect = |order: &[usize]| order.iter().map(|port| ports[*port].0).collect::<Vec<_>>();
    tap.is("as they came", (send(&[3, 1, 4, 0, 5, 2]), taken(0)), (6, expect(&[3, 1, 4, 0, 5, 2])));
    tap.is("each once", (send(&[2, 2, 1, 2, 1]), taken(0)), (5, expect(&[2, 1])));
    for (port, level) in [(4, 0), (2, 15), (1, 3)] {
        tap.is(format_args!("a priority of {level} for port {port}"), priority(ports[port], level), Ok(0));
    }
    tap.is("the urgent first", (send(&[0, 1, 2, 3, 4, 5]), taken(0)), (6, expect(&[4, 1, 0, 3, 5, 2])));
    let queued = send(&[5, 2, 0]);
    let changed = (priority(ports[5], 1), priority(ports[2], 2));
    tap.is(
        "what is in a queue stays there",
        (queued, changed, taken(0)),
        (3, (Ok(0), Ok(0)), expect(&[5, 0, 2])),
    );
    tap.is("until the next event", (send(&[0, 2, 5]), taken(0)), (3, expect(&[5, 2, 0])));
    // Closed and made anew it is as any other.
    let _ = close(ports[5]);
    let anew = ipi(0);
    tap.is(
        "a port made anew has the usual priority",
        (anew, send(&[0, 5, 3]), taken(0)),
        (ports[5], 3, expect(&[0, 5, 3])),
    );
    for port in &ports {
        let _ = close(*port);
    }
}

/// A port that is in a queue is not given out until the guest has taken it out.
fn busy(tap: &mut Tap) {
    let port = ipi(0);
    let _ = fifo::unmask_quietly(port);
    let closed = (hypercall::event_send(port), close(port), flags(port));
    tap.is("closed in its queue", closed, (Ok(()), Ok(()), LINKED));
    let other = ipi(0);
    tap.that("another port is given", other != port && other != Port(0));
    tap.is("taken out it is no event", taken(0), Vec::new());
    let again = ipi(0);
    tap.is("and it is given", again, port);
    for port in [other, again] {
        let _ = close(port);
    }
}

/// Each vCPU has its queues, and a port goes with its vCPU.
fn vcpus(tap: &mut Tap) {
    let Ok(there) = Channel::unbound(DomId::SELF) else { return tap.that("a channel", false) };
    let Ok(here) = Channel::bind(DomId::SELF, there.port()) else { return tap.that("its end", false) };
    let port = there.port();
    let _ = (here.take(), fifo::unmask_quietly(port), taken(0));
    let last = smp::count() - 1;
    for (step, (to, level)) in (1..).zip([(last, 7), (0, 7), (last, 2), (last, 9), (0, 0), (1, 7), (last, 7)])
    {
        let moved = hypercall::event_bind_vcpu(&mut BindVcpu { port, vcpu: to });
        tap.is(
            format_args!("step {step}: bind_vcpu to {to} and set_priority {level}"),
            (moved, priority(port, level)),
            (Ok(()), Ok(0)),
        );
        let sent = here.notify();
        let back = hypercall::event_bind_vcpu(&mut BindVcpu { port, vcpu: 0 });
        tap.is(
            format_args!("step {step}: an event, and moved while it is there"),
            (sent, back),
            (Ok(()), Ok(())),
        );
        let got: Vec<Vec<u32>> = (0..smp::count()).map(taken).collect();
        let expected =
            (0..smp::count()).map(|number| if number == to { Vec::from([port.0]) } else { Vec::new() });
        tap.is(
            format_args!("step {step}: it is in the queue of vCPU {to}, that it was bound to"),
            got,
            expected.collect(),
        );
    }
    let own = ipi(last);
    let _ = fifo::unmask_quietly(own);
    tap.is(
        "an IPI",
        (hypercall::event_send(own), taken(0), taken(last)),
        (Ok(()), Vec::new(), Vec::from([own.0])),
    );
    let _ = close(own);
}

/// A poll sees what is pending.
fn waits(tap: &mut Tap) {
    let Ok(there) = Channel::unbound(DomId::SELF) else { return tap.that("a channel", false) };
    let Ok(here) = Channel::bind(DomId::SELF, there.port()) else { return tap.that("its end", false) };
    tap.is("a poll of what is pending", (here.notify(), there.wait()), (Ok(()), Ok(())));
    let wait = there.wait_for(core::time::Duration::from_millis(2));
    tap.is("and of what is not", wait, Ok(guest_kernel::event::Wake::TimedOut));
}
