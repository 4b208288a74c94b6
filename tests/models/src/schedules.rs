//! CPUs, vCPUs and everything that moves them, under thousands of random schedules (Shuttle): a model that is too large for all of them.
//!
//! `schedules [COUNT]` plays so many of each scenario, half of them at random and half with few preemptions (PCT: "probabilistic concurrency testing", Burckhardt
//! et al., 2010), then some with one line of the shipping source taken away at a time: a fence, a lock, a kick, the one step of an exchange. Those of
//! [`NEEDS`] must be missed. `schedules all [COUNT]` takes each away. `schedules run SCENARIO random|pct SEED COUNT [SITE]` plays one.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a tool of the tests")]
mod cpus;
mod source;

use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use cpus::Habits;
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, Runner};
use source::source;

/// The scenarios, by name.
const SCENARIOS: &[(&str, Habits)] = &[
    (
        "wakes",
        Habits {
            what: "block, sleep, send, yield",
            cpus: 3,
            domains: 3,
            rounds: 8,
            runs: 2,
            yields: 1,
            blocks: 6,
            sleeps: 2,
            sends: 6,
            raises: 3,
            pauses: 0,
            moves: 0,
            weighs: 1,
            ends: 0,
            off_and_on: 0,
        },
    ),
    (
        "places",
        Habits {
            what: "and affinities, weights, caps",
            cpus: 3,
            domains: 2,
            rounds: 8,
            runs: 2,
            yields: 1,
            blocks: 4,
            sleeps: 1,
            sends: 4,
            raises: 1,
            pauses: 0,
            moves: 5,
            weighs: 2,
            ends: 0,
            off_and_on: 0,
        },
    ),
    (
        "lives",
        Habits {
            what: "and pauses, ends, CPUs off and on",
            cpus: 3,
            domains: 3,
            rounds: 8,
            runs: 2,
            yields: 1,
            blocks: 4,
            sleeps: 1,
            sends: 4,
            raises: 1,
            pauses: 5,
            moves: 1,
            weighs: 0,
            ends: 1,
            off_and_on: 2,
        },
    ),
    (
        "all",
        Habits {
            what: "everything, on four CPUs",
            cpus: 4,
            domains: 4,
            rounds: 8,
            runs: 3,
            yields: 2,
            blocks: 6,
            sleeps: 2,
            sends: 6,
            raises: 2,
            pauses: 3,
            moves: 3,
            weighs: 1,
            ends: 1,
            off_and_on: 1,
        },
    ),
];
/// The files that are modelled.
const OURS: [&str; 6] = ["sched", "pause.rs", "vcpu.rs", "life", "runstate.rs", "domain.rs"];
/// Locks, kicks and exchanges (fences are Loom's matter: here few schedules come to where one is missed). How lines of the shipping source begin, behind the name of their function, without one of which some scenario must fail.
const NEEDS: &[&str] = &[
    "choose: let mut queue = cpu.queue.lock()",
    "steal: let mut queue = cpu.queue.lock()",
    "enqueue: let mut queue = cpu.queue.lock()",
    "move_on: let mut queue = cpu.queue.lock()",
    "enqueue: machine.hw.kick(to)",
    "tell_idle: machine.hw.kick(cpu)",
    "tell: machine.hw.kick(home)",
    "set_affinity: machine.hw.kick(home)",
    "stop: machine.hw.kick(home)",
    "change: self.0.compare_exchange(",
    "choose: self.idle.fetch_or(",
    "step: if reaper.busy.swap(true",
];
/// Schedules of each scenario and kind; and at most of each where something is taken away.
const COUNT: u32 = 250;
const MOST: u32 = 1000;
/// Schedules of a process: what a machine of the model is made of is never given back.
const AT_ONCE: u32 = 250;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["run", name, kind, seed, count, ref rest @ ..] => {
            let habits = SCENARIOS.iter().find(|scenario| scenario.0 == name).map(|scenario| &scenario.1);
            let numbers = seed.parse().ok().zip(count.parse().ok());
            let Some((habits, (seed, count))) = habits.zip(numbers) else { return ExitCode::from(2) };
            play(habits, kind == "pct", seed, count, rest.first().copied());
            ExitCode::SUCCESS
        }
        ["all"] => every(COUNT, true),
        ["all", count] => count.parse().map_or(ExitCode::from(2), |count| every(count, true)),
        [] => every(COUNT, false),
        [count] => count.parse().map_or(ExitCode::from(2), |count| every(count, false)),
        _ => ExitCode::from(2),
    }
}

