//! Recomputes from scratch what the frame table and the stage-2 tables must agree on, and names the first disagreement.
//!
//! 1. Every frame has one owner and one role, and the totals are what a count gives. (I1)
//! 2. Stage 2 of a domain maps its own RAM, its own shared pages, frames that a live grant mapping permits (at least for what is
//!    mapped), and devices, which are not RAM. (I3)
//! 3. A frame's count is the number of grant references in use and of vCPU info and run-state areas that lie in it. (I4)
//! 4. A frame of RAM that is mapped is mapped once, at its home. (I6)
//! 5. Every stage-2 table is the domain's, is reached once, and is counted; every frame that remembers grants is the domain's.
//!
//! For tests and the debug console. The machine must be at rest: no hypercall under way on any CPU.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]
use pv_abi::DomId;

use crate::addr::{FrameAddr, Gfn, Mfn};
use crate::domain::{Domain, DomainState, MAX_DOMAINS};
use crate::frame::{FrameTable, NO_ORDER, Role};
use crate::grant::{Active, Track};
use crate::hardware::Hardware;
use crate::machine::Machine;
use crate::stage2::{Entry, Kind, Mapping, ROOT_TABLES, walk};
use crate::vcpu::Vcpu;

/// The first thing that is not as it must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Violation {
    /// I1: the counter of this owner and role is not what the table says.
    Total(DomId, Role),
    /// I1: the free lists do not hold the frames that are free.
    FreeLists,
    /// I1: the domain's memory state does not count its RAM.
    Memory(DomId),
    /// A frame that is not the first of a free block has an order, or a count without being data.
    Entry(Mfn),
    /// A table entry has bits that none of ours has.
    Malformed(DomId, Gfn),
    /// A table is not the domain's, is linked twice, or is not counted.
    Tables(DomId),
    /// I3: the domain maps what it may not.
    Mapped(DomId, Gfn, Mapping),
    /// I3: a grant mapping is recorded and not there, or no reference permits it.
    Grant(DomId, Gfn),
    /// I4: the frame's count is not the number of its holders.
    Count(Mfn),
    /// I6: the frame of RAM is mapped somewhere else too.
    Home(DomId, Gfn),
}

/// Checks everything.
///
/// # Errors
/// The first violation.
pub fn check<H: Hardware>(machine: &Machine<H>) -> Result<(), Violation> {
    totals(machine)?;
    for domain in machine.domains {
        {
            let state = domain.state.lock();
            stage2(machine, domain, &state)?;
            domain_tables(machine, domain, &state)?;
            if state.memory.frames != machine.frames.table.total(domain.id, Role::Data) {
                return Err(Violation::Memory(domain.id));
            }
        }
        grants(machine, domain)?;
        counts(machine, domain)?;
    }
    Ok(())
}

fn totals<H: Hardware>(machine: &Machine<H>) -> Result<(), Violation> {
    let table = &machine.frames.table;
    // Row 0 is the hypervisor's and the free, the others follow the list of domains.
    let mut counted = [[0_u32; Role::ALL.len()]; MAX_DOMAINS + 1];
    let mut last = (DomId::XEN, 0);
    for (mfn, state) in table.states() {
        if state.owner != last.0 {
            let found = machine.domains.iter().position(|domain| domain.id == state.owner);
            last = (
                state.owner,
                if state.owner == DomId::XEN { 0 } else { found.map_or(usize::MAX, |at| at.wrapping_add(1)) },
            );
        }
        let count = counted.get_mut(last.1).and_then(|row| row.get_mut(usize::from(state.role as u8)));
        let Some(count) = count else { return Err(Violation::Entry(mfn)) };
        *count = count.wrapping_add(1);
        if (state.role != Role::Free && state.order != NO_ORDER)
            || (state.role != Role::Data && state.count != 0)
        {
            return Err(Violation::Entry(mfn));
        }
    }
    let domains = machine.domains.iter().map(|domain| domain.id);
    for (row, owner) in core::iter::once(DomId::XEN).chain(domains).enumerate() {
        for role in Role::ALL {
            let found = counted.get(row).and_then(|row| row.get(usize::from(role as u8)));
            if role != Role::NotRam && found.copied().map(u64::from) != Some(table.total(owner, role)) {
                return Err(Violation::Total(owner, role));
            }
        }
    }
    if machine.frames.free_frames() != table.total(DomId::XEN, Role::Free)
        || machine.frames.linked_in_limbo() != machine.frames.limbo_frames()
    {
        return Err(Violation::FreeLists);
    }
    Ok(())
}

