//! The guest's command line: words such as `peer=2 port=1 quiet`.

/// Looks words up in a command line.
#[derive(Clone, Copy, Debug)]
pub struct BootArgs<'a>(&'a str);

impl<'a> BootArgs<'a> {
    /// Of this command line.
    pub const fn new(line: &'a str) -> Self {
        Self(line)
    }

    /// The whole line.
    pub const fn line(self) -> &'a str {
        self.0
    }

    /// The value of the last `key=value`.
    pub fn text(self, key: &str) -> Option<&'a str> {
        self.0.split_ascii_whitespace().rev().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    }

    /// The value of the last `key=value` as a number, decimal or hexadecimal with `0x`.
    pub fn number(self, key: &str) -> Option<u64> {
        let text = self.text(key)?;
        match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok(),
            None => text.parse().ok(),
        }
    }

    /// Whether `key` stands alone as a word.
    pub fn has(self, key: &str) -> bool {
        self.0.split_ascii_whitespace().any(|word| word == key)
    }
}

#[cfg(test)]
mod tests {
    use super::BootArgs;

    #[test]
    fn the_last_of_equal_keys_counts() {
        let args = BootArgs::new("peer=2 port=0x10  ref=8 quiet peer=3");
        assert_eq!(args.number("peer"), Some(3));
        assert_eq!(args.number("port"), Some(16));
        assert_eq!(args.text("ref"), Some("8"));
        assert!(args.has("quiet"));
    }

    #[test]
    fn a_key_is_not_found_inside_another() {
        let args = BootArgs::new("airport=7 quieter port=x");
        assert_eq!(args.text("air"), None);
        assert_eq!(args.number("port"), None);
        assert!(!args.has("quiet"));
    }
}
