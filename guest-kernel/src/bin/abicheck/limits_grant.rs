//! Boundary values of `grant_table_op`: the last that is taken and the first that is not. Each case begins with the name of its sub-call.
use guest_kernel::event::own_id;
use guest_kernel::frame::Frame;
use guest_kernel::grant::{Access, Grant};
use pv_abi::grant::{
    CacheFlush, CopyFlags, CopyPtr, GetStatusFrames, GetVersion, GrantCopy, GrantOp, GrantStatus, MapFlags,
    MapGrantRef, QuerySize, SetVersion, SetupTable, SwapGrantRef, UnmapAndReplace, UnmapGrantRef,
};
use pv_abi::memory::{AddToPhysmap, MemoryOp, RemoveFromPhysmap, Reservation};
use pv_abi::{DomId, Errno, GrantHandle, GrantRef, GuestHandle, Hypercall};

use super::limits_memory::memory_op;
use super::raw::{self, FREE, NOWHERE, call, gfn};
use super::tap::Tap;

#[expect(clippy::too_many_lines, reason = "a list of cases")]
pub(crate) fn check(tap: &mut Tap) {
    let number = u64::from(Hypercall::GrantTableOp.number());
    for op in GrantOp::ALL {
        let cmd = u64::from(op.number());
        tap.is(
            format_args!("grant_table_op: a negative count of {op:?}"),
            call(number, &[cmd, NOWHERE, 0x8000_0000]),
            Err(Errno::Einval),
        );
        if *op != GrantOp::CacheFlush {
            tap.is(
                format_args!("grant_table_op: flags in the command {op:?}"),
                call(number, &[cmd | 1 << 12, NOWHERE, 0]),
                Err(Errno::Einval),
            );
        }
    }
    for op in [GrantOp::SwapGrantRef, GrantOp::CacheFlush, GrantOp::UnmapAndReplace] {
        let cmd = u64::from(op.number());
        tap.is(format_args!("grant_table_op: a batch of no {op:?}"), call(number, &[cmd, NOWHERE, 0]), Ok(0));
        tap.is(
            format_args!("grant_table_op: a batch of {op:?} at a bad address"),
            call(number, &[cmd, NOWHERE, 1]),
            Err(Errno::Efault),
        );
    }
    for op in [
        GrantOp::GetStatusFrames,
        GrantOp::QuerySize,
        GrantOp::SetupTable,
        GrantOp::GetVersion,
        GrantOp::SetVersion,
    ] {
        let cmd = u64::from(op.number());
        tap.is(
            format_args!("grant_table_op: one element of {op:?} at a bad address"),
            call(number, &[cmd, NOWHERE, 1]),
            Err(Errno::Efault),
        );
    }
    tap.is("grant_table_op.get_status_frames of two", call(number, &[9, NOWHERE, 2]), Err(Errno::Einval));
    tap.is("grant_table_op.transfer", call(number, &[4, NOWHERE, 1]), Err(Errno::Eopnotsupp));
    for (dom, expected) in [(DomId::SELF, GrantStatus::Okay), (raw::NOBODY, GrantStatus::BadDomain)] {
        let mut frames = [0u64; 3];
        let frame_list = GuestHandle(raw::address(&mut frames));
        let mut ask = GetStatusFrames { nr_frames: 0, dom, frame_list, ..Default::default() };
        let answer = raw::grant(GrantOp::GetStatusFrames, &mut ask, |ask| ask.status);
        tap.is(
            format_args!("grant_table_op.get_status_frames of no frame of domain {:#x}", dom.0),
            answer,
            Ok(expected),
        );
        let mut ask = GetStatusFrames { nr_frames: 1, ..ask };
        let answer = raw::grant(GrantOp::GetStatusFrames, &mut ask, |ask| ask.status);
        let expected = if expected == GrantStatus::Okay { GrantStatus::GeneralError } else { expected };
        tap.is(
            format_args!("grant_table_op.get_status_frames of one frame of domain {:#x}", dom.0),
            answer,
            Ok(expected),
        );
    }
    let mut sizes = QuerySize { dom: DomId::SELF, ..Default::default() };
    let answer = raw::grant(GrantOp::QuerySize, &mut sizes, |it| it.status);
    tap.is("grant_table_op.query_size", (answer, sizes.max_nr_frames), (Ok(GrantStatus::Okay), 64));
    let mut sizes = QuerySize { dom: raw::NOBODY, ..Default::default() };
    let answer = raw::grant(GrantOp::QuerySize, &mut sizes, |it| it.status);
    tap.is("grant_table_op.query_size of nobody's", answer, Ok(GrantStatus::BadDomain));
    let mut list = [0u64; 64];
    let frame_list = GuestHandle(list.as_mut_ptr().expose_provenance() as u64);
    for (nr_frames, expected) in [
        (0, GrantStatus::Okay),
        (64, GrantStatus::Okay),
        (65, GrantStatus::GeneralError),
        (u32::MAX, GrantStatus::GeneralError),
    ] {
        let mut setup = SetupTable { dom: DomId::SELF, nr_frames, frame_list, ..Default::default() };
        let answer = raw::grant(GrantOp::SetupTable, &mut setup, |it| it.status);
        tap.is(format_args!("grant_table_op.setup_table of {nr_frames} frames"), answer, Ok(expected));
    }
    let highest = 64 * 512 - 1;
    for (a, b, expected) in [
        (highest, highest, GrantStatus::Okay),
        (highest, highest - 1, GrantStatus::Okay),
        (highest + 1, highest, GrantStatus::BadGntref),
        (highest, highest + 1, GrantStatus::BadGntref),
        (u32::MAX, u32::MAX, GrantStatus::BadGntref),
    ] {
        let mut swap = SwapGrantRef { ref_a: GrantRef(a), ref_b: GrantRef(b), ..Default::default() };
        let answer = raw::grant(GrantOp::SwapGrantRef, &mut swap, |it| it.status);
        tap.is(
            format_args!("grant_table_op.swap_grant_ref of references {a:#x} and {b:#x}"),
            answer,
            Ok(expected),
        );
    }
    for version in [0, 1, 2, 3, u32::MAX] {
        let expected = match version {
            1 => Ok(0),
            2 => Err(Errno::Enosys),
            _ => Err(Errno::Einval),
        };
        let mut set = SetVersion { version };
        let answer = raw::grants(u64::from(GrantOp::SetVersion.number()), core::slice::from_mut(&mut set));
        tap.is(format_args!("grant_table_op.set_version {version}"), answer, expected);
        tap.is(format_args!("grant_table_op.set_version {version} tells the version"), set.version, 1);
    }
    for dom in [DomId::SELF, DomId(0), DomId::INVALID] {
        let mut ask = GetVersion { dom, ..Default::default() };
        let answer = raw::grants(u64::from(GrantOp::GetVersion.number()), core::slice::from_mut(&mut ask));
        let expected = if dom == DomId::SELF { Ok(0) } else { Err(Errno::Esrch) };
        tap.is(format_args!("grant_table_op.get_version of domain {:#x}", dom.0), answer, expected);
    }
    for handle in [0, 1, 1 << 16, u32::MAX] {
        let (host_addr, handle) = (FREE << 12, GrantHandle(handle));
        let mut replace = UnmapAndReplace { host_addr, new_addr: host_addr, handle, ..Default::default() };
        let answer = raw::grant(GrantOp::UnmapAndReplace, &mut replace, |it| it.status);
        tap.is(
            format_args!("grant_table_op.unmap_and_replace of handle {:#x}, that is not in use", handle.0),
            answer,
            Ok(GrantStatus::BadHandle),
        );
        let mut unmap = UnmapGrantRef { host_addr, handle, ..Default::default() };
        let answer = raw::grant(GrantOp::UnmapGrantRef, &mut unmap, |it| it.status);
        tap.is(
            format_args!("grant_table_op.unmap_grant_ref of handle {:#x}, that is not in use", handle.0),
            answer,
            Ok(GrantStatus::BadHandle),
        );
    }
    let mapped = |reference| {
        let flags = MapFlags::HOST_MAP.bits();
        let own = own_id().unwrap_or(raw::NOBODY);
        let mut map = MapGrantRef {
            host_addr: FREE << 12,
            flags,
            gref: GrantRef(reference),
            dom: own,
            ..Default::default()
        };
        raw::grant(GrantOp::MapGrantRef, &mut map, |it| it.status)
    };
    tap.is(
        "grant_table_op.map_grant_ref of the highest reference, which grants nothing",
        mapped(highest),
        Ok(GrantStatus::GeneralError),
    );
    tap.is(
        "grant_table_op.map_grant_ref of the one behind it",
        mapped(highest + 1),
        Ok(GrantStatus::BadGntref),
    );
    copies(tap, highest);
    flushes(tap);
}

