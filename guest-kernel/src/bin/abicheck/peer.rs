//! What no domain may do to another: needs `passive=` on the command line, the id of a domain that runs and has granted nothing.
use guest_kernel::event::Channel;
use guest_kernel::frame::Frame;
use guest_kernel::hypercall;
use pv_abi::event::{AllocUnbound, BindInterdomain, EventOp, Reset, Status};
use pv_abi::grant::{
    CopyFlags, CopyPtr, GetStatusFrames, GetVersion, GrantCopy, GrantOp, GrantStatus, MapFlags, MapGrantRef,
    QuerySize, SetupTable,
};
use pv_abi::hvm::{HvmOp, HvmParam, HvmParamArg};
use pv_abi::layout::{GRANT_TABLE_BASE, GRANT_TABLE_SIZE, RAM0_BASE};
use pv_abi::memory::{
    AcquireResource, AddToPhysmap, AddToPhysmapBatch, MapSpace, MemoryExchange, MemoryOp, RemoveFromPhysmap,
    Reservation, VnumaTopology,
};
use pv_abi::sched::{RemoteShutdown, SchedOp, ShutdownReason};
use pv_abi::{DomId, Errno, GrantRef, GuestHandle, Hypercall, PAGE_SIZE, Port};

use super::raw;
use super::tap::Tap;

/// The first frame of any domain's RAM: the peer's kernel.
const THEIR_FRAME: u64 = RAM0_BASE / PAGE_SIZE as u64;
/// A place where nothing is: the last page of the grant region.
const FREE: u64 = GRANT_TABLE_BASE + GRANT_TABLE_SIZE - PAGE_SIZE as u64;

pub(crate) fn check(tap: &mut Tap, peer: DomId) {
    events(tap, peer);
    grants(tap, peer);
    memory(tap, peer);
    let mut stop = RemoteShutdown { domain: peer, pad: 0, reason: ShutdownReason::Poweroff.number() };
    let remote_shutdown = u64::from(SchedOp::RemoteShutdown.number());
    tap.is("shut it down", raw::with(Hypercall::SchedOp, remote_shutdown, &mut stop), Err(Errno::Eperm));
    for op in [HvmOp::GetParam, HvmOp::SetParam] {
        let mut param = HvmParamArg { domid: peer, pad: 0, index: HvmParam::ConsolePfn.number(), value: 1 };
        let answer = raw::with(Hypercall::HvmOp, u64::from(op.number()), &mut param);
        tap.is(format_args!("use its parameters by {op:?}"), answer, Err(Errno::Eperm));
    }
}

fn events(tap: &mut Tap, peer: DomId) {
    let mut alloc = AllocUnbound { dom: peer, remote_dom: DomId::SELF, port: Port(0) };
    tap.is("make a port in it", hypercall::event_alloc_unbound(&mut alloc), Err(Errno::Eperm));
    let mut status = Status { dom: peer, port: Port(1), ..Default::default() };
    tap.is("ask for its ports", hypercall::event_status(&mut status), Err(Errno::Eperm));
    let reset = u64::from(EventOp::Reset.number());
    let answer = raw::with(Hypercall::EventChannelOp, reset, &mut Reset { dom: peer });
    tap.is("close its ports", answer, Err(Errno::Eperm));
    let goes_on = u64::from(EventOp::ResetContinuation.number());
    let answer = raw::with(Hypercall::EventChannelOp, goes_on, &mut Reset { dom: peer });
    tap.is("go on with closing them", answer, Err(Errno::Eperm));
    let mut bind = BindInterdomain { remote_dom: peer, pad: 0, remote_port: Port(3), local_port: Port(0) };
    tap.is(
        "bind to a port that it did not offer",
        hypercall::event_bind_interdomain(&mut bind),
        Err(Errno::Einval),
    );
    match Channel::unbound(peer) {
        Ok(offer) => {
            tap.is("an offer that it has not taken swallows events", offer.notify(), Ok(()));
            bind.remote_dom = DomId::SELF;
            bind.remote_port = offer.port();
            let answer = hypercall::event_bind_interdomain(&mut bind);
            tap.is("take its place at a port offered to it", answer, Err(Errno::Einval));
        }
        Err(why) => tap.is("a port is offered to it", Some(why), None),
    }
}

