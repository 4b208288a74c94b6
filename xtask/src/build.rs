//! `cargo xtask build`: the EL2 image and the guests, into `target/pavo`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use crate::failure::{Doing, Failure, Outcome};
use crate::setup::{self, Toolchain};
use crate::{image, process, workspace};

/// Builds everything and prints the sizes.
pub(crate) fn command() -> Outcome<()> {
    some(&setup::toolchain()?, &guest_names()?)?;
    let size = workspace::read(&workspace::pavo_img())?.len();
    println!("{}  {} KiB", workspace::pavo_img().display(), size.div_ceil(1024));
    for name in guest_names()? {
        let file = workspace::guest_img(&name);
        println!("{}  {} KiB", file.display(), workspace::read(&file)?.len().div_ceil(1024));
    }
    Ok(())
}

/// Guests keep frame pointers: by them the hypervisor tells who called whom in one that has crashed. This target's default is to use x29 as any register.
const FRAME_POINTERS: &str =
    "target.aarch64-unknown-none-softfloat.rustflags=[\"-Cforce-frame-pointers=yes\"]";

/// What this process built. Nothing is built twice in a test run: all its steps see the same images.
static DONE: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Builds the EL2 image.
pub(crate) fn hypervisor(toolchain: &Toolchain) -> Outcome<()> {
    some(toolchain, &BTreeSet::new())
}

/// An EL2 image for tests: the shipped one with a feature of the hypervisor's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Variant {
    /// It checks its tables when it is asked to.
    SelfCheck,
    /// It checks no roles of paravirtual page tables.
    OneWall,
}

/// Builds such an image. Returns where it is, with symbols; the flat one is beside it.
pub(crate) fn variant(toolchain: &Toolchain, variant: Variant) -> Outcome<PathBuf> {
    let feature = match variant {
        Variant::SelfCheck => "selfcheck",
        Variant::OneWall => "one-wall",
    };
    let elf = workspace::pavo().join(format!("pavo-{feature}.elf"));
    let name = format!("+{feature}");
    let mut done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
    if !done.contains(&name) {
        let features = format!("image,{feature}");
        let words = ["-p", "hypervisor", "--bin", "pavo", "--features", &features];
        cargo(toolchain, &words, &format!("building the EL2 image, {feature}"))?;
        publish(&linked("pavo"), &elf, &elf.with_extension("img"))?;
        done.insert(name);
    }
    Ok(elf)
}

/// Builds the EL2 image and some guests.
pub(crate) fn some(toolchain: &Toolchain, guests: &BTreeSet<String>) -> Outcome<()> {
    let mut done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
    if !done.contains("") {
        let words = ["-p", "hypervisor", "--bin", "pavo", "--features", "image"];
        cargo(toolchain, &words, "building the EL2 image")?;
        publish(&linked("pavo"), &workspace::pavo_elf(), &workspace::pavo_img())?;
        done.insert(String::new());
    }
    let guests: Vec<_> = guests.iter().filter(|name| !done.contains(*name)).cloned().collect();
    if guests.is_empty() {
        return Ok(());
    }
    let mut words = vec!["--config", FRAME_POINTERS, "-p", "guest-kernel", "--features", "guest"];
    words.extend(guests.iter().flat_map(|name| ["--bin", name.as_str()]));
    cargo(toolchain, &words, &format!("building the guests {}", guests.join(", ")))?;
    for name in guests {
        let img = workspace::guest_img(&name);
        publish(&linked(&name), &img.with_extension("elf"), &img)?;
        done.insert(name);
    }
    Ok(())
}

/// What cargo links.
fn linked(name: &str) -> PathBuf {
    workspace::bare().join(workspace::BARE_TARGET).join("release").join(name)
}

/// The guests of this workspace: one file each in `guest-kernel/src/bin`.
pub(crate) fn guest_names() -> Outcome<BTreeSet<String>> {
    let folder = workspace::root().join("guest-kernel/src/bin");
    let Ok(entries) = fs::read_dir(&folder) else { return Ok(BTreeSet::new()) };
    let mut names = BTreeSet::new();
    for entry in entries {
        let path = entry.doing(format_args!("cannot list {}", folder.display()))?.path();
        if path.extension().is_some_and(|extension| extension == "rs")
            && let Some(stem) = path.file_stem()
        {
            names.insert(stem.to_string_lossy().into_owned());
        }
    }
    Ok(names)
}

/// One release build for the bare-metal target. It has a target folder of its own: the cargo that started xtask may
/// hold the lock of the other.
fn cargo(toolchain: &Toolchain, what: &[&str], doing: &str) -> Outcome<()> {
    let mut command = Command::new("cargo");
    command.current_dir(workspace::root()).args([
        "build",
        "--quiet",
        "--release",
        "--target",
        workspace::BARE_TARGET,
    ]);
    command.arg("--target-dir").arg(workspace::bare()).args(what);
    toolchain.apply(&mut command);
    process::run(&mut command, doing)
}

/// Copies a linked file to its place, beside its flat image.
fn publish(linked: &Path, elf: &Path, img: &Path) -> Outcome<()> {
    let bytes = workspace::read(linked)?;
    let flat = image::flatten(&bytes)
        .map_err(|failure| Failure::failed(format!("{}: {failure}", linked.display())))?;
    if !image::has_arm64_header(&flat) {
        return Err(Failure::failed(format!(
            "{}: no arm64 image header at its start; check the linker script's section order",
            linked.display()
        )));
    }
    workspace::write(elf, &bytes)?;
    workspace::write(img, &flat)
}
