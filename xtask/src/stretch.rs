//! `cargo xtask bench --stretches`: how long the hypervisor keeps interrupts masked at a time, in instructions, by what caused it.
//!
//! The image with the self-check measures (`hypervisor/src/el2/stretch.rs`) and logs `stretch LENGTH CLASS NUMBER OPERATION` each time that a cause took
//! longer than ever. One CPU, so nobody waits for a lock: with more, whoever waits for one waits for as many holders as there are other CPUs at most
//! (the locks are fair), and a holder holds one no longer than its stretch.

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

/// The longest stretch of each cause.
pub(crate) fn measure() -> Outcome<BTreeMap<String, u64>> {
    let mut longest = BTreeMap::new();
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
            if let Some(parts) = line.captures(&log.text) {
                let hex = |at: usize| u32::from_str_radix(&parts[at], 16).unwrap_or(0);
                let length = parts[1].parse().unwrap_or(0);
                let known = longest.entry(cause(hex(2), hex(3), hex(4))).or_insert(0);
                *known = length.max(*known);
            }
            done |= log.text.starts_with(last);
            if done { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if !done {
            return Err(Failure::failed(format!("{what}: no line \"{last}\": {}", report.summary())));
        }
    }
    Ok(longest)
}

/// A name for a cause.
fn cause(class: u32, number: u32, operation: u32) -> String {
    match (class, number) {
        (0x40, _) => "interrupt".into(),
        (0x41, _) => "while idle".into(),
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

/// The longest of all, and what it was.
pub(crate) fn worst(longest: &BTreeMap<String, u64>) -> Option<(&str, u64)> {
    longest.iter().max_by_key(|(_, length)| **length).map(|(cause, length)| (cause.as_str(), *length))
}

/// Instructions at most, waiting for a lock included, where so many CPUs do the same to one domain at once: each waits for all others (locks are fair), and
/// none holds a lock for longer than its own stretch.
fn together(length: u64, cpus: u64) -> u64 {
    length.saturating_mul(cpus)
}

/// Prints the longest ones, and keeps the longest of all when that is asked for.
pub(crate) fn print(update_baseline: bool) -> Outcome<()> {
    let longest = measure()?;
    if update_baseline {
        baseline::write(None, worst(&longest).map(|(_, length)| length))?;
    }
    let mut all: Vec<_> = longest.into_iter().collect();
    all.sort_by_key(|(_, length)| std::cmp::Reverse(*length));
    println!(
        "instructions with interrupts masked: alone; at most where 4 or 8 CPUs do the same to one domain and wait for each other"
    );
    for (cause, length) in all.iter().take(SHOWN) {
        println!("{length:>8} {:>8} {:>8} {cause}", together(*length, 4), together(*length, 8));
    }
    Ok(())
}
