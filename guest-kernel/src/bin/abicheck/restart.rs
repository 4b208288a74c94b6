//! Long operations work in pieces: every count around the budgets, and interrupts in between, must leave nothing out and do nothing twice.
//! Each case begins with the name of its sub-call.
extern crate alloc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;

use guest_kernel::event::{own_id, shared_page};
use guest_kernel::frame::Frame;
use guest_kernel::grant::{Access, Grant};
use guest_kernel::interrupt::{self, Intid};
use guest_kernel::{Guest, hypercall, record, time, timer};
use pv_abi::call::TABLE;
use pv_abi::console::ConsoleOp;
use pv_abi::event::{AllocUnbound, BindInterdomain, EventOp, PortStatus, Reset};
use pv_abi::grant::{
    CacheFlush, CopyFlags, CopyPtr, GrantCopy, GrantOp, GrantStatus, MapFlags, MapGrantRef, SetupTable,
    SwapGrantRef, UnmapAndReplace, UnmapGrantRef,
};
use pv_abi::memory::{AddToPhysmap, AddToPhysmapBatch, MapSpace, MemoryOp, RemoveFromPhysmap, Reservation};
use pv_abi::multicall::MulticallEntry;
use pv_abi::sched::SchedOp;
use pv_abi::version::VersionOp;
use pv_abi::{DomId, GrantHandle, GrantRef, GuestHandle, Hypercall, Port};

use super::event::{close, status};
use super::raw::{self, address, gfn, with};
use super::reset_meanwhile;
use super::tap::Tap;

/// Every count from 1 to this: beyond two of the largest budgets that there are for batches.
const MOST: usize = 40;
/// Pages of the grant region that nothing else uses, from its end downwards.
const LAST: u64 = 0x38ffe;

static TICKS: AtomicU32 = AtomicU32::new(0);

/// A timer that fires again at once, so that interrupts come at every place where a call may stop.
fn tick() {
    TICKS.fetch_add(1, Ordering::Relaxed);
    timer::arm(time::now().after(Duration::from_micros(20)));
}

pub(crate) fn check(tap: &mut Tap, guest: &Guest) {
    all(tap, "");
    if interrupt::start(guest.tree.gic).is_ok() && interrupt::enable(Intid::TIMER, tick).is_ok() {
        timer::arm(time::now().after(Duration::from_micros(20)));
        all(tap, ", interrupted");
        timer::disarm();
        tap.that("interrupts came meanwhile", TICKS.load(Ordering::Relaxed) != 0);
        reset_meanwhile::check(tap);
    }
}

fn all(tap: &mut Tap, how: &str) {
    grants(tap, how);
    memory(tap, how);
    others(tap, how);
}

/// A case: the first count that went wrong, if any.
fn each(tap: &mut Tap, name: &'static str, how: &str, mut good: impl FnMut(usize) -> bool) {
    record::forget();
    let wrong = (1..=MOST).find(|count| !good(*count));
    verdict(tap, name, how, wrong);
}

/// The case itself. Whether all went well is what was compared, so answers of the sub-call that it names are shown by it.
fn verdict(tap: &mut Tap, name: &'static str, how: &str, wrong: Option<usize>) {
    let sub_call = name.split(' ').next().unwrap_or(name);
    let mut known = TABLE.iter().flat_map(|row| row.operations.iter().map(move |it| (row, it)));
    let it = known.find(|(row, it)| sub_call.split_once('.') == Some((row.name, it.name)));
    if let (None, Some((row, it))) = (wrong, it) {
        record::compared(|seen| (seen.number, seen.op) == (row.number.into(), it.number));
    }
    tap.is(format_args!("{name}{how}"), wrong, None);
}

fn statuses<T>(op: GrantOp, of: &[T], read: impl Fn(&T) -> i16) -> bool {
    for element in of {
        record::status(op.number(), read(element));
    }
    of.iter().all(|element| read(element) == GrantStatus::Okay.value())
}

