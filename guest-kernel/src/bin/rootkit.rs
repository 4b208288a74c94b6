//! Somebody has taken the guest's kernel over and tries everything: to write to page tables and text, to execute what is data, to run by
//! tables and controls of his own, to have EL2 or another domain write for him, to put other pages under checked entries, and to be faster than
//! a check. Every attempt is refused, or faults, and is a case of its own (TAP). With `walls=1` the hypervisor checks no roles, and what is tried
//! succeeds: cases are not counted, and other domains must not notice.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "attempts")]
extern crate alloc;

#[path = "rootkit/accomplice.rs"]
mod accomplice;
#[path = "rootkit/answers.rs"]
mod answers;
#[path = "rootkit/elsewhere.rs"]
mod elsewhere;
#[path = "rootkit/entries.rs"]
mod entries;
#[path = "rootkit/limits.rs"]
mod limits;
#[path = "rootkit/memory.rs"]
mod memory;
#[path = "rootkit/race.rs"]
mod race;
#[path = "rootkit/registers.rs"]
mod registers;

use core::arch::global_asm;

use guest_kernel::attempt::{self, Level, class};
use guest_kernel::interrupt;
use guest_kernel::pv::{self, Page};
use guest_kernel::space::{self, Entry, PAGE, Rights, Space};
use guest_kernel::{Guest, paging, println, record};
use pv_abi::paging::{ExtOp, MmuUpdate};
use pv_abi::{Errno, Hypercall};

global_asm!(include_str!("rootkit/code.S"), options(raw));

guest_kernel::main!(main);

/// A case that did not end as it must.
#[derive(Debug)]
#[expect(dead_code, reason = "printed")]
enum Failed {
    Cases(u32),
    Refused(Errno),
}

impl From<Errno> for Failed {
    fn from(errno: Errno) -> Self {
        Self::Refused(errno)
    }
}

/// Cases so far.
struct Tap {
    cases: u32,
    failed: u32,
}

impl Tap {
    /// A case: what was tried, and whether it came to nothing.
    fn nothing(&mut self, what: &str, came_to_nothing: bool) {
        self.cases += 1;
        let verdict = if came_to_nothing { "ok" } else { "not ok" };
        self.failed += u32::from(!came_to_nothing);
        println!("{verdict} {} - {what}", self.cases);
    }

    /// A call that must be refused so.
    fn refused(&mut self, what: &str, got: Result<(), Errno>, expected: Errno) {
        if got != Err(expected) {
            println!("# {got:?}");
        }
        self.nothing(what, got == Err(expected));
    }
}

/// What an instruction sequence in this guest's text came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Came {
    /// It was executed; x1 afterwards.
    Through(u64),
    /// Exception class, fault status without the level.
    Fault(u64, u64),
}

const PERMISSION: u64 = 0x0c;
/// What EL2 makes of a fault of stage 2: an external abort.
const EXTERNAL: u64 = 0x10;
const WRITE_FAULTS: Came = Came::Fault(class::DATA_ABORT, EXTERNAL);
const FETCH_FAULTS: Came = Came::Fault(class::INSTRUCTION_ABORT, EXTERNAL);
const UNDEFINED: Came = Came::Fault(class::UNKNOWN, 0);

macro_rules! code {
    ($name:ident) => {{
        unsafe extern "C" {
            static $name: u8;
        }
        (&raw const $name).addr() as u64
    }};
}
pub(crate) use code;

fn at_el1(pc: u64, x0: u64, x1: u64) -> Came {
    let mut x = [0; 31];
    (x[0], x[1]) = (x0, x1);
    // SAFETY: what it changes is this guest's to lose.
    match unsafe { attempt::run(Level::El1, pc, &mut x) } {
        None => Came::Through(x[1]),
        Some(taken) => Came::Fault(taken.class(), taken.esr & 0x3c),
    }
}

fn store(at: u64, value: u64) -> Came {
    at_el1(code!(rootkit_store), at, value)
}

fn load(at: u64) -> Came {
    at_el1(code!(rootkit_load), at, 0)
}

fn jump(at: u64) -> Came {
    at_el1(code!(rootkit_jump), at, 0)
}

/// Reads a word by the identity map.
fn peek(at: u64) -> u64 {
    match load(at) {
        Came::Through(value) => value,
        Came::Fault(..) => u64::MAX,
    }
}

