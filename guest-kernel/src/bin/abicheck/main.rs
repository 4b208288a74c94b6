//! Conformance: every call's successes and refusals, as TAP. Where an expectation differs from real Xen, Xen is right.
//!
//! One file a family of calls. Runs alone, as any domain; changes only its own state. Ends as crashed if a case failed.
#![no_std]
#![no_main]
extern crate alloc;

mod console;
mod event;
mod event_errors;
mod grant;
mod grant_copy;
mod hvm;
mod memory;
mod multicall;
mod psci;
mod raw;
mod sched;
mod tap;
mod unknown;
mod vcpu;
mod version;

use guest_kernel::Guest;
use tap::Tap;

guest_kernel::main!(main);

fn main(guest: &Guest) -> Result<(), tap::Failed> {
    let mut tap = Tap::new(guest.args().text("only"));
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
    tap.family("memory", memory::check);
    tap.family("vcpu", vcpu::check);
    tap.end()
}
