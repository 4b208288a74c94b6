//! `cargo xtask image`: the folder, the image of the card, and what is said of files that are not ours.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::step::{Level, Step};
use crate::check::Found;
use crate::failure::{Doing, Failure, Outcome};
use crate::{fdt, process, rpi4, workspace};

/// Two files of the firmware, in the place of the real ones.
const FIRMWARE: [&str; 2] = ["start4.elf", "fixup4.dat"];

/// Runs the command; its status, and what it says on either stream: last what matters.
fn image(words: &[&Path]) -> Outcome<(Option<i32>, String)> {
    let program = std::env::current_exe().doing("xtask's own path")?;
    let mut command = Command::new(program);
    command.args(["image", "--board", "rpi4"]).args(words);
    let result = process::output(&mut command)?;
    let mut streams = [result.stderr, result.stdout];
    if !result.status.success() {
        streams.reverse();
    }
    let text = streams.concat();
    Ok((result.status.code(), String::from_utf8_lossy(&text).into_owned()))
}

/// A folder of a step, empty.
fn folder(name: &str) -> Outcome<PathBuf> {
    let folder = workspace::pavo().join("test").join(name);
    let _ = fs::remove_dir_all(&folder);
    workspace::make_folder(&folder)?;
    Ok(folder)
}

fn wrong(why: &str, said: &str) -> Failure {
    Failure::Shown { text: why.into(), lines: said.lines().map(str::to_owned).collect() }
}

/// All files below a folder, by their paths in it.
fn files(folder: &Path) -> Outcome<BTreeMap<String, Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).doing("a folder of the card")?.flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).doing("a file of the card")?;
                found.insert(name.display().to_string(), workspace::read(&path)?);
            }
        }
    }
    Ok(found)
}

/// Without the firmware every file of it is named, with the package that has it; nothing else is missing.
fn without_firmware() -> Outcome<Found> {
    let out = folder("card-bare")?;
    let (status, said) = image(&["--out".as_ref(), &out])?;
    let last = said.lines().last().unwrap_or_default();
    let named =
        last.starts_with("missing: start4.elf, fixup4.dat: ") && last.contains("package raspi-firmware ");
    if status != Some(0) || !named || said.matches("missing:").count() != 1 {
        return Err(wrong("the missing files are not named", &said));
    }
    let expected = ["bcm2711-rpi-4-b.dtb", "config.txt", "guests.bin", "kernel8.img", "overlays/pavo.dtbo"]
        .map(str::to_owned);
    let found: Vec<_> = files(&out)?.into_keys().collect();
    if found == expected {
        Ok(Found::Good(String::new()))
    } else {
        Err(wrong("the card's files", &found.join("\n")))
    }
}

/// With it the card is complete, and the image of the card holds what the folder holds, byte for byte.
fn complete() -> Outcome<Found> {
    let (out, given) = (folder("card-full")?, folder("firmware")?);
    for name in FIRMWARE {
        workspace::write(&given.join(name), format!("not the real {name}").as_bytes())?;
    }
    let card = out.with_extension("img");
    let words = ["--out".as_ref(), &*out, "--firmware".as_ref(), &*given, "--sd".as_ref(), &*card];
    let (status, said) = image(&words)?;
    if status != Some(0) || !said.lines().last().is_some_and(|line| line.starts_with("complete: ")) {
        return Err(wrong("the card is not complete", &said));
    }
    let (kept, written) = (files(&out)?, rpi4::read_card(workspace::read(&card)?)?);
    if FIRMWARE.iter().all(|name| kept.contains_key(*name)) && kept == written {
        Ok(Found::Good(format!("{} files", kept.len())))
    } else {
        Err(wrong("folder and image of the card differ", &said))
    }
}

/// The image's file system keeps to the format in the eyes of Debian's checker too.
fn checked() -> Outcome<Found> {
    if !process::exists("fsck.fat") {
        return Ok(Found::Skipped("fsck.fat is not installed (Debian's package dosfstools)".into()));
    }
    let (out, given) = (folder("card-checked")?, folder("firmware-checked")?);
    for name in FIRMWARE {
        workspace::write(&given.join(name), b"not the real one")?;
    }
    let card = out.with_extension("img");
    let words = ["--out".as_ref(), &*out, "--firmware".as_ref(), &*given, "--sd".as_ref(), &*card];
    image(&words)?;
    // The partition starts at 1 MiB.
    let partition = workspace::read(&card)?.split_off(1 << 20);
    let file = out.with_extension("partition");
    workspace::write(&file, &partition)?;
    let result = process::output(Command::new("fsck.fat").arg("-n").arg(&file))?;
    let said = String::from_utf8_lossy(&result.stdout).into_owned();
    // Its version, and how many files and clusters there are.
    if result.status.success() && said.lines().count() == 2 {
        Ok(Found::Good(String::new()))
    } else {
        Err(wrong("fsck.fat finds something to mend", &said))
    }
}

