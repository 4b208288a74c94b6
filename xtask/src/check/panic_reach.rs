//! Proves that no panic function can be reached from the exception vectors of the image, and names the callers if one
//! can.
//!
//! What it rests on:
//! 1. The vector table is the architecture's 2 KiB from the symbol `el2_vectors`, or the output section `.text.vectors`;
//!    everything that runs after boot is entered through it.
//! 2. Every direct branch is followed, whatever its condition.
//! 3. An indirect call or jump that is reachable is a finding too, unless `xtask/indirect-calls.txt` names its function
//!    with a reason, or it is a `match` compiled to a table of offsets within the same function.
//! 4. An assembly label (no size in the symbol table) goes on into the next one unless nothing leads to its end: what
//!    follows a jump or a return counts only if a branch of the same label leads there.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use object::elf;
use object::read::elf::{ElfFile64, FileHeader as _};
use object::{LittleEndian, Object as _, ObjectSection as _, ObjectSymbol as _, SymbolFlags};

use super::a64::{self, Flow};
use crate::failure::{Doing, Failure, Outcome};

/// The output section of the vector table.
const VECTORS: &str = ".text.vectors";
/// The symbol at its start, where it has no section of its own.
const VECTOR_TABLE: &str = "el2_vectors";
/// Sixteen entries of 128 bytes (Arm ARM D1.3.1).
const VECTOR_TABLE_SIZE: u64 = 0x800;
/// Parts of the names of functions that panic.
const PANICS: [&str; 16] = [
    "core::panicking",
    "panic_handler",
    "rust_begin_unwind",
    "unwrap_failed",
    "expect_failed",
    "slice_index_fail",
    "slice_error_fail",
    "slice_start_index",
    "slice_end_index",
    "len_mismatch_fail",
    "overflow_panic",
    "panic_already",
    "panic_nounwind",
    "capacity_overflow",
    "handle_alloc_error",
    "raw_vec::handle_error",
];
/// Functions whose indirect calls are known, with the reason.
const ALLOWED: &str = include_str!("../../indirect-calls.txt");
/// A table jump is at most this many instructions after its base is loaded.
const TABLE_WINDOW: usize = 16;
/// And at most this many after the offset is added.
const TABLE_ADD_WINDOW: usize = 4;

/// Whether a function can fall into the one after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A label without size.
    Assembly,
    /// A compiled function.
    Compiled,
}

/// A function's code.
#[derive(Debug)]
struct Function {
    name: String,
    start: u64,
    kind: Kind,
    /// Instructions by address; data in code is left out.
    words: Vec<(u64, u32)>,
}

/// An image's code.
#[derive(Debug)]
pub(super) struct Program {
    /// By start address.
    functions: Vec<Function>,
    /// Indices of the functions in the vector table.
    roots: Vec<usize>,
}

/// A way from the vectors to something forbidden.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Finding {
    /// From a root to the function at fault.
    pub(super) chain: Vec<String>,
    /// What is wrong in the last function of the chain, if it is not its name.
    pub(super) what: Option<String>,
}

impl Finding {
    /// `root -> ... -> function`, and what is wrong there.
    pub(super) fn line(&self) -> String {
        let chain = self.chain.join(" -> ");
        self.what.as_ref().map_or_else(|| chain.clone(), |what| format!("{chain}: {what}"))
    }
}

/// All findings in an ELF image, and how many functions are reachable.
pub(super) fn check(elf: &[u8]) -> Outcome<(Vec<Finding>, usize)> {
    let program = Program::read(elf)?;
    let allowed: Vec<&str> = ALLOWED
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(": ").map(|(name, _)| name))
        .collect();
    Ok(program.findings(&allowed))
}

