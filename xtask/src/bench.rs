//! `cargo xtask bench`: what operations cost, in instructions, beside what they should and what Xen's do.
//!
//! The guest prints `bench NAME instructions N`; the hypervisor logs `EL2 resident N KiB` and `boot instructions N`.
//! With `-icount shift=0` and `-cpu max` one tick of the counter is one instruction, the same on any host.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;

use regex::Regex;
use serde_json::json;

use crate::baseline::{self, Baseline};
use crate::check::sources;
use crate::console::Line;
use crate::failure::{Doing, Failure, Outcome};
use crate::hypervisor::{Hypervisor, Measured};
use crate::run::{self, Options as RunOptions};
use crate::system::{Checking, System};
use crate::{build, setup, stretch, workspace};

/// What `bench` accepts.
#[derive(clap::Args, Debug)]
pub(crate) struct Options {
    /// Also write the figures to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// The hypervisor; Xen's figures are measured too, or those that the design has.
    #[arg(long, value_enum, default_value = "pavo")]
    on: Measured,
    /// Print the figures among 2, 16, 64 and 256 domains instead.
    #[arg(long, conflicts_with_all = ["on", "json", "update_baseline"])]
    domains: bool,
    /// Print how long interrupts are masked at a time instead, by cause.
    #[arg(long, conflicts_with_all = ["on", "json", "domains"])]
    stretches: bool,
    /// Make today's figures those that the tests compare with.
    #[arg(long, conflicts_with = "on")]
    update_baseline: bool,
}

/// An operation's name in the guest's output, the instructions it may take, and Xen 4.20's.
struct Target {
    name: &'static str,
    pavo: Option<u64>,
    xen: Option<u64>,
}

const fn target(name: &'static str, pavo: Option<u64>, xen: Option<u64>) -> Target {
    Target { name, pavo, xen }
}

/// The design's table; behind it what Xen takes where the design names nothing, as `--on xen` counts it.
const TARGETS: [Target; 22] = [
    target("null_hypercall", Some(70), Some(425)),
    target("invalid_hypercall", None, Some(373)),
    target("sched_yield", None, Some(2122)),
    target("event_send_masked", Some(150), Some(859)),
    target("event_send_vector", Some(250), Some(1456)),
    target("grant_map", Some(450), Some(2558)),
    target("grant_unmap", Some(500), Some(2650)),
    target("grant_copy_4096", Some(900), Some(3632)),
    target("populate_page", Some(500), Some(2694)),
    target("decrease_page", Some(500), Some(3055)),
    target("page_table_entry", Some(60), None),
    target("mmio_gicd_ctlr", Some(120), Some(617)),
    target("sgi_self_vector", Some(250), Some(1026)),
    target("timer_vector", Some(300), Some(1086)),
    target("two_switches", Some(1400), Some(7594)),
    target("event_ping_pong", Some(2500), Some(11606)),
    target("event_ping_pong_other_cpu", None, Some(16269)),
    target("two_switches_fp", None, Some(7642)),
    target("two_switches_same_domain", None, Some(7637)),
    target("two_switches_same_domain_fp", None, Some(7640)),
    target("wake_same_cpu", None, Some(6089)),
    target("wake_other_cpu", None, Some(8377)),
];

/// What a run showed.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    /// Instructions by operation, in the order of their lines.
    operations: Vec<(String, u64)>,
    /// Operations that could not be measured, and why.
    unsupported: Vec<(String, String)>,
    /// KiB.
    resident: Option<u64>,
    /// Instructions.
    boot: Option<u64>,
}

impl Figures {
    /// What the baseline keeps: all counts of instructions.
    pub(crate) fn counts(&self) -> BTreeMap<String, u64> {
        let boot = self.boot.map(|number| (baseline::BOOT.to_owned(), number));
        self.operations.iter().cloned().chain(boot).collect()
    }
}

