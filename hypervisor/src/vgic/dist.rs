//! The distributor of one domain: all SPI state, and requests for private interrupts. Guarded by the domain's lock.

use super::ids::{MAX_SPIS, MAX_VCPUS, SPI_WORDS, Spi, SpiBits, VcpuMask, VcpuNumber, bits};
use super::shared::Vcpus;

/// What guests asked of a vCPU's private interrupts through MMIO; its owner applies it in `service`.
///
/// A set after a clear leaves both, a clear after a set only the clear: so clearing first and setting then gives what
/// the last write of each bit asked for.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Requests {
    pub(super) set_pending: u32,
    pub(super) clear_pending: u32,
    pub(super) set_active: u32,
    pub(super) clear_active: u32,
}

/// The distributor.
#[derive(Clone, Debug)]
pub struct DistState {
    /// `GICD_CTLR.EnableGrp1A`, as it reads back.
    pub(super) group1_enabled: bool,
    /// Whether interrupts are forwarded: the above, or the legacy bit 0, which Xen's guests may use as Xen forwards
    /// without either.
    pub(super) forwarding: bool,
    vcpus: usize,
    spi_words: usize,
    pub(super) enabled: SpiBits,
    pub(super) edge: SpiBits,
    /// Latched, and not pending in a list register.
    pub(super) latch: SpiBits,
    pub(super) lines: SpiBits,
    /// Active when last looked at; in a list register if `resident`.
    pub(super) active: SpiBits,
    /// In a list register of vCPU `holder`.
    pub(super) resident: SpiBits,
    /// Placed there as pending, and not looked at since.
    pub(super) placed: SpiBits,
    pub(super) line_only: SpiBits,
    /// For the holder to apply.
    pub(super) clear_pending: SpiBits,
    pub(super) set_active: SpiBits,
    pub(super) clear_active: SpiBits,
    /// SPIs with a physical interrupt to deactivate, since [`Self::take_released`].
    pub(super) released: SpiBits,
    pub(super) hw: SpiBits,
    pub(super) priority: [u8; MAX_SPIS],
    route: [VcpuNumber; MAX_SPIS],
    holder: [VcpuNumber; MAX_SPIS],
    pintid: [u16; MAX_SPIS],
    requests: [Requests; MAX_VCPUS],
}

impl DistState {
    /// A distributor as after reset: SPIs disabled, priority 0, routed to the first vCPU. `vcpus` is at least 1 and at
    /// most [`MAX_VCPUS`], `spis` is rounded up to a multiple of 32 and at most [`MAX_SPIS`].
    pub const fn new(vcpus: usize, spis: usize) -> Self {
        Self {
            group1_enabled: false,
            forwarding: false,
            vcpus: if vcpus > MAX_VCPUS {
                MAX_VCPUS
            } else if vcpus == 0 {
                1
            } else {
                vcpus
            },
            spi_words: if spis > MAX_SPIS { SPI_WORDS } else { spis.div_ceil(32) },
            enabled: SpiBits::EMPTY,
            edge: SpiBits::EMPTY,
            latch: SpiBits::EMPTY,
            lines: SpiBits::EMPTY,
            active: SpiBits::EMPTY,
            resident: SpiBits::EMPTY,
            placed: SpiBits::EMPTY,
            line_only: SpiBits::EMPTY,
            clear_pending: SpiBits::EMPTY,
            set_active: SpiBits::EMPTY,
            clear_active: SpiBits::EMPTY,
            released: SpiBits::EMPTY,
            hw: SpiBits::EMPTY,
            priority: [0; MAX_SPIS],
            route: [VcpuNumber::BOOT; MAX_SPIS],
            holder: [VcpuNumber::BOOT; MAX_SPIS],
            pintid: [0; MAX_SPIS],
            requests: [Requests { set_pending: 0, clear_pending: 0, set_active: 0, clear_active: 0 };
                MAX_VCPUS],
        }
    }

    /// Number of vCPUs, from 1 to [`MAX_VCPUS`].
    pub const fn vcpus(&self) -> usize {
        self.vcpus
    }

    /// Words of 32 SPIs each, at most 8.
    pub const fn spi_words(&self) -> usize {
        self.spi_words
    }

    /// Whether this domain has the SPI.
    pub fn has_spi(&self, spi: Spi) -> bool {
        spi.word() < self.spi_words
    }

    /// Declares that `spi` stands for the physical interrupt `pintid` (see `VcpuGic::declare_hw`).
    pub fn declare_hw(&mut self, spi: Spi, pintid: u16) {
        if let Some(slot) = self.pintid.get_mut(usize::from(spi.index())) {
            *slot = pintid;
            self.hw.insert(spi);
        }
    }

    /// SPIs whose physical interrupts are to be deactivated: the guest cancelled them before it took them, or took their active state away.
    pub fn take_released(&mut self) -> SpiBits {
        core::mem::take(&mut self.released)
    }

    pub(super) fn pintid(&self, spi: Spi) -> u16 {
        self.pintid.get(usize::from(spi.index())).copied().unwrap_or(0)
    }

    /// The vCPU that a SPI is routed to.
    pub fn route(&self, spi: Spi) -> VcpuNumber {
        self.route.get(usize::from(spi.index())).copied().unwrap_or(VcpuNumber::BOOT)
    }

    pub(super) fn set_route(&mut self, spi: Spi, to: VcpuNumber) {
        if let Some(slot) = self.route.get_mut(usize::from(spi.index())) {
            *slot = to;
        }
    }

    fn holder(&self, spi: Spi) -> VcpuNumber {
        self.holder.get(usize::from(spi.index())).copied().unwrap_or(VcpuNumber::BOOT)
    }

