//! Device tree overlays: writing one, and applying one as the board's firmware does.
//!
//! Format: Devicetree overlays in the Linux tree (`Documentation/devicetree/overlay-notes.rst`) and libfdt's `fdt_overlay.c`. Only what
//! our overlays use: fragments with `target-path`, and references between their own nodes (`__local_fixups__`).
//!
//! The firmware merges with libfdt (raspberrypi/utils, `dtmerge/dtoverlay.c`), whose `fdt_add_subnode` puts a new node before those that are
//! there: siblings that an overlay adds come out in the reverse order. [`apply`] does so too, and [`Overlay::tree`] writes them reversed.

use crate::failure::{Failure, Outcome};
use crate::fdt::Node;

/// An overlay that changes nodes of a base tree.
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    fragments: Vec<(String, Node)>,
}

impl Overlay {
    /// The node of the base tree at `path`, to set properties and children of; nothing is removed.
    pub(crate) fn at(&mut self, path: &str) -> &mut Node {
        let place = self.fragments.iter().position(|(own, _)| own == path).unwrap_or_else(|| {
            self.fragments.push((path.to_owned(), Node::new("__overlay__")));
            self.fragments.len() - 1
        });
        &mut self.fragments[place].1
    }

    /// The tree to write. `references` are the properties that hold phandles of nodes in the overlay, each with the cell's byte offset.
    pub(crate) fn tree(&self, references: &[(&str, u32)]) -> Node {
        let mut root = Node::new("");
        root.set_strings("compatible", &["brcm,bcm2711"]);
        let mut fixups = Node::new("__local_fixups__");
        for (index, (path, content)) in self.fragments.iter().enumerate() {
            let name = format!("fragment@{index}");
            let fragment = root.child(&name);
            fragment.set_strings("target-path", &[path]);
            fragment.children.push(reversed(content));
            if let Some(marks) = marks(content, references) {
                fixups.child(&name).children.push(marks);
            }
        }
        if !fixups.children.is_empty() {
            root.children.push(fixups);
        }
        root
    }
}

/// The node with all siblings below it in the reverse order.
fn reversed(node: &Node) -> Node {
    let mut turned = node.clone();
    turned.children = node.children.iter().rev().map(reversed).collect();
    turned
}

/// Takes over properties and children as libfdt does.
fn graft(target: &mut Node, from: &Node) {
    for (name, bytes) in from.properties() {
        target.set(name, bytes);
    }
    for child in &from.children {
        if target.existing_child(&child.name).is_none() {
            target.children.insert(0, Node::new(child.name.clone()));
        }
        if let Some(own) = target.existing_child(&child.name) {
            graft(own, child);
        }
    }
}

/// A node of the same shape whose properties are offsets of references; none without a reference.
fn marks(node: &Node, references: &[(&str, u32)]) -> Option<Node> {
    let mut marked = Node::new(node.name.clone());
    for (name, offset) in references.iter().filter(|(name, _)| node.get(name).is_some()) {
        marked.set_cells(name, &[*offset]);
    }
    marked.children = node.children.iter().filter_map(|child| marks(child, references)).collect();
    (!marked.children.is_empty() || marked.properties().next().is_some()).then_some(marked)
}

/// Merges an overlay into a base tree.
pub(crate) fn apply(base: &mut Node, mut overlay: Node) -> Outcome<()> {
    let shift = base.largest_phandle();
    let fixups = overlay.children.iter().find(|child| child.name == "__local_fixups__").cloned();
    renumber(&mut overlay, shift);
    if let Some(fixups) = fixups {
        fix(&mut overlay, &fixups, shift)?;
    }
    for fragment in overlay.children.iter().filter(|child| child.name.starts_with("fragment@")) {
        let path = fragment.get("target-path").and_then(|bytes| std::str::from_utf8(bytes).ok());
        let path =
            path.map(|path| path.trim_end_matches('\0')).ok_or_else(|| bad("a fragment names no target"))?;
        let mut target = &mut *base;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            target =
                target.existing_child(name).ok_or_else(|| bad(&format!("the board's tree has no {path}")))?;
        }
        if let Some(content) = fragment.children.iter().find(|child| child.name == "__overlay__") {
            graft(target, content);
        }
    }
    Ok(())
}

