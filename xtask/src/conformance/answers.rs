//! What each sub-call was answered, beside `pv-abi`'s table: every answer in the table has a case, and no case gets another.
//!
//! The guest tells it at its end in lines `# answers CALL.OP: CODE ..` and `# statuses CALL.OP: CODE ..`.

use std::collections::{BTreeMap, BTreeSet};

use pv_abi::Errno;
use pv_abi::call::{Cost, Operation, Origin, Row, TABLE};
use pv_abi::control::PRIVILEGED;
use pv_abi::grant::GrantStatus;
use regex::Regex;
use serde_json::{Value, json};

use super::Case;
use crate::failure::{Doing, Outcome};
use crate::hypervisor::On;

/// Sub-calls from here on are told as one.
#[cfg(test)]
const OTHERS: u32 = 63;
/// Where the guest tells Pavo's own sub-calls, in the place of [`PAVOS`].
const OWN: u32 = 48;
/// Where they are.
const PAVOS: u32 = 0x8000;

/// Calls whose answers are looked at together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Calls {
    /// Those that every guest can make, as on Xen.
    Guests,
    /// Those of domains with checked page tables.
    Tables,
    /// The control domain's.
    Control,
}

impl Calls {
    fn rows(self) -> impl Iterator<Item = &'static Row> {
        let all = if self == Self::Control { PRIVILEGED } else { TABLE };
        all.iter().filter(move |row| {
            self == Self::Control || (row.origin() == Origin::Meaning) == (self == Self::Tables)
        })
    }

    /// Whether a name is of one of them.
    fn has(self, name: &str) -> bool {
        self.rows().any(|row| name.strip_prefix(row.name).is_some_and(|rest| rest.starts_with('.')))
    }
}

/// Answers by `call.operation`; names of errnos as in `errno.h`, of statuses with `GNTST_` before.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Answers(BTreeMap<String, BTreeSet<String>>);

/// Reads the guest's lines.
pub(super) struct Reader {
    line: Regex,
    seen: Answers,
}

impl Reader {
    /// Nothing seen.
    pub(super) fn new() -> Outcome<Self> {
        let line =
            Regex::new("^# (answers|statuses) ([0-9]+)[.]([0-9]+):((?: [0-9]+)*)$").doing("pattern")?;
        Ok(Self { line, seen: Answers::default() })
    }

    /// Takes a line of the guest's into account.
    pub(super) fn see(&mut self, text: &str) {
        let Some(parts) = self.line.captures(text) else { return };
        let number = |index: usize| parts[index].parse::<u32>().unwrap_or(u32::MAX);
        let name = name_of(number(2), number(3));
        let codes = parts[4].split_whitespace().filter_map(|code| code.parse::<i32>().ok());
        let told = self.seen.0.entry(name).or_default();
        told.extend(codes.map(|code| if &parts[1] == "answers" { errno(code) } else { status(code) }));
    }

    /// What was seen.
    pub(super) fn end(self) -> Answers {
        self.seen
    }
}

fn row(number: u32) -> Option<&'static Row> {
    TABLE.iter().chain(PRIVILEGED).find(|row| u32::from(row.number) == number)
}

fn name_of(number: u32, op: u32) -> String {
    let Some(row) = row(number) else { return format!("{number}.{op}") };
    let own = op.checked_sub(OWN).map(|own| own + PAVOS);
    match row.operations.iter().find(|operation| operation.number == op || Some(operation.number) == own) {
        Some(operation) => format!("{}.{}", row.name, operation.name),
        None => format!("{}.otherwise", row.name),
    }
}

fn errno(code: i32) -> String {
    match (code, Errno::from_value(code)) {
        (0, _) => "ok".into(),
        (_, Some(errno)) => name(errno),
        (_, None) => format!("errno {code}"),
    }
}

/// As in `errno.h`.
pub(crate) fn name(errno: Errno) -> String {
    errno.name().to_uppercase()
}

