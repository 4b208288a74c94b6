//! A domain on a machine with a virtual CPU interface for each vCPU, as small as the tests need.

use crate::vgic::{
    Access, AccessSize, Backing, DistState, Frame, Intid, Layout, Line, ListRegisters, LrState, Maintenance,
    MmioRead, MmioWrite, PrivateIntid, Raised, Serviced, Spi, SpiBits, VcpuGic, VcpuNumber, VcpuShared,
    decode_sgir,
};

/// What a guest reads in `GICC_IAR`: INTID 9:0, a SGI's sender 12:10.
fn named(lr: crate::vgic::ListRegister) -> u16 {
    lr.intid | u16::from(lr.sender) << 10
}

/// List registers with the guest's side of the CPU interface (IHI 0069, 4.8 and 6.1): the highest pending is
/// acknowledged, EOI deactivates too (`EOImode` 0), priorities do not mask nested interrupts.
#[derive(Clone)]
pub(super) struct CpuInterface {
    layout: Layout,
    lrs: Vec<u64>,
    /// Physical INTIDs that the guest's EOI deactivated.
    pub(super) deactivated: Vec<u16>,
    pub(super) reads: core::cell::Cell<usize>,
    pub(super) writes: usize,
}

impl CpuInterface {
    pub(super) fn new(layout: Layout, count: usize) -> Self {
        Self { layout, lrs: vec![0; count], deactivated: Vec::new(), reads: 0.into(), writes: 0 }
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = crate::vgic::ListRegister> + '_ {
        self.lrs.iter().map(|raw| self.layout.decode(*raw)).filter(|lr| lr.state != LrState::Inactive)
    }

    pub(super) fn acknowledge(&mut self) -> Option<u16> {
        let layout = self.layout;
        let best = self
            .lrs
            .iter_mut()
            .filter(|raw| layout.decode(**raw).state == LrState::Pending)
            .min_by_key(|raw| layout.decode(**raw).priority)?;
        *best = layout.with_state(*best, LrState::Active);
        Some(named(layout.decode(*best)))
    }

    /// Whether an active interrupt was found.
    pub(super) fn end(&mut self, intid: u16) -> bool {
        let layout = self.layout;
        let found = self.lrs.iter_mut().find(|raw| {
            let lr = layout.decode(**raw);
            named(lr) == intid && lr.state.is_active()
        });
        let Some(raw) = found else { return false };
        let lr = layout.decode(*raw);
        if let Backing::Hardware(pintid) = lr.backing {
            assert_eq!(lr.state, LrState::Active, "a physical interrupt cannot be pending and active");
            self.deactivated.push(pintid);
        }
        let left = if lr.state == LrState::PendingActive { LrState::Pending } else { LrState::Inactive };
        *raw = layout.with_state(*raw, left);
        true
    }

    pub(super) fn active(&self) -> Vec<u16> {
        self.entries().filter(|lr| lr.state.is_active()).map(named).collect()
    }

    /// `ICH_EISR_EL2`: some deactivation is to be looked at.
    fn end_of_interrupt_due(&self) -> bool {
        self.lrs.iter().any(|raw| {
            let lr = self.layout.decode(*raw);
            lr.state == LrState::Inactive && lr.backing == Backing::SoftwareNotify
        })
    }
}

impl ListRegisters for CpuInterface {
    fn layout(&self) -> Layout {
        self.layout
    }
    fn count(&self) -> usize {
        self.lrs.len()
    }
    fn read(&self, n: usize) -> u64 {
        self.reads.set(self.reads.get() + 1);
        self.lrs[n]
    }
    fn write(&mut self, n: usize, value: u64) {
        self.writes += 1;
        self.lrs[n] = value;
    }
    fn empty_mask(&self) -> u32 {
        (0..self.lrs.len()).fold(0, |mask, n| {
            let lr = self.layout.decode(self.lrs[n]);
            let empty = lr.state == LrState::Inactive && lr.backing != Backing::SoftwareNotify;
            mask | u32::from(empty) << n
        })
    }
}

