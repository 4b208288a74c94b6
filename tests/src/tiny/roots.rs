//! A domain with checked page tables whose two vCPUs take roots: two pages that are data, tables of level 0 or 1, or on their way there, whose first
//! entries may link each other; a third page that is a root always, so that both vCPUs can leave the others; counts to 2. One vCPU goes off and comes on.
//! (The end of the trust has no way back; random calls have it.)
use super::Tiny;
use crate::drive::{STEP, Setup};

/// The pages, as steps name them, and where they are. The last is the root that stays.
const PAGES: [u8; 3] = [0, 1, 2];
const PLACES: [u64; 3] = [0x4_0400, 0x4_0401, 0x4_0402];
const STAYS: u8 = PAGES[2];
/// Second byte of a step about page tables by the first vCPU; one more is the other's.
const TABLES: u8 = 4;

/// The machine.
pub fn roots() -> Tiny {
    let setup = Setup { most: Some(2), ..Setup::PAGING };
    Tiny { setup, pages: PLACES.to_vec(), alphabet: alphabet(), back: back(), belongs: |_, _| true }
}

fn step(bytes: &[u8]) -> [u8; STEP] {
    let mut step = [0; STEP];
    step[..bytes.len()].copy_from_slice(bytes);
    step
}

const NOTHING: [u8; 3] = [25, 0, 0];

const fn link(page: u8) -> [u8; 3] {
    [16, 0, page]
}

fn store(page: u8, entry: [u8; 3]) -> [u8; STEP] {
    step(&[&[0x00, TABLES, 0, 0, 0, page], &entry[..]].concat())
}

fn update(page: u8, entry: [u8; 3]) -> [u8; STEP] {
    step(&[&[0x75, TABLES, 0, 0, page, 0, 0, 0], &entry[..]].concat())
}

fn pin(page: u8, level: u8, whole: u8) -> [u8; STEP] {
    step(&[0x40, TABLES, level, whole, 0, page])
}

fn unpin(page: u8, whole: u8) -> [u8; STEP] {
    step(&[0x50, TABLES, whole, 0, page])
}

/// A vCPU takes a root for its lower half.
fn take(vcpu: u8, page: u8) -> [u8; STEP] {
    step(&[0xB0, TABLES | vcpu, 0, 0, page])
}

/// The second vCPU comes on, or goes off.
const ON: [u8; STEP] = [0xE4, TABLES, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const OFF: [u8; STEP] = [0xE4, TABLES, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn alphabet() -> Vec<[u8; STEP]> {
    let mut steps = vec![ON, OFF];
    for page in PAGES {
        steps.extend([take(0, page), take(1, page), update(page, NOTHING)]);
        for to in [PAGES[0], PAGES[1]] {
            steps.push(update(page, link(to)));
        }
    }
    for page in [PAGES[0], PAGES[1]] {
        for entry in [NOTHING, link(PAGES[0]), link(PAGES[1])] {
            steps.push(store(page, entry));
        }
        steps.extend([pin(page, 0, 1), pin(page, 1, 1), pin(page, 0, 0), unpin(page, 1), unpin(page, 0)]);
    }
    steps
}

fn back() -> Vec<[u8; STEP]> {
    let mut steps = vec![pin(STAYS, 0, 1), ON, take(0, STAYS), take(1, STAYS), OFF, update(STAYS, NOTHING)];
    for _ in 0..2 {
        for page in [PAGES[0], PAGES[1]] {
            steps.extend([update(page, NOTHING), unpin(page, 1)]);
        }
    }
    steps.extend([PAGES[0], PAGES[1]].map(|page| store(page, NOTHING)));
    steps
}
