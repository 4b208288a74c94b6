//! `multicall` (`public/xen.h`).
use crate::call::{abi_struct, layout};

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
