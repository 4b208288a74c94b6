//! Tests of the virtual GIC against a model of the virtual CPU interface and a naive model of the architecture.

mod encoding;
mod machine;
mod random;
mod registers;
mod robustness;
mod sequences;
mod sgi;
