//! The ABI reference, `docs/abi.md`: generated from `pv-abi`'s table; and whether each line of it has its cases.

use std::fmt::Write as _;

use pv_abi::call::{Cost, Operation, Row, TABLE};
use pv_abi::version::XEN_VERSION;

use super::Found;
use crate::conformance::{self, answers};
use crate::failure::{Failure, Outcome};
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

fn sub_calls() -> usize {
    TABLE.iter().map(|row| row.operations.len()).sum()
}

fn table_answers() -> usize {
    let each = |operation: &Operation| {
        usize::from(operation.succeeds) + operation.errors.len() + operation.statuses.len()
    };
    TABLE.iter().flat_map(|row| row.operations).map(each).sum()
}

/// Xen's numbers and Pavo's own are told apart by call: all that Xen has on ARM64 are Xen's.
fn origin(row: &Row) -> &'static str {
    match row.number {
        1 | 14 | 26 => "Xen's number and name, Pavo's meaning on ARM64",
        _ => "Xen's",
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
         guest virtual address. A number that is not here is -ENOSYS, but for the control domain's own calls, which others are refused\n\
         (7, 35, 36: -EFAULT, -EACCES for another interface version, -EPERM; 42: -EPERM).\n\n\
         Cost: O(1) is bounded by a constant, O(n) grows with an argument up to a limit, restartable works in pieces and goes on by executing\n\
         the `hvc` again, with what is left in its arguments, so that interrupts come in between.\n",
        env!("CARGO_PKG_VERSION"),
        XEN_VERSION >> 16,
        XEN_VERSION & 0xFFFF,
    );
    for row in TABLE {
        let _ = writeln!(
            out,
            "## {} `{}({})`\n\n{} {}.",
            row.number,
            row.name,
            row.args.join(", "),
            row.doc.trim(),
            origin(row)
        );
        if row.operations.is_empty() {
            let _ = writeln!(out, "Cost: {}.\n", cost(row.cost));
            continue;
        }
        let _ =
            writeln!(out, "\n| | sub-call | argument | what | errors | cost |\n|---|---|---|---|---|---|");
        for operation in row.operations {
            let _ = writeln!(
                out,
                "| {} | `{}` | {} | {} | {} | {} |",
                operation.number,
                operation.name,
                operation.argument,
                plain(operation.doc),
                refusals(operation),
                cost(operation.cost)
            );
        }
        if !row.otherwise.is_empty() {
            let answers: Vec<_> = row.otherwise.iter().map(|errno| answers::name(*errno)).collect();
            let _ = writeln!(out, "| others | | | | {} | O(1) |", answers.join(", "));
        }
        out.push('\n');
    }
    out
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
