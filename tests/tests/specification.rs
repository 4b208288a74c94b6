//! The shipping library does what the specification says, whatever two or three guests call.
#![allow(clippy::panic, reason = "tests")]

use pavo_tests::drive::{Run, Sequence, shrink};

fn plays(domains: u16, seeds: std::ops::Range<u64>, steps: usize) {
    for seed in seeds {
        let sequence = Sequence::of_seed(seed, steps);
        if let Err(failure) = Run::play(domains, &sequence, false) {
            let (small, failure) = shrink(domains, &sequence, &failure);
            panic!("seed {seed}: {}\n{}\n--seed {small}", failure.what, failure.story.join("\n"));
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
