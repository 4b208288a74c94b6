//! Tests of the virtual GIC against a model of the virtual CPU interface and a naive model of the architecture.

mod encoding;
mod machine;
mod random;
mod registers;
mod registers_v2;
mod robustness;
mod senders;
mod sequences;
mod sgi;
