//! `cargo xtask conformance`: the `abicheck` guest on Pavo or on Xen, as TAP.
//!
//! The guest's expectations are Xen's answers: on Xen all of them must hold. What Pavo answers otherwise, on purpose or
//! so far, is listed in `tests/differences.toml`; an entry that is no longer true fails the run.

pub(crate) mod answers;
mod compare;
mod differences;
mod sweep;
mod tap;

use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::path::PathBuf;

use regex::Regex;
use serde_json::json;

use crate::console::Line;
use crate::failure::{Doing, Failure, Outcome};
use crate::hypervisor::{Hypervisor, On};
use crate::run::{self, Options as RunOptions};
use crate::system::{self, Board, Checking, System};
use crate::terrain::Terrain;
use crate::{build, setup, workspace};

use answers::{Answers, Calls};
use differences::{Differences, Verdict};
pub(crate) use tap::Case;
use tap::{Reader, Seen};

/// How many failed cases a test step shows.
const SHOWN: usize = 10;

/// What `conformance` accepts.
#[derive(clap::Args, Debug, Clone)]
pub(crate) struct Options {
    /// The board.
    #[arg(long)]
    pub(crate) board: Option<String>,
    /// The interrupt controller's version.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(2..=3))]
    pub(crate) gic: u32,
    /// Physical CPUs.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=8))]
    pub(crate) cpus: u32,
    /// QEMU's CPU model, such as cortex-a72 or max.
    #[arg(long, default_value = "cortex-a72")]
    pub(crate) cpu: String,
    /// Only the cases whose names match this regular expression.
    #[arg(long)]
    filter: Option<String>,
    /// Also write the results to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// The hypervisor.
    #[arg(long, value_enum, default_value = "pavo")]
    on: On,
    /// Seconds until the run is given up.
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
    /// Let time advance by instructions: slower, repeatable.
    #[arg(long)]
    pub(crate) icount: bool,
    /// Bytes of RAM, and how they lie.
    #[arg(skip)]
    pub(crate) ram: Option<(u64, Terrain)>,
}

impl Options {
    /// Which board, if it is not the usual one.
    fn on_board(&self) -> Outcome<Option<Board>> {
        let board = self.board.as_deref().map(system::board).transpose();
        board.map_err(|text| Failure::usage(format!("--board: {text}")))
    }

    /// All cases on Pavo.
    pub(crate) fn on_pavo(gic: u32, cpus: u32, cpu: &str) -> Self {
        Self {
            board: None,
            gic,
            cpus,
            cpu: cpu.into(),
            filter: None,
            json: None,
            on: On::Pavo,
            timeout: 180,
            icount: false,
            ram: None,
        }
    }
}

/// What a run of the guest showed.
#[derive(Debug)]
pub(crate) struct Results {
    /// The hypervisor's name and version.
    pub(crate) hypervisor: String,
    /// The cases in order.
    pub(crate) cases: Vec<Case>,
    /// What was answered to each line of the sweep, until it is a case by [`sweep::judge`].
    swept: Vec<(String, String)>,
    /// What each sub-call was answered.
    pub(crate) answers: Answers,
    /// The console from the guest's last case on, for the case that it did not end.
    pub(crate) console: Vec<String>,
}

/// Runs the guest, prints TAP, compares.
pub(crate) fn command(options: &Options) -> Outcome<()> {
    let pattern = options.filter.as_deref().unwrap_or("");
    let filter = Regex::new(pattern)
        .map_err(|_| Failure::usage(format!("--filter: \"{pattern}\" is no regular expression")))?;
    options.on_board()?;
    let differences = Differences::load()?;
    let hypervisor = match options.on {
        On::Pavo => Hypervisor::pavo(),
        On::Xen => match setup::xen() {
            Ok(xen) => Hypervisor::xen(&xen),
            Err(failure) => {
                println!("skipped: Xen: {failure}");
                return Ok(());
            }
        },
    };
    let mut results = results(options, &hypervisor)?;
    results.cases.retain(|case| filter.is_match(&case.name));
    if results.cases.is_empty() {
        return Err(Failure::usage(format!("--filter: no case matches \"{pattern}\"")));
    }
    let known = match options.on {
        On::Pavo => differences,
        On::Xen => Differences::default(),
    };
    println!("TAP version 13");
    let (mut passed, mut failed, mut listed) = (0, 0, 0);
    for (number, case) in (1..).zip(&results.cases) {
        let verdict = known.judge(case);
        println!("{}", tap::line(number, case, &verdict));
        match verdict {
            Verdict::Passed => passed += 1,
            Verdict::Listed(_) => listed += 1,
            Verdict::Failed | Verdict::Stale => failed += 1,
        }
    }
    println!("1..{}", results.cases.len());
    if pattern.is_empty() {
        for name in known.unknown(&results.cases) {
            println!("# {}: there is no case \"{name}\": remove it from the table", differences::FILE);
            failed += 1;
        }
    }
    if pattern.is_empty() {
        let excuses = Differences::load()?;
        let problems = results.answers.problems(Calls::Guests, options.on, |text| excuses.excuse(text));
        failed += problems.len();
        for problem in &problems {
            println!("# {problem}");
        }
        println!("# {} cases, {} different answers", results.cases.len(), results.answers.count());
    }
    for line in compare::with_xen(&results)? {
        println!("# {line}");
    }
    if let Some(file) = &options.json {
        workspace::write(file, to_json(options, &results).as_bytes())?;
    }
    let known = if listed == 0 { String::new() } else { format!(", {listed} known differences") };
    println!("{passed} passed, {failed} failed{known} ({})", results.hypervisor);
    if failed == 0 { Ok(()) } else { Err(Failure::Reported) }
}

