//! Guest physical addresses where nothing is: every page of the holes below RAM, and places in all that a translation can name.
use alloc::vec::Vec;

use guest_kernel::Guest;
use guest_kernel::attempt::{Code, Level, Registers, Shown, Taken, Window, class};
use pv_abi::layout;

use super::instruction::{Direction, RET, SVC, begin, encoding, system};
use crate::tap::Tap;

const PAGE: u64 = 4096;
const GIB: u64 = 1 << 30;
/// Fault status of a synchronous external abort, not on a walk.
const EXTERNAL: u64 = 0x10;

/// An access: its name, the instruction (address in x0), how it is mapped, the offset in the page.
struct Kind {
    what: &'static str,
    word: u32,
    shown: Shown,
    offset: u64,
    may_do_nothing: bool,
}

const fn kind(what: &'static str, word: u32, shown: Shown, offset: u64) -> Kind {
    Kind { what, word, shown, offset, may_do_nothing: false }
}

/// One access of each size and of each form that the architecture describes differently.
fn kinds() -> Vec<Kind> {
    use Shown::{Device, Memory};
    let dc = |op1, crm, op2| system(Direction::Write, 1, encoding(op1, 7, crm, op2));
    alloc::vec![
        kind("ldrb w1, [x0]", 0x3940_0001, Device, 1),
        kind("ldrsh w1, [x0]", 0x79c0_0001, Device, 2),
        kind("ldr w1, [x0]", 0xb940_0001, Device, 4),
        kind("ldr x1, [x0]", 0xf940_0001, Device, 8),
        kind("strb w1, [x0]", 0x3900_0001, Memory, 3),
        kind("strh w1, [x0]", 0x7900_0001, Memory, 6),
        kind("str w1, [x0]", 0xb900_0001, Memory, 12),
        kind("str x1, [x0]", 0xf900_0001, Memory, 16),
        kind("ldp x1, x2, [x0]", 0xa940_0801, Device, 32),
        kind("stp x1, x2, [x0]", 0xa900_0801, Memory, 48),
        kind("ldr x1, [x0], #8", 0xf840_8401, Memory, 64),
        kind("ldxr x1, [x0]", 0xc85f_7c01, Memory, 128),
        kind("ldar x1, [x0]", 0xc8df_fc01, Memory, 8),
        kind("ldr x1, [x0], unaligned and across pages", 0xf940_0001, Memory, 4093),
        kind("dc zva, x0", dc(3, 4, 1), Memory, 0),
        Kind { may_do_nothing: true, ..kind("dc civac, x0", dc(3, 14, 1), Memory, 0) },
        Kind { may_do_nothing: true, ..kind("dc ivac, x0", dc(0, 6, 1), Memory, 0) },
    ]
}

/// What may be told of an access that must not succeed: an external abort at the address, of the right direction of the level.
fn aborted(taken: Option<Taken>, at: u64) -> bool {
    taken.is_some_and(|taken| {
        let class = [class::DATA_ABORT, class::INSTRUCTION_ABORT].contains(&taken.class());
        class && taken.vector == 4 && taken.esr & 0x3f == EXTERNAL && taken.far & !(PAGE - 1) == at & !(PAGE - 1)
            // The second page of an access that crosses pages.
            || class && taken.esr & 0x3f == EXTERNAL && taken.far & !(PAGE - 1) == (at + PAGE) & !(PAGE - 1)
    })
}

/// What is mapped or emulated, and what the window's translation makes of it.
fn is_there(ipa: u64, guest: &Guest) -> bool {
    let within = |start: u64, size: u64| ipa + PAGE > start && ipa < start + size;
    within(layout::GICV3_GICD_BASE, layout::GICV3_GICD_SIZE)
        || within(layout::GICV3_GICR_BASE, layout::GICV3_GICR_SIZE)
        || within(layout::GRANT_TABLE_BASE, layout::GRANT_TABLE_SIZE)
        || guest.tree.memory.iter().any(|bank| within(bank.start, bank.size))
        || guest.tree.uart.is_some_and(|uart| within(uart.start, uart.size))
}

