//! Boundary values of `memory_op`: the last that is taken and the first that is not. Each case begins with the name of its sub-call.
extern crate alloc;
use alloc::boxed::Box;

use guest_kernel::event::own_id;
use guest_kernel::frame::Frame;
use pv_abi::memory::{
    AddToPhysmap, AddToPhysmapBatch, MAX_ORDER, MEMOP_EXTENT_SHIFT, MapSpace, MemoryExchange, MemoryOp,
    RemoveFromPhysmap, Reservation, ReservedDeviceMap,
};
use pv_abi::{DomId, Errno, GuestHandle, Hypercall};

use super::raw::{self, FREE, NOWHERE, at, call, gfn};
use super::tap::Tap;

pub(crate) fn memory_op(
    op: MemoryOp,
    progress: u64,
    argument: &mut (impl zerocopy::IntoBytes + zerocopy::FromBytes),
) -> raw::Answer {
    at(Hypercall::MemoryOp, u64::from(op.number()) | progress << MEMOP_EXTENT_SHIFT, argument)
}

#[expect(clippy::too_many_lines, reason = "a list of cases")]
pub(crate) fn check(tap: &mut Tap) {
    // Leaked: it leaves the heap for a while, and the cases must not end before it is back.
    let frame: &'static Frame = Box::leak(Frame::boxed());
    let mut gfns = [gfn(frame)];
    let list = GuestHandle(gfns.as_mut_ptr().expose_provenance() as u64);
    let one = Reservation { extent_start: list, nr_extents: 1, domid: DomId::SELF, ..Default::default() };
    let most = u64::from(u32::MAX >> MEMOP_EXTENT_SHIFT);
    for op in [MemoryOp::IncreaseReservation, MemoryOp::DecreaseReservation, MemoryOp::PopulatePhysmap] {
        let name = match op {
            MemoryOp::IncreaseReservation => "memory_op.increase_reservation",
            MemoryOp::DecreaseReservation => "memory_op.decrease_reservation",
            _ => "memory_op.populate_physmap",
        };
        for (what, progress, argument, expected) in [
            ("of no extent", 0, Reservation { nr_extents: 0, ..one }, 0),
            ("of more extents than progress can tell", 0, Reservation { nr_extents: most + 1, ..one }, 0),
            ("begun at its end", 1, one, 1),
            ("begun beyond it", most, one, most),
            ("of an order that is too large", 0, Reservation { extent_order: MAX_ORDER + 1, ..one }, 0),
            ("of an order beyond all", 0, Reservation { extent_order: 64, ..one }, 0),
            ("below address bit 12", 0, Reservation { mem_flags: 12, ..one }, 0),
            ("on another node exactly", 0, Reservation { mem_flags: 1 << 17 | 2 << 8, ..one }, 0),
            ("of whom there is not", 0, Reservation { domid: raw::NOBODY, ..one }, 0),
        ] {
            let answer = memory_op(op, progress, &mut argument.clone());
            tap.is(format_args!("{name} {what}"), answer, Ok(expected));
        }
    }
    tap.is(
        "memory_op.decrease_reservation of order 9 that is not all there",
        memory_op(
            MemoryOp::DecreaseReservation,
            0,
            &mut Reservation {
                extent_start: GuestHandle(raw::address(&mut [0x39000u64])),
                extent_order: 9,
                ..one
            },
        ),
        Ok(0),
    );
    let ask = |op, progress, domid: DomId| memory_op(op, progress, &mut { domid });
    let has = ask(MemoryOp::CurrentReservation, 0, DomId::SELF);
    tap.is(
        "memory_op.decrease_reservation of one page",
        memory_op(MemoryOp::DecreaseReservation, 0, &mut one.clone()),
        Ok(1),
    );
    tap.is(
        "memory_op.current_reservation is one less",
        ask(MemoryOp::CurrentReservation, 0, DomId::SELF),
        has.map(|has| has - 1),
    );
    tap.is(
        "memory_op.populate_physmap on demand is not for oneself",
        memory_op(MemoryOp::PopulatePhysmap, 0, &mut Reservation { mem_flags: 1 << 16, ..one }),
        Ok(0),
    );
    tap.is(
        "memory_op.populate_physmap with as many address bits as there are",
        memory_op(MemoryOp::PopulatePhysmap, 0, &mut Reservation { mem_flags: 40, ..one }),
        Ok(1),
    );
    tap.is(
        "memory_op.populate_physmap above the guest's addresses",
        memory_op(
            MemoryOp::PopulatePhysmap,
            0,
            &mut Reservation { extent_start: GuestHandle(raw::address(&mut [1u64 << 36])), ..one },
        ),
        Ok(0),
    );
    tap.is(
        "memory_op.current_reservation is as before",
        ask(MemoryOp::CurrentReservation, 0, DomId::SELF),
        has,
    );
    tap.is(
        "memory_op.maximum_reservation is not less",
        ask(MemoryOp::MaximumReservation, 0, DomId::SELF).map(|most| has.is_ok_and(|has| has <= most)),
        Ok(true),
    );
    for op in [MemoryOp::CurrentReservation, MemoryOp::MaximumReservation, MemoryOp::MaximumGpfn] {
        let name = match op {
            MemoryOp::CurrentReservation => "memory_op.current_reservation",
            MemoryOp::MaximumReservation => "memory_op.maximum_reservation",
            _ => "memory_op.maximum_gpfn",
        };
        tap.is(format_args!("{name} with progress"), ask(op, 1, DomId::SELF), Err(Errno::Einval));
        tap.is(format_args!("{name} of whom there is not"), ask(op, 0, DomId(0)), Err(Errno::Esrch));
        let at_nowhere = call(u64::from(Hypercall::MemoryOp.number()), &[u64::from(op.number()), NOWHERE]);
        tap.is(format_args!("{name} at a bad address"), at_nowhere, Err(Errno::Efault));
    }
    let bare = |op: MemoryOp, progress: u64| {
        call(
            u64::from(Hypercall::MemoryOp.number()),
            &[u64::from(op.number()) | progress << MEMOP_EXTENT_SHIFT, NOWHERE],
        )
    };
    tap.is("memory_op.maximum_ram_page with progress", bare(MemoryOp::MaximumRamPage, 1), Err(Errno::Einval));
    for op in [MemoryOp::SharingFreedPages, MemoryOp::SharingSharedPages] {
        tap.is(format_args!("memory_op: {op:?}: nothing is shared"), bare(op, 0), Ok(0));
        tap.is(format_args!("memory_op: {op:?} takes no progress"), bare(op, 1), Err(Errno::Enosys));
    }
    placing(tap);
    refused(tap, one);
}

