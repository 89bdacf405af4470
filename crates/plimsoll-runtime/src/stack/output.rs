//! What the services say, and what we say about them: lines with time and place in one bounded log a service.
//!
//! ```text
//! 2026-11-24T10:00:00.123Z api/1 | listening on 8080        the service's own
//! 2026-11-24T10:00:09.456Z api/1 * OOM-killed at its own line after 9s, at most 512 MiB held      ours
//! ```

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use plimsoll_core::stack::Name;
use plimsoll_kernel::clock;
use plimsoll_model::spec::{LogSpec, Overflow};

use crate::log::RotatingLog;

/// A service's log is cut at this size, bytes,
const MAX_SIZE: u64 = 10 << 20;

/// and so many files of it are kept.
const MAX_FILES: u32 = 3;

/// A line is written in parts of at most so many bytes, so that what waits for its end is bounded.
const LONGEST_LINE: usize = 16 << 10;

/// Bytes read back for the last lines of a service.
const TAIL_BYTES: u64 = 1 << 20;

/// The logs of all services.
#[derive(Debug)]
pub(super) struct Logs {
    dir: PathBuf,
    open: BTreeMap<Name, RotatingLog>,
    /// Beginnings of lines, by whose they are.
    begun: BTreeMap<String, Vec<u8>>,
}

impl Logs {
    pub(super) fn new(dir: PathBuf) -> io::Result<Self> {
        std::fs::create_dir_all(&dir)?;
        Ok(Self { dir, open: BTreeMap::new(), begun: BTreeMap::new() })
    }

    fn path(&self, service: &str) -> PathBuf {
        self.dir.join(format!("{service}.log"))
    }

    /// Takes output of a replica; answers the lines that are complete now.
    pub(super) fn take(&mut self, service: &Name, who: &str, bytes: &[u8]) -> Vec<String> {
        let mut begun = self.begun.remove(who).unwrap_or_default();
        let mut lines = Vec::new();
        for &byte in bytes {
            if byte == b'\n' || begun.len() >= LONGEST_LINE {
                lines.push(self.say(service, who, '|', &begun));
                begun.clear();
            }
            if byte != b'\n' {
                begun.push(byte);
            }
        }
        if !begun.is_empty() {
            self.begun.insert(who.to_owned(), begun);
        }
        lines
    }

    /// A replica has ended: what stands without a line end is a line, too.
    pub(super) fn finish(&mut self, service: &Name, who: &str) -> Option<String> {
        let begun = self.begun.remove(who)?;
        Some(self.say(service, who, '|', &begun))
    }

    /// A line of ours about a service.
    pub(super) fn note(&mut self, service: &Name, who: &str, text: &str) -> String {
        self.say(service, who, '*', text.as_bytes())
    }

    fn say(&mut self, service: &Name, who: &str, mark: char, text: &[u8]) -> String {
        let text = String::from_utf8_lossy(text);
        let line = format!("{:.3} {who} {mark} {}\n", clock::wall(), text.trim_end_matches('\r'));
        let path = self.path(service);
        if !self.open.contains_key(service) {
            let spec = LogSpec { file: path, max_size: MAX_SIZE, max_files: MAX_FILES, overflow: Overflow::Drop };
            // A log that cannot be opened is tried again with the next line; the service goes on.
            if let Ok(log) = RotatingLog::open(&spec) {
                self.open.insert(service.clone(), log);
            }
        }
        if let Some(log) = self.open.get_mut(service) {
            log.write(line.as_bytes());
        }
        line
    }

    /// The disk did not take some of it, and nothing later has come through yet.
    pub(super) fn are_behind(&self) -> bool {
        self.open.values().any(|log| log.unsaid() > 0)
    }

    /// The last lines of a service, or of all in order of time.
    pub(super) fn tail(&self, services: &[Name], count: usize) -> Vec<String> {
        let mut lines: Vec<String> = services.iter().flat_map(|name| last_lines(&self.path(name), count)).collect();
        if services.len() > 1 {
            // Each begins with its time, in a form that sorts.
            lines.sort();
        }
        lines.split_off(lines.len().saturating_sub(count))
    }
}

fn last_lines(path: &Path, count: usize) -> Vec<String> {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut text = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut text)?;
        Ok(text)
    };
    let text = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let mut lines: Vec<String> = text.lines().map(|line| format!("{line}\n")).collect();
    lines.split_off(lines.len().saturating_sub(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_and_bounded_and_ours_stand_between() {
        let dir = std::env::temp_dir().join(format!("plimsoll-output-{}", std::process::id()));
        let mut logs = Logs::new(dir.clone()).unwrap();
        let name = Name::from("api");
        assert!(logs.take(&name, "api/1", b"one\ntw").len() == 1);
        assert_eq!(logs.take(&name, "api/2", b"other\n").len(), 1);
        logs.note(&name, "api/1", "restarting, attempt 1/3");
        assert_eq!(logs.take(&name, "api/1", b"o\n").len(), 1);
        assert_eq!(logs.take(&name, "api/1", &vec![b'x'; LONGEST_LINE * 2 + 5]).len(), 2);
        assert!(logs.finish(&name, "api/1").is_some_and(|line| line.ends_with("| xxxxx\n")));
        let text: Vec<String> = logs.tail(std::slice::from_ref(&name), 100);
        let ends: Vec<&str> = text.iter().map(|line| line.split_once(' ').unwrap().1).collect();
        assert_eq!(
            ends[..4],
            ["api/1 | one\n", "api/2 | other\n", "api/1 * restarting, attempt 1/3\n", "api/1 | two\n"]
        );
        assert_eq!(logs.tail(std::slice::from_ref(&name), 1).len(), 1);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
