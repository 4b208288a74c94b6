//! The guest's TAP: reading it from the console, and writing it. A name is a case's identity, beside Xen's results and in the table of
//! differences: a guest that tells two of one name has not run to its end.

use std::collections::BTreeSet;

use regex::Regex;
use serde_json::{Value, json};

use super::differences::{FILE, Verdict};
use super::{Results, answers};
use crate::console::{Colour, Line};
use crate::failure::{Doing, Outcome};

/// How many of the last lines are kept for a guest that did not end.
const KEPT: usize = 20;
/// The case that stands for the guest as a whole.
const END: &str = "abicheck runs to its end";

/// What one check gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Case {
    /// `family: what`, which no other has.
    pub(crate) name: String,
    /// Whether the expectation held.
    pub(crate) passed: bool,
    /// What came instead, if not.
    pub(crate) detail: String,
}

impl Case {
    /// For `--json`.
    pub(super) fn to_json(&self) -> Value {
        json!({ "name": self.name, "result": if self.passed { "ok" } else { "not ok" }, "detail": self.detail })
    }

    /// The reverse.
    pub(super) fn from_json(value: &Value) -> Option<Self> {
        let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
        Some(Self { name: text("name")?, passed: text("result")? == "ok", detail: text("detail")? })
    }
}

/// One line of our own plan.
pub(super) fn line(number: usize, case: &Case, verdict: &Verdict) -> String {
    let name = &case.name;
    let detail = if case.detail.is_empty() { String::new() } else { format!(" # {}", case.detail) };
    match verdict {
        Verdict::Passed => format!("ok {number} - {name}"),
        Verdict::Failed => format!("not ok {number} - {name}{detail}"),
        Verdict::Listed(reason) => format!("not ok {number} - {name} # TODO {reason}"),
        Verdict::Stale => format!("not ok {number} - {name} # passes, but {FILE} lists it: remove it there"),
    }
}

/// What a line was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// The guest's plan, its last line.
    Plan,
    /// Anything else.
    Other,
}

/// Reads a console.
pub(super) struct Reader {
    case: Regex,
    sweep: Regex,
    plan: Regex,
    pavo: Regex,
    xen: Regex,
    hypervisor: String,
    cases: Vec<Case>,
    /// What was answered to a sweep, by name, in order.
    swept: Vec<(String, String)>,
    names: BTreeSet<String>,
    planned: Option<usize>,
    /// What is wrong with the guest's numbers or names.
    gap: Option<String>,
    console: Vec<String>,
    answers: answers::Reader,
}

impl Reader {
    /// Nothing seen so far.
    pub(super) fn new() -> Outcome<Self> {
        let pattern = |text: &str| Regex::new(text).doing("pattern");
        Ok(Self {
            case: pattern(r"^(not )?ok ([0-9]+) - (.*?)(?: # (.*))?$")?,
            sweep: pattern(r"^# (sweep [^:]+): (.+)$")?,
            plan: pattern(r"^1\.\.([0-9]+)$")?,
            pavo: pattern(r"^(Pavo [^:]+):")?,
            xen: pattern(r"^\(XEN\) (Xen) version (\S+ \([^()]*\))")?,
            hypervisor: "unknown hypervisor".into(),
            cases: Vec::new(),
            swept: Vec::new(),
            names: BTreeSet::new(),
            planned: None,
            gap: None,
            console: Vec::new(),
            answers: answers::Reader::new()?,
        })
    }

    /// Takes a line into account.
    pub(super) fn see(&mut self, line: &Line) -> Seen {
        match line {
            Line::Guest { domain: 1, text } => {
                let text = String::from_utf8_lossy(text).trim_end().to_owned();
                if let Some(parts) = self.plan.captures(&text) {
                    self.planned = parts[1].parse().ok();
                    return Seen::Plan;
                }
                self.answers.see(&text);
                self.take_sweep(&text);
                if self.take_case(&text) {
                    self.console.clear();
                }
            }
            Line::Log(log) => {
                if let Some(parts) = self.pavo.captures(&log.text) {
                    self.hypervisor = parts[1].into();
                }
            }
            Line::Other(text) => {
                if let Some(parts) = self.xen.captures(&String::from_utf8_lossy(text)) {
                    self.hypervisor = format!("{} {}", &parts[1], &parts[2]);
                }
            }
            Line::Guest { .. } => {}
        }
        if self.console.len() == KEPT {
            self.console.remove(0);
        }
        self.console.push(String::from_utf8_lossy(&line.render(Colour::Off)).trim_end().to_owned());
        Seen::Other
    }

