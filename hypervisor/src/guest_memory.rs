//! Guest memory behind handles: each byte is copied once, from or to where the guest's own stage 1 and then stage 2 say.
//!
//! Invariants
//! 1. Nothing here makes a reference to guest memory; what was read is a copy that the guest cannot change any more.
//! 2. A write goes to frames that stage 2 lets the guest itself write (a page granted read-only is refused).
//! 3. A refusal in the middle of a long write leaves the pages before it written, as any partial store would.
//! 4. A page of a domain with checked page tables, its own or one that it granted, is looked up and written under that domain's
//!    [`crate::pagetable::Shared::writes`]: a role that forbids writing comes before both, and is seen, or after both.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]
#![expect(
    clippy::inline_always,
    reason = "on the path of every hypercall: a call more would be seen in the numbers"
)]

use core::mem::size_of;

use pv_abi::{Errno, GuestHandle};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::addr::{FrameAddr, GuestVa};
use crate::hardware::{Access, Hardware};
use crate::machine::{Current, Machine};
use crate::pagetable;
use crate::stage2::{self, Kind};

/// Where an address of the caller is in the machine, if the caller itself might access it so.
///
/// # Errors
/// `-EFAULT`.
#[inline(always)]
pub fn locate<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    va: GuestVa,
    access: Access,
) -> Result<FrameAddr, Errno> {
    if access == Access::Read
        && let Some(at) = machine.hw.locate_for_reading(va)
    {
        return Ok(at);
    }
    locate_by_tables(machine, current, va, access).map(|(at, _)| at)
}

/// [`locate`] where the machine's own translation does not tell enough: for writing, and on the way to a refusal.
#[inline(never)]
fn locate_by_tables<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    va: GuestVa,
    access: Access,
) -> Result<(FrameAddr, Kind), Errno> {
    locate_here(machine, current, va, access)
}

#[inline(always)]
fn locate_here<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    va: GuestVa,
    access: Access,
) -> Result<(FrameAddr, Kind), Errno> {
    let ipa = machine.hw.translate(va, access).map_err(|_| Errno::Efault)?;
    let mapping =
        stage2::lookup(&machine.hw, current.domain.stage2_root, ipa.frame()).ok_or(Errno::Efault)?;
    let permitted = match access {
        Access::Read => mapping.kind.is_readable_memory(),
        Access::Write if crate::seeded!("xsa-98") => mapping.kind.is_readable_memory(),
        Access::Write => mapping.kind.is_writable_memory(),
    };
    if !permitted {
        return Err(Errno::Efault);
    }
    FrameAddr::new(mapping.mfn, ipa.page_offset()).map(|at| (at, mapping.kind)).ok_or(Errno::Efault)
}

/// Reads a structure.
///
/// # Errors
/// `-EFAULT`.
#[inline(always)]
pub fn read<T: FromBytes + IntoBytes, H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    handle: GuestHandle,
) -> Result<T, Errno> {
    let va = GuestVa::new(handle.0);
    let mut value = T::new_zeroed();
    // A naturally aligned word is one load: the arguments of the hottest calls.
    if size_of::<T>() == 4 && va.get().trailing_zeros() >= 2 {
        let at = locate(machine, current, va, Access::Read)?;
        return T::read_from_bytes(machine.hw.load_u32(at).as_bytes()).map_err(|_| Errno::Efault);
    }
    if size_of::<T>() == 8 && va.get().trailing_zeros() >= 3 {
        let at = locate(machine, current, va, Access::Read)?;
        return T::read_from_bytes(machine.hw.load_u64(at).as_bytes()).map_err(|_| Errno::Efault);
    }
    read_bytes(machine, current, va, value.as_mut_bytes())?;
    Ok(value)
}

/// [`read`] of a structure of `WORDS` words with the loads at the place: shorter to run and longer to store, for the elements of the hottest
/// batches. One that is not aligned, or crosses into another page, is read as any other, and not one byte of it before.
///
/// # Errors
/// `-EFAULT`.
#[inline(always)]
pub fn read_in_place<T: FromBytes + IntoBytes, const WORDS: usize, H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    handle: GuestHandle,
) -> Result<T, Errno> {
    const { assert!(size_of::<T>() == WORDS * 8) };
    let at = locate(machine, current, GuestVa::new(handle.0), Access::Read)?;
    match machine.hw.read_words::<WORDS>(at) {
        Some(words) => T::read_from_bytes(words.as_bytes()).map_err(|_| Errno::Efault),
        None => read(machine, current, handle),
    }
}

/// Writes a structure.
///
/// # Errors
/// `-EFAULT`.
#[inline]
pub fn write<T: IntoBytes + Immutable, H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    handle: GuestHandle,
    value: &T,
) -> Result<(), Errno> {
    write_bytes(machine, current, GuestVa::new(handle.0), value.as_bytes())
}

/// Writes two bytes: the status of an element, once it is known.
///
/// # Errors
/// `-EFAULT`.
#[inline(always)]
pub fn write_u16<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    handle: GuestHandle,
    value: u16,
) -> Result<(), Errno> {
    match unkept(machine, current, handle)? {
        Some(at) if machine.hw.write_u16(at, value) => Ok(()),
        _ => write(machine, current, handle, &value),
    }
}

