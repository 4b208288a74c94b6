//! A sweep: every number of a call, every sub-call, and each field of its structure at its edges, one at a time, and two of them at once, so
//! that also the order of checks shows. What is answered is not judged here but told, a line a field:
//!
//! `# sweep CALL.OP FIELD: TOKEN TOKEN*3 ..`
//!
//! A token is the answer, negative for an errno, `n` for a count of something that no two machines have alike; `s` and a number is the status
//! of an element; what stands behind `+` is a mask, in hexadecimal, of the 32-bit words of the structure that were written, and from bit 24
//! on of the lists that it names. `*3` is three times the same. `cargo xtask conformance` compares with what real Xen answered.
//!
//! 1. Nothing is named but pages that nobody else uses, or none: [`super::sweep_world`].
//! 2. No call ends this guest or waits: the values of `sched_op` are chosen so, and `block` is not called.
use alloc::format;
use alloc::string::String;
use core::fmt::Write;

use guest_kernel::{println, record};

use super::sweep_memory::{COPIES, GRANTS, MEMORY};
use super::sweep_table::{self, EVENTS, OTHERS};
use super::sweep_world::{END, GOOD, NOWHERE, READ_ONLY, World};
use super::tap::Tap;

/// Characters of a line, at most: consoles cut longer ones.
const LINE: usize = 120;

/// How a sub-call is made, and what it is given.
#[derive(Clone, Copy)]
pub(crate) struct Op {
    /// As in `pv-abi`'s table, with what is special about it.
    pub(crate) name: &'static str,
    /// Number in x16.
    pub(crate) number: u64,
    /// x0 to x4.
    pub(crate) x: [u64; 5],
    /// Which of them is the structure's address.
    pub(crate) address: Option<usize>,
    /// Bytes of the structure.
    pub(crate) size: usize,
    /// Where it has a `gnttab` status.
    pub(crate) status: Option<usize>,
    /// Whether a positive answer is a count that differs between machines.
    pub(crate) counts: bool,
    /// What is there before the call, and is put right after it.
    pub(crate) state: State,
    /// What is varied.
    pub(crate) fields: &'static [Field],
}

/// What a call needs to find.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Nothing.
    Nothing,
    /// Ports of each kind.
    Ports,
    /// Those, and queues of events.
    Queues,
    /// A grant that is mapped.
    Mapped,
    /// Granted pages.
    Granted,
    /// Pages that the domain had given back.
    Given,
    /// Pages that it has.
    Had,
    /// A page of the grant table at a free place.
    Placed,
    /// Watchdogs.
    Watchdogs,
}

/// Something that is varied.
pub(crate) struct Field {
    /// Its name in `public/`.
    pub(crate) name: &'static str,
    /// Where it is.
    pub(crate) place: Place,
    /// What it is when another is varied.
    pub(crate) usual: Base,
    /// What it is made.
    pub(crate) kind: Kind,
}

/// Where a field is.
#[derive(Clone, Copy)]
pub(crate) enum Place {
    /// In the structure: offset and bytes.
    At(usize, usize),
    /// A register.
    X(usize),
}

/// A value that may depend on where things are.
#[derive(Clone, Copy)]
pub(crate) enum Base {
    /// This.
    Is(u64),
    /// A page that may be taken away.
    Page,
}

/// What a field means, and so which values are its edges.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    /// A domain.
    Domain,
    /// A port.
    Port,
    /// A vCPU.
    Vcpu,
    /// A guest frame where nothing is, or none that can be.
    Place,
    /// The address of an array.
    List,
    /// A reference to a grant.
    Reference,
    /// A grant's handle: that of the one that is mapped, with these bits changed.
    Handle,
    /// A number that is only a number.
    Any,
    /// Progress of a `memory_op`, above its number.
    Progress,
    /// What the call writes: it is not varied.
    Out,
    /// These, and those of them that are tried with other fields' bad values.
    Of(&'static [u64], &'static [u64]),
}

pub(crate) fn check(tap: &mut Tap) {
    let Some(mut world) = World::new() else { return tap.that("pages for it", false) };
    // There is no room to note what every command that there is not was answered, and the lines tell it.
    record::stop();
    numbers();
    commands();
    record::start();
    tagged(&mut world);
    for op in all() {
        addresses(op, &mut world);
        one(op, &mut world);
        two(op, &mut world);
    }
    for op in EVENTS {
        let op = Op { state: State::Queues, ..*op };
        one(&op, &mut world);
        two(&op, &mut world);
    }
    tap.that("everything is as it was", world.end());
}

/// A line, as far as it has come.
struct Line<'a> {
    name: &'a str,
    text: String,
    last: Option<String>,
    times: u32,
}

impl<'a> Line<'a> {
    const fn of(name: &'a str) -> Self {
        Self { name, text: String::new(), last: None, times: 0 }
    }

