//! The journal of a stack: every event as a row of JSON in a log that is bounded, numbered through all lives of the
//! supervisor, and what is remembered of them.
//!
//! What is remembered is stored now and then, with the number of the last row in it; rows behind that one are heard again
//! at the next start. So a supervisor that is killed at any instant loses nothing that is in the journal.

use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use plimsoll_core::stack::Event;
use plimsoll_core::stack::input::Remembered;
use plimsoll_core::stack::remember::Memory;
use plimsoll_kernel::clock::{self, Instant};
use plimsoll_model::spec::{LogSpec, Overflow};
use serde::{Deserialize, Serialize};

use crate::log::RotatingLog;

/// The journal is cut at this size, bytes,
const MAX_SIZE: u64 = 10 << 20;

/// and so many files of it are kept.
const MAX_FILES: u32 = 3;

/// What is remembered is stored at most so often.
const SAVE_EVERY: Duration = Duration::from_secs(1);

/// Bytes read back at a start: far more than is written between two times of storing.
const READ_BACK: u64 = 4 << 20;

const SCHEMA: &str = "plimsoll.stack/1";

/// The journal's name in the state directory, and that of what is remembered.
const JOURNAL: &str = "events.jsonl";
const MEMORY: &str = "stack.json";

#[derive(Serialize, Deserialize)]
struct Saved {
    schema: String,
    /// Number of the last row that is in it.
    seq: u64,
    memory: Memory,
}

/// One row.
#[derive(Debug, Serialize, Deserialize)]
pub struct Row {
    /// Counts rows through all lives of the supervisor.
    pub seq: u64,
    /// When.
    pub at: jiff::Timestamp,
    /// What.
    #[serde(flatten)]
    pub event: Event,
}

/// The open journal.
#[derive(Debug)]
pub struct Journal {
    log: RotatingLog,
    memory_file: PathBuf,
    memory: Memory,
    seq: u64,
    /// Something is remembered that is not stored.
    unsaved: bool,
    saved_at: Option<Instant>,
}

impl Journal {
    /// Opens the journal of this state directory and recalls what it knows. Also answers what its owner has to be told:
    /// a memory that could not be read is kept aside.
    ///
    /// # Errors
    /// The journal's file, with its path.
    pub fn open(state_dir: &Path) -> Result<(Self, Vec<String>), String> {
        let file = state_dir.join(JOURNAL);
        let spec = LogSpec { file, max_size: MAX_SIZE, max_files: MAX_FILES, overflow: Overflow::Drop };
        let mut log = RotatingLog::open(&spec).map_err(|error| format!("{}: {error}", spec.file.display()))?;
        if read_end(&spec.file, 1).is_ok_and(|end| !end.is_empty() && end != b"\n") {
            // The last row was torn: it tears no other.
            log.write(b"\n");
        }
        let memory_file = state_dir.join(MEMORY);
        let mut notices = Vec::new();
        let saved = read_saved(&memory_file).unwrap_or_else(|why| {
            let aside = state_dir.join(format!("{MEMORY}.aside-{}", clock::wall().as_second()));
            let kept = std::fs::rename(&memory_file, &aside);
            let what = kept.map_or_else(|error| format!("stays: {error}"), |()| format!("is now {}", aside.display()));
            notices.push(format!("{}: {why}; it {what}, and counters begin anew", memory_file.display()));
            Saved { schema: SCHEMA.to_owned(), seq: 0, memory: Memory::default() }
        });
        let (mut seq, mut memory) = (saved.seq, saved.memory);
        for row in rows(state_dir, READ_BACK) {
            if row.seq > saved.seq {
                memory.hear(&row.event);
            }
            seq = seq.max(row.seq);
        }
        let journal = Self { log, memory_file, memory, seq, unsaved: seq > saved.seq, saved_at: None };
        Ok((journal, notices))
    }

    /// What former lives taught.
    #[must_use]
    pub fn remembered(&self) -> Vec<Remembered> {
        self.memory.remembered()
    }

    /// Forgets all services but these.
    pub fn keep(&mut self, is_known: impl Fn(&str) -> bool) {
        self.memory.keep(is_known);
    }

    /// Writes an event's row, and answers it. Never fails: see [`Journal::is_behind`].
    pub fn write(&mut self, event: &Event) -> String {
        self.seq += 1;
        let row = Row { seq: self.seq, at: clock::wall(), event: event.clone() };
        let text = serde_json::to_string(&row).unwrap_or_default();
        self.log.write(format!("{text}\n").as_bytes());
        self.unsaved |= self.memory.hear(event);
        text
    }

    /// Stores what is remembered, unless that was done a moment ago. To be called after rows were written.
    pub fn save_now_and_then(&mut self) {
        if self.unsaved && self.saved_at.is_none_or(|at| at.elapsed() >= SAVE_EVERY) {
            self.save();
        }
    }

