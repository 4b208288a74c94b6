//! Batches of `grant_table_op` whose elements are good and bad, each told by itself, and batches that run into a page that is not there: what
//! comes before it is done.
#![expect(unsafe_code, reason = "a batch at an address whose end is not there")]
extern crate alloc;
use alloc::format;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use guest_kernel::event::own_id;
use guest_kernel::frame::Frame;
use guest_kernel::grant::{Access, Grant};
use guest_kernel::{hypercall, record};
use pv_abi::grant::{
    CopyFlags, CopyPtr, GrantCopy, GrantOp, GrantStatus, MapFlags, MapGrantRef, UnmapGrantRef,
};
use pv_abi::memory::{MemoryOp, Reservation};
use pv_abi::{DomId, Errno, GrantHandle, GrantRef, GuestHandle, Hypercall, PAGE_SIZE};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::limits_memory::memory_op;
use super::raw::{self, FREE, NOBODY, address, gfn};
use super::tap::Tap;

/// Elements of a batch: beyond one budget, and not beyond two.
const MANY: usize = 20;
/// `GTF_permit_access`, `GTF_reading`, `GTF_writing`.
const PERMIT: u16 = 1;
const IN_USE: u16 = 8 | 16;

pub(crate) fn check(tap: &mut Tap) {
    let Ok(own) = own_id() else { return tap.that("own id", false) };
    let grants: Vec<Grant> =
        (0..MANY).filter_map(|_| Grant::new(Frame::boxed(), own, Access::ReadWrite).ok()).collect();
    if grants.len() != MANY {
        return tap.that("pages are granted", false);
    }
    let handles = mixed_map(tap, own, &grants);
    mixed_unmap(tap, &grants, &handles);
    mixed_copy(tap, own, &grants);
    let Some(edge) = Edge::new() else { return tap.that("a page whose neighbour is gone", false) };
    for (what, cut) in [("in mid-batch", 0), ("in the middle of an element", 8)] {
        cut_short(tap, own, &grants, &edge, what, cut);
    }
    edge.mend(tap);
    tap.that(
        "every page can be taken back after all batches",
        grants.into_iter().all(|grant| grant.end().is_ok()),
    );
}

/// Where element `index` of a batch is mapped.
const fn place(index: usize) -> u64 {
    (FREE - 70 - index as u64) << 12
}

fn map_of(own: DomId, grant: &Grant, index: usize) -> MapGrantRef {
    MapGrantRef {
        host_addr: place(index),
        flags: MapFlags::HOST_MAP.bits(),
        gref: grant.reference(),
        dom: own,
        ..Default::default()
    }
}

fn told<T>(op: GrantOp, of: &[T], read: impl Fn(&T) -> i16) -> Vec<GrantStatus> {
    of.iter()
        .map(|element| {
            record::status(op.number(), read(element));
            GrantStatus::from_value(read(element))
        })
        .collect()
}

/// Good elements between bad ones of every kind; the handles of the good ones.
fn mixed_map(tap: &mut Tap, own: DomId, grants: &[Grant]) -> Vec<GrantHandle> {
    let (mut maps, mut expected) = (Vec::new(), Vec::new());
    for (index, grant) in grants.iter().enumerate() {
        let good = map_of(own, grant, index);
        let (map, status) = match index % 7 {
            1 => (MapGrantRef { gref: GrantRef(u32::MAX), ..good }, GrantStatus::BadGntref),
            2 => (MapGrantRef { dom: NOBODY, ..good }, GrantStatus::BadDomain),
            3 => (MapGrantRef { gref: GrantRef(7), ..good }, GrantStatus::GeneralError),
            4 => (MapGrantRef { flags: 0, ..good }, GrantStatus::BadGntref),
            5 => (MapGrantRef { host_addr: u64::MAX << 12, ..good }, GrantStatus::GeneralError),
            _ => (good, GrantStatus::Okay),
        };
        maps.push(map);
        expected.push(status);
    }
    let answer = raw::grants(u64::from(GrantOp::MapGrantRef.number()), &mut maps);
    tap.is("map_grant_ref of good and bad references in one batch", answer, Ok(0));
    tap.is(
        "map_grant_ref tells each of them",
        told(GrantOp::MapGrantRef, &maps, |map| map.status),
        expected.clone(),
    );
    let in_use: Vec<bool> = grants.iter().map(|grant| grant.flags() & IN_USE == IN_USE).collect();
    let good: Vec<bool> = expected.iter().map(|status| *status == GrantStatus::Okay).collect();
    tap.is("map_grant_ref uses the good ones alone", in_use, good);
    maps.iter().map(|map| map.handle).collect()
}

