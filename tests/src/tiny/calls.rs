//! Two domains, two pages of RAM and one place without RAM each, a reference each, two ports each.
use super::Tiny;
use crate::drive::STEP;
use crate::spec::Spec;

/// The pages that steps name first, and the first place without RAM.
const PAGES: [u64; 3] = [0x4_0400, 0x4_0401, 0x5_0000];
const PORTS: usize = 2;

/// The machine.
pub fn calls() -> Tiny {
    Tiny { setup: 2.into(), pages: PAGES.to_vec(), alphabet: alphabet(), back: back(), belongs }
}

/// Every call, as a step of a `Sequence`.
fn alphabet() -> Vec<[u8; STEP]> {
    let mut steps = Vec::new();
    for domain in 0..2 {
        let who = domain << 4;
        let other = 1 - domain;
        let mut add = |bytes: &[u8]| {
            let mut step = [0; STEP];
            step[0] = bytes[0];
            step[1] = who;
            step[2..=bytes.len()].copy_from_slice(&bytes[1..]);
            steps.push(step);
        };
        // A port for the other domain, and for oneself.
        add(&[0x00, 0, other]);
        add(&[0x00, 0, 2]);
        for port in 1..=2 {
            add(&[0x10, other, port]);
            add(&[0x10, domain, port]);
            add(&[0x2C, port]);
            add(&[0x38, port]);
            add(&[0x48, port]);
            add(&[0x57, port]);
        }
        add(&[0x5B]);
        // Offers of the first page to the other: writable, read-only, none.
        add(&[0x60, 0, 0, other, 0, 1]);
        add(&[0x60, 0, 0, other, 4, 1]);
        add(&[0x60, 0, 0, other, 9, 1]);
        // The other's reference, mapped for writing and for reading, and given back.
        add(&[0x70, 0, other, 0x70, 0, 0]);
        add(&[0x70, 0, other, 0x70, 0, 1]);
        add(&[0x89, 0, 0, 0xFF]);
        add(&[0x89, 1, 0, 0xFF]);
        // Copies from it to the second page, and back.
        add(&[0x9C, 1, 0, other, 0, 1, 0, 0, 4]);
        add(&[0x9C, 2, 1, 0, 0, 0, other, 0, 4]);
        // The first page is given back and had again.
        add(&[0xC4, 0, 0xFF, 0]);
        add(&[0xB8, 0, 0]);
    }
    steps
}

/// Calls that give everything back, from any state.
fn back() -> Vec<[u8; STEP]> {
    let mut steps = Vec::new();
    for who in [0x00, 0x10] {
        let other = 1 - (who >> 4);
        steps.extend([
            [0x56, who, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            [0x57, who, 1, 0xFF, 0, 0, 0, 0, 0, 0, 0, 0],
            [0x57, who, 2, 0xFF, 0, 0, 0, 0, 0, 0, 0, 0],
            [0x5B, who, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            [0x89, who, 0, 0, 0xFF, 0, 0, 0, 0, 0, 0, 0],
            [0x89, who, 1, 0, 0xFF, 0, 0, 0, 0, 0, 0, 0],
            [0xB8, who, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            [0x60, who, 0, 0, other, 9, 0, 0, 0, 0, 0, 0],
        ]);
    }
    // Whoever has mapped something has given it back by now.
    steps.extend([0x00, 0x10].map(|who| [0x60, who, 0, 0, 1 - (who >> 4), 9, 0, 0, 0, 0, 0, 0]));
    steps.extend([0x00, 0x10].map(|who| [0x5B, who, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]));
    steps
}

/// Whether a call belongs to the tiny machine in this state: no more than its ports and pages.
fn belongs(spec: &Spec, step: &[u8; STEP]) -> bool {
    let domain = spec.of(u16::from(1 + (step[1] >> 4)));
    match step[0] {
        0x00 | 0x10 => domain.ports.len() < PORTS,
        0x57 => domain.ports.contains_key(&u32::from(step[2])),
        0xB8 => !domain.places.contains_key(&PAGES[0]),
        _ => true,
    }
}
