//! Taking vCPUs that wait over from other CPUs.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use core::sync::atomic::Ordering::Relaxed;

use super::pool::Kind;
use super::{Scheduler, bit};
use crate::hardware::{CpuId, Hardware};
use crate::machine::Machine;
use crate::vcpu::Vcpu;

/// How far [`Scheduler::steal`] looks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Search {
    /// At who is first in the best queue.
    First,
    /// At everybody: for a CPU that has nothing else to do.
    All,
}

impl Scheduler {
    /// Takes a vCPU that may run here, is in no CPU and is served before `limit` out of another CPU's queue. One queue's lock at a time.
    #[inline(never)]
    pub(super) fn steal<'m, H: Hardware>(
        &self,
        machine: &'m Machine<H>,
        id: CpuId,
        limit: u64,
        search: Search,
    ) -> Option<&'m Vcpu> {
        let pool = self.pool(self.cpu(id)?.pool).filter(|pool| pool.kind == Kind::Fair)?;
        // A bit for each CPU that has not been tried.
        let mut others = pool.cpus & !bit(id);
        while others != 0 {
            let mut best = (limit, None);
            for (number, cpu) in (0_u8..).zip(self.cpus) {
                let first = cpu.first.load(Relaxed);
                if others & bit(CpuId(number)) != 0 && first < best.0 {
                    best = (first, Some((number, cpu)));
                }
            }
            let (number, cpu) = best.1?;
            let mut queue = cpu.queue.lock();
            let movable = |index| {
                machine
                    .vcpu(index)
                    .map(|(_, vcpu)| vcpu)
                    .filter(|vcpu| vcpu.on.get().is_none() && vcpu.allowed.load(Relaxed) & bit(id) != 0)
            };
            let found = match search {
                Search::First => queue.ready.entries().first().and_then(|entry| movable(entry.vcpu)),
                Search::All => {
                    let each = queue.ready.entries().iter();
                    each.filter_map(|entry| Some((entry.key, movable(entry.vcpu)?)))
                        .min_by_key(|(key, _)| *key)
                        .map(|(_, vcpu)| vcpu)
                }
            };
            if let Some(vcpu) =
                found.filter(|vcpu| cpu.clock.of_pool(vcpu.share.served.load(Relaxed)) < limit)
            {
                queue.ready.remove(vcpu.index);
                cpu.publish(&queue);
                return Some(vcpu);
            }
            match search {
                Search::First => return None,
                Search::All => others &= !bit(CpuId(number)),
            }
        }
        None
    }
}
