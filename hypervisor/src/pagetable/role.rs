//! Roles of a pv domain's frames: pin, unpin, and what comes between.
//!
//! 1. Checking a table and giving back what its entries hold go in steps that cost [`STEP`]; between them the frame is
//!    [`Role::Validating`] or [`Role::Releasing`], the entries before its progress are held, and nobody can link, change or write it. Any vCPU may go
//!    on with it, from where it is.
//! 2. A table that fails its check is released again, and is data when the call that says so returns.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]
use pv_abi::Errno;

use super::entry::{self, Level, There};
use crate::addr::{Gfn, Mfn};
use crate::domain::{Domain, DomainState};
use crate::frame::{FrameError, NO_LINK, Role};
use crate::hardware::Hardware;
use crate::machine::Machine;
use crate::stage2::{ENTRIES, Kind};

/// What one run checks or releases, some 4000 instructions: an empty entry is 1; one that maps data [`DATA`] more, far from the one before [`FAR`] more; one
/// that is counted [`COUNTED`] more.
const STEP: u32 = 256;
const DATA: u32 = 1;
const FAR: u32 = 5;
const COUNTED: u32 = 8;
const ALL: u32 = 512;
const _: () = assert!(ALL as usize == ENTRIES);
/// Progress has the level above the entries done.
const LEVEL_SHIFT: u32 = 16;
const DONE_MASK: u32 = 0xFFFF;

/// Frames of a block, less one.
const BLOCK_MASK: u64 = ENTRIES as u64 - 1;

/// How far a pin or unpin came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// To its end.
    Done,
    /// To be called again.
    More,
}

impl From<FrameError> for Errno {
    /// What a role refuses.
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::TooManyReferences | FrameError::Referenced | FrameError::Contended => Self::Ebusy,
            FrameError::NoFrame
            | FrameError::WrongOwner
            | FrameError::WrongRole
            | FrameError::NotReferenced => Self::Einval,
        }
    }
}

/// Takes a reference to a frame that must have a role.
#[inline(never)]
pub(super) fn refer<H: Hardware>(
    machine: &Machine<H>,
    domain: &Domain,
    mfn: Mfn,
    role: Role,
) -> Result<(), Errno> {
    if !super::CHECKED {
        return Ok(());
    }
    machine.frames.table.reference_as(mfn, domain.id, role).map_err(Errno::from)
}

/// Gives back what [`refer`] took.
pub(super) fn let_go<H: Hardware>(machine: &Machine<H>, mfn: Mfn) {
    if super::CHECKED {
        // It was taken.
        let _ = machine.frames.table.release(mfn);
    }
}

/// The frame at a guest frame, and its role, if it is RAM of the domain's own.
///
/// # Errors
/// `-EINVAL`
#[inline(never)]
fn own<H: Hardware>(machine: &Machine<H>, domain: &Domain, gfn: Gfn) -> Result<(Mfn, Role), Errno> {
    let mfn = entry::at(machine, domain, gfn)?;
    let state = machine.frames.table.state(mfn).ok_or(Errno::Einval)?;
    // A grant of its own that it mapped is no place for a role: the frame's home is.
    if state.owner != domain.id || !state.role.is_ram() || machine.frames.table.home(mfn) != Some(gfn) {
        return Err(Errno::Einval);
    }
    Ok((mfn, state.role))
}

/// The role of the page at a guest frame, if it is RAM of the domain's own.
///
/// # Errors
/// `-EINVAL`
pub(super) fn check_own<H: Hardware>(
    machine: &Machine<H>,
    domain: &Domain,
    gfn: Gfn,
) -> Result<(Mfn, Role), Errno> {
    own(machine, domain, gfn)
}

/// Invariant 3 of [`super`]: from data to a role that the guest cannot write. To be called again when a block had to be joined to have a table for the
/// one that is to be split.
#[inline(never)]
fn promote<H: Hardware>(
    machine: &Machine<H>,
    domain: &Domain,
    state: &mut DomainState,
    gfn: Gfn,
    mfn: Mfn,
    role: Role,
    kind: Kind,
) -> Result<Step, Errno> {
    let shared = domain.paging().ok_or(Errno::Enosys)?;
    let slot = match state.stage2.prepare(&machine.hw, &machine.frames, gfn) {
        Ok(slot) => slot,
        Err(error) => return join_left(machine, state).then_some(Step::More).ok_or(error.into()),
    };
    // The frame's users are forgotten, so that it may become a table.
    while crate::seeded!("xsa-288") && machine.frames.table.release(mfn).is_ok() {}
    if !slot.current(&machine.hw).is_some_and(|there| there.kind.is_own_data() && there.mfn == mfn) {
        return Err(Errno::Einval);
    }
    machine.frames.table.retype(mfn, domain.id, Role::Data, role).map_err(|_| Errno::Ebusy)?;
    {
        let _writes = shared.writes.lock();
        slot.protect(&machine.hw, kind);
    }
    if !crate::seeded!("xsa-402") {
        machine.hw.clean_to_memory(mfn);
    }
    Ok(Step::Done)
}

