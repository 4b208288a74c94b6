//! `tests/advisories.toml`: what went wrong in Xen, row by row, against the cases that try it here and the waivers that say why none does.
//!
//! 1. Each row has a case that is named after it, or a reason; not both.
//! 2. Each case that is named as one has a row.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use regex::Regex;
use toml::{Table, Value};

use crate::failure::{Doing as _, Failure, Outcome};
use crate::workspace;

use super::Found;
use super::sources::rust_files;

const FILE: &str = "tests/advisories.toml";
/// Where cases are: host tests, and the attacking guest.
const FOLDERS: [&str; 4] =
    ["tests/tests", "hypervisor/src", "guest-kernel/src/bin/attack", "guest-kernel/src/bin/rootkit"];
/// Rows of the list; those behind are of static checks.
const ROWS: std::ops::RangeInclusive<u32> = 1..=165;

/// A row: its name, and why it has no case.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    name: String,
    waiver: Option<String>,
}

/// Compares rows and cases.
pub(super) fn check() -> Outcome<Found> {
    let text = workspace::read(&workspace::root().join(FILE))?;
    let rows = rows(&String::from_utf8_lossy(&text))?;
    let mut cases = BTreeSet::new();
    for folder in FOLDERS {
        for file in rust_files(&workspace::root().join(folder)) {
            cases.extend(names(&file)?);
        }
    }
    let wrong = disagreements(&rows, &cases);
    if let Some(first) = wrong.first() {
        for line in &wrong {
            println!("         {line}");
        }
        return Err(Failure::failed(format!("{} disagreements, such as: {first}", wrong.len())));
    }
    let waived = rows.values().filter(|row| row.waiver.is_some()).count();
    Ok(Found::Good(format!("{} rows, {} with a case, {waived} waived", rows.len(), rows.len() - waived)))
}

/// Reads the file: `number = [name, what went wrong]` or with a reason behind.
fn rows(text: &str) -> Outcome<BTreeMap<u32, Row>> {
    let table: Table = text
        .parse()
        .map_err(|error: toml::de::Error| Failure::usage(format!("{FILE}: {}", error.message())))?;
    let mut rows = BTreeMap::new();
    let sections = table.values().filter_map(Value::as_table);
    for (key, value) in sections.flat_map(Table::iter) {
        let bad = || Failure::usage(format!("{FILE}: {key}: expected a number and two or three texts"));
        let number = key.parse().map_err(|_| bad())?;
        let words: Option<Vec<&str>> =
            value.as_array().map(Vec::as_slice).unwrap_or_default().iter().map(Value::as_str).collect();
        let row = match words.as_deref() {
            Some([name, _]) => Row { name: (*name).into(), waiver: None },
            Some([name, _, reason]) => Row { name: (*name).into(), waiver: Some((*reason).into()) },
            _ => return Err(bad()),
        };
        rows.insert(number, row);
    }
    Ok(rows)
}

/// Names of cases in a file: functions, texts that begin with a name and a colon, and texts that end with numbers of advisories.
fn names(file: &Path) -> Outcome<Vec<String>> {
    let pattern = r#"(?:fn |")((?:xsa|row)_[0-9]+[a-d]?)(?:_[a-z]|: )"#;
    let pattern = Regex::new(pattern).doing("pattern")?;
    let text = workspace::read(file)?;
    let text = String::from_utf8_lossy(&text);
    let ends = Regex::new(r#"\((XSA-[0-9]+(?:, XSA-[0-9]+)*)\)""#).doing("pattern")?;
    let numbers = ends.captures_iter(&text).flat_map(|found| {
        found[1].split(", ").map(|one| one.to_lowercase().replace('-', "_")).collect::<Vec<_>>()
    });
    Ok(pattern.captures_iter(&text).map(|found| found[1].to_owned()).chain(numbers).collect())
}

fn disagreements(rows: &BTreeMap<u32, Row>, cases: &BTreeSet<String>) -> Vec<String> {
    let mut wrong = Vec::new();
    for number in ROWS {
        match rows.get(&number) {
            None => wrong.push(format!("row {number} is missing")),
            Some(Row { name, waiver: None }) if !cases.contains(name) => {
                wrong.push(format!("row {number}, {name}, has neither a case nor a waiver"));
            }
            Some(Row { name, waiver: Some(_) }) if cases.contains(name) => {
                wrong.push(format!("row {number}, {name}, has a case and a waiver"));
            }
            Some(Row { waiver: Some(reason), .. }) if reason.is_empty() => {
                wrong.push(format!("row {number} is waived without a reason"));
            }
            Some(_) => {}
        }
    }
    wrong.extend(
        rows.keys().filter(|number| !ROWS.contains(number)).map(|number| format!("row {number} is no row")),
    );
    let known: BTreeSet<&str> = rows.values().map(|row| row.name.as_str()).collect();
    wrong.extend(
        cases.iter().filter(|case| !known.contains(case.as_str())).map(|case| format!("{case} has no row")),
    );
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(change: impl Fn(u32, &mut Row)) -> BTreeMap<u32, Row> {
        ROWS.map(|number| {
            let mut row = Row { name: format!("row_{number}"), waiver: Some("there is none".into()) };
            change(number, &mut row);
            (number, row)
        })
        .collect()
    }

    #[test]
    fn a_row_without_a_case_or_a_reason_is_told() {
        let none = BTreeSet::new();
        assert!(disagreements(&all(|_, _| {}), &none).is_empty());
        let rows = all(|number, row| row.waiver = row.waiver.take().filter(|_| number != 50));
        assert_eq!(disagreements(&rows, &none), ["row 50, row_50, has neither a case nor a waiver"]);
        assert!(disagreements(&rows, &BTreeSet::from(["row_50".to_owned()])).is_empty());
    }

    #[test]
    fn a_missing_row_a_case_too_many_and_an_empty_reason_are_told() {
        let mut rows = all(|number, row| row.waiver = Some(if number == 60 { "" } else { "r" }.into()));
        rows.remove(&40);
        let cases = BTreeSet::from(["row_41".to_owned(), "xsa_9".to_owned()]);
        let told = disagreements(&rows, &cases);
        assert_eq!(
            told,
            [
                "row 40 is missing",
                "row 41, row_41, has a case and a waiver",
                "row 60 is waived without a reason",
                "xsa_9 has no row"
            ]
        );
    }

    #[test]
    fn rows_are_read_with_and_without_a_reason() {
        let read =
            rows("[a]\n38 = [\"xsa_18\", \"what\"]\n[b]\n39 = [\"xsa_1\", \"what\", \"why\"]\n").unwrap();
        assert_eq!(read[&38], Row { name: "xsa_18".into(), waiver: None });
        assert_eq!(read[&39].waiver.as_deref(), Some("why"));
        assert!(rows("[a]\n38 = \"x\"\n").is_err());
        assert!(rows("[a]\nx = [\"a\", \"b\"]\n").is_err());
    }
}
