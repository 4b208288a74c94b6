//! The PV console: rings in a page that a domain shares with the hypervisor, which is the backend (`public/io/console.h`). Xen has a daemon in the control
//! domain there, and dom0less Xen nothing.
//!
//! Invariants
//! 1. Nothing in the page is believed: indexes are taken modulo the rings' sizes, and a distance that no ring has moves nothing.
//! 2. One run takes a few chunks; what is left is taken when the guest's `send` restarts.
//! 3. The page is one of the hypervisor's, as the grant table's are: the domain's for as long as that lives, wherever the domain shows it.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]
use core::mem::offset_of;

use pv_abi::console::ConsoleRing;
use pv_abi::{DomId, PAGE_SHIFT, Port, layout};

use super::{CHUNK, CHUNKS, portion, write_text};
use crate::addr::{FrameAddr, Gfn, Mfn};
use crate::domain::{Domain, DomainState};
use crate::evtchn;
use crate::frame::Role;
use crate::frame_alloc::Frames;
use crate::hardware::Hardware;
use crate::hypercall::{Answer, Args, Stop};
use crate::machine::{Current, Machine};
use crate::stage2::{Kind, Stage2};
use crate::stretch::Stretch;

/// One of the two rings, and the words that count its bytes.
struct Ring {
    bytes: usize,
    /// Its size in bytes, a power of two, minus one.
    mask: u32,
    consumer: usize,
    producer: usize,
}

const TO_GUEST: Ring = Ring {
    bytes: offset_of!(ConsoleRing, input),
    mask: 1023,
    consumer: offset_of!(ConsoleRing, in_cons),
    producer: offset_of!(ConsoleRing, in_prod),
};
const FROM_GUEST: Ring = Ring {
    bytes: offset_of!(ConsoleRing, output),
    mask: 2047,
    consumer: offset_of!(ConsoleRing, out_cons),
    producer: offset_of!(ConsoleRing, out_prod),
};

/// Gives a domain that is being built its page; `None` without a frame for it, or for a table.
pub fn attach<H: Hardware>(hw: &H, frames: &Frames, owner: DomId, stage2: &mut Stage2) -> Option<Mfn> {
    let gfn = Gfn::new(layout::MAGIC_BASE >> PAGE_SHIFT)?;
    let page = frames.allocate_clear(hw, 0, owner, Role::Shared)?;
    stage2.map_blocks(hw, frames, gfn, page, 0, Kind::Shared).ok()?;
    frames.table.set_home(page, Some(gfn));
    Some(page)
}

/// Tells a domain that has its page where that is, and makes the port. False when it can have no more ports.
pub fn connect<H: Hardware>(hw: &H, domain: &Domain, state: &mut DomainState) -> bool {
    if state.params.console.is_none() {
        return true;
    }
    let Ok(port) = evtchn::bind_console(hw, domain, &mut state.ports) else { return false };
    state.params.console_pfn = layout::MAGIC_BASE >> PAGE_SHIFT;
    state.params.console_evtchn = port.0.into();
    true
}

/// A domain has sent an event to somebody who is not among the domains: to its console, if to anybody. Text waits, or there is room for keys again.
///
/// # Errors
/// Restarts only.
#[cold]
#[inline(never)]
pub fn notified<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    port: Port,
    to: DomId,
    args: &Args,
) -> Answer {
    let domain = current.domain;
    let page = domain.state.lock().params.console.filter(|_| to == DomId::XEN);
    let Some(page) = page else { return Ok(0) };
    let mut more = true;
    let mut moved = false;
    let run = Stretch::begin(machine, current);
    for chunk in 0..machine.hw.budget(CHUNKS) {
        if chunk != 0 && run.is_long(machine) {
            break;
        }
        more = take(machine, domain, page);
        moved |= more;
        if !more {
            break;
        }
    }
    if give(machine, domain, page) | moved {
        evtchn::notify(machine, current, port);
    }
    if more { Err(Stop::Restart(*args)) } else { Ok(0) }
}

/// Takes a chunk of what a domain has written; false when there was nothing, or nonsense.
fn take<H: Hardware>(machine: &Machine<H>, domain: &Domain, page: Mfn) -> bool {
    let hw = &machine.hw;
    let ring = FROM_GUEST;
    let Some([consumer, producer, first]) = ring.places(page) else { return false };
    let done = hw.load_u32(consumer);
    let waiting = hw.load_u32(producer).wrapping_sub(done);
    if waiting == 0 || waiting > ring.size() {
        return false;
    }
    let start = done & ring.mask;
    let most = waiting.min(ring.size().saturating_sub(start));
    let mut bytes = [0; CHUNK];
    let length = usize::try_from(most).unwrap_or(0).min(CHUNK);
    let (Some(text), Some(from)) = (bytes.get_mut(..length), first.plus(start)) else { return false };
    hw.read(from, text);
    let text = portion(text);
    write_text(hw, domain, text);
    // With a full barrier: the bytes are read before the guest learns that there is room. One that changes the word itself keeps its bytes.
    let now = done.wrapping_add(u32::try_from(text.len()).unwrap_or(0));
    hw.compare_exchange_u32(consumer, done, now) == Ok(done)
}

/// Gives a domain the keys that wait for it, as far as there is room; true when there were any. At most as many turns as keys are kept.
#[inline(never)]
pub fn give<H: Hardware>(machine: &Machine<H>, domain: &Domain, page: Mfn) -> bool {
    let hw = &machine.hw;
    let ring = TO_GUEST;
    let Some([consumer, producer, first]) = ring.places(page) else { return false };
    let before = hw.load_u32(producer);
    let used = before.wrapping_sub(hw.load_u32(consumer));
    let mut now = before;
    for _ in 0..ring.size().saturating_sub(used) {
        let Some(at) = first.plus(now & ring.mask) else { break };
        let Some(key) = machine.keyboard.take(domain.id) else { break };
        hw.write(at, &[key]);
        now = now.wrapping_add(1);
    }
    // With a full barrier: the keys are there before the guest learns of them.
    now != before && hw.compare_exchange_u32(producer, before, now) == Ok(before)
}

impl Ring {
    const fn size(&self) -> u32 {
        self.mask.wrapping_add(1)
    }

    /// Where the consumer's and the producer's word and the first byte are.
    fn places(&self, page: Mfn) -> Option<[FrameAddr; 3]> {
        let at = |offset| FrameAddr::new(page, offset);
        Some([at(self.consumer)?, at(self.producer)?, at(self.bytes)?])
    }
}

impl FrameAddr {
    /// So many bytes further in the frame.
    fn plus(self, bytes: u32) -> Option<Self> {
        Self::new(self.frame(), self.offset().checked_add(usize::try_from(bytes).ok()?)?)
    }
}
