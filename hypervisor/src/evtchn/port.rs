//! A port as one word, so that a sender reads it at once and without a lock; and which ports are free.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]
#![expect(
    clippy::inline_always,
    reason = "on the path of every hypercall: a call more would be seen in the numbers"
)]

use core::sync::atomic::{AtomicU64, Ordering};

use pv_abi::event::{NR_CHANNELS_2L, NR_VIRQS, Virq, fifo as abi};
use pv_abi::{DomId, Errno, Port};

use super::fifo;
use crate::domain::Domain;
use crate::hardware::Hardware;

/// What a port is connected to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PortKind {
    /// Not in use.
    Free,
    /// Waits for this domain to bind.
    Unbound(DomId),
    /// Connected to a port of a domain.
    Interdomain(DomId, Port),
    /// Bound to a virtual interrupt.
    Virq(u16),
    /// Notifies its own domain.
    Ipi,
}

/// A port whose other end is the hypervisor itself: the PV console's.
pub(super) const CONSOLE: PortKind = PortKind::Interdomain(DomId::XEN, Port(0));

/// A port: what it is connected to and the vCPU it notifies.
///
/// Bits: kind 2:0, vCPU 23:8, domain or virq 39:24, remote port 56:40. All zero is a port that was never in use.
///
/// Ports of a domain that uses FIFO queues have bit 3 while they are not free, their priority in 7:4, and in 63:57 the queue where they
/// were last. What stores a port keeps these, and nobody else looks at them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortWord {
    /// What it is connected to.
    pub kind: PortKind,
    /// Number of the vCPU in the port's domain that is notified.
    pub vcpu: u16,
}

const UNUSED: u64 = 0;
const UNBOUND: u64 = 1;
const INTERDOMAIN: u64 = 2;
const VIRQ: u64 = 3;
const IPI: u64 = 4;
const FREE: u64 = 5;
const KIND_MASK: u64 = 7;
const VCPU_SHIFT: u32 = 8;
const PEER_SHIFT: u32 = 24;
const PORT_SHIFT: u32 = 40;
const FIFO: u64 = 1 << 3;
const PRIORITY_SHIFT: u32 = 4;
const PRIORITY_MASK: u64 = 15 << PRIORITY_SHIFT;
const LAST_SHIFT: u32 = 57;
const LAST_MASK: u64 = !0 << LAST_SHIFT;
const VCPU_MASK: u64 = 0xFFFF << VCPU_SHIFT;
/// What says to which end of which channel a port is connected, and how it is told.
const END_MASK: u64 = !(LAST_MASK | VCPU_MASK | PRIORITY_MASK);

/// Ports come into being by so many at a time: Xen refuses to name one beyond the last group in which one was ever in use
/// (`EVTCHNS_PER_BUCKET`, a page of 64-byte structures).
const GROUP: u32 = 64;

// A remote port fits its field.
const _: () = assert!((NR_CHANNELS_2L as u64) < 1 << (LAST_SHIFT - PORT_SHIFT));

impl PortWord {
    /// A port that is not in use.
    pub const FREE: Self = Self { kind: PortKind::Free, vcpu: 0 };

    /// The word as stored.
    #[inline]
    pub fn pack(self) -> u64 {
        let (kind, peer, port) = match self.kind {
            PortKind::Free => (FREE, 0, 0),
            PortKind::Unbound(dom) => (UNBOUND, dom.0, 0),
            PortKind::Interdomain(dom, port) => (INTERDOMAIN, dom.0, port.0),
            PortKind::Virq(virq) => (VIRQ, virq, 0),
            PortKind::Ipi => (IPI, 0, 0),
        };
        kind | u64::from(self.vcpu) << VCPU_SHIFT
            | u64::from(peer) << PEER_SHIFT
            | u64::from(port) << PORT_SHIFT
    }

    /// Decodes a stored word.
    #[inline(always)]
    pub fn unpack(word: u64) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "fields of the word are cut out")]
        let (vcpu, peer, port) = (
            (word >> VCPU_SHIFT) as u16,
            (word >> PEER_SHIFT) as u16,
            Port((word >> PORT_SHIFT) as u32 & abi::LINK_MASK),
        );
        let kind = match word & KIND_MASK {
            UNBOUND => PortKind::Unbound(DomId(peer)),
            INTERDOMAIN => PortKind::Interdomain(DomId(peer), port),
            VIRQ => PortKind::Virq(peer),
            IPI => PortKind::Ipi,
            // FREE, UNUSED; nothing else is ever stored.
            _ => PortKind::Free,
        };
        Self { kind, vcpu }
    }

    /// The same port, notifying another vCPU.
    #[must_use]
    pub const fn notifying(self, vcpu: u16) -> Self {
        Self { kind: self.kind, vcpu }
    }
}