    pub(super) fn set_resident(&mut self, spi: Spi, holder: VcpuNumber) {
        if let Some(slot) = self.holder.get_mut(usize::from(spi.index())) {
            *slot = holder;
            self.resident.insert(spi);
        }
    }

    pub(super) fn priority(&self, spi: Spi) -> u8 {
        self.priority.get(usize::from(spi.index())).copied().unwrap_or(0)
    }

    /// Latched or level-high SPIs of a word, list registers apart.
    pub(super) fn pending_word(&self, word: usize) -> u32 {
        self.latch.word(word) | self.lines.word(word) & !self.edge.word(word)
    }

    /// Whether `spi` is level-sensitive and its line is high.
    pub(super) fn is_high(&self, spi: Spi) -> bool {
        self.lines.contains(spi) && !self.edge.contains(spi)
    }

    /// SPIs of a word that could go into a list register of the vCPU they are routed to.
    pub(super) fn eligible_word(&self, word: usize) -> u32 {
        if !self.forwarding || word >= self.spi_words {
            return 0;
        }
        self.pending_word(word)
            & self.enabled.word(word)
            & !self.active.word(word)
            & !self.resident.word(word)
    }

    pub(super) fn is_eligible(&self, spi: Spi) -> bool {
        self.eligible_word(spi.word()) & spi.bit() != 0
    }

    /// Raises a SPI: an edge, latched. The result are the vCPUs to kick (on the caller's own CPU: to
    /// `VcpuGic::service`).
    #[must_use = "the vCPU does not look unless it is kicked"]
    pub fn raise_spi(&mut self, spi: Spi, vcpus: &(impl Vcpus + ?Sized)) -> VcpuMask {
        if !self.has_spi(spi) {
            return VcpuMask::EMPTY;
        }
        self.latch.insert(spi);
        self.attend(spi, vcpus)
    }

    /// Sets a SPI's input line; the rising edge latches an edge-triggered one. The result is as in
    /// [`raise_spi`](Self::raise_spi).
    #[must_use = "the vCPU does not look unless it is kicked"]
    pub fn set_spi_line(&mut self, spi: Spi, line: Line, vcpus: &(impl Vcpus + ?Sized)) -> VcpuMask {
        if !self.has_spi(spi) {
            return VcpuMask::EMPTY;
        }
        match line {
            Line::High => {
                if self.lines.contains(spi) {
                    return VcpuMask::EMPTY;
                }
                self.lines.insert(spi);
                if self.edge.contains(spi) {
                    self.latch.insert(spi);
                }
            }
            Line::Low => {
                if !self.lines.remove(spi) {
                    return VcpuMask::EMPTY;
                }
            }
        }
        self.attend(spi, vcpus)
    }

    /// Whoever must look at `spi` now: the vCPU whose list register has it, or else the one to deliver it to.
    pub(super) fn concerned(&self, spi: Spi) -> Option<VcpuNumber> {
        if self.resident.contains(spi) {
            Some(self.holder(spi))
        } else if self.is_eligible(spi) || self.active.contains(spi) {
            Some(self.route(spi))
        } else {
            None
        }
    }

    /// Asks whoever must look at `spi` to service.
    pub(super) fn attend(&self, spi: Spi, vcpus: &(impl Vcpus + ?Sized)) -> VcpuMask {
        self.concerned(spi).map_or(VcpuMask::EMPTY, |vcpu| Self::request(vcpu, vcpus))
    }

    /// Asks `vcpu` to service.
    pub(super) fn request(vcpu: VcpuNumber, vcpus: &(impl Vcpus + ?Sized)) -> VcpuMask {
        let Some(shared) = vcpus.vcpu(vcpu) else { return VcpuMask::EMPTY };
        // A vCPU that was asked and has not looked may be this one: name it all the same.
        shared.request_service();
        VcpuMask::only(vcpu)
    }

    /// What is asked of a vCPU's private interrupts now.
    pub(super) fn asked(&self, vcpu: VcpuNumber) -> Requests {
        self.requests.get(vcpu.get()).copied().unwrap_or_default()
    }

    /// The pending requests for a vCPU's private interrupts.
    pub(super) fn requests(&mut self, vcpu: VcpuNumber) -> Option<&mut Requests> {
        self.requests.get_mut(vcpu.get())
    }

    /// Latches the SPIs that were raised without the lock in the mailbox of `me`, and hands on those of others.
    pub(super) fn take_raised(&mut self, me: VcpuNumber, vcpus: &(impl Vcpus + ?Sized)) -> VcpuMask {
        let mut kick = VcpuMask::EMPTY;
        let Some(mailbox) = vcpus.vcpu(me) else { return kick };
        for word in 0..self.spi_words.min(SPI_WORDS) {
            let raised = mailbox.take_spis(word);
            self.latch.insert_word(word, raised);
            for spi in bits(raised).filter_map(|bit| Spi::at(word, bit)) {
                kick = kick.union(self.hand_on(me, spi, vcpus));
            }
        }
        kick
    }

    /// As [`attend`](Self::attend), for a vCPU that is looking itself.
    pub(super) fn hand_on(&self, me: VcpuNumber, spi: Spi, vcpus: &(impl Vcpus + ?Sized)) -> VcpuMask {
        match self.concerned(spi) {
            Some(vcpu) if vcpu != me => Self::request(vcpu, vcpus),
            Some(_) | None => VcpuMask::EMPTY,
        }
    }
}

/// Level of an input line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Line {
    /// Not asserted.
    Low,
    /// Asserted.
    High,
}