/// Runs all cases; a text for people on how many passed, or a failure that shows those that did not, or that Xen was never asked.
pub(crate) fn test(options: &Options) -> Outcome<String> {
    test_on(options, &Hypervisor::pavo())
}

/// [`test()`] of another image.
pub(crate) fn test_on(options: &Options, hypervisor: &Hypervisor) -> Outcome<String> {
    let results = results(options, hypervisor)?;
    let text = judge(&results, &Differences::load()?)?;
    match compare::unknown_to_xen(&results)?.as_slice() {
        [] => Ok(text),
        lines @ [first, ..] => Err(Failure::Shown {
            text: format!(
                "{} cases are not in {1}, such as \"{first}\": write it with `--on xen --json {1}`",
                lines.len(),
                compare::FILE
            ),
            lines: lines.to_vec(),
        }),
    }
}

/// The same on Xen, where nothing may differ; or why there is no Xen.
pub(crate) fn test_on_xen() -> Outcome<Result<String, String>> {
    let xen = match setup::xen() {
        Ok(xen) => xen,
        Err(failure) => return Ok(Err(failure.to_string())),
    };
    let results = results(&Options::on_pavo(3, 1, "cortex-a72"), &Hypervisor::xen(&xen))?;
    judge(&results, &Differences::default()).map(Ok)
}

/// What the kept results of real Xen do not show of `pv-abi`'s table: answers and kinds of cases.
pub(crate) fn uncovered() -> Outcome<Vec<String>> {
    let excuses = Differences::load()?;
    let Some((cases, answers)) = compare::kept_answers()? else {
        return Err(Failure::failed(format!("{} is not there or has no answers", compare::FILE)));
    };
    let mut lines = answers.problems(Calls::Guests, On::Xen, |text| excuses.excuse(text));
    lines.extend(answers::without_cases(Calls::Guests, &cases));
    Ok(lines)
}

/// How many answers of these calls a system's console shows (`(dN) # answers ..`), or what is missing of the table, or not in it, or which kind of case.
/// What domains without such calls are answered comes from Xen's kept results.
pub(crate) fn answered(console: &[String], of: Calls) -> Outcome<usize> {
    let mut reader = answers::Reader::new()?;
    console.iter().filter_map(|line| line.split_once(") ")).for_each(|(_, text)| reader.see(text));
    let mut seen = reader.end();
    if of == Calls::Tables
        && let Some((_, kept)) = compare::kept_answers()?
    {
        seen.add(kept.only(of));
    }
    let excuses = Differences::load()?;
    let mut problems = seen.problems(of, On::Pavo, |text| excuses.excuse(text));
    problems.extend(answers::without_cases(of, &cases_of(console)));
    match problems.first() {
        None => Ok(seen.only(of).count()),
        Some(first) => Err(Failure::Shown {
            text: format!("{} problems, such as: {first}", problems.len()),
            lines: problems,
        }),
    }
}

/// The cases that passed in any domain of a system, by its console: `(dN) ok 3 - NAME`.
fn cases_of(console: &[String]) -> Vec<Case> {
    let passed = console.iter().filter_map(|line| {
        let (number, name) = line.split_once(") ok ")?.1.split_once(" - ")?;
        number.parse::<u32>().ok()?;
        Some(Case { name: name.into(), passed: true, detail: String::new() })
    });
    passed.collect()
}

