//! `tests/baseline.toml`: how many instructions each operation took when somebody last looked, so that growth is seen.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use toml::Table;

use crate::failure::{Failure, Outcome};
use crate::workspace;

/// For messages.
const FILE: &str = "tests/baseline.toml";
/// The figure that is no operation: from the first instruction to the first guest's.
pub(crate) const BOOT: &str = "boot";
/// How far a figure may move, per cent.
const TOLERANCE: u64 = 5;

/// What a wake-up may be later for reasons of its own: it comes in the middle of another switch between domains or not, and waits for the end of one, and of
/// the look that it asks for. An instruction is a nanosecond.
const MIDST_NANOSECONDS: u64 = 3000;

/// Figures by name.
#[derive(Debug, Default)]
pub(crate) struct Baseline {
    figures: BTreeMap<String, u64>,
    /// The longest stretch with interrupts masked.
    stretch: Option<u64>,
    /// How late wake-ups come, nanoseconds.
    wakeups: BTreeMap<String, u64>,
}

/// A figure that moved.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// More than before, and than is tolerated.
    Grew(String, u64, u64),
    /// There is no figure any more.
    Gone(String),
    /// Less than before by more than is tolerated.
    Fell(String, u64, u64),
    /// There was no figure before.
    New(String, u64),
}

impl Change {
    /// Whether it fails a test.
    pub(crate) fn is_worse(&self) -> bool {
        match self {
            Self::Grew(..) | Self::Gone(_) => true,
            Self::Fell(..) | Self::New(..) => false,
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Grew(name, old, new) => write!(out, "{name} grew from {old} to {new} instructions"),
            Self::Gone(name) => write!(out, "{name} is no longer measured"),
            Self::Fell(name, old, new) => write!(out, "{name} fell from {old} to {new} instructions"),
            Self::New(name, new) => write!(out, "{name} is new, with {new} instructions"),
        }
    }
}

impl Baseline {
    /// Reads the table; none is an empty one.
    pub(crate) fn load() -> Outcome<Self> {
        Self::load_file(FILE)
    }

