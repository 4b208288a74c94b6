//! A page of memory that others may change at any time: shared with another guest or with the hypervisor.
//!
//! 1. Its words are touched by atomic accesses of 32 bits only, so that a peer who writes at the same time can give wrong values
//!    but never undefined behaviour.
use alloc::boxed::Box;
use core::sync::atomic::{AtomicU32, Ordering};

use pv_abi::PAGE_SIZE;

/// Words in a frame.
pub const WORDS: usize = PAGE_SIZE / 4;

/// One page, page-aligned.
#[repr(C, align(4096))]
pub struct Frame([AtomicU32; WORDS]);

const _: () = assert!(size_of::<Frame>() == PAGE_SIZE && align_of::<Frame>() == PAGE_SIZE);

impl Frame {
    /// A page of zeros.
    pub const fn zeroed() -> Self {
        Self([const { AtomicU32::new(0) }; WORDS])
    }

    /// A page of zeros on the heap.
    pub fn boxed() -> Box<Self> {
        Box::new(Self::zeroed())
    }

    /// Its words.
    pub const fn words(&self) -> &[AtomicU32; WORDS] {
        &self.0
    }

    /// Copies its beginning into `bytes`, at most a page; returns how many bytes were copied.
    pub fn read(&self, bytes: &mut [u8]) -> usize {
        let length = bytes.len().min(PAGE_SIZE);
        for (chunk, word) in bytes.chunks_mut(4).zip(&self.0) {
            let value = word.load(Ordering::Relaxed).to_le_bytes();
            chunk.iter_mut().zip(value).for_each(|(to, from)| *to = from);
        }
        length
    }

    /// Copies `bytes`, at most a page, to its beginning; returns how many were copied. Bytes of the last word that `bytes`
    /// does not reach become zero.
    pub fn write(&self, bytes: &[u8]) -> usize {
        let length = bytes.len().min(PAGE_SIZE);
        for (chunk, word) in bytes.chunks(4).zip(&self.0) {
            let mut value = [0; 4];
            value.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
            word.store(u32::from_le_bytes(value), Ordering::Relaxed);
        }
        length
    }
}

#[cfg(test)]
mod tests {
    use super::{Frame, PAGE_SIZE};

    #[test]
    fn what_was_written_is_read_back() {
        let frame = Frame::boxed();
        let bytes: Vec<u8> = (0..PAGE_SIZE).map(|index| u8::try_from(index % 251).unwrap()).collect();
        assert_eq!(frame.write(&bytes), PAGE_SIZE);
        let mut back = vec![0; PAGE_SIZE];
        assert_eq!(frame.read(&mut back), PAGE_SIZE);
        assert_eq!(back, bytes);
    }

    #[test]
    fn odd_lengths_and_excess_are_cut() {
        let frame = Frame::zeroed();
        assert_eq!(frame.write(&[1, 2, 3, 4, 5, 6, 7]), 7);
        let mut back = [0xff; 8];
        assert_eq!(frame.read(&mut back[..7]), 7);
        assert_eq!(back, [1, 2, 3, 4, 5, 6, 7, 0xff]);
        assert_eq!(frame.write(&[9; PAGE_SIZE + 1]), PAGE_SIZE);
    }
}
