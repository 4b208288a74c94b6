//! What operations cost, beside what they cost before.

use super::step::{Level, Step};
use crate::baseline::{Baseline, Change};
use crate::bench;
use crate::check::Found;
use crate::failure::{Failure, Outcome};
use crate::hypervisor::Hypervisor;
use crate::stretch;

/// All steps of this file.
pub(super) fn all() -> Vec<Step> {
    // Among two they are measured by `compare`.
    let among = bench::DOMAINS.into_iter().filter(|domains| *domains > 2).map(|domains| {
        let level = if domains == 16 { Level::Default } else { Level::Full };
        let title = format!("bench: operations take as long among {domains} domains");
        Step::new(title, level, move || among(domains)).shared()
    });
    let mut steps = vec![
        Step::new("bench: no operation takes more instructions than before", Level::Default, compare)
            .shared(),
        Step::new("bench: interrupts are masked no longer than before", Level::Default, || {
            let measured = stretch::measure()?;
            let Some((cause, length)) = measured.worst() else {
                return Err(Failure::failed("nothing was measured"));
            };
            let baseline = Baseline::load()?;
            if baseline.allows(length) {
                return Ok(Found::Good(format!("{length} instructions: {cause}")));
            }
            Err(Failure::failed(format!("{length} instructions, not {:?}: {cause}", baseline.stretch())))
        })
        .shared(),
    ];
    steps.extend(among);
    steps
}

/// All that two domains take, among more of them. What is kept is of an operation, whatever the number of domains.
fn among(domains: u32) -> Outcome<Found> {
    let (baseline, measured) = (Baseline::load()?, bench::among(domains)?);
    let grown: Vec<_> =
        baseline.compare(&measured).into_iter().filter(|change| matches!(change, Change::Grew(..))).collect();
    if let Some(change) = grown.first() {
        return Err(Failure::failed(format!("among {domains} domains {change}, and {} in all", grown.len())));
    }
    let line = |name: &str| measured.get(name).map_or(String::new(), |number| format!("{name} {number}"));
    let shown = ["null_hypercall", "event_send_vector", "grant_map", "two_switches"].map(line).join(", ");
    if measured.len() < LEAST {
        Err(Failure::failed(format!("{} figures", measured.len())))
    } else {
        Ok(Found::Good(shown))
    }
}

/// Figures that a run on one CPU shows at least.
const LEAST: usize = 15;

fn compare() -> Outcome<Found> {
    let measured = bench::measure(&Hypervisor::pavo())?.counts();
    let changes = Baseline::load()?.compare(&measured);
    let (worse, better): (Vec<_>, Vec<_>) = changes.iter().partition(|change| change.is_worse());
    let list = |changes: &[&Change]| changes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    if !worse.is_empty() {
        return Err(Failure::failed(list(&worse)));
    }
    if better.is_empty() {
        return Ok(Found::Good(format!("{} figures", measured.len())));
    }
    Ok(Found::Good(format!("{}: type `cargo xtask bench --update-baseline`", list(&better))))
}