/// The first access that did not abort as it must.
type Wrong = Option<(&'static str, u64, Option<Taken>)>;

/// Makes one access of a kind to pages of a GiB that are not there; how many, and the first that was wrong.
fn sweep(
    code: &mut Code,
    window: &mut Window,
    guest: &Guest,
    kind: &Kind,
    pages: impl Iterator<Item = u64>,
) -> (u64, Wrong) {
    let start = code.write([kind.word, RET, SVC]);
    let (mut tried, mut wrong, mut shown) = (0, None, None);
    for ipa in pages.filter(|ipa| !is_there(*ipa, guest)) {
        let gib = ipa / GIB;
        if shown != Some(gib) {
            shown = window.show(ipa, kind.shown).map(|_| gib);
        }
        let at = WINDOW + ipa % GIB;
        let mut x: Registers = [0; 31];
        x[0] = at + kind.offset;
        let taken = begin(Level::El1, start, &mut x);
        tried += 1;
        // The last page's neighbour is the next GiB, which the window does not show.
        // Maintenance by address may find that there is nothing to maintain.
        let nothing = taken.is_none() && kind.may_do_nothing;
        if !aborted(taken, at) && !nothing && ipa % GIB != GIB - PAGE && wrong.is_none() {
            wrong = Some((kind.what, ipa, taken));
        }
    }
    (tried, wrong)
}

/// Where [`Window`] shows.
const WINDOW: u64 = 0x70_0000_0000;

/// Every page below RAM but for the grant region (which is tried where it is empty).
fn holes(step: u64) -> impl Iterator<Item = u64> {
    (0..layout::RAM0_BASE / PAGE).step_by(step as usize).map(|page| page * PAGE)
}

/// The first, the last and some pages of each GiB that stage 2 can name.
fn far() -> impl Iterator<Item = u64> {
    (1..1024).flat_map(|gib| [0, PAGE, 0x2000_0000, 0x3fff_e000].map(|offset| gib * GIB + offset))
}

pub(crate) fn check(tap: &mut Tap, code: &mut Code, window: &mut Window, guest: &Guest) {
    let step = guest.args().number("step").unwrap_or(1).max(1);
    for kind in kinds() {
        let (tried, wrong) = sweep(code, window, guest, &kind, holes(step));
        tap.is(kind.what, (wrong, tried > 250_000 / step), (None, true));
        let (tried, wrong) = sweep(code, window, guest, &kind, far());
        tap.is(kind.what, (wrong, tried > 4000), (None, true));
    }
    fetches(tap, window, guest, step);
    beyond(tap, code, window);
    translations(tap, code, window);
}

/// Instructions from there.
fn fetches(tap: &mut Tap, window: &mut Window, guest: &Guest, step: u64) {
    let (mut wrong, mut shown) = (None, None);
    for ipa in holes(step).chain(far()).filter(|ipa| !is_there(*ipa, guest)) {
        let gib = ipa / GIB;
        if shown != Some(gib) {
            shown = window.show(ipa, Shown::Text).map(|_| gib);
        }
        let at = WINDOW + ipa % GIB;
        let taken = begin(Level::El1, at, &mut [0; 31]);
        if !aborted(taken, at) && wrong.is_none() {
            wrong = Some((ipa, taken));
        }
    }
    tap.is("fetching an instruction", wrong, None);
}

/// Addresses of more than 40 bits: this guest's own translation refuses them, or stage 2 does.
fn beyond(tap: &mut Tap, code: &mut Code, window: &mut Window) {
    let mut wrong = None;
    for bit in 40..48 {
        let start = code.write([0xf940_0001, RET]);
        let Some(at) = window.show(1 << bit, Shown::Memory) else { continue };
        let mut x: Registers = [0; 31];
        x[0] = at;
        let taken = begin(Level::El1, start, &mut x);
        // Address size fault at some level, or an external abort.
        let refused = taken.is_some_and(|taken| {
            taken.class() == class::DATA_ABORT && (taken.esr & 0x3f < 4 || taken.esr & 0x3f == EXTERNAL)
        });
        if !refused {
            wrong = wrong.or(Some((bit, taken)));
        }
    }
    tap.is("addresses beyond what stage 2 translates", wrong, None);
}

/// `AT` says that nothing is there, and does not fault.
fn translations(tap: &mut Tap, code: &mut Code, window: &mut Window) {
    let mut wrong = None;
    for ipa in [0, 0x2200_0000, 0x3900_0000, 0xffff_f000, 1 << 36] {
        let Some(at) = window.show(ipa, Shown::Memory) else { continue };
        for op2 in 0..4 {
            let words = [
                system(Direction::Write, 1, encoding(0, 7, 8, op2)),
                0xd503_3fdf,
                system(Direction::Read, 3, encoding(0, 7, 4, 0)),
            ];
            let mut x: Registers = [0; 31];
            x[0] = at;
            let taken = super::instruction::run(code, Level::El1, &words, &mut x);
            // Stage 1 alone: it may well succeed, with the guest's own address.
            let own = x[0] & 1 == 1 || x[0] & 0x000f_ffff_ffff_f000 == ipa;
            if taken.is_some() || !own {
                wrong = wrong.or(Some((ipa, op2, x[0])));
            }
        }
    }
    tap.is("an address translation shows this guest's own addresses only", wrong, None);
}
