//! Pausing: a domain that is paused keeps its state, and none of its vCPUs runs.
//!
//! Invariants
//! 1. A vCPU that a CPU chooses, or asks about, while its domain is paused becomes `Paused` and is in no queue. Waking one changes nothing: when the
//!    last pause ends it becomes `Runnable` and looks itself.
//! 2. None is forgotten: who makes a vCPU `Paused` looks at the count afterwards, who ends the last pause looks at the vCPUs afterwards, with a full
//!    barrier between on both sides; one of them queues it.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use core::sync::atomic::{AtomicU32, Ordering, fence};

use pv_abi::Errno;

use crate::domain::Domain;
use crate::hardware::Hardware;
use crate::machine::{Current, Machine};
use crate::vcpu::{Run, Vcpu};
use crate::{runstate, sched};

/// Xen's limit of pauses on top of each other.
const MOST: u32 = 255;

/// How often a domain is paused.
#[derive(Debug, Default)]
pub struct Pauses(AtomicU32);

impl Pauses {
    /// Not paused.
    pub const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Whether it is paused.
    #[inline(always)]
    pub fn any(&self) -> bool {
        self.0.load(Ordering::Acquire) != 0
    }

    /// Forgets all pauses: the domain is built anew.
    pub fn forget(&self) {
        self.0.store(0, Ordering::Release);
    }
}

/// What pauses do to a vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hold {
    /// Nothing: its domain is not paused.
    None,
    /// It is `Paused`.
    Paused,
    /// The last pause ended meanwhile: it is `Runnable`, and the caller queues it.
    TakenBack,
}

/// Whether a vCPU that was chosen must not run now. By the CPU that has it.
#[inline]
pub fn holds<H: Hardware>(machine: &Machine<H>, domain: &Domain, vcpu: &Vcpu) -> Hold {
    if domain.pauses.any() { hold(machine, domain, vcpu) } else { Hold::None }
}

/// [`holds`] for one that has been running: it is charged for that, else who is paused in time would never have had anything.
#[inline]
pub fn stops<H: Hardware>(machine: &Machine<H>, domain: &Domain, vcpu: &Vcpu) -> Hold {
    if domain.pauses.any() {
        sched::account(machine, vcpu);
        hold(machine, domain, vcpu)
    } else {
        Hold::None
    }
}

#[cold]
#[inline(never)]
fn hold<H: Hardware>(machine: &Machine<H>, domain: &Domain, vcpu: &Vcpu) -> Hold {
    runstate::enter(machine, vcpu, Run::Paused);
    vcpu.run.set(Run::Paused);
    fence(Ordering::SeqCst);
    if !domain.pauses.any() && resume(machine, vcpu) { Hold::TakenBack } else { Hold::Paused }
}

/// Ends a vCPU's being paused; the caller, if it was he, queues it.
fn resume<H: Hardware>(machine: &Machine<H>, vcpu: &Vcpu) -> bool {
    let won = vcpu.run.change(Run::Paused, Run::Runnable);
    if won {
        runstate::enter(machine, vcpu, Run::Runnable);
    }
    won
}

/// Pauses a domain once more. Some of its vCPUs may still be running: [`is_still`] says.
///
/// # Errors
/// `-EOVERFLOW`: it is paused 255 times.
pub fn pause<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, domain: &Domain) -> Result<(), Errno> {
    let state = domain.state.lock();
    let count = domain.pauses.0.load(Ordering::Relaxed);
    if count >= MOST {
        return Err(Errno::Eoverflow);
    }
    domain.pauses.0.store(count.saturating_add(1), Ordering::Release);
    drop(state);
    fence(Ordering::SeqCst);
    for vcpu in domain.vcpus {
        sched::tell(machine, current.cpu, vcpu);
    }
    Ok(())
}

/// Whether none of its vCPUs runs. At most eight turns.
pub fn is_still(domain: &Domain) -> bool {
    domain.vcpus.iter().all(|vcpu| vcpu.run.get() != Run::Running)
}

/// Takes one pause back; after the last one the domain runs.
///
/// # Errors
/// `-EINVAL`: it is not paused.
pub fn unpause<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    domain: &Domain,
) -> Result<(), Errno> {
    let state = domain.state.lock();
    let count = domain.pauses.0.load(Ordering::Relaxed).checked_sub(1).ok_or(Errno::Einval)?;
    let count = if crate::seeded!("unpause-all") { 0 } else { count };
    domain.pauses.0.store(count, Ordering::Release);
    drop(state);
    if count != 0 {
        return Ok(());
    }
    fence(Ordering::SeqCst);
    for vcpu in domain.vcpus {
        if crate::seeded!("unpause-one") && vcpu.number != 0 {
            continue;
        }
        if resume(machine, vcpu) {
            sched::resume(machine, Some(current), vcpu);
        }
    }
    Ok(())
}
