//! Asks for what takes the hypervisor longest in one piece, so that `cargo xtask bench --stretches` sees it: batches of the dearest elements, and multicalls of
//! such batches. A call that is refused where it must not be ends it by a panic, whose line says which.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "raw calls with pages that are not used otherwise")]
extern crate alloc;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::mem::MaybeUninit;

use guest_kernel::event;
use guest_kernel::frame::Frame;
use guest_kernel::grant::{Access, Grant};
use guest_kernel::{Guest, hypercall, println};
use pv_abi::console::ConsoleOp;
use pv_abi::grant::{CopyPtr, GrantCopy, GrantOp, MapFlags, MapGrantRef, UnmapGrantRef};
use pv_abi::memory::{AddToPhysmapBatch, MapSpace, MemoryOp};
use pv_abi::multicall::MulticallEntry;
use pv_abi::{DomId, Errno, GrantHandle, GuestHandle, Hypercall, PAGE_SIZE};

guest_kernel::main!(main);

/// Elements of a batch: as many as one run may do.
const BATCH: usize = 16;
/// Calls of a multicall.
const CALLS: usize = 8;
/// RAM that one entry of stage 2 maps.
const BLOCK: usize = 2 << 20;

fn main(_: &Guest) -> Result<(), Errno> {
    let own = event::own_id()?;
    println!("longest: batches");
    copies(1);
    copies(2);
    maps(own, &blocks());
    places(&blocks());
    println!("longest: multicalls");
    multicalls();
    Ok(())
}

/// Addresses of blocks of RAM of which nobody uses a page: the heap gives them once, as aligned as they are large, and never has them back.
fn blocks() -> Vec<u64> {
    let all: &'static mut [MaybeUninit<u8>] = Box::leak(Box::new_uninit_slice(BATCH * BLOCK));
    let first = all.as_mut_ptr().expose_provenance();
    assert!(first.is_multiple_of(BLOCK), "blocks");
    (0..BATCH).map(|n| (first + n * BLOCK) as u64).collect()
}

fn call(call: Hypercall, args: [u64; 5]) -> Result<u64, Errno> {
    // SAFETY: callers name pages that nobody uses, and structures that are alive.
    Errno::check(unsafe { hypercall::raw(u64::from(call.number()), args) })
}

fn gfn(frame: &Frame) -> u64 {
    (core::ptr::from_ref(frame).expose_provenance() / PAGE_SIZE) as u64
}

fn at<T>(of: &[T]) -> u64 {
    of.as_ptr().expose_provenance() as u64
}

/// Copies within this domain from odd addresses to even ones.
fn elements(offset: u16) -> Vec<GrantCopy> {
    let (from, to): (&Frame, &Frame) = (Box::leak(Frame::boxed()), Box::leak(Frame::boxed()));
    let side = |frame: &Frame, offset| CopyPtr {
        ref_or_gfn: gfn(frame),
        domid: DomId::SELF,
        offset,
        ..CopyPtr::default()
    };
    let len = u16::try_from(PAGE_SIZE).unwrap_or(0) - offset;
    let copy = GrantCopy { source: side(from, offset), dest: side(to, 0), len, ..GrantCopy::default() };
    alloc::vec![copy; BATCH]
}

fn copies(offset: u16) {
    let elements = elements(offset);
    let args = [u64::from(GrantOp::Copy.number()), at(&elements), BATCH as u64, 0, 0];
    assert_eq!(call(Hypercall::GrantTableOp, args), Ok(0), "copy");
    assert!(elements.iter().all(|element| element.status == 0), "copied");
}

/// Maps a page of its own in a block each, which is split for that.
fn maps(own: DomId, places: &[u64]) {
    let Ok(grant) = Grant::new(Frame::boxed(), own, Access::ReadWrite) else { panic!("grant") };
    let maps: Vec<_> = places
        .iter()
        .map(|place| MapGrantRef {
            host_addr: *place,
            flags: MapFlags::HOST_MAP.bits(),
            gref: grant.reference(),
            dom: own,
            ..MapGrantRef::default()
        })
        .collect();
    let args = |op: GrantOp, list: u64| [u64::from(op.number()), list, BATCH as u64, 0, 0];
    assert_eq!(call(Hypercall::GrantTableOp, args(GrantOp::MapGrantRef, at(&maps))), Ok(0), "map");
    assert!(maps.iter().all(|map| map.status == 0), "mapped");
    let unmaps: Vec<_> = maps
        .iter()
        .map(|map| UnmapGrantRef {
            host_addr: map.host_addr,
            handle: GrantHandle(map.handle.0),
            ..UnmapGrantRef::default()
        })
        .collect();
    assert_eq!(call(Hypercall::GrantTableOp, args(GrantOp::UnmapGrantRef, at(&unmaps))), Ok(0), "unmap");
    assert!(unmaps.iter().all(|unmap| unmap.status == 0), "unmapped");
}

/// Places frames of the grant table in a block each, as many more of them each time as one call adds.
fn places(places: &[u64]) {
    let indexes: Vec<u64> = (0..).map(|n| n * 6 + 6).take_while(|index| *index < 64).collect();
    let gfns: Vec<u64> = places.iter().map(|place| place / PAGE_SIZE as u64).collect();
    let errors = alloc::vec![1_i32; BATCH];
    let batch = [AddToPhysmapBatch {
        domid: DomId::SELF,
        space: MapSpace::GrantTable.number() as u16,
        size: indexes.len() as u16,
        idxs: GuestHandle(at(&indexes)),
        gpfns: GuestHandle(at(&gfns)),
        errs: GuestHandle(at(&errors)),
        ..AddToPhysmapBatch::default()
    }];
    let args = [u64::from(MemoryOp::AddToPhysmapBatch.number()), at(&batch), 0, 0, 0];
    assert_eq!(call(Hypercall::MemoryOp, args), Ok(0), "place");
    assert!(errors.iter().take(indexes.len()).all(|errno| *errno == 0), "placed: {errors:?}");
}

fn multicall(what: &str, op: Hypercall, args: [u64; 5]) {
    let [a0, a1, a2, a3, a4] = args;
    let entry = MulticallEntry {
        op: u64::from(op.number()),
        args: [a0, a1, a2, a3, a4, 0],
        ..MulticallEntry::default()
    };
    let mut calls = alloc::vec![entry; CALLS];
    // SAFETY: as in `call`.
    assert_eq!(unsafe { hypercall::multicall(&mut calls) }, Ok(0), "{what}");
    assert!(calls.iter().all(|call| call.result >= 0), "{what}: {calls:?}");
}

fn multicalls() {
    for offset in [0, 1] {
        let elements = elements(offset);
        let args = [u64::from(GrantOp::Copy.number()), at(&elements), BATCH as u64, 0, 0];
        multicall("multicall of copies", Hypercall::GrantTableOp, args);
    }
    // All of a line, which is put out by its last byte.
    let mut text = [b'.'; 128];
    text[127] = b'\n';
    let args = [u64::from(ConsoleOp::Write.number()), text.len() as u64, at(&text), 0, 0];
    multicall("multicall of lines", Hypercall::ConsoleIo, args);
    // One that is over in a moment, as multicalls mostly are.
    multicall("multicall of nothing", Hypercall::XenVersion, [0; 5]);
}
