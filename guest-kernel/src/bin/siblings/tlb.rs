//! Translations that one vCPU changes while the others have used them: none is used afterwards.
extern crate alloc;
use alloc::boxed::Box;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use guest_kernel::exception::probe;
use guest_kernel::frame::Frame;
use guest_kernel::paging;
use guest_kernel::smp::Cpu;

use super::meet::{Meeting, on_all};
use super::{Failed, ok};

static MEETING: Meeting = Meeting::new();
static WRONG: AtomicU32 = AtomicU32::new(0);

pub(crate) fn check(rounds: u32) -> Result<(), Failed> {
    window(rounds)?;
    ok("a translation that a sibling changed is used nowhere", WRONG.load(Ordering::SeqCst) == 0)?;
    taken(rounds)?;
    ok("a page that a sibling gave back is seen nowhere", WRONG.load(Ordering::SeqCst) == 0)
}

/// All look at `address` and must see `expected`.
fn see(address: usize, expected: Option<u32>) {
    if probe(address) != expected {
        WRONG.fetch_add(1, Ordering::SeqCst);
    }
}

/// Stage 1: a window shows one page, another, none (TLBI by address, inner-shareable, is all that tells the others).
fn window(rounds: u32) -> Result<(), Failed> {
    let pages: [&'static Frame; 2] = [Box::leak(Frame::boxed()), Box::leak(Frame::boxed())];
    for (page, value) in pages.iter().zip(1..) {
        page.words()[0].store(value, Ordering::SeqCst);
    }
    let at = paging::show_page(Some(pages[0])).ok_or(Failed::Check("a window"))?;
    on_all(move |cpu| {
        for round in 0..rounds {
            for shown in [Some(0), Some(1), None] {
                if cpu.number() == round % guest_kernel::smp::count() {
                    let _ = paging::show_page(shown.and_then(|n: usize| pages.get(n).copied()));
                }
                MEETING.wait();
                see(at, shown.and_then(|n| u32::try_from(n).ok()).map(|n| n + 1));
                MEETING.wait();
            }
        }
    })?;
    Ok(())
}

/// Stage 2: a page is given back, and another comes in its place.
fn taken(rounds: u32) -> Result<(), Failed> {
    static PAGE: AtomicUsize = AtomicUsize::new(0);
    let page: &'static Frame = Box::leak(Frame::boxed());
    let address = core::ptr::from_ref(page).addr();
    PAGE.store(address, Ordering::SeqCst);
    on_all(move |cpu| {
        for round in 1..=rounds {
            let turn = cpu == Cpu::FIRST;
            if turn {
                page.words()[0].store(round, Ordering::SeqCst);
            }
            MEETING.wait();
            see(address, Some(round));
            MEETING.wait();
            if turn && guest_kernel::heap::give_back(page).is_err() {
                WRONG.fetch_add(1, Ordering::SeqCst);
            }
            MEETING.wait();
            see(address, None);
            MEETING.wait();
            if turn && guest_kernel::heap::take_again(page).is_err() {
                WRONG.fetch_add(1, Ordering::SeqCst);
            }
            MEETING.wait();
            see(address, Some(0));
            MEETING.wait();
        }
    })?;
    Ok(())
}
