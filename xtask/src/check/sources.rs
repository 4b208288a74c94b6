//! Lines of code and uses of `unsafe`, by crate.

use std::fs;
use std::path::{Path, PathBuf};

use crate::workspace;

use super::Found;

/// The crates in the order of their dependencies, with the folder of their code.
const CRATES: [(&str, &str); 6] = [
    ("pv-abi", "pv-abi/src"),
    ("hypervisor", "hypervisor/src"),
    ("platform", "platform/src"),
    ("guest-kernel", "guest-kernel/src"),
    ("xtask", "xtask/src"),
    ("tests", "tests"),
];

/// What one crate has.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    /// Lines that are neither blank, nor comments, nor tests.
    pub(crate) lines: usize,
    /// The word `unsafe` in them.
    pub(crate) unsafes: usize,
}

/// All crates' counts.
pub(crate) fn counts() -> Vec<(&'static str, Count)> {
    CRATES
        .iter()
        .map(|(name, folder)| {
            let mut count = Count::default();
            for file in files(&workspace::root().join(folder)) {
                add(&mut count, &fs::read_to_string(file).unwrap_or_default());
            }
            (*name, count)
        })
        .collect()
}

/// Says the counts. They have no hard limit; the library's `unsafe` is forbidden by its own attribute.
pub(super) fn check() -> Found {
    let counts = counts();
    let parts = counts.iter().map(|(name, count)| format!("{name} {}/{}", count.lines, count.unsafes));
    Found::Good(parts.collect::<Vec<_>>().join(", "))
}

/// All Rust files of a folder.
pub(super) fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = tree(folder);
    found.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
    found
}

/// Rust and assembly files, without those that hold only tests.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = tree(folder);
    found.retain(|path| {
        path.extension().is_some_and(|extension| extension == "rs" || extension == "S")
            && path.file_name().is_none_or(|name| name != "tests.rs")
    });
    found
}

/// All files of a folder.
fn tree(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(folder) = open.pop() {
        for path in fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                open.push(path);
            } else {
                found.push(path);
            }
        }
    }
    found
}

/// Counts one file up to its test module.
fn add(count: &mut Count, text: &str) {
    for line in text.lines().take_while(|line| *line != "#[cfg(test)]") {
        let line = line.trim();
        if line.is_empty() || line.starts_with("//") {
            continue;
        }
        let code = line.split("//").next().unwrap_or_default();
        count.lines += 1;
        count.unsafes += code
            .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .filter(|word| *word == "unsafe")
            .count();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_blank_lines_and_tests_do_not_count() {
        let text = "//! unsafe\n\nfn a() {\n    unsafe { b() } // unsafe\n}\n#[cfg(test)]\nmod tests {\n unsafe {}\n}\n";
        let mut count = Count::default();
        add(&mut count, text);
        assert_eq!(count, Count { lines: 3, unsafes: 1 });
    }

    #[test]
    fn words_that_only_contain_unsafe_do_not_count() {
        let mut count = Count::default();
        add(&mut count, "#![expect(unsafe_code, reason = \"registers\")]\n");
        assert_eq!(count.unsafes, 0);
    }
}