/// Joins the block that was left for later; whether that gave a table back.
#[cold]
#[inline(never)]
fn join_left<H: Hardware>(machine: &Machine<H>, state: &mut DomainState) -> bool {
    let tables = state.stage2.tables();
    if let Some(left) = state.paging.as_mut().and_then(|paging| paging.left.take()) {
        state.stage2.join(&machine.hw, &machine.frames, left);
    }
    state.stage2.tables() < tables
}

/// Invariant 4 of [`super`]: back to data. The frame has no count.
#[inline(never)]
fn demote<H: Hardware>(
    machine: &Machine<H>,
    domain: &Domain,
    state: &mut DomainState,
    gfn: Gfn,
    mfn: Mfn,
    from: Role,
) -> Result<(), Errno> {
    let slot = state.stage2.prepare(&machine.hw, &machine.frames, gfn)?;
    machine.frames.table.retype(mfn, domain.id, from, Role::Data).map_err(Errno::from)?;
    machine.frames.table.set_progress(mfn, NO_LINK);
    if !crate::seeded!("xsa-292") {
        machine.hw.flush_stage1(domain.vmid);
    }
    slot.protect(&machine.hw, Kind::Data);
    // 2 MiB are joined at once, or not.
    let block = Gfn::new(gfn.get() & !BLOCK_MASK).unwrap_or(gfn);
    if let Some(paging) = &mut state.paging
        && let Some(before) = paging.left.replace(block)
        && before != block
    {
        state.stage2.join(&machine.hw, &machine.frames, before);
    }
    Ok(())
}

/// Makes a page a table of a level.
///
/// # Errors
/// `-EINVAL`: no page of the domain's own, an entry that is not allowed, or a sibling is on the way to make it data (and this helped it); `-EBUSY`: it has references or another role; `-ENOMEM`: no frame for
/// a stage-2 table. It is data afterwards as before.
#[inline(never)]
pub(super) fn pin<H: Hardware>(
    machine: &Machine<H>,
    domain: &Domain,
    state: &mut DomainState,
    gfn: Gfn,
    level: Level,
) -> Result<Step, Errno> {
    let (mfn, role) = own(machine, domain, gfn)?;
    if !super::CHECKED {
        return Ok(Step::Done);
    }
    let table = &machine.frames.table;
    let first = match role {
        Role::Data => {
            if promote(machine, domain, state, gfn, mfn, Role::Validating, Kind::Table)? == Step::More {
                return Ok(Step::More);
            }
            note(machine, mfn, level, 0);
            0
        }
        // Another vCPU began, or this one before it was interrupted.
        Role::Validating => {
            let (of, done) = noted(machine, mfn);
            if of != Some(level) {
                return Err(Errno::Ebusy);
            }
            if crate::seeded!("xsa-309") { 0 } else { done }
        }
        Role::Releasing => return failed(machine, domain, state, gfn, mfn),
        // Done already, perhaps by another vCPU that went on with it.
        role if role == level.role() => return Ok(Step::Done),
        _ => return Err(Errno::Ebusy),
    };
    let (mut end, mut cost) = (first, 0_u32);
    let budget = machine.hw.budget(STEP);
    let mut there = There::NOWHERE;
    while end < ALL && cost < budget {
        let index = end;
        end = end.wrapping_add(1);
        cost = cost.wrapping_add(1);
        let raw = machine.hw.table_read(mfn, index as usize);
        if entry::is_empty(raw) {
            continue;
        }
        if level == Level::Three {
            if there.is_data(&machine.hw, raw) {
                cost = cost.wrapping_add(DATA);
                continue;
            }
            cost = cost.wrapping_add(FAR);
            if let Some(near) = There::find(machine, domain, raw) {
                there = near;
                if there.is_data(&machine.hw, raw) {
                    continue;
                }
            }
        }
        cost = cost.wrapping_add(COUNTED);
        let held = entry::decode(raw, level)
            .ok_or(Errno::Einval)
            .and_then(|target| entry::hold(machine, domain, target));
        if held.is_err() {
            table.retype(mfn, domain.id, Role::Validating, Role::Releasing).map_err(Errno::from)?;
            let held = if crate::seeded!("xsa-299") { 0 } else { index };
            note(machine, mfn, level, held);
            return failed(machine, domain, state, gfn, mfn);
        }
    }
    note(machine, mfn, level, end);
    if end < ALL {
        return Ok(Step::More);
    }
    table.retype(mfn, domain.id, Role::Validating, level.role()).map_err(Errno::from)?;
    table.set_progress(mfn, NO_LINK);
    Ok(Step::Done)
}

