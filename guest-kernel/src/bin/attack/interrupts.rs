//! Every register of the interrupt controller, whatever it does to this guest's own interrupts: the last family.
use guest_kernel::attempt::{Code, Level, Registers, Shown, Taken, Window, class};
use pv_abi::layout;

use super::instruction::{Direction, RET, begin, encoding, run, system};
use crate::tap::Tap;

/// Values that are written to every register.
const VALUES: [u64; 6] = [0, u64::MAX, 0x5555_5555_5555_5555, 0xaaaa_aaaa_aaaa_aaaa, 1 << 31, 1];
/// Where [`Window`] shows.
const WINDOW: u64 = 0x70_0000_0000;
/// `ldr`s and `str`s of 1, 2, 4, 8 bytes: x1 or w1 at x0.
const LOADS: [u32; 4] = [0x3940_0001, 0x7940_0001, 0xb940_0001, 0xf940_0001];
const STORES: [u32; 4] = [0x3900_0001, 0x7900_0001, 0xb900_0001, 0xf900_0001];

pub(crate) fn check(tap: &mut Tap, code: &mut Code, window: &mut Window) {
    if window.show(0, Shown::Device).is_none() {
        return tap.that("the window", false);
    }
    let wrong = accesses(code, layout::GICV3_GICD_BASE, layout::GICV3_GICD_SIZE);
    tap.is("xsa_94: every access to the distributor is served or aborted", wrong, None);
    // The redistributors of eight vCPUs, whether they are there or not, and the last one that there might be.
    for at in [
        layout::GICV3_GICR_BASE,
        layout::GICV3_GICR_BASE + layout::GICV3_GICR_SIZE - layout::GICV3_GICR_STRIDE,
    ] {
        let wrong = accesses(code, at, layout::GICV3_GICR_STRIDE);
        tap.is("every access to a redistributor is served or aborted", wrong, None);
    }
    forms(tap, code);
    sgis(tap, code);
    noise(tap, code);
}

/// What could make the hypervisor say something, again and again: whoever runs this counts its lines.
fn noise(tap: &mut Tap, code: &mut Code) {
    // A register that is not there, and a performance monitor.
    for (what, op0, register) in [
        ("xsa_118: bad accesses by the ten thousand", 3, encoding(3, 15, 15, 7)),
        ("xsa_152: accesses to performance monitors by the ten thousand", 3, encoding(3, 9, 12, 0)),
    ] {
        for _ in 0..10_000 {
            run(code, Level::El1, &[system(Direction::Read, op0, register)], &mut [0; 31]);
        }
        tap.that(what, true);
    }
}

/// Reads and writes every byte of a frame with every width that fits there.
fn accesses(code: &mut Code, base: u64, size: u64) -> Option<(u64, u32, Option<Taken>)> {
    let loads = code.write(LOADS.iter().chain(&STORES).flat_map(|word| [*word, RET]));
    let mut wrong = None;
    for offset in 0..size {
        for (index, width) in [1, 2, 4, 8].into_iter().enumerate() {
            if !offset.is_multiple_of(width) {
                continue;
            }
            for (at, values) in [(loads, 0..1), (loads + 32, 0..2)] {
                for turn in values {
                    // Each register meets all of them, since they take turns.
                    let value = VALUES[(offset as usize / 8 * 2 + offset as usize % 8 + turn) % VALUES.len()];
                    let mut x: Registers = [0; 31];
                    (x[0], x[1]) = (WINDOW + base + offset, value);
                    let taken = begin(Level::El1, at + index as u64 * 8, &mut x);
                    let aborted =
                        taken.is_none_or(|taken| taken.vector == 4 && taken.class() == class::DATA_ABORT);
                    if !aborted && wrong.is_none() {
                        wrong = Some((offset, width as u32, taken));
                    }
                }
            }
        }
    }
    wrong
}

/// Accesses that a syndrome does not describe: aborted, and nothing else.
fn forms(tap: &mut Tap, code: &mut Code) {
    let mut wrong = None;
    // ldp, stp, ldr post-indexed, ldxr, stxr, ldar, ldtr, unaligned ldr; ldr q0, str q0; dc zva; ldadd (where there is one).
    for word in [
        0xa940_0801,
        0xa900_0801,
        0xf840_8401,
        0xc85f_7c01,
        0xc802_7c01,
        0xc8df_fc01,
        0xf840_0801,
        0xf840_1001,
        0x3dc0_0000,
        0x3d80_0000,
        system(Direction::Write, 1, encoding(3, 7, 4, 1)),
        0xf821_0002,
    ] {
        for base in [layout::GICV3_GICD_BASE, layout::GICV3_GICR_BASE] {
            let mut x: Registers = [0; 31];
            x[0] = WINDOW + base;
            let taken = run(code, Level::El1, &[word], &mut x);
            // Floating point may be off, an instruction unknown.
            let own = taken.is_none_or(|taken| {
                taken.vector == 4 && [class::DATA_ABORT, class::UNKNOWN, 0x07].contains(&taken.class())
            });
            if !own {
                wrong = wrong.or(Some((word, taken)));
            }
        }
    }
    tap.is("row_161: accesses that no syndrome describes are this guest's own aborts", wrong, None);
}

/// Software interrupts to whoever is not there: by register, every field at its edges.
fn sgis(tap: &mut Tap, code: &mut Code) {
    let mut wrong = None;
    for affinity in [0_u64, 1, 0xff, 1 << 16, 0xff << 16, 1 << 32, 0xff << 32, 1 << 48, 0xff << 48, 1 << 40] {
        for targets in [0_u64, 1, 2, 0x8000, 0xffff] {
            for rest in [0_u64, 0xf << 24, 1 << 40, 0xf << 44, 1 << 63] {
                // ICC_SGI1R_EL1, ICC_ASGI1R_EL1, ICC_SGI0R_EL1
                for op2 in [5, 6, 7] {
                    let mut x: Registers = [0; 31];
                    x[0] = affinity | targets | rest;
                    let taken = run(
                        code,
                        Level::El1,
                        &[system(Direction::Write, 3, encoding(0, 12, 11, op2))],
                        &mut x,
                    );
                    let own = taken.is_none_or(|taken| taken.vector == 4 && taken.class() == class::UNKNOWN);
                    if !own {
                        wrong = wrong.or(Some((x[0], op2, taken)));
                    }
                }
            }
        }
    }
    tap.is("row_150: software interrupts to vCPUs that are not there go nowhere", wrong, None);
    let at = code.write([STORES[2], RET]);
    let mut wrong = None;
    for value in (0..16).flat_map(|intid| (0..4).map(move |filter| intid | filter << 24)).chain([
        u64::MAX,
        0xff_0000,
        1 << 15,
    ]) {
        for list in [0_u64, 0x01, 0x80, 0xff] {
            let mut x: Registers = [0; 31];
            (x[0], x[1]) = (WINDOW + layout::GICV3_GICD_BASE + 0xf00, value | list << 16);
            let taken = begin(Level::El1, at, &mut x);
            if taken.is_some_and(|taken| taken.class() != class::DATA_ABORT) {
                wrong = wrong.or(Some((value, taken)));
            }
        }
    }
    tap.is("xsa_117: every filter and target list of GICD_SGIR is served", wrong, None);
}
