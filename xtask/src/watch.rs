//! Running QEMU and reading its serial line, until it ends, somebody has seen enough, or the time is up.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::ops::ControlFlow;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::console::Lines;
use crate::failure::{Doing, Failure, Outcome};

/// How often a waiting run looks at the clock and at Ctrl-C.
const TICK: Duration = Duration::from_millis(50);

/// How QEMU ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// By itself; no status if a signal did it.
    Exit(Option<i32>),
    /// By us, when the reader of its lines had seen enough.
    Enough,
    /// By us, when the time was up.
    Timeout,
}

/// Set by Ctrl-C and by SIGTERM.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Whether the user wants everything to stop.
pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// A child that does not outlive this value.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What is typed, as it comes.
pub(crate) type Keys = mpsc::Receiver<Vec<u8>>;

/// Runs QEMU, types `keys` if there are any, and gives each line, without its end, to `see`.
pub(crate) fn watch(
    command: &mut Command,
    limit: Duration,
    keys: Option<Keys>,
    see: &mut dyn FnMut(&[u8]) -> ControlFlow<()>,
) -> Outcome<Ended> {
    // A second registration, for a second run, is refused; the first stays good.
    let _ = ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::Relaxed));
    let deadline = Instant::now() + limit;
    if keys.is_some() {
        command.stdin(Stdio::piped());
    }
    let mut child = Killed(
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().doing("QEMU cannot be started")?,
    );
    let mut pipe = child.0.stdout.take().ok_or_else(|| Failure::failed("QEMU has no output"))?;
    let errors = child.0.stderr.take().ok_or_else(|| Failure::failed("QEMU has no error output"))?;
    std::thread::spawn(move || pass_on(errors));
    if let Some((mut input, keys)) = child.0.stdin.take().zip(keys) {
        std::thread::spawn(move || keys.iter().try_for_each(|bytes| input.write_all(&bytes)));
    }
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = pipe.read(&mut buffer) {
            if sender.send(buffer[..count].to_vec()).is_err() {
                break;
            }
        }
    });
    let mut lines = Lines::default();
    let mut enough = false;
    loop {
        match receiver.recv_timeout(TICK) {
            Ok(bytes) => lines.push(&bytes, |line| enough |= !enough && see(line).is_break()),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if enough {
            return Ok(Ended::Enough);
        }
        if interrupted() {
            return Err(Failure::failed("interrupted"));
        }
        if Instant::now() >= deadline {
            if let Some(rest) = lines.rest() {
                let _ = see(rest);
            }
            return Ok(Ended::Timeout);
        }
    }
    if let Some(rest) = lines.rest() {
        let _ = see(rest);
    }
    let status = child.0.wait().doing("QEMU")?;
    Ok(Ended::Exit(status.code()))
}

/// Shows what QEMU says itself, without the warning that it gives whenever all virtual CPUs wait under `-icount`, and those on what its
/// Raspberry Pi lacks.
fn pass_on(errors: impl std::io::Read) {
    for line in BufReader::new(errors).lines().map_while(Result::ok) {
        let known = ["icount sleep disabled and no active timers", "warning: bcm2711 dtc: "];
        if !known.iter().any(|text| line.contains(text)) {
            eprintln!("{line}");
        }
    }
}
