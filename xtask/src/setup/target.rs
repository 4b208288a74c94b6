//! The standard library for the bare-metal target: probed by compiling, added by rustup, or built from Debian's source.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use super::{announce, debian_rust};
use crate::failure::{Failure, Outcome};
use crate::process;
use crate::workspace::{self, BARE_TARGET};

/// A Rust toolchain that compiles for the bare-metal target.
#[derive(Debug, Clone)]
pub(crate) struct Toolchain {
    /// A sysroot of our own, where the toolchain's lacks the target.
    sysroot: Option<PathBuf>,
}

impl Toolchain {
    /// Makes a cargo command use this toolchain. The flags go to the target only, not to build scripts.
    pub(crate) fn apply(&self, command: &mut Command) {
        if let Some(sysroot) = &self.sysroot {
            let flag = format!("--sysroot={}", sysroot.display());
            // Where the user set RUSTFLAGS, cargo looks nowhere else.
            match std::env::var("RUSTFLAGS") {
                Ok(own) => command.env("RUSTFLAGS", format!("{own} {flag}")),
                Err(_) => command.env("CARGO_TARGET_AARCH64_UNKNOWN_NONE_SOFTFLOAT_RUSTFLAGS", flag),
            };
        }
    }

    /// A `rustc` command for the bare-metal target.
    pub(crate) fn rustc(&self) -> Command {
        let mut command = Command::new("rustc");
        command.current_dir(workspace::root()).args(["--target", BARE_TARGET, "--edition", "2024"]);
        if let Some(sysroot) = &self.sysroot {
            command.arg("--sysroot").arg(sysroot);
        }
        command
    }

    /// Whether an empty `no_std` crate compiles.
    fn works(&self) -> Outcome<bool> {
        let folder = workspace::pavo().join("setup");
        let source = folder.join("probe.rs");
        workspace::write(&source, b"#![no_std]\nextern crate alloc;\n")?;
        let mut command = self.rustc();
        command.args(["--crate-type", "rlib", "--out-dir"]).arg(&folder).arg(&source);
        Ok(process::output(&mut command)?.status.success())
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.sysroot {
            None => write!(out, "{BARE_TARGET}"),
            Some(sysroot) => write!(out, "{BARE_TARGET} in {}", sysroot.display()),
        }
    }
}

/// Finds or makes a toolchain for the bare-metal target, once in a process: test steps ask at one time.
pub(crate) fn toolchain() -> Outcome<Toolchain> {
    static FOUND: Mutex<Option<Toolchain>> = Mutex::new(None);
    let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(toolchain) = &*found {
        return Ok(toolchain.clone());
    }
    let toolchain = find()?;
    *found = Some(toolchain.clone());
    Ok(toolchain)
}

fn find() -> Outcome<Toolchain> {
    let own = Toolchain { sysroot: None };
    if own.works()? {
        return Ok(own);
    }
    let sysroot = workspace::pavo().join("sysroot");
    let private = Toolchain { sysroot: Some(sysroot.clone()) };
    if sysroot.is_dir() && private.works()? {
        return Ok(private);
    }
    let refused = match add_by_rustup(&own) {
        Ok(()) => return Ok(own),
        Err(failure) => failure,
    };
    build_from_debian(&sysroot).map_err(|failure| {
        Failure::usage(format!(
            "the Rust target {BARE_TARGET} is missing ({refused}; {failure}): type `rustup target add {BARE_TARGET}`"
        ))
    })?;
    if private.works()? {
        return Ok(private);
    }
    Err(Failure::usage(format!(
        "the sysroot built in {} does not compile: type `rustup target add {BARE_TARGET}`",
        sysroot.display()
    )))
}

/// The usual way.
fn add_by_rustup(own: &Toolchain) -> Outcome<()> {
    if !process::exists("rustup") {
        return Err(Failure::failed("rustup is not installed"));
    }
    announce(&format!("adding the Rust target {BARE_TARGET} (rustup target add)"));
    process::quiet(Command::new("rustup").current_dir(workspace::root()).args([
        "target",
        "add",
        BARE_TARGET,
    ]))?;
    if own.works()? {
        Ok(())
    } else {
        Err(Failure::failed("rustup added the target, but it does not compile"))
    }
}

/// Where rustup is refused.
fn build_from_debian(sysroot: &Path) -> Outcome<()> {
    announce(&format!("building the Rust target {BARE_TARGET} from Debian's rust-src package"));
    debian_rust::build(sysroot)
}
