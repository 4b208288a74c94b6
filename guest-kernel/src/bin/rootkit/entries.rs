//! Entries: writing them, and having bad ones written.
use alloc::format;

use guest_kernel::pv::{self, Page};
use guest_kernel::space::{self, Entry, PAGE, Rights};
use pv_abi::paging::ExtOp;
use pv_abi::{DomId, Errno, Hypercall};

use super::{
    Came, FETCH_FAULTS, PERMISSION, Tap, Target, WRITE_FAULTS, extended, jump, peek, raw, store, update,
};
use guest_kernel::attempt::class;

const VALID: u64 = 1;
const LINK: u64 = 3;
const PXN: u64 = 1 << 53;
const UXN: u64 = 1 << 54;
const EL0: u64 = 1 << 6;
const READ_ONLY: u64 = 1 << 7;
const CONTIGUOUS: u64 = 1 << 52;
const DBM: u64 = 1 << 51;

/// Stores to tables and text: by the kernel's map, and by maps made for it.
pub(super) fn tables_and_text(tap: &mut Tap, target: &Target) {
    let [_, _, _, last] = target.tables;
    let evil = Entry::page(target.data, Rights::Data).bits() & !PXN;
    for (level, table) in target.tables.iter().enumerate() {
        let before = peek(*table + 8 * 2);
        let came = store(*table + 8 * 2, evil);
        tap.nothing(
            &format!("a store to a table of level {level}"),
            came == WRITE_FAULTS && peek(*table + 8 * 2) == before,
        );
    }
    for (what, page) in [("user text", target.text), ("kernel text", target.kernel)] {
        let before = peek(page);
        // The kernel's map of its own text allows no writing either.
        let came = store(page, 0);
        let faults = came == WRITE_FAULTS || came == Came::Fault(class::DATA_ABORT, PERMISSION);
        tap.nothing(&format!("a store to {what}"), faults && peek(page) == before);
    }
    let alias = Target::VA + 16 * PAGE;
    let targets = target
        .tables
        .iter()
        .copied()
        .enumerate()
        .map(|(level, table)| (format!("a table of level {level}"), table));
    let texts = [("user text".into(), target.text), ("kernel text".into(), target.kernel)];
    for (what, page) in targets.chain(texts) {
        for (kind, attributes) in [("", 0), (", without caches", 1 << 2)] {
            let entry = Entry::page(page, Rights::Data).bits() ^ attributes;
            let mapped = update(last + 8 * 16, entry);
            let before = peek(page + 8 * 3);
            let came = store(alias + 8 * 3, evil);
            tap.nothing(
                &format!("a writable alias of {what}{kind}"),
                (mapped.is_err() || came == WRITE_FAULTS) && peek(page + 8 * 3) == before,
            );
        }
    }
    let _ = update(last + 8 * 16, 0);
}

/// Entries that must be refused.
pub(super) fn contents(tap: &mut Tap, target: &Target) -> Result<(), Errno> {
    leaves(tap, target);
    links(tap, target);
    chains(tap, target)?;
    blocks(tap, target);
    one_bit_away(tap, target);
    not_entries(tap, target);
    operations(tap, target);
    bad_tables(tap, target)?;
    executes(tap, target);
    Ok(())
}

