//! Flattened device trees, read into a small editable model and written again.
//!
//! Source of the format: Devicetree Specification 0.4, chapter 5. Written here, as libraries refuse the names of nodes in overlays.

use crate::failure::{Doing, Failure, Outcome};

const MAGIC: u32 = 0xd00d_feed;
const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROP: u32 = 3;
const NOP: u32 = 4;
/// QEMU's trees are four levels deep.
const DEEPEST: usize = 32;

/// A node with its properties and children, in order.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    /// With the unit address, such as `memory@40000000`.
    pub(crate) name: String,
    properties: Vec<(String, Vec<u8>)>,
    /// In the order of the tree.
    pub(crate) children: Vec<Node>,
}

impl Node {
    /// An empty node.
    pub(crate) fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// Sets a property's bytes.
    pub(crate) fn set(&mut self, name: &str, bytes: impl Into<Vec<u8>>) -> &mut Self {
        let bytes = bytes.into();
        match self.properties.iter_mut().find(|(own, _)| own == name) {
            Some((_, old)) => *old = bytes,
            None => self.properties.push((name.to_owned(), bytes)),
        }
        self
    }

    /// Sets a property of 32-bit cells.
    pub(crate) fn set_cells(&mut self, name: &str, cells: &[u32]) -> &mut Self {
        self.set(name, cells.iter().flat_map(|cell| cell.to_be_bytes()).collect::<Vec<_>>())
    }

    /// Sets a property of 64-bit numbers, two cells each.
    pub(crate) fn set_u64s(&mut self, name: &str, numbers: &[u64]) -> &mut Self {
        self.set(name, numbers.iter().flat_map(|number| number.to_be_bytes()).collect::<Vec<_>>())
    }

    /// Sets a property of strings.
    pub(crate) fn set_strings(&mut self, name: &str, strings: &[&str]) -> &mut Self {
        self.set(name, strings.iter().flat_map(|text| text.bytes().chain([0])).collect::<Vec<_>>())
    }

    /// A property's bytes.
    pub(crate) fn get(&self, name: &str) -> Option<&[u8]> {
        self.properties.iter().find(|(own, _)| own == name).map(|(_, bytes)| &bytes[..])
    }

    /// All properties, in order.
    pub(crate) fn properties(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.properties.iter().map(|(name, bytes)| (&name[..], &bytes[..]))
    }

    /// The child of that name.
    pub(crate) fn existing_child(&mut self, name: &str) -> Option<&mut Node> {
        self.children.iter_mut().find(|child| child.name == name)
    }

    /// The node at an absolute path.
    pub(crate) fn at_path(&self, path: &str) -> Option<&Node> {
        let mut names = path.split('/').filter(|name| !name.is_empty());
        names.try_fold(self, |node, name| node.children.iter().find(|child| child.name == name))
    }

    /// [`Self::at_path`], to change it.
    pub(crate) fn at_path_mut(&mut self, path: &str) -> Option<&mut Node> {
        let mut names = path.split('/').filter(|name| !name.is_empty());
        names.try_fold(self, |node, name| node.existing_child(name))
    }

    /// Takes over another node's properties and children; what is not named there stays.
    pub(crate) fn merge(&mut self, other: &Node) {
        for (name, bytes) in &other.properties {
            self.set(name, bytes.clone());
        }
        for child in &other.children {
            self.child(&child.name).merge(child);
        }
    }

    /// Cells of an address and of a size in this bus's children (specification 2.3.5).
    fn child_cells(&self) -> (usize, usize) {
        let cell = |name: &str, default: u64| self.get(name).and_then(number).unwrap_or(default);
        let cells = |name, default| usize::try_from(cell(name, default).min(4)).unwrap_or(4);
        (cells("#address-cells", 2), cells("#size-cells", 1))
    }

    /// A property's first string.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        std::str::from_utf8(self.get(name)?.split(|byte| *byte == 0).next()?).ok()
    }

    /// The child of that name, made if absent.
    pub(crate) fn child(&mut self, name: &str) -> &mut Node {
        let place = self.children.iter().position(|child| child.name == name).unwrap_or_else(|| {
            self.children.push(Node::new(name));
            self.children.len() - 1
        });
        &mut self.children[place]
    }

    /// The largest phandle in this node and below.
    pub(crate) fn largest_phandle(&self) -> u32 {
        let own = self.get("phandle").and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_be_bytes);
        self.children.iter().map(Node::largest_phandle).fold(own, u32::max)
    }
}

