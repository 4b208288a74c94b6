//! Registers of the distributor frame, with the contents that Xen gives them.
//!
//! Interrupts 0 to 31 of the arrays are the accessing vCPU's own, as in Xen (the architecture has them reserved with
//! affinity routing; its place for them is the redistributor).

use super::bank::{Bank, Decoded, Op, decode, gather, spread};
use super::dist::DistState;
use super::ids::{Intid, MAX_SPIS, Spi, VcpuMask, VcpuNumber, bits};
use super::mmio::{AccessSize, Written, read_part, word_of, write_part};
use super::shared::{VcpuShared, Vcpus};

/// `GICD_CTLR.ARE_NS`: always set, as there is no GICv2 compatibility.
const CTLR_ARE_NS: u64 = 1 << 4;
/// `GICD_CTLR.EnableGrp1A`.
const CTLR_ENABLE_GRP1A: u64 = 1 << 1;
/// `GICD_CTLR.EnableGrp1`, with affinity routing on without meaning.
const CTLR_ENABLE_GRP1: u64 = 1 << 0;
/// `GICD_IIDR` and `GICR_IIDR` as in Xen.
pub(super) const IIDR: u64 = 0x34c;
/// `GICD_PIDR2` and `GICR_PIDR2`: `ArchRev` is GICv3.
pub(super) const PIDR2: u64 = 0x30;
/// `GICD_TYPER.IDbits`: 10 bits of INTID, minus one.
const TYPER_ID_BITS: u64 = 9 << 19;
/// `GICD_IROUTER<n>.Interrupt_Routing_Mode`: any vCPU.
const IROUTER_ANY: u64 = 1 << 31;

/// Registers outside the arrays.
enum Register {
    Ctlr,
    Typer,
    Iidr,
    Pidr2,
    /// `GICD_STATUSR`, and what is the system registers' since affinity routing: zero.
    Zero,
    /// `GICD_IROUTER<n>` by its place, if the domain has the SPI.
    Route(Option<Spi>),
}

/// The register at `offset`, if there is one of that width there.
fn register(dist: &DistState, offset: u64, size: AccessSize) -> Option<Register> {
    if let 0x6100..0x7fe0 = offset {
        read_part(0, offset, size)?;
        // The register's number is its INTID: 32 at 0x6100.
        let spi = match usize::try_from((offset & 0x1fff) >> 3).ok().and_then(intid) {
            Some(Intid::Shared(spi)) if dist.has_spi(spi) => Some(spi),
            Some(Intid::Shared(_) | Intid::Private(_)) | None => None,
        };
        return Some(Register::Route(spi));
    }
    if size != AccessSize::Word {
        return None;
    }
    match offset {
        0x0000 => Some(Register::Ctlr),
        0x0004 => Some(Register::Typer),
        0x0008 => Some(Register::Iidr),
        0x0010 | 0x0f00 => Some(Register::Zero),
        0xffe8 => Some(Register::Pidr2),
        _ => None,
    }
}

impl DistState {
    /// Whether a word of the distributor is the same for all vCPUs and in no list register: `GICD_CTLR`, `GICD_TYPER`, `GICD_IIDR`.
    pub const fn is_plain(offset: u64) -> bool {
        matches!(offset, 0x0000 | 0x0004 | 0x0008)
    }

    /// Reads one of those; zero for others.
    pub fn plain_word(&self, offset: u64) -> u64 {
        match offset {
            0x0000 => self.ctlr(),
            0x0004 => self.typer(),
            0x0008 => IIDR,
            _ => 0,
        }
    }

    fn ctlr(&self) -> u64 {
        CTLR_ARE_NS | if self.group1_enabled { CTLR_ENABLE_GRP1A } else { 0 }
    }

    /// A read of the distributor by `me`; `None` if there is no register of that width.
    pub(super) fn dist_read(
        &self,
        me: VcpuNumber,
        vcpus: &(impl Vcpus + ?Sized),
        offset: u64,
        size: AccessSize,
    ) -> Option<u64> {
        match decode(offset, size) {
            Decoded::Bank(bank) => Some(self.read_bank(me, vcpus, bank)),
            Decoded::BadWidth => None,
            Decoded::Elsewhere => match register(self, offset, size)? {
                Register::Ctlr => Some(self.ctlr()),
                Register::Typer => Some(self.typer()),
                Register::Iidr => Some(IIDR),
                Register::Pidr2 => Some(PIDR2),
                Register::Zero | Register::Route(None) => Some(0),
                Register::Route(Some(spi)) => read_part(self.route(spi).affinity(), offset, size),
            },
        }
    }

    /// `GICD_TYPER`: `ITLinesNumber` 4:0, `CPUNumber` 7:5 (at most 8), `IDbits` 23:19.
    fn typer(&self) -> u64 {
        let cpus = u64::try_from(self.vcpus().clamp(1, 8)).unwrap_or(1).wrapping_sub(1);
        TYPER_ID_BITS | cpus << 5 | u64::try_from(self.spi_words()).unwrap_or(0)
    }

