//! Run-state accounting: how long each vCPU ran, waited for a CPU, was blocked and was off, and the area in guest memory where it is told
//! (`VCPUOP_register_runstate_memory_area`; Linux computes steal time from it).
//!
//! Invariants
//! 1. A state and the moment at which it began are one word, and the time between two words is added to the earlier word's state exactly
//!    once, whichever CPU changes it: every transition is one exchange.
//! 2. An area is told by address once, when it is registered. From then on its frames, two at most, are held by a reference each until
//!    another area is registered; the guest's own translation is not looked at again.
//! 3. An area is written by the CPU that runs the vCPU, and by the one that registers it. A CPU that read the address before another area
//!    was registered may still write to the old frames: they are the domain's, or in limbo, until that CPU has left the hypervisor
//!    ([`crate::frame_alloc`]).
//! 4. In a domain with checked page tables such a page may have become a table, which nobody writes: there the area is looked at again, and
//!    written, under the lock that a page must pass on its way to a role ([`crate::pagetable::Shared::writes`]).
//!
//! Counted are ticks of the system counter; the guest is told nanoseconds of system time.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use core::mem::{offset_of, size_of};
use core::sync::atomic::{AtomicU64, Ordering, fence};

use pv_abi::GuestHandle;
use pv_abi::vcpu::{RUNSTATE_UPDATE, RunstateInfo};
use zerocopy::IntoBytes;

use crate::addr::{FrameAddr, GuestVa, Pa};
use crate::domain::Domain;
use crate::guest_memory;
use crate::hardware::{Access, Hardware};
use crate::machine::{Current, Machine};
use crate::sched_op::nanoseconds;
use crate::vcpu::{Run, Vcpu};

/// Where the state is in the word; the moment is below: at 1 GHz it wraps after a century.
const STATE_SHIFT: u32 = 62;
const MOMENT: u64 = (1 << STATE_SHIFT) - 1;
/// Bytes of an area.
const AREA: usize = size_of::<RunstateInfo>();

/// A vCPU's accounts, and where they are told.
#[derive(Debug)]
pub struct RunState {
    /// `RUNSTATE_*` and the counter's value when it began.
    since: AtomicU64,
    /// Ticks in each state until then, index = `RUNSTATE_*`.
    ticks: [AtomicU64; 4],
    /// Machine addresses of the area's beginning and of what lies in a second page; 0 for none.
    area: [AtomicU64; 2],
}

/// `RUNSTATE_*` of `public/vcpu.h`.
const fn number(run: Run) -> u64 {
    match run {
        Run::Running => 0,
        Run::Runnable => 1,
        Run::Blocked => 2,
        // As Xen counts a vCPU that is paused.
        Run::Offline | Run::Paused => 3,
    }
}

impl Default for RunState {
    fn default() -> Self {
        Self::new()
    }
}

impl RunState {
    /// Off since the counter was 0, and told nowhere.
    pub const fn new() -> Self {
        Self {
            since: AtomicU64::new(3 << STATE_SHIFT),
            ticks: [const { AtomicU64::new(0) }; 4],
            area: [const { AtomicU64::new(0) }; 2],
        }
    }

    /// Begins anew: off since a moment. Its area is forgotten.
    pub(crate) fn reset(&self, now: u64) {
        self.since.store(3 << STATE_SHIFT | now & MOMENT, Ordering::Release);
        self.ticks.iter().for_each(|ticks| ticks.store(0, Ordering::Relaxed));
    }

    /// Enters a state at a moment (invariant 1).
    #[inline]
    fn enter(&self, run: Run, now: u64) {
        let before = self.since.swap(number(run) << STATE_SHIFT | now & MOMENT, Ordering::AcqRel);
        let spent = (now & MOMENT).saturating_sub(before & MOMENT);
        if let Some(ticks) = self.ticks(before >> STATE_SHIFT) {
            ticks.fetch_add(spent, Ordering::Relaxed);
        }
    }

    fn ticks(&self, state: u64) -> Option<&AtomicU64> {
        self.ticks.get(usize::try_from(state).ok()?)
    }

    #[inline]
    fn is_in(&self, run: Run) -> bool {
        self.since.load(Ordering::Relaxed) >> STATE_SHIFT == number(run)
    }

    /// Where the area's parts are.
    #[inline]
    pub fn area(&self) -> [Option<FrameAddr>; 2] {
        let [first, second] = &self.area;
        match Self::part(first) {
            // Most vCPUs have none: that is one load.
            None => [None; 2],
            first => [first, Self::part(second)],
        }
    }

    fn part(at: &AtomicU64) -> Option<FrameAddr> {
        match at.load(Ordering::Acquire) {
            0 => None,
            pa => Pa::new(pa).map(FrameAddr::from_pa),
        }
    }

    /// Nanoseconds that it has run until a moment.
    pub(crate) fn ran(&self, frequency: u64, now: u64) -> u64 {
        let [running, ..] = self.info(frequency, Some(now)).time;
        running
    }