fn placing(tap: &mut Tap) {
    let add =
        |space: u32, idx, gpfn| AddToPhysmap { domid: DomId::SELF, space, idx, gpfn, ..Default::default() };
    let (grants, shared, foreign, devices) =
        (MapSpace::GrantTable.number(), 0, MapSpace::GmfnForeign.number(), MapSpace::DevMmio.number());
    let range = MapSpace::GmfnRange.number();
    for (what, progress, mut argument, expected) in [
        ("of the last grant frame", 0, add(grants, 63, FREE), Ok(0)),
        ("of the one behind it", 0, add(grants, 64, FREE), Err(Errno::Einval)),
        ("of the last there can be", 0, add(grants, u64::from(u32::MAX), FREE), Err(Errno::Einval)),
        ("at the last guest frame there can be", 0, add(grants, 62, u64::MAX), Err(Errno::Einval)),
        ("above the guest's addresses", 0, add(grants, 62, 1 << 36), Err(Errno::Einval)),
        ("of shared info's second page", 0, add(shared, 1, FREE), Err(Errno::Einval)),
        ("of another's frame", 0, add(foreign, 0, FREE), Err(Errno::Enosys)),
        ("of a device", 0, add(devices, 0x9000, FREE), Err(Errno::Eacces)),
        ("with progress beyond 16 bits", 1 << 16, add(grants, 0, FREE), Err(Errno::Edom)),
        ("in a space that there is not", 0, add(6, 0, FREE), Err(Errno::Enosys)),
        ("of a range, begun beyond its end", 1, add(range, 0, FREE), Err(Errno::Eilseq)),
        (
            "of a range beyond the last guest frame there can be",
            0,
            AddToPhysmap { size: 2, ..add(range, 0, u64::MAX - 1) },
            Err(Errno::Eoverflow),
        ),
    ] {
        tap.is(
            format_args!("memory_op.add_to_physmap {what}"),
            memory_op(MemoryOp::AddToPhysmap, progress, &mut argument),
            expected,
        );
    }
    let remove = |gpfn| RemoveFromPhysmap { domid: DomId::SELF, pad: [0; 3], gpfn };
    for (what, progress, mut argument, expected) in [
        ("with progress", 1, remove(FREE), Err(Errno::Einval)),
        ("of what is there", 0, remove(FREE), Ok(0)),
        ("of what is not", 0, remove(FREE), Err(Errno::Enoent)),
        ("above the guest's addresses", 0, remove(1 << 36), Err(Errno::Enoent)),
        ("of the last guest frame there can be", 0, remove(u64::MAX), Err(Errno::Enoent)),
    ] {
        tap.is(
            format_args!("memory_op.remove_from_physmap {what}"),
            memory_op(MemoryOp::RemoveFromPhysmap, progress, &mut argument),
            expected,
        );
    }
    let (mut idxs, mut gpfns, mut errs) = ([63u64, 64, 63], [FREE, FREE - 1, FREE], [99i32; 3]);
    let batch = AddToPhysmapBatch {
        domid: DomId::SELF,
        space: 1,
        size: 3,
        idxs: GuestHandle(raw::address(&mut idxs)),
        gpfns: GuestHandle(raw::address(&mut gpfns)),
        errs: GuestHandle(raw::address(&mut errs)),
        ..Default::default()
    };
    for (what, progress, mut argument, expected) in [
        ("of none", 0, AddToPhysmapBatch { size: 0, ..batch }, Ok(0)),
        ("of three", 0, batch, Ok(0)),
        ("begun at its end", 3, batch, Err(Errno::Eilseq)),
        ("begun beyond 16 bits", 1 << 16, batch, Err(Errno::Edom)),
        ("of ranges", 0, AddToPhysmapBatch { space: 3, ..batch }, Err(Errno::Eopnotsupp)),
        ("of devices", 0, AddToPhysmapBatch { space: 5, ..batch }, Err(Errno::Eacces)),
        ("for whom there is not", 0, AddToPhysmapBatch { domid: raw::NOBODY, ..batch }, Err(Errno::Esrch)),
        (
            "with indexes nowhere",
            0,
            AddToPhysmapBatch { idxs: GuestHandle(NOWHERE), ..batch },
            Err(Errno::Efault),
        ),
        (
            "with guest frames nowhere",
            0,
            AddToPhysmapBatch { gpfns: GuestHandle(NOWHERE), ..batch },
            Err(Errno::Efault),
        ),
    ] {
        tap.is(
            format_args!("memory_op.add_to_physmap_batch {what}"),
            memory_op(MemoryOp::AddToPhysmapBatch, progress, &mut argument),
            expected,
        );
    }
    let (einval, ebusy) = (-Errno::Einval.value(), -Errno::Ebusy.value());
    tap.is("memory_op.add_to_physmap_batch tells each its own", errs, [0, einval, ebusy]);
    let _ = memory_op(MemoryOp::RemoveFromPhysmap, 0, &mut remove(FREE));
    let (mut last, mut idx) = ([u64::MAX], [0u64]);
    let mut argument = AddToPhysmapBatch {
        size: 1,
        idxs: GuestHandle(raw::address(&mut idx)),
        gpfns: GuestHandle(raw::address(&mut last)),
        ..batch
    };
    tap.is(
        "memory_op.add_to_physmap_batch at the last guest frame there can be",
        memory_op(MemoryOp::AddToPhysmapBatch, 0, &mut argument),
        Err(Errno::Einval),
    );
}

