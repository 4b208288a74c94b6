//! Reading TOML tables key by key, so that every mistake is one line that names the file, the key and the remedy.

use toml::{Table, Value};

use crate::failure::{Failure, Outcome};

/// A table being read: all its keys are known.
pub(super) struct Reader<'a> {
    file: &'a str,
    /// Where in the file, such as `domain[1].`; empty at the top.
    path: String,
    table: Table,
}

/// The keys of a kind of table.
pub(super) struct Keys {
    /// Those that are read.
    pub(super) known: &'static [&'static str],
    /// Those of features that do not exist yet.
    pub(super) later: &'static [&'static str],
}

impl<'a> Reader<'a> {
    /// Reads `table`, and refuses it if it has a key that is not among `keys`.
    pub(super) fn new(file: &'a str, path: String, table: Table, keys: &Keys) -> Outcome<Self> {
        let reader = Self { file, path, table };
        let unknown = reader.table.keys().find(|key| !keys.known.contains(&key.as_str()));
        unknown.map_or(Ok(()), |key| Err(reader.unknown(key, keys)))?;
        Ok(reader)
    }

    /// A usage error about one key.
    pub(super) fn error(&self, key: &str, text: &str) -> Failure {
        Failure::usage(format!("{}: {}{key}: {text}", self.file, self.path))
    }

    /// Names the nearest key that is known.
    fn unknown(&self, key: &str, keys: &Keys) -> Failure {
        if keys.later.contains(&key) {
            return self.error(key, "is not supported yet");
        }
        let nearest = keys
            .known
            .iter()
            .chain(keys.later)
            .filter(|known| strsim::damerau_levenshtein(known, key) <= 3.min(key.len() / 2 + 1))
            .min_by_key(|known| strsim::damerau_levenshtein(known, key));
        match nearest {
            Some(known) => self.error(key, &format!("unknown key, did you mean \"{known}\"?")),
            None => self.error(key, &format!("unknown key; the keys here are {}", keys.known.join(", "))),
        }
    }

    fn take(&mut self, key: &str) -> Option<Value> {
        self.table.remove(key)
    }

    /// A string.
    pub(super) fn string(&mut self, key: &str) -> Outcome<Option<String>> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.error(key, &format!("expected a string, found {}", found(&other)))),
        }
    }

    /// A string that must be there, such as `example`.
    pub(super) fn required(&mut self, key: &str, example: &str) -> Outcome<String> {
        self.string(key)?.ok_or_else(|| self.missing(key, &format!("\"{example}\"")))
    }

    /// A usage error about a key that must be there; `example` is a value as it is written.
    pub(super) fn missing(&self, key: &str, example: &str) -> Failure {
        self.error(key, &format!("missing: write for example {key} = {example}"))
    }

    /// A whole number within limits.
    pub(super) fn number(&mut self, key: &str, least: u32, most: u32) -> Outcome<Option<u32>> {
        let expected = format!("expected a number from {least} to {most}");
        match self.take(key) {
            None => Ok(None),
            Some(Value::Integer(number)) => match u32::try_from(number) {
                Ok(number) if (least..=most).contains(&number) => Ok(Some(number)),
                Ok(_) | Err(_) => Err(self.error(key, &format!("{expected}, found {number}"))),
            },
            Some(other) => Err(self.error(key, &format!("{expected}, found {}", found(&other)))),
        }
    }

    /// `true` or `false`; absent is `false`.
    pub(super) fn flag(&mut self, key: &str) -> Outcome<bool> {
        match self.take(key) {
            None => Ok(false),
            Some(Value::Boolean(flag)) => Ok(flag),
            Some(other) => Err(self.error(key, &format!("expected true or false, found {}", found(&other)))),
        }
    }

    /// A size such as `32M`, in bytes; a whole number of 4 KiB pages.
    pub(super) fn size(&mut self, key: &str) -> Outcome<Option<u64>> {
        let Some(text) = self.string(key)? else { return Ok(None) };
        parse_size(&text).map(Some).ok_or_else(|| {
            self.error(key, &format!("expected a size in 4 KiB steps such as \"32M\", found \"{text}\""))
        })
    }

    /// A list of CPUs below `most`, as bits.
    pub(super) fn cpus(&mut self, key: &str, most: u32) -> Outcome<Option<u32>> {
        let bad = || self.error(key, &format!("expected a list of CPUs, each below {most}"));
        let Some(value) = self.table.get(key).cloned() else { return Ok(None) };
        let cpu = |item: &Value| {
            item.as_integer().and_then(|cpu| u32::try_from(cpu).ok()).filter(|cpu| *cpu < most)
        };
        let bits = value
            .as_array()
            .and_then(|items| items.iter().try_fold(0, |all, item| Some(all | 1 << cpu(item)?)));
        bits.filter(|bits| *bits != 0).map(Some).ok_or_else(bad)
    }

    /// A list of strings; absent is empty.
    pub(super) fn strings(&mut self, key: &str) -> Outcome<Vec<String>> {
        let bad = "expected a list of strings";
        match self.take(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => items
                .into_iter()
                .map(|item| item.as_str().map(str::to_owned).ok_or_else(|| self.error(key, bad)))
                .collect(),
            Some(other) => Err(self.error(key, &format!("{bad}, found {}", found(&other)))),
        }
    }

    /// A table; absent is empty.
    pub(super) fn table(&mut self, key: &str) -> Outcome<Option<Table>> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Table(table)) => Ok(Some(table)),
            Some(_) => Err(self.error(key, &format!("expected a table: write [{key}]"))),
        }
    }

    /// An array of tables; absent is empty.
    pub(super) fn tables(&mut self, key: &str) -> Outcome<Vec<Table>> {
        let bad = format!("expected tables: write [[{key}]]");
        match self.take(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => items
                .into_iter()
                .map(|item| match item {
                    Value::Table(table) => Ok(table),
                    _ => Err(self.error(key, &bad)),
                })
                .collect(),
            Some(_) => Err(self.error(key, &bad)),
        }
    }
}

/// The TOML type of a value, with its article.
fn found(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a string",
        Value::Integer(_) => "a number",
        Value::Float(_) => "a fraction",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a table",
    }
}

/// Reads `32M`, `1G` or `64K`: bytes, a multiple of 4 KiB, not zero.
pub(crate) fn parse_size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.chars().last()? {
        'K' => (&text[..text.len() - 1], 10),
        'M' => (&text[..text.len() - 1], 20),
        'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number = digits.parse::<u64>().ok()?;
    let bytes = number.checked_mul(1 << shift)?;
    (bytes > 0 && bytes.is_multiple_of(4096)).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_suffixes() {
        assert_eq!(parse_size("64K"), Some(65536));
        assert_eq!(parse_size("32M"), Some(33_554_432));
        assert_eq!(parse_size("1G"), Some(1_073_741_824));
        assert_eq!(parse_size("8192"), Some(8192));
    }

    #[test]
    fn sizes_that_are_no_whole_pages_are_refused() {
        for text in ["", "M", "0", "0M", "1K", "4097", "-4M", "32MB", "1.5G", "99999999999G", "32m"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }
}