    /// The disk did not take some rows, and no later one has come through yet.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.log.unsaid() > 0
    }

    /// Stores what is remembered. What the disk does not take now is read from the rows later.
    pub fn save(&mut self) {
        self.saved_at = Some(Instant::now());
        let saved = Saved { schema: SCHEMA.to_owned(), seq: self.seq, memory: self.memory.clone() };
        let new = self.memory_file.with_extension("json.new");
        let written = serde_json::to_vec(&saved)
            .map_err(io::Error::from)
            .and_then(|json| std::fs::write(&new, json))
            .and_then(|()| std::fs::rename(&new, &self.memory_file));
        self.unsaved = written.is_err();
    }
}

fn read_saved(file: &Path) -> Result<Saved, String> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Saved { schema: SCHEMA.to_owned(), seq: 0, memory: Memory::default() });
        }
        Err(error) => return Err(error.to_string()),
    };
    let schema: serde_json::Value = serde_json::from_str(&text).map_err(|error| format!("it is damaged: {error}"))?;
    match schema.get("schema").and_then(|schema| schema.as_str()) {
        Some(SCHEMA) => serde_json::from_str(&text).map_err(|error| format!("it is damaged: {error}")),
        Some(other) => Err(format!("it is of another version ({other}, this plimsoll reads {SCHEMA})")),
        None => Err("it is damaged: it names no version".to_owned()),
    }
}

/// The last rows of a state directory's journal, oldest first: at most so many, from at most so many bytes. What is no
/// row (the torn end of one, the note of a full disk) is passed over.
#[must_use]
pub fn tail(state_dir: &Path, count: usize) -> Vec<Row> {
    let mut all = rows(state_dir, u64::from(MAX_FILES) * MAX_SIZE);
    all.split_off(all.len().saturating_sub(count))
}

fn rows(state_dir: &Path, mut bytes: u64) -> Vec<Row> {
    let mut parts = Vec::new();
    for number in 0..MAX_FILES {
        let name = if number == 0 { JOURNAL.to_owned() } else { format!("{JOURNAL}.{number}") };
        let Ok(text) = read_end(&state_dir.join(name), bytes) else { break };
        bytes -= text.len() as u64;
        parts.push(text);
        if bytes == 0 {
            break;
        }
    }
    let lines = parts.iter().rev().flat_map(|part| part.split(|&byte| byte == b'\n'));
    lines.filter_map(|line| serde_json::from_slice(line).ok()).collect()
}

fn read_end(file: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut file = std::fs::File::open(file)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
    let mut text = Vec::new();
    file.take(most).read_to_end(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_core::stack::Instance;
    use plimsoll_model::Cause;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("plimsoll-journal-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&dir);
            std::fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn restarting() -> Event {
        Event::Restarting {
            instance: Instance { service: "api".into(), replica: 1, generation: 1 },
            attempt: 1,
            max_attempts: None,
            delay_ms: 0,
            cause: Cause::Failed,
        }
    }

    #[test]
    fn a_supervisor_that_was_killed_has_forgotten_nothing() {
        let dir = Dir::new("killed");
        for life in 0..5u64 {
            let (mut journal, notices) = Journal::open(&dir.0).unwrap();
            assert!(notices.is_empty());
            let known = journal.remembered().first().map_or(0, |known| known.restarts);
            assert_eq!(known, life * 3);
            for _ in 0..3 {
                journal.write(&restarting());
            }
            // Nothing else is stored: it was killed.
        }
        let rows = tail(&dir.0, 100);
        assert_eq!(rows.iter().map(|row| row.seq).collect::<Vec<u64>>(), (1..=15).collect::<Vec<u64>>());
        assert_eq!(tail(&dir.0, 4).len(), 4);
    }

    #[test]
    fn what_cannot_be_read_is_kept_aside() {
        for (text, why) in [
            ("{\"schema\":\"plimsoll.stack/99\"}", "another version"),
            ("{\"schema\":\"plimsoll.stack/1\",\"seq\":", "damaged"),
            ("\u{0}\u{0}", "damaged"),
        ] {
            let dir = Dir::new("aside");
            std::fs::write(dir.0.join(MEMORY), text).unwrap();
            let (mut journal, notices) = Journal::open(&dir.0).unwrap();
            assert!(notices.len() == 1 && notices[0].contains(why), "{notices:?}");
            journal.write(&restarting());
            let aside = std::fs::read_dir(&dir.0).unwrap().flatten();
            let aside: Vec<_> = aside.filter(|entry| entry.file_name().to_string_lossy().contains("aside")).collect();
            assert_eq!(std::fs::read_to_string(aside[0].path()).unwrap(), text);
            assert_eq!(Journal::open(&dir.0).unwrap().1, Vec::<String>::new());
        }
    }

    #[test]
    fn a_torn_row_costs_itself_alone() {
        let dir = Dir::new("torn");
        let (mut journal, _) = Journal::open(&dir.0).unwrap();
        journal.write(&restarting());
        drop(journal);
        let file = dir.0.join(JOURNAL);
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, format!("{text}{}", &text[..text.len() / 2])).unwrap();
        let (mut journal, _) = Journal::open(&dir.0).unwrap();
        journal.write(&restarting());
        journal.write(&restarting());
        let seqs: Vec<u64> = tail(&dir.0, 9).iter().map(|row| row.seq).collect();
        assert_eq!(seqs, [1, 2, 3]);
    }
}
