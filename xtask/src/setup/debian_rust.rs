//! The bare-metal target from Debian's `rust-src` package, for machines where rustup is refused.
//!
//! The package carries the standard library's source of exactly one release; the suites below hold several. The result
//! is a private sysroot: copied into the toolchain it would collide with a later `rustup target add`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::apt::Apt;
use crate::failure::{Doing, Failure, Outcome};
use crate::workspace::BARE_TARGET;
use crate::{process, workspace};

/// Suites that are looked at beside the release's own.
const SUITES: [&str; 3] = ["trixie", "trixie-backports", "sid"];

/// Builds `core`, `alloc` and `compiler_builtins` into `sysroot`.
pub(super) fn build(sysroot: &Path) -> Outcome<()> {
    if !process::exists("apt-get") {
        return Err(Failure::failed("apt is not installed"));
    }
    let release = rust_release()?;
    let library = fetch(&release)?;
    let folder = workspace::pavo().join("setup/std");
    let shadow = folder.join("sysroot");
    make_shadow(&shadow, &library)?;
    workspace::write(
        &folder.join("Cargo.toml"),
        b"[package]\nname = \"empty\"\nedition = \"2024\"\n[workspace]\n",
    )?;
    workspace::write(&folder.join("src/lib.rs"), b"#![no_std]\n")?;
    let mut cargo = Command::new("cargo");
    cargo
        .current_dir(&folder)
        .env("RUSTC_BOOTSTRAP", "1")
        // The images are linked as a whole: without bitcode these libraries could not be part of it.
        .env("RUSTFLAGS", format!("--sysroot={} -Cembed-bitcode=yes", shadow.display()));
    cargo.env("__CARGO_TESTS_ONLY_SRC_ROOT", shadow.join("lib/rustlib/src/rust/library"));
    cargo
        .args(["build", "--quiet", "--release", "--target", BARE_TARGET, "--target-dir"])
        .arg(folder.join("out"));
    cargo.args(["-Zbuild-std=core,alloc,compiler_builtins", "-Zbuild-std-features=compiler-builtins-mem"]);
    process::quiet(&mut cargo)?;
    let libraries = sysroot.join("lib/rustlib").join(BARE_TARGET).join("lib");
    workspace::make_folder(&libraries)?;
    let built = folder.join("out").join(BARE_TARGET).join("release/deps");
    for file in fs::read_dir(&built).doing(format_args!("cannot list {}", built.display()))?.flatten() {
        let name = file.file_name().to_string_lossy().into_owned();
        let is_library = file.path().extension().is_some_and(|extension| extension == "rlib");
        if is_library && !name.starts_with("libempty") {
            fs::copy(file.path(), libraries.join(&name)).doing(format_args!("cannot copy {name}"))?;
        }
    }
    Ok(())
}

/// The compiler's release, such as `1.95.0`.
fn rust_release() -> Outcome<String> {
    let text = process::quiet(Command::new("rustc").current_dir(workspace::root()).arg("-vV"))?;
    text.lines()
        .find_map(|line| line.strip_prefix("release: "))
        .map(str::to_owned)
        .ok_or_else(|| Failure::failed("`rustc -vV` names no release"))
}

/// Downloads and unpacks the package for a release; the folder of its `library`.
fn fetch(release: &str) -> Outcome<PathBuf> {
    let mut last = Failure::failed("no suite was tried");
    for suite in SUITES {
        let found = Apt::with_suites(&format!("rust-{suite}"), |_| vec![suite.to_owned()])
            .and_then(|apt| unpack(&apt, release));
        match found {
            Ok(library) => return Ok(library),
            Err(failure) => last = failure,
        }
    }
    Err(last)
}

/// Looks for the release in one suite.
fn unpack(apt: &Apt, release: &str) -> Outcome<PathBuf> {
    let listed = apt.quiet(apt.command("apt-cache").args(["madison", "rust-src"]))?;
    let version = listed
        .lines()
        .filter_map(|line| line.split('|').nth(1).map(str::trim))
        .find(|version| version.starts_with(&format!("{release}+")))
        .ok_or_else(|| Failure::failed(format!("Debian has no rust-src {release}")))?;
    let root = apt.unpack(&format!("rust-src={version}"))?;
    let sources = root.join("usr/src");
    fs::read_dir(&sources)
        .doing("the package has no usr/src")?
        .flatten()
        .map(|entry| entry.path().join("library"))
        .find(|library| library.join("core").is_dir())
        .ok_or_else(|| Failure::failed("the package has no library/core"))
}

/// A sysroot that is the toolchain's, except for the library's source.
fn make_shadow(shadow: &Path, library: &Path) -> Outcome<()> {
    let own =
        process::quiet(Command::new("rustc").current_dir(workspace::root()).args(["--print", "sysroot"]))?;
    let source = shadow.join("lib/rustlib/src/rust");
    workspace::make_folder(&source)?;
    process::quiet(Command::new("ln").args(["-sfn"]).arg(library).arg(source.join("library")))?;
    let own_rustlib = Path::new(own.trim()).join("lib/rustlib");
    for entry in fs::read_dir(&own_rustlib).doing("cannot list the toolchain")?.flatten() {
        if entry.file_name() != "src" {
            let link = shadow.join("lib/rustlib").join(entry.file_name());
            process::quiet(Command::new("ln").args(["-sfn"]).arg(entry.path()).arg(link))?;
        }
    }
    Ok(())
}
