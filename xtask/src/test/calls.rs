//! Random calls on the library and its specification, the tiny machine, and the tests of the tests.

use super::step::{Level, Step};
use crate::check::Found;
use crate::fuzz;
use crate::models::{self, Orderings};

/// Steps of every kind, none long: `cargo xtask fuzz` takes the time that it is given.
pub(super) fn all() -> Vec<Step> {
    let said = |words: &'static [&'static str]| move || fuzz::last_line(words).map(Found::Good);
    vec![
        Step::new(
            "random calls: library and specification agree",
            Level::Default,
            said(&["random", "20", "1"]),
        ),
        Step::new(
            "tiny machine: every call in every state",
            Level::Default,
            said(&["tiny", "calls", "4", "2000000"]),
        ),
        Step::new(
            "tiny machine: page tables of two levels",
            Level::Default,
            said(&["tiny", "tables", "3", "2000000"]),
        ),
        Step::new(
            "tiny machine: roots of page tables, all of it",
            Level::Default,
            said(&["tiny", "roots", "40", "2000000"]),
        ),
        Step::new("known bugs are caught, a sample", Level::Default, || {
            fuzz::teeth(4, &mut |_| {}).map(Found::Good)
        }),
        Step::new("models: what is done without a lock", Level::Default, || {
            models::explore(Orderings::Needed)
        }),
        Step::new("models: CPUs and vCPUs under random schedules", Level::Default, || models::schedules(250)),
        Step::new("the library under Miri", Level::Full, models::miri),
        Step::new("models: each ordering taken away", Level::Full, || models::explore(Orderings::All)),
        Step::new("models: CPUs and vCPUs under more schedules", Level::Full, || models::schedules(10_000)),
        Step::new("random calls, ten minutes", Level::Full, said(&["random", "600", "1000000"])),
        Step::new("random calls by coverage, ten minutes", Level::Full, || fuzz::libfuzzer_step(600)),
        Step::new("tiny machine, deeper", Level::Full, said(&["tiny", "calls", "6", "20000000"])),
        Step::new(
            "tiny machine: page tables, deeper",
            Level::Full,
            said(&["tiny", "tables", "4", "20000000"]),
        ),
        Step::new("known bugs are caught", Level::Full, || {
            fuzz::teeth(1, &mut |line| println!("         | {line}")).map(Found::Good)
        }),
    ]
}
