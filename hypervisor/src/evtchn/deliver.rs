//! How an event reaches a vCPU: the pending and mask bits of the port in the shared-info page, the selector and the upcall byte of
//! the vCPU, the event interrupt, and the vCPUs that poll.
//!
//! The order of the steps is the 2-level ABI's, and each is one atomic operation with a full barrier: a guest that clears the
//! upcall byte, then takes the selector, then takes the pending words misses nothing.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]
#![expect(
    clippy::inline_always,
    reason = "on the path of every hypercall: a call more would be seen in the numbers"
)]

use core::mem::offset_of;
use core::sync::atomic::Ordering;

use pv_abi::Port;
use pv_abi::shared::{SharedInfo, VcpuInfo};

use super::fifo;
use crate::addr::FrameAddr;
use crate::domain::{Domain, Fault, Life};
use crate::hardware::{Contended, Hardware};
use crate::log::Event;
use crate::machine::{Current, Machine};
use crate::sched;
use crate::sched_op::end_domain;
use crate::vcpu::{NOT_POLLING, POLLING_MANY, Vcpu};
use crate::vgic::{Intid, PrivateIntid};

const SELECTOR: usize = offset_of!(VcpuInfo, evtchn_pending_sel);
const UPCALL: usize = offset_of!(VcpuInfo, evtchn_upcall_pending);

/// Where a port's bit is in one of the bitmaps.
#[derive(Clone, Copy)]
struct Bit {
    pending: FrameAddr,
    mask: FrameAddr,
    /// In both words.
    flag: u64,
    /// The words' bit in the selector.
    selector: u64,
}

#[inline(always)]
fn bit_of(domain: &Domain, port: Port) -> Option<Bit> {
    let word = port.0 >> 6;
    let offset = usize::try_from(word).ok()?.wrapping_mul(8);
    Some(Bit {
        pending: FrameAddr::new(
            domain.shared_info,
            offset.wrapping_add(offset_of!(SharedInfo, evtchn_pending)),
        )?,
        mask: FrameAddr::new(domain.shared_info, offset.wrapping_add(offset_of!(SharedInfo, evtchn_mask)))?,
        selector: 1u64.wrapping_shl(word),
        flag: 1u64.wrapping_shl(port.0 & 63),
    })
}

#[inline(always)]
fn field(info: FrameAddr, offset: usize) -> Option<FrameAddr> {
    FrameAddr::new(info.frame(), info.offset().wrapping_add(offset))
}

/// Marks a port of a domain pending and tells the vCPU, as far as masks let it, and those that poll. The common ways end in at most one
/// call, and that is the last thing they do.
#[inline]
pub(super) fn set_pending<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    domain: &Domain,
    port: Port,
    vcpu: u16,
) {
    let Some(at) = bit_of(domain, port) else { return };
    match machine.hw.or_u64(at.pending, at.flag) {
        Ok(before) if before & at.flag != 0 => return,
        Ok(_) => {}
        Err(Contended) => return word_contended(machine, current, domain),
    }
    // Looked at after the pending bit is set: a vCPU that begins to poll looks at that bit after it has said so, to its domain too.
    if domain.polled.load(Ordering::Relaxed) && domain.vcpus.iter().any(|vcpu| polls(vcpu, port)) {
        wake_pollers(machine, current, domain, port, vcpu);
    } else {
        tell(machine, current, domain, at, vcpu);
    }
}

/// [`set_pending`] where it is not hot: out of line.
#[inline(never)]
pub(super) fn raise<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    domain: &Domain,
    port: Port,
    vcpu: u16,
) {
    if fifo::is_used(domain) {
        fifo::set_pending(machine, current, domain, port, vcpu);
    } else {
        set_pending(machine, current, domain, port, vcpu);
    }
}

/// Tells the vCPU of a port that has become pending, unless it is masked.
#[inline(always)]
fn tell<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, domain: &Domain, at: Bit, vcpu: u16) {
    if machine.hw.load_u64(at.mask) & at.flag == 0 {
        select(machine, current, domain, u32::from(vcpu), at.selector);
    }
}

/// Sets bits of a vCPU's selector; if they were clear, marks its upcall. A vCPU without a `vcpu_info` misses nothing: registering one
/// marks everything pending.
#[inline(never)]
fn select<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, domain: &Domain, vcpu: u32, bits: u64) {
    let Some(vcpu) = domain.vcpu(vcpu) else { return };
    let Some(info) = vcpu.info_at() else { return };
    let Some(selector) = field(info, SELECTOR) else { return };
    match machine.hw.or_u64(selector, bits) {
        Ok(before) if before & bits == bits => {}
        Ok(_) => mark_upcall(machine, current, domain, vcpu, info),
        Err(Contended) => word_contended(machine, current, domain),
    }
}

/// Sets a vCPU's upcall byte; if it was clear, raises its event interrupt.
#[inline]
pub(super) fn mark_upcall<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    domain: &Domain,
    vcpu: &Vcpu,
    info: FrameAddr,
) {
    let Some(upcall) = field(info, UPCALL) else { return };
    match machine.hw.swap_u8(upcall, 1) {
        Ok(0) => sched::raise(machine, current, vcpu, PrivateIntid::EVENT_UPCALL),
        Ok(_) => {}
        Err(Contended) => word_contended(machine, current, domain),
    }
}

