//! Processes in address spaces of their own, by paravirtual page tables or without: fork and copies on writing, stacks and data that come when
//! they are touched, protection, programs that crash alone; mappings in the upper half. Prints an `ok` line for each, and what it
//! cost: hypercalls, and ticks of the counter. `pages=N` is a process of that size to fork and execute.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "programs in assembly")]
extern crate alloc;
use alloc::vec::Vec;
use core::arch::global_asm;
use core::time::Duration;

use guest_kernel::interrupt::{self, Intid};
use guest_kernel::process::{self, Counts, DATA, Ended, Processes, Program, Stop};
use guest_kernel::vmap::Mapped;
use guest_kernel::{Guest, cpu, exception, heap, println, pv, time, timer};
use pv_abi::Errno;

global_asm!(include_str!("pv-process/user.S"), options(raw));

guest_kernel::main!(main);

/// Why this guest ends as crashed.
#[derive(Debug)]
#[expect(dead_code, reason = "printed")]
enum Failed {
    Check(&'static str),
    Refused(Errno),
}

impl From<Errno> for Failed {
    fn from(errno: Errno) -> Self {
        Self::Refused(errno)
    }
}

fn ok(what: &'static str, holds: bool) -> Result<(), Failed> {
    if holds {
        println!("ok - {what}");
        Ok(())
    } else {
        Err(Failed::Check(what))
    }
}

fn program() -> Result<Program, Errno> {
    unsafe extern "C" {
        static user_program: u8;
        static user_program_end: u8;
    }
    let (start, end) = (&raw const user_program, &raw const user_program_end);
    // SAFETY: constants between two labels.
    Program::load(unsafe { core::slice::from_raw_parts(start, end.addr() - start.addr()) })
}

/// The kernel that these programs call.
struct Kernel {
    processes: Processes,
    program: Program,
    /// Those who wait for a child.
    waiting: Vec<u32>,
    ended: Vec<Ended>,
}

impl Kernel {
    /// Runs all processes in turn until each has ended; how those did that nobody waited for.
    fn run(&mut self) -> Result<Vec<Ended>, Errno> {
        loop {
            let ids = self.processes.ids();
            if ids.is_empty() {
                return Ok(core::mem::take(&mut self.ended));
            }
            for id in ids {
                if !self.waiting.contains(&id) {
                    self.turn(id)?;
                }
            }
        }
    }

    fn turn(&mut self, id: u32) -> Result<(), Errno> {
        let all = &mut self.processes;
        match all.run(id)? {
            Stop::Interrupted => interrupt::dispatch(),
            Stop::Killed(esr, far) => self.end(id, Err((esr, far)))?,
            Stop::Call(0, [value, ..]) => self.end(id, Ok(value))?,
            Stop::Call(1, _) => {
                let child = all.fork(id)?;
                all.set(id, 0, u64::from(child))?;
            }
            Stop::Call(2, _) => match self.ended.iter().position(|ended| ended.parent == id) {
                Some(index) => {
                    let ended = self.ended.remove(index);
                    all.set(id, 0, ended.how.unwrap_or(u64::MAX))?;
                }
                None => self.waiting.push(id),
            },
            Stop::Call(3, [pages, writable, _]) => {
                let end = DATA + pages.min(1 << 20) * 4096;
                all.protect(id, DATA..end, writable != 0)?;
            }
            Stop::Call(4, [which, ..]) => all.exec(id, &self.program, which, 4096)?,
            Stop::Call(5, _) => {}
            Stop::Call(..) => self.end(id, Err((0, 0)))?,
        }
        Ok(())
    }

    fn end(&mut self, id: u32, how: Result<u64, (u64, u64)>) -> Result<(), Errno> {
        let ended = self.processes.end(id, how)?;
        if let Some(index) = self.waiting.iter().position(|parent| *parent == ended.parent) {
            self.waiting.remove(index);
            self.processes.set(ended.parent, 0, how.unwrap_or(u64::MAX))
        } else {
            self.ended.push(ended);
            Ok(())
        }
    }

