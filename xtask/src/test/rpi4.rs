//! The Raspberry Pi 4, as QEMU has it. Skipped by name where its device tree or a QEMU that has the board cannot be had.

use crate::check::Found;
use crate::conformance;
use crate::failure::Outcome;
use crate::run::{self, Options};
use crate::setup;

use super::step::{Level, Step};
use super::systems;

/// Why the board cannot be tested here.
fn missing() -> Option<String> {
    match (setup::qemu(), setup::board_tree()) {
        (Ok(qemu), Ok(_)) if qemu.has_rpi4() => None,
        (Ok(_), Ok(_)) => Some("QEMU is older than 9.0".into()),
        (_, Err(failure)) | (Err(failure), _) => Some(failure.to_string()),
    }
}

/// A step that needs the board.
fn step(name: &str, level: Level, run: impl Fn() -> Outcome<Found> + Send + Sync + 'static) -> Step {
    Step::new(format!("rpi4: {name}"), level, move || match missing() {
        Some(why) => Ok(Found::Skipped(why)),
        None => run(),
    })
}

fn options(system: &str) -> Options {
    let mut options = Options::for_file(run::shipped(system));
    options.board = Some("rpi4".into());
    options
}

/// All steps of this file.
pub(super) fn all() -> Vec<Step> {
    let mut steps: Vec<_> = ["two-guests", "hello", "smp"]
        .into_iter()
        .map(|name| step(name, Level::Default, move || systems::cleanly(&options(name))))
        .collect();
    steps.push(step("two-guests on one CPU with 512 MiB", Level::Default, || {
        let mut options = options("two-guests");
        (options.cpus, options.memory) = (Some(1), Some("512M".into()));
        systems::cleanly(&options)
    }));
    steps.push(step("the console is the PL011 where the device tree says so", Level::Default, || {
        let text = "[machine]\nboard = \"rpi4\"\nconsole = \"serial0:115200n8\"\n\
                    [[domain]]\nname = \"a\"\nkernel = \"guest:hello\"\nmemory = \"16M\"\n";
        systems::cleanly(&Options::for_file(systems::write("pl011", text)?))
    }));
    steps.push(step("conformance", Level::Default, || {
        let mut options = conformance::Options::on_pavo(2, 4, "cortex-a72");
        options.board = Some("rpi4".into());
        conformance::test(&options).map(Found::Good)
    }));
    steps
}
