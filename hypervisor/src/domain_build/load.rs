//! Copying into a domain's RAM. What was copied is cleaned to memory, and instruction fetches see it.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]
use super::refusal::Refusal;
use crate::addr::{FrameAddr, Ipa, Mfn, Pa};
use crate::devicetree::PhysRange;
use crate::hardware::Hardware;
use crate::stage2::Stage2;

/// Copies a module from the machine's memory, both at any address. At most two turns a frame.
pub(super) fn module<H: Hardware>(
    hw: &H,
    stage2: &Stage2,
    to: Ipa,
    module: PhysRange,
) -> Result<(), Refusal> {
    let mut done: u64 = 0;
    while done < module.size() {
        done = part(hw, stage2, to, module, done)?;
    }
    Ok(())
}

/// Copies what lies between `done` bytes and the end of a frame on either side; returns how much is done then.
pub(super) fn part<H: Hardware>(
    hw: &H,
    stage2: &Stage2,
    to: Ipa,
    module: PhysRange,
    done: u64,
) -> Result<u64, Refusal> {
    let target = target(hw, stage2, to, done)?;
    let source = module.start().checked_add(done).and_then(Pa::new).map(FrameAddr::from_pa);
    let source = source.ok_or(Refusal::Misplaced)?;
    let left = usize::try_from(module.size().saturating_sub(done)).unwrap_or(usize::MAX);
    let part = left.min(source.left()).min(target.left());
    hw.copy(target, source, part);
    let done = done.saturating_add(part as u64);
    if target.left() == part || done == module.size() {
        publish(hw, target.frame());
    }
    Ok(done)
}

/// Copies bytes. One turn a frame.
pub(super) fn bytes<H: Hardware>(hw: &H, stage2: &Stage2, to: Ipa, from: &[u8]) -> Result<(), Refusal> {
    let mut done: u64 = 0;
    let mut rest = from;
    while !rest.is_empty() {
        let target = target(hw, stage2, to, done)?;
        let (part, tail) = rest.split_at_checked(rest.len().min(target.left())).ok_or(Refusal::Misplaced)?;
        hw.write(target, part);
        publish(hw, target.frame());
        done = done.saturating_add(part.len() as u64);
        rest = tail;
    }
    Ok(())
}

/// Where a guest address is, in RAM.
fn target<H: Hardware>(hw: &H, stage2: &Stage2, to: Ipa, offset: u64) -> Result<FrameAddr, Refusal> {
    let ipa = to.checked_add(offset).ok_or(Refusal::Misplaced)?;
    let mapping =
        stage2.lookup(hw, ipa.frame()).filter(|found| found.kind.is_own_data()).ok_or(Refusal::Misplaced)?;
    FrameAddr::new(mapping.mfn, ipa.page_offset()).ok_or(Refusal::Misplaced)
}

fn publish<H: Hardware>(hw: &H, frame: Mfn) {
    hw.clean_to_memory(frame);
    hw.sync_instructions(frame);
}
