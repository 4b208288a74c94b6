//! QEMU: the machine's own if it is recent, otherwise installed by apt from the release's backports.

use std::env;
use std::fmt;
use std::path::PathBuf;
use std::process::Command;

use super::announce;
use super::apt::Apt;
use crate::failure::{Failure, Outcome};
use crate::system::Board;
use crate::{process, workspace};

/// The program's name.
const PROGRAM: &str = "qemu-system-aarch64";
/// The first version that has every board.
const WANTED: (u32, u32) = (9, 0);
/// The first version that is known to run `virt` with what we pass.
const ENOUGH: (u32, u32) = (7, 2);

/// A QEMU that can run Pavo.
#[derive(Debug, Clone)]
pub(crate) struct Qemu {
    /// What to start.
    pub(crate) program: PathBuf,
    /// Major and minor version.
    version: (u32, u32),
}

impl Qemu {
    /// Whether it knows the Raspberry Pi 4.
    pub(crate) fn has_rpi4(&self) -> bool {
        self.version >= WANTED
    }

    /// Fails when it does not know a board.
    pub(crate) fn check(&self, board: Board) -> Outcome<()> {
        match board {
            Board::Rpi4 if !self.has_rpi4() => {
                let (major, minor) = self.version;
                let found = format!("found {major}.{minor} ({})", self.program.display());
                let what = format!("board rpi4 needs QEMU {}.{} or later, {found}", WANTED.0, WANTED.1);
                Err(Failure::usage(format!("{what}: install a newer one, or name it by PAVO_QEMU")))
            }
            Board::Rpi4 | Board::Virt => Ok(()),
        }
    }
}

impl fmt::Display for Qemu {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.version;
        write!(out, "{major}.{minor} ({})", self.program.display())?;
        if self.version < WANTED { out.write_str(", board virt only: rpi4 needs 9.0") } else { Ok(()) }
    }
}

/// Finds or installs QEMU.
pub(crate) fn qemu() -> Outcome<Qemu> {
    if let Some(program) = env::var_os("PAVO_QEMU") {
        return found(PathBuf::from(program)).ok_or_else(|| {
            Failure::usage(format!("PAVO_QEMU does not name a {PROGRAM} that runs: correct it, or unset it"))
        });
    }
    let own = found(PathBuf::from(PROGRAM));
    if let Some(qemu) = own.as_ref().filter(|qemu| qemu.version >= WANTED) {
        return Ok(qemu.clone());
    }
    let tried = workspace::pavo().join("setup/qemu-tried");
    let enough = own.as_ref().is_some_and(|qemu| qemu.version >= ENOUGH);
    let installed = if (tried.exists() && enough) || !process::exists("apt-get") || !is_root() {
        None
    } else {
        let result = install();
        workspace::write(&tried, b"A newer QEMU was looked for; remove this file to look again.\n")?;
        if let Err(failure) = result {
            announce(&failure.to_string());
        }
        found(PathBuf::from(PROGRAM))
    };
    installed.or(own).filter(|qemu| qemu.version >= ENOUGH).ok_or_else(|| Failure::usage(missing()))
}

/// What to do where nothing could be installed.
fn missing() -> String {
    let what = format!("{PROGRAM} {}.{} or later is missing", ENOUGH.0, ENOUGH.1);
    if process::exists("apt-get") {
        let sudo = if is_root() { "" } else { "sudo " };
        let install = "apt-get install -y --no-install-recommends qemu-system-arm";
        // A machine that was just made may have no lists of packages.
        format!("{what}: type `{sudo}apt-get update && {sudo}{install}`")
    } else {
        format!("{what}: install it with your package manager, or set PAVO_QEMU to the program's path")
    }
}

/// The version of a QEMU that starts.
fn found(program: PathBuf) -> Option<Qemu> {
    let text = process::quiet(Command::new(&program).arg("--version")).ok()?;
    Some(Qemu { program, version: version(&text)? })
}

/// Reads `QEMU emulator version 10.0.2 (...)`.
fn version(text: &str) -> Option<(u32, u32)> {
    let (_, rest) = text.lines().next()?.split_once("version ")?;
    let mut numbers = rest.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Whether packages can be installed without asking.
fn is_root() -> bool {
    process::quiet(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0")
}

/// Installs from backports, or else what the release has.
fn install() -> Outcome<()> {
    let package = "qemu-system-arm";
    let words = ["install", "-y", "--no-install-recommends"];
    announce(&format!("installing {package} from the release's backports (apt, about 60 MB)"));
    let newer = Apt::with_suites("qemu", |codename| vec![format!("{codename}-backports")]).and_then(|apt| {
        let suite = format!("{}-backports", apt.codename);
        apt.quiet(apt.command("apt-get").args(words).args(["-t", &suite, package]))
    });
    let Err(failure) = newer else { return Ok(()) };
    announce(&format!("backports did not work ({failure}); installing the release's own {package}"));
    let apt = Apt::with_suites("qemu-release", |_| Vec::new())?;
    apt.quiet(apt.command("apt-get").args(words).arg(package)).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_version_lines_are_read() {
        let line =
            "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)\nCopyright (c) 2003-2025\n";
        assert_eq!(version(line), Some((10, 0)));
        assert_eq!(version("QEMU emulator version 7.2.15 (Debian)"), Some((7, 2)));
        assert_eq!(version("something else"), None);
    }

    #[test]
    fn a_board_that_is_too_new_for_it_is_told_with_both_versions() {
        let old = Qemu { program: PROGRAM.into(), version: (7, 2) };
        assert_eq!(old.check(Board::Virt), Ok(()));
        assert_eq!(
            old.check(Board::Rpi4).unwrap_err().to_string(),
            "board rpi4 needs QEMU 9.0 or later, found 7.2 (qemu-system-aarch64): \
             install a newer one, or name it by PAVO_QEMU"
        );
        assert_eq!(Qemu { version: WANTED, ..old }.check(Board::Rpi4), Ok(()));
    }
}