impl Program {
    /// Reads code and symbols.
    fn read(bytes: &[u8]) -> Outcome<Self> {
        let file = ElfFile64::<LittleEndian>::parse(bytes).doing("the image")?;
        if file.elf_header().e_machine(LittleEndian) != elf::EM_AARCH64 {
            return Err(Failure::failed("the image is not for AArch64"));
        }
        let mut functions: BTreeMap<u64, Function> = BTreeMap::new();
        let mut roots = BTreeSet::new();
        for section in file.sections().filter(|section| section.kind() == object::SectionKind::Text) {
            let name = section.name().doing("a section's name")?;
            let mut starts: BTreeMap<u64, (String, Kind)> = BTreeMap::new();
            let mut maps: BTreeMap<u64, bool> = BTreeMap::new();
            for symbol in file.symbols().filter(|symbol| symbol.section_index() == Some(section.index())) {
                let symbol_name = symbol.name().unwrap_or_default();
                match symbol_name.get(..2) {
                    Some("$x") => drop(maps.insert(symbol.address(), true)),
                    Some("$d") => drop(maps.insert(symbol.address(), false)),
                    Some(_) => add_symbol(&mut starts, symbol_name, &symbol),
                    None => {}
                }
            }
            starts.entry(section.address()).or_insert((name.to_owned(), Kind::Assembly));
            let data = section.data().doing("a section's content")?;
            for (start, (symbol, kind)) in &starts {
                if name == VECTORS || table(&starts).is_some_and(|table| table.contains(start)) {
                    roots.insert(*start);
                }
                let function =
                    Function { name: symbol.clone(), start: *start, kind: *kind, words: Vec::new() };
                functions.insert(*start, function);
            }
            for (index, word) in data.chunks_exact(4).enumerate() {
                let at = section.address() + 4 * index as u64;
                let is_code = maps.range(..=at).next_back().is_none_or(|(_, code)| *code);
                let owner = functions.range_mut(..=at).next_back();
                if let (true, Some((_, function)), Ok(word)) = (is_code, owner, word.try_into()) {
                    function.words.push((at, u32::from_le_bytes(word)));
                }
            }
        }
        if roots.is_empty() {
            let text = format!(
                "the image has no section {VECTORS}: keep the vector table in an output section of that name"
            );
            return Err(Failure::failed(text));
        }
        let functions: Vec<_> = functions.into_values().collect();
        let roots = (0..functions.len()).filter(|index| roots.contains(&functions[*index].start)).collect();
        Ok(Self { functions, roots })
    }

    /// The function that holds an address.
    fn at(&self, address: u64) -> Option<usize> {
        let index = self.functions.partition_point(|function| function.start <= address).checked_sub(1)?;
        let last = self.functions[index].words.last().map_or(self.functions[index].start, |(at, _)| *at);
        (address <= last).then_some(index)
    }

    /// Follows every branch from the roots, breadth first, so that each chain is a shortest one.
    fn findings(&self, allowed: &[&str]) -> (Vec<Finding>, usize) {
        let mut parent: BTreeMap<usize, Option<usize>> =
            self.roots.iter().map(|root| (*root, None)).collect();
        let mut queue: VecDeque<usize> = self.roots.iter().copied().collect();
        let mut findings = Vec::new();
        while let Some(index) = queue.pop_front() {
            let function = &self.functions[index];
            if PANICS.iter().any(|part| function.name.contains(part)) {
                findings.push(Finding { chain: self.chain(index, &parent), what: None });
                continue;
            }
            let (targets, indirect) = self.exits(index);
            if !allowed.contains(&function.name.as_str()) {
                findings.extend(indirect.into_iter().map(|at| {
                    let what = format!("indirect call at {at:#x}");
                    Finding { chain: self.chain(index, &parent), what: Some(what) }
                }));
            }
            for target in targets {
                let Some(next) = self.at(target) else {
                    let what = format!("branch to {target:#x}, which is no code");
                    findings.push(Finding { chain: self.chain(index, &parent), what: Some(what) });
                    continue;
                };
                parent.entry(next).or_insert_with(|| {
                    queue.push_back(next);
                    Some(index)
                });
            }
        }
        (findings, parent.len())
    }

