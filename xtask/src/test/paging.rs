//! Domains with paravirtual page tables.

use super::attacks;
use super::step::{Level, Step};
use super::systems::{self, Observed};
use super::tables;
use crate::check::Found;
use crate::conformance::{self, answers::Calls};
use crate::failure::Outcome;
use crate::run::{self, Options};

/// CPU model, CPUs, GIC.
type Machine = (&'static str, u32, u32);
const MACHINES: [Machine; 4] = [("cortex-a72", 4, 2), ("max", 4, 3), ("cortex-a72", 1, 3), ("max", 1, 2)];

/// A step that boots a shipped system and looks at what it printed.
fn step(name: &'static str, machine: Machine, look: fn(&Observed) -> Outcome<Found>) -> Step {
    let (cpu, cpus, gic) = machine;
    Step::new(format!("paging: {name} on {cpus} x {cpu}, GICv{gic}"), Level::Default, move || {
        let mut options = Options::for_file(run::shipped(name));
        (options.cpu, options.cpus, options.gic) = (Some(cpu.into()), Some(cpus), Some(gic));
        options.timeout = 300;
        look(&systems::observe(&options)?)
    })
}

/// All cases that were planned are there and passed, and every domain ended well.
fn every_case(observed: &Observed) -> Outcome<Found> {
    let plan = observed.console.iter().find_map(|line| line.strip_prefix("(d1) 1..")?.parse::<usize>().ok());
    let passed = observed.console.iter().filter(|line| line.starts_with("(d1) ok ")).count();
    if plan != Some(passed) {
        return Err(observed.failed(&format!("{passed} cases passed, planned were {plan:?}")));
    }
    for said in observed.console.iter().filter_map(|line| line.strip_prefix("(d1) # in the log: ")) {
        if !observed.log.contains(&format!("d1: {said}")) {
            return Err(observed.failed(&format!("the log does not say: d1: {said}")));
        }
    }
    let refused = observed.log.iter().filter(|line| line.contains(" must not become ")).count();
    if refused == 0 {
        return Err(observed.failed("the log names no refused write"));
    }
    let answers = conformance::answered(&observed.console, Calls::Tables)?;
    systems::clean(observed).map(|_| {
        Found::Good(format!(
            "{passed} attempts came to nothing, {answers} answers, {refused} refused writes in the log"
        ))
    })
}

/// Every domain ended well, and the first one's processes left it some blocks.
fn processes_end(observed: &Observed) -> Outcome<Found> {
    systems::clean(observed)?;
    tables::small_pages(observed).map(Found::Good)
}

/// All steps of this file.
pub(super) fn all() -> Vec<Step> {
    let mut steps: Vec<_> = MACHINES.map(|machine| step("pv", machine, systems::clean)).into();
    let processes = [MACHINES[0], MACHINES[3]];
    steps.extend(processes.map(|machine| step("pv-process", machine, processes_end)));
    steps.extend(attacks::behind_one_wall());
    let rootkits = [("cortex-a72", 4, 2), ("max", 1, 3)];
    steps.extend(rootkits.map(|machine| step("rootkit", machine, every_case)));
    let on_rpi4 = |name: &'static str, look: fn(&Observed) -> Outcome<Found>| {
        super::rpi4::step(name, Level::Default, move || {
            let mut options = Options::for_file(run::shipped(name));
            options.board = Some("rpi4".into());
            options.timeout = 300;
            look(&systems::observe(&options)?)
        })
    };
    steps.extend([on_rpi4("pv-process", processes_end), on_rpi4("rootkit", every_case)]);
    steps
}