/// The good ones' handles, between those of the bad ones, one twice, one that was never given out.
fn mixed_unmap(tap: &mut Tap, grants: &[Grant], handles: &[GrantHandle]) {
    let (mut unmaps, mut expected) = (Vec::new(), Vec::new());
    for (index, handle) in handles.iter().enumerate() {
        let good = matches!(index % 7, 0 | 6);
        let handle = if good { *handle } else { GrantHandle((1 << 20) + 5) };
        let unmap = UnmapGrantRef { host_addr: place(index), handle, ..Default::default() };
        unmaps.push(unmap);
        expected.push(if good { GrantStatus::Okay } else { GrantStatus::BadHandle });
        if index == 7 {
            unmaps.push(unmap);
            expected.push(GrantStatus::BadHandle);
        }
    }
    let answer = raw::grants(u64::from(GrantOp::UnmapGrantRef.number()), &mut unmaps);
    tap.is("unmap_grant_ref of good and bad handles in one batch", answer, Ok(0));
    tap.is(
        "unmap_grant_ref tells each of them",
        told(GrantOp::UnmapGrantRef, &unmaps, |unmap| unmap.status),
        expected,
    );
    let left = grants.iter().filter(|grant| grant.flags() != PERMIT).count();
    tap.is("unmap_grant_ref leaves none in use", left, 0);
}

fn copy_of(own: DomId, from: &Frame, to: &Grant) -> GrantCopy {
    GrantCopy {
        source: CopyPtr { ref_or_gfn: gfn(from), domid: DomId::SELF, offset: 0, pad: 0 },
        dest: CopyPtr { ref_or_gfn: u64::from(to.reference().0), domid: own, offset: 0, pad: 0 },
        len: 4,
        flags: CopyFlags::DEST_GREF.bits(),
        ..Default::default()
    }
}

fn first_words(grants: &[Grant]) -> Vec<u32> {
    grants.iter().map(|grant| grant.frame().words()[0].load(Ordering::Relaxed)).collect()
}

fn clear(grants: &[Grant]) {
    for grant in grants {
        grant.frame().words()[0].store(0, Ordering::Relaxed);
    }
}

fn mixed_copy(tap: &mut Tap, own: DomId, grants: &[Grant]) {
    clear(grants);
    let source = Frame::boxed();
    source.words()[0].store(0xc0b7, Ordering::Relaxed);
    let (mut copies, mut expected) = (Vec::new(), Vec::new());
    for (index, grant) in grants.iter().enumerate() {
        let good = copy_of(own, &source, grant);
        let (copy, status) = match index % 7 {
            1 => (GrantCopy { dest: CopyPtr { offset: 4094, ..good.dest }, ..good }, GrantStatus::BadCopyArg),
            2 => (
                GrantCopy { source: CopyPtr { domid: own, ..good.source }, ..good },
                GrantStatus::PermissionDenied,
            ),
            3 => (
                GrantCopy { dest: CopyPtr { ref_or_gfn: u64::from(u32::MAX), ..good.dest }, ..good },
                GrantStatus::BadGntref,
            ),
            4 => (GrantCopy { dest: CopyPtr { domid: NOBODY, ..good.dest }, ..good }, GrantStatus::BadDomain),
            5 => (
                GrantCopy { source: CopyPtr { ref_or_gfn: FREE - 60, ..good.source }, ..good },
                GrantStatus::BadPage,
            ),
            _ => (good, GrantStatus::Okay),
        };
        copies.push(copy);
        expected.push(status);
    }
    let answer = raw::grants(u64::from(GrantOp::Copy.number()), &mut copies);
    tap.is("copy of good and bad segments in one batch", answer, Ok(0));
    tap.is("copy tells each of them", told(GrantOp::Copy, &copies, |copy| copy.status), expected.clone());
    let words: Vec<u32> =
        expected.iter().map(|status| if *status == GrantStatus::Okay { 0xc0b7 } else { 0 }).collect();
    tap.is("copy brings the good ones alone", first_words(grants), words);
}

