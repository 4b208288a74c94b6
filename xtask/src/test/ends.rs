//! What becomes of a domain that has ended badly: its crash is told, and it is built anew, kept or destroyed as its system file says.

use std::ops::ControlFlow;

use object::{Object as _, ObjectSymbol as _};
use regex::Regex;

use super::rpi4;
use super::step::{Level, Step};
use super::systems::{self, Observed, observe, observe_until};
use crate::check::Found;
use crate::console::{Decoder, Line};
use crate::failure::{Doing, Failure, Outcome};
use crate::run::Options;
use crate::workspace;

/// A domain of the first step: how it ends, its policy, and what the log then has of it before the control domain builds it again.
struct Case {
    how: &'static str,
    policy: &'static str,
    /// The line of each end.
    line: &'static str,
    lives: usize,
    kept: bool,
}

const fn case(how: &'static str, policy: &'static str, line: &'static str, lives: usize, kept: bool) -> Case {
    Case { how, policy, line, lives, kept }
}

/// Ids from 1.
const CASES: [Case; 6] = [
    case("crash", "on_crash = \"restart\"\nmax_restarts = 3", "shutdown crash", 4, false),
    case("crash", "on_crash = \"preserve\"", "shutdown crash", 1, true),
    case("reboot", "on_reboot = \"restart\"\nmax_restarts = 2", "shutdown reboot", 3, false),
    case("reboot", "on_reboot = \"preserve\"", "shutdown reboot", 1, true),
    case("watchdog", "on_crash = \"preserve\"", "shutdown watchdog", 1, true),
    case("watchdog-blocked", "on_crash = \"restart\"\nmax_restarts = 1", "shutdown watchdog", 2, false),
];
/// A number in the log.
const HEX: &str = "0x[0-9a-f]+";
/// Printed by `count:` of nobody's frames: the first ends the first lives, as far as they are looked at.
const COUNTED: &str = "(d0) count: free=";

/// All steps of this file.
pub(super) fn all() -> Vec<Step> {
    let title = "ends: restart until too often, or keep";
    let mut steps: Vec<_> = [1, 2]
        .into_iter()
        .map(|cpus| {
            Step::new(format!("{title}, on {cpus} CPUs"), Level::Default, move || policies("virt", cpus))
        })
        .collect();
    steps.push(rpi4::step(title, Level::Default, || policies("rpi4", 4)));
    let title = "ends: a crash is told with registers, callers and calls, and read back";
    steps.push(Step::new(title, Level::Default, || crash_is_told("virt")).shared());
    steps.push(rpi4::step(title, Level::Default, || crash_is_told("rpi4")));
    let title = "ends: of who does not run where it ends is told too";
    steps.push(Step::new(title, Level::Default, || told_of_waiting("virt")).shared());
    steps.push(rpi4::step(title, Level::Default, || told_of_waiting("rpi4")));
    steps
}

