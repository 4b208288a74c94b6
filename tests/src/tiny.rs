//! A tiny machine, explored: two domains, two pages of RAM and one place without RAM each, a reference each, two ports each.
//!
//! The states are the specification's, up to the names of frames and handles; each call of `alphabet` is made in each state, on the library and
//! on the specification, compared as always. One machine does it all: it goes from state to state by calls that are known already, to the
//! nearest state where one has not been made, or gives everything back and begins anew; then it must be as it was.
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fmt::Write as _;

use crate::drive::{Failure, Run, STEP, Sequence};
use crate::spec::{Place, Spec};

/// The pages that steps name first, and the first place without RAM.
const PAGES: [u64; 3] = [0x4_0400, 0x4_0401, 0x5_0000];
const PORTS: usize = 2;

/// What was found.
#[derive(Clone, Copy, Debug)]
pub struct Explored {
    /// States that differ.
    pub states: usize,
    /// Calls made in them for the first time.
    pub edges: usize,
    /// Calls made in all.
    pub steps: usize,
    /// Calls from the first state to the farthest whose own calls were all made, and one more.
    pub depth: u32,
}

/// Every call, as a step of a [`Sequence`].
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

/// A state's name: all that a call may depend on, frames numbered in the order in which they are seen, handles left out.
fn name(spec: &Spec) -> String {
    let mut frames: BTreeMap<u64, usize> = BTreeMap::new();
    let mut text = String::new();
    for (id, domain) in &spec.domains {
        let mut number = |frame: u64| {
            let next = frames.len();
            *frames.entry(frame).or_insert(next)
        };
        for gfn in PAGES {
            let _ = match domain.places.get(&gfn) {
                Some(Place::Ram(frame)) => write!(text, "r{} ", number(*frame)),
                Some(Place::Grant { frame, writable }) => write!(text, "g{}{writable} ", number(*frame)),
                other => write!(text, "{other:?} "),
            };
        }
        for (gref, used) in domain.uses.iter() {
            let _ =
                write!(text, "u{gref}:{}:{}:{}:{} ", number(used.frame), used.user, used.reads, used.writes);
        }
        let mut held: Vec<_> = domain.held.values().collect();
        held.sort();
        let _ = write!(
            text,
            "{id} {} {:?} {held:?} {:?} {:?} {:?} {:?} {:?};",
            domain.ram.len(),
            domain.entries,
            domain.ports,
            domain.pending,
            domain.masked,
            domain.vcpus[0].selector,
            domain.vcpus[0].upcall,
        );
    }
    text
}

/// A state that was seen.
struct State {
    /// Calls from the first state, at least.
    depth: u32,
    /// The next call of the alphabet to make.
    next: usize,
    /// Where calls led.
    edges: Vec<(usize, usize)>,
}

/// Explores all that so many calls reach, or as much as `steps` calls allow.
///
/// # Errors
/// The first difference, with the calls that led there.
pub fn explore(depth: u32, steps: usize) -> Result<Explored, Box<(Sequence, Failure)>> {
    let (alphabet, back) = (alphabet(), back());
    let mut made = Vec::new();
    let mut run = Run::new(2);
    clean(&mut run, &back, &mut made)?;
    let mut states = vec![State { depth: 0, next: 0, edges: Vec::new() }];
    let mut names = HashMap::from([(name(&run.spec), 0)]);
    let (mut at, mut edges) = (0, 0);
    while made.len() < steps {
        // The way to the nearest state with something new to do, from here or from the beginning.
        let Some(way) = way(&states, at, depth, alphabet.len()) else {
            if at == 0 {
                break;
            }
            clean(&mut run, &back, &mut made)?;
            if names.get(&name(&run.spec)) != Some(&0) {
                let what = format!("not as it was: {}", name(&run.spec));
                return Err(Box::new(failed(made, what)));
            }
            at = 0;
            continue;
        };
        let new = way.is_empty();
        let calls = if new {
            let call = states[at].next;
            states[at].next += 1;
            vec![call]
        } else {
            way
        };
        for call in calls {
            let step = alphabet[call];
            if new && !belongs(&run.spec, &step) {
                continue;
            }
            play(&mut run, step, &mut made)?;
            let next = states.len();
            let there = *names.entry(name(&run.spec)).or_insert(next);
            if there == next {
                states.push(State { depth: u32::MAX, next: 0, edges: Vec::new() });
            }
            if new {
                edges += 1;
                states[at].edges.push((call, there));
            }
            nearer(&mut states, at, there);
            at = there;
        }
    }
    let whole = |state: &State| state.next == alphabet.len();
    let reached = states.iter().filter(|state| !whole(state)).map(|state| state.depth).min();
    let depth = reached.unwrap_or_else(|| states.iter().map(|state| state.depth).max().unwrap_or(0));
    Ok(Explored { states: states.len(), edges, steps: made.len(), depth })
}

/// A difference, with all the calls that led there.
fn failed(made: Vec<[u8; STEP]>, what: String) -> (Sequence, Failure) {
    let failure = Failure { step: made.len() - 1, what, story: Vec::new() };
    (Sequence(made), failure)
}

fn play(run: &mut Run, step: [u8; STEP], made: &mut Vec<[u8; STEP]>) -> Result<(), Box<(Sequence, Failure)>> {
    made.push(step);
    run.step(&step).map_err(|what| Box::new(failed(core::mem::take(made), what)))
}

fn clean(
    run: &mut Run,
    back: &[[u8; STEP]],
    made: &mut Vec<[u8; STEP]>,
) -> Result<(), Box<(Sequence, Failure)>> {
    let has_page = |run: &Run, step: &[u8; STEP]| {
        step[0] == 0xB8 && run.spec.of(u16::from(1 + (step[1] >> 4))).places.contains_key(&PAGES[0])
    };
    for step in back {
        if !has_page(run, step) {
            play(run, *step, made)?;
        }
    }
    Ok(())
}

/// A call leads from one state to another: what is behind it may be nearer to the first than was known.
fn nearer(states: &mut [State], from: usize, to: usize) {
    let mut open = vec![(from, to)];
    while let Some((from, to)) = open.pop() {
        let depth = states[from].depth + 1;
        if depth < states[to].depth {
            states[to].depth = depth;
            open.extend(states[to].edges.iter().map(|(_, next)| (to, *next)));
        }
    }
}

/// The calls to the nearest state that has calls to make, none if this is one; nothing when there is no such state.
fn way(states: &[State], at: usize, depth: u32, calls: usize) -> Option<Vec<usize>> {
    let mut seen = HashSet::from([at]);
    let mut open = VecDeque::from([(at, Vec::new())]);
    while let Some((at, way)) = open.pop_front() {
        if states[at].depth < depth && states[at].next < calls {
            return Some(way);
        }
        for (call, next) in &states[at].edges {
            if seen.insert(*next) {
                open.push_back((*next, [&way[..], &[*call]].concat()));
            }
        }
    }
    None
}
