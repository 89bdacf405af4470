//! How loud a word is shown, in tables and on the full screen alike: the ladder's colours are one thing everywhere.

use std::io::IsTerminal;

use plimsoll_core::stack::Stage;
use plimsoll_core::stack::event::Severity;
use plimsoll_core::stack::snapshot::State;

/// What a word means to the eye.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Tone {
    /// As everything else.
    #[default]
    Plain,
    /// Titles and names.
    Strong,
    /// There if one looks for it.
    Faint,
    /// As it should be.
    Good,
    /// Worth a look: alert.
    Notice,
    /// Something has to give: degrade.
    Warning,
    /// Lost, down, or about to be: shed.
    Bad,
}

impl Tone {
    pub(crate) fn of_stage(stage: Stage) -> Self {
        match stage {
            Stage::Normal => Self::Good,
            Stage::Alert => Self::Notice,
            Stage::Degrade => Self::Warning,
            Stage::Shed => Self::Bad,
        }
    }

    pub(crate) fn of_state(state: State) -> Self {
        match state {
            State::Running => Self::Good,
            State::Starting | State::Stopping => Self::Notice,
            State::Unhealthy | State::BackingOff => Self::Warning,
            State::Failed => Self::Bad,
            State::Stopped => Self::Faint,
        }
    }

    pub(crate) fn of_severity(severity: Severity) -> Self {
        match severity {
            Severity::Info => Self::Plain,
            Severity::Warning => Self::Notice,
            Severity::Error => Self::Bad,
        }
    }

    /// The terminal's words for it; the code alone, to stand between `ESC[` and `m`.
    fn code(self) -> Option<&'static str> {
        Some(match self {
            Self::Plain => return None,
            Self::Strong => "1",
            Self::Faint => "2",
            Self::Good => "32",
            Self::Notice => "33",
            Self::Warning => "38;5;208",
            Self::Bad => "1;31",
        })
    }

    /// The text, coloured if there is colour.
    pub(crate) fn paint(self, text: &str, is_coloured: bool) -> String {
        match self.code().filter(|_| is_coloured && !text.is_empty()) {
            Some(code) => format!("\x1b[{code}m{text}\x1b[0m"),
            None => text.to_owned(),
        }
    }
}

/// Whether the user wants no colour, or has a terminal that knows none.
pub(crate) fn is_colour_refused() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
        || std::env::var_os("TERM").is_some_and(|term| term == "dumb")
}

/// Whether stdout takes colour.
pub(crate) fn is_stdout_coloured() -> bool {
    std::io::stdout().is_terminal() && !is_colour_refused()
}
