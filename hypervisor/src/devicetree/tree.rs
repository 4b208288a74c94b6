//! A flattened device tree in memory, and the one walk over it.
//!
//! 1. A [`Tree`]'s blocks lie inside its slice and its structure block ends with `FDT_END`: what the parser assumes
//!    without checking. Constructed only by [`Tree::new`].
//! 2. A [`Path`] holds the root first and the current node last; each node is a child of the one before.
use fdt::Fdt;
use fdt::nodes::root::AllNodesIter;
use fdt::parsing::NoPanic;
use fdt::parsing::aligned::AlignedParser;
use heapless::Vec;

use super::cells::{Cells, split_once};
use super::error::TreeError;
use super::node::Node;
use super::range::PhysRange;

type Mode<'a> = (AlignedParser<'a>, NoPanic);

/// Deepest nesting that the parser follows; it forgets nodes below depth 15 without a word, so 15 is refused here.
const MAX_DEPTH: usize = 15;
const MAGIC: u32 = 0xd00d_feed;
/// The format's version that everybody writes (specification 5.2).
const VERSION: u32 = 17;
/// Bytes of the header.
const HEADER_BYTES: u32 = 40;
/// Longest tree that the arm64 boot protocol allows.
const MAX_BYTES: u32 = 2 << 20;
const FDT_END: u32 = 9;

/// A flattened device tree whose header has been checked.
#[derive(Clone, Copy)]
pub struct Tree<'a> {
    words: &'a [u32],
    bytes: u32,
    reservations: u32,
}

impl<'a> Tree<'a> {
    /// Length in bytes of the tree whose first two words (as they are in memory) are `start`: what a caller with a bare
    /// pointer must map and pass to [`Tree::new`].
    ///
    /// # Errors
    /// [`TreeError::NotATree`] without the magic number, [`TreeError::BadHeader`] for a length under the header's or over 2 MiB.
    pub fn length(start: [u32; 2]) -> Result<u32, TreeError> {
        let [magic, total] = start.map(u32::from_be);
        if magic != MAGIC {
            return Err(TreeError::NotATree);
        }
        if !(HEADER_BYTES..=MAX_BYTES).contains(&total) {
            return Err(TreeError::BadHeader);
        }
        Ok(total)
    }

    /// Takes the tree at the start of `words`, which are as in memory (big-endian) and may be longer than it.
    ///
    /// # Errors
    /// [`TreeError::NotATree`], [`TreeError::Version`] or [`TreeError::BadHeader`].
    pub fn new(words: &'a [u32]) -> Result<Self, TreeError> {
        let header = words.first_chunk::<10>().ok_or(TreeError::BadHeader)?;
        let [raw_magic, raw_total, ..] = *header;
        let total = Self::length([raw_magic, raw_total])?;
        let [_, _, structs, strings, reservations, version, compatible, _, strings_size, structs_size] =
            header.map(u32::from_be);
        if version < VERSION || compatible > VERSION {
            return Err(TreeError::Version);
        }
        let inside = |start: u32, size: u32| {
            start >= HEADER_BYTES && start.checked_add(size).is_some_and(|end| end <= total)
        };
        let aligned =
            structs.is_multiple_of(4) && structs_size.is_multiple_of(4) && reservations.is_multiple_of(4);
        if !aligned
            || !inside(structs, structs_size)
            || !inside(strings, strings_size)
            || !inside(reservations, 16)
        {
            return Err(TreeError::BadHeader);
        }
        let words = words.get(..word(total.next_multiple_of(4))).ok_or(TreeError::BadHeader)?;
        let block = words
            .get(word(structs)..)
            .and_then(|from| from.get(..word(structs_size)))
            .ok_or(TreeError::BadHeader)?;
        if block.last().map(|last| u32::from_be(*last)) != Some(FDT_END) {
            return Err(TreeError::BadHeader);
        }
        Ok(Self { words, bytes: total, reservations })
    }

    /// Length of the tree in bytes.
    pub fn bytes(&self) -> u32 {
        self.bytes
    }