/// The place of a port's word, if the domain may have such a port.
#[inline(always)]
fn cell(domain: &Domain, port: Port) -> Option<&AtomicU64> {
    domain.ports.get(usize::try_from(port.0).ok()?)
}

/// What a port is connected to, [`PortWord::FREE`] for one that does not exist: all that a sender asks.
#[inline(always)]
pub(super) fn load(domain: &Domain, port: Port) -> PortWord {
    PortWord::unpack(raw(domain, port))
}

/// A port's word; 0 for one that does not exist.
#[inline(always)]
pub(super) fn raw(domain: &Domain, port: Port) -> u64 {
    cell(domain, port).map_or(UNUSED, |cell| cell.load(Ordering::Acquire))
}

/// Whether a port is told of events by a queue.
#[inline(always)]
pub(super) const fn is_fifo(word: u64) -> bool {
    word & FIFO != 0
}

/// What a word is to a port of which it may be the other end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// It is the other end, and is told in two levels.
    TwoLevel,
    /// It is the other end, and is told by a queue.
    Fifo,
    /// It is connected to something else.
    Gone,
}

/// Whether `word` is the other end of the channel at `port` of domain `dom`.
#[inline(always)]
pub(super) fn end_of(word: u64, dom: DomId, port: Port) -> End {
    let expected = INTERDOMAIN | u64::from(dom.0) << PEER_SHIFT | u64::from(port.0) << PORT_SHIFT;
    match (word ^ expected) & END_MASK {
        0 => End::TwoLevel,
        FIFO => End::Fifo,
        _ => End::Gone,
    }
}

/// A queue of a domain's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Queue {
    /// Number of the vCPU.
    pub(super) vcpu: u32,
    /// Its priority.
    pub(super) priority: u32,
}

/// The priority of a port's next event, and the queue in which it was last.
pub(super) fn queue_of(domain: &Domain, port: Port) -> (u32, Queue) {
    let word = raw(domain, port);
    let (priority, last) = (((word & PRIORITY_MASK) >> PRIORITY_SHIFT) as u32, (word >> LAST_SHIFT) as u32);
    (priority, Queue { vcpu: last >> 4, priority: last & 15 })
}

/// Notes the queue in which a port is. The caller holds the lock of the queues.
pub(super) fn set_last(domain: &Domain, port: Port, queue: Queue) {
    let last = u64::from((queue.vcpu & 7) << 4 | queue.priority & 15) << LAST_SHIFT;
    change(domain, port, LAST_MASK, last);
}

/// Chooses the queue of a port's next events. The caller holds the domain's lock.
pub(super) fn set_priority(domain: &Domain, port: Port, priority: u32) {
    let _queue = domain.fifo.lock_used();
    change(domain, port, PRIORITY_MASK, u64::from(priority & 15) << PRIORITY_SHIFT);
}

/// Changes a field of a word. The caller holds the lock of the queues.
fn change(domain: &Domain, port: Port, field: u64, value: u64) {
    if let Some(cell) = cell(domain, port) {
        cell.store(cell.load(Ordering::Relaxed) & !field | value, Ordering::Release);
    }
}

/// Lets the ports that are in use be told by queues. The caller holds the domain's lock and that of the queues. Linear in the ports that it may
/// have.
pub(super) fn adopt_all(domain: &Domain) {
    for cell in domain.ports {
        let word = cell.load(Ordering::Relaxed);
        if PortWord::unpack(word).kind != PortKind::Free {
            cell.store(adopted(word), Ordering::Release);
        }
    }
}

/// A port that begins to be told by queues.
const fn adopted(word: u64) -> u64 {
    word & !PRIORITY_MASK | FIFO | (abi::PRIORITY_DEFAULT as u64) << PRIORITY_SHIFT
}

/// What a port is connected to.
///
/// # Errors
/// `-EINVAL` for a port that no operation may name yet.
#[inline]
pub fn find(domain: &Domain, port: Port) -> Result<PortWord, Errno> {
    let word = cell(domain, port).ok_or(Errno::Einval)?.load(Ordering::Acquire);
    if word == UNUSED && port.0 >= GROUP {
        return Err(Errno::Einval);
    }
    Ok(PortWord::unpack(word))
}

