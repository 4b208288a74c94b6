//! The Raspberry Pi 4, as QEMU has it. Skipped by name where its device tree or a QEMU that has the board cannot be had.

use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use regex::Regex;

use crate::check::Found;
use crate::failure::{Doing, Failure, Outcome};
use crate::machine::option_value;
use crate::rpi4::{self, Content, KERNEL};
use crate::run::{self, Options};
use crate::watch::watch;
use crate::{build, conformance, process, setup, workspace};

use super::step::{Level, Step};
use super::systems;

/// Why the board cannot be tested here.
fn missing() -> Option<String> {
    match (setup::qemu(), setup::board_tree()) {
        (Ok(qemu), Ok(_)) if qemu.has_rpi4() => None,
        (Ok(_), Ok(_)) => Some("QEMU is older than 9.0".into()),
        (_, Err(failure)) | (Err(failure), _) => Some(failure.to_string()),
    }
}

/// A step that needs the board.
pub(super) fn step(
    name: &str,
    level: Level,
    run: impl Fn() -> Outcome<Found> + Send + Sync + 'static,
) -> Step {
    Step::new(format!("rpi4: {name}"), level, move || match missing() {
        Some(why) => Ok(Found::Skipped(why)),
        None => run(),
    })
}

fn options(system: &str) -> Options {
    let mut options = Options::for_file(run::shipped(system));
    options.board = Some("rpi4".into());
    options
}

/// A control domain that reboots, and is not to be built anew, resets the machine when the others have ended; QEMU then exits.
fn resets(board: &str) -> Outcome<Found> {
    let text = "[[domain]]\nname = \"control\"\nkernel = \"guest:faulty\"\ncmdline = \"how=reboot\"\nmemory = \"16M\"\n\
                privileged = true\non_reboot = \"destroy\"\n\
                [[domain]]\nname = \"a\"\nkernel = \"guest:hello\"\nmemory = \"16M\"\n";
    let mut options = Options::for_file(systems::write(&format!("reset-{board}"), text)?);
    options.board = Some(board.into());
    let observed = systems::observe(&options)?;
    let last = ["all domains ended", "the control domain rebooted: reset"];
    let ended = observed.log.len() >= 2 && observed.log[observed.log.len() - 2..] == last;
    // A time that is over would be another status.
    if ended && observed.result.as_ref().is_err_and(|failure| failure.status() == 1) {
        Ok(Found::Good(String::new()))
    } else {
        Err(observed.failed("the machine was not reset"))
    }
}

/// A guest of so many MiB and vCPUs, and a smaller one of the same program.
fn guests(name: &str, memory: u32, vcpus: u32) -> Outcome<Found> {
    let domain = |name: &str, kernel: &str, memory: u32, vcpus: u32| {
        format!(
            "[[domain]]\nname = \"{name}\"\nkernel = \"guest:{kernel}\"\nmemory = \"{memory}M\"\nvcpus = {vcpus}\n"
        )
    };
    let text = domain("one", name, memory, vcpus) + &domain("two", name, 32, 3);
    let mut options = Options::for_file(systems::write(&format!("rpi4-{name}"), &text)?);
    options.board = Some("rpi4".into());
    options.timeout = 180;
    systems::cleanly(&options)
}

