//! Encodings of single instructions (Arm ARM C4), and running one.
#![expect(unsafe_code, reason = "runs single instructions that keep this guest whole")]
use guest_kernel::attempt::{self, Code, Level, Registers, Taken, class};

/// `ret`
pub(crate) const RET: u32 = 0xd65f_03c0;
/// `svc #0`
pub(crate) const SVC: u32 = 0xd400_0001;

/// Encodings of one `op0`: op1, `CRn`, `CRm`, op2.
pub(crate) const SYSTEM_ENCODINGS: u32 = 1 << 14;

/// Whether a system instruction reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Direction {
    /// `msr`, `sys`
    Write,
    /// `mrs`, `sysl`
    Read,
}

/// A system instruction on x0: `encoding` is op1:CRn:CRm:op2.
pub(crate) const fn system(direction: Direction, op0: u32, encoding: u32) -> u32 {
    let read = match direction {
        Direction::Write => 0,
        Direction::Read => 1 << 21,
    };
    0xd500_0000 | read | op0 << 19 | encoding << 5
}

/// op1:CRn:CRm:op2 as [`system`] takes them.
pub(crate) const fn encoding(op1: u32, crn: u32, crm: u32, op2: u32) -> u32 {
    op1 << 11 | crn << 7 | crm << 3 | op2
}

/// `hvc`, `smc`, `svc`, `brk`, `hlt` with an immediate.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Exception {
    Svc,
    Hvc,
    Smc,
    Brk,
    Hlt,
}

impl Exception {
    pub(crate) const fn with(self, immediate: u32) -> u32 {
        let base = match self {
            Self::Svc => 0xd400_0001,
            Self::Hvc => 0xd400_0002,
            Self::Smc => 0xd400_0003,
            Self::Brk => 0xd420_0000,
            Self::Hlt => 0xd440_0000,
        };
        base | immediate << 5
    }
}

/// Runs instructions one after another, each on its own, `x0` in x0: tells of each what it left in x0, or its exception. The
/// instructions come in pieces that fit the room.
pub(crate) fn each(
    code: &mut Code,
    level: Level,
    words: impl Iterator<Item = u32>,
    mut x0: impl FnMut(u32) -> u64,
    mut told: impl FnMut(u32, Result<u64, Taken>),
) {
    let back = if level == Level::El1 { RET } else { SVC };
    let mut words = words.enumerate().peekable();
    while words.peek().is_some() {
        let mut piece = heapless_piece();
        for (index, word) in words.by_ref().take(attempt::WORDS / 2) {
            piece.push((index as u32, word));
        }
        let start = code.write(piece.iter().flat_map(|(_, word)| [*word, back]));
        for (at, (index, _)) in piece.iter().enumerate() {
            let mut x: Registers = [0; 31];
            x[0] = x0(*index);
            // SAFETY: the callers choose instructions that, with this register, change nothing that this guest needs.
            let taken = unsafe { attempt::run(level, start + at as u64 * 8, &mut x) };
            told(*index, outcome(level, x[0], taken));
        }
    }
}

fn heapless_piece() -> alloc::vec::Vec<(u32, u32)> {
    alloc::vec::Vec::with_capacity(attempt::WORDS / 2)
}

/// What an attempt came to: coming back by `svc` from EL0 is no exception.
fn outcome(level: Level, x0: u64, taken: Option<Taken>) -> Result<u64, Taken> {
    match taken {
        None => Ok(x0),
        Some(taken) if level != Level::El1 && taken.class() == class::SVC64 => Ok(x0),
        Some(taken) => Err(taken),
    }
}

/// Runs a few instructions with these registers at EL1 or EL0.
pub(crate) fn run(code: &mut Code, level: Level, words: &[u32], x: &mut Registers) -> Option<Taken> {
    let back = if level == Level::El1 { RET } else { SVC };
    let start = code.write(words.iter().copied().chain([back]));
    // SAFETY: as in `each`.
    let taken = unsafe { attempt::run(level, start, x) };
    outcome(level, 0, taken).err()
}

/// Begins somewhere.
pub(crate) fn jump(level: Level, to: u64) -> Option<Taken> {
    begin(level, to, &mut [0; 31])
}

/// Begins somewhere with these registers.
pub(crate) fn begin(level: Level, to: u64, x: &mut Registers) -> Option<Taken> {
    // SAFETY: the callers choose places where no instruction of this guest is, or those that they have just written.
    unsafe { attempt::run(level, to, x) }
}
