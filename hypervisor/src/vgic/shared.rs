//! What several CPUs see of one vCPU's interrupts: configuration of its private interrupts, and its mailbox.
//!
//! Configuration is written under the domain's lock and read by the owner without it; a reader that matters is told
//! to look again through the mailbox afterwards. The mailbox is written by anyone, and emptied by the owner alone.

use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use super::ids::{Intid, PrivateIntid, SPI_WORDS, VcpuNumber};

/// In the mailbox above the 32 private interrupts: look at the domain's state.
const SERVICE: u64 = 1 << 32;

/// The atomics beside one vCPU.
#[derive(Debug)]
pub struct VcpuShared {
    /// Raised private interrupts, and [`SERVICE`]: one word, so that an owner with nothing to do reads one.
    mailbox: AtomicU64,
    /// `enabled` while the distributor forwards, else 0: the one word that delivery tests.
    deliverable: AtomicU32,
    enabled: AtomicU32,
    edge: AtomicU32,
    /// Private interrupts that were pending or active when the owner last looked, for reads by other vCPUs.
    published_pending: AtomicU32,
    published_active: AtomicU32,
    /// Raised SPIs.
    spis: [AtomicU32; SPI_WORDS],
    priority: [AtomicU8; 32],
    /// For each SGI the vCPUs that sent it and whose interrupt is in no list register, with `GICv2`.
    pub(super) senders: [AtomicU8; 16],
}

/// The vCPUs of one domain, by number: any slice of things that have a [`VcpuShared`].
pub trait Vcpus {
    /// The atomics of one, if the domain has it.
    fn vcpu(&self, number: VcpuNumber) -> Option<&VcpuShared>;
}

impl<T: AsRef<VcpuShared>> Vcpus for [T] {
    fn vcpu(&self, number: VcpuNumber) -> Option<&VcpuShared> {
        self.get(number.get()).map(AsRef::as_ref)
    }
}

impl AsRef<Self> for VcpuShared {
    fn as_ref(&self) -> &Self {
        self
    }
}

/// What was in the mailbox.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mail {
    /// Raised private interrupts.
    pub(super) raised: u32,
    /// Whether the domain's state is to be looked at.
    pub(super) service: bool,
}

impl Default for VcpuShared {
    fn default() -> Self {
        Self::new()
    }
}

impl VcpuShared {
    /// Drops raised private interrupts but that of events, and senders; the owner is to look at the rest.
    pub(super) fn forget(&self) {
        self.mailbox.fetch_and(SERVICE | u64::from(PrivateIntid::EVENT_UPCALL.bit()), Ordering::AcqRel);
        self.mailbox.fetch_or(SERVICE, Ordering::AcqRel);
        self.published_pending.store(0, Ordering::Relaxed);
        self.published_active.store(0, Ordering::Relaxed);
        for senders in &self.senders {
            senders.store(0, Ordering::Relaxed);
        }
    }

    /// As after reset: all disabled, priority 0, SGIs edge-triggered and PPIs level-sensitive.
    pub const fn new() -> Self {
        Self {
            mailbox: AtomicU64::new(0),
            deliverable: AtomicU32::new(0),
            enabled: AtomicU32::new(0),
            edge: AtomicU32::new(0xffff),
            published_pending: AtomicU32::new(0),
            published_active: AtomicU32::new(0),
            spis: [const { AtomicU32::new(0) }; SPI_WORDS],
            priority: [const { AtomicU8::new(0) }; 32],
            senders: [const { AtomicU8::new(0) }; 16],
        }
    }

    /// Goes back to the state after reset. Its vCPU is off and no CPU has it.
    pub fn reset(&self) {
        let fresh = Self::new();
        let words = [
            (&self.deliverable, fresh.deliverable),
            (&self.enabled, fresh.enabled),
            (&self.edge, fresh.edge),
            (&self.published_pending, fresh.published_pending),
            (&self.published_active, fresh.published_active),
        ];
        for (word, fresh) in words.into_iter().chain(self.spis.iter().zip(fresh.spis)) {
            word.store(fresh.into_inner(), Ordering::Relaxed);
        }
        let bytes = self.priority.iter().zip(fresh.priority);
        for (byte, fresh) in bytes.chain(self.senders.iter().zip(fresh.senders)) {
            byte.store(fresh.into_inner(), Ordering::Relaxed);
        }
        self.mailbox.store(0, Ordering::Release);
    }

