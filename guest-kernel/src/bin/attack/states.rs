//! Processor states that no guest of this kind should be in: AArch32, single-step, illegal returns, debug registers; instructions
//! that are none; jumps into nowhere.
use guest_kernel::attempt::{Code, Level, class};
use guest_kernel::interrupt::{self, Intid};
use guest_kernel::{Guest, cpu, time, timer};

use super::instruction::{Direction, Exception, RET, SVC, begin, each, encoding, jump, run, system};
use crate::tap::Tap;

/// Illegal execution state.
const ILLEGAL_STATE: u64 = 0x0e;
const WFX: u64 = 0x01;
/// What a lower level in AArch32 state takes: undefined, `svc`, aborts, alignment, breakpoints, and traps of this guest's own EL1.
const FROM_32: core::ops::Range<u64> = 0x00..0x3d;
/// `SCTLR_EL1.nTWI`: EL0 may wait for interrupts.
const NTWI: u64 = 1 << 16;
/// A32: `mov r0, #1`, `svc #0`.
const A32: [u32; 2] = [0xe3a0_0001, 0xef00_0000];
/// T32: `movs r0, #1; wfi`, `movs r0, #2; svc #0`.
const T32: [u32; 2] = [0xbf30_2001, 0xdf00_2002];

pub(crate) fn check(tap: &mut Tap, code: &mut Code, guest: &Guest) {
    tap.that("interrupts", interrupt::start(guest.tree.gic).is_ok());
    aarch32(tap, code);
    saved_states(tap, code);
    debug(tap, code);
    random_words(tap, code);
    jumps(tap);
}

fn aarch32(tap: &mut Tap, code: &mut Code) {
    let mut x = [0; 31];
    let taken = run(code, Level::El0In32, &A32, &mut x);
    // Where EL0 has AArch32 nobody forbids it, though no identification register offers it; elsewhere the return is illegal.
    let can = taken.is_some_and(|taken| taken.vector == 12 && taken.class() == class::SVC32);
    let cannot = taken.is_some_and(|taken| taken.vector == 4 && taken.class() == ILLEGAL_STATE);
    tap.is(
        "AArch32 at EL0 runs, or is an illegal return",
        (can || cannot, x[0], taken),
        (true, u64::from(can), taken),
    );
    if !can {
        return;
    }
    // mrc p15, 0, r0, c0, c0, 0 (MIDR); mcr p15, 0, r0, c7, c6, 2 (DCISW); smc #0; hvc #0xea1; mrrc p15; mrc p14; cdp p15; ldc p14
    for word in [
        0xee10_0f10,
        0xee07_0f56,
        0xe160_0070,
        0xe140_ea71,
        0xec51_0f0f,
        0xee10_0e15,
        0xee00_0f00,
        0xecb0_5e01,
    ] {
        let taken = run(code, Level::El0In32, &[word, 0xef00_0000], &mut [0; 31]);
        let undefined = taken.is_some_and(|taken| {
            taken.vector == 12 && [class::UNKNOWN, 3, 4, 5, 6, 0xc].contains(&taken.class())
        });
        tap.that("xsa_102: a privileged instruction at EL0 in AArch32 state is undefined", undefined);
    }
    for state in 0x10..0x20 {
        if state == 0x10 {
            continue;
        }
        let taken = run(code, Level::State(0x1c0 | state), &A32, &mut [0; 31]);
        tap.that(
            "no mode of AArch32 but EL0's exists",
            taken.is_some_and(|taken| taken.vector == 4 && taken.class() == ILLEGAL_STATE),
        );
    }
    waits_in_32(tap, code);
}

/// A wait of 16 bits: the next instruction is two bytes on.
fn waits_in_32(tap: &mut Tap, code: &mut Code) {
    let Ok(()) = interrupt::enable(Intid::TIMER, timer::disarm) else {
        return tap.that("the timer", false);
    };
    let read = [system(Direction::Read, 3, encoding(0, 1, 0, 0))];
    let mut x = [0; 31];
    run(code, Level::El1, &read, &mut x);
    let before = x[0];
    let write = [system(Direction::Write, 3, encoding(0, 1, 0, 0)), 0xd503_3fdf];
    x[0] = before | NTWI;
    run(code, Level::El1, &write, &mut x);
    let start = code.write(T32) | 1;
    let mut in32 = [0; 31];
    // Masked from before the timer is armed: its handler would disarm it, and the wait would have no end.
    let taken = cpu::without_interrupts(|| {
        timer::arm(time::now().after(core::time::Duration::from_millis(1)));
        let taken = begin(Level::El0In32, start, &mut in32);
        timer::disarm();
        taken
    });
    x[0] = before;
    run(code, Level::El1, &write, &mut x);
    let ended = taken.map(|taken| (taken.vector, taken.class()));
    tap.is(
        "behind a 16-bit instruction that traps comes the next one",
        (ended, in32[0]),
        (Some((12, class::SVC32)), 2),
    );
}

