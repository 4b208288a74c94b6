//! Exceptions taken at EL1: interrupts go to their handlers, all others end the guest with a dump of its registers, except at
//! the one instruction that is allowed to fail (`probe`).
#![expect(unsafe_code, reason = "entered from assembly; a load that may fault")]
use core::arch::{asm, global_asm};
use core::fmt;

use aarch64_cpu::registers::{ESR_EL1, FAR_EL1, Readable};

use crate::{attempt, console, interrupt, power};

global_asm!(include_str!("asm/vectors.S"), options(raw));

/// Registers at an exception, as `vectors.S` saves them.
#[repr(C)]
pub(crate) struct Frame {
    pub(crate) x: [u64; 31],
    pub(crate) sp: u64,
    pub(crate) elr: u64,
    pub(crate) spsr: u64,
}

const _: () = assert!(size_of::<Frame>() == 34 * 8);

/// Registers side by side.
struct Words<'a>(&'a [u64]);

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|word| write!(f, " {word:#018x}"))
    }
}

const KINDS: [&str; 4] = ["synchronous", "IRQ", "FIQ", "SError"];
const SOURCES: [&str; 4] = ["EL1 on SP_EL0", "EL1", "EL0", "EL0 (AArch32)"];

#[unsafe(no_mangle)]
extern "C" fn guest_kernel_irq() {
    interrupt::dispatch();
}

#[unsafe(no_mangle)]
extern "C" fn guest_kernel_exception(frame: &mut Frame, vector: usize) {
    if attempt::take(frame, vector) {
        return;
    }
    if let Some(resume) = probe_resume(frame.elr) {
        frame.elr = resume;
        frame.x[0] = 1;
        return;
    }
    let kind = KINDS.get(vector % 4).copied().unwrap_or("?");
    let source = SOURCES.get(vector / 4).copied().unwrap_or("?");
    console::print_last_words(format_args!(
        "unexpected exception: {kind} from {source}\n  ESR {:#018x}  FAR {:#018x}\n  ELR {:#018x}  SP  {:#018x}  SPSR {:#x}\n",
        ESR_EL1.get(),
        FAR_EL1.get(),
        frame.elr,
        frame.sp,
        frame.spsr
    ));
    for (row, registers) in frame.x.chunks(3).enumerate() {
        console::print_last_words(format_args!("  x{:<2}{}\n", row * 3, Words(registers)));
    }
    power::crash();
}

unsafe extern "C" {
    static probe_load: u8;
    static probe_after: u8;
    static probe_store: u8;
    static probe_stored: u8;
    static probe_hvc: u8;
    static probe_hvc_after: u8;
}

// Instructions that may fault, and where to go on with x0 = 1 if they do.
global_asm!(
    ".section .text.probe, \"ax\"",
    ".global probe_read, probe_load, probe_after, probe_write, probe_store, probe_stored, probe_undefined, probe_hvc, probe_hvc_after",
    "probe_write:",
    "mov x2, x0",
    "mov x0, #0",
    "probe_store:",
    "str x1, [x2]",
    "probe_stored:",
    "ret",
    "probe_read:",
    "mov x2, x0",
    "mov x0, #0",
    "probe_load:",
    "ldr w2, [x2]",
    "probe_after:",
    "str w2, [x1]",
    "ret",
    "probe_undefined:",
    "mov x0, #0",
    "probe_hvc:",
    "hvc #1",
    "probe_hvc_after:",
    "ret",
);

/// Where to go on after a fault at `elr`, if that is allowed to fault.
fn probe_resume(elr: u64) -> Option<u64> {
    let pairs = [
        (&raw const probe_load, &raw const probe_after),
        (&raw const probe_store, &raw const probe_stored),
        (&raw const probe_hvc, &raw const probe_hvc_after),
        (&raw const probe_hvc_after, &raw const probe_hvc_after),
    ];
    pairs.iter().find(|(from, _)| from.addr() as u64 == elr).map(|(_, to)| to.addr() as u64)
}

/// Whether an `hvc` with an immediate that nobody defines (1) is undefined.
pub fn undefined_hvc() -> bool {
    let failed: u64;
    // SAFETY: the call either returns or resumes behind itself with x0 = 1; SMCCC's registers are given up.
    unsafe {
        asm!("bl probe_undefined", out("x0") failed, out("x1") _, out("x2") _, out("x3") _, out("x4") _,
            out("x16") _, out("x17") _, out("x30") _);
    }
    failed == 1
}

/// Reads the 32-bit word at `address`, which must be aligned; `None` if that faults.
pub fn probe(address: usize) -> Option<u32> {
    let failed: u64;
    let mut value = 0u32;
    // SAFETY: the load either succeeds or resumes at `probe_after` with x0 = 1; it writes only `value`.
    unsafe {
        asm!("bl probe_read", inlateout("x0") address => failed, inlateout("x1") &raw mut value => _, out("x2") _, out("x30") _);
    }
    (failed == 0).then_some(value)
}

/// Writes a word at `address`, which must be aligned; false if that faults.
///
/// # Safety
/// Nobody relies on what is there.
pub unsafe fn probe_write(address: usize, value: u64) -> bool {
    let failed: u64;
    // SAFETY: the store either succeeds, which is the caller's promise, or resumes at `probe_stored` with x0 = 1.
    unsafe {
        asm!("bl probe_write", inlateout("x0") address => failed, in("x1") value, out("x2") _, out("x30") _);
    }
    failed == 0
}
