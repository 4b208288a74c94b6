//! Pavo tests.
