//! Time: the virtual counter, and how it relates to the system time that the hypervisor's deadlines use.
//!
//! 1. A system time that is computed here is never ahead of the hypervisor's: the difference to the counter is taken from published
//!    run states, which tell when this vCPU began to run, and the counter is read after them. It only grows, each time that the vCPU stops.
//!    What it lacks is what the vCPU lost in between, at worst all that it was held up by; a deadline that comes too early for that
//!    ends a wait early, and the next one has learned from it.
#![expect(unsafe_code, reason = "registers the run-state area")]
use core::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use core::time::Duration;

use aarch64_cpu::registers::{CNTFRQ_EL0, CNTVCT_EL0, Readable};
use pv_abi::vcpu::{RegisterRunstate, RunstateInfo};
use spin::Once;

use crate::{hypercall, smp};

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

    /// Time until then; zero when it is over.
    pub fn until(self) -> Duration {
        Self(self.0.saturating_sub(now().0)).since_start()
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
/// Index of `RUNSTATE_runnable` in the times.
const RUNNABLE: usize = 1;
/// Index of `RUNSTATE_blocked` in the times.
const BLOCKED: usize = 2;
/// Index of `RUNSTATE_offline` in the times.
const OFFLINE: usize = 3;

const _: () = {
    assert!(size_of::<RunState>() == 64 && size_of::<RunstateInfo>() == 48);
    assert!(
        core::mem::offset_of!(RunState, entry_time) == core::mem::offset_of!(RunstateInfo, state_entry_time)
    );
};

/// Index = vCPU.
static RUN_STATES: [RunState; smp::MAX_CPUS] = [const {
    RunState {
        state: AtomicU64::new(0),
        entry_time: AtomicU64::new(0),
        time: [const { AtomicU64::new(0) }; 4],
    }
}; smp::MAX_CPUS];

/// That of the vCPU that asks.
fn own() -> &'static RunState {
    let [first, ..] = &RUN_STATES;
    RUN_STATES.get(smp::this().index()).unwrap_or(first)
}

/// First guess of how far system time is ahead of what is known, nanoseconds; it grows by a quarter at each try.
const FIRST_LEAD: u64 = 500_000;
/// Tries: the last lead is half a minute, enough for a guest that has run for as long before it asked.
const CALIBRATIONS: u32 = 50;
/// Stops after the first one, which lower the error to that of the best.
const REFINEMENTS: u32 = 3;
/// Polls that took as long as their lead, before that is no accident.
const CERTAIN_STOPS: u32 = 4;

/// System time minus counter time, nanoseconds: the highest lower bound that was seen.
static OFFSET: AtomicI64 = AtomicI64::new(i64::MIN);

/// System time was at least this a moment ago.
fn learn(system: u64) {
    // What is being written (bit 63) is negative, and raises nothing.
    OFFSET.fetch_max(system.cast_signed().saturating_sub(counted().cast_signed()), Ordering::Relaxed);
}

/// Counter time, nanoseconds.
fn counted() -> u64 {
    nanoseconds(now().since_start())
}

/// Registers the area, which publishes the state; the system time when it began.
fn publish() -> Option<u64> {
    let own = own();
    let mut area = RegisterRunstate { addr: core::ptr::from_ref(own).addr() as u64 };
    // SAFETY: the area is static, of atomics only, and used for nothing else.
    unsafe { hypercall::register_runstate(smp::this().number(), &mut area) }.ok()?;
    Some(own.entry_time.load(Ordering::Acquire))
}

/// Finds [`OFFSET`] out; 0 if the hypervisor does not tell.
///
/// The run state says at which system time this vCPU began to run, so it has to stop for a moment: it polls no port until a deadline,
/// later and later until one lies in the future. That overshoots by a quarter of the time that the vCPU had run, so do it early.
fn calibrate() {
    let Some(stale) = publish() else {
        OFFSET.store(0, Ordering::Relaxed);
        return;
    };
    learn(stale);
    let (mut lead, mut stops, mut told) = (FIRST_LEAD, 0, 0);
    for _ in 0..CALIBRATIONS {
        let before = own().entry_time.load(Ordering::Acquire);
        let deadline = estimate().saturating_add(lead);
        let asked = now();
        let _ = hypercall::poll(&[], deadline);
        if nanoseconds(asked.elapsed()) >= lead {
            stops += 1;
        }
        if publish() != Some(before) {
            told += 1;
            lead = FIRST_LEAD;
        } else if stops >= CERTAIN_STOPS {
            // It stops, but nothing is published: the deadline has just come.
            learn(deadline);
            told += 1;
        } else {
            lead += lead / 4;
        }
        if told > REFINEMENTS {
            return;
        }
    }
}

/// System time at least, by what is known.
fn estimate() -> u64 {
    match own().entry_time.load(Ordering::Acquire) {
        0 => {}
        entered => learn(entered),
    }
    counted().saturating_add_signed(OFFSET.load(Ordering::Relaxed))
}

/// How long the vCPU that asks has run until now, as the hypervisor publishes it; `None` if it does not.
pub fn ran() -> Option<Duration> {
    // What lasts, that it runs, is told by when it began.
    let began = publish()?;
    let before = own().time[RUNNING].load(Ordering::Acquire);
    Some(Duration::from_nanos(before.saturating_add(system_time().saturating_sub(began))))
}

/// What the hypervisor has published of a vCPU, nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Accounts {
    /// System time when it began to run.
    pub entered: u64,
    /// It ran, was blocked, waited for a CPU and was off until then.
    pub spent: [u64; 4],
}

impl Accounts {
    /// What it did in between, in the order of [`Self::spent`].
    pub fn since(&self, before: &Self) -> [u64; 4] {
        core::array::from_fn(|index| self.spent[index].saturating_sub(before.spent[index]))
    }

    /// What they were at a system time that has come, for a vCPU that runs and wanted to all the time since then: either it has run since,
    /// or it waited for the CPU that it has now.
    #[must_use]
    pub fn at(&self, system: u64) -> Self {
        let [ran, blocked, waited, off] = self.spent;
        let spent = if self.entered <= system {
            [ran.saturating_add(system.saturating_sub(self.entered)), blocked, waited, off]
        } else {
            [ran, blocked, waited.saturating_sub(self.entered.saturating_sub(system)), off]
        };
        Self { entered: system, spent }
    }
}

/// The accounts of the vCPU that asks, when it was last given a CPU.
pub fn accounts() -> Accounts {
    let _ = system_time();
    if own().entry_time.load(Ordering::Acquire) == 0 {
        let _ = publish();
    }
    let entered = || own().entry_time.load(Ordering::Acquire);
    loop {
        let before = entered();
        let states = [RUNNING, BLOCKED, RUNNABLE, OFFLINE];
        let spent = states.map(|state| own().time[state].load(Ordering::Acquire));
        // Else it was stopped in between.
        if entered() == before {
            return Accounts { entered: before, spent };
        }
    }
}

/// The hypervisor's system time, nanoseconds; never ahead of it.
pub fn system_time() -> u64 {
    static CALIBRATED: Once<()> = Once::new();
    CALIBRATED.call_once(calibrate);
    estimate()
}
