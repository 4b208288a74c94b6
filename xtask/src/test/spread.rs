//! Four CPUs shared by what does not divide evenly among them: vCPUs must move for it. One second of counted instructions each.

use super::step::{Level, Step};
use super::systems;
use super::told::{spinner, tell};
use crate::check::Found;
use crate::failure::Outcome;

/// When all have come, and a second later.
const WHILE: &str = "cmdline = \"from=400 to=1400\"\n";

/// A domain: its settings, how many vCPUs it has, and the thousandths of a CPU that it must have.
struct Due(String, usize, u64);

fn spread(board: &str, name: &str, all: &[Due]) -> Outcome<Found> {
    let text: String = (1..)
        .zip(all)
        .map(|(number, Due(settings, vcpus, _))| {
            spinner(number, &format!("vcpus = {vcpus}\n{settings}{WHILE}"))
        })
        .collect();
    let told = tell(systems::write(&format!("spread-{board}-{name}"), &text)?, board, 4)?;
    for (domain, Due(_, vcpus, thousandths)) in (1..).zip(all) {
        told.expect(domain, *vcpus, *thousandths)?;
    }
    Ok(Found::Good(String::new()))
}

/// Each has four fifths of a CPU; who stayed where it was put at boot would have a whole one, or half.
fn five(board: &str) -> Outcome<Found> {
    let all: Vec<_> = (0..5).map(|_| Due(String::new(), 1, 800)).collect();
    spread(board, "five", &all)
}

/// The largest weighs more than a CPU: it has one, and the others share three by 128 : 192 : 256 : 384 : 512 : 640 : 768, which are 2880.
fn weighted(board: &str) -> Outcome<Found> {
    let weights = [128, 192, 256, 384, 512, 640, 768];
    let mut all: Vec<_> =
        weights.map(|weight| Due(format!("weight = {weight}\n"), 1, weight * 3000 / 2880)).into();
    all.push(Due("weight = 1024\n".into(), 1, 1000));
    spread(board, "weighted", &all)
}

/// A weight is that of each vCPU: six vCPUs share four CPUs equally, whose they are does not matter.
fn several(board: &str) -> Outcome<Found> {
    let one = || Due(String::new(), 1, 667);
    spread(board, "several", &[Due(String::new(), 3, 2000), one(), one(), one()])
}

/// Caps above 100 % are those of all vCPUs together; who has none uses what the others may not. Of each 10 ms, seven vCPUs share four CPUs until the four of the
/// second domain have had their 12 ms, which is after 12 / (4 * 4/7) = 5.25 ms; by then the third has had 3 ms, and from there on it has a CPU to itself: 7.75 ms.
/// But those four come back as much as a turn of 2 ms behind (`sched/pool.rs`), and have all CPUs first: then it is 7.25 ms.
fn capped(board: &str) -> Outcome<Found> {
    let cap = |percent| format!("cap = {percent}\n");
    spread(board, "capped", &[Due(cap(150), 2, 1500), Due(cap(120), 4, 1200), Due(String::new(), 1, 750)])
}

/// All steps of this file.
pub(super) fn all() -> Vec<Step> {
    let step = |title: &str, run: fn(&str) -> Outcome<Found>| {
        Step::new(format!("spread: {title}"), Level::Default, move || run("virt")).shared()
    };
    vec![
        step("five equal domains on four CPUs", five),
        step("eight domains by weight on four CPUs", weighted),
        step("a domain of three vCPUs beside three of one, on four CPUs", several),
        step("caps of 150 and 120 per cent on four CPUs", capped),
        super::rpi4::step("spread: eight domains by weight on four CPUs", Level::Default, || {
            weighted("rpi4")
        }),
    ]
}
