//! Whether a run went well: how each domain ended, by the hypervisor's log, and what the system file expects.
//!
//! The log lines that count: `dN: shutdown REASON`, `dN: destroyed: WHY`, `dN: refused: WHY`, and `all domains ended`.
//! Guests cannot make them: their lines are not log lines. Before its log is up the image can only print plain text: a
//! line `pavo: cannot start: WHY` ends the run.

use std::collections::BTreeMap;
use std::fmt;

use regex::Regex;

use crate::console::Line;
use crate::failure::{Doing, Outcome};

/// How a domain ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// `shutdown poweroff`.
    Poweroff,
    /// Any other shutdown, by its reason.
    Shutdown(String),
    /// The hypervisor ended it.
    Destroyed(String),
    /// It was never started.
    Refused(String),
}

impl End {
    /// Whether it ended itself, or the control domain did.
    fn is_clean(&self) -> bool {
        match self {
            Self::Poweroff => true,
            Self::Destroyed(why) => why == "by the control domain",
            Self::Shutdown(_) | Self::Refused(_) => false,
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Poweroff => out.write_str("shutdown poweroff"),
            Self::Shutdown(reason) => write!(out, "shutdown {reason}"),
            Self::Destroyed(why) => write!(out, "destroyed: {why}"),
            Self::Refused(why) => write!(out, "refused: {why}"),
        }
    }
}

/// What a run showed so far.
#[derive(Debug)]
pub(crate) struct Observer {
    end: Regex,
    again: Regex,
    digest: Regex,
    /// By domain id.
    ends: BTreeMap<u32, Vec<End>>,
    /// SHA-256 values that domains printed, by id.
    digests: BTreeMap<u32, Vec<String>>,
    /// Whether the hypervisor said that it is done.
    all_ended: bool,
    /// Lines that say why the hypervisor itself stopped.
    stops: Vec<String>,
}

impl Observer {
    /// An observer that saw nothing.
    pub(crate) fn new() -> Outcome<Self> {
        Ok(Self {
            end: Regex::new(r"^d([0-9]{1,5}): (?:(shutdown) ([a-z-]+)|(destroyed|refused): (.*))$")
                .doing("pattern")?,
            again: Regex::new(r"^d([0-9]{1,5}): built again").doing("pattern")?,
            digest: Regex::new(r"(?-u:\b)sha256 ([0-9a-f]{64})(?-u:\b)").doing("pattern")?,
            ends: BTreeMap::new(),
            digests: BTreeMap::new(),
            all_ended: false,
            stops: Vec::new(),
        })
    }

    /// Takes a line into account.
    pub(crate) fn see(&mut self, line: &Line) {
        match line {
            Line::Log(log) if log.text == "all domains ended" => self.all_ended = true,
            Line::Log(log) => {
                if let Some((domain, end)) = self.end_in(&log.text) {
                    let ends = self.ends.entry(domain).or_default();
                    // A reboot that the control domain cut short ended as it wanted.
                    if end.is_clean() && ends.last() == Some(&End::Shutdown("reboot".into())) {
                        ends.pop();
                    }
                    ends.push(end);
                } else if let Some(parts) = self.again.captures(&log.text)
                    && let Some(domain) = parts.get(1).and_then(|id| id.as_str().parse().ok())
                    && let Some(ends) = self.ends.get_mut(&domain)
                    // What is built anew after a reboot, or by the control domain, has not ended; what has crashed has crashed.
                    && ends.last().is_some_and(|end| end.is_clean() || *end == End::Shutdown("reboot".into()))
                {
                    ends.pop();
                }
            }
            Line::Guest { domain, text } => {
                let text = String::from_utf8_lossy(text);
                if let Some(digest) = self.digest.captures(&text).and_then(|parts| parts.get(1)) {
                    self.digests.entry(*domain).or_default().push(digest.as_str().to_owned());
                }
            }
            Line::Other(text) => {
                if text.starts_with(b"pavo: cannot start: ") || text.starts_with(b"BUG: ") {
                    self.stops.push(String::from_utf8_lossy(text).into_owned());
                }
            }
        }
    }

    fn end_in(&self, text: &str) -> Option<(u32, End)> {
        let parts = self.end.captures(text)?;
        let domain = parts.get(1)?.as_str().parse().ok()?;
        if let Some(reason) = parts.get(3) {
            let reason = reason.as_str();
            return Some((
                domain,
                if reason == "poweroff" { End::Poweroff } else { End::Shutdown(reason.into()) },
            ));
        }
        let why = parts.get(5)?.as_str().to_owned();
        match parts.get(4)?.as_str() {
            "destroyed" => Some((domain, End::Destroyed(why))),
            _ => Some((domain, End::Refused(why))),
        }
    }

    /// Whether the hypervisor said that it stopped.
    pub(crate) fn has_stopped(&self) -> bool {
        !self.stops.is_empty()
    }

