//! `cargo xtask image`: what goes on a board's SD card.

use std::path::{Path, PathBuf};

use super::content::{Content, TREE};
use super::disk;
use crate::failure::{Failure, Outcome};
use crate::hypervisor::Hypervisor;
use crate::system::Board;
use crate::{build, run, setup, workspace};

/// What `image` accepts.
#[derive(clap::Args, Debug)]
pub(crate) struct Options {
    /// The system file; without one, the two-guest demonstration.
    system: Option<PathBuf>,
    /// The board: rpi4.
    #[arg(long)]
    board: String,
    /// The folder for the files; what is there already stays unless it has one of their names.
    #[arg(long)]
    out: PathBuf,
    /// Also write an image of the whole card, with everything that the folder then holds.
    #[arg(long)]
    sd: Option<PathBuf>,
    /// A folder with the firmware's files, such as /usr/lib/raspi-firmware: they are copied too.
    #[arg(long)]
    firmware: Option<PathBuf>,
    /// A file in the place of the firmware's own stub, such as TF-A's bl31.bin.
    #[arg(long)]
    armstub: Option<PathBuf>,
}

/// The firmware's files: the coprocessor runs them before it starts ours.
const FIRMWARE: [&str; 2] = ["start4.elf", "fixup4.dat"];
/// Where they are to be had.
const SOURCE: &str = "from Debian's package raspi-firmware (non-free-firmware; /usr/lib/raspi-firmware) or \
                      github.com/raspberrypi/firmware, folder boot";
/// Where the board's tree is to be had.
const TREE_SOURCE: &str =
    "from Debian's package linux-image-arm64 (usr/lib/linux-image-*/broadcom) or the same folder boot";

/// Builds and packs.
pub(crate) fn command(options: &Options) -> Outcome<()> {
    if options.board != "rpi4" {
        return Err(Failure::usage(format!("--board: expected \"rpi4\", found \"{}\"", options.board)));
    }
    let mut load =
        run::Options::for_file(options.system.clone().unwrap_or_else(|| run::shipped("two-guests")));
    load.board = Some("rpi4".into());
    let system = load.load()?;
    debug_assert_eq!(system.machine.board, Board::Rpi4, "asked for");
    build::some(&setup::toolchain()?, &system.guests())?;
    let (mut card, _) =
        run::card(&system, load.checking(), workspace::read(&Hypervisor::of(&system)?.image)?)?;
    if let Some(file) = &options.armstub {
        let name = file.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| Failure::usage("--armstub: expected a file"))?;
        let bytes = workspace::read(file).map_err(|why| Failure::usage(format!("--armstub: {why}")))?;
        card.set_stub(name, bytes);
    }
    if let Err(why) = card.add_tree() {
        println!("{why}");
    }
    if let Some(folder) = &options.firmware {
        for name in FIRMWARE {
            card.files.insert(
                name.into(),
                workspace::read(&folder.join(name))
                    .map_err(|why| Failure::usage(format!("--firmware: {why}; it comes {SOURCE}")))?,
            );
        }
    }
    for (name, bytes) in &card.files {
        let file = options.out.join(name);
        workspace::write(&file, bytes)?;
        println!("{}  {} KiB", file.display(), bytes.len().div_ceil(1024));
    }
    let mut missing: Vec<&str> = Vec::new();
    for name in FIRMWARE.into_iter().chain([TREE]) {
        match std::fs::read(options.out.join(name)) {
            Ok(bytes) => drop(card.files.insert(name.into(), bytes)),
            Err(_) => missing.push(name),
        }
    }
    if let Some(file) = &options.sd {
        write_disk(file, &card)?;
    }
    let (trees, firmware): (Vec<&str>, Vec<&str>) = missing.iter().copied().partition(|name| *name == TREE);
    for (names, source) in [(trees, TREE_SOURCE), (firmware, SOURCE)] {
        if !names.is_empty() {
            println!("missing: {}: add to {}, {source}", names.join(", "), options.out.display());
        }
    }
    if missing.is_empty() {
        println!(
            "complete: copy the folder's files to a card's FAT32 partition, or write the image to the card"
        );
    }
    Ok(())
}

fn write_disk(file: &Path, card: &Content) -> Outcome<()> {
    let bytes = disk::write(card)?;
    workspace::write(file, &bytes)?;
    println!("{}  {} MiB, for `dd` or any card writer", file.display(), bytes.len() >> 20);
    Ok(())
}
