//! Guests that attack, beside two that must not notice: what the victims print is compared with a run without the attacker.
//!
//! A control domain waits until all have ended, and prints what the hypervisor has counted then: as many frames must be free as when
//! the third domain did nothing.
//!
//! `guest:attack` tries one family of cases a run and survives them; `guest:faulty` ends itself in ways that nobody survives.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::build::Variant;
use crate::check::Found;
use crate::conformance;
use crate::failure::{Failure, Outcome};
use crate::hypervisor::Hypervisor;
use crate::machine::Clock;
use crate::run::Options;

use super::step::{Level, Step};
use super::systems::{self, Observed, observe, observe_on};

/// A machine, and how much of the address space is tried on it: every page, or one of so many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct On {
    board: &'static str,
    cpu: &'static str,
    cpus: u32,
    gic: u32,
    step: u32,
    walls: Walls,
}

/// What is between an attacker with paravirtual page tables and the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Walls {
    /// What ships: roles of pages, and stage 2.
    Two,
    /// Roles are not checked: stage 2 alone. The attacker has such page tables then.
    One,
}

impl On {
    /// Where one CPU runs everything in turn, what it costs the victims can be counted.
    fn clock(self) -> Clock {
        if self.cpus == 1 { Clock::Instructions } else { Clock::Wall }
    }

    /// Where the hypervisor checks itself after each case and when a domain has ended: its image has what that needs.
    fn checks_itself(self) -> bool {
        (self.board, self.cpus, self.walls) == ("virt", 2, Walls::Two)
    }

    fn observe(self, options: &Options) -> Outcome<Observed> {
        match self.walls {
            Walls::Two => observe(options),
            Walls::One => observe_on(&Hypervisor::variant(Variant::OneWall)?, options),
        }
    }
}

/// The first counts instructions: there the victims' time is compared too.
const MACHINES: [On; 3] = [
    On { board: "virt", cpu: "max", cpus: 1, gic: 3, step: 1, walls: Walls::Two },
    On { board: "virt", cpu: "cortex-a72", cpus: 2, gic: 3, step: 64, walls: Walls::Two },
    On { board: "virt", cpu: "cortex-a72", cpus: 4, gic: 2, step: 64, walls: Walls::Two },
];

/// Whose model and controller are given.
const RPI4: On = On { board: "rpi4", cpu: "cortex-a72", cpus: 4, gic: 2, step: 64, walls: Walls::Two };

/// The family whose peer dies: a fourth domain.
const MATE: &str = "mate";
/// Families of `guest:attack`.
const FAMILIES: [&str; 11] = [
    "registers",
    "immediates",
    "states",
    "addresses",
    "handles",
    "counts",
    "calls",
    "revoke",
    MATE,
    "storms",
    "interrupts",
];

/// `how=` of `guest:faulty` that nobody survives; most go on for ever, taking exceptions.
const DEADLY: [&str; 12] = [
    "overflow",
    "spin",
    "hang",
    "vectors",
    "tables",
    "roots",
    "mmu",
    "state",
    "stack",
    "registers",
    "storm",
    "timer",
];

/// Rounds of the victims: long enough that the attack is over before them.
const ROUNDS: u32 = 1000;
/// Beside attackers that never end.
const FEW_ROUNDS: u32 = 100;
/// A turn of the scheduler, microseconds.
const TURN: u64 = 2000;
/// Most lines of the hypervisor's log about one domain: 64 on odd accesses, and its beginning and end.
const LINES: usize = 70;
/// Seconds until a run is given up.
const PATIENCE: u64 = 240;

