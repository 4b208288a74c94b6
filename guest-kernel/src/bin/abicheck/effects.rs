//! What calls do, not what they answer: ends for each reason and by a watchdog, as another domain sees them, and the flag that marks updates of a
//! run-state area, as another vCPU sees it.
extern crate alloc;
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use core::time::Duration;

use guest_kernel::event::Channel;
use guest_kernel::frame::Frame;
use guest_kernel::smp;
use guest_kernel::{Guest, hypercall, interrupt, time};
use pv_abi::event::PortStatus;
use pv_abi::grant::GrantStatus;
use pv_abi::sched::ShutdownReason;
use pv_abi::vcpu::{ASSIST_RUNSTATE_UPDATE_FLAG, RegisterRunstate, VcpuOp};
use pv_abi::{Hypercall, Port};

use super::aide::{Aid, map_at, unmap_at};
use super::domains::Partner;
use super::event::status;
use super::partner::Command;
use super::raw::{self, FREE};
use super::tap::Tap;

/// Where pages of those that end are mapped.
const AT: u64 = FREE - 50;
/// What is in them.
const PATTERN: u32 = 0x6E61_7267;

/// A domain ends as its place among the partners says. Only these reasons leave it as it is on both hypervisors, by Pavo's configuration; the first two
/// places are others'.
pub(crate) fn end_of(tap: &mut Tap, index: usize, partner: &Partner) {
    match index {
        2 => end(tap, partner, "reboot", Some(ShutdownReason::Reboot)),
        3 => end(tap, partner, "crash", Some(ShutdownReason::Crash)),
        4 => end(tap, partner, "soft reset", Some(ShutdownReason::SoftReset)),
        5 => end(tap, partner, "watchdog", None),
        6 => suspend(tap, partner),
        _ => {}
    }
}

/// Nobody saves it: it stays as it is on Xen, and ends here. What is mapped of it stays in both.
fn suspend(tap: &mut Tap, partner: &Partner) {
    let (index, reference) = partner.grant(partner.own, 0);
    let (mapped, handle) = map_at(partner.id, reference, AT);
    tap.is("a page of a domain that suspends is mapped", mapped, GrantStatus::Okay);
    let said = partner.ask_aid(Aid::End, &[ShutdownReason::Suspend.number()])[0];
    tap.is("shutdown is announced, suspend", said, 0);
    let silent = partner.ask_for(Command::Take, &[1], Duration::from_millis(200)).is_none();
    tap.that("the domain answers no more, suspend", silent);
    let there = (raw::word(AT << 12, 0), raw::word(AT << 12, 1));
    tap.is("its page is still there, suspend", there, (PATTERN, index));
    let event = hypercall::event_send(partner.channel.port());
    tap.is("an event to it is taken, suspend", event, Ok(()));
    tap.is("it is unmapped, suspend", unmap_at(AT, handle), GrantStatus::Okay);
    tap.is("and once, suspend", unmap_at(AT, handle), GrantStatus::BadHandle);
}

fn end(tap: &mut Tap, partner: &Partner, what: &str, reason: Option<ShutdownReason>) {
    let own = u32::from(partner.own.0);
    let port = partner.channel.port();
    let (index, reference) = partner.grant(partner.own, 0);
    let (_, second) = partner.grant(partner.own, 0);
    let (mapped, handle) = map_at(partner.id, reference, AT);
    tap.is(format_args!("a page of a domain that ends is mapped, {what}"), mapped, GrantStatus::Okay);
    let [_, offered, ..] = partner.ask(Command::Offer, &[own]);
    if let Some(reason) = reason {
        let said = partner.ask_aid(Aid::End, &[reason.number()])[0];
        tap.is(format_args!("shutdown is announced, {what}"), said, 0);
    } else {
        let began = time::now();
        tap.is("a watchdog of a second is set", partner.ask_aid(Aid::Dog, &[1]), [0, 1, 0, 0]);
        // It answers until it is ended. Whoever is slow to ask sees it ended the first time.
        let mut ended = false;
        while !ended && began.elapsed() < Duration::from_secs(30) {
            ended = partner.ask_for(Command::Take, &[port.0], Duration::from_millis(1500)).is_none();
        }
        tap.that("a watchdog that nobody sets again ends its domain", ended);
        tap.that("and not before its time", began.elapsed() >= Duration::from_secs(1));
    }
    let silent = partner.ask_for(Command::Take, &[1], Duration::from_millis(200)).is_none();
    tap.that(format_args!("the domain answers no more, {what}"), silent);
    tap.is(
        format_args!("its page is still there, {what}"),
        (raw::word(AT << 12, 0), raw::word(AT << 12, 1)),
        (PATTERN, index),
    );
    tap.is(format_args!("it is unmapped, {what}"), unmap_at(AT, handle), GrantStatus::Okay);
    let (mapped, handle) = map_at(partner.id, second, AT);
    tap.is(
        format_args!("another grant of its can be mapped, {what}"),
        (mapped, unmap_at(AT, handle)),
        (GrantStatus::Okay, GrantStatus::Okay),
    );
    tap.is(
        format_args!("the channel to it is as it was, {what}"),
        status(port).map(|it| (it.0, it.2)),
        Ok((PortStatus::Interdomain.number(), u32::from(partner.id.0))),
    );
    tap.is(format_args!("an event to it is taken, {what}"), hypercall::event_send(port), Ok(()));
    tap.that(
        format_args!("a port that it offered can be bound, {what}"),
        Channel::bind(partner.id, Port(offered)).is_ok(),
    );
    tap.that(format_args!("a port can be offered to it, {what}"), Channel::unbound(partner.id).is_ok());
}

