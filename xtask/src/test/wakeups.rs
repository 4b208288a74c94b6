//! How late a domain that waits for events is given its CPU beside others that spin, also when one of them attacks, and what the others lose by that.

use super::step::{Level, Step};
use super::systems;
use super::told::{Told, spinner, tell};
use crate::check::Found;
use crate::failure::Outcome;

/// What the fifth of the domains does while the first sleeps, and the others spin.
const ATTACKS: [&str; 5] = ["events", "yields", "hypercalls", "flushes", "sleeps"];
/// Nanoseconds: longest time from when a domain that waits for events is due to its first instruction, with others that spin. A grain of 250 us, in
/// which nobody is interrupted, and two switches.
const LATEST: u64 = 300_000;
/// Wake-ups in the time that is looked at: every 1 ms and [`LATEST`] at least.
const WAKES: u64 = 200;

/// A domain that sleeps a millisecond at a time, three that spin, and one that does as told, on one CPU: how late the first woke, and what
/// the second, the third and the fourth did.
fn beside(board: &str, name: &str, fifth: &str) -> Outcome<(Told, [u64; 4], [u64; 3])> {
    // The Raspberry Pi has booted later, and its other CPUs idle: where they are left off, QEMU has them spin, and counts that as time.
    let (span, cpus, on) = match board {
        "rpi4" => ("from=300 to=700", 4, "affinity = [0]\n"),
        _ => ("from=100 to=500", 1, ""),
    };
    let text = [
        spinner(1, &format!("{on}cmdline = \"{span} sleep=1000\"")),
        (2..=4).map(|number| spinner(number, &format!("{on}cmdline = \"{span}\""))).collect(),
        spinner(5, &format!("{on}channels = [\"s1\"]\ncmdline = \"{span} {fifth}\"")),
    ];
    let told = tell(systems::write(&format!("latency-{board}-{name}"), &text.concat())?, board, cpus)?;
    let (late, work) = (told.late.get(&1).copied(), [2, 3, 4].map(|domain| told.work.get(&domain).copied()));
    let ([Some(second), Some(third), Some(fourth)], Some(late)) = (work, late) else {
        return Err(told.observed.failed("a domain told nothing"));
    };
    Ok((told, late, [second, third, fourth]))
}

/// Whoever waits for events is woken in time, and nobody loses more than 2 % of what there was without the attack.
fn latency(board: &str, attacks: &[&str]) -> Outcome<Found> {
    let (told, quiet, share) = beside(board, "quiet", "")?;
    let mut lines = vec![format!("quiet {quiet:?}")];
    punctual(&told, quiet)?;
    for attack in attacks {
        let (told, late, work) = beside(board, attack, &format!("attack={attack}"))?;
        punctual(&told, late)?;
        for (now, before) in work.into_iter().zip(share) {
            if now * 100 < before * 98 {
                return Err(told.observed.failed(&format!("{attack}: {now} turns instead of {before}")));
            }
        }
        lines.push(format!("{attack} {late:?}"));
    }
    Ok(Found::Good(format!("half, 99 %, all, ns: {}", lines.join(", "))))
}

fn punctual(told: &Told, [_, _, latest, times]: [u64; 4]) -> Outcome<()> {
    if latest <= LATEST && times >= WAKES {
        return Ok(());
    }
    Err(told.observed.failed(&format!("{times} wake-ups, the latest {latest} ns late")))
}

/// All steps of this file.
pub(super) fn all() -> Vec<Step> {
    vec![
        super::rpi4::step(
            "shares: wake-ups beside spinning domains, and beside an attacker",
            Level::Default,
            || latency("rpi4", &ATTACKS[..1]),
        ),
        Step::new("shares: wake-ups beside spinning domains, and beside an attacker", Level::Default, || {
            latency("virt", &ATTACKS)
        })
        .shared(),
    ]
}
