//! How guests write digests and rates.
use core::fmt;
use core::time::Duration;

/// Bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> impl fmt::Display + '_ {
    Hex(bytes)
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Bytes per second.
pub struct Rate {
    kib: u64,
}

impl Rate {
    /// Of `bytes` in `time`.
    pub fn of(bytes: usize, time: Duration) -> Self {
        let per_second = bytes as u128 * 1_000_000_000 / time.as_nanos().max(1);
        Self { kib: u64::try_from(per_second / 1024).unwrap_or(u64::MAX) }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} KiB/s", self.kib)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_and_rates_read_as_documented() {
        assert_eq!(hex(&[0, 0xab, 0x5]).to_string(), "00ab05");
        assert_eq!(Rate::of(1 << 20, Duration::from_millis(500)).to_string(), "2048 KiB/s");
        assert_eq!(Rate::of(0, Duration::ZERO).to_string(), "0 KiB/s");
    }
}
