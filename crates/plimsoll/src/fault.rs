//! How a verb fails: an exit code, what went wrong and why, and what to do about it.

use std::fmt;
use std::process::ExitCode;

/// The verb's own operation failed.
pub(crate) const FAILED: u8 = 1;
/// The command line is wrong.
pub(crate) const USAGE: u8 = 2;
/// `run`: plimsoll itself failed, or this machine cannot do what was asked for.
pub(crate) const RUN_FAILED: u8 = 125;

/// One failure, in the user's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Exit code.
    pub(crate) code: u8,
    /// What was attempted or given, and why it is wrong: `WHAT: WHY`.
    pub(crate) message: String,
    /// What to do.
    pub(crate) help: String,
}

impl Fault {
    /// The command line is wrong.
    pub(crate) fn usage(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { code: USAGE, message: message.into(), help: help.into() }
    }

    /// The operation failed.
    pub(crate) fn failed(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { code: FAILED, message: message.into(), help: help.into() }
    }

    /// A run cannot be had here.
    pub(crate) fn cannot_run(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { code: RUN_FAILED, message: message.into(), help: help.into() }
    }

    /// Prints it on stderr and yields its exit code.
    pub(crate) fn report(&self) -> ExitCode {
        crate::output::error(&self.to_string());
        ExitCode::from(self.code)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "plimsoll: error: {}", self.message)?;
        for line in self.help.lines() {
            write!(f, "\n  help: {line}")?;
        }
        Ok(())
    }
}
