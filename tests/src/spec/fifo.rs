//! Event channels by FIFO queues, in two views that are held against each other.
//!
//! What stands in the guest's words after each call is told as the interface defines them (`public/event_channel.h`, `struct
//! evtchn_fifo_control_block`). The words are in [`Spec::bytes`] like all memory: whatever somebody writes there is followed, and what a hostile
//! guest makes of it is specified too.
//!
//! What it is all for is told by `Promise`, which knows no words: each queue is a list of ports. A guest that takes its events as the interface
//! tells it to gets each once, the most urgent first and of one urgency in order, and is told when there are some. It holds for as long as nobody
//! writes otherwise into the pages ([`Spec::overwritten`]).
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use pv_abi::Errno;

use super::{Dom, Frame, Gfn, InfoAt, Spec};

/// Bits of a word.
pub const PENDING: u32 = 1 << 31;
/// See [`PENDING`].
pub const MASKED: u32 = 1 << 30;
/// See [`PENDING`].
pub const LINKED: u32 = 1 << 29;
/// See [`PENDING`].
pub const BUSY: u32 = 1 << 28;
/// The next port of a queue.
pub const LINK: u32 = (1 << 17) - 1;
/// Words of a page.
const WORDS: u32 = 1024;
/// Pages that a guest may give, and those in which there can be a port: 4096 are all that there are (ours).
const PAGES: (u32, usize) = (128, 4);
/// Bytes of a control block: the bits of queues that have something, nothing, the first port of each queue.
const BLOCK: u16 = 72;
const HEADS: u16 = 8;
/// The priority of a new port, and the last.
const PRIORITIES: (u32, u32) = (7, 15);

/// A queue: whose vCPU's, and its priority.
type Queue = (u32, u32);

/// A domain's queues.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Fifo {
    /// Pages of the array in which there can be a port.
    pub array: Vec<Frame>,
    /// All that were given.
    pages: u32,
    /// Control blocks, by vCPU.
    pub controls: BTreeMap<u32, (Frame, u16)>,
    /// The port that was put into each queue last.
    tails: BTreeMap<Queue, u32>,
    /// The queue into which each port was put last.
    last: BTreeMap<u32, Queue>,
    /// Ports that have not the priority of a new one.
    priorities: BTreeMap<u32, u32>,
    /// What the guest can rely on, while nobody else wrote its words.
    promise: Option<Promise>,
}

/// What a guest that keeps to the interface can rely on.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Promise {
    pending: BTreeSet<u32>,
    masked: BTreeSet<u32>,
    queues: BTreeMap<Queue, VecDeque<u32>>,
}

impl Promise {
    fn is_queued(&self, port: u32) -> bool {
        self.queues.values().any(|queue| queue.contains(&port))
    }

    fn arrive(&mut self, port: u32, queue: Queue) {
        self.pending.insert(port);
        if !self.masked.contains(&port) && !self.is_queued(port) {
            self.queues.entry(queue).or_default().push_back(port);
        }
    }

    /// The port that comes first for a vCPU, and whether there is an event to be handled.
    fn take(&mut self, vcpu: u32) -> Option<(u32, bool)> {
        let (_, queue) = self.queues.iter_mut().find(|((of, _), queue)| *of == vcpu && !queue.is_empty())?;
        let port = queue.pop_front()?;
        Some((port, !self.masked.contains(&port) && self.pending.remove(&port)))
    }

    /// The word of a port.
    fn word(&self, port: u32) -> u32 {
        let bit = |set: bool, bit: u32| if set { bit } else { 0 };
        let linked = self.queues.values().find_map(|queue| {
            let at = queue.iter().position(|queued| *queued == port)?;
            Some(LINKED | queue.get(at + 1).copied().unwrap_or(0))
        });
        bit(self.pending.contains(&port), PENDING)
            | bit(self.masked.contains(&port), MASKED)
            | linked.unwrap_or(0)
    }
}

