//! A domain that is killed everywhere. It is a `mixed` and tells when its rounds begin and end, so that it can be killed at any moment between. One that
//! it has to do with lets go of what it has of it by itself.
//!
//! Where instructions are counted, one a nanosecond, on one CPU, and the control domain has so much weight that it is never behind the others, each life is
//! like the one before: then a moment is an instruction.
use alloc::format;
use alloc::string::String;
use core::sync::atomic::Ordering;
use core::time::Duration;

use guest_kernel::frame::Frame;
use guest_kernel::grant::{Access, Grant};
use guest_kernel::time::{self, Instant};
use guest_kernel::{control, println, timer};
use pv_abi::{DomId, Errno};

/// Looks at the counters until they must be as they were, 500 us apart.
const LOOKS: u32 = 40;
const LOOK: Duration = Duration::from_micros(500);
/// Lives before those that are like each other.
const WARM: u32 = 4;
/// One kill in so many, and the last one, is followed by a self-check, which takes ten times as long as all else.
const CHECKS: u64 = 16;
/// Steps are reported in so many lines.
const REPORTS: u64 = 8;

/// Kills it at every `step`-th nanosecond of its rounds.
pub(super) fn all(victim: DomId, step: u32) -> Result<(), String> {
    let refused = |errno: Errno| format!("{errno:?}");
    let clock = Grant::new(Frame::boxed(), victim, Access::ReadWrite).map_err(|_| "no page")?;
    let told = |at: usize| {
        let [low, high] = [at, at + 1].map(|at| {
            clock.frame().words().get(at).map_or(0, |word| u64::from(word.load(Ordering::Relaxed)))
        });
        Instant::from_ticks(high << 32 | low)
    };
    let (mut first, mut last) = (Duration::ZERO, Duration::ZERO);
    // The peer learns what time it is in the first one.
    for _ in 0..WARM {
        destroy(victim)?;
        control::build(victim).map_err(refused)?;
        let built = time::now();
        while control::domain_info(victim) != Err(Errno::Esrch) {
            super::sleep(1)?;
        }
        let since = |moment: Instant| moment.since_start().saturating_sub(built.since_start());
        (first, last) = (since(told(0)), since(told(2)));
        if first.is_zero() || last <= first {
            return Err(String::from("it did not come to its end"));
        }
    }
    super::sleep(2)?;
    let nobody = super::everything()?;
    let span = last.saturating_sub(first);
    let kills = u64::try_from(span.as_nanos()).map_or(0, |span| span / u64::from(step.max(1)));
    println!("control: {} ns of rounds", span.as_nanos());
    let mut ended = 0;
    for number in 0..kills {
        control::build(victim).map_err(refused)?;
        let at = time::now().after(first + Duration::from_nanos(u64::from(step) * number));
        timer::sleep(at.until()).map_err(|_| "no timer")?;
        ended += u64::from(destroy(victim)?);
        settle(&nobody).map_err(|why| format!("killed {} ns later: {why}", u64::from(step) * number))?;
        if number % CHECKS == 0 || number + 1 == kills {
            control::self_check()
                .map_err(|errno| format!("{} ns later: {errno:?}", u64::from(step) * number))?;
        }
        if number % (kills / REPORTS).max(1) == 0 {
            println!("control: {number} of {kills}");
        }
    }
    println!("control: killed {} times, all as it was", kills - ended);
    Ok(())
}

/// Destroys it, and says whether it had ended before.
fn destroy(victim: DomId) -> Result<bool, String> {
    match control::destroy(victim) {
        Ok(()) => Ok(false),
        Err(Errno::Esrch) => Ok(true),
        Err(errno) => Err(format!("{errno:?}")),
    }
}

/// Waits until all is as it was.
fn settle(before: &super::Everything) -> Result<(), String> {
    for _ in 0..LOOKS {
        timer::sleep(LOOK).map_err(|_| "no timer")?;
        if super::everything()? == *before {
            return Ok(());
        }
    }
    super::same(before, &super::everything()?)
}