/// Runs the guest and prints the table.
pub(crate) fn command(options: &Options) -> Outcome<()> {
    if options.domains {
        return among_others();
    }
    if options.stretches {
        return stretch::print(options.update_baseline);
    }
    let baseline = Baseline::load()?;
    let xen = match options.on {
        Measured::Pavo => None,
        Measured::Xen | Measured::Both => match setup::xen() {
            Ok(xen) => Some(measure(&Hypervisor::xen(&xen))?.counts()),
            Err(failure) => {
                println!("skipped: Xen: {failure}");
                None
            }
        },
    };
    if options.on == Measured::Xen {
        return only_xen(options, &xen.unwrap_or_default());
    }
    let figures = measure(&Hypervisor::pavo())?;
    print_operations(&figures, &baseline, xen.as_ref());
    let image = workspace::read(&workspace::pavo_img())?.len();
    let counts = sources::counts();
    println!("{:<28} {:>8} KiB", "EL2 image", image.div_ceil(1024));
    if let Some(resident) = figures.resident {
        println!("{:<28} {resident:>8} KiB", "EL2 resident");
    }
    for (name, count) in &counts {
        println!("{:<28} {:>12} lines", format!("code of {name}"), count.lines);
    }
    if options.update_baseline {
        baseline::write(Some(&figures.counts()), None)?;
    }
    let Some(file) = &options.json else { return Ok(()) };
    let operations: BTreeMap<_, _> = figures.operations.iter().cloned().collect();
    let lines: BTreeMap<_, _> = counts.iter().map(|(name, count)| (*name, count.lines)).collect();
    let value = json!({
        "instructions": operations,
        "image_bytes": image,
        "resident_kib": figures.resident,
        "boot_instructions": figures.boot,
        "lines": lines,
        "xen": xen,
    });
    workspace::write(file, format!("{value:#}\n").as_bytes())
}

/// What operations take among so many domains, all of which live.
pub(crate) fn among(domains: u32) -> Outcome<BTreeMap<String, u64>> {
    measure_among(&Hypervisor::pavo(), domains).map(|figures| figures.operations.into_iter().collect())
}

/// Numbers of domains, the two that measure among them.
pub(crate) const DOMAINS: [u32; 4] = [2, 16, 64, 256];

/// One row an operation, one column a number of domains.
fn among_others() -> Outcome<()> {
    let columns =
        DOMAINS.map(|domains| measure_among(&Hypervisor::pavo(), domains).map(|figures| figures.operations));
    let [first, ..] = &columns;
    println!("{:<28}{}", "domains", DOMAINS.map(|domains| format!("{domains:>8}")).concat());
    let names: Vec<_> = first.iter().flatten().map(|(name, _)| name.clone()).collect();
    for name in names {
        let mut row = format!("{name:<28}");
        for column in &columns {
            let found = column.iter().flatten().find(|(own, _)| *own == name);
            row += &found.map_or("       -".into(), |(_, number)| format!("{number:>8}"));
        }
        println!("{row}");
    }
    columns.into_iter().try_for_each(|column| column.map(drop))
}

/// Xen's figures alone.
fn only_xen(options: &Options, figures: &BTreeMap<String, u64>) -> Outcome<()> {
    for (name, number) in figures {
        println!("{name:<28} {number:>12}");
    }
    let Some(file) = &options.json else { return Ok(()) };
    workspace::write(file, format!("{:#}\n", json!({ "xen": figures })).as_bytes())
}

/// One row an operation, with the kept figure, the target and Xen's: measured now, or as in the design's table.
fn print_operations(figures: &Figures, baseline: &Baseline, xen: Option<&BTreeMap<String, u64>>) {
    let row = |name: &str, here: &str| {
        let text = |number: Option<u64>| number.map_or("-".into(), |number| number.to_string());
        let target = TARGETS.iter().find(|target| target.name == name);
        let theirs = match xen {
            Some(measured) => measured.get(name).copied(),
            None => target.and_then(|target| target.xen),
        };
        let (kept, allowed) = (text(baseline.get(name)), text(target.and_then(|target| target.pavo)));
        println!("{name:<28} {here:>12} {kept:>12} {allowed:>8} {:>8}", text(theirs));
    };
    println!(
        "{:<28} {:>12} {:>12} {:>8} {:>8}",
        "operation", "instructions", "baseline", "target", "Xen 4.20"
    );
    for (name, number) in &figures.operations {
        row(name, &number.to_string());
    }
    for (name, why) in &figures.unsupported {
        row(name, "-");
        println!("  not measured: {why}");
    }
    if let Some(boot) = figures.boot {
        row(baseline::BOOT, &boot.to_string());
    }
}

/// Runs `guest:bench` on one CPU, and what needs another on two, and reads the figures from its lines.
pub(crate) fn measure(hypervisor: &Hypervisor) -> Outcome<Figures> {
    let mut figures = measure_among(hypervisor, 2)?;
    let text = "[[domain]]\nname = \"bench\"\nkernel = \"guest:bench\"\nmemory = \"64M\"\nchannels = [\"peer\"]\ncmdline = \"wake\"\n\
                affinity = [0]\n\
                [[domain]]\nname = \"peer\"\nkernel = \"guest:bench\"\nmemory = \"16M\"\ncmdline = \"serve\"\naffinity = [1]\n";
    let mut system = System::parse("bench", &workspace::root(), text, Checking::Full)?;
    system.machine.cpus = 2;
    let other = measure_system(hypervisor, system)?;
    figures.operations.extend(other.operations);
    figures.unsupported.extend(other.unsupported);
    Ok(figures)
}

