//! The FIFO ABI of event channels (`common/event_fifo.c` is the reference for results): an event is a word in a page that the guest
//! gave, and pending ones are linked into queues, one for each vCPU and priority.
//!
//! A word has the bits PENDING, MASKED, LINKED and BUSY, and the port that comes after it in its queue. Who sets LINKED, and that is the
//! hypervisor alone, puts the event behind the tail of its queue: into the tail's link while that is LINKED itself, else, since the guest has
//! taken the tail out and the queue is empty, into the queue's head in the vCPU's control block; then a bit of `ready` there says that the
//! queue has something. A guest takes the head, and clears LINKED with the link in one step. While the tail is being linked BUSY keeps the
//! guest from unmasking it, so it can change the word four times at most (mask, unmask, take the event, take it out).
//!
//! Invariants
//! 1. A domain uses it from its first `init_control` until a reset has closed all ports, or its end: `pages` says which.
//! 2. Array pages and control blocks lie in the domain's own RAM. Each is held by a reference for as long as its address is here; what
//!    writes to them holds `queue`, so nothing is written after they were let go.
//! 3. Tails, the queue in which a port was last (in its word) and all words of ports of such a domain change under `queue`. It is the
//!    last lock that anybody takes.
//! 4. Nothing that a guest can write is followed: ports come from tails, which it does not see. What it does to links, heads and words
//!    loses its own events. Tries are bounded; a word that is kept busy ends the domain.
//! 5. An event for a port whose array page is not there yet is kept in the 2-level bitmap, as are those from before the switch: it is
//!    raised when the page comes. (Not what a sender was just about to raise in two levels when the domain switched and the page came:
//!    that is lost, as in Xen.)
//!
//! Order: every change of a word is an exclusive pair with a full barrier. So the link, or the head, is seen by whoever sees the bit in `ready`,
//! and PENDING by whoever takes the event out after it was LINKED.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use core::mem::offset_of;
use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use pv_abi::event::{ControlBlock, InitControl, NR_CHANNELS_2L, SetPriority, fifo};
use pv_abi::{Errno, Port};

use super::deliver;
use super::port::{self, PortKind};
use crate::addr::{FrameAddr, Mfn, Pa};
use crate::domain::Domain;
use crate::grant::pin::own_ram;
use crate::hardware::{Contended, Hardware};
use crate::lock::{Guard, Lock, rank};
use crate::machine::{Current, Machine};
use crate::vcpu::Vcpu;

/// Array pages in which there can be a port.
const PAGES: usize = (NR_CHANNELS_2L / fifo::WORDS_PER_PAGE) as usize;
/// Events that one run of `expand_array` raises before it lets interrupts in.
const BUDGET: u32 = 32;
/// Command with which `expand_array` goes on raising what was kept. Nobody else has a use for it, and it does no harm.
pub(super) const CONTINUE: u32 = 0x8000_000C;

/// What a domain has of it.
pub struct Fifo {
    queue: Lock<(), { rank::EVENTS }>,
    /// 0 for two levels, else one more than the array has pages. Changes under the domain's lock.
    pages: AtomicU32,
    /// Machine addresses of the array's pages; 0 for none.
    array: [AtomicU64; PAGES],
}

/// What a vCPU has of it.
pub struct Queues {
    /// Machine address of its control block; 0 for none.
    control: AtomicU64,
    /// The event that was linked last, by priority; 0 for none.
    tails: [AtomicU16; fifo::QUEUES],
}

impl Fifo {
    /// Two levels.
    pub const fn new() -> Self {
        Self { queue: Lock::new(()), pages: AtomicU32::new(0), array: [const { AtomicU64::new(0) }; PAGES] }
    }

    /// The lock of its queues, if the domain uses them. Under the domain's lock, or nobody will ever.
    pub(super) fn lock_used(&self) -> Option<Guard<'_, ()>> {
        (self.pages.load(Ordering::Acquire) != 0).then(|| self.queue.lock())
    }
}