fn update(at: u64, entry: u64) -> Result<(), Errno> {
    // SAFETY: what it changes is this guest's to lose.
    unsafe { pv::update(&[MmuUpdate { ptr: at, val: entry }]) }.map_err(|(errno, _)| errno)
}

fn extended(op: ExtOp, arg1: u64, arg2: u64) -> Result<(), Errno> {
    // SAFETY: as above.
    unsafe { pv::extended(&[pv::op(op, arg1, arg2)]) }.map_err(|(errno, _)| errno)
}

fn raw(call: Hypercall, args: [u64; 5]) -> Result<(), Errno> {
    // SAFETY: as above.
    let got = Errno::check(unsafe { guest_kernel::hypercall::raw(u64::from(call.number()), args) }).map(drop);
    if call == Hypercall::MmuExtOp && got.is_err() {
        record::sub_call(u64::from(call.number()), u32::MAX, got);
    }
    got
}

/// What is attacked: tables of this kernel's own, and text.
struct Target {
    /// The tables that map [`Target::VA`]: level 0 to 3.
    tables: [u64; 4],
    /// A page of user text, mapped there.
    text: u64,
    /// A page of data, mapped behind it.
    data: u64,
    /// A page of the kernel's text.
    kernel: u64,
}

impl Target {
    const VA: u64 = 1 << 39;

    /// Makes an address space and goes over to it.
    fn new() -> Result<Self, Errno> {
        let mut space = Space::new(paging::kernel_link(), 2)?;
        let last = space.make_tables(Self::VA)?;
        let link = |table: u64, index: u64| peek(table + 8 * index) & 0x0000_ffff_ffff_f000;
        let one = link(space.root(), 1);
        let tables = [space.root(), one, link(one, 0), last];
        let (text, data) = (space::take_page()?, space::take_page()?);
        let (from, to) = (code!(rootkit_user), code!(rootkit_user_end));
        for offset in (0..to - from).step_by(8) {
            store(text + offset, peek(from + offset));
            store(data + offset, peek(from + offset));
        }
        pv::pin(Page::UserText, text)?;
        update(last, Entry::page(text, Rights::UserText).bits())?;
        update(last + 8, Entry::page(data, Rights::UserData).bits())?;
        space.enter()?;
        Ok(Self { tables, text, data, kernel: code!(rootkit_store) & !(PAGE - 1) })
    }
}

fn main(guest: &Guest) -> Result<(), Failed> {
    if guest.args().text("role") == Some("accomplice") {
        return accomplice::serve(guest).map_err(Failed::from);
    }
    let one_wall = guest.args().number("walls") == Some(1);
    let mut tap = Tap { cases: 0, failed: 0 };
    // First: the accomplice was told its reference.
    let accomplice = accomplice::Accomplice::new(guest);
    interrupt::start(guest.tree.gic).map_err(|_| Errno::Enosys)?;
    record::start();
    let target = Target::new()?;
    if !one_wall {
        // Where roles are not checked some of them are not refused, and this guest would end by what they do.
        answers::all(&mut tap, &target)?;
        limits::all(&mut tap, guest, &target)?;
    }
    entries::tables_and_text(&mut tap, &target);
    entries::contents(&mut tap, &target)?;
    registers::features(&mut tap);
    registers::controls(&mut tap, &target);
    elsewhere::hands(&mut tap, &target)?;
    if let Some(accomplice) = accomplice {
        accomplice::grants(&mut tap, &accomplice)?;
    }
    elsewhere::shown(&mut tap, &target)?;
    memory::places(&mut tap, &target)?;
    race::warm(&mut tap, &target)?;
    race::second_vcpu(&mut tap, &target)?;
    race::roots_left(&mut tap, &target)?;
    race::siblings_warm(&mut tap, &target)?;
    race::role_changes(&mut tap)?;
    race::starts_in_data(&mut tap)?;
    tap.nothing("kernel text after the seal", {
        extended(ExtOp::Seal, 0, 0)?;
        extended(ExtOp::PinKernelText, space::take_page()? / PAGE, 0) == Err(Errno::Eperm)
    });
    tap.refused(
        "user text as the kernel's after the seal",
        extended(ExtOp::PinKernelText, target.text / PAGE, 0),
        Errno::Eperm,
    );
    // Last: events come by queues from here on, which this kernel does not look at.
    elsewhere::queues(&mut tap, &target)?;
    record::tell();
    println!("1..{}", tap.cases);
    if tap.failed == 0 || one_wall { Ok(()) } else { Err(Failed::Cases(tap.failed)) }
}
