//! `cargo xtask fuzz`: random calls on the shipping library and on its specification at once, and the tests of the tests.
//!
//! With a nightly toolchain libFuzzer drives the same steps with coverage, half of the time; without, seeds alone do.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::check::Found;
use crate::failure::{Failure, Outcome};
use crate::{process, workspace};

/// What `fuzz` accepts.
#[derive(clap::Args, Debug)]
pub(crate) struct Options {
    /// How long, in all.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// The first seed; or a sequence as it was printed, to play again.
    #[arg(long)]
    seed: Option<String>,
    /// Plant the known bugs one by one, and show by what and after how long each is caught.
    #[arg(long, conflicts_with = "seed")]
    teeth: bool,
    /// Explore the tiny machines to this depth, and nothing else.
    #[arg(long, value_name = "DEPTH", conflicts_with_all = ["teeth", "seed"])]
    tiny: Option<u32>,
}

/// Seconds that a planted bug may live.
const TEETH_SECONDS: u64 = 60;

/// Runs what is asked.
pub(crate) fn command(options: &Options) -> Outcome<()> {
    if options.teeth {
        return teeth(1, &mut |line| println!("{line}")).map(|line| println!("{line}"));
    }
    if let Some(depth) = options.tiny {
        show(&["tiny", "calls", &depth.to_string(), "100000000"])?;
        show(&["tiny", "tables", &depth.to_string(), "100000000"])?;
        return show(&["tiny", "roots", &depth.to_string(), "100000000"]);
    }
    match options.seed.as_deref() {
        Some(seed) if seed.parse::<u64>().is_err() => show(&["replay", seed]),
        seed => {
            let half = (options.seconds / 2).max(1);
            show(&["random", &half.to_string(), seed.unwrap_or("1")])?;
            match libfuzzer(options.seconds - half) {
                Ok(line) => println!("{line}"),
                Err(LibFuzzer::Missing(why)) => {
                    println!("libFuzzer: skipped, {why}");
                    let next =
                        seed.and_then(|seed| seed.parse::<u64>().ok()).unwrap_or(1).wrapping_add(1 << 32);
                    show(&["random", &half.to_string(), &next.to_string()])?;
                }
                Err(LibFuzzer::Found(text)) => return Err(Failure::failed(text)),
            }
            Ok(())
        }
    }
}

/// Builds the driver, with bugs that can be planted or without; where it is.
fn driver(seeded: bool) -> Outcome<PathBuf> {
    let folder = workspace::target().join(if seeded { "seeded" } else { "fuzzing" });
    let mut command = Command::new("cargo");
    command.current_dir(workspace::root()).args([
        "build",
        "--quiet",
        "--profile",
        "fuzz",
        "-p",
        "pavo-tests",
    ]);
    command.args(["--bin", "fuzz", "--target-dir"]).arg(&folder);
    if seeded {
        command.args(["--features", "seeded"]);
    }
    process::run(&mut command, "building the driver of random calls")?;
    Ok(folder.join("fuzz").join("fuzz"))
}

fn show(words: &[&str]) -> Outcome<()> {
    let status = Command::new(driver(false)?).args(words).status();
    match status.map_err(|error| Failure::failed(format!("the driver does not start: {error}")))?.code() {
        Some(0) => Ok(()),
        Some(2) => Err(Failure::usage("--seed: expected a number, or a sequence as it was printed")),
        _ => Err(Failure::Reported),
    }
}

/// What the driver says in the end, without showing it meanwhile.
pub(crate) fn last_line(words: &[&str]) -> Outcome<String> {
    let output = Command::new(driver(false)?).args(words).output();
    let output = output.map_err(|error| Failure::failed(format!("the driver does not start: {error}")))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let last = text.lines().last().unwrap_or_default().to_owned();
    if output.status.success() {
        Ok(last)
    } else {
        let lines = text.lines().map(str::to_owned).collect();
        Err(Failure::Shown { text: "library and specification differ".into(), lines })
    }
}

/// Plants each `every`-th known bug for itself, and counts those that are caught in time.
pub(crate) fn teeth(every: usize, tell: &mut dyn FnMut(String)) -> Outcome<String> {
    let driver = driver(true)?;
    let ask = |words: &[&str]| {
        let output = Command::new(&driver).args(words).output();
        let output =
            output.map_err(|error| Failure::failed(format!("the driver does not start: {error}")))?;
        Ok::<_, Failure>((output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned()))
    };
    let (_, names) = ask(&["bugs"])?;
    let mut missed = Vec::new();
    tell(format!("{:<18} | {:<9} | caught by", "bug", "after"));
    for name in names.lines().step_by(every) {
        let (caught, text) = ask(&["plant", name, &TEETH_SECONDS.to_string()])?;
        tell(format!("{name:<18} | {}", text.lines().last().unwrap_or_default()));
        if !caught {
            missed.push(name.to_owned());
        }
    }
    let count = names.lines().step_by(every).count();
    if missed.is_empty() {
        Ok(format!("{count} known bugs, each caught within {TEETH_SECONDS} s"))
    } else {
        Err(Failure::failed(format!("not caught: {}", missed.join(", "))))
    }
}

