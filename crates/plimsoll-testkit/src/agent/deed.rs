//! What an agent can be told to do: a word of a question, a script or an option.

use std::time::Duration;

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Deed {
    /// No deed: a question's or an answer's text.
    Text(String),
    /// `!say TEXT`: the answer.
    Say(String),
    /// `!next TEXT`: the answer of the turn behind this one, whatever it asks.
    Next(String),
    /// `!leak 10m`: kept for ever.
    Leak(usize),
    /// `!peak 10m`: held for a moment.
    Peak(usize),
    /// `!sleep 500ms`: before the first byte; an interrupt is heard.
    Sleep(Duration),
    /// `!pace 50ms`: between two deltas; an interrupt is heard.
    Pace(Duration),
    /// `!deltas 10`: the answer in so many parts.
    Deltas(usize),
    /// `!hang`: hears and says nothing any more, from the turn's begin.
    Hang,
    /// `!stall`: the same, once its answer has begun.
    Stall,
    /// `!child`, `!child hold`: one in a session of its own, which may hold the output open.
    Child { holds: bool },
    /// `!ignore-eof`: stays when its input ends.
    IgnoreEof,
    /// `!ignore-term`: stays when it is asked to go.
    IgnoreTerm,
    /// `!garbage`: lines that are none of the protocol's.
    Garbage,
    /// `!binary`: every byte there is.
    Binary,
    /// `!line 50m`: a line of so many bytes, well-formed.
    Line(usize),
    /// `!twice`: a second answer, at once.
    Twice,
    /// `!late`: a second answer, when the next turn begins.
    Late,
    /// `!exit 3`: at once.
    Exit(u8),
    /// `!cut 3`: ends with that code in the middle of its answer.
    Cut(u8),
    /// `!close`: closes its output and goes on.
    Close,
    /// `!away`: another process takes its place.
    Away,
    /// `!error TEXT`: the turn fails in good order.
    Error(String),
    /// `!read PATH`: answers with what is in a file, or why it cannot be read.
    Read(String),
    /// `!write PATH`: makes a file, and answers `written` or why it cannot.
    Write(String),
    /// `!signal PID`: asks whether it may signal a process, and answers `allowed` or why it may not.
    Signal(i32),
    /// `!tool`: asks whether a tool may be used (`claude`), and answers with what it was told.
    Tool,
}

impl Deed {
    /// Reads a line. Whatever is no deed is text.
    pub(super) fn parse(line: &str) -> Self {
        let words = line.trim().strip_prefix('!').map(|line| line.split_once(' ').unwrap_or((line, "")));
        words.and_then(|(word, rest)| Self::known(word, rest.trim())).unwrap_or_else(|| Self::Text(line.to_owned()))
    }

    fn known(word: &str, rest: &str) -> Option<Self> {
        let size = || plimsoll_model::size::parse(rest).ok().map(|bytes| bytes as usize);
        let duration = || plimsoll_model::duration::parse(rest).ok();
        let code = || if rest.is_empty() { Some(1) } else { rest.parse().ok() };
        Some(match word {
            "say" => Self::Say(rest.to_owned()),
            "next" => Self::Next(rest.to_owned()),
            "leak" => Self::Leak(size()?),
            "peak" => Self::Peak(size()?),
            "sleep" => Self::Sleep(duration()?),
            "pace" => Self::Pace(duration()?),
            "deltas" => Self::Deltas(rest.parse().ok()?),
            "hang" => Self::Hang,
            "stall" => Self::Stall,
            "child" => Self::Child { holds: rest == "hold" },
            "ignore-eof" => Self::IgnoreEof,
            "ignore-term" => Self::IgnoreTerm,
            "garbage" => Self::Garbage,
            "binary" => Self::Binary,
            "line" => Self::Line(size()?),
            "twice" => Self::Twice,
            "late" => Self::Late,
            "exit" => Self::Exit(code()?),
            "cut" => Self::Cut(code()?),
            "close" => Self::Close,
            "away" => Self::Away,
            "error" => Self::Error(rest.to_owned()),
            "read" if !rest.is_empty() => Self::Read(rest.to_owned()),
            "write" if !rest.is_empty() => Self::Write(rest.to_owned()),
            "signal" => Self::Signal(rest.parse().ok()?),
            "tool" => Self::Tool,
            _ => return None,
        })
    }

    pub(super) fn text(self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deeds_and_text() {
        assert_eq!(Deed::parse("!leak 10m"), Deed::Leak(10 << 20));
        assert_eq!(Deed::parse(" !exit 3 "), Deed::Exit(3));
        assert_eq!(Deed::parse("!child hold"), Deed::Child { holds: true });
        assert_eq!(Deed::parse("!say {\"a\": 1}"), Deed::Say("{\"a\": 1}".into()));
        for text in ["hello!", "!important", "!leak", "!leak much", ""] {
            assert_eq!(Deed::parse(text), Deed::Text(text.into()));
        }
    }
}
