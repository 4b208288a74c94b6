//! Devices of the machine that one domain gets: it uses them, and another that touches their addresses faults.

use crate::check::Found;
use crate::failure::Outcome;
use crate::run::Options;

use super::step::{Level, Step};
use super::systems;

/// A machine with a device to give.
struct Machine {
    name: &'static str,
    /// `[machine]`.
    text: &'static str,
    /// The device's node.
    path: &'static str,
    /// Where the machine has its registers.
    address: &'static str,
    /// Its interrupt's number.
    intid: u32,
}

const MACHINES: [Machine; 3] = [
    Machine {
        name: "virt, GICv3: the PL031 clock",
        text: "gic = 3\n",
        path: "/pl031@9010000",
        address: "9010000",
        intid: 32 + 2,
    },
    Machine {
        name: "virt, GICv2: the PL031 clock",
        text: "gic = 2\n",
        path: "/pl031@9010000",
        address: "9010000",
        intid: 32 + 2,
    },
    Machine {
        name: "the second UART",
        text: "board = \"rpi4\"\n",
        path: "/soc/serial@7e201000",
        address: "fe201000",
        intid: 32 + 121,
    },
];

const DMA: &str = "the device may do DMA: xen,force-assign-without-iommu is missing";
const TAKEN: &str = "the device belongs to somebody else";

fn system(name: &str, machine: &Machine, domains: &str) -> Outcome<systems::Observed> {
    let text = format!("[machine]\n{}{domains}", machine.text);
    systems::observe(&Options::for_file(systems::write(name, &text)?))
}

fn domain(name: &str, more: &str) -> String {
    format!("[[domain]]\nname = \"{name}\"\nkernel = \"guest:device\"\nmemory = \"16M\"\n{more}")
}

/// Its owner uses it; a neighbour that reads where the machine has it, and one that reads where the owner sees it, fault; one that has enabled its
/// interrupt hears nothing.
fn given(index: usize) -> Outcome<Found> {
    let machine = &MACHINES[index];
    let owner =
        domain("owner", &format!("passthrough = [\"{}\"]\nchannels = [\"listener\"]\n", machine.path));
    let thief = domain("thief", &format!("cmdline = \"touch={}\"\n", machine.address));
    let other = domain("other", "cmdline = \"touch=a000000\"\n");
    let listener = domain("listener", &format!("cmdline = \"listen={}\"\n", machine.intid));
    let observed = system(&format!("given-{index}"), machine, &(owner + &thief + &other + &listener))?;
    let ends = |line: &str| observed.log.iter().any(|seen| seen == line);
    if !ends("d1: shutdown poweroff") {
        return Err(observed.failed("the device's owner did not end well"));
    }
    if !ends("d2: shutdown crash") || !ends("d3: shutdown crash") {
        return Err(observed.failed("a domain touched a device that it was not given"));
    }
    let said = |start: &str, end: &str| {
        observed.console.iter().any(|line| line.starts_with(start) && line.ends_with(end))
    };
    // How many is the device's matter: a UART may raise one for each byte. The owner fails when a round brought none.
    if !said("(d1) device: ", " interrupts") || !said("(d4) device: heard nothing", "") {
        return Err(observed.failed("the device's interrupt did not reach its owner alone"));
    }
    Ok(Found::Good(String::new()))
}

/// Two domains cannot have one device; the first gets it.
fn twice(index: usize) -> Outcome<Found> {
    let machine = &MACHINES[index];
    let one = |name| domain(name, &format!("passthrough = [\"{}\"]\n", machine.path));
    let observed = system(&format!("twice-{index}"), machine, &(one("first") + &one("second")))?;
    let seen = |line: &str| observed.log.iter().any(|seen| seen == line);
    if seen("d1: shutdown poweroff") && seen("d2: refused: passthrough: the device belongs to somebody else")
    {
        Ok(Found::Good(String::new()))
    } else {
        Err(observed.failed("one device, two domains"))
    }
}

/// A device that does DMA is refused unless the file says otherwise; the hypervisor's console always.
fn refused(machine: &Machine, name: &str, path: &str, why: &str) -> Outcome<Found> {
    let text = domain("greedy", &format!("passthrough = [\"{path}\"]\n"));
    let observed = system(name, machine, &text)?;
    if observed.log.iter().any(|seen| seen == &format!("d1: refused: passthrough: {why}")) {
        Ok(Found::Good(String::new()))
    } else {
        Err(observed.failed("the domain was not refused"))
    }
}

/// With `unsafe_dma` the same device is given, and answers; a neighbour does not get it besides.
fn trusted() -> Outcome<Found> {
    let keys = "passthrough = [\"/fw-cfg@9020000\"]\nunsafe_dma = true\n";
    let text = domain("trusted", keys) + &domain("thief", "cmdline = \"touch=9020000\"\n");
    let observed = system("trusted", &MACHINES[0], &text)?;
    let ends = |line: &str| observed.log.iter().any(|seen| seen == line);
    let said = observed.console.iter().any(|line| line == "(d1) device: qemu,fw-cfg-mmio says 0x554d4551");
    if said && ends("d1: shutdown poweroff") && ends("d2: shutdown crash") {
        Ok(Found::Good(String::new()))
    } else {
        Err(observed.failed("a device given with unsafe_dma does not answer its domain alone"))
    }
}

/// All steps of this file.
pub(super) fn all() -> Vec<Step> {
    let mut steps = Vec::new();
    for (index, machine) in MACHINES.iter().enumerate() {
        let title = format!("a device belongs to one domain: {}", machine.name);
        let run = move || given(index);
        steps.push(if index == 2 {
            super::rpi4::step(&title, Level::Default, run)
        } else {
            Step::new(format!("passthrough: {title}"), Level::Default, run)
        });
    }
    steps.push(Step::new("passthrough: one device is not given twice", Level::Default, || twice(0)));
    steps.push(Step::new("passthrough: a device that may do DMA is refused", Level::Default, || {
        refused(&MACHINES[0], "refused-dma", "/fw-cfg@9020000", DMA)
    }));
    steps.push(Step::new(
        "passthrough: a device that may do DMA is given with unsafe_dma",
        Level::Default,
        trusted,
    ));
    steps.push(super::rpi4::step("a device that may do DMA is refused", Level::Default, || {
        refused(&MACHINES[2], "refused-dma-rpi4", "/soc/mmc@7e300000", DMA)
    }));
    steps.push(Step::new("passthrough: the hypervisor's own UART is refused", Level::Default, || {
        refused(&MACHINES[0], "refused-uart", "/pl011@9000000", TAKEN)
    }));
    steps
}
