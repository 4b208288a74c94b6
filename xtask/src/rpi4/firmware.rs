//! QEMU's `raspi4b` with what its missing firmware would do: read `config.txt`, load the files, complete the device tree.
//!
//! QEMU starts a kernel at EL2 and has the stub's spin table in page 0, but boots no card. Source: QEMU `hw/arm/raspi4b.c`, `hw/arm/boot.c`.

use std::path::Path;
use std::process::{Command, Stdio};

use super::config_txt::{self, Config};
use super::content::{Content, TREE};
use super::{disk, early, overlay};
use crate::failure::{Doing, Failure, Outcome};
use crate::fdt::{self, Node};
use crate::machine::{Clock, dies_with_us, option_value};
use crate::setup::Qemu;
use crate::system::Board;
use crate::workspace;

/// RAM in the first GiB: above it is the coprocessor's.
const LOW_RAM: u64 = 0x3c00_0000;
/// Where RAM goes on.
const HIGH_RAM: u64 = 0x4000_0000;
/// The UARTs that QEMU's first and second `-serial` are.
const SERIALS: [&str; 2] = ["serial@7e201000", "serial@7e215040"];

/// The command that boots a card's content on a board with so much memory.
pub(crate) fn boot(
    qemu: &Qemu,
    mut card: Content,
    memory: u64,
    clock: Clock,
    folder: &Path,
) -> Outcome<Command> {
    qemu.check(Board::Rpi4)?;
    card.add_tree()?;
    // What is booted has been on a card.
    let card = disk::read(disk::write(&card)?)?;
    let (config, mut tree) = read(&card)?;
    add_memory(&mut tree, memory);
    let console = early::stdout(&tree).and_then(|path| SERIALS.iter().position(|name| path.ends_with(name)));
    let console =
        console.ok_or_else(|| Failure::usage("machine.console: names no UART that QEMU's board has"))?;
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        workspace::write(&path, bytes).map(|()| path)
    };
    let mut command = dies_with_us(&qemu.program);
    command.args(["-machine", "raspi4b", "-display", "none", "-monitor", "none", "-no-reboot"]);
    for serial in 0..SERIALS.len() {
        command.args(["-serial", if serial == console { "stdio" } else { "null" }]);
    }
    command.arg("-kernel").arg(file("kernel8.img", card.file(&config.kernel)?)?);
    command.arg("-dtb").arg(file("board.dtb", &fdt::write_reserving(&tree, &[(0, 0x1000)])?)?);
    if let Some((name, address)) = &config.initramfs {
        let loaded = file("initramfs", card.file(name)?)?;
        command
            .arg("-device")
            .arg(format!("loader,file={},addr={address:#x},force-raw=on", option_value(&loaded)));
    }
    match clock {
        Clock::Wall => {}
        Clock::Instructions => {
            command.args(["-icount", "shift=0,sleep=off"]);
        }
    }
    command.stdin(Stdio::null());
    Ok(command)
}

/// What the firmware is told, and the tree with its overlays.
fn read(card: &Content) -> Outcome<(Config, Node)> {
    let config = std::str::from_utf8(card.file("config.txt")?).doing("config.txt")?;
    let config = config_txt::read(config)?;
    let mut tree = fdt::parse(card.file(TREE)?)?;
    for name in &config.overlays {
        overlay::apply(&mut tree, fdt::parse(card.file(&format!("overlays/{name}.dtbo"))?)?)?;
    }
    Ok((config, tree))
}

/// The tree that a board's own firmware hands over: the card's, with the RAM of a board of so many GiB as `/memory@0` has it (addresses
/// of two cells, sizes of one), without the coprocessor's 76 MiB and the peripherals' 64 below 4 GiB.
pub(crate) fn handed_over(card: &Content, gibibytes: u32) -> Outcome<Vec<u8>> {
    let (_, mut tree) = read(card)?;
    let below_4 = match gibibytes {
        1 => 0,
        2 => 0x4000_0000,
        _ => 0xbc00_0000,
    };
    let mut cells = vec![0, 0, 0x3b40_0000];
    if below_4 != 0 {
        cells.extend([0, 0x4000_0000, below_4]);
    }
    if gibibytes > 4 {
        cells.extend([1, 0, 0x8000_0000, 1, 0x8000_0000, 0x8000_0000]);
    }
    let memory = tree.at_path_mut("/memory@0");
    memory.ok_or_else(|| Failure::failed("the board's tree has no /memory@0"))?.set_cells("reg", &cells);
    fdt::write_reserving(&tree, &[(0, 0x1000)])
}

/// What the board's firmware writes of its RAM. QEMU says the first bank itself, and forgets the second.
fn add_memory(tree: &mut Node, memory: u64) {
    if memory > HIGH_RAM {
        let size = u32::try_from(memory - HIGH_RAM).unwrap_or(u32::MAX);
        let start = u32::try_from(HIGH_RAM).unwrap_or(u32::MAX);
        // QEMU removes nodes that are called memory.
        let node = tree.child(&format!("ram@{HIGH_RAM:x}"));
        node.set_strings("device_type", &["memory"]).set_cells("reg", &[0, start, size]);
    } else if memory < LOW_RAM {
        let cells = [memory, LOW_RAM - memory].map(|number| u32::try_from(number).unwrap_or(u32::MAX));
        let node = tree.child("reserved-memory").child("absent");
        node.set_cells("reg", &[0, cells[0], cells[1]]).set("no-map", []);
    }
}
