//! What the hypervisor answers with an exception.
use guest_kernel::event::own_id;
use guest_kernel::exception::{probe, undefined_hvc};
use guest_kernel::frame::Frame;
use guest_kernel::grant::{Access, Grant, MappedGrant};

use super::tap::Tap;

pub(crate) fn check(tap: &mut Tap) {
    tap.that("an hvc with another immediate is undefined", undefined_hvc());
    let Ok(own) = own_id() else {
        return tap.that("own id", false);
    };
    let frame = Frame::boxed();
    frame.write(b"here");
    let Ok(grant) = Grant::new(frame, own, Access::ReadWrite) else {
        return tap.that("a page is granted", false);
    };
    match MappedGrant::map(own, grant.reference(), Access::ReadWrite) {
        Ok(mapped) => {
            let address = mapped.address();
            tap.is("a mapped page is there", probe(address), Some(u32::from_le_bytes(*b"here")));
            tap.is("it is unmapped", mapped.unmap(), Ok(()));
            tap.is("an unmapped page faults", probe(address), None);
        }
        Err(why) => tap.is("a page is mapped", Some(why), None),
    }
}
