//! Guests that end badly, or not at all: the run says so, and a neighbour is not touched.

use std::ops::ControlFlow;

use super::step::{Level, Step};
use super::systems::{self, observe, observe_until};
use crate::check::Found;
use crate::failure::Outcome;
use crate::run::Options;

/// `how=` of the `faulty` guest, what the guest says last, and what the hypervisor then logs of it.
const ENDS: [(&str, &str, &str); 6] = [
    ("reboot", "(d1) faulty: reboot", "d1: shutdown reboot"),
    ("crash", "(d1) faulty: crash", "d1: shutdown crash"),
    ("error", "(d1) guest failed: \"as asked\"", "d1: shutdown crash"),
    ("panic", "(d1) as asked, 1", "d1: shutdown crash"),
    ("overflow", "(d1) unexpected exception: synchronous from EL1", "d1: shutdown crash"),
    ("exhaust", "(d1) memory allocation of 1048576 bytes failed", "d1: shutdown crash"),
];
/// Those that never end.
const ENDLESS: [&str; 2] = ["spin", "hang"];
/// Seeds of the `hostile` guest, and CPUs.
const ATTACKS: [(u32, u32); 4] = [(1, 1), (2, 2), (3, 1), (4, 4)];
/// Seconds until a run with one of those is given up.
const PATIENCE: u64 = 15;

/// All steps of this file.
pub(super) fn all() -> Vec<Step> {
    let ends = ENDS.iter().map(|(how, said, line)| {
        Step::new(format!("a guest's bad end: {how}"), Level::Default, move || {
            expect(&options(how)?, said, line, 1)
        })
        .shared()
    });
    let endless = ENDLESS.iter().map(|how| {
        Step::new(format!("a guest without an end: {how}"), Level::Default, move || {
            let mut options = options(how)?;
            options.timeout = PATIENCE;
            expect(&options, &format!("(d1) faulty: {how}"), "d2: shutdown poweroff", 124)
        })
        .shared()
    });
    let hostile = ATTACKS.iter().map(|(seed, cpus)| {
        Step::new(format!("a hostile guest, seed {seed}, on {cpus} CPUs"), Level::Default, move || {
            attacked("virt", *seed, *cpus)
        })
        .shared()
    });
    let on_rpi4 = super::rpi4::step("a hostile guest, seed 5", Level::Default, || attacked("rpi4", 5, 4));
    let together = super::rpi4::step("guests' bad ends, and guests without an end", Level::Default, together);
    ends.chain(endless).chain(hostile).chain([on_rpi4, together]).collect()
}

