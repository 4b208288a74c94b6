//! What the other families leave out of the interface's text: what stays pending, bits in a grant's entry, every combination of a copy's ends, every
//! space of `add_to_physmap` and its batch, every type of `vm_assist`.
use guest_kernel::event::{Channel, own_id, shared_page};
use guest_kernel::frame::Frame;
use guest_kernel::grant::{Access, Grant};
use pv_abi::event::PortStatus;
use pv_abi::grant::{
    CopyFlags, CopyPtr, GrantCopy, GrantOp, GrantStatus, MapFlags, MapGrantRef, UnmapGrantRef,
};
use pv_abi::memory::{AddToPhysmap, AddToPhysmapBatch, MemoryOp};
use pv_abi::{DomId, Errno, GrantHandle, GuestHandle, Hypercall};

use super::event::status;
use super::raw::{self, FREE, address, gfn};
use super::tap::Tap;

pub(crate) fn check(tap: &mut Tap) {
    let Ok(own) = own_id() else { return tap.that("own id", false) };
    pending(tap);
    bits(tap, own);
    copies(tap, own);
    spaces(tap);
    foreign(tap, own);
    assists(tap);
}

/// What is pending at one end outlives the other, and the next one.
fn pending(tap: &mut Tap) {
    let Ok(shared) = shared_page() else { return tap.that("the shared page", false) };
    let Ok(end) = Channel::unbound(DomId::SELF) else { return tap.that("a channel", false) };
    let port = end.port();
    let bind = || Channel::bind(DomId::SELF, port);
    let Ok(other) = bind() else { return tap.that("its other end", false) };
    tap.is("an event", (other.notify(), shared.is_pending(port)), (Ok(()), true));
    drop(other);
    let unbound = PortStatus::Unbound.number();
    tap.is("its sender closes", status(port).map(|state| state.0), Ok(unbound));
    tap.that("it stays pending at a port that is unbound", shared.is_pending(port));
    let Ok(next) = bind() else { return tap.that("another binds", false) };
    tap.that("and when another binds", shared.is_pending(port));
    tap.is(
        "one more is the same",
        (next.notify(), shared.take(port), shared.take(port)),
        (Ok(()), true, false),
    );
    drop(next);
    tap.is("one to nobody is none", (end.notify(), shared.is_pending(port)), (Ok(()), false));
    let fresh = bind();
    tap.is(
        "a new end is pending, whatever its port was before",
        fresh.as_ref().map(|fresh| shared.is_pending(fresh.port())).ok(),
        Some(true),
    );
    tap.that("and the old one is not", !shared.is_pending(port));
}

/// Maps a reference of one's own at the so manieth free page; its handle.
fn map(own: DomId, grant: &Grant, page: u64, flags: MapFlags) -> Result<(GrantStatus, GrantHandle), Errno> {
    let mut element = MapGrantRef {
        host_addr: (FREE - page) << 12,
        flags: (MapFlags::HOST_MAP | flags).bits(),
        gref: grant.reference(),
        dom: own,
        ..Default::default()
    };
    let status = raw::grant(GrantOp::MapGrantRef, &mut element, |element| element.status)?;
    Ok((status, element.handle))
}

fn unmap(page: u64, handle: GrantHandle) -> Result<GrantStatus, Errno> {
    let mut element = UnmapGrantRef { host_addr: (FREE - page) << 12, handle, ..Default::default() };
    raw::grant(GrantOp::UnmapGrantRef, &mut element, |element| element.status)
}

/// `GTF_permit_access`, `GTF_readonly`, `GTF_reading`, `GTF_writing`.
const PERMIT: u16 = 1;
const READONLY: u16 = 4;
const READING: u16 = 8;
const WRITING: u16 = 16;

