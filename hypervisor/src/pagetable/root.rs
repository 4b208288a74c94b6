//! Roots: which table each vCPU's halves begin with, and the end of the trust.
//!
//! 1. A root is a table of level 0 and has a count for every vCPU half that uses it, and for being one of the first.
//! 2. The trust ends when no other vCPU is on: none runs by unchecked tables. Before the domain goes on, its RAM is executable only where
//!    it is text, both halves have checked roots, and every translation from before is flushed on all CPUs.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]
use core::sync::atomic::Ordering;

use pv_abi::Errno;

use super::control::Controls;
use super::role::{Step, check_own, let_go, refer};
use super::{Paging, Root};
use crate::addr::{Gfn, Mfn};
use crate::domain::{Domain, DomainState};
use crate::frame::Role;
use crate::hardware::Hardware;
use crate::machine::{Current, Machine};
use crate::vcpu::{Run, Vcpu};

/// Entries of stage 2 that one run looks at.
const FORBID_BUDGET: u32 = 64;

/// Half of the virtual addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Half {
    /// From 0: `TTBR0_EL1`.
    Lower = 0,
    /// To the end: `TTBR1_EL1`.
    Upper = 1,
}

impl Half {
    /// The half that a 48-bit address is in; `None` for an address in neither.
    pub(super) const fn of(va: u64) -> Option<Self> {
        match va >> 48 {
            0 => Some(Self::Lower),
            0xFFFF => Some(Self::Upper),
            _ => None,
        }
    }
}

/// What a vCPU's translation starts with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bases {
    /// `TTBR0_EL1`.
    pub lower: u64,
    /// `TTBR1_EL1`.
    pub upper: u64,
    /// Fixed.
    pub controls: Controls,
}

impl Root {
    /// As a `TTBR` (D24.2.195): ASID in bits 63:48, the table in 47:1, `CnP` clear.
    pub const fn base(self) -> u64 {
        (self.asid as u64) << 48 | self.gfn.base().get()
    }
}

impl Paging {
    fn slot(&mut self, vcpu: &Vcpu, half: Half) -> Option<&mut Option<Root>> {
        self.roots.get_mut(usize::try_from(vcpu.number).ok()?)?.get_mut(half as usize)
    }

    /// The root that a vCPU uses for a half.
    pub(super) fn root(&self, vcpu: &Vcpu, half: Half) -> Option<Root> {
        *self.roots.get(usize::try_from(vcpu.number).ok()?)?.get(half as usize)?
    }

    /// Every use of a root, for the self-check.
    pub(super) fn uses(&self) -> impl Iterator<Item = Root> + '_ {
        self.roots.iter().flatten().chain(&self.first).flatten().copied()
    }
}

