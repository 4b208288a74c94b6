//! Interrupts: from the vector to the handler of each.

/// Called by the vector: takes what is pending. Nothing is enabled before the controller is set up.
pub(crate) fn dispatch() {}