/// Marks everything pending for a vCPU whose `vcpu_info` has just moved, so that nothing gets lost in between.
pub(crate) fn resend_all<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    domain: &Domain,
    vcpu: &Vcpu,
) {
    let Some(info) = vcpu.info_at() else { return };
    let Some(selector) = field(info, SELECTOR) else { return };
    match machine.hw.or_u64(selector, u64::MAX) {
        Ok(_) => mark_upcall(machine, current, domain, vcpu, info),
        Err(Contended) => word_contended(machine, current, domain),
    }
}

/// Unmasks a port; if it is pending, tells the vCPU.
pub(super) fn unmask<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    domain: &Domain,
    port: Port,
    vcpu: u16,
) {
    if fifo::is_used(domain) {
        return fifo::unmask(machine, current, domain, port, vcpu);
    }
    let Some(at) = bit_of(domain, port) else { return };
    match machine.hw.clear_u64(at.mask, at.flag) {
        Ok(before) => {
            let tells = !crate::seeded!("unmask-silent");
            if tells && before & at.flag != 0 && machine.hw.load_u64(at.pending) & at.flag != 0 {
                select(machine, current, domain, u32::from(vcpu), at.selector);
            }
        }
        Err(Contended) => word_contended(machine, current, domain),
    }
}

/// Takes a port's pending bit away: it is being closed.
pub(super) fn clear_pending<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    domain: &Domain,
    port: Port,
) {
    let two_levels = forget_kept(machine, domain, port);
    if two_levels.and_then(|()| fifo::clear_pending(&machine.hw, domain, port)) == Err(Contended) {
        word_contended(machine, current, domain);
    }
}

/// Keeps an event for later (`fifo`, invariant 5).
pub(super) fn keep<H: Hardware>(machine: &Machine<H>, domain: &Domain, port: Port) -> Result<(), Contended> {
    bit_of(domain, port).map_or(Ok(()), |at| machine.hw.or_u64(at.pending, at.flag).map(drop))
}

/// The events of 64 ports, from this one on, that are kept.
pub(super) fn kept<H: Hardware>(machine: &Machine<H>, domain: &Domain, first: Port) -> u64 {
    bit_of(domain, first).map_or(0, |at| machine.hw.load_u64(at.pending))
}

/// Takes a port's pending bit of two levels away.
pub(super) fn forget_kept<H: Hardware>(
    machine: &Machine<H>,
    domain: &Domain,
    port: Port,
) -> Result<(), Contended> {
    bit_of(domain, port).map_or(Ok(()), |at| machine.hw.clear_u64(at.pending, at.flag).map(drop))
}

/// Whether a port is pending.
pub(crate) fn is_pending<H: Hardware>(machine: &Machine<H>, domain: &Domain, port: Port) -> bool {
    if fifo::is_used(domain) {
        return fifo::is_pending(&machine.hw, domain, port);
    }
    bit_of(domain, port).is_some_and(|at| machine.hw.load_u64(at.pending) & at.flag != 0)
}

/// Whether a vCPU has an upcall to take.
pub(crate) fn upcall_pending<H: Hardware>(machine: &Machine<H>, vcpu: &Vcpu) -> bool {
    let Some(info) = vcpu.info_at() else { return false };
    // The word that holds the upcall byte: `vcpu_info` is aligned to 8, the byte is its first.
    machine.hw.load_u32(info) & 0xFF != 0
}

/// Whether a vCPU waits for this port in `poll`.
#[inline(always)]
fn polls(vcpu: &Vcpu, port: Port) -> bool {
    let polled = vcpu.poll.load(Ordering::Relaxed);
    polled != NOT_POLLING && (polled == port.0 || polled == POLLING_MANY)
}

/// Wakes the vCPUs of a domain that wait for this port, and tells the one it notifies. One turn a vCPU.
#[cold]
#[inline(never)]
fn wake_pollers<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    domain: &Domain,
    port: Port,
    vcpu: u16,
) {
    wake_polling(machine, current, domain, port);
    if let Some(at) = bit_of(domain, port) {
        tell(machine, current, domain, at, vcpu);
    }
}

/// Wakes the vCPUs of a domain that wait for this port. One turn a vCPU.
pub(super) fn wake_polling<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    domain: &Domain,
    port: Port,
) {
    for poller in domain.vcpus.iter().filter(|vcpu| polls(vcpu, port) && !crate::seeded!("poll-asleep")) {
        sched::wake(machine, current, poller);
    }
}

/// A domain kept a word busy that it shares with the hypervisor: it does so no more.
#[cold]
#[inline(never)]
pub(crate) fn word_contended<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, domain: &Domain) {
    machine.hw.log(Event::WordContended(domain.id));
    end_domain(machine, current, domain, Life::Destroyed(Fault::WordContended));
}

/// Marks a port of a domain that has not run yet pending, with its interrupt waiting for vCPU 0.
pub(super) fn set_pending_at_boot<H: Hardware>(hw: &H, domain: &Domain, port: Port) {
    let Some(at) = bit_of(domain, port) else { return };
    let info = FrameAddr::start(domain.shared_info);
    let (Some(selector), Some(upcall)) = (field(info, SELECTOR), field(info, UPCALL)) else { return };
    // Nobody else can reach these words yet: none is contended.
    let _ = hw.or_u64(at.pending, at.flag);
    let _ = hw.or_u64(selector, at.selector);
    let _ = hw.swap_u8(upcall, 1);
    if let Some(mailbox) = domain.gic.first() {
        let _ = mailbox.raise_remote(Intid::Private(PrivateIntid::EVENT_UPCALL));
    }
}