fn judge(results: &Results, known: &Differences) -> Outcome<String> {
    let mut listed = 0;
    let mut lines = Vec::new();
    for (number, case) in (1..).zip(&results.cases) {
        match known.judge(case) {
            Verdict::Passed => {}
            Verdict::Listed(_) => listed += 1,
            verdict @ (Verdict::Failed | Verdict::Stale) => lines.push(tap::line(number, case, &verdict)),
        }
    }
    let unknown = known.unknown(&results.cases);
    lines.extend(unknown.iter().map(|name| format!("{}: there is no case \"{name}\"", differences::FILE)));
    let excuses = Differences::load()?;
    lines.extend(results.answers.problems(Calls::Guests, On::Pavo, |text| excuses.excuse(text)));
    let all = results.cases.len();
    if lines.is_empty() {
        Ok(format!("{} cases, {listed} known differences", all - listed))
    } else {
        let text = format!("{} of {all} cases: {}", lines.len(), lines.first().map_or("", |line| line));
        lines.truncate(SHOWN);
        lines.extend(results.console.iter().cloned());
        Err(Failure::Shown { text, lines })
    }
}

/// The checking domain, its partners, and domains that end as they are asked: these stay as they are then, as on Xen.
fn system_text() -> String {
    const ENDING: [&str; 5] = ["reboot", "crash", "soft-reset", "watchdog", "suspend"];
    let mut text = String::from(
        "[[domain]]\nname = \"abicheck\"\nkernel = \"guest:abicheck\"\nmemory = \"32M\"\nvcpus = 4\ncmdline = \"passive=2\"\n\
         channels = [\"partner\", \"peer\", \"reboot\", \"crash\", \"soft-reset\", \"watchdog\", \"suspend\"]\n\
         [[domain]]\nname = \"peer\"\nkernel = \"guest:abicheck\"\nmemory = \"32M\"\nvcpus = 2\n\
         maptrack_frames = 1\ncmdline = \"role=partner page=9\"\n\
         [[domain]]\nname = \"partner\"\nkernel = \"guest:abicheck\"\nmemory = \"32M\"\nvcpus = 2\ncmdline = \"role=partner\"\n",
    );
    for (reference, name) in (10..).zip(ENDING) {
        let _ = write!(
            text,
            "[[domain]]\nname = \"{name}\"\nkernel = \"guest:abicheck\"\nmemory = \"8M\"\n\
             on_reboot = \"preserve\"\non_crash = \"preserve\"\ncmdline = \"role=partner page={reference}\"\n"
        );
    }
    text
}

/// Boots the guest beside a domain that only waits and one that does what it is asked for, until its plan is there or it cannot come any more.
fn results(options: &Options, hypervisor: &Hypervisor) -> Outcome<Results> {
    let text = system_text();
    let board = options.on_board()?;
    let mut system = System::parse_for("conformance", &workspace::root(), &text, Checking::Full, board)?;
    let mut run = RunOptions::for_file(PathBuf::new());
    (run.timeout, run.icount) = (options.timeout, options.icount);
    system.machine.cpus = options.cpus;
    if system.machine.board == Board::Virt {
        system.machine.gic = options.gic;
        system.machine.cpu.clone_from(&options.cpu);
    }
    if let Some(ram) = options.ram {
        (system.machine.memory, system.machine.terrain) = ram;
    }
    system.machine.check().map_err(|(key, text)| Failure::usage(format!("--{key}: {text}")))?;
    let (toolchain, qemu) = (setup::toolchain()?, setup::qemu()?);
    qemu.check(system.machine.board)?;
    build::some(&toolchain, &system.guests())?;
    let ended = Regex::new("^d1: (shutdown|destroyed|refused)").doing("pattern")?;
    let mut reader = Reader::new()?;
    let report = run::boot(&qemu, hypervisor, &system, &run, &mut |line| {
        let over = match line {
            Line::Log(log) => ended.is_match(&log.text),
            Line::Guest { .. } | Line::Other(_) => false,
        };
        match (reader.see(line), over) {
            (Seen::Plan, _) | (Seen::Other, true) => ControlFlow::Break(()),
            (Seen::Other, false) => ControlFlow::Continue(()),
        }
    })?;
    let mut results = reader.end(&report.summary());
    sweep::judge(&mut results, hypervisor.on())?;
    Ok(results)
}

/// One line a case, so that changes are read easily.
fn to_json(options: &Options, results: &Results) -> String {
    let cases: Vec<_> = results.cases.iter().map(|case| format!("    {}", case.to_json())).collect();
    let board = options.board.as_deref().unwrap_or("virt");
    let machine = json!({ "board": board, "gic": options.gic, "cpus": options.cpus, "cpu": options.cpu });
    format!(
        "{{\n  \"hypervisor\": {},\n  \"machine\": {machine},\n  \"cases\": [\n{}\n  ],\n  \"answers\": {{\n{}\n  }}\n}}\n",
        json!(results.hypervisor),
        cases.join(",\n"),
        results.answers.to_json()
    )
}
