//! Ends in the way that the command line asks for, so that what a hypervisor makes of each can be tested:
//! `how=` `poweroff`, `reboot`, `crash`, `error`, `panic`, `overflow` (of the stack), `exhaust` (the heap), `hang` or `spin`, or, until its watchdog
//! bites a second later, `watchdog` and `watchdog-blocked`; or by leaving itself no way on: `vectors`, `tables` or `roots` in nowhere, the `mmu` off, no legal `state`, no `stack`, garbage in its
//! `registers`, a `storm` of interrupts that it never ends, a `timer` that fires for ever.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "leaves itself no way on, which is what it is for")]
extern crate alloc;
use core::arch::asm;
use core::hint::black_box;

use guest_kernel::{Guest, hypercall, interrupt, power, println};

guest_kernel::main!(main);

fn main(guest: &Guest) -> Result<(), &'static str> {
    let how = guest.args().text("how").ok_or("how= is missing")?;
    println!("faulty: {how}");
    match how {
        "poweroff" => power::power_off(),
        "reboot" => power::reboot(),
        "crash" => Err(if outer(black_box(1)) == 0 { "0" } else { "it did not crash" }),
        "error" => Err("as asked"),
        "panic" => panics(black_box(1)),
        "overflow" => Err(if dive(black_box(1)) == 0 { "0" } else { "the stack has no end" }),
        "exhaust" => loop {
            core::mem::forget(black_box(alloc::vec![1u8; 1 << 20]));
        },
        "hang" => {
            interrupt::wait_until(|| false);
            Ok(())
        }
        "spin" => spin(),
        "watchdog" | "watchdog-blocked" => {
            hypercall::watchdog(0, 1).map_err(|_| "no watchdog")?;
            if how == "watchdog" {
                spin();
            }
            interrupt::wait_until(|| false);
            Ok(())
        }
        "vectors" | "tables" | "roots" | "mmu" | "state" | "stack" | "registers" | "storm" | "timer" => {
            // Its console is a hypercall away, and the line must be out.
            lost(how);
            Err("there was a way on")
        }
        _ => Err("how= is not known"),
    }
}

#[inline(never)]
fn spin() -> ! {
    loop {
        core::hint::spin_loop();
    }
}

/// Crashes two calls deep. Both look as if they came back: a function that never does keeps no frame (LLVM saves nothing for whom it does not return to).
#[inline(never)]
fn outer(number: u32) -> u32 {
    inner(black_box(number + 1)) + 1
}

#[inline(never)]
fn inner(number: u32) -> u32 {
    if black_box(number) == 0 { number } else { power::crash() }
}

/// An address of stage 1 and 2 alike where nothing is.
const NOWHERE: u64 = 0x1_0000_0000;

/// Leaves this vCPU no way on.
fn lost(how: &str) {
    match how {
        // The first exception is taken where nothing is, and so are all that come of that.
        // SAFETY: what it does to this guest is what it is for; the same below.
        "vectors" => unsafe { asm!("msr vbar_el1, {}", "isb", "brk #1", in(reg) NOWHERE) },
        // Walks find nothing: neither instructions nor vectors.
        // SAFETY: as above.
        "tables" => unsafe {
            asm!("msr ttbr0_el1, {}", "isb", "tlbi vmalle1", "dsb nsh", "isb", "nop", in(reg) NOWHERE);
        },
        // Walks in the middle of a device, and no size of addresses.
        // SAFETY: as above.
        "roots" => unsafe {
            asm!("msr ttbr0_el1, {}", "msr tcr_el1, {}", "isb", "tlbi vmalle1", "dsb nsh", "isb", "nop", in(reg) 0x0300_1000_u64, in(reg) u64::MAX);
        },
        // Off, with the stack and the program counter where they were.
        // SAFETY: as above.
        "mmu" => unsafe {
            asm!("msr sctlr_el1, {}", "isb", "1: ldr {}, [{}]", "b 1b", in(reg) 0x30d0_0980_u64, out(reg) _, in(reg) NOWHERE);
        },
        // An illegal return, to a mode that is not there; the vectors then are nowhere too.
        // SAFETY: as above.
        "state" => unsafe {
            asm!("msr vbar_el1, {}", "msr spsr_el1, {}", "msr elr_el1, {}", "isb", "eret", in(reg) NOWHERE, in(reg) 0x1f_u64, in(reg) u64::MAX);
        },
        // SAFETY: as above.
        "stack" => unsafe {
            asm!("mov sp, {}", "msr tpidr_el1, {}", "ldr x0, [sp]", in(reg) 8_u64, in(reg) u64::MAX, out("x0") _);
        },
        // SAFETY: as above.
        "registers" => unsafe {
            asm!(
                "msr mair_el1, {0}", "msr contextidr_el1, {0}", "msr cpacr_el1, {0}", "msr cntkctl_el1, {0}", "msr tpidr_el1, {0}",
                "msr sp_el0, {0}", "msr elr_el1, {0}", "msr spsr_el1, {0}", "msr vbar_el1, {0}", "msr ttbr1_el1, {0}",
                "msr csselr_el1, {0}", "msr amair_el1, {0}", "msr tcr_el1, {0}", "msr ttbr0_el1, {0}", "msr sctlr_el1, {0}",
                "isb", "tlbi vmalle1", "dsb nsh", "isb", in(reg) 0xa5a5_5a5a_a5a5_5a5a_u64,
            );
        },
        // Interrupts to itself, taken at vectors that are nowhere.
        // SAFETY: as above.
        "storm" => unsafe {
            asm!("msr vbar_el1, {}", "isb", "msr daifclr, #0xf", "1: msr s3_0_c12_c11_5, {}", "b 1b", in(reg) NOWHERE, in(reg) (9_u64 << 24) | 1);
        },
        // A deadline that has passed, an interrupt that is never taken.
        // SAFETY: as above.
        "timer" => unsafe {
            asm!("msr daifset, #0xf", "msr cntv_cval_el0, xzr", "msr cntv_ctl_el0, {}", "isb", "1: wfi", "b 1b", in(reg) 1_u64);
        },
        _ => {}
    }
}

#[expect(clippy::panic, reason = "what it is for")]
fn panics(number: u32) -> ! {
    panic!("as asked, {number}")
}

/// Goes down until the guard page stops it.
fn dive(depth: u64) -> u64 {
    let here = black_box([depth; 64]);
    if black_box(true) { dive(depth + 1).wrapping_add(here[7]) } else { 0 }
}
