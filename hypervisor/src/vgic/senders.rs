//! SGIs of a `GICv2`, which are pending once for each vCPU that sent them (IHI 0048, 4.1.4): the acknowledged value names
//! the sender.
//!
//! Senders are noted in atomics beside the vCPU, and then the SGI is raised as any other private interrupt: its latch
//! says that senders may wait, they say who. One sender at a time has a list register, the others wait for the
//! deactivation.
//!
//! Invariants:
//! 1. Senders are added by anyone, before the raise, and taken by the owner alone: those it sees stay until it takes them.
//! 2. A latched SGI without senders is nothing: its sender was served before the raise was looked at.
//! 3. While senders of a SGI wait and one has a list register, that one tells of its deactivation.

use core::sync::atomic::Ordering;

use super::ids::{PrivateIntid, VcpuNumber, bits};
use super::lr::{Backing, Layout, ListRegisters, LrState};
use super::shared::VcpuShared;
use super::vcpu::{Raised, VcpuGic};

/// SGIs, among private interrupts.
const SGIS: u32 = 0xffff;

impl VcpuShared {
    /// Notes that `sender` sends the SGI `irq` to this vCPU; the caller raises it next. A `GICv3` does not need this.
    pub fn note_sender(&self, irq: PrivateIntid, sender: VcpuNumber) {
        self.add_senders(irq, bit_of(u8::try_from(sender.get() & 7).unwrap_or(0)));
    }

    /// The vCPUs that sent `irq` and have no list register, one bit each; none if it is no SGI.
    pub(super) fn senders(&self, irq: PrivateIntid) -> u8 {
        self.senders.get(usize::from(irq.number())).map_or(0, |senders| senders.load(Ordering::Acquire))
    }

    pub(super) fn add_senders(&self, irq: PrivateIntid, set: u8) {
        if let Some(senders) = self.senders.get(usize::from(irq.number())) {
            senders.fetch_or(set, Ordering::Release);
        }
    }

    pub(super) fn add_sender(&self, irq: PrivateIntid, sender: u8) {
        self.add_senders(irq, bit_of(sender));
    }

    pub(super) fn remove_senders(&self, irq: PrivateIntid, set: u8) {
        if let Some(senders) = self.senders.get(usize::from(irq.number())) {
            senders.fetch_and(!set, Ordering::Relaxed);
        }
    }
}

impl VcpuGic {
    /// The short way for a SGI whose sender was noted: into the list register that it had, or an empty one, if nobody
    /// else sent it.
    #[inline(never)]
    pub(super) fn raise_sent<L: ListRegisters>(
        &mut self,
        irq: PrivateIntid,
        shared: &VcpuShared,
        lrs: &mut L,
    ) -> Raised {
        let senders = shared.senders(irq);
        if senders == 0 {
            return Raised::Held;
        }
        let sender = lowest(senders);
        if senders != bit_of(sender) {
            return self.latch(irq.bit(), shared);
        }
        let raised = if self.resident & irq.bit() == 0 {
            self.place_free(irq, sender, shared, lrs)
        } else {
            let n = self.lr_of.get(usize::from(irq.number())).copied().map_or(0, usize::from);
            let layout = lrs.layout();
            if layout.state(lrs.read(n)) != LrState::Inactive {
                return self.latch(irq.bit(), shared);
            }
            lrs.write(n, self.pending_lr(irq, sender, shared, layout));
            Raised::Placed
        };
        if raised == Raised::Placed {
            shared.remove_senders(irq, bit_of(sender));
        }
        raised
    }

    /// Takes the next sender of a latched SGI for a list register: invariant 3.
    pub(super) fn deliver_sent(&mut self, irq: PrivateIntid, shared: &VcpuShared) -> (Backing, u8) {
        let senders = shared.senders(irq);
        let sender = lowest(senders);
        shared.remove_senders(irq, bit_of(sender));
        if senders == bit_of(sender) {
            self.pending &= !irq.bit();
            (Backing::Software, sender)
        } else {
            (Backing::SoftwareNotify, sender)
        }
    }

    /// Invariant 2.
    pub(super) fn forget_senderless(&mut self, shared: &VcpuShared, layout: Layout) {
        for irq in latched(self.pending).filter(|irq| layout.counts_senders(*irq)) {
            if shared.senders(irq) == 0 {
                self.pending &= !irq.bit();
            }
        }
    }

    /// A byte of `GICD_SPENDSGIR<n>` and `GICD_CPENDSGIR<n>` as it reads: the senders of a SGI that is pending.
    pub(super) fn pending_senders<L: ListRegisters>(
        &self,
        irq: PrivateIntid,
        shared: &VcpuShared,
        lrs: &L,
    ) -> u8 {
        shared.senders(irq) | self.placed_sender(irq, lrs).map_or(0, |(_, sender)| bit_of(sender))
    }

    /// A byte written to `GICD_SPENDSGIR<n>`. A service has to follow.
    pub(super) fn set_senders(&mut self, irq: PrivateIntid, set: u8, shared: &VcpuShared) {
        if set != 0 {
            shared.add_senders(irq, set);
            self.pending |= irq.bit();
        }
    }

    /// A byte written to `GICD_CPENDSGIR<n>`. A service has to follow.
    pub(super) fn clear_senders<L: ListRegisters>(
        &self,
        irq: PrivateIntid,
        set: u8,
        shared: &VcpuShared,
        lrs: &mut L,
    ) {
        shared.remove_senders(irq, set);
        if let Some((n, _)) = self.placed_sender(irq, lrs).filter(|(_, sender)| bit_of(*sender) & set != 0) {
            lrs.write(n, 0);
        }
    }

    /// The list register where `irq` is pending, and its sender.
    fn placed_sender<L: ListRegisters>(&self, irq: PrivateIntid, lrs: &L) -> Option<(usize, u8)> {
        if self.resident & irq.bit() == 0 {
            return None;
        }
        let n = self.lr_of.get(usize::from(irq.number())).copied().map(usize::from)?;
        let lr = lrs.layout().decode(lrs.read(n));
        (lr.state == LrState::Pending).then_some((n, lr.sender))
    }
}

fn latched(pending: u32) -> impl Iterator<Item = PrivateIntid> {
    bits(pending & SGIS).filter_map(|n| u8::try_from(n).ok().and_then(PrivateIntid::new))
}

fn bit_of(sender: u8) -> u8 {
    1_u8.wrapping_shl(u32::from(sender & 7))
}

/// The first of several senders.
fn lowest(senders: u8) -> u8 {
    u8::try_from(senders.trailing_zeros() & 7).unwrap_or(0)
}
