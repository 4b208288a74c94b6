//! Machines whose RAM is in pieces and full of leftovers, for tests: the device tree names several banks with holes between them, reserved
//! regions and reservation entries; RAM holds a pattern before the first instruction, and after the run all that the tree does not give must
//! hold it still.
//!
//! QEMU's `-kernel` writes a `/memory` node of its own, so nothing of that is used: a few instructions set x0 and jump, as a boot loader does,
//! and the image, the tree and the modules are loaded as bytes, where QEMU would not put them. Invariant: places that are loaded lie in banks,
//! outside of what must keep the pattern.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::ops::Range;
use std::path::Path;

use crate::failure::{Doing, Failure, Outcome};
use crate::fdt::Node;
use crate::machine::RAM;

/// What RAM holds at first, in every eight bytes.
const LEFTOVER: u64 = 0xdead_beef_5afe_c0de;
/// RAM from its start that holds it; beyond, only what must keep it, to spare the disk.
const FILLED: u64 = 512 << 20;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// Bytes at a time.
const CHUNK: usize = 1 << 20;

/// Which RAM a machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Terrain {
    /// QEMU's: one bank, zeros, the image where QEMU puts it.
    Plain,
    /// Pieces with leftovers.
    Pieces,
}

/// Where everything is on a machine of pieces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pieces {
    /// RAM in the tree, ascending.
    banks: [Range<u64>; 4],
    /// Children of `/reserved-memory`.
    reserved: [Range<u64>; 3],
    /// Entries of the reservation block.
    entries: [Range<u64>; 2],
    /// The end of QEMU's RAM.
    end: u64,
    /// The first instructions.
    pub(crate) stub: u64,
    /// The image: a multiple of 64 KiB that is none of 2 MiB.
    pub(crate) image: u64,
    /// The device tree.
    pub(crate) tree: u64,
    /// Modules, from an odd address on.
    pub(crate) modules: Range<u64>,
}

impl Pieces {
    /// For a machine with so many bytes, at least 256 MiB.
    pub(crate) fn of(memory: u64) -> Self {
        let quarter = memory / 4;
        // QEMU writes its own tree to the start of RAM.
        let banks = [
            RAM + 4 * MIB..RAM + quarter - 64 * KIB,
            RAM + quarter + 132 * KIB..RAM + 2 * quarter,
            RAM + 2 * quarter + 16 * MIB..RAM + 3 * quarter + 4 * KIB,
            RAM + 3 * quarter + 8 * KIB..RAM + memory - 12 * KIB,
        ];
        let [first, second, third, fourth] = [0, 1, 2, 3].map(|n: usize| banks[n].start);
        Self {
            reserved: [
                // Inside a bank, over the hole between two, and with an end that is no page's.
                first + 20 * MIB..first + 21 * MIB,
                third - 64 * KIB..third + 64 * KIB,
                fourth + 5 * MIB..fourth + 5 * MIB + 0x1234,
            ],
            entries: [
                first + 30 * MIB + 0x123..first + 30 * MIB + 0x1579,
                second + 9 * MIB..second + 9 * MIB + 4 * KIB,
            ],
            end: RAM + memory,
            stub: first,
            // Not where EL2's own addresses are, 3 GiB: that is the start of the second quarter of 8 GiB.
            image: (second + 4 * MIB).next_multiple_of(2 * MIB) + 3 * 64 * KIB,
            tree: third + 0x12_3008,
            modules: second + 11 * MIB + 0x13..banks[1].end,
            banks,
        }
    }

    /// Writes the banks and the reserved regions into a tree; the entries are [`Self::entries`].
    pub(crate) fn describe(&self, tree: &mut Node) {
        tree.children.retain(|node| !node.name.starts_with("memory"));
        let [first, middle @ .., last] = &self.banks;
        for (name, banks) in [
            ("memory", std::slice::from_ref(last)),
            ("memory@0", std::slice::from_ref(first)),
            ("ram@1", middle),
        ] {
            let node = tree.child(name);
            node.set_strings("device_type", &["memory"]);
            node.set_u64s(
                "reg",
                &banks.iter().flat_map(|bank| [bank.start, bank.end - bank.start]).collect::<Vec<_>>(),
            );
        }
        let parent = tree.child("reserved-memory");
        parent.set_cells("#address-cells", &[2]).set_cells("#size-cells", &[2]).set("ranges", []);
        for (index, range) in self.reserved.iter().enumerate() {
            let node = parent.child(&format!("kept@{:x}", range.start));
            node.set_u64s("reg", &[range.start, range.end - range.start]);
            if index != 0 {
                node.set("no-map", []);
            }
        }
    }

    /// The reservation block: address and size of each.
    pub(crate) fn entries(&self) -> Vec<(u64, u64)> {
        self.entries.iter().map(|range| (range.start, range.end - range.start)).collect()
    }

    /// What nobody may write, in whole words.
    fn untouched(&self) -> Vec<Range<u64>> {
        let mut at = self.banks[0].start - 2 * MIB;
        let mut all = Vec::new();
        for bank in &self.banks {
            all.push(at..bank.start);
            at = bank.end;
        }
        all.push(at..self.end);
        all.extend(self.reserved.iter().chain(&self.entries).cloned());
        all.into_iter().map(|range| range.start.next_multiple_of(8)..range.end & !7).collect()
    }

