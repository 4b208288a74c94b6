//! What calls were answered: which errno each sub-call gave, and each status of an element of a batch. Off until [`start`]; the
//! conformance suite compares it with `pv-abi`'s table.
//!
//! What a case prepares, puts right, or does not look at is no answer that somebody checked: after [`start_shown`] one waits until a
//! comparison shows it (`waiting`), and is forgotten with the next if none does.
//!
//! 1. The set has room for [`ROOM`] different answers; what is beyond is counted by [`lost`].
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

#[cfg(any(target_os = "none", test))]
use pv_abi::memory::MEMOP_CMD_MASK;
use pv_abi::{Errno, Hypercall};

/// Different answers that are kept.
pub const ROOM: usize = 1024;
/// Sub-calls from here on are one: no call has so many.
pub const OTHERS: u32 = 63;
/// Pavo's own sub-calls stand here instead of at 0x8000.
pub const OWN: u32 = 48;
/// Bits of a grant-table command that are the operation.
#[cfg(any(target_os = "none", test))]
const GRANT_OP: u64 = 0xFFF;

mod waiting;

pub use waiting::{compared, forget, shown, start_shown};

static ON: AtomicBool = AtomicBool::new(false);
static LOST: AtomicU32 = AtomicU32::new(0);
/// One more than a key; 0 is free. A key's place is the first free one from its hash on.
static SEEN: [AtomicU32; ROOM] = [const { AtomicU32::new(0) }; ROOM];

/// An answer of a sub-call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    /// The call's number.
    pub number: u32,
    /// Its sub-call, at most [`OTHERS`].
    pub op: u32,
    /// Whether `code` is the status of an element, else of the call.
    pub is_status: bool,
    /// 0 for success, else the errno or the negated status.
    pub code: u32,
}

impl Seen {
    const fn key(self) -> u32 {
        (self.is_status as u32) << 24 | self.number << 16 | self.op << 8 | self.code
    }

    const fn of(key: u32) -> Self {
        Self { number: key >> 16 & 0xFF, op: key >> 8 & 0xFF, is_status: key >> 24 != 0, code: key & 0xFF }
    }
}

/// Begins, and counts every answer.
pub fn start() {
    ON.store(true, Ordering::Relaxed);
}

/// Ends: what follows is not noted, until [`start`].
pub fn stop() {
    ON.store(false, Ordering::Relaxed);
}

#[expect(clippy::inline_always, reason = "a load and a branch in each call")]
#[inline(always)]
pub(crate) fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// Notes what a call was answered.
#[cfg(any(target_os = "none", test))]
#[cold]
#[inline(never)]
pub(crate) fn answer(number: u64, cmd: u64, result: i64) {
    let Some(call) = Hypercall::from_number(number) else { return };
    // Results are ints, and an int's refusal is not always sign-extended.
    let bytes = result.to_le_bytes();
    let int = match call {
        // But for counts of extents.
        Hypercall::MemoryOp => i32::try_from(result).unwrap_or(0),
        _ => i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
    };
    let op = match call {
        Hypercall::Multicall | Hypercall::MmuUpdate | Hypercall::UpdateVaMapping => 0,
        // Its sub-call is in memory: who makes it says so.
        Hypercall::MmuExtOp => return,
        Hypercall::MemoryOp => cmd & MEMOP_CMD_MASK,
        Hypercall::GrantTableOp => cmd & GRANT_OP,
        _ => cmd & 0xFFFF_FFFF,
    };
    waiting::give(Seen {
        number: u32::from(call.number()),
        op: u32::try_from(op).unwrap_or(OTHERS).min(OTHERS),
        is_status: false,
        code: if int < 0 { int.unsigned_abs().min(0xFF) } else { 0 },
    });
}

/// Notes what a sub-call was answered that is not named by a register. Our own, from 0x8000 on, are kept from [`OWN`] on.
pub fn sub_call(number: u64, cmd: u32, result: Result<(), Errno>) {
    if is_on() {
        let op = match cmd {
            // The one that is beyond, of `platform_op`, is none of theirs.
            0..OWN | 62 => cmd,
            0x8000..0x800E => OWN + (cmd - 0x8000),
            _ => OTHERS,
        };
        let code = result.map_or_else(|errno| errno.value().unsigned_abs().min(0xFF), |()| 0);
        waiting::give(Seen { number: u32::try_from(number).unwrap_or(0), op, is_status: false, code });
    }
}

/// Notes the status of an element of a grant-table batch.
pub fn status(op: u32, status: i16) {
    if is_on() {
        let code = u32::from(status.unsigned_abs()).min(0xFF);
        waiting::give(Seen {
            number: u32::from(Hypercall::GrantTableOp.number()),
            op: op.min(OTHERS),
            is_status: true,
            code,
        });
    }
}

fn note(seen: Seen) {
    let key = seen.key() + 1;
    let first = (key.wrapping_mul(0x9E37_79B1) >> 16) as usize;
    for step in 0..ROOM {
        match SEEN[(first + step) % ROOM].compare_exchange(0, key, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return,
            Err(there) if there == key => return,
            Err(_) => {}
        }
    }
    LOST.fetch_add(1, Ordering::Relaxed);
}

/// Every different answer so far, in no order.
pub fn all() -> impl Iterator<Item = Seen> {
    SEEN.iter().filter_map(|key| key.load(Ordering::Relaxed).checked_sub(1)).map(Seen::of)
}

/// Prints what each sub-call was answered, a line each: `# answers CALL.OP: CODE..`, and `# statuses ..` for elements of batches.
#[cfg(target_os = "none")]
pub fn tell() {
    use pv_abi::control::{DOMCTL, PLATFORM, SYSCTL};
    let calls = Hypercall::ALL.iter().map(|call| u64::from(call.number()));
    for number in calls.chain([PLATFORM, SYSCTL, DOMCTL]) {
        for (word, is_status) in [("answers", false), ("statuses", true)] {
            for op in 0..=OTHERS {
                let mut codes = [0_u8; 256];
                all()
                    .filter(|seen| {
                        (u64::from(seen.number), seen.op, seen.is_status) == (number, op, is_status)
                    })
                    .for_each(|seen| codes[seen.code as usize] = 1);
                if codes.contains(&1) {
                    crate::print!("# {word} {number}.{op}:");
                    for (code, _) in codes.iter().enumerate().filter(|(_, seen)| **seen != 0) {
                        crate::print!(" {code}");
                    }
                    crate::println!();
                }
            }
        }
    }
    if lost() != 0 {
        crate::println!("# answers lost");
    }
}

/// Answers for which there was no room.
pub fn lost() -> u32 {
    LOST.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_answer_is_kept_once_and_if_asked_only_where_it_is_shown() {
        start();
        for _ in 0..3 {
            answer(12, 0x40 | 7, -14);
            answer(29, 6, 0xFFFF_FFE4);
            answer(32, 1 << 20, 0);
            status(5, -9);
        }
        let mut seen: heapless::Vec<_, 8> = heapless::Vec::new();
        for answer in all() {
            seen.push((answer.number, answer.op, answer.is_status, answer.code)).unwrap();
        }
        seen.sort_unstable();
        assert_eq!(seen, [(12, 7, false, 14), (20, 5, true, 9), (29, 6, false, 28), (32, OTHERS, false, 0)]);
        assert_eq!(lost(), 0);
        waiting::tests::only_what_a_comparison_shows_counts();
    }
}