impl Queues {
    /// None yet.
    pub const fn new() -> Self {
        Self { control: AtomicU64::new(0), tails: [const { AtomicU16::new(0) }; fifo::QUEUES] }
    }
}

impl Default for Fifo {
    fn default() -> Self {
        Self::new()
    }
}

impl Default for Queues {
    fn default() -> Self {
        Self::new()
    }
}

/// Whether a domain uses it.
pub(super) fn is_used(domain: &Domain) -> bool {
    domain.fifo.pages.load(Ordering::Acquire) != 0
}

fn place(cell: &AtomicU64) -> Option<FrameAddr> {
    match cell.load(Ordering::Acquire) {
        0 => None,
        pa => Pa::new(pa).map(FrameAddr::from_pa),
    }
}

/// Every place in the domain's memory that is held.
fn places(domain: &Domain) -> impl Iterator<Item = &AtomicU64> {
    domain.fifo.array.iter().chain(domain.vcpus.iter().map(|vcpu| &vcpu.queues.control))
}

/// The frames that are held, as often as they are; for the self-check.
pub fn held(domain: &Domain) -> impl Iterator<Item = Mfn> + '_ {
    places(domain).filter_map(place).map(FrameAddr::frame)
}

/// Where a port's word is, if its page has come.
fn word_at(domain: &Domain, port: Port) -> Option<FrameAddr> {
    let page = domain.fifo.array.get(usize::try_from(port.0 / fifo::WORDS_PER_PAGE).ok()?)?;
    let offset = usize::try_from(port.0 % fifo::WORDS_PER_PAGE).ok()?.wrapping_mul(4);
    FrameAddr::new(place(page)?.frame(), offset)
}

/// The aligned pair of words with this one, and where in it the word is.
fn pair(at: FrameAddr) -> (FrameAddr, u32) {
    let first = FrameAddr::new(at.frame(), at.offset() & !7).unwrap_or(at);
    (first, if at.offset() & 4 == 0 { 0 } else { 32 })
}

/// Sets bits of a word; the word before.
fn set<H: Hardware>(hw: &H, at: FrameAddr, bits: u32) -> Result<u32, Contended> {
    let (pair, shift) = pair(at);
    let before = hw.or_u64(pair, u64::from(bits).wrapping_shl(shift))?;
    Ok(low(before.wrapping_shr(shift)))
}

/// Clears bits of a word; the word before.
fn clear<H: Hardware>(hw: &H, at: FrameAddr, bits: u32) -> Result<u32, Contended> {
    let (pair, shift) = pair(at);
    let before = hw.clear_u64(pair, u64::from(bits).wrapping_shl(shift))?;
    Ok(low(before.wrapping_shr(shift)))
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half is meant")]
const fn low(pair: u64) -> u32 {
    pair as u32
}

/// Why an event is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    /// It happened.
    Event,
    /// It is unmasked.
    Unmask,
}

/// What a linked event asks for.
#[derive(Default)]
struct Linked {
    /// Those that poll for it are to be woken.
    wakes: bool,
    /// The vCPU has to look at a queue that it took for empty.
    tells: bool,
}

/// Marks an event pending and puts it into its queue, as far as masks let it, and tells the vCPU and those that poll.
#[cold]
#[inline(never)]
pub(super) fn set_pending<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    domain: &Domain,
    port: Port,
    vcpu: u16,
) {
    act(machine, current, domain, port, vcpu, Why::Event);
}

/// Unmasks an event; one that is pending is linked again.
pub(super) fn unmask<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    domain: &Domain,
    port: Port,
    vcpu: u16,
) {
    act(machine, current, domain, port, vcpu, Why::Unmask);
}

