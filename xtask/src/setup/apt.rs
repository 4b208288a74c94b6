//! apt with a configuration of its own: the machine's Debian mirror with further suites, own lists, own cache.
//!
//! The mirror is whatever the machine's own apt sources name, so that no host is written down here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::{Doing, Failure, Outcome};
use crate::{process, workspace};

/// A private apt configuration under `target/pavo/apt`.
pub(super) struct Apt {
    folder: PathBuf,
    /// The release's code name, as in `/etc/os-release`.
    pub(super) codename: String,
}

/// A repository as apt knows it.
#[derive(Debug, PartialEq, Eq)]
struct Source {
    uri: String,
    signed_by: Option<String>,
}

impl Apt {
    /// Prepares a configuration with the machine's own suites, and fetches its lists. `extra` names further suites on
    /// the same mirror; one that the mirror lacks makes this fail.
    pub(super) fn with_suites(name: &str, extra: impl Fn(&str) -> Vec<String>) -> Outcome<Self> {
        let codename = codename()?;
        let folder = workspace::pavo().join("apt").join(name);
        let parts = folder.join("parts");
        workspace::make_folder(&folder.join("lists/partial"))?;
        workspace::make_folder(&folder.join("cache/archives/partial"))?;
        workspace::make_folder(&parts)?;
        let (file, source) = machine_source(&codename)?;
        let own = parts.join(file.file_name().unwrap_or_default());
        fs::copy(&file, &own).doing(format_args!("cannot copy {}", file.display()))?;
        let suites = extra(&codename);
        if !suites.is_empty() {
            let signed = source.signed_by.map(|key| format!("Signed-By: {key}\n")).unwrap_or_default();
            let stanza = format!(
                "Types: deb\nURIs: {}\nSuites: {}\nComponents: main\n{signed}",
                source.uri,
                suites.join(" ")
            );
            workspace::write(&parts.join("pavo.sources"), stanza.as_bytes())?;
        }
        let apt = Self { folder, codename };
        apt.quiet(apt.command("apt-get").args(["update", "--error-on=any"]))?;
        Ok(apt)
    }

    /// An apt program with this configuration.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("DEBIAN_FRONTEND", "noninteractive").arg("-o").arg("Dir::Etc::sourcelist=/dev/null");
        for (key, place) in
            [("Dir::Etc::sourceparts", "parts"), ("Dir::State::lists", "lists"), ("Dir::Cache", "cache")]
        {
            command.arg("-o").arg(format!("{key}={}", self.folder.join(place).display()));
        }
        command
    }

    /// Runs an apt program; its output is kept in a log, and an error is its last `E:` line.
    pub(super) fn quiet(&self, command: &mut Command) -> Outcome<String> {
        let result = process::output(command)?;
        let text = [&result.stdout[..], &result.stderr[..]].concat();
        workspace::write(&self.folder.join("log"), &text)?;
        if result.status.success() {
            return Ok(String::from_utf8_lossy(&result.stdout).into_owned());
        }
        let text = String::from_utf8_lossy(&text).into_owned();
        let error = text.lines().rev().find(|line| line.starts_with("E:")).unwrap_or("no error message");
        Err(Failure::failed(format!("apt: {}", error.trim_start_matches("E:").trim())))
    }

    /// The folder of this configuration.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }
}

/// The release's code name.
fn codename() -> Outcome<String> {
    let release = fs::read_to_string("/etc/os-release").doing("cannot read /etc/os-release")?;
    release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .map(|name| name.trim_matches('"').to_owned())
        .ok_or_else(|| Failure::failed("/etc/os-release names no VERSION_CODENAME"))
}

/// The file of the machine's apt sources that holds the release's main suite, and that source.
fn machine_source(codename: &str) -> Outcome<(PathBuf, Source)> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    files.sort();
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        let found = match file.extension().and_then(|extension| extension.to_str()) {
            Some("sources") => in_stanzas(&text, codename),
            Some("list") => in_lines(&text, codename),
            Some(_) | None => None,
        };
        if let Some(source) = found {
            return Ok((file, source));
        }
    }
    Err(Failure::failed(format!("no apt source of this machine names the suite {codename}")))
}

/// Reads the deb822 form.
fn in_stanzas(text: &str, codename: &str) -> Option<Source> {
    text.split("\n\n").find_map(|stanza| {
        let field = |name: &str| {
            stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
        };
        field("Suites")?.split_whitespace().find(|suite| *suite == codename)?;
        field("Types")?.split_whitespace().find(|kind| *kind == "deb")?;
        let uri = field("URIs")?.split_whitespace().next()?.to_owned();
        Some(Source {
            uri,
            signed_by: field("Signed-By").filter(|key| key.starts_with('/')).map(str::to_owned),
        })
    })
}

/// Reads the one-line form.
fn in_lines(text: &str, codename: &str) -> Option<Source> {
    text.lines().find_map(|line| {
        let rest = line.trim().strip_prefix("deb ")?.trim();
        let (options, rest) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((options, rest)) => (options, rest),
            None => ("", rest),
        };
        let mut words = rest.split_whitespace();
        let uri = words.next()?.to_owned();
        words.next().filter(|suite| *suite == codename)?;
        let signed_by = options
            .split_whitespace()
            .find_map(|option| option.strip_prefix("signed-by="))
            .map(str::to_owned);
        Some(Source { uri, signed_by })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(uri: &str, key: Option<&str>) -> Source {
        Source { uri: uri.into(), signed_by: key.map(str::to_owned) }
    }

    #[test]
    fn a_deb822_source_of_the_release_is_found() {
        let text = "Types: deb\nURIs: http://a/x\nSuites: old\n\nTypes: deb\n# note\nURIs: http://b/y\n\
                    Suites: new new-updates\nComponents: main\nSigned-By: /k.gpg\n";
        assert_eq!(in_stanzas(text, "new"), Some(source("http://b/y", Some("/k.gpg"))));
        assert_eq!(in_stanzas(text, "newer"), None);
    }

    #[test]
    fn a_one_line_source_of_the_release_is_found() {
        let text = "# deb http://c new main\ndeb [arch=amd64 signed-by=/k.gpg] http://d new main\n";
        assert_eq!(in_lines(text, "new"), Some(source("http://d", Some("/k.gpg"))));
        assert_eq!(in_lines("deb http://e new main contrib", "new"), Some(source("http://e", None)));
        assert_eq!(in_lines("deb-src http://e new main", "new"), None);
    }
}