    /// Makes the file that is the machine's RAM.
    pub(crate) fn fill(&self, file: &Path) -> Outcome<()> {
        let write = || {
            let mut out = File::create(file)?;
            out.set_len(self.end - RAM)?;
            let pattern = LEFTOVER.to_le_bytes().repeat(CHUNK / 8);
            let filled = RAM..RAM.saturating_add(FILLED).min(self.end);
            for range in self.untouched().into_iter().chain([filled]) {
                out.seek(SeekFrom::Start(range.start - RAM))?;
                let mut left = range.end - range.start;
                while left > 0 {
                    let part = left.min(CHUNK as u64);
                    out.write_all(&pattern[..usize::try_from(part).unwrap_or(CHUNK)])?;
                    left -= part;
                }
            }
            Ok::<_, std::io::Error>(())
        };
        write().doing(format_args!("cannot write {}", file.display()))
    }

    /// What must be as it was, and is not.
    pub(crate) fn inspect(&self, file: &Path) -> Outcome<Option<String>> {
        let mut input = File::open(file).doing(format_args!("cannot read {}", file.display()))?;
        for range in self.untouched() {
            input.seek(SeekFrom::Start(range.start - RAM)).doing("cannot read the machine's RAM")?;
            let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap_or(0)];
            input.read_exact(&mut bytes).doing("cannot read the machine's RAM")?;
            if let Some(index) = bytes.chunks(8).position(|word| word != LEFTOVER.to_le_bytes()) {
                let at = range.start + 8 * index as u64;
                return Ok(Some(format!("{at:#x}, which is not the hypervisor's, was written")));
            }
        }
        Ok(None)
    }

    /// The first instructions: x0 = tree, the other arguments 0, on to the image.
    pub(crate) fn first_instructions(&self) -> Vec<u8> {
        // ldr x0, .+24; ldr x4, .+28; mov x1, xzr; mov x2, xzr; mov x3, xzr; br x4 (Arm ARM C6.2; `LDR (literal)`: offset in words, bits 23:5)
        let code = [0x5800_00c0_u32, 0x5800_00e4, 0xaa1f_03e1, 0xaa1f_03e2, 0xaa1f_03e3, 0xd61f_0080];
        let words = code.into_iter().flat_map(u32::to_le_bytes);
        words.chain([self.tree, self.image].into_iter().flat_map(u64::to_le_bytes)).collect()
    }

    /// An error if the image or the tree are too large for their places.
    pub(crate) fn check(&self, image: u64, tree: u64) -> Outcome<()> {
        let image_end = self.entries[1].start;
        let tree_end = self.tree + 2 * MIB;
        if self.image + image <= image_end && self.tree + tree <= tree_end {
            return Ok(());
        }
        Err(Failure::failed("the image or the device tree is too large for a machine of pieces"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_loaded_lies_in_banks_and_meets_nothing_that_is_kept() {
        for memory in [256 * MIB, 1 << 30, 1 << 32, 1 << 33] {
            let pieces = Pieces::of(memory);
            let loaded = [
                pieces.stub..pieces.stub + 64,
                pieces.image..pieces.image + 2 * MIB,
                pieces.tree..pieces.tree + 2 * MIB,
                pieces.modules.start..pieces.modules.start + 16 * MIB,
            ];
            for range in &loaded {
                let holds = |bank: &&Range<u64>| bank.start <= range.start && range.end <= bank.end;
                assert_eq!(pieces.banks.iter().filter(holds).count(), 1, "{range:x?} of {memory:#x}");
                for kept in pieces.untouched() {
                    assert!(range.end <= kept.start || kept.end <= range.start, "{range:x?} meets {kept:x?}");
                }
            }
            assert!(pieces.image.is_multiple_of(64 * KIB) && !pieces.image.is_multiple_of(2 * MIB));
        }
    }

    #[test]
    fn a_byte_that_changed_is_found() {
        let pieces = Pieces::of(256 * MIB);
        let file = std::env::temp_dir().join(format!("pavo-terrain-{}", std::process::id()));
        pieces.fill(&file).unwrap();
        assert_eq!(pieces.inspect(&file).unwrap(), None);
        let mut ram = File::options().write(true).open(&file).unwrap();
        let at = pieces.reserved[2].start + 0x1230;
        // The last whole word before the end of the region, then the word behind it, which is free to use.
        ram.seek(SeekFrom::Start(at + 8 - RAM)).unwrap();
        ram.write_all(&[0]).unwrap();
        assert_eq!(pieces.inspect(&file).unwrap(), None);
        ram.seek(SeekFrom::Start(at - 8 - RAM)).unwrap();
        ram.write_all(&[0]).unwrap();
        let text = pieces.inspect(&file).unwrap().unwrap();
        assert!(text.starts_with(&format!("{:#x}", at - 8)), "{text}");
        std::fs::remove_file(&file).unwrap();
    }
}
