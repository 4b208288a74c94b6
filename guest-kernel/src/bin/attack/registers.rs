//! Every system register and system instruction that has an encoding.
#![expect(unsafe_code, reason = "registers that nothing here depends on")]
use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::arch::asm;

use guest_kernel::attempt::{Code, Level, Taken, class};
use guest_kernel::frame::Frame;
use guest_kernel::interrupt::{self, Intid};
use guest_kernel::{Guest, cpu, hypercall, time, timer};

use super::instruction::{Direction, SYSTEM_ENCODINGS, each, encoding, system};
use crate::tap::Tap;

/// Where EL2 keeps its image and its view of memory: no register that a guest reads holds such an address.
const EL2_IMAGE: core::ops::Range<u64> = 0xc000_0000..0xc020_0000;
const EL2_MEMORY: core::ops::Range<u64> = 0x40_0000_0000..0x60_0000_0000;

/// An encoding and what came of it, if that was wrong.
type Wrong = Option<(u32, u32, u64)>;

pub(crate) fn check(tap: &mut Tap, code: &mut Code, guest: &Guest) {
    vectors(tap);
    kept(tap);
    hints(tap, code, guest);
    let read = read_all(tap, code, Level::El1);
    let known = read.iter().filter(|value| value.is_some()).count();
    tap.that("some registers can be read", known > 40);
    tap.is("no register shows an address of the hypervisor", shown_address(&read), None);
    identity(tap, &read);
    write_back(tap, code, &read);
    instructions(tap, code);
    let again = read_all(tap, code, Level::El1);
    let lost = read.iter().zip(&again).position(|(before, after)| before.is_some() && after.is_none());
    tap.is("what could be read can still be read", lost, None);
    read_all(tap, code, Level::El0);
    from_user(tap, code);
}

/// The 32 vector registers and `FPCR`, `FPSR`: as they are, and then as they are given.
fn exchange_vectors(give: &[u64; 64]) -> ([u64; 64], [u64; 2]) {
    let (mut had, mut control) = ([0; 64], [0; 2]);
    // SAFETY: floating point is let in; nothing else in this guest uses it (softfloat). Stores 512 and 16 bytes, loads 512.
    unsafe {
        asm!(
            ".arch_extension fp", ".arch_extension simd",
            "mrs {t}, cpacr_el1", "orr {t}, {t}, #0x300000", "msr cpacr_el1, {t}", "isb",
            "st1 {{v0.2d-v3.2d}}, [{p}], #64", "st1 {{v4.2d-v7.2d}}, [{p}], #64",
            "st1 {{v8.2d-v11.2d}}, [{p}], #64", "st1 {{v12.2d-v15.2d}}, [{p}], #64",
            "st1 {{v16.2d-v19.2d}}, [{p}], #64", "st1 {{v20.2d-v23.2d}}, [{p}], #64",
            "st1 {{v24.2d-v27.2d}}, [{p}], #64", "st1 {{v28.2d-v31.2d}}, [{p}], #64",
            "mrs {t}, s3_3_c4_c4_0", "str {t}, [{c}]", "mrs {t}, s3_3_c4_c4_1", "str {t}, [{c}, #8]",
            "ld1 {{v0.2d-v3.2d}}, [{q}], #64", "ld1 {{v4.2d-v7.2d}}, [{q}], #64",
            "ld1 {{v8.2d-v11.2d}}, [{q}], #64", "ld1 {{v12.2d-v15.2d}}, [{q}], #64",
            "ld1 {{v16.2d-v19.2d}}, [{q}], #64", "ld1 {{v20.2d-v23.2d}}, [{q}], #64",
            "ld1 {{v24.2d-v27.2d}}, [{q}], #64", "ld1 {{v28.2d-v31.2d}}, [{q}], #64",
            t = out(reg) _, c = in(reg) control.as_mut_ptr(),
            p = inout(reg) had.as_mut_ptr() => _, q = inout(reg) give.as_ptr() => _,
        );
    }
    (had, control)
}