/// The control domain waits until each has come to its end, looks at those that are kept, destroys them, and has all do it once more: all counts are then
/// as they were.
fn policies(board: &str, cpus: u32) -> Outcome<Found> {
    let ids = || (1_usize..).zip(&CASES);
    let each =
        |text: &dyn Fn(usize, &Case) -> String| ids().map(|(id, case)| text(id, case)).collect::<String>();
    let words =
        |kept: &str, gone: &str| each(&|id, case| format!("{}:{id},", if case.kept { kept } else { gone }));
    let destroy = each(&|id, case| if case.kept { format!("destroy:{id},end:{id},") } else { String::new() });
    let count = each(&|id, _| format!("count:{id},"));
    let wait = words("shut", "end");
    let script =
        format!("{wait}list,{destroy}{count}count,mark,{}{wait}{destroy}same", words("build", "build"));
    let control = format!(
        "[[domain]]\nname = \"control\"\nkernel = \"guest:control\"\nmemory = \"16M\"\nprivileged = true\ncmdline = \"do={script}\"\n"
    );
    let text = ids().fold(control, |text, (id, case)| {
        let Case { how, policy, .. } = case;
        text + &format!(
            "[[domain]]\nname = \"e{id}\"\nkernel = \"guest:faulty\"\nmemory = \"8M\"\ncmdline = \"how={how}\"\n{policy}\n"
        )
    });
    let mut options = Options::for_file(systems::write(&format!("ends-{board}-{cpus}"), &text)?);
    (options.board, options.cpus, options.timeout) = (Some(board.into()), Some(cpus), 300);
    let observed = observe(&options)?;
    let end = observed.console.iter().position(|line| line.starts_with(COUNTED));
    let Some((first, _)) = end.and_then(|end| observed.console.split_at_checked(end)) else {
        return Err(observed.failed("the control domain did not come to count"));
    };
    let expect = |pattern: &str, due: usize| {
        let pattern = Regex::new(pattern).doing("pattern")?;
        let found = first.iter().filter(|line| pattern.is_match(line)).count();
        if found == due {
            return Ok(());
        }
        Err(Failure::Shown { text: format!("{found} lines {pattern}, not {due}"), lines: first.to_vec() })
    };
    for (id, case) in ids() {
        let Case { line, lives, kept, .. } = case;
        expect(&format!(" d{id}: {line}$"), *lives)?;
        expect(&format!(" d{id}: built again, "), lives - 1)?;
        expect(&format!(" d{id}: not built again: too many restarts in a minute$"), usize::from(!kept))?;
        // State, memory and CPU time; who spun until it was bitten has had more than a tenth of that second.
        let least = if case.how == "watchdog" { 6 } else { 1 };
        let ran = format!("8[0-9]{{3}} KiB, 0 of 1 vCPUs on, ran [1-9][0-9]{{{},}} us$", least - 1);
        expect(&format!(r"^\(d0\) d{id}: shut down, {ran}"), usize::from(*kept))?;
        expect(&format!(r"^\(d0\) d{id}: "), usize::from(*kept))?;
        // Its root tables and its shared info stay with its number.
        let nothing = "data=0 stage2=2 shared=1 tables=0 ports=0 grants=0 vmids=0 timers=0";
        expect(&format!(r"^\(d0\) count: d{id} {nothing} generation={lives}$"), 1)?;
        let crashes = if *line == "shutdown reboot" { 0 } else { *lives };
        expect(&format!(" d{id} vCPU 0: pc 0x[0-9a-f]+, pstate 0x"), crashes)?;
        // Of one that waits where no CPU has its registers, they are not told all.
        if *line == "shutdown crash" {
            expect(&format!(" d{id} vCPU 0: x28 0x[0-9a-f]+ 0x"), crashes)?;
        }
    }
    for line in ["d0: shutdown poweroff", "all domains ended"] {
        if !observed.log.iter().any(|seen| seen == line) {
            return Err(observed.failed(&format!("no line \"{line}\"")));
        }
    }
    if observed.console.iter().any(|line| line.starts_with("(d0) control: all as it was")) {
        Ok(Found::Good(String::new()))
    } else {
        Err(observed.failed("not all is as it was"))
    }
}

/// A guest crashes three calls deep, and the control domain reads that back.
fn crash_is_told(board: &str) -> Outcome<Found> {
    let text = "[[domain]]\nname = \"control\"\nkernel = \"guest:control\"\nmemory = \"16M\"\nprivileged = true\ncmdline = \"do=end:1,log:marked\"\n\
                [[domain]]\nname = \"crash\"\nkernel = \"guest:faulty\"\nmemory = \"8M\"\ncmdline = \"how=crash\"\n";
    let mut options = Options::for_file(systems::write(&format!("told-{board}"), text)?);
    (options.board, options.timeout) = (Some(board.into()), 240);
    let observed = observe(&options)?;
    in_full(&observed)?;
    let decoder = Decoder::new(&workspace::read(&workspace::pavo_elf())?)?;
    let back: Vec<String> = observed
        .console
        .iter()
        .filter_map(|line| line.strip_prefix("(d0) control: log "))
        .filter_map(|line| match decoder.line(format!("§{line}").as_bytes()) {
            Line::Log(log) => Some(log.text),
            Line::Guest { .. } | Line::Other(_) => None,
        })
        .collect();
    let told = |line: &&String| line.starts_with("d1: shutdown crash") || line.starts_with("d1 vCPU 0: ");
    let (said, read) = (observed.log.iter().filter(told), back.iter().filter(told));
    if said.eq(read) {
        Ok(Found::Good(String::new()))
    } else {
        Err(observed.failed(&format!("what was read back is {back:#?}")))
    }
}