/// libfdt, which the firmware merges with, makes of board's tree and overlay the domains in the order of the file: their numbers hang on it.
fn merged() -> Outcome<Found> {
    if !process::exists("fdtoverlay") {
        return Ok(Found::Skipped(
            "fdtoverlay is not installed (Debian's package device-tree-compiler)".into(),
        ));
    }
    let out = folder("card-merged")?;
    let (_, said) = image(&["--out".as_ref(), &out])?;
    let tree = out.join("merged.dtb");
    let mut command = Command::new("fdtoverlay");
    command.arg("-i").arg(out.join("bcm2711-rpi-4-b.dtb")).arg("-o").arg(&tree);
    process::quiet(command.arg(out.join("overlays/pavo.dtbo")))?;
    let tree = fdt::parse(&workspace::read(&tree)?)?;
    let chosen = tree.at_path("/chosen").ok_or_else(|| wrong("no /chosen", &said))?;
    let found: Vec<_> = chosen.children.iter().filter_map(|node| node.text("pavo,name")).collect();
    if found == ["sender", "receiver"] {
        Ok(Found::Good(String::new()))
    } else {
        Err(wrong("the domains are in another order", &found.join("\n")))
    }
}

/// Byte of the image where it is told that its stub lets it set `CPUACTLR_EL1`: behind the header, the mark, an address and three words.
const MAY_SET: usize = 64 + 8 + 8 + 12;

/// Another stub is on the card, is named to the firmware, and the image keeps its hands off what that may not allow.
fn another_stub() -> Outcome<Found> {
    let (out, given) = (folder("card-stub")?, folder("stub")?.join("bl31.bin"));
    workspace::write(&given, b"not the real one")?;
    for (stub, may_set) in [(None, 1), (Some(&given), 0)] {
        let mut words: Vec<&Path> = vec!["--out".as_ref(), &out];
        words.extend(stub.iter().flat_map(|file| ["--armstub".as_ref(), file.as_path()]));
        let (status, said) = image(&words)?;
        let files = files(&out)?;
        let config = files.get("config.txt").map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        let named = config.is_some_and(|text| text.lines().any(|line| line == "armstub=bl31.bin"));
        let told = files.get("kernel8.img").and_then(|bytes| bytes.get(MAY_SET)) == Some(&may_set);
        let there = files.contains_key("bl31.bin");
        if status != Some(0) || !told || named != stub.is_some() || there != stub.is_some() {
            return Err(wrong("the card's stub is not as asked for", &said));
        }
    }
    Ok(Found::Good(String::new()))
}

/// A folder that lacks one is told with the file and the package, in one line and status 2.
fn incomplete() -> Outcome<Found> {
    let (out, given) = (folder("card-half")?, folder("half-a-firmware")?);
    workspace::write(&given.join(FIRMWARE[0]), b"not the real one")?;
    let (status, said) = image(&["--out".as_ref(), &out, "--firmware".as_ref(), &given])?;
    let last = said.lines().last().unwrap_or_default();
    if status == Some(2) && last.contains(FIRMWARE[1]) && last.contains("package raspi-firmware ") {
        Ok(Found::Good(String::new()))
    } else {
        Err(wrong("the missing file is not named", &said))
    }
}

/// All steps of this file.
pub(super) fn all() -> Vec<Step> {
    vec![
        super::rpi4::step(
            "a card without firmware names the missing files and their package",
            Level::Default,
            without_firmware,
        ),
        super::rpi4::step("the image of a card holds what its folder holds", Level::Default, complete),
        super::rpi4::step("fsck.fat finds nothing to mend in the image of a card", Level::Default, checked),
        super::rpi4::step("libfdt merges the domains in their order", Level::Default, merged),
        super::rpi4::step("a card may have another stub", Level::Default, another_stub),
        super::rpi4::step("a firmware folder that lacks a file is refused", Level::Default, incomplete),
    ]
}
