//! QEMU's `virt` machine: its command line, and where in its RAM everything goes.
//!
//! Addresses, from QEMU's `hw/arm/virt.c` and `hw/arm/boot.c`: RAM starts at 1 GiB; an image with the arm64 header goes
//! 2 MiB above that; the device tree goes to the middle of RAM, or 128 MiB above its start if that is lower, in a
//! 2 MiB step. Modules go above the tree. Invariant: no two of these overlap, and all end below the end of RAM.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::failure::{Failure, Outcome};
use crate::process;
use crate::setup::Qemu;
use crate::system::Machine;
use crate::terrain::{Pieces, Terrain};

/// Where QEMU's `virt` has its RAM.
pub(crate) const RAM: u64 = 0x4000_0000;
const STEP: u64 = 2 << 20;
const PAGE: u64 = 4096;
/// QEMU copies the tree with room to edit it; this is more than it ever takes.
const TREE_ROOM: u64 = 2 * STEP;

/// How virtual time advances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clock {
    /// With the host's.
    Wall,
    /// One nanosecond an instruction: repeatable.
    Instructions,
}

/// Bytes in RAM before the first instruction: a file's content and its place.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    /// Physical address.
    pub(crate) address: u64,
    /// Bytes.
    pub(crate) size: u64,
}

/// Places modules one after another.
#[derive(Debug)]
pub(crate) struct Layout {
    next: u64,
    end: u64,
    /// Bytes to a multiple of which each module's place is rounded; in a machine of pieces each is at another odd address.
    step: Option<u64>,
}

impl Layout {
    /// The layout of a machine that boots `image`.
    pub(crate) fn new(machine: &Machine, image: &[u8]) -> Outcome<Self> {
        if machine.terrain == Terrain::Pieces {
            let pieces = Pieces::of(machine.memory);
            pieces.check(image_size(image), TREE_ROOM / 2)?;
            return Ok(Self { next: pieces.modules.start, end: pieces.modules.end, step: None });
        }
        let end = RAM + machine.memory;
        let tree = (RAM + (machine.memory / 2).min(128 << 20)).next_multiple_of(STEP);
        let layout = Self { next: tree + TREE_ROOM, end, step: Some(STEP) };
        let image_end = image_address(image).saturating_add(image_size(image));
        if image_end > tree || layout.next > end {
            return Err(Failure::usage(format!(
                "machine.memory: {} MiB leave no room for the hypervisor: use at least 64M",
                machine.memory >> 20
            )));
        }
        Ok(layout)
    }

    /// A layout between two addresses, page by page: every byte between is read from the card.
    pub(crate) fn between(next: u64, end: u64) -> Self {
        Self { next, end, step: Some(PAGE) }
    }

    /// Finds room for `size` bytes.
    pub(crate) fn place(&mut self, what: &str, size: u64) -> Outcome<Placed> {
        let address = self.next;
        let end = address.checked_add(size).filter(|end| *end <= self.end).ok_or_else(|| {
            let left = self.end.saturating_sub(address) >> 20;
            Failure::usage(format!(
                "{what}: {} MiB do not fit, {left} MiB are left: raise machine.memory",
                size >> 20
            ))
        })?;
        self.next = self.step.map_or(end + 0x1005, |step| end.next_multiple_of(step));
        Ok(Placed { address, size })
    }
}

/// What the image takes in memory: the header's `image_size` (byte 16), or the file's length if that is more.
fn image_size(image: &[u8]) -> u64 {
    let field = image.get(16..24).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes);
    field.max(image.len() as u64)
}

/// Where QEMU puts an image: `text_offset` (byte 8) above the start of RAM, or 2 MiB above that if it would cover QEMU's own
/// first instructions.
fn image_address(image: &[u8]) -> u64 {
    let field = image.get(8..16).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes);
    if field < 0x1000 { RAM + STEP + field } else { RAM.saturating_add(field) }
}

/// QEMU's options that decide what the device tree says.
fn base(machine: &Machine, extra: &str) -> Vec<OsString> {
    let board = format!("virt,virtualization=on,gic-version={}{extra}", machine.gic);
    let memory = format!("{}K", machine.memory >> 10);
    ["-machine", &board, "-cpu", &machine.cpu, "-smp", &machine.cpus.to_string(), "-m", &memory]
        .iter()
        .chain(&["-nic", "none", "-display", "none", "-monitor", "none"])
        .map(OsString::from)
        .collect()
}

/// QEMU's own device tree for the machine.
pub(crate) fn own_tree(qemu: &Qemu, machine: &Machine, folder: &Path) -> Outcome<Vec<u8>> {
    let file = folder.join("qemu.dtb");
    // Older versions have no switch for the random seeds in the tree, and nobody reads those.
    let dump = format!(",dumpdtb={}", option_value(&file));
    let mut command = Command::new(&qemu.program);
    process::quiet(command.args(base(machine, &dump)).args(["-serial", "null"]))
        .map_err(|failure| Failure::usage(format!("QEMU refuses this machine: {failure}")))?;
    crate::workspace::read(&file)
}

