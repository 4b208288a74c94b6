//! `console_io`: text of guests on the machine's console, a line at a time, as `(dN) line`.
//!
//! Invariants
//! 1. What a guest writes appears on lines that begin with its name, and is UTF-8 without control characters but tabs, without what
//!    orders or breaks lines, and without the log's mark (`utf8`): a guest can neither forge the hypervisor's log nor another guest's lines.
//! 2. A guest writes at most [`BURST`] bytes at once and [`BYTES_PER_SECOND`] over time. What is more is dropped and counted, whole
//!    lines, and the count is told before the next line that comes through.
//! 3. A line is put out in one piece, when it is complete, when it is full, and when the domain ends.
//! 4. Within that rate nothing is lost while the machine's console is slower: what it has no room for is not taken, and the guest writes it
//!    again. Since others may be the reason, nobody waits longer than two seconds for one line; then it is dropped as in 2.
//!
//! Xen lets the control domain alone write (a debug build all domains); Pavo lets every domain, since there is no control domain that
//! would show their consoles. Reading gives the keys of whoever has the keyboard ([`keyboard`]).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

pub mod keyboard;
pub mod ring;
mod utf8;

use heapless::Vec;
use pv_abi::console::ConsoleOp;
use pv_abi::{DomId, Errno};

use crate::addr::GuestVa;
use crate::domain::Domain;
use crate::guest_memory;
use crate::hardware::Hardware;
use crate::hypercall::{Answer, Args, Stop, low_u32};
use crate::machine::{Current, Machine};
use crate::sched;
use crate::stretch::Stretch;
use utf8::{Character, Step};

/// Most characters of a line that are kept until the newline comes.
pub const LINE_LENGTH: usize = 160;
/// Bytes that a domain may write at once: several times what a Linux says while it boots without `quiet`.
pub const BURST: u64 = 256 * 1024;
/// Bytes that a domain may write over time; some ten times what a serial line at 115200 baud carries.
pub const BYTES_PER_SECOND: u64 = 128 * 1024;
/// How long a line waits for room (invariant 4): longer than a serial line at 115200 baud needs for all that may wait before it.
const PATIENCE_SECONDS: u64 = 2;
/// Bytes that are copied from the guest at once.
const CHUNK: usize = 64;
/// Chunks that one run of `write` takes before it lets interrupts in: a byte costs up to 85 instructions.
const CHUNKS: u32 = 2;
/// Lines that one chunk puts out at most: an empty one costs 800 instructions. What is behind them is written again.
const LINES: usize = 4;
/// The prefix, its number and the newline.
const DECORATION: usize = 16;
/// What a domain has written since the last newline, and what it may still write. Under its own lock, rank 50.
#[derive(Debug)]
pub struct LineBuffer {
    text: Vec<u8, LINE_LENGTH>,
    /// The character of several bytes that was begun. What there is of it is not in `text`.
    character: Character,
    /// Bytes that it may write now.
    tokens: u64,
    /// Counter value at which `tokens` was true.
    refilled: u64,
    /// Bytes dropped since the last line that came through.
    dropped: u64,
    /// Of the line that is being written something was dropped: the rest is too.
    torn: bool,
    /// Counter value at which there was no room for the line first; 0 when there was.
    waits: u64,
}

impl Default for LineBuffer {
    fn default() -> Self {
        Self::new()
    }
}

impl LineBuffer {
    /// An empty line and a full bucket.
    pub const fn new() -> Self {
        Self {
            text: Vec::new(),
            character: Character::NONE,
            tokens: BURST,
            refilled: 0,
            dropped: 0,
            torn: false,
            waits: 0,
        }
    }

    /// Takes tokens for `bytes`; false, and they are counted as dropped, when there are not enough.
    fn admit<H: Hardware>(&mut self, hw: &H, bytes: usize) -> bool {
        let now = hw.counter();
        let elapsed = now.saturating_sub(self.refilled);
        let earned =
            elapsed.saturating_mul(BYTES_PER_SECOND).checked_div(hw.counter_frequency()).unwrap_or(0);
        if earned != 0 {
            self.tokens = self.tokens.saturating_add(earned).min(BURST);
            self.refilled = now;
        }
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let left = self.tokens.checked_sub(bytes);
        match left {
            Some(left) => self.tokens = left,
            None => self.dropped = self.dropped.saturating_add(bytes),
        }
        left.is_some()
    }

    /// Drops the line that has begun: `refused` of it was not admitted, and is counted.
    fn tear(&mut self, refused: &[u8]) {
        let begun = u64::try_from(self.text.len()).unwrap_or(0);
        self.dropped = self.dropped.saturating_add(begun);
        self.text.clear();
        self.character = Character::NONE;
        self.torn = refused.last() != Some(&b'\n');
    }