/// [`measure`] on one CPU, with so many domains in all: those that do not measure only wait.
fn measure_among(hypervisor: &Hypervisor, domains: u32) -> Outcome<Figures> {
    let text = "[[domain]]\nname = \"bench\"\nkernel = \"guest:bench\"\nmemory = \"64M\"\nvcpus = 2\nchannels = [\"peer\"]\n\
                [[domain]]\nname = \"peer\"\nkernel = \"guest:bench\"\nmemory = \"16M\"\ncmdline = \"serve\"\n";
    let waits = |id| {
        format!(
            "[[domain]]\nname = \"d{id}\"\nkernel = \"guest:faulty\"\nmemory = \"6M\"\ncmdline = \"how=hang\"\n"
        )
    };
    let text = (2..domains).fold(text.to_owned(), |text, id| text + &waits(id));
    let mut system = System::parse("bench", &workspace::root(), &text, Checking::Full)?;
    if domains > 2 {
        system.machine.memory = 2 << 30;
    }
    system.machine.cpus = 1;
    measure_system(hypervisor, system)
}

/// One run of a system, to the guest's last line.
fn measure_system(hypervisor: &Hypervisor, mut system: System) -> Outcome<Figures> {
    let mut options = RunOptions::for_file(PathBuf::new());
    options.icount = true;
    options.timeout = 600;
    system.machine.cpu = "max".into();
    build::some(&setup::toolchain()?, &system.guests())?;
    let reader = Reader::new()?;
    let mut figures = Figures::default();
    let mut done = false;
    let report = run::boot(&setup::qemu()?, hypervisor, &system, &options, &mut |line| {
        reader.read(line, &mut figures);
        done |= matches!(line, Line::Guest { text, .. } if text.trim_ascii_end() == b"bench done");
        if done { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    if !done {
        return Err(Failure::failed(format!("guest:bench printed no `bench done`: {}", report.summary())));
    }
    Ok(figures)
}

/// Finds figures in lines.
struct Reader {
    operation: Regex,
    unsupported: Regex,
    resident: Regex,
    boot: Regex,
}

impl Reader {
    fn new() -> Outcome<Self> {
        Ok(Self {
            operation: Regex::new(r"^bench (\S+) instructions ([0-9]+)").doing("pattern")?,
            unsupported: Regex::new(r"^bench (\S+) unsupported (.*)$").doing("pattern")?,
            resident: Regex::new(r"^EL2 resident ([0-9]+) KiB").doing("pattern")?,
            boot: Regex::new(r"^boot instructions ([0-9]+)").doing("pattern")?,
        })
    }

    fn read(&self, line: &Line, figures: &mut Figures) {
        match line {
            Line::Guest { domain: _, text } => {
                let text = String::from_utf8_lossy(text);
                if let Some(parts) = self.operation.captures(&text)
                    && let Ok(number) = parts[2].parse()
                {
                    figures.operations.push((parts[1].to_owned(), number));
                }
                if let Some(parts) = self.unsupported.captures(text.trim_end()) {
                    figures.unsupported.push((parts[1].to_owned(), parts[2].to_owned()));
                }
            }
            Line::Log(log) => {
                let number =
                    |pattern: &Regex| pattern.captures(&log.text).and_then(|parts| parts[1].parse().ok());
                figures.resident = number(&self.resident).or(figures.resident);
                figures.boot = number(&self.boot).or(figures.boot);
            }
            Line::Other(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::Log;

    #[test]
    fn figures_come_from_guest_lines_and_from_the_log() {
        let reader = Reader::new().unwrap();
        let mut figures = Figures::default();
        let guest = |text: &str| Line::Guest { domain: 1, text: text.into() };
        let log =
            |text: &str| Line::Log(Log { time: String::new(), level: "INFO".into(), text: text.into() });
        for line in [
            guest("bench null_hypercall instructions 68"),
            guest("bench of what"),
            log("EL2 resident 812 KiB"),
        ] {
            reader.read(&line, &mut figures);
        }
        // A guest cannot speak for the hypervisor.
        reader.read(&guest("boot instructions 1"), &mut figures);
        assert_eq!(figures.operations, [("null_hypercall".to_owned(), 68)]);
        assert_eq!((figures.resident, figures.boot), (Some(812), None));
    }
}