/// On the Raspberry Pi all of them at once, with a clean one that comes last: each ends in its own way, or never.
fn together() -> Outcome<Found> {
    let hows = ENDS.iter().map(|(how, ..)| *how).chain(ENDLESS);
    let faulty = hows.clone().map(|how| {
        format!(
            "[[domain]]\nname = \"{how}\"\nkernel = \"guest:faulty\"\nmemory = \"16M\"\ncmdline = \"how={how}\"\non_reboot = \"destroy\"\n"
        )
    });
    let clean = "[[domain]]\nname = \"clean\"\nkernel = \"guest:hello\"\nmemory = \"16M\"\n".to_owned();
    let file = systems::write("rpi4-faulty", &faulty.chain([clean]).collect::<String>())?;
    let mut options = Options::for_file(file);
    options.board = Some("rpi4".into());
    options.timeout = 240;
    let own =
        |text: &str, id: usize| text.replace("(d1)", &format!("(d{id})")).replace("d1:", &format!("d{id}:"));
    let mut due: Vec<String> = (1..).zip(ENDS).map(|(id, (_, _, line))| own(line, id)).collect();
    due.push(format!("d{}: shutdown poweroff", hows.clone().count() + 1));
    let expected = due.clone();
    let observed = observe_until(&options, &mut |seen| {
        due.retain(|line| !seen.ends_with(&format!(" {line}")));
        if due.is_empty() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    for line in expected {
        let count = observed.log.iter().filter(|seen| **seen == line).count();
        if count != 1 {
            return Err(observed.failed(&format!("the log has {count} lines \"{line}\"")));
        }
    }
    let said = ENDS.iter().map(|(_, said, _)| (*said).to_owned());
    let said = said.chain(ENDLESS.map(|how| format!("(d1) faulty: {how}")));
    for (id, line) in (1..).zip(said) {
        let line = own(&line, id);
        if !observed.console.contains(&line) {
            return Err(observed.failed(&format!("no line \"{line}\"")));
        }
        if id > ENDS.len() && observed.log.iter().any(|seen| seen.starts_with(&format!("d{id}: shutdown"))) {
            return Err(observed.failed(&format!("d{id}, which never ends, has ended")));
        }
    }
    Ok(Found::Good(String::new()))
}

/// The two guests exchange their file beside one that makes a hundred thousand arbitrary calls: they end as if it were not there. What
/// becomes of the attacker is its own affair.
fn attacked(board: &str, seed: u32, cpus: u32) -> Outcome<Found> {
    let text = format!(
        "[[domain]]\nname = \"hostile\"\nkernel = \"guest:hostile\"\nmemory = \"16M\"\ncmdline = \"calls=100000 seed={seed}\"\n\
         [[domain]]\nname = \"sender\"\nkernel = \"guest:sender\"\nramdisk = \"hypervisor\"\nmemory = \"32M\"\n\
         channels = [\"receiver\"]\n\
         [[domain]]\nname = \"receiver\"\nkernel = \"guest:receiver\"\nmemory = \"32M\"\n\
         [expect]\ndigest_of_ramdisk = \"sender\"\n"
    );
    let mut options = Options::for_file(systems::write(&format!("hostile-{seed}-{cpus}"), &text)?);
    options.board = Some(board.into());
    options.cpus = Some(cpus);
    let observed = observe(&options)?;
    let count = |wanted: &str| observed.log.iter().filter(|text| *text == wanted).count();
    if !observed.console.iter().any(|line| line == "(d1) hostile: 100000 calls") {
        return Err(observed.failed("the attack did not begin"));
    }
    for victim in ["d2: shutdown poweroff", "d3: shutdown poweroff"] {
        if count(victim) != 1 {
            return Err(observed.failed(&format!("no line \"{victim}\"")));
        }
    }
    if observed.log.iter().any(|line| line.starts_with("BUG")) {
        return Err(observed.failed("the hypervisor has a bug"));
    }
    Ok(Found::Good(String::new()))
}

/// The guest, and a clean one after it, on one CPU.
fn options(how: &str) -> Outcome<Options> {
    let text = format!(
        "[[domain]]\nname = \"faulty\"\nkernel = \"guest:faulty\"\nmemory = \"32M\"\ncmdline = \"how={how}\"\non_reboot = \"destroy\"\n\
         [[domain]]\nname = \"clean\"\nkernel = \"guest:hello\"\nmemory = \"32M\"\n"
    );
    let mut options = Options::for_file(systems::write(&format!("faulty-{how}"), &text)?);
    options.cpus = Some(1);
    Ok(options)
}

/// The guest said that, the line is in the log once, the neighbour ends cleanly, and the run has that exit status.
fn expect(options: &Options, said: &str, line: &str, status: u8) -> Outcome<Found> {
    let observed = observe(options)?;
    let count = |wanted: &str| observed.log.iter().filter(|text| *text == wanted).count();
    if !observed.console.iter().any(|text| text == said) {
        return Err(observed.failed(&format!("no line \"{said}\"")));
    }
    if count(line) != 1 {
        return Err(observed.failed(&format!("the log has {} lines \"{line}\"", count(line))));
    }
    if count("d2: shutdown poweroff") != 1 {
        return Err(observed.failed("the neighbour did not end cleanly"));
    }
    // A crash is told with what led there; the call that ended it is the last one (`sched_op`, 29).
    let told =
        observed.log.iter().any(|text| text.starts_with("d1 vCPU 0: last hypercalls, the latest first: 29 "));
    let walked = observed.log.iter().any(|text| text.starts_with("d1 vCPU 0: called from 0x"));
    if line.ends_with("crash") && !(told && walked) {
        return Err(observed.failed("the crash is told without registers, last hypercalls and callers"));
    }
    if said == "(d1) faulty: crash" {
        super::ends::in_full(&observed)?;
    }
    match &observed.result {
        Err(failure) if failure.status() == status => Ok(Found::Good(String::new())),
        Err(failure) => Err(observed.failed(&format!("status {}, not {status}", failure.status()))),
        Ok(_) => Err(observed.failed(&format!("status 0, not {status}"))),
    }
}
