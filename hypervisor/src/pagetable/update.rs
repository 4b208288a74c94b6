//! Changing entries: `mmu_update` and `update_va_mapping`.
//!
//! 1. An entry that is replaced by one that differs in permissions, or by nothing, is written at once, and all translations are
//!    flushed on all CPUs before the lock is let go. One that is replaced by something else is broken first (D8.16.1): emptied, flushed,
//!    written; a vCPU that uses it meanwhile takes a translation fault that its kernel did not cause: it tries again. Writing an empty
//!    entry needs no flush, only that the walkers see it; but after one that still waits for its flush, that comes first.
//! 2. What an entry held is let go before that flush but under the lock, and no role changes without it.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]
use pv_abi::paging::{MmuUpdate, NORMAL_PT_UPDATE, flush};
use pv_abi::{Errno, GuestHandle, PAGE_SHIFT};
use zerocopy::{FromZeros, IntoBytes};

use super::batch::Batch;
use super::entry::{self, Level, There};
use crate::addr::{Gfn, GuestVa, Ipa, Mfn};
use crate::domain::{Domain, DomainState};
use crate::guest_memory;
use crate::hardware::Hardware;
use crate::hypercall::{Answer, Args};
use crate::machine::{Current, Machine};
use crate::stage2::ENTRIES;

/// Requests that are read at once.
const CHUNK: usize = 32;
/// Requests that one run does.
const BUDGET: u32 = 64;

/// The domain's tables while its lock is held. What it has changed holds when [`Editor::finish`] has run.
struct Editor<'a, H: Hardware> {
    machine: &'a Machine<H>,
    domain: &'a Domain,
    /// The table that was changed last.
    table: Option<(Gfn, Mfn, Level)>,
    /// What was mapped last.
    there: There,
    /// An entry that was there is not, or not as it was.
    stale: bool,
    /// An entry is there that was not.
    made: bool,
}

impl<'a, H: Hardware> Editor<'a, H> {
    /// `_state` shows that the lock is held.
    fn new(machine: &'a Machine<H>, domain: &'a Domain, _state: &DomainState) -> Self {
        Self { machine, domain, table: None, there: There::default(), stale: false, made: false }
    }

    /// Writes an entry. Nothing is counted where there was data or nothing, and is afterwards: that is done here, by a few loads; all else by
    /// [`Editor::write_any`].
    #[expect(clippy::inline_always, reason = "what an entry of a batch costs is little but this")]
    #[inline(always)]
    fn write(&mut self, at: u64, new: u64) -> Result<(), Errno> {
        if let Some((gfn, table, Level::Three)) = self.table
            && at >> PAGE_SHIFT == gfn.get()
            && at & 7 == NORMAL_PT_UPDATE
        {
            let index = (at >> 3) as usize & (ENTRIES - 1);
            let hw = &self.machine.hw;
            let old = hw.table_read(table, index);
            let was = entry::is_empty(old) || entry::data_page(old).is_some();
            let becomes = entry::is_empty(new)
                || entry::data_page(new).is_some_and(|page| self.there.has(self.machine, self.domain, page));
            if was
                && becomes
                && (entry::is_empty(old) && !self.stale
                    || entry::is_empty(new)
                    || entry::differ_in_permissions(old, new))
            {
                let before = !entry::is_empty(old);
                self.stale |= before && old != new && !crate::seeded!("xsa-286");
                self.made |= !before && !entry::is_empty(new);
                hw.table_write(table, index, new);
                return Ok(());
            }
        }
        self.write_any(at, new)
    }

    /// Writes any entry.
    #[inline(never)]
    fn write_any(&mut self, at: u64, new: u64) -> Result<(), Errno> {
        if at & 7 != NORMAL_PT_UPDATE && !(crate::seeded!("xsa-227") && at.trailing_zeros() >= 2) {
            // Another command, or no entry begins there.
            return Err(if at.trailing_zeros() >= 2 { Errno::Einval } else { Errno::Enosys });
        }
        let place = Ipa::new(at).ok_or(Errno::Einval)?;
        let (table, level) = match self.table {
            Some((gfn, mfn, level)) if gfn == place.frame() => (mfn, level),
            _ => self.find(place.frame())?,
        };
        let index = place.page_offset() >> 3;
        let target = entry::decode(new, level).ok_or(Errno::Einval)?;
        let hw = &self.machine.hw;
        let old = hw.table_read(table, index);
        if old == new {
            return Ok(());
        }
        entry::hold(self.machine, self.domain, target)?;
        if entry::is_empty(old) {
            if !entry::is_empty(new) {
                self.flush();
                self.made = true;
            }
        } else {
            let breaks = !crate::seeded!("change-unbroken");
            if breaks && !entry::is_empty(new) && !entry::differ_in_permissions(old, new) {
                hw.table_write(table, index, 0);
                self.stale = true;
                self.flush();
                self.made = true;
            } else {
                self.stale |= !crate::seeded!("xsa-286");
            }
            if let Some(left) = entry::decode(old, level).filter(|_| !crate::seeded!("xsa-291")) {
                entry::release(self.machine, self.domain, left);
            }
        }
        hw.table_write(table, index, new);
        Ok(())
    }