    /// Drops what still belongs to a torn line, and returns what comes after it.
    fn after_torn<'a>(&mut self, text: &'a [u8]) -> &'a [u8] {
        if !self.torn {
            return text;
        }
        let end = text.iter().position(|byte| *byte == b'\n');
        self.torn = end.is_none();
        let rest = end.and_then(|end| text.get(end.wrapping_add(1)..)).unwrap_or_default();
        let lost = u64::try_from(text.len().saturating_sub(rest.len())).unwrap_or(0);
        self.dropped = self.dropped.saturating_add(lost);
        rest
    }

    /// Takes a byte; false when there is no room for the line that it would put out, and it is to be put again.
    fn put<H: Hardware>(&mut self, hw: &H, id: DomId, byte: u8) -> bool {
        match byte {
            b'\n' => {
                self.character = Character::NONE;
                self.put_out(hw, id)
            }
            b'\t' | b' '..=b'~' => {
                self.character = Character::NONE;
                if !self.make_room(hw, id, 1) {
                    return false;
                }
                // There is room now.
                let _ = self.text.push(byte);
                true
            }
            0x80.. => match self.character.next(byte) {
                Step::More(character) => {
                    self.character = character;
                    true
                }
                Step::Whole(character) => {
                    // What was begun stays begun until there is room.
                    if !self.make_room(hw, id, character.length()) {
                        return false;
                    }
                    self.character = Character::NONE;
                    for byte in character.bytes() {
                        let _ = self.text.push(byte);
                    }
                    true
                }
                Step::Nothing => {
                    self.character = Character::NONE;
                    true
                }
            },
            // Control characters, DEL: what they interrupt is not one character.
            _ => {
                self.character = Character::NONE;
                true
            }
        }
    }

    /// Puts the line out if so many bytes have no room in it; false when there is no room for that, and nothing is changed.
    #[inline]
    fn make_room<H: Hardware>(&mut self, hw: &H, id: DomId, bytes: usize) -> bool {
        self.text.len().saturating_add(bytes) <= LINE_LENGTH || self.put_out(hw, id)
    }

    /// Puts out what there is of the line, even if it is empty; false when the console has no room and waiting is not over.
    fn put_out<H: Hardware>(&mut self, hw: &H, id: DomId) -> bool {
        if self.tell_dropped(hw, id) && hw.console(&self.line(id)) {
            self.waits = 0;
        } else {
            let now = hw.counter().max(1);
            if self.waits == 0 {
                self.waits = now;
            }
            let patience = hw.counter_frequency().saturating_mul(PATIENCE_SECONDS);
            if now.saturating_sub(self.waits) < patience {
                return false;
            }
            self.drop_line();
        }
        self.text.clear();
        true
    }

    /// Says how much was dropped, if anything was; false when there is no room for that.
    fn tell_dropped<H: Hardware>(&mut self, hw: &H, id: DomId) -> bool {
        if self.dropped == 0 {
            return true;
        }
        let mut note: Vec<u8, 64> = Vec::new();
        // 64 characters hold the longest numbers.
        prefix(&mut note, id);
        let _ = note.extend_from_slice(b"[");
        decimal(&mut note, self.dropped);
        let _ = note.extend_from_slice(b" bytes dropped]\n");
        let told = hw.console(&note);
        if told {
            self.dropped = 0;
        }
        told
    }

    fn line(&self, id: DomId) -> Vec<u8, { LINE_LENGTH + DECORATION }> {
        let mut line = Vec::new();
        prefix(&mut line, id);
        let _ = line.extend_from_slice(&self.text);
        let _ = line.push(b'\n');
        line
    }

    /// Counts the line, with its newline, as dropped.
    fn drop_line(&mut self) {
        let bytes = u64::try_from(self.text.len()).unwrap_or(0).saturating_add(1);
        self.dropped = self.dropped.saturating_add(bytes);
    }
}

/// What every line of a domain starts with.
fn prefix<const N: usize>(line: &mut Vec<u8, N>, id: DomId) {
    let _ = line.extend_from_slice(b"(d");
    decimal(line, u64::from(id.0));
    let _ = line.extend_from_slice(b") ");
}

