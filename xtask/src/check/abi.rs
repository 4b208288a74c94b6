//! The ABI reference, `docs/abi.md`: generated from `pv-abi`'s table; and whether each line of it has its cases.

use std::fmt::Write as _;

use pv_abi::REVISION;
use pv_abi::call::{Cost, Operation, Origin, TABLE};
use pv_abi::control::PRIVILEGED;
use pv_abi::version::XEN_VERSION;

use super::{Found, layouts};
use crate::conformance::{self, answers};
use crate::failure::{Doing, Failure, Outcome};
use crate::workspace;

/// Where the reference is.
const FILE: &str = "docs/abi.md";

/// Fails when the file is not what the table gives.
pub(super) fn fresh() -> Outcome<Found> {
    let kept = std::fs::read_to_string(workspace::root().join(FILE)).unwrap_or_default();
    if kept == text() {
        return Ok(Found::Good(format!("{FILE}, {} sub-calls", sub_calls())));
    }
    Err(Failure::failed(format!("{FILE} is not what pv-abi's table gives: `cargo xtask check --update-abi`")))
}

/// Writes the file.
pub(super) fn update() -> Outcome<()> {
    workspace::write(&workspace::root().join(FILE), text().as_bytes())?;
    println!("wrote {FILE}");
    Ok(())
}

/// Fails when an answer of the table, or a kind of case, is not in what real Xen was seen to do.
pub(super) fn covered() -> Outcome<Found> {
    let problems = conformance::uncovered()?;
    let Some(first) = problems.first() else {
        return Ok(Found::Good(format!("{} answers of {} sub-calls", table_answers(), sub_calls())));
    };
    for problem in &problems {
        println!("         {problem}");
    }
    Err(Failure::failed(format!("{} problems, such as: {first}", problems.len())))
}

/// Fails when the contract needs a crate of ours, is not `no_std`, or has a structure whose layout is not asserted or is not that of Xen's
/// headers. Returns how many there are.
pub(super) fn stands_alone() -> Outcome<Found> {
    let folder = workspace::root().join("pv-abi");
    let read = |path: &std::path::Path| std::fs::read_to_string(path).doing("reading pv-abi");
    let manifest: toml::Table =
        read(&folder.join("Cargo.toml"))?.parse().doing("reading pv-abi's manifest")?;
    let needs = manifest.get("dependencies").and_then(toml::Value::as_table).into_iter().flatten();
    let (mut problems, mut structures, mut asserted) = (Vec::new(), 0, Vec::new());
    let headers = layouts::Headers::parse(&read(&folder.join(layouts::FILE))?)?;
    let ours = ["guest-kernel", "hypervisor", "platform", "xtask", "pavo-tests"];
    problems.extend(
        needs.filter(|(name, _)| ours.contains(&name.as_str())).map(|(name, _)| format!("it needs {name}")),
    );
    let head = read(&folder.join("src/lib.rs"))?;
    for line in ["#![no_std]", "#![forbid(unsafe_code)]", "pub const REVISION: u32"] {
        if !head.contains(line) {
            problems.push(format!("lib.rs has no `{line}`"));
        }
    }
    for entry in std::fs::read_dir(folder.join("src")).doing("reading pv-abi")? {
        let path = entry.doing("reading pv-abi")?.path();
        let text = read(&path)?;
        let layouts = layouts::asserted(&text)?;
        let blocks = text.split("abi_struct! {").skip(1).filter_map(|rest| rest.split("\n}").next());
        for name in blocks
            .flat_map(str::lines)
            .filter_map(|line| line.trim().strip_prefix("pub struct ")?.split(' ').next())
        {
            structures += 1;
            if layouts.iter().all(|layout| layout.name != name) {
                problems.push(format!("{}: the layout of {name} is not asserted", path.display()));
            }
        }
        asserted.extend(layouts);
    }
    problems.extend(headers.problems(&asserted));
    match problems.first() {
        None => Ok(Found::Good(format!(
            "{structures} structures as in Xen {}, revision {REVISION}",
            headers.version
        ))),
        Some(first) => Err(Failure::Shown {
            text: format!("{} problems, such as: {first}", problems.len()),
            lines: problems,
        }),
    }
}