/// Leaves of level 3.
fn leaves(tap: &mut Tap, target: &Target) {
    let [.., last] = target.tables;
    let data = Entry::page(target.data, Rights::Data).bits();
    let text = Entry::page(target.text, Rights::UserText).bits();
    let kernel = Entry::page(target.kernel, Rights::Constant).bits();
    let slot = last + 8 * 17;
    for (what, entry) in [
        ("data executable at EL1", data & !PXN),
        ("data executable at EL0", data & !UXN),
        ("data executable at both", data & !(PXN | UXN)),
        ("data executable at EL0, read-only", (data | READ_ONLY | EL0) & !UXN),
        ("user text executable at EL1", text & !PXN | UXN),
        ("user text executable at both", text & !PXN),
        ("kernel text executable at EL0", kernel & !UXN | EL0),
        ("kernel text executable at EL1 with access for EL0", kernel & !PXN | EL0),
        ("kernel text executable at both", kernel & !(PXN | UXN)),
        ("a table as kernel text", Entry::page(last, Rights::Constant).bits() & !PXN),
        ("a table as user text", Entry::page(last, Rights::UserText).bits()),
        ("the contiguous hint", data | CONTIGUOUS),
        ("hardware dirty state", data | DBM),
        ("a guarded page", data | 1 << 50),
        ("the bit behind it", data | 1 << 49),
        ("the bit before software's", data | 1 << 59),
        ("an address beyond the guest's", data | 1 << 41),
        ("an address of more than 48 bits", data | 1 << 48),
        ("a block where pages are", data & !2),
        ("a page that is not there", Entry::page(0x3_0000_0000, Rights::Data).bits()),
    ] {
        tap.refused(&format!("an entry: {what}"), update(slot, entry), Errno::Einval);
    }
}

/// Links, and blocks.
fn links(tap: &mut Tap, target: &Target) {
    let [zero, one, two, last] = target.tables;
    for (what, at, entry) in [
        ("level 0, a link to itself (XSA-185)", zero + 16, zero | LINK),
        ("level 1, a link to itself (XSA-185)", one + 16, one | LINK),
        ("level 2, a link to itself (XSA-185)", two + 16, two | LINK),
        ("level 1, a link to level 0", one + 16, zero | LINK),
        ("level 2, a link to level 0", two + 16, zero | LINK),
        ("level 2, a link to level 1", two + 16, one | LINK),
        ("level 0, a link to level 2", zero + 16, two | LINK),
        ("level 0, a link to level 3", zero + 16, last | LINK),
        ("level 1, a link to level 3", one + 16, last | LINK),
        ("level 0, a link to data", zero + 16, target.data | LINK),
        ("level 1, a link to data", one + 16, target.data | LINK),
        ("level 2, a link to data", two + 16, target.data | LINK),
        ("level 2, a link to text", two + 16, target.text | LINK),
        ("level 0, a block", zero + 16, 0x4000_0000 | VALID | 1 << 10 | PXN | UXN),
        ("level 1, an executable block", one + 16, 0x4000_0000 | VALID | 1 << 10 | UXN),
        ("level 2, an executable block", two + 16, 0x4000_0000 | VALID | 1 << 10 | UXN),
        (
            "level 2, a block at no multiple of its size (XSA-148)",
            two + 16,
            0x4010_0000 | VALID | 1 << 10 | PXN | UXN,
        ),
        ("attributes for all below: no limits", zero + 16, one | LINK | 1 << 59),
        ("attributes for all below: EL0 executes", zero + 16, one | LINK | 1 << 60),
        ("attributes for all below: EL0 reads", zero + 16, one | LINK | 1 << 61),
        ("attributes for all below: non-secure", zero + 16, one | LINK | 1 << 63),
    ] {
        tap.refused(&format!("an entry: {what}"), update(at, entry), Errno::Einval);
    }
}

/// XSA-240: tables of one level, which would make a chain.
fn chains(tap: &mut Tap, target: &Target) -> Result<(), Errno> {
    for (level, table) in target.tables.iter().enumerate().take(3) {
        let other = space::take_page()?;
        pv::pin(Page::Table(level), other)?;
        for (at, to) in [(*table, other), (other, *table)] {
            tap.refused(
                &format!("level {level}, a link to another of its level (XSA-240)"),
                update(at + 16, to | LINK),
                Errno::Einval,
            );
        }
        pv::unpin(other)?;
    }
    Ok(())
}

