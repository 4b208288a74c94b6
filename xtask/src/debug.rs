//! `cargo xtask debug`: boots under QEMU and waits for a debugger before the first instruction.

use std::io::IsTerminal as _;

use crate::console::{Colour, Lines};
use crate::failure::{Doing, Failure, Outcome};
use crate::hypervisor::Hypervisor;
use crate::{build, process, run, setup};

/// Starts QEMU with its gdb server on port 1234 and shows the console until it ends.
pub(crate) fn command(options: &run::Options) -> Outcome<()> {
    for (option, given) in
        [("--timeout", options.timeout != run::TIMEOUT), ("--interactive", options.interactive)]
    {
        if given {
            return Err(Failure::usage(format!("{option}: debug waits for the debugger: leave it out")));
        }
    }
    let system = options.load()?;
    let (toolchain, qemu) = (setup::toolchain()?, setup::qemu()?);
    qemu.check(system.machine.board)?;
    build::some(&toolchain, &system.guests())?;
    let pavo = Hypervisor::of(&system)?;
    let elf = pavo.image.with_extension("elf");
    let decoder = pavo.decoder()?;
    let mut prepared = run::prepare(&qemu, &pavo, &system, options.checking(), options.clock())?;
    let debugger = ["gdb-multiarch", "gdb"].into_iter().find(|program| process::exists(program));
    if debugger.is_none() {
        println!("no gdb is installed here: on Debian it is the package gdb-multiarch");
    }
    let debugger = debugger.unwrap_or("gdb-multiarch");
    println!("QEMU waits; type in another terminal: {debugger} {} -ex 'target remote :1234'", elf.display());
    prepared.command.args(["-S", "-s"]).stdout(std::process::Stdio::piped());
    let mut child = prepared.command.spawn().doing("QEMU cannot be started")?;
    let mut pipe = child.stdout.take().ok_or_else(|| Failure::failed("QEMU has no output"))?;
    let colour = if std::io::stdout().is_terminal() { Colour::On } else { Colour::Off };
    let mut lines = Lines::default();
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = std::io::Read::read(&mut pipe, &mut buffer) {
        lines.push(&buffer[..count], |line| run::show(&decoder.line(line).render(colour)));
    }
    child.wait().doing("QEMU").map(|_| ())
}