/// Goes on releasing a table that failed its check, and says so at the end.
fn failed<H: Hardware>(
    machine: &Machine<H>,
    domain: &Domain,
    state: &mut DomainState,
    gfn: Gfn,
    mfn: Mfn,
) -> Result<Step, Errno> {
    match release(machine, domain, state, gfn, mfn)? {
        Step::More => Ok(Step::More),
        Step::Done => Err(Errno::Einval),
    }
}

/// Makes a page text.
///
/// # Errors
/// As [`pin`].
pub(super) fn pin_text<H: Hardware>(
    machine: &Machine<H>,
    domain: &Domain,
    state: &mut DomainState,
    gfn: Gfn,
    to: Role,
) -> Result<Step, Errno> {
    let (mfn, role) = own(machine, domain, gfn)?;
    match role {
        _ if !super::CHECKED => Ok(Step::Done),
        Role::Data => {
            let step = promote(machine, domain, state, gfn, mfn, to, Kind::Text)?;
            if step == Step::Done {
                machine.hw.sync_instructions(mfn);
            }
            Ok(step)
        }
        role if role == to => Ok(Step::Done),
        _ => Err(Errno::Ebusy),
    }
}

/// Makes a table or text page data.
///
/// # Errors
/// `-EINVAL`: it is none; `-EBUSY`: it has references.
#[inline(never)]
pub(super) fn unpin<H: Hardware>(
    machine: &Machine<H>,
    domain: &Domain,
    state: &mut DomainState,
    gfn: Gfn,
) -> Result<Step, Errno> {
    let (mfn, role) = own(machine, domain, gfn)?;
    match (role, Level::of(role)) {
        _ if !super::CHECKED => return Ok(Step::Done),
        (_, Some(level)) => {
            // Links to it are forgotten.
            while crate::seeded!("unpin-linked") && machine.frames.table.release(mfn).is_ok() {}
            machine.frames.table.retype(mfn, domain.id, role, Role::Releasing).map_err(|_| Errno::Ebusy)?;
            note(machine, mfn, level, ALL);
        }
        (Role::Validating, None) => {
            let retyped = machine.frames.table.retype(mfn, domain.id, role, Role::Releasing);
            retyped.map_err(Errno::from)?;
            if crate::seeded!("xsa-310")
                && let Some(level) = noted(machine, mfn).0
            {
                note(machine, mfn, level, ALL);
            }
        }
        (Role::Releasing, None) => {}
        (Role::KernelText | Role::UserText, None) => {
            demote(machine, domain, state, gfn, mfn, role).map_err(|error| match error {
                Errno::Einval => Errno::Ebusy,
                other => other,
            })?;
            return Ok(Step::Done);
        }
        (_, None) => return Err(Errno::Einval),
    }
    release(machine, domain, state, gfn, mfn)
}

/// Gives back what the entries of a [`Role::Releasing`] frame hold, from its progress down.
#[inline(never)]
fn release<H: Hardware>(
    machine: &Machine<H>,
    domain: &Domain,
    state: &mut DomainState,
    gfn: Gfn,
    mfn: Mfn,
) -> Result<Step, Errno> {
    let (level, done) = noted(machine, mfn);
    let level = level.ok_or(Errno::Einval)?;
    let (mut rest, mut cost) = (done, 0_u32);
    let budget = machine.hw.budget(STEP);
    while rest > 0 && cost < budget {
        rest = rest.wrapping_sub(1);
        cost = cost.wrapping_add(1);
        let raw = machine.hw.table_read(mfn, rest as usize);
        if entry::is_empty(raw) || level == Level::Three && entry::data_page(raw).is_some() {
            continue;
        }
        cost = cost.wrapping_add(COUNTED);
        if let Some(target) = entry::decode(raw, level) {
            entry::release(machine, domain, target);
        }
    }
    note(machine, mfn, level, rest);
    if rest != 0 {
        return Ok(Step::More);
    }
    demote(machine, domain, state, gfn, mfn, Role::Releasing)?;
    Ok(Step::Done)
}

fn note<H: Hardware>(machine: &Machine<H>, mfn: Mfn, level: Level, done: u32) {
    machine.frames.table.set_progress(mfn, (level as u32).wrapping_shl(LEVEL_SHIFT) | done);
}

pub(super) fn noted<H: Hardware>(machine: &Machine<H>, mfn: Mfn) -> (Option<Level>, u32) {
    let progress = machine.frames.table.progress(mfn);
    let level = usize::try_from(progress >> LEVEL_SHIFT).ok().and_then(|level| Level::ALL.get(level));
    (level.copied(), (progress & DONE_MASK).min(ALL))
}