/// A page with nothing behind it.
struct Edge(&'static [Frame]);

fn gone(op: MemoryOp, page: u64) -> raw::Answer {
    let mut list = [page];
    let extent_start = GuestHandle(address(&mut list));
    let mut asked = Reservation { extent_start, nr_extents: 1, domid: DomId::SELF, ..Default::default() };
    memory_op(op, 0, &mut asked)
}

impl Edge {
    fn new() -> Option<Self> {
        let pages: &'static [Frame] = Vec::leak((0..2).map(|_| Frame::zeroed()).collect());
        let second = gfn(pages.get(1)?);
        (gone(MemoryOp::DecreaseReservation, second) == Ok(1)).then_some(Self(pages))
    }

    fn mend(&self, tap: &mut Tap) {
        let second = self.0.get(1).map_or(0, gfn);
        tap.is("what was not there is there again", gone(MemoryOp::PopulatePhysmap, second), Ok(1));
    }

    /// Makes a call on as many elements, of which `cut` bytes of the last, or all of the one behind them, are beyond the page. The elements as they are
    /// then, as far as they are there.
    fn call<T: IntoBytes + FromBytes + Immutable + Clone>(
        &self,
        op: GrantOp,
        of: &[T],
        cut: usize,
    ) -> (raw::Answer, Vec<T>) {
        let Some(page) = self.0.first() else { return (Ok(u64::MAX), Vec::new()) };
        let bytes = of.as_bytes();
        let start = PAGE_SIZE + cut - bytes.len();
        for (at, word) in bytes.chunks_exact(4).enumerate() {
            let value = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            if let Some(to) = page.words().get(start / 4 + at) {
                to.store(value, Ordering::Relaxed);
            }
        }
        let whole = of.len() - usize::from(cut != 0);
        let count = whole as u64 + 3;
        let args = [
            u64::from(op.number()),
            core::ptr::from_ref(page).expose_provenance() as u64 + start as u64,
            count,
            0,
            0,
        ];
        // SAFETY: the elements are in a page of atomics that lives for ever, and name frames of this guest's own or none.
        let answer =
            Errno::check(unsafe { hypercall::raw(u64::from(Hypercall::GrantTableOp.number()), args) });
        let mut after = of[..whole].to_vec();
        for (at, element) in after.as_mut_slice().iter_mut().enumerate() {
            let from = (start + at * size_of::<T>()) / 4;
            let words = page.words()[from..from + size_of::<T>() / 4].iter();
            let bytes: Vec<u8> = words.flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect();
            if let Ok(read) = T::read_from_bytes(&bytes) {
                *element = read;
            }
        }
        (answer, after)
    }
}

/// A batch whose elements from a place on are not there.
fn cut_short(tap: &mut Tap, own: DomId, grants: &[Grant], edge: &Edge, what: &str, cut: usize) {
    for count in [1, 5, MANY - 1] {
        let with = |number: usize| format!("{what}, after {number} good elements");
        let elements = count + usize::from(cut != 0);
        let maps: Vec<_> = grants
            .iter()
            .enumerate()
            .take(elements)
            .map(|(index, grant)| map_of(own, grant, index))
            .collect();
        let (answer, maps) = edge.call(GrantOp::MapGrantRef, &maps, cut);
        tap.is(
            format_args!("map_grant_ref of a batch that ends in nowhere {}", with(count)),
            answer,
            Err(Errno::Efault),
        );
        tap.is(
            format_args!("map_grant_ref has done what came before {}", with(count)),
            told(GrantOp::MapGrantRef, &maps, |map| map.status),
            [GrantStatus::Okay].repeat(count),
        );
        let in_use = grants.iter().filter(|grant| grant.flags() & IN_USE == IN_USE).count();
        tap.is(format_args!("map_grant_ref has done nothing else {}", with(count)), in_use, count);

        let mut unmaps: Vec<_> = maps
            .iter()
            .map(|map| UnmapGrantRef { host_addr: map.host_addr, handle: map.handle, ..Default::default() })
            .collect();
        unmaps.resize(
            elements,
            UnmapGrantRef { host_addr: place(0), handle: GrantHandle::INVALID, ..Default::default() },
        );
        let (answer, unmaps) = edge.call(GrantOp::UnmapGrantRef, &unmaps, cut);
        tap.is(
            format_args!("unmap_grant_ref of a batch that ends in nowhere {}", with(count)),
            answer,
            Err(Errno::Efault),
        );
        tap.is(
            format_args!("unmap_grant_ref has done what came before {}", with(count)),
            told(GrantOp::UnmapGrantRef, &unmaps, |unmap| unmap.status),
            [GrantStatus::Okay].repeat(count),
        );
        let in_use = grants.iter().filter(|grant| grant.flags() & IN_USE != 0).count();
        tap.is(format_args!("unmap_grant_ref leaves none in use {}", with(count)), in_use, 0);

        clear(grants);
        let source = Frame::boxed();
        source.words()[0].store(0xed6e, Ordering::Relaxed);
        let copies: Vec<_> = grants.iter().take(elements).map(|grant| copy_of(own, &source, grant)).collect();
        let (answer, copies) = edge.call(GrantOp::Copy, &copies, cut);
        tap.is(
            format_args!("copy of a batch that ends in nowhere {}", with(count)),
            answer,
            Err(Errno::Efault),
        );
        tap.is(
            format_args!("copy has done what came before {}", with(count)),
            told(GrantOp::Copy, &copies, |copy| copy.status),
            [GrantStatus::Okay].repeat(count),
        );
        let brought = first_words(grants).iter().filter(|word| **word == 0xed6e).count();
        tap.is(format_args!("copy has done nothing else {}", with(count)), brought, count);
    }
}
