//! The board's two pages beside the code that they tell of.

use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;

use super::{CPUS, config_txt};
use crate::workspace;

fn page(name: &str) -> String {
    fs::read_to_string(workspace::root().join("docs").join(name)).unwrap()
}

/// Files of the workspace's crates.
fn sources() -> Vec<PathBuf> {
    let crates = ["hypervisor/src", "platform/src", "xtask/src", "guest-kernel/src"];
    let mut open: Vec<_> = crates.iter().map(|folder| workspace::root().join(folder)).collect();
    let mut found = Vec::new();
    while let Some(folder) = open.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() { &mut open } else { &mut found }.push(path);
        }
    }
    found
}

/// The only file whose path ends so.
fn source(files: &[PathBuf], end: &str) -> String {
    let mut fits = files.iter().filter(|path| path.ends_with(Path::new(end)));
    let path = fits.next().unwrap_or_else(|| panic!("there is no {end}"));
    assert!(fits.next().is_none(), "there are several {end}");
    fs::read_to_string(path).unwrap()
}

/// Rows of a page's tables, without heads and rules, as cells.
fn rows(text: &str) -> Vec<Vec<String>> {
    let lines: Vec<_> = text.lines().collect();
    let body = lines.iter().enumerate().filter(|(index, line)| {
        let rule = |at: usize| lines.get(at).is_some_and(|line| line.starts_with("|---"));
        line.starts_with('|') && !rule(*index) && !rule(index + 1)
    });
    body.map(|(_, line)| line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect())
        .collect()
}

#[test]
fn every_line_of_the_silicon_page_has_its_place_in_the_code_and_its_source() {
    let files = sources();
    let place = Regex::new("`([A-Za-z0-9_/.-]+\\.(?:rs|S)): ([A-Za-z0-9_]+)`").unwrap();
    let rows = rows(&page("rpi4-silicon.md"));
    assert!(rows.len() > 50, "{}", rows.len());
    let mut wrong = Vec::new();
    for row in rows {
        let [.., places, origin] = &row[..] else { panic!("{row:?}") };
        assert!(row.len() >= 4 && origin.chars().any(char::is_alphanumeric), "no source: {row:?}");
        let mut known = 0;
        for found in place.captures_iter(places) {
            let (file, name) = (&found[1], &found[2]);
            // Where it is made: an item, a field, a label or macro of assembly.
            let made = Regex::new(&format!(
                r"(?m)\b(fn|const|static|enum|struct|macro) +{name}\b|^ *(pub )?{name}: |^{name}:"
            ))
            .unwrap();
            if !made.is_match(&source(&files, file)) {
                wrong.push(format!("{file} has no {name}"));
            }
            known += 1;
        }
        assert!(known > 0, "no place: {row:?}");
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// What the page says that the screen shows: the cell's beginning, the file that says it, and how.
const SHOWN: [(&str, &str, &str); 14] = [
    ("`pavo: entered`", "el2/boot.S", "\"pavo: entered\\r\\n\""),
    ("`pavo: cannot start: WHY`", "el2/bug.rs", "pavo: cannot start: "),
    (
        "`Pavo 0.1.0: EL2 at 0x200000, 4 CPUs, N MiB`",
        "hypervisor/src/main.rs",
        "Pavo {=str}: EL2 at {=u64:#x}, {=usize} CPUs, {=u64} MiB",
    ),
    ("`board revision 0x...`", "el2/boot.rs", "board revision {=u32:#x}"),
    ("`EL2 resident N KiB`", "hypervisor/src/main.rs", "EL2 resident {=u64} KiB"),
    ("`CPU 0x1 does not start`", "el2/boot.rs", "CPU {=u64:#x} does not start"),
    ("`d1: NAME, N KiB, 1 vCPUs`", "el2/boot.rs", "d{=u16}: {=str}, {=u64} KiB, {=u32} vCPUs"),
    ("`d1: NAME, N KiB, 1 vCPUs`", "el2/boot.rs", "d{=u16}: refused: {}"),
    ("`boot instructions N`", "hypervisor/src/el2.rs", "boot instructions {=u64}"),
    ("`(d1) ...`, `(d2) ...`", "hypervisor/src/console.rs", "(d"),
    ("`d1: shutdown poweroff`", "el2/log.rs", "d{=u16}: shutdown poweroff"),
    ("`(d1) [N bytes dropped]`", "hypervisor/src/console.rs", " bytes dropped]"),
    ("`all domains ended`", "el2/finish.rs", "all domains ended"),
    ("`BUG: exception ...`", "el2/bug.rs", "BUG: exception "),
];

#[test]
fn what_the_page_says_that_the_screen_shows_is_what_the_code_prints() {
    let files = sources();
    let text = page("raspberry-pi-4.md");
    let (_, watch) = text.split_once("## 4. Watch").unwrap();
    let (watch, _) = watch.split_once("## 5.").unwrap();
    let cells: Vec<String> = rows(watch).into_iter().map(|row| row[0].clone()).collect();
    for cell in cells.iter().filter(|cell| cell.starts_with('`')) {
        assert!(SHOWN.iter().any(|(shown, ..)| cell == shown), "nothing says {cell}");
    }
    for (cell, file, how) in SHOWN {
        assert!(cells.iter().any(|own| own == cell), "the page does not tell of {cell}");
        assert!(source(&files, file).contains(how), "{file} does not say {how}");
    }
    assert!(watch.contains(concat!("Pavo ", env!("CARGO_PKG_VERSION"), ": ")));
}

#[test]
fn what_the_page_says_of_the_card_is_on_it() {
    let text = page("raspberry-pi-4.md");
    let options = config_txt::write(0x1000_0000, None)
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .count();
    let words = ["four", "five", "six", "seven", "eight"];
    assert!(text.contains(&format!("{} options for the firmware", words[options - 4])), "{options}");
    assert!(text.contains(&format!("{:#x}", super::GUESTS)));
    assert_eq!(CPUS, 4);
}
