//! Extents of more than one page: what is done of them, what is kept of one that is partly there, and what the domain has after each.
extern crate alloc;
use alloc::vec::Vec;

use guest_kernel::frame::Frame;
use pv_abi::memory::{MemoryOp, Reservation};
use pv_abi::{DomId, GuestHandle};

use super::limits_memory::memory_op;
use super::raw::{self, FREE, address, gfn};
use super::tap::Tap;

/// Pages of an extent of the largest order that a domain may name.
const LARGE: u64 = 512;
/// Beyond the guest physical addresses that there are.
const BEYOND: u64 = 1 << 36;

/// Two extents of order 9, beside each other. Leaked: not all of it comes back.
struct Room {
    pages: &'static [Frame],
    first: u64,
}

impl Room {
    fn new() -> Option<Self> {
        let pages: &'static [Frame] = Vec::leak((0..4 * LARGE).map(|_| Frame::zeroed()).collect());
        let start = gfn(pages.first()?);
        let first = start.next_multiple_of(LARGE);
        let skip = usize::try_from(first - start).ok()?;
        Some(Self { pages: pages.get(skip..)?, first })
    }

    /// A word of a page.
    fn word(&self, page: usize) -> &core::sync::atomic::AtomicU32 {
        &self.pages[page].words()[7]
    }
}

fn has() -> u64 {
    memory_op(MemoryOp::CurrentReservation, 0, &mut DomId::SELF.clone()).unwrap_or(0)
}

/// What the call answers, and by how many pages more or less the domain has.
fn change(op: MemoryOp, order: u32, gfns: &[u64]) -> (raw::Answer, i64) {
    let mut gfns = gfns.to_vec();
    let before = has();
    let mut asked = Reservation {
        extent_start: GuestHandle(address(&mut *gfns)),
        nr_extents: gfns.len() as u64,
        extent_order: order,
        domid: DomId::SELF,
        ..Default::default()
    };
    let answer = memory_op(op, 0, &mut asked);
    (answer, has().cast_signed() - before.cast_signed())
}

use core::sync::atomic::Ordering::Relaxed;
use pv_abi::memory::MemoryOp::{
    DecreaseReservation as Decrease, IncreaseReservation as Increase, PopulatePhysmap as Populate,
};

pub(crate) fn check(tap: &mut Tap) {
    let Some(room) = Room::new() else { return tap.that("room for two extents of order 9", false) };
    whole(tap, &room);
    several(tap, &room);
    partly(tap, &room);
    increase(tap, &room);
    // The last: what is replaced is in no place any more, and stays the domain's.
    replace(tap, &room);
}

fn whole(tap: &mut Tap, room: &Room) {
    for (what, order, at) in [
        ("order 1", 1, room.first),
        ("order 1, not aligned", 1, room.first + 1),
        ("order 9", 9, room.first),
        ("order 9, not aligned", 9, room.first + 100),
        ("order 0", 0, room.first + 3),
    ] {
        let pages = 1_i64 << order;
        let last = usize::try_from(at - room.first).unwrap_or(0) + (1 << order) - 1;
        room.word(last).store(0x600d, Relaxed);
        tap.is(
            format_args!("populate_physmap of {what} when the domain has all that it may"),
            (change(Populate, order, &[at]), room.word(last).load(Relaxed)),
            ((Ok(0), 0), 0x600d),
        );
        tap.is(
            format_args!("decrease_reservation of {what}"),
            change(Decrease, order, &[at]),
            (Ok(1), -pages),
        );
        tap.is(
            format_args!("decrease_reservation of {what} that is gone"),
            change(Decrease, order, &[at]),
            (Ok(0), 0),
        );
        tap.is(format_args!("populate_physmap of {what}"), change(Populate, order, &[at]), (Ok(1), pages));
        room.word(last).store(0xf00d, Relaxed);
        tap.is(format_args!("its last page works, {what}"), room.word(last).load(Relaxed), 0xf00d);
    }
}

fn several(tap: &mut Tap, room: &Room) {
    let at = |page| room.first + page;
    let three = [at(0), at(2), at(6)];
    tap.is("decrease_reservation of three extents of order 1", change(Decrease, 1, &three), (Ok(3), -6));
    tap.is("populate_physmap of three extents of order 1", change(Populate, 1, &three), (Ok(3), 6));
    let two = [at(LARGE), at(0)];
    tap.is("decrease_reservation of two extents of order 9", change(Decrease, 9, &two), (Ok(2), -1024));
    tap.is("populate_physmap of two extents of order 9", change(Populate, 9, &two), (Ok(2), 1024));
    tap.is(
        "decrease_reservation of three extents of order 1, the second of which is not there",
        change(Decrease, 1, &[at(0), FREE - 60, at(4)]),
        (Ok(1), -2),
    );
    tap.is(
        "populate_physmap of two extents of order 1 where there is room for one",
        change(Populate, 1, &[at(0), at(4)]),
        (Ok(1), 2),
    );
}

