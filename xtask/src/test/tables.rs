//! What page tables cost, checked and not, beside what they cost before (`tests/page-tables.toml`): batches, pins and unpins, and processes that fork and
//! execute, one domain in the machine at a time.

use std::collections::BTreeMap;
use std::path::PathBuf;

use regex::Regex;

use super::step::{Level, Step};
use super::systems::{self, Observed};
use crate::baseline::{Baseline, Change};
use crate::check::Found;
use crate::failure::{Doing, Failure, Outcome};
use crate::run::{self, Options};

/// For messages too.
const FILE: &str = "tests/page-tables.toml";

/// Frames of a block of 2 MiB.
const BLOCK: u64 = 512;
/// Pages that a process has when it forks, and the RAM of its domain: 1 MiB, 64 MiB.
const PROCESSES: [(&str, u32, &str); 2] = [("1M", 256, "32M"), ("64M", 16384, "256M")];

/// All steps of this file.
pub(super) fn all() -> Vec<Step> {
    vec![
        Step::new("bench: page tables cost no more instructions than before", Level::Default, compare)
            .shared(),
        Step::new(
            "bench: who changes no mapping pays nothing for checked tables",
            Level::Default,
            pays_nothing,
        )
        .shared(),
    ]
}

/// How a system ran when instructions were counted.
fn counted(file: PathBuf) -> Outcome<Observed> {
    let mut options = Options::for_file(file);
    (options.cpu, options.cpus, options.icount) = (Some("max".into()), Some(1), true);
    options.timeout = 300;
    let observed = systems::observe(&options)?;
    systems::clean(&observed)?;
    Ok(observed)
}

/// What the first domain of a system prints when instructions are counted.
fn told(file: PathBuf) -> Outcome<Vec<String>> {
    let observed = counted(file)?;
    Ok(observed.console.iter().filter_map(|line| Some(line.strip_prefix("(d1) ")?.to_owned())).collect())
}

/// Figures by name.
type Figures = BTreeMap<String, u64>;

/// Batches, pins, unpins, and a switch, as `guest:pv-bench` tells them.
fn calls(figures: &mut Figures) -> Outcome<()> {
    let patterns = [
        (r"^(.*): batch of ([0-9]+): ([0-9]+) ticks", "${1}_$2"),
        (r"^(a table of level 3, [a-z]+): pin ([0-9]+) ticks", "${1}_pin"),
        (r"^(a table of level 3, [a-z]+): .*unpin ([0-9]+)", "${1}_unpin"),
        (r"^(a tree of [0-9]+ tables) below one: pin ([0-9]+) ticks", "${1}_pin"),
        (r"^(a tree of [0-9]+ tables) below one: .*unpin ([0-9]+)", "${1}_unpin"),
        (r"^(another address space): ([0-9]+) ticks", "$1"),
    ];
    for line in told(run::shipped("pv-bench"))? {
        for (pattern, name) in patterns {
            let Some(found) = Regex::new(pattern).doing("pattern")?.captures(&line) else { continue };
            let mut key = String::new();
            found.expand(name, &mut key);
            let number = found.iter().flatten().last().and_then(|text| text.as_str().parse().ok());
            figures.insert(key.replace([' ', ','], "_").replace("__", "_"), number.unwrap_or(u64::MAX));
        }
    }
    Ok(())
}

/// Forking and executing, by checked page tables and by the kernel's own.
fn processes(figures: &mut Figures) -> Outcome<()> {
    let pattern = Regex::new(r"^large: [0-9]+ x (fork|exec): .*, ([0-9]+) ticks each").doing("pattern")?;
    for paging in ["pv", "nested"] {
        for (size, pages, memory) in PROCESSES {
            let word = if paging == "pv" { "pv" } else { "" };
            let text = format!(
                "[[domain]]\nname = \"process\"\nkernel = \"guest:pv-process\"\npaging = \"{paging}\"\n\
                 cmdline = \"{word} pages={pages}\"\nmemory = \"{memory}\"\n"
            );
            for line in told(systems::write(&format!("process-{paging}-{size}"), &text)?)? {
                if let Some(found) = pattern.captures(&line) {
                    let number = found[2].parse().unwrap_or(u64::MAX);
                    figures.insert(format!("{}_{size}_{paging}", &found[1]), number);
                }
            }
        }
    }
    Ok(())
}

fn compare() -> Outcome<Found> {
    let mut figures = Figures::new();
    calls(&mut figures)?;
    processes(&mut figures)?;
    let changes = Baseline::load_file(FILE)?.compare(&figures);
    let list: Vec<_> = changes.iter().map(ToString::to_string).collect();
    if changes.iter().any(|change| change.is_worse() || matches!(change, Change::New(..))) {
        let lines = figures.iter().map(|(name, number)| format!("{name} = {number}")).collect();
        return Err(Failure::Shown {
            text: format!("{}: {FILE} has other figures than these", list.join("; ")),
            lines,
        });
    }
    Ok(Found::Good(if list.is_empty() { format!("{} figures", figures.len()) } else { list.join("; ") }))
}

/// How much of the first domain's RAM was in pages of 4 KiB at its end: whole blocks of 2 MiB were split for tables and text, never all of them.
pub(super) fn small_pages(observed: &Observed) -> Outcome<String> {
    let pattern =
        Regex::new(r"^d1: ([0-9]+) of ([0-9]+) frames of RAM in pages of 4 KiB$").doing("pattern")?;
    let found = observed.log.iter().find_map(|line| {
        let found = pattern.captures(line)?;
        Some((found[1].parse::<u64>().ok()?, found[2].parse::<u64>().ok()?))
    });
    match found {
        Some((small, all)) if small > 0 && small < all && small % BLOCK == 0 => Ok(format!(
            "{small} of {all} frames ({}.{} %) in pages of 4 KiB",
            small * 100 / all,
            small * 1000 / all % 10
        )),
        _ => Err(observed.failed(&format!("the log does not say how much is in small pages: {found:?}"))),
    }
}

/// A guest that computes for a second of counted instructions does as much with checked page tables as with its own.
fn pays_nothing() -> Outcome<Found> {
    let work = |paging: &str| {
        let text = format!(
            "[[domain]]\nname = \"computes\"\nkernel = \"guest:share\"\nmemory = \"16M\"\npaging = \"{paging}\"\n"
        );
        let observed = counted(systems::write(&format!("computes-{paging}"), &text)?)?;
        let found =
            observed.console.iter().find_map(|line| line.strip_prefix("(d1) work ")?.parse::<u64>().ok());
        match found {
            Some(work) => Ok((work, observed)),
            None => Err(observed.failed(&format!("paging = \"{paging}\": it does not say what it did"))),
        }
    };
    let ((checked, observed), (own, _)) = (work("pv")?, work("nested")?);
    let small = small_pages(&observed)?;
    // The end of the second is somewhere in a round, and so is the scheduler's timer.
    if checked.abs_diff(own) > own / 10_000 {
        return Err(Failure::failed(format!("{checked} rounds with checked tables, {own} with its own")));
    }
    Ok(Found::Good(format!("{checked} rounds in a second, {own} with its own tables; {small}")))
}
