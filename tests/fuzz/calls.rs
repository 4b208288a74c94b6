//! libFuzzer's bytes as a machine and steps of guests: library and specification must agree, as in `fuzz random`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pavo_tests::drive::{Run, Sequence, Setup};

fuzz_target!(|bytes: &[u8]| {
    let Some((which, bytes)) = bytes.split_first() else { return };
    let setup = match which % 6 {
        0 => Setup::from(2),
        1 => Setup::PAGING,
        2 => Setup::TINY,
        3 => Setup::from(3),
        4 => Setup { control: true, ..Setup::from(2) },
        _ => Setup { control: true, ..Setup::PAGING },
    };
    let sequence = Sequence::of_bytes(bytes);
    if let Err(failure) = Run::play(setup, &sequence, false) {
        eprintln!("{}\nagain: cargo xtask fuzz --seed {setup}:{sequence}", failure.what);
        std::process::abort();
    }
});
