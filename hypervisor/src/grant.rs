//! Grant tables, version 1: pages that one domain lets another map, or copy from and to (`common/grant_table.c` is the reference
//! for statuses).
//!
//! Invariants
//! 1. The uses of a reference (`Active`: reads and writes) are the mappings of it that domains track, and the copies under way.
//! 2. Every use holds a reference to the frame, so a granted frame neither changes its owner nor its role while it is used.
//! 3. A grant entry in a domain's stage 2 maps a frame that the domain tracks a mapping of at that guest frame. (A tracked mapping
//!    may have lost its stage-2 entry to something that the domain put there.)
//! 4. `GTF_reading` and `GTF_writing` in a shared entry are set before the use begins and taken away after it has ended.
//! 5. Everything a guest wrote is read once, into a copy: an entry's header by a compare-and-exchange, its frame by one load.
//!
//! Two domains' locks are held together while mapping and unmapping, one at a time while copying. It never trusts what is in a shared
//! table again after a use has begun.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

mod active;
mod afterwards;
mod copy;
mod flush;
mod manage;
mod map;
pub(crate) mod pin;
mod table;

pub(crate) use active::GREF_LIMIT;
pub use active::{Active, MAX_PINS, Track, Use};
pub(crate) use afterwards::{give_up, orphan};
pub(crate) use manage::grow;
pub use table::{GrantState, GrantTables, TRACKS_PER_FRAME, TableFrame};

use core::mem::offset_of;

use pv_abi::grant::{
    GetStatusFrames, GrantCopy, GrantOp, GrantStatus, MapGrantRef, QuerySize, SetupTable, SwapGrantRef,
    UnmapAndReplace, UnmapGrantRef,
};
use pv_abi::{Errno, GuestHandle};

use crate::guest_memory;
use crate::hardware::Hardware;
use crate::hypercall::{Answer, Args, Stop, low_u32};
use crate::machine::{Current, Machine};
use crate::stretch::Stretch;

/// The low bits of `cmd` that are the operation (`GNTTABOP_CMD_MASK`); the rest is progress of a cache flush.
const CMD_MASK: u32 = 0xFFF;
/// Elements of a batch that one run does at most before it lets interrupts in ([`crate::stretch`]).
const BUDGET: u32 = 16;

/// Both are read as the first; the second has the address of a replacement where the first has a bus address.
const _: () = assert!(
    size_of::<UnmapAndReplace>() == size_of::<UnmapGrantRef>()
        && offset_of!(UnmapAndReplace, new_addr) == offset_of!(UnmapGrantRef, dev_bus_addr)
        && offset_of!(UnmapAndReplace, handle) == offset_of!(UnmapGrantRef, handle)
        && offset_of!(UnmapAndReplace, status) == offset_of!(UnmapGrantRef, status)
);

