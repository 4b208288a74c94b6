//! `cargo xtask bench --stretches`: how long the hypervisor keeps interrupts masked at a time, in instructions, by what caused it.
//!
//! The image with the self-check measures (`hypervisor/src/el2/stretch.rs`) and logs `stretch LENGTH CLASS NUMBER OPERATION` each time that a cause took
//! longer than ever, and `held LENGTH CLASS NUMBER OPERATION WHAT` of locks (`hypervisor/src/lock.rs`). One CPU, so nobody waits: with more, whoever waits for a lock waits
//! for as many holders as there are other CPUs at most, as the locks are fair.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;

use pv_abi::Hypercall;
use pv_abi::call::TABLE;
use regex::Regex;

use crate::console::Line;
use crate::failure::{Doing, Failure, Outcome};
use crate::hypervisor::Hypervisor;
use crate::run::{self, Options};
use crate::system::{Checking, System};
use crate::{baseline, build, setup, workspace};

/// Holds that are printed.
const LEAST: u64 = 1000;
/// What a CPU does that had no vCPU to run.
const IDLE: &str = "while idle";
/// What no guest but the control domain asks for.
const RARE: [&str; 3] = [IDLE, "sysctl", "domctl"];
/// Lines that are printed.
const SHOWN: usize = 16;

/// Who makes the hypervisor work: name, text, and the line after which there is nothing more to see.
const LOADS: [(&str, &str, &str); 5] = [
    (
        "the dearest that guests can ask for",
        "[[domain]]\nname = \"longest\"\nkernel = \"guest:longest\"\nmemory = \"128M\"\non_crash = \"restart\"\nmax_restarts = 1\n\
         [[domain]]\nname = \"after\"\nkernel = \"guest:faulty\"\nmemory = \"8M\"\ncmdline = \"how=watchdog-blocked\"\n",
        "d2: shutdown",
    ),
    (
        "every call of the conformance suite",
        "[[domain]]\nname = \"abicheck\"\nkernel = \"guest:abicheck\"\nmemory = \"32M\"\nvcpus = 4\ncmdline = \"passive=2\"\n\
         channels = [\"partner\"]\n\
         [[domain]]\nname = \"peer\"\nkernel = \"guest:faulty\"\nmemory = \"32M\"\ncmdline = \"how=hang\"\n\
         [[domain]]\nname = \"partner\"\nkernel = \"guest:abicheck\"\nmemory = \"32M\"\ncmdline = \"role=partner\"\n",
        "d1: shutdown",
    ),
    (
        "page tables",
        "[[domain]]\nname = \"bench\"\nkernel = \"guest:pv-bench\"\nmemory = \"32M\"\npaging = \"pv\"\n",
        "d1: shutdown",
    ),
    (
        "a domain that is killed and built",
        "[[domain]]\nname = \"control\"\nkernel = \"guest:control\"\nmemory = \"8M\"\nprivileged = true\nweight = 65535\n\
         cmdline = \"do=kills:1:49999,list,count:all,log\"\n\
         [[domain]]\nname = \"victim\"\nkernel = \"guest:mixed\"\nmemory = \"6M\"\npaging = \"pv\"\ncmdline = \"role=victim rounds=1\"\n\
         channels = [\"peer\"]\n\
         [[domain]]\nname = \"peer\"\nkernel = \"guest:mixed\"\nmemory = \"6M\"\ncmdline = \"role=peer\"\n",
        "d0: shutdown",
    ),
    (
        "attacks on calls",
        "[[domain]]\nname = \"attack\"\nkernel = \"guest:attack\"\nmemory = \"16M\"\nvcpus = 2\ncmdline = \"only=calls step=7\"\n\
         [[domain]]\nname = \"storms\"\nkernel = \"guest:attack\"\nmemory = \"16M\"\nvcpus = 2\ncmdline = \"only=storms step=7\"\n",
        "d1: shutdown",
    ),
];

/// In instructions.
#[derive(Default)]
pub(crate) struct Measured {
    /// The longest stretch of each cause.
    longest: BTreeMap<String, u64>,
    /// How long a lock of each kind was held at most, and by what: in calls that all guests have, and in what is for the control domain or by a CPU
    /// that had waited.
    held: BTreeMap<(String, bool), (u64, String)>,
}

