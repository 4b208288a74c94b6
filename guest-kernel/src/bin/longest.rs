//! Asks for what takes the hypervisor longest in one piece, so that `cargo xtask bench --stretches` sees it: batches of the dearest elements, multicalls of
//! such batches, ports that are looked for among many, polls of many, and in the end a crash with much to tell. It ends so each time; a call that is refused
//! where it must not be ends it by a panic, whose line says which.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "raw calls with pages that are not used otherwise")]
extern crate alloc;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::hint::black_box;
use core::mem::MaybeUninit;
use core::sync::atomic::Ordering;
use core::time::Duration;

use guest_kernel::event;
use guest_kernel::frame::Frame;
use guest_kernel::grant::{Access, Grant};
use guest_kernel::{Guest, hypercall, power, println, time};
use pv_abi::console::ConsoleOp;
use pv_abi::event::fifo::{LINKED, WORDS_PER_PAGE};
use pv_abi::event::{AllocUnbound, BindIpi, BindVirq, InitControl, PortArg, Reset};
use pv_abi::grant::{CopyPtr, GrantCopy, GrantOp, MapFlags, MapGrantRef, UnmapGrantRef};
use pv_abi::memory::{AddToPhysmapBatch, MapSpace, MemoryOp};
use pv_abi::multicall::MulticallEntry;
use pv_abi::sched::{Poll, SchedOp};
use pv_abi::{DomId, Errno, GrantHandle, GuestHandle, Hypercall, PAGE_SIZE, Port};

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
    println!("longest: ports");
    ports()?;
    queues()?;
    println!("longest: a crash");
    // Two deep for each caller that is told of.
    if black_box(dive(32)) == 0 { Err(Errno::Einval) } else { power::crash() }
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
    let grant = Grant::new(Frame::boxed(), own, Access::ReadWrite);
    assert!(grant.is_ok(), "grant");
    let Ok(grant) = grant else { return };
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
    let indexes: Vec<u64> = (1..11).map(|n| n * 6).collect();
    let gfns: Vec<u64> = places.iter().map(|place| place / PAGE_SIZE as u64).collect();
    let errors = alloc::vec![1_i32; BATCH];
    let batch = [AddToPhysmapBatch {
        domid: DomId::SELF,
        space: u16::try_from(MapSpace::GrantTable.number()).unwrap_or(0),
        size: u16::try_from(indexes.len()).unwrap_or(0),
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

fn unbound() -> Result<Port, Errno> {
    let mut port = AllocUnbound { dom: DomId::SELF, remote_dom: DomId::SELF, port: Port(0) };
    hypercall::event_alloc_unbound(&mut port)?;
    Ok(port.port)
}

/// All ports in use but one, which is far away; and polls of many.
fn ports() -> Result<(), Errno> {
    let mut all = Vec::new();
    while let Ok(port) = unbound() {
        all.push(port);
    }
    // Nothing comes: it goes on when its time is over.
    for shift in [0_usize, 2] {
        let mut list = [0_u8; 4 * 128 + 2];
        for (to, port) in list[shift..].chunks_exact_mut(4).zip(&all) {
            to.copy_from_slice(&port.0.to_le_bytes());
        }
        let soon = time::system_time() + u64::try_from(Duration::from_millis(1).as_nanos()).unwrap_or(0);
        let poll = [Poll { ports: GuestHandle(at(&list[shift..])), nr_ports: 128, pad: 0, timeout: soon }];
        call(Hypercall::SchedOp, [u64::from(SchedOp::Poll.number()), at(&poll), 0, 0, 0])?;
    }
    let (first, last) = (all[0], all[all.len() - 1]);
    for _ in 0..2 {
        hypercall::event_close(&mut PortArg { port: first })?;
        assert_eq!(unbound(), Ok(first), "the first port");
        hypercall::event_close(&mut PortArg { port: last })?;
        assert_eq!(unbound(), Ok(last), "the last port");
    }
    let mut virq = BindVirq { virq: 3, vcpu: 0, port: Port(0) };
    assert_eq!(hypercall::event_bind_virq(&mut virq), Err(Errno::Enospc), "no port is free");
    hypercall::event_reset(&mut Reset { dom: DomId::SELF })
}

/// Ports of which this guest says that their last event is in a queue still.
fn queues() -> Result<(), Errno> {
    let control: &Frame = Box::leak(Frame::boxed());
    let mut init = InitControl { control_gfn: gfn(control), ..InitControl::default() };
    // SAFETY: the pages are of atomics, and leaked.
    unsafe { hypercall::event_init_control(&mut init) }?;
    for _ in 0..4096 / WORDS_PER_PAGE {
        let array: &Frame = Box::leak(Frame::boxed());
        array.words().iter().for_each(|word| word.store(LINKED, Ordering::Relaxed));
        // SAFETY: as above.
        unsafe { hypercall::event_expand_array(gfn(array)) }?;
    }
    assert_eq!(unbound(), Err(Errno::Enospc), "every port is busy");
    assert_eq!(hypercall::event_bind_ipi(&mut BindIpi { vcpu: 0, port: Port(0) }), Err(Errno::Enospc));
    let mut virq = BindVirq { virq: 3, vcpu: 0, port: Port(0) };
    assert_eq!(hypercall::event_bind_virq(&mut virq), Err(Errno::Enospc), "none for an interrupt");
    hypercall::event_reset(&mut Reset { dom: DomId::SELF })
}

/// Crashes so many calls deep. It looks as if it came back (`faulty`).
#[inline(never)]
fn dive(depth: u32) -> u32 {
    if black_box(depth) == 0 {
        power::crash()
    }
    dive(black_box(depth - 1)) + 1
}
