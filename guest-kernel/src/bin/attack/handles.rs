//! Handles that are none: each call that takes an address, with each kind of address that it must refuse.
#![expect(unsafe_code, reason = "hypercalls with arbitrary addresses are what is tested")]
use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use guest_kernel::attempt::{self, Rights};
use guest_kernel::event::own_id;
use guest_kernel::frame::Frame;
use guest_kernel::grant::{Access, Grant, MappedGrant};
use guest_kernel::{Guest, hypercall, smp};
use pv_abi::console::ConsoleOp;
use pv_abi::event::{EventOp, Reset};
use pv_abi::grant::GrantOp;
use pv_abi::hvm::HvmOp;
use pv_abi::memory::MemoryOp;
use pv_abi::sched::SchedOp;
use pv_abi::vcpu::VcpuOp;
use pv_abi::version::VersionOp;
use pv_abi::{DomId, Errno, Hypercall};

use super::calls::settle;
use crate::tap::Tap;

/// Whether a call writes what its handle names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Use {
    Reads,
    Writes,
}

/// A call, the index of the argument that is a handle, and what it finds there.
struct Call {
    what: &'static str,
    number: Hypercall,
    args: [u64; 5],
    handle: usize,
    usage: Use,
    content: [u64; 8],
}

impl Call {
    /// Makes it; the handle is `address`.
    fn at(&self, address: u64) -> Result<u64, Errno> {
        let mut args = self.args;
        args[self.handle] = address;
        // SAFETY: the structures name nothing that this guest uses; what the hypervisor writes goes where the handle says, which is
        // a page of the test's or nowhere.
        Errno::check(unsafe { hypercall::raw(u64::from(self.number.number()), args) })
    }
}

impl Call {
    /// Makes it with no port in use.
    fn afresh(&self, address: u64) -> Result<u64, Errno> {
        // Never refused for oneself.
        let _ = hypercall::event_reset(&mut Reset { dom: DomId::SELF });
        self.at(address)
    }
}

/// (cmd, structure)
fn with(what: &'static str, number: Hypercall, cmd: u32, usage: Use, content: [u64; 8]) -> Call {
    Call { what, number, args: [u64::from(cmd), 0, 1, 0, 0], handle: 1, usage, content }
}

const SELF: u64 = 0x7ff0;
const fn words<const N: usize>(given: [u64; N]) -> [u64; 8] {
    let mut all = [0; 8];
    let mut index = 0;
    while index < N {
        all[index] = given[index];
        index += 1;
    }
    all
}

/// Every call of the table that takes a handle, so that with a good one it would be served, or refused only after the handle was read.
fn calls() -> Vec<Call> {
    use Hypercall as H;
    use Use::{Reads, Writes};
    let event =
        |what, op: EventOp, usage, content| with(what, H::EventChannelOp, op.number(), usage, content);
    let grant = |what, op: GrantOp, content| with(what, H::GrantTableOp, op.number(), Writes, content);
    let memory = |what, op: MemoryOp, usage, content| with(what, H::MemoryOp, op.number(), usage, content);
    let version = |what, op: VersionOp| with(what, H::XenVersion, op.number(), Writes, [0; 8]);
    vec![
        version("version: extraversion", VersionOp::Extraversion),
        version("version: compile info", VersionOp::CompileInfo),
        version("version: capabilities", VersionOp::Capabilities),
        version("version: changeset", VersionOp::Changeset),
        version("version: platform parameters", VersionOp::PlatformParameters),
        version("version: features", VersionOp::GetFeatures),
        Call {
            what: "console write",
            number: H::ConsoleIo,
            args: [u64::from(ConsoleOp::Write.number()), 16, 0, 0, 0],
            handle: 2,
            usage: Reads,
            content: words([0x2020_2020_2020_2020, 0x0a20_2020_2020_2020]),
        },
        event("event: alloc unbound", EventOp::AllocUnbound, Writes, words([SELF | SELF << 16])),
        event("event: bind interdomain", EventOp::BindInterdomain, Reads, words([SELF | 0xffff << 32])),
        event("event: bind virq", EventOp::BindVirq, Writes, words([1])),
        event("event: bind ipi", EventOp::BindIpi, Writes, [0; 8]),
        event("event: close", EventOp::Close, Reads, words([0xffff])),
        event("event: send", EventOp::Send, Reads, words([0xffff])),
        event("event: status", EventOp::Status, Writes, words([SELF | 1 << 32])),
        event("event: bind vcpu", EventOp::BindVcpu, Reads, words([0xffff])),
        event("event: unmask", EventOp::Unmask, Reads, words([0xffff])),
        event("event: reset", EventOp::Reset, Reads, words([0x7ff1])),
        event("event: init control", EventOp::InitControl, Reads, words([0, 0, 0])),
        grant("grant: map", GrantOp::MapGrantRef, words([0x5000_0000, 2 | 0xffff << 32, SELF])),
        grant("grant: unmap", GrantOp::UnmapGrantRef, words([0x5000_0000, 0, 0xffff])),
        grant("grant: set up the table", GrantOp::SetupTable, words([SELF | 1 << 32, 0, 0])),
        grant("grant: copy", GrantOp::Copy, words([0, SELF, 0, SELF, 0])),
        grant("grant: size", GrantOp::QuerySize, words([SELF])),
        grant("grant: version", GrantOp::GetVersion, words([SELF])),
        grant("grant: swap", GrantOp::SwapGrantRef, words([u64::MAX])),
        memory("memory: place", MemoryOp::AddToPhysmap, Reads, words([SELF | 9 << 32, 0, 0x5_0000])),
        memory("memory: place many", MemoryOp::AddToPhysmapBatch, Reads, words([SELF | 9 << 16])),
        memory("memory: remove", MemoryOp::RemoveFromPhysmap, Reads, words([SELF, 0x5_0000])),
        with("sched: poll", H::SchedOp, SchedOp::Poll.number(), Reads, words([0, 0xffff])),
        with(
            "sched: shut another domain down",
            H::SchedOp,
            SchedOp::RemoteShutdown.number(),
            Reads,
            words([0x7ff4]),
        ),
        with("sched: watchdog", H::SchedOp, SchedOp::Watchdog.number(), Reads, words([0xffff_ffff])),
        with("hvm: get", H::HvmOp, HvmOp::GetParam.number(), Writes, words([SELF | 1 << 32])),
        with("hvm: set", H::HvmOp, HvmOp::SetParam.number(), Reads, words([SELF | 1 << 32])),
        Call {
            what: "vcpu: info",
            number: H::VcpuOp,
            args: [u64::from(VcpuOp::RegisterVcpuInfo.number()), 0, 0, 0, 0],
            handle: 2,
            usage: Reads,
            content: words([u64::MAX]),
        },
        Call {
            what: "vcpu: run state",
            number: H::VcpuOp,
            args: [u64::from(VcpuOp::RegisterRunstateMemoryArea.number()), 0, 0, 0, 0],
            handle: 2,
            usage: Reads,
            content: words([0x1000]),
        },
        Call {
            what: "multicall",
            number: H::Multicall,
            args: [0, 1, 0, 0, 0],
            handle: 0,
            usage: Writes,
            content: words([17]),
        },
    ]
}