fn act<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    domain: &Domain,
    port: Port,
    vcpu: u16,
    why: Why,
) {
    let Some(target) = domain.vcpu(u32::from(vcpu)) else { return };
    match link(machine, domain, port, target, why) {
        Err(Contended) => deliver::word_contended(machine, current, domain),
        Ok(linked) => {
            // A vCPU without a `vcpu_info` misses nothing: registering one tells it to look.
            if let Some(info) = target.info_at().filter(|_| linked.tells) {
                deliver::mark_upcall(machine, current, domain, target, info);
            }
            // Looked at after the pending bit is set: a vCPU that begins to poll looks at that bit after it has said so.
            if linked.wakes {
                deliver::wake_polling(machine, current, domain, port);
            }
        }
    }
}

fn link<H: Hardware>(
    machine: &Machine<H>,
    domain: &Domain,
    port: Port,
    target: &Vcpu,
    why: Why,
) -> Result<Linked, Contended> {
    let hw = &machine.hw;
    let _queue = domain.fifo.queue.lock();
    let Some(at) = word_at(domain, port) else {
        if why == Why::Event && is_used(domain) && !crate::seeded!("fifo-early") {
            deliver::keep(machine, domain, port)?;
        }
        return Ok(Linked::default());
    };
    if why == Why::Unmask && clear(hw, at, fifo::MASKED)? & fifo::PENDING == 0 {
        return Ok(Linked::default());
    }
    // A guest unmasks nothing for a vCPU before that has a control block: the event is lost, as in Xen.
    let control = place(&target.queues.control);
    let control =
        if crate::seeded!("xsa-107") { control.or(Mfn::new(0).map(FrameAddr::start)) } else { control };
    let Some(control) = control else { return Ok(Linked::default()) };
    let before = set(hw, at, fifo::PENDING)?;
    let linked = Linked { wakes: before & fifo::PENDING == 0, tells: false };
    // A guest that unmasks later finds it pending, and asks for it (`unmask`).
    let masked = before & fifo::MASKED != 0 && !crate::seeded!("fifo-masked");
    if masked || set(hw, at, fifo::LINKED)? & fifo::LINKED != 0 {
        return Ok(linked);
    }
    let (priority, last) = port::queue_of(domain, port);
    let number = low_u16(port.0);
    // If it was the tail where it was last, that queue is empty: it was LINKED no more. Nothing may be linked behind it there.
    let was_in = domain.vcpu(last.vcpu).and_then(|vcpu| tail(vcpu, last.priority));
    if let Some(tail) = was_in.filter(|tail| tail.load(Ordering::Relaxed) == number)
        && !crate::seeded!("fifo-old-tail")
    {
        tail.store(0, Ordering::Relaxed);
    }
    port::set_last(domain, port, port::Queue { vcpu: target.number, priority });
    let Some(tail) = tail(target, priority) else { return Ok(linked) };
    let behind = match tail.swap(number, Ordering::Relaxed) {
        0 => None,
        before => word_at(domain, Port(u32::from(before))),
    };
    if let Some(behind) = behind
        && set_link(hw, behind, port)?
    {
        return Ok(Linked { tells: crate::seeded!("fifo-told-twice"), ..linked });
    }
    let head =
        usize::try_from(priority).unwrap_or(0).wrapping_mul(4).wrapping_add(offset_of!(ControlBlock, head));
    if let Some(head) = FrameAddr::new(control.frame(), control.offset().wrapping_add(head)) {
        // One store of the word, whole; nobody else writes it.
        hw.compare_exchange_u32(head, hw.load_u32(head), port.0)?;
    }
    let ready = 1_u32.wrapping_shl(priority);
    Ok(Linked { tells: set(hw, control, ready)? & ready == 0, ..linked })
}

fn tail(vcpu: &Vcpu, priority: u32) -> Option<&AtomicU16> {
    vcpu.queues.tails.get(usize::try_from(priority).ok()?)
}

/// A port, which is below 4096.
fn low_u16(port: u32) -> u16 {
    u16::try_from(port).unwrap_or(0)
}

