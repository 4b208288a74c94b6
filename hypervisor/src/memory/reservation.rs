//! What a domain has of RAM changes while it runs: `XENMEM_populate_physmap`, `XENMEM_decrease_reservation`, `XENMEM_increase_reservation`.
//!
//! The result is always a number of extents: those that are done. A refusal ends the call there, and its reason is not told, as in
//! Xen. An extent is populated and decreased page by page, so that interrupts come in between. One that is populated and fails in the middle is
//! undone in the same way, and is not there; what was at its places before has left them. One that is decreased and fails keeps the pages
//! that were done, as in Xen. Neither is counted.
//!
//! Differences from Xen: a page that somebody refers to (grants in use, registered areas) is not taken from its domain; frames of an extent
//! need not be neighbours in the machine; address limits are not kept, since domains do not see machine addresses; what cannot be placed is not
//! kept.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]
use pv_abi::memory::{
    MAX_ORDER, MEMF_POPULATE_ON_DEMAND, MEMF_VNODE, MEMOP_CMD_MASK, MEMOP_EXTENT_SHIFT, Reservation,
};
use pv_abi::{Errno, GuestHandle, PAGE_SHIFT};

use super::leave;
use super::refused::wants_node;
use crate::addr::Gfn;
use crate::domain::{Domain, DomainState};
use crate::frame::Role;
use crate::guest_memory;
use crate::hardware::Hardware;
use crate::hypercall::{Answer, Args, Stop, any_domain};
use crate::machine::{Current, Machine};
use crate::stage2::{Kind, Mapping};
use crate::stretch::Stretch;

/// Which way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Change {
    /// More RAM, in no place: the domain cannot reach it on ARM.
    Increase,
    /// Less RAM.
    Decrease,
    /// More RAM at guest frames.
    Populate,
}

/// Most extents of a call (`UINT_MAX >> MEMOP_EXTENT_SHIFT`).
const MAX_EXTENTS: u64 = 0xFFFF_FFFF >> MEMOP_EXTENT_SHIFT;
/// Where pages done of the next extent are in `cmd` of a restarted call; Xen has no such progress.
const PAGES_SHIFT: u32 = 32;
/// In `cmd` of a restarted call: the pages done are taken back, since one could not be done. Whoever invents it gives pages away.
const UNDO: u64 = 1 << 63;
/// Address bits of `mem_flags` (`XENMEMF_get_address_bits`).
const ADDRESS_BITS: u32 = 0xFF;
/// What one run may cost: a page is 1 (some 1000 instructions), a stage-2 table 6 (a block that is split), 64 frames in no place 1.
const BUDGET: u32 = 12;
const PER_TABLE: u32 = 6;

/// Why a page was not done.
enum Failure {
    /// It cannot be.
    Refused,
    /// It can be when every CPU has left the hypervisor: there are frames in limbo.
    Wait,
}

impl From<Errno> for Failure {
    fn from(_: Errno) -> Self {
        Self::Refused
    }
}

