//! `console_io`: text of guests on the machine's console, a line at a time.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

/// Most characters of a line that are kept until the newline comes.
pub const LINE_LENGTH: usize = 160;

/// What a domain has written since the last newline, and what it may still write.
#[derive(Debug)]
pub struct LineBuffer {
    text: heapless::Vec<u8, LINE_LENGTH>,
    /// Bytes that it may write now (token bucket).
    tokens: u64,
    /// Counter value at which `tokens` was true.
    refilled: u64,
    /// Bytes dropped since the last line that came through.
    dropped: u64,
}

impl Default for LineBuffer {
    fn default() -> Self {
        Self::new()
    }
}

impl LineBuffer {
    /// An empty line and a full bucket.
    pub const fn new() -> Self {
        Self { text: heapless::Vec::new(), tokens: BURST, refilled: 0, dropped: 0 }
    }
}

/// Bytes that a domain may write at once.
pub const BURST: u64 = 64 * 1024;
