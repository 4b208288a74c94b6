//! The sweep: `guest:abicheck` tells what each call answered at each edge of each argument, a line a field; here each line becomes a case, which
//! holds when it is what real Xen answered. Xen's lines are kept with its other results.

use std::collections::{BTreeMap, BTreeSet};

use super::{Case, Results, compare};
use crate::failure::Outcome;
use crate::hypervisor::On;

/// How names of such cases begin.
const PREFIX: &str = "sweep ";

/// Makes cases of the lines.
pub(super) fn judge(results: &mut Results, on: On) -> Outcome<()> {
    let kept = compare::kept()?.map_or(Vec::new(), |(_, cases)| cases);
    let cases = cases(std::mem::take(&mut results.swept), &kept, on);
    results.cases.extend(cases);
    Ok(())
}

fn cases(swept: Vec<(String, String)>, kept: &[Case], on: On) -> Vec<Case> {
    let xen: BTreeMap<&str, &str> = kept
        .iter()
        .filter(|case| case.name.starts_with(PREFIX))
        .map(|case| (case.name.as_str(), case.detail.as_str()))
        .collect();
    let came: BTreeSet<String> = swept.iter().map(|(name, _)| name.clone()).collect();
    let mut cases: Vec<Case> = swept
        .into_iter()
        .map(|(name, answers)| match xen.get(name.as_str()) {
            // What Xen answers is what is right; a case of which nothing is kept is to be kept.
            _ if on == On::Xen => Case { name, passed: true, detail: answers },
            Some(theirs) if *theirs == answers => Case { name, passed: true, detail: answers },
            Some(theirs) => Case { name, passed: false, detail: difference(theirs, &answers) },
            None => Case { name, passed: false, detail: format!("what Xen answers is not kept: {answers}") },
        })
        .collect();
    // None came when only another family was asked for.
    if !came.is_empty() && on == On::Pavo {
        cases.extend(xen.keys().filter(|name| !came.contains(**name)).map(|name| Case {
            name: (*name).into(),
            passed: false,
            detail: "is not told".into(),
        }));
    }
    cases
}

/// Differences that are told of a line.
const TOLD: usize = 6;

/// Where two lines differ, counted from 0.
fn difference(theirs: &str, ours: &str) -> String {
    let (xen, pavo) = (each(theirs), each(ours));
    let all: Vec<_> = (0..xen.len().max(pavo.len()))
        .filter(|index| xen.get(*index) != pavo.get(*index))
        .take(TOLD)
        .map(|index| {
            let word = |of: &[&str]| of.get(index).map_or("nothing", |text| text).to_owned();
            format!("value {index}: {} instead of {}", word(&pavo), word(&xen))
        })
        .collect();
    all.join("; ")
}

/// Repeated answers, each for itself.
fn each(line: &str) -> Vec<&str> {
    line.split_whitespace()
        .flat_map(|token| {
            let (answer, times) = token.split_once('*').unwrap_or((token, "1"));
            std::iter::repeat_n(answer, times.parse().unwrap_or(1))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(name: &str, detail: &str) -> Case {
        Case { name: name.into(), passed: true, detail: detail.into() }
    }

    #[test]
    fn a_line_holds_when_it_is_xens() {
        let swept =
            vec![("sweep a".to_owned(), "0 -22*3 s-1".to_owned()), ("sweep b".to_owned(), "0".to_owned())];
        let xen =
            [kept("sweep a", "0 -22*3 s-1"), kept("sweep b", "0*2"), kept("sweep c", "0"), kept("d", "")];
        let told: Vec<_> =
            cases(swept, &xen, On::Pavo).into_iter().map(|case| (case.name, case.passed)).collect();
        assert_eq!(told, [("sweep a".into(), true), ("sweep b".into(), false), ("sweep c".into(), false)]);
        assert_eq!(difference("0 -22*3", "0 -22*2 -14"), "value 3: -14 instead of -22");
    }

    #[test]
    fn without_a_sweep_there_is_nothing_to_compare() {
        assert_eq!(cases(Vec::new(), &[kept("sweep a", "0")], On::Pavo), []);
    }
}