/// Turns that others get between two looks.
const TURNS: u32 = 200;

/// Floating point: nothing of others at first, and one's own for ever, though others use theirs meanwhile.
fn vectors(tap: &mut Tap) {
    let own: [u64; 64] = core::array::from_fn(|index| 0xa77a_c000_0000_0000 | index as u64);
    let first = exchange_vectors(&own);
    tap.is("xsa_165: floating-point registers begin as zeros", first, ([0; 64], [0; 2]));
    let mut lost = 0;
    for _ in 0..TURNS {
        let _ = hypercall::sched_yield();
        lost += u32::from(exchange_vectors(&own).0 != own);
    }
    tap.is("xsa_267: floating-point registers stay its own", lost, 0);
}

/// Registers of EL1 that have no effect here keep what was written, each pattern, while others run.
fn kept(tap: &mut Tap) {
    let mut lost = None;
    for turn in 0..TURNS {
        let pattern = 0x5a5a_5a5a_0000_0000_u64.rotate_left(turn) | u64::from(turn);
        // SAFETY: nothing of this guest depends on these registers, but for `TPIDR_EL0` at exceptions, of which there are none here.
        unsafe {
            asm!(
                "msr contextidr_el1, {v}", "msr amair_el1, {v}", "msr tpidrro_el0, {v}", "msr sp_el0, {v}", "msr afsr1_el1, {v}",
                "msr far_el1, {v}", "msr ttbr1_el1, {v}", "msr cntkctl_el1, {k}", v = in(reg) pattern, k = in(reg) u64::from(turn % 4),
                options(nostack, preserves_flags),
            );
        }
        let before = read_kept();
        let _ = hypercall::sched_yield();
        if read_kept() != before {
            lost = lost.or(Some((turn, pattern)));
        }
    }
    tap.is("xsa_91: registers of EL1 keep what was written", lost, None);
}

fn read_kept() -> [u64; 8] {
    let mut values = [0; 8];
    // SAFETY: reads registers, and stores them into `values`.
    unsafe {
        asm!(
            "mrs {a}, contextidr_el1", "mrs {b}, amair_el1", "stp {a}, {b}, [{p}]",
            "mrs {a}, tpidrro_el0", "mrs {b}, sp_el0", "stp {a}, {b}, [{p}, #16]",
            "mrs {a}, afsr1_el1", "mrs {b}, far_el1", "stp {a}, {b}, [{p}, #32]",
            "mrs {a}, ttbr1_el1", "mrs {b}, cntkctl_el1", "stp {a}, {b}, [{p}, #48]",
            a = out(reg) _, b = out(reg) _, p = in(reg) values.as_mut_ptr(), options(nostack, preserves_flags),
        );
    }
    values
}

/// Trapped waits.
const WFX: u64 = 0x01;

/// op0 0: hints, barriers, fields of `PSTATE`, and what is none of them; with no register, and with one. An interrupt is pending all the
/// time, so that waits end; what lets it in ends there.
fn hints(tap: &mut Tap, code: &mut Code, guest: &Guest) {
    let ready =
        interrupt::start(guest.tree.gic).and_then(|()| interrupt::enable(Intid::TIMER, timer::disarm));
    tap.is("the timer", ready, Ok(()));
    for (what, level) in [
        ("every hint, barrier and field of PSTATE at EL1 does something or is undefined", Level::El1),
        ("every hint, barrier and field of PSTATE at EL0 does something or is refused", Level::El0),
    ] {
        let mut wrong: Wrong = None;
        cpu::without_interrupts(|| {
            timer::arm(time::Instant::from_ticks(0));
            for (direction, rt) in [(Direction::Write, 31), (Direction::Write, 0), (Direction::Read, 0)] {
                let words = (0..SYSTEM_ENCODINGS).map(|encoding| system(direction, 0, encoding) | rt);
                each(
                    code,
                    level,
                    words,
                    |_| 0,
                    |encoding, result| match result {
                        Ok(_) => {}
                        Err(taken) if refused(level, encoding, taken) => {}
                        // Interrupts let in; a wait that this guest's own EL1 forbids.
                        Err(taken) if taken.vector == 5 && level == Level::El1 => {}
                        Err(taken) if taken.vector == 8 && level == Level::El0 && taken.class() == WFX => {}
                        Err(taken) => wrong = wrong.or(Some((0, encoding, taken.esr))),
                    },
                );
            }
            timer::disarm();
        });
        tap.is(what, wrong, None);
    }
}

