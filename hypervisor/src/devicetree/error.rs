//! Why a tree cannot be used.
use core::fmt;

use fdt::FdtError;

/// Why a device tree, or something the hypervisor cannot do without in it, cannot be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TreeError {
    /// The magic number is not that of a flattened device tree.
    NotATree,
    /// A format older than version 17, or one that promises no compatibility with it.
    Version,
    /// The header names blocks outside the tree, or the tree is longer than the memory given.
    BadHeader,
    /// Tokens, names or properties inside the blocks are damaged.
    Damaged,
    /// Nodes are nested deeper than the parser follows.
    TooDeep,
    /// More of this than the hypervisor has room for.
    TooMany(&'static str),
    /// This is not in the tree.
    Missing(&'static str),
    /// This is in the tree but makes no sense.
    Malformed(&'static str),
}

impl From<FdtError> for TreeError {
    fn from(_: FdtError) -> Self {
        Self::Damaged
    }
}

impl fmt::Display for TreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotATree => f.write_str("not a device tree"),
            Self::Version => f.write_str("device tree of an unsupported version"),
            Self::BadHeader => f.write_str("device tree with a damaged header"),
            Self::Damaged => f.write_str("damaged device tree"),
            Self::TooDeep => f.write_str("device tree nested too deeply"),
            Self::TooMany(what) => write!(f, "device tree: too many {what}"),
            Self::Missing(what) => write!(f, "device tree: no {what}"),
            Self::Malformed(what) => write!(f, "device tree: malformed {what}"),
        }
    }
}