/// Ports of a domain that are in use. Linear in the ports that it may have.
pub(crate) fn in_use(domain: &Domain) -> u32 {
    let is_used = |word| PortWord::unpack(word).kind != PortKind::Free;
    let used = domain.ports.iter().filter(|cell| is_used(cell.load(Ordering::Relaxed))).count();
    u32::try_from(used).unwrap_or(u32::MAX)
}

/// Makes all ports of a domain as if none had ever been used; they are closed. Linear in the ports that it may have.
pub(crate) fn forget_all(domain: &Domain, state: &mut PortsState) {
    for cell in domain.ports {
        cell.store(UNUSED, Ordering::Release);
    }
    *state = PortsState::new();
}

/// Changes a port. The caller holds the domain's lock.
pub(super) fn store(domain: &Domain, port: Port, word: PortWord) {
    let Some(cell) = cell(domain, port) else { return };
    let queue = domain.fifo.lock_used();
    let before = cell.load(Ordering::Relaxed);
    let kept = match (&queue, word.kind, PortWord::unpack(before).kind) {
        (None, ..) => 0,
        (Some(_), ..) if crate::seeded!("fifo-priority") => before & (LAST_MASK | PRIORITY_MASK) | FIFO,
        (Some(_), PortKind::Free, _) => before & LAST_MASK,
        (Some(_), _, PortKind::Free) => adopted(before & LAST_MASK),
        (Some(_), ..) => before & (LAST_MASK | PRIORITY_MASK) | FIFO,
    };
    cell.store(word.pack() | kept, Ordering::Release);
}

/// Which ports are free; under the domain's lock.
#[derive(Debug)]
pub struct PortsState {
    /// Every port below is in use: where the search for a free one starts.
    lowest_free: u32,
    /// Ports in use.
    open: u32,
    /// Where each virtual interrupt was bound last ([`virq_index`]): there, or nowhere by now. A domain binds each once at a time.
    virqs: [u16; VIRQS],
    /// Where a reset that is under way goes on; port 0, which is nobody's, when none is.
    resetting: Port,
}

/// The console's virtual interrupt in a port's word.
pub(super) const CONSOLE_VIRQ: u16 = 2;
const _: () = assert!(CONSOLE_VIRQ as u32 == Virq::Console.number());

/// Virtual interrupts that each vCPU has for itself; the others are the domain's.
const PER_VCPU: [Virq; 4] = [Virq::Timer, Virq::Debug, Virq::Xenoprof, Virq::Xenpmu];
const VCPUS: usize = crate::devicetree::MAX_VCPUS as usize;
/// One for each of the domain, then those of its vCPUs.
const VIRQS: usize = NR_VIRQS as usize + PER_VCPU.len() * VCPUS;

/// Which of the four that each vCPU has it is, if it is one.
fn per_vcpu(virq: u32) -> Option<usize> {
    PER_VCPU.iter().position(|each| each.number() == virq)
}

/// Whether each vCPU has it for itself.
pub(super) fn is_per_vcpu(virq: u32) -> bool {
    per_vcpu(virq).is_some()
}

/// Where it is noted at which port a virtual interrupt was bound.
pub(super) fn virq_index(virq: u16, vcpu: u16) -> usize {
    let behind = per_vcpu(virq.into())
        .map(|kind| kind.saturating_mul(VCPUS).saturating_add(vcpu.into()).saturating_add(NR_VIRQS as usize));
    behind.unwrap_or_else(|| virq.into())
}

/// What one run of a search for a free port may cost: a port in use is 1, some 15 instructions, and one that is free but whose last event is still in
/// a queue, as its guest says, 2 more.
const SEARCHED: u32 = 600;
const BUSY: u32 = 2;

/// Why there is no free port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NoPort {
    /// There is none.
    Full,
    /// None was found yet: the search goes on where it is noted.
    Later,
    /// None was found yet that is not busy: the search goes on at this port.
    LaterAt(Port),
}

impl Default for PortsState {
    fn default() -> Self {
        Self::new()
    }
}

impl PortsState {
    /// All ports free, except port 0, which is nobody's.
    pub const fn new() -> Self {
        Self { lowest_free: 1, open: 0, virqs: [0; VIRQS], resetting: Port(0) }
    }

