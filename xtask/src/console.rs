//! What comes out of the serial line: guests' text as it is, the hypervisor's marked log lines decoded.
//!
//! A log line is `§` (bytes C2 A7), then base64 of one raw defmt frame. The hypervisor removes that mark from guests'
//! output, so a guest cannot forge one.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use defmt_decoder::Table;
use regex::bytes::Regex;

use crate::failure::{Doing, Failure, Outcome};

/// Starts a log line: `§` in UTF-8.
const MARK: [u8; 2] = [0xc2, 0xa7];

/// One line of the serial output.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// The hypervisor's log.
    Log(Log),
    /// `(dN) text`, the console of a domain.
    Guest { domain: u32, text: Vec<u8> },
    /// Anything else: early boot messages, a dump, a line that could not be decoded.
    Other(Vec<u8>),
}

/// A decoded log line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Log {
    /// Seconds since the counter started, as the image prints them; empty without a timestamp.
    pub(crate) time: String,
    /// `ERROR` to `TRACE`; empty for plain prints.
    pub(crate) level: String,
    /// The message.
    pub(crate) text: String,
}

/// Decodes lines of one image.
pub(crate) struct Decoder {
    table: Option<Table>,
    base64: GeneralPurpose,
    guest: Regex,
}

impl Decoder {
    /// A decoder for the image with these symbols; an image without defmt strings logs nothing that is marked.
    pub(crate) fn new(elf: &[u8]) -> Outcome<Self> {
        let table = Table::parse(elf)
            .map_err(|error| Failure::failed(format!("the image's defmt strings: {error}")))?;
        Self::with(table)
    }

    /// A decoder for another hypervisor, whose log is plain text.
    pub(crate) fn plain() -> Outcome<Self> {
        Self::with(None)
    }

    fn with(table: Option<Table>) -> Outcome<Self> {
        let padding = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
        Ok(Self {
            table,
            base64: GeneralPurpose::new(&alphabet::STANDARD, padding),
            guest: Regex::new(r"(?s-u)^\(d([0-9]{1,5})\) ?(.*)$").doing("console pattern")?,
        })
    }

    /// Decodes one line, without its end.
    pub(crate) fn line(&self, line: &[u8]) -> Line {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if let Some(log) = line.strip_prefix(&MARK).and_then(|frame| self.log(frame)) {
            return Line::Log(log);
        }
        self.guest(line).unwrap_or_else(|| Line::Other(line.to_vec()))
    }

    fn guest(&self, line: &[u8]) -> Option<Line> {
        let parts = self.guest.captures(line)?;
        let domain = std::str::from_utf8(parts.get(1)?.as_bytes()).ok()?.parse().ok()?;
        Some(Line::Guest { domain, text: parts.get(2)?.as_bytes().to_vec() })
    }

    fn log(&self, frame: &[u8]) -> Option<Log> {
        let bytes = self.base64.decode(frame.trim_ascii()).ok()?;
        let (frame, _) = self.table.as_ref()?.decode(&bytes).ok()?;
        Some(Log {
            time: frame.display_timestamp().map(|time| time.to_string()).unwrap_or_default(),
            level: frame.level().map(|level| level.as_str().to_uppercase()).unwrap_or_default(),
            text: frame.display_message().to_string(),
        })
    }
}

/// Whether output is coloured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Colour {
    /// For a terminal.
    On,
    /// For a file or another program.
    Off,
}

impl Line {
    /// The line as people read it, with its end.
    pub(crate) fn render(&self, colour: Colour) -> Vec<u8> {
        let mut bytes = match self {
            Self::Log(log) => log.render(colour).into_bytes(),
            Self::Guest { domain, text } => [format!("(d{domain}) ").as_bytes(), text].concat(),
            Self::Other(text) => text.clone(),
        };
        bytes.push(b'\n');
        bytes
    }
}

impl Log {
    fn render(&self, colour: Colour) -> String {
        let (paint, dim, plain) = match (colour, self.level.as_str()) {
            (Colour::Off, _) => ("", "", ""),
            (Colour::On, "ERROR") => ("\x1b[31m", "\x1b[2m", "\x1b[0m"),
            (Colour::On, "WARN") => ("\x1b[33m", "\x1b[2m", "\x1b[0m"),
            (Colour::On, _) => ("\x1b[2m", "\x1b[2m", "\x1b[0m"),
        };
        let time =
            if self.time.is_empty() { String::new() } else { format!("{dim}[{:>11}]{plain} ", self.time) };
        format!("{time}{paint}{:<5} {}{plain}", self.level, self.text)
    }
}

/// Splits a stream into lines; what is not ended yet stays.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    open: Vec<u8>,
}

impl Lines {
    /// Adds bytes; calls `each` for every line that they complete.
    pub(crate) fn push(&mut self, bytes: &[u8], mut each: impl FnMut(&[u8])) {
        for byte in bytes {
            if *byte == b'\n' {
                each(&self.open);
                self.open.clear();
            } else {
                self.open.push(*byte);
            }
        }
    }

    /// What is left at the end of the stream.
    pub(crate) fn rest(&self) -> Option<&[u8]> {
        (!self.open.is_empty()).then_some(&self.open[..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoder() -> Decoder {
        Decoder {
            table: None,
            base64: GeneralPurpose::new(&alphabet::STANDARD, GeneralPurposeConfig::new()),
            guest: Regex::new(r"(?s-u)^\(d([0-9]{1,5})\) ?(.*)$").unwrap(),
        }
    }

    #[test]
    fn guest_lines_are_told_from_others_by_their_prefix() {
        let decoder = decoder();
        assert_eq!(decoder.line(b"(d2) hi\xff\r"), Line::Guest { domain: 2, text: b"hi\xff".to_vec() });
        assert_eq!(decoder.line(b"(d2)"), Line::Guest { domain: 2, text: Vec::new() });
        assert_eq!(decoder.line(b"x (d2) hi"), Line::Other(b"x (d2) hi".to_vec()));
    }

    #[test]
    fn a_marked_line_that_is_no_frame_is_shown_as_it_is() {
        let line = "§!!!".as_bytes();
        assert_eq!(decoder().line(line).render(Colour::Off), [line, b"\n"].concat());
    }

    #[test]
    fn log_lines_have_time_and_level_in_columns() {
        let log = Log { time: "0.001234".into(), level: "INFO".into(), text: "up".into() };
        assert_eq!(log.render(Colour::Off), "[   0.001234] INFO  up");
    }

    #[test]
    fn lines_end_where_the_newline_is_whatever_the_pieces() {
        let mut lines = Lines::default();
        let mut seen = Vec::new();
        for piece in [&b"ab"[..], b"c\nd", b"\n\n", b"e"] {
            lines.push(piece, |line| seen.push(line.to_vec()));
        }
        assert_eq!(seen, [&b"abc"[..], b"d", b""]);
        assert_eq!(lines.rest(), Some(&b"e"[..]));
    }
}
