//! The hypervisor's counters: what a domain has, and what nobody has. "Back where it began" in tests is these numbers.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use core::sync::atomic::Ordering;

use pv_abi::DomId;
use pv_abi::control::Counters;

use crate::domain::{Domain, Stage};
use crate::evtchn;
use crate::frame::Role;
use crate::hardware::{CpuId, Hardware};
use crate::life::Undo;
use crate::machine::Machine;

/// What is counted for a domain, or with [`DomId::XEN`] for the hypervisor and for nobody; `None` for a domain that does not exist. Linear in
/// the ports that the domain may have, 4096 at most.
pub(super) fn of<H: Hardware>(machine: &Machine<H>, id: DomId) -> Option<Counters> {
    let mut counted = Counters::default();
    for (role, count) in Role::ALL.into_iter().zip(&mut counted.frames) {
        *count = machine.frames.table.total(id, role);
    }
    if id == DomId::XEN {
        let all = counted.exits.iter_mut().zip(&mut counted.trapped_waits).zip(&mut counted.idle_waits);
        for (number, ((exits, trapped), idle)) in (0..).zip(all) {
            (*exits, *trapped, *idle) = machine.hw.exits(CpuId(number));
        }
        return Some(counted);
    }
    let domain = machine.domain(id)?;
    let state = domain.state.lock();
    counted.grants_mapped = state.grants.mapped();
    counted.grant_frames = state.grants.frames();
    // A name is in use while a TLB may know something by it: until all CPUs have forgotten that (`life::Undo`).
    counted.vmids = u32::from(match domain.life.stage() {
        Stage::Running | Stage::Ended => true,
        Stage::Dying => state.undo == Undo::Stop,
        Stage::Dead | Stage::Building => false,
    });
    drop(state);
    counted.ports = evtchn::in_use(domain);
    counted.timers = timers(domain);
    counted.generation = domain.fate.generation();
    Some(counted)
}

/// Ends of waits and watchdogs that will come.
fn timers(domain: &Domain) -> u32 {
    let waits = domain.vcpus.iter().filter(|vcpu| vcpu.deadline.load(Ordering::Relaxed) != u64::MAX).count();
    u32::try_from(waits.saturating_add(domain.watchdogs.in_use())).unwrap_or(u32::MAX)
}
