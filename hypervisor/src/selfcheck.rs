//! Recomputes from scratch what the frame table and the stage-2 tables must agree on, and names the first disagreement.
//!
//! 1. Every frame has one owner and one role, and the totals are what a count gives. (I1)
//! 2. Stage 2 of a domain maps its own RAM, its own shared pages, frames that a live grant mapping permits (at least for what is
//!    mapped), and devices, which are not RAM. (I3)
//! 3. The count of a data frame is the number of grant references in use and of vCPU info, run-state areas, control blocks and array pages that lie in it. (I4)
//!    a table or text, that of entries and roots that name it. (I4, I5)
//! 4. A frame of RAM that is mapped is mapped once, at its home. (I6)
//! 5. Every stage-2 table is the domain's, is reached once, and is counted; every frame that remembers grants is the domain's.
//!
//! For tests on the host, and for images built with the feature `selfcheck`, where the control domain may ask for it. The machine must be at rest:
//! no hypercall under way on any CPU. Linear in frames and tables, and not preempted: no image that is shipped has it.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]
use pv_abi::DomId;

use crate::addr::{FrameAddr, Gfn, Mfn};
use crate::domain::{Domain, DomainState, MAX_DOMAINS, Stage};
use crate::evtchn;
use crate::frame::{FrameTable, NO_ORDER, Role};
use crate::grant::{Active, Track};
use crate::hardware::Hardware;
use crate::life::Undo;
use crate::machine::Machine;
use crate::pagetable;
use crate::stage2::{Entry, Kind, Mapping, ROOT_TABLES, walk};
use crate::vcpu::Vcpu;

/// Whether the control domain may ask for it.
pub const OFFERED: bool = cfg!(any(test, feature = "fake", feature = "selfcheck"));

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
    /// A lock of the second rank was wanted while one of the first was held.
    Order(u8, u8),
}

impl Violation {
    /// What is wrong, and with which domain or frame.
    pub fn told(self) -> (&'static str, u64) {
        let id = |domain: DomId| u64::from(domain.0);
        match self {
            Self::Total(domain, _) => ("total of a role, domain", id(domain)),
            Self::FreeLists => ("free lists", 0),
            Self::Memory(domain) => ("memory, domain", id(domain)),
            Self::Entry(mfn) => ("entry, frame", mfn.get()),
            Self::Malformed(_, gfn) => ("malformed, guest frame", gfn.get()),
            Self::Tables(domain) => ("tables, domain", id(domain)),
            Self::Mapped(_, gfn, _) => ("mapping, guest frame", gfn.get()),
            Self::Grant(_, gfn) => ("grant, guest frame", gfn.get()),
            Self::Count(mfn) => ("count, frame", mfn.get()),
            Self::Home(_, gfn) => ("home, guest frame", gfn.get()),
            Self::Order(_, wanted) => ("lock out of order, rank", u64::from(wanted)),
        }
    }
}

/// Checks everything.
///
/// # Errors
/// The first violation.
pub fn check<H: Hardware>(machine: &Machine<H>) -> Result<(), Violation> {
    check_counts(machine)?;
    check_mappings(machine)
}

/// Checks what does not need a walk of stage 2: owners, roles, counts and what is in use of grants.
///
/// # Errors
/// The first violation.
pub fn check_counts<H: Hardware>(machine: &Machine<H>) -> Result<(), Violation> {
    #[cfg(any(test, feature = "ranks", feature = "selfcheck"))]
    if let Some((held, wanted)) = crate::lock::out_of_order() {
        return Err(Violation::Order(held, wanted));
    }
    with_room(|counted| {
        totals(machine, counted)?;
        domains(machine, &counted.references)
    })
}