fn status(code: i32) -> String {
    match GrantStatus::ALL.iter().find(|status| i32::from(status.value()) == -code) {
        Some(status) => name_of_status(*status),
        None => format!("status -{code}"),
    }
}

/// As in `grant_table.h`.
pub(crate) fn name_of_status(status: GrantStatus) -> String {
    let mut text = String::from("GNTST");
    for letter in format!("{status:?}").chars() {
        if letter.is_uppercase() {
            text.push('_');
        }
        text.extend(letter.to_lowercase());
    }
    text
}

/// Every answer of the table.
fn expected(calls: Calls) -> Answers {
    let mut all = Answers::default();
    for row in calls.rows() {
        for operation in row.operations {
            all.0.insert(format!("{}.{}", row.name, operation.name), of(operation));
        }
        if !row.otherwise.is_empty() {
            let answers = row.otherwise.iter().map(|errno| name(*errno)).collect();
            all.0.insert(format!("{}.otherwise", row.name), answers);
        }
    }
    all
}

fn of(operation: &Operation) -> BTreeSet<String> {
    let success = operation.succeeds.then(|| "ok".to_owned());
    let errors = operation.errors.iter().map(|errno| name(*errno));
    let statuses = operation.statuses.iter().map(|status| name_of_status(*status));
    success.into_iter().chain(errors).chain(statuses).collect()
}

impl Answers {
    /// For `--json`, one line a sub-call.
    pub(super) fn to_json(&self) -> String {
        let lines: Vec<_> =
            self.0.iter().map(|(name, answers)| format!("    {}: {}", json!(name), json!(answers))).collect();
        lines.join(",\n")
    }

    /// The reverse.
    pub(super) fn from_json(value: &Value) -> Option<Self> {
        let texts = |value: &Value| {
            value
                .as_array()?
                .iter()
                .map(|text| text.as_str().map(str::to_owned))
                .collect::<Option<BTreeSet<_>>>()
        };
        let pairs = value.as_object()?.iter().map(|(name, answers)| Some((name.clone(), texts(answers)?)));
        pairs.collect::<Option<_>>().map(Self)
    }

    /// Those of these calls.
    pub(super) fn only(&self, of: Calls) -> Self {
        Self(
            self.0
                .iter()
                .filter(|(name, _)| of.has(name))
                .map(|(name, seen)| (name.clone(), seen.clone()))
                .collect(),
        )
    }

    /// Those of another run too.
    pub(super) fn add(&mut self, other: Self) {
        for (name, answers) in other.0 {
            self.0.entry(name).or_default().extend(answers);
        }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.0.values().map(BTreeSet::len).sum()
    }

    /// One line each: answers of the table that no case got, and answers that the table does not have. `excused` are `CALL.OP ANSWER`,
    /// which no case gets on Xen.
    pub(crate) fn problems(&self, of: Calls, hypervisor: On, excused: impl Fn(&str) -> bool) -> Vec<String> {
        let expected = expected(of);
        let mut lines = Vec::new();
        for (name, answers) in &expected.0 {
            for answer in answers {
                let got = self.0.get(name).is_some_and(|seen| seen.contains(answer));
                let text = format!("{name} {answer}");
                match (got, excused(&text)) {
                    (true, true) if hypervisor == On::Xen => {
                        lines.push(format!("{text}: a case gets it, but it is excused"));
                    }
                    (true, _) | (false, true) => {}
                    (false, false) => lines.push(format!("{text}: no case gets this answer")),
                }
            }
        }
        for (name, answers) in self.0.iter().filter(|(name, _)| of.has(name)) {
            for answer in answers {
                if !expected.0.get(name).is_some_and(|known| known.contains(answer)) {
                    lines.push(format!("{name} {answer}: not in the table of pv-abi"));
                }
            }
        }
        lines
    }
}

