//! Names of interrupts and vCPUs, each bounded by construction, and sets of them.

use core::fmt;

/// Most vCPUs a domain can have: one affinity-0 group, so that one SGI target list names them all.
pub const MAX_VCPUS: usize = 16;

/// Most shared interrupts of a domain.
pub const MAX_SPIS: usize = 256;

/// Words of 32 bits that hold one bit a SPI.
pub(super) const SPI_WORDS: usize = MAX_SPIS / 32;

const _: () = assert!(MAX_VCPUS <= 32 && MAX_SPIS == 256, "VcpuMask has 32 bits, Spi 8");

/// An SGI or PPI: INTID 0 to 31.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PrivateIntid(u8);

impl PrivateIntid {
    /// The virtual timer's PPI (Xen's `GUEST_TIMER_VIRT_PPI`).
    pub const VIRTUAL_TIMER: Self = Self(27);
    /// The event channel upcall (Xen's `GUEST_EVTCHN_PPI`).
    pub const EVENT_UPCALL: Self = Self(31);

    /// The private interrupt with this INTID, if it is below 32.
    pub const fn new(intid: u8) -> Option<Self> {
        if intid < 32 { Some(Self(intid)) } else { None }
    }

    /// The private interrupt in the low five bits.
    pub(super) const fn from_low_bits(value: u8) -> Self {
        Self(value & 31)
    }

    /// The INTID, below 32.
    pub const fn number(self) -> u8 {
        self.0
    }

    /// Its bit among the 32 private interrupts.
    pub const fn bit(self) -> u32 {
        1_u32.wrapping_shl(shift(self.0))
    }
}

/// A shared interrupt by its place among the SPIs: INTID 32 is `Spi` 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Spi(u8);

impl Spi {
    /// The SPI with this number, counted from 0.
    pub const fn new(number: u8) -> Self {
        Self(number)
    }

    /// Its place, from 0.
    pub const fn index(self) -> u8 {
        self.0
    }

    /// The INTID, from 32 to 287.
    pub fn intid(self) -> u16 {
        u16::from(self.0).wrapping_add(32)
    }

    pub(super) fn word(self) -> usize {
        usize::from(self.0 >> 5)
    }

    pub(super) const fn bit(self) -> u32 {
        1_u32.wrapping_shl(shift(self.0 & 31))
    }

    /// The SPI at `bit` (below 32) of `word` (below 8).
    pub(super) fn at(word: usize, bit: usize) -> Option<Self> {
        u8::try_from(word.wrapping_mul(32).wrapping_add(bit)).ok().map(Self)
    }
}

/// Any interrupt a guest can have.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Intid {
    /// SGI or PPI, INTID below 32.
    Private(PrivateIntid),
    /// SPI, INTID from 32.
    Shared(Spi),
}

impl Intid {
    /// The interrupt with this INTID, if a guest can have it.
    pub fn new(intid: u16) -> Option<Self> {
        match u8::try_from(intid) {
            Ok(low) if low < 32 => Some(Self::Private(PrivateIntid(low))),
            _ => u8::try_from(intid.wrapping_sub(32)).ok().map(|spi| Self::Shared(Spi(spi))),
        }
    }

    /// The INTID.
    pub fn number(self) -> u16 {
        match self {
            Self::Private(irq) => u16::from(irq.number()),
            Self::Shared(spi) => spi.intid(),
        }
    }
}

/// One vCPU of a domain, below [`MAX_VCPUS`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VcpuNumber(u8);

impl VcpuNumber {
    /// The first vCPU; it always exists.
    pub const BOOT: Self = Self(0);

    /// The vCPU with this index, if it is below [`MAX_VCPUS`].
    pub fn new(index: usize) -> Option<Self> {
        if index < MAX_VCPUS { u8::try_from(index).ok().map(Self) } else { None }
    }

    /// The index, below [`MAX_VCPUS`].
    pub fn get(self) -> usize {
        usize::from(self.0)
    }

    /// `MPIDR_EL1` affinity as Xen numbers vCPUs: Aff0 is the index modulo 16, Aff1 the rest.
    pub fn affinity(self) -> u64 {
        u64::from(self.0 & 0xf) | u64::from(self.0 >> 4) << 8
    }

    /// The vCPU with this affinity (`Aff3.Aff2.Aff1.Aff0` as in `GICD_IROUTER<n>`), among the first `count`.
    pub fn from_affinity(affinity: u64, count: usize) -> Option<Self> {
        const AFFINITY: u64 = 0xff_00ff_ffff;
        let index = (affinity & 0xf) | (affinity >> 4 & 0xff0);
        let candidate = Self::new(usize::try_from(index).ok()?)?;
        (candidate.affinity() == affinity & AFFINITY && candidate.get() < count).then_some(candidate)
    }
}

