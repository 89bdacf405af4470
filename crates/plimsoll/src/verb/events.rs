//! `plimsoll events`: the rows of the journal, and those that come.

use std::io::{BufRead, Write};
use std::path::Path;
use std::process::ExitCode;

use plimsoll_gateway::client::Response;
use plimsoll_runtime::stack::journal::{self, Row};
use plimsoll_store::Paths;

use super::control::get;
use crate::fault::Fault;
use crate::render::safe;
use crate::tone::{self, Tone};

/// Shown without --tail, and with --follow.
const TAIL: usize = 1000;
const TAIL_FOLLOWED: usize = 10;

/// Show what happened to the stack: starts, ends, stages, alerts
///
/// Events are kept when nothing runs, too. Times are UTC.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  plimsoll events               the latest events, oldest first
  plimsoll events -f            the last ten, and those that come
  plimsoll events --tail 1      the last one
  plimsoll events --json | jq   for scripts; `seq` counts them

Exit code: 0 shown, also when there are none; 1 with -f: nothing runs.")]
pub(crate) struct EventsArgs {
    /// Go on with what comes, until it is interrupted or the stack is down
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// So many of the last events [default: 1000, with --follow 10]
    #[arg(long, value_name = "N")]
    pub(crate) tail: Option<usize>,
    /// Print one JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn events(args: &EventsArgs, paths: &Paths) -> Result<ExitCode, Fault> {
    let count = args.tail.unwrap_or(if args.follow { TAIL_FOLLOWED } else { TAIL });
    let is_coloured = tone::is_stdout_coloured();
    let mut out = std::io::stdout().lock();
    let mut print = |row: &Row| {
        let line = if args.json { serde_json::to_string(row).unwrap_or_default() } else { line(row, is_coloured) };
        // Whoever read it has gone: that is the end, and no fault.
        writeln!(out, "{line}").and_then(|()| out.flush()).is_ok()
    };
    if args.follow {
        follow(paths, count, |heard| match heard {
            Heard::Stored(rows) => rows.iter().all(&mut print),
            Heard::New(row) => print(&row),
        })?;
    } else {
        let _ = stored(paths.state(), count).iter().all(print);
    }
    Ok(ExitCode::SUCCESS)
}

/// What a listener hears.
pub(super) enum Heard {
    /// First of all: what is stored, oldest first.
    Stored(Vec<Row>),
    /// One that comes.
    New(Box<Row>),
}

fn stored(state_dir: &Path, count: usize) -> Vec<Row> {
    // Nothing is asked of the disk for nothing.
    if count == 0 { Vec::new() } else { journal::tail(state_dir, count) }
}

/// Hears of stored events, at most so many, and then of all that come, each once: until nobody listens or the stream
/// ends.
///
/// # Errors
/// When nobody answers.
pub(super) fn follow(paths: &Paths, count: usize, mut hear: impl FnMut(Heard) -> bool) -> Result<(), Fault> {
    // The stream is open before the journal is read: what comes in between is in both, and its number tells.
    let response = get(paths, "/api/v1/events", None)?;
    let stored = stored(paths.state(), count.max(1));
    let mut last = stored.last().map_or(0, |row| row.seq);
    let shown = stored.into_iter().rev().take(count).rev().collect();
    if !hear(Heard::Stored(shown)) {
        return Ok(());
    }
    for row in rows(response) {
        if row.seq > last {
            last = row.seq;
            if !hear(Heard::New(Box::new(row))) {
                break;
            }
        }
    }
    Ok(())
}

/// The rows of a stream, until it ends.
fn rows(response: Response) -> impl Iterator<Item = Row> {
    let lines = response.reader().lines().map_while(Result::ok);
    lines.filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok())
}

fn line(row: &Row, is_coloured: bool) -> String {
    let at = row.at.strftime("%Y-%m-%d %H:%M:%S").to_string();
    let words = safe(&row.event.to_string());
    format!("{}  {}", Tone::Faint.paint(&at, is_coloured), tone_of(row).paint(&words, is_coloured))
}

pub(super) fn tone_of(row: &Row) -> Tone {
    Tone::of_severity(row.event.severity())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_in_words() {
        let json = r#"{"seq":7,"at":"2026-11-24T10:00:09.456Z","event":"start_failed","service":"api","replica":1,
            "generation":3,"why":"no such file\u001b[2J"}"#;
        let row: Row = serde_json::from_str(json).unwrap();
        assert_eq!(line(&row, false), "2026-11-24 10:00:09  api/1 did not start: no such file\\u{1b}[2J");
        assert!(line(&row, true).ends_with("\x1b[33mapi/1 did not start: no such file\\u{1b}[2J\x1b[0m"));
    }
}
