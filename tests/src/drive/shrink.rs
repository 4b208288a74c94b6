//! Failures made small: steps are taken out, in pieces that get smaller, as long as the rest fails.
use super::{Failure, Run, STEP, Sequence, Setup};

/// Plays that one failure is worth.
const PLAYS: u32 = 3000;

/// The smallest sequence found that fails too, and how.
pub fn shrink(setup: impl Into<Setup>, sequence: &Sequence, failure: &Failure) -> (Sequence, Failure) {
    let setup = setup.into();
    let mut steps: Vec<[u8; STEP]> = sequence.0[..=failure.step.min(sequence.0.len() - 1)].to_vec();
    let mut found = failure.clone();
    let mut plays = PLAYS;
    let mut piece = steps.len().div_ceil(2);
    while piece != 0 && plays != 0 {
        let (mut start, mut shorter) = (0, false);
        while start < steps.len() && plays != 0 {
            plays -= 1;
            let end = (start + piece).min(steps.len());
            let rest = [&steps[..start], &steps[end..]].concat();
            match Run::play(setup, &Sequence(rest.clone()), false) {
                Err(failure) => {
                    let length = failure.step + 1;
                    (steps, found, shorter) = (rest, failure, true);
                    steps.truncate(length);
                }
                Ok(_) => start = end,
            }
        }
        piece = if piece == 1 && !shorter { 0 } else { (piece / 2).max(1) };
    }
    let sequence = Sequence(steps);
    if let Err(told) = Run::play(setup, &sequence, true) {
        found = told;
    }
    (sequence, found)
}
