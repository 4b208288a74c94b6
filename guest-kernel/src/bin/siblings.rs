//! What vCPUs of one domain do to each other, and others to them: interrupts in masses, translations that change, floating-point registers.
//! Prints an `ok` line for each; ends as crashed when one fails. `rounds=` on the command line says how often (default 20); `ras` that the CPU
//! has `DISR_EL1`.
#![no_std]
#![no_main]
extern crate alloc;

#[path = "siblings/fp.rs"]
mod fp;
#[path = "siblings/meet.rs"]
mod meet;
#[path = "siblings/off.rs"]
mod off;
#[path = "siblings/storm.rs"]
mod storm;
#[path = "siblings/tlb.rs"]
mod tlb;

use guest_kernel::smp::StartError;
use guest_kernel::{Guest, interrupt, println, smp};
use pv_abi::Errno;

guest_kernel::main!(main);

#[derive(Debug)]
#[expect(dead_code, reason = "shown when the guest ends")]
pub(crate) enum Failed {
    Check(&'static str),
    Start(StartError),
    Refused(Errno),
}

impl From<StartError> for Failed {
    fn from(why: StartError) -> Self {
        Self::Start(why)
    }
}

impl From<Errno> for Failed {
    fn from(why: Errno) -> Self {
        Self::Refused(why)
    }
}

fn main(guest: &Guest) -> Result<(), Failed> {
    let rounds = guest.args().number("rounds").and_then(|n| u32::try_from(n).ok()).unwrap_or(20);
    println!("siblings: {} vCPUs, {rounds} rounds", smp::count());
    ok("the interrupt controller starts", interrupt::start(guest.tree.gic).is_ok())?;
    storm::check(guest, rounds)?;
    tlb::check(rounds)?;
    fp::check(rounds)?;
    off::check()?;
    if guest.args().has("ras") {
        ok("DISR_EL1 is each vCPU's own", fp::deferred_errors_are_own()?)?;
    }
    Ok(())
}

pub(crate) fn ok(what: &'static str, holds: bool) -> Result<(), Failed> {
    if holds {
        println!("ok - {what}");
        Ok(())
    } else {
        println!("not ok - {what}");
        Err(Failed::Check(what))
    }
}