/// The registers of the node at `path` as the CPU addresses them, through the `ranges` of every bus: (address, size).
pub(crate) fn registers(root: &Node, path: &str) -> Option<Vec<(u64, u64)>> {
    let mut nodes = vec![root];
    for name in path.split('/').filter(|name| !name.is_empty()) {
        nodes.push(nodes.last()?.children.iter().find(|child| child.name == name)?);
    }
    let (node, buses) = nodes.split_last()?;
    let bus = buses.last()?;
    let (address, size) = bus.child_cells();
    let mut found = Vec::new();
    for entry in node.get("reg")?.chunks_exact(4 * (address + size)) {
        let mut place = number(entry.get(..4 * address)?)?;
        let size = number(entry.get(4 * address..)?)?;
        for pair in buses.windows(2).rev() {
            place = through(pair[0], pair[1], place)?;
        }
        found.push((place, size));
    }
    Some(found)
}

/// An address on `bus` as one on the bus above, whose node is `parent`.
fn through(parent: &Node, bus: &Node, address: u64) -> Option<u64> {
    let ranges = bus.get("ranges")?;
    if ranges.is_empty() {
        return Some(address);
    }
    let ((child, size), (above, _)) = (bus.child_cells(), parent.child_cells());
    ranges.chunks_exact(4 * (child + above + size)).find_map(|entry| {
        let (start, rest) = entry.split_at(4 * child);
        let (target, length) = rest.split_at(4 * above);
        let offset = address.checked_sub(number(start)?)?;
        (offset < number(length)?).then_some(number(target)? + offset)
    })
}

/// A big-endian number of at most two cells.
fn number(bytes: &[u8]) -> Option<u64> {
    let cells = bytes.chunks_exact(4).map(|cell| cell.try_into().map_or(0, u32::from_be_bytes));
    (bytes.len() <= 8).then(|| cells.fold(0, |sum, cell| sum << 32 | u64::from(cell)))
}

/// Reads a tree.
pub(crate) fn parse(blob: &[u8]) -> Outcome<Node> {
    let bad = || Failure::failed("the device tree is damaged");
    if word(blob, 0).ok_or_else(bad)? != MAGIC {
        return Err(Failure::failed("no device tree: its magic number is missing"));
    }
    let place = |index: usize| word(blob, index * 4).and_then(|offset| usize::try_from(offset).ok());
    let structs = place(2).and_then(|offset| blob.get(offset..)).ok_or_else(bad)?;
    let strings = place(3).and_then(|offset| blob.get(offset..)).ok_or_else(bad)?;
    let mut open: Vec<Node> = Vec::new();
    let mut at = 0;
    loop {
        let token = word(structs, at).ok_or_else(bad)?;
        at += 4;
        match token {
            BEGIN_NODE if open.len() < DEEPEST => {
                let name = text(structs, at).ok_or_else(bad)?;
                at += (name.len() + 4) & !3;
                open.push(Node::new(name));
            }
            PROP => {
                let length =
                    word(structs, at).and_then(|length| usize::try_from(length).ok()).ok_or_else(bad)?;
                let name =
                    word(structs, at + 4).and_then(|offset| text(strings, usize::try_from(offset).ok()?));
                let bytes = structs.get(at + 8..at + 8 + length).ok_or_else(bad)?;
                open.last_mut()
                    .ok_or_else(bad)?
                    .properties
                    .push((name.ok_or_else(bad)?.to_owned(), bytes.to_vec()));
                at += 8 + ((length + 3) & !3);
            }
            END_NODE => {
                let node = open.pop().ok_or_else(bad)?;
                match open.last_mut() {
                    Some(parent) => parent.children.push(node),
                    None => return Ok(node),
                }
            }
            NOP => {}
            // The end of the tree before the root's, a node too deep, or no token at all.
            _ => return Err(bad()),
        }
    }
}

/// Writes a tree.
pub(crate) fn write(root: &Node) -> Outcome<Vec<u8>> {
    write_reserving(root, &[])
}

/// Writes a tree with a memory reservation block of (start, size).
pub(crate) fn write_reserving(root: &Node, reserved: &[(u64, u64)]) -> Outcome<Vec<u8>> {
    let mut blocks = Blocks::default();
    blocks.node(root)?;
    blocks.structs.extend(END.to_be_bytes());
    let reservations: Vec<u8> = reserved
        .iter()
        .chain(&[(0, 0)])
        .flat_map(|(start, size)| [start.to_be_bytes(), size.to_be_bytes()].concat())
        .collect();
    let offsets = [HEADER, reservations.len(), blocks.structs.len(), blocks.strings.len()];
    let mut ends = offsets.iter().scan(0, |end, size| {
        *end += size;
        Some(length(*end))
    });
    let mut next = || ends.next().unwrap_or(Ok(0));
    let (reserve_at, structs_at, strings_at, total) = (next()?, next()?, next()?, next()?);
    let sizes = (length(blocks.strings.len())?, length(blocks.structs.len())?);
    let header = [MAGIC, total, structs_at, strings_at, reserve_at, 17, 16, 0, sizes.0, sizes.1];
    let header: Vec<u8> = header.iter().flat_map(|word| word.to_be_bytes()).collect();
    Ok([header, reservations, blocks.structs, blocks.strings].concat())
}

