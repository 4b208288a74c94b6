//! apt with a configuration of its own: the machine's Debian mirror with further suites, own lists, own cache.
//!
//! The mirror is whatever the machine's own apt sources name, so that no host is written down here.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::failure::{Doing, Failure, Outcome};
use crate::{process, workspace};

/// A private apt configuration under `target/pavo/apt`.
pub(super) struct Apt {
    folder: PathBuf,
    /// Another architecture than the machine's.
    architecture: Option<&'static str>,
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
        let (file, source) = machine_source(&codename)?;
        let apt = Self::empty(name, None, codename)?;
        let own = apt.folder.join("parts").join(file.file_name().unwrap_or_default());
        fs::copy(&file, &own).doing(format_args!("cannot copy {}", file.display()))?;
        let suites = extra(&apt.codename);
        if !suites.is_empty() {
            apt.add(&source, &suites.join(" "))?;
        }
        apt.update()
    }

    /// Prepares a configuration for packages of another architecture, with one suite of the machine's mirror, and fetches
    /// its lists. Its packages can be downloaded, not installed.
    pub(super) fn foreign(name: &str, suite: &str, architecture: &'static str) -> Outcome<Self> {
        let codename = codename()?;
        let (_, source) = machine_source(&codename)?;
        let apt = Self::empty(name, Some(architecture), codename)?;
        apt.add(&source, suite)?;
        apt.update()
    }

    /// [`Self::foreign`] with the machine's own release.
    pub(super) fn foreign_of_release(name: &str, architecture: &'static str) -> Outcome<Self> {
        Self::foreign(name, &codename()?, architecture)
    }

    /// Removes what was downloaded and unpacked.
    pub(super) fn discard(self) {
        let _ = fs::remove_dir_all(&self.folder);
    }

    fn empty(name: &str, architecture: Option<&'static str>, codename: String) -> Outcome<Self> {
        let folder = workspace::pavo().join("apt").join(name);
        for part in ["lists/partial", "cache/archives/partial", "parts"] {
            workspace::make_folder(&folder.join(part))?;
        }
        Ok(Self { folder, architecture, codename })
    }

    /// Adds suites of a mirror.
    fn add(&self, source: &Source, suites: &str) -> Outcome<()> {
        let key = source.signed_by.as_ref().map(|key| format!("Signed-By: {key}\n")).unwrap_or_default();
        let stanza = format!("Types: deb\nURIs: {}\nSuites: {suites}\nComponents: main\n{key}", source.uri);
        workspace::write(&self.folder.join("parts/pavo.sources"), stanza.as_bytes())
    }

    fn update(self) -> Outcome<Self> {
        self.quiet(self.command("apt-get").args(["update", "--error-on=any"]))?;
        Ok(self)
    }

    /// Downloads a package, such as `rust-src` or `rust-src=1.95.0+dfsg1-1`, unpacks it, and returns the folder that
    /// stands for `/`.
    pub(super) fn unpack(&self, package: &str) -> Outcome<PathBuf> {
        self.quiet(self.command("apt-get").current_dir(&self.folder).args(["download", package]))?;
        let deb = fs::read_dir(&self.folder)
            .doing("cannot list the download")?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .ok_or_else(|| Failure::failed("apt downloaded no package"))?;
        let root = self.folder.join("root");
        process::quiet(Command::new("dpkg").arg("-x").arg(&deb).arg(&root))?;
        // The next download is another.
        fs::remove_file(&deb).doing("cannot remove the download")?;
        Ok(root)
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
        if let Some(architecture) = self.architecture {
            for key in ["APT::Architecture", "APT::Architectures"] {
                command.arg("-o").arg(format!("{key}={architecture}"));
            }
        }
        command
    }

    /// Runs an apt program; its output is kept in a log, and an error is its first `E:` line.
    pub(super) fn quiet(&self, command: &mut Command) -> Outcome<String> {
        let result = process::output(command)?;
        let text = [&result.stdout[..], &result.stderr[..]].concat();
        workspace::write(&self.folder.join("log"), &text)?;
        if result.status.success() {
            return Ok(String::from_utf8_lossy(&result.stdout).into_owned());
        }
        let text = String::from_utf8_lossy(&text).into_owned();
        let error = text.lines().find(|line| line.starts_with("E:")).unwrap_or("no error message");
        Err(Failure::failed(format!("apt: {}", error.trim_start_matches("E:").trim())))
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
