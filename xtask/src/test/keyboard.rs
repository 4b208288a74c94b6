//! What is typed on the machine's console reaches one domain at a time, over calls and over a PV console's ring, and what a PV console says is shown.

use crate::check::Found;
use crate::failure::Outcome;
use crate::run::Options;

use super::step::{Level, Step};
use super::systems::{self, clean, observe_typing};

/// What is typed when a line is seen: an answer, so that nothing depends on time. Three times Ctrl-A gives the keyboard on; fewer are the guest's
/// (and the hypervisor does not show control characters); the keyboard of a domain that has ended goes on by itself. How much of a line without an
/// end the first domain has read before it lost the keyboard, is open: it ends it later.
const TALK: [(&str, &str); 6] = [
    ("(d1) echo: ready, calls", ""),
    ("(d2) echo: ready, PV console", "one\r"),
    ("(d1) echo: one", "unread\x01\x01\x01two\x01\x01 three\r"),
    ("(d2) echo: two three", "bye\r"),
    ("(d2) echo: bye", ""),
    ("d2: shutdown poweroff", "\rbye\r"),
];
/// Bytes that the PV console says first: four times what its ring holds.
const FILL: usize = 8192;

/// All steps of this file.
pub(super) fn all() -> Vec<Step> {
    let title = |name: &str| format!("keyboard: {name}one domain at a time, by calls and by a PV console");
    let machines = [("virt, GICv3, ", "gic = 3\ncpus = 1\n"), ("virt, GICv2, ", "gic = 2\ncpus = 2\n")];
    let on_rpi4 = super::rpi4::step(&title(""), Level::Default, || typed("board = \"rpi4\"\n")).shared();
    let step = |(name, machine): (&str, &'static str)| {
        Step::new(title(name), Level::Default, move || typed(machine)).shared()
    };
    machines.into_iter().map(step).chain([on_rpi4]).collect()
}

fn typed(machine: &str) -> Outcome<Found> {
    let text = format!(
        "[machine]\n{machine}[[domain]]\nname = \"calls\"\nkernel = \"guest:echo\"\nmemory = \"8M\"\n\
         [[domain]]\nname = \"pv\"\nkernel = \"guest:echo\"\nmemory = \"8M\"\npv_console = true\ncmdline = \"fill={FILL}\"\n"
    );
    let name: String = machine.chars().filter(char::is_ascii_alphanumeric).collect();
    let observed =
        observe_typing(&Options::for_file(systems::write(&format!("keyboard-{name}"), &text)?), &TALK)?;
    for (line, _) in TALK {
        if !observed.console.iter().any(|seen| seen.ends_with(line)) {
            return Err(observed.failed(&format!("no line \"{line}\"")));
        }
    }
    let filled = observed.console.iter().filter(|line| line.starts_with("(d2) 0000000")).count();
    if filled != FILL / 64 {
        return Err(observed.failed(&format!("{filled} lines of the PV console, not {}", FILL / 64)));
    }
    clean(&observed)
}
