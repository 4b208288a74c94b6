//! `tests/differences.toml`: cases in which Pavo's answer is not Xen's, and why.

use std::collections::BTreeMap;

use toml::Table;

use super::Case;
use crate::failure::{Failure, Outcome};
use crate::workspace;

/// For messages.
pub(super) const FILE: &str = "tests/differences.toml";

/// The table: a case's name, and its reason.
#[derive(Debug, Default)]
pub(super) struct Differences {
    cases: BTreeMap<String, String>,
    /// Answers of the table that no case can get: `CALL.OP ERRNO`.
    answers: BTreeMap<String, String>,
}

/// What a result means beside the table.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Good.
    Passed,
    /// Not good, and the table does not know it.
    Failed,
    /// Not good, and the table says why.
    Listed(String),
    /// Good, though the table says that it is not.
    Stale,
}

impl Differences {
    /// Reads the table; none is an empty one.
    pub(super) fn load() -> Outcome<Self> {
        match std::fs::read_to_string(workspace::root().join(FILE)) {
            Ok(text) => Self::parse(&text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(Failure::failed(format!("cannot read {FILE}: {error}"))),
        }
    }

    fn parse(text: &str) -> Outcome<Self> {
        let table: Table = text
            .parse()
            .map_err(|error: toml::de::Error| Failure::usage(format!("{FILE}: {}", error.message())))?;
        if let Some(key) = table.keys().find(|key| !["case", "answer"].contains(&key.as_str())) {
            return Err(Failure::usage(format!("{FILE}: {key}: unknown key, there are `case` and `answer`")));
        }
        let cases = table.get("case").and_then(|cases| cases.as_array()).map_or(&[][..], Vec::as_slice);
        let mut known = BTreeMap::new();
        for (number, case) in (1..).zip(cases) {
            let text = |key: &str| {
                case.get(key)
                    .and_then(|value| value.as_str())
                    .ok_or_else(|| Failure::usage(format!("{FILE}: case[{number}].{key}: expected a text")))
            };
            let (name, reason, kind) = (text("name")?, text("reason")?, text("kind")?);
            if !["deliberate", "missing"].contains(&kind) {
                let wrong = format!("expected \"deliberate\" or \"missing\", found \"{kind}\"");
                return Err(Failure::usage(format!("{FILE}: case[{number}].kind: {wrong}")));
            }
            if known.insert(name.to_owned(), format!("{kind}: {reason}")).is_some() {
                return Err(Failure::usage(format!(
                    "{FILE}: case[{number}].name: \"{name}\" is there twice"
                )));
            }
        }
        let mut answers = BTreeMap::new();
        let excused =
            table.get("answer").and_then(|answers| answers.as_array()).map_or(&[][..], Vec::as_slice);
        for (number, answer) in (1..).zip(excused) {
            let text = |key: &str| {
                answer
                    .get(key)
                    .and_then(|value| value.as_str())
                    .ok_or_else(|| Failure::usage(format!("{FILE}: answer[{number}].{key}: expected a text")))
            };
            answers.insert(text("name")?.to_owned(), text("reason")?.to_owned());
        }
        Ok(Self { cases: known, answers })
    }

    /// Whether no case can get this answer.
    pub(super) fn excuse(&self, answer: &str) -> bool {
        self.answers.contains_key(answer)
    }

    /// Looks a result up.
    pub(super) fn judge(&self, case: &Case) -> Verdict {
        match (case.passed, self.cases.get(&case.name)) {
            (true, None) => Verdict::Passed,
            (false, None) => Verdict::Failed,
            (false, Some(reason)) => Verdict::Listed(reason.clone()),
            (true, Some(_)) => Verdict::Stale,
        }
    }

    /// Names that no case has.
    pub(super) fn unknown(&self, cases: &[Case]) -> Vec<&str> {
        let names = self.cases.keys().map(String::as_str);
        names.filter(|name| cases.iter().all(|case| case.name != *name)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "[[case]]\nname = \"a: b\"\nkind = \"missing\"\nreason = \"later\"\n";

    fn case(name: &str, passed: bool) -> Case {
        Case { name: name.into(), passed, detail: String::new() }
    }

    #[test]
    fn an_entry_that_is_no_longer_true_is_told() {
        let table = Differences::parse(TABLE).unwrap();
        assert_eq!(table.judge(&case("a: b", false)), Verdict::Listed("missing: later".into()));
        assert_eq!(table.judge(&case("a: b", true)), Verdict::Stale);
        assert_eq!(table.judge(&case("a: c", false)), Verdict::Failed);
        assert_eq!(table.unknown(&[case("a: c", true)]), ["a: b"]);
    }

    #[test]
    fn entries_are_complete_and_there_once() {
        for (from, to, line) in [
            (
                "missing",
                "sometimes",
                "case[1].kind: expected \"deliberate\" or \"missing\", found \"sometimes\"",
            ),
            ("reason", "because", "case[1].reason: expected a text"),
            ("[[case]]", "[[cases]]", "cases: unknown key, there are `case` and `answer`"),
        ] {
            let failure = Differences::parse(&TABLE.replace(from, to)).unwrap_err();
            assert_eq!(failure.to_string(), format!("{FILE}: {line}"));
        }
        assert!(Differences::parse(&TABLE.repeat(2)).is_err());
    }
}