    /// A write to the distributor by `me`: the vCPUs that have something to service.
    pub(super) fn dist_write(
        &mut self,
        me: VcpuNumber,
        vcpus: &(impl Vcpus + ?Sized),
        offset: u64,
        size: AccessSize,
        value: u64,
    ) -> Written {
        match decode(offset, size) {
            Decoded::Bank(bank) => Some(self.write_bank(me, vcpus, bank, word_of(value))),
            Decoded::BadWidth => None,
            Decoded::Elsewhere => match register(self, offset, size)? {
                Register::Ctlr => Some(self.write_ctlr(vcpus, value)),
                Register::Route(Some(spi)) => {
                    let route = write_part(self.route(spi).affinity(), offset, size, value)?;
                    Some(self.write_route(spi, route, vcpus))
                }
                Register::Typer
                | Register::Iidr
                | Register::Pidr2
                | Register::Zero
                | Register::Route(None) => Some(VcpuMask::EMPTY),
            },
        }
    }

    fn write_ctlr(&mut self, vcpus: &(impl Vcpus + ?Sized), value: u64) -> VcpuMask {
        let forwarding = value & (CTLR_ENABLE_GRP1A | CTLR_ENABLE_GRP1) != 0;
        self.group1_enabled = value & CTLR_ENABLE_GRP1A != 0;
        self.set_forwarding(forwarding, vcpus)
    }

    /// Starts or stops delivery.
    pub(super) fn set_forwarding(&mut self, forwarding: bool, vcpus: &(impl Vcpus + ?Sized)) -> VcpuMask {
        if forwarding == self.forwarding {
            return VcpuMask::EMPTY;
        }
        self.forwarding = forwarding;
        let all = VcpuMask::first(self.vcpus());
        for number in all.iter() {
            if let Some(vcpu) = vcpus.vcpu(number) {
                vcpu.update_deliverable(forwarding);
                vcpu.request_service();
            }
        }
        all
    }

    /// A route to any vCPU is one to the first, and one to a vCPU that does not exist is ignored, as in Xen.
    fn write_route(&mut self, spi: Spi, route: u64, vcpus: &(impl Vcpus + ?Sized)) -> VcpuMask {
        let to = if route & IROUTER_ANY == 0 {
            VcpuNumber::from_affinity(route, self.vcpus())
        } else {
            Some(VcpuNumber::BOOT)
        };
        match to {
            Some(to) if to != self.route(spi) => {
                self.set_route(spi, to);
                self.attend(spi, vcpus)
            }
            Some(_) | None => VcpuMask::EMPTY,
        }
    }

    /// A read of the arrays, `of` being the vCPU whose private interrupts come first.
    pub(super) fn read_bank(&self, of: VcpuNumber, vcpus: &(impl Vcpus + ?Sized), bank: Bank) -> u64 {
        let Some(private) = vcpus.vcpu(of) else { return 0 };
        match bank {
            Bank::Enable(_, 0) => private.enabled().into(),
            Bank::Pending(_, 0) => self.private_pending(of, private).into(),
            Bank::Active(_, 0) => self.private_active(of, private).into(),
            Bank::Enable(_, word) => self.enabled.word(word.wrapping_sub(1)).into(),
            Bank::Pending(_, word) => {
                let word = word.wrapping_sub(1);
                let placed = self.placed.word(word) & !self.clear_pending.word(word);
                (self.pending_word(word) | placed).into()
            }
            Bank::Active(_, word) => {
                let word = word.wrapping_sub(1);
                (self.active.word(word) & !self.clear_active.word(word) | self.set_active.word(word)).into()
            }
            Bank::Config(n) => {
                let edge = if n < 2 { private.edge() } else { self.edge.word((n >> 1).wrapping_sub(1)) };
                spread(half(edge, n)).into()
            }
            Bank::Priority(first, count) => (0..count).rev().fold(0, |value, n| {
                value << 8 | u64::from(self.read_priority(first.wrapping_add(n), private))
            }),
            Bank::Zero => 0,
        }
    }

    fn read_priority(&self, number: usize, private: &VcpuShared) -> u8 {
        match intid(number) {
            Some(Intid::Private(irq)) => private.priority(irq),
            Some(Intid::Shared(spi)) if self.has_spi(spi) => self.priority(spi),
            Some(Intid::Shared(_)) | None => 0,
        }
    }

    /// A write to the arrays; the result are the vCPUs that have something to service.
    pub(super) fn write_bank(
        &mut self,
        of: VcpuNumber,
        vcpus: &(impl Vcpus + ?Sized),
        bank: Bank,
        value: u32,
    ) -> VcpuMask {
        match bank {
            Bank::Enable(_, 0) | Bank::Pending(_, 0) | Bank::Active(_, 0) | Bank::Config(0 | 1) => {
                self.write_private(of, vcpus, bank, value)
            }
            Bank::Enable(op, word) => self.write_enable(op, word.wrapping_sub(1), value, vcpus),
            Bank::Pending(op, word) => self.write_pending(op, word.wrapping_sub(1), value, vcpus),
            Bank::Active(op, word) => self.write_active(op, word.wrapping_sub(1), value, vcpus),
            Bank::Config(n) => self.write_config(n, value, vcpus),
            Bank::Priority(first, count) => {
                let bytes = value.to_le_bytes();
                let all = bytes.into_iter().take(count).enumerate();
                all.fold(VcpuMask::EMPTY, |asked, (n, byte)| {
                    asked.union(self.write_priority(first.wrapping_add(n), byte, of, vcpus))
                })
            }
            Bank::Zero => VcpuMask::EMPTY,
        }
    }

