//! A step of the test run, and those that need no guest.

use std::process::Command;

use crate::check::{self, Cost, Found};
use crate::failure::Outcome;
use crate::{build, process, setup, workspace};

/// From which kind of test run on a step is part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// `--quick`.
    Quick,
    /// Without an option.
    Default,
    /// `--full`.
    Full,
}

/// Whether a step may run at the same time as its neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Company {
    /// It builds, or needs the whole machine for its timing.
    Alone,
    /// It boots its own QEMU and waits.
    Shared,
}

/// A named step.
pub(super) struct Step {
    /// What people read and `--filter` matches.
    pub(super) name: String,
    /// When it runs.
    pub(super) level: Level,
    /// What may run beside it.
    pub(super) company: Company,
    /// Runs it.
    pub(super) run: Box<dyn Fn() -> Outcome<Found> + Send + Sync>,
}

impl Step {
    /// A step.
    pub(super) fn new(
        name: impl Into<String>,
        level: Level,
        run: impl Fn() -> Outcome<Found> + Send + Sync + 'static,
    ) -> Self {
        Self { name: name.into(), level, company: Company::Alone, run: Box::new(run) }
    }

    /// The same step, beside others.
    pub(super) fn shared(self) -> Self {
        Self { company: Company::Shared, ..self }
    }
}

/// Set-up, build, checks and the tests that run on the host.
pub(super) fn host() -> Vec<Step> {
    let mut steps = vec![
        Step::new("setup", Level::Quick, || {
            let (toolchain, qemu) = (setup::toolchain()?, setup::qemu()?);
            Ok(Found::Good(format!("{toolchain}, QEMU {qemu}")))
        }),
        Step::new("build", Level::Quick, || {
            // Linking a guest takes seconds: those that the quick run boots.
            let guests = ["hello", "sender", "receiver"].map(str::to_owned).into();
            build::some(&setup::toolchain()?, &guests)?;
            Ok(Found::Good(String::new()))
        }),
        Step::new("build all guests", Level::Default, || {
            build::some(&setup::toolchain()?, &build::guest_names()?)?;
            Ok(Found::Good(String::new()))
        }),
    ];
    steps.extend(check::ALL.iter().map(|check| {
        let level = match check.cost {
            Cost::Low => Level::Quick,
            Cost::High => Level::Default,
        };
        Step::new(format!("check: {}", check.name), level, || (check.run)(&setup::toolchain()?))
    }));
    steps.push(Step::new("host tests", Level::Quick, || {
        let mut command = Command::new("cargo");
        command.current_dir(workspace::root()).args(["test", "--quiet", "--workspace"]);
        process::run(&mut command, "building and running the host tests")?;
        Ok(Found::Good(String::new()))
    }));
    steps
}
