//! Whether locks are taken in their order, and for how long they are held: for tests, and images with the self-check.

use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use spin::mutex::TicketMutexGuard;

/// Ranks are multiples of this.
const STEP: u8 = 5;
/// Places that ranks have.
const PLACES: usize = 16;

/// One more than the rank that was held and the one that was wanted, of the first that were taken out of order; on the host a test panics instead.
static OUT_OF_ORDER: AtomicU32 = AtomicU32::new(0);
/// By the place of the rank, how long one was held at most since somebody asked, in ticks.
static LONGEST: [AtomicU64; PLACES] = [const { AtomicU64::new(0) }; PLACES];

/// A lock that is held.
pub struct Guard<'a, T> {
    rank: u8,
    since: u64,
    inner: TicketMutexGuard<'a, T>,
}

impl<'a, T> Guard<'a, T> {
    pub(super) fn new(guard: TicketMutexGuard<'a, T>, rank: u8) -> Self {
        change_held(|held| held.with(rank));
        Self { rank, since: now(), inner: guard }
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        if let Some(longest) = LONGEST.get(usize::from(self.rank / STEP)) {
            longest.fetch_max(now().saturating_sub(self.since), Relaxed);
        }
        change_held(|held| held.without(self.rank));
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

/// What a CPU holds: a bit for each rank, and above them one for each rank of which it has two.
#[derive(Clone, Copy)]
struct Held(u64);

impl Held {
    fn bit(rank: u8) -> u64 {
        1_u64.checked_shl(u32::from(rank / STEP)).unwrap_or(0)
    }

    fn with(self, rank: u8) -> Self {
        let bit = Self::bit(rank);
        Self(self.0 | if self.0 & bit == 0 { bit } else { bit << PLACES })
    }

    fn without(self, rank: u8) -> Self {
        let bit = Self::bit(rank);
        Self(self.0 & !if self.0 & bit << PLACES == 0 { bit } else { bit << PLACES })
    }

    /// The highest rank, if any is held.
    fn highest(self) -> Option<u8> {
        let ranks = self.0 & ((1 << PLACES) - 1);
        u8::try_from(ranks.checked_ilog2()?).ok()?.checked_mul(STEP)
    }
}

/// Looks whether this rank may be taken now.
pub(super) fn wanted<const RANK: u8, const SECOND: bool>() {
    const { assert!(RANK.is_multiple_of(STEP) && RANK as usize / (STEP as usize) < PLACES) };
    let mut before = None;
    change_held(|held| {
        before = held.highest();
        held
    });
    let held = before.unwrap_or(0);
    let in_order = before.is_none() || held < RANK || (held == RANK && SECOND);
    #[cfg(not(target_os = "none"))]
    assert!(in_order, "a lock of rank {RANK} is wanted, one of rank {held} is held");
    if !in_order {
        let first = (u32::from(held) << 8 | u32::from(RANK)).saturating_add(1);
        let _ = OUT_OF_ORDER.compare_exchange(0, first, Relaxed, Relaxed);
    }
}

/// The first that were taken out of order: the rank that was held, and the one that was wanted.
pub fn out_of_order() -> Option<(u8, u8)> {
    let [wanted, held, ..] = OUT_OF_ORDER.load(Relaxed).checked_sub(1)?.to_le_bytes();
    Some((held, wanted))
}

/// How long a lock of this rank was held at most since this was asked last, in ticks of the system counter; 0 on the host.
pub fn take_longest_held(rank: u8) -> u64 {
    LONGEST.get(usize::from(rank / STEP)).map_or(0, |longest| longest.swap(0, Relaxed))
}

#[cfg(target_os = "none")]
fn now() -> u64 {
    use tock_registers::interfaces::Readable;
    aarch64_cpu::registers::CNTPCT_EL0.get()
}

#[cfg(not(target_os = "none"))]
fn now() -> u64 {
    0
}

/// Changes what this CPU holds; it is masked for interrupts.
#[cfg(target_os = "none")]
fn change_held(change: impl FnOnce(Held) -> Held) {
    use tock_registers::interfaces::Readable;
    /// By the two lowest levels of affinity: as many as any of our machines has.
    static HELD: [AtomicU64; 64] = [const { AtomicU64::new(0) }; 64];
    let affinity = aarch64_cpu::registers::MPIDR_EL1.get();
    let cpu = (affinity & 7) | (affinity >> 8 & 7) << 3;
    let held = usize::try_from(cpu).ok().and_then(|cpu| HELD.get(cpu));
    if let Some(held) = held {
        held.store(change(Held(held.load(Relaxed))).0, Relaxed);
    }
}

/// Changes what this thread holds: a thread is a CPU.
#[cfg(not(target_os = "none"))]
fn change_held(change: impl FnOnce(Held) -> Held) {
    std::thread_local! {
        static HELD: core::cell::Cell<u64> = const { core::cell::Cell::new(0) };
    }
    HELD.with(|held| held.set(change(Held(held.get())).0));
}

#[cfg(test)]
mod tests {
    use crate::lock::Lock;

    #[test]
    fn locks_are_taken_upwards_and_two_of_a_rank_when_that_is_said() {
        let (low, high, other) = (Lock::<_, 20>::new(1), Lock::<_, 30>::new(2), Lock::<_, 20>::new(3));
        let one = low.lock();
        let two = other.lock_second();
        let three = high.lock();
        assert_eq!((*one, *two, *three), (1, 3, 2));
        // In any order.
        drop(one);
        drop(three);
        drop(two);
        drop(high.lock());
        drop(low.lock());
    }

    #[test]
    #[should_panic(expected = "a lock of rank 20 is wanted, one of rank 30 is held")]
    fn a_lower_rank_is_refused() {
        let (low, high) = (Lock::<_, 20>::new(()), Lock::<_, 30>::new(()));
        let _high = high.lock();
        let _low = low.lock();
    }

    #[test]
    #[should_panic(expected = "a lock of rank 20 is wanted, one of rank 20 is held")]
    fn a_second_of_the_same_rank_is_refused_unless_that_is_said() {
        let (one, two) = (Lock::<_, 20>::new(()), Lock::<_, 20>::new(()));
        let _one = one.lock();
        let _two = two.lock();
    }

    #[test]
    fn one_that_is_free_is_tried_in_any_order() {
        let (low, high) = (Lock::<_, 20>::new(()), Lock::<_, 30>::new(()));
        let _high = high.lock();
        assert!(low.try_lock().is_some());
    }
}
