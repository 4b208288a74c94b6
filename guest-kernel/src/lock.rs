//! The lock of this crate: fair, and aware that whoever holds it may not be on a CPU now.
//!
//! 1. Waiters are served in the order in which they came, and give their CPU to other vCPUs while they wait: with more vCPUs than CPUs the
//!    holder runs sooner.
//! 2. It does not mask interrupts: what handlers take too is taken under [`cpu::without_interrupts`](crate::cpu::without_interrupts).
use spin::RelaxStrategy;
use spin::mutex::TicketMutex;

use crate::hypercall;

/// Looks at a lock that is held before the CPU is given away.
const LOOKS: u32 = 16;

/// What a waiter does between two looks.
#[derive(Debug)]
pub struct Yield;

impl RelaxStrategy for Yield {
    fn relax() {
        (0..LOOKS).for_each(|_| core::hint::spin_loop());
        // Never refused; if it were, this would be plain spinning.
        let _ = hypercall::sched_yield();
    }
}

/// A fair lock.
pub type Lock<T> = TicketMutex<T, Yield>;