/// The whole domain, every vCPU on a CPU of its own.
pub(super) struct Machine {
    pub(super) dist: DistState,
    pub(super) shared: Vec<VcpuShared>,
    pub(super) gics: Vec<VcpuGic>,
    pub(super) cpus: Vec<CpuInterface>,
    pub(super) loaded: Vec<bool>,
    pub(super) maintenance: Vec<Maintenance>,
    /// Private interrupts whose physical ones a service asked to deactivate, and SPIs.
    pub(super) deactivate: Vec<u32>,
    pub(super) deactivate_spis: SpiBits,
}

pub(super) fn vcpu(n: usize) -> VcpuNumber {
    VcpuNumber::new(n).unwrap()
}

pub(super) fn private(n: u8) -> PrivateIntid {
    PrivateIntid::new(n).unwrap()
}

impl Machine {
    pub(super) fn new(vcpus: usize, spis: usize, layout: Layout, lrs: usize) -> Self {
        Self {
            dist: DistState::new(vcpus, spis),
            shared: (0..vcpus).map(|_| VcpuShared::new()).collect(),
            gics: (0..vcpus).map(|n| VcpuGic::new(vcpu(n), layout, lrs)).collect(),
            cpus: (0..vcpus).map(|_| CpuInterface::new(layout, lrs)).collect(),
            loaded: vec![true; vcpus],
            maintenance: vec![Maintenance::None; vcpus],
            deactivate: vec![0; vcpus],
            deactivate_spis: SpiBits::default(),
        }
    }

    /// One vCPU with four list registers, everything enabled at priority 0xa0.
    pub(super) fn running(vcpus: usize, spis: usize) -> Self {
        let mut machine = Self::new(vcpus, spis, Layout::V3, 4);
        machine.enable_all(0xa0);
        machine
    }

    /// vCPUs with the four list registers of a GIC-400, everything enabled at priority 0xa0 through its distributor.
    pub(super) fn running_v2(vcpus: usize, spis: usize) -> Self {
        Self::running_v2_on(vcpus, spis, 4)
    }

    /// The same with another number of list registers.
    pub(super) fn running_v2_on(vcpus: usize, spis: usize, lrs: usize) -> Self {
        let mut machine = Self::new(vcpus, spis, Layout::V2, lrs);
        let frame = Frame::DistributorV2;
        for me in 0..vcpus {
            for word in 0..=machine.dist.spi_words() as u64 {
                for n in 0..8 {
                    machine.write(me, frame, 0x400 + 32 * word + 4 * n, 0xa0a0_a0a0);
                }
                machine.write(me, frame, 0x100 + 4 * word, 0xffff_ffff);
            }
        }
        machine.write(0, frame, 0, 1);
        machine
    }

    pub(super) fn enable_all(&mut self, priority: u64) {
        self.write(0, Frame::Distributor, 0, 2);
        for n in 0..self.gics.len() as u64 {
            let frame = n * 0x2_0000 + 0x1_0000;
            for word in 0..8 {
                self.write(0, Frame::Redistributor, frame + 0x400 + 4 * word, priority * 0x0101_0101);
            }
            self.write(0, Frame::Redistributor, frame + 0x100, 0xffff_ffff);
        }
        for word in 1..=self.dist.spi_words() as u64 {
            for n in 0..8 {
                self.write(0, Frame::Distributor, 0x400 + 32 * word + 4 * n, priority * 0x0101_0101);
            }
            self.write(0, Frame::Distributor, 0x100 + 4 * word, 0xffff_ffff);
        }
    }

    pub(super) fn access(&mut self, me: usize, access: Access, value: u64) -> MmioWrite {
        let written = if self.loaded[me] {
            self.gics[me].mmio_write(&mut self.dist, &self.shared[..], &mut self.cpus[me], access, value)
        } else {
            let (dist, shared) = (&mut self.dist, &self.shared[..]);
            self.gics[me].with_parked(|gic, lrs| gic.mmio_write(dist, shared, lrs, access, value))
        };
        if let Some(done) = written.serviced {
            self.note(me, done);
        }
        written
    }

    pub(super) fn write(&mut self, me: usize, frame: Frame, offset: u64, value: u64) -> MmioWrite {
        let written = self.access(me, Access { frame, offset, size: AccessSize::Word }, value);
        self.settle();
        written
    }