fn number(op: GrantOp) -> u64 {
    u64::from(op.number())
}

#[expect(clippy::too_many_lines, reason = "a list of cases")]
fn grants(tap: &mut Tap, how: &str) {
    let own = own_id().unwrap_or(raw::NOBODY);
    let grants: Vec<Grant> = (0u32..)
        .take(MOST)
        .filter_map(|index| {
            let frame = Frame::boxed();
            frame.write(&index.to_le_bytes());
            Grant::new(frame, own, Access::ReadWrite).ok()
        })
        .collect();
    if grants.len() != MOST {
        return tap.that("pages are granted", false);
    }
    let place = |index: usize| (LAST - index as u64) << 12;
    let mut handles = Vec::new();
    each(tap, "grant_table_op.map_grant_ref of every number", how, |count| {
        let mut maps: Vec<MapGrantRef> = grants[..count]
            .iter()
            .enumerate()
            .map(|(index, grant)| MapGrantRef {
                host_addr: place(index),
                flags: MapFlags::HOST_MAP.bits(),
                gref: grant.reference(),
                dom: own,
                ..Default::default()
            })
            .collect();
        let mapped = raw::grants(number(GrantOp::MapGrantRef), &mut maps) == Ok(0)
            && statuses(GrantOp::MapGrantRef, &maps, |map| map.status)
            && maps.iter().all(|map| map.dev_bus_addr != 0);
        handles = maps.iter().map(|map| map.handle).collect();
        handles.sort_unstable();
        handles.dedup();
        let different = handles.len() == count;
        let mut unmaps: Vec<UnmapGrantRef> = maps
            .iter()
            .map(|map| UnmapGrantRef { host_addr: map.host_addr, handle: map.handle, ..Default::default() })
            .collect();
        let unmapped = raw::grants(number(GrantOp::UnmapGrantRef), &mut unmaps) == Ok(0)
            && statuses(GrantOp::UnmapGrantRef, &unmaps, |unmap| unmap.status);
        mapped && different && unmapped
    });
    each(tap, "grant_table_op.unmap_grant_ref of every number, twice", how, |count| {
        let mut unmaps: Vec<UnmapGrantRef> = handles
            .iter()
            .take(count)
            .map(|handle| UnmapGrantRef { host_addr: place(0), handle: *handle, ..Default::default() })
            .collect();
        raw::grants(number(GrantOp::UnmapGrantRef), &mut unmaps) == Ok(0)
            && unmaps.iter().all(|unmap| unmap.status == GrantStatus::BadHandle.value())
    });
    each(tap, "grant_table_op.copy of every number", how, |count| {
        let to = Frame::boxed();
        let mut copies: Vec<GrantCopy> = grants[..count]
            .iter()
            .enumerate()
            .map(|(index, grant)| GrantCopy {
                source: CopyPtr {
                    ref_or_gfn: u64::from(grant.reference().0),
                    domid: own,
                    ..Default::default()
                },
                dest: CopyPtr {
                    ref_or_gfn: gfn(&to),
                    domid: DomId::SELF,
                    offset: u16::try_from(index * 4).unwrap_or(0),
                    pad: 0,
                },
                len: 4,
                flags: CopyFlags::SOURCE_GREF.bits(),
                ..Default::default()
            })
            .collect();
        raw::grants(number(GrantOp::Copy), &mut copies) == Ok(0)
            && statuses(GrantOp::Copy, &copies, |copy| copy.status)
            && to.words().iter().zip(0..).all(|(word, index)| {
                word.load(Ordering::Relaxed) == if (index as usize) < count { index } else { 0 }
            })
    });
    each(tap, "grant_table_op.cache_flush of every number, of none at all", how, |count| {
        let mut flushes: Vec<CacheFlush> =
            (0..count).map(|_| CacheFlush { op: 3, ..Default::default() }).collect();
        raw::grants(number(GrantOp::CacheFlush), &mut flushes) == Ok(0)
    });
    each(tap, "grant_table_op.unmap_and_replace of every number", how, |count| {
        let mut replaces: Vec<UnmapAndReplace> = (0..count)
            .map(|_| UnmapAndReplace {
                host_addr: place(0),
                new_addr: place(0),
                handle: GrantHandle::INVALID,
                ..Default::default()
            })
            .collect();
        raw::grants(number(GrantOp::UnmapAndReplace), &mut replaces) == Ok(0)
            && replaces.iter().all(|it| it.status == GrantStatus::BadHandle.value())
    });
    let references: Vec<GrantRef> = grants.iter().map(Grant::reference).collect();
    let free = grants.into_iter().flat_map(Grant::end).count();
    tap.is(format_args!("grant_table_op: every page can be taken back{how}"), free, MOST);
    each(tap, "grant_table_op.swap_grant_ref of every number", how, |count| {
        let mut swaps: Vec<SwapGrantRef> = (0..count)
            .map(|index| SwapGrantRef {
                ref_a: references[index],
                ref_b: GrantRef(400),
                ..Default::default()
            })
            .collect();
        raw::grants(number(GrantOp::SwapGrantRef), &mut swaps) == Ok(0)
            && statuses(GrantOp::SwapGrantRef, &swaps, |swap| swap.status)
    });
    let mut list = [0u64; 64];
    let frame_list = GuestHandle(address(&mut list));
    each(tap, "grant_table_op.setup_table of every number of frames", how, |count| {
        let mut setup = SetupTable {
            dom: DomId::SELF,
            nr_frames: u32::try_from(count).unwrap_or(0),
            frame_list,
            ..Default::default()
        };
        raw::grant(GrantOp::SetupTable, &mut setup, |setup| setup.status) == Ok(GrantStatus::Okay)
    });
}