impl Fifo {
    /// The frames that are held for it, as often as they are.
    pub fn frames(&self) -> impl Iterator<Item = Frame> + '_ {
        self.array.iter().copied().chain(self.controls.values().map(|(frame, _)| *frame))
    }

    /// Where a port's word is, if its page has come.
    pub fn word_at(&self, port: u32) -> Option<(Frame, u16)> {
        let page = self.array.get((port / WORDS) as usize)?;
        Some((*page, u16::try_from(port % WORDS * 4).expect("inside a page")))
    }

    fn priority(&self, port: u32) -> u32 {
        self.priorities.get(&port).copied().unwrap_or(PRIORITIES.0)
    }

    /// Whether a page that comes to it can be relied on: it is empty there, and not in use for something else.
    fn is_fresh(&self, frame: Frame, bytes: &[u8], at: Option<u16>) -> bool {
        let range = at.map_or(0..4096, |at| usize::from(at)..usize::from(at + BLOCK));
        let apart = |(other, offset): &(Frame, u16)| {
            *other != frame || at.is_some_and(|at| at.abs_diff(*offset) >= BLOCK)
        };
        bytes[range].iter().all(|byte| *byte == 0)
            && !self.array.contains(&frame)
            && self.controls.values().all(apart)
    }
}

impl Spec {
    /// A word of memory that is known.
    pub fn half(&self, (frame, offset): (Frame, u16)) -> u32 {
        let bytes = &self.bytes[&frame][usize::from(offset)..][..4];
        u32::from_le_bytes(bytes.try_into().expect("four"))
    }

    /// Changes a word of memory that is known; what was there.
    pub fn change_half(&mut self, at: (Frame, u16), change: impl FnOnce(u32) -> u32) -> u32 {
        let before = self.half(at);
        let bytes = self.bytes.get_mut(&at.0).expect("it is known");
        bytes[usize::from(at.1)..][..4].copy_from_slice(&change(before).to_le_bytes());
        before
    }

    /// Whether a frame of a domain's holds words of queues.
    pub fn holds_queues(&self, frame: Frame) -> bool {
        self.domains
            .values()
            .filter_map(|domain| domain.fifo.as_ref())
            .any(|fifo| fifo.frames().any(|of| of == frame))
    }

    /// Somebody wrote into a frame otherwise than the interface of queues tells.
    pub fn overwritten(&mut self, frame: Frame) {
        for fifo in self.domains.values_mut().filter_map(|domain| domain.fifo.as_mut()) {
            if fifo.frames().any(|of| of == frame) {
                fifo.promise = None;
            }
        }
    }

    /// A guest does not do what it must to be told of its events.
    pub fn misses(&mut self, id: Dom) {
        if let Some(fifo) = &mut self.of_mut(id).fifo {
            fifo.promise = None;
        }
    }

    fn fifo_mut(&mut self, id: Dom) -> &mut Fifo {
        self.of_mut(id).fifo.as_mut().expect("it has queues")
    }

    /// A port's word, for a domain that uses queues and has given its page.
    pub fn word_of(&self, id: Dom, port: u32) -> Option<(Frame, u16)> {
        self.of(id).fifo.as_ref()?.word_at(port)
    }

    /// Whether a port is in a queue still.
    pub(super) fn is_busy(&self, id: Dom, port: u32) -> bool {
        self.word_of(id, port).is_some_and(|at| self.half(at) & LINKED != 0)
    }

    /// A page that the hypervisor will hold.
    fn page(&self, who: Dom, gfn: Gfn) -> Result<Frame, Errno> {
        let frame = self.ram_at(who, gfn).ok_or(Errno::Einval)?;
        if self.references(who, frame) >= self.most_references { Err(Errno::Einval) } else { Ok(frame) }
    }

    /// `EVTCHNOP_init_control`: the first one of a domain ends its two levels.
    ///
    /// # Errors
    /// As the call.
    pub fn init_control(&mut self, who: Dom, vcpu: u32, gfn: Gfn, offset: u32) -> Result<(), Errno> {
        self.vcpu_exists(who, vcpu)?;
        let offset = u16::try_from(offset).map_err(|_| Errno::Einval)?;
        let fits = offset <= 4096 - BLOCK && offset.is_multiple_of(8);
        let has = self.of(who).fifo.as_ref().is_some_and(|fifo| fifo.controls.contains_key(&vcpu));
        if !fits || has {
            return Err(Errno::Einval);
        }
        let frame = self.page(who, gfn)?;
        let (domain, bytes) = (self.domains.get_mut(&who).expect("it exists"), &self.bytes[&frame]);
        let begins = || Fifo { promise: Some(Promise::default()), ..Fifo::default() };
        let fifo = domain.fifo.get_or_insert_with(begins);
        if !fifo.is_fresh(frame, bytes, Some(offset)) {
            fifo.promise = None;
        }
        fifo.controls.insert(vcpu, (frame, offset));
        Ok(())
    }

