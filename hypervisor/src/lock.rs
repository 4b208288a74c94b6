//! The hypervisor's locks: fair, each with its place in one order.
//!
//! Invariants
//! 1. Whoever holds a lock takes only those of higher rank, and of one rank a second only by [`Lock::lock_second`]. Ranks are part of the type; tests
//!    and images with the self-check look at each acquisition against what the CPU holds, in all that they run.
//! 2. They are ticket locks: a CPU that waits gets the lock after each other CPU has had it once at most.
//! 3. Nobody waits for another CPU while he holds one, but for the TLB maintenance that a broadcast does itself.
//!
//! An image that is shipped has the lock alone. Callers are tracked for the model checkers, which take the locks of one place away.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

#[cfg(any(test, feature = "ranks", feature = "selfcheck"))]
mod watch;

use core::fmt;

use spin::mutex::TicketMutex;

#[cfg(any(test, feature = "ranks", feature = "selfcheck"))]
pub use watch::{Guard, out_of_order, take_longest_held};
/// A lock that is held.
#[cfg(not(any(test, feature = "ranks", feature = "selfcheck")))]
pub type Guard<'a, T> = spin::mutex::TicketMutexGuard<'a, T>;

/// What locks guard, in the order in which they are taken.
pub mod rank {
    /// The self-check's sums.
    pub const CHECK: u8 = 10;
    /// A domain's state; two by [`crate::domain::lock_two`].
    pub const DOMAIN: u8 = 20;
    /// Writes of EL2's to pages of a domain whose page tables are checked.
    pub const WRITES: u8 = 25;
    /// Free frames, limbo, owners and roles.
    pub const FRAMES: u8 = 30;
    /// A CPU's run queue.
    pub const QUEUE: u8 = 40;
    /// Who is typed to.
    pub const KEYBOARD: u8 = 45;
    /// A domain's begun line.
    pub const CONSOLE: u8 = 50;
    /// The UART, and what waits for it.
    pub const UART: u8 = 60;
    /// A domain's event queues.
    pub const EVENTS: u8 = 65;
    /// All of them, with what they guard.
    pub const ALL: [(u8, &str); 9] = [
        (CHECK, "the self-check"),
        (DOMAIN, "a domain"),
        (WRITES, "writes to a domain's pages"),
        (FRAMES, "frames"),
        (QUEUE, "a run queue"),
        (KEYBOARD, "the keyboard"),
        (CONSOLE, "a domain's console"),
        (UART, "the UART"),
        (EVENTS, "event queues"),
    ];
}

/// A lock of this rank around a value.
pub struct Lock<T, const RANK: u8>(TicketMutex<T>);

impl<T, const RANK: u8> Lock<T, RANK> {
    /// Free.
    pub const fn new(value: T) -> Self {
        Self(TicketMutex::new(value))
    }

    /// What it guards, of a lock that nobody else knows.
    pub fn get_mut(&mut self) -> &mut T {
        self.0.get_mut()
    }

    /// Waits for its turn.
    #[inline(always)]
    #[track_caller]
    pub fn lock(&self) -> Guard<'_, T> {
        self.watched::<false>()
    }

    /// Waits for its turn, with a lock of the same rank held: the caller keeps to an order among them.
    #[inline(always)]
    #[track_caller]
    pub fn lock_second(&self) -> Guard<'_, T> {
        self.watched::<true>()
    }

    /// Takes it if it is free, so in any order.
    #[inline(always)]
    #[track_caller]
    pub fn try_lock(&self) -> Option<Guard<'_, T>> {
        let guard = self.0.try_lock()?;
        #[cfg(any(test, feature = "ranks", feature = "selfcheck"))]
        let guard = Guard::new(guard, RANK);
        Some(guard)
    }

    #[inline(always)]
    #[track_caller]
    fn watched<const SECOND: bool>(&self) -> Guard<'_, T> {
        #[cfg(any(test, feature = "ranks", feature = "selfcheck"))]
        watch::wanted::<RANK, SECOND>();
        let guard = self.0.lock();
        #[cfg(any(test, feature = "ranks", feature = "selfcheck"))]
        let guard = Guard::new(guard, RANK);
        guard
    }
}

impl<T: Default, const RANK: u8> Default for Lock<T, RANK> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T: fmt::Debug, const RANK: u8> fmt::Debug for Lock<T, RANK> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