    /// The addresses outside a function that it branches to, and where its indirect calls are.
    fn exits(&self, index: usize) -> (BTreeSet<u64>, Vec<u64>) {
        let function = &self.functions[index];
        let mut targets = BTreeSet::new();
        let mut indirect = Vec::new();
        let inside: BTreeSet<u64> =
            function.words.iter().filter_map(|(at, word)| a64::flow(*word, *at).target()).collect();
        let mut open = true;
        for (position, (at, word)) in function.words.iter().enumerate() {
            let flow = a64::flow(*word, *at);
            match flow {
                Flow::Next | Flow::Return => {}
                Flow::Branch(to) | Flow::Jump(to) => {
                    if self.at(to) != Some(index) {
                        targets.insert(to);
                    }
                }
                Flow::IndirectCall => indirect.push(*at),
                Flow::IndirectJump(register) => {
                    if !self.is_table_jump(index, position, register) {
                        indirect.push(*at);
                    }
                }
            }
            open = match flow {
                Flow::Next | Flow::Branch(_) | Flow::IndirectCall => open || inside.contains(at),
                Flow::Jump(_) | Flow::IndirectJump(_) | Flow::Return => false,
            };
        }
        if let (Kind::Assembly, true, Some((at, _))) = (function.kind, open, function.words.last())
            && self.at(at + 4).is_some()
        {
            targets.insert(at + 4);
        }
        (targets, indirect)
    }

    /// Whether `br` at a position is a `match`: the register was the address of a label in this function, and an offset
    /// was added right before.
    fn is_table_jump(&self, index: usize, position: usize, register: u32) -> bool {
        let words = &self.functions[index].words;
        let window = &words[position.saturating_sub(TABLE_WINDOW)..position];
        let last = &window[window.len().saturating_sub(TABLE_ADD_WINDOW)..];
        let added = last.iter().any(|(_, word)| a64::add_table_offset(*word) == Some(register));
        let base =
            window.iter().rev().find_map(|(at, word)| a64::adr(*word, *at).filter(|(to, _)| *to == register));
        added && base.is_some_and(|(_, label)| self.at(label) == Some(index))
    }

    fn chain(&self, index: usize, parent: &BTreeMap<usize, Option<usize>>) -> Vec<String> {
        let mut chain = Vec::new();
        let mut next = Some(index);
        while let Some(index) = next {
            chain.push(self.functions[index].name.clone());
            next = parent.get(&index).copied().flatten();
        }
        chain.reverse();
        chain
    }
}

/// The addresses of the vector table, if it starts in this section.
fn table(starts: &BTreeMap<u64, (String, Kind)>) -> Option<std::ops::Range<u64>> {
    let (start, _) = starts.iter().find(|(_, (name, _))| name == VECTOR_TABLE)?;
    Some(*start..start + VECTOR_TABLE_SIZE)
}