/// `grant_table_op`.
///
/// # Errors
/// `-EFAULT` when an element cannot be read or its status not written (those before it are done), `-EINVAL` for a bad count,
/// `-EOPNOTSUPP` for transfers, `-ENOSYS`. Restarts.
#[inline(never)]
pub fn grant_table_op<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, args: &Args) -> Answer {
    let [cmd, uop, count, ..] = *args;
    let (cmd, at, count) = (low_u32(cmd), GuestHandle(uop), low_u32(count));
    if i32::try_from(count).is_err() {
        return Err(Errno::Einval.into());
    }
    let op = GrantOp::from_number(cmd & CMD_MASK);
    if cmd & !CMD_MASK != 0 && op != Some(GrantOp::CacheFlush) {
        return Err(Errno::Einval.into());
    }
    let op = op.ok_or(Errno::Enosys)?;
    let run = if count > 1 { Stretch::begin(machine, current) } else { Stretch::SHORT };
    let is_over = |done: u32| done >= machine.hw.budget(BUDGET) || run.is_long(machine);
    match op {
        GrantOp::MapGrantRef => batch(
            args,
            (count, is_over),
            |index| {
                let at = guest_memory::element::<MapGrantRef>(at, index)?;
                let mut op = guest_memory::read_in_place::<MapGrantRef, 4, H>(machine, current, at)?;
                op.status = value(map::map(machine, current, &mut op));
                guest_memory::write_in_place::<_, 4, H>(machine, current, at, &op)
            },
            size_of::<MapGrantRef>(),
        ),
        GrantOp::UnmapGrantRef | GrantOp::UnmapAndReplace => batch(
            args,
            (count, is_over),
            |index| {
                let at = guest_memory::element::<UnmapGrantRef>(at, index)?;
                let unmap = guest_memory::read_in_place::<UnmapGrantRef, 3, H>(machine, current, at)?;
                // On ARM nothing can replace a mapping.
                let replaced =
                    op == GrantOp::UnmapAndReplace && unmap.dev_bus_addr != 0 && unmap.host_addr != 0;
                let status = if replaced && map::names_mapping(machine, current, unmap.handle) {
                    GrantStatus::GeneralError.value()
                } else {
                    value(map::unmap(machine, current, &unmap))
                };
                tell(machine, current, at, offset_of!(UnmapGrantRef, status), status)
            },
            size_of::<UnmapGrantRef>(),
        ),
        GrantOp::Copy => batch(
            args,
            (count, is_over),
            |index| {
                let at = guest_memory::element::<GrantCopy>(at, index)?;
                let op = guest_memory::read_in_place::<GrantCopy, 5, H>(machine, current, at)?;
                let status = value(copy::copy(machine, current, &op));
                tell(machine, current, at, offset_of!(GrantCopy, status), status)
            },
            size_of::<GrantCopy>(),
        ),
        GrantOp::SwapGrantRef => batch(
            args,
            (count, is_over),
            |index| {
                let at = guest_memory::element::<SwapGrantRef>(at, index)?;
                let op: SwapGrantRef = guest_memory::read(machine, current, at)?;
                let status = value(manage::swap(machine, current, &op));
                tell(machine, current, at, offset_of!(SwapGrantRef, status), status)
            },
            size_of::<SwapGrantRef>(),
        ),
        GrantOp::CacheFlush => flush::cache_flush(machine, current, args),
        GrantOp::SetupTable => one(count, || {
            let op: SetupTable = guest_memory::read(machine, current, at)?;
            let status = manage::setup_table(machine, current, &op, args)?;
            Ok(tell(machine, current, at, offset_of!(SetupTable, status), status.value())?)
        }),
        GrantOp::QuerySize => one(count, || {
            let mut op: QuerySize = guest_memory::read(machine, current, at)?;
            manage::query_size(machine, current, &mut op);
            Ok(guest_memory::write(machine, current, at, &op)?)
        }),
        GrantOp::GetStatusFrames => one(count, || {
            let op: GetStatusFrames = guest_memory::read(machine, current, at)?;
            let mut size = QuerySize { dom: op.dom, ..QuerySize::default() };
            manage::query_size(machine, current, &mut size);
            // A table of version 1 has none.
            let okay = size.status == GrantStatus::Okay.value() && op.nr_frames != 0;
            let status = if okay { GrantStatus::GeneralError.value() } else { size.status };
            Ok(tell(machine, current, at, offset_of!(GetStatusFrames, status), status)?)
        }),
        GrantOp::SetVersion => Ok(manage::set_version(machine, current, at).map(|()| 0)?),
        GrantOp::GetVersion => Ok(manage::get_version(machine, current, at).map(|()| 0)?),
        GrantOp::Transfer => Err(Errno::Eopnotsupp.into()),
        GrantOp::DumpTable => Err(Errno::Enosys.into()),
    }
}

fn value(result: Result<(), GrantStatus>) -> i16 {
    result.err().unwrap_or(GrantStatus::Okay).value()
}

/// Runs a call that takes one structure.
fn one(count: u32, deed: impl FnOnce() -> Result<(), Stop>) -> Answer {
    if count != 1 {
        return Err(Errno::Einval.into());
    }
    deed().map(|()| 0)
}

/// Does the elements of a batch until the run is over; when some are left, restarts with the array that is.
#[inline]
fn batch(
    args: &Args,
    (count, is_over): (u32, impl Fn(u32) -> bool),
    mut element: impl FnMut(u64) -> Result<(), Errno>,
    size: usize,
) -> Answer {
    let mut now = 0;
    while now < count && (now == 0 || !is_over(now)) {
        element(u64::from(now))?;
        now = now.wrapping_add(1);
    }
    let left = count.wrapping_sub(now);
    if left == 0 || crate::seeded!("xsa-318") {
        return Ok(0);
    }
    let [cmd, uop, _, a3, a4] = *args;
    let size = u64::try_from(size).map_err(|_| Errno::Efault)?;
    let next =
        u64::from(now).checked_mul(size).and_then(|done| uop.checked_add(done)).ok_or(Errno::Efault)?;
    Err(Stop::Restart([cmd, next, u64::from(left), a3, a4]))
}

/// Writes an element's status, and nothing else of it.
fn tell<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    element: GuestHandle,
    offset: usize,
    status: i16,
) -> Result<(), Errno> {
    let offset = u64::try_from(offset).map_err(|_| Errno::Efault)?;
    let at = element.0.checked_add(offset).map(GuestHandle).ok_or(Errno::Efault)?;
    guest_memory::write_u16(machine, current, at, status.cast_unsigned())
}