fn memory_op(op: MemoryOp, argument: &mut (impl zerocopy::IntoBytes + zerocopy::FromBytes)) -> raw::Answer {
    with(Hypercall::MemoryOp, u64::from(op.number()), argument)
}

fn memory(tap: &mut Tap, how: &str) {
    // They leave and come back; what is in them does not matter meanwhile.
    let frames: Vec<_> = (0..MOST).map(|_| Frame::boxed()).collect();
    let mut places: Vec<u64> = frames.iter().map(|frame| gfn(frame)).collect();
    let has = || memory_op(MemoryOp::CurrentReservation, &mut { DomId::SELF }).unwrap_or(0);
    let all = has();
    let change = |op, gfns: &mut [u64], count: usize| {
        let extent_start = GuestHandle(address(gfns));
        let mut asked =
            Reservation { extent_start, nr_extents: count as u64, domid: DomId::SELF, ..Default::default() };
        memory_op(op, &mut asked)
    };
    each(tap, "memory_op.decrease_reservation of every number", how, |count| {
        let gone = change(MemoryOp::DecreaseReservation, &mut places, count) == Ok(count as u64);
        let less = has() == all - count as u64;
        gone && less
            && change(MemoryOp::PopulatePhysmap, &mut places, count) == Ok(count as u64)
            && has() == all
    });
    each(tap, "memory_op.populate_physmap of every number, and they work", how, |count| {
        let gone = change(MemoryOp::DecreaseReservation, &mut places, count) == Ok(count as u64);
        let back = change(MemoryOp::PopulatePhysmap, &mut places, count) == Ok(count as u64);
        frames[..count].iter().zip(1u32..).for_each(|(frame, index)| {
            frame.write(&index.to_le_bytes());
        });
        let works = frames[..count]
            .iter()
            .zip(1u32..)
            .all(|(frame, index)| frame.words()[0].load(Ordering::Relaxed) == index);
        gone && back && works
    });
    let whole = change(MemoryOp::DecreaseReservation, &mut places, MOST) == Ok(MOST as u64);
    // What comes by increase_reservation comes to no place on ARM: it only counts. One page is kept back for what the last count needs.
    tap.is(
        format_args!("memory_op.increase_reservation to what was there before{how}"),
        (whole, change(MemoryOp::IncreaseReservation, &mut places, MOST)),
        (true, Ok(MOST as u64)),
    );
    tap.is(
        format_args!("memory_op.increase_reservation beyond it{how}"),
        change(MemoryOp::IncreaseReservation, &mut places, 1),
        Ok(0),
    );
    tap.is(format_args!("memory_op.current_reservation agrees{how}"), has(), all);
    // Those pages are the domain's, in no place: what it had here does not come back.
    core::mem::forget(frames);

    let mut remove = RemoveFromPhysmap { domid: DomId::SELF, pad: [0; 3], gpfn: LAST };
    let mut add = AddToPhysmap {
        domid: DomId::SELF,
        space: MapSpace::GrantTable.number(),
        idx: 61,
        gpfn: LAST,
        ..Default::default()
    };
    tap.is(
        format_args!("memory_op.add_to_physmap of a frame that the table has to grow to{how}"),
        (memory_op(MemoryOp::AddToPhysmap, &mut add), memory_op(MemoryOp::RemoveFromPhysmap, &mut remove)),
        (Ok(0), Ok(0)),
    );
    each(tap, "memory_op.add_to_physmap_batch of every number", how, |count| {
        let mut idxs: Vec<u64> = (0..count as u64).map(|index| 20 + index).collect();
        let mut gpfns: Vec<u64> = (0..count as u64).map(|index| LAST - index).collect();
        let mut errs = [99i32; MOST];
        let mut batch = AddToPhysmapBatch {
            domid: DomId::SELF,
            space: 1,
            size: u16::try_from(count).unwrap_or(0),
            idxs: GuestHandle(address(&mut idxs[..])),
            gpfns: GuestHandle(address(&mut gpfns[..])),
            errs: GuestHandle(address(&mut errs)),
            ..Default::default()
        };
        let added = memory_op(MemoryOp::AddToPhysmapBatch, &mut batch) == Ok(0);
        let each =
            errs[..count].iter().all(|error| *error == 0) && errs[count..].iter().all(|error| *error == 99);
        let removed = gpfns.iter().all(|gpfn| {
            memory_op(MemoryOp::RemoveFromPhysmap, &mut RemoveFromPhysmap { gpfn: *gpfn, ..remove }) == Ok(0)
        });
        added && each && removed
    });
}

