//! Systems under QEMU that must end cleanly: the shipped ones on several machines, and with other files to send.

use std::path::PathBuf;

use crate::build;
use crate::check::Found;
use crate::console::{Colour, Line};
use crate::failure::{Failure, Outcome};
use crate::run::{self, Options};
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

/// Every pair of values meets in at least one.
const MACHINES: [On; 6] = [
    On { cpu: "cortex-a72", cpus: 2, gic: 3, level: Level::Quick },
    On { cpu: "cortex-a72", cpus: 1, gic: 3, level: Level::Default },
    On { cpu: "max", cpus: 2, gic: 3, level: Level::Default },
    On { cpu: "max", cpus: 1, gic: 3, level: Level::Default },
    On { cpu: "cortex-a72", cpus: 1, gic: 2, level: Level::Default },
    On { cpu: "max", cpus: 2, gic: 2, level: Level::Default },
];

/// What the hypervisor says where its GICv2 driver is missing; nothing is tested there then.
const NO_GICV2: &str = "a GICv2 is not supported yet";

/// Sizes of files to send, bytes: nothing, less than a word, a page, more than the receiver's memory.
const SIZES: [usize; 4] = [0, 1, 4096, 40 << 20];

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
    /// A failure that quotes the end of the console above it.
    pub(super) fn failed(&self, why: &str) -> Failure {
        for line in self.console.iter().rev().take(30).rev() {
            println!("         | {line}");
        }
        Failure::failed(why)
    }
}

/// Boots a system and keeps what it prints.
pub(super) fn observe(options: &Options) -> Outcome<Observed> {
    let system = options.load()?;
    build::some(&setup::toolchain()?, &system.guests())?;
    let qemu = setup::qemu()?;
    let (mut console, mut log) = (Vec::new(), Vec::new());
    let report = run::boot(&qemu, &system, options, &mut |line| {
        if let Line::Log(entry) = line {
            log.push(entry.text.clone());
        }
        console.push(String::from_utf8_lossy(&line.render(Colour::Off)).trim_end().to_owned());
    })?;
    Ok(Observed { result: report.result(), console, log })
}

/// The system must end cleanly.
fn cleanly(options: &Options) -> Outcome<Found> {
    let observed = observe(options)?;
    if observed.console.iter().any(|line| line.contains(NO_GICV2)) {
        return Ok(Found::Skipped(NO_GICV2.into()));
    }
    match &observed.result {
        Ok(_) => Ok(Found::Good(String::new())),
        Err(failure) => Err(observed.failed(&failure.to_string())),
    }
}

/// Writes a system file for a test.
pub(super) fn write(name: &str, text: &str) -> Outcome<PathBuf> {
    let file = workspace::pavo().join("test").join(format!("{name}.toml"));
    workspace::write(&file, text.as_bytes())?;
    Ok(file)
}

/// All steps of this file.
pub(super) fn all() -> Vec<Step> {
    let mut steps = Vec::new();
    for name in ["hello", "two-guests"] {
        for on in MACHINES {
            let title = format!("system: {name} on {} x {}, GICv{}", on.cpus, on.cpu, on.gic);
            steps.push(Step::new(title, on.level, move || {
                let mut options = Options::for_file(run::shipped(name));
                options.cpu = Some(on.cpu.into());
                options.cpus = Some(on.cpus);
                options.gic = Some(on.gic);
                cleanly(&options)
            }));
        }
    }
    for size in SIZES {
        steps.push(Step::new(format!("system: two-guests send {size} bytes"), Level::Default, move || {
            let mut options = Options::for_file(sending(size)?);
            options.timeout = 180;
            cleanly(&options)
        }));
    }
    steps.push(Step::new("system: counting instructions repeats exactly", Level::Default, || {
        let mut options = Options::for_file(run::shipped("hello"));
        options.icount = true;
        options.cpus = Some(1);
        options.cpu = Some("max".into());
        let (first, second) = (observe(&options)?, observe(&options)?);
        if first.console == second.console && first.result.is_ok() {
            Ok(Found::Good(String::new()))
        } else {
            Err(second.failed("two runs with --icount printed different lines, or failed"))
        }
    }));
    steps
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