/// Each mapping sets its bits, and they go with the last of their kind.
fn bits(tap: &mut Tap, own: DomId) {
    let (read, write) = (MapFlags::READONLY, MapFlags::empty());
    for (what, access, maps) in [
        ("read", Access::ReadOnly, &[read][..]),
        ("read twice", Access::ReadOnly, &[read, read]),
        ("write", Access::ReadWrite, &[write]),
        ("read, write", Access::ReadWrite, &[read, write]),
        ("write, read", Access::ReadWrite, &[write, read]),
        ("write twice", Access::ReadWrite, &[write, write]),
        ("read, write, read, write", Access::ReadWrite, &[read, write, read, write]),
    ] {
        let Ok(grant) = Grant::new(Frame::boxed(), own, access) else {
            return tap.that("a page is granted", false);
        };
        let own_bits = PERMIT | if matches!(access, Access::ReadOnly) { READONLY } else { 0 };
        let expected = |left: &[MapFlags]| {
            let writes = if left.contains(&write) { WRITING } else { 0 };
            let reads = if left.is_empty() { 0 } else { READING };
            own_bits | reads | writes
        };
        let mut handles = [GrantHandle::INVALID; 4];
        for (index, flags) in maps.iter().enumerate() {
            let answer = map(own, &grant, index as u64, *flags);
            if let Ok((_, handle)) = answer {
                handles[index] = handle;
            }
            let done = answer.map(|(status, _)| status);
            tap.is(format_args!("to {what}: mapping {index}"), done, Ok(GrantStatus::Okay));
            tap.is(
                format_args!("to {what}: its bits with mapping {index}"),
                grant.flags(),
                expected(&maps[..=index]),
            );
        }
        for index in 0..maps.len() {
            let done = unmap(index as u64, handles[index]);
            tap.is(format_args!("to {what}: mapping {index} goes"), done, Ok(GrantStatus::Okay));
            tap.is(
                format_args!("to {what}: the bits of those behind mapping {index}"),
                grant.flags(),
                expected(&maps[index + 1..]),
            );
        }
        tap.that(format_args!("a page mapped to {what} can be taken back"), grant.end().is_ok());
    }
}

/// An end of a copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Frame,
    ReadOnly,
    ReadWrite,
    NotGranted,
}

fn copies(tap: &mut Tap, own: DomId) {
    let ends = [End::Frame, End::ReadOnly, End::ReadWrite, End::NotGranted];
    for (from, to) in ends.into_iter().flat_map(|from| ends.map(|to| (from, to))) {
        let (source, dest) = (Frame::boxed(), Frame::boxed());
        source.write(b"what is copied");
        let (source_gfn, dest_gfn) = (gfn(&source), gfn(&dest));
        let granted = |frame, end| {
            Grant::new(frame, own, if end == End::ReadOnly { Access::ReadOnly } else { Access::ReadWrite })
                .ok()
        };
        // Granted either way: an end that is a frame is named as one.
        let (Some(source), Some(dest)) = (granted(source, from), granted(dest, to)) else {
            return tap.that("two pages are granted", false);
        };
        let name = |end, gfn, grant: &Grant| match end {
            End::Frame => CopyPtr { ref_or_gfn: gfn, domid: DomId::SELF, offset: 0, pad: 0 },
            End::NotGranted => CopyPtr { ref_or_gfn: 500, domid: own, offset: 0, pad: 0 },
            End::ReadOnly | End::ReadWrite => {
                CopyPtr { ref_or_gfn: u64::from(grant.reference().0), domid: own, offset: 0, pad: 0 }
            }
        };
        let flag = |end, flag| if end == End::Frame { CopyFlags::empty() } else { flag };
        let mut element = GrantCopy {
            source: name(from, source_gfn, &source),
            dest: name(to, dest_gfn, &dest),
            len: 14,
            flags: (flag(from, CopyFlags::SOURCE_GREF) | flag(to, CopyFlags::DEST_GREF)).bits(),
            ..Default::default()
        };
        let answer = raw::grant(GrantOp::Copy, &mut element, |element| element.status);
        let good = from != End::NotGranted && matches!(to, End::Frame | End::ReadWrite);
        let expected = if good { GrantStatus::Okay } else { GrantStatus::GeneralError };
        tap.is(format_args!("copy from {from:?} to {to:?}"), answer, Ok(expected));
        let mut bytes = [0; 14];
        dest.frame().read(&mut bytes);
        let content = if good { *b"what is copied" } else { [0; 14] };
        tap.is(format_args!("a copy from {from:?} to {to:?} brings the bytes, or none"), bytes, content);
        let in_use = (source.flags() | dest.flags()) & (READING | WRITING);
        tap.is(format_args!("a copy from {from:?} to {to:?} leaves no trace"), in_use, 0);
        tap.that(
            format_args!("both can be taken back after a copy from {from:?} to {to:?}"),
            source.end().is_ok() && dest.end().is_ok(),
        );
    }
}