    /// Raises an interrupt from any CPU, without a lock. A SPI may be raised on any vCPU of its domain: that one hands
    /// it on to where it is routed. Returns whether the vCPU's CPU must be told (a kick, or a wake-up): not if it has
    /// been and has not looked yet.
    #[must_use = "the vCPU's CPU does not look unless it is kicked"]
    pub fn raise_remote(&self, intid: Intid) -> bool {
        match intid {
            Intid::Private(irq) => self.post(u64::from(irq.bit())),
            Intid::Shared(spi) => {
                if let Some(word) = self.spis.get(spi.word()) {
                    word.fetch_or(spi.bit(), Ordering::Release);
                }
                self.request_service()
            }
        }
    }

    /// Asks the owner to run `VcpuGic::service`. Returns whether it must be kicked for that.
    pub(super) fn request_service(&self) -> bool {
        self.post(SERVICE)
    }

    /// Sequentially consistent, as is the sleeper's look: one of a poster that then reads the run state and a vCPU that
    /// sets it and then looks for mail sees the other, if those accesses are sequentially consistent too.
    fn post(&self, mail: u64) -> bool {
        self.mailbox.fetch_or(mail, Ordering::SeqCst) == 0
    }

    /// Whether there is mail, for a vCPU that is about to sleep.
    pub(super) fn has_mail_before_sleep(&self) -> bool {
        self.mailbox.load(Ordering::SeqCst) != 0
    }

    /// Whether there is mail.
    #[inline]
    pub fn has_mail(&self) -> bool {
        self.mailbox.load(Ordering::Relaxed) != 0
    }

    /// Empties the mailbox, SPIs apart.
    pub(super) fn take_mail(&self) -> Mail {
        let mail = self.mailbox.swap(0, Ordering::AcqRel);
        Mail { raised: u32::try_from(mail & 0xffff_ffff).unwrap_or(0), service: mail & SERVICE != 0 }
    }

    /// Tests: empties the mailbox as the owner does; returns the raised private interrupts.
    #[cfg(any(test, feature = "fake"))]
    pub fn emptied(&self) -> u32 {
        self.take_mail().raised
    }

    /// Takes the raised SPIs of one word.
    pub(super) fn take_spis(&self, word: usize) -> u32 {
        match self.spis.get(word) {
            Some(word) if word.load(Ordering::Relaxed) != 0 => word.swap(0, Ordering::Acquire),
            _ => 0,
        }
    }

    /// Whether a private interrupt is delivered when it is raised.
    pub fn delivers(&self, irq: PrivateIntid) -> bool {
        self.deliverable() & irq.bit() != 0
    }

    /// Private interrupts that may be delivered now.
    #[inline]
    pub(super) fn deliverable(&self) -> u32 {
        self.deliverable.load(Ordering::Relaxed)
    }

    pub(super) fn enabled(&self) -> u32 {
        self.enabled.load(Ordering::Relaxed)
    }

    /// Enables exactly `enabled`. Under the domain's lock.
    pub(super) fn set_enabled(&self, enabled: u32) {
        self.enabled.store(enabled, Ordering::Relaxed);
    }

    /// Follows the distributor's forwarding. Under the domain's lock.
    pub(super) fn update_deliverable(&self, forwarding: bool) {
        let deliverable = if forwarding { self.enabled() } else { 0 };
        self.deliverable.store(deliverable, Ordering::Relaxed);
    }

    pub(super) fn edge(&self) -> u32 {
        self.edge.load(Ordering::Relaxed)
    }

    /// Makes exactly `edge` and the SGIs edge-triggered. Under the domain's lock.
    pub(super) fn set_edge(&self, edge: u32) {
        self.edge.store(edge | 0xffff, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn priority(&self, irq: PrivateIntid) -> u8 {
        self.priority.get(usize::from(irq.number())).map_or(0, |p| p.load(Ordering::Relaxed))
    }

    /// Under the domain's lock.
    pub(super) fn set_priority(&self, irq: PrivateIntid, priority: u8) {
        if let Some(slot) = self.priority.get(usize::from(irq.number())) {
            slot.store(priority, Ordering::Relaxed);
        }
    }

    pub(super) fn publish(&self, pending: u32, active: u32) {
        self.published_pending.store(pending, Ordering::Relaxed);
        self.published_active.store(active, Ordering::Relaxed);
    }

    pub(super) fn published_pending(&self) -> u32 {
        self.published_pending.load(Ordering::Relaxed)
    }

    pub(super) fn published_active(&self) -> u32 {
        self.published_active.load(Ordering::Relaxed)
    }
}