fn grants(tap: &mut Tap, peer: DomId) {
    let mut size = QuerySize { dom: peer, ..Default::default() };
    let answer = raw::grant(GrantOp::QuerySize, &mut size, |size| size.status);
    tap.is("ask for its table's size", answer, Ok(GrantStatus::PermissionDenied));
    let mut list = [0u64; 1];
    let frame_list = GuestHandle(list.as_mut_ptr().expose_provenance() as u64);
    let mut setup = SetupTable { dom: peer, nr_frames: 1, frame_list, ..Default::default() };
    let answer = raw::grant(GrantOp::SetupTable, &mut setup, |setup| setup.status);
    tap.is("size its table", answer, Ok(GrantStatus::PermissionDenied));
    let mut frames = GetStatusFrames { dom: peer, ..Default::default() };
    let answer = raw::grant(GrantOp::GetStatusFrames, &mut frames, |it| it.status);
    tap.is("ask for its status frames", answer, Ok(GrantStatus::PermissionDenied));
    let mut version = [GetVersion { dom: peer, ..Default::default() }];
    let answer = raw::grants(u64::from(GrantOp::GetVersion.number()), &mut version);
    tap.is("ask for its table's version", answer, Err(Errno::Eperm));

    for gref in [0, 8, 511] {
        let flags = MapFlags::HOST_MAP.bits();
        let mut map =
            MapGrantRef { host_addr: FREE, flags, gref: GrantRef(gref), dom: peer, ..Default::default() };
        let answer = raw::grant(GrantOp::MapGrantRef, &mut map, |map| map.status);
        tap.that(
            format_args!("map what it has not granted as {gref}"),
            answer.is_ok_and(|status| status != GrantStatus::Okay),
        );
    }
    let page = Frame::boxed();
    let own = CopyPtr {
        ref_or_gfn: (core::ptr::from_ref(&*page).expose_provenance() / PAGE_SIZE) as u64,
        domid: DomId::SELF,
        ..Default::default()
    };
    let theirs = CopyPtr { ref_or_gfn: THEIR_FRAME, domid: peer, ..Default::default() };
    for (what, source, dest) in [("read its memory", theirs, own), ("write its memory", own, theirs)] {
        let mut copy = GrantCopy { source, dest, len: 64, ..Default::default() };
        let answer = raw::grant(GrantOp::Copy, &mut copy, |copy| copy.status);
        tap.is(what, answer, Ok(GrantStatus::PermissionDenied));
    }
    let reference = CopyPtr { ref_or_gfn: 8, domid: peer, ..Default::default() };
    let flags = CopyFlags::SOURCE_GREF.bits();
    let mut copy = GrantCopy { source: reference, dest: own, len: 64, flags, ..Default::default() };
    let answer = raw::grant(GrantOp::Copy, &mut copy, |copy| copy.status);
    tap.that("copy what it has not granted", answer.is_ok_and(|status| status != GrantStatus::Okay));
    tap.that(
        "not a byte has come",
        page.words().iter().all(|word| word.load(core::sync::atomic::Ordering::Relaxed) == 0),
    );
}

fn memory(tap: &mut Tap, peer: DomId) {
    let call = |op: MemoryOp| (Hypercall::MemoryOp, u64::from(op.number()));
    let (memory, add) = call(MemoryOp::AddToPhysmap);
    for space in [MapSpace::SharedInfo, MapSpace::GrantTable] {
        let gpfn = FREE / PAGE_SIZE as u64;
        let mut place = AddToPhysmap { domid: peer, space: space.number(), gpfn, ..Default::default() };
        tap.is(
            format_args!("place pages of {space:?} in its memory"),
            raw::with(memory, add, &mut place),
            Err(Errno::Eperm),
        );
    }
    let (memory, add) = call(MemoryOp::AddToPhysmapBatch);
    let mut batch = AddToPhysmapBatch { domid: peer, space: 1, size: 1, ..Default::default() };
    tap.is("place many in its memory", raw::with(memory, add, &mut batch), Err(Errno::Eperm));
    let mut topology = VnumaTopology { domid: peer, ..Default::default() };
    let (memory, vnuma) = call(MemoryOp::GetVnumainfo);
    tap.is("ask for its nodes", raw::with(memory, vnuma, &mut topology), Err(Errno::Eperm));
    let mut resource = AcquireResource { domid: peer, kind: 1, nr_frames: 1, ..Default::default() };
    let (memory, acquire) = call(MemoryOp::AcquireResource);
    tap.is("map its grant table", raw::with(memory, acquire, &mut resource), Err(Errno::Eperm));
    let one = Reservation { nr_extents: 1, domid: peer, ..Default::default() };
    let (memory, exchange) = call(MemoryOp::Exchange);
    let mut argument = MemoryExchange { input: one, output: one, nr_exchanged: 0 };
    tap.is("exchange its pages", raw::with(memory, exchange, &mut argument), Err(Errno::Eperm));
    let (memory, claim) = call(MemoryOp::ClaimPages);
    tap.is("claim pages for it", raw::with(memory, claim, &mut one.clone()), Err(Errno::Eperm));
    let (memory, remove) = call(MemoryOp::RemoveFromPhysmap);
    let mut take = RemoveFromPhysmap { domid: peer, pad: [0; 3], gpfn: THEIR_FRAME };
    tap.is("take its pages away", raw::with(memory, remove, &mut take), Err(Errno::Eperm));
    for op in [MemoryOp::CurrentReservation, MemoryOp::MaximumReservation, MemoryOp::MaximumGpfn] {
        let (memory, ask) = call(op);
        tap.is(
            format_args!("ask how much it has by {op:?}"),
            raw::with(memory, ask, &mut peer.clone()),
            Err(Errno::Eperm),
        );
    }
    for op in [MemoryOp::DecreaseReservation, MemoryOp::PopulatePhysmap] {
        let mut gfns = [THEIR_FRAME];
        let (memory, change) = call(op);
        let mut argument = Reservation {
            extent_start: GuestHandle(gfns.as_mut_ptr().expose_provenance() as u64),
            nr_extents: 1,
            domid: peer,
            ..Default::default()
        };
        // Refused, told as no extent done.
        tap.is(
            format_args!("change how much it has by {op:?}"),
            raw::with(memory, change, &mut argument),
            Ok(0),
        );
    }
}
