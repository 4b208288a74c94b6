//! A step of the test run, and those that need no guest.

use std::process::Command;

use crate::check::{self, Found};
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

/// A named step.
pub(super) struct Step {
    /// What people read and `--filter` matches.
    pub(super) name: String,
    /// When it runs.
    pub(super) level: Level,
    /// Runs it.
    pub(super) run: Box<dyn Fn() -> Outcome<Found>>,
}

impl Step {
    /// A step.
    pub(super) fn new(
        name: impl Into<String>,
        level: Level,
        run: impl Fn() -> Outcome<Found> + 'static,
    ) -> Self {
        Self { name: name.into(), level, run: Box::new(run) }
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
            build::some(&setup::toolchain()?, &build::guest_names()?)?;
            Ok(Found::Good(String::new()))
        }),
    ];
    steps.extend(check::ALL.iter().map(|check| {
        Step::new(format!("check: {}", check.name), Level::Quick, || (check.run)(&setup::toolchain()?))
    }));
    steps.push(Step::new("host tests", Level::Quick, || {
        let mut command = Command::new("cargo");
        process::run(command.current_dir(workspace::root()).args(["test", "--quiet", "--workspace"]))?;
        Ok(Found::Good(String::new()))
    }));
    steps
}
