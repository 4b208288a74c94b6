//! The pages that the hypervisor shares with a domain (shared info, frames of its grant table) used as its own memory: copied, granted, registered,
//! given back.
extern crate alloc;
use core::sync::atomic::Ordering;

use guest_kernel::event::own_id;
use guest_kernel::frame::Frame;
use pv_abi::grant::{CopyPtr, GrantCopy, GrantOp, GrantStatus};
use pv_abi::layout::GRANT_TABLE_BASE;
use pv_abi::memory::{AddToPhysmap, MapSpace, MemoryOp, RemoveFromPhysmap, Reservation};
use pv_abi::{DomId, Errno, GrantRef, GuestHandle};

use super::aide::{Aid, map_at, permit, shared_gfn, unmap_at};
use super::domains::Partner;
use super::limits_memory::memory_op;
use super::partner::Command;
use super::raw::{self, FREE, address, gfn};
use super::tap::Tap;

/// Where a frame of the grant table is placed that holds no entry of this guest's, and where it is mapped a second time.
const PLACE: u64 = FREE - 45;
const SECOND: u64 = FREE - 46;
/// Its index.
const FRAME: u64 = 57;
/// An entry behind all that this guest gives out.
const GREF: u32 = 410;

pub(crate) fn check(tap: &mut Tap) {
    let (Ok(own), Some(shared)) = (own_id(), shared_gfn()) else { return tap.that("the shared page", false) };
    let place = || {
        let space = MapSpace::GrantTable.number();
        let mut at =
            AddToPhysmap { domid: DomId::SELF, space, idx: FRAME, gpfn: PLACE, ..Default::default() };
        memory_op(MemoryOp::AddToPhysmap, 0, &mut at)
    };
    tap.is("a frame of the grant table is placed", place(), Ok(0));
    for (what, page) in [("the shared-info page", shared), ("a frame of the grant table", PLACE)] {
        // Words that neither is used for.
        let at = (page << 12, 1000);
        let other = Frame::boxed();
        other.words()[1000].store(0xa110, Ordering::Relaxed);
        let to = copy(gfn(&other), page);
        tap.is(format_args!("copy to {what}"), (to, raw::word(at.0, at.1)), (Ok(GrantStatus::Okay), 0xa110));
        raw::store(at.0, at.1, 0xf503);
        let from = copy(page, gfn(&other));
        let came = other.words()[1000].load(Ordering::Relaxed);
        tap.is(format_args!("copy from {what}"), (from, came), (Ok(GrantStatus::Okay), 0xf503));
        permit(GREF, u32::from(own.0), u32::try_from(page).unwrap_or(0));
        let (mapped, handle) = map_at(own, GrantRef(GREF), SECOND);
        let there = if mapped == GrantStatus::Okay { raw::word(SECOND << 12, 1000) } else { 0 };
        tap.is(
            format_args!("map_grant_ref of {what}, and unmap_grant_ref"),
            (mapped, there, unmap_at(SECOND, handle)),
            (GrantStatus::Okay, 0xf503, GrantStatus::Okay),
        );
        raw::store(GRANT_TABLE_BASE, GREF as usize * 2, 0);
        raw::store(at.0, at.1, 0);
    }
    permit(GREF, u32::from(own.0), u32::try_from(FREE - 60).unwrap_or(0));
    tap.is(
        "map_grant_ref of a page that is not there",
        map_at(own, GrantRef(GREF), SECOND).0,
        GrantStatus::BadPage,
    );
    raw::store(GRANT_TABLE_BASE, GREF as usize * 2, 0);
    let has = || memory_op(MemoryOp::CurrentReservation, 0, &mut DomId::SELF.clone());
    let before = has();
    let mut list = [PLACE];
    let extent_start = GuestHandle(address(&mut list));
    let mut asked = Reservation { extent_start, nr_extents: 1, domid: DomId::SELF, ..Default::default() };
    let answer = memory_op(MemoryOp::DecreaseReservation, 0, &mut asked);
    tap.is("decrease_reservation of a frame of the grant table", answer, Ok(1));
    tap.is("it was not counted as the domain's", has(), before);
    let mut take = RemoveFromPhysmap { domid: DomId::SELF, pad: [0; 3], gpfn: PLACE };
    let mut removed = || memory_op(MemoryOp::RemoveFromPhysmap, 0, &mut take);
    tap.is("it is not there any more", removed(), Err(Errno::Enoent));
    // On Xen it is lost.
    tap.is("a frame of the grant table that was given back is placed again", place(), Err(Errno::Ebusy));
    let _ = removed();
}

fn copy(from: u64, to: u64) -> Result<GrantStatus, Errno> {
    let end = |gfn| CopyPtr { ref_or_gfn: gfn, domid: DomId::SELF, offset: 4000, pad: 0 };
    let mut copy = GrantCopy { source: end(from), dest: end(to), len: 4, ..Default::default() };
    raw::grant(GrantOp::Copy, &mut copy, |copy| copy.status)
}

/// The same of another domain's: what it registered there, and what it granted. Its pages are what its end, which comes later, has to take back.
pub(crate) fn of_another(tap: &mut Tap, third: &Partner) {
    // It has a table from its first grant on.
    let (index, _) = third.grant(third.own, 0);
    let [shared, table, again, _] = third.ask_aid(Aid::Infos, &[]);
    tap.is("register_vcpu_info in the shared-info page", shared, 0);
    tap.is("register_vcpu_info in a frame of the grant table", table, 0);
    let ebusy = Errno::Ebusy.value().unsigned_abs();
    tap.is("register_vcpu_info in the shared-info page a second time", again, ebusy);
    let own = u32::from(third.own.0);
    for (what, which) in [("a frame of its grant table", 0), ("its shared-info page", 1)] {
        let gref = third.ask_aid(Aid::GrantOwn, &[own, which])[0];
        let (mapped, handle) = map_at(third.id, GrantRef(gref), SECOND);
        tap.is(
            format_args!("map_grant_ref of another domain's page that is {what}"),
            mapped,
            GrantStatus::Okay,
        );
        if mapped == GrantStatus::Okay {
            let _ = unmap_at(SECOND, handle);
        }
        let here = Frame::boxed();
        let source = CopyPtr { ref_or_gfn: u64::from(gref), domid: third.id, offset: 0, pad: 0 };
        let dest = CopyPtr { ref_or_gfn: gfn(&here), domid: DomId::SELF, offset: 0, pad: 0 };
        let flags = pv_abi::grant::CopyFlags::SOURCE_GREF.bits();
        let mut copy = GrantCopy { source, dest, len: 64, flags, ..Default::default() };
        tap.is(
            format_args!("copy by reference from another domain's page that is {what}"),
            raw::grant(GrantOp::Copy, &mut copy, |copy| copy.status),
            Ok(GrantStatus::Okay),
        );
        let _ = third.ask_aid(Aid::GrantOwn, &[own, which, 1]);
    }
    let _ = third.ask(Command::End, &[index]);
}