fn partly(tap: &mut Tap, room: &Room) {
    let at = |page| room.first + page;
    // There, gone.
    tap.is("decrease_reservation of a page", change(Decrease, 0, &[at(1)]), (Ok(1), -1));
    tap.is(
        "decrease_reservation of order 1 whose second page is gone takes the first",
        change(Decrease, 1, &[at(0)]),
        (Ok(0), -1),
    );
    tap.is("populate_physmap of order 1 after that", change(Populate, 1, &[at(0)]), (Ok(1), 2));
    // Gone, there.
    tap.is("decrease_reservation of another page", change(Decrease, 0, &[at(2)]), (Ok(1), -1));
    room.word(3).store(0x3333, Relaxed);
    tap.is(
        "decrease_reservation of order 1 whose first page is gone takes none",
        (change(Decrease, 1, &[at(2)]), room.word(3).load(Relaxed)),
        ((Ok(0), 0), 0x3333),
    );
    tap.is("populate_physmap of that page", change(Populate, 0, &[at(2)]), (Ok(1), 1));
    // A hole in the middle.
    tap.is("decrease_reservation of page 300", change(Decrease, 0, &[at(300)]), (Ok(1), -1));
    room.word(301).store(0x0301, Relaxed);
    tap.is(
        "decrease_reservation of order 9 whose page 300 is gone takes those before",
        (change(Decrease, 9, &[at(0)]), room.word(301).load(Relaxed)),
        ((Ok(0), -300), 0x0301),
    );
    tap.is(
        "populate_physmap of order 9 with 301 pages less than the domain may have",
        (change(Populate, 9, &[at(0)]), room.word(301).load(Relaxed)),
        ((Ok(0), 0), 0x0301),
    );
    let gone: Vec<u64> = (0..=300).map(at).collect();
    tap.is("populate_physmap of those pages, one by one", change(Populate, 0, &gone), (Ok(301), 301));
    // Where no extent can be: what was taken for it is the domain's, on Xen.
    tap.is("decrease_reservation of two pages", change(Decrease, 1, &[at(0)]), (Ok(1), -2));
    tap.is(
        "populate_physmap of order 1 where no page can be keeps what it took",
        change(Populate, 1, &[BEYOND]),
        (Ok(0), 2),
    );
    let back = change(Populate, 1, &[at(0)]).0;
    if back == Ok(1) {
        tap.that("populate_physmap of order 1 in the room of two others", true);
    } else {
        // Kept: these two are in no place any more. Two others of the heap's make room.
        let spare = change(Decrease, 1, &[at(2 * LARGE)]).0;
        tap.is(
            "populate_physmap of order 1 in the room of two others",
            (spare, change(Populate, 1, &[at(0)])),
            (Ok(1), (Ok(1), 2)),
        );
    }
}

fn increase(tap: &mut Tap, room: &Room) {
    let at = |page| room.first + page;
    let more = |order, extents: usize| change(Increase, order, &[0, 0, 0][..extents]);
    tap.is("increase_reservation of order 1 when the domain has all", more(1, 1), (Ok(0), 0));
    let third = 2 * LARGE + 8;
    tap.is("decrease_reservation makes room for order 1", change(Decrease, 1, &[at(third)]), (Ok(1), -2));
    tap.is("increase_reservation of order 1", more(1, 1), (Ok(1), 2));
    let two = [at(third + 2), at(third + 4)];
    tap.is("decrease_reservation makes room for two of order 1", change(Decrease, 1, &two), (Ok(2), -4));
    tap.is("increase_reservation of three extents of order 1 in room for two", more(1, 3), (Ok(2), 4));
    tap.is("decrease_reservation makes room for order 9", change(Decrease, 9, &[at(LARGE)]), (Ok(1), -512));
    tap.is("increase_reservation of order 10 is not for this domain", more(10, 1), (Ok(0), 0));
    tap.is("increase_reservation of order 9", more(9, 1), (Ok(1), 512));
    tap.is("increase_reservation of order 9 when the domain has all", more(9, 1), (Ok(0), 0));
}

fn replace(tap: &mut Tap, room: &Room) {
    let at = |page| room.first + page;
    let (hole, spare) = (5, at(2 * LARGE + 16));
    tap.is("decrease_reservation of page 5", change(Decrease, 0, &[at(hole)]), (Ok(1), -1));
    tap.is("decrease_reservation of one more", change(Decrease, 0, &[spare]), (Ok(1), -1));
    for (page, word) in [(4, 0x0444), (6, 0x0666), (7, 0x0777)] {
        room.word(page).store(word, Relaxed);
    }
    tap.is(
        "populate_physmap of order 1 over a page and a hole",
        change(Populate, 1, &[at(hole - 1)]),
        (Ok(1), 2),
    );
    room.word(4).store(0x4444, Relaxed);
    room.word(5).store(0x5555, Relaxed);
    tap.is(
        "populate_physmap of order 1 leaves its neighbours",
        [4, 5, 6, 7].map(|page| room.word(page).load(Relaxed)),
        [0x4444, 0x5555, 0x0666, 0x0777],
    );
}
