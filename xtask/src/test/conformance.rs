//! The conformance suite on Pavo, on several machines.

use super::step::{Level, Step};
use crate::check::Found;
use crate::conformance::{self, Options};

/// GIC version, CPUs, CPU model.
const MACHINES: [(u32, u32, &str); 6] = [
    (3, 1, "cortex-a72"),
    (3, 2, "cortex-a72"),
    (3, 1, "max"),
    (3, 2, "max"),
    (2, 1, "cortex-a72"),
    (2, 2, "max"),
];

/// All steps of this file.
pub(super) fn all() -> Vec<Step> {
    let steps = MACHINES.into_iter().map(|(gic, cpus, cpu)| {
        let title = format!("conformance: {cpus} x {cpu}, GICv{gic}");
        Step::new(title, Level::Default, move || {
            conformance::test(&Options::on_pavo(gic, cpus, cpu)).map(Found::Good)
        })
    });
    steps.collect()
}