/// Classes of what this guest's own EL1 has not let in: floating point, SVE, SME.
const NOT_LET_IN: [u64; 3] = [class::FLOATING_POINT, 0x19, 0x1d];

/// An undefined instruction, or one that this guest's own EL1 traps: what it has not let in, what EL0 may not, and identification registers
/// that are not there (`FEAT_IDST`, `CRn` 0).
fn refused(level: Level, encoding: u32, taken: Taken) -> bool {
    let own_trap = level != Level::El1 || (encoding >> 7).is_multiple_of(16);
    let vector = if level == Level::El1 { 4 } else { 8 };
    let undefined = taken.class() == class::UNKNOWN || NOT_LET_IN.contains(&taken.class());
    taken.vector == vector && (undefined || own_trap && taken.class() == class::SYSTEM_REGISTER)
}

/// Reads all; op0 1 to 3 behind one another.
fn read_all(tap: &mut Tap, code: &mut Code, level: Level) -> Vec<Option<u64>> {
    let mut values = vec![None; 3 * SYSTEM_ENCODINGS as usize];
    let mut wrong: Wrong = None;
    for op0 in 1..=3 {
        let words = (0..SYSTEM_ENCODINGS).map(|encoding| system(Direction::Read, op0, encoding));
        each(
            code,
            level,
            words,
            |_| 0,
            |encoding, result| match result {
                Ok(value) => values[((op0 - 1) * SYSTEM_ENCODINGS + encoding) as usize] = Some(value),
                Err(taken) if refused(level, encoding, taken) => {}
                Err(taken) => wrong = wrong.or(Some((op0, encoding, taken.esr))),
            },
        );
    }
    match level {
        Level::El1 => tap.is(
            "xsa_93: every read of a system register at EL1 gives a value or is undefined",
            wrong,
            None,
        ),
        _ => tap.is("every read of a system register at EL0 gives a value or is refused", wrong, None),
    }
    values
}

fn shown_address(values: &[Option<u64>]) -> Option<(usize, u64)> {
    let shown = |value: u64| EL2_IMAGE.contains(&value) || EL2_MEMORY.contains(&value);
    values
        .iter()
        .enumerate()
        .find_map(|(index, value)| value.filter(|value| shown(*value)).map(|value| (index, value)))
}

/// The fields of identification registers that must be zero: SVE, AMU, MPAM, RAS (`PFR0`); MTE, SME, MPAM, CSV2 minor version,
/// NMI (PFR1); trace, sampling, performance monitors (DFR0); pointer authentication (ISAR1).
fn identity(tap: &mut Tap, read: &[Option<u64>]) {
    let value = |crm: u32, op2: u32| {
        read[(2 * SYSTEM_ENCODINGS + encoding(0, 0, crm, op2)) as usize].unwrap_or(u64::MAX)
    };
    let fields =
        |value: u64, fields: &[u32]| fields.iter().all(|field| (value >> (field * 4)).is_multiple_of(16));
    let pfr0 = value(4, 0);
    tap.that("xsa_351: activity monitors are not offered", fields(pfr0, &[11]));
    tap.that("neither SVE nor RAS nor MPAM nor secure EL2 is offered", fields(pfr0, &[7, 8, 9, 10]));
    tap.is("EL1 and EL0 are AArch64 only", pfr0 & 0xff, 0x11);
    tap.that("neither EL2 nor EL3 is offered", fields(pfr0, &[2, 3]));
    tap.that("no register for speculation contexts is offered", pfr0 >> 56 & 0xf < 2);
    tap.that("neither MTE nor SME nor NMI is offered", fields(value(4, 1), &[2, 4, 6, 8, 9, 10, 11]));
    tap.that(
        "neither trace nor sampling nor performance monitors are offered",
        fields(value(5, 0), &[1, 2, 8, 9, 10, 11]),
    );
    tap.that("pointer authentication is not offered", fields(value(6, 1), &[1, 2, 6, 7]));
    tap.is("SVE and SME have no features", (value(4, 4), value(4, 5)), (0, 0));
    let aarch32 = (0..8).chain(16..24).all(|n| value(1 + n / 8, n % 8) == 0);
    tap.that("AArch32 has no features", aarch32);
}

