//! Pages that are granted, taken back and granted again while another vCPU maps them and copies from them.
use alloc::boxed::Box;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use guest_kernel::event::own_id;
use guest_kernel::frame::Frame;
use guest_kernel::grant::{self, Access, Grant, MappedGrant};
use guest_kernel::{Guest, hypercall, interrupt, smp};
use pv_abi::GrantRef;

use crate::tap::Tap;

/// Times that a page is granted and taken back: until the other has used it often enough, at most so often.
const ROUNDS: u32 = 300_000;
const USES: u32 = 500;

static DONE: AtomicBool = AtomicBool::new(false);
static MAPPED: AtomicU32 = AtomicU32::new(0);
static COPIED: AtomicU32 = AtomicU32::new(0);
static TORN: AtomicU32 = AtomicU32::new(0);

pub(crate) fn check(tap: &mut Tap, guest: &Guest) {
    let Ok(own) = own_id() else { return tap.that("own id", false) };
    let other = smp::all().next_back().filter(|other| other.number() > 0);
    let (Some(other), Ok(())) = (other, interrupt::start(guest.tree.gic)) else {
        return tap.that("(one vCPU: nothing to do)", true);
    };
    // The references that will be granted are the next free ones: the first is found by trying.
    let Ok(probe) = Grant::new(Frame::boxed(), own, Access::ReadWrite) else {
        return tap.that("a page is granted", false);
    };
    let first = probe.reference();
    let mut page: Box<Frame> = match probe.end() {
        Ok(page) => page,
        Err(_) => return tap.that("it is taken back", false),
    };
    let started = smp::start(other, move || {
        let to = Frame::boxed();
        while !DONE.load(Ordering::SeqCst) {
            for number in 0..2 {
                let reference = GrantRef(first.0 + number);
                if let Ok(mapped) = MappedGrant::map(own, reference, Access::ReadOnly) {
                    MAPPED.fetch_add(1, Ordering::SeqCst);
                    if mapped.unmap().is_err() {
                        TORN.fetch_add(1, Ordering::SeqCst);
                    }
                }
                if grant::copy(own, reference, &to, 4096).is_ok() {
                    COPIED.fetch_add(1, Ordering::SeqCst);
                    // What comes is the page as it was when it was granted: every word the same round.
                    let word = to.words()[0].load(Ordering::Relaxed);
                    if to.words().iter().any(|other| other.load(Ordering::Relaxed) != word) {
                        TORN.fetch_add(1, Ordering::SeqCst);
                    }
                }
            }
        }
    });
    let Ok(started) = started else { return tap.that("another vCPU", false) };
    let (mut refused, mut lost) = (0, 0);
    for round in 0..ROUNDS {
        if MAPPED.load(Ordering::SeqCst) > USES && COPIED.load(Ordering::SeqCst) > USES {
            break;
        }
        page.words().iter().for_each(|word| word.store(round, Ordering::Relaxed));
        let grant = match Grant::new(page, own, Access::ReadWrite) {
            Ok(grant) => grant,
            Err((_, back)) => {
                page = back;
                continue;
            }
        };
        let mut grant = grant;
        // For a while, each time another one.
        (0..round % 509).for_each(|_| core::hint::spin_loop());
        // The other may be using it: try until it is not.
        page = loop {
            match grant.end() {
                Ok(page) => break page,
                Err(still) => {
                    refused += 1;
                    // On one CPU it takes the other a turn.
                    let _ = hypercall::sched_yield();
                    if refused > 100_000_000 {
                        lost += 1;
                        core::mem::forget(still);
                        break Frame::boxed();
                    }
                    grant = still;
                }
            }
        };
    }
    DONE.store(true, Ordering::SeqCst);
    started.join();
    tap.is(
        "xsa_218c: a page that was taken back is used by nobody, and every mapping could be undone",
        (TORN.load(Ordering::SeqCst), lost),
        (0, 0),
    );
    tap.that(
        "xsa_236: pages were mapped and copied while they were taken back",
        MAPPED.load(Ordering::SeqCst) > USES && COPIED.load(Ordering::SeqCst) > USES,
    );
}
