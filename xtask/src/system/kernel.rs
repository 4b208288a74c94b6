//! A domain's kernel: what the key `kernel` names, and the image it stands for.
use std::path::{Path, PathBuf};

use super::Checking;
use crate::failure::{Doing, Failure, Outcome};
use crate::{setup, workspace};

/// A kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kernel {
    /// A guest of this workspace, by name: a file once it is built.
    Guest(String),
    /// An arm64 image.
    File(PathBuf),
    /// Debian's Linux, fetched when it is needed.
    Linux,
}

impl Kernel {
    /// Where its image is.
    pub(crate) fn path(&self) -> Outcome<PathBuf> {
        Ok(match self {
            Self::Guest(name) => workspace::guest_img(name),
            Self::File(path) => path.clone(),
            Self::Linux => setup::linux()?.kernel,
        })
    }
}

/// Reads a `kernel` key.
pub(super) fn read_kernel(text: &str, folder: &Path) -> Result<Kernel, String> {
    if let Some(name) = text.strip_prefix("guest:") {
        let guests = crate::build::guest_names().map_err(|failure| failure.to_string())?;
        if guests.contains(name) {
            return Ok(Kernel::Guest(name.to_owned()));
        }
        let nearest = guests.iter().min_by_key(|guest| strsim::damerau_levenshtein(guest, name));
        return Err(match nearest {
            Some(guest) => format!("this workspace has no guest \"{name}\", did you mean \"{guest}\"?"),
            None => format!("this workspace has no guest \"{name}\""),
        });
    }
    if text == "debian:linux" {
        return Ok(Kernel::Linux);
    }
    let path = folder.join(text);
    if path.is_file() {
        return Ok(Kernel::File(path));
    }
    let missing = format!("{} does not exist", path.display());
    match crate::build::guest_names() {
        Ok(guests) if guests.contains(text) => Err(format!("{missing}, did you mean \"guest:{text}\"?")),
        Ok(_) | Err(_) => Err(format!("{missing}; a guest of this workspace is \"guest:NAME\"")),
    }
}

/// A kernel's image: the file, unpacked if it is gzip, checked to be an arm64 image.
pub(crate) fn kernel_image(path: &Path, checking: Checking) -> Outcome<Vec<u8>> {
    let mut bytes = workspace::read(path)?;
    if bytes.starts_with(&[0x1f, 0x8b]) {
        let mut unpacked = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::MultiGzDecoder::new(&bytes[..]), &mut unpacked)
            .doing(format_args!("{}: damaged gzip file", path.display()))?;
        bytes = unpacked;
    }
    if checking == Checking::Full && !crate::image::has_arm64_header(&bytes) {
        let text = "not an arm64 Image (no \"ARM\\x64\" at byte 56); give an uncompressed or gzip `Image`";
        return Err(Failure::usage(format!("{}: {text}", path.display())));
    }
    Ok(bytes)
}
