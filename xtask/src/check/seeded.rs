//! Nothing of the known bugs that tests can put back is in what ships.
//!
//! Three things together say so: without the feature `seeded!` is `const { false }`, so that the compiler knows it wherever it stands; no
//! function or variable of `seeded.rs` is in the image; and no bug's name is among its bytes. Every bug has a place in the library, and a row in
//! docs/specification.md.

use object::{Object as _, ObjectSymbol as _};
use regex::Regex;

use super::sources::rust_files;
use super::{Found, build};
use crate::failure::{Failure, Outcome};
use crate::setup::Toolchain;
use crate::workspace;

/// How the module's name is in a mangled one, old and new.
const MODULE: &str = "6seeded";
/// What the macro is in what ships.
const NOTHING: &str = "let planted = const { false };";

/// Looks at the sources, the table, and the image.
pub(super) fn check(toolchain: &Toolchain) -> Outcome<Found> {
    let bugs = bugs()?;
    build::hypervisor(toolchain)?;
    let bytes = workspace::read(&workspace::pavo_elf())?;
    let file = object::File::parse(&*bytes).map_err(|error| Failure::failed(error.to_string()))?;
    let symbols = file.symbols().filter_map(|symbol| symbol.name().ok());
    let image = workspace::read(&workspace::pavo_img())?;
    if let Some(left) = left_over(symbols, &image, &bugs) {
        return Err(Failure::failed(format!("the image has {left}")));
    }
    Ok(Found::Good(format!("{} known bugs, none in the image", bugs.len())))
}

/// The names of all bugs; each stands somewhere in the library and in the table.
fn bugs() -> Outcome<Vec<String>> {
    let folder = workspace::root().join("hypervisor/src");
    let text =
        |path: &std::path::Path| workspace::read(path).map(|it| String::from_utf8_lossy(&it).into_owned());
    let list = text(&folder.join("seeded.rs"))?;
    if !list.contains(NOTHING) {
        return Err(Failure::failed(format!("seeded.rs: the macro without the feature is not `{NOTHING}`")));
    }
    let names = |text: &str, pattern: &str| {
        let pattern = Regex::new(pattern).map_err(|error| Failure::failed(error.to_string()))?;
        let found = pattern.captures_iter(text).filter_map(|found| Some(found.get(1)?.as_str().to_owned()));
        Ok::<Vec<String>, Failure>(found.collect())
    };
    let bugs = names(&list, r#"(?m)^    \("([a-z0-9-]+)", ""#)?;
    let mut placed = Vec::new();
    for file in rust_files(&folder) {
        placed.extend(names(&text(&file)?, r#"seeded!\("([a-z0-9-]+)"\)"#)?);
    }
    let rows =
        names(&text(&workspace::root().join("docs/specification.md"))?, r"(?m)^\| `([a-z0-9-]+)` \| ")?;
    match bugs.iter().find(|bug| !placed.contains(bug) || !rows.contains(bug)) {
        _ if bugs.is_empty() => Err(Failure::failed("seeded.rs: no bug is found in the list")),
        Some(bug) => Err(Failure::failed(format!(
            "{bug} has no place in the library, or no row in docs/specification.md"
        ))),
        None => Ok(bugs),
    }
}

/// What of the bugs is among symbols and bytes.
fn left_over<'a>(symbols: impl Iterator<Item = &'a str>, image: &[u8], bugs: &[String]) -> Option<String> {
    let symbol = symbols.into_iter().find(|symbol| symbol.contains(MODULE));
    let has = |bug: &&String| image.windows(bug.len()).any(|bytes| bytes == bug.as_bytes());
    symbol
        .map(|symbol| format!("the symbol {symbol}"))
        .or_else(|| bugs.iter().find(has).map(|bug| format!("the name {bug}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_symbol_or_a_name_that_is_left_is_found() {
        let bugs = ["xsa-18".to_owned(), "poll-asleep".to_owned()];
        let clean = ["_ZN10hypervisor6evtchn4send17h0123E", "memcpy"];
        let dirty = ["memcpy", "_ZN10hypervisor6seeded10is_planted17h0123E"];
        assert_eq!(left_over(clean.into_iter(), b"nothing of xsa-1, asleep", &bugs), None);
        assert!(left_over(dirty.into_iter(), b"", &bugs).is_some_and(|left| left.contains("is_planted")));
        let left = left_over(clean.into_iter(), b"...poll-asleep...", &bugs);
        assert_eq!(left.as_deref(), Some("the name poll-asleep"));
    }

    #[test]
    fn every_bug_has_a_place_and_a_row() {
        assert!(bugs().is_ok_and(|bugs| bugs.len() >= 20));
    }
}
