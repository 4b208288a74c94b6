//! The numbers that a step is made of: where calls go, and with what.
use super::{HOLE, RAM_POOL};
use crate::spec::{GFN_LIMIT, SELF};

/// The numbers of a step, one after the other; zero when there are no more.
pub(in crate::drive) struct Numbers<'a>(pub(in crate::drive) &'a [u8]);

impl Numbers<'_> {
    pub(in crate::drive) fn next(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    pub(in crate::drive) fn below(&mut self, limit: u8) -> u8 {
        self.next() % limit
    }

    pub(in crate::drive) fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::from(self.next()) % of.len()]
    }

    pub(super) fn dom(&mut self) -> u16 {
        self.one(&[1, 2, SELF, 1, 2, SELF, 1, 2, 3, 1, 2, 0, 1, 2, 0x7FF4, 1])
    }

    pub(super) fn port(&mut self) -> u32 {
        match self.next() {
            byte @ 0..0xF0 => u32::from(byte % 12),
            byte => [12, 63, 64, 65, 127, 128, 1022, 1023, 1024, 4095, 4096, 0x1_0001, u32::MAX, 0, 1, 2]
                [usize::from(byte & 15)],
        }
    }

    pub(super) fn vcpu(&mut self) -> u32 {
        self.one(&[0, 1, 0, 1, 0, 1, 2, 0x1_0000])
    }

    pub(super) fn gref(&mut self) -> u32 {
        match self.next() {
            byte @ 0..0xF0 => 8 + u32::from(byte % 7),
            byte => [0, 7, 511, 512, 513, 1024, 2047, 2048, u32::MAX, 8, 8, 9, 9, 10, 11, 12]
                [usize::from(byte & 15)],
        }
    }

    pub(in crate::drive) fn gfn(&mut self) -> u64 {
        match self.next() {
            byte @ 0..0x70 => RAM_POOL[usize::from(byte) % RAM_POOL.len()],
            byte @ 0x70..0xF0 => HOLE + u64::from(byte % 8),
            byte => [0x3_8000, 0x3_8001, GFN_LIMIT - 1, GFN_LIMIT, 1 << 40, HOLE, RAM_POOL[0], RAM_POOL[8]]
                [usize::from(byte & 7)],
        }
    }

    pub(super) fn ram(&mut self) -> u64 {
        match self.next() {
            byte @ 0..0xF0 => RAM_POOL[usize::from(byte) % RAM_POOL.len()],
            byte => HOLE + u64::from(byte & 7),
        }
    }

    pub(super) fn handle(&mut self) -> u32 {
        match self.next() {
            byte @ 0..0xF8 => u32::from(byte % 12),
            byte => [13, 40, 255, 256, u32::MAX, 0, 1, 2][usize::from(byte & 7)],
        }
    }
}