/// Why libFuzzer says nothing good.
enum LibFuzzer {
    /// It cannot be had here.
    Missing(String),
    /// It found something.
    Found(String),
}

/// Inputs that a process of libFuzzer plays. The fake machine of each is never given back (parts of the library live for ever, as at EL2), some
/// 200 KiB: a process that goes on for ten minutes has no memory left.
const INPUTS: u32 = 8000;

/// Runs the libFuzzer target for so many seconds. It is a package of its own, since it needs a nightly compiler.
fn libfuzzer(seconds: u64) -> Result<String, LibFuzzer> {
    let folder = workspace::root().join("tests/fuzz");
    let target = workspace::target().join("libfuzzer");
    let host = nightly_host().ok_or_else(|| LibFuzzer::Missing("there is no nightly toolchain".into()))?;
    let mut fetch = Command::new("cargo");
    if process::quiet(fetch.current_dir(&folder).args(["fetch", "--quiet"])).is_err() {
        return Err(LibFuzzer::Missing("the crate `libfuzzer-sys` cannot be fetched".into()));
    }
    let mut build = Command::new("cargo");
    build.current_dir(&folder).args(["+nightly", "build", "--quiet", "--release", "--target", &host]);
    build.arg("--target-dir").arg(&target).env(
        "RUSTFLAGS",
        "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
         -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
         -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing",
    );
    let compiled = build.output().map_err(|error| LibFuzzer::Missing(error.to_string()))?;
    if !compiled.status.success() {
        let text = String::from_utf8_lossy(&compiled.stderr);
        let line = text.lines().find(|line| line.starts_with("error")).unwrap_or("no error is told");
        // libFuzzer itself is C++.
        return Err(if text.contains("libfuzzer-sys") && text.contains("custom build command") {
            LibFuzzer::Missing(format!("there is no C++ compiler that builds it: {line}"))
        } else {
            LibFuzzer::Found(format!("tests/fuzz does not build: {line}"))
        });
    }
    let corpus = target.join("corpus");
    std::fs::create_dir_all(&corpus).map_err(|error| LibFuzzer::Missing(error.to_string()))?;
    let (start, mut inputs) = (Instant::now(), 0_u64);
    let text = loop {
        let left = seconds.saturating_sub(start.elapsed().as_secs());
        if left == 0 {
            let kept = std::fs::read_dir(&corpus).map_or(0, Iterator::count);
            return Ok(format!(
                "libFuzzer: {inputs} inputs in {:?} agree, {kept} kept",
                Duration::from_secs(seconds)
            ));
        }
        let run = Command::new(target.join(&host).join("release/calls"))
            .arg(&corpus)
            .args([format!("-max_total_time={left}"), format!("-runs={INPUTS}")])
            .args(["-max_len=2400", "-len_control=20", "-print_final_stats=1"])
            .args(["-rss_limit_mb=6000", "-timeout=120"])
            .arg(format!("-artifact_prefix={}/", target.display()))
            .output()
            .map_err(|error| LibFuzzer::Missing(error.to_string()))?;
        let text = String::from_utf8_lossy(&run.stderr).into_owned();
        if !run.status.success() {
            break text;
        }
        let line = text.lines().find(|line| line.contains("number_of_executed_units"));
        let played = line.and_then(|line| line.split_whitespace().last()?.parse().ok()).unwrap_or(0);
        // One that has played nothing would go on so for ever.
        inputs += if played == 0 { break text } else { played };
    };
    let found = text.lines().find(|line| line.contains("--seed")).unwrap_or("see what it kept").to_owned();
    Err(LibFuzzer::Found(format!("libFuzzer: {found} ({})", target.display())))
}

/// [`libfuzzer`] as a step of the test run.
pub(crate) fn libfuzzer_step(seconds: u64) -> Outcome<Found> {
    match libfuzzer(seconds) {
        Ok(line) => Ok(Found::Good(line)),
        Err(LibFuzzer::Missing(why)) => Ok(Found::Skipped(format!("libFuzzer: {why}"))),
        Err(LibFuzzer::Found(text)) => Err(Failure::failed(text)),
    }
}

/// The host's triple, if there is a nightly toolchain.
pub(crate) fn nightly_host() -> Option<String> {
    let output = Command::new("rustc").args(["+nightly", "-vV"]).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: ")).map(str::to_owned);
    host.filter(|_| output.status.success())
}