    /// Looks at a page that is to be a table.
    #[inline(never)]
    fn find(&mut self, gfn: Gfn) -> Result<(Mfn, Level), Errno> {
        let (mfn, role) = super::role::check_own(self.machine, self.domain, gfn)?;
        let level = match Level::of(role) {
            Some(level) => level,
            None if super::CHECKED && !crate::seeded!("update-data") => return Err(Errno::Einval),
            None => Level::Three,
        };
        self.table = Some((gfn, mfn, level));
        Ok((mfn, level))
    }

    #[inline]
    fn flush(&mut self) {
        if self.stale {
            self.machine.hw.flush_stage1(self.domain.vmid);
            self.stale = false;
        }
    }

    /// Makes all of it hold on all CPUs: a flush waits for the writes before it too.
    fn finish(mut self) {
        if self.stale {
            self.flush();
        } else if self.made {
            self.machine.hw.tables_written();
        }
    }
}

/// `mmu_update`.
///
/// # Errors
/// `Batch::begin`'s; `-EFAULT`; for a request `-ENOSYS`: another command than a write, `-EINVAL`: no entry of a table of the caller's, or
/// one that is not allowed there, `-EBUSY`: what it names is referred to as often as can be counted. Restarts.
#[inline(never)]
pub fn mmu_update<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, args: &Args) -> Answer {
    let mut batch = Batch::begin(machine, current, args)?;
    let mut result = Ok(());
    let mut requests = [MmuUpdate::new_zeroed(); CHUNK];
    {
        // Requests are read under it: that takes no lock.
        let state = current.domain.state.lock();
        let mut editor = Editor::new(machine, current.domain, &state);
        let mut budget = machine.hw.budget(BUDGET);
        // Each turn takes some of the budget.
        while budget != 0 && batch.left != 0 {
            let wanted = usize::try_from(batch.left.min(budget)).unwrap_or(CHUNK).min(CHUNK);
            let found = read(machine, current, batch.at, requests.get_mut(..wanted).unwrap_or_default());
            let mut done: u32 = 0;
            for request in requests.iter().take(found.unwrap_or(0)) {
                result = editor.write(request.ptr, request.val);
                if result.is_err() && !crate::seeded!("batch-count") {
                    break;
                }
                done = done.wrapping_add(1);
            }
            batch.advance(done, size_of::<MmuUpdate>());
            result = result.and(found.map(|_| ()));
            if result.is_err() {
                break;
            }
            budget = budget.saturating_sub(done);
        }
        editor.finish();
    }
    batch.end(machine, current, result)
}

/// Reads requests: all, or the first one only when not all can be read. Returns how many.
fn read<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    at: GuestHandle,
    into: &mut [MmuUpdate],
) -> Result<usize, Errno> {
    let va = GuestVa::new(at.0);
    if guest_memory::read_bytes(machine, current, va, into.as_mut_bytes()).is_ok() {
        return Ok(into.len());
    }
    let Some(first) = into.first_mut() else { return Ok(0) };
    guest_memory::read_bytes(machine, current, va, first.as_mut_bytes())?;
    Ok(1)
}

/// `update_va_mapping`: writes the level-3 entry that maps an address by this vCPU's roots.
///
/// # Errors
/// `-ENOSYS` in a domain with tables of its own, `-EINVAL` when no table of level 3 is there (or flags are unknown), or as for
/// [`mmu_update`].
#[inline(never)]
pub fn update_va_mapping<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, args: &Args) -> Answer {
    let [va, new, flags, ..] = *args;
    let domain = current.domain;
    let state = domain.state.lock();
    let paging = state.paging.as_ref().ok_or(Errno::Enosys)?;
    if flags & !(flush::KIND | flush::EVERYWHERE) != 0 || flags & flush::KIND == flush::KIND {
        return Err(Errno::Einval.into());
    }
    // 48 bits, sign-extended: the lower half, or the upper.
    let half = super::Half::of(va).ok_or(Errno::Einval)?;
    let half = if crate::seeded!("xsa-294") { super::Half::Lower } else { half };
    let root = paging.root(current.vcpu, half).ok_or(Errno::Einval)?;
    let (mut table, mut mfn) = (root.gfn, root.mfn);
    for level in [Level::Zero, Level::One, Level::Two] {
        match entry::decode(machine.hw.table_read(mfn, index(va, level)), level) {
            Some(entry::Target::Counted(gfn, _)) => {
                table = gfn;
                mfn = entry::at(machine, domain, gfn)?;
            }
            Some(entry::Target::Data(gfn)) if !super::CHECKED => {
                table = gfn;
                mfn = super::role::check_own(machine, domain, gfn)?.0;
            }
            Some(entry::Target::Nothing | entry::Target::Data(_)) | None => {
                return Err(Errno::Einval.into());
            }
        }
    }
    let at = (table.get() << PAGE_SHIFT) | ((index(va, Level::Three) as u64) << 3);
    let mut editor = Editor::new(machine, domain, &state);
    let result = editor.write(at, new);
    editor.stale |= flags & flush::KIND != flush::NONE;
    editor.finish();
    Ok(result.map(|()| 0)?)
}

/// Which entry of a table of a level maps an address.
#[inline]
fn index(va: u64, level: Level) -> usize {
    let index = va.wrapping_shr(level.shift()) & (ENTRIES as u64).wrapping_sub(1);
    usize::try_from(index).unwrap_or_default()
}
