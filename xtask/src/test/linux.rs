//! Debian's Linux, unmodified, as a guest beside one in Rust: to user space, each CPU off and on again, and to its end.

use super::step::{Level, Step};
use super::systems::{self, observe};
use crate::check::Found;
use crate::failure::{Failure, Outcome};
use crate::run::Options;
use crate::setup;

/// GIC, CPUs, CPU model, vCPUs, and how the RAM lies.
const MACHINES: [(u32, u32, &str, u32, &str, Level); 6] = [
    (2, 2, "cortex-a72", 4, "", Level::Default),
    (3, 1, "max", 1, "", Level::Default),
    (3, 2, "cortex-a72", 4, "terrain = \"pieces\"\n", Level::Default),
    (2, 1, "cortex-a57", 1, "terrain = \"pieces\"\n", Level::Full),
    (3, 4, "neoverse-n1", 8, "", Level::Full),
    (2, 8, "cortex-a76", 8, "", Level::Full),
];
/// The digest of 16 MiB of zeros.
const DIGEST: &str = "080acf35a507ac9849cfcba47dc2ad83e01b75663a516279c8b9d243b719643e";

/// All steps of this file.
pub(super) fn all() -> Vec<Step> {
    let steps = MACHINES.into_iter().map(|(gic, cpus, cpu, vcpus, terrain, level)| {
        let pieces = if terrain.is_empty() { "" } else { ", RAM in pieces" };
        let title = format!("linux: {vcpus} vCPUs on {cpus} x {cpu}, GICv{gic}{pieces}");
        Step::new(title, level, move || {
            if let Err(why) = setup::linux() {
                return Ok(Found::Skipped(why.to_string()));
            }
            boots("virt", gic, cpus, cpu, vcpus, terrain)
        })
        .shared()
    });
    let on_rpi4 = super::rpi4::step("linux: 4 vCPUs", Level::Default, || match setup::linux() {
        Err(why) => Ok(Found::Skipped(why.to_string())),
        Ok(_) => boots("rpi4", 2, 4, "cortex-a72", 4, ""),
    });
    steps.chain([on_rpi4]).collect()
}

fn boots(board: &str, gic: u32, cpus: u32, cpu: &str, vcpus: u32, terrain: &str) -> Outcome<Found> {
    // Where the controller is a GICv3 it says everything through its PV console, `hvc0`.
    let console =
        if gic == 3 { "console=hvc0\"\npv_console = true" } else { "console=ttyAMA0\"\nvuart = true" };
    let text = format!(
        "[machine]\ngic = {gic}\ncpus = {cpus}\ncpu = \"{cpu}\"\nmemory = \"1G\"\n{terrain}\
         [[domain]]\nname = \"linux\"\nkernel = \"debian:linux\"\nramdisk = \"debian:busybox\"\ncmdline = \"{console}\n\
         memory = \"320M\"\nvcpus = {vcpus}\n\
         [[domain]]\nname = \"small\"\nkernel = \"guest:smp\"\nmemory = \"16M\"\nvcpus = 2\n"
    );
    let name = format!("linux-{board}-{gic}-{cpus}-{cpu}-{vcpus}");
    let mut options = Options::for_file(systems::write(&name, &text)?);
    options.board = Some(board.into());
    options.timeout = 240;
    let observed = observe(&options)?;
    let expected = [
        "Grant tables using version 1 layout".to_owned(),
        "xen:events: Using FIFO-based ABI".to_owned(),
        "user space: hypervisor xen 4.20".to_owned(),
        format!("user space: {vcpus} CPUs"),
        format!("user space: {vcpus} CPUs after each was off"),
        format!("user space: sha256 {DIGEST}"),
        "user space: ends".to_owned(),
    ];
    for line in expected {
        let said = |text: &String| text.starts_with("(d1) ") && text.ends_with(&line);
        if !observed.console.iter().any(said) {
            return Err(observed.failed(&format!("Linux did not say \"{line}\"")));
        }
    }
    let bad = ["BUG", "Oops", "Call trace", "rcu_sched detected stalls", "Internal error"];
    match observed.console.iter().find(|text| bad.iter().any(|word| text.contains(word))) {
        Some(text) => Err(Failure::Shown { text: text.clone(), lines: observed.console.clone() }),
        None => systems::clean(&observed),
    }
}