    /// A line of a sweep; what goes on with the last one's name belongs to it.
    fn take_sweep(&mut self, text: &str) {
        let Some(parts) = self.sweep.captures(text) else { return };
        match self.swept.last_mut() {
            Some((name, answers)) if *name == parts[1] => {
                answers.push(' ');
                answers.push_str(&parts[2]);
            }
            _ => self.swept.push((parts[1].into(), parts[2].into())),
        }
    }

    fn take_case(&mut self, text: &str) -> bool {
        let Some(parts) = self.case.captures(text) else { return false };
        let group = |index| parts.get(index).map_or("", |group: regex::Match<'_>| group.as_str()).to_owned();
        let expected = self.cases.len() + 1;
        if group(2) != expected.to_string() && self.gap.is_none() {
            self.gap = Some(format!("case {} came where {expected} was due", group(2)));
        }
        let name = group(3);
        if !self.names.insert(name.clone()) && self.gap.is_none() {
            self.gap = Some(format!("two cases are called \"{name}\""));
        }
        self.cases.push(Case { name, passed: parts.get(1).is_none(), detail: group(4) });
        true
    }

    /// The results; `why` says how the run went, for a plan that did not come.
    pub(super) fn end(mut self, why: &str) -> Results {
        let detail = match (self.gap, self.planned) {
            (Some(gap), _) => Some(gap),
            (None, None) => Some(format!("after {} cases: {why}", self.cases.len())),
            (None, Some(planned)) if planned != self.cases.len() => {
                Some(format!("{} cases came, the plan has {planned}", self.cases.len()))
            }
            (None, Some(_)) => None,
        };
        let passed = detail.is_none();
        if passed {
            self.console.clear();
        }
        self.cases.push(Case { name: END.into(), passed, detail: detail.unwrap_or_default() });
        let (hypervisor, answers) = (self.hypervisor, self.answers.end());
        Results { hypervisor, cases: self.cases, swept: self.swept, answers, console: self.console }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> Results {
        let mut reader = Reader::new().unwrap();
        for text in lines {
            reader.see(&Line::Guest { domain: 1, text: text.as_bytes().to_vec() });
        }
        reader.end("it hangs")
    }

    fn last(results: &Results) -> (bool, &str) {
        let case = results.cases.last().unwrap();
        (case.passed, &case.detail)
    }

    #[test]
    fn two_cases_of_one_name_fail_the_guest() {
        let results = read(&["TAP version 13", "ok 1 - a: b", "not ok 2 - a: c # got 1, expected 2", "1..2"]);
        let names: Vec<_> = results.cases.iter().map(|case| (case.name.as_str(), case.passed)).collect();
        assert_eq!(names, [("a: b", true), ("a: c", false), (END, true)]);
        assert_eq!(results.cases[1].detail, "got 1, expected 2");
        let results = read(&["ok 1 - a: b", "ok 2 - a: b", "1..2"]);
        assert_eq!(last(&results), (false, "two cases are called \"a: b\""));
    }

    #[test]
    fn a_guest_without_a_plan_fails_a_case() {
        let results = read(&["ok 1 - a: b", "panicked"]);
        assert_eq!(last(&results), (false, "after 1 cases: it hangs"));
        assert_eq!(results.console, ["(d1) ok 1 - a: b", "(d1) panicked"]);
    }

    #[test]
    fn lost_lines_fail_a_case() {
        assert_eq!(last(&read(&["ok 1 - a", "ok 3 - b", "1..3"])), (false, "case 3 came where 2 was due"));
        assert_eq!(last(&read(&["ok 1 - a", "1..2"])), (false, "1 cases came, the plan has 2"));
    }

    #[test]
    fn other_domains_cannot_speak_for_the_guest() {
        let mut reader = Reader::new().unwrap();
        let seen = reader.see(&Line::Guest { domain: 2, text: b"1..0".to_vec() });
        assert_eq!(seen, Seen::Other);
        assert_eq!(last(&reader.end("x")), (false, "after 0 cases: x"));
    }

    #[test]
    fn the_hypervisor_says_its_version() {
        let mut reader = Reader::new().unwrap();
        let text = b"(XEN) Xen version 4.20.4-pre (Debian 4.20.3-1) (a@b) (gcc) debug=n".to_vec();
        reader.see(&Line::Other(text));
        assert_eq!(reader.end("").hypervisor, "Xen 4.20.4-pre (Debian 4.20.3-1)");
    }

    #[test]
    fn listed_failures_carry_the_directive() {
        let case = Case { name: "a".into(), passed: false, detail: "got 1".into() };
        assert_eq!(line(1, &case, &Verdict::Listed("so far".into())), "not ok 1 - a # TODO so far");
        assert_eq!(line(1, &case, &Verdict::Failed), "not ok 1 - a # got 1");
    }
}
