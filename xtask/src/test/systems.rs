//! Systems under QEMU that must end cleanly: the shipped ones on several machines, and with other files to send.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError, mpsc};

use crate::build;
use crate::check::Found;
use crate::console::{Colour, Line};
use crate::failure::{Failure, Outcome};
use crate::hypervisor::Hypervisor;
use crate::run::{self, Options};
use crate::watch::Keys;
use crate::{setup, workspace};

use super::step::{Level, Step};

/// A machine to run on.
#[derive(Debug, Clone, Copy)]
struct On {
    cpu: &'static str,
    cpus: u32,
    gic: u32,
    level: Level,
}

/// Those that every test run begins with; the rest is the matrix's.
const MACHINES: [On; 3] = [
    On { cpu: "cortex-a72", cpus: 2, gic: 3, level: Level::Quick },
    On { cpu: "max", cpus: 1, gic: 2, level: Level::Quick },
    On { cpu: "cortex-a57", cpus: 4, gic: 2, level: Level::Default },
];

/// Sizes of files to send, bytes: nothing, less than a word, a page, more than the receiver's memory.
const SIZES: [usize; 4] = [0, 1, 4096, 40 << 20];

/// Where QEMU loads the image, bytes above the start of RAM: 64 KiB steps that are no 2 MiB steps.
const OFFSETS: [u64; 3] = [0x1_0000, 0x123_0000, 0x1ff_0000];
/// Where firmware of before 2020 loads it on the Raspberry Pi, in QEMU's too.
const OLDER_FIRMWARE: u64 = 0x8_0000;
/// Boards, by their names.
const BOARDS: [&str; 2] = ["virt", "rpi4"];
/// Where QEMU's `virt` has its RAM.
const RAM: u64 = 0x4000_0000;
/// Byte offset of `text_offset` in the arm64 image header.
const TEXT_OFFSET: usize = 8;

/// How a run went, for the steps that look at its lines.
pub(super) struct Observed {
    /// Success, or the failure with its status.
    pub(super) result: Outcome<String>,
    /// All lines as people read them.
    pub(super) console: Vec<String>,
    /// The texts of the hypervisor's log.
    pub(super) log: Vec<String>,
}

impl Observed {
    /// A failure that quotes the end of the console.
    pub(super) fn failed(&self, why: &str) -> Failure {
        let first = self.console.len().saturating_sub(30);
        Failure::Shown { text: why.into(), lines: self.console[first..].to_vec() }
    }
}

/// Boots a system and keeps what it prints.
pub(super) fn observe(options: &Options) -> Outcome<Observed> {
    observe_on(&Hypervisor::of(&options.load()?)?, options)
}

