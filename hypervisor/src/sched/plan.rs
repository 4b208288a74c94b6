//! Which CPUs are in which pool, and which of them a domain gets: made at boot from what the domains' configurations say.
//!
//! A domain that names CPUs for a pool makes that pool, with all others that name the same; CPUs that nobody names are the first pool, `fair`.
use core::fmt;
use core::sync::atomic::Ordering::Relaxed;

use super::pool::{CpuMask, Kind, Pool};
use super::{MAX_POOLS, bit, settings};
use crate::domain::Domain;
use crate::hardware::CpuId;

/// What a domain's configuration says of its CPUs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Scheduling {
    /// Its vCPUs' weight, 1 to 65535.
    pub weight: u16,
    /// Per cent of one CPU that they may use together; 0 for no limit.
    pub cap: u32,
    /// CPUs that they may use.
    pub affinity: CpuMask,
    /// The CPUs of its pool; `None` for those that no pool has.
    pub pool: Option<CpuMask>,
    /// The pool's scheduler.
    pub kind: Kind,
}

impl Default for Scheduling {
    fn default() -> Self {
        Self {
            weight: super::share::DEFAULT_WEIGHT,
            cap: 0,
            affinity: CpuMask::MAX,
            pool: None,
            kind: Kind::Fair,
        }
    }
}

/// Why a domain gets no CPUs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PlaceError {
    /// Its pool has CPUs that the machine has not.
    NoSuchCpu,
    /// Another pool has some of its pool's CPUs.
    Overlap,
    /// Its pool and its affinity have no CPU in common.
    NoCpu,
    /// A partition has fewer free CPUs than it has vCPUs.
    TooFewCpus,
}

impl fmt::Display for PlaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSuchCpu => "pavo,pool: a CPU that does not run",
            Self::Overlap => "pavo,pool: a CPU that another pool has",
            Self::NoCpu => "pavo,affinity: no CPU of its pool",
            Self::TooFewCpus => "pavo,pool: a partition needs a CPU for each vCPU",
        })
    }
}

/// Where a domain's vCPUs run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DomainPlace {
    pool: u8,
    cpus: CpuMask,
    /// Each vCPU has one of the CPUs, in their order.
    own: bool,
}

/// The pools, while domains are built.
#[derive(Debug)]
pub struct Plan {
    pools: heapless::Vec<(Kind, CpuMask), MAX_POOLS>,
    all: CpuMask,
    /// CPUs of partitions that have their vCPU.
    taken: CpuMask,
}

impl Plan {
    /// All CPUs `0..cpus` in the first pool.
    pub fn new(cpus: u8) -> Self {
        let all = CpuMask::MAX.checked_shr(CpuMask::BITS.saturating_sub(u32::from(cpus))).unwrap_or(1);
        let mut pools = heapless::Vec::new();
        let _ = pools.push((Kind::Fair, all));
        Self { pools, all, taken: 0 }
    }

    /// Makes the pool that a domain names, if nobody has yet. All domains' before the first is placed.
    pub fn make_pool(&mut self, asked: &Scheduling) {
        let Some(cpus) = asked.pool else { return };
        let named = self.pools.iter().skip(1).fold(0, |all, (_, cpus)| all | cpus);
        if cpus == 0 || cpus & !self.all != 0 || cpus & named != 0 {
            return;
        }
        if self.pools.push((asked.kind, cpus)).is_ok()
            && let Some((_, rest)) = self.pools.first_mut()
        {
            *rest &= !cpus;
        }
    }

    /// Finds a domain's CPUs, and takes those of a partition.
    ///
    /// # Errors
    /// Why it gets none.
    pub fn place(&mut self, asked: &Scheduling, vcpus: u32) -> Result<DomainPlace, PlaceError> {
        let found = match asked.pool {
            None => Some(0),
            Some(cpus) if cpus & !self.all != 0 => return Err(PlaceError::NoSuchCpu),
            Some(cpus) => self
                .pools
                .iter()
                .skip(1)
                .position(|pool| *pool == (asked.kind, cpus))
                .map(|at| at.saturating_add(1)),
        };
        let number = found.ok_or(PlaceError::Overlap)?;
        let (kind, cpus) = self.pools.get(number).copied().ok_or(PlaceError::Overlap)?;
        let pool = u8::try_from(number).map_err(|_| PlaceError::Overlap)?;
        match kind {
            Kind::Fair if cpus & asked.affinity == 0 => Err(PlaceError::NoCpu),
            Kind::Fair => Ok(DomainPlace { pool, cpus: cpus & asked.affinity, own: false }),
            Kind::Partition => {
                let mut own = 0;
                for _ in 0..vcpus {
                    let free = cpus & asked.affinity & !self.taken & !own;
                    if free == 0 {
                        return Err(PlaceError::TooFewCpus);
                    }
                    own |= bit(CpuId(u8::try_from(free.trailing_zeros()).unwrap_or(0)));
                }
                self.taken |= own;
                Ok(DomainPlace { pool, cpus: own, own: true })
            }
        }
    }