/// Nanoseconds that a snapshot's sum of times may be off: four times and a moment, each cut to one.
const ROUNDING: i64 = 8;

/// Words of `vcpu_runstate_info`: the state, when it was entered, and the times in the four states.
const ENTRY: usize = 2;
const TIMES: usize = 4;
/// `XEN_RUNSTATE_UPDATE`, in the upper word of the moment.
const UPDATE: u32 = 1 << 31;

/// What a reader on another vCPU saw.
#[derive(Default)]
struct Seen {
    flags: AtomicU32,
    snapshots: AtomicU32,
    least: AtomicI64,
    most: AtomicI64,
    stop: AtomicU32,
}

pub(crate) fn assist(tap: &mut Tap, guest: &Guest) {
    if smp::cpu(1).is_none() || interrupt::start(guest.tree.gic).is_err() {
        return;
    }
    // Leaked: the hypervisor writes to it.
    let area: &'static Frame = Box::leak(Frame::boxed());
    let mut place = RegisterRunstate { addr: core::ptr::from_ref(area).expose_provenance() as u64 };
    let register = u64::from(VcpuOp::RegisterRunstateMemoryArea.number());
    tap.is("a run-state area for the flag", raw::vcpu(register, 0, &mut place), Ok(0));
    for (what, command) in [("on", 0), ("off", 1), ("on again", 0), ("off again", 1)] {
        let number = u64::from(Hypercall::VmAssist.number());
        let answer = raw::call(number, &[command, u64::from(ASSIST_RUNSTATE_UPDATE_FLAG)]);
        tap.is(format_args!("vm_assist of the run-state flag, {what}"), answer, Ok(0));
        let Some(seen) = watch(area) else { return tap.that("a second vCPU starts", false) };
        let (snapshots, flags) = (seen.snapshots.load(Ordering::SeqCst), seen.flags.load(Ordering::SeqCst));
        tap.that(format_args!("another vCPU sees run states change, {what}"), snapshots != 0);
        if command == 1 {
            tap.is(format_args!("another vCPU sees no flag, {what}"), flags, 0);
        } else {
            let spread = seen.most.load(Ordering::SeqCst) - seen.least.load(Ordering::SeqCst);
            tap.that(
                format_args!("what another vCPU sees without the flag adds up, {what}"),
                spread <= ROUNDING,
            );
        }
        let left = area.words()[ENTRY + 1].load(Ordering::SeqCst) & UPDATE;
        tap.is(format_args!("no flag is left in the area, {what}"), left, 0);
    }
}

/// This vCPU waits again and again, and another one reads how it is told.
fn watch(area: &'static Frame) -> Option<Arc<Seen>> {
    let seen = Arc::new(Seen {
        least: AtomicI64::new(i64::MAX),
        most: AtomicI64::new(i64::MIN),
        ..Default::default()
    });
    let there = seen.clone();
    let started = smp::start(smp::cpu(1)?, move || {
        while there.stop.load(Ordering::SeqCst) == 0 {
            look(area, &there);
        }
        look(area, &there);
    });
    let started = started.ok()?;
    for _ in 0..200 {
        let _ = hypercall::poll(&[], time::system_time() + 20_000);
        let _ = hypercall::sched_yield();
    }
    seen.stop.store(1, Ordering::SeqCst);
    started.join();
    Some(seen)
}

fn look(area: &Frame, seen: &Seen) {
    let double = |index: usize| {
        let [low, high] = [index, index + 1].map(|at| area.words()[at].load(Ordering::SeqCst));
        (high, u64::from(high) << 32 | u64::from(low))
    };
    let (high, entered) = double(ENTRY);
    if high & UPDATE != 0 {
        seen.flags.fetch_add(1, Ordering::SeqCst);
        return;
    }
    let sum: u64 = (0..4).map(|state| double(TIMES + 2 * state).1).sum();
    if double(ENTRY).1 != entered {
        return;
    }
    let off = entered.cast_signed() - sum.cast_signed();
    seen.least.fetch_min(off, Ordering::SeqCst);
    seen.most.fetch_max(off, Ordering::SeqCst);
    seen.snapshots.fetch_add(1, Ordering::SeqCst);
}