    /// The port at which a virtual interrupt was bound last; 0, which is nobody's, when it never was.
    pub(super) fn virq(&self, index: usize) -> Port {
        Port(self.virqs.get(index).copied().unwrap_or(0).into())
    }

    /// A virtual interrupt has a port.
    pub(super) fn set_virq(&mut self, index: usize, port: Port) {
        if let (Some(slot), Ok(port)) = (self.virqs.get_mut(index), u16::try_from(port.0)) {
            *slot = port;
        }
    }

    /// Ports in use.
    pub(super) const fn open(&self) -> u32 {
        self.open
    }

    /// Where a reset begins or goes on. It is under way from here on.
    ///
    /// # Errors
    /// `-EBUSY` for one that begins while another is under way, or goes on with none.
    pub(super) const fn reset(&mut self, goes_on: bool) -> Result<Port, Errno> {
        match (goes_on, self.resetting) {
            (false, Port(0)) => self.resetting = Port(1),
            (false, _) | (true, Port(0)) => return Err(Errno::Ebusy),
            (true, _) => {}
        }
        Ok(self.resetting)
    }

    /// A reset goes on at `next`, or is over.
    pub(super) fn set_resetting(&mut self, next: Option<Port>) {
        self.resetting = next.unwrap_or(Port(0));
    }

    /// The lowest free port, or, of a search that goes on, the lowest from `from` on. It stays free until something is stored in it.
    ///
    /// # Errors
    /// There is none, or none yet: a run looks at some of them only.
    pub(super) fn lowest_free<H: Hardware>(
        &mut self,
        hw: &H,
        domain: &Domain,
        from: Port,
    ) -> Result<Port, NoPort> {
        let limit = u32::try_from(domain.ports.len()).unwrap_or(u32::MAX).min(NR_CHANNELS_2L);
        let first = self.lowest_free.max(from.0);
        // Those that a search has passed may be free by now: nothing is known of them.
        let known = first == self.lowest_free;
        let (mut lowest, mut found) = (limit, Err(NoPort::Full));
        let mut budget = hw.budget(SEARCHED);
        for number in first..limit {
            let port = Port(number);
            if budget == 0 {
                found = Err(if lowest == limit && known { NoPort::Later } else { NoPort::LaterAt(port) });
                lowest = lowest.min(number);
                break;
            }
            budget = budget.saturating_sub(1);
            if load(domain, port).kind == PortKind::Free {
                lowest = lowest.min(number);
                // One whose last event the guest has not taken out of its queue yet is left alone.
                if !fifo::is_busy(hw, domain, port) {
                    found = Ok(port);
                    break;
                }
                budget = budget.saturating_sub(BUSY);
            }
        }
        if known {
            self.lowest_free = lowest;
        }
        found
    }

    /// Puts a free port to use, and makes its group known.
    pub(super) fn occupy(&mut self, domain: &Domain, port: Port, word: PortWord) {
        let group = (port.0 / GROUP).saturating_mul(GROUP);
        // Groups before it are known too: Xen's are made in order.
        for number in (0..group.saturating_add(GROUP)).rev() {
            let Some(cell) = cell(domain, Port(number)) else { continue };
            if cell
                .compare_exchange(UNUSED, PortWord::FREE.pack(), Ordering::Release, Ordering::Relaxed)
                .is_err()
                && number < group
            {
                break;
            }
        }
        store(domain, port, word);
        self.open = self.open.wrapping_add(1);
    }

    /// Frees a port that is in use.
    pub(super) fn vacate(&mut self, domain: &Domain, port: Port) {
        store(domain, port, PortWord::FREE);
        self.open = self.open.wrapping_sub(1);
        self.lowest_free = self.lowest_free.min(port.0.max(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_survives_the_word() {
        for kind in [
            PortKind::Free,
            PortKind::Unbound(DomId(0x7FF0)),
            PortKind::Interdomain(DomId(0xFFFF), Port(4095)),
            PortKind::Virq(23),
            PortKind::Ipi,
        ] {
            for vcpu in [0, 1, 127, u16::MAX] {
                let word = PortWord { kind, vcpu };
                assert_eq!(PortWord::unpack(word.pack()), word);
            }
        }
    }

    #[test]
    fn an_unused_word_is_a_free_port() {
        assert_eq!(PortWord::unpack(0), PortWord::FREE);
        assert_ne!(PortWord::FREE.pack(), 0);
    }
}