/// A set of vCPUs of one domain.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct VcpuMask(u32);

impl VcpuMask {
    /// No vCPU.
    pub const EMPTY: Self = Self(0);

    /// Just this one.
    pub const fn only(vcpu: VcpuNumber) -> Self {
        Self(1_u32.wrapping_shl(shift(vcpu.0)))
    }

    /// The first `count` vCPUs, at most [`MAX_VCPUS`].
    pub fn first(count: usize) -> Self {
        Self(low_mask(count.min(MAX_VCPUS)))
    }

    /// One vCPU for each bit of an SGI's target list.
    pub(super) fn from_list(list: u16) -> Self {
        Self(u32::from(list))
    }

    /// Whether no vCPU is in it.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether `vcpu` is in it.
    pub const fn contains(self, vcpu: VcpuNumber) -> bool {
        self.0 & Self::only(vcpu).0 != 0
    }

    /// With `vcpu`.
    #[must_use]
    pub const fn with(self, vcpu: VcpuNumber) -> Self {
        Self(self.0 | Self::only(vcpu).0)
    }

    /// Without `vcpu`.
    #[must_use]
    pub const fn without(self, vcpu: VcpuNumber) -> Self {
        Self(self.0 & !Self::only(vcpu).0)
    }

    /// In either.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// In both.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// One bit a vCPU.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Its vCPUs, lowest first.
    pub fn iter(self) -> impl Iterator<Item = VcpuNumber> {
        bits(self.0).filter_map(VcpuNumber::new)
    }
}

impl fmt::Debug for VcpuMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VcpuMask({:#b})", self.0)
    }
}

/// A set of SPIs.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct SpiBits([u32; SPI_WORDS]);

impl SpiBits {
    pub(super) const EMPTY: Self = Self([0; SPI_WORDS]);

    /// Whether `spi` is in it.
    pub fn contains(&self, spi: Spi) -> bool {
        self.word(spi.word()) & spi.bit() != 0
    }

    /// Whether it has no SPI.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// Its SPIs, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = Spi> + '_ {
        self.0.iter().enumerate().flat_map(|(word, set)| bits(*set).filter_map(move |bit| Spi::at(word, bit)))
    }

    /// SPIs `32 * word` to `32 * word + 31`, one bit each; none beyond the last word.
    pub(super) fn word(&self, word: usize) -> u32 {
        self.0.get(word).copied().unwrap_or(0)
    }

    pub(super) fn insert_word(&mut self, word: usize, set: u32) {
        if let Some(slot) = self.0.get_mut(word) {
            *slot |= set;
        }
    }

    pub(super) fn remove_word(&mut self, word: usize, set: u32) {
        if let Some(slot) = self.0.get_mut(word) {
            *slot &= !set;
        }
    }

    pub(super) fn insert(&mut self, spi: Spi) {
        self.insert_word(spi.word(), spi.bit());
    }

    /// Removes `spi`; whether it was there.
    pub(super) fn remove(&mut self, spi: Spi) -> bool {
        let was = self.contains(spi);
        self.remove_word(spi.word(), spi.bit());
        was
    }
}

/// A shift distance below 32.
#[expect(clippy::as_conversions, reason = "u32::from is not const")]
const fn shift(value: u8) -> u32 {
    value as u32
}

/// The lowest `count` bits.
pub(super) fn low_mask(count: usize) -> u32 {
    u32::try_from(count).ok().and_then(|n| 1_u32.checked_shl(n)).map_or(u32::MAX, |bit| bit.wrapping_sub(1))
}

/// Number of the lowest set bit, 32 if there is none.
pub(super) fn lowest(mask: u32) -> usize {
    usize::try_from(mask.trailing_zeros()).unwrap_or(32)
}

/// The bit with this number; none from 32.
pub(super) fn bit_at(number: usize) -> u32 {
    u32::try_from(number).ok().and_then(|n| 1_u32.checked_shl(n)).unwrap_or(0)
}

/// Numbers of the set bits, lowest first: at most 32 rounds.
pub(super) fn bits(mask: u32) -> impl Iterator<Item = usize> {
    let mut left = mask;
    core::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        let number = lowest(left);
        left &= left.wrapping_sub(1);
        Some(number)
    })
}
