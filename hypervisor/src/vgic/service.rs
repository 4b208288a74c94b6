//! The long way: fold the list registers back, apply what was asked, place the most urgent again.
//!
//! One procedure for everything that is not a plain raise, so that there is one place to get right. Its cost is
//! bounded by the list registers and the interrupts that a domain can have, whatever the guest did.

use super::dist::{DistState, Line, Requests};
use super::ids::{Intid, PrivateIntid, Spi, VcpuMask, bits};
use super::lr::{Backing, Layout, ListRegister, ListRegisters, LrState, MAX_LRS};

use super::shared::{VcpuShared, Vcpus};
use super::vcpu::{Raised, VcpuGic};

/// What tells EL2 that list registers may be free while interrupts wait. None is asserted at once after a service, so
/// none can keep the guest from running.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Maintenance {
    /// Nothing waits.
    #[default]
    None,
    /// `ICH_HCR_EL2.NPIE`: the guest has acknowledged all that are in list registers.
    NoPending,
    /// `ICH_HCR_EL2.UIE`: all were active, and at most one still is. (Those without a physical interrupt report their
    /// deactivation themselves.)
    Underflow,
}

/// What the image has to do after a service.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Serviced {
    /// Other vCPUs that have something to service now.
    pub kick: VcpuMask,
    /// Which maintenance interrupt to ask for; any other of these requests is withdrawn.
    pub maintenance: Maintenance,
    /// Private interrupts with a physical one behind them that the guest cancelled: deactivate the physical ones.
    pub deactivate: u32,
}

/// The list registers while they are rewritten.
pub(super) struct Work {
    pub(super) layout: Layout,
    pub(super) count: usize,
    old: [u64; MAX_LRS],
    new: [u64; MAX_LRS],
    /// Private interrupts active in a list register.
    pub(super) active: u32,
    done: Serviced,
}

impl Work {
    pub(super) const fn active_lr(
        &self,
        intid: u16,
        priority: u8,
        again: bool,
        backing: Backing,
        sender: u8,
    ) -> ListRegister {
        let state = if again { LrState::PendingActive } else { LrState::Active };
        ListRegister { intid, priority, group: self.layout.group(), state, backing, sender }
    }

    pub(super) fn set(&mut self, n: usize, lr: ListRegister) {
        let raw = self.layout.encode(lr);
        if let Some(slot) = self.new.get_mut(n) {
            *slot = raw;
        }
    }
}

impl VcpuGic {
    /// Brings list registers, latches and the domain's state into agreement. Run it on the owner's CPU, under the
    /// domain's lock: when a raise or [`take_remote`](Self::take_remote) says so, after a maintenance interrupt, and
    /// after MMIO that names this vCPU. `vcpus` are the domain's, `lrs` is where this vCPU's list registers are now.
    #[must_use = "other vCPUs may need a kick, the hardware a request"]
    pub fn service<L: ListRegisters>(
        &mut self,
        dist: &mut DistState,
        vcpus: &(impl Vcpus + ?Sized),
        lrs: &mut L,
    ) -> Serviced {
        let Some(shared) = vcpus.vcpu(self.me) else { return Serviced::default() };
        // The mailbox before the SPIs beside it: their posters write them in the other order.
        self.pending |= shared.take_mail().raised;
        let mut work = Work {
            layout: lrs.layout(),
            count: lrs.count().min(MAX_LRS),
            old: [0; MAX_LRS],
            new: [0; MAX_LRS],
            active: 0,
            done: Serviced { kick: dist.take_raised(self.me, vcpus), ..Serviced::default() },
        };
        let requests = dist.requests(self.me).map(core::mem::take).unwrap_or_default();
        self.fold(dist, shared, vcpus, lrs, requests, &mut work);
        self.apply(requests, &mut work);
        self.forget_senderless(shared, work.layout);
        self.keep_active(dist, shared, &mut work);
        self.place_active(dist, shared, &mut work);
        self.place_pending(dist, shared, &mut work);
        work.done.maintenance = self.watch(dist, &mut work);
        for (n, (old, new)) in work.old.iter().zip(work.new.iter()).enumerate().take(work.count) {
            if old != new {
                lrs.write(n, *new);
            }
        }
        self.summarize();
        self.publish(shared, &work);
        work.done
    }

