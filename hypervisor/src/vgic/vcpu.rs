//! The interrupts of one vCPU on the CPU it belongs to: the short way from a raise to a list register.

use super::ids::{Intid, PrivateIntid, VcpuNumber, bit_at, bits, low_mask, lowest};
use super::lr::{Backing, Layout, ListRegister, ListRegisters, LrState, MAX_LRS, ParkedLrs};
use super::shared::VcpuShared;

/// State of one vCPU's interrupts that only its own CPU touches.
///
/// For a vCPU that is not loaded its list registers are [`parked`](Self::parked); every operation takes the file to
/// work on, so the same code serves both.
#[derive(Clone, Debug)]
pub struct VcpuGic {
    pub(super) me: VcpuNumber,
    /// Latched private interrupts that are not pending in a list register.
    pub(super) pending: u32,
    /// Private input lines that are high.
    pub(super) lines: u32,
    /// Private interrupts that the guest made active and no list register has room for.
    pub(super) active: u32,
    /// Private interrupts to which a list register is assigned, `lr_of` says which.
    pub(super) resident: u32,
    /// Those whose pending bit in the list register came from the line, not from the latch.
    pub(super) line_only: u32,
    /// Private interrupts that have a physical one behind them.
    pub(super) hw: u32,
    /// Assigned list registers, `holds` says to which INTID.
    pub(super) lr_used: u32,
    /// Those of them with SPIs.
    pub(super) lr_spi: u32,
    /// Deliverable interrupts wait for list registers, so a raise must compare priorities.
    pub(super) waiting: bool,
    /// Private interrupts that a raise cannot simply put into a list register: a summary of the above, so that the short
    /// way tests one word. See [`summarize`](Self::summarize).
    slow: u32,
    pub(super) lr_of: [u8; 32],
    pub(super) holds: [u16; MAX_LRS],
    pub(super) pintid: [u16; 32],
    pub(super) parked: ParkedLrs,
}

/// What became of a raised interrupt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a raise may need VcpuGic::service"]
pub enum Raised {
    /// It is pending in a list register.
    Placed,
    /// It is latched and cannot be delivered before the guest or the interrupt's owner does something.
    Held,
    /// It is latched: [`VcpuGic::service`] is needed before the guest runs.
    NeedsService,
}

impl Raised {
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::NeedsService, _) | (_, Self::NeedsService) => Self::NeedsService,
            (Self::Placed, _) | (_, Self::Placed) => Self::Placed,
            (Self::Held, Self::Held) => Self::Held,
        }
    }
}

impl VcpuGic {
    /// A vCPU with nothing pending, for a machine with `count` list registers spelt in `layout`.
    pub const fn new(me: VcpuNumber, layout: Layout, count: usize) -> Self {
        Self {
            me,
            pending: 0,
            lines: 0,
            active: 0,
            resident: 0,
            line_only: 0,
            hw: 0,
            lr_used: 0,
            lr_spi: 0,
            waiting: false,
            slow: 0,
            lr_of: [0; 32],
            holds: [0; MAX_LRS],
            pintid: [0; 32],
            parked: ParkedLrs::new(layout, count),
        }
    }

    /// Which vCPU this is.
    pub const fn index(&self) -> VcpuNumber {
        self.me
    }

    /// Declares that `irq` stands for the physical interrupt `pintid`: EL2 takes that one, drops its priority without
    /// deactivating it, and calls [`raise`](Self::raise); the guest's deactivation is the physical one too.
    pub fn declare_hw(&mut self, irq: PrivateIntid, pintid: u16) {
        if let Some(slot) = self.pintid.get_mut(usize::from(irq.number())) {
            *slot = pintid;
            self.hw |= irq.bit();
        }
    }

