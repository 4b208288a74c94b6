//! libFuzzer's bytes as steps of guests: library and specification must agree, as in `fuzz random`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pavo_tests::drive::{Run, Sequence};

fuzz_target!(|bytes: &[u8]| {
    let sequence = Sequence::of_bytes(bytes);
    if let Err(failure) = Run::play(2, &sequence, false) {
        eprintln!("{}\nagain: cargo xtask fuzz --seed {sequence}", failure.what);
        std::process::abort();
    }
});
