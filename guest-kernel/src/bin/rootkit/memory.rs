//! Other pages in the place of those that checked entries name.
use alloc::format;

use guest_kernel::entry::Access;
use guest_kernel::frame::Frame;
use guest_kernel::grant::Grant;
use guest_kernel::hypercall;
use guest_kernel::pv::{self, Page};
use guest_kernel::space::{self, Entry, PAGE, Rights};
use pv_abi::grant::{GrantOp, MapFlags, MapGrantRef, UnmapGrantRef};
use pv_abi::memory::{AddToPhysmap, MapSpace, MemoryExchange, MemoryOp, RemoveFromPhysmap, Reservation};
use pv_abi::multicall::MulticallEntry;
use pv_abi::paging::MmuUpdate;
use pv_abi::{DomId, Errno, GuestHandle, Hypercall};

use super::Came;
use super::{Tap, Target, WRITE_FAULTS, peek, raw, store};
use guest_kernel::attempt::class;

/// Whether a page is what it was.
fn same(page: u64, before: u64) -> bool {
    let came = store(page, !before);
    peek(page) == before
        && (came == WRITE_FAULTS || came == Came::Fault(class::DATA_ABORT, super::PERMISSION))
}

pub(super) fn reserve(op: MemoryOp, page: u64) {
    let number = page / PAGE;
    let argument = Reservation {
        extent_start: GuestHandle((&raw const number).expose_provenance() as u64),
        nr_extents: 1,
        domid: DomId::SELF,
        ..Reservation::default()
    };
    let at = (&raw const argument).expose_provenance() as u64;
    // How many it did is looked at by what is there afterwards.
    let _ = raw(Hypercall::MemoryOp, [u64::from(op.number()), at, 0, 0, 0]);
}

/// Exchanges a page for another.
pub(super) fn exchange(page: u64) -> Result<(), Errno> {
    let number = page / PAGE;
    let extents = Reservation {
        extent_start: GuestHandle((&raw const number).expose_provenance() as u64),
        nr_extents: 1,
        domid: DomId::SELF,
        ..Reservation::default()
    };
    let exchange = MemoryExchange { input: extents, output: extents, ..Default::default() };
    let at = (&raw const exchange).expose_provenance() as u64;
    raw(Hypercall::MemoryOp, [u64::from(MemoryOp::Exchange.number()), at, 0, 0, 0])
}

pub(super) fn places(tap: &mut Tap, target: &Target) -> Result<(), Errno> {
    let [zero, one, two, last] = target.tables;
    let pages = [
        ("a root", zero),
        ("a table of level 1", one),
        ("a table of level 2", two),
        ("a table of level 3", last),
        ("user text", target.text),
        ("kernel text", target.kernel),
    ];
    for (what, page) in pages {
        let before = peek(page);
        reserve(MemoryOp::DecreaseReservation, page);
        tap.nothing(&format!("giving {what} back (XSA-252)"), same(page, before));
        reserve(MemoryOp::PopulatePhysmap, page);
        tap.nothing(&format!("populating where {what} is"), same(page, before));
        let got = exchange(page);
        tap.nothing(&format!("exchanging {what}"), got.is_err() && same(page, before));
        for space in [MapSpace::SharedInfo, MapSpace::GrantTable] {
            let mut add = AddToPhysmap {
                domid: DomId::SELF,
                size: 0,
                space: space.number(),
                idx: 0,
                gpfn: page / PAGE,
            };
            // SAFETY: refused, or this guest's to lose.
            let got = unsafe { hypercall::add_to_physmap(&mut add) };
            tap.nothing(&format!("{space:?} in the place of {what}"), got.is_err() && same(page, before));
        }
        let remove = RemoveFromPhysmap { domid: DomId::SELF, pad: [0; 3], gpfn: page / PAGE };
        let at = (&raw const remove).expose_provenance() as u64;
        let got = raw(Hypercall::MemoryOp, [u64::from(MemoryOp::RemoveFromPhysmap.number()), at, 0, 0, 0]);
        tap.nothing(&format!("removing {what}"), got.is_err() && same(page, before));
        let granted = Grant::new(Frame::boxed(), DomId(1), Access::ReadWrite).map_err(|_| Errno::Einval)?;
        let mut map = MapGrantRef {
            host_addr: page,
            flags: MapFlags::HOST_MAP.bits(),
            gref: granted.reference(),
            dom: DomId(1),
            ..Default::default()
        };
        // SAFETY: as above.
        let got = unsafe { hypercall::grant(GrantOp::MapGrantRef, &mut map) };
        tap.nothing(
            &format!("a grant in the place of {what}"),
            (got.is_err() || map.status != 0) && same(page, before),
        );
        let mut unmap = UnmapGrantRef { host_addr: page, handle: map.handle, ..Default::default() };
        // SAFETY: as above.
        let got = unsafe { hypercall::grant(GrantOp::UnmapGrantRef, &mut unmap) };
        tap.nothing(
            &format!("a grant unmapped where {what} is"),
            (got.is_err() || unmap.status != 0) && same(page, before),
        );
    }
    swapped(tap, target)
}

/// XSA-286: a mapping changed by address, after the table above was swapped in the same multicall.
fn swapped(tap: &mut Tap, target: &Target) -> Result<(), Errno> {
    let [.., two, last] = target.tables;
    let other = space::take_page()?;
    pv::pin(Page::Table(3), other)?;
    let va = Target::VA + 20 * PAGE;
    let entries =
        [Entry::page(target.data, Rights::Data), Entry::page(target.data, Rights::Constant)].map(Entry::bits);
    let swap = [MmuUpdate { ptr: two, val: other | 3 }];
    let by_address = |entry| MulticallEntry {
        op: u64::from(Hypercall::UpdateVaMapping.number()),
        args: [va, entry, 0, 0, 0, 0],
        ..Default::default()
    };
    let mut calls = [
        by_address(entries[0]),
        MulticallEntry {
            op: u64::from(Hypercall::MmuUpdate.number()),
            args: [swap.as_ptr().expose_provenance() as u64, 1, 0, u64::from(DomId::SELF.0), 0, 0],
            ..Default::default()
        },
        by_address(entries[1]),
    ];
    // SAFETY: what they map is this guest's to lose; nothing that it uses is there.
    let made = unsafe { hypercall::multicall(&mut calls) };
    let found = [last, other].map(|table| peek(table + 8 * 20));
    tap.nothing("a table swapped between two changes by address (XSA-286)", made.is_ok() && found == entries);
    super::update(two, last | 3)?;
    super::update(last + 8 * 20, 0)?;
    pv::unpin(other)
}
