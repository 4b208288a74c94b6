//! Is there anything in the memory that a guest gets which is not its own? Looks at every word of its RAM when it starts, then gives pages with
//! secrets back and takes pages again, so often (`rounds=`, default 4) and so many at a time (`pages=`, default 1024), and looks at each that it
//! gets. Ends as crashed when it finds something.
#![no_std]
#![no_main]
#![expect(clippy::cast_possible_truncation, reason = "usize has 64 bits on the one target")]
#![expect(unsafe_code, reason = "looks at all of RAM, and lets pages of its own go")]
extern crate alloc;

use alloc::alloc::{Layout, alloc, dealloc};
use alloc::vec::Vec;

use guest_kernel::tree::Region;
use guest_kernel::{Guest, hypercall, println};
use pv_abi::memory::{MemoryOp, Reservation};
use pv_abi::{DomId, Errno, GuestHandle, Hypercall, PAGE_SIZE};

guest_kernel::main!(main);

#[derive(Debug)]
#[expect(dead_code, reason = "shown when the guest ends")]
enum Failed {
    /// So many words hold something of others.
    Found(u64),
    /// The heap has no room.
    NoMemory,
    /// The hypervisor did so many pages.
    Pages(u64),
    Refused(Errno),
}

impl From<Errno> for Failed {
    fn from(why: Errno) -> Self {
        Self::Refused(why)
    }
}

/// What this guest leaves in pages that it gives back. No heap link looks like it.
const SECRET: u64 = 0x5ec2_e75e_c2e7_0001;

fn main(guest: &Guest) -> Result<(), Failed> {
    let number = |name, default| guest.args().number(name).unwrap_or(default);
    let (rounds, pages) = (number("rounds", 4), number("pages", 1024));
    let kib: u64 = guest.tree.memory.iter().map(|bank| bank.size / 1024).sum();
    println!("scan: {kib} KiB in {} banks", guest.tree.memory.len());
    let found = strangers(guest);
    println!("scan: {found} words are not zero and not its own");
    if found != 0 {
        return Err(Failed::Found(found));
    }
    for _ in 0..rounds {
        let found = recycle(pages)?;
        if found != 0 {
            println!("scan: {found} words came with the pages");
            return Err(Failed::Found(found));
        }
    }
    println!("scan: {} pages were given back and came back empty", rounds * pages);
    Ok(())
}

/// Words of RAM that are not zero, besides the image, the device tree, the ramdisk and the heap's links, which are addresses in RAM.
fn strangers(guest: &Guest) -> u64 {
    let banks = &guest.tree.memory;
    let [image, tree, ramdisk] = guest.taken;
    // What describes this guest is the one thing on the heap.
    let own = core::ptr::from_ref(guest).addr() as u64;
    let known = [image, tree, ramdisk, Region { start: own, size: size_of::<Guest>() as u64 }];
    let link = |word: u64| {
        word.is_multiple_of(8) && banks.iter().any(|bank| (bank.start..bank.end()).contains(&word))
    };
    let mut found = 0;
    for bank in banks {
        let mut at = bank.start;
        while at < bank.end() {
            let inside = known.iter().find(|own| own.start <= at && at < own.end());
            if let Some(own) = inside {
                at = own.end().next_multiple_of(8);
                continue;
            }
            let next = known.iter().map(|own| own.start).filter(|start| *start > at).min();
            let end = next.unwrap_or(bank.end()).min(bank.end());
            found += not_zero(at, end & !7, link);
            at = end.max(at + 8);
        }
    }
    found
}

/// Words in `[start, end)` that are not zero and not `allowed`.
fn not_zero(start: u64, end: u64, allowed: impl Fn(u64) -> bool) -> u64 {
    let mut found = 0;
    let mut at = start;
    while at < end {
        // SAFETY: RAM that is mapped; its content, whatever it is, is read as a number.
        let word = unsafe { core::ptr::with_exposed_provenance::<u64>(at as usize).read_volatile() };
        if word != 0 && !allowed(word) {
            if found == 0 {
                println!("scan: {at:#x} holds {word:#x}");
            }
            found += 1;
        }
        at += 8;
    }
    found
}

/// Fills pages with secrets, gives them back, takes as many, and counts what is in those.
fn recycle(pages: u64) -> Result<u64, Failed> {
    let bytes = pages as usize * PAGE_SIZE;
    let layout = Layout::from_size_align(bytes, PAGE_SIZE).map_err(|_| Failed::NoMemory)?;
    // SAFETY: the size is not zero.
    let memory = unsafe { alloc(layout) };
    if memory.is_null() {
        return Err(Failed::NoMemory);
    }
    let start = memory.expose_provenance() as u64;
    for at in (start..start + bytes as u64).step_by(8) {
        let word = core::ptr::with_exposed_provenance_mut::<u64>(at as usize);
        // SAFETY: inside the allocation, which is page-aligned.
        unsafe { word.write_volatile(SECRET | at << 16) };
    }
    let frames: Vec<u64> = (0..pages).map(|page| start / PAGE_SIZE as u64 + page).collect();
    change(MemoryOp::DecreaseReservation, &frames)?;
    change(MemoryOp::PopulatePhysmap, &frames)?;
    let found = not_zero(start, start + bytes as u64, |_| false);
    // SAFETY: allocated above with this layout; the pages are there again.
    unsafe { dealloc(memory, layout) };
    Ok(found)
}

fn change(op: MemoryOp, frames: &[u64]) -> Result<(), Failed> {
    let mut argument = Reservation {
        extent_start: GuestHandle(frames.as_ptr().expose_provenance() as u64),
        nr_extents: frames.len() as u64,
        domid: DomId::SELF,
        ..Reservation::default()
    };
    let address = core::ptr::from_mut(&mut argument).expose_provenance() as u64;
    let args = [u64::from(op.number()), address, 0, 0, 0];
    // SAFETY: nothing refers into those pages: they are the inside of one allocation.
    let done = Errno::check(unsafe { hypercall::raw(u64::from(Hypercall::MemoryOp.number()), args) })?;
    if done == frames.len() as u64 { Ok(()) } else { Err(Failed::Pages(done)) }
}