/// All steps of this file.
pub(super) fn all() -> Vec<Step> {
    let survived = MACHINES.into_iter().flat_map(|on| {
        FAMILIES.into_iter().map(move |family| {
            let title = format!("hostile: {family} on {} x {}, GICv{}", on.cpus, on.cpu, on.gic);
            let step = Step::new(title, Level::Default, move || survives(on, family));
            if on.cpus == 1 { step.shared() } else { step }
        })
    });
    let deadly = MACHINES.into_iter().map(|on| {
        let title = format!("hostile: what nobody survives, on {} x {}, GICv{}", on.cpus, on.cpu, on.gic);
        Step::new(title, Level::Default, move || dies(on))
    });
    let on_rpi4 = FAMILIES.into_iter().map(|family| {
        super::rpi4::step(&format!("hostile: {family}"), Level::Default, move || survives(RPI4, family))
    });
    let deadly_on_rpi4 = super::rpi4::step("hostile: what nobody survives", Level::Default, || dies(RPI4));
    survived.chain(deadly).chain(on_rpi4).chain([deadly_on_rpi4]).collect()
}

/// Roles of pages are not checked: the attacker's cases are as ever; or it takes its own page tables over, in two lives, and nobody else notices.
pub(super) fn behind_one_wall() -> Vec<Step> {
    let machines = MACHINES.map(|on| On { walls: Walls::One, step: 64, ..on });
    let [_, second, _] = machines;
    let families = machines.into_iter().flat_map(|on| {
        FAMILIES.into_iter().map(move |family| {
            let title = format!("paging: one wall, {family} on {} x {}, GICv{}", on.cpus, on.cpu, on.gic);
            match on.cpus {
                1 => Step::new(title, Level::Default, move || survives(on, family)).shared(),
                _ => Step::new(title, Level::Full, move || survives(on, family)),
            }
        })
    });
    let suite = Step::new("paging: one wall, the conformance suite", Level::Default, || {
        let mut options = conformance::Options::on_pavo(3, 1, "max");
        options.icount = true;
        conformance::test_on(&options, &Hypervisor::variant(Variant::OneWall)?).map(Found::Good)
    });
    let title = "one wall, a kernel that was taken over";
    let here = Step::new(format!("paging: {title}"), Level::Default, move || takes_over(second));
    let on_rpi4 = super::rpi4::step(title, Level::Default, || takes_over(On { walls: Walls::One, ..RPI4 }));
    families.chain([suite.shared(), here, on_rpi4]).collect()
}

/// A kernel that was taken over gets what it wants, and only that.
fn takes_over(on: On) -> Outcome<Found> {
    let attacker = "[[domain]]\nname = \"rootkit\"\nkernel = \"guest:rootkit\"\nmemory = \"32M\"\nvcpus = 2\n\
                    paging = \"pv\"\ncmdline = \"walls=1 unsealed\"\n";
    let control = CONTROL.replace(ASKED, "end:1,end:2,twice:3:3");
    let observed = on.observe(&options(on, "rootkit", FEW_ROUNDS, &format!("{attacker}{control}"))?)?;
    let through = observed.console.iter().filter(|line| line.starts_with("(d3) not ok ")).count();
    if through == 0 {
        return Err(observed.failed("no attempt came to anything: this image checks roles"));
    }
    if !observed.console.iter().any(|line| line.starts_with("(d0) control: all as it was, ")) {
        return Err(observed.failed("what is counted is not as it was"));
    }
    unharmed(on, FEW_ROUNDS, &observed, Clock::Wall, 1)?;
    Ok(Found::Good(format!("{through} attempts came to something, for itself")))
}

fn victims(rounds: u32) -> String {
    format!(
        "[[domain]]\nname = \"first\"\nkernel = \"guest:victim\"\nmemory = \"16M\"\nchannels = [\"second\"]\n\
         cmdline = \"role=first rounds={rounds}\"\n\
         [[domain]]\nname = \"second\"\nkernel = \"guest:victim\"\nmemory = \"16M\"\n\
         cmdline = \"role=second rounds={rounds}\"\n"
    )
}

/// Who asks what is left, in front of the others: domain 0.
const CONTROL: &str = "[[domain]]\nname = \"control\"\nkernel = \"guest:control\"\nmemory = \"16M\"\nprivileged = true\n\
                       cmdline = \"do=ledger:3,end:1,end:2,end:3,count\"\n";
