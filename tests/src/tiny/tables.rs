//! A domain with checked page tables: three pages that are data, text, tables of level 2 or 3 or on their way there, with one entry each
//! that may link, map or execute any of them, counts of one bit, and another domain that maps the first page by a grant.
use super::Tiny;
use crate::drive::{STEP, Setup};
use crate::spec::Spec;

/// The pages, as steps name them (the last is in a block at first), and where the grant is mapped.
const PAGES: [u8; 3] = [0, 1, 8];
const PLACES: [u64; 4] = [0x4_0400, 0x4_0401, 0x4_0300, 0x5_0000];
/// Second byte of a step about page tables by the first domain; and of one about other things.
const TABLES: u8 = 4;
const OTHERS: u8 = 0;

/// The machine.
pub fn tables() -> Tiny {
    let setup = Setup { most: Some(1), ..Setup::PAGING };
    Tiny { setup, pages: PLACES.to_vec(), alphabet: alphabet(), back: back(), belongs }
}

fn step(bytes: &[u8]) -> [u8; STEP] {
    let mut step = [0; STEP];
    step[..bytes.len()].copy_from_slice(bytes);
    step
}

/// Entries as steps say them: nothing, links, text of EL0, data.
fn entries() -> Vec<Vec<u8>> {
    let mut entries = vec![vec![25], vec![14, PAGES[0]]];
    for page in PAGES {
        entries.extend([vec![16, 0, page], vec![19, 2, page]]);
    }
    entries
}

fn store(page: u8, entry: &[u8]) -> [u8; STEP] {
    step(&[&[0x00, TABLES, 3, 0, 0, page], entry].concat())
}

fn update(page: u8, entry: &[u8]) -> [u8; STEP] {
    step(&[&[0x75, TABLES, 0, 0, page, 3, 0, 0], entry].concat())
}

fn pin(page: u8, level: u8, whole: u8) -> [u8; STEP] {
    step(&[0x40, TABLES, level, whole, 0, page])
}

fn unpin(page: u8, whole: u8) -> [u8; STEP] {
    step(&[0x50, TABLES, whole, 0, page])
}

/// The first page is offered to the other domain, or (`flags` 9) not any more.
fn offer(flags: u8) -> [u8; STEP] {
    step(&[0x60, OTHERS, 0, PAGES[0], 1, flags, 4])
}

const UNMAP: [u8; STEP] = [0x89, 0x10, 0, 0, 0xFF, 0, 0, 0, 0, 0, 0, 0];
const POPULATE: [u8; STEP] = [0xB8, OTHERS, PAGES[0], 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn alphabet() -> Vec<[u8; STEP]> {
    let mut steps = Vec::new();
    for page in PAGES {
        for entry in entries() {
            steps.extend([store(page, &entry), update(page, &entry)]);
        }
        steps.extend([pin(page, 2, 1), pin(page, 3, 1), pin(page, 2, 0), unpin(page, 1), unpin(page, 0)]);
        // As text of EL0.
        steps.push(step(&[0x68, TABLES, 1, 0, page]));
    }
    steps.extend([offer(0), offer(9), UNMAP, POPULATE]);
    // Mapped by the other for writing; given back.
    steps.extend([step(&[0x70, 0x10, 0, 0, 0x70, 0, 0]), step(&[0xC4, OTHERS, PAGES[0], 0xFF, 0])]);
    steps
}

fn back() -> Vec<[u8; STEP]> {
    let mut steps = vec![UNMAP, offer(9)];
    for _ in 0..2 {
        steps.extend(PAGES.map(|page| update(page, &[25])));
        steps.extend(PAGES.map(|page| unpin(page, 1)));
    }
    steps.extend(PAGES.map(|page| store(page, &[25])));
    steps.push(POPULATE);
    steps
}

/// The first page is had again when it is not there.
fn belongs(spec: &Spec, step: &[u8; STEP]) -> bool {
    *step != POPULATE || !spec.of(1).places.contains_key(&PLACES[0])
}