/// Notes where a function starts. Of several names for one place, a compiled function's is kept.
fn add_symbol<'data>(
    starts: &mut BTreeMap<u64, (String, Kind)>,
    name: &str,
    symbol: &impl object::ObjectSymbol<'data>,
) {
    let SymbolFlags::Elf { st_info, .. } = symbol.flags() else { return };
    let kind = match st_info & 0xf {
        elf::STT_FUNC if symbol.size() > 0 => Kind::Compiled,
        elf::STT_FUNC | elf::STT_NOTYPE => Kind::Assembly,
        _ => return,
    };
    let name = format!("{:#}", rustc_demangle::demangle(name));
    let place = starts.entry(symbol.address()).or_insert_with(|| (name.clone(), kind));
    if kind == Kind::Compiled && place.1 == Kind::Assembly {
        *place = (name, kind);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOP: u32 = 0xd503_201f;
    const RET: u32 = 0xd65f_03c0;
    const BLR_X0: u32 = 0xd63f_0000;
    const BR_X9: u32 = 0xd61f_0120;

    /// Lays functions out one after another from 0x1000; the first is the root.
    fn program(functions: &[(&str, Kind, &[u32])]) -> Program {
        let mut at = 0x1000;
        let mut laid = Vec::new();
        for (name, kind, words) in functions {
            let start = at;
            let words = words.iter().map(|word| {
                at += 4;
                (at - 4, *word)
            });
            let words = words.collect();
            laid.push(Function { name: (*name).into(), start, kind: *kind, words });
        }
        Program { functions: laid, roots: vec![0] }
    }

    fn lines(program: &Program) -> Vec<String> {
        program.findings(&["allowed"]).0.iter().map(Finding::line).collect()
    }

    #[test]
    fn a_reachable_panic_is_named_with_its_callers() {
        let found = lines(&program(&[
            ("vectors", Kind::Assembly, &[0x1400_0001]),                // b .+4
            ("trap", Kind::Compiled, &[0x5400_0040, RET, 0x9400_0001]), // b.eq .+8; ret; bl .+4
            ("core::panicking::panic_bounds_check", Kind::Compiled, &[0x9400_0001]), // bl .+4
            ("core::panicking::panic_fmt", Kind::Compiled, &[RET]),
        ]));
        assert_eq!(found, ["vectors -> trap -> core::panicking::panic_bounds_check"]);
    }

    #[test]
    fn panics_that_only_boot_reaches_are_no_finding() {
        let found = lines(&program(&[
            ("vectors", Kind::Assembly, &[0x1400_0001]),
            ("trap", Kind::Compiled, &[RET]),
            ("boot", Kind::Compiled, &[0x9400_0001]),
            ("core::panicking::panic", Kind::Compiled, &[RET]),
        ]));
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn an_indirect_call_is_a_finding_unless_it_is_allowed() {
        let with = |name| {
            lines(&program(&[
                ("vectors", Kind::Assembly, &[0x1400_0001]),
                (name, Kind::Compiled, &[BLR_X0, RET]),
            ]))
        };
        assert_eq!(with("trap"), ["vectors -> trap: indirect call at 0x1004"]);
        assert_eq!(with("allowed"), Vec::<String>::new());
    }

    #[test]
    fn a_label_without_a_jump_at_its_end_falls_into_the_next() {
        let table: [(&str, Kind, &[u32]); 2] =
            [("vectors", Kind::Assembly, &[NOP]), ("core::panicking::panic", Kind::Compiled, &[RET])];
        assert_eq!(lines(&program(&table)), ["vectors -> core::panicking::panic"]);
        let ended: [(&str, Kind, &[u32]); 2] = [("vectors", Kind::Assembly, &[NOP, RET, NOP]), table[1]];
        assert_eq!(lines(&program(&ended)), Vec::<String>::new());
        let entered: [(&str, Kind, &[u32]); 2] =
            [("vectors", Kind::Assembly, &[0x5400_0040, RET, NOP]), table[1]];
        assert_eq!(lines(&program(&entered)), ["vectors -> core::panicking::panic"]);
    }

    #[test]
    fn a_match_compiled_to_a_table_is_no_indirect_call() {
        // adr x9, .+16; ldrb w10, [x8, x0]; add x9, x9, x10, lsl #2; br x9; ret
        let inside = [0x1000_0089, 0x3860_690a, 0x8b0a_0929, BR_X9, RET];
        assert_eq!(lines(&program(&[("vectors", Kind::Assembly, &inside)])), Vec::<String>::new());
        let without_base = [NOP, 0x3860_690a, 0x8b0a_0929, BR_X9, RET];
        assert_eq!(lines(&program(&[("vectors", Kind::Assembly, &without_base)])).len(), 1);
    }

    #[test]
    fn a_branch_to_where_no_code_is_is_a_finding() {
        let found = lines(&program(&[("vectors", Kind::Assembly, &[0x1400_0100])]));
        assert_eq!(found, ["vectors: branch to 0x1400, which is no code"]);
    }
}
