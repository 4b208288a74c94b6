//! Changing entries: `mmu_update` and `update_va_mapping`.
//!
//! 1. An entry that is replaced by one that differs in permissions, or by nothing, is written at once, and all translations are
//!    flushed on all CPUs before the lock is let go. One that is replaced by something else is broken first (D8.16.1): emptied, flushed,
//!    written; a vCPU that uses it meanwhile takes a translation fault that its kernel did not cause: it tries again. Writing an empty
//!    entry needs no flush, only that the walkers see it; but after one that still waits for its flush, that comes first.
//! 2. What an entry held is let go before that flush but under the lock, and no role changes without it.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]
use pv_abi::paging::{MmuUpdate, NORMAL_PT_UPDATE, flush};
use pv_abi::{Errno, PAGE_SHIFT};

use super::batch::{Batch, names_a_vcpu};
use super::entry::{self, Level, There};
use crate::addr::{Gfn, GuestVa, Ipa, Mfn};
use crate::domain::{Domain, DomainState};
use crate::guest_memory;
use crate::hardware::{Access, Hardware, Vmid};
use crate::hypercall::{Answer, Args};
use crate::machine::{Current, Machine};
use crate::stage2::ENTRIES;

/// What one run may cost while it holds the lock, for which as many as seven siblings may wait with interrupts masked: an entry of the quick kind is
/// 1 (some 35 instructions).
const BUDGET: u32 = 96;
/// More for one that is not like the one before: another table, data far away.
const UNLIKE: u32 = 3;
/// More for one of another kind: some 300 instructions in all.
const OTHER: u32 = 6;
/// More for a flush: the time that all CPUs take to answer.
const FLUSH: u32 = 1;

/// The domain's tables while its lock is held. What it has changed holds when [`Editor::finish`] has run.
struct Editor<'a, H: Hardware> {
    machine: &'a Machine<H>,
    domain: &'a Domain,
    /// The table that was changed last.
    table: Option<(Gfn, Mfn, Level)>,
    /// What quick changes go by, and what they leave to be done.
    quick: Quick,
    /// What has been done, in units of [`BUDGET`].
    cost: u32,
}

/// What most entries of a batch need: they are in the same table of level 3, and map data near each other, or nothing. Nothing is counted then, and a
/// few loads are enough.
#[derive(Clone, Copy)]
struct Quick {
    /// The table of level 3 that was changed last: its guest address, none at first, and where it is.
    table: (u64, Mfn),
    /// What was mapped last.
    there: There,
    /// Bit 0: an entry that was there is not, or not as it was.
    stale: u64,
    /// Bit 0: an entry is there that was not.
    made: u64,
}

/// The bits of an entry's address that say where in its table it is; the others are the table's, and none.
const IN_TABLE: u64 = (ENTRIES as u64 - 1) << 3;
const _: () = assert!(NORMAL_PT_UPDATE == 0);

impl Quick {
    /// Writes an entry, if it is one of these; false, and nothing is done, if not.
    #[expect(clippy::inline_always, reason = "what an entry of a batch costs is little but this")]
    #[inline(always)]
    fn write<H: Hardware>(&mut self, hw: &H, at: u64, new: u64) -> bool {
        let (start, table) = self.table;
        if at & !IN_TABLE != start {
            return false;
        }
        let index = (at >> 3) as usize & (ENTRIES - 1);
        let old = hw.table_read(table, index);
        let fits = if entry::is_empty(new) {
            entry::is_empty(old) && !self.is_stale() || entry::data_page(old).is_some()
        } else {
            // After one that still waits for its flush, that comes first.
            let step =
                if entry::is_empty(old) { !self.is_stale() } else { entry::differ_in_rights(old, new) };
            step && self.there.is_data(hw, new)
        };
        if !fits {
            return false;
        }
        // By the bit that says whether there was one. Who writes what was there flushes once more than he must.
        if !crate::seeded!("xsa-286") {
            self.stale |= old;
        }
        self.made |= !old;
        hw.table_write(table, index, new);
        true
    }

