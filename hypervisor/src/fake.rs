//! The fake machine.
