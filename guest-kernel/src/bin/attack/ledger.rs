//! The hypervisor's counters, asked of the control domain through a granted page: after each case they are what they were before the first.
//!
//! Words of the page: what was asked (its number), what was answered; of the first count that differs its place (`control/ledger.rs`), before
//! and now; whether this guest gives pages of its own away; how often it used those of a peer that is to die.
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use guest_kernel::frame::Frame;
use guest_kernel::grant::{Access, Grant};
use guest_kernel::{Guest, hypercall, println};
use pv_abi::DomId;

use crate::tap::Afterwards;

/// Turns that the control domain is given.
const PATIENCE: u32 = 5_000_000;
/// Says that there is no further question.
const DONE: u32 = u32::MAX;

/// A page for the control domain, if it is there to be asked.
pub(crate) struct Ledger(Option<Arc<Grant>>);

impl Ledger {
    /// Grants the page, as the first of this guest, and has everything counted.
    pub(crate) fn begin(guest: &Guest) -> Self {
        let asked = guest.args().number("ledger");
        let ledger = Self(
            asked.and_then(|_| Grant::new(Frame::boxed(), DomId(0), Access::ReadWrite).ok().map(Arc::new)),
        );
        if let Some(mut first) = ledger.afterwards()
            && first().is_none()
        {
            println!("ledger: counted after each case");
        }
        ledger
    }

    /// What asks whether everything is as it was at the beginning.
    pub(crate) fn afterwards(&self) -> Option<Afterwards> {
        let grant = Arc::clone(self.0.as_ref()?);
        Some(Box::new(move || differs(grant.frame())))
    }

    /// This guest gives pages away: it may have fewer.
    pub(crate) fn gives_pages(&self) {
        if let Some(grant) = &self.0 {
            grant.frame().words()[5].store(1, Ordering::Release);
        }
    }

    /// How often it used its peer's pages so far.
    pub(crate) fn used(&self, times: u32) {
        if let Some(grant) = &self.0 {
            grant.frame().words()[6].store(times, Ordering::Release);
        }
    }

    /// The control domain may let go of the page. It stays granted, as long as this guest lives.
    pub(crate) fn end(self) {
        if let Some(grant) = self.0 {
            grant.frame().words()[0].store(DONE, Ordering::Release);
        }
    }
}

fn differs(page: &Frame) -> Option<String> {
    let [asked, answered, place, before, now, ..] = page.words();
    let number = asked.load(Ordering::Relaxed) + 1;
    asked.store(number, Ordering::Release);
    let mut patience = PATIENCE;
    while answered.load(Ordering::Acquire) != number {
        let _ = hypercall::sched_yield();
        patience -= 1;
        if patience == 0 {
            return Some(String::from("nobody answers"));
        }
    }
    let [place, before, now] = [place, before, now].map(|word| word.load(Ordering::Acquire));
    (place != 0).then(|| format!("count {place} was {before}, is {now}"))
}