/// Writes a link into a word that is LINKED; false when it is not. Six tries at most: a guest that changes the word more often than it may
/// loses the event.
fn set_link<H: Hardware>(hw: &H, at: FrameAddr, port: Port) -> Result<bool, Contended> {
    let mut seen = hw.load_u32(at);
    for attempt in 0..if crate::seeded!("fifo-impatient") { 2 } else { 6 } {
        if seen & fifo::LINKED == 0 {
            if attempt != 0 {
                clear(hw, at, fifo::BUSY)?;
            }
            return Ok(false);
        }
        if crate::seeded!("fifo-link-race") {
            let now = hw.load_u32(at);
            hw.compare_exchange_u32(at, now, seen & !fifo::LINK_MASK | port.0)?;
            return Ok(true);
        }
        let before = hw.compare_exchange_u32(at, seen, seen & !(fifo::BUSY | fifo::LINK_MASK) | port.0)?;
        if before == seen {
            return Ok(true);
        }
        // From here on the guest does not unmask it.
        seen = if attempt == 0 { set(hw, at, fifo::BUSY)? | fifo::BUSY } else { before };
    }
    if !crate::seeded!("fifo-busy-kept") {
        clear(hw, at, fifo::BUSY)?;
    }
    Ok(true)
}

/// Takes an event's pending bit away: its port is being closed. What is in a queue stays there until the guest takes it out.
pub(super) fn clear_pending<H: Hardware>(hw: &H, domain: &Domain, port: Port) -> Result<(), Contended> {
    let _queue = domain.fifo.queue.lock();
    word_at(domain, port).map_or(Ok(()), |at| clear(hw, at, fifo::PENDING).map(drop))
}

/// Whether an event is pending.
pub(super) fn is_pending<H: Hardware>(hw: &H, domain: &Domain, port: Port) -> bool {
    word_at(domain, port).is_some_and(|at| hw.load_u32(at) & fifo::PENDING != 0)
}

/// Whether an event is in a queue still: its port is not given out anew. The caller holds the domain's lock.
pub(super) fn is_busy<H: Hardware>(hw: &H, domain: &Domain, port: Port) -> bool {
    let linked = word_at(domain, port).is_some_and(|at| hw.load_u32(at) & fifo::LINKED != 0);
    linked && !crate::seeded!("fifo-busy-port")
}

/// Takes a reference to a page of the domain's RAM. The caller holds the domain's lock.
fn hold<H: Hardware>(machine: &Machine<H>, domain: &Domain, gfn: u64) -> Result<Mfn, Errno> {
    let mfn = own_ram(machine, domain, gfn).ok_or(Errno::Einval)?;
    if !crate::seeded!("fifo-unreferenced") {
        machine.frames.table.reference(mfn, domain.id).map_err(|_| Errno::Einval)?;
    }
    Ok(mfn)
}

/// Gives a vCPU its control block; the first one of a domain ends its two levels.
pub(super) fn init_control<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    asked: &InitControl,
) -> Result<InitControl, Errno> {
    let domain = current.domain;
    let vcpu = domain.vcpu(asked.vcpu).ok_or(Errno::Enoent)?;
    let offset = usize::try_from(asked.offset).map_err(|_| Errno::Einval)?;
    if offset > fifo::CONTROL_BLOCK_LAST || !offset.is_multiple_of(8) {
        return Err(Errno::Einval);
    }
    let _state = domain.state.lock();
    if place(&vcpu.queues.control).is_some() {
        return Err(Errno::Einval);
    }
    let mfn = hold(machine, domain, asked.control_gfn)?;
    let _queue = domain.fifo.queue.lock();
    if let Some(at) = FrameAddr::new(mfn, offset) {
        vcpu.queues.control.store(at.pa().get(), Ordering::Release);
    }
    if !is_used(domain) {
        domain.fifo.pages.store(1, Ordering::Release);
        port::adopt_all(domain);
    }
    Ok(InitControl { link_bits: fifo::LINK_BITS, ..*asked })
}

