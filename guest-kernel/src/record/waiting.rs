//! Answers that wait for the comparison that shows them.
//!
//! A case compares one value, and what it was made of cannot be seen from outside; but answers keep their names on the way: a value of a case has
//! an `Ok`, an errno or a status for each answer that it compares. So its text (`{:?}`) says how many of which kind there are, and the latest of that kind
//! are they: what a case compares it has just called for.
//!
//! 1. An answer counts once at most, and not after the next comparison.
use core::fmt::{Debug, Write};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use pv_abi::Errno;
use pv_abi::grant::GrantStatus;

use super::{Seen, note, start};

/// How many wait; earlier ones are forgotten.
const WAITING: usize = 256;

static ONLY_SHOWN: AtomicBool = AtomicBool::new(false);
/// One more than a key; 0 is none. The latest is before `NEXT`, counted around.
static LATEST: [AtomicU32; WAITING] = [const { AtomicU32::new(0) }; WAITING];
static NEXT: AtomicU32 = AtomicU32::new(0);

/// Begins, and counts only what is shown.
pub fn start_shown() {
    ONLY_SHOWN.store(true, Ordering::Relaxed);
    start();
}

/// A value was compared and is as expected: it shows as many of the latest answers as there are of them in its text. All others since the last
/// comparison do not count.
pub fn shown(value: &dyn Debug) {
    if ONLY_SHOWN.load(Ordering::Relaxed) {
        let mut words = Words::default();
        let _ = write!(words, "{value:?} ");
        forget();
    }
}

/// All such answers since the last comparison were compared, in a way that no value shows.
pub fn compared(is_such: impl Fn(Seen) -> bool) {
    take(is_such, usize::MAX);
}

/// No answer until here is compared any more.
pub fn forget() {
    for waiting in &LATEST {
        waiting.store(0, Ordering::Relaxed);
    }
}

/// Keeps an answer, or lets it wait.
pub(super) fn give(seen: Seen) {
    if ONLY_SHOWN.load(Ordering::Relaxed) {
        let place = NEXT.fetch_add(1, Ordering::Relaxed) as usize % WAITING;
        LATEST[place].store(seen.key() + 1, Ordering::Relaxed);
    } else {
        note(seen);
    }
}

/// Counts the latest of those that wait and are such, so many at most; how many it were.
fn take(is_such: impl Fn(Seen) -> bool, most: usize) -> usize {
    let next = NEXT.load(Ordering::Relaxed) as usize;
    let latest = (1..=WAITING).map(|step| &LATEST[next.wrapping_sub(step) % WAITING]);
    let such = latest.filter_map(|waiting| {
        let seen = waiting.load(Ordering::Relaxed).checked_sub(1).map(Seen::of)?;
        is_such(seen).then_some((waiting, seen))
    });
    let counted = such.take(most).map(|(waiting, seen)| {
        waiting.store(0, Ordering::Relaxed);
        note(seen);
    });
    counted.count()
}

/// A text, taken apart into words.
#[derive(Default)]
struct Words(heapless::String<32>);

impl Words {
    /// A word ends: if it is an answer's name, the latest such answer counts.
    fn end(&mut self) {
        let word = core::mem::take(&mut self.0);
        let of = |is_status: bool, code: u32| {
            take(|seen| (seen.is_status, seen.code) == (is_status, code), 1) != 0
        };
        let is = |name: &dyn Debug| {
            let mut text: heapless::String<32> = heapless::String::new();
            write!(text, "{name:?}").is_ok() && text == word
        };
        if word == "Ok" {
            of(false, 0);
            return;
        }
        // One status is called as an errno.
        let errno = Errno::ALL.iter().find(|errno| is(errno));
        if !errno.is_some_and(|errno| of(false, errno.value().unsigned_abs()))
            && let Some(status) = GrantStatus::ALL.iter().find(|status| is(status))
        {
            of(true, status.value().unsigned_abs().into());
        }
    }
}

impl Write for Words {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        for letter in text.chars() {
            if !letter.is_ascii_alphanumeric() {
                self.end();
            } else if self.0.push(letter).is_err() {
                // What is longer than any name is none.
                self.0.clear();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::{all, answer, status};
    use super::*;

    /// Part of the one test that there is: what is kept is kept for all.
    pub(in super::super) fn only_what_a_comparison_shows_counts() {
        start_shown();
        let has = |op, is_status, code| {
            all().any(|seen| (seen.op, seen.is_status, seen.code) == (op, is_status, code))
        };
        answer(32, 6, 0);
        answer(32, 4, 0);
        answer(32, 3, -22);
        answer(20, 0, 0);
        status(0, -3);
        shown(&(Ok::<_, Errno>(GrantStatus::BadGntref), "Okay", [0; 3]));
        assert!(has(0, false, 0) && has(0, true, 3), "the latest, and its status");
        assert!(!has(6, false, 0) && !has(4, false, 0) && !has(3, false, 22), "what prepared it is none");
        shown(&Err::<(), _>(Errno::Einval));
        assert!(!has(3, false, 22), "and is forgotten");
        answer(32, 3, -22);
        answer(32, 6, 0);
        shown(&(Err::<(), _>(Errno::Einval), Ok::<_, Errno>(())));
        assert!(has(3, false, 22) && has(6, false, 0));
        answer(32, 4, 0);
        forget();
        compared(|_| true);
        assert!(!has(4, false, 0));
        answer(32, 4, 0);
        answer(32, 5, 0);
        compared(|seen| seen.op == 4);
        assert!(has(4, false, 0) && !has(5, false, 0));
    }
}