    /// `EVTCHNOP_expand_array`: events that were kept for the page are raised.
    ///
    /// # Errors
    /// As the call.
    pub fn expand_array(&mut self, who: Dom, gfn: Gfn) -> Result<(), Errno> {
        let fifo = self.of(who).fifo.as_ref().ok_or(Errno::Eopnotsupp)?;
        if fifo.pages >= PAGES.0 {
            return Err(Errno::Enospc);
        }
        let frame = self.page(who, gfn)?;
        let (domain, bytes) = (self.domains.get_mut(&who).expect("it exists"), &self.bytes[&frame]);
        let fifo = domain.fifo.as_mut().expect("it was looked at");
        fifo.pages += 1;
        if fifo.array.len() < PAGES.1 {
            if !fifo.is_fresh(frame, bytes, None) {
                fifo.promise = None;
            }
            fifo.array.push(frame);
        }
        let kept: Vec<u32> = domain.pending.iter().copied().collect();
        for port in kept {
            let domain = self.of_mut(who);
            if domain.ports.contains_key(&port) && self.word_of(who, port).is_some() {
                self.of_mut(who).pending.remove(&port);
                self.raise(who, port);
            }
        }
        Ok(())
    }

    /// `EVTCHNOP_set_priority`: of the port's next events.
    ///
    /// # Errors
    /// As the call.
    pub fn set_priority(&mut self, who: Dom, port: u32, priority: u32) -> Result<(), Errno> {
        let found = self.named(who, port)?;
        let fifo = self.of_mut(who).fifo.as_mut().ok_or(Errno::Enosys)?;
        found.ok_or(Errno::Eacces)?;
        if priority > PRIORITIES.1 {
            return Err(Errno::Einval);
        }
        fifo.priorities.insert(port, priority);
        Ok(())
    }

    /// An event arrives at a port of a domain that uses queues.
    pub(super) fn raise_queued(&mut self, id: Dom, port: u32) {
        let (_, vcpu) = self.of(id).ports[&port];
        let Some(at) = self.word_of(id, port) else {
            // Kept until the page comes.
            self.of_mut(id).pending.insert(port);
            return;
        };
        let Some(control) = self.of(id).fifo.as_ref().and_then(|fifo| fifo.controls.get(&vcpu)).copied()
        else {
            // Lost. Who unmasks an event that is pending, and cannot be told, is told never.
            if self.half(at) & (PENDING | MASKED | LINKED) == PENDING {
                self.misses(id);
            }
            return;
        };
        let before = self.change_half(at, |word| word | PENDING);
        if before & PENDING == 0 {
            self.wake_pollers(id, port);
        }
        let fifo = self.fifo_mut(id);
        let queue = (vcpu, fifo.priority(port));
        if let Some(promise) = &mut fifo.promise {
            promise.arrive(port, queue);
        }
        if before & (MASKED | LINKED) != 0 {
            return;
        }
        // It was in no queue. Where it was the last, nothing is put behind it any more.
        let was = fifo.last.insert(port, queue).unwrap_or_default();
        if fifo.tails.get(&was) == Some(&port) {
            fifo.tails.remove(&was);
        }
        let before = fifo.tails.insert(queue, port).and_then(|tail| fifo.word_at(tail));
        self.change_half(at, |word| word | LINKED);
        if let Some(tail) = before.filter(|at| self.half(*at) & LINKED != 0) {
            if self.hopeless {
                self.change_half(tail, |word| word & !BUSY);
                return self.misses(id);
            }
            self.change_half(tail, |word| word & !(LINK | BUSY) | port);
            return;
        }
        let (frame, offset) = control;
        let index = u16::try_from(queue.1).expect("a priority");
        self.change_half((frame, offset + HEADS + 4 * index), |_| port);
        let ready = 1 << queue.1;
        if self.change_half(control, |word| word | ready) & ready == 0 {
            self.mark_upcall(id, vcpu);
        }
    }

