//! `cargo xtask check`: what can be known without running a guest.

mod a64;
mod abi;
mod advisories;
mod documents;
mod layouts;
mod panic_reach;
mod planted;
mod seeded;
pub(crate) mod sources;

use std::process::Command;

use crate::failure::{Failure, Outcome};
use crate::setup::Toolchain;
use crate::{build, process, setup, workspace};

/// The most an EL2 image may be, bytes: DESIGN section 7.
const LARGEST_IMAGE: usize = 256 << 10;

/// What one check found.
pub(crate) enum Found {
    /// Nothing wrong; perhaps with a figure.
    Good(String),
    /// It could not run here.
    Skipped(String),
}

/// How long a check takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cost {
    /// Part of every test run.
    Low,
    /// Left out of the quick one.
    High,
}

/// A named check.
pub(crate) struct Check {
    /// Whether it is part of a quick test run.
    pub(crate) cost: Cost,
    /// What people read.
    pub(crate) name: &'static str,
    /// Runs it.
    pub(crate) run: Run,
}

/// How a check runs.
#[derive(Clone, Copy)]
pub(crate) enum Run {
    /// With the host's toolchain alone.
    Host(fn() -> Outcome<Found>),
    /// With the bare-metal target.
    Target(fn(&Toolchain) -> Outcome<Found>),
}

impl Run {
    /// Runs it.
    pub(crate) fn now(self) -> Outcome<Found> {
        match self {
            Self::Host(run) => run(),
            Self::Target(run) => run(&setup::toolchain()?),
        }
    }
}

/// All checks in the order of their cost.
pub(crate) const ALL: [Check; 17] = [
    Check {
        cost: Cost::Low,
        name: "format",
        run: Run::Host(|| cargo("`cargo fmt --all --check`", &["fmt", "--all", "--check", "--", "-l"], &[])),
    },
    Check { cost: Cost::Low, name: "clippy, host", run: Run::Host(clippy_host) },
    Check {
        cost: Cost::Low,
        name: "clippy, EL2 image",
        run: Run::Target(|toolchain| clippy_bare(toolchain, "hypervisor", "image")),
    },
    Check {
        cost: Cost::High,
        name: "clippy, EL2 image with self-check",
        run: Run::Target(|toolchain| clippy_bare(toolchain, "hypervisor", "image,selfcheck")),
    },
    Check {
        cost: Cost::Low,
        name: "clippy, guests",
        run: Run::Target(|toolchain| clippy_bare(toolchain, "guest-kernel", "guest")),
    },
    Check { cost: Cost::High, name: "documentation", run: Run::Host(documentation) },
    Check { cost: Cost::High, name: "dependencies", run: Run::Host(dependencies) },
    Check { cost: Cost::Low, name: "panic check finds a planted panic", run: Run::Target(planted::check) },
    Check {
        cost: Cost::Low,
        name: "no panic reachable from the vectors",
        run: Run::Target(panic_reachability),
    },
    Check { cost: Cost::Low, name: "image size", run: Run::Target(image_size) },
    Check { cost: Cost::Low, name: "known bugs are not in the image", run: Run::Target(seeded::check) },
    Check { cost: Cost::Low, name: "ABI reference", run: Run::Host(abi::fresh) },
    Check {
        cost: Cost::Low,
        name: "pv-abi stands alone, layouts asserted",
        run: Run::Host(abi::stands_alone),
    },
    Check {
        cost: Cost::Low,
        name: "ABI: every answer has a case that Xen passes",
        run: Run::Host(abi::covered),
    },
    Check { cost: Cost::Low, name: "advisories: rows, cases, waivers", run: Run::Host(advisories::check) },
    Check {
        cost: Cost::Low,
        name: "documents: keys of system files, guests",
        run: Run::Host(documents::check),
    },
    Check { cost: Cost::Low, name: "lines/unsafe", run: Run::Host(|| Ok(sources::check())) },
];

