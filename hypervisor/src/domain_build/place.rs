//! Where kernel, device tree and RAM disk go, as in Xen: the kernel at the start of RAM plus its text offset, tree and RAM disk 128 MiB
//! into RAM, else as high as possible, else before the kernel; sizes in steps of 2 MiB.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]
use super::image::KernelImage;
use super::refusal::Refusal;
use crate::addr::Ipa;

const MIB: u64 = 1 << 20;
const STEP: u64 = 2 * MIB;
/// Room for the device tree.
pub(super) const TREE_ROOM: usize = 2 << 20;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Placement {
    pub(super) kernel: Ipa,
    pub(super) tree: Ipa,
    pub(super) ramdisk: Ipa,
}

impl Placement {
    /// Places an image and a RAM disk of so many bytes in a bank of (start, size).
    pub(super) fn find(image: &KernelImage, ramdisk: u64, bank: (u64, u64)) -> Result<Self, Refusal> {
        let (start, size) = bank;
        let too_large = |needs: Option<u64>| Refusal::KernelTooLarge {
            needs_kib: needs.unwrap_or(u64::MAX).div_ceil(1024),
            has_kib: size >> 10,
        };
        let needs = image.text_offset.checked_add(image.size);
        if needs.is_none_or(|needs| needs > size) {
            return Err(too_large(needs));
        }
        // From here on everything is below the end of the bank, and so far from wrapping.
        let kernel = start.saturating_add(image.text_offset);
        let kernel_end = kernel.saturating_add(image.size);
        let ram_end = start.saturating_add(size);
        let modules =
            ramdisk.checked_next_multiple_of(STEP).and_then(|room| room.checked_add(TREE_ROOM as u64));
        let refused = Refusal::RamdiskTooLarge {
            needs_kib: modules.unwrap_or(u64::MAX).div_ceil(1024),
            has_kib: size >> 10,
        };
        let modules = modules.filter(|modules| *modules <= size).ok_or(refused)?;
        let tree = find(start, ram_end, kernel, kernel_end, modules).ok_or(refused)?;
        let address = |value: u64| Ipa::new(value).ok_or(Refusal::Misplaced);
        Ok(Self {
            kernel: address(kernel)?,
            tree: address(tree)?,
            ramdisk: address(tree.saturating_add(TREE_ROOM as u64))?,
        })
    }
}

/// Where `modules` bytes fit beside the kernel.
fn find(ram: u64, ram_end: u64, kernel: u64, kernel_end: u64, modules: u64) -> Option<u64> {
    let far = ram.saturating_add(128 * MIB);
    if ram_end >= far.saturating_add(modules) && kernel_end < far {
        return Some(far);
    }
    let kernel_end = kernel_end.checked_next_multiple_of(STEP)?;
    let kernel_room = kernel_end.saturating_sub(kernel);
    if modules.saturating_add(kernel_room) > ram_end.saturating_sub(ram) {
        return None;
    }
    let high = ram_end.saturating_sub(modules);
    if high > kernel_end {
        return Some(high);
    }
    (kernel.saturating_sub(ram) > modules).then(|| kernel.saturating_sub(modules))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAM: u64 = 0x4000_0000;

    fn place(text_offset: u64, size: u64, ramdisk: u64, memory: u64) -> Result<(u64, u64, u64), Refusal> {
        Placement::find(&KernelImage { text_offset, size }, ramdisk, (RAM, memory))
            .map(|found| (found.kernel.get(), found.tree.get(), found.ramdisk.get()))
    }

    #[test]
    fn with_enough_memory_the_tree_is_at_128_mib_and_the_ramdisk_behind() {
        assert_eq!(
            place(0x8_0000, 10 * MIB, 5 * MIB, 512 * MIB),
            Ok((0x4008_0000, 0x4800_0000, 0x4820_0000))
        );
    }

    #[test]
    fn in_little_memory_they_are_at_the_end() {
        // 6 MiB for the RAM disk and 2 for the tree, from the end of 64 MiB.
        assert_eq!(place(0, 10 * MIB, 5 * MIB, 64 * MIB), Ok((0x4000_0000, 0x4380_0000, 0x43A0_0000)));
    }

    #[test]
    fn behind_a_kernel_that_reaches_over_128_mib_they_are_at_the_end() {
        assert_eq!(place(0, 128 * MIB, 0, 256 * MIB), Ok((0x4000_0000, 0x4FE0_0000, 0x5000_0000)));
    }

    #[test]
    fn before_a_kernel_that_takes_the_end() {
        assert_eq!(place(16 * MIB, 48 * MIB, 0, 64 * MIB), Ok((0x4100_0000, 0x40E0_0000, 0x4100_0000)));
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_size() {
        assert_eq!(
            place(0, 33 * MIB, 0, 32 * MIB),
            Err(Refusal::KernelTooLarge { needs_kib: 33 << 10, has_kib: 32 << 10 })
        );
        assert_eq!(
            place(0, 8 * MIB, 30 * MIB, 32 * MIB),
            Err(Refusal::RamdiskTooLarge { needs_kib: 32 << 10, has_kib: 32 << 10 })
        );
        assert!(matches!(place(u64::MAX, 1, 0, 32 * MIB), Err(Refusal::KernelTooLarge { .. })));
        assert!(matches!(place(0, MIB, u64::MAX, 32 * MIB), Err(Refusal::RamdiskTooLarge { .. })));
        // The kernel leaves no 2 MiB for the tree.
        assert!(matches!(place(0, 31 * MIB, 0, 32 * MIB), Err(Refusal::RamdiskTooLarge { .. })));
    }
}
