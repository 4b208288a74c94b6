//! The roles of a domain, recomputed from its tables: for [`crate::selfcheck`].
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]
use super::Root;
use super::entry::{self, Level, Target};
use super::role::noted;
use crate::addr::{Gfn, Mfn};
use crate::domain::{Domain, DomainState};
use crate::frame::{FrameState, Role};
use crate::hardware::Hardware;
use crate::machine::Machine;
use crate::stage2::ENTRIES;

/// Frames with a role that are counted in one pass.
const LISTED: usize = 64;

/// The first frame of a domain's whose count is not the number of entries and roots that name it, or that has an entry that is not
/// allowed. (I4, I5)
pub(crate) fn check<H: Hardware>(
    machine: &Machine<H>,
    domain: &Domain,
    state: &DomainState,
) -> Result<(), Mfn> {
    if state.paging.is_none() {
        return Ok(());
    }
    // What names each frame, counted in one pass. Frames that the list has no room for are looked for each time.
    let mut list = heapless::Vec::<(Mfn, Option<Gfn>, u32), LISTED>::new();
    let mut fits = true;
    let own = || {
        let table = &machine.frames.table;
        (table.base().get()..table.end()).filter_map(move |number| {
            let mfn = Mfn::new(number)?;
            let found = table.state(mfn).filter(|found| found.owner == domain.id)?;
            (found.role.is_ram() && found.role != Role::Data).then_some((mfn, found))
        })
    };
    for (mfn, _) in own() {
        fits &= list.push((mfn, machine.frames.table.home(mfn), 0)).is_ok();
    }
    for (mfn, _) in own() {
        entries(machine, mfn).try_for_each(|target| match target {
            Some(Target::Counted(gfn, role)) => {
                if let Some((.., names)) = list.iter_mut().find(|(_, home, _)| *home == Some(gfn)) {
                    *names = names.saturating_add(1);
                }
                if role_at(machine, domain, gfn) == Some(role) { Ok(()) } else { Err(mfn) }
            }
            Some(Target::Nothing | Target::Data(_)) => Ok(()),
            None => Err(mfn),
        })?;
    }
    let roots = |mfn: Mfn| {
        let uses = state.paging.iter().flat_map(super::Paging::uses);
        uses.filter(|root: &Root| root.mfn == mfn).count()
    };
    if fits {
        let right = |(mfn, _, names): &(Mfn, Option<Gfn>, u32)| {
            let named = usize::try_from(*names).unwrap_or(usize::MAX).saturating_add(roots(*mfn));
            machine.frames.table.state(*mfn).map(|found| found.count) == u32::try_from(named).ok()
        };
        return list.iter().find(|listed| !right(listed)).map_or(Ok(()), |(mfn, ..)| Err(*mfn));
    }
    for (mfn, FrameState { count, .. }) in own() {
        let gfn = machine.frames.table.home(mfn);
        let names =
            |target: &Option<Target>| matches!(target, Some(Target::Counted(at, _)) if Some(*at) == gfn);
        let links: usize = own().map(|(table, _)| entries(machine, table).filter(names).count()).sum();
        if u32::try_from(links.saturating_add(roots(mfn))) != Ok(count) {
            return Err(mfn);
        }
    }
    Ok(())
}

fn role_at<H: Hardware>(machine: &Machine<H>, domain: &Domain, gfn: Gfn) -> Option<Role> {
    let mfn = entry::at(machine, domain, gfn).ok()?;
    Some(machine.frames.table.state(mfn)?.role)
}

/// What the entries of a frame lead to, those that are held; none when it is no table.
fn entries<H: Hardware>(machine: &Machine<H>, mfn: Mfn) -> impl Iterator<Item = Option<Target>> + '_ {
    let role = machine.frames.table.state(mfn).map(|state| state.role);
    let (level, held) = match role.and_then(Level::of) {
        Some(level) => (Some(level), ENTRIES),
        None if matches!(role, Some(Role::Validating | Role::Releasing)) => {
            let (level, done) = noted(machine, mfn);
            (level, usize::try_from(done).unwrap_or(ENTRIES))
        }
        None => (None, 0),
    };
    (0..held).map(move |index| entry::decode(machine.hw.table_read(mfn, index), level?))
}
