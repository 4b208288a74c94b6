//! Every immediate of the instructions that make exceptions.
use guest_kernel::attempt::{Code, Level, Taken, class};

use super::instruction::{Exception, each};
use crate::tap::Tap;

const IMMEDIATES: u32 = 1 << 16;
/// Function ids and call numbers that nobody defines: what `hvc #0` and `hvc #0xEA1` find in x0 and x16 of an attempt is 0 or this.
const NO_FUNCTION: u64 = 0x8fff_ffff;
/// `brk` from AArch64.
const BRK: u64 = 0x3c;
/// The immediate of hypercalls.
const TAG: u32 = 0xea1;

/// The first immediate whose result is not as expected.
type Wrong = Option<(u32, Result<u64, u64>)>;

fn sweep(
    code: &mut Code,
    level: Level,
    kind: Exception,
    expected: impl Fn(u32, Result<u64, Taken>) -> bool,
) -> Wrong {
    let mut wrong = None;
    let words = (0..IMMEDIATES).map(|immediate| kind.with(immediate));
    each(
        code,
        level,
        words,
        |_| NO_FUNCTION,
        |immediate, result| {
            if !expected(immediate, result) {
                wrong = wrong.or(Some((immediate, result.map_err(|taken| taken.esr))));
            }
        },
    );
    wrong
}

fn undefined(vector: usize, result: Result<u64, Taken>) -> bool {
    result.is_err_and(|taken| taken.vector == vector && taken.class() == class::UNKNOWN)
}

pub(crate) fn check(tap: &mut Tap, code: &mut Code) {
    let not_supported = u64::MAX;
    let wrong = sweep(code, Level::El1, Exception::Hvc, |immediate, result| match immediate {
        // SMCCC: not supported, and that alone.
        0 => result.is_ok_and(|x0| x0 == not_supported),
        // Hypercall 0 of the attempt's x16, which nobody has.
        TAG => result.is_ok(),
        _ => undefined(4, result),
    });
    tap.is("row_125: every immediate of hvc but two is undefined", wrong, None);
    let wrong = sweep(code, Level::El1, Exception::Smc, |immediate, result| match immediate {
        0 => result.is_ok_and(|x0| x0 == not_supported),
        _ => undefined(4, result),
    });
    tap.is(
        "xsa_254: every immediate of smc but 0 is undefined, and no function reaches the firmware",
        wrong,
        None,
    );
    for (what, kind) in [
        ("xsa_76: hvc at EL0 is undefined, whatever the immediate", Exception::Hvc),
        ("smc at EL0 is undefined, whatever the immediate", Exception::Smc),
        ("hlt at EL0 is undefined, whatever the immediate", Exception::Hlt),
    ] {
        tap.is(what, sweep(code, Level::El0, kind, |_, result| undefined(8, result)), None);
    }
    let wrong = sweep(code, Level::El1, Exception::Hlt, |_, result| undefined(4, result));
    tap.is("hlt is undefined, whatever the immediate", wrong, None);
    for (what, kind, ec) in [
        ("row_160: every brk is the guest's own exception", Exception::Brk, BRK),
        ("every svc is the guest's own exception", Exception::Svc, class::SVC64),
    ] {
        let wrong = sweep(code, Level::El1, kind, |immediate, result| {
            result.is_err_and(|taken| {
                taken.vector == 4 && taken.class() == ec && taken.esr & 0xffff == u64::from(immediate)
            })
        });
        tap.is(what, wrong, None);
    }
}
