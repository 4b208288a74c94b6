//! Batches and pins that are interrupted at every unit of their work: the end is that of a run without an interruption.
use super::*;

const PAGE_OF_OPS: u64 = RAM + 0x6_0000;
/// Full of entries: 512 of data at the last level.
const FULL: u64 = RAM + 0x2_4000;

/// A batch in memory, and how it is called.
type Call = (u64, [u64; 5]);

/// Everything that could depend on how often the call was interrupted.
#[derive(PartialEq, Debug)]
struct End {
    result: i64,
    done: u32,
    tables: Vec<Vec<u64>>,
    roles: Vec<(Role, u32)>,
}

/// Makes the call with so many units a run; how it ended, and how often it was interrupted.
fn play(prepare: fn(&Guest<'_>) -> Call, budget: Option<u32>) -> (End, u32) {
    let world = world();
    let one = guest(&world, 1);
    tree(&one);
    one.write(DONE, &[0xFF; 4]);
    let (number, args) = prepare(&one);
    world.machine.hw.set_budget(budget);
    let (result, interruptions) = one.by_runs(number, args, |before| {
        // Whatever others do then: the machine is in order. (Not every time: it takes longer than the call.)
        if before % 37 == 0 {
            world.check();
        }
    });
    world.machine.hw.set_budget(None);
    world.check();
    let pages = [ROOT, L1, L2, L3, FULL, PAGES, PAGES + 0x1000, TEXT, USER];
    let words = |page: u64| (0..512).map(|index| one.read(page + index * 8)).collect();
    let end = End {
        result,
        done: one.read(DONE),
        tables: pages.iter().map(|page| words(*page)).collect(),
        roles: pages.iter().map(|page| role(&one, *page)).collect(),
    };
    (end, interruptions)
}

/// The end does not depend on the units a run, and a call of `units` is interrupted as often as it must be.
fn compare(units: u32, prepare: fn(&Guest<'_>) -> Call, expected: (i64, u32)) {
    let (whole, _) = play(prepare, None);
    assert_eq!((whole.result, whole.done), expected);
    for budget in [1, 2, 7, 33, 128, 129, u32::MAX] {
        let (end, interruptions) = play(prepare, Some(budget));
        assert_eq!(end, whole, "{budget} units a run");
        let least = units.div_ceil(budget) - 1;
        assert!(
            interruptions >= least,
            "{interruptions} interruptions with {budget} units a run, at least {least}"
        );
    }
}

fn updates(guest: &Guest<'_>, count: u64, entry: fn(u64) -> u64) -> Call {
    for index in 0..count {
        let words = [L3 + (16 + index) * 8, entry(index)].map(u64::to_le_bytes).concat();
        guest.write(PAGE_OF_OPS + index * 16, &words);
    }
    (MMU_UPDATE, [PAGE_OF_OPS, count, DONE, SELF, 0])
}

fn operations(guest: &Guest<'_>, list: &[(u32, u64, u64)]) -> Call {
    for (index, (cmd, one, two)) in (0_u64..).zip(list) {
        let words = [u64::from(*cmd), one >> 12, two >> 12].map(u64::to_le_bytes).concat();
        guest.write(PAGE_OF_OPS + index * 24, &words);
    }
    (MMUEXT_OP, [PAGE_OF_OPS, list.len() as u64, DONE, SELF, 0])
}

/// A table of 512 pages of data and text; one entry is `bad`, if any.
fn full(guest: &Guest<'_>, bad: Option<u64>) {
    for index in 0..512 {
        let entry = match index % 8 {
            3 => TEXT | KERNEL_TEXT,
            5 => USER | USER_TEXT,
            _ => PAGES | DATA,
        };
        put(guest, FULL + index * 8, if Some(index) == bad { FULL | LINK | 1 << 52 } else { entry });
    }
}

#[test]
fn mmu_update_restarts_at_every_entry() {
    compare(150, |one| updates(one, 150, |index| PAGES | DATA | (index & 7) << 55), (0, 150));
    let stops: fn(&Guest<'_>) -> Call = |one| {
        let call = updates(one, 150, |index| if index % 3 == 0 { TEXT | KERNEL_TEXT } else { PAGES | DATA });
        one.write(PAGE_OF_OPS + 110 * 16 + 8, &(L3 | LINK | 1 << 52).to_le_bytes());
        call
    };
    compare(111, stops, (EINVAL, 110));
    compare(
        100,
        |one| {
            // The same entries over and over, with other pages: broken before they are made.
            let call = updates(one, 100, |index| (PAGES + (index & 3) * 0x1000) | DATA);
            (0..100).for_each(|index| {
                one.write(PAGE_OF_OPS + index * 16, &(L3 + (16 + index % 5) * 8).to_le_bytes());
            });
            call
        },
        (0, 100),
    );
}

#[test]
fn xsa_309_pins_restart_at_every_entry_and_count_each_once() {
    compare(
        512 + 2,
        |one| {
            full(one, None);
            operations(one, &[(PIN[3], FULL, 0), (CLEAR_PAGE, PAGES, 0), (COPY_PAGE, PAGES + 0x1000, L3)])
        },
        (0, 3),
    );
    compare(
        400 + 400,
        |one| {
            full(one, Some(400));
            operations(one, &[(CLEAR_PAGE, PAGES, 0), (PIN[3], FULL, 0), (CLEAR_PAGE, PAGES, 0)])
        },
        (EINVAL, 1),
    );
}

#[test]
fn xsa_45_unpins_restart_at_every_entry() {
    compare(
        4 * 512,
        |one| {
            operations(
                one,
                &[(UNPIN, ROOT, 0), (UNPIN, L1, 0), (UNPIN, L2, 0), (UNPIN, L3, 0), (UNPIN, TEXT, 0)],
            )
        },
        (0, 5),
    );
    compare(
        512 + 512,
        |one| {
            full(one, None);
            assert_eq!(pin(one, 3, FULL), 0);
            operations(one, &[(UNPIN, FULL, 0), (PIN[3], FULL, 0), (10, 0, 0), (11, 0, 0), (UNPIN, L3, 0)])
        },
        (EBUSY, 4),
    );
}

/// Stage 2 is gone through entry by entry. In between the domain is still trusted, and the TLB may remember what it could execute: it is flushed
/// at the end, so the machine is looked at there.
#[test]
fn the_end_of_the_trust_restarts_at_every_entry() {
    let ends = |budget| {
        let world = world();
        let one = guest(&world, 1);
        tree(&one);
        world.machine.hw.set_controls(controls());
        assert_eq!(ext(&one, NEW_USER_BASEPTR, ROOT >> 12, 5), 0);
        let (number, args) = operations(&one, &[(NEW_BASEPTR, ROOT, 0)]);
        world.machine.hw.set_budget(budget);
        let (result, interruptions) = one.by_runs(number, args, |_| {});
        world.machine.hw.set_budget(None);
        world.check();
        let kinds: Vec<_> =
            (0..1024).map(|page| one.mapping((RAM >> 12) + page).map(|there| there.kind)).collect();
        ((result, one.read::<u32>(DONE), kinds), interruptions)
    };
    let (whole, _) = ends(None);
    assert_eq!((whole.0, whole.1), (0, 1));
    assert!(!whole.2.contains(&Some(Kind::Ram)), "nothing is executed but text");
    let (end, at_each) = ends(Some(1));
    assert_eq!(end, whole);
    // The text is among pages of its own: a table of 512 at least.
    assert!(at_each > 512, "{at_each} interruptions");
    for budget in [2, 7, 33, 128, 129] {
        let (end, interruptions) = ends(Some(budget));
        assert_eq!(end, whole, "{budget} units a run");
        assert!(
            interruptions >= at_each / budget - 1,
            "{interruptions} interruptions with {budget} units a run"
        );
    }
}
