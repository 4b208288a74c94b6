//! Time: the virtual counter, and how it relates to the system time that the hypervisor's deadlines use.
//!
//! 1. A deadline that is computed here is never later than asked by more than the error of one calibration: the difference between
//!    system time and counter is taken from the published run state, and the counter is read after it. Too early only means
//!    that a waiter looks again.
#![expect(unsafe_code, reason = "registers the run-state area")]
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use aarch64_cpu::registers::{CNTFRQ_EL0, CNTVCT_EL0, Readable};
use pv_abi::vcpu::{RegisterRunstate, RunstateInfo};
use spin::Once;

use crate::hypercall;

/// A reading of the virtual counter.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Instant(u64);

/// Counter ticks per second.
pub fn frequency() -> u64 {
    CNTFRQ_EL0.get().max(1)
}

/// The counter now.
#[inline]
pub fn now() -> Instant {
    aarch64_cpu::asm::barrier::isb(aarch64_cpu::asm::barrier::SY);
    Instant(CNTVCT_EL0.get())
}

impl Instant {
    /// The counter at a value.
    pub const fn from_ticks(ticks: u64) -> Self {
        Self(ticks)
    }

    /// Counter ticks.
    pub const fn ticks(self) -> u64 {
        self.0
    }

    /// Time since the counter was zero.
    pub fn since_start(self) -> Duration {
        let (frequency, seconds) = (frequency(), self.0 / frequency());
        let rest = u128::from(self.0 % frequency) * 1_000_000_000 / u128::from(frequency);
        Duration::new(seconds, u32::try_from(rest).unwrap_or(0))
    }

    /// Time since then.
    pub fn elapsed(self) -> Duration {
        Self(now().0.saturating_sub(self.0)).since_start()
    }

    /// The instant `duration` later.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        let ticks = duration.as_nanos().saturating_mul(u128::from(frequency())) / 1_000_000_000;
        Self(self.0.saturating_add(u64::try_from(ticks).unwrap_or(u64::MAX)))
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Where the hypervisor publishes this vCPU's run state ([`RunstateInfo`], as atomics; it may cross no page boundary).
#[repr(C, align(64))]
struct RunState {
    state: AtomicU64,
    entry_time: AtomicU64,
    time: [AtomicU64; 4],
}

/// Index of `RUNSTATE_running` in the times.
const RUNNING: usize = 0;
/// Index of `RUNSTATE_blocked` in the times.
const BLOCKED: usize = 2;

const _: () = {
    assert!(size_of::<RunState>() == 64 && size_of::<RunstateInfo>() == 48);
    assert!(
        core::mem::offset_of!(RunState, entry_time) == core::mem::offset_of!(RunstateInfo, state_entry_time)
    );
};

static RUN_STATE: RunState = RunState {
    state: AtomicU64::new(0),
    entry_time: AtomicU64::new(0),
    time: [const { AtomicU64::new(0) }; 4],
};

/// First guess of how far system time is ahead of what is known, nanoseconds; it grows by a quarter at each try.
const FIRST_LEAD: u64 = 500_000;
/// Tries: the last lead is half a minute, enough for a guest that has run for as long before it asked.
const CALIBRATIONS: u32 = 50;

/// Polls that took as long as their lead, before that is no accident.
const CERTAIN_STOPS: u32 = 4;

/// Registers the area, which publishes the state; the system time when it began.
fn publish() -> Option<u64> {
    let mut area = RegisterRunstate { addr: (&raw const RUN_STATE).addr() as u64 };
    // SAFETY: the area is static, of atomics only, and used for nothing else.
    unsafe { hypercall::register_runstate(0, &mut area) }.ok()?;
    Some(RUN_STATE.entry_time.load(Ordering::Acquire))
}

/// System time minus counter time, nanoseconds, wrapping; 0 if the hypervisor does not tell.
///
/// The run state says at which system time this vCPU began to run, so it has to stop for a moment: it polls no port until a deadline,
/// later and later until one lies in the future. That overshoots by a quarter of the time that the vCPU had run, so do it early.
fn system_offset() -> u64 {
    static OFFSET: Once<u64> = Once::new();
    *OFFSET.call_once(|| {
        let Some(stale) = publish() else { return 0 };
        let (registered, mut lead, mut stops) = (now(), FIRST_LEAD, 0);
        for _ in 0..CALIBRATIONS {
            // System time is at least `known`; by how much more, the leads find out.
            let known = stale.wrapping_add(nanoseconds(registered.elapsed()));
            let deadline = known.saturating_add(lead);
            let asked = now();
            let _ = hypercall::poll(&[], deadline);
            if nanoseconds(asked.elapsed()) >= lead {
                stops += 1;
            }
            let told = match publish() {
                Some(entered) if entered != stale => Some(entered),
                // It stops, but nothing is published: the deadline has just come.
                _ if stops >= CERTAIN_STOPS => Some(deadline),
                _ => None,
            };
            if let Some(told) = told {
                return told.wrapping_sub(nanoseconds(now().since_start()));
            }
            lead += lead / 4;
        }
        0
    })
}

/// How long the boot vCPU, which asks, has run until now, as the hypervisor publishes it; `None` if it does not.
pub fn ran() -> Option<Duration> {
    // What lasts, that it runs, is told by when it began.
    let began = publish()?;
    let before = RUN_STATE.time[RUNNING].load(Ordering::Acquire);
    Some(Duration::from_nanos(before.saturating_add(system_time().saturating_sub(began))))
}

/// How long this vCPU has been blocked in the hypervisor, as that publishes it; zero if it does not.
pub fn blocked() -> Duration {
    let _ = system_offset();
    Duration::from_nanos(RUN_STATE.time[BLOCKED].load(Ordering::Acquire))
}

/// The hypervisor's system time, nanoseconds.
pub fn system_time() -> u64 {
    let offset = system_offset();
    nanoseconds(now().since_start()).wrapping_add(offset)
}
