//! `console_io` (`public/xen.h`, `CONSOLEIO_*`), and the PV console's page (`public/io/console.h`).
use crate::call::{abi_struct, layout, sub_calls};

sub_calls! {
    /// What `console_io` does.
    ConsoleOp {
        /// Writes `count` bytes from `buffer`.
        0 Write write("count bytes") Restartable ok [Efault];
        /// Reads up to `count` bytes into `buffer`; returns how many.
        1 Read read("count bytes") Constant ok [E2big, Efault];
    }
}

abi_struct! {
    /// The PV console's page (`xencons_interface`). Counts of bytes run on and wrap; a ring's place is the count modulo its size.
    pub struct ConsoleRing {
        /// To the guest.
        pub input: [u8; 1024],
        /// From the guest.
        pub output: [u8; 2048],
        /// Bytes of `input` that the guest has taken.
        pub in_cons: u32,
        /// Bytes put into `input`.
        pub in_prod: u32,
        /// Bytes of `output` that the console has taken.
        pub out_cons: u32,
        /// Bytes that the guest has put into `output`.
        pub out_prod: u32,
    }
}
layout!(ConsoleRing, 3088, {
    input: 0, output: 1024, in_cons: 3072, in_prod: 3076, out_cons: 3080, out_prod: 3084,
});
