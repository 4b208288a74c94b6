//! A step of the test run, and those that need no guest.

use std::process::Command;
use std::sync::OnceLock;

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

/// What a step cannot do without: where that is not to be had, the step is skipped by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Needs {
    /// Nothing but the host.
    Host,
    /// The bare-metal target.
    Target,
    /// The target, and QEMU.
    Machine,
}

impl Needs {
    /// Why it is not there, if it is not; looked for once.
    fn lacking(self) -> Option<String> {
        static TARGET: OnceLock<Option<String>> = OnceLock::new();
        static QEMU: OnceLock<Option<String>> = OnceLock::new();
        let target = || TARGET.get_or_init(|| setup::toolchain().err().map(|why| why.to_string())).clone();
        let qemu = || QEMU.get_or_init(|| setup::qemu().err().map(|why| why.to_string())).clone();
        match self {
            Self::Host => None,
            Self::Target => target(),
            Self::Machine => target().or_else(qemu),
        }
    }
}

/// A named step.
pub(super) struct Step {
    /// What people read and `--filter` matches.
    pub(super) name: String,
    /// When it runs.
    pub(super) level: Level,
    /// What may run beside it.
    pub(super) company: Company,
    /// What it cannot do without.
    needs: Needs,
    /// Runs it.
    run: Box<dyn Fn() -> Outcome<Found> + Send + Sync>,
}

impl Step {
    /// A step.
    pub(super) fn new(
        name: impl Into<String>,
        level: Level,
        run: impl Fn() -> Outcome<Found> + Send + Sync + 'static,
    ) -> Self {
        Self { name: name.into(), level, company: Company::Alone, needs: Needs::Host, run: Box::new(run) }
    }

    /// The same step, beside others.
    pub(super) fn shared(self) -> Self {
        Self { company: Company::Shared, ..self }
    }

    /// The same step, which cannot do without something.
    pub(super) fn needing(self, needs: Needs) -> Self {
        Self { needs, ..self }
    }

    /// What it cannot do without.
    #[cfg(test)]
    pub(super) fn needs(&self) -> Needs {
        self.needs
    }

    /// Runs it, if all is there that it needs.
    pub(super) fn run(&self) -> Outcome<Found> {
        match self.needs.lacking() {
            Some(why) => Ok(Found::Skipped(why)),
            None => (self.run)(),
        }
    }
}

/// Set-up, build, checks and the tests that run on the host.
pub(super) fn host() -> Vec<Step> {
    let mut steps = vec![
        Step::new("setup", Level::Quick, || {
            // What was named must be there; what cannot be had is told, and the steps that need it are skipped.
            if std::env::var_os("PAVO_QEMU").is_some() {
                setup::qemu()?;
            }
            match (setup::toolchain(), setup::qemu()) {
                (Ok(toolchain), Ok(qemu)) => Ok(Found::Good(format!("{toolchain}, QEMU {qemu}"))),
                (Err(why), _) | (Ok(_), Err(why)) => Ok(Found::Skipped(why.to_string())),
            }
        }),
        Step::new("build", Level::Quick, || {
            // Linking a guest takes seconds: those that the quick run boots.
            let guests = ["hello", "sender", "receiver"].map(str::to_owned).into();
            build::some(&setup::toolchain()?, &guests)?;
            Ok(Found::Good(String::new()))
        })
        .needing(Needs::Target),
        Step::new("build all guests", Level::Default, || {
            build::some(&setup::toolchain()?, &build::guest_names()?)?;
            Ok(Found::Good(String::new()))
        })
        .needing(Needs::Target),
    ];
    steps.extend(check::ALL.iter().map(|check| {
        let level = match check.cost {
            Cost::Low => Level::Quick,
            Cost::High => Level::Default,
        };
        let needs = match check.run {
            check::Run::Host(_) => Needs::Host,
            check::Run::Target(_) => Needs::Target,
        };
        Step::new(format!("check: {}", check.name), level, || check.run.now()).needing(needs)
    }));
    steps.push(Step::new("host tests", Level::Quick, || {
        let mut command = Command::new("cargo");
        command.current_dir(workspace::root()).args(["test", "--quiet", "--workspace"]);
        process::run(&mut command, "building and running the host tests")?;
        Ok(Found::Good(String::new()))
    }));
    steps
}
