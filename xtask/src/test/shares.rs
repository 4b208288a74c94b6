//! What domains get of the CPUs, in one second of counted instructions, as they see it in their run states.

use std::collections::BTreeMap;
use std::path::PathBuf;

use regex::Regex;

use super::step::{Level, Step};
use super::systems::{self, Observed};
use crate::check::Found;
use crate::failure::{Doing, Outcome};
use crate::run::{self, Options};

/// A spinning domain without settings.
fn spinner(number: usize, more: &str) -> String {
    format!("[[domain]]\nname = \"s{number}\"\nkernel = \"guest:share\"\nmemory = \"16M\"\n{more}\n")
}

/// What a run printed by domain.
struct Told {
    observed: Observed,
    /// Nanoseconds that each ran, and of how many.
    shares: BTreeMap<u32, (u64, u64)>,
    /// How much each did.
    work: BTreeMap<u32, u64>,
    /// Nanoseconds that each woke too late: half of the times, 99 %, ever; and how many times.
    late: BTreeMap<u32, [u64; 4]>,
}

fn tell(file: PathBuf, board: &str, cpus: u32) -> Outcome<Told> {
    let mut options = Options::for_file(file);
    options.board = Some(board.into());
    options.icount = true;
    options.cpu = (board == "virt").then(|| "max".into());
    options.cpus = Some(cpus);
    options.timeout = 300;
    let observed = systems::observe(&options)?;
    let share = Regex::new(r"^\(d([0-9]+)\) share ([0-9]+) of ([0-9]+) ns").doing("pattern")?;
    let number = |text: &str| text.parse::<u64>().unwrap_or(0);
    let work = Regex::new(r"^\(d([0-9]+)\) work ([0-9]+)").doing("pattern")?;
    let late = Regex::new(r"^\(d([0-9]+)\) late ([0-9]+) ([0-9]+) ([0-9]+) of ([0-9]+)").doing("pattern")?;
    let mut told = Told { observed, shares: BTreeMap::new(), work: BTreeMap::new(), late: BTreeMap::new() };
    for line in &told.observed.console {
        if let Some(parts) = share.captures(line) {
            told.shares.insert(parts[1].parse().unwrap_or(0), (number(&parts[2]), number(&parts[3])));
        } else if let Some(parts) = work.captures(line) {
            told.work.insert(parts[1].parse().unwrap_or(0), number(&parts[2]));
        } else if let Some(parts) = late.captures(line) {
            let times = [2, 3, 4, 5].map(|index| number(&parts[index]));
            told.late.insert(parts[1].parse().unwrap_or(0), times);
        }
    }
    if let Err(failure) = &told.observed.result {
        return Err(told.observed.failed(&failure.to_string()));
    }
    Ok(told)
}

impl Told {
    /// A domain ran so many thousandths of a CPU, give or take 5 %.
    fn expect(&self, domain: u32, thousandths: u64) -> Outcome<()> {
        let (ran, of) = self.shares.get(&domain).copied().unwrap_or((0, 1));
        let due = of * thousandths / 1000;
        if ran.abs_diff(due) * 20 <= due {
            return Ok(());
        }
        Err(self.observed.failed(&format!("d{domain} ran {ran} ns instead of {due}")))
    }
}

/// The shipped system.
fn divided(board: &str) -> Outcome<Found> {
    let told = tell(run::shipped("shares"), board, 2)?;
    // The capped one may have 100; what is left is shared 1 : 2 : 4.
    for (domain, thousandths) in [(1, 129), (2, 257), (3, 514), (4, 100), (5, 1000)] {
        told.expect(domain, thousandths)?;
    }
    if told.observed.log.iter().any(|line| line == "CPU 1: 0 interrupts and traps") {
        Ok(Found::Good(String::new()))
    } else {
        Err(told.observed.failed("the partition's CPU was interrupted"))
    }
}

/// What the fifth of the domains does while the first sleeps, and the others spin.
const ATTACKS: [&str; 5] = ["events", "yields", "hypercalls", "flushes", "sleeps"];
/// Nanoseconds: longest time from when a domain that waits for events is due to its first instruction, with others that spin. A grain of 250 us, in
/// which nobody is interrupted, and two switches.
const LATEST: u64 = 300_000;
/// Wake-ups in the time that is looked at: every 1 ms and [`LATEST`] at least.
const WAKES: u64 = 200;

