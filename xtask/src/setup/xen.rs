//! Debian's Xen for arm64, to compare with: downloaded and unpacked, never installed.

use std::path::PathBuf;

use super::announce;
use super::apt::Apt;
use crate::failure::{Failure, Outcome};
use crate::process;
use crate::workspace;

/// The release that Pavo's interface follows.
const PACKAGE: &str = "xen-hypervisor-4.20-arm64";
/// The Debian release that has it.
const SUITE: &str = "trixie";
/// Where the package has the image, which is an arm64 image.
const IMAGE: &str = "boot/xen-4.20-arm64";

/// A Xen that can be booted.
#[derive(Debug, Clone)]
pub(crate) struct Xen {
    /// Its image.
    pub(crate) image: PathBuf,
}

/// Finds or fetches Xen. Nothing is installed, so no rights are needed.
pub(crate) fn xen() -> Outcome<Xen> {
    let image = workspace::pavo().join("xen").join(IMAGE);
    if !image.is_file() {
        if !process::exists("apt-get") {
            return Err(Failure::failed("apt is not installed"));
        }
        announce(&format!("downloading {PACKAGE} from Debian {SUITE} (apt, 1 MB and package lists)"));
        let root = Apt::foreign("xen", SUITE, "arm64")?.unpack(PACKAGE)?;
        workspace::write(&image, &workspace::read(&root.join(IMAGE))?)?;
    }
    Ok(Xen { image })
}
