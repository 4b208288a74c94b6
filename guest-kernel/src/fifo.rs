//! Event channels by FIFO queues, in place of two levels: from [`begin`] to [`end`] channels work as before, but events are taken in the
//! order in which they came, the more urgent ones first ([`set_priority`]).
//!
//! 1. Pages that the hypervisor knows are never freed, and consist of atomics.
//! 2. A queue is emptied by its own vCPU, or by whoever knows that nobody else does.
#![expect(unsafe_code, reason = "gives pages to the hypervisor")]
use alloc::boxed::Box;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use pv_abi::event::fifo::{BUSY, LINK_MASK, LINKED, MASKED, PENDING, QUEUES};
use pv_abi::event::{InitControl, Reset, SetPriority};
use pv_abi::{DomId, Errno, PAGE_SIZE, Port};
use spin::Once;

use crate::frame::Frame;
use crate::smp::{self, Cpu, MAX_CPUS};
use crate::{event, hypercall};

/// Words from one control block to the next, all in one page; and from a block's start to its heads.
const BLOCK: usize = 32;
const HEADS: usize = 2;

/// What the hypervisor is told, and how far each queue was read.
struct Pages {
    control: &'static Frame,
    /// The words of ports 0 to 1023: a domain has no more.
    array: &'static Frame,
    heads: [[AtomicU32; QUEUES]; MAX_CPUS],
}

static PAGES: Once<Pages> = Once::new();
static ON: AtomicBool = AtomicBool::new(false);

/// The pages, while queues are used.
fn pages() -> Option<&'static Pages> {
    if ON.load(Ordering::Acquire) { PAGES.get() } else { None }
}

/// Whether queues are used.
pub fn is_on() -> bool {
    pages().is_some()
}

fn frame_number(frame: &Frame) -> u64 {
    (core::ptr::from_ref(frame).expose_provenance() / PAGE_SIZE) as u64
}

/// Goes over to queues. Channels that are there already are masked from now on; what is pending stays pending.
///
/// # Errors
/// Those of `event_channel_op.init_control` and `event_channel_op.expand_array` in docs/abi.md; after a failure [`end`] goes back.
pub fn begin() -> Result<(), Errno> {
    event::shared_page()?;
    let pages = PAGES.call_once(|| Pages {
        control: Box::leak(Frame::boxed()),
        array: Box::leak(Frame::boxed()),
        heads: [const { [const { AtomicU32::new(0) }; QUEUES] }; MAX_CPUS],
    });
    pages.control.words().iter().for_each(|word| word.store(0, Ordering::Relaxed));
    pages.array.words().iter().for_each(|word| word.store(MASKED, Ordering::Relaxed));
    pages.heads.iter().flatten().for_each(|head| head.store(0, Ordering::Relaxed));
    for cpu in smp::all() {
        let offset = u32::try_from(cpu.index() * BLOCK * 4).unwrap_or(0);
        let (gfn, vcpu) = (frame_number(pages.control), cpu.number());
        let mut control = InitControl { control_gfn: gfn, offset, vcpu, ..Default::default() };
        // SAFETY: invariant 1.
        unsafe { hypercall::event_init_control(&mut control) }?;
    }
    // SAFETY: invariant 1.
    unsafe { hypercall::event_expand_array(frame_number(pages.array)) }?;
    ON.store(true, Ordering::Release);
    Ok(())
}

/// Closes all channels and goes back to two levels.
///
/// # Errors
/// Those of `event_channel_op.reset` in docs/abi.md.
pub fn end() -> Result<(), Errno> {
    hypercall::event_reset(&mut Reset { dom: DomId::SELF })?;
    ON.store(false, Ordering::Release);
    Ok(())
}

/// Chooses how urgent a port's next events are: 0 is first, 15 last, 7 at first.
///
/// # Errors
/// Those of `event_channel_op.set_priority` in docs/abi.md.
pub fn set_priority(port: Port, priority: u32) -> Result<(), Errno> {
    hypercall::event_set_priority(&mut SetPriority { port, priority })
}

fn word(port: Port) -> Option<&'static AtomicU32> {
    pages()?.array.words().get(usize::try_from(port.0).ok()?)
}

/// What a port's word says; 0 without queues.
pub fn state(port: Port) -> u32 {
    word(port).map_or(0, |word| word.load(Ordering::Acquire))
}

/// Takes the pending event of `port`; `None` without queues.
pub(crate) fn take(port: Port) -> Option<bool> {
    Some(word(port)?.fetch_and(!PENDING, Ordering::AcqRel) & PENDING != 0)
}

/// Masks `port`; false without queues.
pub(crate) fn mask(port: Port) -> bool {
    word(port).is_some_and(|word| {
        word.fetch_or(MASKED, Ordering::AcqRel);
        true
    })
}

/// Unmasks `port` without a call, if it may: it is not pending, and once nobody is about to link it.
pub fn unmask_quietly(port: Port) -> bool {
    let Some(word) = word(port) else { return false };
    loop {
        let seen = word.load(Ordering::Acquire);
        if seen & PENDING != 0 {
            return false;
        }
        // The hypervisor lets go of a BUSY word within a few tries.
        let idle = seen & !BUSY;
        if word.compare_exchange(idle, idle & !MASKED, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            return true;
        }
    }
}

/// Takes all events of a vCPU's queues, the most urgent first. Bounded by what comes.
pub fn take_all(cpu: Cpu, mut handle: impl FnMut(Port)) {
    let Some(pages) = pages() else { return };
    let block = pages.control.words().get(cpu.index() * BLOCK..).unwrap_or_default();
    let [ready_at, ..] = block else { return };
    let mut ready = ready_at.swap(0, Ordering::AcqRel);
    while ready != 0 {
        let queue = ready.trailing_zeros() as usize;
        let told = block.get(HEADS + queue).zip(pages.heads[cpu.index()].get(queue));
        let Some((first, own)) = told else { return };
        let head = match own.load(Ordering::Relaxed) {
            0 => first.load(Ordering::Acquire),
            head => head,
        };
        let Some(word) = word(Port(head)) else { return };
        let before = word.fetch_and(!(LINKED | LINK_MASK), Ordering::AcqRel);
        own.store(before & LINK_MASK, Ordering::Relaxed);
        if before & LINK_MASK == 0 {
            ready &= !(1 << queue);
        }
        if before & (PENDING | MASKED) == PENDING {
            word.fetch_and(!PENDING, Ordering::AcqRel);
            handle(Port(head));
        }
        ready |= ready_at.swap(0, Ordering::AcqRel);
    }
}
