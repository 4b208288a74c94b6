//! Property values: big-endian cells and lists of strings (Devicetree Specification 0.4, 2.2.4).

/// Reads numbers of one or more 32-bit big-endian cells from a property's value.
#[derive(Clone, Copy)]
pub(super) struct Cells<'a> {
    rest: &'a [u8],
}

impl<'a> Cells<'a> {
    pub(super) fn new(value: &'a [u8]) -> Self {
        Self { rest: value }
    }

    /// Whether nothing is left.
    pub(super) fn is_empty(self) -> bool {
        self.rest.is_empty()
    }

    /// The next cell.
    #[inline(never)]
    pub(super) fn u32(&mut self) -> Option<u32> {
        let (cell, rest) = self.rest.split_first_chunk::<4>()?;
        self.rest = rest;
        Some(u32::from_be_bytes(*cell))
    }

    /// The next number of `cells` cells; none when the value ends first or does not fit 64 bits.
    #[inline(never)]
    pub(super) fn number(&mut self, cells: u32) -> Option<u64> {
        let mut value: u64 = 0;
        for _ in 0..cells {
            if value >> 32 != 0 {
                return None;
            }
            value = (value << 32) | u64::from(self.u32()?);
        }
        Some(value)
    }
}

/// The first string of a value, without its terminator; none unless it is terminated UTF-8.
#[inline(never)]
pub(super) fn first_str(value: &[u8]) -> Option<&str> {
    core::ffi::CStr::from_bytes_until_nul(value).ok()?.to_str().ok()
}

/// What is before the first `separator` (an ASCII character) in `text`, and what is behind it if it is there.
///
/// `str::split_once` would do, but its search brings a panic path into the image.
#[inline(never)]
pub(super) fn split_once(text: &str, separator: u8) -> (&str, Option<&str>) {
    let found = text.bytes().position(|byte| byte == separator);
    let parts = found.and_then(|place| text.get(..place).zip(text.get(place.checked_add(1)?..)));
    parts.map_or((text, None), |(before, behind)| (before, Some(behind)))
}

/// Whether the list of strings `value` contains one of `wanted`.
#[inline(never)]
pub(super) fn lists_any(value: &[u8], wanted: &[&str]) -> bool {
    value.split(|byte| *byte == 0).any(|entry| wanted.iter().any(|name| name.as_bytes() == entry))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_one_two_and_three_cells_are_read_in_order() {
        let value = [0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 4];
        let mut cells = Cells::new(&value);
        assert_eq!(cells.number(1), Some(7));
        assert_eq!(cells.number(2), Some(0x1_0000_0002));
        assert_eq!(cells.number(3), Some(0x3_0000_0004));
        assert_eq!(cells.number(1), None);
        assert!(cells.is_empty());
    }

    #[test]
    fn a_number_beyond_64_bits_is_refused() {
        let value = [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(Cells::new(&value).number(3), None);
    }

    #[test]
    fn text_is_split_at_the_first_separator() {
        assert_eq!(split_once("a:b:c", b':'), ("a", Some("b:c")));
        assert_eq!(split_once("a:", b':'), ("a", Some("")));
        assert_eq!(split_once("\u{e4}\u{f6}", b':'), ("\u{e4}\u{f6}", None));
    }

    #[test]
    fn a_string_list_matches_whole_entries_only() {
        assert!(lists_any(b"arm,psci-1.0\0arm,psci\0", &["arm,psci"]));
        assert!(!lists_any(b"arm,psci-1.0\0", &["arm,psci"]));
        assert_eq!(first_str(b"okay\0more\0"), Some("okay"));
        assert_eq!(first_str(b"unterminated"), None);
    }
}
