//! Three domains, and two with several vCPUs each: who may use what was offered to another, and that nothing is lost or done twice when all do it at
//! once. The others are `partner.rs` with `aide.rs`.
extern crate alloc;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU32, Ordering};

use guest_kernel::event::{Channel, shared_page};
use guest_kernel::frame::Frame;
use guest_kernel::grant::{Access, Grant};
use guest_kernel::smp::{self, Cpu};
use guest_kernel::{Guest, hypercall, interrupt, record};
use pv_abi::event::PortStatus;
use pv_abi::grant::{GrantOp, GrantStatus};

use pv_abi::layout::GRANT_TABLE_BASE;

use super::aide::{Aid, map_and_unmap};
use super::domains::Partner;
use super::event::status;
use super::partner::Command;
use super::raw::{self, FREE};
use super::tap::Tap;

/// Bits of an entry: permitted; read and written.
const PERMIT: u16 = 1;
const IN_USE: u16 = 8 | 16;
/// `EINVAL`, and `GNTST_general_error` and `GNTST_no_space` negated, as partners tell them.
const EINVAL: u32 = 22;
const GENERAL_ERROR: u32 = 1;

pub(crate) fn check(tap: &mut Tap, guest: &Guest, partner: &Partner, third: &Partner) {
    grants(tap, partner, third);
    ports(tap, partner, third);
    races(tap, partner);
    handles(tap, third);
    if interrupt::start(guest.tree.gic).is_ok() && smp::cpu(1).is_some() {
        maps(tap, partner);
        events(tap, partner);
    }
}

fn grants(tap: &mut Tap, partner: &Partner, third: &Partner) {
    let Ok(grant) = Grant::new(Frame::boxed(), partner.id, Access::ReadWrite) else {
        return tap.that("a page is granted to the second domain", false);
    };
    let own = u32::from(partner.own.0);
    let (gref, header) = (grant.reference().0, GRANT_TABLE_BASE);
    let map = |who: &Partner| who.ask(Command::Map, &[own, gref, 0]);
    tap.is("a third domain maps what the second was granted", map(third)[1], GENERAL_ERROR);
    let [error, state, handle, _] = map(partner);
    tap.is("the second maps it", (error, state), (0, 0));
    tap.is("a third domain maps a reference that the second uses", map(third)[1], GENERAL_ERROR);
    tap.is("a reference in use by the second is as it was", grant.flags(), PERMIT | IN_USE);
    // The owner changes its mind while it is in use.
    let word = gref as usize * 2;
    let before = raw::word(header, word);
    raw::store(header, word, before & 0xffff | u32::from(third.id.0) << 16);
    tap.is("a third domain maps it when the owner names the third meanwhile", map(third)[1], GENERAL_ERROR);
    raw::store(header, word, before);
    let unmapped = third.ask(Command::Unmap, &[handle + 64]);
    tap.is("a third domain's unmapping changes nothing", (unmapped[0], grant.flags()), (0, PERMIT | IN_USE));
    tap.is("the second unmaps it", &partner.ask(Command::Unmap, &[handle])[..2], &[0, 0][..]);
    raw::store(header, word, before & 0xffff & !u32::from(IN_USE) | u32::from(third.id.0) << 16);
    let [error, state, handle, _] = map(third);
    tap.is("a third domain maps it when it is granted to the third alone", (error, state), (0, 0));
    tap.is("the second maps what is the third's now", map(partner)[1], GENERAL_ERROR);
    tap.is("the third unmaps it", &third.ask(Command::Unmap, &[handle])[..2], &[0, 0][..]);
    tap.that("a page that two had can be taken back", grant.end().is_ok());
}

fn ports(tap: &mut Tap, partner: &Partner, third: &Partner) {
    let Ok(offer) = Channel::unbound(partner.id) else {
        return tap.that("a port is offered to the second domain", false);
    };
    let Ok(other) = Channel::unbound(third.id) else {
        return tap.that("a port is offered to the third domain", false);
    };
    let own = u32::from(partner.own.0);
    let bind = |who: &Partner, port: &Channel| who.ask(Command::Bind, &[own, port.port().0]);
    tap.is("a third domain binds to the second's port", bind(third, &offer)[0], EINVAL);
    tap.is("the second binds to the third's port", bind(partner, &other)[0], EINVAL);
    let (second_end, third_end) = (bind(partner, &offer), bind(third, &other));
    tap.is("each binds to its own port", (second_end[0], third_end[0]), (0, 0));
    tap.is("a third domain binds to a port that the second has bound", bind(third, &offer)[0], EINVAL);
    let _ = (offer.take(), other.take());
    tap.is("the third sends", third.ask(Command::Send, &[third_end[1]])[0], 0);
    tap.is("the third's event is at its port alone", (offer.take(), other.take()), (false, true));
    tap.is("the second sends", partner.ask(Command::Send, &[second_end[1]])[0], 0);
    tap.is("the second's event is at its port alone", (offer.take(), other.take()), (true, false));
    tap.is("the second closes its end", partner.ask(Command::Close, &[second_end[1]])[0], 0);
    tap.is(
        "a port that the second has closed waits for the second",
        status(offer.port()).map(|it| (it.0, it.2)),
        Ok((PortStatus::Unbound.number(), u32::from(partner.id.0))),
    );
    tap.is("a third domain binds to a port that waits for the second", bind(third, &offer)[0], EINVAL);
    tap.is("the third closes its end", third.ask(Command::Close, &[third_end[1]])[0], 0);
}