    /// Reads such a table.
    pub(crate) fn load_file(file: &str) -> Outcome<Self> {
        match std::fs::read_to_string(workspace::root().join(file)) {
            Ok(text) => Self::parse(&text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(Failure::failed(format!("cannot read {file}: {error}"))),
        }
    }

    fn parse(text: &str) -> Outcome<Self> {
        let wrong = |what: &str| Failure::usage(format!("{FILE}: {what}"));
        let table: Table = text.parse().map_err(|error: toml::de::Error| wrong(error.message()))?;
        let figures = table.get("instructions").and_then(|table| table.as_table());
        let figures = figures.ok_or_else(|| wrong("[instructions] is missing"))?;
        let read = |(name, value): (&String, &toml::Value)| {
            let number = value.as_integer().and_then(|number| u64::try_from(number).ok());
            number
                .map(|number| (name.clone(), number))
                .ok_or_else(|| wrong(&format!("{name}: expected a number")))
        };
        let stretch = table.get("stretch").and_then(|table| table.get("longest")?.as_integer());
        let wakeups = table.get("wakeups").and_then(|table| table.as_table());
        Ok(Self {
            figures: figures.iter().map(read).collect::<Outcome<_>>()?,
            stretch: stretch.and_then(|number| u64::try_from(number).ok()),
            wakeups: wakeups.into_iter().flatten().map(read).collect::<Outcome<_>>()?,
        })
    }

    /// The longest stretch with interrupts masked, if it is kept.
    pub(crate) fn stretch(&self) -> Option<u64> {
        self.stretch
    }

    /// Whether a stretch is longer than the kept one and what is tolerated.
    pub(crate) fn allows(&self, stretch: u64) -> bool {
        self.stretch.is_some_and(|kept| stretch.saturating_mul(100) <= kept.saturating_mul(100 + TOLERANCE))
    }

    /// Which wake-ups come later than the kept ones by more than is tolerated, and by what they may meet: that moves with every instruction that is
    /// added anywhere. One that is not kept is too late.
    pub(crate) fn later(&self, measured: &[(&str, u64)]) -> Vec<String> {
        let late = |(name, now): &&(&str, u64)| {
            let kept = self.wakeups.get(*name).copied();
            kept.is_none_or(|kept| *now > kept.saturating_mul(100 + TOLERANCE) / 100 + MIDST_NANOSECONDS)
        };
        let tell = |(name, now): &(&str, u64)| format!("{name} {:?} to {now} ns", self.wakeups.get(*name));
        measured.iter().filter(late).map(tell).collect()
    }

    /// A figure.
    pub(crate) fn get(&self, name: &str) -> Option<u64> {
        self.figures.get(name).copied()
    }

    /// What moved.
    pub(crate) fn compare(&self, measured: &BTreeMap<String, u64>) -> Vec<Change> {
        let mut changes = Vec::new();
        for (name, &old) in &self.figures {
            match measured.get(name) {
                None => changes.push(Change::Gone(name.clone())),
                Some(&new) if new.saturating_mul(100) > old.saturating_mul(100 + TOLERANCE) => {
                    changes.push(Change::Grew(name.clone(), old, new));
                }
                Some(&new) if new.saturating_mul(100) < old.saturating_mul(100 - TOLERANCE) => {
                    changes.push(Change::Fell(name.clone(), old, new));
                }
                Some(_) => {}
            }
        }
        let new = measured.iter().filter(|(name, _)| !self.figures.contains_key(*name));
        changes.extend(new.map(|(name, number)| Change::New(name.clone(), *number)));
        changes
    }
}

/// What stands above the figures of wake-ups.
const WAKEUPS: &str = "\n# Nanoseconds that a domain beside four that spin woke too late: half of the times, 99 %, ever; and while one of the four attacks. The test\n\
                       # \"wake-ups beside spinning domains\" tells them; they are kept by hand.\n[wakeups]\n";

/// Makes these the figures to compare with; what is not measured stays.
pub(crate) fn write(measured: Option<&BTreeMap<String, u64>>, stretch: Option<u64>) -> Outcome<()> {
    let kept = Baseline::load()?;
    let mut text = String::from(
        "# What operations took when this was written: instructions, by `cargo xtask bench --update-baseline`; the longest time that EL2 keeps\n\
         # interrupts masked, by `--stretches --update-baseline`. `cargo xtask test` fails when one takes 5 % more. One CPU, `-cpu max`, GICv3,\n\
         # counted by QEMU.\n\n[instructions]\n",
    );
    for (name, number) in measured.unwrap_or(&kept.figures) {
        let _ = writeln!(text, "{name} = {number}");
    }
    if let Some(stretch) = stretch.or(kept.stretch) {
        let _ = writeln!(text, "\n[stretch]\nlongest = {stretch}");
    }
    text.push_str(WAKEUPS);
    for (name, number) in &kept.wakeups {
        let _ = writeln!(text, "{name} = {number}");
    }
    workspace::write(&workspace::root().join(FILE), text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(numbers: &[(&str, u64)]) -> BTreeMap<String, u64> {
        numbers.iter().map(|(name, number)| ((*name).to_owned(), *number)).collect()
    }

    #[test]
    fn five_per_cent_are_tolerated_either_way() {
        let kept = Baseline::parse("[instructions]\na = 100\nb = 100\nc = 100\nd = 100\n").unwrap();
        let changes = kept.compare(&figures(&[("a", 105), ("b", 106), ("c", 95), ("d", 94)]));
        assert_eq!(changes, [Change::Grew("b".into(), 100, 106), Change::Fell("d".into(), 100, 94)]);
        assert_eq!(changes.iter().map(Change::is_worse).collect::<Vec<_>>(), [true, false]);
        assert_eq!(changes[0].to_string(), "b grew from 100 to 106 instructions");
    }

    #[test]
    fn a_stretch_may_be_five_per_cent_longer_than_the_kept_one() {
        let kept = Baseline::parse("[instructions]\na = 1\n[stretch]\nlongest = 1000\n").unwrap();
        assert_eq!(kept.stretch(), Some(1000));
        assert_eq!([1050, 1051].map(|length| kept.allows(length)), [true, false]);
        assert!(!Baseline::parse("[instructions]\na = 1\n").unwrap().allows(1), "none is kept");
    }

    #[test]
    fn a_wake_up_may_be_five_per_cent_and_a_switch_or_two_later_than_the_kept_one() {
        let kept = Baseline::parse("[instructions]\na = 1\n[wakeups]\nhalf = 1000\n").unwrap();
        assert!(kept.later(&[("half", 4050)]).is_empty());
        assert_eq!(kept.later(&[("half", 4051)]), ["half Some(1000) to 4051 ns"]);
        assert_eq!(kept.later(&[("most", 1)]).len(), 1, "none is kept");
    }

    #[test]
    fn a_figure_that_is_gone_is_worse_and_a_new_one_is_not() {
        let kept = Baseline::parse("[instructions]\nold = 1\n").unwrap();
        let changes = kept.compare(&figures(&[("new", 2)]));
        assert_eq!(changes, [Change::Gone("old".into()), Change::New("new".into(), 2)]);
        assert_eq!(changes.iter().map(Change::is_worse).collect::<Vec<_>>(), [true, false]);
    }
}