/// Changes what the caller's domain has.
///
/// # Errors
/// Restarts only.
pub(super) fn adjust<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    change: Change,
    args: &Args,
) -> Answer {
    let [cmd, arg, a2, a3, a4] = *args;
    let refused = Ok(cmd >> MEMOP_EXTENT_SHIFT);
    let asked = guest_memory::read_in_place::<Reservation, 4, H>(machine, current, GuestHandle(arg));
    let Ok(asked) = asked else { return refused };
    let Some(domain) = checked(machine, current, change, args, &asked) else { return refused };
    let size = 1_u64.wrapping_shl(asked.extent_order);
    let (mut extent, mut page) = progress(cmd);
    let mut undo = cmd & UNDO;
    let restart = |extent: u64, page: u64, undo: u64| {
        let cmd = cmd & MEMOP_CMD_MASK | extent << MEMOP_EXTENT_SHIFT | page << PAGES_SHIFT | undo;
        Stop::Restart([cmd, arg, a2, a3, a4])
    };
    // This CPU has looked nothing up yet.
    machine.frames.quiescent.pass(current.cpu);
    // Who takes frames looks for those in limbo when there are no others.
    if change == Change::Decrease {
        machine.frames.reclaim();
    }
    let run = Stretch::begin(machine, current);
    let full = machine.hw.budget(BUDGET);
    let mut budget = full;
    // Each turn does a page, and there are `BUDGET` at most.
    while extent < asked.nr_extents {
        // What is undone to its begin needs no further run.
        if undo != 0 && page == 0 {
            return Ok(extent);
        }
        if budget == 0 || (budget < full && run.is_long(machine)) {
            return Err(restart(extent, page, undo));
        }
        if undo != 0 {
            let Some(last) = page.checked_sub(1) else { return Ok(extent) };
            page = last;
            budget = budget.saturating_sub(1);
            // One that somebody refers to already stays.
            let _ = one(machine, current, domain, Change::Decrease, &asked, extent, page);
            continue;
        }
        match one(machine, current, domain, change, &asked, extent, page) {
            Ok(cost) => budget = budget.saturating_sub(cost),
            Err(Failure::Refused) if change == Change::Populate => {
                undo = UNDO;
                continue;
            }
            Err(Failure::Refused) => return Ok(extent),
            Err(Failure::Wait) => {
                wait(machine, current);
                return Err(restart(extent, page, 0));
            }
        }
        page = if change == Change::Increase { size } else { page.wrapping_add(1) };
        if page == size {
            (extent, page) = (extent.wrapping_add(1), 0);
        }
    }
    Ok(extent)
}

/// Extents done, and pages done of the next one.
const fn progress(cmd: u64) -> (u64, u64) {
    (cmd >> MEMOP_EXTENT_SHIFT & MAX_EXTENTS, (cmd & !UNDO) >> PAGES_SHIFT)
}

/// Whose memory a request is about, if there is something to do that may be done.
#[inline]
fn checked<'m, H: Hardware>(
    machine: &'m Machine<H>,
    current: &Current<'m>,
    change: Change,
    args: &Args,
    asked: &Reservation,
) -> Option<&'m Domain> {
    let (extent, page) = progress(args[0]);
    let domain = any_domain(machine, current, asked.domid)?;
    let address_bits = asked.mem_flags & ADDRESS_BITS;
    let sound = asked.nr_extents <= MAX_EXTENTS
        && extent < asked.nr_extents
        && asked.extent_order <= MAX_ORDER
        && page < 1_u64.wrapping_shl(asked.extent_order)
        // Only a populated extent is undone, and only what was done of it.
        && (change == Change::Populate && page != 0 || args[0] & UNDO == 0)
        && (address_bits == 0 || address_bits > PAGE_SHIFT)
        // Virtual nodes are not looked at in a domain that has none.
        && (asked.mem_flags & MEMF_VNODE != 0 || !wants_node(asked.mem_flags))
        // A guest does not do this to itself.
        && (change != Change::Populate || asked.mem_flags & MEMF_POPULATE_ON_DEMAND == 0);
    (sound && domain.id == current.domain.id).then_some(domain)
}

/// Does a page of an extent; returns its cost.
fn one<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    domain: &Domain,
    change: Change,
    asked: &Reservation,
    extent: u64,
    page: u64,
) -> Result<u32, Failure> {
    let gfn = match change {
        Change::Increase => Gfn::default(),
        Change::Decrease | Change::Populate => {
            let at = guest_memory::element::<u64>(asked.extent_start, extent)?;
            let first: u64 = guest_memory::read(machine, current, at)?;
            first.checked_add(page).and_then(Gfn::new).ok_or(Failure::Refused)?
        }
    };
    let state = &mut *domain.state.lock();
    let tables = state.stage2.tables();
    if page == 0 && change != Change::Decrease {
        let size = 1_u64.wrapping_shl(asked.extent_order);
        let left = state.memory.max_frames.saturating_sub(state.memory.frames);
        if left < size && !crate::seeded!("xsa-385") {
            return Err(Failure::Refused);
        }
        // Who is too late for them is refused below.
        if machine.frames.free_now() < size {
            return Err(short_of_frames(machine));
        }
    }
    match change {
        Change::Increase => return increase(machine, domain, state, asked.extent_order),
        Change::Decrease => decrease(machine, domain, state, gfn)?,
        Change::Populate => populate(machine, domain, state, gfn)?,
    }
    Ok(state.stage2.tables().saturating_sub(tables).saturating_mul(PER_TABLE).saturating_add(1))
}

