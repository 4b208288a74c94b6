//! A peer that dies while pages are shared, revoked, granted again, mapped and copied in both directions. The peer is this guest too, as
//! `role=mate`: it lives until the control domain destroys it, which it does time and again, when it was used more or less often
//! (`ledger:N:M`).
//!
//! A page that either grants holds one number in all its words, before it is granted and until it is taken back. Whoever maps it, or copies
//! from it, sees one number, however dead its owner is; and gives it back at once.
use alloc::boxed::Box;
use core::sync::atomic::Ordering;
use core::time::Duration;

use guest_kernel::event::Channel;
use guest_kernel::frame::Frame;
use guest_kernel::grant::{self, Access, Grant, GrantError, MappedGrant};
use guest_kernel::{Guest, hypercall, time};
use pv_abi::grant::GrantStatus;
use pv_abi::{DomId, Errno, GrantRef, Port};

use super::ledger::Ledger;
use crate::tap::Tap;

/// References that are tried: the first of a guest that has granted nothing yet, and some more.
const REFERENCES: core::ops::Range<u32> = 8..14;
/// Ports that are tried.
const PORTS: core::ops::Range<u32> = 1..5;
/// Of each kind of use, and of lives of the peer, at least so many, or so long.
const USES: u32 = 120;
const LIVES: u32 = 8;
const PATIENCE: Duration = Duration::from_secs(150);

/// What was seen.
#[derive(Default)]
struct Seen {
    mapped: u32,
    copied: u32,
    sent: u32,
    /// The peer was gone, and there again.
    lives: u32,
    gone: bool,
    /// A page with more than one number in it, or with another one later.
    torn: u32,
    /// What could not be given back, and answers that are none of those expected.
    wrong: Option<GrantError>,
}

impl Seen {
    fn enough(&self) -> bool {
        self.mapped.min(self.copied).min(self.sent) >= USES && self.lives >= LIVES
    }

    /// Refusals there must be: nothing is granted there now (`GNTST_general_error`, as in Xen), there is no such reference, nobody is there.
    fn refused(&mut self, error: GrantError) {
        match error {
            GrantError::Status(GrantStatus::BadDomain) => self.gone = true,
            GrantError::Status(GrantStatus::GeneralError | GrantStatus::BadGntref) => self.there(),
            other => self.wrong = self.wrong.or(Some(other)),
        }
    }

    fn there(&mut self) {
        self.lives += u32::from(core::mem::take(&mut self.gone));
    }
}

/// The one number in all words.
fn number(page: &Frame) -> Option<u32> {
    let first = page.words()[0].load(Ordering::Relaxed);
    page.words().iter().all(|word| word.load(Ordering::Relaxed) == first).then_some(first)
}

fn fill(page: &Frame, number: u32) {
    page.words().iter().for_each(|word| word.store(number, Ordering::Relaxed));
}

/// Lets time pass, each time another one.
fn wait(round: u32) {
    match round % 7 {
        0 => _ = hypercall::sched_yield(),
        some => (0..some * 997 % 2003).for_each(|_| core::hint::spin_loop()),
    }
}

/// Maps what the peer grants, and copies it.
fn uses(seen: &mut Seen, peer: DomId, to: &Frame, round: u32) {
    for reference in REFERENCES.map(GrantRef) {
        match MappedGrant::map(peer, reference, Access::ReadOnly) {
            Ok(mapped) => {
                seen.there();
                // With time for its owner to die in between.
                let (mut before, mut after) = ([0; 4096], [0; 4096]);
                mapped.read(&mut before);
                wait(round + reference.0);
                mapped.read(&mut after);
                seen.torn += u32::from(before != after || !before.chunks(4).all(|word| word == &before[..4]));
                match mapped.unmap() {
                    Ok(()) => seen.mapped += 1,
                    Err(error) => seen.wrong = seen.wrong.or(Some(error)),
                }
            }
            Err(error) => seen.refused(error),
        }
        match grant::copy(peer, reference, to, 4096) {
            Ok(()) => {
                seen.there();
                seen.copied += 1;
                seen.torn += u32::from(number(to).is_none());
            }
            Err(error) => seen.refused(error),
        }
    }
}

/// Binds to what the peer offers, sends and closes.
fn signals(seen: &mut Seen, peer: DomId) {
    for port in PORTS.map(Port) {
        match Channel::bind(peer, port) {
            Ok(channel) => {
                for _ in 0..8 {
                    // The peer's end may be gone: nobody is told.
                    seen.sent += u32::from(channel.notify().is_ok());
                }
            }
            Err(Errno::Esrch | Errno::Einval) => {}
            Err(errno) => seen.wrong = seen.wrong.or(Some(GrantError::Refused(errno))),
        }
    }
}

/// Takes a page back as soon as the peer lets go, or dies.
fn take_back(mut grant: Grant, end: time::Instant) -> Option<Box<Frame>> {
    loop {
        match grant.end() {
            Ok(page) => return Some(page),
            Err(still) if time::now() < end => grant = still,
            Err(still) => {
                core::mem::forget(still);
                return None;
            }
        }
        let _ = hypercall::sched_yield();
    }
}

/// Shares two pages, uses what the peer shares, and takes them back; true when all could be taken back.
fn turn(seen: &mut Seen, peer: DomId, to: &Frame, round: u32, end: time::Instant) -> bool {
    let grants = [Access::ReadOnly, Access::ReadWrite].map(|access| {
        let page = Frame::boxed();
        fill(&page, round);
        Grant::new(page, peer, access).ok()
    });
    let offered = Channel::unbound(peer).ok();
    uses(seen, peer, to, round);
    signals(seen, peer);
    wait(round);
    drop(offered);
    grants.into_iter().flatten().all(|grant| take_back(grant, end).is_some())
}

/// The one that dies.
pub(crate) fn live(peer: DomId) -> ! {
    let (to, mut seen) = (Frame::boxed(), Seen::default());
    let mut round = 0_u32;
    loop {
        round = round.wrapping_add(1);
        turn(&mut seen, peer, &to, round, time::now().after(PATIENCE));
    }
}

pub(crate) fn check(tap: &mut Tap, guest: &Guest, ledger: &Ledger) {
    let Some(mate) = guest.args().number("mate").and_then(|id| u16::try_from(id).ok()).map(DomId) else {
        return tap.that("(nobody dies)", true);
    };
    let (to, mut seen) = (Frame::boxed(), Seen::default());
    let end = time::now().after(PATIENCE);
    let (mut round, mut back) = (1, true);
    while !seen.enough() && time::now() < end {
        back &= turn(&mut seen, mate, &to, round, end);
        ledger.used(seen.mapped + seen.copied);
        round += 1;
    }
    tap.is(
        "pages that a peer used when it died are taken back, and what it shared is given back",
        (back, seen.wrong),
        (true, None),
    );
    tap.is("a page of a peer that dies holds what it held, mapped or copied", seen.torn, 0);
    tap.is(
        "the peer died often, and was used before and after",
        (
            seen.enough(),
            seen.mapped.min(USES),
            seen.copied.min(USES),
            seen.sent.min(USES),
            seen.lives.min(LIVES),
        ),
        (true, USES, USES, USES, LIVES),
    );
}
