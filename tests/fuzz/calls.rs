//! libFuzzer's bytes as a machine and steps of guests: library and specification must agree, as in `fuzz random`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pavo_tests::drive::{Run, Sequence, Setup};

fuzz_target!(|bytes: &[u8]| {
    let Some((which, bytes)) = bytes.split_first() else { return };
    let setup = match which % 4 {
        0 => Setup::from(2),
        1 => Setup::PAGING,
        2 => Setup::TINY,
        _ => Setup::from(3),
    };
    let sequence = Sequence::of_bytes(bytes);
    if let Err(failure) = Run::play(setup, &sequence, false) {
        eprintln!("{}\nagain: cargo xtask fuzz --seed {setup}:{sequence}", failure.what);
        std::process::abort();
    }
});