/// The files of a machine of pieces.
#[derive(Debug)]
pub(crate) struct Ground {
    /// Where everything is.
    pub(crate) pieces: Pieces,
    /// Its RAM.
    pub(crate) ram: PathBuf,
    /// Its first instructions.
    pub(crate) stub: PathBuf,
}

/// The command that boots `image` with `tree` and the modules.
pub(crate) fn boot(
    qemu: &Qemu,
    machine: &Machine,
    clock: Clock,
    image: &Path,
    tree: &Path,
    modules: &[(PathBuf, Placed)],
    ground: Option<&Ground>,
) -> Command {
    let load = |file: &Path, address: u64, more: &str| {
        let device = format!("loader,file={},addr={address:#x},force-raw=on{more}", option_value(file));
        ["-device".into(), device.into()]
    };
    let mut arguments = match ground {
        None => {
            let mut arguments = base(machine, "");
            arguments.extend(["-kernel".into(), image.into(), "-dtb".into(), tree.into()]);
            arguments
        }
        Some(Ground { pieces, ram, stub }) => {
            let mut arguments = base(machine, ",memory-backend=ground");
            let file = option_value(ram);
            let object = format!(
                "memory-backend-file,id=ground,size={}K,mem-path={file},share=on",
                machine.memory >> 10
            );
            arguments.extend(["-object".into(), object.into()]);
            // The loader of a CPU also says where that begins.
            arguments.extend(load(stub, pieces.stub, ",cpu-num=0"));
            arguments.extend(load(image, pieces.image, ""));
            arguments.extend(load(tree, pieces.tree, ""));
            arguments
        }
    };
    arguments.extend(["-serial", "stdio", "-no-reboot"].map(OsString::from));
    for (file, place) in modules {
        arguments.extend(load(file, place.address, ""));
    }
    match clock {
        Clock::Wall => {}
        Clock::Instructions => arguments.extend(["-icount", "shift=0,sleep=off"].map(OsString::from)),
    }
    let mut command = dies_with_us(&qemu.program);
    command.args(arguments).stdin(Stdio::null());
    command
}

/// A path inside an option: QEMU reads a doubled comma as one.
pub(crate) fn option_value(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// A command that the kernel ends when this process ends, however it ends.
pub(crate) fn dies_with_us(program: &Path) -> Command {
    if process::exists("setpriv") {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program);
        command
    } else {
        Command::new(program)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::Board;

    fn machine(memory: u64) -> Machine {
        Machine {
            board: Board::Virt,
            gic: 3,
            cpus: 1,
            cpu: "max".into(),
            memory,
            console: None,
            self_check: false,
            dom0_module: false,
            terrain: Terrain::Plain,
        }
    }

    #[test]
    fn modules_lie_above_the_tree_in_steps_of_two_mebibytes() {
        let mut layout = Layout::new(&machine(1 << 30), &[0; 64]).unwrap();
        let tree = 0x4800_0000;
        let first = layout.place("a", 1).unwrap().address;
        let second = layout.place("b", STEP + 1).unwrap().address;
        let third = layout.place("c", 1).unwrap().address;
        assert!(first >= tree + TREE_ROOM);
        assert_eq!((second - first, third - second), (STEP, 2 * STEP));
    }

    #[test]
    fn the_image_header_says_where_the_image_goes() {
        let mut image = vec![0; 64];
        assert_eq!(image_address(&image), 0x4020_0000);
        image[8..16].copy_from_slice(&0x123_0000u64.to_le_bytes());
        assert_eq!(image_address(&image), 0x4123_0000);
        image[8..16].copy_from_slice(&(128u64 << 20).to_le_bytes());
        assert!(Layout::new(&machine(1 << 30), &image).is_err());
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_rest() {
        let mut layout = Layout::new(&machine(64 << 20), &[0; 64]).unwrap();
        let failure = layout.place("domain[1].ramdisk", 40 << 20).unwrap_err();
        assert_eq!(failure.status(), 2);
        assert!(failure.to_string().starts_with("domain[1].ramdisk: 40 MiB do not fit, 28 MiB are left"));
        assert!(Layout::new(&machine(4 << 20), &[0; 64]).is_err());
    }

    #[test]
    fn the_image_header_says_what_the_image_takes() {
        let mut image = vec![0; 64];
        image[16..24].copy_from_slice(&(100u64 << 20).to_le_bytes());
        assert!(Layout::new(&machine(128 << 20), &image).is_err());
        assert!(Layout::new(&machine(1 << 30), &image).is_ok());
    }
}
