//! `XENMEM_add_to_physmap_batch`: one space, many indexes, each with a guest frame and an answer of its own.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]
use pv_abi::memory::{AddToPhysmapBatch, MEMOP_CMD_MASK, MEMOP_EXTENT_SHIFT, MapSpace};
use pv_abi::{DomId, Errno, GuestHandle};

use super::{add_one, permitted};
use crate::guest_memory;
use crate::hardware::Hardware;
use crate::hypercall::{Answer, Args, Stop};
use crate::machine::{Current, Machine};
use crate::stretch::Stretch;

/// Elements that one run does at most before it lets interrupts in.
const BUDGET: u32 = 16;

/// Places many pages.
///
/// # Errors
/// `-EDOM` for progress beyond 16 bits, `-EFAULT`, `-EOPNOTSUPP` for ranges, `-ESRCH`, `-EACCES`, `-EPERM`, `-EILSEQ` for progress beyond the
/// end, `-EINVAL` for the guest frame that there cannot be; those before it are done. Restarts.
pub(super) fn add_to_physmap_batch<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    args: &Args,
) -> Answer {
    let [cmd, arg, a2, a3, a4] = *args;
    let first = u16::try_from(cmd >> MEMOP_EXTENT_SHIFT).map_err(|_| Errno::Edom)?;
    let batch: AddToPhysmapBatch = guest_memory::read(machine, current, GuestHandle(arg))?;
    let space = MapSpace::from_number(u32::from(batch.space));
    if space == Some(MapSpace::GmfnRange) {
        return Err(Errno::Eopnotsupp.into());
    }
    let domain = permitted(machine, current, batch.domid, space)?;
    if batch.size <= first {
        return if batch.size == 0 && first == 0 { Ok(0) } else { Err(Errno::Eilseq.into()) };
    }
    let end =
        batch.size.min(first.saturating_add(u16::try_from(machine.hw.budget(BUDGET)).unwrap_or(u16::MAX)));
    let from = |index: u16| {
        Args::from([cmd & MEMOP_CMD_MASK | u64::from(index) << MEMOP_EXTENT_SHIFT, arg, a2, a3, a4])
    };
    let run = Stretch::begin(machine, current);
    for index in first..end {
        if index != first && run.is_long(machine) {
            return Err(Stop::Restart(from(index)));
        }
        let number = u64::from(index);
        let idx: u64 =
            guest_memory::read(machine, current, guest_memory::element::<u64>(batch.idxs, number)?)?;
        let gpfn: u64 =
            guest_memory::read(machine, current, guest_memory::element::<u64>(batch.gpfns, number)?)?;
        if gpfn == u64::MAX {
            return Err(Errno::Einval.into());
        }
        let result = match space {
            Some(MapSpace::GmfnForeign) => Err(foreign(machine, batch.foreign_domid).into()),
            _ => add_one(machine, domain, space, idx, gpfn, &from(index)),
        };
        let error = match result {
            Ok(()) => 0,
            Err(Stop::Errno(errno)) => errno.value().wrapping_neg(),
            Err(restart @ Stop::Restart(_)) => return Err(restart),
        };
        guest_memory::write(machine, current, guest_memory::element::<i32>(batch.errs, number)?, &error)?;
    }
    if end < batch.size { Err(Stop::Restart(from(end))) } else { Ok(0) }
}

/// Why another domain's frames are not to be had: Xen lets only a privileged domain. One's own number names no other, and `DOMID_SELF` nobody here.
fn foreign<H: Hardware>(machine: &Machine<H>, owner: DomId) -> Errno {
    if owner == DomId::XEN || machine.present(owner).is_some() { Errno::Eperm } else { Errno::Esrch }
}
