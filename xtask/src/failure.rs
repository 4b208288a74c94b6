//! How a command ends when it does not succeed: one line for the user, and an exit status that scripts rely on.

use std::fmt;
use std::process::ExitCode;

/// A command's result.
pub(crate) type Outcome<T> = Result<T, Failure>;

/// Why a command stopped. The text is one line: what, where, what to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The command line, a system file or the machine's set-up is at fault: status 2.
    Usage(String),
    /// A guest crashed, a build broke or a test failed: status 1.
    Failed(String),
    /// As [`Failure::Failed`], with lines of a console that show it.
    Shown {
        /// One line.
        text: String,
        /// What was seen.
        lines: Vec<String>,
    },
    /// As [`Failure::Failed`], and all was said already: status 1.
    Reported,
    /// The time given was not enough: status 124, as of `timeout(1)`.
    TimedOut(String),
}

impl Failure {
    /// A usage or configuration error.
    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self::Usage(text.into())
    }

    /// Any other failure.
    pub(crate) fn failed(text: impl Into<String>) -> Self {
        Self::Failed(text.into())
    }

    /// The process's exit status.
    pub(crate) fn status(&self) -> u8 {
        match self {
            Self::Failed(_) | Self::Shown { .. } | Self::Reported => 1,
            Self::Usage(_) => 2,
            Self::TimedOut(_) => 124,
        }
    }

    /// The same as a process result.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.status())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(text) | Self::Failed(text) | Self::Shown { text, .. } | Self::TimedOut(text) => {
                out.write_str(&text.replace('\n', "; "))
            }
            Self::Reported => Ok(()),
        }
    }
}

/// Says what was being done when a library reported an error.
pub(crate) trait Doing<T> {
    /// Turns an error into a [`Failure::Failed`] with `what` before it.
    fn doing(self, what: impl fmt::Display) -> Outcome<T>;
}

impl<T, E: fmt::Display> Doing<T> for Result<T, E> {
    fn doing(self, what: impl fmt::Display) -> Outcome<T> {
        self.map_err(|error| Failure::failed(format!("{what}: {error}")))
    }
}
