//! Running other programs, so that each failure is one line.

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use crate::failure::{Failure, Outcome};

/// The program's name and first words, for messages.
pub(crate) fn words(command: &Command) -> String {
    let program =
        Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let arguments = command.get_args().take(4).map(|word| word.to_string_lossy());
    std::iter::once(program.into()).chain(arguments).collect::<Vec<_>>().join(" ")
}

/// How long a program may run before a line says what it does.
const SOON: Duration = Duration::from_secs(1);

/// Runs a program whose output matters only if it fails: then all of it is shown. `doing` is printed if it takes long,
/// such as `building the guests`.
pub(crate) fn run(command: &mut Command, doing: &str) -> Outcome<()> {
    if std::io::stderr().is_terminal() {
        command.env("CARGO_TERM_COLOR", "always");
    }
    let result = std::thread::scope(|scope| {
        let (done, wait) = mpsc::channel::<()>();
        scope.spawn(move || {
            if wait.recv_timeout(SOON) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("{doing} ...");
            }
        });
        let result = output(command);
        let _ = done.send(());
        result
    })?;
    if result.status.success() {
        return Ok(());
    }
    let mut errors = std::io::stderr().lock();
    let _ = errors.write_all(&result.stdout).and_then(|()| errors.write_all(&result.stderr));
    Err(Failure::failed(format!("{doing} failed ({}): see the output above", result.status)))
}

/// Runs a program and keeps what it prints.
pub(crate) fn output(command: &mut Command) -> Outcome<Output> {
    command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Failure::failed(format!("`{}` cannot be started: {error}", words(command))))
}

/// Runs a program quietly; a failure quotes its last line of error output.
pub(crate) fn quiet(command: &mut Command) -> Outcome<String> {
    let result = output(command)?;
    if result.status.success() {
        return Ok(String::from_utf8_lossy(&result.stdout).into_owned());
    }
    let errors = String::from_utf8_lossy(&result.stderr).into_owned();
    let last = errors.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no message");
    Err(Failure::failed(format!("`{}` failed ({}): {}", words(command), result.status, last.trim())))
}

/// Whether a program is in `PATH`.
pub(crate) fn exists(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(program).is_file()))
}