/// Checks each domain, whose data frames' counts have these sums.
fn domains<H: Hardware>(machine: &Machine<H>, references: &[u64; ROWS]) -> Result<(), Violation> {
    for (domain, references) in machine.domains.iter().zip(references.iter().skip(1)) {
        {
            let state = domain.state.lock();
            // What is forgotten of one that is dying becomes free bit by bit.
            if !matches!((domain.life.stage(), state.undo), (Stage::Dying, Undo::Frames(_))) {
                domain_tables(machine, domain, &state)?;
            }
            pagetable::check(machine, domain, &state).map_err(Violation::Count)?;
            // In between two lives it is counted at the end.
            let between = matches!(domain.life.stage(), Stage::Dying | Stage::Building);
            if !between && state.memory.frames != machine.frames.table.ram_total(domain.id) {
                return Err(Violation::Memory(domain.id));
            }
        }
        permitted(machine, domain)?;
        counts(machine, domain, *references)?;
    }
    Ok(())
}

/// Checks stage 2: its tables, and that each domain maps what it may. The frame table must be in order.
///
/// # Errors
/// The first violation.
pub fn check_mappings<H: Hardware>(machine: &Machine<H>) -> Result<(), Violation> {
    machine.domains.iter().try_for_each(|domain| check_mappings_of(machine, domain))
}

/// [`check_mappings`] of one domain.
///
/// # Errors
/// The first violation.
pub fn check_mappings_of<H: Hardware>(machine: &Machine<H>, domain: &Domain) -> Result<(), Violation> {
    let state = domain.state.lock();
    // From here on nobody walks its tables any more: no vCPU of it is in a CPU, and they are forgotten as a whole.
    if domain.life.stage() == Stage::Dying && state.undo != Undo::Stop {
        return Ok(());
    }
    let granted = stage2(machine, domain, &state)?;
    drop(state);
    if granted { recorded(machine, domain) } else { Ok(()) }
}

/// Rows of what is counted by owner: the hypervisor's and the free, then as the list of domains.
const ROWS: usize = MAX_DOMAINS + 2;

/// What is counted, by owner.
struct Counted {
    roles: [[u32; Role::ALL.len()]; ROWS],
    /// Sums of the counts of data frames.
    references: [u64; ROWS],
}

#[expect(clippy::large_stack_arrays, reason = "on the host only; the image has a static")]
impl Counted {
    const NOTHING: Self = Self { roles: [[0; Role::ALL.len()]; ROWS], references: [0; ROWS] };
}

/// Lends room to count in: EL2's stacks are small.
#[cfg(target_os = "none")]
fn with_room<R>(work: impl FnOnce(&mut Counted) -> R) -> R {
    static ROOM: crate::lock::Lock<Counted, { crate::lock::rank::CHECK }> =
        crate::lock::Lock::new(Counted::NOTHING);
    let mut room = ROOM.lock();
    room.roles.iter_mut().for_each(|row| *row = [0; Role::ALL.len()]);
    room.references.iter_mut().for_each(|sum| *sum = 0);
    work(&mut room)
}

#[cfg(not(target_os = "none"))]
fn with_room<R>(work: impl FnOnce(&mut Counted) -> R) -> R {
    let mut room = Counted::NOTHING;
    work(&mut room)
}