fn bad(why: &str) -> Failure {
    Failure::failed(format!("the overlay does not fit: {why}"))
}

/// Moves the overlay's own phandles behind the base tree's.
fn renumber(node: &mut Node, shift: u32) {
    if let Some(own) = node.get("phandle").and_then(cell) {
        node.set_cells("phandle", &[own.saturating_add(shift)]);
    }
    node.children.iter_mut().for_each(|child| renumber(child, shift));
}

/// Moves the references to them.
fn fix(node: &mut Node, marks: &Node, shift: u32) -> Outcome<()> {
    for (name, offsets) in marks.properties() {
        let mut bytes = node.get(name).ok_or_else(|| bad("a fix-up names no property"))?.to_vec();
        for offset in offsets.chunks_exact(4).filter_map(cell) {
            let place =
                usize::try_from(offset).ok().and_then(|offset| bytes.get_mut(offset..offset.checked_add(4)?));
            let place = place.ok_or_else(|| bad("a fix-up lies behind its property"))?;
            let moved = cell(place).unwrap_or(0).saturating_add(shift);
            place.copy_from_slice(&moved.to_be_bytes());
        }
        node.set(name, bytes);
    }
    for child in &marks.children {
        fix(node.existing_child(&child.name).ok_or_else(|| bad("a fix-up names no node"))?, child, shift)?;
    }
    Ok(())
}

fn cell(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlay_keeps_its_references_behind_the_boards_phandles() {
        let mut base = Node::new("");
        base.child("soc").child("gic").set_cells("phandle", &[7]);
        base.child("chosen").set_strings("stdout-path", &["serial1"]);
        let mut overlay = Overlay::default();
        let chosen = overlay.at("/chosen");
        chosen.set_strings("stdout-path", &["serial0"]);
        chosen.child("domU1").child("evtchn@1").set_cells("phandle", &[1]).set_cells("xen,evtchn", &[1, 2]);
        chosen.child("domU2").child("evtchn@1").set_cells("phandle", &[2]).set_cells("xen,evtchn", &[1, 1]);
        overlay.at("/soc/gic").set("xen,passthrough", []);
        let blob = crate::fdt::write(&overlay.tree(&[("xen,evtchn", 4)])).unwrap();
        apply(&mut base, crate::fdt::parse(&blob).unwrap()).unwrap();
        assert_eq!(base.child("chosen").get("stdout-path"), Some(&b"serial0\0"[..]));
        assert!(base.child("soc").child("gic").get("xen,passthrough").is_some());
        let end = |base: &mut Node, name: &str| base.child("chosen").child(name).child("evtchn@1").clone();
        let (one, two) = (end(&mut base, "domU1"), end(&mut base, "domU2"));
        assert_eq!(one.get("phandle"), Some(&8u32.to_be_bytes()[..]));
        assert_eq!(one.get("xen,evtchn"), Some(&[0, 0, 0, 1, 0, 0, 0, 9][..]));
        assert_eq!(two.get("xen,evtchn"), Some(&[0, 0, 0, 1, 0, 0, 0, 8][..]));
    }

    #[test]
    fn domains_come_out_in_the_order_of_the_file_where_new_nodes_go_to_the_front() {
        let mut base = Node::new("");
        base.child("chosen").child("framebuffer");
        let mut overlay = Overlay::default();
        for domain in ["domU1", "domU2", "domU3"] {
            overlay.at("/chosen").child(domain).child("evtchn@1");
        }
        let tree = overlay.tree(&[]);
        // As bytes: what the firmware finds in the file, last domain first.
        let written = &tree.children[0].children[0].children;
        assert_eq!(written.iter().map(|node| &*node.name).collect::<Vec<_>>(), ["domU3", "domU2", "domU1"]);
        apply(&mut base, tree).unwrap();
        let merged: Vec<_> = base.child("chosen").children.iter().map(|node| node.name.clone()).collect();
        assert_eq!(merged, ["domU1", "domU2", "domU3", "framebuffer"]);
    }

    #[test]
    fn a_target_that_the_board_lacks_is_an_error() {
        let mut overlay = Overlay::default();
        overlay.at("/nothing/here").set("x", []);
        assert!(apply(&mut Node::new(""), overlay.tree(&[])).is_err());
    }
}
