//! `grant_table_op`: the table, mapping and unmapping, with one's own pages.
use guest_kernel::event::own_id;
use guest_kernel::frame::Frame;
use guest_kernel::grant::{Access, Grant, GrantError, MappedGrant};
use pv_abi::grant::{
    GetVersion, GrantOp, GrantStatus, MapFlags, MapGrantRef, QuerySize, SetVersion, SetupTable, UnmapGrantRef,
};
use pv_abi::layout::{GRANT_TABLE_BASE, GRANT_TABLE_SIZE};
use pv_abi::{DomId, Errno, GrantHandle, GrantRef, GuestHandle, Hypercall};

use super::raw::{self, NOBODY, NOWHERE};
use super::tap::Tap;

/// A place where nothing is: the last page of the grant region.
const FREE: u64 = GRANT_TABLE_BASE + GRANT_TABLE_SIZE - 4096;

pub(crate) fn check(tap: &mut Tap) {
    let Ok(own) = own_id() else {
        return tap.that("own id", false);
    };
    table(tap);
    mapping(tap, own);
    refusals(tap, own);
}

fn table(tap: &mut Tap) {
    let query = |dom| {
        let mut size = QuerySize { dom, ..Default::default() };
        raw::grant(GrantOp::QuerySize, &mut size, |size| size.status)
            .map(|status| (status, size.max_nr_frames))
    };
    tap.is("query_size", query(DomId::SELF), Ok((GrantStatus::Okay, 64)));
    tap.is("query_size of nobody", query(NOBODY).map(|answer| answer.0), Ok(GrantStatus::BadDomain));

    let mut frames = [0u64; 2];
    let mut setup = |dom, nr_frames, list: Option<u64>| {
        let list = list.unwrap_or(frames.as_mut_ptr().expose_provenance() as u64);
        let mut setup = SetupTable { dom, nr_frames, frame_list: GuestHandle(list), ..Default::default() };
        raw::grant(GrantOp::SetupTable, &mut setup, |setup| setup.status)
    };
    tap.is("setup_table of one frame", setup(DomId::SELF, 1, None), Ok(GrantStatus::Okay));
    tap.is(
        "setup_table of too many frames",
        setup(DomId::SELF, 65, Some(NOWHERE)),
        Ok(GrantStatus::GeneralError),
    );
    tap.is("setup_table of nobody's", setup(NOBODY, 1, None), Ok(GrantStatus::BadDomain));
    tap.is("setup_table with a bad list", setup(DomId::SELF, 1, Some(NOWHERE)), Ok(GrantStatus::BadVirtAddr));

    let version = |dom| {
        let mut version = GetVersion { dom, ..Default::default() };
        raw::grants(u64::from(GrantOp::GetVersion.number()), core::slice::from_mut(&mut version))
            .map(|_| version.version)
    };
    tap.is("the table's version is 1", version(DomId::SELF), Ok(1));
    tap.is("get_version of nobody's", version(NOBODY), Err(Errno::Esrch));
    let set = |version| raw::grants(u64::from(GrantOp::SetVersion.number()), &mut [SetVersion { version }]);
    tap.is("set_version 1", set(1), Ok(0));
    tap.is("set_version 2 is refused", set(2), Err(Errno::Enosys));
    tap.is("set_version 3 does not exist", set(3), Err(Errno::Einval));
}

fn mapping(tap: &mut Tap, own: DomId) {
    let frame = Frame::boxed();
    frame.write(b"granted");
    let Ok(grant) = Grant::new(frame, own, Access::ReadWrite) else {
        return tap.that("a page is granted", false);
    };
    match MappedGrant::map(own, grant.reference(), Access::ReadWrite) {
        Ok(mapped) => {
            let mut bytes = [0; 7];
            mapped.read(&mut bytes);
            tap.is("a mapping shows the page", bytes, *b"granted");
            if let Some(page) = mapped.frame() {
                page.write(b"written");
            }
            grant.frame().read(&mut bytes);
            tap.is("and writes to it", bytes, *b"written");
            let Err(grant) = grant.end() else {
                return tap.that("a mapped page cannot be taken back", false);
            };
            tap.that("a mapped page cannot be taken back", true);
            tap.is("unmapping", mapped.unmap(), Ok(()));
            tap.that("then it can", grant.end().is_ok());
        }
        Err(why) => tap.is("mapping one's own page", Some(why), None),
    }
    let Ok(grant) = Grant::new(Frame::boxed(), own, Access::ReadOnly) else {
        return tap.that("a page is granted for reading", false);
    };
    let refused = MappedGrant::map(own, grant.reference(), Access::ReadWrite).err();
    tap.is(
        "a read-only grant is not mapped writable",
        refused,
        Some(GrantError::Status(GrantStatus::GeneralError)),
    );
    let first = MappedGrant::map(own, grant.reference(), Access::ReadOnly);
    let second = MappedGrant::map(own, grant.reference(), Access::ReadOnly);
    tap.that("it is mapped for reading, twice", first.is_ok() && second.is_ok());
    drop(first);
    let Err(grant) = grant.end() else {
        return tap.that("one of two mappings holds it", false);
    };
    drop(second);
    tap.that("both gone, it can be taken back", grant.end().is_ok());
}