    fn write_priority(
        &mut self,
        number: usize,
        priority: u8,
        of: VcpuNumber,
        vcpus: &(impl Vcpus + ?Sized),
    ) -> VcpuMask {
        match intid(number) {
            Some(Intid::Private(irq)) => match vcpus.vcpu(of) {
                Some(private) if private.priority(irq) != priority => {
                    private.set_priority(irq, priority);
                    Self::request(of, vcpus)
                }
                Some(_) | None => VcpuMask::EMPTY,
            },
            Some(Intid::Shared(spi)) if self.has_spi(spi) => {
                if let Some(slot) = self.priority.get_mut(usize::from(spi.index())) {
                    *slot = priority;
                }
                self.attend(spi, vcpus)
            }
            Some(Intid::Shared(_)) | None => VcpuMask::EMPTY,
        }
    }

    fn write_enable(&mut self, op: Op, word: usize, value: u32, vcpus: &(impl Vcpus + ?Sized)) -> VcpuMask {
        let set = self.existing(word, value);
        let changed = match op {
            Op::Set => set & !self.enabled.word(word),
            Op::Clear => set & self.enabled.word(word),
        };
        match op {
            Op::Set => self.enabled.insert_word(word, changed),
            Op::Clear => self.enabled.remove_word(word, changed),
        }
        self.attend_all(word, changed, vcpus)
    }

    fn write_pending(&mut self, op: Op, word: usize, value: u32, vcpus: &(impl Vcpus + ?Sized)) -> VcpuMask {
        let set = self.existing(word, value);
        match op {
            Op::Set => {
                self.latch.insert_word(word, set);
                self.attend_all(word, set, vcpus)
            }
            Op::Clear => {
                let resident = self.resident.word(word);
                let latched = set & self.latch.word(word);
                self.latch.remove_word(word, set);
                self.clear_pending.insert_word(word, set & resident);
                let cancelled = latched & self.hw.word(word) & !resident;
                self.released.insert_word(word, cancelled);
                let asked = self.attend_all(word, set & resident, vcpus);
                bits(cancelled)
                    .filter_map(|bit| Spi::at(word, bit))
                    .fold(asked, |mask, spi| mask.union(Self::request(self.route(spi), vcpus)))
            }
        }
    }

    fn write_active(&mut self, op: Op, word: usize, value: u32, vcpus: &(impl Vcpus + ?Sized)) -> VcpuMask {
        let set = self.existing(word, value);
        let resident = self.resident.word(word);
        match op {
            Op::Set => {
                self.clear_active.remove_word(word, set);
                self.set_active.insert_word(word, set & resident);
                self.active.insert_word(word, set & !resident);
            }
            Op::Clear => {
                self.set_active.remove_word(word, set);
                self.clear_active.insert_word(word, set & resident);
                self.active.remove_word(word, set & !resident);
            }
        }
        self.attend_all(word, set, vcpus)
    }

    fn write_config(&mut self, n: usize, value: u32, vcpus: &(impl Vcpus + ?Sized)) -> VcpuMask {
        let word = (n >> 1).wrapping_sub(1);
        let before = self.edge.word(word);
        let edge = replace_half(before, n, gather(value));
        let set = self.existing(word, edge);
        self.edge.remove_word(word, !set);
        self.edge.insert_word(word, set);
        self.attend_all(word, before ^ set, vcpus)
    }

    /// Of a word of SPIs those that the domain has.
    fn existing(&self, word: usize, value: u32) -> u32 {
        if word < self.spi_words() { value } else { 0 }
    }

    fn attend_all(&self, word: usize, set: u32, vcpus: &(impl Vcpus + ?Sized)) -> VcpuMask {
        bits(set)
            .filter_map(|bit| Spi::at(word, bit))
            .fold(VcpuMask::EMPTY, |mask, spi| mask.union(self.attend(spi, vcpus)))
    }
}

/// The interrupt with this number, if guests can have it.
fn intid(number: usize) -> Option<Intid> {
    u16::try_from(number).ok().and_then(Intid::new)
}

/// The half of a word of 32 interrupts that `ICFGR<n>` has.
pub(super) fn half(word: u32, n: usize) -> u32 {
    if n & 1 == 0 { word & 0xffff } else { word >> 16 }
}

/// A word of 32 interrupts with the half that `ICFGR<n>` has replaced.
pub(super) fn replace_half(word: u32, n: usize, value: u32) -> u32 {
    if n & 1 == 0 { word & !0xffff | value & 0xffff } else { word & 0xffff | value << 16 }
}

const _: () = assert!(MAX_SPIS <= 988, "INTIDs end at 1019");
