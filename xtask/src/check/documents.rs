//! Documents against what they tell of: each key of a system file has a row in `docs/system-file.md`, each guest one in `docs/guests.md`, and
//! the system files that are shown can be read, README's is the demonstration's; and each sub-call that `guest-kernel` names by its row of
//! `docs/abi.md` is there.

use std::collections::BTreeSet;

use pv_abi::call::TABLE;
use pv_abi::control::PRIVILEGED;
use regex::Regex;
use toml::Table;

use super::Found;
use crate::failure::{Doing as _, Failure, Outcome};
use crate::system::{ALL_KEYS, Checking, System};
use crate::{build, run, workspace};

const KEYS: &str = "docs/system-file.md";
const GUESTS: &str = "docs/guests.md";
const README: &str = "README.md";

/// Compares all.
pub(super) fn check() -> Outcome<Found> {
    let (keys, guests, readme) = (text(KEYS)?, text(GUESTS)?, text(README)?);
    let mut wrong = Vec::new();
    for (table, known) in ALL_KEYS {
        let known = known.iter().map(|key| (*key).to_owned()).collect();
        let section = section(&keys, &format!("## `{table}`"));
        wrong.extend(differences(&format!("{KEYS}, {table}"), &rows(section), &known));
    }
    let names = build::guest_names()?;
    wrong.extend(differences(GUESTS, &rows(section(&guests, "## All")), &names));
    let control = text("guest-kernel/src/bin/control.rs")?;
    let header: Vec<_> = control.lines().filter_map(|line| line.strip_prefix("//! |")).collect();
    if !guests.contains(&format!("|{}\n", header.join("\n|"))) {
        wrong.push(format!("{GUESTS} does not have the table of guest-kernel/src/bin/control.rs"));
    }
    for file in super::sources::rust_files(&workspace::root().join("guest-kernel/src")) {
        let text = std::fs::read_to_string(&file).doing(file.display())?;
        wrong.extend(no_rows(&text)?.into_iter().map(|row| format!("{}: no row `{row}`", file.display())));
    }
    for (file, text) in [(KEYS, &keys), (GUESTS, &guests), (README, &readme)] {
        for shown in shown(text) {
            let read = System::parse(file, &workspace::root(), shown, Checking::Full)
                .and_then(|system| system.check_counts().and_then(|()| system.check_cpus()));
            wrong.extend(read.err().map(|why| format!("a system file that is shown: {why}")));
        }
    }
    let demonstration = std::fs::read_to_string(run::shipped("two-guests")).doing("the demonstration")?;
    if shown(&readme).all(|shown| !is_same(shown, &demonstration)) {
        wrong.push(format!("{README} does not show systems/two-guests.toml"));
    }
    match wrong.first() {
        None => {
            let count: usize = ALL_KEYS.iter().map(|(_, known)| known.len()).sum();
            Ok(Found::Good(format!("{count} keys of system files, {} guests", names.len())))
        }
        Some(first) => Err(Failure::Shown {
            text: format!("{} disagreements, such as: {first}", wrong.len()),
            lines: wrong,
        }),
    }
}

fn text(file: &str) -> Outcome<String> {
    std::fs::read_to_string(workspace::root().join(file)).doing(file)
}

/// Sub-calls that a text names, as `call.sub_call` in backquotes or quotation marks, and that are not in pv-abi's table.
fn no_rows(text: &str) -> Outcome<Vec<String>> {
    let named = Regex::new(r#"[`"]([a-z_]+)\.([a-z_0-9]+)[`"]"#).doing("pattern")?;
    let rows = || TABLE.iter().chain(PRIVILEGED);
    let unknown = named.captures_iter(text).filter(|found| {
        let mut calls = rows().filter(|row| row.name == &found[1]).peekable();
        calls.peek().is_some()
            && !calls.any(|row| row.operations.iter().any(|operation| operation.name == &found[2]))
    });
    Ok(unknown.map(|found| format!("{}.{}", &found[1], &found[2])).collect())
}

/// What stands between a heading and the next one.
fn section<'a>(text: &'a str, heading: &str) -> &'a str {
    let rest = text.split_once(&format!("{heading}\n")).map_or("", |(_, rest)| rest);
    rest.split("\n## ").next().unwrap_or_default()
}

/// The first words of a table's rows, those in backquotes.
fn rows(section: &str) -> Vec<String> {
    let first = |line: &str| Some(line.strip_prefix("| `")?.split_once("` |")?.0.to_owned());
    section.lines().filter_map(first).collect()
}

/// Names without a row, rows without a name, and rows of one name.
fn differences(place: &str, rows: &[String], known: &BTreeSet<String>) -> Vec<String> {
    let all: BTreeSet<String> = rows.iter().cloned().collect();
    let missing = known.difference(&all).map(|name| format!("{place}: `{name}` has no row"));
    let unknown = all.difference(known).map(|name| format!("{place}: `{name}` is in a row and nowhere else"));
    let mut wrong: Vec<_> = missing.chain(unknown).collect();
    if all.len() != rows.len() {
        wrong.push(format!("{place}: two rows of one name"));
    }
    wrong
}

/// The TOML that a document shows.
fn shown(text: &str) -> impl Iterator<Item = &str> {
    text.split("\n```toml\n").skip(1).filter_map(|rest| rest.split("\n```").next())
}

/// Whether two texts say the same, comments aside.
fn is_same(one: &str, other: &str) -> bool {
    one.parse::<Table>().ok().zip(other.parse::<Table>().ok()).is_some_and(|(one, other)| one == other)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# Page\n\n## `[a]`\n\n| key |\n|---|\n| `x` | 1 |\n| `y` | 2 |\n\n## `[b]`\n\n| `z` | 3 |\n\n\
                        ```toml\nn = 1 # one\n```\n";

    #[test]
    fn a_key_without_a_row_and_a_row_without_a_key_are_found() {
        let rows = rows(section(PAGE, "## `[a]`"));
        assert_eq!(rows, ["x", "y"]);
        let known = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect();
        assert!(differences("p", &rows, &known(&["x", "y"])).is_empty());
        assert_eq!(
            differences("p", &rows, &known(&["w", "x"])),
            ["p: `w` has no row", "p: `y` is in a row and nowhere else"]
        );
        assert_eq!(differences("p", &["x".into(), "x".into()], &known(&["x"])), ["p: two rows of one name"]);
        assert!(super::rows(section(PAGE, "## `[c]`")).is_empty());
    }

    #[test]
    fn a_sub_call_that_is_not_in_the_table_is_found() {
        let text = "`sched_op.poll`, `sched_op.pole`, \"memory_op.send\", `lib.rs`, `call.rs`";
        assert_eq!(no_rows(text).unwrap(), ["sched_op.pole", "memory_op.send"]);
    }

    #[test]
    fn files_that_are_shown_are_compared_without_their_comments() {
        let all: Vec<_> = shown(PAGE).collect();
        assert_eq!(all, ["n = 1 # one"]);
        assert!(is_same(all[0], "# another\nn = 1\n"));
        assert!(!is_same(all[0], "n = 2"));
    }

    #[test]
    fn the_documents_agree_with_the_code() {
        assert!(matches!(check(), Ok(Found::Good(_))), "{:?}", check().err());
    }
}