fn copies(tap: &mut Tap, last: u32) {
    let (from, to) = (Frame::boxed(), Frame::boxed());
    let ends = |source_offset, dest_offset| {
        let pointer =
            |frame: &Frame, offset| CopyPtr { ref_or_gfn: gfn(frame), domid: DomId::SELF, offset, pad: 0 };
        (pointer(&from, source_offset), pointer(&to, dest_offset))
    };
    for (source_offset, dest_offset, len, expected) in [
        (0, 0, 4096, GrantStatus::Okay),
        (0, 0, 4097, GrantStatus::BadCopyArg),
        (4095, 0, 1, GrantStatus::Okay),
        (4095, 0, 2, GrantStatus::BadCopyArg),
        (0, 4095, 1, GrantStatus::Okay),
        (0, 4095, 2, GrantStatus::BadCopyArg),
        (4096, 0, 1, GrantStatus::BadCopyArg),
        (0, u16::MAX, u16::MAX, GrantStatus::BadCopyArg),
    ] {
        let (source, dest) = ends(source_offset, dest_offset);
        let mut copy = GrantCopy { source, dest, len, ..Default::default() };
        let answer = raw::grant(GrantOp::Copy, &mut copy, |it| it.status);
        tap.is(
            format_args!("grant_table_op.copy of {len} bytes from {source_offset} to {dest_offset}"),
            answer,
            Ok(expected),
        );
    }
    for (reference, domid, expected) in [
        (last, DomId::SELF, GrantStatus::GeneralError),
        (last + 1, DomId::SELF, GrantStatus::BadGntref),
        (0, raw::NOBODY, GrantStatus::BadDomain),
    ] {
        let (source, dest) = ends(0, 0);
        let source = CopyPtr { ref_or_gfn: u64::from(reference), domid, ..source };
        let mut copy =
            GrantCopy { source, dest, len: 1, flags: CopyFlags::SOURCE_GREF.bits(), ..Default::default() };
        let answer = raw::grant(GrantOp::Copy, &mut copy, |it| it.status);
        tap.is(
            format_args!("grant_table_op.copy from reference {reference:#x} of domain {:#x}", domid.0),
            answer,
            Ok(expected),
        );
    }
    let (source, dest) = ends(0, 0);
    let mut copy =
        GrantCopy { source, dest: CopyPtr { ref_or_gfn: FREE, ..dest }, len: 1, ..Default::default() };
    tap.is(
        "grant_table_op.copy to where nothing is",
        raw::grant(GrantOp::Copy, &mut copy, |it| it.status),
        Ok(GrantStatus::BadPage),
    );
}

