//! `multicall` (`public/xen.h`).
use crate::Errno;
use crate::call::{Cost, Operation, abi_struct, layout};

abi_struct! {
    /// One call of a batch (`multicall_entry`).
    pub struct MulticallEntry {
        /// Number.
        pub op: u64,
        /// Out: result.
        pub result: i64,
        /// Arguments; the sixth is ignored.
        pub args: [u64; 6],
    }
}
layout!(MulticallEntry, 64, { op: 0, result: 8, args: 16 });

/// The one row of `multicall`, for the reference.
pub const MULTICALL: &[Operation] = &[Operation {
    number: 0,
    name: "multicall",
    argument: "array of MulticallEntry",
    cost: Cost::Restartable,
    succeeds: true,
    errors: &[Errno::Efault],
    statuses: &[],
    doc: " Each entry is read, served and given its result before the next. In an entry, `multicall` itself is `-EINVAL`.",
}];
