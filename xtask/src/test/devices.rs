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
    /// A device that does DMA, where the machine has its registers, and what the guest says of it.
    dma: (&'static str, &'static str, &'static str),
    /// The hypervisor's console.
    console: &'static str,
}

const VIRT_DMA: (&str, &str, &str) =
    ("/fw-cfg@9020000", "9020000", "(d1) device: qemu,fw-cfg-mmio says 0x554d4551");

/// The Raspberry Pi is the last.
const RPI4: usize = 2;
const MACHINES: [Machine; 3] = [
    Machine {
        name: "virt, GICv3: the PL031 clock",
        text: "gic = 3\n",
        path: "/pl031@9010000",
        address: "9010000",
        intid: 32 + 2,
        dma: VIRT_DMA,
        console: "/pl011@9000000",
    },
    Machine {
        name: "virt, GICv2: the PL031 clock",
        text: "gic = 2\n",
        path: "/pl031@9010000",
        address: "9010000",
        intid: 32 + 2,
        dma: VIRT_DMA,
        console: "/pl011@9000000",
    },
    Machine {
        name: "the second UART",
        text: "board = \"rpi4\"\n",
        path: "/soc/serial@7e201000",
        address: "fe201000",
        intid: 32 + 121,
        dma: ("/soc/mmc@7e300000", "fe300000", "(d1) device: brcm,bcm2835-sdhci of version 2"),
        console: "/soc/serial@7e215040",
    },
];

/// Where guests see their first device.
const SHOWN_AT: &str = "a000000";
const DMA: &str = "the device may do DMA: unsafe_dma (xen,force-assign-without-iommu) is missing";
const TAKEN: &str = "the device belongs to somebody else";

fn system(name: &str, machine: &Machine, domains: &str) -> Outcome<systems::Observed> {
    let text = format!("[machine]\n{}{domains}", machine.text);
    systems::observe(&Options::for_file(systems::write(name, &text)?))
}

/// Whether a domain told of a data abort of its own (`ESR_EL1`: class 0x25, 32-bit instruction, synchronous external abort) at an
/// address, hexadecimal.
fn faulted(observed: &systems::Observed, id: u32, address: &str) -> bool {
    let line = format!("(d{id})   ESR 0x0000000096000010  FAR 0x{address:0>16}");
    observed.console.contains(&line)
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
    let other = domain("other", &format!("cmdline = \"touch={SHOWN_AT}\"\n"));
    let listener = domain("listener", &format!("cmdline = \"listen={}\"\n", machine.intid));
    let observed = system(&format!("given-{index}"), machine, &(owner + &thief + &other + &listener))?;
    let ends = |line: &str| observed.log.iter().any(|seen| seen == line);
    if !ends("d1: shutdown poweroff") {
        return Err(observed.failed("the device's owner did not end well"));
    }
    if !ends("d2: shutdown crash") || !ends("d3: shutdown crash") {
        return Err(observed.failed("a domain touched a device that it was not given"));
    }
    if !faulted(&observed, 2, machine.address) || !faulted(&observed, 3, SHOWN_AT) {
        return Err(observed.failed("it was no fault at the device's address that ended a domain"));
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
fn refused(index: usize, name: &str, path: &str, why: &str) -> Outcome<Found> {
    let text = domain("greedy", &format!("passthrough = [\"{path}\"]\n"));
    let observed = system(&format!("{name}-{index}"), &MACHINES[index], &text)?;
    if observed.log.iter().any(|seen| seen == &format!("d1: refused: passthrough: {why}")) {
        Ok(Found::Good(String::new()))
    } else {
        Err(observed.failed("the domain was not refused"))
    }
}

/// Its owner says what it must, and a neighbour that reads where the machine has it faults.
fn answers(index: usize, name: &str, keys: &str, address: &str, line: &str) -> Outcome<Found> {
    let text = domain("owner", keys) + &domain("thief", &format!("cmdline = \"touch={address}\"\n"));
    let observed = system(&format!("{name}-{index}"), &MACHINES[index], &text)?;
    let ends = |line: &str| observed.log.iter().any(|seen| seen == line);
    let said = observed.console.iter().any(|seen| seen == line);
    if said && ends("d1: shutdown poweroff") && ends("d2: shutdown crash") && faulted(&observed, 2, address) {
        Ok(Found::Good(String::new()))
    } else {
        Err(observed.failed("a device does not answer its domain alone"))
    }
}

/// With `unsafe_dma` the same device is given, and answers; a neighbour does not get it besides.
fn trusted(index: usize) -> Outcome<Found> {
    let (path, address, line) = MACHINES[index].dma;
    answers(index, "trusted", &format!("passthrough = [\"{path}\"]\nunsafe_dma = true\n"), address, line)
}

/// A step on one of the machines.
fn step(index: usize, title: &str, run: impl Fn() -> Outcome<Found> + Send + Sync + 'static) -> Step {
    if index == RPI4 {
        super::rpi4::step(title, Level::Default, run)
    } else {
        Step::new(format!("passthrough: {title}"), Level::Default, run)
    }
}

/// All steps of this file.
pub(super) fn all() -> Vec<Step> {
    let mut steps: Vec<_> = MACHINES
        .iter()
        .enumerate()
        .map(|(index, machine)| {
            step(index, &format!("a device belongs to one domain: {}", machine.name), move || given(index))
        })
        .collect();
    for index in [0, RPI4] {
        let (dma, console) = (MACHINES[index].dma.0, MACHINES[index].console);
        steps.push(step(index, "one device is not given twice", move || twice(index)));
        steps.push(step(index, "a device that may do DMA is refused", move || {
            refused(index, "refused-dma", dma, DMA)
        }));
        steps.push(step(index, "a device that may do DMA is given with unsafe_dma", move || trusted(index)));
        steps.push(step(index, "the hypervisor's own UART is refused", move || {
            refused(index, "refused-uart", console, TAKEN)
        }));
    }
    steps.push(step(RPI4, "the pins belong to one domain", || {
        let keys = "passthrough = [\"/soc/gpio@7e200000\"]\n";
        answers(RPI4, "pins", keys, "fe200000", "(d1) device: pin 20 follows")
    }));
    steps
}