/// Plays schedules of a scenario, with a site taken away; prints how many, and the sites.
fn play(habits: &'static Habits, pct: bool, seed: u64, count: usize, site: Option<&str>) {
    static PLAYED: AtomicU64 = AtomicU64::new(0);
    static KICKS: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let mut deaf = None;
    if let Some(site) = site {
        model_core::weaken(site);
        deaf = site
            .rsplit_once(':')
            .and_then(|(file, line)| Some((&*file.to_owned().leak(), line.parse().ok()?)));
    }
    let mut config = Config::new();
    config.stack_size = 1 << 18;
    config.silence_warnings = true;
    let scheduler: Box<dyn Scheduler + Send> = if pct {
        Box::new(PctScheduler::new_from_seed(seed, 4, count))
    } else {
        Box::new(RandomScheduler::new_from_seed(seed, count))
    };
    Runner::new(scheduler, config).run(move || {
        PLAYED.fetch_add(1, Ordering::Relaxed);
        let kicks = cpus::execution(habits, deaf);
        let mut known = KICKS.lock().unwrap();
        for (file, line) in kicks {
            let site =
                format!("{}:{line}", file.rsplit_once("hypervisor/src/").map_or(file, |(_, file)| file));
            if !known.contains(&site) {
                known.push(site);
            }
        }
    });
    println!("{} {}", PLAYED.load(Ordering::Relaxed), cpus::ROUNDS.load(Ordering::Relaxed));
    for site in model_core::sites().iter().chain(&*KICKS.lock().unwrap()) {
        println!("{site}");
    }
}

/// A run of this program: whether it found nothing, and what it printed.
fn run(words: &[&str]) -> (bool, String, String) {
    let program = std::env::current_exe().expect("it is running");
    let output = Command::new(program).arg("run").args(words).output().expect("it can be run again");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

/// Plays so many schedules in a process; how many, the steps of CPUs, and the sites, or what went wrong.
fn batch(
    name: &str,
    kind: &str,
    seed: u32,
    count: u32,
    site: Option<&str>,
) -> Result<(u64, u64, Vec<String>), String> {
    let (seed, count) = (seed.to_string(), count.to_string());
    let words: Vec<&str> = [name, kind, &seed, &count].into_iter().chain(site).collect();
    let (good, text, said) = run(&words);
    if !good {
        let why = said.lines().skip_while(|line| !line.contains("panicked at")).nth(1);
        return Err(format!("{} (schedules run {})", why.unwrap_or("it does not end"), words.join(" ")));
    }
    let mut lines = text.lines();
    let numbers = lines.next().and_then(|line| line.split_once(' ')).expect("two numbers");
    let number = |text: &str| text.parse::<u64>().expect("a number");
    Ok((number(numbers.0), number(numbers.1), lines.map(str::to_owned).collect()))
}

/// Every scenario at random and with few preemptions.
fn kinds() -> impl Iterator<Item = (&'static str, &'static Habits, &'static str)> {
    SCENARIOS.iter().flat_map(|(name, habits)| ["random", "pct"].map(|kind| (*name, habits, kind)))
}

fn every(count: u32, all: bool) -> ExitCode {
    let (mut failed, mut schedules, mut known) = (false, 0, Vec::new());
    for (name, habits, kind) in kinds() {
        let (mut all, mut steps) = (0, 0);
        for (seed, from) in (1_u32..).zip((0..count).step_by(AT_ONCE as usize)) {
            match batch(name, kind, seed, (count - from).min(AT_ONCE), None) {
                Ok((played, rounds, sites)) => {
                    all += played;
                    steps += rounds;
                    known.extend(sites);
                }
                Err(why) => {
                    println!("{name:<8} {kind:<6} FAILED: {why}");
                    failed = true;
                }
            }
        }
        println!("{name:<8} {kind:<6} {all:>6} schedules, {steps:>8} steps of CPUs | {}", habits.what);
        schedules += all;
    }
    known.sort();
    known.dedup();
    known.retain(|site| !failed && OURS.iter().any(|file| site.starts_with(file)));
    let (mut asked, mut caught) = (0, 0);
    let most = if all { count } else { MOST };
    let mut needed: Vec<&str> = NEEDS.to_vec();
    for site in &known {
        let line = source(site);
        let needs = NEEDS.iter().find(|fragment| line.starts_with(*fragment));
        if !all && needs.is_none() {
            continue;
        }
        asked += 1;
        // Those that are caught are caught soon.
        let why = (1..=most.div_ceil(AT_ONCE)).find_map(|seed| {
            kinds().find_map(|(name, _, kind)| batch(name, kind, seed, AT_ONCE, Some(site)).err())
        });
        caught += u32::from(why.is_some());
        let verdict = match (&why, needs) {
            (Some(_), _) => "caught",
            (None, _) => "missed",
        };
        if why.is_some() {
            needed.retain(|fragment| Some(fragment) != needs);
        }
        println!(
            "    {verdict:<10} {site}, {line} {}",
            why.map_or_else(String::new, |why| format!("| {why}"))
        );
    }
    for fragment in needed.iter().filter(|_| !failed) {
        println!("    NOT CAUGHT, or not there: {fragment}");
    }
    failed |= !needed.is_empty();
    println!(
        "{} scenarios, {schedules} schedules; of {asked} lines taken away {caught} are caught",
        SCENARIOS.len()
    );
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
