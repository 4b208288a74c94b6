//! Copying between frames and grants, without mapping anything.
//!
//! A granted frame is used ([`super::pin`]) for as long as the copy takes; one's own is not: a frame that leaves a domain is not reused
//! before every CPU has left the hypervisor once. No lock is held while bytes are copied.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use pv_abi::grant::{CopyFlags, CopyPtr, GrantCopy, GrantStatus};
use pv_abi::{DomId, GrantRef, PAGE_SIZE};

use super::active::Use;
use super::pin::{Purpose, own_ram, pin, unpin};
use crate::addr::{FrameAddr, Mfn};
use crate::domain::Domain;
use crate::hardware::Hardware;
use crate::hypercall::{any_domain, low_u32};
use crate::machine::{Current, Machine};

/// One side of a copy.
#[derive(Clone, Copy)]
struct Side<'a> {
    domain: &'a Domain,
    /// The reference, else a frame of the caller's own.
    gref: Option<GrantRef>,
    gfn: u64,
    how: Use,
}

impl Side<'_> {
    /// Whether one's own frame is referred to while it is written, so that it does not become a page table meanwhile.
    fn is_held(&self) -> bool {
        self.how == Use::Write && self.domain.paging().is_some()
    }
}

/// Does one copy.
pub(super) fn copy<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    op: &GrantCopy,
) -> Result<(), GrantStatus> {
    if op.len == 0 && !crate::seeded!("xsa-448") {
        return Ok(());
    }
    let flags = CopyFlags::from_bits_truncate(op.flags);
    let from = side(machine, current, &op.source, flags.contains(CopyFlags::SOURCE_GREF), Use::Read)?;
    let to = side(machine, current, &op.dest, flags.contains(CopyFlags::DEST_GREF), Use::Write)?;
    // Who copies learns of one side and tells the other, so he must be allowed to talk to both; then they may talk through him. (Xen's
    // silo policy asks whether the two sides may talk, and is silent when both are one domain and he is another.)
    if !current.domain.may_talk_to(from.domain) || !current.domain.may_talk_to(to.domain) {
        return Err(GrantStatus::PermissionDenied);
    }
    let source = claim(machine, current, from)?;
    let result = claim(machine, current, to).and_then(|dest| {
        let copied = transfer(machine, op, source, dest);
        give_back(machine, current, to, dest);
        copied
    });
    give_back(machine, current, from, source);
    result
}

fn side<'a, H: Hardware>(
    machine: &'a Machine<H>,
    current: &Current<'a>,
    ptr: &CopyPtr,
    by_reference: bool,
    how: Use,
) -> Result<Side<'a>, GrantStatus> {
    // Frames are named by their owner only.
    if ptr.domid != DomId::SELF && !by_reference {
        return Err(GrantStatus::PermissionDenied);
    }
    let domain = any_domain(machine, current, ptr.domid).ok_or(GrantStatus::BadDomain)?;
    let gref = by_reference.then(|| GrantRef(low_u32(ptr.ref_or_gfn)));
    Ok(Side { domain, gref, gfn: ptr.ref_or_gfn, how })
}

/// Finds a side's frame, and uses its reference.
#[inline]
fn claim<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    side: Side<'_>,
) -> Result<Mfn, GrantStatus> {
    match side.gref {
        Some(gref) => {
            let state = &mut *side.domain.state.lock();
            pin(machine, current, side.domain, state, gref, side.how, Purpose::Copy)
        }
        None if side.is_held() => hold(machine, side),
        None => own_ram(machine, side.domain, side.gfn).ok_or(GrantStatus::BadPage),
    }
}

fn give_back<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, side: Side<'_>, mfn: Mfn) {
    if let Some(gref) = side.gref {
        unpin(machine, current, side.domain, &mut side.domain.state.lock(), gref, side.how);
    } else if side.is_held() {
        let_go(machine, side, mfn);
    }
}

#[inline(never)]
fn hold<H: Hardware>(machine: &Machine<H>, side: Side<'_>) -> Result<Mfn, GrantStatus> {
    let _state = side.domain.state.lock();
    let mfn = own_ram(machine, side.domain, side.gfn).ok_or(GrantStatus::BadPage)?;
    machine.frames.table.reference(mfn, side.domain.id).map_err(|_| GrantStatus::BadPage)?;
    Ok(mfn)
}

/// Gives back what [`hold`] took.
#[inline(never)]
fn let_go<H: Hardware>(machine: &Machine<H>, side: Side<'_>, mfn: Mfn) {
    let _state = side.domain.state.lock();
    let _ = machine.frames.table.release(mfn);
}

fn transfer<H: Hardware>(
    machine: &Machine<H>,
    op: &GrantCopy,
    from: Mfn,
    to: Mfn,
) -> Result<(), GrantStatus> {
    let len = usize::from(op.len);
    let place = |frame: Mfn, offset: u16| {
        let offset = usize::from(offset);
        let fits = offset.checked_add(len).is_some_and(|end| end <= PAGE_SIZE);
        FrameAddr::new(frame, offset).filter(|_| fits).ok_or(GrantStatus::BadCopyArg)
    };
    let (from, to) = (place(from, op.source.offset)?, place(to, op.dest.offset)?);
    machine.hw.copy(to, from, len);
    Ok(())
}
