//! `GNTTABOP_copy`, with one's own pages.
use guest_kernel::event::own_id;
use guest_kernel::frame::Frame;
use guest_kernel::grant::{self, Access, Grant};
use pv_abi::grant::{CopyFlags, CopyPtr, GrantCopy, GrantOp, GrantStatus};
use pv_abi::{DomId, Errno, PAGE_SIZE};

use super::raw::{self, NOBODY};
use super::tap::Tap;

fn gfn(frame: &Frame) -> u64 {
    (core::ptr::from_ref(frame).expose_provenance() / PAGE_SIZE) as u64
}

fn by_frame(frame: &Frame, offset: u16) -> CopyPtr {
    CopyPtr { ref_or_gfn: gfn(frame), domid: DomId::SELF, offset, pad: 0 }
}

fn copy(source: CopyPtr, dest: CopyPtr, len: u16, flags: CopyFlags) -> Result<GrantStatus, Errno> {
    let mut element = GrantCopy { source, dest, len, flags: flags.bits(), ..Default::default() };
    raw::grant(GrantOp::Copy, &mut element, |element| element.status)
}

pub(crate) fn check(tap: &mut Tap) {
    let Ok(own) = own_id() else {
        return tap.that("own id", false);
    };
    let (from, to) = (Frame::boxed(), Frame::boxed());
    let mut pattern = [0; PAGE_SIZE];
    pattern.iter_mut().zip((0..=250u8).cycle()).for_each(|(byte, value)| *byte = value);
    from.write(&pattern);
    let none = CopyFlags::empty();
    tap.is(
        "from frame to frame",
        copy(by_frame(&from, 0), by_frame(&to, 0), 4096, none),
        Ok(GrantStatus::Okay),
    );
    let mut bytes = [0; PAGE_SIZE];
    to.read(&mut bytes);
    tap.that("every byte arrives", bytes == pattern);
    tap.is(
        "of part of a page",
        copy(by_frame(&from, 1), by_frame(&to, 4000), 96, none),
        Ok(GrantStatus::Okay),
    );
    to.read(&mut bytes);
    tap.that(
        "arrives where it should, and only there",
        bytes[4000..] == pattern[1..97] && bytes[..4000] == pattern[..4000],
    );
    tap.is("of no bytes", copy(by_frame(&from, 0), by_frame(&to, 0), 0, none), Ok(GrantStatus::Okay));
    tap.is(
        "across the source's end",
        copy(by_frame(&from, 1), by_frame(&to, 0), 4096, none),
        Ok(GrantStatus::BadCopyArg),
    );
    tap.is(
        "across the destination's end",
        copy(by_frame(&from, 0), by_frame(&to, 4095), 2, none),
        Ok(GrantStatus::BadCopyArg),
    );
    let nowhere = CopyPtr { ref_or_gfn: 0x10, domid: DomId::SELF, offset: 0, pad: 0 };
    tap.is(
        "from a frame that is not there",
        copy(nowhere, by_frame(&to, 0), 8, none),
        Ok(GrantStatus::BadPage),
    );
    tap.is(
        "to a frame that is not there",
        copy(by_frame(&from, 0), nowhere, 8, none),
        Ok(GrantStatus::BadPage),
    );
    let foreign = CopyPtr { domid: NOBODY, ..nowhere };
    let answer = copy(foreign, by_frame(&to, 0), 8, CopyFlags::SOURCE_GREF);
    tap.is("from nobody's reference", answer, Ok(GrantStatus::BadDomain));
    by_reference(tap, own, &to);
}

fn by_reference(tap: &mut Tap, own: DomId, to: &Frame) {
    let frame = Frame::boxed();
    frame.write(b"granted");
    let Ok(grant) = Grant::new(frame, own, Access::ReadOnly) else {
        return tap.that("a page is granted", false);
    };
    let reference = grant.reference();
    tap.is("from a reference", grant::copy(own, reference, to, 7), Ok(()));
    let mut bytes = [0; 7];
    to.read(&mut bytes);
    tap.is("brings its bytes", bytes, *b"granted");
    let named = |reference: u32| CopyPtr { ref_or_gfn: u64::from(reference), domid: own, offset: 0, pad: 0 };
    let writing = copy(by_frame(to, 0), named(reference.0), 7, CopyFlags::DEST_GREF);
    tap.is("to a read-only reference", writing, Ok(GrantStatus::GeneralError));
    let absent = copy(named(500), by_frame(to, 0), 7, CopyFlags::SOURCE_GREF);
    tap.is("from a reference that is not granted", absent, Ok(GrantStatus::GeneralError));
    let beyond = copy(named(1 << 20), by_frame(to, 0), 7, CopyFlags::SOURCE_GREF);
    tap.is("from a reference beyond the table", beyond, Ok(GrantStatus::BadGntref));
    tap.that("the grant ends after a copy", grant.end().is_ok());
}
