//! What operations cost, beside what they cost before.

use super::step::{Level, Step};
use crate::baseline::{Baseline, Change};
use crate::bench;
use crate::check::Found;
use crate::failure::{Failure, Outcome};
use crate::hypervisor::Hypervisor;

/// All steps of this file.
pub(super) fn all() -> Vec<Step> {
    vec![
        Step::new("bench: no operation takes more instructions than before", Level::Default, compare)
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
