//! The shipping library does what the specification says, whatever two or three guests call.
#![allow(clippy::panic, reason = "tests")]

use pavo_tests::drive::{Run, Sequence, Setup, shrink};

fn plays(setup: impl Into<Setup>, seeds: std::ops::Range<u64>, steps: usize) {
    let setup = setup.into();
    for seed in seeds {
        let sequence = Sequence::of_seed(seed, steps);
        if let Err(failure) = Run::play(setup, &sequence, false) {
            let (small, failure) = shrink(setup, &sequence, &failure);
            panic!("seed {seed}: {}\n{}\n--seed {setup}:{small}", failure.what, failure.story.join("\n"));
        }
    }
}

#[test]
fn two_domains_do_what_is_specified() {
    plays(2, 0..6, 400);
}

#[test]
fn three_domains_do_what_is_specified() {
    plays(3, 100..103, 400);
}

#[test]
fn a_domain_with_checked_page_tables_does_what_is_specified() {
    plays(Setup::PAGING, 200..206, 400);
}

#[test]
fn counts_that_are_full_refuse() {
    plays(Setup::TINY, 300..303, 400);
    plays(Setup { paging: false, ..Setup::TINY }, 303..305, 400);
}
