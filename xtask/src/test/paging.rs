//! Domains with paravirtual page tables.

use super::step::{Level, Step};
use super::systems;
use crate::run::{self, Options};

/// CPU model, CPUs, GIC.
const MACHINES: [(&str, u32, u32); 4] =
    [("cortex-a72", 4, 2), ("max", 4, 3), ("cortex-a72", 1, 3), ("max", 1, 2)];

/// All steps of this file.
pub(super) fn all() -> Vec<Step> {
    let machine = |(cpu, cpus, gic): (&'static str, u32, u32)| {
        let title = format!("paging: pv on {cpus} x {cpu}, GICv{gic}");
        Step::new(title, Level::Default, move || {
            let mut options = Options::for_file(run::shipped("pv"));
            (options.cpu, options.cpus, options.gic) = (Some(cpu.into()), Some(cpus), Some(gic));
            options.timeout = 180;
            systems::cleanly(&options)
        })
    };
    MACHINES.into_iter().map(machine).collect()
}
