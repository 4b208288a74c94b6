//! A guest that means harm and survives it: one file a family of cases, in `attack/`, printed as TAP. A case whose name begins with
//! `xsa_` or `row_` is the one for that row of `tests/advisories.toml`.
//!
//! What a case may not do is end this guest, or harm the hypervisor or another guest; the guests that run beside it (`victim`) and the
//! hypervisor's own counters say whether it did.
//!
//! Command line: `only=` a family; `ledger=1` asks the control domain after each case whether everything is as it was; `step=` pages from one that is tried to the next (1); `peer=` the id of a domain to molest;
//! `mate=` that of one which the control domain destroys time and again, which is this guest as `role=mate`.
#![no_std]
#![no_main]
#![allow(clippy::cast_possible_truncation, reason = "usize has 64 bits on the one target")]
extern crate alloc;

#[path = "abicheck/tap.rs"]
mod tap;
mod attack {
    pub(crate) mod addresses;
    pub(crate) mod calls;
    pub(crate) mod counts;
    pub(crate) mod handles;
    pub(crate) mod immediates;
    pub(crate) mod instruction;
    pub(crate) mod interrupts;
    pub(crate) mod ledger;
    pub(crate) mod mate;
    pub(crate) mod pool;
    pub(crate) mod registers;
    pub(crate) mod revoke;
    pub(crate) mod states;
    pub(crate) mod storms;
}

use attack::ledger::Ledger;
use attack::{
    addresses, calls, counts, handles, immediates, interrupts, mate, registers, revoke, states, storms,
};
use guest_kernel::Guest;
use guest_kernel::attempt::{Code, Window};
use pv_abi::DomId;
use tap::{Failed, Tap};

guest_kernel::main!(main);

fn peer(guest: &Guest) -> Option<DomId> {
    guest.args().number("peer").and_then(|id| u16::try_from(id).ok()).map(DomId)
}

fn main(guest: &Guest) -> Result<(), Failed> {
    if let Some(peer) = guest.args().text("role").and(peer(guest)) {
        mate::live(peer);
    }
    let mut tap = Tap::new(guest.args().text("only"));
    let (Some(mut code), Some(mut window)) = (Code::take(), Window::take()) else {
        tap.that("room for instructions", false);
        return tap.end();
    };
    let ledger = Ledger::begin(guest);
    tap.after_each(ledger.afterwards());
    tap.family("registers", |tap| registers::check(tap, &mut code, guest));
    tap.family("immediates", |tap| immediates::check(tap, &mut code));
    tap.family("states", |tap| states::check(tap, &mut code, guest));
    tap.family("addresses", |tap| addresses::check(tap, &mut code, &mut window, guest));
    tap.family("handles", |tap| handles::check(tap, guest));
    tap.family("counts", counts::check);
    tap.family("calls", |tap| {
        ledger.gives_pages();
        calls::check(tap, guest);
    });
    tap.family("revoke", |tap| revoke::check(tap, guest));
    tap.family("mate", |tap| mate::check(tap, guest, &ledger));
    tap.family("storms", |tap| storms::check(tap, guest));
    tap.family("interrupts", |tap| interrupts::check(tap, &mut code, &mut window));
    ledger.end();
    tap.end()
}
