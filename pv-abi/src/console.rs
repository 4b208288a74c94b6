//! `console_io` (`public/xen.h`, `CONSOLEIO_*`).
use crate::call::operations;

operations! {
    /// What `console_io` does.
    ConsoleOp {
        /// Writes `count` bytes from `buffer`.
        0 Write;
        /// Reads up to `count` bytes into `buffer`; returns how many.
        1 Read;
    }
}