/// Where the test's page is a second time, read-only and writable; nothing follows them.
const READ_ONLY: u64 = 0x7a_0000_0000;
const WRITABLE: u64 = 0x79_0000_0000;

pub(crate) fn check(tap: &mut Tap, guest: &Guest) {
    // For ever: it is mapped twice more.
    let page = Box::leak(Frame::boxed());
    let at = core::ptr::from_ref(&*page).expose_provenance() as u64;
    let mapped = attempt::alias(READ_ONLY, at, 4096, Rights::Read)
        && attempt::alias(WRITABLE, at, 4096, Rights::ReadWrite);
    tap.that("pages for the test", mapped);
    bad(tap);
    read_only(tap, page);
    granted(tap, Frame::boxed());
    crossing(tap);
    changing(tap, guest);
}

/// Addresses where nothing is, of several kinds.
fn bad(tap: &mut Tap) {
    let addresses = [
        ("null", 0),
        ("an address that is not mapped", 0x7e_0000_0000),
        ("the hypervisor's image", 0xc000_0000),
        ("the hypervisor's view of memory", 0x40_4000_0000),
        ("the upper half", 0xffff_0000_0000_0000),
        ("eight bytes from the top", u64::MAX - 7),
        ("the last byte", u64::MAX),
        ("the last page", u64::MAX - 4095),
        ("no canonical address", 0x0123_4567_89ab_cdef),
        ("a tagged address", WRITABLE | 0x5a << 56),
        ("the end of a mapped page", WRITABLE + 4096 - 1),
    ];
    for (kind, address) in addresses {
        let mut served = None;
        for call in calls() {
            // A domain that a reservation names is read first, and then there is nothing that could be done.
            let answer = call.at(address);
            if answer != Err(Errno::Efault) {
                served = served.or(Some((call.what, answer)));
            }
        }
        tap.is(kind, served, None);
    }
}

/// Writes the structure of a call, aligned, and returns it as words of the page.
fn fill(page: &Frame, content: [u64; 8]) {
    for (word, value) in
        page.words().iter().zip(content.iter().flat_map(|word| [*word as u32, (*word >> 32) as u32]))
    {
        word.store(value, Ordering::SeqCst);
    }
}

fn sum(page: &Frame) -> u64 {
    page.words().iter().fold(0xcbf2_9ce4_8422_2325, |sum: u64, word| {
        (sum ^ u64::from(word.load(Ordering::SeqCst))).wrapping_mul(0x100_0000_01b3)
    })
}