/// XSA-148: blocks of data around tables, which stage 2 says are not written, and steps from a link or a page to a block.
fn blocks(tap: &mut Tap, target: &Target) {
    let [_, one, two, last] = target.tables;
    for (level, table, size) in [(1, one, 1 << 30), (2, two, 1 << 21)] {
        let block = last & !(size - 1) | VALID | 3 << 8 | 1 << 10 | PXN | UXN;
        let mapped = update(table + 16, block);
        let before = peek(last + 8 * 3);
        // The third entry of that table; entries of both levels map from [`Target::VA`] on.
        let came = store(Target::VA + 2 * size + (last & (size - 1)) + 8 * 3, 0x0BAD);
        tap.nothing(
            &format!("level {level}, a store to a table by a block around it (XSA-148)"),
            mapped.is_ok() && came == WRITE_FAULTS && peek(last + 8 * 3) == before,
        );
        tap.refused(
            &format!("level {level}, a block that becomes a link by one bit (XSA-148)"),
            update(table + 16, block | 2),
            Errno::Einval,
        );
        let _ = update(table + 16, 0);
    }
}

/// XSA-182: from an entry that is accepted, one or two bits away; none makes a table writable.
fn one_bit_away(tap: &mut Tap, target: &Target) {
    let [.., last] = target.tables;
    let slot = last + 8 * 17;
    let bits: &[u64] = &[
        1 << 2,
        1 << 6,
        1 << 7,
        1 << 8,
        1 << 9,
        1 << 11,
        1 << 50,
        1 << 51,
        1 << 52,
        PXN,
        UXN,
        1 << 55,
        1 << 59,
        1 << 63,
    ];
    let (mut written, alias) = (0_u32, Target::VA + 17 * PAGE);
    let map = Entry::page(last, Rights::Constant).bits();
    for first in bits {
        for second in bits {
            let _ = update(slot, map);
            if update(slot, map ^ first ^ if first == second { 0 } else { *second }).is_ok() {
                written += u32::from(matches!(store(alias + 8 * 3, 0), Came::Through(_)));
            }
        }
    }
    let _ = update(slot, 0);
    tap.nothing(
        "from an accepted map of a table, one or two bits away: it is never writable (XSA-182)",
        written == 0,
    );
}

/// Places that are no entries of this domain's tables.
fn not_entries(tap: &mut Tap, target: &Target) {
    let slot = target.tables[3] + 8 * 17;
    let data = Entry::page(target.data, Rights::Data).bits();
    // XSA-227: no entry begins there.
    let odd = (1..8).filter(|offset| {
        update(slot + offset, data) != Err(if offset % 4 == 0 { Errno::Einval } else { Errno::Enosys })
    });
    tap.nothing("entries at odd addresses (XSA-227)", odd.count() == 0);
    tap.refused("an entry of a page that is no table", update(target.data, data), Errno::Einval);
    tap.refused("an entry of text", update(target.text, data), Errno::Einval);
    tap.refused("an entry of what is not RAM", update(0x0300_1000, data), Errno::Einval);
    // XSA-109: others' tables.
    let request = [slot, data];
    let at = request.as_ptr().expose_provenance() as u64;
    for (what, id, expected) in [
        ("another domain's", 2, Errno::Eperm),
        ("nobody's", 77, Errno::Esrch),
        ("DOMID_IO's", DomId::IO.0, Errno::Esrch),
        ("DOMID_XEN's", DomId::XEN.0, Errno::Esrch),
    ] {
        let got = raw(Hypercall::MmuUpdate, [at, 1, 0, u64::from(id), 0]);
        tap.refused(&format!("a table of {what} (XSA-109)"), got, expected);
    }
}

