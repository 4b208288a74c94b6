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
    vec![
        Step::new("bench: no operation takes more instructions than before", Level::Default, compare)
            .shared(),
        Step::new("bench: interrupts are masked no longer than before", Level::Default, || {
            let longest = stretch::measure()?;
            let Some((cause, length)) = stretch::worst(&longest) else {
                return Err(Failure::failed("nothing was measured"));
            };
            let baseline = Baseline::load()?;
            if baseline.allows(length) {
                return Ok(Found::Good(format!("{length} instructions: {cause}")));
            }
            Err(Failure::failed(format!("{length} instructions, not {:?}: {cause}", baseline.stretch())))
        })
        .shared(),
    ]
}

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