    /// Sets the input line of a private interrupt; the rising edge latches an edge-triggered one.
    pub fn set_line(&mut self, irq: PrivateIntid, line: Line, shared: &VcpuShared) -> Raised {
        let bit = irq.bit();
        let before = self.lines;
        match line {
            Line::High => {
                self.lines |= bit;
                if before & bit == 0 && shared.edge() & bit != 0 {
                    self.pending |= bit;
                }
            }
            Line::Low => self.lines &= !bit,
        }
        self.summarize();
        if before == self.lines || (shared.deliverable() | self.resident) & bit == 0 {
            Raised::Held
        } else {
            Raised::NeedsService
        }
    }

    /// Empties every list register that is not active into latches; active ones stay assigned.
    fn fold<L: ListRegisters>(
        &mut self,
        dist: &mut DistState,
        shared: &VcpuShared,
        vcpus: &(impl Vcpus + ?Sized),
        lrs: &L,
        requests: Requests,
        work: &mut Work,
    ) {
        for n in bits(self.lr_used) {
            let raw = lrs.read(n);
            if let Some(old) = work.old.get_mut(n) {
                *old = raw;
            }
            let state = work.layout.state(raw);
            let keep = match self.held(n) {
                Some(Intid::Private(irq)) => {
                    if state.is_pending() && work.layout.counts_senders(irq) {
                        shared.add_sender(irq, work.layout.decode(raw).sender);
                    }
                    self.fold_private(irq, state, requests, work)
                }
                Some(Intid::Shared(spi)) => self.fold_spi(spi, state, dist, vcpus, work),
                None => false,
            };
            if !keep {
                self.unassign(n);
            }
        }
    }

    /// Whether `irq` stays active in its list register.
    fn fold_private(
        &mut self,
        irq: PrivateIntid,
        state: LrState,
        requests: Requests,
        work: &mut Work,
    ) -> bool {
        let bit = irq.bit();
        if state.is_pending() && self.line_only & bit == 0 {
            self.pending |= bit;
        }
        self.line_only &= !bit;
        if state.is_active() && requests.clear_active & bit != 0 {
            work.done.deactivate |= bit & self.hw;
            return false;
        }
        if state.is_active() {
            work.active |= bit;
        }
        state.is_active()
    }

    /// Whether `spi` stays active in its list register.
    fn fold_spi(
        &mut self,
        spi: Spi,
        state: LrState,
        dist: &mut DistState,
        vcpus: &(impl Vcpus + ?Sized),
        work: &mut Work,
    ) -> bool {
        dist.placed.remove(spi);
        let line_only = dist.line_only.remove(spi);
        let cancelled = dist.clear_pending.remove(spi);
        let deactivated = dist.clear_active.remove(spi);
        if state.is_pending() && cancelled && dist.hw.contains(spi) {
            dist.released.insert(spi);
        }
        if state.is_pending() && !cancelled && !line_only {
            dist.latch.insert(spi);
        }
        if state.is_active() && deactivated && dist.hw.contains(spi) {
            dist.released.insert(spi);
        }
        if state.is_active() && !deactivated {
            dist.set_active.remove(spi);
            dist.active.insert(spi);
            return true;
        }
        dist.resident.remove(spi);
        if dist.set_active.remove(spi) {
            dist.active.insert(spi);
        } else {
            dist.active.remove(spi);
        }
        work.done.kick = work.done.kick.union(dist.hand_on(self.me, spi, vcpus));
        false
    }

    /// Applies what was asked of private interrupts, those active in list registers apart.
    fn apply(&mut self, requests: Requests, work: &mut Work) {
        let cancelled = self.pending & requests.clear_pending;
        work.done.deactivate |= cancelled & self.hw & !work.active;
        self.pending = self.pending & !requests.clear_pending | requests.set_pending;
        self.active = self.active & !requests.clear_active | requests.set_active & !work.active;
    }

