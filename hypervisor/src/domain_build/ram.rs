//! A domain's RAM: how much in which bank, and its frames.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]
use heapless::Vec;
use pv_abi::layout::RAM_BANKS;
use pv_abi::{DomId, PAGE_SHIFT};

use super::refusal::Refusal;
use crate::addr::{Gfn, Mfn};
use crate::frame::Role;
use crate::frame_alloc::{Frames, MAX_ORDER};
use crate::hardware::Hardware;
use crate::stage2::{Kind, Stage2};

const KIB_PER_FRAME: u64 = 4;

/// Sizes of a domain's banks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Ram {
    /// (start, size) in bytes, those that are not empty.
    banks: Vec<(u64, u64), { RAM_BANKS.len() }>,
    frames: u64,
}

impl Ram {
    /// RAM of so many KiB, rounded down to whole frames: the low bank is filled first.
    pub(super) fn of_kib(kib: u64) -> Result<Self, Refusal> {
        let frames = kib / KIB_PER_FRAME;
        let mut left = frames.checked_mul(1 << PAGE_SHIFT).ok_or(Refusal::MemorySize)?;
        let mut banks = Vec::new();
        for (start, room) in RAM_BANKS {
            let size = left.min(room);
            if size != 0 {
                banks.push((start, size)).map_err(|_| Refusal::MemorySize)?;
            }
            left = left.saturating_sub(size);
        }
        if left != 0 || frames == 0 { Err(Refusal::MemorySize) } else { Ok(Self { banks, frames }) }
    }

    pub(super) const fn banks(&self) -> &Vec<(u64, u64), { RAM_BANKS.len() }> {
        &self.banks
    }

    pub(super) fn first_bank(&self) -> (u64, u64) {
        self.banks.first().copied().unwrap_or_default()
    }

    pub(super) const fn frames(&self) -> u64 {
        self.frames
    }

    pub(super) fn out_of_memory(&self, frames: &Frames) -> Refusal {
        Refusal::OutOfMemory {
            asked_kib: self.frames.saturating_mul(KIB_PER_FRAME),
            free_kib: frames.free_frames().saturating_mul(KIB_PER_FRAME),
        }
    }

    /// Takes the frames, in the largest blocks there are, clears and maps them; refuses with `out_of_memory`.
    pub(super) fn allocate<H: Hardware>(
        &self,
        hw: &H,
        frames: &Frames,
        owner: DomId,
        stage2: &mut Stage2,
        out_of_memory: Refusal,
    ) -> Result<(), Refusal> {
        if frames.free_frames() < self.frames {
            return Err(out_of_memory);
        }
        for (start, size) in &self.banks {
            let mut gfn = Gfn::new(start >> PAGE_SHIFT).ok_or(Refusal::MemorySize)?;
            let mut left = size >> PAGE_SHIFT;
            let mut largest = MAX_ORDER;
            // Each turn maps something or lowers `largest`.
            while left != 0 {
                let order = largest.min(gfn.get().trailing_zeros()).min(left.ilog2());
                let Some(mfn) = frames.allocate_clear(hw, order, owner, Role::Data) else {
                    largest = order.checked_sub(1).ok_or(out_of_memory)?;
                    continue;
                };
                let count = 1u64.wrapping_shl(order);
                settle(frames, gfn, mfn, count);
                stage2.map_blocks(hw, frames, gfn, mfn, order, Kind::Ram).map_err(
                    |error| match Refusal::from(error) {
                        Refusal::OutOfMemory { .. } => out_of_memory,
                        other => other,
                    },
                )?;
                left = left.saturating_sub(count);
                match gfn.checked_add(count) {
                    Some(next) => gfn = next,
                    None => return Err(Refusal::MemorySize),
                }
            }
        }
        Ok(())
    }
}

/// Notes where a domain's frames are.
pub(super) fn settle(frames: &Frames, gfn: Gfn, mfn: Mfn, count: u64) {
    for offset in 0..count {
        if let Some((gfn, mfn)) = gfn.checked_add(offset).zip(mfn.checked_add(offset)) {
            frames.table.set_home(mfn, Some(gfn));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_fills_the_low_bank_first() {
        let banks = |kib| Ram::of_kib(kib).map(|ram| ram.banks().as_slice().to_vec());
        assert_eq!(banks(32 << 10), Ok(std::vec![(0x4000_0000, 32 << 20)]));
        assert_eq!(
            banks(4 << 20),
            Ok(std::vec![(0x4000_0000, 3 << 30), (0x2_0000_0000, 1 << 30)]),
            "4 GiB: 3 below, 1 above"
        );
        assert_eq!(banks(7), Ok(std::vec![(0x4000_0000, 4096)]), "whole frames only");
        assert_eq!(banks(3), Err(Refusal::MemorySize));
        assert_eq!(banks(1019 << 20).map(|banks| banks.len()), Ok(2));
        assert_eq!(banks((1019 << 20) + 4), Err(Refusal::MemorySize));
        assert_eq!(banks(u64::MAX), Err(Refusal::MemorySize));
    }
}