/// Runs all loads.
pub(crate) fn measure() -> Outcome<Measured> {
    let mut measured = Measured::default();
    let held =
        Regex::new(r"^held ([0-9]+) 0x([0-9a-f]+) 0x([0-9a-f]+) 0x([0-9a-f]+) (.+)$").doing("pattern")?;
    let line = Regex::new(r"^stretch ([0-9]+) 0x([0-9a-f]+) 0x([0-9a-f]+) 0x([0-9a-f]+)").doing("pattern")?;
    for (what, text, last) in LOADS {
        let mut system = System::parse("stretch", &workspace::root(), text, Checking::Full)?;
        (system.machine.cpus, system.machine.self_check) = (1, true);
        (system.machine.memory, system.machine.cpu) = (256 << 20, "max".into());
        let mut options = Options::for_file(PathBuf::new());
        (options.icount, options.timeout) = (true, 1200);
        build::some(&setup::toolchain()?, &system.guests())?;
        let (hypervisor, mut done) = (Hypervisor::of(&system)?, false);
        let report = run::boot(&setup::qemu()?, &hypervisor, &system, &options, &mut |each| {
            let Line::Log(log) = each else { return ControlFlow::Continue(()) };
            let told = |parts: &regex::Captures<'_>| {
                let hex = |at: usize| u32::from_str_radix(&parts[at], 16).unwrap_or(0);
                (parts[1].parse().unwrap_or(0), cause(hex(2), hex(3), hex(4)))
            };
            if let Some(parts) = line.captures(&log.text) {
                let (length, cause) = told(&parts);
                let known = measured.longest.entry(cause).or_insert(0);
                *known = length.max(*known);
            } else if let Some(parts) = held.captures(&log.text) {
                let now = told(&parts);
                let known =
                    measured.held.entry((parts[5].to_owned(), RARE.contains(&now.1.as_str()))).or_default();
                if now.0 > known.0 {
                    *known = now;
                }
            }
            done |= log.text.starts_with(last);
            if done { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if !done {
            return Err(Failure::failed(format!("{what}: no line \"{last}\": {}", report.summary())));
        }
    }
    Ok(measured)
}

/// A name for a cause.
fn cause(class: u32, number: u32, operation: u32) -> String {
    match (class, number) {
        (0x40, _) => "interrupt".into(),
        (0x41, _) => IDLE.into(),
        (0x42, _) => "telling of a crash".into(),
        (0x16, 0xFFFF) => format!("psci {operation:#x}"),
        (0x16, number) => {
            let call =
                u16::try_from(number).ok().and_then(|number| TABLE.iter().find(|row| row.number == number));
            // Its first argument is an operation for some, an address for others.
            let plain =
                [Hypercall::MmuUpdate, Hypercall::UpdateVaMapping, Hypercall::MmuExtOp, Hypercall::Multicall];
            match call {
                Some(row) if plain.iter().any(|call| call.number() == row.number) => row.name.into(),
                Some(row) => format!("{} {operation}", row.name),
                None if number == 35 => "sysctl".into(),
                None if number == 36 => "domctl".into(),
                None => "another call".into(),
            }
        }
        _ => format!("exception class {class:#x}"),
    }
}

impl Measured {
    /// The longest stretch of all, and what it was.
    pub(crate) fn worst(&self) -> Option<(&str, u64)> {
        let worst = self.longest.iter().max_by_key(|(_, length)| **length);
        worst.map(|(cause, length)| (cause.as_str(), *length))
    }
}

/// How long a CPU waits for a lock at most that each other of so many holds for so long before it.
const fn wait(held: u64, cpus: u64) -> u64 {
    held.saturating_mul(cpus.saturating_sub(1))
}

/// Prints the longest ones, and keeps the longest of all when that is asked for.
pub(crate) fn print(update_baseline: bool) -> Outcome<()> {
    let measured = measure()?;
    if update_baseline {
        baseline::write(None, measured.worst().map(|(_, length)| length))?;
    }
    println!("instructions with interrupts masked, where nobody waits for a lock");
    let mut all: Vec<_> = measured.longest.iter().collect();
    all.sort_by_key(|(_, length)| std::cmp::Reverse(**length));
    for (cause, length) in all.iter().take(SHOWN) {
        println!("{length:>8} {cause}");
    }
    println!("instructions for which a lock is held; at most to wait for it once on 4 and on 8 CPUs");
    let mut held: Vec<_> = measured.held.iter().filter(|(_, (length, _))| *length >= LEAST).collect();
    held.sort_by_key(|(_, (length, _))| std::cmp::Reverse(*length));
    for ((what, _), (length, cause)) in held {
        println!("{length:>8} {:>8} {:>8} {what}: {cause}", wait(*length, 4), wait(*length, 8));
    }
    Ok(())
}
