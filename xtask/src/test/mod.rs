//! `cargo xtask test`: everything that is tested, as one list of named steps.
//!
//! The last line is `N passed, N failed, N skipped`; the exit status is 1 if one failed.

mod affinity;
mod attacks;
mod backpressure;
mod calls;
mod card;
mod conformance;
mod devices;
mod ends;
mod exits;
mod faults;
mod figures;
mod keyboard;
mod kills;
mod linux;
mod matrix;
mod monitor;
mod paging;
mod pairs;
#[cfg(test)]
mod parity;
mod poison;
mod refusals;
mod rpi4;
mod schedule;
mod shares;
mod spread;
mod step;
mod systems;
mod tables;
mod told;
mod wakeups;

use std::time::Instant;

use regex::Regex;

use crate::check::{self, Found};
use crate::failure::{Failure, Outcome};
use crate::watch;
use step::{Level, Needs, Step};

/// What `test` accepts.
#[derive(clap::Args, Debug)]
pub(crate) struct Options {
    /// Five minutes at most.
    #[arg(long, conflicts_with = "full")]
    quick: bool,
    /// Everything, soaks included.
    #[arg(long)]
    full: bool,
    /// Only the steps whose names match this regular expression.
    #[arg(long)]
    filter: Option<String>,
}

impl Options {
    fn level(&self) -> Level {
        match (self.quick, self.full) {
            (true, _) => Level::Quick,
            (false, false) => Level::Default,
            (false, true) => Level::Full,
        }
    }
}

/// Runs the steps, those that allow it two at a time.
pub(crate) fn command(options: &Options) -> Outcome<()> {
    let filter = options.filter.as_deref().unwrap_or("");
    let filter = Regex::new(filter)
        .map_err(|_| Failure::usage(format!("--filter: \"{filter}\" is no regular expression")))?;
    let start = Instant::now();
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    let steps: Vec<_> = all()
        .into_iter()
        .filter(|step| step.level <= options.level() && filter.is_match(&step.name))
        .collect();
    schedule::run(&steps, &mut |step, result, elapsed| {
        if let Err(Failure::Shown { lines, .. }) = result {
            for line in lines {
                println!("         | {line}");
            }
        }
        println!("{} ({:.1} s)", check::line(&step.name, result), elapsed.as_secs_f64());
        match result {
            Ok(Found::Good(_)) => passed += 1,
            Ok(Found::Skipped(_)) => skipped += 1,
            Err(_) => failed += 1,
        }
    });
    if watch::interrupted() {
        return Err(Failure::failed("interrupted"));
    }
    println!("total {:.0} s", start.elapsed().as_secs_f64());
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    match (failed, passed + skipped) {
        (0, 0) => Err(Failure::usage(format!("--filter: no step matches \"{filter}\""))),
        (0, _) => Ok(()),
        _ => Err(Failure::Reported),
    }
}

/// Every step in order.
fn all() -> Vec<Step> {
    let mut steps = step::host();
    steps.extend(calls::all());
    steps.extend(refusals::host());
    let guests = [
        systems::all(),
        refusals::hypervisor(),
        faults::all(),
        ends::all(),
        attacks::all(),
        conformance::all(),
        matrix::all(),
        linux::all(),
        poison::all(),
        rpi4::all(),
        card::all(),
        monitor::all(),
        devices::all(),
        keyboard::all(),
        backpressure::all(),
        kills::all(),
        spread::all(),
        affinity::all(),
        exits::all(),
        shares::all(),
        wakeups::all(),
        paging::all(),
        figures::all(),
        tables::all(),
    ];
    steps.extend(guests.into_iter().flatten().map(|step| step.needing(Needs::Machine)));
    steps
}