/// What it says when all counters are the same.
const AS_IT_WAS: &str = "(d0) control: all as it was, ";
/// What it is asked for.
const ASKED: &str = "ledger:3,end:1,end:2,end:3,count";

/// The third domain.
fn third(kernel: &str, cmdline: &str) -> String {
    format!(
        "[[domain]]\nname = \"third\"\nkernel = \"guest:{kernel}\"\nmemory = \"16M\"\nvcpus = 2\ncmdline = \"{cmdline}\"\n{CONTROL}"
    )
}

fn options(on: On, name: &str, rounds: u32, attackers: &str) -> Outcome<Options> {
    let name = format!("attack-{name}-{}-{}-{}-{}-{:?}", on.board, on.cpu, on.cpus, on.gic, on.walls);
    let machine = if on.checks_itself() { "[machine]\nself_check = true\n" } else { "" };
    let text = format!("{machine}{}{attackers}", victims(rounds));
    let mut options = Options::for_file(systems::write(&name, &text)?);
    options.board = Some(on.board.into());
    options.cpu = Some(on.cpu.into());
    options.cpus = Some(on.cpus);
    options.gic = Some(on.gic);
    options.icount = on.clock() == Clock::Instructions;
    options.timeout = PATIENCE;
    Ok(options)
}

/// What the victims say but for the time, in the order of the domains; and the longest time, microseconds.
type Said = (Vec<String>, u64);

/// Frames that are free, or will be when every CPU has passed, after all domains but the control domain have ended; and those that are
/// the hypervisor's own.
fn left(observed: &Observed) -> Option<(u64, u64)> {
    let line = observed
        .console
        .iter()
        .rev()
        .find_map(|line| line.split_once("count: free=").map(|(_, rest)| rest))?;
    let mut numbers = line.split(|c: char| !c.is_ascii_digit()).filter_map(|text| text.parse::<u64>().ok());
    Some((numbers.next()? + numbers.next()?, numbers.next()?))
}

fn said(observed: &Observed) -> Said {
    let (mut lines, mut longest) = (Vec::new(), 0);
    for line in observed.console.iter().filter(|line| line.contains("victim: ")) {
        match line.split_once("victim: time ") {
            Some((_, time)) => {
                let micros = time.split(' ').next().and_then(|text| text.parse().ok());
                longest = longest.max(micros.unwrap_or(u64::MAX));
            }
            None => lines.push(line.clone()),
        }
    }
    lines.sort();
    (lines, longest)
}

/// What the victims said, and what was left.
type Alone = (Said, Option<(u64, u64)>);

/// The run without an attacker, once for each machine: a domain that does nothing takes its place.
fn alone(on: On, rounds: u32) -> Outcome<Alone> {
    static RUNS: Mutex<BTreeMap<(On, u32), Alone>> = Mutex::new(BTreeMap::new());
    let mut runs = RUNS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = runs.get(&(on, rounds)) {
        return Ok(known.clone());
    }
    let observed = on.observe(&options(
        on,
        &format!("alone-{rounds}"),
        rounds,
        &third("attack", "only=none ledger=1"),
    )?)?;
    if let Err(failure) = &observed.result {
        return Err(observed.failed(&format!("without an attacker: {failure}")));
    }
    let found = (said(&observed), left(&observed));
    if found.0.0.len() != 10 {
        return Err(observed.failed("the victims do not say five things each"));
    }
    runs.insert((on, rounds), found.clone());
    Ok(found)
}

/// The hypervisor checked itself so often at least, where it does.
fn checked(on: On, times: u64, observed: &Observed) -> Result<(), Failure> {
    let found = between(observed, "(d0) control: the hypervisor checked itself ", " times").unwrap_or(0);
    if on.checks_itself() && found < times {
        return Err(observed.failed(&format!("the hypervisor checked itself {found} times, not {times}")));
    }
    Ok(())
}

