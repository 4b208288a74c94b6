//! The Raspberry Pi 4's device tree, as Debian's kernel for arm64 has it: downloaded and unpacked, never installed.

use std::path::PathBuf;
use std::{env, fs};

use super::announce;
use super::apt::Apt;
use crate::failure::{Doing, Failure, Outcome};
use crate::{process, workspace};

/// Depends on the package of the release's kernel.
const META: &str = "linux-image-arm64";
/// The board's tree, in its folder of that package.
const TREE: &str = "broadcom/bcm2711-rpi-4-b.dtb";

/// Finds or fetches the tree. Nothing is installed, so no rights are needed.
pub(crate) fn board_tree() -> Outcome<Vec<u8>> {
    if let Some(file) = env::var_os("PAVO_RPI4_DTB") {
        return workspace::read(&PathBuf::from(file))
            .map_err(|failure| Failure::usage(format!("PAVO_RPI4_DTB: {failure}: correct it, or unset it")));
    }
    let kept = workspace::pavo().join("rpi4/bcm2711-rpi-4-b.dtb");
    if !kept.is_file() {
        let bytes = fetch().map_err(|failure| {
            Failure::failed(format!(
                "the Raspberry Pi 4's device tree cannot be had ({failure}): set PAVO_RPI4_DTB to a bcm2711-rpi-4-b.dtb"
            ))
        })?;
        workspace::write(&kept, &bytes)?;
    }
    workspace::read(&kept)
}

fn fetch() -> Outcome<Vec<u8>> {
    if !process::exists("apt-get") {
        return Err(Failure::failed("apt is not installed"));
    }
    announce(&format!(
        "downloading {META} from Debian for the Raspberry Pi 4's device tree (apt, 60 MB and package lists)"
    ));
    let apt = Apt::foreign_of_release("board", "arm64")?;
    let listed = apt.quiet(apt.command("apt-cache").args(["depends", META]))?;
    let package = listed
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"))
        .ok_or_else(|| Failure::failed(format!("{META} depends on no kernel")))?
        .to_owned();
    let root = apt.unpack(&package)?;
    let folders = fs::read_dir(root.join("usr/lib")).doing("the package has no usr/lib")?;
    let found = folders.flatten().map(|entry| entry.path().join(TREE)).find(|path| path.is_file());
    let bytes = workspace::read(&found.ok_or_else(|| Failure::failed(format!("{package} has no {TREE}")))?)?;
    // The rest of it is 300 MB that nobody needs.
    apt.discard();
    Ok(bytes)
}
