//! What the hypervisor does without a lock, under every interleaving and reordering that Loom knows (`protocols`).
//!
//! `models` explores every protocol, then each again with the ordering of one line of the shipping source taken away, one line after the other,
//! and says which of these it catches: those that the protocol names must be, and so must known bugs that are planted (`queues::PLANTED`). `models needed` takes those alone away. `models NAME [SITE]` explores one, with a site taken away.
//!
//! Loom treats a sequentially consistent access as an acquire-release one: fences are modelled exactly. Words that guests share are one
//! atomic step each, with the barriers that `Hardware` promises.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a tool of the tests")]
mod closing;
mod entries;
mod granted;
mod protocols;
mod queues;
mod source;

use std::process::{Command, ExitCode};

use protocols::{ALL, Protocol};
use source::source;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => every(false),
        ["needed"] => every(true),
        [name, ref rest @ ..] => {
            let Some(protocol) = ALL.iter().find(|protocol| protocol.name == name) else {
                eprintln!("there is no protocol {name}");
                return ExitCode::from(2);
            };
            if let [bug] = rest
                && let Some(bug) = bug.strip_prefix("bug:")
            {
                assert!(hypervisor::seeded::plant(bug), "there is no bug {bug}");
            } else if let [site, ..] = rest {
                model_core::weaken(site);
            }
            println!("{}", protocol.explore());
            for site in model_core::sites().iter().filter(|site| !site.starts_with("fake")) {
                println!("{site}");
            }
            ExitCode::SUCCESS
        }
    }
}

/// A run of this program: whether it found nothing, and what it printed.
fn run(words: &[&str]) -> (bool, String) {
    let program = std::env::current_exe().expect("it is running");
    let output = Command::new(program).args(words).output().expect("it can be run again");
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

fn every(needed_only: bool) -> ExitCode {
    let (mut failed, mut executions, mut caught, mut asked) = (false, 0, 0, 0);
    for protocol in ALL {
        let (good, text) = run(&[protocol.name]);
        let mut lines = text.lines();
        let count = lines.next().and_then(|line| line.parse::<u64>().ok()).unwrap_or(0);
        let sites: Vec<&str> = lines.collect();
        executions += count;
        println!(
            "{:<10} {count:>6} executions{} | {}",
            protocol.name,
            if good { "" } else { ", FAILED" },
            protocol.what
        );
        failed |= !good;
        let mut needed: Vec<&str> = protocol.needs.to_vec();
        for site in sites.iter().filter(|_| good) {
            let line = source(site);
            let needs = protocol.needs.iter().find(|fragment| line.starts_with(*fragment));
            if needed_only && needs.is_none() {
                continue;
            }
            let missed = run(&[protocol.name, site]).0;
            asked += 1;
            caught += u32::from(!missed);
            let verdict = match (missed, needs) {
                (false, _) => "caught",
                (true, None) => "another's",
                (true, Some(_)) => "NOT CAUGHT",
            };
            if let Some(needs) = needs {
                needed.retain(|fragment| fragment != needs);
                failed |= missed;
            }
            println!("    {verdict:<10} {site}, {line}");
        }
        for (_, bug) in queues::PLANTED.iter().filter(|(name, _)| good && *name == protocol.name) {
            let missed = run(&[protocol.name, &format!("bug:{bug}")]).0;
            asked += 1;
            caught += u32::from(!missed);
            failed |= missed;
            println!("    {:<10} {bug}, planted", if missed { "NOT CAUGHT" } else { "caught" });
        }
        for fragment in needed {
            println!("    NOT THERE  {fragment}");
            failed = true;
        }
    }
    println!(
        "{} protocols, {executions} executions; of {asked} orderings taken away {caught} are caught",
        ALL.len()
    );
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

impl Protocol {
    /// Explores it; how many executions there are.
    fn explore(&self) -> u64 {
        use std::sync::atomic::{AtomicU64, Ordering};
        static EXECUTIONS: AtomicU64 = AtomicU64::new(0);
        let mut builder = loom::model::Builder::new();
        builder.max_branches = 100_000;
        builder.preemption_bound = self.name.starts_with("queue").then_some(queues::PREEMPTIONS);
        let body = self.body;
        builder.check(move || {
            EXECUTIONS.fetch_add(1, Ordering::Relaxed);
            body();
            model_core::end();
        });
        closing::reached(self.name);
        EXECUTIONS.load(Ordering::Relaxed)
    }
}
