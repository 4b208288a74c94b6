//! Conformance: every call's successes and refusals, as TAP. Where an expectation differs from real Xen, Xen is right.
//!
//! One file a family of calls, in `abicheck/`. Runs alone, as any domain; changes only its own state. With
//! `passive=` on the command line, the id of a domain that runs, it also tries what no domain may do to another; with `peer=`, `port=` and
//! `ref=`, those of a configured channel, what two domains see of each other; the other end is this guest too, with `role=partner`.
//! With `role=control` it checks the control domain's calls alone, as that domain or as another.
//! `only=` on the command line names the one family to check. Ends as crashed if a case failed.
#![no_std]
#![no_main]
extern crate alloc;

mod abicheck {
    pub(crate) mod aide;
    pub(crate) mod batches;
    pub(crate) mod console;
    pub(crate) mod control;
    pub(crate) mod deliberate;
    pub(crate) mod domains;
    pub(crate) mod effects;
    pub(crate) mod event;
    pub(crate) mod event_errors;
    pub(crate) mod fault;
    pub(crate) mod fifo;
    pub(crate) mod flushes;
    pub(crate) mod four;
    pub(crate) mod grant;
    pub(crate) mod grant_copy;
    pub(crate) mod handle;
    pub(crate) mod hvm;
    pub(crate) mod limits_event;
    pub(crate) mod limits_grant;
    pub(crate) mod limits_memory;
    pub(crate) mod limits_others;
    pub(crate) mod lines;
    pub(crate) mod memory;
    pub(crate) mod multicall;
    pub(crate) mod orders;
    pub(crate) mod own_pages;
    pub(crate) mod partner;
    pub(crate) mod peer;
    pub(crate) mod psci;
    pub(crate) mod raw;
    pub(crate) mod reset_meanwhile;
    pub(crate) mod restart;
    pub(crate) mod sched;
    pub(crate) mod sweep;
    pub(crate) mod sweep_memory;
    pub(crate) mod sweep_table;
    pub(crate) mod sweep_world;
    pub(crate) mod tap;
    pub(crate) mod trio;
    pub(crate) mod unknown;
    pub(crate) mod vcpu;
    pub(crate) mod vcpus;
    pub(crate) mod version;
}

use abicheck::tap::{Failed, Tap};
use abicheck::{
    batches, console, control, deliberate, domains, effects, event, event_errors, fault, fifo, four, grant,
    grant_copy, handle, hvm, limits_event, limits_grant, limits_memory, limits_others, lines, memory,
    multicall, orders, own_pages, partner, peer, psci, restart, sched, sweep, unknown, vcpu, vcpus, version,
};
use guest_kernel::{Guest, power};
use pv_abi::DomId;

guest_kernel::main!(main);

fn main(guest: &Guest) -> Result<(), Failed> {
    if guest.args().text("role") == Some("partner") {
        if partner::serve(guest).is_err() {
            power::crash();
        }
        return Ok(());
    }
    if guest.args().text("role") == Some("control") {
        let mut tap = Tap::new(None);
        tap.family("limits", control::limits);
        tap.family("handle", control::handles);
        tap.family("control", control::check);
        return tap.end();
    }
    let mut tap = Tap::new(guest.args().text("only"));
    // First: the partner was told the first reference, and later cases close every port.
    tap.family("domains", |tap| domains::check(tap, guest));
    tap.family("version", version::check);
    tap.family("console", console::check);
    tap.family("unknown", unknown::check);
    tap.family("hvm", hvm::check);
    tap.family("multicall", multicall::check);
    tap.family("psci", psci::check);
    tap.family("sched", |tap| sched::check(tap, guest));
    tap.family("event", event::check);
    tap.family("event_errors", event_errors::check);
    tap.family("grant", grant::check);
    tap.family("grant_copy", grant_copy::check);
    tap.family("fault", fault::check);
    tap.family("handle", handle::check);
    if let Some(peer) = guest.args().number("passive").and_then(|id| u16::try_from(id).ok()) {
        tap.family("peer", |tap| peer::check(tap, DomId(peer)));
    }
    tap.family("memory", memory::check);
    tap.family("limits", |tap| {
        limits_event::check(tap);
        limits_grant::check(tap);
        limits_memory::check(tap);
        limits_others::check(tap);
    });
    tap.family("lines", lines::check);
    tap.family("batches", batches::check);
    tap.family("deliberate", deliberate::check);
    tap.family("restart", |tap| restart::check(tap, guest));
    tap.family("vcpus", |tap| vcpus::check(tap, guest));
    tap.family("four", |tap| four::check(tap, guest));
    tap.family("fifo", fifo::check);
    tap.family("limits", fifo::limits);
    tap.family("restart", fifo::restart);
    tap.family("vcpu", vcpu::check);
    tap.family("effects", |tap| effects::assist(tap, guest));
    tap.family("own_pages", own_pages::check);
    // Not all of the memory is reached after it.
    tap.family("orders", orders::check);
    // Last: it needs domain ids, and leaves the ports closed.
    tap.family("sweep", sweep::check);
    tap.end()
}
