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
    let mut told = Told { observed, shares: BTreeMap::new() };
    for line in &told.observed.console {
        if let Some(parts) = share.captures(line) {
            told.shares.insert(parts[1].parse().unwrap_or(0), (number(&parts[2]), number(&parts[3])));
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

/// All steps of this file.
pub(super) fn all() -> Vec<Step> {
    vec![
        Step::new("shares: weights, a cap, and a partition without exits", Level::Default, || {
            divided("virt")
        }),
        super::rpi4::step("shares: weights, a cap, and a partition without exits", Level::Default, || {
            divided("rpi4")
        }),
        Step::new("shares: sixteen domains on four CPUs", Level::Default, || {
            let text: String = (0..16).map(|number| spinner(number, "")).collect();
            let told = tell(systems::write("sixteen", &text)?, "virt", 4)?;
            (1..=16).try_for_each(|domain| told.expect(domain, 250))?;
            Ok(Found::Good(String::new()))
        }),
    ]
}
