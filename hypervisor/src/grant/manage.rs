//! Size and version of a table, and exchanging entries.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use pv_abi::grant::{GetVersion, GrantStatus, QuerySize, SetVersion, SetupTable, SwapGrantRef};
use pv_abi::{DomId, Errno, GuestHandle};
use zerocopy::IntoBytes;

use super::table::GrantState;
use crate::addr::Gfn;
use crate::domain::Domain;
use crate::guest_memory;
use crate::hardware::Hardware;
use crate::hypercall::{Args, Stop, any_domain};
use crate::machine::{Current, Machine};

/// Frames that one run adds to a table before it lets interrupts in: each is two of the machine's, cleared and one of them cleaned to
/// memory, some 2800 instructions.
const GROW_BUDGET: u32 = 3;
/// Frames that a table grows by in the run that does something with the last of them, too: that may split a block.
const GROWN_WITH: u32 = 0;
/// `INVALID_GFN`.
const NO_GFN: u64 = u64::MAX;

/// The domain that a table operation names: must be the caller's own.
fn own<'a, H: Hardware>(
    machine: &'a Machine<H>,
    current: &Current<'a>,
    dom: DomId,
) -> Result<&'a Domain, GrantStatus> {
    let domain = any_domain(machine, current, dom).ok_or(GrantStatus::BadDomain)?;
    if domain.id == current.domain.id { Ok(domain) } else { Err(GrantStatus::PermissionDenied) }
}

/// Tells the size of the caller's table.
pub(super) fn query_size<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, op: &mut QuerySize) {
    let sizes = own(machine, current, op.dom).map(|domain| {
        let state = domain.state.lock();
        (state.grants.frames(), state.grants.max_frames())
    });
    op.status = match sizes {
        Ok((frames, max_frames)) => {
            op.nr_frames = frames;
            op.max_nr_frames = max_frames;
            GrantStatus::Okay
        }
        Err(status) => status,
    }
    .value();
}

/// Lets the table of a domain grow to `to` frames, at most [`GROW_BUDGET`] a run.
///
/// # Errors
/// A restart of the call when there is more to do; else as [`GrantState::grow`], and what this run added is gone again.
pub(crate) fn grow<H: Hardware>(
    machine: &Machine<H>,
    owner: DomId,
    grants: &mut GrantState,
    to: u32,
    args: &Args,
) -> Result<(), Stop> {
    if to > grants.max_frames() {
        return Err(Errno::Einval.into());
    }
    let before = grants.frames();
    let step = to.min(before.saturating_add(machine.hw.budget(GROW_BUDGET)));
    grants.grow(&machine.hw, &machine.frames, owner, step)?;
    let grown = step.saturating_sub(before) > machine.hw.budget(GROWN_WITH);
    if step < to || grown { Err(Stop::Restart(*args)) } else { Ok(()) }
}

/// Sizes the caller's table and lists where the domain has its frames.
///
/// # Errors
/// Restarts while the table grows.
pub(super) fn setup_table<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    op: &SetupTable,
    args: &Args,
) -> Result<GrantStatus, Stop> {
    let domain = match own(machine, current, op.dom) {
        Ok(domain) => domain,
        Err(status) => return Ok(status),
    };
    let mut state = domain.state.lock();
    if op.nr_frames > state.grants.max_frames() {
        return Ok(GrantStatus::GeneralError);
    }
    match grow(machine, domain.id, &mut state.grants, op.nr_frames, args) {
        Ok(()) => {}
        Err(Stop::Errno(_)) => return Ok(GrantStatus::GeneralError),
        Err(restart @ Stop::Restart(_)) => return Err(restart),
    }
    for index in 0..op.nr_frames {
        let home = state.grants.frame(index).and_then(|mfn| machine.frames.table.home(mfn));
        let gfn = home.map_or(NO_GFN, Gfn::get);
        let written = guest_memory::element::<u64>(op.frame_list, u64::from(index))
            .and_then(|at| guest_memory::write(machine, current, at, &gfn));
        if written.is_err() {
            return Ok(GrantStatus::BadVirtAddr);
        }
    }
    Ok(GrantStatus::Okay)
}

/// Chooses version 1, the only one.
pub(super) fn set_version<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    at: GuestHandle,
) -> Result<(), Errno> {
    let asked: SetVersion = guest_memory::read(machine, current, at)?;
    guest_memory::write(machine, current, at, &SetVersion { version: 1 })?;
    match asked.version {
        1 => Ok(()),
        // As before there was a second version.
        2 => Err(Errno::Enosys),
        _ => Err(Errno::Einval),
    }
}

/// Tells the version of the caller's table.
pub(super) fn get_version<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    at: GuestHandle,
) -> Result<(), Errno> {
    let asked: GetVersion = guest_memory::read(machine, current, at)?;
    match own(machine, current, asked.dom) {
        Ok(_) => guest_memory::write(machine, current, at, &GetVersion { version: 1, ..asked }),
        Err(GrantStatus::BadDomain) => Err(Errno::Esrch),
        Err(_) => Err(Errno::Eperm),
    }
}

/// Exchanges two entries of the caller's table that are not in use.
pub(super) fn swap<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    op: &SwapGrantRef,
) -> Result<(), GrantStatus> {
    let state = current.domain.state.lock();
    let grants = &state.grants;
    let a = grants.active(machine, op.ref_a).ok_or(GrantStatus::BadGntref)?;
    let b = grants.active(machine, op.ref_b).ok_or(GrantStatus::BadGntref)?;
    if op.ref_a == op.ref_b {
        return Ok(());
    }
    if (a.is_pinned() || b.is_pinned()) && !crate::seeded!("swap-in-use") {
        return Err(GrantStatus::Eagain);
    }
    let a = grants.entry_at(op.ref_a).ok_or(GrantStatus::BadGntref)?;
    let b = grants.entry_at(op.ref_b).ok_or(GrantStatus::BadGntref)?;
    let (in_a, in_b) = (machine.hw.load_u64(a), machine.hw.load_u64(b));
    machine.hw.write(a, in_b.as_bytes());
    machine.hw.write(b, in_a.as_bytes());
    Ok(())
}