/// Bytes of a header.
const HEADER: usize = 40;
const END: u32 = 9;

/// The structure and the strings block.
#[derive(Default)]
struct Blocks {
    structs: Vec<u8>,
    strings: Vec<u8>,
}

impl Blocks {
    fn node(&mut self, node: &Node) -> Outcome<()> {
        self.structs.extend(BEGIN_NODE.to_be_bytes());
        self.padded(&[node.name.as_bytes(), &[0]].concat());
        for (name, bytes) in node.properties() {
            let place = self.string(name)?;
            for word in [PROP, length(bytes.len())?, place] {
                self.structs.extend(word.to_be_bytes());
            }
            self.padded(bytes);
        }
        for child in &node.children {
            self.node(child)?;
        }
        self.structs.extend(END_NODE.to_be_bytes());
        Ok(())
    }

    fn padded(&mut self, bytes: &[u8]) {
        self.structs.extend(bytes);
        self.structs.resize(self.structs.len().next_multiple_of(4), 0);
    }

    /// Where a property's name is.
    fn string(&mut self, name: &str) -> Outcome<u32> {
        let wanted = [name.as_bytes(), &[0]].concat();
        let mut start = 0;
        for own in self.strings.split_inclusive(|byte| *byte == 0) {
            if own == wanted {
                return length(start);
            }
            start += own.len();
        }
        self.strings.extend(wanted);
        length(start)
    }
}

fn length(bytes: usize) -> Outcome<u32> {
    u32::try_from(bytes).doing("the device tree is too large")
}

/// The big-endian word at a byte offset.
fn word(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(offset..offset.checked_add(4)?)?.try_into().ok()?))
}

/// The zero-terminated string at a byte offset.
fn text(bytes: &[u8], offset: usize) -> Option<&str> {
    let rest = bytes.get(offset..)?;
    let length = rest.iter().position(|byte| *byte == 0)?;
    std::str::from_utf8(rest.get(..length)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Node {
        let mut root = Node::new("");
        root.set_cells("#address-cells", &[2]).set_strings("compatible", &["a,b", "c"]);
        root.child("chosen").set("empty", []).set_u64s("memory", &[0x1_0000_0002]);
        root.child("chosen").child("evtchn@1").set_cells("phandle", &[0x8001]);
        root
    }

    fn fill(writer: &mut vm_fdt::FdtWriter, node: &Node) {
        let open = writer.begin_node(&node.name).unwrap();
        node.properties().for_each(|(name, bytes)| writer.property(name, bytes).unwrap());
        node.children.iter().for_each(|child| fill(writer, child));
        writer.end_node(open).unwrap();
    }

    #[test]
    fn another_library_writes_the_same_tree_byte_for_byte() {
        let mut writer =
            vm_fdt::FdtWriter::new_with_mem_reserv(&[vm_fdt::FdtReserveEntry::new(0, 4096).unwrap()])
                .unwrap();
        fill(&mut writer, &sample());
        assert_eq!(write_reserving(&sample(), &[(0, 4096)]).unwrap(), writer.finish().unwrap());
    }

    #[test]
    fn a_written_tree_reads_back_the_same() {
        let root = sample();
        assert_eq!(parse(&write(&root).unwrap()).unwrap(), root);
    }

    #[test]
    fn numbers_are_big_endian_and_strings_end_in_zero() {
        let root = sample();
        assert_eq!(root.get("compatible"), Some(&b"a,b\0c\0"[..]));
        assert_eq!(root.children[0].get("memory"), Some(&[0, 0, 0, 1, 0, 0, 0, 2][..]));
        assert_eq!(root.largest_phandle(), 0x8001);
    }

    #[test]
    fn damaged_trees_are_refused_at_every_length() {
        let blob = write(&sample()).unwrap();
        for length in 0..blob.len() / 2 {
            assert!(parse(&blob[..length]).is_err() || length > 40, "{length}");
        }
        assert!(parse(&[0; 64]).is_err());
    }
}
