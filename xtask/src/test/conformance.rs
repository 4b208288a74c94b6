//! The conformance suite on Pavo, on several machines.

use super::step::{Level, Step};
use super::systems;
use crate::check::Found;
use crate::conformance::{self, Options, answers::Calls};
use crate::failure::Outcome;
use crate::run::Options as RunOptions;

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
    let control = Step::new("conformance: the control domain's calls", Level::Default, || privileged("virt"));
    let on_rpi4 = super::rpi4::step("the control domain's calls", Level::Default, || privileged("rpi4"));
    steps.chain([control, on_rpi4, xen]).collect()
}

/// Every answer of the control domain's calls.
fn privileged(board: &str) -> Outcome<Found> {
    let system = format!("{CONTROL}{CALLERS}");
    let mut options = RunOptions::for_file(systems::write(&format!("conformance-control-{board}"), &system)?);
    options.board = Some(board.into());
    let observed = systems::observe(&options)?;
    let planned = |prefix: &str| {
        let plan = format!("({prefix}) 1..");
        observed.console.iter().find_map(|line| line.strip_prefix(&plan)?.parse::<usize>().ok())
    };
    let passed = |prefix: &str| {
        let good = format!("({prefix}) ok ");
        observed.console.iter().filter(|line| line.starts_with(&good)).count()
    };
    for id in ["d0", "d2"] {
        if planned(id) != Some(passed(id)) {
            return Err(observed.failed(&format!(
                "{}: {} cases passed, planned were {:?}",
                id,
                passed(id),
                planned(id)
            )));
        }
    }
    let answers = conformance::answered(&observed.console, Calls::Control)?;
    Ok(Found::Good(format!("{} cases, {answers} answers", passed("d0") + passed("d2"))))
}

/// A control domain that checks its calls, whom it does it to, and one that is not the control domain.
const CONTROL: &str = "[[domain]]\nname = \"control\"\nkernel = \"guest:abicheck\"\nmemory = \"16M\"\nprivileged = true\n\
                       cmdline = \"role=control\"\n";
const CALLERS: &str = "[[domain]]\nname = \"victim\"\nkernel = \"guest:faulty\"\nmemory = \"16M\"\ncmdline = \"how=spin\"\n\
                       [[domain]]\nname = \"another\"\nkernel = \"guest:abicheck\"\nmemory = \"16M\"\ncmdline = \"role=control\"\n";