    /// Raises a private interrupt of this vCPU: an edge, latched. `lrs` is where this vCPU's list registers are now.
    ///
    /// The short way, for an interrupt that had a list register before: a few loads, a read and a write of it. The
    /// value that the guest left there is right but for its state, as a change of priority comes with a service, which
    /// takes finished interrupts out.
    #[inline]
    pub fn raise<L: ListRegisters>(&mut self, irq: PrivateIntid, shared: &VcpuShared, lrs: &mut L) -> Raised {
        let bit = irq.bit();
        if shared.deliverable() & !self.slow & bit == 0 {
            return self.latch(bit, shared);
        }
        let layout = lrs.layout();
        if layout.counts_senders(irq) {
            return self.raise_sent(irq, shared, lrs);
        }
        if self.resident & bit == 0 {
            return self.place_free(irq, 0, shared, lrs);
        }
        let n = self.lr_of.get(usize::from(irq.number())).copied().map_or(0, usize::from);
        let raw = lrs.read(n);
        match layout.state(raw) {
            LrState::Inactive => lrs.write(n, layout.with_state(raw, LrState::Pending)),
            LrState::Active if self.hw & bit != 0 => {
                let _ = self.latch(bit, shared);
                return Raised::Held;
            }
            LrState::Active => lrs.write(n, layout.with_state(raw, LrState::PendingActive)),
            LrState::Pending | LrState::PendingActive => {}
        }
        Raised::Placed
    }

    #[cold]
    #[inline(never)]
    pub(super) fn latch(&mut self, bit: u32, shared: &VcpuShared) -> Raised {
        self.pending |= bit;
        self.summarize();
        if shared.deliverable() & bit == 0 { Raised::Held } else { Raised::NeedsService }
    }

    /// To be called when latches, lines, parked interrupts or the queue have changed.
    pub(super) fn summarize(&mut self) {
        self.slow =
            if self.waiting { u32::MAX } else { self.pending | self.lines | self.active | self.line_only };
    }

    /// Takes an empty list register, one that no interrupt had if there is one, for an interrupt that has none.
    #[inline(never)]
    pub(super) fn place_free<L: ListRegisters>(
        &mut self,
        irq: PrivateIntid,
        sender: u8,
        shared: &VcpuShared,
        lrs: &mut L,
    ) -> Raised {
        let empty = lrs.empty_mask() & !self.lr_spi & low_mask(lrs.count());
        let unused = empty & !self.lr_used;
        let n = lowest(if unused == 0 { empty } else { unused });
        if empty == 0 || n >= MAX_LRS {
            return self.latch(irq.bit(), shared);
        }
        self.unassign(n);
        self.assign_private(irq, n);
        lrs.write(n, self.pending_lr(irq, sender, shared, lrs.layout()));
        Raised::Placed
    }

    #[inline]
    pub(super) fn pending_lr(
        &self,
        irq: PrivateIntid,
        sender: u8,
        shared: &VcpuShared,
        layout: Layout,
    ) -> u64 {
        layout.encode(ListRegister {
            intid: u16::from(irq.number()),
            priority: shared.priority(irq),
            group: layout.group(),
            state: LrState::Pending,
            backing: self.backing(irq),
            sender,
        })
    }

    #[inline]
    pub(super) fn backing(&self, irq: PrivateIntid) -> Backing {
        if self.hw & irq.bit() == 0 {
            Backing::Software
        } else {
            Backing::Hardware(self.pintid.get(usize::from(irq.number())).copied().unwrap_or(0))
        }
    }

    /// What list register `n` is assigned to.
    pub(super) fn held(&self, n: usize) -> Option<Intid> {
        if self.lr_used & bit_at(n) == 0 {
            return None;
        }
        self.holds.get(n).copied().and_then(Intid::new)
    }

    pub(super) fn assign_private(&mut self, irq: PrivateIntid, n: usize) {
        let (Some(holds), Some(lr_of)) =
            (self.holds.get_mut(n), self.lr_of.get_mut(usize::from(irq.number())))
        else {
            return;
        };
        *holds = u16::from(irq.number());
        *lr_of = u8::try_from(n).unwrap_or(0);
        self.resident |= irq.bit();
        self.lr_used |= bit_at(n);
        self.lr_spi &= !bit_at(n);
    }