/// Every bit of `SPSR_EL1`, with every mode: the next instruction runs, traps, or is illegal, and the hypervisor serves calls from there.
fn saved_states(tap: &mut Tap, code: &mut Code) {
    let mut wrong = None;
    for mode in 0..32 {
        for bit in 5..64 {
            for calls in [
                SVC,
                Exception::Hvc.with(0xea1),
                Exception::Hvc.with(1),
                Exception::Smc.with(7),
                Exception::Brk.with(9),
            ] {
                let spsr = mode | 1 << bit | 0x3c0;
                let start = code.write([calls, SVC, RET]);
                let mut x = [0; 31];
                x[16] = 17;
                let taken = begin(Level::State(spsr), start, &mut x);
                let known = taken.is_some_and(|taken| {
                    let legal = [class::UNKNOWN, class::SVC64, ILLEGAL_STATE, 0x3c, 0x22, 0x0d]
                        .contains(&taken.class());
                    let from_32 = taken.vector >= 12 && FROM_32.contains(&taken.class());
                    legal && taken.vector % 4 == 0 || from_32
                });
                if !known {
                    wrong = wrong.or(Some((spsr, calls, taken)));
                }
            }
        }
    }
    tap.is("row_160: calls and traps from every saved state end at this guest's own vectors", wrong, None);
}

/// Breakpoints, watchpoints, single-step and counters: what is written does not stay, and nothing fires.
fn debug(tap: &mut Tap, code: &mut Code) {
    // MDSCR_EL1, DBGBVR0, DBGBCR0, DBGWVR0, DBGWCR0; PMCR_EL0, PMCNTENSET_EL0, PMCCNTR_EL0, PMUSERENR_EL0, PMINTENSET_EL1.
    let debug = [
        (2, encoding(0, 0, 2, 2)),
        (2, encoding(0, 0, 0, 4)),
        (2, encoding(0, 0, 0, 5)),
        (2, encoding(0, 0, 0, 6)),
        (2, encoding(0, 0, 0, 7)),
    ];
    let monitors = [
        (3, encoding(3, 9, 12, 0)),
        (3, encoding(3, 9, 12, 1)),
        (3, encoding(3, 9, 13, 0)),
        (3, encoding(3, 9, 14, 0)),
        (3, encoding(0, 9, 14, 1)),
    ];
    for (what, registers) in [("debug registers", debug), ("performance monitors", monitors)] {
        let mut stays = None;
        for (op0, register) in registers {
            let words = [
                system(Direction::Write, op0, register),
                0xd503_3fdf,
                system(Direction::Read, op0, register),
            ];
            let mut x = [0; 31];
            // A linked breakpoint on everything, enabled, at every level; step; kernel debug; monitors on.
            x[0] = 0xffff_ffff_ffff_ffff;
            let taken = run(code, Level::El1, &words, &mut x);
            if taken.is_none() && x[0] != 0 {
                stays = Some((op0, register, x[0]));
            }
        }
        tap.is(what, stays, None);
    }
    let mut x = [0; 31];
    tap.is(
        "single-step at EL1 does not stop",
        run(code, Level::State(0x3c5 & !0x200 | 1 << 21), &[0xd280_0020], &mut x).map(|taken| taken.class()),
        None,
    );
}

/// Marsaglia's xorshift generator, upper half.
fn random(state: &mut u64) -> u32 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 32) as u32
}

/// Words that nobody chose, at EL0, where they have no memory: each ends in an exception of EL0 or by itself.
fn random_words(tap: &mut Tap, code: &mut Code) {
    let mut state = 0x9e37_79b9_7f4a_7c15;
    // Not branches backwards, which may never end.
    let branch = |word: u32| {
        word & 0x7c00_0000 == 0x1400_0000
            || word & 0x7e00_0000 == 0x3400_0000
            || word & 0x7e00_0000 == 0x3600_0000
            || word & 0xfe00_0000 == 0x5400_0000
    };
    let words = (0..40_000).map(|_| random(&mut state)).filter(|word| !branch(*word));
    let mut wrong = None;
    each(
        code,
        Level::El0,
        words,
        |_| 0,
        |index, result| {
            if let Err(taken) = result
                && taken.vector != 8
                && wrong.is_none()
            {
                wrong = Some((index, taken));
            }
        },
    );
    tap.is("40000 random words at EL0 end there or at the guest's own vectors", wrong, None);
    tap.is(
        "undefined instructions are the guest's own",
        run(code, Level::El1, &[0], &mut [0; 31]).map(|taken| taken.class()),
        Some(class::UNKNOWN),
    );
    // wfi, wfe, and those with a timeout (FEAT_WFxT) at EL0: this guest's own EL1 forbids them, or they are undefined, or nothing.
    for word in [0xd503_207f, 0xd503_205f, 0xd503_1000, 0xd503_1020] {
        let taken = run(code, Level::El0, &[word], &mut [0; 31]);
        tap.that(
            "waiting at EL0",
            taken.is_none_or(|taken| taken.vector == 8 && [WFX, class::UNKNOWN].contains(&taken.class())),
        );
    }
}

fn jumps(tap: &mut Tap) {
    for (what, to) in [
        ("0", 0),
        ("a page that is not mapped", 0x7e_0000_0000),
        ("the hypervisor's image", 0xc000_0000),
        ("the hypervisor's view of memory", 0x40_4020_0000),
        ("the end of the addresses", u64::MAX - 3),
        ("an address that no register can hold", 0x0123_4567_89ab_cdec),
        ("its own stack", core::ptr::from_ref(&tap).addr() as u64 & !3),
        ("an odd address", 0x3e00_0002),
    ] {
        for level in [Level::El1, Level::El0] {
            let taken = jump(level, to);
            let classes = [class::INSTRUCTION_ABORT, class::INSTRUCTION_ABORT_LOWER, 0x22];
            let own =
                taken.is_some_and(|taken| [4, 8].contains(&taken.vector) && classes.contains(&taken.class()));
            if !own {
                tap.is(what, taken, None);
            }
        }
        tap.that(what, true);
    }
}
