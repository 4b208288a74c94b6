//! Where a site is in the shipping source.

/// A line of the shipping source, behind the name of the function that it is in.
pub fn source(site: &str) -> String {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../hypervisor/src");
    let line = |(file, number): (&str, &str)| {
        let text = std::fs::read_to_string(format!("{root}/{file}")).ok()?;
        let number: usize = number.parse().ok()?;
        let lines: Vec<&str> = text.lines().take(number).collect();
        let name = |line: &&str| {
            let (_, rest) = line.split_once("fn ")?;
            Some(rest.split(['(', '<']).next()?.to_owned())
        };
        Some(format!("{}: {}", lines.iter().rev().find_map(name)?, lines.last()?.trim()))
    };
    site.rsplit_once(':').and_then(line).unwrap_or_default()
}