/// A page that this guest itself may only read is no place for results.
fn read_only(tap: &mut Tap, page: &Frame) {
    let mut wrong = None;
    for call in calls().into_iter().filter(|call| call.usage == Use::Writes) {
        fill(page, call.content);
        let before = sum(page);
        let answer = call.afresh(READ_ONLY);
        if answer != Err(Errno::Efault) || sum(page) != before {
            wrong = wrong.or(Some((call.what, answer)));
        }
    }
    tap.is("a page that stage 1 maps read-only gets no result", wrong, None);
    let mut wrong = None;
    for call in calls().into_iter().filter(|call| call.usage == Use::Reads) {
        fill(page, call.content);
        let answer = call.at(READ_ONLY);
        if answer == Err(Errno::Efault) {
            wrong = wrong.or(Some((call.what, answer)));
        }
    }
    tap.is("it does for arguments", wrong, None);
}

/// A page that was granted to read is no place for results either, whatever this guest's own tables say.
fn granted(tap: &mut Tap, page: Box<Frame>) {
    let Ok(own) = own_id() else { return tap.that("own id", false) };
    let Ok(grant) = Grant::new(page, own, Access::ReadOnly) else {
        return tap.that("a page is granted", false);
    };
    let Ok(mapped) = MappedGrant::map(own, grant.reference(), Access::ReadOnly) else {
        return tap.that("a page is mapped", false);
    };
    let mut wrong = None;
    for call in calls().into_iter().filter(|call| call.usage == Use::Writes) {
        fill(grant.frame(), call.content);
        let before = sum(grant.frame());
        let answer = call.afresh(mapped.address() as u64);
        if answer != Err(Errno::Efault) || sum(grant.frame()) != before {
            wrong = wrong.or(Some((call.what, answer)));
        }
    }
    let (unmapped, ended) = (mapped.unmap(), grant.end().is_ok());
    tap.is("xsa_98: a page that was granted to read gets no result of any call", wrong, None);
    tap.is("it can be unmapped and taken back", (unmapped, ended), (Ok(()), true));
}

/// A structure at every offset of a page, the next one not being there: read whole, or refused.
fn crossing(tap: &mut Tap) {
    let mut wrong = None;
    for call in calls() {
        let mut refused = false;
        // From the last byte down: once it fits, it fits.
        for left in 1..=256_u64 {
            let answer = call.at(WRITABLE + 4096 - left);
            let fault = answer == Err(Errno::Efault);
            refused |= fault;
            if left < 2 && !fault {
                wrong = wrong.or(Some((call.what, left, answer)));
            }
        }
        if !refused {
            wrong = wrong.or(Some((call.what, 0, Ok(0))));
        }
    }
    // Ends the line that text without an end began, and the ports and watchdogs whose structures fitted.
    guest_kernel::println!();
    tap.that("no port and no watchdog is left", settle());
    tap.is(
        "xsa_29: a structure that ends where nothing is mapped is refused, whatever its alignment",
        wrong,
        None,
    );
}

/// Rounds of each call while its structure changes.
const ROUNDS: u32 = 400;

static DONE: AtomicBool = AtomicBool::new(false);
static PAGE: Frame = Frame::zeroed();

/// Another vCPU writes into the structures all the time: every call ends in one way or another.
fn changing(tap: &mut Tap, guest: &Guest) {
    let other = smp::all().next_back().filter(|other| other.number() > 0);
    let (Some(other), Ok(())) = (other, guest_kernel::interrupt::start(guest.tree.gic)) else {
        return tap.that("xsa_166: structures that change during the call (one vCPU: nothing to do)", true);
    };
    let at = core::ptr::from_ref(&PAGE).expose_provenance() as u64;
    let started = smp::start(other, || {
        let mut value = 0x9e37_79b9_u32;
        while !DONE.load(Ordering::SeqCst) {
            for word in PAGE.words().iter().take(8) {
                let before = word.load(Ordering::SeqCst);
                value = value.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                word.store([0, u32::MAX, value >> 24, value][value as usize >> 9 & 3], Ordering::SeqCst);
                core::hint::spin_loop();
                word.store(before, Ordering::SeqCst);
            }
        }
    });
    let Ok(started) = started else { return tap.that("another vCPU", false) };
    let mut answered = 0;
    for call in calls().iter().filter(|call| {
        call.number != Hypercall::Multicall
            && call.number != Hypercall::MemoryOp
            && call.number != Hypercall::GrantTableOp
    }) {
        // A poll for ports or a time that the other has written would last, and the rest of the page is one's own.
        if ["sched", "vcpu", "console"].iter().any(|family| call.what.starts_with(family)) {
            continue;
        }
        for _ in 0..ROUNDS {
            fill(&PAGE, call.content);
            let _ = call.at(at);
            answered += 1;
        }
    }
    DONE.store(true, Ordering::SeqCst);
    started.join();
    let _ = settle();
    tap.that("xsa_166: calls whose structures another vCPU changes meanwhile all end", answered > 0);
}