    /// The port, and its word, behind which the event of a port would be put if it arrived now.
    pub fn behind(&self, id: Dom, port: u32) -> Option<(u32, (Frame, u16))> {
        let at = self.word_of(id, port).filter(|at| self.half(*at) & (MASKED | LINKED) == 0)?;
        let (_, vcpu) = self.of(id).ports.get(&port)?;
        let fifo = self.of(id).fifo.as_ref().filter(|fifo| fifo.controls.contains_key(vcpu))?;
        let tail = *fifo.tails.get(&(*vcpu, fifo.priority(port)))?;
        let word = fifo.word_at(tail).filter(|word| *word != at && self.half(*word) & LINKED != 0)?;
        Some((tail, word))
    }

    /// `EVTCHNOP_unmask` where queues are used.
    pub(super) fn unmask_queued(&mut self, id: Dom, port: u32) {
        let Some(at) = self.word_of(id, port) else { return };
        let before = self.change_half(at, |word| word & !MASKED);
        if let Some(promise) = &mut self.fifo_mut(id).promise {
            promise.masked.remove(&port);
        }
        if before & PENDING != 0 {
            self.raise_queued(id, port);
        }
    }

    /// A port is closed: its event is not pending any more, and stays in its queue.
    pub(super) fn clear_queued(&mut self, id: Dom, port: u32) {
        if let Some(at) = self.word_of(id, port) {
            self.change_half(at, |word| word & !PENDING);
        }
        if let Some(fifo) = &mut self.of_mut(id).fifo {
            fifo.priorities.remove(&port);
            if let Some(promise) = &mut fifo.promise {
                promise.pending.remove(&port);
            }
        }
    }

    /// The guest masks a port, or unmasks one that is not pending, as the interface lets it.
    pub fn guest_masks(&mut self, id: Dom, port: u32, masks: bool) {
        if let Some(promise) = &mut self.fifo_mut(id).promise {
            if masks {
                promise.masked.insert(port);
            } else {
                promise.masked.remove(&port);
            }
        }
    }

    /// The guest took a port out of a vCPU's queues, and an event to be handled with it, or not; or found nothing there. Whether it could rely on that.
    ///
    /// # Errors
    /// It is not what it can rely on.
    pub fn guest_took(&mut self, id: Dom, vcpu: u32, found: Option<(u32, bool)>) -> Result<bool, String> {
        let Some(promise) = &mut self.fifo_mut(id).promise else { return Ok(false) };
        let promised = promise.take(vcpu);
        if found == promised {
            Ok(true)
        } else {
            Err(format!("vCPU {vcpu} takes {found:?} from its queues, promised {promised:?}"))
        }
    }

    /// What the guest can rely on is what its words say. `asleep` are the vCPUs that are not taking events right now: they must have been told of theirs.
    ///
    /// # Errors
    /// The first word that says otherwise.
    pub fn check_queues(&self, id: Dom, asleep: &[u32]) -> Result<(), String> {
        let domain = self.of(id);
        let Some((fifo, promise)) =
            domain.fifo.as_ref().and_then(|fifo| Some((fifo, fifo.promise.as_ref()?)))
        else {
            return Ok(());
        };
        let known = (1..domain.known_ports).filter_map(|port| Some((port, fifo.word_at(port)?)));
        for (port, at) in known {
            let (found, promised) = (self.half(at), promise.word(port));
            if found != promised {
                return Err(format!(
                    "specification: domain {id}: the word of port {port} is {found:#x}, promised {promised:#x}"
                ));
            }
        }
        for ((vcpu, priority), queue) in &promise.queues {
            let told = &domain.vcpus[*vcpu as usize];
            let is_told = !asleep.contains(vcpu) || told.upcall || told.info == InfoAt::Nowhere;
            if !queue.is_empty() && !is_told {
                return Err(format!(
                    "specification: domain {id}: vCPU {vcpu} is not told of priority {priority}"
                ));
            }
        }
        Ok(())
    }
}