/// Boots a system and keeps what it prints until `enough` has seen the line that it waits for.
pub(super) fn observe_until(
    options: &Options,
    enough: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> Outcome<Observed> {
    observe_with(&Hypervisor::of(&options.load()?)?, options, None, enough)
}

/// Boots a system with a changed image.
pub(super) fn observe_on(hypervisor: &Hypervisor, options: &Options) -> Outcome<Observed> {
    let nothing = &mut |_: &str| ControlFlow::Continue(());
    observe_with(hypervisor, options, None, nothing)
}

fn observe_with(
    hypervisor: &Hypervisor,
    options: &Options,
    keys: Option<Keys>,
    line: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> Outcome<Observed> {
    let system = options.load()?;
    build::some(&setup::toolchain()?, &system.guests())?;
    let qemu = setup::qemu()?;
    let (mut console, mut log) = (Vec::new(), Vec::new());
    let report = run::boot_typing(&qemu, hypervisor, &system, options, keys, &mut |each| {
        let text = String::from_utf8_lossy(&each.render(Colour::Off)).trim_end().to_owned();
        let more = line(&text);
        console.push(text);
        if let Line::Log(entry) = each {
            log.push(entry.text.clone());
        }
        more
    })?;
    Ok(Observed { result: report.result(), console, log })
}

/// Boots a system, and types an answer to each line of `talk` once it and those before it have come.
pub(super) fn observe_typing(options: &Options, talk: &[(&str, &str)]) -> Outcome<Observed> {
    let (keyboard, keys) = mpsc::channel();
    let mut talk = talk.iter().peekable();
    let mut seen: Vec<String> = Vec::new();
    let mut answer = |line: &str| {
        seen.push(line.to_owned());
        while let Some((_, keys)) = talk.next_if(|(said, _)| seen.iter().any(|line| line.ends_with(said))) {
            let _ = keyboard.send(keys.as_bytes().to_vec());
        }
        ControlFlow::Continue(())
    };
    observe_with(&Hypervisor::pavo(), options, Some(keys), &mut answer)
}

/// The system must end cleanly.
pub(super) fn cleanly(options: &Options) -> Outcome<Found> {
    clean(&observe(options)?)
}

pub(super) fn clean(observed: &Observed) -> Outcome<Found> {
    match &observed.result {
        Ok(_) => Ok(Found::Good(String::new())),
        Err(failure) => Err(observed.failed(&failure.to_string())),
    }
}

/// A board's step: those of `virt` are called systems.
fn on_board(
    board: &str,
    title: &str,
    level: Level,
    run: impl Fn() -> Outcome<Found> + Send + Sync + 'static,
) -> Step {
    if board == "rpi4" {
        super::rpi4::step(title, level, run)
    } else {
        Step::new(format!("system: {title}"), level, run)
    }
}

/// The demonstration, with the image where its header's `text_offset` now says.
fn loaded_at(board: &str, offset: u64) -> Outcome<Found> {
    let mut options = Options::for_file(run::shipped("two-guests"));
    options.board = Some(board.into());
    build::some(&setup::toolchain()?, &options.load()?.guests())?;
    let mut image = workspace::read(&workspace::pavo_img())?;
    let field = image.get_mut(TEXT_OFFSET..TEXT_OFFSET + 8);
    field.ok_or_else(|| Failure::failed("the image has no header"))?.copy_from_slice(&offset.to_le_bytes());
    let file = workspace::pavo().join("test").join(format!("pavo-at-{board}-{offset:x}.img"));
    workspace::write(&file, &image)?;
    let observed = observe_on(&Hypervisor::changed(file), &options)?;
    let address = if board == "rpi4" { offset } else { RAM + offset };
    let address = format!("EL2 at {address:#x},");
    if observed.log.first().is_some_and(|line| line.contains(&address)) {
        clean(&observed)
    } else {
        Err(observed.failed(&format!("the first line of the log does not name {address}")))
    }
}

/// Writes a system file for a test.
pub(super) fn write(name: &str, text: &str) -> Outcome<PathBuf> {
    let file = workspace::pavo().join("test").join(format!("{name}.toml"));
    workspace::write(&file, text.as_bytes())?;
    Ok(file)
}

/// Makes `garbage.bin`, a file that is no kernel, beside the tests' system files. Steps that run at one time share it.
pub(super) fn garbage() -> Outcome<()> {
    static MADE: Mutex<()> = Mutex::new(());
    let _made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    workspace::write(&workspace::pavo().join("test/garbage.bin"), &[0x5a; 4096])
}

/// All steps of this file.
pub(super) fn all() -> Vec<Step> {
    let mut steps = Vec::new();
    for name in ["hello", "two-guests", "smp", "control", "lives"] {
        for on in MACHINES {
            let title = format!("system: {name} on {} x {}, GICv{}", on.cpus, on.cpu, on.gic);
            let step = Step::new(title, on.level, move || {
                let mut options = Options::for_file(run::shipped(name));
                options.cpu = Some(on.cpu.into());
                options.cpus = Some(on.cpus);
                options.gic = Some(on.gic);
                options.timeout = 240;
                cleanly(&options)
            });
            // Where the only CPU runs everything in turn, a busy host changes nothing.
            steps.push(if on.cpus == 1 { step.shared() } else { step });
        }
    }
    for (board, offset) in
        OFFSETS.map(|offset| ("virt", offset)).into_iter().chain([("rpi4", OLDER_FIRMWARE)])
    {
        let title = format!("two-guests, the image loaded {offset:#x} above the start of RAM");
        steps.push(on_board(board, &title, Level::Default, move || loaded_at(board, offset)).shared());
    }
    steps.push(super::rpi4::step("lives", Level::Default, || {
        let mut options = Options::for_file(run::shipped("lives"));
        options.board = Some("rpi4".into());
        options.timeout = 600;
        cleanly(&options)
    }));
    for board in BOARDS {
        steps.extend(on_either(board));
    }
    for (seconds, level) in [(5, Level::Default), (30 * 60, Level::Full)] {
        steps.extend(BOARDS.iter().map(|board| {
            on_board(board, &format!("soak of {seconds} s"), level, move || soak(board, seconds))
        }));
    }
    for cpus in [1, 4] {
        let title = format!("system: lives, 10000 times on {cpus} CPUs");
        steps.push(Step::new(title, Level::Full, move || {
            let text = workspace::read(&run::shipped("lives"))?;
            let mut text = String::from_utf8_lossy(&text).into_owned();
            for (few, many) in [
                ("lives:2:100,", "lives:2:10000,"),
                ("cycle:1:100,", "cycle:1:10000,"),
                ("lives:2:150,", "lives:2:20000,"),
                ("= 1000\n", "= 1000000\n"),
            ] {
                if !text.contains(few) {
                    return Err(Failure::failed(format!("systems/lives.toml has no \"{few}\" any more")));
                }
                text = text.replace(few, many);
            }
            let mut options = Options::for_file(write("lives-10000", &text)?);
            (options.cpus, options.timeout) = (Some(cpus), 4 * 3600);
            cleanly(&options)
        }));
    }
    steps
}

/// What runs in the same way on every board.
fn on_either(board: &'static str) -> Vec<Step> {
    let mut steps = Vec::new();
    for size in SIZES {
        let title = format!("two-guests send {size} bytes");
        let step = on_board(board, &title, Level::Default, move || {
            let mut options = Options::for_file(sending(size)?);
            options.board = Some(board.into());
            options.timeout = 180;
            cleanly(&options)
        });
        steps.push(step.shared());
    }
    steps.push(on_board(board, "ballooning up to max_memory", Level::Default, move || {
        let text = "[[domain]]\nname = \"balloon\"\nkernel = \"guest:balloon\"\nmemory = \"8M\"\nmax_memory = \"24M\"\n";
        let mut options = Options::for_file(write(&format!("balloon-{board}"), text)?);
        options.board = Some(board.into());
        let observed = observe(&options)?;
        let line = "(d1) balloon: 4096 pages came, 8388608 bytes used";
        if observed.console.iter().any(|text| text == line) {
            clean(&observed)
        } else {
            Err(observed.failed(&format!("no line \"{line}\"")))
        }
    }));
    for domains in [16, 256] {
        let title = format!("{domains} domains at once answer the control domain");
        steps.push(on_board(board, &title, Level::Default, move || {
            let mut options = Options::for_file(many(domains)?);
            options.board = Some(board.into());
            options.timeout = 300;
            let observed = observe(&options)?;
            let line = format!("(d0) control: {domains} domains answered");
            if observed.console.contains(&line) {
                clean(&observed)
            } else {
                Err(observed.failed(&format!("no line \"{line}\"")))
            }
        }));
    }
    steps.push(on_board(board, "counting instructions repeats exactly", Level::Default, move || {
        let mut options = Options::for_file(run::shipped("hello"));
        options.icount = true;
        options.board = Some(board.into());
        if board == "virt" {
            (options.cpus, options.cpu) = (Some(1), Some("max".into()));
        }
        let (first, second) = (observe(&options)?, observe(&options)?);
        if first.console == second.console && first.result.is_ok() {
            Ok(Found::Good(String::new()))
        } else {
            Err(second.failed("two runs with --icount printed different lines, or failed"))
        }
    }));
    steps
}

/// The soak, for so many seconds. How its domains end does not matter, but for the control domain.
fn soak(board: &str, seconds: u64) -> Outcome<Found> {
    let text = workspace::read(&run::shipped("soak"))?;
    let text = String::from_utf8_lossy(&text).replace("soak:6:5", &format!("soak:6:{seconds}"));
    // The Raspberry Pi has the memory that it has.
    let text = if board == "rpi4" { text.replace("memory = \"256M\"\n", "") } else { text };
    let mut options = Options::for_file(write(&format!("soak-{board}"), &text)?);
    options.board = Some(board.into());
    options.timeout = seconds * 4 + 240;
    let observed = observe(&options)?;
    let line = |start: &str| observed.console.iter().find(|line| line.starts_with(start));
    let ended = |what: &str| observed.log.iter().any(|line| line == what);
    match (line("(d0) control: soak: "), line("(d0) control: all as it was")) {
        (Some(soak), Some(_)) if ended("d0: shutdown poweroff") && ended("all domains ended") => {
            Ok(Found::Good(soak.trim_start_matches("(d0) control: soak: ").to_owned()))
        }
        _ => Err(observed.failed("the soak did not end well")),
    }
}

/// So many domains that all live at one time and each answer the control domain.
fn many(domains: u32) -> Outcome<PathBuf> {
    let control = format!(
        "[machine]\nmemory = \"2G\"\n[[domain]]\nname = \"control\"\nkernel = \"guest:control\"\nmemory = \"8M\"\n\
         cmdline = \"do=ping:1:{domains},count\"\nprivileged = true\n"
    );
    let one = |id| format!("[[domain]]\nname = \"d{id}\"\nkernel = \"guest:pong\"\nmemory = \"6M\"\n");
    write(&format!("many-{domains}"), &(1..=domains).fold(control, |text, id| text + &one(id)))
}

/// The demonstration with a file of some size, whose bytes all differ from their neighbours.
fn sending(size: usize) -> Outcome<PathBuf> {
    let name = format!("send-{size}");
    let bytes: Vec<u8> =
        (0u32..).take(size).map(|index| index.wrapping_mul(0x9e37_79b9).to_be_bytes()[0]).collect();
    workspace::write(&workspace::pavo().join("test").join(format!("{name}.bin")), &bytes)?;
    let text = workspace::read(&run::shipped("two-guests"))?;
    // The sender's memory holds the file; the receiver's does not.
    let sender = format!("ramdisk = \"{name}.bin\"\nmemory = \"96M\"");
    let text = String::from_utf8_lossy(&text).replace("ramdisk = \"hypervisor\"\nmemory = \"32M\"", &sender);
    write(&name, &text)
}
