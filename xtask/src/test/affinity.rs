//! Where domains run after the control domain has said so, while they spin: by how long each runs then, and by what interrupts which CPU.

use regex::{Captures, Regex};

use super::step::{Level, Step};
use super::systems;
use crate::check::Found;
use crate::failure::{Doing, Outcome};
use crate::run::Options;

/// Milliseconds that are looked at after each change.
const WHILE: u64 = 500;

/// What the control domain orders before it looks, the thousandths of a CPU that domains 1, 2, .. must then have, and the CPU on which turns end, if there is one.
struct Look(&'static str, &'static [u64], Option<u32>);

/// Both on CPU 1; then one each.
const TWO: [Look; 2] =
    [Look("cpus:1:2,cpus:2:2", &[500, 500], Some(1)), Look("cpus:1:1", &[1000, 1000], None)];
/// Three on CPU 3, the fourth where it likes; then all but one have to be where they are told, and the fourth finds the CPU that is left.
const FOUR: [Look; 2] = [
    Look("cpus:1:8,cpus:2:8,cpus:3:8", &[333, 333, 333, 1000], Some(3)),
    Look("cpus:1:4,cpus:2:2", &[1000, 1000, 1000, 1000], None),
];

fn moved(board: &str, cpus: u32, looks: &[Look]) -> Outcome<Found> {
    let domains = looks.first().map_or(0, |Look(_, due, _)| due.len());
    let each = |number| {
        format!(
            "[[domain]]\nname = \"s{number}\"\nkernel = \"guest:faulty\"\ncmdline = \"how=spin\"\nmemory = \"8M\"\n"
        )
    };
    let orders = looks.iter().map(|Look(orders, ..)| format!("{orders},sleep:20,ran:{WHILE}"));
    let orders = orders.collect::<Vec<_>>().join(",");
    let ends: Vec<_> = (1..=domains).map(|domain| format!("destroy:{domain}")).collect();
    let text = format!(
        "[[domain]]\nname = \"control\"\nkernel = \"guest:control\"\nmemory = \"8M\"\nprivileged = true\naffinity = [0]\n\
         cmdline = \"do=sleep:50,{orders},{}\"\n{}",
        ends.join(","),
        (1..=domains).map(each).collect::<String>()
    );
    let mut options = Options::for_file(systems::write(&format!("affinity-{board}-{cpus}"), &text)?);
    (options.board, options.cpus, options.icount) = (Some(board.into()), Some(cpus), true);
    (options.cpu, options.timeout) = ((board == "virt").then(|| "max".into()), 300);
    let observed = systems::observe(&options)?;
    let ran = Regex::new(r"^\(d0\) control: d([0-9]+) ran ([0-9]+) of ([0-9]+) ns$").doing("pattern")?;
    let exits = Regex::new(r"^\(d0\) control: CPU ([0-9]+): ([0-9]+) exits").doing("pattern")?;
    let number = |text: &str| text.parse::<u64>().unwrap_or(u64::MAX);
    // The control domain's own line comes first of each look's.
    let lines = observed.console.iter().filter(|line| ran.is_match(line) || exits.is_match(line));
    let mut told: Vec<Vec<&String>> = Vec::new();
    for line in lines {
        if line.starts_with("(d0) control: d0 ran ") {
            told.push(Vec::new());
        }
        told.last_mut().into_iter().for_each(|look| look.push(line));
    }
    if told.len() != looks.len() {
        return Err(observed.failed(&format!("{} looks of {}", told.len(), looks.len())));
    }
    for (Look(orders, due, turns), told) in looks.iter().zip(told) {
        for (domain, thousandths) in (1..).zip(*due) {
            let found =
                told.iter().filter_map(|line| ran.captures(line)).find(|parts| number(&parts[1]) == domain);
            let (time, of) = found.map_or((0, 1_000_000), |parts| (number(&parts[2]), number(&parts[3])));
            // Within 5 %.
            if (time * 1000).abs_diff(of * thousandths) * 20 > of * thousandths {
                let why = format!("{orders}: d{domain} ran {time} of {of} ns, not {thousandths} thousandths");
                return Err(observed.failed(&why));
            }
        }
        // Turns of 2 ms end where more than one domain runs.
        let of = |cpu: u32| {
            let line = |parts: &Captures<'_>| number(&parts[1]) == u64::from(cpu);
            told.iter()
                .filter_map(|line| exits.captures(line))
                .find(line)
                .map_or(0, |parts| number(&parts[2]))
        };
        if let Some(count) = turns.map(of).filter(|count| *count < WHILE / 4) {
            return Err(observed.failed(&format!("{orders}: {count} exits on CPU {turns:?}")));
        }
    }
    systems::clean(&observed)
}

/// All steps of this file.
pub(super) fn all() -> Vec<Step> {
    let four = "affinity: domains that spin go where they are told, four CPUs";
    vec![
        Step::new("affinity: domains that spin go where they are told, two CPUs", Level::Default, || {
            moved("virt", 2, &TWO)
        })
        .shared(),
        Step::new(four, Level::Default, || moved("virt", 4, &FOUR)).shared(),
        super::rpi4::step(four, Level::Default, || moved("rpi4", 4, &FOUR)),
    ]
}