/// Boots the image, loaded as `command` says, and waits for a line.
fn says(line: &str, image: &[u8], command: impl Fn(&mut Command, &Path)) -> Outcome<Found> {
    let file = workspace::pavo().join("test").join(format!("rpi4-{}.img", image.len() + line.len()));
    workspace::write(&file, image)?;
    let mut qemu = Command::new(setup::qemu()?.program);
    qemu.args([
        "-machine", "raspi4b", "-display", "none", "-monitor", "none", "-serial", "null", "-serial", "stdio",
    ]);
    qemu.stdin(Stdio::null());
    command(&mut qemu, &file);
    let mut lines = Vec::new();
    watch(&mut qemu, Duration::from_secs(60), None, &mut |bytes| {
        lines.push(String::from_utf8_lossy(bytes).trim_end().to_owned());
        if lines.iter().any(|seen| seen == line) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    if lines.iter().any(|seen| seen == line) {
        Ok(Found::Good(String::new()))
    } else {
        Err(Failure::Shown { text: format!("nobody said \"{line}\""), lines })
    }
}

/// What the screen shows of the demonstration, as section 4 of `docs/raspberry-pi-4.md` has it, in order.
const SCREEN: [&str; 10] = [
    "^pavo: entered$",
    "Pavo [0-9.]+: EL2 at 0x200000, 4 CPUs, [0-9]+ MiB$",
    "board revision 0x[0-9a-f]+$",
    "EL2 resident [0-9]+ KiB$",
    "d1: sender, 32768 KiB, 1 vCPUs$",
    "d2: receiver, 32768 KiB, 1 vCPUs$",
    "boot instructions [0-9]+$",
    r"^\(d[12]\) (sender|receiver): sha256 ",
    "d[12]: shutdown poweroff$",
    "all domains ended$",
];

/// The demonstration says what the page says, in its order, and ends well.
fn screen() -> Outcome<Found> {
    let observed = systems::observe(&options("two-guests"))?;
    let mut lines = observed.console.iter();
    for pattern in SCREEN {
        let pattern = Regex::new(pattern).doing("pattern")?;
        if !lines.any(|line| pattern.is_match(line)) {
            return Err(observed.failed(&format!("no line {pattern} where it should be")));
        }
    }
    systems::clean(&observed)
}

/// A card with a shipped system.
fn card(system: &str) -> Outcome<Content> {
    let options = options(system);
    let system = options.load()?;
    build::some(&setup::toolchain()?, &system.guests())?;
    let (mut card, _) = run::card(&system, options.checking(), workspace::read(&workspace::pavo_img())?)?;
    card.add_tree()?;
    Ok(card)
}

/// The image as it is on a card: it knows its UART.
fn image() -> Outcome<Vec<u8>> {
    card("hello")?.file(KERNEL).map(<[u8]>::to_vec)
}

/// What the hypervisor makes of the board's own tree with the demonstration's guests, as the firmware of boards of every size hands it over: by a
/// host test of the code that ships, which finds the trees by `PAVO_BOARD_TREES`.
fn trees() -> Outcome<Found> {
    let folder = workspace::pavo().join("test/trees");
    let card = card("two-guests")?;
    for gibibytes in [1, 2, 4, 8] {
        let file = folder.join(format!("{gibibytes}.dtb"));
        workspace::write(&file, &rpi4::handed_over(&card, gibibytes)?)?;
    }
    let mut command = Command::new("cargo");
    command.current_dir(workspace::root()).env("PAVO_BOARD_TREES", &folder);
    command.args(["test", "--quiet", "-p", "hypervisor", "the_boards_own_tree"]);
    process::run(&mut command, "reading the trees")?;
    Ok(Found::Good(String::new()))
}

/// What stops it before it has read the device tree.
fn early() -> Vec<Step> {
    vec![
        step(
            "a load address that is no multiple of 64 KiB is told before the MMU is on",
            Level::Default,
            || {
                let mut image = image()?;
                // The header's `text_offset`.
                image[8..16].copy_from_slice(&0x20_8000_u64.to_le_bytes());
                says("pavo: cannot start: not loaded at a multiple of 64 KiB", &image, |qemu, file| {
                    qemu.arg("-kernel").arg(file);
                })
            },
        ),
        step("an entry at another level than EL2 is told", Level::Default, || {
            says("pavo: cannot start: not entered at EL2", &image()?, |qemu, file| {
                let load = format!("loader,file={},addr=0x200000,force-raw=on", option_value(file));
                // Without a kernel the CPU is where reset leaves it, at EL3.
                qemu.args(["-device", &load, "-device", "loader,addr=0x200000,cpu-num=0"]);
            })
        }),
        step("a missing device tree is told", Level::Default, || {
            says("pavo: cannot start: x0 points to no device tree", &image()?, |qemu, file| {
                qemu.arg("-kernel").arg(file);
            })
        }),
    ]
}

/// All steps of this file.
pub(super) fn all() -> Vec<Step> {
    let mut steps: Vec<_> = ["hello", "smp", "control", "pv"]
        .into_iter()
        .map(|name| step(name, Level::Default, move || systems::cleanly(&options(name))))
        .collect();
    steps.push(step("two-guests", Level::Default, screen));
    steps.push(step("the board's own tree is read, of 1, 2, 4 and 8 GiB", Level::Default, trees));
    steps.push(step("siblings", Level::Default, || guests("siblings", 32, 4)));
    steps.push(step("scan", Level::Default, || guests("scan", 640, 2)));
    steps.push(step("two-guests on one CPU with 512 MiB", Level::Default, || {
        let mut options = options("two-guests");
        (options.cpus, options.memory) = (Some(1), Some("512M".into()));
        systems::cleanly(&options)
    }));
    steps.push(step("the console is the PL011 where the device tree says so", Level::Default, || {
        let text = "[machine]\nboard = \"rpi4\"\nconsole = \"serial0:115200n8\"\n\
                    [[domain]]\nname = \"a\"\nkernel = \"guest:hello\"\nmemory = \"16M\"\n";
        systems::cleanly(&Options::for_file(systems::write("pl011", text)?))
    }));
    steps.push(Step::new("system: the control domain's reboot resets the machine", Level::Default, || {
        resets("virt")
    }));
    steps.push(step("the control domain's reboot resets the machine", Level::Default, || resets("rpi4")));
    steps.extend(early());
    steps.push(step("conformance", Level::Default, || {
        let mut options = conformance::Options::on_pavo(2, 4, "cortex-a72");
        options.board = Some("rpi4".into());
        conformance::test(&options).map(Found::Good)
    }));
    steps
}