    /// Frees list register `n`; a SPI's part in the domain's state is the caller's.
    pub(super) fn unassign(&mut self, n: usize) {
        if let Some(Intid::Private(irq)) = self.held(n) {
            self.resident &= !irq.bit();
        }
        self.lr_used &= !bit_at(n);
        self.lr_spi &= !bit_at(n);
    }

    /// Takes what other CPUs raised. With nothing there this is one load; the rest is bounded by the 32 private
    /// interrupts. `None` if there was nothing.
    #[inline]
    pub fn take_remote<L: ListRegisters>(&mut self, shared: &VcpuShared, lrs: &mut L) -> Option<Raised> {
        if shared.has_mail() { Some(self.take_mail(shared, lrs)) } else { None }
    }

    fn take_mail<L: ListRegisters>(&mut self, shared: &VcpuShared, lrs: &mut L) -> Raised {
        let mail = shared.take_mail();
        let first = if mail.service { Raised::NeedsService } else { Raised::Held };
        bits(mail.raised)
            .filter_map(|n| u8::try_from(n).ok().and_then(PrivateIntid::new))
            .fold(first, |all, irq| all.and(self.raise(irq, shared, lrs)))
    }

    /// Moves the list registers to memory and leaves the hardware's empty for the next vCPU. Returns what [`hw_in_flight`](Self::hw_in_flight) does.
    ///
    /// A private interrupt's that is empty has nothing to keep, and is left as it is: to the virtual interface it is no interrupt, whatever its other
    /// fields say (State 0 with no end of interrupt to be told: IHI 0069, 12.4.8 `ICH_ELRSR_EL2`; IHI 0048, 5.3.9 `GICH_ELSR`), so it can be
    /// neither delivered nor ended nor counted by the next guest.
    #[inline(always)]
    pub fn save<L: ListRegisters>(&mut self, lrs: &mut L) -> u32 {
        if self.lr_used != 0 {
            let kept = !lrs.empty_mask() | self.lr_spi;
            // Memory has had zeros for them since they were put into the hardware.
            for n in bits(self.lr_used & !kept) {
                let held = self.holds.get(n).copied().unwrap_or(0);
                self.resident &= !1_u32.wrapping_shl(held.into());
            }
            self.lr_used &= kept;
        }
        if self.lr_used == 0 { self.pending & self.hw } else { self.save_used(lrs) }
    }

    #[inline(never)]
    fn save_used<L: ListRegisters>(&mut self, lrs: &mut L) -> u32 {
        let mut in_flight = self.pending & self.hw;
        for n in bits(self.lr_used) {
            let raw = lrs.read(n);
            self.parked.write(n, raw);
            in_flight |= self.hw_behind(n, raw, lrs.layout());
            if raw != 0 {
                lrs.write(n, 0);
            }
        }
        in_flight
    }

    /// Puts the list registers back into hardware that [`save`](Self::save) emptied. Returns what [`hw_in_flight`](Self::hw_in_flight) does.
    #[inline(always)]
    pub fn restore<L: ListRegisters>(&mut self, lrs: &mut L) -> u32 {
        if self.lr_used == 0 { self.pending & self.hw } else { self.restore_used(lrs) }
    }

    #[inline(never)]
    fn restore_used<L: ListRegisters>(&mut self, lrs: &mut L) -> u32 {
        let mut in_flight = self.pending & self.hw;
        for n in bits(self.lr_used) {
            let raw = self.parked.read(n);
            lrs.write(n, raw);
            self.parked.write(n, 0);
            in_flight |= self.hw_behind(n, raw, lrs.layout());
        }
        in_flight
    }

    /// Assigned list registers that say something.
    #[inline]
    fn occupied<L: ListRegisters>(&self, lrs: &L) -> u32 {
        if self.lr_used == 0 { 0 } else { self.lr_used & !lrs.empty_mask() }
    }

