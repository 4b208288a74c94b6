//! Mistakes on the command line, in one line: what clap says in several, with the help page that has the remedy.

/// What a mistake's text (clap's, whole) says, and where help is: at `command`, the subcommand that was typed, if it is one.
pub(crate) fn one_line(text: &str, command: Option<&str>) -> String {
    let mut lines = text.lines();
    let mut line = lines.next().unwrap_or_default().trim_start_matches("error: ").to_owned();
    let mut details = lines.take_while(|line| !line.starts_with("Usage:")).map(str::trim).peekable();
    if line.ends_with(':') {
        let mut named = Vec::new();
        while let Some(detail) = details.next_if(|detail| !detail.is_empty()) {
            named.push(detail);
        }
        line = format!("{line} {}", named.join(", "));
    }
    for detail in details {
        if detail.starts_with("[possible values: ") {
            line = format!("{line} {detail}");
        } else if let Some(tip) = detail.strip_prefix("tip: ") {
            line = format!("{line}; {tip}");
        }
    }
    let page = command.map_or_else(String::new, |command| format!("{command} "));
    format!("{line}: see `cargo xtask {page}--help`")
}

#[cfg(test)]
mod tests {
    use crate::command;

    /// What is said to the words behind `cargo xtask`.
    fn said(words: &[&str]) -> String {
        let error = command().try_get_matches_from(["xtask"].iter().chain(words)).unwrap_err();
        super::one_line(&error.to_string(), crate::subcommand(words.first().copied()).as_deref())
    }

    #[test]
    fn what_is_required_is_named() {
        assert_eq!(
            said(&["image"]),
            "the following required arguments were not provided: --board <BOARD>, --out <OUT>: \
             see `cargo xtask image --help`"
        );
        assert_eq!(
            said(&["monitor"]),
            "the following required arguments were not provided: <SOURCE>: see `cargo xtask monitor --help`"
        );
    }

    #[test]
    fn possible_values_and_what_is_alike_are_told() {
        assert_eq!(
            said(&["conformance", "--on", "foo"]),
            "invalid value 'foo' for '--on <ON>' [possible values: pavo, xen]: \
             see `cargo xtask conformance --help`"
        );
        assert_eq!(
            said(&["run", "--gics", "2"]),
            "unexpected argument '--gics' found; a similar argument exists: '--gic': \
             see `cargo xtask run --help`"
        );
        assert_eq!(
            said(&["test", "--quick", "--full"]),
            "the argument '--quick' cannot be used with '--full': see `cargo xtask test --help`"
        );
    }

    #[test]
    fn a_command_that_is_none_is_answered_with_the_page_of_all() {
        assert_eq!(
            said(&["runn"]),
            "unrecognized subcommand 'runn'; a similar subcommand exists: 'run': see `cargo xtask --help`"
        );
    }

    #[test]
    fn no_mistake_is_more_than_a_line() {
        for command in command().get_subcommands() {
            assert_eq!(said(&[command.get_name(), "--nonsense", "x"]).lines().count(), 1);
        }
    }

    #[test]
    fn who_types_has_a_day_unless_the_time_is_said() {
        let timeout = |words: &[&str]| {
            let found = command().try_get_matches_from(["xtask", "run"].iter().chain(words)).unwrap();
            *found.subcommand().unwrap().1.get_one::<u64>("timeout").unwrap()
        };
        assert_eq!(timeout(&[]), 60);
        assert_eq!(timeout(&["--interactive"]), 24 * 3600);
        assert_eq!(timeout(&["--interactive", "--timeout", "5"]), 5);
    }

    #[test]
    fn help_shows_what_a_command_uses_and_what_is_taken_without_it() {
        let help = |name: &str| {
            let mut all = command();
            all.find_subcommand_mut(name).unwrap().render_long_help().to_string()
        };
        let (run, debug) = (help("run"), help("debug"));
        for default in ["else virt", "else 3", "else 2", "else cortex-a72", "else 1G", "[default: 60]"] {
            assert!(run.contains(default), "{default}");
        }
        for option in ["--timeout", "--interactive"] {
            assert!(run.contains(option) && !debug.contains(option), "{option}");
        }
    }
}