fn stage2<H: Hardware>(machine: &Machine<H>, domain: &Domain, state: &DomainState) -> Result<(), Violation> {
    let table = &machine.frames.table;
    let mut violation = None;
    let mut tables: u32 = 0;
    let mut is_table = |mfn: Mfn| {
        tables = tables.saturating_add(1);
        table.state(mfn).is_some_and(|found| found.role == Role::Stage2Table && found.owner == domain.id)
    };
    let root = state.stage2.root();
    for offset in 0..u64::from(ROOT_TABLES) {
        if !root.checked_add(offset).is_some_and(&mut is_table) {
            return Err(Violation::Tables(domain.id));
        }
    }
    walk(&machine.hw, root, |entry| {
        violation = match entry {
            Entry::Table { table, .. } => (!is_table(table)).then_some(Violation::Tables(domain.id)),
            Entry::Malformed { gfn, .. } => Some(Violation::Malformed(domain.id, gfn)),
            Entry::Leaf { gfn, order, mapping, .. } => (0..1u64.wrapping_shl(order)).find_map(|offset| {
                let gfn = gfn.checked_add(offset)?;
                let mapping = Mapping { mfn: mapping.mfn.checked_add(offset)?, ..mapping };
                leaf(table, domain, gfn, mapping)
            }),
        };
        violation.is_none()
    });
    if let Some(violation) = violation {
        return Err(violation);
    }
    // As many reached as the domain has: none was reached twice, none is lost.
    let owned = table.total(domain.id, Role::Stage2Table);
    if tables != state.stage2.tables() || u64::from(tables) != owned || tables > state.stage2.limit() {
        return Err(Violation::Tables(domain.id));
    }
    Ok(())
}

/// The frames in which the hypervisor remembers a domain's grants are the domain's, and all that have that role.
fn domain_tables<H: Hardware>(
    machine: &Machine<H>,
    domain: &Domain,
    state: &DomainState,
) -> Result<(), Violation> {
    let table = &machine.frames.table;
    let is_own = |mfn: Mfn| {
        table.state(mfn).is_some_and(|found| found.role == Role::DomainTable && found.owner == domain.id)
    };
    let found = state.grants.own_frames().filter(|mfn| is_own(*mfn)).count();
    let all = state.grants.own_frames().count() == found;
    if all && u64::try_from(found) == Ok(table.total(domain.id, Role::DomainTable)) {
        Ok(())
    } else {
        Err(Violation::Tables(domain.id))
    }
}

/// Whether a domain may map one frame as it does.
fn leaf(table: &FrameTable, domain: &Domain, gfn: Gfn, mapping: Mapping) -> Option<Violation> {
    let found = table.state(mapping.mfn);
    let has = |role: Role| found.is_some_and(|found| found.role == role && found.owner == domain.id);
    let home = table.home(mapping.mfn) == Some(gfn);
    let wrong = Some(Violation::Mapped(domain.id, gfn, mapping));
    match mapping.kind {
        Kind::Ram if !has(Role::Data) => wrong,
        Kind::Shared if !has(Role::Shared) => wrong,
        Kind::Ram | Kind::Shared => (!home).then_some(Violation::Home(domain.id, gfn)),
        Kind::Device => found.is_some_and(|found| found.role != Role::NotRam).then_some(wrong).flatten(),
        // Looked at without the lock (`grants`).
        Kind::GrantWritable | Kind::GrantReadOnly => None,
    }
}

/// Every mapping that the domain tracks has a reference in use that permits it; and every grant that is mapped, one that is tracked there
/// and permits it. A tracked mapping may have lost its place to something else, another grant included.
fn grants<H: Hardware>(machine: &Machine<H>, domain: &Domain) -> Result<(), Violation> {
    let mut violation = Ok(());
    tracked(machine, domain, None, |gfn, writable, active| {
        let permits = active.is_some_and(|active| active.is_pinned() && (!writable || active.pins().1 != 0));
        if !permits {
            violation = Err(Violation::Grant(domain.id, gfn));
        }
    });
    violation?;
    let mut violation = Ok(());
    walk(&machine.hw, domain.stage2_root, |entry| {
        if let Entry::Leaf { gfn, mapping, .. } = entry
            && matches!(mapping.kind, Kind::GrantWritable | Kind::GrantReadOnly)
        {
            let mut recorded = false;
            tracked(machine, domain, Some(gfn), |_, writable, active| {
                recorded |= (writable || mapping.kind == Kind::GrantReadOnly)
                    && active.and_then(|active| active.mfn()) == Some(mapping.mfn);
            });
            if !recorded {
                violation = Err(Violation::Mapped(domain.id, gfn, mapping));
            }
        }
        violation.is_ok()
    });
    violation
}