    /// What is wrong, one phrase each; empty if the domains `ids` ended cleanly, once, and the digests agree with `digest`.
    pub(crate) fn problems(&self, ids: &[u32], digest: Option<&str>) -> Vec<String> {
        if !self.stops.is_empty() {
            return self.stops.clone();
        }
        let mut problems = Vec::new();
        for id in ids {
            match self.ends.get(id).map(Vec::as_slice) {
                None | Some([]) => problems.push(format!("d{id} did not end")),
                Some([end]) if end.is_clean() => {}
                Some([end]) => problems.push(format!("d{id}: {end}")),
                Some(ends) => problems.push(format!("d{id} ended {} times", ends.len())),
            }
        }
        for (id, ends) in self.ends.iter().filter(|(id, _)| !ids.contains(*id)) {
            problems.extend(ends.iter().map(|end| format!("d{id}: {end}")));
        }
        if problems.is_empty() && !self.all_ended {
            problems.push("the hypervisor did not say that all domains ended".into());
        }
        if let Some(expected) = digest {
            let wrong = self.digests.iter().filter(|(_, seen)| seen.iter().any(|seen| seen != expected));
            problems.extend(
                wrong.map(|(id, _)| format!("d{id} printed another SHA-256 than the ramdisk's {expected}")),
            );
            if self.digests.len() < 2 {
                problems.push(format!(
                    "{} of at least 2 domains printed the ramdisk's SHA-256",
                    self.digests.len()
                ));
            }
        }
        problems
    }

    /// How many of the domains `ids` ended cleanly.
    pub(crate) fn clean(&self, ids: &[u32]) -> usize {
        let clean = |ends: &Vec<End>| matches!(ends.as_slice(), [end] if end.is_clean());
        ids.iter().filter(|id| self.ends.get(id).is_some_and(clean)).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::Log;

    fn observed(logs: &[&str], guests: &[(u32, &str)]) -> Observer {
        let mut observer = Observer::new().unwrap();
        for (domain, text) in guests {
            observer.see(&Line::Guest { domain: *domain, text: text.as_bytes().to_vec() });
        }
        for text in logs {
            let log = Log { time: String::new(), level: "INFO".into(), text: (*text).into() };
            observer.see(&Line::Log(log));
        }
        observer
    }

    #[test]
    fn clean_means_that_every_domain_powered_off() {
        let all = observed(&["d1: shutdown poweroff", "d2: shutdown poweroff", "all domains ended"], &[]);
        assert_eq!(all.problems(&[1, 2], None), Vec::<String>::new());
        assert_eq!(all.problems(&[1, 2, 3], None), ["d3 did not end"]);
    }

    #[test]
    fn every_other_end_is_a_problem_that_is_quoted() {
        let logs = [
            "d1: shutdown crash",
            "d2: destroyed: bad instruction",
            "d0: refused: no dom0",
            "all domains ended",
        ];
        let observer = observed(&logs, &[]);
        let problems = observer.problems(&[1, 2], None);
        assert_eq!(
            problems,
            ["d1: shutdown crash", "d2: destroyed: bad instruction", "d0: refused: no dom0"]
        );
        assert_eq!(observer.clean(&[1, 2]), 0);
    }

    #[test]
    fn what_the_control_domain_destroys_ended_as_it_should() {
        let logs = ["d1: destroyed: by the control domain", "d0: shutdown poweroff", "all domains ended"];
        assert_eq!(observed(&logs, &[]).problems(&[0, 1], None), Vec::<String>::new());
    }

    #[test]
    fn what_is_built_again_has_not_ended() {
        let again = "d1: built again, 2 times by now";
        let rebooted = ["d1: shutdown reboot", again, "d1: shutdown poweroff", "all domains ended"];
        assert_eq!(observed(&rebooted, &[]).problems(&[1], None), Vec::<String>::new());
        let crashed = ["d1: shutdown crash", again, "d1: shutdown poweroff", "all domains ended"];
        assert_eq!(observed(&crashed, &[]).problems(&[1], None), ["d1 ended 2 times"]);
        let cut = ["d1: shutdown reboot", "d1: destroyed: by the control domain", "all domains ended"];
        assert_eq!(observed(&cut, &[]).problems(&[1], None), Vec::<String>::new());
    }

    #[test]
    fn a_guest_cannot_claim_its_own_end() {
        let observer = observed(&["all domains ended"], &[(1, "d1: shutdown poweroff")]);
        assert_eq!(observer.problems(&[1], None), ["d1 did not end"]);
    }

    #[test]
    fn a_hypervisor_that_cannot_start_says_why() {
        let mut observer = observed(&[], &[]);
        observer.see(&Line::Other(b"pavo: cannot start: no memory".to_vec()));
        assert_eq!(observer.problems(&[1, 2], None), ["pavo: cannot start: no memory"]);
    }

    #[test]
    fn digests_must_agree_and_come_from_two_domains() {
        let (good, bad) = ("a".repeat(64), "b".repeat(64));
        let line = |digest: &str| format!("received 10 bytes, sha256 {digest}");
        let run = |lines: &[(u32, &str)]| {
            let logs = ["d1: shutdown poweroff", "d2: shutdown poweroff", "all domains ended"];
            observed(&logs, lines).problems(&[1, 2], Some(&good)).len()
        };
        assert_eq!(run(&[(1, &line(&good)), (2, &line(&good))]), 0);
        assert_eq!(run(&[(1, &line(&good))]), 1);
        assert_eq!(run(&[(1, &line(&good)), (2, &line(&bad))]), 1);
        assert_eq!(run(&[(1, &line(&good)), (1, &line(&good))]), 1);
    }
}