/// The victims are as they were alone, and where instructions are counted they lost no more than their place in the queue costs:
/// a turn of each attacker at each of their waits.
fn unharmed(on: On, rounds: u32, observed: &Observed, clock: Clock, attackers: u64) -> Outcome<u64> {
    let ((expected, time), _) = alone(on, rounds)?;
    let (found, attacked) = said(observed);
    if let Some((one, other)) = expected.iter().zip(&found).find(|(one, other)| one != other) {
        return Err(observed.failed(&format!("a victim said \"{other}\", alone \"{one}\"")));
    }
    if expected.len() != found.len() {
        return Err(observed.failed("a victim did not come to its end"));
    }
    for line in ["d1: shutdown poweroff", "d2: shutdown poweroff"] {
        if observed.log.iter().filter(|text| *text == line).count() != 1 {
            return Err(observed.failed(&format!("no line \"{line}\"")));
        }
    }
    if observed.console.iter().any(|line| line.starts_with("BUG")) {
        return Err(observed.failed("the hypervisor has a bug"));
    }
    let waits = u64::from(rounds) * 2 + u64::from(rounds) / 4 + 100;
    let most = time.saturating_mul(2) + waits * TURN * attackers * 5 / 4;
    if clock == Clock::Instructions && attacked > most {
        return Err(observed.failed(&format!("the victims took {attacked} us, more than {most}")));
    }
    Ok(attacked.saturating_mul(10).checked_div(time).unwrap_or(0))
}

/// Events that `attack/storms.rs` sends to each of a victim's ports.
const STORM: u64 = 20_000;
/// Lines of its flood of text, and bytes of each with its end.
const FLOOD: u64 = 4096;
const FLOOD_LINE: u64 = 128;

/// Sum of the numbers between the two texts, over all lines that have both.
fn between(observed: &Observed, begin: &str, end: &str) -> Option<u64> {
    let numbers = observed
        .console
        .iter()
        .filter_map(|line| line.strip_prefix(begin)?.strip_suffix(end)?.parse::<u64>().ok());
    numbers.reduce(|sum, number| sum + number)
}

/// Each victim was interrupted, and no more often than events were sent; at its masked port one event is pending. Of the flood of text
/// every line either came or is counted as dropped.
fn stormed(observed: &Observed, clock: Clock) -> Result<(), String> {
    for id in [1, 2] {
        let times = between(observed, &format!("(d{id}) storm: port 2 interrupted "), " times");
        if !matches!(times, Some(1..=STORM)) {
            return Err(format!("domain {id} was interrupted {times:?} times by {STORM} events"));
        }
        let pending = between(observed, &format!("(d{id}) storm: port 3 has "), " pending");
        if pending != Some(1) {
            return Err(format!("domain {id} has {pending:?} events pending of a storm at a masked port"));
        }
    }
    let came = observed.console.iter().filter(|line| line.starts_with("(d3) ####")).count() as u64;
    let dropped = between(observed, "(d3) [", " bytes dropped]").unwrap_or(0);
    // In real time the guest may be so slow that it stays within its rate.
    let some = dropped != 0 || clock == Clock::Wall;
    if !some || came == 0 || came * FLOOD_LINE + dropped != FLOOD * FLOOD_LINE {
        return Err(format!("of {FLOOD} lines of text {came} came, and {dropped} bytes were dropped"));
    }
    Ok(())
}