    /// The private interrupt with a physical one behind it that is pending or active in list register `n`, which says `raw`.
    #[inline]
    fn hw_behind(&self, n: usize, raw: u64, layout: Layout) -> u32 {
        match self.held(n) {
            Some(Intid::Private(irq)) if layout.state(raw) != LrState::Inactive => irq.bit() & self.hw,
            Some(Intid::Private(_) | Intid::Shared(_)) | None => 0,
        }
    }

    /// Drops private interrupts that are pending or active: the vCPU is off, and about to start. Shared ones are the domain's and stay, and so
    /// does that of events: while the upcall byte is set nobody raises it again.
    pub fn forget(&mut self, shared: &VcpuShared) {
        let layout = self.parked.layout;
        let events = PrivateIntid::EVENT_UPCALL.bit();
        let mut left = self.pending & events;
        for n in bits(self.lr_used & !self.lr_spi) {
            let raw = self.parked.read(n);
            if self.held(n) == Some(Intid::Private(PrivateIntid::EVENT_UPCALL))
                && layout.state(raw).is_pending()
            {
                left = events;
            }
            self.parked.write(n, 0);
        }
        self.lr_used &= self.lr_spi;
        (self.pending, self.active, self.resident, self.line_only) = (left, 0, 0, 0);
        self.summarize();
        shared.forget();
    }

    /// Whether interrupts wait for list registers. Which maintenance interrupt tells of room is the CPU's, not the vCPU's: who puts a vCPU
    /// with waiting ones into a CPU must call [`service`](Self::service), which asks for it anew.
    pub const fn waits(&self) -> bool {
        self.waiting
    }

    /// The list registers while this vCPU is not loaded.
    pub const fn parked(&self) -> &ParkedLrs {
        &self.parked
    }

    /// Works on this vCPU with its list registers in memory.
    pub fn with_parked<R>(&mut self, work: impl FnOnce(&mut Self, &mut ParkedLrs) -> R) -> R {
        let mut lrs = self.parked;
        let result = work(self, &mut lrs);
        self.parked = lrs;
        result
    }

    /// Private interrupts whose physical ones EL2 has taken and nobody deactivated: on a CPU that this vCPU enters the
    /// image makes these active, on one that it leaves inactive.
    pub fn hw_in_flight<L: ListRegisters>(&self, lrs: &L) -> u32 {
        bits(self.occupied(lrs))
            .fold(self.pending & self.hw, |mask, n| mask | self.hw_behind(n, lrs.read(n), lrs.layout()))
    }

    /// Whether the guest has an interrupt of higher priority than `mask` (`ICC_PMR_EL1`; 0xff lets all through) to
    /// take: then WFI must not sleep. What the guest's PSTATE.I or running priority hold back counts too, and so does
    /// mail, whatever is in it.
    pub fn has_deliverable<L: ListRegisters>(&self, shared: &VcpuShared, lrs: &L, mask: u8) -> bool {
        if shared.has_mail_before_sleep() || self.waiting {
            return true;
        }
        let latched = (self.pending | self.lines & !shared.edge()) & shared.deliverable() & !self.active;
        let layout = lrs.layout();
        let in_lr = |n| {
            let lr = layout.decode(lrs.read(n));
            lr.state == LrState::Pending && lr.priority < mask
        };
        let above =
            |n| u8::try_from(n).ok().and_then(PrivateIntid::new).is_some_and(|i| shared.priority(i) < mask);
        latched != 0 && bits(latched & !self.blocked(lrs)).any(above) || bits(self.occupied(lrs)).any(in_lr)
    }

    /// Private interrupts that are active in a list register: latched, they cannot be delivered before that ends.
    fn blocked<L: ListRegisters>(&self, lrs: &L) -> u32 {
        let layout = lrs.layout();
        bits(self.occupied(lrs)).fold(0, |mask, n| match self.held(n) {
            Some(Intid::Private(irq)) if layout.state(lrs.read(n)).is_active() => mask | irq.bit(),
            Some(Intid::Private(_) | Intid::Shared(_)) | None => mask,
        })
    }
}