/// Two vCPUs of one domain bind to one port.
fn races(tap: &mut Tap, partner: &Partner) {
    let own = u32::from(partner.own.0);
    let rounds: alloc::vec::Vec<_> = (0..8)
        .map(|_| {
            let Ok(offer) = Channel::unbound(partner.id) else { return (0, 0, None) };
            let [won, port, lost, _] = partner.ask_aid(Aid::Race, &[own, offer.port().0]);
            let peer = status(offer.port()).ok().map(|it| (it.0, it.3 == port));
            let _ = partner.ask(Command::Close, &[port]);
            (won, lost, peer)
        })
        .collect();
    let expected = (1, EINVAL, Some((PortStatus::Interdomain.number(), true)));
    tap.is("one of two vCPUs that bind to one port at once gets it", rounds, [expected].repeat(8));
}

/// `max_maptrack_frames = <1>` for the third domain.
fn handles(tap: &mut Tap, third: &Partner) {
    let grants: alloc::vec::Vec<Grant> =
        (0..3).filter_map(|_| Grant::new(Frame::boxed(), third.id, Access::ReadWrite).ok()).collect();
    let first = grants.first().map_or(0, |grant| grant.reference().0);
    if grants.len() != 3 || grants[2].reference().0 != first + 2 {
        return tap.that("three references in a row", false);
    }
    let own = u32::from(third.own.0);
    for round in ["first", "second"] {
        let [before, status, after, rest] = third.ask_aid(Aid::MapMany, &[own, first, 384]);
        let status =
            i16::try_from(status).map_or(GrantStatus::GeneralError, |it| GrantStatus::from_value(-it));
        // The answer was the third's: it does not tell it on the console.
        record::status(GrantOp::MapGrantRef.number(), status.value());
        tap.is(
            format_args!("map_grant_ref of a domain with one frame for its handles, {round} time"),
            (before, status, after, rest),
            // It holds one already, and Xen keeps one.
            (254, GrantStatus::NoSpace, 254, 0),
        );
    }
    tap.that(
        "pages that were mapped so often can be taken back",
        grants.into_iter().all(|grant| grant.end().is_ok()),
    );
}

/// Two vCPUs there and one here map and unmap references at once.
fn maps(tap: &mut Tap, partner: &Partner) {
    const TIMES: u32 = 50;
    let Some(second) = smp::cpu(1) else { return };
    let Ok(grant) = Grant::new(Frame::boxed(), partner.id, Access::ReadWrite) else {
        return tap.that("a page is granted to two vCPUs", false);
    };
    let (index, theirs) = partner.grant(partner.own, 0);
    let (wrong, there) = twins();
    let of = partner.id;
    let asked = partner.begin_aid(Aid::MapTwice, &[u32::from(partner.own.0), grant.reference().0, TIMES]);
    let started = smp::start(second, move || {
        for _ in 0..TIMES {
            there.fetch_add(u32::from(!map_and_unmap(of, theirs, FREE - 41)), Ordering::SeqCst);
        }
    });
    let Ok(started) = started else { return tap.that("a second vCPU starts", false) };
    let mine = (0..TIMES).filter(|_| !map_and_unmap(of, theirs, FREE - 42)).count();
    started.join();
    tap.is(
        "two vCPUs of each of two domains map each other's page at once",
        (partner.end(asked)[0], mine, wrong.load(Ordering::SeqCst)),
        (0, 0, 0),
    );
    tap.is(
        "and neither page is in use after that",
        (grant.flags(), partner.flags(index)),
        (PERMIT, u32::from(PERMIT)),
    );
    tap.is(
        "both can be taken back",
        (grant.end().is_ok(), partner.ask(Command::End, &[index])[0]),
        (true, 1),
    );
}

fn twins() -> (Arc<AtomicU32>, Arc<AtomicU32>) {
    let one = Arc::new(AtomicU32::new(0));
    (one.clone(), one)
}

/// Two vCPUs there send to one port whose events a second vCPU here takes.
fn events(tap: &mut Tap, partner: &Partner) {
    const TIMES: u32 = 200;
    let (Some(second), Ok(page)) = (smp::cpu(1), shared_page()) else { return };
    let Ok(offer) = Channel::unbound(partner.id) else { return tap.that("a port for two senders", false) };
    let [error, theirs, ..] = partner.ask(Command::Bind, &[u32::from(partner.own.0), offer.port().0]);
    tap.is("the second binds to a port of a second vCPU", (error, offer.deliver_to(second)), (0, Ok(())));
    let (taken, there) = twins();
    let (stop, stopped) = twins();
    let port = offer.port();
    let _ = page.take(port);
    let started = smp::start(second, move || {
        while stopped.load(Ordering::SeqCst) == 0 {
            there.fetch_add(u32::from(page.take(port)), Ordering::SeqCst);
            let _ = hypercall::sched_yield();
        }
    });
    let Ok(started) = started else { return tap.that("a second vCPU starts", false) };
    let refused = partner.ask_aid(Aid::SendTwice, &[theirs, TIMES])[0];
    tap.is("two vCPUs of one domain send to one port at once", refused, 0);
    stop.store(1, Ordering::SeqCst);
    started.join();
    let left = u32::from(page.take(port));
    let all = taken.load(Ordering::SeqCst) + left;
    tap.that("their events are taken, each at most once", (1..=2 * TIMES).contains(&all));
    tap.is("the last of them is followed by none", page.is_pending(port), false);
    let one_more = partner.ask(Command::Send, &[theirs])[0];
    tap.is("one more comes", (one_more, page.take(port), page.take(port)), (0, true, false));
    let _ = (partner.ask(Command::Close, &[theirs]), offer.deliver_to(Cpu::FIRST));
}
