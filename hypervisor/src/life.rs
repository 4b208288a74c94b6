//! The end of a domain's life: who lives, and taking back what a domain had.
//!
//! ```text
//! Running -> Ended -> Dying -> Dead -> Building -> Running
//! ```
//!
//! Taking back is a list of small steps ([`Undo`]), made by whatever CPU asks the scheduler while there is something to do, and by the control domain that
//! waits for it: EL2 is never long in it.
//!
//! Invariants
//! 1. Steps are made by one CPU at a time (`Reaper::busy`), so one domain is undone at a time, each step under the domain's lock.
//! 2. A domain is undone from when all its vCPUs are off and in no CPU, its address space is forgotten by every TLB, and every CPU has passed since
//!    ([`crate::frame_alloc::Quiescent`]): no call of its own, and no copy from or to it, is under way then.
//! 3. Its frames become free after every CPU has passed once more: since its ports were closed and its areas forgotten.
//! 4. Others keep what they have mapped of it, as orphans; everything else is free. Its root tables, its shared-info frame and its boot storage stay
//!    with its number.
//! 5. Orphans are charged to the number that they were of: no life of it begins while others have more than [`MOST_ORPHANS`] of its former ones, so what
//!    a domain and its former lives have is never more than its quota and those.
//! 6. A CPU that is a partition makes no steps for others while its own domain runs: it hands them to one that is none, if it does not know that such a
//!    one is at it. Who begins something forgets the keeper, so the next CPU that asks sees to it.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

mod fate;
mod undo;

pub use crate::domain_build::{Build, Plans};
pub use fate::{Action, Fate, Policy};
pub use undo::Undo;

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering};

use pv_abi::Errno;

use crate::domain::{Domain, Fault, Life, Stage};
use crate::domain_build;
use crate::hardware::{CpuId, Hardware};
use crate::log::Event;
use crate::machine::Machine;
use crate::{sched, wallclock};
use undo::Progress;

/// Frames of a domain's former lives that others may have mapped when its next one begins: some rings of drivers, which their other ends may keep for
/// ever. With more of them it waits.
pub const MOST_ORPHANS: u64 = 64;
/// Milliseconds until a CPU looks again whether others have let go of enough.
const PATIENCE_MILLISECONDS: u64 = 100;
/// Microseconds until a CPU makes the next step, or looks again whether it can.
const INTERVAL_MICROSECONDS: u64 = 20;

/// Who lives, and whether there is something to take back.
#[derive(Debug)]
pub struct Reaper {
    /// Domains that have not ended.
    alive: AtomicU32,
    /// Domains that are dying or being built.
    dying: AtomicU32,
    /// A CPU makes a step (invariant 1).
    busy: AtomicBool,
    /// The domain whose turn it is, as an index.
    turn: AtomicUsize,
    /// Number of a CPU that looks after them until nothing is left, and 1 (invariant 6); 0 for none.
    keeper: AtomicU8,
}

impl Reaper {
    /// So many domains live.
    pub fn new(domains: usize) -> Self {
        Self {
            alive: AtomicU32::new(u32::try_from(domains).unwrap_or(u32::MAX)),
            dying: AtomicU32::new(0),
            busy: AtomicBool::new(false),
            turn: AtomicUsize::new(0),
            keeper: AtomicU8::new(0),
        }
    }

    /// Domains that have not ended: with the last one the machine powers off.
    pub fn alive(&self) -> u32 {
        self.alive.load(Ordering::Acquire)
    }
}

/// One more domain is dying or being built. Whoever begins that may not look again for long, and all others may sleep: one CPU is told.
fn begins<H: Hardware>(machine: &Machine<H>) {
    machine.reaper.dying.fetch_add(1, Ordering::AcqRel);
    machine.reaper.keeper.store(0, Ordering::Release);
    machine.hw.kick(machine.sched.watcher());
}

/// A domain has ended, and that was told. Takes no lock.
pub(crate) fn ended<H: Hardware>(machine: &Machine<H>, domain: &Domain, end: Life) {
    let decided = domain.fate.decide(end, machine.hw.counter(), machine.hw.counter_frequency());
    if decided.is_err() {
        machine.hw.log(Event::TooOften(domain.id));
    }
    let (Ok(action) | Err(action)) = decided;
    match action {
        Action::Restart => {
            domain.fate.set_again(true);
            return destroy(machine, domain);
        }
        Action::Destroy => destroy(machine, domain),
        Action::Preserve => {}
    }
    machine.reaper.alive.fetch_sub(1, Ordering::AcqRel);
}

/// Begins to build a domain anew that is dead.
///
/// # Errors
/// `-EEXIST`: it is not dead. `-ENOMEM`: others have too much of its former lives.
pub(crate) fn build<H: Hardware>(machine: &Machine<H>, domain: &Domain) -> Result<(), Errno> {
    let state = domain.state.lock();
    if domain.life.stage() != Stage::Dead {
        return Err(Errno::Eexist);
    }
    if is_held(machine, domain) {
        return Err(Errno::Enomem);
    }
    domain.life.go(Stage::Building);
    drop(state);
    machine.reaper.alive.fetch_add(1, Ordering::AcqRel);
    begins(machine);
    Ok(())
}

/// Begins to take back what a domain that has ended had.
pub(crate) fn destroy<H: Hardware>(machine: &Machine<H>, domain: &Domain) {
    if domain.life.die() {
        begins(machine);
    }
}

/// [`destroy`], and it is not built anew.
pub(crate) fn destroy_for_good<H: Hardware>(machine: &Machine<H>, domain: &Domain) {
    if domain.fate.takes_again() {
        machine.hw.log(Event::Ended(domain.id, Life::Destroyed(Fault::ByControl)));
        machine.reaper.alive.fetch_sub(1, Ordering::AcqRel);
    }
    destroy(machine, domain);
}

