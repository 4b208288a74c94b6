//! Grant tables, version 1.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

mod active;
mod table;
pub use active::{Active, Track};
pub use table::{GrantState, GrantTables, SharedFrame};
