//! `cargo xtask monitor`: decodes what a board prints.

use std::fs::File;
use std::io::{IsTerminal as _, Read};
use std::path::PathBuf;

use crate::console::{Colour, Decoder, Lines};
use crate::failure::{Doing, Failure, Outcome};
use crate::{run, workspace};

/// What `monitor` accepts.
#[derive(clap::Args, Debug)]
pub(crate) struct Options {
    /// A serial device (set its speed with `stty` first), a file, or `-` for standard input.
    source: PathBuf,
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
    let mut source: Box<dyn Read> = if options.source.as_os_str() == "-" {
        Box::new(std::io::stdin())
    } else {
        let name = options.source.display();
        Box::new(
            File::open(&options.source)
                .map_err(|error| Failure::usage(format!("cannot open {name}: {error}")))?,
        )
    };
    let colour = if std::io::stdout().is_terminal() { Colour::On } else { Colour::Off };
    let mut lines = Lines::default();
    let mut buffer = [0; 4096];
    loop {
        let count = source.read(&mut buffer).doing("the source")?;
        if count == 0 {
            break;
        }
        lines.push(&buffer[..count], |line| run::show(&decoder.line(line).render(colour)));
    }
    if let Some(rest) = lines.rest() {
        run::show(&decoder.line(rest).render(colour));
    }
    Ok(())
}