fn others(tap: &mut Tap, how: &str) {
    let event =
        |op: EventOp, dom| with(Hypercall::EventChannelOp, u64::from(op.number()), &mut Reset { dom });
    record::forget();
    let mut wrong = None;
    for count in (1..=MOST).chain([63, 64, 65, 128, 129]) {
        let ports: Vec<Port> = (0..count)
            .filter_map(|_| {
                let mut alloc = AllocUnbound { dom: DomId::SELF, remote_dom: DomId::SELF, port: Port(0) };
                hypercall::event_alloc_unbound(&mut alloc).ok().map(|()| alloc.port)
            })
            .collect();
        let reset = event(EventOp::Reset, DomId::SELF) == Ok(0);
        let closed = ports.iter().all(|port| status(*port).map(|it| it.0) == Ok(PortStatus::Closed.number()));
        if wrong.is_none() && !(ports.len() == count && reset && closed) {
            wrong = Some(count);
        }
    }
    verdict(tap, "event_channel_op.reset of every number of ports", how, wrong);

    let channel = || {
        let mut alloc = AllocUnbound { dom: DomId::SELF, remote_dom: DomId::SELF, port: Port(0) };
        hypercall::event_alloc_unbound(&mut alloc).ok()?;
        let (remote_dom, remote_port) = (DomId::SELF, alloc.port);
        let mut bind = BindInterdomain { remote_dom, remote_port, ..Default::default() };
        hypercall::event_bind_interdomain(&mut bind).ok().map(|()| (alloc.port, bind.local_port))
    };
    let shared = shared_page().ok();
    each(tap, "event_channel_op.send to every number of ports", how, |count| {
        let channels: Vec<_> = (0..count).filter_map(|_| channel()).collect();
        let quiet = |port| shared.is_some_and(|page| !page.is_pending(port));
        let none = channels.iter().all(|(end, _)| quiet(*end));
        let sent = channels.iter().all(|(_, other)| hypercall::event_send(*other) == Ok(()));
        let came = channels.iter().all(|(end, _)| shared.is_some_and(|page| page.take(*end)));
        let reset = event(EventOp::Reset, DomId::SELF) == Ok(0);
        channels.len() == count && none && sent && came && reset
    });
    each(tap, "event_channel_op.close of every number of ports, one end and the other", how, |count| {
        let channels: Vec<_> = (0..count).filter_map(|_| channel()).collect();
        let is = |port, state: PortStatus| status(port).map(|it| it.0) == Ok(state.number());
        let waits = channels.iter().all(|(end, other)| {
            close(*other) == Ok(()) && is(*end, PortStatus::Unbound) && is(*other, PortStatus::Closed)
        });
        let closed = channels.iter().all(|(end, _)| close(*end) == Ok(()) && is(*end, PortStatus::Closed));
        channels.len() == count && waits && closed
    });

    let version = MulticallEntry {
        op: u64::from(Hypercall::XenVersion.number()),
        args: [u64::from(VersionOp::Version.number()), 0, 0, 0, 0, 0],
        ..Default::default()
    };
    each(tap, "multicall.multicall of every number", how, |count| {
        let mut entries: Vec<MulticallEntry> = (0..count).map(|_| version).collect();
        raw::multicall(&mut entries) == Ok(0) && entries.iter().all(|entry| entry.result == 0x4_0014)
    });
    each(tap, "multicall.multicall with yields between calls", how, |count| {
        let yields = MulticallEntry {
            op: u64::from(Hypercall::SchedOp.number()),
            args: [u64::from(SchedOp::Yield.number()), 0, 0, 0, 0, 0],
            result: 99,
        };
        let mut entries: Vec<MulticallEntry> =
            (0..count).map(|index| if index % 3 == 1 { yields } else { version }).collect();
        raw::multicall(&mut entries) == Ok(0)
            && entries
                .iter()
                .enumerate()
                .all(|(index, entry)| entry.result == if index % 3 == 1 { 0 } else { 0x4_0014 })
    });
    each(tap, "multicall.multicall of batches that restart themselves", how, |count| {
        let mut first: Vec<UnmapGrantRef> =
            (0..count).map(|_| UnmapGrantRef { status: 99, ..Default::default() }).collect();
        for unmap in &mut first {
            unmap.handle = GrantHandle::INVALID;
        }
        let mut second = first.clone();
        let call = |batch: &mut Vec<UnmapGrantRef>| MulticallEntry {
            op: u64::from(Hypercall::GrantTableOp.number()),
            args: [number(GrantOp::UnmapGrantRef), address(&mut batch[..]), count as u64, 0, 0, 0],
            result: 99,
        };
        let mut entries = [version, call(&mut first), version, call(&mut second), version];
        let bad = GrantStatus::BadHandle.value();
        raw::multicall(&mut entries) == Ok(0)
            && entries.map(|entry| entry.result) == [0x4_0014, 0, 0x4_0014, 0, 0x4_0014]
            && first.iter().chain(&second).all(|unmap| unmap.status == bad)
    });
    let mut text = [b'.'; 1500];
    text.iter_mut().step_by(100).for_each(|byte| *byte = b'\n');
    text[..2].copy_from_slice(b"# ");
    text[1499] = b'\n';
    let write = u64::from(ConsoleOp::Write.number());
    let answer = raw::bytes(Hypercall::ConsoleIo, write, 1500, &mut text);
    tap.is(format_args!("console_io.write of more than is written at once{how}"), answer, Ok(0));
}