    fn put(&mut self, token: String) {
        if self.last.as_ref() == Some(&token) {
            self.times += 1;
            return;
        }
        self.close();
        (self.last, self.times) = (Some(token), 1);
    }

    fn close(&mut self) {
        let Some(token) = self.last.take() else { return };
        if self.name.len() + self.text.len() + token.len() > LINE {
            self.tell();
        }
        let times = if self.times == 1 { String::new() } else { format!("*{}", self.times) };
        let _ = write!(self.text, " {token}{times}");
    }

    fn tell(&mut self) {
        if !self.text.is_empty() {
            println!("# sweep {}:{}", self.name, self.text);
            self.text.clear();
        }
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        self.close();
        self.tell();
    }
}

fn token(answer: i64) -> String {
    // Results are ints, and an int's refusal is not always sign-extended.
    format!("{}", super::raw::low_word(answer))
}

/// Every number that is no call, with each of these in all registers.
fn numbers() {
    for (name, value) in
        [("zeros", 0), ("an address", GOOD), ("no address", NOWHERE), ("the last number", u64::MAX)]
    {
        let name = format!("numbers that are no calls, with {name}");
        let mut line = Line::of(&name);
        for number in (0..=66).filter(|number| !sweep_table::CALLS.contains(number)) {
            line.put(token(super::sweep_world::call(number, [value; 5])));
        }
        for number in [0x8000, 0xffff, 0x10000, 0x7fff_ffff, 0xffff_ffff, 1 << 32, u64::MAX] {
            line.put(token(super::sweep_world::call(number, [value; 5])));
        }
    }
}

/// Every command there is and is not, with its structure nowhere.
fn commands() {
    for (call, address, name) in sweep_table::COMMANDS {
        for upper in [0_u64, 1 << 32, 1 << 63] {
            let name = format!("{name} every command, at no address, with {upper:#x}");
            let mut line = Line::of(&name);
            for command in (0..=130).chain([0xfff, 0x1000, 0x7fff, 0x8000, 0xffff, 0x7fff_ffff, 0xffff_ffff])
            {
                if (*call, command) == sweep_table::BLOCK {
                    continue;
                }
                let mut x = [0; 5];
                (x[0], x[*address]) = (command | upper, NOWHERE);
                let answer = super::sweep_world::call(*call, x);
                line.put(if *call == 12 && answer > 100 { String::from("n") } else { token(answer) });
            }
        }
    }
}

/// The structure at good and bad addresses.
fn addresses(op: &Op, world: &mut World) {
    if op.address.is_none() {
        return;
    }
    let size = op.size as u64;
    let name = format!("{} address", op.name);
    let mut line = Line::of(&name);
    let upper = 0xffff << 48;
    for address in [
        GOOD,
        GOOD + 1,
        GOOD + 2,
        GOOD + 4,
        END - size,
        END - size + 1,
        END - size + 4,
        END - 4,
        END - 1,
        END,
        READ_ONLY + 0x100,
        0,
        4,
        NOWHERE,
        GOOD | upper,
        1 << 47,
        1 << 48,
        1 << 63,
        upper,
        u64::MAX - 7,
        u64::MAX,
    ] {
        line.put(world.make(op, &[], address));
    }
}

fn all() -> impl Iterator<Item = &'static Op> {
    [EVENTS, GRANTS, MEMORY, OTHERS, COPIES].into_iter().flatten()
}

/// Each structure where it is, but for a tag in the uppermost byte, which this guest has not allowed (`TCR_EL1.TBI0`).
fn tagged(world: &mut World) {
    let mut line = Line::of("an address with a tag");
    for op in all().filter(|op| op.address.is_some()) {
        line.put(world.make(op, &[], GOOD | 1 << 56));
    }
}

/// What is special about what the call finds.
fn state(op: &Op) -> &'static str {
    if op.state == State::Queues { ", with queues" } else { "" }
}

/// Each field at its edges.
fn one(op: &Op, world: &mut World) {
    for (index, field) in op.fields.iter().enumerate() {
        let name = format!("{} {}{}", op.name, field.name, state(op));
        let mut line = Line::of(&name);
        for value in world.edges(field) {
            line.put(world.make(op, &[(index, value)], GOOD));
        }
    }
}

/// Each two fields, both as they may not be.
fn two(op: &Op, world: &mut World) {
    for (index, first) in op.fields.iter().enumerate() {
        for (further, second) in op.fields.iter().enumerate().skip(index + 1) {
            let (bad, worse) = (world.bad(first), world.bad(second));
            if bad.is_empty() || worse.is_empty() {
                continue;
            }
            let name = format!("{} {} with {}{}", op.name, first.name, second.name, state(op));
            let mut line = Line::of(&name);
            for value in &bad {
                for other in &worse {
                    line.put(world.make(op, &[(index, *value), (further, *other)], GOOD));
                }
            }
        }
    }
}