    /// Runs one of the programs; how it ended.
    fn alone(&mut self, which: u64, pages: u64) -> Result<Result<u64, (u64, u64)>, Errno> {
        self.processes.spawn(&self.program, which, pages * 4096)?;
        let ended = self.run()?;
        Ok(ended.first().map_or(Err((0, 0)), |ended| ended.how))
    }
}

/// Exception class and kind of fault, without the level.
const fn fault(how: Result<u64, (u64, u64)>) -> Option<(u64, u64)> {
    match how {
        Err((esr, _)) => Some((esr >> 26, esr & 0x3c)),
        Ok(_) => None,
    }
}
const DATA_ABORT: u64 = 0x24;
const INSTRUCTION_ABORT: u64 = 0x20;
const TRANSLATION: u64 = 0x04;
const PERMISSION: u64 = 0x0c;

fn main(guest: &Guest) -> Result<(), Failed> {
    let args = guest.args();
    ok("whose page tables they are is as configured", pv::is_on() == args.has("pv"))?;
    upper()?;
    let ram = *guest.tree.memory.first().ok_or(Errno::Enomem)?;
    let mut kernel = Kernel {
        processes: Processes::new(ram),
        program: program()?,
        waiting: Vec::new(),
        ended: Vec::new(),
    };
    ok("two processes write to what they have in common, and see their own", kernel.alone(0, 1)? == Ok(42))?;
    ok("a stack comes as it is touched", kernel.alone(9, 1)? == Ok(16))?;
    ok("another program, with data that is zero again", kernel.alone(7, 1)? == Ok(99))?;
    for (what, which, expected) in [
        ("writing to the kernel is a crash", 2, (DATA_ABORT, PERMISSION)),
        ("and so is reading from it", 11, (DATA_ABORT, PERMISSION)),
        ("and writing to one's text", 3, (DATA_ABORT, PERMISSION)),
        ("and executing one's data", 4, (INSTRUCTION_ABORT, PERMISSION)),
        ("and going below one's stack", 5, (DATA_ABORT, TRANSLATION)),
        ("and writing to what was protected", 6, (DATA_ABORT, PERMISSION)),
    ] {
        let how = kernel.alone(which, 1)?;
        ok(what, fault(how) == Some(expected)).inspect_err(|_| println!("{how:x?}"))?;
    }
    kernel.processes.spawn(&kernel.program, 0, 4096)?;
    kernel.processes.spawn(&kernel.program, 2, 4096)?;
    kernel.processes.spawn(&kernel.program, 0, 4096)?;
    let ended: Vec<_> = kernel.run()?.iter().map(|ended| ended.how.is_ok_and(|value| value == 42)).collect();
    ok("while others go on", ended == [false, true, true])?;
    spin(guest, &mut kernel)?;
    let (before, _) = heap::sizes();
    ok("the first ones once more", kernel.alone(0, 1)? == Ok(42))?;
    let pages = args.number("pages").unwrap_or(256);
    report("all before", &kernel.processes);
    clear(&mut kernel.processes);
    let sum = pages * (pages - 1) / 2 + 99;
    kernel.processes.spawn(&kernel.program, 1, pages * 4096)?;
    let id = kernel.processes.ids()[0];
    kernel.processes.set(id, 1, pages)?;
    let how = kernel.run()?.first().map(|ended| ended.how);
    ok("a large one forks, and what is forked executes another", how == Some(Ok(sum)))?;
    report("large", &kernel.processes);
    ok("all memory is given back", heap::sizes().0 == before)
}

/// Mappings in the upper half.
fn upper() -> Result<(), Failed> {
    let (before, _) = heap::sizes();
    let mut mapped = Mapped::new(20)?;
    let (start, size) = (mapped.start(), mapped.bytes().len());
    ok("memory side by side is zero", size == 20 * 4096 && mapped.bytes().iter().all(|byte| *byte == 0))?;
    for (byte, value) in mapped.bytes().iter_mut().zip((0..=250).cycle()) {
        *byte = value;
    }
    let same = |bytes: &[u8]| bytes.iter().zip((0..=250).cycle()).all(|(byte, value)| *byte == value);
    ok("and keeps what is written", same(mapped.bytes()))?;
    let place = |address: u64| usize::try_from(address).unwrap_or_default();
    let at = |address: u64| exception::probe(place(address)).is_some();
    ok("with nothing before and behind it", !at(start - 4) && !at(start + 20 * 4096) && at(start))?;
    let protected = mapped.protect()?;
    ok("when it is protected, it can be read", same(protected.bytes()))?;
    // SAFETY: it cannot be written, or its owner only looks at the rest.
    let write = || unsafe { exception::probe_write(place(start), 0) };
    ok("and not written", !write())?;
    drop(protected);
    ok("and written afterwards", write())?;
    drop(mapped);
    ok("and is gone when it is dropped", !at(start))?;
    let tables = 3 * 4096;
    ok("with its memory, but for tables", heap::sizes().0 + tables >= before)
}

/// A process that never ends is interrupted, and others have their turns.
fn spin(guest: &Guest, kernel: &mut Kernel) -> Result<(), Failed> {
    interrupt::start(guest.tree.gic).map_err(|_| Failed::Check("an interrupt controller"))?;
    interrupt::enable(Intid::TIMER, timer::disarm).map_err(|_| Failed::Check("a timer"))?;
    let id = kernel.processes.spawn(&kernel.program, 10, 4096)?;
    // Masked until the process runs: the handler, which disarms the timer, must not come before it.
    let stopped = cpu::without_interrupts(|| {
        timer::arm(time::now().after(Duration::from_millis(1)));
        let stopped = kernel.processes.run(id);
        interrupt::dispatch();
        stopped
    })?;
    ok("who does not end is interrupted", stopped == Stop::Interrupted)?;
    kernel.processes.end(id, Ok(0))?;
    Ok(())
}

fn clear(processes: &mut Processes) {
    let process::Processes { forks, execs, zeroed, copied, switches, exits, protections, .. } = processes;
    for counts in [forks, execs, zeroed, copied, switches, exits, protections] {
        *counts = Counts::default();
    }
}

fn report(what: &str, processes: &Processes) {
    for (name, counts) in [
        ("fork", processes.forks),
        ("exec", processes.execs),
        ("demand-zero page", processes.zeroed),
        ("copy on write", processes.copied),
        ("switch", processes.switches),
        ("exit", processes.exits),
        ("mprotect", processes.protections),
    ] {
        let Counts { times, hypercalls, ticks } = counts;
        if let (Some(each), Some(ticks)) = ((hypercalls * 100).checked_div(times), ticks.checked_div(times)) {
            println!(
                "{what}: {times} x {name}: {}.{:02} hypercalls, {ticks} ticks each",
                each / 100,
                each % 100
            );
        }
    }
}