#[expect(clippy::too_many_lines, reason = "a list of cases")]
fn refused(tap: &mut Tap, one: Reservation) {
    let exchange = MemoryExchange { input: one, output: one, nr_exchanged: 0 };
    let (order, nowhere) = (|order| Reservation { extent_order: order, ..one }, GuestHandle(NOWHERE));
    let none = Reservation { nr_extents: 0, ..one };
    for (what, progress, mut argument, expected) in [
        ("of none", 0, MemoryExchange { input: none, output: none, ..exchange }, Ok(0)),
        ("that is done", 0, MemoryExchange { nr_exchanged: 1, ..exchange }, Ok(0)),
        ("of a page", 0, exchange, Err(Errno::Eopnotsupp)),
        ("with progress", 1, exchange, Err(Errno::Einval)),
        (
            "of an order that is too large",
            0,
            MemoryExchange { input: order(MAX_ORDER + 1), ..exchange },
            Err(Errno::Eperm),
        ),
        (
            "for such an order",
            0,
            MemoryExchange { output: order(MAX_ORDER + 1), ..exchange },
            Err(Errno::Eperm),
        ),
        ("for more than is given", 0, MemoryExchange { output: order(1), ..exchange }, Err(Errno::Einval)),
        ("beyond its end", 0, MemoryExchange { nr_exchanged: 2, ..exchange }, Err(Errno::Einval)),
        (
            "of one domain's for another's",
            0,
            MemoryExchange { output: Reservation { domid: raw::NOBODY, ..one }, ..exchange },
            Err(Errno::Einval),
        ),
        (
            "of nobody's",
            0,
            MemoryExchange {
                input: Reservation { domid: raw::NOBODY, ..one },
                output: Reservation { domid: raw::NOBODY, ..one },
                ..exchange
            },
            Err(Errno::Esrch),
        ),
        (
            "for another node exactly",
            0,
            MemoryExchange { output: Reservation { mem_flags: 1 << 17 | 2 << 8, ..one }, ..exchange },
            Err(Errno::Einval),
        ),
        (
            "of pages in a list nowhere",
            0,
            MemoryExchange { input: Reservation { extent_start: nowhere, ..one }, ..exchange },
            Err(Errno::Efault),
        ),
        (
            "of a page that is not there",
            0,
            MemoryExchange {
                input: Reservation { extent_start: GuestHandle(raw::address(&mut [FREE])), ..one },
                ..exchange
            },
            Err(Errno::Einval),
        ),
    ] {
        tap.is(
            format_args!("memory_op.exchange {what}"),
            memory_op(MemoryOp::Exchange, progress, &mut argument),
            expected,
        );
    }
    let claim = Reservation { extent_start: GuestHandle(0), domid: own_id().unwrap_or(DomId::SELF), ..one };
    for (what, progress, mut argument, expected) in [
        ("of one's own", 0, claim, Err(Errno::Eperm)),
        ("by DOMID_SELF", 0, Reservation { domid: DomId::SELF, ..claim }, Err(Errno::Einval)),
        ("with a list", 0, one, Err(Errno::Einval)),
        ("of an order", 0, Reservation { extent_order: 1, ..claim }, Err(Errno::Einval)),
        ("with flags", 0, Reservation { mem_flags: 1, ..claim }, Err(Errno::Einval)),
        ("with progress", 1, claim, Err(Errno::Einval)),
    ] {
        tap.is(
            format_args!("memory_op.claim_pages {what}"),
            memory_op(MemoryOp::ClaimPages, progress, &mut argument),
            expected,
        );
    }
    let topology = |domid: DomId, pad: u64| [u64::from(domid.0) | pad << 16, 0, 0, 0, 0];
    for (what, progress, mut argument, expected) in [
        ("of one's own", 0, topology(DomId::SELF, 0), Err(Errno::Eopnotsupp)),
        ("of nobody's", 0, topology(raw::NOBODY, 0), Err(Errno::Esrch)),
        ("with something in its padding", 0, topology(DomId::SELF, 1), Err(Errno::Einval)),
        ("with progress", 1, topology(DomId::SELF, 0), Err(Errno::Einval)),
    ] {
        tap.is(
            format_args!("memory_op.get_vnumainfo {what}"),
            memory_op(MemoryOp::GetVnumainfo, progress, &mut argument),
            expected,
        );
    }
    let map = ReservedDeviceMap { flags: 1, nr_entries: 4, ..Default::default() };
    let mut told = map;
    tap.is(
        "memory_op.reserved_device_memory_map of all",
        (memory_op(MemoryOp::ReservedDeviceMemoryMap, 0, &mut told), told.nr_entries),
        (Ok(0), 0),
    );
    tap.is(
        "memory_op.reserved_device_memory_map with other flags",
        memory_op(MemoryOp::ReservedDeviceMemoryMap, 0, &mut ReservedDeviceMap { flags: 2, ..map }),
        Err(Errno::Einval),
    );
    tap.is(
        "memory_op.reserved_device_memory_map with progress",
        memory_op(MemoryOp::ReservedDeviceMemoryMap, 1, &mut map.clone()),
        Err(Errno::Einval),
    );
    let resource = |domid: DomId, pad: u64, frame| [u64::from(domid.0) | 1 << 16, 1 | pad << 32, frame, 0];
    for (what, mut argument, expected) in [
        ("of one's own", resource(own_id().unwrap_or(raw::NOBODY), 0, 0), Err(Errno::Eperm)),
        ("by DOMID_SELF", resource(DomId::SELF, 0, 0), Err(Errno::Esrch)),
        ("of nobody's", resource(raw::NOBODY, 0, 0), Err(Errno::Esrch)),
        ("with something in its padding", resource(DomId::SELF, 1, 0), Err(Errno::Einval)),
        ("beyond 32 bits of frames", resource(DomId::SELF, 0, u64::from(u32::MAX)), Err(Errno::Einval)),
    ] {
        tap.is(
            format_args!("memory_op.acquire_resource {what}"),
            memory_op(MemoryOp::AcquireResource, 0, &mut argument),
            expected,
        );
    }
    for op in [
        MemoryOp::Exchange,
        MemoryOp::ClaimPages,
        MemoryOp::GetVnumainfo,
        MemoryOp::ReservedDeviceMemoryMap,
        MemoryOp::AcquireResource,
    ] {
        tap.is(
            format_args!("memory_op: {op:?} at a bad address"),
            raw::without(Hypercall::MemoryOp, u64::from(op.number())),
            Err(Errno::Efault),
        );
    }
}