/// Compares the totals; the sums of the counts of each owner's data frames are counted besides.
fn totals<H: Hardware>(machine: &Machine<H>, counted: &mut Counted) -> Result<(), Violation> {
    let table = &machine.frames.table;
    let mut last = (DomId::XEN, 0);
    for (mfn, state) in table.states() {
        if state.owner != last.0 {
            let found = machine.domains.iter().position(|domain| domain.id == state.owner);
            let none = if state.owner == DomId::XEN { 0 } else { usize::MAX };
            last = (state.owner, found.map_or(none, |at| at.wrapping_add(1)));
        }
        let row = counted.roles.get_mut(last.1);
        let count = row.and_then(|row| row.get_mut(usize::from(state.role as u8)));
        let Some(count) = count else { return Err(Violation::Entry(mfn)) };
        *count = count.wrapping_add(1);
        if state.role == Role::Data
            && let Some(sum) = counted.references.get_mut(last.1)
        {
            *sum = sum.wrapping_add(u64::from(state.count));
        }
        if (state.role != Role::Free && state.order != NO_ORDER) || (!state.role.is_ram() && state.count != 0)
        {
            return Err(Violation::Entry(mfn));
        }
    }
    let domains = machine.domains.iter().map(|domain| domain.id);
    for (row, owner) in core::iter::once(DomId::XEN).chain(domains).enumerate() {
        for role in Role::ALL {
            let found = counted.roles.get(row).and_then(|row| row.get(usize::from(role as u8)));
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

/// Tables and mappings; whether there are grants among them.
fn stage2<H: Hardware>(
    machine: &Machine<H>,
    domain: &Domain,
    state: &DomainState,
) -> Result<bool, Violation> {
    let table = &machine.frames.table;
    let (mut violation, mut granted) = (None, false);
    let (mut tables, mut in_blocks) = (0_u32, 0_u64);
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
            Entry::Leaf { gfn, order, mapping, .. } => {
                granted |= matches!(mapping.kind, Kind::GrantWritable | Kind::GrantReadOnly);
                if order != 0 && mapping.kind.is_own_data() {
                    in_blocks = in_blocks.saturating_add(1u64.wrapping_shl(order));
                }
                (0..1u64.wrapping_shl(order)).find_map(|offset| {
                    let gfn = gfn.checked_add(offset)?;
                    let mapping = Mapping { mfn: mapping.mfn.checked_add(offset)?, ..mapping };
                    leaf(table, domain, gfn, mapping)
                })
            }
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
    if in_blocks != table.in_blocks(domain.id) {
        return Err(Violation::Tables(domain.id));
    }
    Ok(granted)
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
        Kind::Ram | Kind::Data if !has(Role::Data) => wrong,
        // Executable without a role: only while the domain is trusted with itself.
        Kind::Ram if domain.paging().is_some_and(pagetable::Shared::is_installed) => wrong,
        Kind::Table if !found.is_some_and(|found| found.owner == domain.id && is_table(found.role)) => wrong,
        Kind::Text if !has(Role::KernelText) && !has(Role::UserText) => wrong,
        Kind::Shared if !has(Role::Shared) => wrong,
        Kind::Ram | Kind::Data | Kind::Shared | Kind::Table | Kind::Text => {
            (!home).then_some(Violation::Home(domain.id, gfn))
        }
        Kind::Device => found.is_some_and(|found| found.role != Role::NotRam).then_some(wrong).flatten(),
        // Looked at without the lock (`grants`).
        Kind::GrantWritable | Kind::GrantReadOnly => None,
    }
}

/// Roles that the guest may read and nobody else may write.
fn is_table(role: Role) -> bool {
    pagetable::Level::of(role).is_some() || matches!(role, Role::Validating | Role::Releasing)
}

/// Every mapping that the domain tracks has a reference in use that permits it.
fn permitted<H: Hardware>(machine: &Machine<H>, domain: &Domain) -> Result<(), Violation> {
    let mut violation = Ok(());
    tracked(machine, domain, None, |gfn, writable, active| {
        let permits = active.is_some_and(|active| active.is_pinned() && (!writable || active.pins().1 != 0));
        if !permits {
            violation = Err(Violation::Grant(domain.id, gfn));
        }
    });
    violation
}

/// Every grant that is mapped is tracked there, by one that permits it. A tracked mapping may have lost its place to something else, another
/// grant included.
fn recorded<H: Hardware>(machine: &Machine<H>, domain: &Domain) -> Result<(), Violation> {
    let mut violation = Ok(());
    // What it tracks. Those that the list has no room for are looked for each time.
    let mut list = heapless::Vec::<(Gfn, bool, Option<Mfn>), 256>::new();
    let mut fits = true;
    tracked(machine, domain, None, |gfn, writable, active| {
        fits &= list.push((gfn, writable, active.and_then(|active| active.mfn()))).is_ok();
    });
    walk(&machine.hw, domain.stage2_root, |entry| {
        if let Entry::Leaf { gfn, mapping, .. } = entry
            && matches!(mapping.kind, Kind::GrantWritable | Kind::GrantReadOnly)
        {
            let permits = |writable: bool, mfn: Option<Mfn>| {
                (writable || mapping.kind == Kind::GrantReadOnly) && mfn == Some(mapping.mfn)
            };
            let mut recorded = list.iter().any(|(at, writable, mfn)| *at == gfn && permits(*writable, *mfn));
            if !recorded && !fits {
                tracked(machine, domain, Some(gfn), |_, writable, active| {
                    recorded |= permits(writable, active.and_then(|active| active.mfn()));
                });
            }
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
    let is_asked = |gfn: Gfn| only.is_none_or(|only| only == gfn);
    let mut next = Some(0);
    while let Some(from) = next {
        // Looked at without the lock, since the granter may be the domain itself and locks are not taken twice.
        let mut tracks = heapless::Vec::<Track, 64>::new();
        next = domain.state.lock().grants.mappings(&machine.hw, from, |_, track| {
            // There is room for all of a piece.
            let _ = tracks.push(track);
        });
        // By reference: an iterator that owns a `heapless::Vec` can panic when it is dropped.
        for track in &tracks {
            match *track {
                Track::Orphan { frame, gfn, writable } if is_asked(gfn) => {
                    let base = machine.frames.table.base();
                    if let Some(mfn) = base.checked_add(u64::from(frame)) {
                        visit(gfn, writable, Some(Active::orphan(mfn, domain.id)));
                    }
                }
                Track::Mapped { granter, gref, gfn, writable } if is_asked(gfn) => {
                    let granter = machine.domain(granter);
                    let active =
                        granter.and_then(|granter| granter.state.lock().grants.active(machine, gref));
                    visit(gfn, writable, active);
                }
                Track::Orphan { .. } | Track::Mapped { .. } | Track::Free(_) => {}
            }
        }
    }
}

/// The counts of a domain's frames, whose sum is `references`, are those of their holders: each that is held has as many as hold it, and
/// there are no others.
fn counts<H: Hardware>(machine: &Machine<H>, domain: &Domain, references: u64) -> Result<(), Violation> {
    let state = domain.state.lock();
    let table = &machine.frames.table;
    let infos = || domain.vcpus.iter().filter_map(info_frame).filter(|mfn| *mfn != domain.shared_info);
    // A reference in use holds its frame once, however often it is mapped. Those that the list has no room for are looked for each time.
    let mut granted = heapless::Vec::<Mfn, 64>::new();
    let mut fits = true;
    state.grants.pinned(machine, |_, active| {
        fits &= active.mfn().is_none_or(|mfn| granted.push(mfn).is_ok());
    });
    let holders = |mfn: Mfn| {
        let areas = infos()
            .chain(area_frames(domain))
            .chain(evtchn::held(domain))
            .filter(|held| *held == mfn)
            .count();
        let mut holders = granted.iter().filter(|held| **held == mfn).count();
        if !fits {
            holders = 0;
            state.grants.pinned(machine, |_, active| {
                holders = holders.saturating_add(usize::from(active.mfn() == Some(mfn)));
            });
        }
        holders.saturating_add(areas)
    };
    let (mut sum, mut wrong) = (0_u64, None);
    let mut held = |mfn: Mfn| {
        sum = sum.wrapping_add(1);
        let found = table.state(mfn).filter(|found| found.owner == domain.id);
        if found.is_none_or(|found| usize::try_from(found.count) != Ok(holders(mfn))) {
            wrong = Some(mfn);
        }
    };
    infos().chain(area_frames(domain)).chain(evtchn::held(domain)).for_each(&mut held);
    state.grants.pinned(machine, |_, active| {
        active.mfn().into_iter().for_each(&mut held);
    });
    // Somebody's count is of holders that have gone.
    let idle = || table.states().find(|(_, found)| found.owner == domain.id && found.count != 0);
    match wrong {
        None if sum != references => Err(Violation::Count(idle().map_or_else(Mfn::default, |(mfn, _)| mfn))),
        None => Ok(()),
        Some(mfn) => Err(Violation::Count(mfn)),
    }
}

/// The frame of a vCPU's info area.
fn info_frame(vcpu: &Vcpu) -> Option<Mfn> {
    Some(vcpu.info_at()?.frame())
}

/// The frames of vCPUs' run-state areas: one or two for each area.
fn area_frames(domain: &Domain) -> impl Iterator<Item = Mfn> + '_ {
    domain.vcpus.iter().flat_map(|vcpu| vcpu.runstate.area()).flatten().map(FrameAddr::frame)
}

#[cfg(test)]
mod tests;
