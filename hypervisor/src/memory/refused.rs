//! The operations of `memory_op` that exist on ARM and do nothing for a guest: it hears what Xen answers, in the order in which Xen looks
//! (`common/memory.c`).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use core::mem::offset_of;

use pv_abi::memory::{
    AcquireResource, EXACT_NODE_REQUEST, MAX_ORDER, MemoryExchange, NODE_BITS, Reservation,
    ReservedDeviceMap, VnumaTopology,
};
use pv_abi::{Errno, GuestHandle};

use super::own;
use crate::addr::Gfn;
use crate::guest_memory;
use crate::hardware::Hardware;
use crate::hypercall::Answer;
use crate::machine::{Current, Machine};
use crate::stage2::Kind;

/// Whether a guest asks for a NUMA node of its choice and no other: not a guest's to say.
pub(super) const fn wants_node(mem_flags: u32) -> bool {
    mem_flags & NODE_BITS != 0 && mem_flags & EXACT_NODE_REQUEST != 0
}

/// `XENMEM_exchange`: no page can be taken from its domain on ARM, so the first one ends it. What was done is told, whatever happens.
pub(super) fn exchange<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, arg: GuestHandle) -> Answer {
    let asked: MemoryExchange = guest_memory::read(machine, current, arg)?;
    match first_page(machine, current, &asked) {
        Ok(()) => Ok(0),
        Err((errno, done)) => {
            let at = u64::try_from(offset_of!(MemoryExchange, nr_exchanged)).ok();
            let at = at.and_then(|offset| arg.0.checked_add(offset)).ok_or(Errno::Efault)?;
            guest_memory::write(machine, current, GuestHandle(at), &done)?;
            Err(errno.into())
        }
    }
}

/// Why the first page is not exchanged, and what to tell as done; nothing is wrong when there is none to do.
fn first_page<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    asked: &MemoryExchange,
) -> Result<(), (Errno, u64)> {
    let MemoryExchange { input, output, nr_exchanged } = asked;
    let refuse = |errno| Err((errno, *nr_exchanged));
    if input.extent_order.max(output.extent_order) > MAX_ORDER {
        return refuse(Errno::Eperm);
    }
    let frames = |of: &Reservation| {
        of.nr_extents.checked_shl(of.extent_order).filter(|frames| frames >> of.extent_order == of.nr_extents)
    };
    let sizes = (frames(input), frames(output));
    if *nr_exchanged > input.nr_extents
        || input.domid != output.domid
        || sizes.0.is_none()
        || sizes.0 != sizes.1
    {
        return refuse(Errno::Einval);
    }
    if *nr_exchanged == input.nr_extents {
        return Ok(());
    }
    if wants_node(output.mem_flags) {
        return refuse(Errno::Einval);
    }
    let domain = match own(machine, current, input.domid) {
        Ok(domain) => domain,
        Err(errno) => return refuse(errno),
    };
    // It goes in chunks of the larger order's size.
    let chunk = output.extent_order.saturating_sub(input.extent_order);
    let first = (nr_exchanged >> chunk).wrapping_shl(chunk);
    let gfn = guest_memory::element::<u64>(input.extent_start, first)
        .and_then(|at| guest_memory::read::<u64, H>(machine, current, at))
        .map_err(|errno| (errno, first))?;
    let there = Gfn::new(gfn).and_then(|gfn| domain.state.lock().stage2.lookup(&machine.hw, gfn));
    match there.map(|mapping| mapping.kind) {
        None | Some(Kind::Device) => Err((Errno::Einval, first)),
        Some(
            Kind::Ram
            | Kind::Shared
            | Kind::GrantWritable
            | Kind::GrantReadOnly
            | Kind::Data
            | Kind::Table
            | Kind::Text,
        ) => Err((Errno::Eopnotsupp, first)),
    }
}

/// `XENMEM_claim_pages`: the control domain's.
pub(super) fn claim_pages<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    arg: GuestHandle,
) -> Errno {
    match guest_memory::read::<Reservation, H>(machine, current, arg) {
        Err(errno) => errno,
        Ok(it) if !it.extent_start.is_null() || it.extent_order != 0 || it.mem_flags != 0 => Errno::Einval,
        Ok(it) if machine.domain(it.domid).is_none() => Errno::Einval,
        Ok(_) => Errno::Eperm,
    }
}

/// `XENMEM_get_vnumainfo`: no domain has virtual nodes.
pub(super) fn vnuma<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, arg: GuestHandle) -> Errno {
    match guest_memory::read::<VnumaTopology, H>(machine, current, arg) {
        Err(errno) => errno,
        Ok(it) if it.pad != 0 => Errno::Einval,
        Ok(it) => own(machine, current, it.domid).err().unwrap_or(Errno::Eopnotsupp),
    }
}

/// `XENMEM_reserved_device_memory_map`: there is none, and that is told.
pub(super) fn reserved_device_map<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    arg: GuestHandle,
) -> Answer {
    let asked: ReservedDeviceMap = guest_memory::read(machine, current, arg)?;
    if asked.flags > 1 {
        return Err(Errno::Einval.into());
    }
    guest_memory::write(machine, current, arg, &ReservedDeviceMap { nr_entries: 0, ..asked })?;
    Ok(0)
}

/// `XENMEM_acquire_resource`: a device model's; `DOMID_SELF` names nobody here.
pub(super) fn acquire_resource<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    arg: GuestHandle,
) -> Errno {
    match guest_memory::read::<AcquireResource, H>(machine, current, arg) {
        Err(errno) => errno,
        Ok(it) if it.pad != 0 => Errno::Einval,
        Ok(it) if it.frame.checked_add(u64::from(it.nr_frames)).is_none_or(|end| end >> 32 != 0) => {
            Errno::Einval
        }
        Ok(it) if machine.domain(it.domid).is_none() => Errno::Esrch,
        Ok(_) => Errno::Eperm,
    }
}