fn map(dom: DomId, gref: u32, flags: MapFlags) -> Result<GrantStatus, Errno> {
    let mut element =
        MapGrantRef { host_addr: FREE, flags: flags.bits(), gref: GrantRef(gref), dom, ..Default::default() };
    raw::grant(GrantOp::MapGrantRef, &mut element, |element| element.status)
}

fn unmap(handle: GrantHandle) -> Result<GrantStatus, Errno> {
    let mut element = UnmapGrantRef { host_addr: FREE, handle, ..Default::default() };
    raw::grant(GrantOp::UnmapGrantRef, &mut element, |element| element.status)
}

fn refusals(tap: &mut Tap, own: DomId) {
    let host = MapFlags::HOST_MAP;
    tap.is("map of a reference that is not granted", map(own, 500, host), Ok(GrantStatus::GeneralError));
    tap.is("map of a reference beyond the table", map(own, 1 << 20, host), Ok(GrantStatus::BadGntref));
    tap.is("map of nobody's reference", map(NOBODY, 8, host), Ok(GrantStatus::BadDomain));
    if let Ok(grant) = Grant::new(Frame::boxed(), own, Access::ReadWrite) {
        let live = grant.reference().0;
        tap.is(
            "map for neither CPU nor device",
            map(own, live, MapFlags::empty()),
            Ok(GrantStatus::BadGntref),
        );
        tap.is(
            "map by page-table entry",
            map(own, live, host | MapFlags::CONTAINS_PTE),
            Ok(GrantStatus::GeneralError),
        );
        tap.is(
            "map of own reference by DOMID_SELF",
            map(DomId::SELF, live, MapFlags::empty()),
            Ok(GrantStatus::BadGntref),
        );
        tap.that("nothing of these holds the page", grant.end().is_ok());
    }
    if let Ok(grant) = Grant::new(Frame::boxed(), NOBODY, Access::ReadWrite) {
        tap.is(
            "map of what another was granted",
            map(own, grant.reference().0, host),
            Ok(GrantStatus::GeneralError),
        );
    }
    tap.is("unmap of a handle that is not in use", unmap(GrantHandle(0)), Ok(GrantStatus::BadHandle));
    tap.is("unmap of a handle that cannot be", unmap(GrantHandle::INVALID), Ok(GrantStatus::BadHandle));

    let number = u64::from(Hypercall::GrantTableOp.number());
    for which in GrantOp::ALL
        .iter()
        .filter(|op| matches!(op, GrantOp::MapGrantRef | GrantOp::UnmapGrantRef | GrantOp::Copy))
    {
        let op = u64::from(which.number());
        tap.is(format_args!("a batch of no {which:?}"), raw::call(number, &[op, NOWHERE, 0]), Ok(0));
        tap.is(
            format_args!("a batch of {which:?} at a bad address"),
            raw::call(number, &[op, NOWHERE, 1]),
            Err(Errno::Efault),
        );
        tap.is(
            format_args!("a batch of a negative number of {which:?}"),
            raw::call(number, &[op, NOWHERE, 0x8000_0000]),
            Err(Errno::Einval),
        );
    }
    tap.is("an unknown operation", raw::call(number, &[99, NOWHERE, 1]), Err(Errno::Enosys));
    tap.is(
        "dump_table",
        raw::call(number, &[u64::from(GrantOp::DumpTable.number()), NOWHERE, 1]),
        Err(Errno::Enosys),
    );
    for (what, op) in [("query_size", GrantOp::QuerySize), ("setup_table", GrantOp::SetupTable)] {
        let op = u64::from(op.number());
        tap.is(
            format_args!("one element only for {what}"),
            raw::call(number, &[op, NOWHERE, 2]),
            Err(Errno::Einval),
        );
    }
}
