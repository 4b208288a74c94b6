//! The heap: a buddy allocator over the RAM that image, device tree and ramdisk leave.
//!
//! 1. Interrupts are masked while its lock is held: handlers may allocate.
#![expect(unsafe_code, reason = "GlobalAlloc, and handing RAM to the allocator")]
use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;

use buddy_system_allocator::Heap;

use pv_abi::memory::{MemoryOp, Reservation};
use pv_abi::{DomId, Errno, GuestHandle, Hypercall, PAGE_SIZE};

use crate::frame::Frame;
use crate::lock::Lock;
use crate::tree::Region;
use crate::{cpu, hypercall, paging};

/// Largest block: 2^31 bytes.
const ORDERS: usize = 32;

struct Locked(Lock<Heap<ORDERS>>);

#[global_allocator]
static HEAP: Locked = Locked(Lock::new(Heap::empty()));

// SAFETY: the buddy allocator hands out disjoint blocks that fit the layout, and the lock serializes it.
unsafe impl GlobalAlloc for Locked {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        cpu::without_interrupts(|| self.0.lock().alloc(layout).map_or(core::ptr::null_mut(), NonNull::as_ptr))
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if let Some(block) = NonNull::new(block) {
            // SAFETY: the caller promises that `block` came from `alloc` with this layout.
            cpu::without_interrupts(|| unsafe { self.0.lock().dealloc(block, layout) });
        }
    }
}

/// Adds mapped RAM that nothing else uses.
///
/// # Safety
/// `region` must be mapped, readable, writable, and no reference may point into it.
pub(crate) unsafe fn add(region: Region) {
    let (Ok(start), Ok(end)) = (usize::try_from(region.start), usize::try_from(region.end())) else { return };
    if start < end {
        // SAFETY: the caller's promise.
        cpu::without_interrupts(|| unsafe { HEAP.0.lock().add_to_heap(start, end) });
    }
}

/// Bytes that can still be allocated, and bytes that the heap has in all.
pub fn sizes() -> (usize, usize) {
    cpu::without_interrupts(|| {
        let heap = HEAP.0.lock();
        (heap.stats_total_bytes() - heap.stats_alloc_actual(), heap.stats_total_bytes())
    })
}

/// Gives a page's memory back to the hypervisor: nothing is there until [`take_again`].
///
/// # Errors
/// Those of `memory_op.decrease_reservation` in docs/abi.md.
pub fn give_back(page: &'static Frame) -> Result<(), Errno> {
    reserve(MemoryOp::DecreaseReservation, page)
}

/// Asks for memory where [`give_back`] left none; it is zero.
///
/// # Errors
/// Those of `memory_op.populate_physmap` in docs/abi.md.
pub fn take_again(page: &'static Frame) -> Result<(), Errno> {
    reserve(MemoryOp::PopulatePhysmap, page)
}

/// Asks for `pages` more of RAM from address `start` on, where nothing is, and adds what comes to the heap; returns how many came. The system file's
/// `max_memory` is the limit.
///
/// # Errors
/// Those of `memory_op.populate_physmap` in docs/abi.md; `-ENOMEM` when they cannot be mapped: those that came stay unused.
pub fn grow(start: u64, pages: u64) -> Result<u64, Errno> {
    let mut came = 0;
    while came < pages {
        let first = start / PAGE_SIZE as u64 + came;
        let numbers: heapless::Vec<u64, 64> = (first..).take(64.min((pages - came) as usize)).collect();
        let mut argument = Reservation {
            extent_start: GuestHandle(numbers.as_ptr().expose_provenance() as u64),
            nr_extents: numbers.len() as u64,
            domid: DomId::SELF,
            ..Reservation::default()
        };
        let address = (&raw mut argument).expose_provenance() as u64;
        let args = [u64::from(MemoryOp::PopulatePhysmap.number()), address, 0, 0, 0];
        // SAFETY: nothing was there, and nothing refers to it.
        let done = Errno::check(unsafe { hypercall::raw(u64::from(Hypercall::MemoryOp.number()), args) })?;
        came += done;
        if done < numbers.len() as u64 {
            break;
        }
    }
    let region = Region { start, size: came * PAGE_SIZE as u64 };
    paging::map_memory(region).map_err(|_| Errno::Enomem)?;
    // SAFETY: mapped just now.
    unsafe { add(region) };
    Ok(came)
}

fn reserve(op: MemoryOp, page: &'static Frame) -> Result<(), Errno> {
    let call = |args| {
        // SAFETY: only atomics are in the page, and an access while it is away is an exception.
        (unsafe { hypercall::raw(u64::from(Hypercall::MemoryOp.number()), args) }, 0)
    };
    reserve_by(op, page, call).map(drop)
}

/// The same by another caller, which also says what it cost.
pub(crate) fn reserve_by(
    op: MemoryOp,
    page: &'static Frame,
    call: impl FnOnce([u64; 5]) -> (i64, u64),
) -> Result<u64, Errno> {
    let number = (core::ptr::from_ref(page).addr() / PAGE_SIZE) as u64;
    let mut argument = Reservation {
        extent_start: GuestHandle((&raw const number).expose_provenance() as u64),
        nr_extents: 1,
        domid: DomId::SELF,
        ..Reservation::default()
    };
    let address = (&raw mut argument).expose_provenance() as u64;
    let args = [u64::from(op.number()), address, 0, 0, 0];
    let (result, cost) = call(args);
    match Errno::check(result)? {
        1 => Ok(cost),
        _ => Err(Errno::Einval),
    }
}
