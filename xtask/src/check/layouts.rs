//! The layouts that `pv-abi` asserts, beside those of Xen's headers (`pv-abi/xen-4.20-layouts.toml`). The compiler holds a `layout!` to the
//! structure, and every field of it to be there; this holds its numbers to Xen's.

use std::collections::BTreeMap;

use regex::Regex;
use toml::{Table, Value};

use crate::failure::{Doing, Failure, Outcome};

/// The data, in `pv-abi`'s folder.
pub(super) const FILE: &str = "xen-4.20-layouts.toml";

/// What the file says.
pub(super) struct Headers {
    /// Xen's version.
    pub(super) version: String,
    /// Structures that Xen does not have.
    pavo: Vec<String>,
    /// Structures that are the first part of Xen's.
    prefix: Vec<String>,
    /// By the name in pv-abi.
    structures: BTreeMap<String, Structure>,
}

struct Structure {
    size: u64,
    fields: BTreeMap<String, u64>,
}

impl Structure {
    fn read(table: &Table) -> Option<Self> {
        let number = |value: &Value| value.as_integer().and_then(|number| u64::try_from(number).ok());
        let fields = table.get("fields")?.as_table()?.iter();
        let fields = fields.map(|(name, offset)| Some((name.clone(), number(offset)?)));
        Some(Self { size: number(table.get("size")?)?, fields: fields.collect::<Option<_>>()? })
    }
}

/// A `layout!` line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Asserted {
    /// The structure.
    pub(super) name: String,
    size: u64,
    fields: Vec<(String, u64)>,
}

/// Every `layout!` of a source text.
pub(super) fn asserted(text: &str) -> Outcome<Vec<Asserted>> {
    let line = Regex::new(r"(?s)\nlayout!\((\w+), (\d+), \{(.*?)\}\);").doing("pattern")?;
    let field = Regex::new(r"(\w+): (\d+)").doing("pattern")?;
    let number = |text: &str| text.parse().doing("a number in a layout");
    line.captures_iter(text)
        .map(|parts| {
            let fields = field
                .captures_iter(&parts[3])
                .map(|field| Ok((field[1].to_owned(), number(&field[2])?)))
                .collect::<Outcome<_>>()?;
            Ok(Asserted { name: parts[1].to_owned(), size: number(&parts[2])?, fields })
        })
        .collect()
}

/// Whether a field without a counterpart is room only.
fn is_padding(field: &str) -> bool {
    field.starts_with("pad") || ["rest", "tail"].contains(&field)
}

impl Headers {
    /// Reads the data.
    pub(super) fn parse(text: &str) -> Outcome<Self> {
        let data: Table = text.parse().doing("reading the layouts of Xen's headers")?;
        let names = |key: &str| {
            let all = data.get(key).and_then(Value::as_array)?.iter();
            all.map(|name| name.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
        };
        let tables = data.iter().filter_map(|(name, value)| Some((name, value.as_table()?)));
        let structures = tables.map(|(name, table)| Some((name.clone(), Structure::read(table)?)));
        let read = || {
            Some(Self {
                version: data.get("version")?.as_str()?.to_owned(),
                pavo: names("pavo")?,
                prefix: names("prefix")?,
                structures: structures.collect::<Option<_>>()?,
            })
        };
        read().ok_or_else(|| Failure::failed(format!("pv-abi/{FILE} has another form")))
    }

    /// One line for each way in which the asserted layouts are not Xen's.
    pub(super) fn problems(&self, asserted: &[Asserted]) -> Vec<String> {
        let mut lines = Vec::new();
        for Asserted { name, size, fields } in asserted {
            if self.pavo.contains(name) {
                continue;
            }
            let Some(xen) = self.structures.get(name) else {
                lines.push(format!("{name} is not in {FILE}"));
                continue;
            };
            let whole = !self.prefix.contains(name);
            if (whole && *size != xen.size) || *size > xen.size {
                lines.push(format!("{name} has {size} bytes, Xen's has {}", xen.size));
            }
            for (field, offset) in fields {
                match xen.fields.get(field) {
                    Some(theirs) if theirs == offset => {}
                    Some(theirs) => lines.push(format!("{name}.{field} is at {offset}, Xen's at {theirs}")),
                    None if is_padding(field) => {}
                    None => lines.push(format!("{name}.{field} is not in {FILE}")),
                }
            }
            let missing = xen.fields.keys().filter(|theirs| fields.iter().all(|(ours, _)| ours != *theirs));
            lines.extend(missing.map(|field| format!("{name} has no {field}")));
        }
        let known = |name: &&String| asserted.iter().all(|it| it.name != **name);
        let gone = self.structures.keys().chain(&self.pavo).chain(&self.prefix).filter(known);
        lines.extend(gone.map(|name| format!("{FILE} has {name}, pv-abi has not")));
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: &str = "version = \"1\"\npavo = [\"Own\"]\nprefix = []\n\
                        [Port]\nxen = \"port\"\nsize = 8\nfields = { dom = 0, port = 4 }\n";

    fn problems(text: &str) -> Vec<String> {
        Headers::parse(DATA).unwrap().problems(&asserted(text).unwrap())
    }

    #[test]
    fn what_agrees_with_the_headers_is_silent() {
        let text = "\nlayout!(Port, 8, { dom: 0, pad: 2, port: 4 });\nlayout!(Own, 1, {\n    a: 0,\n});\n";
        assert_eq!(problems(text), Vec::<String>::new());
    }

    #[test]
    fn every_other_size_offset_and_field_is_told() {
        let lines = problems("\nlayout!(Port, 4, { dom: 2, other: 0 });\nlayout!(Own, 1, { a: 0 });\n");
        assert_eq!(
            lines,
            [
                "Port has 4 bytes, Xen's has 8",
                "Port.dom is at 2, Xen's at 0",
                "Port.other is not in xen-4.20-layouts.toml",
                "Port has no port"
            ]
        );
        let lines = problems("\nlayout!(New, 4, { dom: 2 });\n");
        assert_eq!(
            lines,
            [
                "New is not in xen-4.20-layouts.toml",
                "xen-4.20-layouts.toml has Port, pv-abi has not",
                "xen-4.20-layouts.toml has Own, pv-abi has not"
            ]
        );
    }
}
