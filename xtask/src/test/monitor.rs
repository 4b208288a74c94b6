//! `cargo xtask monitor` on what a board really sends: the raw bytes of a run, as a terminal would get them.

use std::ops::ControlFlow;
use std::process::Command;
use std::time::Duration;

use super::step::{Level, Step};
use super::systems;
use crate::check::Found;
use crate::failure::{Doing, Failure, Outcome};
use crate::hypervisor::Hypervisor;
use crate::run::{self, Options};
use crate::watch::watch;
use crate::{build, process, setup, workspace};

/// What comes over the line while a system runs, each line with the end that the console gives it.
fn line_of(options: &Options) -> Outcome<Vec<u8>> {
    let system = options.load()?;
    build::some(&setup::toolchain()?, &system.guests())?;
    let qemu = setup::qemu()?;
    let mut prepared =
        run::prepare(&qemu, &Hypervisor::pavo(), &system, options.checking(), options.clock())?;
    let mut raw = Vec::new();
    watch(&mut prepared.command, Duration::from_secs(options.timeout), None, &mut |bytes| {
        raw.extend_from_slice(bytes);
        raw.extend_from_slice(b"\r\n");
        ControlFlow::Continue(())
    })?;
    Ok(raw)
}

/// What `monitor` must show, and a plain terminal too where `plain`.
const SHOWN: [(&str, bool); 3] = [
    ("(d1) Hello from a guest in Rust.", true),
    ("d1: shutdown poweroff", false),
    ("all domains ended", false),
];

fn decodes(board: &str) -> Outcome<Found> {
    let mut options = Options::for_file(run::shipped("hello"));
    options.board = Some(board.into());
    let raw = line_of(&options)?;
    let text = String::from_utf8_lossy(&raw).into_owned();
    let wrong = |why: String| Failure::Shown { text: why, lines: text.lines().map(str::to_owned).collect() };
    if let Some(odd) = text.chars().find(|c| c.is_control() && !"\r\n\t".contains(*c) || *c == '\u{fffd}') {
        return Err(wrong(format!("a plain terminal gets {odd:?}")));
    }
    let name = format!("monitor-{board}");
    let (file, log) =
        (systems::write(&name, &text)?, workspace::pavo().join("test").join(format!("{name}.log")));
    let mut command = Command::new(std::env::current_exe().doing("xtask's own path")?);
    command.arg("monitor").arg(&file).arg("--log").arg(&log);
    let result = process::output(&mut command)?;
    let shown = String::from_utf8_lossy(&result.stdout).into_owned();
    if !result.status.success() || workspace::read(&log)? != result.stdout {
        return Err(wrong(format!("monitor: {}, and what it wrote is not what it showed", result.status)));
    }
    for (line, plain) in SHOWN {
        let in_raw = text.lines().any(|raw| raw.trim_end() == line);
        if !shown.lines().any(|seen| seen.trim_end().ends_with(line)) || in_raw != plain {
            return Err(wrong(format!("\"{line}\" is not shown as it should be")));
        }
    }
    Ok(Found::Good(format!("{} lines", shown.lines().count())))
}

/// All steps of this file.
pub(super) fn all() -> Vec<Step> {
    vec![
        Step::new("monitor: a recorded line is decoded into a log", Level::Default, || decodes("virt")),
        super::rpi4::step("a recorded line is decoded into a log", Level::Default, || decodes("rpi4")),
    ]
}
