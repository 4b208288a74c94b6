//! What domains get of the CPUs, in one second of counted instructions, as they see it in their run states.

use super::step::{Level, Step};
use super::systems;
use super::told::{spinner, tell};
use crate::check::Found;
use crate::failure::Outcome;
use crate::run;

/// The shipped system.
fn divided(board: &str) -> Outcome<Found> {
    let told = tell(run::shipped("shares"), board, 2)?;
    // The capped one may have 100; what is left is shared 1 : 2 : 4.
    for (domain, thousandths) in [(1, 129), (2, 257), (3, 514), (4, 100), (5, 1000)] {
        told.expect(domain, 1, thousandths)?;
    }
    if told.observed.log.iter().any(|line| line == "CPU 1: 0 interrupts and traps") {
        Ok(Found::Good(String::new()))
    } else {
        Err(told.observed.failed("the partition's CPU was interrupted"))
    }
}

fn eight(board: &str) -> Outcome<Found> {
    let text: String = (0..8).map(|number| spinner(number, "")).collect();
    let told = tell(systems::write(&format!("eight-{board}"), &text)?, board, 1)?;
    (1..=8).try_for_each(|domain| told.expect(domain, 1, 125))?;
    Ok(Found::Good(String::new()))
}

fn sixteen(board: &str) -> Outcome<Found> {
    // By then all have come.
    let text: String = (0..16).map(|number| spinner(number, "cmdline = \"from=400 to=1400\"")).collect();
    let told = tell(systems::write(&format!("sixteen-{board}"), &text)?, board, 4)?;
    (1..=16).try_for_each(|domain| told.expect(domain, 1, 250))?;
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
    ]
}
