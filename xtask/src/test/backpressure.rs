//! A UART that is full. QEMU's never are; here the image is told of one whose bit of room is that of a clock's seconds: it takes what it gets in
//! one second, and nothing in the next. Time is counted in instructions, the clock's too.

use std::ops::ControlFlow;
use std::time::Duration;

use super::step::{Level, Step};
use super::systems;
use crate::check::Found;
use crate::console::Colour;
use crate::failure::{Failure, Outcome};
use crate::fdt;
use crate::hypervisor::Hypervisor;
use crate::run::{self, Options};
use crate::watch::watch;
use crate::{build, setup, workspace};

/// QEMU's `virt`: the data register of its PL011, and how far behind it that of its PL031 is, which counts seconds.
const UART: u64 = 0x0900_0000;
const SECONDS: u32 = 0x1_0000;
/// Stands before the words that tell the image of its UART (`rpi4/early.rs`).
const MARK: &[u8] = b"PAVOUART";
/// When the machine starts: an even second, in which there is room.
const START: &str = "base=2026-01-01T00:00:00,clock=vm";
/// Lines that come just before the second in which there is no room and in it: ten times what the ring holds.
const LINES: usize = 2500;

/// All steps of this file.
pub(super) fn all() -> Vec<Step> {
    let title = "console: a UART that is full for a second loses nothing, and holds nobody up";
    vec![Step::new(title, Level::Default, full).shared()]
}

fn full() -> Outcome<Found> {
    let text = format!(
        "[machine]\ncpus = 1\ncpu = \"max\"\n\
         [[domain]]\nname = \"talks\"\nkernel = \"guest:chatter\"\nmemory = \"16M\"\ncmdline = \"from=998 lines={LINES}\"\n\
         [[domain]]\nname = \"works\"\nkernel = \"guest:share\"\nmemory = \"16M\"\ncmdline = \"from=1100 to=1900\"\n"
    );
    let mut options = Options::for_file(systems::write("full-uart", &text)?);
    options.icount = true;
    let system = options.load()?;
    build::some(&setup::toolchain()?, &system.guests())?;
    let mut image = workspace::read(&workspace::pavo_img())?;
    let place = image.windows(MARK.len()).position(|bytes| bytes == MARK).map(|place| place + MARK.len());
    let words = place.and_then(|place| image.get_mut(place..place + 20));
    let words = words.ok_or_else(|| Failure::failed("the image has no place for an early UART"))?;
    // Room is where bit 0 of the seconds is 0.
    let values = [UART.to_le_bytes().to_vec(), [SECONDS, 1, 0].map(u32::to_le_bytes).concat()].concat();
    words.copy_from_slice(&values);
    let file = workspace::pavo().join("test/full-uart.img");
    workspace::write(&file, &image)?;
    let hypervisor = Hypervisor::changed(file);
    let mut prepared =
        run::prepare(&setup::qemu()?, &hypervisor, &system, options.checking(), options.clock())?;
    // Without a console in the tree the image stays with the one that it was told of.
    let arguments: Vec<_> = prepared.command.get_args().map(ToOwned::to_owned).collect();
    let tree = arguments.iter().skip_while(|argument| *argument != "-dtb").nth(1);
    let tree = tree.ok_or_else(|| Failure::failed("QEMU gets no tree"))?;
    let mut nodes = fdt::parse(&workspace::read(tree.as_ref())?)?;
    nodes.child("chosen").set_strings("stdout-path", &["/nowhere"]);
    workspace::write(tree.as_ref(), &fdt::write(&nodes)?)?;
    prepared.command.args(["-rtc", START]);
    let (decoder, mut lines) = (hypervisor.decoder()?, Vec::new());
    watch(&mut prepared.command, Duration::from_secs(300), None, &mut |bytes| {
        let line = decoder.line(bytes).render(Colour::Off);
        lines.push(String::from_utf8_lossy(&line).trim_end().to_owned());
        ControlFlow::Continue(())
    })?;
    judge(&lines)
        .map_err(|why| Failure::Shown { text: why, lines: lines[lines.len().saturating_sub(30)..].to_vec() })
}

/// Every line came, once and in order; the other domain had its half of the CPU; the last came when there was room again.
fn judge(lines: &[String]) -> Result<Found, String> {
    let talk: Vec<_> = lines.iter().filter_map(|line| line.strip_prefix("(d1) line ")).collect();
    let expected = (0..LINES).map(|number| format!("{number:06} {:.<48}", ""));
    if let Some((one, other)) = expected.clone().zip(&talk).find(|(one, other)| one != *other) {
        return Err(format!("\"{other}\" where \"{one}\" should be"));
    }
    if talk.len() != LINES {
        return Err(format!("{} of {LINES} lines came", talk.len()));
    }
    if let Some(line) = lines.iter().find(|line| line.contains("dropped") || line.contains("lost")) {
        return Err(line.clone());
    }
    let number = |text: &str| text.split(' ').next().and_then(|text| text.parse::<u64>().ok());
    let share = lines.iter().find_map(|line| line.strip_prefix("(d2) share "));
    let share = share.and_then(|text| Some((number(text)?, number(text.split_once("of ")?.1)?)));
    let (ran, of) = share.ok_or("the other domain told nothing")?;
    if ran * 100 < of * 45 {
        return Err(format!("the other domain ran {ran} of {of} ns"));
    }
    let time = |end: &str| {
        let line = lines.iter().find(|line| line.ends_with(end))?;
        line.trim_start_matches(['[', ' ']).split(']').next()?.parse::<f64>().ok()
    };
    match (time("d1: shutdown poweroff"), time("all domains ended")) {
        // Had there been room all the time, it would have ended within the first hundredth of the second.
        (Some(end), Some(_)) if end >= 1.5 => {
            Ok(Found::Good(format!("it ended at {end:.3} s, the other ran {} %", ran * 100 / of)))
        }
        (end, _) => Err(format!("the talking domain ended at {end:?} s")),
    }
}
