//! Values for calls: those that calls take, those at their edges, and garbage, by a seeded generator. Nothing that would end this guest:
//! no number of `sched_op`, no page or address of its memory but for the prey's, which nobody else uses.
use guest_kernel::attempt::{self, Rights};
use guest_kernel::frame::Frame;
use pv_abi::layout;

/// Pages that calls may take away, map, grant and write.
const PREY: usize = 16;
/// Pages behind them: an extent of the largest order that begins in the prey ends here.
const SLACK: usize = 512;
static FRAMES: [Frame; PREY + SLACK] = [const { Frame::zeroed() }; PREY + SLACK];
/// A page for structures, which stays.
static STRUCTURES: Frame = Frame::zeroed();
/// Where they are a second time, with nothing behind them: what runs over their end is refused.
const AT: u64 = 0x7b_0000_0000;
/// Where structures are.
pub(crate) const PAGE_AT: u64 = 0x7c_0000_0000;
/// `__HYPERVISOR_sched_op`: inside a multicall it could end this guest.
const SCHED_OP: u64 = 29;
/// This guest's RAM, and more than that.
const RAM: core::ops::Range<u64> = layout::RAM0_BASE..layout::RAM0_BASE + (1 << 28);
const PAGE: u64 = 4096;

/// A seeded generator.
pub(crate) struct Pool {
    state: u64,
    /// Guest physical address of the prey.
    prey: u64,
}

impl Pool {
    /// With its pages filled; once.
    pub(crate) fn new() -> Option<Self> {
        let prey = core::ptr::from_ref(&FRAMES).expose_provenance() as u64;
        let structures = core::ptr::from_ref(&STRUCTURES).expose_provenance() as u64;
        let mapped = attempt::alias(AT, prey, PREY as u64 * PAGE, Rights::ReadWrite)
            && attempt::alias(PAGE_AT, structures, PAGE, Rights::ReadWrite);
        let mut pool = Self { state: 1, prey };
        mapped.then(|| {
            pool.fill(AT, PREY as u64 * PAGE / 8);
            pool
        })
    }

    /// Begins anew: what follows depends on the seed only.
    pub(crate) fn seed(&mut self, seed: u64) {
        self.state = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    }

    /// The same pages, for another vCPU.
    pub(crate) const fn share(&self) -> Self {
        Self { state: 0x2545_f491_4f6c_dd1d, ..*self }
    }

    /// Marsaglia's xorshift generator.
    pub(crate) fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 8) % limit
    }

    fn pick(&mut self, of: &[u64]) -> u64 {
        of[self.below(of.len() as u64) as usize]
    }

    /// A place in the prey: an offset.
    fn offset(&mut self) -> u64 {
        self.below(PREY as u64) * PAGE + self.pick(&[0, 0, 0, 8, 64, 256, 1024, PAGE - 8])
    }

    /// An address: in the prey, of nothing, of the hypervisor's, at the ends.
    pub(crate) fn address(&mut self) -> u64 {
        match self.below(4) {
            0 => self.pick(&[0, 0x1000, 0x7e_0000_0000, 0xc000_0000, 0x40_4000_0000, u64::MAX - 7, u64::MAX]),
            _ => AT + self.offset(),
        }
    }

    /// A value of 64 bits.
    pub(crate) fn value(&mut self) -> u64 {
        loop {
            let value = match self.below(11) {
                0..=2 => self.below(17),
                // Domains: the control domain, the victims, itself, those that are reserved.
                3 => self.pick(&[0, 1, 2, 3, 0x7ff0, 0x7ff1, 0x7ff2, 0x7ff3, 0x7ff4, 0xffff]),
                4 => 1 << self.below(64),
                5 => self.pick(&[0x7f, 0x80, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 1 << 63, u64::MAX]),
                6 => (self.prey + self.offset()) / PAGE,
                // Not the prey's guest physical address: this guest's memory is mapped there, and goes on.
                7 => PAGE * self.pick(&[0x38_000, 0x5_0000, 0x6_0000, 0x700_0000]),
                8 => self.address(),
                // Guest frames where something may be placed.
                9 => self.pick(&[0x38_000, 0x5_0000, 0x6_0000, 0x700_0000, 0x10_0000_0000]) + self.below(4),
                _ => self.next(),
            };
            let value = match self.below(4) {
                // Two of 32 bits.
                0 => value & 0xffff_ffff | self.next() & 3 << 32,
                1 => value & 0xffff_ffff | value << 32,
                _ => value,
            };
            if self.is_harmless(value) {
                return value;
            }
        }
    }

    /// Whether it names nothing that this guest cannot do without.
    fn is_harmless(&self, value: u64) -> bool {
        let prey = self.prey..self.prey + PREY as u64 * PAGE;
        let own = |address: u64| RAM.contains(&address) && !prey.contains(&address);
        let low = value & 0xffff_ffff;
        value != SCHED_OP && !own(value) && !own(value.wrapping_mul(PAGE)) && !own(low) && !own(low * PAGE)
    }

    /// Writes values at an address of this guest's memory that is a multiple of 8.
    pub(crate) fn fill(&mut self, at: u64, words: u64) {
        for index in 0..words {
            let value = self.value();
            put(at + index * 8, value);
        }
    }
}

/// Writes a word of a page that the hypervisor and other vCPUs may write, too.
#[expect(unsafe_code, reason = "words that others write at the same time")]
pub(crate) fn put(at: u64, value: u64) {
    let pointer = core::ptr::with_exposed_provenance_mut::<u64>(at as usize);
    // SAFETY: callers name words of pages that they leaked, aligned, which are touched by such writes only.
    unsafe { core::sync::atomic::AtomicU64::from_ptr(pointer) }
        .store(value, core::sync::atomic::Ordering::Relaxed);
}
