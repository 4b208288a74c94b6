//! The order of steps: as listed; neighbours that allow company run two at a time, and are reported in the list's order.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::step::{Company, Step};
use crate::check::Found;
use crate::failure::{Failure, Outcome};
use crate::watch;

/// How many steps run at one time.
const WORKERS: usize = 2;

/// Told of each step, its result and how long it took.
pub(super) type Report<'a> = dyn FnMut(&Step, &Outcome<Found>, Duration) + 'a;

/// Runs all steps; those that Ctrl-C left over are not reported.
pub(super) fn run(steps: &[Step], report: &mut Report<'_>) {
    for group in steps.chunk_by(|one, next| one.company == Company::Shared && next.company == Company::Shared)
    {
        if watch::interrupted() {
            return;
        }
        match group {
            [step] => {
                let (result, elapsed) = timed(step);
                report(step, &result, elapsed);
            }
            _ => together(group, report),
        }
    }
}

fn timed(step: &Step) -> (Outcome<Found>, Duration) {
    let began = Instant::now();
    let result = step.run();
    (result, began.elapsed())
}

/// Workers take the next step that nobody has; what is done early waits for its turn to be reported.
fn together(steps: &[Step], report: &mut Report<'_>) {
    let next = AtomicUsize::new(0);
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            let (sender, next) = (sender.clone(), &next);
            scope.spawn(move || {
                while let Some((index, step)) = take(steps, next) {
                    if sender.send((index, timed(step))).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        let mut results: Vec<_> = steps.iter().map(|_| None).collect();
        let mut reported = 0;
        for (index, result) in receiver {
            results[index] = Some(result);
            while let Some(Some((result, elapsed))) = results.get(reported) {
                report(&steps[reported], result, *elapsed);
                reported += 1;
            }
        }
        if watch::interrupted() {
            return;
        }
        // A worker that panicked leaves a gap; what was behind it is reported all the same.
        for (step, result) in steps.iter().zip(results).skip(reported) {
            let lost = || (Err(Failure::failed("the step did not end")), Duration::ZERO);
            let (result, elapsed) = result.unwrap_or_else(lost);
            report(step, &result, elapsed);
        }
    });
}

fn take<'a>(steps: &'a [Step], next: &AtomicUsize) -> Option<(usize, &'a Step)> {
    if watch::interrupted() {
        return None;
    }
    let index = next.fetch_add(1, Ordering::Relaxed);
    Some((index, steps.get(index)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test::step::Level;

    #[test]
    fn steps_are_reported_in_order_however_long_they_take() {
        let step = |name: &str, millis: u64| {
            Step::new(name, Level::Quick, move || {
                std::thread::sleep(Duration::from_millis(millis));
                Ok(Found::Good(String::new()))
            })
        };
        let steps = [
            step("a", 0),
            step("b", 60).shared(),
            step("c", 1).shared(),
            step("d", 1).shared(),
            step("e", 0),
        ];
        let mut names = Vec::new();
        run(&steps, &mut |step, result, _| {
            assert!(result.is_ok());
            names.push(step.name.clone());
        });
        assert_eq!(names, ["a", "b", "c", "d", "e"]);
    }
}
