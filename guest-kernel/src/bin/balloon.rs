//! Ballooning up: asks for all the RAM that the configuration allows beyond what it started with, and for more than that; uses it, gives a page back
//! and takes it again. Ends as crashed when a number is not what it must be.
#![no_std]
#![no_main]
extern crate alloc;

use alloc::vec::Vec;

use guest_kernel::frame::Frame;
use guest_kernel::{Guest, heap, hypercall, println};
use pv_abi::memory::MemoryOp;
use pv_abi::{Errno, PAGE_SIZE};

guest_kernel::main!(main);

#[derive(Debug)]
#[expect(dead_code, reason = "shown when the guest ends")]
enum Failed {
    /// So many pages came.
    Came(u64),
    /// It has so many pages.
    Has(u64),
    /// A byte of the new memory is not what was written, or the memory cannot be allocated.
    Content,
    Refused(Errno),
}

impl From<Errno> for Failed {
    fn from(why: Errno) -> Self {
        Self::Refused(why)
    }
}

fn main(guest: &Guest) -> Result<(), Failed> {
    let has = || hypercall::reservation(MemoryOp::CurrentReservation);
    let (before, most) = (has()?, hypercall::reservation(MemoryOp::MaximumReservation)?);
    println!("balloon: {before} of {most} pages");
    let end = guest.tree.memory.iter().map(|bank| bank.end()).max().unwrap_or(0);
    let more = most.saturating_sub(before);
    // Sixteen more than allowed: the result says how far the call came.
    let came = heap::grow(end, more.saturating_add(16))?;
    if came != more {
        return Err(Failed::Came(came));
    }
    if has()? != most {
        return Err(Failed::Has(has()?));
    }
    // More than it had at first, in one piece.
    let length = usize::try_from(more).unwrap_or(0).saturating_mul(PAGE_SIZE) / 2;
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(length).map_err(|_| Failed::Content)?;
    bytes.extend((0_u8..251).cycle().take(length));
    if !bytes.iter().copied().eq((0_u8..251).cycle().take(length)) {
        return Err(Failed::Content);
    }
    let page: &'static Frame = alloc::boxed::Box::leak(Frame::boxed());
    heap::give_back(page)?;
    if has()? != most.saturating_sub(1) {
        return Err(Failed::Has(has()?));
    }
    heap::take_again(page)?;
    println!("balloon: {came} pages came, {} bytes used", length);
    Ok(())
}
