//! Where things are: the workspace and the folders that xtask writes.

use std::path::{Path, PathBuf};
use std::{env, fs};

use crate::failure::{Doing, Outcome};

/// The target of the EL2 image and of the guests.
pub(crate) const BARE_TARGET: &str = "aarch64-unknown-none-softfloat";

/// The workspace's root folder.
pub(crate) fn root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_path_buf()
}

/// Cargo's target folder: `CARGO_TARGET_DIR`, or `target`.
pub(crate) fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => root().join(folder),
        None => root().join("target"),
    }
}

/// Where the bare-metal builds keep their intermediate files.
pub(crate) fn bare() -> PathBuf {
    target().join("bare")
}

/// Where results go: `target/pavo`.
pub(crate) fn pavo() -> PathBuf {
    target().join("pavo")
}

/// The EL2 image with symbols and defmt strings.
pub(crate) fn pavo_elf() -> PathBuf {
    pavo().join("pavo.elf")
}

/// The EL2 image for bootloaders.
pub(crate) fn pavo_img() -> PathBuf {
    pavo().join("pavo.img")
}

/// The image of a guest of this workspace.
pub(crate) fn guest_img(name: &str) -> PathBuf {
    pavo().join("guests").join(format!("{name}.img"))
}

/// Makes a folder with its parents.
pub(crate) fn make_folder(folder: &Path) -> Outcome<()> {
    fs::create_dir_all(folder).doing(format_args!("cannot make the folder {}", folder.display()))
}

/// Reads a file.
pub(crate) fn read(file: &Path) -> Outcome<Vec<u8>> {
    fs::read(file).doing(format_args!("cannot read {}", file.display()))
}

/// Writes a file, making its folder.
pub(crate) fn write(file: &Path, bytes: &[u8]) -> Outcome<()> {
    if let Some(folder) = file.parent() {
        make_folder(folder)?;
    }
    fs::write(file, bytes).doing(format_args!("cannot write {}", file.display()))
}