/// What a CPU does for domains that die or are built when it asks the scheduler; `own` is the domain that it has. As [`work`], but for a partition whose
/// domain runs (invariant 6).
#[inline]
pub fn attend<H: Hardware>(machine: &Machine<H>, cpu: CpuId, now: u64, own: Option<&Domain>) -> u64 {
    if machine.reaper.dying.load(Ordering::Acquire) == 0 {
        u64::MAX
    } else {
        attend_now(machine, cpu, now, own)
    }
}

#[cold]
#[inline(never)]
fn attend_now<H: Hardware>(machine: &Machine<H>, cpu: CpuId, now: u64, own: Option<&Domain>) -> u64 {
    let (keeper, watcher) = (&machine.reaper.keeper, machine.sched.watcher());
    let me = cpu.0.wrapping_add(1);
    let alone = machine.sched.is_partition(cpu) && own.is_some_and(|own| own.life.is_running());
    if !alone || machine.sched.is_partition(watcher) {
        keeper.store(me, Ordering::Release);
        return work(machine, cpu, now);
    }
    let known = keeper.load(Ordering::Acquire);
    if (known == 0 || known == me)
        && keeper
            .compare_exchange(known, watcher.0.wrapping_add(1), Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    {
        machine.hw.kick(watcher);
    }
    u64::MAX
}

/// Makes a step of what is to be done, if there is something. Returns when to look again, `u64::MAX` for never. The caller holds no lock and uses
/// nothing that it looked up without one.
#[inline]
pub fn work<H: Hardware>(machine: &Machine<H>, cpu: CpuId, now: u64) -> u64 {
    if machine.reaper.dying.load(Ordering::Acquire) == 0 { u64::MAX } else { step(machine, cpu, now) }
}

#[cold]
#[inline(never)]
fn step<H: Hardware>(machine: &Machine<H>, cpu: CpuId, now: u64) -> u64 {
    let reaper = &machine.reaper;
    let ticks = machine.hw.counter_frequency().saturating_mul(INTERVAL_MICROSECONDS) / 1_000_000;
    let again = now.saturating_add(ticks);
    if reaper.busy.swap(true, Ordering::AcqRel) {
        return again;
    }
    let first = reaper.turn.load(Ordering::Relaxed);
    let waiting =
        now.saturating_add(machine.hw.counter_frequency().saturating_mul(PATIENCE_MILLISECONDS) / 1000);
    let (before, after) = machine.domains.split_at_checked(first).unwrap_or((&[], machine.domains));
    // One load a domain.
    let found = after.iter().chain(before).position(|domain| {
        matches!(domain.life.stage(), Stage::Dying | Stage::Building)
            && !(domain.fate.waits() && domain.fate.comes_again() && is_held(machine, domain))
    });
    let at = found.and_then(|found| first.wrapping_add(found).checked_rem(machine.domains.len()));
    if let Some((at, domain)) = at.and_then(|at| Some((at, machine.domains.get(at)?))) {
        let next = match domain.life.stage() {
            Stage::Building => build_step(machine, domain),
            Stage::Running | Stage::Ended | Stage::Dying | Stage::Dead => undo_step(machine, cpu, domain),
        };
        let next = if next == Progress::More { at } else { at.wrapping_add(1) };
        reaper.turn.store(next.checked_rem(machine.domains.len()).unwrap_or(0), Ordering::Relaxed);
    }
    reaper.busy.store(false, Ordering::Release);
    match reaper.dying.load(Ordering::Acquire) {
        0 => u64::MAX,
        _ if found.is_none() => waiting,
        _ => again,
    }
}

/// Whether others have too much of a domain's former lives for the next one to begin.
fn is_held<H: Hardware>(machine: &Machine<H>, domain: &Domain) -> bool {
    machine.frames.table.orphans(domain.id) > MOST_ORPHANS
}

fn undo_step<H: Hardware>(machine: &Machine<H>, cpu: CpuId, domain: &Domain) -> Progress {
    let progress = if domain.fate.waits() { Progress::Done } else { undo::step(machine, cpu, domain) };
    if progress == Progress::Done {
        if domain.fate.comes_again() && is_held(machine, domain) {
            domain.fate.set_waits(true);
            machine.hw.log(Event::Waits(domain.id, machine.frames.table.orphans(domain.id)));
            return Progress::Waits;
        }
        domain.fate.set_waits(false);
        if domain.fate.takes_again() {
            domain.life.go(Stage::Building);
        } else {
            // Who is paused while it is built anew begins paused.
            domain.pauses.forget();
            domain.life.go(Stage::Dead);
            machine.reaper.dying.fetch_sub(1, Ordering::AcqRel);
        }
    }
    progress
}

fn build_step<H: Hardware>(machine: &Machine<H>, domain: &Domain) -> Progress {
    match domain_build::step(machine, domain) {
        Ok(false) => Progress::More,
        Ok(true) => {
            machine.reaper.dying.fetch_sub(1, Ordering::AcqRel);
            domain.life.begin();
            // Whoever waits for the next generation finds a domain that lives.
            machine.hw.log(Event::BuiltAgain(domain.id, domain.fate.born_again()));
            wallclock::tell(machine, domain);
            if let Some(first) = domain.vcpus.first() {
                sched::start(machine, first);
            }
            Progress::Done
        }
        Err(_) => {
            // What it has by now is taken back; no vCPU of it has run.
            machine.hw.log(Event::NotBuilt(domain.id));
            domain.state.lock().build = Build::Begin;
            domain.life.go(Stage::Dying);
            machine.reaper.alive.fetch_sub(1, Ordering::AcqRel);
            Progress::More
        }
    }
}