/// What `check` accepts.
#[derive(clap::Args, Debug, Clone)]
pub(crate) struct Options {
    /// Write docs/abi.md anew from pv-abi's table instead of checking.
    #[arg(long)]
    update_abi: bool,
}

/// Runs all checks; fails if one did.
pub(crate) fn command(options: &Options) -> Outcome<()> {
    if options.update_abi {
        return abi::update();
    }
    setup::toolchain()?;
    let mut failed = Vec::new();
    for check in &ALL {
        let result = check.run.now();
        println!("{}", line(check.name, &result));
        if result.is_err() {
            failed.push(check.name);
        }
    }
    if failed.is_empty() {
        Ok(())
    } else {
        Err(Failure::failed(format!("check failed: {}", failed.join(", "))))
    }
}

/// One line on a step: its state, its name, what it found.
pub(crate) fn line(name: &str, result: &Outcome<Found>) -> String {
    match result {
        Ok(Found::Good(note)) if note.is_empty() => format!("ok       {name}"),
        Ok(Found::Good(note)) => format!("ok       {name}: {note}"),
        Ok(Found::Skipped(why)) => format!("skipped  {name}: {why}"),
        Err(failure) => format!("FAILED   {name}: {failure}"),
    }
}

/// A cargo command in the workspace.
fn cargo(doing: &str, words: &[&str], environment: &[(&str, &str)]) -> Outcome<Found> {
    let mut command = Command::new("cargo");
    command.current_dir(workspace::root()).args(words).envs(environment.iter().copied());
    process::run(&mut command, doing).map(|()| Found::Good(String::new()))
}

fn clippy_host() -> Outcome<Found> {
    let words = ["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"];
    cargo("linting for the host", &words, &[])
}

fn clippy_bare(toolchain: &Toolchain, package: &str, feature: &str) -> Outcome<Found> {
    let mut command = Command::new("cargo");
    command.current_dir(workspace::root()).args([
        "clippy",
        "--quiet",
        "--release",
        "-p",
        package,
        "--features",
        feature,
    ]);
    command
        .args(["--bins", "--lib", "--target", workspace::BARE_TARGET, "--target-dir"])
        .arg(workspace::bare());
    command.args(["--", "-D", "warnings"]);
    toolchain.apply(&mut command);
    process::run(&mut command, &format!("linting {package}")).map(|()| Found::Good(String::new()))
}

fn documentation() -> Outcome<Found> {
    let words = ["doc", "--quiet", "--workspace", "--no-deps", "--document-private-items"];
    cargo("building the documentation", &words, &[("RUSTDOCFLAGS", "-D warnings")])
}

fn dependencies() -> Outcome<Found> {
    if !process::exists("cargo-deny") {
        return Ok(Found::Skipped("cargo-deny is not installed".into()));
    }
    let words = ["deny", "--offline", "--log-level", "error", "check", "bans", "sources", "licenses"];
    cargo("checking dependencies", &words, &[])
}

fn panic_reachability(toolchain: &Toolchain) -> Outcome<Found> {
    build::hypervisor(toolchain)?;
    let (mut findings, reachable) = panic_reach::check(&workspace::read(&workspace::pavo_elf())?)?;
    // Tests boot this one: what it finds counts only when it cannot stop itself.
    let checking = build::variant(toolchain, build::Variant::SelfCheck)?;
    findings.extend(panic_reach::check(&workspace::read(&checking)?)?.0);
    let Some(first) = findings.first() else {
        return Ok(Found::Good(format!("{reachable} functions are")));
    };
    for finding in &findings {
        println!("         {}", finding.line());
    }
    Err(Failure::failed(format!("{} ways, such as {}", findings.len(), first.line())))
}

fn image_size(toolchain: &Toolchain) -> Outcome<Found> {
    build::hypervisor(toolchain)?;
    let size = workspace::read(&workspace::pavo_img())?.len();
    let text = format!("{} of {} KiB", size.div_ceil(1024), LARGEST_IMAGE >> 10);
    if size > LARGEST_IMAGE { Err(Failure::failed(text)) } else { Ok(Found::Good(text)) }
}
