//! Device registers, touched by one fixed `ldr` or `str` each: a compiler may turn a volatile access into a form (writeback, pair)
//! whose trap the hypervisor cannot describe, so plain volatile accesses are not used.
//!
//! 1. A [`Registers`] is made only for a range that the device tree names and the page tables map as a device.
#![expect(unsafe_code, reason = "single load and store instructions on device addresses")]
use core::arch::asm;

/// A range of device registers.
#[derive(Clone, Copy, Debug)]
pub struct Registers {
    base: usize,
    size: usize,
}

impl Registers {
    /// The registers at a mapped device range, bytes.
    pub(crate) const fn new(base: usize, size: usize) -> Self {
        Self { base, size }
    }

    /// `size` bytes of them from `offset`, if they are that large.
    pub(crate) const fn part(self, offset: usize, size: usize) -> Option<Self> {
        if size <= self.size && offset <= self.size - size {
            Some(Self { base: self.base + offset, size })
        } else {
            None
        }
    }

    /// Address of the register at `offset`, if there is one of 32 bits.
    pub(crate) const fn address(self, offset: usize) -> Option<usize> {
        if self.holds(offset, 4) { Some(self.base + offset) } else { None }
    }

    /// Reads the 32-bit register at `offset`; beyond the range, 0.
    #[inline]
    pub fn read32(self, offset: usize) -> u32 {
        let value;
        if !self.holds(offset, 4) {
            return 0;
        }
        // SAFETY: invariant 1, and the offset was checked and is aligned.
        unsafe {
            asm!("ldr {0:w}, [{1}]", out(reg) value, in(reg) self.base + offset, options(nostack, preserves_flags));
        }
        value
    }

    /// Writes the 32-bit register at `offset`; beyond the range, nothing.
    #[inline]
    pub fn write32(self, offset: usize, value: u32) {
        if self.holds(offset, 4) {
            // SAFETY: invariant 1, and the offset was checked and is aligned.
            unsafe {
                asm!("str {0:w}, [{1}]", in(reg) value, in(reg) self.base + offset, options(nostack, preserves_flags));
            }
        }
    }

    /// Reads the 64-bit register at `offset`; beyond the range, 0.
    pub fn read64(self, offset: usize) -> u64 {
        let value;
        if !self.holds(offset, 8) {
            return 0;
        }
        // SAFETY: invariant 1, and the offset was checked and is aligned.
        unsafe {
            asm!("ldr {0}, [{1}]", out(reg) value, in(reg) self.base + offset, options(nostack, preserves_flags));
        }
        value
    }

    /// Writes the 64-bit register at `offset`; beyond the range, nothing.
    #[inline]
    pub fn write64(self, offset: usize, value: u64) {
        if self.holds(offset, 8) {
            // SAFETY: as in `read32`.
            unsafe {
                asm!("str {0}, [{1}]", in(reg) value, in(reg) self.base + offset, options(nostack, preserves_flags));
            }
        }
    }

    /// Writes one byte at `offset`; beyond the range, nothing.
    pub fn write8(self, offset: usize, value: u8) {
        if self.holds(offset, 1) {
            // SAFETY: invariant 1, and the offset was checked.
            unsafe {
                asm!("strb {0:w}, [{1}]", in(reg) u32::from(value), in(reg) self.base + offset, options(nostack, preserves_flags));
            }
        }
    }

    const fn holds(self, offset: usize, width: usize) -> bool {
        offset.is_multiple_of(width) && width <= self.size && offset <= self.size - width
    }
}