/// Shows the mappings that a domain tracks, or those at one guest frame: guest frame, whether for writing, and what is in use of the reference.
fn tracked<H: Hardware>(
    machine: &Machine<H>,
    domain: &Domain,
    only: Option<Gfn>,
    mut visit: impl FnMut(Gfn, bool, Option<Active>),
) {
    let mut from = 0;
    loop {
        // One at a time, since the granter may be the domain itself and locks are not taken twice.
        let next = domain.state.lock().grants.mapping_from(&machine.hw, from, only);
        let Some((handle, track)) = next else { break };
        from = handle.saturating_add(1);
        if let Track::Orphan { frame, gfn, writable } = track {
            let base = machine.frames.table.base();
            if let Some(mfn) = base.checked_add(u64::from(frame)) {
                visit(gfn, writable, Some(Active::orphan(mfn, domain.id)));
            }
        } else if let Track::Mapped { granter, gref, gfn, writable } = track {
            let granter = machine.domain(granter);
            let active = granter.and_then(|granter| granter.state.lock().grants.active(machine, gref));
            visit(gfn, writable, active);
        }
    }
}

/// The counts of a domain's frames are those of their holders, and of nothing else.
fn counts<H: Hardware>(machine: &Machine<H>, domain: &Domain) -> Result<(), Violation> {
    let state = domain.state.lock();
    let holders = |mfn: Mfn| {
        let mut holders = infos(domain, mfn).saturating_add(areas(domain, mfn));
        // A reference in use holds its frame once, however often it is mapped.
        state.grants.pinned(machine, |_, active| {
            holders = holders.saturating_add(u32::from(active.mfn() == Some(mfn)));
        });
        holders
    };
    let table = &machine.frames.table;
    // Frames with a count have as many holders...
    for (mfn, found) in table.states() {
        if found.owner == domain.id && found.count != 0 && found.count != holders(mfn) {
            return Err(Violation::Count(mfn));
        }
    }
    // ... and frames with a holder have a count.
    let mut unheld = None;
    state.grants.pinned(machine, |_, active| {
        let held = active.mfn().and_then(|mfn| table.state(mfn));
        if held.is_none_or(|held| held.owner != domain.id || held.count == 0) {
            unheld = active.mfn().or(unheld);
        }
    });
    if let Some(mfn) = unheld {
        return Err(Violation::Count(mfn));
    }
    let infos = domain.vcpus.iter().filter_map(info_frame).filter(|mfn| *mfn != domain.shared_info);
    for mfn in infos.chain(area_frames(domain)) {
        if table.state(mfn).is_none_or(|held| held.owner != domain.id || held.count == 0) {
            return Err(Violation::Count(mfn));
        }
    }
    Ok(())
}

/// The frame of a vCPU's info area.
fn info_frame(vcpu: &Vcpu) -> Option<Mfn> {
    Some(vcpu.info_at()?.frame())
}

/// vCPUs whose info areas lie in a frame.
fn infos(domain: &Domain, mfn: Mfn) -> u32 {
    let found = domain.vcpus.iter().filter(|vcpu| info_frame(vcpu) == Some(mfn)).count();
    u32::try_from(found).unwrap_or(u32::MAX)
}

/// The frames of vCPUs' run-state areas: one or two for each area.
fn area_frames(domain: &Domain) -> impl Iterator<Item = Mfn> + '_ {
    domain.vcpus.iter().flat_map(|vcpu| vcpu.runstate.area()).flatten().map(FrameAddr::frame)
}

/// Parts of run-state areas that lie in a frame.
fn areas(domain: &Domain, mfn: Mfn) -> u32 {
    u32::try_from(area_frames(domain).filter(|frame| *frame == mfn).count()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
