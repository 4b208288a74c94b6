//! RAM of the fake machine; bytes are kept only where it was written.
use core::ops::Range;
use std::boxed::Box;
use std::vec::Vec;

use super::GARBAGE;
use crate::addr::{FrameAddr, Mfn};

/// What a frame holds.
#[derive(Clone, Debug)]
enum Bytes {
    Garbage,
    Zeroes,
    These(Box<[u8; 4096]>),
}

#[derive(Debug, Default)]
pub(super) struct Ram {
    frames: Range<u64>,
    /// Index = frame in `frames`.
    bytes: Vec<Bytes>,
    /// Frames that were written since they were last asked for, each once; index = frame in `frames` for `is_written`.
    written: Vec<u64>,
    is_written: Vec<bool>,
    /// What memory has and the caches hide.
    behind: Vec<(FrameAddr, Vec<u8>)>,
}

impl Ram {
    pub(super) fn new(frames: Range<u64>) -> Self {
        let count = usize::try_from(frames.end - frames.start).expect("fewer frames than addresses");
        let (bytes, is_written) = (std::vec![Bytes::Garbage; count], std::vec![false; count]);
        Self { frames, bytes, written: Vec::new(), is_written, behind: Vec::new() }
    }

    /// Shows the frames that were written since the last time.
    pub(super) fn take_written(&mut self, mut visit: impl FnMut(u64)) {
        for frame in self.written.drain(..) {
            let index = usize::try_from(frame - self.frames.start).expect("it is in the vector");
            self.is_written[index] = false;
            visit(frame);
        }
    }

    fn mark(&mut self, index: usize, frame: Mfn) {
        if !self.is_written[index] {
            self.is_written[index] = true;
            self.written.push(frame.get());
        }
    }

    /// Bytes reach memory past the caches.
    pub(super) fn write_behind(&mut self, at: FrameAddr, from: &[u8]) {
        self.behind.push((at, from.into()));
    }

    /// The caches have nothing of a frame any more: memory is seen.
    pub(super) fn invalidate(&mut self, frame: Mfn) {
        if self.behind.iter().any(|(at, _)| at.frame() == frame) {
            for (at, bytes) in core::mem::take(&mut self.behind) {
                if at.frame() == frame { self.write(at, &bytes) } else { self.behind.push((at, bytes)) }
            }
        }
    }

    pub(super) const fn frames(&self) -> &Range<u64> {
        &self.frames
    }

    pub(super) fn check(&self, frame: Mfn) {
        assert!(self.frames.contains(&frame.get()), "frame {:#x} is not RAM", frame.get());
    }

    fn index(&self, frame: Mfn) -> usize {
        self.check(frame);
        usize::try_from(frame.get() - self.frames.start).expect("it is in the vector")
    }

    pub(super) fn read(&self, at: FrameAddr, into: &mut [u8]) {
        let len = into.len().min(at.left());
        let into = &mut into[..len];
        match &self.bytes[self.index(at.frame())] {
            Bytes::These(bytes) => into.copy_from_slice(&bytes[at.offset()..at.offset() + len]),
            Bytes::Zeroes => into.fill(0),
            Bytes::Garbage => into.fill(GARBAGE),
        }
    }

    pub(super) fn write(&mut self, at: FrameAddr, from: &[u8]) {
        let len = from.len().min(at.left());
        let index = self.index(at.frame());
        self.mark(index, at.frame());
        let held = &mut self.bytes[index];
        match held {
            Bytes::These(_) => {}
            Bytes::Zeroes => *held = Bytes::These(Box::new([0; 4096])),
            Bytes::Garbage => *held = Bytes::These(Box::new([GARBAGE; 4096])),
        }
        if let Bytes::These(frame) = held {
            frame[at.offset()..at.offset() + len].copy_from_slice(&from[..len]);
        }
    }

    pub(super) fn clear(&mut self, frame: Mfn) {
        let index = self.index(frame);
        self.mark(index, frame);
        self.bytes[index] = Bytes::Zeroes;
    }

    pub(super) fn word(&self, at: FrameAddr) -> u64 {
        assert!(at.offset().is_multiple_of(8), "misaligned 64-bit word at {:#x}", at.pa().get());
        let mut bytes = [0; 8];
        self.read(at, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    pub(super) fn half(&self, at: FrameAddr) -> u32 {
        assert!(at.offset().is_multiple_of(4), "misaligned 32-bit word at {:#x}", at.pa().get());
        let mut bytes = [0; 4];
        self.read(at, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    pub(super) fn entry(&self, table: Mfn, index: usize) -> u64 {
        // Checks of whole machines read millions.
        match &self.bytes[self.index(table)] {
            Bytes::These(bytes) => u64::from_le_bytes(bytes.as_chunks().0[index]),
            Bytes::Zeroes => 0,
            Bytes::Garbage => u64::from_le_bytes([GARBAGE; 8]),
        }
    }

    /// All entries of a table; `None` where all are zero.
    pub(super) fn entries(&self, table: Mfn) -> Option<[u64; 512]> {
        match &self.bytes[self.index(table)] {
            Bytes::These(bytes) => {
                let (words, _) = bytes.as_chunks();
                Some(core::array::from_fn(|index| u64::from_le_bytes(words[index])))
            }
            Bytes::Zeroes => None,
            Bytes::Garbage => Some([u64::from_le_bytes([GARBAGE; 8]); 512]),
        }
    }

    pub(super) fn set_entry(&mut self, table: Mfn, index: usize, entry: u64) {
        let at = FrameAddr::new(table, index * 8).expect("a table has 512 entries");
        self.write(at, &entry.to_le_bytes());
    }
}
