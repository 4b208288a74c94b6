//! Second half of a service: free list registers go to what the guest made active, then to the most urgent of what
//! can be delivered.

use super::dist::DistState;
use super::ids::{Intid, PrivateIntid, Spi, bit_at, bits};
use super::lr::{Backing, Layout, ListRegister, LrState, MAX_LRS};
use super::service::Work;
use super::shared::VcpuShared;
use super::vcpu::VcpuGic;

/// A candidate for a list register. The lower priority value comes first, then the lower INTID.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Place {
    priority: u8,
    intid: u16,
}

impl Place {
    /// Only the five upper priority bits decide, as in list registers.
    const fn comes_before(self, other: Self) -> bool {
        let (mine, theirs) = (self.priority & 0xf8, other.priority & 0xf8);
        mine < theirs || mine == theirs && self.intid < other.intid
    }
}

/// The most urgent `room` of those offered, in order.
struct Queue {
    places: [Place; MAX_LRS],
    room: usize,
    used: usize,
    overflowed: bool,
}

impl Queue {
    const fn new(room: usize) -> Self {
        let room = if room < MAX_LRS { room } else { MAX_LRS };
        Self {
            places: [Place { priority: 0xff, intid: u16::MAX }; MAX_LRS],
            room,
            used: 0,
            overflowed: false,
        }
    }

    /// Puts `place` where it belongs; the last one falls out if there is no room. At most 16 steps.
    fn offer(&mut self, place: Place) {
        let full = self.used >= self.room;
        self.overflowed |= full;
        let last = self.places.get(self.room.wrapping_sub(1)).copied();
        if full && !last.is_some_and(|last| place.comes_before(last)) {
            return;
        }
        let mut carried = place;
        for slot in self.places.iter_mut().take(self.room) {
            if carried.comes_before(*slot) {
                core::mem::swap(slot, &mut carried);
            }
        }
        if !full {
            self.used = self.used.saturating_add(1);
        }
    }

    /// Whether some had no room.
    const fn overflowed(&self) -> bool {
        self.overflowed
    }

    fn places(&self) -> impl Iterator<Item = Place> + '_ {
        self.places.iter().take(self.used).copied()
    }
}

impl VcpuGic {
    /// Gives list registers to interrupts that the guest made active itself, so that it can deactivate them.
    pub(super) fn place_active(&mut self, dist: &mut DistState, shared: &VcpuShared, work: &mut Work) {
        for irq in bits(self.active).filter_map(|n| u8::try_from(n).ok().and_then(PrivateIntid::new)) {
            let Some(n) = self.free_lr(Intid::Private(irq), work.count) else { break };
            self.assign_private(irq, n);
            self.active &= !irq.bit();
            work.active |= irq.bit();
            let (again, backing) = self.again_private(irq, shared, work.layout);
            work.set(n, work.active_lr(irq.number().into(), shared.priority(irq), again, backing, 0));
        }
        for word in 0..dist.spi_words() {
            let parked = dist.active.word(word) & !dist.resident.word(word);
            for spi in bits(parked).filter_map(|bit| Spi::at(word, bit)) {
                if dist.route(spi) != self.me {
                    continue;
                }
                let Some(n) = self.free_lr(Intid::Shared(spi), work.count) else { return };
                self.assign_spi(spi, n, dist);
                let (again, backing) = self.again_spi(spi, dist);
                work.set(n, work.active_lr(spi.intid(), dist.priority(spi), again, backing, 0));
            }
        }
    }

    /// Gives the remaining list registers to the most urgent of all that can be delivered.
    pub(super) fn place_pending(&mut self, dist: &mut DistState, shared: &VcpuShared, work: &mut Work) {
        let room = (0..work.count).filter(|n| self.lr_used & bit_at(*n) == 0).count();
        let mut queue = Queue::new(room);
        let private =
            (self.pending | self.lines & !shared.edge()) & shared.deliverable() & !work.active & !self.active;
        for irq in bits(private).filter_map(|n| u8::try_from(n).ok().and_then(PrivateIntid::new)) {
            queue.offer(Place { priority: shared.priority(irq), intid: u16::from(irq.number()) });
        }
        for word in 0..dist.spi_words() {
            for spi in bits(dist.eligible_word(word)).filter_map(|bit| Spi::at(word, bit)) {
                if dist.route(spi) == self.me {
                    queue.offer(Place { priority: dist.priority(spi), intid: spi.intid() });
                }
            }
        }
        self.waiting = queue.overflowed();
        for place in queue.places() {
            let Some(intid) = Intid::new(place.intid) else { continue };
            let Some(n) = self.free_lr(intid, work.count) else { break };
            let (backing, sender) = match intid {
                Intid::Private(irq) => self.deliver_private(irq, n, shared, work.layout),
                Intid::Shared(spi) => (self.deliver_spi(spi, n, dist), 0),
            };
            let lr = ListRegister {
                intid: place.intid,
                priority: place.priority,
                group: work.layout.group(),
                state: LrState::Pending,
                backing,
                sender,
            };
            work.set(n, lr);
        }
    }

    /// What is behind the interrupt, and its sender if that counts.
    fn deliver_private(
        &mut self,
        irq: PrivateIntid,
        n: usize,
        shared: &VcpuShared,
        layout: Layout,
    ) -> (Backing, u8) {
        self.assign_private(irq, n);
        let bit = irq.bit();
        if layout.counts_senders(irq) {
            return self.deliver_sent(irq, shared);
        }
        if self.pending & bit == 0 {
            self.line_only |= bit;
        }
        self.pending &= !bit;
        match self.backing(irq) {
            Backing::Software if self.lines & !shared.edge() & bit != 0 => (Backing::SoftwareNotify, 0),
            backing => (backing, 0),
        }
    }

    fn deliver_spi(&mut self, spi: Spi, n: usize, dist: &mut DistState) -> Backing {
        self.assign_spi(spi, n, dist);
        dist.placed.insert(spi);
        if !dist.latch.remove(spi) {
            dist.line_only.insert(spi);
        }
        if dist.hw.contains(spi) {
            Backing::Hardware(dist.pintid(spi))
        } else if dist.is_high(spi) {
            Backing::SoftwareNotify
        } else {
            Backing::Software
        }
    }

    /// The lowest unassigned list register, or for a private interrupt the one it had, so that fewer are rewritten.
    fn free_lr(&self, intid: Intid, count: usize) -> Option<usize> {
        let free = |n: usize| n < count && self.lr_used & bit_at(n) == 0;
        let before = match intid {
            Intid::Private(irq) => self.lr_of.get(usize::from(irq.number())).copied().map(usize::from),
            Intid::Shared(_) => None,
        };
        before.filter(|n| free(*n)).or_else(|| (0..count).find(|n| free(*n)))
    }

    fn assign_spi(&mut self, spi: Spi, n: usize, dist: &mut DistState) {
        if let Some(holds) = self.holds.get_mut(n) {
            *holds = spi.intid();
            self.lr_used |= bit_at(n);
            self.lr_spi |= bit_at(n);
            dist.set_resident(spi, self.me);
        }
    }
}
