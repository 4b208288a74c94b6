//! What the calls share: an array of requests, how many are done, and whose tables; a mask of vCPUs.
//!
//! The count of what is done is exact: it is written when the batch ends, for whatever reason, and when it restarts; a restarted batch
//! goes on from the count that it finds ([`PREEMPTED`]). The first refusal ends the batch and keeps what was done before.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]
use pv_abi::paging::PREEMPTED;
use pv_abi::{DomId, Errno, GuestHandle};

use crate::guest_memory;
use crate::hardware::Hardware;
use crate::hypercall::{Answer, Args, Stop, low_u32};
use crate::machine::{Current, Machine};

/// A batch under way.
pub(super) struct Batch {
    /// The next request.
    pub(super) at: GuestHandle,
    /// How many are left.
    pub(super) left: u32,
    done: u32,
    count_at: GuestHandle,
    rest: [u64; 2],
}

impl Batch {
    /// Takes the arguments of a call: requests, count, where the count of those done goes (or null), whose tables.
    ///
    /// # Errors
    /// `-ENOSYS` in a domain with tables of its own, `-ESRCH` and `-EPERM` for others' tables, `-EFAULT`.
    pub(super) fn begin<H: Hardware>(
        machine: &Machine<H>,
        current: &Current<'_>,
        args: &Args,
    ) -> Result<Self, Errno> {
        let [at, count, count_at, domain, rest] = *args;
        if current.domain.paging().is_none() {
            return Err(Errno::Enosys);
        }
        // The upper half could name another domain, whose tables these are.
        let other = low_u32(domain) >> 16 != 0;
        let domid = DomId(u16::try_from(low_u32(domain) & 0xFFFF).map_err(|_| Errno::Esrch)?);
        if other || (domid != DomId::SELF && domid != current.domain.id) {
            return Err(if machine.domain(domid).is_some() { Errno::Eperm } else { Errno::Esrch });
        }
        let count = low_u32(count);
        let resumed = count & PREEMPTED != 0;
        let count_at = GuestHandle(count_at);
        let done = if resumed && !count_at.is_null() {
            guest_memory::read::<u32, H>(machine, current, count_at)?
        } else {
            0
        };
        Ok(Self { at: GuestHandle(at), left: count & !PREEMPTED, done, count_at, rest: [domain, rest] })
    }

    /// Notes that `count` requests of `size` bytes are done.
    pub(super) fn advance(&mut self, count: u32, size: usize) {
        let bytes = u64::from(count).wrapping_mul(size as u64);
        self.at = GuestHandle(self.at.0.wrapping_add(bytes));
        self.left = self.left.saturating_sub(count);
        self.done = self.done.wrapping_add(count);
    }

    /// Ends the run: the call is over, or goes on later when something is left.
    pub(super) fn end<H: Hardware>(
        self,
        machine: &Machine<H>,
        current: &Current<'_>,
        result: Result<(), Errno>,
    ) -> Answer {
        if !self.count_at.is_null() {
            guest_memory::write(machine, current, self.count_at, &self.done)?;
        }
        result?;
        if self.left == 0 {
            return Ok(0);
        }
        let left = u64::from(self.left | PREEMPTED);
        Err(Stop::Restart([self.at.0, left, self.count_at.0, self.rest[0], self.rest[1]]))
    }
}

/// Whether a mask of vCPUs has one of the caller's. Bits of others mean nothing, as in Xen.
#[inline(never)]
pub(super) fn names_a_vcpu<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    mask: u64,
) -> Result<bool, Errno> {
    let mask: u64 = guest_memory::read(machine, current, GuestHandle(mask))?;
    Ok(current.domain.vcpus.iter().any(|vcpu| mask.checked_shr(vcpu.number).unwrap_or(0) & 1 != 0))
}
