//! A domain's part of the CPUs: the keys that say it, and whether the machine has those CPUs.

use std::collections::BTreeMap;

use toml::Table;

use super::System;
use super::reader::{Keys, Reader};
use crate::failure::{Failure, Outcome};

/// The keys of `[[pool]]`.
pub(super) const POOL: Keys = Keys { known: &["name", "cpus", "scheduler"], later: &[] };
/// CPUs that are used, at most.
const MOST_USED_CPUS: u32 = 8;

/// What a domain gets of the CPUs; absent is the hypervisor's default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Scheduling {
    /// Weight of its vCPUs.
    pub(crate) weight: Option<u32>,
    /// Per cent of one CPU.
    pub(crate) cap: Option<u32>,
    /// CPUs as bits.
    pub(crate) affinity: Option<u32>,
    /// CPUs of its pool as bits, and the pool's scheduler.
    pub(crate) pool: Option<(u32, &'static str)>,
}

/// Pools by name: CPUs and scheduler.
pub(super) type Pools = BTreeMap<String, (u32, &'static str)>;

pub(super) fn read_pools(file: &str, tables: Vec<Table>) -> Outcome<Pools> {
    let mut pools = Pools::new();
    let mut taken = 0;
    for (index, table) in tables.into_iter().enumerate() {
        let mut reader = Reader::new(file, format!("pool[{}].", index + 1), table, &POOL)?;
        let name = reader.required("name", "own")?;
        let cpus = reader.cpus("cpus", MOST_USED_CPUS)?.ok_or_else(|| reader.missing("cpus", "[1]"))?;
        if cpus & taken != 0 {
            return Err(reader.error("cpus", "another pool has one of them"));
        }
        taken |= cpus;
        let scheduler = match reader.string("scheduler")?.as_deref() {
            None | Some("fair") => "fair",
            Some("partition") => "partition",
            Some(other) => {
                let text = format!("expected \"fair\" or \"partition\", found \"{other}\"");
                return Err(reader.error("scheduler", &text));
            }
        };
        if pools.insert(name, (cpus, scheduler)).is_some() {
            return Err(reader.error("name", "is the name of another pool already"));
        }
    }
    Ok(pools)
}

pub(super) fn read_scheduling(reader: &mut Reader<'_>, pools: &Pools) -> Outcome<Scheduling> {
    let pool = match reader.string("pool")? {
        None => None,
        Some(name) => match pools.get(&name) {
            Some(pool) => Some(*pool),
            None => return Err(reader.error("pool", &format!("no [[pool]] is named \"{name}\""))),
        },
    };
    Ok(Scheduling {
        weight: reader.number("weight", 1, 65535)?,
        cap: reader.number("cap", 1, 100 * MOST_USED_CPUS)?,
        affinity: reader.cpus("affinity", MOST_USED_CPUS)?,
        pool,
    })
}

impl System {
    /// Checks that each domain has CPUs, on a machine of so many. The hypervisor's own rules (`sched/plan.rs`): CPUs that no domain's pool names
    /// are the first pool; a partition has a CPU for each vCPU.
    pub(crate) fn check_cpus(&self) -> Outcome<()> {
        let all = (1u32 << self.machine.cpus.min(MOST_USED_CPUS)) - 1;
        let pooled = self.domains.iter().filter_map(|domain| domain.scheduling.pool);
        let rest = all & !pooled.fold(0, |named, (cpus, _)| named | cpus);
        let mut taken = 0u32;
        for (index, domain) in self.domains.iter().enumerate() {
            let scheduling = &domain.scheduling;
            let error = |key: &str, text: String| {
                Err(Failure::usage(format!("{}: domain[{}].{key}: {text}", self.file, index + 1)))
            };
            let (cpus, scheduler) = scheduling.pool.unwrap_or((rest, "fair"));
            if cpus & !all != 0 {
                let text = format!("has {}, and the machine runs {}", numbers(cpus & !all), numbers(all));
                return error("pool", format!("{text}: raise machine.cpus"));
            }
            if cpus == 0 {
                return error("pool", "missing: all CPUs are in pools of other domains: name one".into());
            }
            let allowed = cpus & scheduling.affinity.unwrap_or(u32::MAX);
            if allowed == 0 {
                return error("affinity", format!("expected some of its pool's CPUs, {}", numbers(cpus)));
            }
            if scheduler == "partition" {
                if scheduling.cap.is_some() {
                    return error("cap", "a partition has its CPUs whole: leave it out".into());
                }
                for _ in 0..domain.vcpus {
                    let free = allowed & !taken;
                    if free == 0 {
                        return error(
                            "vcpus",
                            "a partition has a CPU for each vCPU: give the pool more".into(),
                        );
                    }
                    taken |= 1 << free.trailing_zeros();
                }
            }
        }
        Ok(())
    }
}

/// CPUs given as bits, for people.
fn numbers(cpus: u32) -> String {
    let each: Vec<_> = (0..32).filter(|cpu| cpus >> cpu & 1 == 1).map(|cpu| cpu.to_string()).collect();
    format!("{} {}", if each.len() == 1 { "CPU" } else { "CPUs" }, each.join(", "))
}
