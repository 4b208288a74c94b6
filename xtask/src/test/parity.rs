//! Which step of the default test has its like on the Raspberry Pi, and why those that have none cannot: kept true by tests.

use regex::Regex;

use super::step::{Level, Needs};
use crate::workspace;

/// Steps by a pattern of their names, and the step on the Raspberry Pi that shows the same there. A name may be made of parts of the other.
const ALIKE: [(&str, &str); 27] = [
    ("^system: (hello|two-guests|smp|control|lives) on ", "$1"),
    ("^system: (two-guests send .*|ballooning .*|soak .*|[0-9]+ domains .*|counting .*)$", "$1"),
    ("^system: (the control domain's .*)$", "$1"),
    ("^system: two-guests, the image loaded ", "two-guests, the image loaded 0x80000 above the start of RAM"),
    ("^refused by the hypervisor: ", "refused by the hypervisor, all at once"),
    ("^a guest's bad end: ", "guests' bad ends, and guests without an end"),
    ("^a guest without an end: ", "guests' bad ends, and guests without an end"),
    ("^(ends: [a-z, ]+?)(?:, on [12] CPUs)?$", "$1"),
    ("^a hostile guest, seed ", "a hostile guest, seed 5"),
    ("^(hostile: what nobody survives), on ", "$1"),
    ("^(hostile: [a-z]+) on ", "$1"),
    ("^conformance: [0-9]", "conformance"),
    ("^conformance: (the control domain's calls)$", "$1"),
    ("^matrix: ([a-z-]+), ", "$1"),
    ("^linux: ", "linux: 4 vCPUs"),
    ("^boot: (nonsense in every register at entry), ", "$1"),
    ("^monitor: (.*)$", "$1"),
    ("^passthrough: a device belongs to one domain: ", "a device belongs to one domain: the second UART"),
    ("^passthrough: ([^:]+)$", "$1"),
    ("^keyboard: .*, (one domain at a time, .*)$", "keyboard: $1"),
    ("^(shares: .*)$", "$1"),
    ("^(exits: .*)$", "$1"),
    ("^affinity: ", "affinity: domains that spin go where they are told, four CPUs"),
    ("^spread: ", "spread: eight domains by weight on four CPUs"),
    ("^kills: ", "kills: at every 9973rd nanosecond, between two instructions, pv page tables"),
    ("^paging: ([a-z-]+) on ", "$1"),
    ("^paging: one wall, ", "one wall, a kernel that was taken over"),
];

/// Those that have none, and what `docs/raspberry-pi-4.md` says of them.
const ABSENT: [(&str, &str); 2] = [
    (
        "^bench: ",
        "| instruction counts beside the kept ones (`bench`) | those are of QEMU's `max` CPU with a GICv3: what a call costs is the same code, and \
         what the board's devices cost QEMU does not know |",
    ),
    (
        "^console: a UART that is full",
        "| a UART that is full | QEMU's never are; on `virt` a clock's register plays one, this board has none behind its UART |",
    ),
];

/// What differs from machine to machine and is not there, and what the page says of it.
const VARIANTS: [(&str, &str); 4] = [
    ("GICv3", "| a GICv3, other CPUs, more than 4 | the board has a GICv2 and four Cortex-A72 |"),
    ("neoverse-n1", "| a GICv3, other CPUs, more than 4 | the board has a GICv2 and four Cortex-A72 |"),
    (
        " MiB",
        "| other sizes of RAM, RAM in pieces | QEMU's board has 2 GiB, where the board has them; host tests read the trees of all sizes |",
    ),
    (
        "pieces",
        "| other sizes of RAM, RAM in pieces | QEMU's board has 2 GiB, where the board has them; host tests read the trees of all sizes |",
    ),
];

/// Names of the default test's steps that boot a machine: those of the Raspberry Pi, without the board's name, and the others.
fn names() -> (Vec<String>, Vec<String>) {
    let steps = super::all().into_iter();
    let default = steps.filter(|step| step.level <= Level::Default && step.needs() == Needs::Machine);
    let (own, others): (Vec<_>, Vec<_>) =
        default.map(|step| step.name).partition(|name| name.starts_with("rpi4: "));
    (own.into_iter().map(|name| name.replacen("rpi4: ", "", 1)).collect(), others)
}

#[test]
fn every_step_has_its_like_on_the_raspberry_pi_or_a_reason() {
    let (own, others) = names();
    let mut rows: Vec<_> =
        ALIKE.iter().map(|(pattern, like)| (Regex::new(pattern).unwrap(), Some(*like), 0)).collect();
    rows.extend(ABSENT.iter().map(|(pattern, _)| (Regex::new(pattern).unwrap(), None, 0)));
    for name in others {
        let mut fits = rows.iter_mut().filter(|(pattern, ..)| pattern.is_match(&name));
        let Some((pattern, like, count)) = fits.next() else {
            panic!(
                "\"{name}\" runs on virt only: give it a step on the Raspberry Pi (`rpi4::step`) and a row in ALIKE, or a reason in ABSENT"
            );
        };
        assert!(fits.next().is_none(), "\"{name}\" fits two rows");
        *count += 1;
        let Some(like) = like else { continue };
        let mut expected = String::new();
        pattern.captures(&name).unwrap().expand(like, &mut expected);
        assert!(own.contains(&expected), "\"{name}\": there is no \"rpi4: {expected}\"");
    }
    for (pattern, _, count) in rows {
        assert_ne!(count, 0, "no step is called {pattern} any more");
    }
}

#[test]
fn the_page_has_the_reasons() {
    let page = std::fs::read_to_string(workspace::root().join("docs/raspberry-pi-4.md")).unwrap();
    let (_, others) = names();
    for (word, row) in VARIANTS {
        assert!(others.iter().any(|name| name.contains(word)), "no step is about {word} any more");
        assert!(page.lines().any(|line| line == row), "{row}");
    }
    for (_, row) in ABSENT {
        assert!(page.lines().any(|line| line == row), "{row}");
    }
}