    /// Starts a walk over all nodes in the order of the tree.
    ///
    /// # Errors
    /// [`TreeError::Damaged`] when there is no root.
    pub fn walk(&self) -> Result<Walk<'a>, TreeError> {
        // Made anew for each walk: the compiler sees the header's bounds and leaves the parser's panic path out.
        let parser: Fdt<'a, Mode<'a>> = Fdt::new_fallible(self.words)?;
        Ok(Walk { nodes: parser.all_nodes()?, path: Vec::new() })
    }

    /// The memory reservation block: ranges as the tree has them, empty and wrapping ones left out.
    pub fn reservations(&self) -> impl Iterator<Item = PhysRange> + 'a {
        let block = self.words.get(word(self.reservations)..).unwrap_or_default();
        let pairs = block.chunks_exact(4).map_while(|entry| {
            let [a, b, c, d] = *entry.first_chunk::<4>()?;
            let join =
                |high: u32, low: u32| (u64::from(u32::from_be(high)) << 32) | u64::from(u32::from_be(low));
            let (start, size) = (join(a, b), join(c, d));
            (start != 0 || size != 0).then_some((start, size))
        });
        pairs.filter_map(|(start, size)| PhysRange::new(start, size))
    }
}

/// Index of the word at byte `offset`.
fn word(offset: u32) -> usize {
    // Offsets are below MAX_BYTES: they fit every usize.
    usize::try_from(offset >> 2).unwrap_or(usize::MAX)
}

/// A walk over the nodes of a tree, depth first, the root left out.
pub struct Walk<'a> {
    nodes: AllNodesIter<'a, Mode<'a>>,
    path: Vec<Node<'a>, MAX_DEPTH>,
}

impl<'a> Walk<'a> {
    /// Steps to the next node; none at the end.
    ///
    /// # Errors
    /// [`TreeError::Damaged`] or [`TreeError::TooDeep`]; the walk is over then.
    #[inline(never)]
    pub fn step(&mut self) -> Result<Option<Path<'_, 'a>>, TreeError> {
        let Some(next) = self.nodes.next() else { return Ok(None) };
        let (depth, node) = next?;
        if depth >= MAX_DEPTH {
            return Err(TreeError::TooDeep);
        }
        if self.path.is_empty() {
            let root = node.parent().ok_or(TreeError::Damaged)?;
            self.path.push(Node::new(root)).map_err(|_| TreeError::TooDeep)?;
        }
        if depth == 0 || depth > self.path.len() {
            return Err(TreeError::Damaged);
        }
        self.path.truncate(depth);
        self.path.push(Node::new(node)).map_err(|_| TreeError::TooDeep)?;
        Ok(Some(Path { nodes: &self.path }))
    }
}

/// A node together with its ancestors.
#[derive(Clone, Copy)]
pub struct Path<'p, 'a> {
    nodes: &'p [Node<'a>],
}

