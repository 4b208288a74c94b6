//! Tiny machines, explored.
//!
//! The states are the specification's, up to the names of frames and handles; each call of an alphabet is made in each state, on the library and
//! on the specification, compared as always. One machine does it all: it goes from state to state by calls that are known already, to the
//! nearest state where one has not been made, or gives everything back and begins anew; then it must be as it was.
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fmt::Write as _;

use crate::drive::{Failure, Run, STEP, Sequence, Setup};
use crate::spec::{Place, Spec};

mod calls;
mod roots;
mod tables;

pub use calls::calls;
pub use roots::roots;
pub use tables::tables;

/// A machine, and what can be done on it.
pub struct Tiny {
    /// What it is.
    pub setup: Setup,
    /// The guest frames that its calls are about.
    pages: Vec<u64>,
    /// Every call, as a step of a [`Sequence`].
    alphabet: Vec<[u8; STEP]>,
    /// Calls that give everything back, from any state.
    back: Vec<[u8; STEP]>,
    /// Whether a call stays inside the machine, in a state.
    belongs: fn(&Spec, &[u8; STEP]) -> bool,
}

/// Kind of a step that makes a page.
const POPULATE: u8 = 0xB8;

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

/// A state's name: all that a call may depend on, frames numbered in the order in which they are seen, handles left out.
fn name(spec: &Spec, pages: &[u64]) -> String {
    let mut frames: BTreeMap<u64, usize> = BTreeMap::new();
    let mut text = String::new();
    for (id, domain) in &spec.domains {
        let mut number = |frame: u64| {
            let next = frames.len();
            *frames.entry(frame).or_insert(next)
        };
        for gfn in pages {
            let _ = match domain.places.get(gfn) {
                Some(Place::Ram(frame)) => write!(text, "r{} ", number(*frame)),
                Some(Place::Grant { frame, writable }) => write!(text, "g{}{writable} ", number(*frame)),
                other => write!(text, "{other:?} "),
            };
        }
        if let Some(paging) = &domain.paging {
            let _ = write!(text, "{:?} {:?} ", paging.roots, paging.on);
            for frame in pages.iter().filter_map(|gfn| spec.own(*id, *gfn)) {
                let held = spec.bytes.get(&frame).map(|bytes| &bytes[..16]);
                let _ = write!(text, "{:?} {held:?} ", spec.role(*id, frame));
            }
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
pub fn explore(tiny: &Tiny, depth: u32, steps: usize) -> Result<Explored, Box<(Sequence, Failure)>> {
    let alphabet = &tiny.alphabet;
    let mut made = Vec::new();
    let mut run = Run::new(tiny.setup);
    clean(&mut run, tiny, &mut made)?;
    let mut states = vec![State { depth: 0, next: 0, edges: Vec::new() }];
    let mut names = HashMap::from([(name(&run.spec, &tiny.pages), 0)]);
    let (mut at, mut edges) = (0, 0);
    while made.len() < steps {
        // The way to the nearest state with something new to do, from here or from the beginning.
        let Some(way) = way(&states, at, depth, alphabet.len()) else {
            if at == 0 {
                break;
            }
            clean(&mut run, tiny, &mut made)?;
            if names.get(&name(&run.spec, &tiny.pages)) != Some(&0) {
                let what = format!("not as it was: {}", name(&run.spec, &tiny.pages));
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
            if new && !(tiny.belongs)(&run.spec, &step) {
                continue;
            }
            play(&mut run, step, &mut made)?;
            let next = states.len();
            let there = *names.entry(name(&run.spec, &tiny.pages)).or_insert(next);
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

fn clean(run: &mut Run, tiny: &Tiny, made: &mut Vec<[u8; STEP]>) -> Result<(), Box<(Sequence, Failure)>> {
    for step in &tiny.back {
        // A page that is there is not had again.
        if step[0] != POPULATE || (tiny.belongs)(&run.spec, step) {
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
