//! `mmuext_op`: pins, roots, flushes, pages, and the seal.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]
use pv_abi::Errno;
use pv_abi::paging::{ExtOp, MmuExtOp};

use super::batch::{Batch, names_a_vcpu};
use super::entry::Level;
use super::role::{self, Step, check_own};
use super::root::{self, Half};
use crate::addr::{FrameAddr, Gfn, GuestVa, Mfn};
use crate::domain::DomainState;
use crate::frame::Role;
use crate::guest_memory;
use crate::hardware::Hardware;
use crate::hypercall::{Answer, Args};
use crate::machine::{Current, Machine};

/// Operations that one run does; a pin or unpin ends it.
const BUDGET: u32 = 8;

/// `mmuext_op`.
///
/// # Errors
/// As `mmu_update`'s; for an operation `-ENOSYS`: it is not offered, `-EPERM`: kernel text after the seal, and what each says. Restarts.
#[inline(never)]
pub fn mmuext_op<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, args: &Args) -> Answer {
    let mut batch = Batch::begin(machine, current, args)?;
    let mut result = Ok(());
    for _ in 0..machine.hw.budget(BUDGET) {
        if batch.left == 0 {
            break;
        }
        let (step, long) = match guest_memory::read::<MmuExtOp, H>(machine, current, batch.at) {
            Ok(op) => (one(machine, current, &op), is_long(&op)),
            Err(error) => (Err(error), true),
        };
        match step {
            Ok(Step::Done) => batch.advance(1, size_of::<MmuExtOp>()),
            Ok(Step::More) => break,
            Err(error) => {
                result = Err(error);
                break;
            }
        }
        if long {
            break;
        }
    }
    batch.end(machine, current, result)
}

/// Whether an operation is a run of its own.
fn is_long(op: &MmuExtOp) -> bool {
    !matches!(
        ExtOp::from_number(op.cmd),
        Some(
            ExtOp::FlushAll
                | ExtOp::FlushLocal
                | ExtOp::FlushMulti
                | ExtOp::FlushAddressLocal
                | ExtOp::FlushAddressMulti
                | ExtOp::FlushAddressAll
        )
    )
}

fn one<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, op: &MmuExtOp) -> Result<Step, Errno> {
    let domain = current.domain;
    let gfn = || Gfn::new(op.arg1).ok_or(Errno::Einval);
    let state = &mut *domain.state.lock();
    match ExtOp::from_number(op.cmd).ok_or(Errno::Enosys)? {
        ExtOp::PinLevel3 | ExtOp::PinLevel2 | ExtOp::PinLevel1 | ExtOp::PinLevel0 => {
            // x86 counts them from the other end.
            let level =
                usize::try_from(3_u32.wrapping_sub(op.cmd)).ok().and_then(|level| Level::ALL.get(level));
            role::pin(machine, domain, state, gfn()?, *level.ok_or(Errno::Enosys)?)
        }
        ExtOp::Unpin => role::unpin(machine, domain, state, gfn()?),
        ExtOp::NewBase => root::take(machine, current, state, Half::Upper, gfn()?, 0),
        ExtOp::NewUserBase => {
            let asid = u16::try_from(op.arg2).map_err(|_| Errno::Einval)?;
            root::take(machine, current, state, Half::Lower, gfn()?, asid)
        }
        // Every flush takes all CPUs: more than is asked for does no harm, and a vCPU may have left its CPU since.
        ExtOp::FlushMulti | ExtOp::FlushAddressMulti if !names_a_vcpu(machine, current, op.arg2)? => {
            Ok(Step::Done)
        }
        ExtOp::FlushLocal | ExtOp::FlushMulti | ExtOp::FlushAll => {
            machine.hw.flush_stage1(domain.vmid);
            Ok(Step::Done)
        }
        ExtOp::FlushAddressLocal | ExtOp::FlushAddressMulti | ExtOp::FlushAddressAll => {
            machine.hw.flush_stage1_address(domain.vmid, GuestVa::new(op.arg1));
            Ok(Step::Done)
        }
        ExtOp::ClearPage => {
            machine.hw.clear(writable(machine, current, state, op.arg1)?);
            Ok(Step::Done)
        }
        ExtOp::CopyPage => {
            let to = FrameAddr::start(writable(machine, current, state, op.arg1)?);
            let (from, _) = check_own(machine, domain, Gfn::new(op.arg2).ok_or(Errno::Einval)?)?;
            machine.hw.copy(to, FrameAddr::start(from), pv_abi::PAGE_SIZE);
            Ok(Step::Done)
        }
        ExtOp::PinKernelText
            if state.paging.as_ref().is_none_or(|paging| paging.sealed && !crate::seeded!("unsealed")) =>
        {
            Err(Errno::Eperm)
        }
        ExtOp::PinKernelText => role::pin_text(machine, domain, state, gfn()?, Role::KernelText),
        ExtOp::PinUserText => role::pin_text(machine, domain, state, gfn()?, Role::UserText),
        ExtOp::Seal => {
            if let Some(paging) = &mut state.paging {
                paging.sealed = true;
            }
            Ok(Step::Done)
        }
    }
}

/// A page of the caller's own that is data; it stays so while the lock is held, which `_state` shows.
fn writable<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    _state: &DomainState,
    gfn: u64,
) -> Result<Mfn, Errno> {
    let (mfn, role) = check_own(machine, current.domain, Gfn::new(gfn).ok_or(Errno::Einval)?)?;
    if role == Role::Data || crate::seeded!("clear-table") { Ok(mfn) } else { Err(Errno::Einval) }
}
