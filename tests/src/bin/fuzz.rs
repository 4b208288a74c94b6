//! The driver behind `cargo xtask fuzz`: random sequences of calls, on the shipping library and on the specification at once.
//!
//! `fuzz random SECONDS SEED` plays sequences of seed after seed; `fuzz replay SEQUENCE` plays one and tells its steps.
#![allow(clippy::expect_used, reason = "a tool of the tests")]
use std::process::ExitCode;
use std::time::{Duration, Instant};

use pavo_tests::drive::{Run, Sequence, shrink};

/// Steps of a sequence: long enough to fill tables, short enough that what fails is shrunk quickly.
const STEPS: usize = 2000;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["random", seconds, seed] => {
            let (seconds, seed) = (seconds.parse().expect("seconds"), seed.parse().expect("a number"));
            random(Duration::from_secs(seconds), seed)
        }
        ["replay", domains, sequence] => {
            let sequence = Sequence::parse(sequence).expect("a sequence as it was printed");
            replay(domains.parse().expect("a number"), &sequence)
        }
        _ => {
            eprintln!("fuzz random SECONDS SEED | fuzz replay DOMAINS SEQUENCE");
            ExitCode::from(2)
        }
    }
}

/// Two domains, every fourth time three.
const fn domains(seed: u64) -> u16 {
    if seed % 4 == 3 { 3 } else { 2 }
}

fn random(time: Duration, seed: u64) -> ExitCode {
    let start = Instant::now();
    let (mut calls, mut sequences) = (0, 0);
    while start.elapsed() < time {
        let seed = seed.wrapping_add(sequences);
        let sequence = Sequence::of_seed(seed, STEPS);
        match Run::play(domains(seed), &sequence, false) {
            Ok(made) => calls += made,
            Err(failure) => {
                println!("seed {seed}, step {}: {}", failure.step, failure.what);
                let (small, _) = shrink(domains(seed), &sequence, &failure);
                return replay(domains(seed), &small);
            }
        }
        sequences += 1;
    }
    let rate = cpu_seconds().map_or(String::new(), |seconds| {
        format!(", {:.0} a second of a CPU", f64::from(u32::try_from(calls).unwrap_or(u32::MAX)) / seconds)
    });
    println!("{calls} calls in {sequences} sequences agree{rate}");
    ExitCode::SUCCESS
}

/// What this process has had of a CPU, where the system tells (Linux: user time, in hundredths of a second).
fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let ticks: u32 = stat.rsplit(')').next()?.split_whitespace().nth(11)?.parse().ok()?;
    Some(f64::from(ticks) / 100.0)
}

fn replay(domains: u16, sequence: &Sequence) -> ExitCode {
    match Run::play(domains, sequence, true) {
        Ok(calls) => {
            println!("{calls} calls agree");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            for line in &failure.story {
                println!("  {line}");
            }
            println!("  -> {}", failure.what);
            println!("again: fuzz replay {domains} {sequence}");
            ExitCode::FAILURE
        }
    }
}
