//! One node of a tree and the values of its properties.
use fdt::helpers::AlignedFallibleNode;
use fdt::nodes::NodeName;

use super::cells::{Cells, first_str, lists_any, split_once};
use super::error::TreeError;
use super::writer::{FdtWriter, NoSpace};

/// A node: a name and properties. Its children follow it in the [`Walk`](super::Walk).
#[derive(Clone, Copy)]
pub struct Node<'a>(AlignedFallibleNode<'a>);

impl<'a> Node<'a> {
    pub(super) fn new(node: AlignedFallibleNode<'a>) -> Self {
        Self(node)
    }

    #[inline(never)]
    fn split_name(self) -> Result<NodeName<'a>, TreeError> {
        Ok(self.0.name()?)
    }

    /// The name up to the unit address (`/` for the root).
    ///
    /// # Errors
    /// [`TreeError::Damaged`] when it is no text.
    pub fn name(self) -> Result<&'a str, TreeError> {
        Ok(self.split_name()?.name)
    }

    /// Whether `component` of a path names this node: `name@unit`, or `name` alone for any unit address.
    ///
    /// # Errors
    /// [`TreeError::Damaged`] when the node's name is no text.
    #[inline(never)]
    pub fn is_named(self, component: &str) -> Result<bool, TreeError> {
        let own = self.split_name()?;
        Ok(match split_once(component, b'@') {
            (name, Some(unit)) => own.name == name && own.unit_address == Some(unit),
            (name, None) => own.name == name,
        })
    }

    /// Its properties, up to a damaged one.
    pub(super) fn properties(self) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        let all = self.0.properties().ok().into_iter().flatten();
        all.map_while(Result::ok).map(|property| (property.name, property.value))
    }

    /// Begins a node of the same name.
    pub(super) fn begin(self, writer: &mut FdtWriter<'_>) -> Result<(), NoSpace> {
        let name = self.split_name().map_err(|_| NoSpace)?;
        writer.begin_node_named(name.name, name.unit_address)
    }

    /// The raw value of property `name`.
    ///
    /// # Errors
    /// [`TreeError::Damaged`] when the node's properties cannot be parsed; so for all the methods below.
    #[inline(never)]
    pub fn bytes(self, name: &str) -> Result<Option<&'a [u8]>, TreeError> {
        Ok(self.0.raw_property(name)?.map(|property| property.value))
    }

    /// Whether property `name` is there, with whatever value.
    ///
    /// # Errors
    /// As [`Node::bytes`].
    pub fn has(self, name: &str) -> Result<bool, TreeError> {
        Ok(self.bytes(name)?.is_some())
    }

    /// The first cell of property `name`; none when it is absent or shorter.
    ///
    /// # Errors
    /// As [`Node::bytes`].
    #[inline(never)]
    pub fn u32(self, name: &str) -> Result<Option<u32>, TreeError> {
        Ok(self.bytes(name)?.and_then(|value| Cells::new(value).u32()))
    }

    /// The first two cells of property `name`; none when it is absent or shorter.
    ///
    /// # Errors
    /// As [`Node::bytes`].
    #[inline(never)]
    pub fn u64(self, name: &str) -> Result<Option<u64>, TreeError> {
        Ok(self.bytes(name)?.and_then(|value| Cells::new(value).number(2)))
    }

    /// The first string of property `name`; none when it is absent or no text.
    ///
    /// # Errors
    /// As [`Node::bytes`].
    #[inline(never)]
    pub fn str(self, name: &str) -> Result<Option<&'a str>, TreeError> {
        Ok(self.bytes(name)?.and_then(first_str))
    }

    /// Whether the list of strings `name` contains one of `wanted`.
    ///
    /// # Errors
    /// As [`Node::bytes`].
    #[inline(never)]
    pub fn lists(self, name: &str, wanted: &[&str]) -> Result<bool, TreeError> {
        Ok(self.bytes(name)?.is_some_and(|value| lists_any(value, wanted)))
    }

    /// Whether the node is compatible with one of `wanted`.
    ///
    /// # Errors
    /// As [`Node::bytes`].
    #[inline(never)]
    pub fn is_compatible(self, wanted: &[&str]) -> Result<bool, TreeError> {
        self.lists("compatible", wanted)
    }

    /// Whether `status` allows use: absent, `okay` or `ok`.
    ///
    /// # Errors
    /// As [`Node::bytes`].
    #[inline(never)]
    pub fn is_available(self) -> Result<bool, TreeError> {
        Ok(!self.has("status")? || self.lists("status", &["okay", "ok"])?)
    }

    /// What references to this node carry.
    ///
    /// # Errors
    /// As [`Node::bytes`].
    pub fn phandle(self) -> Result<Option<u32>, TreeError> {
        match self.u32("phandle")? {
            Some(phandle) => Ok(Some(phandle)),
            None => self.u32("linux,phandle"),
        }
    }

    /// Cells of an address and of a size in `reg` of this node's children (defaults 2 and 1: specification 2.3.5).
    ///
    /// # Errors
    /// As [`Node::bytes`].
    #[inline(never)]
    pub fn child_cells(self) -> Result<(u32, u32), TreeError> {
        Ok((self.u32("#address-cells")?.unwrap_or(2), self.u32("#size-cells")?.unwrap_or(1)))
    }
}