    /// Ticks in all states together until a moment.
    #[cfg(any(test, feature = "fake"))]
    pub(crate) fn total(&self, now: u64) -> u64 {
        let lasting = now.saturating_sub(self.since.load(Ordering::Acquire) & MOMENT);
        self.ticks.iter().fold(lasting, |all, ticks| all.saturating_add(ticks.load(Ordering::Relaxed)))
    }

    /// What is told, in nanoseconds. The state that lasts is counted until `until`, or, as in Xen when a vCPU is told of itself,
    /// not at all.
    fn info(&self, frequency: u64, until: Option<u64>) -> RunstateInfo {
        let since = self.since.load(Ordering::Acquire);
        let (state, began) = (since >> STATE_SHIFT, since & MOMENT);
        let lasting = until.map_or(0, |until| until.saturating_sub(began));
        let mut time = [0; 4];
        for ((index, told), ticks) in (0_u64..).zip(time.iter_mut()).zip(&self.ticks) {
            let more = if index == state { lasting } else { 0 };
            *told = nanoseconds(ticks.load(Ordering::Relaxed).saturating_add(more), frequency);
        }
        RunstateInfo {
            // Two bits.
            state: u32::try_from(state).unwrap_or(0),
            pad: 0,
            state_entry_time: nanoseconds(began, frequency),
            time,
        }
    }
}

/// Notes that a vCPU has entered a state.
#[inline]
pub(crate) fn enter<H: Hardware>(machine: &Machine<H>, vcpu: &Vcpu, run: Run) {
    if !vcpu.runstate.is_in(run) {
        vcpu.runstate.enter(run, machine.hw.counter());
    }
}

/// Notes that a vCPU has entered a state at the moment up to which the scheduler has accounted for it: what a guest is told it ran is what it was charged.
/// No moment is earlier than the last.
#[inline]
pub(crate) fn enter_at(vcpu: &Vcpu, run: Run, now: u64) {
    let state = &vcpu.runstate;
    let since = state.since.load(Ordering::Relaxed);
    if since >> STATE_SHIFT != number(run) {
        state.enter(run, now.max(since & MOMENT));
    }
}

/// The caller is about to give its CPU up by itself: told before anybody can wake it.
pub fn leave<H: Hardware>(machine: &Machine<H>, vcpu: &Vcpu, run: Run) {
    enter(machine, vcpu, run);
    publish(machine, vcpu);
}

/// [`leave`] at the moment up to which it has been charged.
pub(crate) fn leave_at<H: Hardware>(machine: &Machine<H>, vcpu: &Vcpu, run: Run, now: u64) {
    enter_at(vcpu, run, now);
    publish(machine, vcpu);
}

/// A CPU puts `next` in, in place of `before` (which may be the same): what has changed is noted and told. The image calls it once a switch,
/// after the scheduler has chosen.
#[inline]
pub fn switched<H: Hardware>(machine: &Machine<H>, before: Option<&Vcpu>, next: &Vcpu) {
    if let Some(before) = before.filter(|before| before.index != next.index) {
        // One that gave way itself has told so already.
        if before.runstate.is_in(Run::Running) {
            let run = before.run.get();
            if run != Run::Running {
                leave(machine, before, run);
            }
        }
    }
    publish(machine, next);
}

/// Tells a vCPU's accounts in its area, if it has one.
#[inline]
pub fn publish<H: Hardware>(machine: &Machine<H>, vcpu: &Vcpu) {
    if let [Some(first), second] = vcpu.runstate.area() {
        tell(machine, vcpu, first, second, None);
    }
}

#[inline(never)]
fn tell<H: Hardware>(
    machine: &Machine<H>,
    vcpu: &Vcpu,
    first: FrameAddr,
    second: Option<FrameAddr>,
    until: Option<u64>,
) {
    let domain = machine.domain(vcpu.domain);
    let marked = domain.is_some_and(|domain| domain.marks_runstate.load(Ordering::Relaxed));
    // Where another area was registered meanwhile, the page of this one may be a page table by now (invariant 4).
    let writes = domain.and_then(Domain::paging).map(|paging| paging.writes.lock());
    if writes.is_some() && vcpu.runstate.area() != [Some(first), second] {
        return;
    }
    let mut info = vcpu.runstate.info(machine.hw.counter_frequency(), until);
    let area = Area { first, second };
    if marked {
        // A reader that sees the mark, or another time after reading than before, reads again.
        info.state_entry_time |= RUNSTATE_UPDATE;
        area.put(&machine.hw, ENTRY_TIME, info.state_entry_time.as_bytes());
        fence(Ordering::SeqCst);
    }
    area.put(&machine.hw, 0, info.as_bytes());
    if marked {
        fence(Ordering::SeqCst);
        info.state_entry_time &= !RUNSTATE_UPDATE;
        area.put(&machine.hw, ENTRY_TIME, info.state_entry_time.as_bytes());
    }
}

const ENTRY_TIME: usize = offset_of!(RunstateInfo, state_entry_time);

/// An area: what does not fit into the first page is in the second.
struct Area {
    first: FrameAddr,
    second: Option<FrameAddr>,
}

