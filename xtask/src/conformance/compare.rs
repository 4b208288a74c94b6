//! Results beside those of real Xen, which the repository keeps.

use std::collections::BTreeMap;

use serde_json::Value;

use super::answers::Answers;
use super::{Case, Results};
use crate::failure::{Doing, Failure, Outcome};
use crate::workspace;

/// What `conformance --on xen --json` wrote.
pub(super) const FILE: &str = "tests/xen-4.20.json";

/// Lines for people: each case whose result is not Xen's; none without Xen's results.
pub(super) fn with_xen(results: &Results) -> Outcome<Vec<String>> {
    Ok(kept()?.map_or(Vec::new(), |(name, cases)| table(results, &name, &cases)))
}

/// The cases that Xen's results do not have, for want of a newer run.
pub(super) fn unknown_to_xen(results: &Results) -> Outcome<Vec<String>> {
    let cases = kept()?.map_or(Vec::new(), |(_, cases)| cases);
    let unknown = results.cases.iter().filter(|case| cases.iter().all(|kept| kept.name != case.name));
    Ok(unknown.map(|case| case.name.clone()).collect())
}

/// The kept results with Xen's name.
pub(super) fn kept() -> Outcome<Option<(String, Vec<Case>)>> {
    let Ok(text) = std::fs::read_to_string(workspace::root().join(FILE)) else { return Ok(None) };
    let wrong = || Failure::failed(format!("{FILE} is not what --json writes"));
    read_results(&text).ok_or_else(wrong).map(Some)
}

/// Results of another run, as `--json` wrote them.
fn read_results(text: &str) -> Option<(String, Vec<Case>)> {
    let value: Value = serde_json::from_str(text).ok()?;
    let cases = value.get("cases")?.as_array()?.iter().map(Case::from_json).collect::<Option<_>>()?;
    Some((value.get("hypervisor")?.as_str()?.to_owned(), cases))
}

/// The kept cases and answers.
pub(super) fn kept_answers() -> Outcome<Option<(Vec<Case>, Answers)>> {
    let Some((_, cases)) = kept()? else { return Ok(None) };
    let text = std::fs::read_to_string(workspace::root().join(FILE)).doing("reading Xen's results")?;
    let value: Value = serde_json::from_str(&text).doing("reading Xen's results")?;
    Ok(value.get("answers").and_then(Answers::from_json).map(|answers| (cases, answers)))
}

fn table(results: &Results, other: &str, cases: &[Case]) -> Vec<String> {
    let xen: BTreeMap<&str, &Case> = cases.iter().map(|case| (case.name.as_str(), case)).collect();
    let word = |case: Option<&&Case>| match case {
        None => "-",
        Some(case) if case.passed => "ok",
        Some(_) => "not ok",
    };
    let mut rows = Vec::new();
    for case in &results.cases {
        let theirs = xen.get(case.name.as_str());
        if theirs.is_none_or(|theirs| theirs.passed != case.passed) {
            rows.push(format!("{:<7} {:<7} {}", word(Some(&case)), word(theirs), case.name));
        }
    }
    if rows.is_empty() {
        return vec![format!("all {} cases as on {other}", results.cases.len())];
    }
    let mut lines = vec![format!("not as on {other}:"), format!("{:<7} {:<7} case", "here", "Xen")];
    lines.extend(rows);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(name: &str, passed: bool) -> Case {
        Case { name: name.into(), passed, detail: String::new() }
    }

    #[test]
    fn only_what_differs_is_in_the_table() {
        let cases = vec![case("same", true), case("other", false), case("new", true)];
        let here = Results {
            hypervisor: "Pavo".into(),
            cases,
            swept: Vec::new(),
            answers: Answers::default(),
            console: Vec::new(),
        };
        let lines = table(&here, "Xen", &[case("same", true), case("other", true)]);
        assert_eq!(lines[2..], ["not ok  ok      other", "ok      -       new"]);
        assert_eq!(table(&here, "Xen", &here.cases), ["all 3 cases as on Xen"]);
    }
}
