//! Self-check.
