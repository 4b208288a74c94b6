//! From a linked ELF file to what boots: a flat image with the arm64 Linux header, and an ELF without symbols.
//!
//! Source of the header: Linux `Documentation/arch/arm64/booting.rst`, section 4.

use object::elf::{self, FileHeader64};
use object::read::elf::{FileHeader as _, ProgramHeader as _};
use object::{LittleEndian, U16, U64};

use crate::failure::{Doing, Failure, Outcome};

/// Byte offset of the header's magic number.
const MAGIC_OFFSET: usize = 56;
/// `"ARM\x64"`.
const MAGIC: [u8; 4] = *b"ARM\x64";
/// More than this is no flat image but two segments far apart, bytes.
const FLAT_LIMIT: u64 = 64 << 20;

/// Whether `image` starts with an arm64 Linux image header.
pub(crate) fn has_arm64_header(image: &[u8]) -> bool {
    image.get(MAGIC_OFFSET..MAGIC_OFFSET + 4) == Some(&MAGIC[..])
}

/// The loadable part of an ELF file: segments by physical address from the lowest, gaps filled with zero. Memory that
/// the file does not hold (`.bss`) is not part of it.
pub(crate) fn flatten(elf: &[u8]) -> Outcome<Vec<u8>> {
    let header = FileHeader64::<LittleEndian>::parse(elf).doing("not an ELF file")?;
    let segments = header.program_headers(LittleEndian, elf).doing("no program headers")?;
    let loaded = || segments.iter().filter(|segment| segment.p_type(LittleEndian) == elf::PT_LOAD);
    let lowest = loaded()
        .filter(|segment| segment.p_filesz(LittleEndian) > 0)
        .map(|segment| segment.p_paddr(LittleEndian))
        .min()
        .ok_or_else(|| Failure::failed("the ELF file has nothing to load"))?;
    let mut image = Vec::new();
    for segment in loaded() {
        let bytes = segment
            .data(LittleEndian, elf)
            .map_err(|()| Failure::failed("a segment lies outside the ELF file"))?;
        if bytes.is_empty() {
            continue;
        }
        let offset = segment.p_paddr(LittleEndian) - lowest;
        if offset > FLAT_LIMIT {
            return Err(Failure::failed(format!(
                "a segment lies {offset:#x} bytes above the first: no flat image"
            )));
        }
        let start = usize::try_from(offset).doing("segment offset")?;
        let end = start + bytes.len();
        if image.len() < end {
            image.resize(end, 0);
        }
        if let Some(place) = image.get_mut(start..end) {
            place.copy_from_slice(bytes);
        }
    }
    Ok(image)
}

/// The ELF file without sections, symbols and debug information: header, program headers and segments only.
pub(crate) fn strip(elf: &[u8]) -> Outcome<Vec<u8>> {
    let header = FileHeader64::<LittleEndian>::parse(elf).doing("not an ELF file")?;
    let segments = header.program_headers(LittleEndian, elf).doing("no program headers")?;
    let table_end = header.e_phoff(LittleEndian) + 56 * segments.len() as u64;
    let end = segments
        .iter()
        .filter(|segment| segment.p_type(LittleEndian) == elf::PT_LOAD)
        .map(|segment| segment.p_offset(LittleEndian) + segment.p_filesz(LittleEndian))
        .fold(table_end, u64::max);
    let mut header = *header;
    header.e_shoff = U64::new(LittleEndian, 0);
    header.e_shnum = U16::new(LittleEndian, 0);
    header.e_shstrndx = U16::new(LittleEndian, 0);
    let mut kept = object::pod::bytes_of(&header).to_vec();
    let end = usize::try_from(end).doing("segment end")?;
    let rest =
        elf.get(kept.len()..end).ok_or_else(|| Failure::failed("a segment lies outside the ELF file"))?;
    kept.extend_from_slice(rest);
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A little-endian ELF64 file with loadable segments of (paddr, content), made from the ELF specification.
    fn elf_with(segments: &[(u64, &[u8])]) -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        for half in [2u16, 183] {
            file.extend(half.to_le_bytes());
        }
        file.extend(1u32.to_le_bytes());
        for word in [0u64, 64, 4096] {
            file.extend(word.to_le_bytes());
        }
        file.extend(0u32.to_le_bytes());
        for half in [64u16, 56, u16::try_from(segments.len()).unwrap(), 64, 5, 4] {
            file.extend(half.to_le_bytes());
        }
        let mut at = 64 + 56 * segments.len() as u64;
        for (paddr, bytes) in segments {
            file.extend(1u32.to_le_bytes());
            file.extend(5u32.to_le_bytes());
            for word in [at, 0x1000, *paddr, bytes.len() as u64, bytes.len() as u64 + 32, 8] {
                file.extend(word.to_le_bytes());
            }
            at += bytes.len() as u64;
        }
        for (_, bytes) in segments {
            file.extend_from_slice(bytes);
        }
        file
    }

    #[test]
    fn segments_are_placed_by_physical_address_and_gaps_are_zero() {
        let elf = elf_with(&[(0x8010, b"late"), (0x8000, b"early")]);
        assert_eq!(flatten(&elf).unwrap(), b"early\0\0\0\0\0\0\0\0\0\0\0late");
    }

    #[test]
    fn stripping_keeps_the_segments_and_drops_what_follows() {
        let mut elf = elf_with(&[(0x8000, b"code")]);
        let plain = elf.len();
        elf.extend_from_slice(b"symbols");
        let stripped = strip(&elf).unwrap();
        assert_eq!(stripped.len(), plain);
        assert_eq!(flatten(&stripped).unwrap(), b"code");
    }

    #[test]
    fn segments_too_far_apart_are_refused() {
        assert!(flatten(&elf_with(&[(0, b"a"), (0x4000_0000, b"b")])).is_err());
    }
}