/// Writes to each register what it reads as, and zero to those that cannot be read.
fn write_back(tap: &mut Tap, code: &mut Code, read: &[Option<u64>]) {
    let mut wrong: Wrong = None;
    for op0 in 2..=3 {
        let words = (0..SYSTEM_ENCODINGS).map(|encoding| system(Direction::Write, op0, encoding));
        let before = |encoding: u32| read[((op0 - 1) * SYSTEM_ENCODINGS + encoding) as usize].unwrap_or(0);
        each(code, Level::El1, words, before, |encoding, result| match result {
            Ok(_) => {}
            Err(taken) if refused(Level::El1, encoding, taken) => {}
            Err(taken) => wrong = wrong.or(Some((op0, encoding, taken.esr))),
        });
    }
    tap.is("every write of a system register at EL1 is served or undefined", wrong, None);
}

/// Addresses that system instructions get: a page of its own, one that it does not map, one at the top, garbage.
fn instructions(tap: &mut Tap, code: &mut Code) {
    let page: Box<Frame> = Frame::boxed();
    let own = core::ptr::from_ref(&*page).expose_provenance() as u64;
    for (what, address) in [
        ("its own page", own),
        ("an address that it does not map", 0x7e_0000_0000),
        ("the top of the addresses", u64::MAX - 7),
        ("an address of the hypervisor", EL2_MEMORY.start + 0x4020_0000),
        ("garbage", 0x5a5a_a5a5_5a5a_a5a5),
    ] {
        let mut wrong: Wrong = None;
        let words = (0..SYSTEM_ENCODINGS).map(|encoding| system(Direction::Write, 1, encoding));
        each(
            code,
            Level::El1,
            words,
            |_| address,
            |encoding, result| match result {
                Ok(_) => {}
                Err(taken) if refused(Level::El1, encoding, taken) => {}
                Err(taken) if taken.vector == 4 && taken.class() == class::DATA_ABORT => {}
                Err(taken) => wrong = wrong.or(Some((1, encoding, taken.esr))),
            },
        );
        tap.is(what, wrong, None);
    }
    tap.that(
        "its page is still its own",
        page.words().iter().all(|word| word.load(core::sync::atomic::Ordering::Relaxed) == 0),
    );
}

fn from_user(tap: &mut Tap, code: &mut Code) {
    let mut wrong: Wrong = None;
    for op0 in 1..=3 {
        let words = (0..SYSTEM_ENCODINGS).map(|encoding| system(Direction::Write, op0, encoding));
        each(
            code,
            Level::El0,
            words,
            |_| 0x7e_0000_0000,
            |encoding, result| match result {
                Ok(_) => {}
                Err(taken) if refused(Level::El0, encoding, taken) => {}
                Err(taken) if taken.vector == 8 && taken.class() == class::DATA_ABORT_LOWER => {}
                Err(taken) => wrong = wrong.or(Some((op0, encoding, taken.esr))),
            },
        );
    }
    tap.is("every write of a system register at EL0 is served or refused", wrong, None);
}