/// Operations on pages whose role forbids them.
fn operations(tap: &mut Tap, target: &Target) {
    let [zero, one, _, last] = target.tables;
    // XSA-167: frames that are none.
    let frames = [0, 1 << 28, (1 << 28) - 1, 1 << 40, (1 << 52) - 1, u64::MAX];
    let ops = [
        ExtOp::PinLevel0,
        ExtOp::PinLevel1,
        ExtOp::PinLevel2,
        ExtOp::PinLevel3,
        ExtOp::Unpin,
        ExtOp::NewBase,
        ExtOp::NewUserBase,
        ExtOp::ClearPage,
        ExtOp::CopyPage,
        ExtOp::PinKernelText,
        ExtOp::PinUserText,
    ];
    let accepted = ops
        .iter()
        .flat_map(|op| frames.map(|frame| (*op, frame)))
        .filter(|(op, frame)| extended(*op, *frame, 0).is_ok());
    tap.nothing("operations on frames that are none (XSA-167)", accepted.count() == 0);
    for (what, page) in [("a table", last), ("text", target.text), ("a root", zero)] {
        tap.refused(&format!("clearing {what}"), extended(ExtOp::ClearPage, page / PAGE, 0), Errno::Einval);
        tap.refused(
            &format!("copying to {what}"),
            extended(ExtOp::CopyPage, page / PAGE, target.data / PAGE),
            Errno::Einval,
        );
    }
    for (what, page) in
        [("a table that is linked", last), ("text that is executed", target.text), ("a root in use", zero)]
    {
        tap.refused(&format!("unpinning {what}"), extended(ExtOp::Unpin, page / PAGE, 0), Errno::Ebusy);
    }
    tap.refused("a table as text", extended(ExtOp::PinKernelText, last / PAGE, 0), Errno::Ebusy);
    tap.refused("text as a table", extended(ExtOp::PinLevel3, target.text / PAGE, 0), Errno::Ebusy);
    tap.refused("a table of another level", extended(ExtOp::PinLevel0, last / PAGE, 0), Errno::Ebusy);
    tap.refused("data as a root", extended(ExtOp::NewUserBase, target.data / PAGE, 3), Errno::Einval);
    tap.refused("a table of level 1 as a root", extended(ExtOp::NewBase, one / PAGE, 0), Errno::Einval);
}

/// A table with one bad entry, wherever it is (XSA-299); and often (XSA-58).
fn bad_tables(tap: &mut Tap, target: &Target) -> Result<(), Errno> {
    let data = Entry::page(target.data, Rights::Data).bits();
    let page = space::take_page()?;
    // Executable data; a link to data.
    for (level, entry) in
        [(0, target.data | LINK), (1, target.data | LINK), (2, target.data | LINK), (3, data & !PXN)]
    {
        let bad = (0..512_u64).filter(|index| {
            store(page + 8 * index, entry);
            let got = pv::pin(Page::Table(level), page);
            store(page + 8 * index, 0);
            got != Err(Errno::Einval)
        });
        tap.nothing(
            &format!("tables of level {level} with one bad entry (XSA-299, XSA-58)"),
            bad.count() == 0,
        );
    }
    tap.nothing(
        "which are data as before",
        store(page, 0) == Came::Through(0) && pv::unpin(page) == Err(Errno::Einval),
    );
    Ok(())
}

/// Executing what is not text for EL1.
fn executes(tap: &mut Tap, target: &Target) {
    let [.., last] = target.tables;
    tap.nothing("executing data at EL1, where the kernel maps it", jump_faults(target.data));
    tap.nothing("executing data at EL1, where EL0 has it", jump_faults(Target::VA + PAGE));
    tap.nothing("executing user text at EL1, where EL0 executes it", jump_faults(Target::VA));
    tap.nothing("executing user text at EL1, where the kernel maps it", jump_faults(target.text));
    tap.nothing("executing a table at EL1", jump_faults(last));
    // XSA-279: flushes by addresses that are none.
    for va in [1 << 47, 1 << 48, 1 << 55, 0xff00_0000_0000_0000, u64::MAX] {
        // What it flushes is nothing; where it changes an entry there is none.
        tap.nothing(
            "flushes by an address that is none (XSA-279)",
            extended(ExtOp::FlushAddressAll, va, 0).is_ok()
                && raw(Hypercall::UpdateVaMapping, [va, 0, 2, 0, 0]) == Err(Errno::Einval),
        );
    }
}

fn jump_faults(at: u64) -> bool {
    let came = jump(at);
    came == FETCH_FAULTS || came == Came::Fault(class::INSTRUCTION_ABORT, PERMISSION)
}
