//! Characters of several bytes in what guests write: which are let through.
//!
//! The machine's console is UTF-8. What is let through is whole characters in the shortest form, so a terminal that is strict and one that
//! is not see the same text. Left out are
//!
//! - U+0080 to U+009F, the C1 controls: terminals obey them as they obey ESC, and could write over others' lines (U+009B is `ESC [`). The same bytes
//!   alone, which terminals of eight bits obey, are no characters;
//! - U+00A7, the mark of the hypervisor's log;
//! - U+2028 and U+2029, which editors and `splitlines` take for the end of a line, though no terminal does;
//! - U+202A to U+202E and U+2066 to U+2069, which order what is around them: a line must not be shown in another order than it has, its
//!   name first. Letters that are written from right to left need none of them, and are kept.
//!
//! Bytes from 0x80 to 0x9F inside of other characters stay: a terminal of eight bits is no console for Pavo.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

/// The beginning of a character of several bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Character {
    /// Its number, as far as it is known.
    code: u32,
    /// Bytes that it has.
    length: u8,
    /// Bytes that are missing; 0 when none was begun.
    left: u8,
}

/// What a byte makes of what was begun.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// The beginning of a character.
    More(Character),
    /// A character that is let through.
    Whole(Whole),
    /// What there was is dropped.
    Nothing,
}

/// A character that is let through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Whole {
    code: u32,
    length: u8,
}

impl Character {
    /// None was begun.
    pub(super) const NONE: Self = Self { code: 0, length: 0, left: 0 };

    /// Takes a byte from 0x80 on.
    pub(super) fn next(self, byte: u8) -> Step {
        let begins = |bits: u8, length: u8| {
            let code = u32::from(byte & bits);
            Step::More(Self { code, length, left: length.wrapping_sub(1) })
        };
        match byte {
            // What was begun, if anything was, is dropped.
            0xC0..=0xDF => return begins(0x1F, 2),
            0xE0..=0xEF => return begins(0x0F, 3),
            0xF0..=0xF7 => return begins(0x07, 4),
            0xF8.. => return Step::Nothing,
            _ => {}
        }
        let Some(left) = self.left.checked_sub(1) else { return Step::Nothing };
        let code = self.code << 6 | u32::from(byte & 0x3F);
        if left != 0 {
            return Step::More(Self { code, left, ..self });
        }
        // The least that so many bytes say.
        let least = match self.length {
            2 => 0x80,
            3 => 0x800,
            _ => 0x1_0000,
        };
        if code >= least && is_shown(code) {
            Step::Whole(Whole { code, length: self.length })
        } else {
            Step::Nothing
        }
    }
}

impl Whole {
    /// Bytes that it has.
    pub(super) fn length(self) -> usize {
        usize::from(self.length)
    }

    /// Its bytes: as they were.
    #[expect(clippy::cast_possible_truncation, reason = "six bits each, and what is left for the first")]
    pub(super) fn bytes(self) -> impl Iterator<Item = u8> {
        let first = match self.length {
            2 => 0xC0,
            3 => 0xE0,
            _ => 0xF0,
        };
        (0..self.length).rev().map(move |at| {
            let bits = (self.code >> u32::from(at).wrapping_mul(6)) as u8;
            if at.wrapping_add(1) == self.length { first | bits } else { 0x80 | bits & 0x3F }
        })
    }
}

/// Whether a character from U+0080 on is let through.
fn is_shown(code: u32) -> bool {
    !matches!(code, 0..=0x9F | 0xA7 | 0x2028..=0x202E | 0x2066..=0x2069) && char::from_u32(code).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is let through of some bytes.
    fn through(bytes: &[u8]) -> Vec<u8> {
        let (mut character, mut shown) = (Character::NONE, Vec::new());
        for byte in bytes {
            let step = if *byte < 0x80 { Step::Nothing } else { character.next(*byte) };
            if *byte < 0x80 {
                shown.push(*byte);
            }
            character = match step {
                Step::More(begun) => begun,
                Step::Whole(whole) => {
                    shown.extend(whole.bytes());
                    Character::NONE
                }
                Step::Nothing => Character::NONE,
            };
        }
        shown
    }

    #[test]
    fn every_character_of_unicode_comes_through_but_those_that_are_named() {
        for character in ('\u{80}'..=char::MAX).filter(|c| *c != '\u{A7}') {
            let dropped = character.is_control()
                || ('\u{2028}'..='\u{202E}').contains(&character)
                || ('\u{2066}'..='\u{2069}').contains(&character);
            let text = character.to_string();
            assert_eq!(
                through(text.as_bytes()),
                if dropped { b"" } else { text.as_bytes() },
                "{character:?}"
            );
        }
        assert_eq!(through("a§b".as_bytes()), b"ab");
    }

    #[test]
    fn what_comes_through_is_utf_8_whatever_bytes_there_are() {
        for first in 0x80..=0xFF {
            for second in (0x80..=0xFF).step_by(5).chain([0x41, 0x9B, 0xA7]) {
                for third in (0x80..=0xFF).step_by(7).chain([0x41, 0x9B, 0xA7]) {
                    for fourth in [0x41, 0x9B, 0xBF, 0xC2] {
                        let bytes = [first, second, third, fourth, b'.'];
                        let shown = through(&bytes);
                        let text = String::from_utf8(shown).unwrap();
                        assert!(text.ends_with('.') && !text.contains('§'), "{bytes:x?}");
                        assert!(!text.chars().any(char::is_control), "{bytes:x?}");
                        // What the standard library reads there, less what is not shown.
                        let kept: String = String::from_utf8_lossy(&bytes)
                            .chars()
                            .filter(|c| *c != '\u{FFFD}' && (c.is_ascii() || is_shown(u32::from(*c))))
                            .collect();
                        assert_eq!(text, kept, "{bytes:x?}");
                    }
                }
            }
        }
    }

    #[test]
    fn longer_forms_and_pieces_are_no_characters() {
        for bytes in [
            b"\x9B".as_slice(),
            b"\xC1\x9B",
            b"\xE0\x82\x9B",
            b"\xF0\x80\x82\x9B",
            b"\xE0\x82\xA7",
            b"\xED\xA0\x80",
            b"\xF4\x90\x80\x80",
            b"\xF8\x88\x80\x80\x80",
            b"\xC2",
            b"\xC3\xC2\x9B",
            b"\xFF\xFE",
        ] {
            assert_eq!(through(bytes), b"", "{bytes:x?}");
        }
        assert_eq!(through(b"\xC2-\x9B[2A"), b"-[2A");
    }
}
