//! The last that each sub-call of the checked tables takes, and the first that it does not; and addresses that lead nowhere. Which sub-calls there are
//! says `pv-abi`'s table: a row more is a case more.
use alloc::format;

use guest_kernel::Guest;
use guest_kernel::space::{self, PAGE};
use pv_abi::paging::ExtOp;
use pv_abi::{DomId, Errno, Hypercall};

use super::answers::done;
use super::{Tap, Target, extended, raw, update};

/// Nothing can be read there.
const NOWHERE: u64 = 8;

pub(super) fn all(tap: &mut Tap, guest: &Guest, target: &Target) -> Result<(), Errno> {
    let page = space::take_page()? / PAGE;
    let banks = guest.tree.memory.iter();
    let first = banks.clone().map(|bank| bank.start / PAGE).min().unwrap_or(0);
    let end = banks.map(|bank| (bank.start + bank.size) / PAGE).max().unwrap_or(0);
    let beside = [("below RAM", first - 1), ("behind RAM", end), ("that no number is", u64::MAX >> 12)];
    let mask = u64::MAX;
    let masks = [("no vCPU", 0), ("all vCPUs", mask)];
    for operation in ExtOp::TABLE {
        let Some(op) = ExtOp::from_number(operation.number) else { continue };
        let name = operation.name;
        let frames = operation.argument.starts_with("frame") || operation.argument == "two frames";
        for (what, frame) in beside.iter().filter(|_| frames) {
            let got = extended(op, *frame, page);
            tap.refused(&format!("limits: mmuext_op.{name} of a frame {what}"), got, Errno::Einval);
        }
        if operation.argument.ends_with("of a mask") {
            for (what, mask) in &masks {
                let got = extended(op, Target::VA, core::ptr::from_ref(mask).expose_provenance() as u64);
                done(tap, &format!("limits: mmuext_op.{name} for {what}"), got);
            }
            let got = extended(op, Target::VA, NOWHERE);
            tap.refused(&format!("handle: mmuext_op.{name} by a mask nowhere"), got, Errno::Efault);
        }
        if operation.argument.starts_with("address") {
            let at = core::ptr::from_ref(&mask).expose_provenance() as u64;
            for address in [0, u64::MAX] {
                let got = extended(op, address, at);
                done(tap, &format!("limits: mmuext_op.{name} of address {address:#x}"), got);
            }
        }
    }
    let [.., last] = target.tables;
    for (what, at) in [("first free", 8 * 2), ("last", 8 * 511)] {
        done(tap, &format!("limits: mmu_update.mmu_update of a table's {what} entry"), update(last + at, 0));
    }
    for (what, frame) in &beside[..2] {
        let got = update(frame * PAGE, 0);
        tap.refused(&format!("limits: mmu_update.mmu_update of an entry {what}"), got, Errno::Einval);
    }
    let got = raw(Hypercall::MmuUpdate, [NOWHERE, 1, 0, DomId::SELF.0.into(), 0]);
    tap.refused("handle: mmu_update.mmu_update of a batch nowhere", got, Errno::Efault);
    Ok(())
}
