//! The developer's command line: set-up, build, run, test, check, bench. One file a command.

mod baseline;
mod bench;
mod build;
mod check;
mod conformance;
mod console;
mod debug;
mod dom0less;
mod failure;
mod fdt;
mod fuzz;
mod hypervisor;
mod image;
mod machine;
mod models;
mod monitor;
mod passthrough;
mod process;
mod rpi4;
mod run;
mod setup;
mod stretch;
mod system;
mod terrain;
mod test;
mod usage;
mod verdict;
mod watch;
mod workspace;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, FromArgMatches as _};

use failure::{Failure, Outcome};

/// Pavo: build it, run it, test it.
#[derive(clap::Parser, Debug)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Install what is missing: the Rust target and QEMU.
    Setup,
    /// Build the EL2 image and the guests into target/pavo.
    Build,
    /// Format, lints, documentation, dependencies, panic reachability, sizes.
    Check(check::Options),
    /// Boot a system file under QEMU.
    Run(run::Options),
    /// Run the tests; the last line counts them.
    Test(test::Options),
    /// Check every hypercall's successes and refusals; prints TAP.
    Conformance(conformance::Options),
    /// Measure under QEMU, in instructions.
    Bench(bench::Options),
    /// Write what goes on a board's SD card.
    Image(rpi4::Options),
    /// Play random calls on the library and its specification at once.
    Fuzz(fuzz::Options),
    /// Decode the log of a board: a serial device, a file, or standard input.
    Monitor(monitor::Options),
    /// Boot under QEMU and wait for a debugger.
    Debug(run::Options),
}

fn main() -> ExitCode {
    let parsed = command().try_get_matches().and_then(|found| Arguments::from_arg_matches(&found));
    let arguments = match parsed {
        Ok(arguments) => arguments,
        Err(error) => return refuse(&error),
    };
    match dispatch(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Reported) => Failure::Reported.exit_code(),
        Err(failure) => {
            eprintln!("error: {failure}");
            failure.exit_code()
        }
    }
}

/// The command line. `debug` takes a run's options, but for those that it has no use for.
fn command() -> clap::Command {
    Arguments::command().mut_subcommand("debug", |debug| {
        debug.mut_args(|arg| match arg.get_id().as_str() {
            "timeout" | "interactive" => arg.hide(true),
            _ => arg,
        })
    })
}

fn dispatch(command: Command) -> Outcome<()> {
    match command {
        Command::Setup => setup::command(),
        Command::Build => build::command(),
        Command::Check(options) => check::command(&options),
        Command::Run(options) => run::command(&options),
        Command::Test(options) => test::command(&options),
        Command::Conformance(options) => conformance::command(&options),
        Command::Bench(options) => bench::command(&options),
        Command::Image(options) => rpi4::command(&options),
        Command::Fuzz(options) => fuzz::command(&options),
        Command::Monitor(options) => monitor::command(&options),
        Command::Debug(options) => debug::command(&options),
    }
}

/// Shows help as it is, and a mistake as one line.
fn refuse(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            run::show(error.to_string().as_bytes());
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            eprint!("{error}");
            ExitCode::from(2)
        }
        _ => {
            let typed = std::env::args().nth(1);
            let command = subcommand(typed.as_deref());
            let failure = Failure::usage(usage::one_line(&error.to_string(), command.as_deref()));
            eprintln!("error: {failure}");
            failure.exit_code()
        }
    }
}

/// The word, if it is a subcommand.
fn subcommand(word: Option<&str>) -> Option<String> {
    let all = command();
    all.find_subcommand(word?).map(|command| command.get_name().to_owned())
}