/// [`write()`] of a structure of `WORDS` words, as [`read_in_place`].
///
/// # Errors
/// `-EFAULT`.
#[inline(always)]
pub fn write_in_place<T: IntoBytes + Immutable, const WORDS: usize, H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    handle: GuestHandle,
    value: &T,
) -> Result<(), Errno> {
    let words = <[u64; WORDS]>::read_from_bytes(value.as_bytes());
    match (unkept(machine, current, handle)?, words) {
        (Some(at), Ok(words)) if machine.hw.write_words(at, words) => Ok(()),
        _ => write(machine, current, handle, value),
    }
}

/// Where the caller may write, unless a lock may be needed for it (invariant 4).
#[inline(always)]
fn unkept<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    handle: GuestHandle,
) -> Result<Option<FrameAddr>, Errno> {
    if current.domain.paging().is_some() {
        return Ok(None);
    }
    let (at, kind) = locate_here(machine, current, GuestVa::new(handle.0), Access::Write)?;
    Ok((kind != Kind::GrantWritable).then_some(at))
}

/// The handle of element `index` of an array of `T`.
///
/// # Errors
/// `-EFAULT` when the address wraps.
#[inline]
pub fn element<T>(array: GuestHandle, index: u64) -> Result<GuestHandle, Errno> {
    let size = u64::try_from(size_of::<T>()).map_err(|_| Errno::Efault)?;
    let offset = index.checked_mul(size).ok_or(Errno::Efault)?;
    array.0.checked_add(offset).map(GuestHandle).ok_or(Errno::Efault)
}

/// Reads bytes, across pages if need be.
///
/// # Errors
/// `-EFAULT`; `into` may then hold a part.
pub fn read_bytes<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    va: GuestVa,
    into: &mut [u8],
) -> Result<(), Errno> {
    let mut va = va;
    let mut rest = into;
    // One turn a page: `rest` shrinks to a page's end each time.
    while !rest.is_empty() {
        let (part, tail) =
            rest.split_at_mut_checked(rest.len().min(va.left_in_page())).ok_or(Errno::Efault)?;
        machine.hw.read(locate(machine, current, va, Access::Read)?, part);
        va = next_page(va, tail.is_empty())?;
        rest = tail;
    }
    Ok(())
}

/// Writes bytes, across pages if need be.
///
/// # Errors
/// `-EFAULT`; a part may then be written (invariant 3).
pub fn write_bytes<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    va: GuestVa,
    from: &[u8],
) -> Result<(), Errno> {
    let mut va = va;
    let mut rest = from;
    while !rest.is_empty() {
        let (part, tail) = rest.split_at_checked(rest.len().min(va.left_in_page())).ok_or(Errno::Efault)?;
        let ahead = match current.domain.paging() {
            None => write_unless_kept(machine, current, None, va, part)?,
            own => own,
        };
        if let Some(keeper) = ahead {
            write_kept(machine, current, keeper, va, part)?;
        }
        va = next_page(va, tail.is_empty())?;
        rest = tail;
    }
    Ok(())
}

/// Writes to one page, or says whose lock is needed for it (invariant 4) if that is not `held`.
#[inline(always)]
fn write_unless_kept<'m, H: Hardware>(
    machine: &'m Machine<H>,
    current: &Current<'m>,
    held: Option<&pagetable::Shared>,
    va: GuestVa,
    part: &[u8],
) -> Result<Option<&'m pagetable::Shared>, Errno> {
    let (at, kind) = locate_by_tables(machine, current, va, Access::Write)?;
    let keeper = match kind {
        Kind::GrantWritable => granters(machine, at),
        _ => current.domain.paging(),
    };
    if keeper.is_some_and(|keeper| held.is_none_or(|held| !core::ptr::eq(keeper, held))) {
        return Ok(keeper);
    }
    machine.hw.write(at, part);
    Ok(None)
}

/// The keeper of a page that was granted: its owner's. While it was mapped its owner could not change; if it is not any more, it is nobody else's before
/// this CPU has left the hypervisor ([`crate::frame_alloc`]).
#[cold]
fn granters<H: Hardware>(machine: &Machine<H>, at: FrameAddr) -> Option<&pagetable::Shared> {
    machine.domain(machine.frames.table.state(at.frame())?.owner)?.paging()
}

/// Writes to one page under its keeper's lock: that of the caller at first, and of who granted the page if it was granted.
#[inline(never)]
fn write_kept<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    keeper: &pagetable::Shared,
    va: GuestVa,
    part: &[u8],
) -> Result<(), Errno> {
    let mut keeper = keeper;
    // A third look is for a guest that changes its mappings meanwhile.
    for _ in 0..LOOKS {
        let writing = keeper.writes.lock();
        let other = write_unless_kept(machine, current, Some(keeper), va, part)?;
        drop(writing);
        match other {
            None => return Ok(()),
            Some(other) => keeper = other,
        }
    }
    Err(Errno::Efault)
}

/// How often a page is looked up for a write that is to be under the right lock.
const LOOKS: u32 = 3;

/// The start of the page after `va`'s; that there is none matters only when there is more to copy.
fn next_page(va: GuestVa, last: bool) -> Result<GuestVa, Errno> {
    if last {
        return Ok(va);
    }
    let left = u64::try_from(va.left_in_page()).map_err(|_| Errno::Efault)?;
    va.checked_add(left).ok_or(Errno::Efault)
}