    pub(super) fn read_as(&mut self, me: usize, access: Access) -> MmioRead {
        let read = if self.loaded[me] {
            self.gics[me].mmio_read(&mut self.dist, &self.shared[..], &mut self.cpus[me], access)
        } else {
            let (dist, shared) = (&mut self.dist, &self.shared[..]);
            self.gics[me].with_parked(|gic, lrs| gic.mmio_read(dist, shared, lrs, access))
        };
        if let Some(done) = read.serviced {
            self.note(me, done);
        }
        if access.frame == Frame::Distributor
            && access.size == AccessSize::Word
            && DistState::is_plain(access.offset)
        {
            assert_eq!(
                (self.dist.plain_word(access.offset), read.serviced),
                (read.value, None),
                "{access:?}"
            );
        }
        read
    }

    pub(super) fn read(&mut self, me: usize, frame: Frame, offset: u64) -> u64 {
        self.read_as(me, Access { frame, offset, size: AccessSize::Word }).value
    }

    /// A `GICv2`'s SGI comes from the first vCPU.
    pub(super) fn raise(&mut self, me: usize, irq: u8) -> Raised {
        if irq < 16 {
            self.shared[me].note_sender(private(irq), VcpuNumber::BOOT);
        }
        self.raise_noted(me, irq)
    }

    /// Sends a SGI with `GICD_SGIR`, as the image does it; targets that are not the sender look when they are let.
    pub(super) fn send(&mut self, me: usize, sgir: u32) {
        let sgi = decode_sgir(sgir, vcpu(me), self.gics.len());
        for target in sgi.targets.iter() {
            self.shared[target.get()].note_sender(sgi.intid, vcpu(me));
            if target == vcpu(me) {
                let _ = self.raise_noted(me, sgi.intid.number());
            } else {
                let _ = self.shared[target.get()].raise_remote(Intid::Private(sgi.intid));
            }
        }
    }

    fn raise_noted(&mut self, me: usize, irq: u8) -> Raised {
        let raised = if self.loaded[me] {
            self.gics[me].raise(private(irq), &self.shared[me], &mut self.cpus[me])
        } else {
            let shared = &self.shared[me];
            self.gics[me].with_parked(|gic, lrs| gic.raise(private(irq), shared, lrs))
        };
        if raised == Raised::NeedsService {
            self.service(me);
        }
        self.settle();
        raised
    }

    pub(super) fn set_line(&mut self, me: usize, irq: u8, line: Line) {
        if self.gics[me].set_line(private(irq), line, &self.shared[me]) == Raised::NeedsService {
            self.service(me);
        }
        self.settle();
    }

    pub(super) fn raise_remote(&mut self, me: usize, intid: u16) {
        self.post(me, intid);
        self.settle();
    }

    /// Raises from another CPU; nobody looks yet.
    pub(super) fn post(&mut self, me: usize, intid: u16) {
        let intid = Intid::new(intid).unwrap();
        if let Intid::Private(irq) = intid {
            self.shared[me].note_sender(irq, VcpuNumber::BOOT);
        }
        let _ = self.shared[me].raise_remote(intid);
    }

    /// [`post`](Self::post) of a SGI whose sender is not noted.
    pub(super) fn post_only(&mut self, me: usize, intid: u16) {
        let _ = self.shared[me].raise_remote(Intid::new(intid).unwrap());
    }

    pub(super) fn raise_spi(&mut self, spi: u8) {
        let _ = self.dist.raise_spi(Spi::new(spi), &self.shared[..]);
        self.settle();
    }

    pub(super) fn set_spi_line(&mut self, spi: u8, line: Line) {
        let _ = self.dist.set_spi_line(Spi::new(spi), line, &self.shared[..]);
        self.settle();
    }

    pub(super) fn acknowledge(&mut self, me: usize) -> Option<u16> {
        assert!(self.loaded[me]);
        self.settle();
        let taken = self.cpus[me].acknowledge();
        self.settle();
        taken
    }

    pub(super) fn end(&mut self, me: usize, intid: u16) {
        assert!(self.cpus[me].end(intid), "INTID {intid} is not active on vCPU {me}");
        self.settle();
    }

