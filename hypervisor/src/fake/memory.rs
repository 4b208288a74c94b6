//! RAM of the fake machine, kept only where it was touched.
use core::ops::Range;
use std::boxed::Box;
use std::collections::HashMap;

use super::GARBAGE;
use crate::addr::{FrameAddr, Mfn};

#[derive(Debug, Default)]
pub(super) struct Ram {
    frames: Range<u64>,
    /// Frames that were written or cleared; `None` is all zeroes.
    touched: HashMap<u64, Option<Box<[u8; 4096]>>>,
}

impl Ram {
    pub(super) fn new(frames: Range<u64>) -> Self {
        Self { frames, touched: HashMap::new() }
    }

    pub(super) fn check(&self, frame: Mfn) {
        assert!(self.frames.contains(&frame.get()), "frame {:#x} is not RAM", frame.get());
    }

    pub(super) fn read(&self, at: FrameAddr, into: &mut [u8]) {
        self.check(at.frame());
        let len = into.len().min(at.left());
        let into = &mut into[..len];
        match self.touched.get(&at.frame().get()) {
            Some(Some(bytes)) => into.copy_from_slice(&bytes[at.offset()..at.offset() + len]),
            Some(None) => into.fill(0),
            None => into.fill(GARBAGE),
        }
    }

    pub(super) fn write(&mut self, at: FrameAddr, from: &[u8]) {
        self.check(at.frame());
        let len = from.len().min(at.left());
        let frame = match self.touched.entry(at.frame().get()) {
            std::collections::hash_map::Entry::Occupied(entry) => {
                entry.into_mut().get_or_insert_with(|| Box::new([0; 4096]))
            }
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(None).get_or_insert_with(|| Box::new([GARBAGE; 4096]))
            }
        };
        frame[at.offset()..at.offset() + len].copy_from_slice(&from[..len]);
    }

    pub(super) fn clear(&mut self, frame: Mfn) {
        self.check(frame);
        self.touched.insert(frame.get(), None);
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
        self.word(FrameAddr::new(table, index * 8).expect("a table has 512 entries"))
    }

    pub(super) fn set_entry(&mut self, table: Mfn, index: usize, entry: u64) {
        let at = FrameAddr::new(table, index * 8).expect("a table has 512 entries");
        self.write(at, &entry.to_le_bytes());
    }
}