fn short_of_frames<H: Hardware>(machine: &Machine<H>) -> Failure {
    if machine.frames.limbo_frames() == 0 { Failure::Refused } else { Failure::Wait }
}

/// A whole extent: nobody will see what is in it.
fn increase<H: Hardware>(
    machine: &Machine<H>,
    domain: &Domain,
    state: &mut DomainState,
    order: u32,
) -> Result<u32, Failure> {
    let size = 1_u64.wrapping_shl(order);
    if !state.memory.charge(size) {
        return Err(Failure::Refused);
    }
    if machine.frames.allocate(order, domain.id, Role::Data).is_none() {
        state.memory.discharge(size);
        return Err(short_of_frames(machine));
    }
    Ok(1_u32.wrapping_shl(order).wrapping_shr(6).saturating_add(1))
}

fn populate<H: Hardware>(
    machine: &Machine<H>,
    domain: &Domain,
    state: &mut DomainState,
    gfn: Gfn,
) -> Result<(), Failure> {
    if !state.memory.charge(1) {
        return Err(Failure::Refused);
    }
    let slot = state.stage2.prepare_here(&machine.hw, &machine.frames, gfn);
    let found = slot.map_err(|error| Failure::from(Errno::from(error))).and_then(|slot| {
        let there = slot.current(&machine.hw);
        // Only a domain with checked page tables has what is held.
        if there.is_some_and(|there| there.kind.is_held_in_place()) {
            return Err(Failure::Refused);
        }
        let frame = machine.frames.allocate_clear(&machine.hw, 0, domain.id, Role::Data);
        frame.map(|frame| (slot, there, frame)).ok_or_else(|| short_of_frames(machine))
    });
    let (slot, there, frame) = found.inspect_err(|_| state.memory.discharge(1))?;
    // Nothing of what was executed there before.
    machine.hw.sync_instructions(frame);
    if there.is_none() {
        slot.fill(&machine.hw, frame, domain.ram_kind());
    } else if let Some(replaced) = slot.commit(&machine.hw, frame, domain.ram_kind()) {
        leave(machine, replaced);
    }
    if !crate::seeded!("xsa-22") {
        machine.frames.table.settle(frame, gfn);
    }
    Ok(())
}

fn decrease<H: Hardware>(
    machine: &Machine<H>,
    domain: &Domain,
    state: &mut DomainState,
    gfn: Gfn,
) -> Result<(), Failure> {
    let taken = |kind: Kind| {
        kind.is_own_data()
            || kind == Kind::Shared
            || (crate::seeded!("decrease-table") && kind == Kind::Table)
    };
    // A page has an entry already; a block is split when nothing speaks against it.
    let page = state.stage2.page(&machine.hw, gfn);
    let there = match &page {
        Some(slot) => slot.current(&machine.hw),
        None => state.stage2.lookup(&machine.hw, gfn),
    };
    let Mapping { mfn, kind } = there.filter(|there| taken(there.kind)).ok_or(Failure::Refused)?;
    // References are taken under the domain's lock: none comes from here on.
    let in_use = machine.frames.table.state(mfn).is_none_or(|frame| frame.count != 0);
    if in_use && !crate::seeded!("xsa-252") {
        return Err(Failure::Refused);
    }
    let slot = match page {
        Some(slot) => slot,
        None => state.stage2.prepare(&machine.hw, &machine.frames, gfn).map_err(Errno::from)?,
    };
    slot.empty(&machine.hw);
    if kind == Kind::Shared {
        // A page of the hypervisor's leaves its place, as in Xen: it was never counted as the domain's.
        machine.frames.table.set_home(mfn, None);
    } else if machine.frames.retire(mfn, domain.id).is_ok() {
        state.memory.discharge(1);
    }
    Ok(())
}

/// Lets every CPU that frames wait for leave the hypervisor, the caller's too.
fn wait<H: Hardware>(machine: &Machine<H>, current: &Current<'_>) {
    for cpu in machine.frames.waited_for().filter(|cpu| *cpu != current.cpu) {
        machine.hw.kick(cpu);
    }
    current.reschedule.set(true);
}
