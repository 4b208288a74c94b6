//! Counts, orders and progress at their edges: 0, 1, the limit, one more, and as many as there are bits for.
#![expect(unsafe_code, reason = "hypercalls with arbitrary counts are what is tested")]
use core::sync::atomic::Ordering;

use guest_kernel::attempt::{self, Rights};
use guest_kernel::frame::Frame;
use guest_kernel::hypercall;
use pv_abi::console::ConsoleOp;
use pv_abi::grant::GrantOp;
use pv_abi::memory::MemoryOp;
use pv_abi::sched::SchedOp;
use pv_abi::{DomId, Errno, Hypercall};

use crate::tap::Tap;

/// The test's page; nothing is mapped behind it.
const PAGE: u64 = 0x78_0000_0000;
const END: u64 = PAGE + 4096;
static FRAME: Frame = Frame::zeroed();
const SELF: u64 = DomId::SELF.0 as u64;

const COUNTS: [u64; 14] =
    [0, 1, 2, 15, 16, 17, 128, 129, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 1 << 32, 1 << 63, u64::MAX];

fn call(number: Hypercall, args: [u64; 5]) -> Result<u64, Errno> {
    // SAFETY: what is named lies in the test's page or nowhere.
    Errno::check(unsafe { hypercall::raw(u64::from(number.number()), args) })
}

/// Writes words at the start of the page.
fn put(words: &[u64]) {
    let halves = words.iter().flat_map(|word| [*word as u32, (*word >> 32) as u32]);
    for (word, value) in FRAME.words().iter().zip(halves) {
        word.store(value, Ordering::SeqCst);
    }
}

fn clear() {
    FRAME.words().iter().for_each(|word| word.store(0, Ordering::SeqCst));
}

/// Pages that this domain has.
fn reservation() -> Result<u64, Errno> {
    put(&[SELF]);
    call(Hypercall::MemoryOp, [u64::from(MemoryOp::CurrentReservation.number()), PAGE, 0, 0, 0])
}

pub(crate) fn check(tap: &mut Tap) {
    let at = core::ptr::from_ref(&FRAME).expose_provenance() as u64;
    tap.that("a page for the test", attempt::alias(PAGE, at, 4096, Rights::ReadWrite));
    grants(tap);
    orders(tap);
    progress(tap);
    batches(tap);
    console(tap);
    polls(tap);
}

/// Each grant operation with each count, on elements that reach to the end of the page.
fn grants(tap: &mut Tap) {
    let (mut ended, before) = (0, reservation());
    for op in 0..=16 {
        for count in COUNTS {
            clear();
            // Elements of zeros name domain 0, which is not there; the call goes on to the end of what is mapped.
            let _ = call(Hypercall::GrantTableOp, [op, END - 480, count, 0, 0]);
            let _ = call(Hypercall::GrantTableOp, [op, 0x7e_0000_0000, count, 0, 0]);
            ended += 2;
        }
    }
    tap.is("xsa_27: every grant operation ends, whatever its count", ended, 17 * 14 * 2);
    let map = u64::from(GrantOp::MapGrantRef.number());
    tap.is(
        "more grants than an int counts",
        call(Hypercall::GrantTableOp, [map, PAGE, 0x8000_0000, 0, 0]),
        Err(Errno::Einval),
    );
    let mut wrong = None;
    for frames in [0_u64, 1, 2, 64, 65, 0x7fff_ffff, 0xffff_ffff] {
        clear();
        put(&[SELF | frames << 32, 0, END - 8]);
        let answer = call(Hypercall::GrantTableOp, [u64::from(GrantOp::SetupTable.number()), PAGE, 1, 0, 0]);
        let status = (FRAME.words()[2].load(Ordering::SeqCst) as u16).cast_signed();
        if answer != Ok(0) || status > 0 {
            wrong = wrong.or(Some((frames, answer, status)));
        }
    }
    tap.is("xsa_24: a grant table of any number of frames is set up or refused", wrong, None);
    tap.is("the domain has as many pages as before", reservation(), before);
}

/// Every order, for each operation on extents.
fn orders(tap: &mut Tap) {
    let before = reservation();
    let mut wrong = None;
    for op in [MemoryOp::IncreaseReservation, MemoryOp::DecreaseReservation, MemoryOp::PopulatePhysmap] {
        for order in (0..=255).chain([0x7fff_ffff, 0xffff_ffff]) {
            put(&[PAGE + 64, 1, order, SELF, 0, 0, 0, 0, 1 << 35]);
            let answer = call(Hypercall::MemoryOp, [u64::from(op.number()), PAGE, 0, 0, 0]);
            if answer != Ok(0) {
                wrong = wrong.or(Some((op, order, answer)));
            }
        }
    }
    tap.is("xsa_31: an extent of any order is refused where nothing is or may be", wrong, None);
    let mut wrong = None;
    for flags in (0..32).map(|bit| 1_u64 << bit).chain([0xffff_0000, 0xffff_ffff]) {
        put(&[PAGE + 64, 1, flags << 32, SELF, 0, 0, 0, 0, 1 << 35]);
        let answer =
            call(Hypercall::MemoryOp, [u64::from(MemoryOp::PopulatePhysmap.number()), PAGE, 0, 0, 0]);
        if answer != Ok(0) {
            wrong = wrong.or(Some((flags, answer)));
        }
    }
    tap.is("xsa_231: no memory flag indexes anything", wrong, None);
    tap.is("the domain has as many pages as before", reservation(), before);
}