fn sub_calls() -> usize {
    TABLE.iter().chain(PRIVILEGED).map(|row| row.operations.len()).sum()
}

fn table_answers() -> usize {
    let each = |operation: &Operation| {
        usize::from(operation.succeeds) + operation.errors.len() + operation.statuses.len()
    };
    TABLE.iter().chain(PRIVILEGED).flat_map(|row| row.operations).map(each).sum()
}

/// Whose it is, for people.
fn origin(origin: Origin) -> &'static str {
    match origin {
        Origin::Xen => "Xen's",
        Origin::Meaning => "Xen's number and name, Pavo's meaning on ARM64",
        Origin::Pavo => "Pavo's",
    }
}

fn cost(cost: Cost) -> &'static str {
    match cost {
        Cost::Constant => "O(1)",
        Cost::Linear => "O(n)",
        Cost::Restartable => "restartable",
    }
}

fn text() -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "# The ABI of Pavo {}: Xen's for ARM64, version {}.{}\n\n\
         Generated from the table in `pv-abi` by `cargo xtask check --update-abi`; do not edit. Structures, with sizes and offsets, are in the\n\
         crate's modules; addresses of the guest's map are in `pv_abi::layout`.\n\n\
         A call is `hvc #0xEA1` with the number in x16 and arguments in x0-x4; x0 returns the result, negative for an errno. A handle is a\n\
         guest virtual address. A number that is not here is -ENOSYS, but for 42 (hypfs_op), which is -EPERM for all but the control domain.\n\
         What is Pavo's own has revision {} (`pv_abi::REVISION`).\n\n\
         Cost: O(1) is bounded by a constant, O(n) grows with an argument up to a limit, restartable works in pieces and goes on by executing\n\
         the `hvc` again, with what is left in its arguments, so that interrupts come in between.\n",
        env!("CARGO_PKG_VERSION"),
        XEN_VERSION >> 16,
        XEN_VERSION & 0xFFFF,
        REVISION,
    );
    for row in TABLE.iter().chain(PRIVILEGED) {
        let _ = writeln!(
            out,
            "## {} `{}({})`\n\n{} {}.",
            row.number,
            row.name,
            row.args.join(", "),
            row.doc.trim(),
            origin(row.origin())
        );
        let _ = writeln!(
            out,
            "\n| | sub-call | argument | what | errors | cost | |\n|---|---|---|---|---|---|---|"
        );
        for operation in row.operations {
            let _ = writeln!(
                out,
                "| {} | `{}` | {} | {} | {} | {} | {} |",
                number(operation),
                operation.name,
                operation.argument,
                plain(operation.doc),
                refusals(operation),
                cost(operation.cost),
                match operation.origin(row.origin()) {
                    Origin::Xen => "Xen's",
                    Origin::Meaning => "Xen's name",
                    Origin::Pavo => "Pavo's",
                }
            );
        }
        if !row.otherwise.is_empty() {
            let answers: Vec<_> = row.otherwise.iter().map(|errno| answers::name(*errno)).collect();
            let _ = writeln!(out, "| others | | | | {} | O(1) | |", answers.join(", "));
        }
        out.push('\n');
    }
    out
}

/// Pavo's own are numbered from 0x8000.
fn number(operation: &Operation) -> String {
    match operation.number {
        own @ 0x8000.. => format!("{own:#x}"),
        number => number.to_string(),
    }
}

/// A documentation comment without its links.
fn plain(doc: &str) -> String {
    doc.trim().replace("[`", "`").replace("`]", "`")
}

fn refusals(operation: &Operation) -> String {
    let mut words: Vec<_> = operation.errors.iter().map(|errno| answers::name(*errno)).collect();
    if !operation.statuses.is_empty() {
        let statuses: Vec<_> =
            operation.statuses.iter().map(|status| answers::name_of_status(*status)).collect();
        words.push(format!("each element: {}", statuses.join(", ")));
    }
    if !operation.succeeds {
        words.insert(0, "never succeeds".into());
    }
    if words.is_empty() { "none".into() } else { words.join(", ") }
}