/// Every space of `add_to_physmap` and of its batch, with an index that there is not, and the first ones that are none.
fn spaces(tap: &mut Tap) {
    let memory_op = |op: MemoryOp| u64::from(op.number());
    for (space, one, many, each) in [
        (0, Err(Errno::Einval), Ok(0), Errno::Einval),
        (1, Err(Errno::Einval), Ok(0), Errno::Einval),
        (2, Err(Errno::Enosys), Ok(0), Errno::Enosys),
        (3, Err(Errno::Enosys), Err(Errno::Eopnotsupp), Errno::Eexist),
        (4, Err(Errno::Enosys), Ok(0), Errno::Esrch),
        (5, Err(Errno::Eacces), Err(Errno::Eacces), Errno::Eexist),
        (6, Err(Errno::Enosys), Ok(0), Errno::Enosys),
        (0xffff, Err(Errno::Enosys), Ok(0), Errno::Enosys),
    ] {
        let (domid, gpfn) = (DomId::SELF, FREE);
        let mut place = AddToPhysmap { domid, size: 1, space: u32::from(space), idx: 1 << 20, gpfn };
        let answer = raw::with(Hypercall::MemoryOp, memory_op(MemoryOp::AddToPhysmap), &mut place);
        tap.is(format_args!("add_to_physmap of space {space:#x}"), answer, one);
        let (mut idxs, mut gpfns, mut errs) = ([1_u64 << 20; 2], [FREE; 2], [-Errno::Eexist.value(); 2]);
        let mut batch = AddToPhysmapBatch {
            domid,
            space,
            size: 2,
            foreign_domid: DomId::SELF,
            idxs: GuestHandle(address(&mut idxs)),
            gpfns: GuestHandle(address(&mut gpfns)),
            errs: GuestHandle(address(&mut errs)),
        };
        let answer = raw::with(Hypercall::MemoryOp, memory_op(MemoryOp::AddToPhysmapBatch), &mut batch);
        tap.is(format_args!("add_to_physmap_batch of space {space:#x}"), answer, many);
        tap.is(format_args!("tells each of space {space:#x}"), errs, [-each.value(); 2]);
    }
}

/// Other domains' frames are a privileged domain's to place; whom the answer names.
fn foreign(tap: &mut Tap, own: DomId) {
    for (what, foreign_domid, expected) in [
        ("own, by number", own, Errno::Eperm),
        ("nobody's", raw::NOBODY, Errno::Esrch),
        ("the hypervisor's", DomId::XEN, Errno::Eperm),
        ("the machine's", DomId::IO, Errno::Esrch),
    ] {
        let (mut idxs, mut gpfns, mut errs) = ([0_u64], [FREE], [0]);
        let mut batch = AddToPhysmapBatch {
            domid: DomId::SELF,
            space: 4,
            size: 1,
            foreign_domid,
            idxs: GuestHandle(address(&mut idxs)),
            gpfns: GuestHandle(address(&mut gpfns)),
            errs: GuestHandle(address(&mut errs)),
        };
        let op = u64::from(MemoryOp::AddToPhysmapBatch.number());
        let answer = raw::with(Hypercall::MemoryOp, op, &mut batch);
        tap.is(
            format_args!("add_to_physmap_batch of frames that are {what}"),
            (answer, errs),
            (Ok(0), [-expected.value()]),
        );
    }
}

fn assists(tap: &mut Tap) {
    let number = u64::from(Hypercall::VmAssist.number());
    for kind in 0..8 {
        for command in 0..2 {
            let expected = if kind == 5 { Ok(0) } else { Err(Errno::Einval) };
            let answer = raw::call(number, &[command, kind]);
            tap.is(format_args!("vm_assist {command} of type {kind}"), answer, expected);
        }
    }
}