    /// The pools.
    pub fn pools(&self) -> [Pool; MAX_POOLS] {
        let mut pools = self.pools.iter();
        [(); MAX_POOLS]
            .map(|()| pools.next().map_or(Pool::new(Kind::Fair, 0), |(kind, cpus)| Pool::new(*kind, *cpus)))
    }

    /// CPUs that the machine runs.
    pub const fn cpus(&self) -> usize {
        self.all.count_ones() as usize
    }
}

/// Settles a domain that has not run yet where it was placed; its vCPUs start on CPUs one after the other, from the `turn`-th on.
pub fn settle(domain: &Domain, place: DomainPlace, asked: &Scheduling, turn: usize) {
    let count = usize::try_from(place.cpus.count_ones()).unwrap_or(1).max(1);
    for (number, vcpu) in domain.vcpus.iter().enumerate() {
        let from = if place.own { 0 } else { turn };
        let skip = from.wrapping_add(number).checked_rem(count).unwrap_or(0);
        let mut rest = place.cpus;
        for _ in 0..skip {
            rest &= rest.wrapping_sub(1);
        }
        let home = CpuId(u8::try_from(rest.trailing_zeros()).unwrap_or(0));
        vcpu.pool.store(place.pool, Relaxed);
        vcpu.allowed.store(if place.own { bit(home) } else { place.cpus }, Relaxed);
        vcpu.home.set(home);
    }
    settings::set_weight(domain, asked.weight);
    // Of a partition nobody accounts for anything.
    settings::set_cap(domain, if place.own { 0 } else { asked.cap });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::World;

    fn asks(pool: Option<CpuMask>, kind: Kind, affinity: CpuMask) -> Scheduling {
        Scheduling { affinity, pool, kind, ..Scheduling::default() }
    }

    #[test]
    fn cpus_are_in_the_pool_that_names_them_and_else_in_the_first() {
        let mut plan = Plan::new(4);
        let fair = asks(None, Kind::Fair, CpuMask::MAX);
        let partition = asks(Some(0b1100), Kind::Partition, CpuMask::MAX);
        let overlapping = asks(Some(0b0110), Kind::Fair, CpuMask::MAX);
        let beyond = asks(Some(0b1_0000), Kind::Fair, CpuMask::MAX);
        for asked in [fair, partition, overlapping, beyond, partition] {
            plan.make_pool(&asked);
        }
        let cpus: std::vec::Vec<_> = plan.pools().iter().map(|pool| (pool.kind, pool.cpus)).take(3).collect();
        assert_eq!(cpus, [(Kind::Fair, 0b0011), (Kind::Partition, 0b1100), (Kind::Fair, 0)]);
        assert_eq!(plan.place(&fair, 8), Ok(DomainPlace { pool: 0, cpus: 0b0011, own: false }));
        assert_eq!(
            plan.place(&asks(None, Kind::Fair, 0b0110), 8),
            Ok(DomainPlace { pool: 0, cpus: 0b0010, own: false })
        );
        assert_eq!(plan.place(&asks(None, Kind::Fair, 0b1100), 1), Err(PlaceError::NoCpu));
        assert_eq!(plan.place(&overlapping, 1), Err(PlaceError::Overlap));
        assert_eq!(plan.place(&beyond, 1), Err(PlaceError::NoSuchCpu));
        assert_eq!(plan.place(&partition, 3), Err(PlaceError::TooFewCpus));
        assert_eq!(plan.place(&partition, 1), Ok(DomainPlace { pool: 1, cpus: 0b0100, own: true }));
        assert_eq!(plan.place(&partition, 2), Err(PlaceError::TooFewCpus));
        assert_eq!(plan.place(&partition, 1), Ok(DomainPlace { pool: 1, cpus: 0b1000, own: true }));
    }

    #[test]
    fn a_domain_is_settled_with_a_cpu_for_each_vcpu_or_on_all_in_turn() {
        let world = World::new(1);
        let domain = world.domain(1);
        let of = || -> std::vec::Vec<_> {
            domain.vcpus.iter().map(|vcpu| (vcpu.home.get().0, vcpu.allowed.load(Relaxed))).collect()
        };
        settle(
            domain,
            DomainPlace { pool: 1, cpus: 0b1010, own: true },
            &Scheduling { cap: 50, ..Scheduling::default() },
            7,
        );
        assert_eq!(domain.cap.percent(), 0);
        assert_eq!(of(), [(1, 0b0010), (3, 0b1000)]);
        settle(
            domain,
            DomainPlace { pool: 0, cpus: 0b0111, own: false },
            &Scheduling { weight: 9, ..Scheduling::default() },
            2,
        );
        assert_eq!(of(), [(2, 0b0111), (0, 0b0111)]);
        assert_eq!(domain.vcpus[0].share.weight(), 9);
    }
}
