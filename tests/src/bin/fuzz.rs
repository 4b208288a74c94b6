//! The driver behind `cargo xtask fuzz`: random sequences of calls, on the shipping library and on the specification at once.
//!
//! `random SECONDS SEED` plays the sequences of seed after seed, `replay SEQUENCE` one, as it was printed, and tells its steps; `tiny calls|tables
//! DEPTH CALLS` explores a tiny machine. Built with the feature `seeded`: `bugs` names the known bugs, `plant NAME SECONDS` puts one back and
//! succeeds if that is found.
#![allow(clippy::expect_used, reason = "a tool of the tests")]
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pavo_tests::drive::{Failure, Run, Sequence, Setup, shrink};
use pavo_tests::tiny::{Tiny, calls, explore, roots, tables};

/// Steps of a sequence: long enough to fill tables, short enough that what fails is shrunk quickly.
const STEPS: usize = 2000;
/// A sequence that has had so much of a CPU waits for a lock that nobody gives back. On a machine that does other things too a sequence may
/// take long without.
const STUCK: f64 = 3.0;
/// And this long it takes nowhere, where the system does not tell what a process has had of a CPU, or where it sleeps.
const DEAD: Duration = Duration::from_secs(300);

/// Sequences that were played: what the watch looks at.
static PLAYED: AtomicU64 = AtomicU64::new(0);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |word: &str| word.parse::<u64>().expect("a number");
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["random", seconds, seed] => {
            watch("a call never ends", ExitCode::FAILURE);
            random(Duration::from_secs(number(seconds)), number(seed))
        }
        ["replay", sequence] => {
            let (setup, sequence) = sequence.split_once(':').unwrap_or(("2", sequence));
            match (Setup::parse(setup), Sequence::parse(sequence)) {
                (Some(setup), Some(sequence)) => replay(setup, &sequence),
                _ => ExitCode::from(2),
            }
        }
        ["tiny", which, depth, most] => tiny(
            &match which as &str {
                "tables" => tables(),
                "roots" => roots(),
                _ => calls(),
            },
            u32::try_from(number(depth)).expect("a depth"),
            usize::try_from(number(most)).expect("a number of calls"),
        ),
        #[cfg(feature = "seeded")]
        ["bugs"] => {
            for (name, _) in hypervisor::seeded::BUGS {
                println!("{name}");
            }
            ExitCode::SUCCESS
        }
        #[cfg(feature = "seeded")]
        ["plant", name, seconds] => plant(name, Duration::from_secs(number(seconds))),
        _ => {
            eprintln!(
                "fuzz random SECONDS SEED | replay [DOMAINS[pv][c][tCOUNT]:]SEQUENCE | tiny calls|tables|roots DEPTH CALLS"
            );
            ExitCode::from(2)
        }
    }
}

/// Ends the process when nothing has been played for long.
fn watch(what: &'static str, code: ExitCode) {
    let (start, failed) = (Instant::now(), code != ExitCode::SUCCESS);
    std::thread::spawn(move || {
        let (mut last, mut since, mut had) = (0, start, 0.0);
        loop {
            std::thread::sleep(Duration::from_millis(200));
            let (now, has) = (PLAYED.load(Ordering::Relaxed), cpu_seconds().unwrap_or(0.0));
            if now != last {
                (last, since, had) = (now, Instant::now(), has);
            } else if has - had > STUCK || since.elapsed() > DEAD {
                println!(
                    "{:6.2} s  | {what}, in the sequence after {now} others",
                    start.elapsed().as_secs_f64()
                );
                std::process::exit(i32::from(failed));
            }
        }
    });
}

/// Two domains, every fourth time three; every other time with checked page tables; every fourth with tiny counters.
fn setup(seed: u64) -> Setup {
    let paging = seed.is_multiple_of(2);
    let control = matches!(seed % 7, 3 | 6);
    Setup {
        domains: if seed % 4 == 3 { 3 } else { 2 },
        paging,
        control,
        most: matches!(seed % 8, 5 | 6).then_some(3),
    }
}

