//! What `guest:share` tells of a run in which instructions are counted: the times of its vCPUs, what they did, how late they woke.

use std::collections::BTreeMap;
use std::path::PathBuf;

use regex::{Captures, Regex};

use super::systems::{self, Observed};
use crate::failure::{Doing, Outcome};
use crate::run::Options;

/// A vCPU's times by its run states, nanoseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    pub(super) ran: u64,
    /// How long it was looked at.
    pub(super) of: u64,
    /// It wanted to run, and another did.
    pub(super) waited: u64,
    pub(super) blocked: u64,
    pub(super) off: u64,
}

/// What a run printed, by domain.
pub(super) struct Told {
    pub(super) observed: Observed,
    /// The vCPUs, in the order in which they told.
    pub(super) times: BTreeMap<u32, Vec<Times>>,
    /// How much each did.
    pub(super) work: BTreeMap<u32, u64>,
    /// How often it woke less than 500 ns late, less than twice that, and so on, as printed.
    pub(super) histogram: BTreeMap<u32, String>,
    /// Nanoseconds that each woke too late: half of the times, 99 %, ever; and how many times.
    pub(super) late: BTreeMap<u32, [u64; 4]>,
}

/// A domain without settings.
pub(super) fn spinner(number: usize, more: &str) -> String {
    format!("[[domain]]\nname = \"s{number}\"\nkernel = \"guest:share\"\nmemory = \"16M\"\n{more}\n")
}

/// Boots a system and listens.
pub(super) fn tell(file: PathBuf, board: &str, cpus: u32) -> Outcome<Told> {
    let mut options = Options::for_file(file);
    options.board = Some(board.into());
    options.icount = true;
    options.cpu = (board == "virt").then(|| "max".into());
    options.cpus = Some(cpus);
    options.timeout = 300;
    let observed = systems::observe(&options)?;
    let pattern = |text: &str| Regex::new(text).doing("pattern");
    let times = pattern(
        r"^\(d([0-9]+)\) share ([0-9]+) of ([0-9]+) ns, ([0-9]+) waited, ([0-9]+) blocked, ([0-9]+) off$",
    )?;
    let work = pattern(r"^\(d([0-9]+)\) work ([0-9]+)$")?;
    let late = pattern(r"^\(d([0-9]+)\) late ([0-9]+) ([0-9]+) ([0-9]+) of ([0-9]+)$")?;
    let histogram = pattern(r"^\(d([0-9]+)\) histogram \[([0-9, ]+)\]$")?;
    let mut told = Told {
        observed,
        times: BTreeMap::new(),
        work: BTreeMap::new(),
        late: BTreeMap::new(),
        histogram: BTreeMap::new(),
    };
    for line in &told.observed.console {
        if let Some(parts) = times.captures(line) {
            let (domain, [ran, of, waited, blocked, off]) = numbers(&parts);
            told.times.entry(domain).or_default().push(Times { ran, of, waited, blocked, off });
        } else if let Some(parts) = work.captures(line) {
            let (domain, [done]) = numbers(&parts);
            *told.work.entry(domain).or_default() += done;
        } else if let Some(parts) = late.captures(line) {
            let (domain, times) = numbers(&parts);
            told.late.insert(domain, times);
        } else if let Some(parts) = histogram.captures(line) {
            let (domain, []) = numbers(&parts);
            told.histogram.insert(domain, parts[2].replace(',', ""));
        }
    }
    if let Err(failure) = &told.observed.result {
        return Err(told.observed.failed(&failure.to_string()));
    }
    Ok(told)
}

/// A domain's id and the numbers after it. What is too large is taken for the largest, which no check lets pass.
fn numbers<const N: usize>(parts: &Captures<'_>) -> (u32, [u64; N]) {
    let number = |index| parts.get(index).and_then(|part| part.as_str().parse().ok()).unwrap_or(u64::MAX);
    (u32::try_from(number(1)).unwrap_or(u32::MAX), std::array::from_fn(|index| number(index + 2)))
}

impl Told {
    /// A domain's vCPUs, which told of a second each.
    pub(super) fn second(&self, domain: u32, vcpus: usize) -> Outcome<&[Times]> {
        let told = self.times.get(&domain).map_or(&[][..], Vec::as_slice);
        if told.len() != vcpus {
            let why = format!("d{domain}: {} vCPUs of {vcpus} told their times", told.len());
            return Err(self.observed.failed(&why));
        }
        match told.iter().find(|times| !(990_000_000..=1_010_000_000).contains(&times.of)) {
            Some(times) => Err(self.observed.failed(&format!("d{domain} told of {} ns", times.of))),
            None => Ok(told),
        }
    }

    /// The vCPUs of a domain, which spun for a second, together ran so many thousandths of a CPU, give or take 5 %. The rest of the second they waited, and
    /// the times add up.
    pub(super) fn expect(&self, domain: u32, vcpus: usize, thousandths: u64) -> Outcome<()> {
        let told = self.second(domain, vcpus)?;
        let (ran, due) = (told.iter().map(|times| times.ran).sum::<u64>(), thousandths * 1_000_000);
        if ran.abs_diff(due) * 20 > due {
            return Err(self.observed.failed(&format!("d{domain} ran {ran} ns instead of {due}")));
        }
        for Times { ran, of, waited, blocked, off } in told {
            let (all, rest) = (ran + waited + blocked + off, of.saturating_sub(*ran));
            // A thousandth is what a guest does not know about when it was stopped.
            let wrong = all.abs_diff(*of) > of / 1000 || blocked + off > of / 1000;
            if wrong || waited.abs_diff(rest) * 20 > rest + of / 100 {
                let why = format!("d{domain}: {ran} + {waited} + {blocked} + {off} ns, not {of}");
                return Err(self.observed.failed(&why));
            }
        }
        Ok(())
    }
}
