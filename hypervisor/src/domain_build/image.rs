//! The arm64 Image header (Linux `Documentation/arch/arm64/booting.rst`).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::refusal::Refusal;
use crate::addr::{FrameAddr, Pa};
use crate::devicetree::PhysRange;
use crate::hardware::Hardware;

/// "ARM\x64", little-endian, at offset 56.
const MAGIC: u32 = 0x644D_5241;
/// The first instruction of images older than [`MAGIC`], which Xen takes too.
const OLD_MAGIC: u32 = 0x1400_0008;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    code0: u32,
    code1: u32,
    text_offset: u64,
    image_size: u64,
    flags: u64,
    reserved: [u64; 3],
    magic: u32,
    pe_offset: u32,
}

const _: () = assert!(size_of::<Header>() == 64 && core::mem::offset_of!(Header, magic) == 56);

/// What the header says, checked against nothing but itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct KernelImage {
    /// Where it wants to be, bytes from a multiple of 2 MiB.
    pub(super) text_offset: u64,
    /// Bytes that it takes there: those of the file and what it has uninitialized behind.
    pub(super) size: u64,
}

impl KernelImage {
    pub(super) fn read<H: Hardware>(hw: &H, module: PhysRange) -> Result<Self, Refusal> {
        let mut header = Header::new_zeroed();
        let bytes = header.as_mut_bytes();
        if module.size() < bytes.len() as u64 {
            return Err(Refusal::NotAnImage);
        }
        read_at(hw, module.start(), bytes)?;
        if header.magic != MAGIC && header.code0 != OLD_MAGIC {
            return Err(Refusal::NotAnImage);
        }
        Ok(Self { text_offset: header.text_offset, size: header.image_size.max(module.size()) })
    }
}

/// Reads at most a page from any address; what is further is left as it is.
fn read_at<H: Hardware>(hw: &H, start: u64, into: &mut [u8]) -> Result<(), Refusal> {
    let at = Pa::new(start).map(FrameAddr::from_pa).ok_or(Refusal::Misplaced)?;
    let (here, beyond) = into.split_at_mut_checked(at.left().min(into.len())).ok_or(Refusal::Misplaced)?;
    hw.read(at, here);
    if !beyond.is_empty() {
        let next = at.frame().checked_add(1).ok_or(Refusal::Misplaced)?;
        hw.read(FrameAddr::start(next), beyond);
    }
    Ok(())
}