/// A domain that sleeps a millisecond at a time, three that spin, and one that does as told, on one CPU: how late the first woke, and what
/// the second, the third and the fourth did.
fn beside(board: &str, name: &str, fifth: &str) -> Outcome<(Told, [u64; 4], [u64; 3])> {
    // The Raspberry Pi has booted later, and its other CPUs idle: where they are left off, QEMU has them spin, and counts that as time.
    let (span, cpus, on) = match board {
        "rpi4" => ("from=300 to=700", 4, "affinity = [0]\n"),
        _ => ("from=100 to=500", 1, ""),
    };
    let text = [
        spinner(1, &format!("{on}cmdline = \"{span} sleep=1000\"")),
        (2..=4).map(|number| spinner(number, &format!("{on}cmdline = \"{span}\""))).collect(),
        spinner(5, &format!("{on}channels = [\"s1\"]\ncmdline = \"{span} {fifth}\"")),
    ];
    let told = tell(systems::write(&format!("latency-{board}-{name}"), &text.concat())?, board, cpus)?;
    let (late, work) = (told.late.get(&1).copied(), [2, 3, 4].map(|domain| told.work.get(&domain).copied()));
    let ([Some(second), Some(third), Some(fourth)], Some(late)) = (work, late) else {
        return Err(told.observed.failed("a domain told nothing"));
    };
    Ok((told, late, [second, third, fourth]))
}

/// Whoever waits for events is woken in time, and nobody loses more than 2 % of what there was without the attack.
fn latency(board: &str, attacks: &[&str]) -> Outcome<Found> {
    let (told, quiet, share) = beside(board, "quiet", "")?;
    let mut lines = vec![format!("quiet {quiet:?}")];
    punctual(&told, quiet)?;
    for attack in attacks {
        let (told, late, work) = beside(board, attack, &format!("attack={attack}"))?;
        punctual(&told, late)?;
        for (now, before) in work.into_iter().zip(share) {
            if now * 100 < before * 98 {
                return Err(told.observed.failed(&format!("{attack}: {now} turns instead of {before}")));
            }
        }
        lines.push(format!("{attack} {late:?}"));
    }
    Ok(Found::Good(format!("half, 99 %, all, ns: {}", lines.join(", "))))
}

fn punctual(told: &Told, [_, _, latest, times]: [u64; 4]) -> Outcome<()> {
    if latest <= LATEST && times >= WAKES {
        return Ok(());
    }
    Err(told.observed.failed(&format!("{times} wake-ups, the latest {latest} ns late")))
}

fn eight(board: &str) -> Outcome<Found> {
    let text: String = (0..8).map(|number| spinner(number, "")).collect();
    let told = tell(systems::write(&format!("eight-{board}"), &text)?, board, 1)?;
    (1..=8).try_for_each(|domain| told.expect(domain, 125))?;
    Ok(Found::Good(String::new()))
}

fn sixteen(board: &str) -> Outcome<Found> {
    let text: String = (0..16).map(|number| spinner(number, "")).collect();
    let told = tell(systems::write(&format!("sixteen-{board}"), &text)?, board, 4)?;
    (1..=16).try_for_each(|domain| told.expect(domain, 250))?;
    Ok(Found::Good(String::new()))
}

/// All steps of this file.
pub(super) fn all() -> Vec<Step> {
    vec![
        Step::new("shares: weights, a cap, and a partition without exits", Level::Default, || {
            divided("virt")
        }),
        super::rpi4::step("shares: weights, a cap, and a partition without exits", Level::Default, || {
            divided("rpi4")
        }),
        Step::new("shares: eight domains on one CPU", Level::Default, || eight("virt")).shared(),
        super::rpi4::step("shares: eight domains on one CPU", Level::Default, || eight("rpi4")),
        Step::new("shares: sixteen domains on four CPUs", Level::Default, || sixteen("virt")),
        super::rpi4::step("shares: sixteen domains on four CPUs", Level::Default, || sixteen("rpi4")),
        super::rpi4::step(
            "shares: wake-ups beside spinning domains, and beside an attacker",
            Level::Default,
            || latency("rpi4", &ATTACKS[..1]),
        ),
        Step::new("shares: wake-ups beside spinning domains, and beside an attacker", Level::Default, || {
            latency("virt", &ATTACKS)
        })
        .shared(),
    ]
}