/// Progress that the guest invents.
fn progress(tap: &mut Tap) {
    let before = reservation();
    let mut wrong = None;
    for op in [0_u64, 1, 6, 7, 15, 23] {
        for extent in [1_u64, 2, 0x3ff_ffff, 0x200_0000] {
            for rest in [0_u64, 1, 0xffff_ffff] {
                for count in [0_u64, 1, 0x3ff_ffff, 0x400_0000, 1 << 60, u64::MAX] {
                    put(&[END - 8, count, 0, SELF]);
                    let cmd = op | extent << 6 | rest << 32;
                    let answer = call(Hypercall::MemoryOp, [cmd, PAGE, 0, 0, 0]);
                    if answer.is_ok_and(|done| done != 0 && done != cmd >> 6) {
                        wrong = wrong.or(Some((cmd, count, answer)));
                    }
                }
            }
        }
    }
    tap.is("xsa_212: progress that the guest invents is given back or refused", wrong, None);
    tap.is("the domain has as many pages as before", reservation(), before);
}

fn batches(tap: &mut Tap) {
    let mut wrong = None;
    for size in [0_u64, 1, 15, 16, 17, 255, 0x7fff, 0xffff] {
        for (ids, places, errors) in [
            (END - 64, END - 64, END - 64),
            (0, PAGE, PAGE),
            (PAGE, u64::MAX - 7, PAGE),
            (PAGE, PAGE, 0x7e_0000_0000),
        ] {
            put(&[SELF | 1 << 16 | size << 32, ids, places, errors]);
            let answer =
                call(Hypercall::MemoryOp, [u64::from(MemoryOp::AddToPhysmapBatch.number()), PAGE, 0, 0, 0]);
            if size > 8 && answer != Err(Errno::Efault) || size == 0 && answer != Ok(0) {
                wrong = wrong.or(Some((size, ids, answer)));
            }
        }
    }
    tap.is("a batch of places that runs out of its lists is refused", wrong, None);
    let mut wrong = None;
    for count in COUNTS {
        clear();
        let answer = call(Hypercall::Multicall, [END - 64, count, 0, 0, 0]);
        // One call fits: number 0, which there is not.
        let expected = match count {
            0 | 1 => Ok(0),
            _ => Err(Errno::Efault),
        };
        if answer != expected {
            wrong = wrong.or(Some((count, answer)));
        }
    }
    tap.is("a multicall of any length ends where its list does", wrong, None);
}

fn console(tap: &mut Tap) {
    let mut wrong = None;
    for count in [0_u64, 127, 128, 129, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, u64::MAX] {
        // Spaces, so that a line may begin with them.
        FRAME.words().iter().for_each(|word| word.store(0x2020_2020, Ordering::SeqCst));
        let args = [u64::from(ConsoleOp::Write.number()), count, END - 128, 0, 0];
        let answer = call(Hypercall::ConsoleIo, args);
        let expected = match count as u32 {
            0..=128 => Ok(0),
            _ => Err(Errno::Efault),
        };
        if answer != expected {
            wrong = wrong.or(Some((count, answer)));
        }
    }
    guest_kernel::println!();
    tap.is("row_122: no length of a text is negative or leaves the buffer", wrong, None);
}

fn polls(tap: &mut Tap) {
    let mut wrong = None;
    for ports in [0_u64, 1, 127, 128, 129, 0x7fff_ffff, 0xffff_ffff] {
        // A deadline that has passed.
        put(&[END - 8, ports, 1]);
        let answer = call(Hypercall::SchedOp, [u64::from(SchedOp::Poll.number()), PAGE, 0, 0, 0]);
        if ports > 128 && answer != Err(Errno::Einval) || ports == 0 && answer != Ok(0) {
            wrong = wrong.or(Some((ports, answer)));
        }
    }
    tap.is("polls for more ports than there may be are refused", wrong, None);
    let mut wrong = None;
    for port in (0..4100).chain([1 << 17, (1 << 17) + 8, 1 << 20, 0x7fff_ffff, 0xffff_ffff]) {
        put(&[PAGE + 64, 1, 1, 0, 0, 0, 0, 0, port]);
        let answer = call(Hypercall::SchedOp, [u64::from(SchedOp::Poll.number()), PAGE, 0, 0, 0]);
        if answer.is_ok() && port >= 4096 {
            wrong = wrong.or(Some((port, answer)));
        }
    }
    tap.is("xsa_221: ports that were never there can be polled for, or are refused", wrong, None);
}