/// One family of cases, all of which the attacker survives and finds right.
fn survives(on: On, family: &str) -> Outcome<Found> {
    let text = third("attack", &format!("only={family} step={} peer=1 ledger=1 mate=4", on.step));
    // What `calls` expects of calls about page tables is what domains hear that own them.
    let mut text = match on.walls {
        Walls::One if family != "calls" => text.replace("vcpus", "paging = \"pv\"\nvcpus"),
        Walls::One | Walls::Two => text,
    };
    if family == MATE {
        text = text.replace(ASKED, "ledger:3:4,end:1,end:2,end:3,destroy:4,twice:3:4")
            + "[[domain]]\nname = \"mate\"\nkernel = \"guest:attack\"\nmemory = \"8M\"\ncmdline = \"role=mate peer=3\"\n";
    }
    let observed = on.observe(&options(on, family, ROUNDS, &text)?)?;
    let cases = observed.console.iter().filter(|line| line.starts_with("(d3) ok ")).count();
    if let Some(wrong) = observed.console.iter().find(|line| line.starts_with("(d3) not ok ")) {
        return Err(observed.failed(&format!("{wrong} ({cases} others are ok)")));
    }
    if !observed.console.iter().any(|line| *line == format!("(d3) 1..{cases}")) || cases == 0 {
        return Err(
            observed.failed(&format!("{cases} cases are ok, and the attacker's plan does not say so"))
        );
    }
    // And when each of the victims, and the attacker or its peer, had ended.
    checked(on, cases as u64 + 3, &observed)?;
    if !observed.console.iter().any(|line| line == "(d3) ledger: counted after each case") {
        return Err(observed.failed("the hypervisor's counters are not looked at"));
    }
    if let Err(failure) = &observed.result {
        return Err(observed.failed(&failure.to_string()));
    }
    if family == MATE && !observed.console.iter().any(|line| line.starts_with(AS_IT_WAS)) {
        return Err(observed.failed("what is counted is not as it was"));
    }
    let (found, expected) = (left(&observed), alone(on, ROUNDS)?.1);
    if family != MATE && (found.is_none() || found != expected) {
        return Err(observed.failed(&format!("free and own frames at the end: {found:?}, not {expected:?}")));
    }
    if family == "storms"
        && let Err(why) = stormed(&observed, on.clock())
    {
        return Err(observed.failed(&why));
    }
    let lines = observed.log.iter().filter(|line| line.starts_with("d3: ")).count();
    if lines > LINES {
        return Err(observed.failed(&format!("the hypervisor said {lines} things of the attacker")));
    }
    let times = unharmed(on, ROUNDS, &observed, on.clock(), 2)?;
    Ok(Found::Good(format!("{cases} cases; the victims took {}.{} times as long", times / 10, times % 10)))
}

/// All that nobody survives at once, until the victims have ended. Then the control domain ends them, has them do all that again, and nothing of
/// what the hypervisor counts may be other than between these lives.
fn dies(on: On) -> Outcome<Found> {
    let domain = |how: &&str| {
        format!(
            "[[domain]]\nname = \"{how}\"\nkernel = \"guest:faulty\"\nmemory = \"8M\"\ncmdline = \"how={how}\"\n"
        )
    };
    let (first, last) = (3, DEADLY.len() + 2);
    let control = CONTROL.replace(ASKED, &format!("end:1,end:2,twice:{first}:{last}"));
    let attackers = DEADLY.iter().map(domain).collect::<Vec<_>>().concat() + &control;
    let mut options = options(on, "deadly", FEW_ROUNDS, &attackers)?;
    // A guest that takes exceptions without ever executing an instruction stops a clock that counts instructions.
    options.icount = false;
    let observed = observe(&options)?;
    for (how, id) in DEADLY.iter().zip(first..) {
        let began = format!("(d{id}) faulty: {how}");
        let lives = observed.console.iter().filter(|line| **line == began).count();
        if lives != 2 {
            return Err(observed.failed(&format!("{lives} lines \"{began}\", not 2")));
        }
    }
    if !observed.console.iter().any(|line| line.starts_with(AS_IT_WAS)) {
        return Err(observed.failed("what is counted is not as it was"));
    }
    checked(on, 3, &observed)?;
    let times = unharmed(on, FEW_ROUNDS, &observed, Clock::Wall, DEADLY.len() as u64)?;
    Ok(Found::Good(format!("the victims took {}.{} times as long", times / 10, times % 10)))
}