/// Adds a page to the array. [`raise_kept`] comes next.
pub(super) fn expand_array<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    gfn: u64,
) -> Result<(), Errno> {
    let domain = current.domain;
    let _state = domain.state.lock();
    let pages = domain.fifo.pages.load(Ordering::Relaxed);
    let index = pages.checked_sub(1).ok_or(Errno::Eopnotsupp)?;
    if index >= fifo::MAX_PAGES {
        return Err(Errno::Enospc);
    }
    let mfn = hold(machine, domain, gfn)?;
    // Who looked for the page before has kept its event by now, so that `raise_kept` finds it.
    let _queue = (!crate::seeded!("fifo-page-unlocked")).then(|| domain.fifo.queue.lock());
    match usize::try_from(index).ok().and_then(|index| domain.fifo.array.get(index)) {
        Some(page) => page.store(mfn.base().get(), Ordering::Release),
        // There can be no port there: nothing is ever written to it.
        None => {
            let _ = machine.frames.table.release(mfn);
        }
    }
    domain.fifo.pages.store(pages.wrapping_add(1), Ordering::Release);
    Ok(())
}

/// Raises events that were kept because their array page was not there; false when there are more than the budget.
pub(super) fn raise_kept<H: Hardware>(machine: &Machine<H>, current: &Current<'_>) -> bool {
    let domain = current.domain;
    let mut budget = machine.hw.budget(BUDGET);
    for first in (0..NR_CHANNELS_2L).step_by(64) {
        if word_at(domain, Port(first)).is_none() {
            continue;
        }
        // A bit a turn.
        let mut bits = deliver::kept(machine, domain, Port(first));
        while bits != 0 {
            let port = Port(first.wrapping_add(bits.trailing_zeros()));
            bits &= bits.wrapping_sub(1);
            let word = port::load(domain, port);
            if word.kind == PortKind::Free {
                continue;
            }
            let Some(rest) = budget.checked_sub(1) else { return false };
            budget = rest;
            if deliver::forget_kept(machine, domain, port).is_err() {
                deliver::word_contended(machine, current, domain);
                return true;
            }
            set_pending(machine, current, domain, port, word.vcpu);
        }
    }
    true
}

/// Chooses the queue of a port's next events.
pub(super) fn set_priority(current: &Current<'_>, asked: SetPriority) -> Result<(), Errno> {
    let domain = current.domain;
    let _state = domain.state.lock();
    let word = port::find(domain, asked.port)?;
    if !is_used(domain) {
        return Err(Errno::Enosys);
    }
    if word.kind == PortKind::Free {
        return Err(Errno::Eacces);
    }
    if asked.priority > fifo::PRIORITY_MIN {
        return Err(Errno::Einval);
    }
    port::set_priority(domain, asked.port, asked.priority);
    Ok(())
}

/// Goes back to two levels, now that all ports are closed. The caller holds the domain's lock.
pub(super) fn leave<H: Hardware>(machine: &Machine<H>, domain: &Domain) {
    if is_used(domain) {
        forget(machine, domain);
    }
}

/// Lets go of a domain's pages: they are its own again. The caller holds its lock.
pub(crate) fn forget<H: Hardware>(machine: &Machine<H>, domain: &Domain) {
    let _queue = domain.fifo.queue.lock();
    domain.fifo.pages.store(0, Ordering::Release);
    for at in places(domain) {
        if let Some(held) = place(at) {
            at.store(0, Ordering::Release);
            if crate::seeded!("fifo-reset-held") {
                continue;
            }
            // It was taken by `hold`.
            let _ = machine.frames.table.release(held.frame());
        }
    }
    for tail in domain.vcpus.iter().flat_map(|vcpu| &vcpu.queues.tails) {
        tail.store(0, Ordering::Relaxed);
    }
}