impl<'a> Path<'_, 'a> {
    /// Levels below the root.
    pub fn depth(self) -> usize {
        self.nodes.len().saturating_sub(1)
    }

    /// The node itself.
    ///
    /// # Errors
    /// None in practice: a path is never empty (invariant 2).
    pub fn node(self) -> Result<Node<'a>, TreeError> {
        self.nodes.last().copied().ok_or(TreeError::Damaged)
    }

    /// The node's parent.
    ///
    /// # Errors
    /// [`TreeError::Damaged`] for the root.
    pub fn parent(self) -> Result<Node<'a>, TreeError> {
        self.nodes.iter().rev().nth(1).copied().ok_or(TreeError::Damaged)
    }

    /// Whether the node is a child of `/ancestors[0]/ancestors[1]/...`.
    ///
    /// # Errors
    /// [`TreeError::Damaged`] when a name is no text.
    #[inline(never)]
    pub fn is_child_of(self, ancestors: &[&str]) -> Result<bool, TreeError> {
        if self.depth() != ancestors.len().saturating_add(1) {
            return Ok(false);
        }
        for (node, name) in self.nodes.iter().skip(1).zip(ancestors) {
            if node.name()? != *name {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the node is the root's child of this name.
    pub(super) fn is_at(self, name: &str) -> Result<bool, TreeError> {
        Ok(self.depth() == 1 && self.node()?.name()? == name)
    }

    /// Whether the node is somewhere below the root's child of this name.
    pub(super) fn is_below(self, name: &str) -> Result<bool, TreeError> {
        match self.nodes.get(1) {
            Some(top) => Ok(self.depth() > 1 && top.name()? == name),
            None => Ok(false),
        }
    }

    /// The phandle that the node's interrupts belong to: its own, or what the nearest node above says.
    pub(super) fn interrupt_parent(self) -> Result<Option<u32>, TreeError> {
        for node in self.nodes.iter().rev() {
            if let Some(phandle) = node.u32("interrupt-parent")? {
                return Ok(Some(phandle));
            }
        }
        Ok(None)
    }

    /// Whether the absolute path `text` names this node; components may leave out unit addresses.
    ///
    /// # Errors
    /// [`TreeError::Damaged`] when a name is no text.
    #[inline(never)]
    pub fn matches(self, text: &str) -> Result<bool, TreeError> {
        // Depth 0 is the root's; a path that goes deeper than this node does not name it.
        let mut rest = text.strip_prefix('/').unwrap_or(text);
        for node in self.nodes.iter().skip(1) {
            let (component, behind) = split_once(rest, b'/');
            if component.is_empty() || !node.is_named(component)? {
                return Ok(false);
            }
            rest = behind.unwrap_or_default();
        }
        Ok(rest.is_empty())
    }

    /// Entry `index` of `reg` as (address, size) on the parent's bus; none when there are fewer.
    ///
    /// # Errors
    /// [`TreeError::Damaged`] when properties cannot be parsed.
    pub fn bus_reg(self, index: usize) -> Result<Option<(u64, u64)>, TreeError> {
        let Some(value) = self.node()?.bytes("reg")? else { return Ok(None) };
        let (address_cells, size_cells) = self.parent()?.child_cells()?;
        Ok(nth_reg(value, address_cells, size_cells, index))
    }

    /// Entry `index` of `reg` as CPU physical addresses, through the `ranges` of every bus above; none when there are fewer
    /// or a bus does not map it.
    ///
    /// # Errors
    /// [`TreeError::Damaged`] when properties cannot be parsed.
    pub fn reg(self, index: usize) -> Result<Option<PhysRange>, TreeError> {
        let Some((mut address, size)) = self.bus_reg(index)? else { return Ok(None) };
        // From the bus that the node sits on up to the root's, whose addresses are the CPU's.
        let buses = self.nodes.iter().rev().skip(1);
        let parents = self.nodes.iter().rev().skip(2);
        for (bus, parent) in buses.zip(parents) {
            match through_ranges(*bus, *parent, address, size)? {
                Some(mapped) => address = mapped,
                None => return Ok(None),
            }
        }
        Ok(PhysRange::new(address, size))
    }

    /// Entry 0 of `reg` as Xen reads boot modules: no translation, and cell counts that a parent leaves out are its own
    /// parent's (`device_tree_for_each_node` in Xen's `bootfdt.c`).
    ///
    /// # Errors
    /// [`TreeError::Damaged`] when properties cannot be parsed.
    pub fn module_reg(self) -> Result<Option<PhysRange>, TreeError> {
        let Some(value) = self.node()?.bytes("reg")? else { return Ok(None) };
        let (mut address_cells, mut size_cells) = (2, 1);
        for ancestor in self.nodes.iter().take(self.depth()) {
            address_cells = ancestor.u32("#address-cells")?.unwrap_or(address_cells);
            size_cells = ancestor.u32("#size-cells")?.unwrap_or(size_cells);
        }
        Ok(nth_reg(value, address_cells, size_cells, 0).and_then(|(start, size)| PhysRange::new(start, size)))
    }
}

/// Entry `index` of a `reg` value.
#[inline(never)]
fn nth_reg(value: &[u8], address_cells: u32, size_cells: u32, index: usize) -> Option<(u64, u64)> {
    let cells = usize::try_from(address_cells.checked_add(size_cells)?).ok()?;
    let skip = cells.checked_mul(4)?.checked_mul(index)?;
    // Without this, an entry of no cells at all would be there at every index.
    let mut entry = Cells::new(value.get(skip..).filter(|rest| !rest.is_empty())?);
    Some((entry.number(address_cells)?, entry.number(size_cells)?))
}

/// `address` on `bus` as an address on the bus above, whose node is `parent` (specification 2.3.8).
#[inline(never)]
fn through_ranges(
    bus: Node<'_>,
    parent: Node<'_>,
    address: u64,
    size: u64,
) -> Result<Option<u64>, TreeError> {
    let Some(value) = bus.bytes("ranges")? else { return Ok(None) };
    if value.is_empty() {
        return Ok(Some(address));
    }
    let (child_cells, size_cells) = bus.child_cells()?;
    let (parent_cells, _) = parent.child_cells()?;
    if child_cells == 0 && parent_cells == 0 && size_cells == 0 {
        return Ok(None);
    }
    let mut cells = Cells::new(value);
    while !cells.is_empty() {
        let (child, above, length) =
            (cells.number(child_cells), cells.number(parent_cells), cells.number(size_cells));
        let (Some(child), Some(above), Some(length)) = (child, above, length) else { return Ok(None) };
        let Some(offset) = address.checked_sub(child) else { continue };
        if offset.checked_add(size).is_some_and(|end| end <= length) {
            return Ok(above.checked_add(offset));
        }
    }
    Ok(None)
}
