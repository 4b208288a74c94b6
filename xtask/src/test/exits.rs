//! What costs nothing: a partition whose guest waits by WFI and is woken by events, and a machine whose guests all sleep. The hypervisor's counters say so.

use std::collections::BTreeMap;

use regex::Regex;

use super::step::{Level, Step};
use super::systems::{self, Observed};
use crate::check::Found;
use crate::failure::{Doing, Outcome};
use crate::run::Options;

/// Events that the partition is sent, a millisecond apart.
const EVENTS: u64 = 100;
/// Milliseconds for which all sleep.
const SLEEP: u64 = 2000;
/// Milliseconds in which another domain lives again and again.
const LIVES: u64 = 1000;
/// Exits, and idle waits, of a CPU in that time at most: the one who sleeps wakes once, and may look a few times before.
const FEW: u64 = 10;

/// Exits, those for WFI, and idle waits by CPU, as the control domain told.
fn told(observed: &Observed) -> Outcome<BTreeMap<u32, [u64; 3]>> {
    let line =
        Regex::new(r"^\(d0\) control: CPU ([0-9]+): ([0-9]+) exits, ([0-9]+) for WFI, ([0-9]+) idle waits$")
            .doing("pattern")?;
    let number = |text: &str| text.parse().unwrap_or(u64::MAX);
    let all = observed.console.iter().filter_map(|text| line.captures(text));
    Ok(all
        .map(|parts| (parts[1].parse().unwrap_or(u32::MAX), [2, 3, 4].map(|index| number(&parts[index]))))
        .collect())
}

/// Boots the control domain on CPU 0 with others, counting instructions; it must say a line at last.
fn observe(board: &str, name: &str, orders: &str, others: &str, last: &str) -> Outcome<Observed> {
    let text = format!(
        "[machine]\ncpus = 4\n{others}[[domain]]\nname = \"control\"\nkernel = \"guest:control\"\nmemory = \"8M\"\nprivileged = true\n\
         affinity = [0]\ncmdline = \"do={orders}\"\n"
    );
    let mut options = Options::for_file(systems::write(&format!("exits-{board}-{name}"), &text)?);
    (options.board, options.icount, options.timeout) = (Some(board.into()), true, 300);
    options.cpu = (board == "virt").then(|| "max".into());
    let observed = systems::observe(&options)?;
    systems::clean(&observed)?;
    if observed.console.iter().any(|line| line == last) {
        Ok(observed)
    } else {
        Err(observed.failed(&format!("no line \"{last}\"")))
    }
}

/// A guest alone on CPU 1 that waits by WFI for events of a domain on CPU 0.
fn partition(board: &str) -> Outcome<Found> {
    // It lives on when all is counted.
    let others = format!(
        "[[pool]]\nname = \"own\"\ncpus = [1]\nscheduler = \"partition\"\n\
         [[domain]]\nname = \"waits\"\nkernel = \"guest:pong\"\nmemory = \"8M\"\npool = \"own\"\ncmdline = \"asleep=wfi pings={}\"\n",
        EVENTS + 2
    );
    let last = format!("(d0) control: {EVENTS} answers");
    let observed = observe(board, "partition", &format!("nudge:1:{EVENTS},destroy:1"), &others, &last)?;
    let told = told(&observed)?;
    match told.get(&1) {
        // One interrupt for an event, which is how another CPU tells of it, and nothing else.
        Some([EVENTS, 0, 0]) => Ok(Found::Good(format!("{EVENTS} events, {EVENTS} exits, none for WFI"))),
        found => Err(observed.failed(&format!("CPU 1: {found:?} exits, for WFI, idle waits"))),
    }
}

/// A guest alone on CPU 1 that waits by WFI for events that nobody sends, while another domain ends and is built anew all the time. Before the frames of a
/// life that has ended are free every CPU has to have left the hypervisor twice, also this one; the rest is others' work.
fn neighbour(board: &str) -> Outcome<Found> {
    let others = "[[pool]]\nname = \"own\"\ncpus = [1]\nscheduler = \"partition\"\n\
                  [[domain]]\nname = \"waits\"\nkernel = \"guest:pong\"\nmemory = \"8M\"\npool = \"own\"\ncmdline = \"asleep=wfi pings=2\"\n\
                  [[domain]]\nname = \"again\"\nkernel = \"guest:faulty\"\nmemory = \"8M\"\ncmdline = \"how=reboot\"\nmax_restarts = 100000\n";
    let orders = format!("sleep:100,exits:{LIVES},destroy:2,destroy:1");
    let observed = observe(board, "neighbour", &orders, others, &format!("(d0) control: slept {LIVES} ms"))?;
    let lives = observed.console.iter().filter(|line| line.contains(" d2: built again")).count();
    let most = u64::try_from(lives * 2 + 2).unwrap_or(0);
    match told(&observed)?.get(&1) {
        Some([exits, 0, 0]) if lives >= 10 && *exits <= most => {
            Ok(Found::Good(format!("{lives} lives of another domain, {exits} exits")))
        }
        found => Err(observed.failed(&format!("{lives} lives, CPU 1: {found:?} exits, for WFI, idle waits"))),
    }
}

/// Two domains that wait for an event that nobody sends, and the control domain, which sleeps.
fn asleep(board: &str) -> Outcome<Found> {
    let waits = |number: u32| {
        format!("[[domain]]\nname = \"w{number}\"\nkernel = \"guest:pong\"\nmemory = \"8M\"\nvcpus = 2\n")
    };
    let others = waits(1) + &waits(2);
    // What goes out on the console goes first.
    let orders = format!("sleep:100,settle:1,settle:2,sleep:50,exits:{SLEEP},destroy:1,destroy:2");
    let last = format!("(d0) control: slept {SLEEP} ms");
    let observed = observe(board, "asleep", &orders, &others, &last)?;
    let told = told(&observed)?;
    match told.iter().find(|(_, all)| all.iter().any(|count| *count > FEW)) {
        None => Ok(Found::Good(format!("{SLEEP} ms, exits, for WFI, idle waits by CPU: {told:?}"))),
        Some((cpu, all)) => Err(observed.failed(&format!("CPU {cpu}: {all:?} exits, for WFI, idle waits"))),
    }
}

/// All steps of this file.
pub(super) fn all() -> Vec<Step> {
    let partitions = "exits: a partition that waits by WFI has one for each event";
    let lives = "exits: a partition has two for each life of another domain";
    let idle = "exits: a machine whose guests sleep does nothing";
    vec![
        Step::new(partitions, Level::Default, || partition("virt")).shared(),
        Step::new(lives, Level::Default, || neighbour("virt")).shared(),
        Step::new(idle, Level::Default, || asleep("virt")).shared(),
        super::rpi4::step(partitions, Level::Default, || partition("rpi4")),
        super::rpi4::step(lives, Level::Default, || neighbour("rpi4")),
        super::rpi4::step(idle, Level::Default, || asleep("rpi4")),
    ]
}
