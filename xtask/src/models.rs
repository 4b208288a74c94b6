//! What the hypervisor does without a lock, under a model checker; and the portable library under Miri. Both are steps of the test run.

use std::process::Command;

use crate::check::Found;
use crate::failure::{Failure, Outcome};
use crate::{process, workspace};

/// Which orderings are taken away.
#[derive(Clone, Copy)]
pub(crate) enum Orderings {
    /// Those that a protocol must miss.
    Needed,
    /// Each that it comes to.
    All,
}

/// Explores every protocol of `tests/models`, and takes the orderings away one by one.
pub(crate) fn explore(orderings: Orderings) -> Outcome<Found> {
    let words = match orderings {
        Orderings::Needed => &["needed"][..],
        Orderings::All => &[],
    };
    run("loom", "pavo-models", words, "a protocol does not hold, or its model misses nothing")
}

/// Plays the scheduler with everything around it under so many random schedules of each scenario, and takes away what it needs, line by line.
pub(crate) fn schedules(each: u32) -> Outcome<Found> {
    let words = [&*each.to_string()];
    run("shuttle", "pavo-schedules", &words, "the scheduler does not hold, or its model misses nothing")
}

/// Builds and runs a program of `tests/models` with a model checker, the crate of this name. A package of its own: what it needs and cannot be had is
/// told, what does not build or does not hold is a failure.
fn run(checker: &str, program: &str, words: &[&str], wrong: &str) -> Outcome<Found> {
    let folder = workspace::root().join("tests/models");
    let target = workspace::target().join("models");
    // What is wrong with the packages themselves is no reason to skip.
    let mut known = Command::new("cargo");
    process::quiet(known.current_dir(&folder).args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let mut fetch = Command::new("cargo");
    if process::quiet(fetch.current_dir(&folder).args(["fetch", "--quiet"])).is_err() {
        return Ok(Found::Skipped("the model checkers (crates `loom`, `shuttle`) cannot be fetched".into()));
    }
    let mut build = Command::new("cargo");
    build.current_dir(&folder).args(["build", "--quiet", "--no-default-features", "--features", checker]);
    process::run(build.args(["--bin", program, "--target-dir"]).arg(&target), "building the models")?;
    let output = process::output(
        Command::new(target.join("debug").join(program)).args(words).env("RUST_BACKTRACE", "0"),
    )?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(Found::Good(text.lines().last().unwrap_or_default().to_owned()));
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let bad = text.lines().filter(|line| line.contains("FAILED") || line.contains("NOT "));
    let lines = bad.chain(said.lines().filter(|line| line.contains("panicked"))).map(str::to_owned).collect();
    Err(Failure::Shown { text: wrong.into(), lines })
}

/// Tests of the library that Miri is through with in minutes: those that build no whole machine.
const UNDER_MIRI: [&str; 11] = [
    "addr::",
    "evtchn::port",
    "frame::",
    "frame_alloc::",
    "grant::active",
    "runstate::",
    "life::fate",
    "devicetree::range",
    "devicetree::cells",
    "devicetree::uart",
    "devicetree::gic",
];
/// A random walk that takes Miri many minutes.
const TOO_LONG: &str = "the_lists_agree_with_a_naive_model";

/// Runs tests of the portable library under Miri: undefined behaviour and data races, its memory model included.
pub(crate) fn miri() -> Outcome<Found> {
    let mut known = Command::new("cargo");
    if process::quiet(known.args(["+nightly", "miri", "--version"])).is_err() {
        return Ok(Found::Skipped(
            "there is no Miri (`rustup component add miri --toolchain nightly`)".into(),
        ));
    }
    let mut miri = Command::new("cargo");
    miri.current_dir(workspace::root()).args([
        "+nightly",
        "miri",
        "test",
        "--quiet",
        "-p",
        "hypervisor",
        "--lib",
    ]);
    // Fake machines are made for ever.
    miri.env("MIRIFLAGS", "-Zmiri-ignore-leaks").arg("--target-dir").arg(workspace::target().join("miri"));
    miri.arg("--").args(UNDER_MIRI).args(["--skip", TOO_LONG]);
    let output = process::output(&mut miri)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let passed = text.lines().find_map(|line| line.strip_prefix("test result: ok. ")?.split_once(" passed"));
    match passed {
        Some((count, _)) if output.status.success() && count != "0" => {
            Ok(Found::Good(format!("{count} tests")))
        }
        _ => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let lines = text.lines().chain(said.lines()).map(str::to_owned).collect();
            Err(Failure::Shown { text: "Miri finds something, or does not run".into(), lines })
        }
    }
}
