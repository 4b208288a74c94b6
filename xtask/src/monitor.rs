//! `cargo xtask monitor`: decodes what a board prints.

use std::fs::File;
use std::io::{ErrorKind, IsTerminal as _, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::console::{Colour, Decoder, Lines};
use crate::failure::{Doing, Failure, Outcome};
use crate::{process, run, workspace};

/// What `monitor` accepts.
#[derive(clap::Args, Debug)]
pub(crate) struct Options {
    /// A serial device such as /dev/ttyUSB0, a file, or `-` for standard input.
    source: PathBuf,
    /// Speed of a serial device.
    #[arg(long, default_value_t = 115_200)]
    baud: u32,
    /// Also write what is shown to this file.
    #[arg(long)]
    log: Option<PathBuf>,
    /// The image that the board runs, with symbols; by default the one built last.
    #[arg(long)]
    elf: Option<PathBuf>,
}

/// Decodes until the source ends.
pub(crate) fn command(options: &Options) -> Outcome<()> {
    let elf = options.elf.clone().unwrap_or_else(workspace::pavo_elf);
    let decoder = Decoder::new(
        &workspace::read(&elf)
            .map_err(|failure| Failure::usage(format!("{failure}: run `cargo xtask build`")))?,
    )?;
    let mut log = match &options.log {
        Some(file) => Some(File::create(file).doing(format_args!("--log: cannot make {}", file.display()))?),
        None => None,
    };
    let mut source: Box<dyn Read> = if options.source.as_os_str() == "-" {
        Box::new(std::io::stdin())
    } else {
        Box::new(open(&options.source, options.baud)?)
    };
    let colour = if std::io::stdout().is_terminal() { Colour::On } else { Colour::Off };
    follow(&mut *source, &decoder, &mut |line| {
        run::show(&line.render(colour));
        match &mut log {
            Some(log) => log.write_all(&line.render(Colour::Off)).doing("--log"),
            None => Ok(()),
        }
    })
}

/// Opens a file, or a serial device and sets it up: nothing is changed in what comes, and nothing is sent back.
fn open(source: &Path, baud: u32) -> Outcome<File> {
    let name = source.display();
    let file = File::open(source).map_err(|error| Failure::usage(refused(source, &error)))?;
    if file.is_terminal() {
        let mut stty = Command::new("stty");
        // `raw` is about lines; 8N1, and no modem to wait for, are not in it.
        let line = ["raw", "-echo", "-hupcl", "cs8", "-parenb", "-cstopb", "clocal", "cread"];
        stty.arg("-F").arg(source).arg(baud.to_string()).args(line);
        process::quiet(&mut stty).map_err(|failure| Failure::usage(format!("{name}: {failure}")))?;
    }
    Ok(file)
}

/// What to say when the source cannot be opened.
fn refused(source: &Path, error: &std::io::Error) -> String {
    let what = format!("cannot open {}: {error}", source.display());
    match error.kind() {
        ErrorKind::PermissionDenied => format!(
            "{what}: join the group that owns it (mostly `sudo usermod -aG dialout $USER`, then log in anew)"
        ),
        ErrorKind::NotFound => {
            format!("{what}: name the adapter's device, such as /dev/ttyUSB0 or /dev/ttyACM0, or a file")
        }
        _ => what,
    }
}

/// Gives every line to `each` as it comes.
fn follow(
    source: &mut dyn Read,
    decoder: &Decoder,
    each: &mut dyn FnMut(&crate::console::Line) -> Outcome<()>,
) -> Outcome<()> {
    let mut lines = Lines::default();
    let mut buffer = [0; 4096];
    let mut result = Ok(());
    while result.is_ok() {
        let count = match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            // A serial device that was unplugged, or the other end of a pseudo-terminal that was closed.
            Err(error) if error.raw_os_error() == Some(5) => break,
            Err(error) => return Err(error).doing("the source"),
        };
        lines.push(&buffer[..count], |line| {
            if result.is_ok() {
                result = each(&decoder.line(line));
            }
        });
    }
    result?;
    lines.rest().map_or(Ok(()), |rest| each(&decoder.line(rest)))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_device_that_cannot_be_opened_is_told_with_what_to_do() {
        let said = |kind: ErrorKind| refused(Path::new("/dev/ttyUSB0"), &kind.into());
        assert_eq!(
            said(ErrorKind::PermissionDenied),
            "cannot open /dev/ttyUSB0: permission denied: join the group that owns it (mostly `sudo usermod -aG \
             dialout $USER`, then log in anew)"
        );
        let failure = open(Path::new("/nowhere/tty"), 115_200).unwrap_err();
        assert_eq!(failure.status(), 2);
        assert!(
            failure.to_string().ends_with("such as /dev/ttyUSB0 or /dev/ttyACM0, or a file"),
            "{failure}"
        );
    }

    #[test]
    fn what_comes_over_a_serial_line_is_shown_whether_it_can_be_decoded_or_not() {
        let pair = nix::pty::openpty(None, None).unwrap();
        let path = nix::unistd::ttyname(&pair.slave).unwrap();
        let mut line = open(&path, 115_200).unwrap();
        let mut board = File::from(pair.master);
        // A boot message, a guest's line, a log line of another image, noise from plugging in.
        let sent = [&b"pavo: entered\r\n(d2) hello\r\n"[..], "§!!!\r\n".as_bytes(), b"\xff\xfe\r\n"];
        board.write_all(&sent.concat()).unwrap();
        let mut lines = 4;
        let mut seen = Vec::new();
        // A line that hangs up drops what was not read yet: the board's end is closed when all lines have been seen.
        let mut ends = Some((board, pair.slave));
        follow(&mut line, &Decoder::plain().unwrap(), &mut |line| {
            seen.extend(line.render(Colour::Off));
            lines -= 1;
            if lines == 0 {
                drop(ends.take());
            }
            Ok(())
        })
        .unwrap();
        let text = String::from_utf8_lossy(&seen).replace('\r', "");
        assert_eq!(text, "pavo: entered\n(d2) hello\n§!!!\n\u{fffd}\u{fffd}\n");
    }
}
