//! The conformance suite on Pavo, on several machines.

use super::step::{Level, Step};
use crate::check::Found;
use crate::conformance::{self, Options};

/// GIC version, CPUs, CPU model.
const MACHINES: [(u32, u32, &str); 5] =
    [(3, 1, "max"), (2, 1, "cortex-a72"), (3, 4, "cortex-a72"), (2, 2, "cortex-a72"), (2, 4, "max")];

/// All steps of this file.
pub(super) fn all() -> Vec<Step> {
    let steps = MACHINES.into_iter().map(|(gic, cpus, cpu)| {
        let title = format!("conformance: {cpus} x {cpu}, GICv{gic}");
        let step = Step::new(title, Level::Default, move || {
            let mut options = Options::on_pavo(gic, cpus, cpu);
            // Some cases look at the time. Where one CPU runs everything in turn, counting instructions loses nothing.
            options.icount = cpus == 1;
            conformance::test(&options).map(Found::Good)
        });
        if cpus == 1 { step.shared() } else { step }
    });
    let xen = Step::new("conformance: every expectation holds on Xen", Level::Full, || {
        Ok(match conformance::test_on_xen()? {
            Ok(good) => Found::Good(good),
            Err(why) => Found::Skipped(why),
        })
    });
    steps.chain([xen]).collect()
}