    /// Rewrites the list registers of active interrupts: pending as well if they were raised again, and with a
    /// maintenance interrupt when something has to be looked at after the deactivation.
    fn keep_active(&mut self, dist: &mut DistState, shared: &VcpuShared, work: &mut Work) {
        for n in bits(self.lr_used) {
            let Some(intid) = self.held(n) else { continue };
            let (again, backing) = match intid {
                Intid::Private(irq) => self.again_private(irq, shared, work.layout),
                Intid::Shared(spi) => self.again_spi(spi, dist),
            };
            let old = work.layout.decode(work.old.get(n).copied().unwrap_or(0));
            work.set(n, work.active_lr(old.intid, old.priority, again, backing, old.sender));
        }
    }

    pub(super) fn again_private(
        &mut self,
        irq: PrivateIntid,
        shared: &VcpuShared,
        layout: Layout,
    ) -> (bool, Backing) {
        let bit = irq.bit();
        if self.hw & bit != 0 {
            return (false, self.backing(irq));
        }
        if layout.counts_senders(irq) {
            // The next sender's turn comes with the deactivation, in a list register of its own.
            let next = self.pending & bit != 0;
            return (false, if next { Backing::SoftwareNotify } else { Backing::Software });
        }
        let again = self.pending & shared.deliverable() & bit != 0;
        if again {
            self.pending &= !bit;
        }
        let high = self.lines & !shared.edge() & bit != 0;
        (again, if high { Backing::SoftwareNotify } else { Backing::Software })
    }

    pub(super) fn again_spi(&self, spi: Spi, dist: &mut DistState) -> (bool, Backing) {
        if dist.hw.contains(spi) {
            return (false, Backing::Hardware(dist.pintid(spi)));
        }
        let mine = dist.route(spi) == self.me;
        let again = mine && dist.forwarding && dist.enabled.contains(spi) && dist.latch.contains(spi);
        if again {
            dist.latch.remove(spi);
            dist.placed.insert(spi);
        }
        let look = dist.is_high(spi) || !mine && dist.latch.contains(spi);
        (again, if look { Backing::SoftwareNotify } else { Backing::Software })
    }

    /// How EL2 learns of room for what waits. With interrupts waiting all list registers are in use.
    fn watch(&mut self, dist: &mut DistState, work: &mut Work) -> Maintenance {
        if !self.waiting {
            return Maintenance::None;
        }
        let mut request = Maintenance::Underflow;
        for n in bits(self.lr_used) {
            let lr = work.layout.decode(work.new.get(n).copied().unwrap_or(0));
            match (lr.state, lr.backing) {
                (LrState::Pending, _) => request = Maintenance::NoPending,
                (LrState::Active | LrState::PendingActive, Backing::Software | Backing::SoftwareNotify) => {
                    if lr.state == LrState::PendingActive {
                        self.relatch(n, dist);
                    }
                    let lr = work.active_lr(lr.intid, lr.priority, false, Backing::SoftwareNotify, lr.sender);
                    work.set(n, lr);
                }
                (LrState::Active | LrState::PendingActive, Backing::Hardware(_)) | (LrState::Inactive, _) => {
                }
            }
        }
        // With a single list register underflow would be asserted at once.
        if request == Maintenance::Underflow && work.count < 2 { Maintenance::None } else { request }
    }

    /// Takes back the second occurrence of an active interrupt: it could become pending in its list register, with no
    /// notice, before something more urgent that waits.
    fn relatch(&mut self, n: usize, dist: &mut DistState) {
        match self.held(n) {
            Some(Intid::Private(irq)) => self.pending |= irq.bit(),
            Some(Intid::Shared(spi)) => {
                dist.latch.insert(spi);
                dist.placed.remove(spi);
            }
            None => {}
        }
    }

    /// Lets other vCPUs read the state of private interrupts.
    fn publish(&self, shared: &VcpuShared, work: &Work) {
        let mut pending = self.pending | self.lines & !shared.edge();
        for n in bits(self.lr_used & !self.lr_spi) {
            let raw = work.new.get(n).copied().unwrap_or(0);
            if let (Some(Intid::Private(irq)), true) = (self.held(n), work.layout.state(raw).is_pending()) {
                pending |= irq.bit();
            }
        }
        shared.publish(pending, work.active | self.active);
    }
}