/// Sub-calls without a case of a kind that they need, by its name: two of `limits: CALL.OP ..` for those with arguments (the last that is taken,
/// the first that is not), `handle: CALL.OP ..` for those that are given an address, `restart: CALL.OP ..` for those that restart. Those that are not
/// Xen's restart in tests on the host (`tests/tests/restarts.rs` knows of each).
pub(crate) fn without_cases(of: Calls, cases: &[Case]) -> Vec<String> {
    let mut lines = Vec::new();
    for row in of.rows() {
        for operation in row.operations {
            let name = format!("{}.{}", row.name, operation.name);
            let count = |kind: &str| {
                let prefix = format!("{kind}: {name}");
                let is_one = |case: &&Case| {
                    case.name
                        .strip_prefix(&prefix)
                        .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', ',']))
                };
                cases.iter().filter(is_one).count()
            };
            // Of the control domain's the structure itself is the call's, and which sub-call it is stands in it.
            let has_handle = operation.takes_handle()
                && (of != Calls::Control || operation.errors.contains(&Errno::Efault));
            let has_limits = operation.argument != "none" && operation.succeeds;
            for (kind, least, needed) in [
                ("limits", 2, has_limits),
                ("handle", 1, has_handle),
                ("restart", 1, of == Calls::Guests && operation.cost == Cost::Restartable),
            ] {
                if needed && count(kind) < least {
                    lines.push(format!("{name}: not {least} of `{kind}: {name} ...`"));
                }
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_the_headers_names() {
        assert_eq!((errno(0), errno(14), errno(255)), ("ok".into(), "EFAULT".into(), "errno 255".into()));
        assert_eq!((status(0), status(3)), ("GNTST_okay".into(), "GNTST_bad_gntref".into()));
        assert_eq!(name_of(32, 4), "event_channel_op.send");
        assert_eq!(name_of(32, OTHERS), "event_channel_op.otherwise");
        assert_eq!(
            (name_of(35, OWN + 1), name_of(26, 4)),
            ("sysctl.build".into(), "mmuext_op.unpin_table".into())
        );
    }

    #[test]
    fn a_missing_answer_and_an_unknown_one_are_told() {
        let mut reader = Reader::new().unwrap();
        reader.see("# answers 32.4: 0 14 1");
        reader.see("# answers nonsense");
        let seen = reader.end();
        let lines: Vec<_> = seen
            .problems(Calls::Guests, On::Pavo, |_| false)
            .into_iter()
            .filter(|line| line.starts_with("event_channel_op.send "))
            .collect();
        assert_eq!(
            lines,
            [
                "event_channel_op.send EINVAL: no case gets this answer",
                "event_channel_op.send EPERM: not in the table of pv-abi"
            ]
        );
        let excused = seen.problems(Calls::Guests, On::Pavo, |text| text == "event_channel_op.send EINVAL");
        assert!(!excused.iter().any(|line| line.contains("send EINVAL")));
        assert_eq!(
            Answers::from_json(&serde_json::from_str(&format!("{{{}}}", seen.to_json())).unwrap()),
            Some(seen)
        );
    }

    #[test]
    fn each_kind_of_case_is_asked_for() {
        let case = |name: &str| Case { name: name.into(), passed: true, detail: String::new() };
        let lines = |cases: &[Case]| {
            let all = without_cases(Calls::Guests, cases).into_iter();
            all.filter(|line| line.starts_with("memory_op.populate_physmap:")).collect::<Vec<_>>()
        };
        assert_eq!(lines(&[]).len(), 3);
        let mut cases = vec![case("limits: memory_op.populate_physmap of none")];
        cases.push(case("handle: memory_op.populate_physmap of what is nowhere"));
        cases.push(case("restart: memory_op.populate_physmap of every number"));
        assert_eq!(
            lines(&cases),
            ["memory_op.populate_physmap: not 2 of `limits: memory_op.populate_physmap ...`"]
        );
        cases.push(case("limits: memory_op.populate_physmap of more"));
        assert_eq!(lines(&cases), Vec::<String>::new());
    }
}