/// Plays the sequences of seed after seed; hypercalls and sequences, or the first that fails.
fn play(
    time: Duration,
    so_far: fn(Instant) -> Duration,
    seed: u64,
    steps: usize,
) -> Result<(u64, u64), (Setup, Sequence, Failure)> {
    let start = Instant::now();
    let (mut calls, mut sequences) = (0, 0);
    while so_far(start) < time {
        let seed = seed.wrapping_add(sequences);
        let sequence = Sequence::of_seed(seed, steps);
        match Run::play(setup(seed), &sequence, false) {
            Ok(made) => calls += made,
            Err(failure) => return Err((setup(seed), sequence, failure)),
        }
        sequences += 1;
        PLAYED.fetch_add(1, Ordering::Relaxed);
    }
    Ok((calls, sequences))
}

fn random(time: Duration, seed: u64) -> ExitCode {
    match play(time, |start| start.elapsed(), seed, STEPS) {
        Ok((calls, sequences)) => {
            let calls_made = f64::from(u32::try_from(calls).unwrap_or(u32::MAX));
            let rate = cpu_seconds().map_or(String::new(), |seconds| {
                format!(", {:.0} checked calls a second of a CPU", calls_made / seconds)
            });
            println!("{calls} calls in {sequences} sequences agree{rate}");
            ExitCode::SUCCESS
        }
        Err((setup, sequence, failure)) => {
            println!("step {}: {}", failure.step, failure.what);
            let (small, _) = shrink(setup, &sequence, &failure);
            replay(setup, &small)
        }
    }
}

fn replay(setup: Setup, sequence: &Sequence) -> ExitCode {
    match Run::play(setup, sequence, true) {
        Ok(calls) => {
            println!("{calls} calls agree");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            for line in &failure.story {
                println!("  {line}");
            }
            println!("  -> {}", failure.what);
            println!("again: cargo xtask fuzz --seed {setup}:{sequence}");
            ExitCode::FAILURE
        }
    }
}

fn tiny(tiny: &Tiny, depth: u32, calls: usize) -> ExitCode {
    match explore(tiny, depth, calls) {
        Ok(found) => {
            println!(
                "{} states, each call made in each to depth {}: {} calls, {} with the ways between",
                found.states, found.depth, found.edges, found.steps
            );
            ExitCode::SUCCESS
        }
        Err(failed) => {
            println!("step {}: {}", failed.1.step, failed.1.what);
            let (small, _) = shrink(tiny.setup, &failed.0, &failed.1);
            replay(tiny.setup, &small)
        }
    }
}

/// Puts a known bug back and looks for it.
#[cfg(feature = "seeded")]
fn plant(name: &str, time: Duration) -> ExitCode {
    assert!(hypervisor::seeded::plant(name), "there is no bug {name}");
    watch("a call never ends", ExitCode::SUCCESS);
    let start = Instant::now();
    match play(time, spent, 1, STEPS) {
        Ok((calls, _)) => {
            println!("{:>7} | not caught in {calls} calls", "-");
            ExitCode::FAILURE
        }
        Err((_, _, failure)) => {
            let after = spent(start).as_secs_f64();
            let steps = failure.step + 1;
            let what = failure.what.lines().last().unwrap_or_default();
            println!("{after:6.2} s  | call {steps}: {what}");
            ExitCode::SUCCESS
        }
    }
}

#[cfg(feature = "seeded")]
/// How long this process has been at it: on a machine that does other things too, what it has had of a CPU.
fn spent(start: Instant) -> Duration {
    let elapsed = start.elapsed();
    cpu_seconds().map_or(elapsed, |seconds| elapsed.min(Duration::from_secs_f64(seconds)))
}

/// What this process has had of a CPU, where the system tells (Linux: user time, in hundredths of a second).
fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let ticks: u32 = stat.rsplit(')').next()?.split_whitespace().nth(11)?.parse().ok()?;
    Some(f64::from(ticks) / 100.0)
}
