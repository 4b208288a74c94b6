//! `console_io` (`public/xen.h`, `CONSOLEIO_*`).
use crate::call::sub_calls;

sub_calls! {
    /// What `console_io` does.
    ConsoleOp {
        /// Writes `count` bytes from `buffer`.
        0 Write write("count bytes") Restartable ok [Efault];
        /// Reads up to `count` bytes into `buffer`; returns how many.
        1 Read read("count bytes") Constant ok [E2big, Efault];
    }
}
