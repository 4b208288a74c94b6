//! How late a domain that waits for events is given its CPU beside others that spin, also when one of them attacks, and what the others lose by that.
//!
//! All are on one CPU. What TLB maintenance costs other CPUs cannot be seen here: it is no instruction of theirs, and QEMU stops all for each, so that a tenth of a
//! second of it takes longer than any test may.

use super::step::{Level, Step};
use super::systems;
use super::told::{Told, spinner, tell};
use crate::baseline::Baseline;
use crate::check::Found;
use crate::failure::{Failure, Outcome};

/// What the attacker does while the first domain sleeps, and the others spin.
const ATTACKS: [&str; 5] = ["events", "yields", "hypercalls", "flushes", "sleeps"];
/// On the Raspberry Pi the attack in which the interrupt controller, which is another one there, has a part. What the others make EL2 do is the same code on
/// every board, and each takes QEMU, which counts idle CPUs as time, half a minute.
const ATTACKS_RPI4: [&str; 1] = ["events"];
/// Nanoseconds: longest time from when a domain that waits for events is due to its first instruction, with others that spin. A grain of 250 us, in
/// which nobody is interrupted, and two switches.
const LATEST: u64 = 300_000;
/// Wake-ups in the time that is looked at: every 1.25 ms and [`LATEST`] at least.
const WAKES: u64 = 200;

/// What the victims of an attack had: how late the one that sleeps woke, and how often, and what those that spin did.
struct Had {
    late: [u64; 4],
    histogram: String,
    work: Vec<u64>,
}

/// A domain that sleeps about a millisecond at a time, three that spin, and one that does as told.
fn beside(board: &str, name: &str, fifth: &str) -> Outcome<Had> {
    // The Raspberry Pi has booted later, and its other CPUs idle: where they are left off, QEMU has them spin, and counts that as time.
    let (span, cpus, on) = match board {
        "rpi4" => ("from=300 to=700", 4, "affinity = [0]\n"),
        // Each has 200 ms of it. Of less, a turn of 2 ms, which one of them has and another has not when it ends, is a good part of the 2 % that are allowed.
        _ => ("from=100 to=1100", 1, ""),
    };
    let text = [
        spinner(1, &format!("{on}cmdline = \"{span} sleep=1000\"")),
        (2..=4).map(|number| spinner(number, &format!("{on}cmdline = \"{span}\""))).collect(),
        spinner(5, &format!("{on}channels = [\"s1\"]\ncmdline = \"{span} {fifth}\"")),
    ];
    let told = tell(systems::write(&format!("latency-{board}-{name}"), &text.concat())?, board, cpus)?;
    let work: Option<Vec<_>> = [2, 3, 4].map(|domain| told.work.get(&domain).copied()).into_iter().collect();
    let (Some(late), Some(histogram), Some(work)) = (told.late.get(&1), told.histogram.get(&1), work) else {
        return Err(told.observed.failed("a domain told nothing"));
    };
    punctual(&told, *late)?;
    Ok(Had { late: *late, histogram: histogram.clone(), work })
}

fn punctual(told: &Told, [_, _, latest, times]: [u64; 4]) -> Outcome<()> {
    if latest <= LATEST && times >= WAKES {
        return Ok(());
    }
    Err(told.observed.failed(&format!("{times} wake-ups, the latest {latest} ns late")))
}

impl Had {
    /// Nobody has less than 98 % of what it had before, neither those that spin of their turns, nor the one that sleeps of its wake-ups.
    fn compare(&self, before: &Self, attack: &str) -> Outcome<()> {
        let (times, earlier) = (self.late[3], before.late[3]);
        let mut all = self.work.iter().copied().zip(before.work.iter().copied());
        if let Some((now, before)) = all.find(|(now, before)| now * 100 < before * 98) {
            return Err(Failure::failed(format!("{attack}: {now} turns instead of {before}")));
        }
        if times * 100 < earlier * 98 {
            return Err(Failure::failed(format!("{attack}: {times} wake-ups instead of {earlier}")));
        }
        Ok(())
    }

    fn tell(&self, attack: &str) -> String {
        let [half, most, latest, _] = self.late;
        format!("{attack} {half} {most} {latest} [{}]", self.histogram)
    }
}

/// Whoever waits for events is woken in time, and nobody loses more than 2 % of what there was without the attack.
fn latency(board: &str, attacks: &[&str]) -> Outcome<Found> {
    let quiet = beside(board, "quiet", "")?;
    let (mut lines, mut worst) = (vec![quiet.tell("quiet")], [0; 3]);
    for attack in attacks {
        let had = beside(board, attack, &format!("attack={attack}"))?;
        had.compare(&quiet, attack)?;
        lines.push(had.tell(attack));
        for (worst, late) in worst.iter_mut().zip(had.late) {
            *worst = late.max(*worst);
        }
    }
    if board == "virt" {
        let [half, most, latest, _] = quiet.late;
        let [half_attacked, most_attacked, latest_attacked] = worst;
        let figures = [
            ("half", half),
            ("most", most),
            ("latest", latest),
            ("half_attacked", half_attacked),
            ("most_attacked", most_attacked),
            ("latest_attacked", latest_attacked),
        ];
        let grown = Baseline::load()?.later(&figures);
        if !grown.is_empty() {
            return Err(Failure::failed(format!("wake-ups came later than before: {}", grown.join("; "))));
        }
    }
    Ok(Found::Good(format!("half, 99 %, all, ns [500 ns, 1 us, 2 us, ..]: {}", lines.join(", "))))
}

/// All steps of this file.
pub(super) fn all() -> Vec<Step> {
    let beside = "shares: wake-ups beside spinning domains, and beside an attacker";
    vec![
        super::rpi4::step(beside, Level::Default, || latency("rpi4", &ATTACKS_RPI4)),
        Step::new(beside, Level::Default, || latency("virt", &ATTACKS)).shared(),
    ]
}