    /// Takes the vCPU off its CPU, or puts it back.
    pub(super) fn switch(&mut self, me: usize) {
        if self.loaded[me] {
            let in_flight = self.gics[me].hw_in_flight(&self.cpus[me]);
            assert_eq!(self.gics[me].save(&mut self.cpus[me]), in_flight);
            assert_eq!(self.cpus[me].entries().count(), 0);
            assert_eq!(self.cpus[me].empty_mask(), (1 << self.cpus[me].count()) - 1);
        } else {
            let in_flight = self.gics[me].restore(&mut self.cpus[me]);
            assert_eq!(in_flight, self.gics[me].hw_in_flight(&self.cpus[me]));
            // Another vCPU had the CPU, and asked for a maintenance interrupt of its own, or none.
            self.maintenance[me] = Maintenance::None;
            self.loaded[me] = true;
            if self.gics[me].waits() {
                self.service(me);
            }
            self.loaded[me] = false;
        }
        self.loaded[me] = !self.loaded[me];
        self.settle();
    }

    pub(super) fn service(&mut self, me: usize) {
        let done = if self.loaded[me] {
            self.gics[me].service(&mut self.dist, &self.shared[..], &mut self.cpus[me])
        } else {
            let (dist, shared) = (&mut self.dist, &self.shared[..]);
            self.gics[me].with_parked(|gic, lrs| gic.service(dist, shared, lrs))
        };
        self.note(me, done);
    }

    fn note(&mut self, me: usize, done: Serviced) {
        self.maintenance[me] = done.maintenance;
        assert!(!self.loaded[me] || !self.asserted(me), "asserted at once");
        self.deactivate[me] |= done.deactivate;
        for spi in self.dist.take_released().iter() {
            self.deactivate_spis.insert(spi);
        }
        for target in done.kick.iter() {
            assert!(self.shared[target.get()].has_mail(), "a kick without mail");
        }
    }

    fn maintenance_due(&self, me: usize) -> bool {
        self.loaded[me] && (self.cpus[me].end_of_interrupt_due() || self.asserted(me))
    }

    /// Whether the requested maintenance interrupt is asserted (`ICH_MISR_EL2.NP`, `U`).
    fn asserted(&self, me: usize) -> bool {
        let mut entries = self.cpus[me].entries();
        match self.maintenance[me] {
            Maintenance::None => false,
            Maintenance::NoPending => entries.all(|lr| lr.state != LrState::Pending),
            Maintenance::Underflow => entries.count() <= 1,
        }
    }

    /// Lets every CPU do what it was asked to, to the end.
    pub(super) fn settle(&mut self) {
        for _ in 0..64 {
            let mut idle = true;
            for me in 0..self.gics.len() {
                let taken = if self.loaded[me] {
                    self.gics[me].take_remote(&self.shared[me], &mut self.cpus[me])
                } else {
                    let shared = &self.shared[me];
                    self.gics[me].with_parked(|gic, lrs| gic.take_remote(shared, lrs))
                };
                if taken == Some(Raised::NeedsService) || self.maintenance_due(me) {
                    self.service(me);
                    idle = false;
                }
            }
            if idle {
                self.check();
                return;
            }
        }
        panic!("the CPUs never come to rest");
    }

    /// Invariants 1 and 4, and legal list registers.
    fn check(&self) {
        let mut spis = Vec::new();
        for me in 0..self.gics.len() {
            let file: Vec<_> = if self.loaded[me] {
                self.cpus[me].entries().collect()
            } else {
                let parked = self.gics[me].parked();
                (0..parked.count())
                    .map(|n| parked.layout().decode(parked.read(n)))
                    .filter(|lr| lr.state != LrState::Inactive)
                    .collect()
            };
            let mut private = Vec::new();
            for lr in file {
                let list = if lr.intid < 32 { &mut private } else { &mut spis };
                assert!(!list.contains(&lr.intid), "INTID {} is in two list registers", lr.intid);
                list.push(lr.intid);
                if let Backing::Hardware(_) = lr.backing {
                    assert_ne!(lr.state, LrState::PendingActive);
                }
            }
        }
    }

    /// Whether the vCPU has something to take, as WFI asks.
    pub(super) fn has_deliverable(&self, me: usize, mask: u8) -> bool {
        if self.loaded[me] {
            self.gics[me].has_deliverable(&self.shared[me], &self.cpus[me], mask)
        } else {
            self.gics[me].has_deliverable(&self.shared[me], self.gics[me].parked(), mask)
        }
    }
}