/// Registers, calls and callers of domain 1, which has called `faulty`'s `outer`, `inner` and then `shutdown`.
pub(super) fn in_full(observed: &Observed) -> Outcome<()> {
    let told: Vec<&str> = observed.log.iter().filter_map(|line| line.strip_prefix("d1 vCPU 0: ")).collect();
    let one = |pattern: &str| {
        let pattern = Regex::new(pattern).doing("pattern")?;
        let found: Vec<_> = told.iter().filter_map(|line| pattern.captures(line)).collect();
        match &found[..] {
            [one] => Ok(one.get(1).map_or(0, |part| u64::from_str_radix(part.as_str(), 16).unwrap_or(0))),
            _ => Err(observed.failed(&format!("{} lines {pattern}", found.len()))),
        }
    };
    let pc = one(&format!(
        "^pc 0x([0-9a-f]+), pstate {HEX}, sp {HEX}, ESR_EL1 {HEX}, FAR_EL1 {HEX}, ELR_EL1 {HEX}$"
    ))?;
    for first in (0..32).step_by(4) {
        // The call's number is in x16.
        let value = if first == 16 { "0x1d" } else { HEX };
        one(&format!("^x{first} {value} {HEX} {HEX} {HEX}$"))?;
    }
    // `sched_op`, and what printed before it, `console_io`.
    one("^last hypercalls, the latest first: 29 18 ")?;
    let bytes = workspace::read(&workspace::guest_img("faulty").with_extension("elf"))?;
    let callers = told.iter().filter_map(|line| line.strip_prefix("called from 0x"));
    let callers: Vec<_> = callers.filter_map(|hex| u64::from_str_radix(hex, 16).ok()).collect();
    // A return address is behind its call, which of a function that does not return may be the last instruction.
    let functions: Vec<_> = callers.iter().map(|at| symbol(&bytes, at.saturating_sub(4))).collect();
    let named = |name: &str| {
        functions.iter().flatten().position(|symbol| symbol.contains("faulty") && symbol.contains(name))
    };
    // Who called `shutdown` does not return, and so has no frame: it is where the program counter is.
    match (symbol(&bytes, pc), named("outer"), named("main")) {
        (Some(at), Some(outer), Some(main)) if at.contains("power") && outer < main => Ok(()),
        (at, ..) => Err(observed.failed(&format!("at {at:?}, called from {functions:?}"))),
    }
}

/// The function that an address is in.
fn symbol(elf: &[u8], at: u64) -> Option<String> {
    let file = object::File::parse(elf).ok()?;
    file.symbols()
        .filter(|symbol| symbol.kind() == object::SymbolKind::Text)
        .find(|symbol| (symbol.address()..symbol.address() + symbol.size()).contains(&at))
        .and_then(|symbol| symbol.name().ok().map(str::to_owned))
}

/// A watchdog bites a domain that has a CPU for 2 ms each fifth of a second, where another spins.
fn told_of_waiting(board: &str) -> Outcome<Found> {
    let text = "[[domain]]\nname = \"waits\"\nkernel = \"guest:faulty\"\nmemory = \"8M\"\ncmdline = \"how=watchdog\"\nweight = 10\naffinity = [0]\n\
                [[domain]]\nname = \"spins\"\nkernel = \"guest:faulty\"\nmemory = \"8M\"\ncmdline = \"how=spin\"\nweight = 1000\naffinity = [0]\n";
    let mut options = Options::for_file(systems::write(&format!("waiting-{board}"), text)?);
    (options.board, options.timeout) = (Some(board.into()), 120);
    options.cpus = (board == "virt").then_some(1);
    let mut calls = false;
    let observed = observe_until(&options, &mut |line| {
        calls |= line.contains("d1 vCPU 0: last hypercalls, the latest first: 29 ");
        if calls { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    let place = Regex::new("^d1 vCPU 0: pc 0x([0-9a-f]+), ").doing("pattern")?;
    let at = observed.log.iter().find_map(|line| place.captures(line)).map(|parts| parts[1].to_owned());
    let bytes = workspace::read(&workspace::guest_img("faulty").with_extension("elf"))?;
    let at = at.and_then(|at| u64::from_str_radix(&at, 16).ok()).and_then(|at| symbol(&bytes, at));
    match at {
        Some(name) if calls && name.contains("spin") => Ok(Found::Good(String::new())),
        at => Err(observed.failed(&format!("it was told of at {at:?}"))),
    }
}
