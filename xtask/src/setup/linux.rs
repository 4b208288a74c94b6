//! Debian's Linux for arm64 as a guest, and a user space of one static program for it: downloaded and unpacked, never installed.

use std::fs;
use std::path::{Path, PathBuf};

use super::announce;
use super::apt::Apt;
use crate::failure::{Doing, Failure, Outcome};
use crate::process;
use crate::workspace;

/// Names the kernel of the release.
const META: &str = "linux-image-arm64";
/// Has the whole user space.
const BUSYBOX: &str = "busybox-static";

/// The first program: says what it finds, takes each further CPU off and on again, and powers off.
const INIT: &str = "#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc; $b mount -t sysfs sys /sys; $b mount -t devtmpfs dev /dev
exec >/dev/kmsg 2>&1
echo \"user space: Linux $($b uname -r)\"
echo \"user space: hypervisor $($b cat /sys/hypervisor/type) $($b cat /sys/hypervisor/version/major).$($b cat /sys/hypervisor/version/minor)\"
cpus=$($b grep -c ^processor /proc/cpuinfo)
echo \"user space: $cpus CPUs\"
n=1
while [ $n -lt $cpus ]; do
  echo 0 >/sys/devices/system/cpu/cpu$n/online && echo 1 >/sys/devices/system/cpu/cpu$n/online || echo \"user space: CPU $n fails\"
  n=$((n+1))
done
echo \"user space: $($b grep -c ^processor /proc/cpuinfo) CPUs after each was off\"
$b sleep 1
$b dd if=/dev/zero of=/file bs=1M count=16 2>/dev/null
echo \"user space: sha256 $($b sha256sum /file | $b cut -c1-64)\"
echo 'user space: ends'
$b poweroff -f
";

/// A Linux that can be booted.
#[derive(Debug, Clone)]
pub(crate) struct Linux {
    /// Its kernel, an arm64 image.
    pub(crate) kernel: PathBuf,
    /// Its RAM disk.
    pub(crate) ramdisk: PathBuf,
}

/// Where they are, once fetched.
fn places() -> Linux {
    let folder = workspace::pavo().join("linux");
    Linux { kernel: folder.join("vmlinuz"), ramdisk: folder.join("initrd") }
}

/// Finds or fetches them. Nothing is installed, so no rights are needed.
pub(crate) fn linux() -> Outcome<Linux> {
    static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let linux = places();
    let busybox = linux.ramdisk.with_file_name("busybox");
    if !linux.kernel.is_file() || !busybox.is_file() {
        if !process::exists("apt-get") {
            return Err(Failure::usage("Debian's Linux cannot be fetched: apt is not installed"));
        }
        announce("downloading Debian's Linux and busybox for arm64 (apt, 60 MB and package lists)");
        fetch(&linux.kernel, &busybox)
            .map_err(|failure| Failure::usage(format!("Debian's Linux cannot be fetched: {failure}")))?;
    }
    // As this program says; written once, since others may be reading it.
    let archive = archive(&workspace::read(&busybox)?);
    if fs::read(&linux.ramdisk).ok().as_ref() != Some(&archive) {
        workspace::write(&linux.ramdisk, &archive)?;
    }
    Ok(linux)
}

fn fetch(kernel: &Path, busybox: &Path) -> Outcome<()> {
    let apt = Apt::foreign_of_release("linux", "arm64")?;
    let about = apt.quiet(apt.command("apt-cache").args(["show", "--no-all-versions", META]))?;
    let package = depends_on(&about).ok_or_else(|| Failure::failed(format!("{META} names no kernel")))?;
    let root = apt.unpack(BUSYBOX)?;
    workspace::write(
        busybox,
        &workspace::read(&root.join("bin/busybox"))
            .or_else(|_| workspace::read(&root.join("usr/bin/busybox")))?,
    )?;
    let root = apt.unpack(&package)?;
    let boot = fs::read_dir(root.join("boot")).doing("the kernel package has no /boot")?;
    let image = boot
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz")))
        .ok_or_else(|| Failure::failed("the kernel package has no vmlinuz"))?;
    workspace::write(kernel, &workspace::read(&image)?)?;
    // The modules take ten times as much.
    let _ = fs::remove_dir_all(&root);
    Ok(())
}

/// The kernel's package in what apt says of the one that names it.
fn depends_on(about: &str) -> Option<String> {
    let line = about.lines().find_map(|line| line.strip_prefix("Depends:"))?;
    let words = line.split([',', ' ', '|']);
    words.map(str::trim).find(|word| word.starts_with("linux-image-")).map(str::to_owned)
}

/// A RAM disk with that program and [`INIT`].
fn archive(busybox: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for folder in ["bin", "dev", "proc", "sys"] {
        entry(&mut bytes, folder, 0o040_755, &[]);
    }
    entry(&mut bytes, "bin/busybox", 0o100_755, busybox);
    entry(&mut bytes, "init", 0o100_755, INIT.as_bytes());
    entry(&mut bytes, "TRAILER!!!", 0, &[]);
    bytes
}

/// One file of an archive in the form `newc` (Linux `Documentation/driver-api/early-userspace/buffer-format.rst`): 13 fields of eight
/// hexadecimal digits, name and content, each padded to four bytes.
fn entry(bytes: &mut Vec<u8>, name: &str, mode: usize, content: &[u8]) {
    let number = bytes.len();
    // inode, mode, uid, gid, links, time, size, device (two), special (two), bytes of the name, check.
    let fields = [number, mode, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
    bytes.extend(b"070701");
    bytes.extend(fields.iter().flat_map(|field| format!("{field:08x}").into_bytes()));
    bytes.extend(name.bytes().chain([0]));
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_found_in_what_apt_says() {
        let about = "Package: linux-image-arm64\nVersion: 6.1\nDepends: linux-image-6.1.0-56-arm64 (= 6.1.192-2)\nSection: kernel\n";
        assert_eq!(depends_on(about).as_deref(), Some("linux-image-6.1.0-56-arm64"));
        assert_eq!(depends_on("Package: x\n"), None);
    }

    #[test]
    fn an_archive_has_its_entries_at_multiples_of_four() {
        let bytes = archive(b"program");
        let heads: Vec<usize> =
            bytes.windows(6).enumerate().filter(|(_, six)| six == b"070701").map(|(at, _)| at).collect();
        assert_eq!(heads.len(), 7);
        assert!(heads.iter().all(|at| at % 4 == 0));
        // c_filesize is the seventh field, c_namesize the twelfth.
        let field = |at: usize, n: usize| {
            let digits = std::str::from_utf8(&bytes[at + 6 + 8 * n..at + 14 + 8 * n]).unwrap();
            usize::from_str_radix(digits, 16).unwrap()
        };
        let program = heads[4];
        assert_eq!((field(program, 6), field(program, 11)), (7, "bin/busybox".len() + 1));
        let name = program + 110;
        let content = (name + field(program, 11)).next_multiple_of(4);
        assert_eq!(&bytes[content..content + 7], b"program");
    }
}
