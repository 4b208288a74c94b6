//! A domain that is killed everywhere in the middle of its work, as `guest:mixed` does it: each time all that the hypervisor has counted must be as it was
//! when the domain was not there, and what it recomputes must agree.

use std::ops::ControlFlow;

use super::step::{Level, Step};
use super::systems;
use crate::check::Found;
use crate::failure::Outcome;
use crate::run::Options;

/// Where the control domain, the victim and whom it has to do with run.
struct Places {
    /// For people.
    what: &'static str,
    cpus: u32,
    victim: u32,
    peer: u32,
}

/// The control domain's timer interrupts the victim between two of its instructions.
const BETWEEN: Places = Places { what: "between two instructions", cpus: 1, victim: 0, peer: 0 };
/// The victim is on another CPU: it is killed wherever it is then, in the hypervisor too, and finds out later.
const ELSEWHERE: Places = Places { what: "from another CPU", cpus: 2, victim: 1, peer: 1 };

/// Kills that are worth a run.
const LEAST: u64 = 10;

/// Kills a domain at every `step`-th instruction of so many rounds.
fn killed(board: &str, places: &Places, paging: &str, rounds: u32, step: u32) -> Outcome<Found> {
    let Places { what, cpus, victim, peer } = places;
    // The Raspberry Pi has the memory that it has.
    let memory = if board == "rpi4" { "" } else { "memory = \"64M\"\n" };
    let text = format!(
        "[machine]\n{memory}self_check = true\n\
         [[domain]]\nname = \"control\"\nkernel = \"guest:control\"\nmemory = \"8M\"\nprivileged = true\naffinity = [0]\nweight = 65535\n\
         cmdline = \"do=kills:1:{step}\"\n\
         [[domain]]\nname = \"victim\"\nkernel = \"guest:mixed\"\nmemory = \"6M\"\npaging = \"{paging}\"\naffinity = [{victim}]\n\
         cmdline = \"role=victim rounds={rounds}\"\nchannels = [\"peer\"]\n\
         [[domain]]\nname = \"peer\"\nkernel = \"guest:mixed\"\nmemory = \"6M\"\naffinity = [{peer}]\ncmdline = \"role=peer\"\n"
    );
    let name = format!("kills-{board}-{}-{paging}-{step}", what.replace(' ', "-"));
    let mut options = Options::for_file(systems::write(&name, &text)?);
    (options.board, options.icount, options.cpus) = (Some(board.into()), true, Some(*cpus));
    options.cpu = (board == "virt").then(|| "max".into());
    options.timeout = if step < 997 { 4 * 3600 } else { 900 };
    let (mut span, mut kills) = (None, None);
    let observed = systems::observe_until(&options, &mut |line| {
        let number = |text: &str| text.split(' ').next().and_then(|number| number.parse::<u64>().ok());
        if let Some(text) = line.strip_prefix("(d0) control: killed ") {
            kills = number(text);
        } else if let Some(text) =
            line.strip_prefix("(d0) control: ").filter(|text| text.ends_with(" ns of rounds"))
        {
            span = number(text);
        }
        // The peer waits for ever; a control domain that ended without that line has failed.
        let over = kills.is_some() || line.contains("d0: shutdown") || line.contains("BUG");
        if over { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    let (Some(span), Some(kills)) = (span, kills) else {
        return Err(observed.failed("not all was as it was"));
    };
    let due = span / u64::from(step);
    // Whoever had ended before its time was not killed.
    if kills * 10 < due * 9 || due < LEAST {
        return Err(observed.failed(&format!("{kills} kills of {due}, in {span} ns")));
    }
    Ok(Found::Good(format!("{kills} times of {due}, {span} ns")))
}

/// All steps of this file.
pub(super) fn all() -> Vec<Step> {
    let step = |places: &'static Places, paging: &'static str, level, rounds, step| {
        let title = format!("kills: at every {step}th instruction, {}, {paging} page tables", places.what);
        Step::new(title, level, move || killed("virt", places, paging, rounds, step)).shared()
    };
    let mut steps = vec![
        step(&BETWEEN, "pv", Level::Default, 1, 997),
        step(&BETWEEN, "nested", Level::Default, 1, 1999),
        step(&ELSEWHERE, "pv", Level::Default, 1, 3989),
        step(&ELSEWHERE, "nested", Level::Default, 1, 1999),
        super::rpi4::step(
            "kills: at every 9973rd nanosecond, between two instructions, pv page tables",
            Level::Default,
            || killed("rpi4", &BETWEEN, "pv", 1, 9973),
        ),
    ];
    for places in [&BETWEEN, &ELSEWHERE] {
        steps.extend(["nested", "pv"].map(|paging| step(places, paging, Level::Full, 2, 97)));
    }
    steps
}