/// Takes a root for one half of the caller's.
///
/// # Errors
/// `-EINVAL`: no root is there; when it would end the trust, the lower half has none, or the controls are not as they must be;
/// `-EBUSY`: other vCPUs are on then, or the root is used too often.
#[inline(never)]
pub(super) fn take<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    state: &mut DomainState,
    half: Half,
    gfn: Gfn,
    asid: u16,
) -> Result<Step, Errno> {
    let domain = current.domain;
    let (mfn, role) = check_own(machine, domain, gfn)?;
    if role != Role::Table0 && super::CHECKED {
        return Err(Errno::Einval);
    }
    let shared = domain.paging().ok_or(Errno::Enosys)?;
    let ends_trust = half == Half::Upper && !shared.is_installed();
    let paging = state.paging.as_ref().ok_or(Errno::Enosys)?;
    let lower = paging.root(current.vcpu, Half::Lower);
    if !crate::seeded!("root-uncounted") {
        refer(machine, domain, mfn, Role::Table0)?;
    }
    if ends_trust {
        // Room for what is counted first: nothing is taken from a domain whose root is refused.
        let lower = lower.ok_or(Errno::Einval).and_then(|lower| refer_both(machine, domain, mfn, lower.mfn));
        let ended = lower.and_then(|lower| {
            let ended = end_trust(machine, current, state);
            if ended != Ok(Step::Done) {
                let_go(machine, lower);
                let_go(machine, mfn);
            }
            ended
        });
        if ended != Ok(Step::Done) {
            let_go(machine, mfn);
            return ended;
        }
    }
    let root = Root { mfn, gfn, asid };
    let paging = state.paging.as_mut().ok_or(Errno::Enosys)?;
    let slot = paging.slot(current.vcpu, half).ok_or(Errno::Einval)?;
    let before = slot.replace(root);
    machine.hw.set_base(half, root.base());
    if let Some(before) = before.filter(|_| !crate::seeded!("root-kept")) {
        // It had a count for this half.
        let_go(machine, before.mfn);
    }
    if ends_trust {
        paging.first = [lower, Some(root)];
        paging.controls = machine.hw.translation_controls();
        if let Some(lower) = lower {
            // The guest may have written the register itself, as long as it was trusted.
            machine.hw.set_base(Half::Lower, lower.base());
        }
        shared.installed.store(true, Ordering::Release);
        machine.hw.flush_all(domain.vmid);
    }
    Ok(Step::Done)
}

/// Counts the first roots as such; returns the lower one.
fn refer_both<H: Hardware>(
    machine: &Machine<H>,
    domain: &Domain,
    upper: Mfn,
    lower: Mfn,
) -> Result<Mfn, Errno> {
    refer(machine, domain, lower, Role::Table0)?;
    refer(machine, domain, upper, Role::Table0).inspect_err(|_| {
        let_go(machine, lower);
    })?;
    Ok(lower)
}

/// Checks that the trust may end, and takes execution from what is no text.
#[inline(never)]
fn end_trust<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    state: &mut DomainState,
) -> Result<Step, Errno> {
    let others = current.domain.vcpus.iter().filter(|vcpu| vcpu.number != current.vcpu.number);
    // None comes on meanwhile: that takes the domain's lock.
    if others.map(|vcpu| vcpu.run.get()).any(|run| run != Run::Offline) && !crate::seeded!("trust-of-two") {
        return Err(Errno::Ebusy);
    }
    let paging = state.paging.as_mut().ok_or(Errno::Enosys)?;
    if !machine.hw.translation_controls().are_sound() && !crate::seeded!("unsound-controls") {
        return Err(Errno::Einval);
    }
    if crate::seeded!("trust-executes") {
        return Ok(Step::Done);
    }
    let next = state.stage2.forbid_execution(&machine.hw, paging.forbidden, machine.hw.budget(FORBID_BUDGET));
    paging.forbidden = next.unwrap_or_default();
    Ok(if next.is_some() { Step::More } else { Step::Done })
}

/// A vCPU comes on: what its translation starts with, `None` while the domain is trusted with itself (then the MMU is off). It takes
/// the first roots. The domain's lock is held.
pub fn start<H: Hardware>(
    machine: &Machine<H>,
    domain: &Domain,
    state: &mut DomainState,
    vcpu: &Vcpu,
) -> Option<Bases> {
    if !domain.paging()?.is_installed() {
        return None;
    }
    let paging = state.paging.as_mut()?;
    let [Some(lower), Some(upper)] = paging.first else { return None };
    for (half, root) in [(Half::Lower, lower), (Half::Upper, upper)] {
        // A vCPU more than the count can hold does not exist; were it so, the vCPU's old root would stay counted, and nothing be lost.
        if (crate::seeded!("start-uncounted") || refer(machine, domain, root.mfn, Role::Table0).is_ok())
            && let Some(before) = paging.slot(vcpu, half).and_then(|slot| slot.replace(root))
        {
            let_go(machine, before.mfn);
        }
    }
    Some(Bases { lower: lower.base(), upper: upper.base(), controls: paging.controls })
}