fn flushes(tap: &mut Tap) {
    let own = own_id().unwrap_or(raw::NOBODY);
    let frame = Frame::boxed();
    let Ok(grant) = Grant::new(frame, own, Access::ReadWrite) else {
        return tap.that("a page is granted", false);
    };
    let flags = MapFlags::HOST_MAP.bits();
    let mut map =
        MapGrantRef { host_addr: FREE << 12, flags, gref: grant.reference(), dom: own, ..Default::default() };
    let answer = raw::grant(GrantOp::MapGrantRef, &mut map, |it| it.status);
    tap.is("grant_table_op.map_grant_ref at the region's last page", answer, Ok(GrantStatus::Okay));
    let machine = map.dev_bus_addr;
    let flush = |address: u64, offset: u16, length: u16, op: u32| {
        let mut flush = CacheFlush { addr_or_ref: address, offset, length, op };
        raw::grants(u64::from(GrantOp::CacheFlush.number()), core::slice::from_mut(&mut flush))
    };
    for (offset, length, op, expected) in [
        (0, 4096, 1, Ok(0)),
        (0, 4096, 2, Ok(0)),
        (0, 4096, 3, Ok(0)),
        (4095, 1, 3, Ok(0)),
        (0, 0, 3, Ok(0)),
        (0, 4096, 0, Ok(0)),
        (4096, 0, 3, Err(Errno::Einval)),
        (0, 4097, 3, Err(Errno::Einval)),
        (4095, 2, 3, Err(Errno::Einval)),
        (0, 4096, 4, Err(Errno::Einval)),
        (0, 4096, 1 << 31, Err(Errno::Einval)),
    ] {
        tap.is(
            format_args!("grant_table_op.cache_flush of {length} bytes at {offset}, operation {op:#x}"),
            flush(machine, offset, length, op),
            expected,
        );
    }
    let mut own = CacheFlush { addr_or_ref: machine, offset: 0, length: 64, op: 3 };
    tap.is(
        "grant_table_op.cache_flush of one's own that goes on at a reference",
        raw::grants(u64::from(GrantOp::CacheFlush.number()) | 1 << 12, core::slice::from_mut(&mut own)),
        Ok(0),
    );
    // Machine memory of ARM ends at 48 bits, and no board has all of it.
    tap.is("grant_table_op.cache_flush of no memory", flush(0xFFFF_FFFF_F000, 0, 64, 3), Err(Errno::Einval));
    let mut swap = SwapGrantRef { ref_a: grant.reference(), ref_b: GrantRef(300), ..Default::default() };
    tap.is(
        "grant_table_op.swap_grant_ref of one in use",
        raw::grant(GrantOp::SwapGrantRef, &mut swap, |it| it.status),
        Ok(GrantStatus::Eagain),
    );
    let mut unmap = UnmapGrantRef { host_addr: FREE << 12, handle: map.handle, ..Default::default() };
    let mut cover = AddToPhysmap { domid: DomId::SELF, space: 1, idx: 63, gpfn: FREE, ..Default::default() };
    tap.is(
        "memory_op.add_to_physmap over a mapped grant",
        memory_op(MemoryOp::AddToPhysmap, 0, &mut cover),
        Ok(0),
    );
    tap.is(
        "grant_table_op.unmap_grant_ref where something else is by now",
        raw::grant(GrantOp::UnmapGrantRef, &mut unmap, |it| it.status),
        Ok(GrantStatus::GeneralError),
    );
    let mut uncover = RemoveFromPhysmap { domid: DomId::SELF, pad: [0; 3], gpfn: FREE };
    tap.is(
        "memory_op.remove_from_physmap of what covers it",
        memory_op(MemoryOp::RemoveFromPhysmap, 0, &mut uncover),
        Ok(0),
    );
    tap.is(
        "grant_table_op.unmap_grant_ref at its page",
        raw::grant(GrantOp::UnmapGrantRef, &mut unmap, |it| it.status),
        Ok(GrantStatus::Okay),
    );
    tap.is(
        "grant_table_op.unmap_grant_ref once",
        raw::grant(GrantOp::UnmapGrantRef, &mut unmap, |it| it.status),
        Ok(GrantStatus::BadHandle),
    );
    let Ok(frame) = grant.end() else { return tap.that("nothing holds the page", false) };
    let mut extents = [gfn(&frame)];
    let mut one = Reservation {
        extent_start: GuestHandle(raw::address(&mut extents)),
        nr_extents: 1,
        domid: DomId::SELF,
        ..Default::default()
    };
    let gone = memory_op(MemoryOp::DecreaseReservation, 0, &mut one);
    tap.is("memory_op.decrease_reservation of a page that was granted", gone, Ok(1));
    if gone == Ok(1) {
        tap.is(
            "grant_table_op.cache_flush of memory that is nobody's",
            flush(machine, 0, 64, 3),
            Err(Errno::Eperm),
        );
        let back = memory_op(MemoryOp::PopulatePhysmap, 0, &mut one);
        tap.is("memory_op.populate_physmap where it was", back, Ok(1));
    }
}