    #[inline]
    const fn is_stale(&self) -> bool {
        self.stale & entry::VALID != 0
    }

    /// Replaces an entry that maps data by one that does too, and differs in more than rights: broken, flushed, made. False, and nothing is done, if
    /// it is another.
    #[inline]
    fn replace<H: Hardware>(&mut self, hw: &H, vmid: Vmid, at: u64, new: u64) -> bool {
        let (start, table) = self.table;
        let index = (at >> 3) as usize & (ENTRIES - 1);
        if at & !IN_TABLE != start
            || entry::is_empty(new)
            || !self.there.is_data(hw, new)
            || entry::data_page(hw.table_read(table, index)).is_none()
            || crate::seeded!("change-unbroken")
        {
            return false;
        }
        hw.table_write(table, index, 0);
        hw.flush_stage1(vmid);
        hw.table_write(table, index, new);
        // Of all that was changed before too.
        self.stale = 0;
        self.made = entry::VALID;
        true
    }
}

impl<'a, H: Hardware> Editor<'a, H> {
    /// `_state` shows that the lock is held.
    fn new(machine: &'a Machine<H>, domain: &'a Domain, _state: &DomainState) -> Self {
        let nothing = Quick { table: (u64::MAX, Mfn::default()), there: There::NOWHERE, stale: 0, made: 0 };
        Self { machine, domain, table: None, quick: nothing, cost: 0 }
    }