impl Area {
    /// Writes bytes at an offset of the area.
    fn put<H: Hardware>(&self, hw: &H, offset: usize, bytes: &[u8]) {
        let room = self.first.left();
        let here = room.saturating_sub(offset).min(bytes.len());
        if let Some((head, tail)) = bytes.split_at_checked(here) {
            if let Some(at) = within(self.first, offset).filter(|_| !head.is_empty()) {
                hw.write(at, head);
            }
            let past = offset.saturating_add(here).saturating_sub(room);
            if let Some(at) = self.second.and_then(|second| within(second, past)).filter(|_| !tail.is_empty())
            {
                hw.write(at, tail);
            }
        }
    }
}

fn within(at: FrameAddr, offset: usize) -> Option<FrameAddr> {
    FrameAddr::new(at.frame(), at.offset().checked_add(offset)?)
}

/// Takes the area of a vCPU of a domain that is dying back. The domain's lock is held.
pub(crate) fn forget<H: Hardware>(machine: &Machine<H>, vcpu: &Vcpu) {
    for part in &vcpu.runstate.area {
        if let Some(at) = Pa::new(part.swap(0, Ordering::AcqRel)).filter(|at| at.get() != 0) {
            // It was taken when it was registered.
            let _ = machine.frames.table.release(FrameAddr::from_pa(at).frame());
        }
    }
}

/// Registers the area of a vCPU of the caller's domain, at an address of the caller's, and tells at once. An address that the caller may not
/// write, or that is not its own RAM, leaves the vCPU without an area: the guest's loss, as in Xen.
pub(crate) fn register<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    vcpu: &Vcpu,
    at: GuestHandle,
) {
    let domain = current.domain;
    // Held while frames are looked up and referred to, so that they stay the domain's, and against another registration.
    let state = domain.state.lock();
    let found = hold(machine, current, domain, at);
    let before = vcpu.runstate.area();
    for (part, new) in vcpu.runstate.area.iter().zip(found) {
        part.store(new.map_or(0, |at| at.pa().get()), Ordering::Release);
    }
    for old in before.into_iter().flatten() {
        // It was taken when it was registered.
        let _ = machine.frames.table.release(old.frame());
    }
    drop(state);
    if let [Some(first), second] = found {
        let own = vcpu.index == current.vcpu.index;
        tell(machine, vcpu, first, second, (!own).then(|| machine.hw.counter()));
    }
}

/// Finds the parts of an area and takes a reference to the frame of each. The domain's lock is held.
fn hold<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    domain: &Domain,
    at: GuestHandle,
) -> [Option<FrameAddr>; 2] {
    let part = |va: GuestVa| {
        let at = guest_memory::locate(machine, current, va, Access::Write).ok()?;
        machine.frames.table.reference(at.frame(), domain.id).ok().map(|()| at)
    };
    let va = GuestVa::new(at.0);
    if at.0 == 0 {
        return [None; 2];
    }
    let Some(first) = part(va) else { return [None; 2] };
    if va.left_in_page() >= AREA {
        return [Some(first), None];
    }
    let next = u64::try_from(va.left_in_page()).ok().and_then(|left| va.checked_add(left));
    let Some(second) = next.and_then(part) else {
        let _ = machine.frames.table.release(first.frame());
        return [None; 2];
    };
    [Some(first), Some(second)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tick_is_counted_once_in_the_state_that_it_was_spent_in() {
        let state = RunState::new();
        for (run, now) in [
            (Run::Runnable, 100),
            (Run::Running, 130),
            (Run::Blocked, 1130),
            (Run::Runnable, 1200),
            (Run::Running, 1201),
        ] {
            state.enter(run, now);
        }
        // At 1 GHz a tick is a nanosecond: offline until 100, runnable 30 and 1, running 1000, blocked 70.
        let info = state.info(1_000_000_000, None);
        assert_eq!((info.state, info.state_entry_time, info.time), (0, 1201, [1000, 31, 70, 100]));
        let info = state.info(1_000_000_000, Some(1300));
        assert_eq!((info.state_entry_time, info.time), (1201, [1099, 31, 70, 100]));
    }

    #[test]
    fn a_moment_before_the_last_one_counts_nothing() {
        let state = RunState::new();
        state.enter(Run::Running, 50);
        state.enter(Run::Blocked, 40);
        assert_eq!(state.info(1_000_000_000, None).time, [0, 0, 0, 50]);
    }

    #[test]
    fn two_cpus_that_change_a_state_at_once_count_its_time_once() {
        let state = RunState::new();
        state.enter(Run::Runnable, 0);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        // The moment only grows by what the last one is: whoever is first counts it.
                        let now = state.since.load(Ordering::Relaxed) & MOMENT;
                        state.enter(Run::Runnable, now.wrapping_add(1));
                    }
                });
            }
        });
        let info = state.info(1_000_000_000, None);
        assert!(info.time[1] >= info.state_entry_time, "nothing that passed is missing");
        assert_eq!(info.time[0] + info.time[2] + info.time[3], 0);
    }
}
