//! Stopping all other CPUs for the self-check, in builds that have it.
//!
//! Invariants
//! 1. A CPU stops in the scheduler only, before it looks at anything: it holds no lock, and its hypercall is done or has left what it restarts
//!    with. So whoever waits for it waits for one hypercall at most.
//! 2. The one that stops others holds no lock either, and does not leave EL2 before it lets them go.

use core::hint::spin_loop;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use hypervisor::hardware::CpuId;

use super::{gic, stretch};

/// The CPU that stops the others, plus one.
static STOPPER: AtomicUsize = AtomicUsize::new(0);
static STOPPED: AtomicU32 = AtomicU32::new(0);
/// Instead of a CPU: those that were stopped are leaving.
const LEAVING: usize = usize::MAX;

/// Stops the others; false when another CPU was first: the caller goes back to its guest, where it is interrupted.
pub fn others(cpu: CpuId) -> bool {
    let own = usize::from(cpu.0);
    if STOPPER.compare_exchange(0, own.wrapping_add(1), Ordering::AcqRel, Ordering::Acquire).is_err() {
        return false;
    }
    let all = super::entered();
    for other in (0..).map(CpuId).zip(0..all).map(|(other, _)| other).filter(|other| *other != cpu) {
        gic::kick(other);
    }
    while STOPPED.load(Ordering::Acquire) < all.wrapping_sub(1) {
        spin_loop();
    }
    true
}

/// Lets them go on. Nobody stops them anew before the last has left: it would wait for this CPU, which waits here.
pub fn let_go() {
    STOPPER.store(LEAVING, Ordering::Release);
    while STOPPED.load(Ordering::Acquire) != 0 {
        spin_loop();
    }
    STOPPER.store(0, Ordering::Release);
    stretch::forgive();
}

/// Stops, when another CPU wants that. Called by the scheduler, where the stopper does not come.
#[inline]
pub fn here() {
    let wanted = || !matches!(STOPPER.load(Ordering::Acquire), 0 | LEAVING);
    if wanted() {
        STOPPED.fetch_add(1, Ordering::AcqRel);
        while wanted() {
            spin_loop();
        }
        STOPPED.fetch_sub(1, Ordering::AcqRel);
        stretch::forgive();
    }
}
