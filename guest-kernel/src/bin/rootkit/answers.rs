//! Every answer that each sub-call of the checked tables has, so that a script can compare them with the table of `pv-abi`.
use alloc::format;

use guest_kernel::space::{self, PAGE};
use guest_kernel::{println, pv};
use pv_abi::paging::{ExtOp, MmuExtOp, MmuUpdate};
use pv_abi::{DomId, Errno, Hypercall};

use super::{Tap, Target, extended, peek, raw, update};

/// No RAM is there.
const NOWHERE: u64 = 0x38fff;
/// Who has no domain.
const NOBODY: u64 = 777;
const OWN: u64 = DomId::SELF.0 as u64;

pub(super) fn done(tap: &mut Tap, what: &str, got: Result<(), Errno>) {
    if got.is_err() {
        println!("# {got:?}");
    }
    tap.nothing(what, got.is_ok());
}

pub(super) fn all(tap: &mut Tap, target: &Target) -> Result<(), Errno> {
    let page = space::take_page()? / PAGE;
    let [root, _, two, last] = target.tables.map(|table| table / PAGE);
    let pins = [
        ExtOp::PinLevel0,
        ExtOp::PinLevel1,
        ExtOp::PinLevel2,
        ExtOp::PinLevel3,
        ExtOp::PinUserText,
        ExtOp::PinKernelText,
    ];
    for op in pins {
        done(tap, &format!("answers: {op:?}"), extended(op, page, 0));
        done(tap, &format!("answers: unpin after {op:?}"), extended(ExtOp::Unpin, page, 0));
        tap.refused(&format!("answers: {op:?} of no page"), extended(op, NOWHERE, 0), Errno::Einval);
        tap.refused(&format!("answers: {op:?} of no number"), extended(op, u64::MAX, 0), Errno::Einval);
        let other = if op == ExtOp::PinLevel3 { two } else { last };
        tap.refused(&format!("answers: {op:?} of another table"), extended(op, other, 0), Errno::Ebusy);
    }
    tap.refused("answers: unpin of data", extended(ExtOp::Unpin, page, 0), Errno::Einval);
    tap.refused("answers: unpin of a linked table", extended(ExtOp::Unpin, last, 0), Errno::Ebusy);
    for op in [ExtOp::NewBase, ExtOp::NewUserBase] {
        done(tap, &format!("answers: {op:?}"), extended(op, root, 0));
        tap.refused(&format!("answers: {op:?} of data"), extended(op, page, 0), Errno::Einval);
        tap.refused(&format!("answers: {op:?} of a lower table"), extended(op, last, 0), Errno::Einval);
    }
    tap.refused(
        "answers: an ASID that cannot be",
        extended(ExtOp::NewUserBase, root, 1 << 16),
        Errno::Einval,
    );
    let flushes = [
        ExtOp::FlushLocal,
        ExtOp::FlushAddressLocal,
        ExtOp::FlushMulti,
        ExtOp::FlushAddressMulti,
        ExtOp::FlushAll,
        ExtOp::FlushAddressAll,
    ];
    for op in flushes {
        done(tap, &format!("answers: {op:?}"), extended(op, Target::VA, target.data));
    }
    for op in [ExtOp::FlushMulti, ExtOp::FlushAddressMulti] {
        tap.refused(
            &format!("answers: {op:?} by a mask nowhere"),
            extended(op, Target::VA, 8),
            Errno::Efault,
        );
    }
    for op in [ExtOp::ClearPage, ExtOp::CopyPage] {
        done(tap, &format!("answers: {op:?}"), extended(op, page, target.data / PAGE));
        tap.refused(&format!("answers: {op:?} to a table"), extended(op, last, page), Errno::Einval);
        tap.refused(&format!("answers: {op:?} to nowhere"), extended(op, NOWHERE, page), Errno::Einval);
    }
    tap.refused("answers: CopyPage from nowhere", extended(ExtOp::CopyPage, page, NOWHERE), Errno::Einval);
    entries(tap, target, page);
    Ok(())
}

/// The other two calls, and what a batch is answered as such.
fn entries(tap: &mut Tap, target: &Target, page: u64) {
    let free = target.tables[3] + 8 * 30;
    done(tap, "answers: mmu_update", update(free, 0));
    tap.refused("answers: mmu_update of data", update(page * PAGE, 0), Errno::Einval);
    tap.refused("answers: mmu_update of another command", update(free | 1, 0), Errno::Enosys);
    tap.refused("answers: mmu_update of half an entry", update(free | 4, 0), Errno::Einval);
    let va = |va, entry, flags| raw(Hypercall::UpdateVaMapping, [va, entry, flags, 0, 0]);
    done(tap, "answers: update_va_mapping", va(Target::VA + 30 * PAGE, 0, 0));
    for flags in [1, 2, 4, 5, 6] {
        done(tap, "answers: update_va_mapping with a flush", va(Target::VA + 30 * PAGE, 0, flags));
    }
    for flags in [3, 7, 11, 1 << 63 | 3] {
        tap.refused(
            "answers: update_va_mapping with no flush",
            va(Target::VA + 30 * PAGE, 0, flags),
            Errno::Einval,
        );
    }
    let mask = 1_u64;
    let at = (&raw const mask).expose_provenance() as u64;
    for kind in [1, 2] {
        done(tap, "answers: update_va_mapping by a mask", va(Target::VA + 30 * PAGE, 0, at | kind));
        tap.refused(
            "answers: update_va_mapping by a mask nowhere",
            va(Target::VA + 30 * PAGE, 0, 8 | kind),
            Errno::Efault,
        );
    }
    tap.refused("answers: update_va_mapping without a table", va(5 << 39, 0, 0), Errno::Einval);
    tap.refused(
        "answers: update_va_mapping of no entry",
        va(Target::VA + 30 * PAGE, 1 << 50 | 1, 0),
        Errno::Einval,
    );

    let updates = [MmuUpdate { ptr: free, val: 0 }];
    let flush = [pv::op(ExtOp::FlushAll, 0, 0)];
    let places = [
        (Hypercall::MmuUpdate, updates.as_ptr().expose_provenance() as u64),
        (Hypercall::MmuExtOp, flush.as_ptr().expose_provenance() as u64),
    ];
    for (call, at) in places {
        done(tap, &format!("answers: {call:?} of none"), raw(call, [at, 0, 0, OWN, 0]));
        tap.refused(&format!("answers: {call:?} from nowhere"), raw(call, [8, 1, 0, OWN, 0]), Errno::Efault);
        tap.refused(
            &format!("answers: {call:?}, the count to nowhere"),
            raw(call, [at, 1, 8, OWN, 0]),
            Errno::Efault,
        );
        tap.refused(
            &format!("answers: {call:?} of another domain"),
            raw(call, [at, 1, 0, 2, 0]),
            Errno::Eperm,
        );
        tap.refused(&format!("answers: {call:?} of nobody"), raw(call, [at, 1, 0, NOBODY, 0]), Errno::Esrch);
        tap.refused(
            &format!("answers: {call:?} with another's tables"),
            raw(call, [at, 1, 0, 2 << 16 | OWN, 0]),
            Errno::Esrch,
        );
    }
    for cmd in [12, 13, 14, 18, 0x7fff, 0x8003, u32::MAX] {
        let unknown = [MmuExtOp { cmd, ..Default::default() }];
        // SAFETY: refused, or this guest's to lose.
        let got = unsafe { pv::extended(&unknown) }.map_err(|(errno, _)| errno);
        tap.refused("answers: an unknown operation", got, Errno::Enosys);
    }
    tap.nothing("answers: nothing of it is left", peek(free) == 0);
}
