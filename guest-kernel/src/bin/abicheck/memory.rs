//! `memory_op`.
extern crate alloc;
use alloc::boxed::Box;

use guest_kernel::frame::Frame;
use pv_abi::memory::{AddToPhysmap, MapSpace, MemoryOp, RemoveFromPhysmap, Reservation};
use pv_abi::{DomId, Errno, GuestHandle, Hypercall, PAGE_SIZE};

use super::raw::{Answer, NOBODY, NOWHERE, with, without};
use super::tap::Tap;

fn op(op: MemoryOp) -> u64 {
    u64::from(op.number())
}

pub(crate) fn check(tap: &mut Tap) {
    place(tap);
    sizes(tap);
    reservation(tap);
    for (what, which) in [
        ("add_to_physmap", MemoryOp::AddToPhysmap),
        ("remove_from_physmap", MemoryOp::RemoveFromPhysmap),
        ("current_reservation", MemoryOp::CurrentReservation),
        ("add_to_physmap_batch", MemoryOp::AddToPhysmapBatch),
    ] {
        tap.is(
            format_args!("a bad address for {what}"),
            without(Hypercall::MemoryOp, op(which)),
            Err(Errno::Efault),
        );
    }
    for (what, which) in [
        ("populate_physmap", MemoryOp::PopulatePhysmap),
        ("decrease_reservation", MemoryOp::DecreaseReservation),
    ] {
        tap.is(
            format_args!("nothing done with a bad address by {what}"),
            without(Hypercall::MemoryOp, op(which)),
            Ok(0),
        );
    }
    tap.is("an unknown operation", without(Hypercall::MemoryOp, 63), Err(Errno::Enosys));
}

fn place(tap: &mut Tap) {
    let add = |domid, space: u32, idx| {
        let mut argument = AddToPhysmap { domid, size: 0, space, idx, gpfn: 0x38fff };
        with(Hypercall::MemoryOp, op(MemoryOp::AddToPhysmap), &mut argument)
    };
    let grants = MapSpace::GrantTable.number();
    tap.is("add_to_physmap for nobody", add(NOBODY, grants, 0), Err(Errno::Esrch));
    tap.is(
        "add_to_physmap of a grant frame beyond the limit",
        add(DomId::SELF, grants, 64),
        Err(Errno::Einval),
    );
    tap.is(
        "add_to_physmap of the second page of shared info",
        add(DomId::SELF, MapSpace::SharedInfo.number(), 1),
        Err(Errno::Einval),
    );
    tap.is(
        "add_to_physmap of own frames",
        add(DomId::SELF, MapSpace::Gmfn.number(), 0x40000),
        Err(Errno::Enosys),
    );
    tap.is("add_to_physmap of a space that cannot be", add(DomId::SELF, 99, 0), Err(Errno::Enosys));
    tap.is("a grant frame is not placed twice", add(DomId::SELF, grants, 0), Err(Errno::Ebusy));
    tap.is("another grant frame is placed", add(DomId::SELF, grants, 1), Ok(0));
    let remove = |domid, gpfn| {
        let mut argument = RemoveFromPhysmap { domid, pad: [0; 3], gpfn };
        with(Hypercall::MemoryOp, op(MemoryOp::RemoveFromPhysmap), &mut argument)
    };
    tap.is("and taken away", remove(DomId::SELF, 0x38fff), Ok(0));
    tap.is("once", remove(DomId::SELF, 0x38fff), Err(Errno::Enoent));
    tap.is("then it can be placed again", add(DomId::SELF, grants, 1), Ok(0));
    tap.is("and taken away again", remove(DomId::SELF, 0x38fff), Ok(0));
    tap.is("remove_from_physmap for nobody", remove(NOBODY, 0x38fff), Err(Errno::Esrch));
}

fn sizes(tap: &mut Tap) {
    let ask = |which, mut dom| with::<DomId>(Hypercall::MemoryOp, op(which), &mut dom);
    let (current, most) =
        (ask(MemoryOp::CurrentReservation, DomId::SELF), ask(MemoryOp::MaximumReservation, DomId::SELF));
    tap.that(
        "a domain has memory, and not more than it may",
        current.is_ok_and(|has| most.is_ok_and(|may| has <= may)),
    );
    tap.is(
        "maximum_gpfn lies in RAM or above",
        ask(MemoryOp::MaximumGpfn, DomId::SELF).map(|gfn| gfn >= 0x40000),
        Ok(true),
    );
    tap.is("maximum_ram_page is told", ask(MemoryOp::MaximumRamPage, DomId::SELF).map(drop), Ok(()));
    tap.is("current_reservation of nobody", ask(MemoryOp::CurrentReservation, NOBODY), Err(Errno::Esrch));
}

fn change(which: MemoryOp, domid: DomId, gfns: &mut [u64], extent_order: u32) -> Answer {
    let mut argument = Reservation {
        extent_start: GuestHandle(gfns.as_mut_ptr().expose_provenance() as u64),
        nr_extents: gfns.len() as u64,
        extent_order,
        mem_flags: 0,
        domid,
        pad: [0; 3],
    };
    with(Hypercall::MemoryOp, op(which), &mut argument)
}

fn reservation(tap: &mut Tap) {
    // Leaked: after this the pages are not the heap's any more.
    let frame: &'static Frame = Box::leak(Frame::boxed());
    frame.write(b"mine");
    let mut gfns = [(core::ptr::from_ref(frame).expose_provenance() / PAGE_SIZE) as u64];
    tap.is("decrease_reservation", change(MemoryOp::DecreaseReservation, DomId::SELF, &mut gfns, 0), Ok(1));
    tap.is("of a page that is gone", change(MemoryOp::DecreaseReservation, DomId::SELF, &mut gfns, 0), Ok(0));
    tap.is("populate_physmap", change(MemoryOp::PopulatePhysmap, DomId::SELF, &mut gfns, 0), Ok(1));
    // Not judged: Xen gives a live domain's page back to it unscrubbed.
    let mut bytes = [0xff; 4];
    frame.write(b"back");
    frame.read(&mut bytes);
    tap.is("the new page works", bytes, *b"back");
    let mut full = [0x38ffe];
    tap.is(
        "populate_physmap beyond what the domain may have",
        change(MemoryOp::PopulatePhysmap, DomId::SELF, &mut full, 0),
        Ok(0),
    );
    tap.is(
        "decrease_reservation of nobody",
        change(MemoryOp::DecreaseReservation, NOBODY, &mut gfns, 0),
        Ok(0),
    );
    let mut bad = Reservation {
        extent_start: GuestHandle(NOWHERE),
        nr_extents: 1,
        domid: DomId::SELF,
        ..Default::default()
    };
    tap.is(
        "frames at a bad address",
        with(Hypercall::MemoryOp, op(MemoryOp::DecreaseReservation), &mut bad),
        Ok(0),
    );
}