/// Appends a number. Not by `core::fmt`: that calls through pointers, which nothing does that a guest can reach.
fn decimal<const N: usize>(line: &mut Vec<u8, N>, number: u64) {
    let mut digits: Vec<u8, 20> = Vec::new();
    let mut rest = number;
    for _ in 0..20 {
        let digit = u8::try_from(rest % 10).unwrap_or(0);
        let _ = digits.push(b'0'.wrapping_add(digit));
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    for digit in digits.iter().rev() {
        let _ = line.push(*digit);
    }
}

/// Writes text for a domain, as an emulated serial port does too. Returns how many bytes were taken: when they are not all, the console has no
/// room now, and the rest is to be written again.
pub fn write_text<H: Hardware>(hw: &H, domain: &Domain, text: &[u8]) -> usize {
    let mut buffer = domain.console.lock();
    if !buffer.admit(hw, text.len()) {
        buffer.tear(text);
        return text.len();
    }
    let rest = buffer.after_torn(text);
    let taken = rest.iter().take_while(|byte| buffer.put(hw, domain.id, **byte)).count();
    let refused = rest.len().saturating_sub(taken);
    buffer.tokens = buffer.tokens.saturating_add(u64::try_from(refused).unwrap_or(0));
    text.len().saturating_sub(refused)
}

/// What one run takes of a chunk: up to the newline of the last line that it may put out.
fn portion(chunk: &[u8]) -> &[u8] {
    let mut newlines = (1_usize..).zip(chunk).filter(|(_, byte)| **byte == b'\n');
    newlines.nth(LINES.saturating_sub(1)).and_then(|(end, _)| chunk.get(..end)).unwrap_or(chunk)
}

/// Puts out the line that a domain has begun: it has ended, and its next life begins a line.
pub fn flush<H: Hardware>(hw: &H, domain: &Domain) {
    let mut buffer = domain.console.lock();
    if !buffer.text.is_empty() || buffer.dropped != 0 {
        let _ = buffer.tell_dropped(hw, domain.id);
        hw.console_last(&buffer.line(domain.id));
        buffer.text.clear();
    }
    (buffer.character, buffer.torn, buffer.waits) = (Character::NONE, false, 0);
}

/// Reads keys: as many as there are.
#[cold]
fn read<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, count: u32, to: GuestVa) -> Answer {
    let mut keys: Vec<u8, { keyboard::KEYS }> = Vec::new();
    for _ in 0..count {
        if keys.is_full() {
            break;
        }
        let Some(key) = machine.keyboard.take(current.domain.id) else { break };
        let _ = keys.push(key);
    }
    guest_memory::write_bytes(machine, current, to, &keys)?;
    Ok(u64::try_from(keys.len()).unwrap_or(0))
}

/// `console_io`.
///
/// # Errors
/// `-EFAULT`, what came before is written; `-E2BIG` for reading more than an `int` can say, `-ENOSYS`. Restarts.
#[inline(never)]
pub fn console_io<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, args: &Args) -> Answer {
    let [cmd, count, buffer, a3, a4] = *args;
    match ConsoleOp::from_number(low_u32(cmd)) {
        Some(ConsoleOp::Write) => {}
        // The result is an `int`.
        Some(ConsoleOp::Read) if i32::try_from(low_u32(count)).is_err() => return Err(Errno::E2big.into()),
        Some(ConsoleOp::Read) => return read(machine, current, low_u32(count), GuestVa::new(buffer)),
        None => return Err(Errno::Enosys.into()),
    }
    let mut left = usize::try_from(low_u32(count)).map_err(|_| Errno::Einval)?;
    let mut va = GuestVa::new(buffer);
    let run = Stretch::begin(machine, current);
    for chunk in 0..machine.hw.budget(CHUNKS) {
        if left == 0 {
            return Ok(0);
        }
        if chunk != 0 && run.is_long(machine) {
            break;
        }
        let mut bytes = [0; CHUNK];
        let chunk = bytes.get_mut(..left.min(CHUNK)).ok_or(Errno::Efault)?;
        guest_memory::read_bytes(machine, current, va, chunk)?;
        let chunk = portion(chunk);
        let (asked, taken) = (chunk.len(), write_text(&machine.hw, current.domain, chunk));
        left = left.saturating_sub(taken);
        // Past the end of the address space there can be no more.
        va = match u64::try_from(taken).ok().and_then(|bytes| va.checked_add(bytes)) {
            Some(next) => next,
            None if left == 0 => return Ok(0),
            None => return Err(Errno::Efault.into()),
        };
        if taken < asked {
            // No room: others run meanwhile.
            sched::give_way(current);
            break;
        }
    }
    if left == 0 {
        return Ok(0);
    }
    let left = u64::try_from(left).map_err(|_| Errno::Efault)?;
    Err(Stop::Restart([cmd, left, va.get(), a3, a4]))
}