    /// Writes an entry; entries like it are quick afterwards.
    #[inline(never)]
    fn write(&mut self, at: u64, new: u64) -> Result<(), Errno> {
        self.cost = self.cost.wrapping_add(UNLIKE);
        let gfn = Gfn::new(at >> PAGE_SHIFT).ok_or(Errno::Einval)?;
        if at & 7 == NORMAL_PT_UPDATE && self.table.is_none_or(|(before, ..)| before != gfn) {
            self.find(gfn)?;
        }
        if !entry::is_empty(new)
            && !self.quick.there.is_data(&self.machine.hw, new)
            && let Some(near) = There::find(self.machine, self.domain, new)
        {
            self.quick.there = near;
        }
        if self.quick.write(&self.machine.hw, at, new) {
            return Ok(());
        }
        if self.quick.replace(&self.machine.hw, self.domain.vmid, at, new) {
            self.cost = self.cost.wrapping_add(FLUSH);
            return Ok(());
        }
        self.cost = self.cost.wrapping_add(OTHER);
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
                self.quick.made = entry::VALID;
            }
        } else {
            let breaks = !crate::seeded!("change-unbroken");
            if breaks && !entry::is_empty(new) && !entry::differ_in_permissions(old, new) {
                hw.table_write(table, index, 0);
                self.quick.stale = entry::VALID;
                self.flush();
                self.quick.made = entry::VALID;
            } else {
                self.quick.stale |= u64::from(!crate::seeded!("xsa-286"));
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
        // Of other levels none is quick.
        self.quick.table = (if level == Level::Three { gfn.base().get() } else { u64::MAX }, mfn);
        Ok((mfn, level))
    }

    #[inline]
    fn flush(&mut self) {
        if self.quick.is_stale() {
            self.machine.hw.flush_stage1(self.domain.vmid);
            self.quick.stale = 0;
            self.cost = self.cost.wrapping_add(FLUSH);
        }
    }

    /// Makes all of it hold on all CPUs: a flush waits for the writes before it too.
    fn finish(mut self) {
        if self.quick.is_stale() {
            self.flush();
        } else if self.quick.made & entry::VALID != 0 {
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
    if batch.left != 0 {
        // Requests are read under it: that takes no lock.
        let state = current.domain.state.lock();
        let mut editor = Editor::new(machine, current.domain, &state);
        let budget = machine.hw.budget(BUDGET);
        // Each turn does one at least, or ends it.
        while result.is_ok() && batch.left != 0 && editor.cost < budget {
            result = in_one_page(machine, current, &mut editor, &mut batch, budget);
        }
        editor.finish();
    }
    batch.end(machine, current, result)
}

/// Does requests as long as they lie in one page and within the budget.
#[inline(always)]
fn in_one_page<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    editor: &mut Editor<'_, H>,
    batch: &mut Batch,
    budget: u32,
) -> Result<(), Errno> {
    const SIZE: usize = size_of::<MmuUpdate>();
    let va = GuestVa::new(batch.at.0);
    let at = guest_memory::locate(machine, current, va, Access::Read)?;
    let there = at.left() / SIZE;
    if there == 0 || at.offset() & 7 != 0 {
        // It goes on in the next page, or is in no words.
        let request: MmuUpdate = guest_memory::read(machine, current, batch.at)?;
        editor.write(request.ptr, request.val)?;
        editor.cost = editor.cost.wrapping_add(1);
        batch.advance(1, SIZE);
        return Ok(());
    }
    let first = at.offset() >> 3;
    let most = there.min(usize::try_from(batch.left).unwrap_or(there));
    let last = first.wrapping_add(most.wrapping_mul(2));
    // Those of this page are counted in the end.
    let within = |cost: u32| {
        let rest = usize::try_from(budget.saturating_sub(cost)).unwrap_or(0);
        last.min(first.wrapping_add(rest.wrapping_mul(2)))
    };
    let mut end = within(editor.cost);
    let mut quick = editor.quick;
    let mut result = Ok(());
    let mut index = first;
    while index < end {
        // Each word once: what is checked is what is written.
        let ptr = machine.hw.table_read(at.frame(), index);
        let val = machine.hw.table_read(at.frame(), index.wrapping_add(1));
        if !quick.write(&machine.hw, ptr, val) {
            editor.quick = quick;
            result = editor.write(ptr, val);
            if result.is_err() && !crate::seeded!("batch-count") {
                break;
            }
            quick = editor.quick;
            end = within(editor.cost);
        }
        index = index.wrapping_add(2);
    }
    if result.is_ok() {
        editor.quick = quick;
    }
    let done = u32::try_from(index.wrapping_sub(first) >> 1).unwrap_or(0);
    editor.cost = editor.cost.wrapping_add(done);
    batch.advance(done, SIZE);
    result
}

/// `update_va_mapping`: writes the level-3 entry that maps an address by this vCPU's roots.
///
/// # Errors
/// `-ENOSYS` in a domain with tables of its own, `-EINVAL` when no table of level 3 is there (or there is no such flush), `-EFAULT`: no mask of
/// vCPUs is there, and nothing is changed (Xen has changed the entry by then); or as for [`mmu_update`].
#[inline(never)]
pub fn update_va_mapping<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, args: &Args) -> Answer {
    let [va, new, flags, ..] = *args;
    let domain = current.domain;
    let state = domain.state.lock();
    let paging = state.paging.as_ref().ok_or(Errno::Enosys)?;
    let flushes = is_flush(machine, current, flags)?;
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
    editor.quick.stale |= u64::from(flushes);
    editor.finish();
    Ok(result.map(|()| 0)?)
}

/// Whether flags (`UVMF_*`) ask for a flush, beside the one that the change needs. It takes all of the domain's CPUs whomever it is for, but if it is for
/// none of its vCPUs. As in Xen a mask is looked at only where there is a flush.
fn is_flush<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, flags: u64) -> Result<bool, Errno> {
    match (flags & flush::KIND, flags & !flush::KIND) {
        (flush::NONE, _) => Ok(false),
        (flush::KIND, _) => Err(Errno::Einval),
        (_, flush::HERE | flush::EVERYWHERE) => Ok(true),
        (_, mask) => names_a_vcpu(machine, current, mask),
    }
}

/// Which entry of a table of a level maps an address.
#[inline]
fn index(va: u64, level: Level) -> usize {
    let index = va.wrapping_shr(level.shift()) & (ENTRIES as u64).wrapping_sub(1);
    usize::try_from(index).unwrap_or_default()
}
