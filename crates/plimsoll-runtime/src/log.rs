//! A log that is bounded in size: `FILE` is written, and at its size limit becomes `FILE.1`, which becomes `FILE.2`, …
//!
//! A file is cut behind the last line end that fits. Output is written as it comes, not when its line is complete; so at
//! a cut the line that has been begun moves to the new file. A line that alone is longer than a file, and one of which
//! more than 8 KiB are written already, is cut in the middle. When the disk is full nothing waits for it: what could not
//! be written is counted, and a line says how much was lost as soon as there is room again.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use plimsoll_model::spec::LogSpec;

/// The beginning of a line is kept, to move it to the next file, up to so many bytes.
const LONGEST_BEGINNING: usize = 8 << 10;

/// The log of one tree.
#[derive(Debug)]
pub struct RotatingLog {
    path: PathBuf,
    max_size: u64,
    max_files: u32,
    file: File,
    size: u64,
    /// What is written of the last line, without its end yet; `None` when that is too long to be kept.
    begun: Option<Vec<u8>>,
    dropped: u64,
}

/// What became of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogReport {
    /// Bytes of the tree's output that were dropped, all in all.
    pub dropped: u64,
}

impl RotatingLog {
    /// Opens the log, at the end of what is there already.
    ///
    /// # Errors
    /// The file's: no such directory, no permission, a directory in its place.
    pub fn open(spec: &LogSpec) -> io::Result<Self> {
        let file = append(&spec.file)?;
        let metadata = file.metadata()?;
        let mut log = Self {
            path: spec.file.clone(),
            // What is no regular file (a pipe, /dev/null) is not ours to rename.
            max_size: if metadata.is_file() { spec.max_size.max(1) } else { u64::MAX },
            max_files: spec.max_files.max(1),
            file,
            size: metadata.len(),
            begun: None,
            dropped: 0,
        };
        let end = if metadata.is_file() { log.end_of_file() } else { Some(Vec::new()) };
        log.begun = (end.is_some() && log.size <= LONGEST_BEGINNING as u64).then(Vec::new);
        log.note(&end.unwrap_or_default());
        Ok(log)
    }

    /// Writes output, rotating where the size asks for it. Never fails: what the disk does not take is counted.
    pub fn write(&mut self, mut bytes: &[u8]) {
        self.own_up();
        while !bytes.is_empty() {
            let (part, rest) = bytes.split_at(self.fitting(bytes));
            if part.is_empty() {
                if self.rotate().is_err() {
                    return self.drop_bytes(bytes.len());
                }
                continue;
            }
            if let Err(lost) = self.put(part) {
                self.drop_bytes(lost);
            }
            bytes = rest;
        }
    }

    /// How many of these bytes go into this file: up to the last line end that fits; all room when the line would not
    /// be whole in the next file either.
    fn fitting(&self, bytes: &[u8]) -> usize {
        let room = self.max_size.saturating_sub(self.size);
        if bytes.len() as u64 <= room {
            return bytes.len();
        }
        let fits = &bytes[..room as usize];
        match fits.iter().rposition(|&byte| byte == b'\n') {
            Some(end) => end + 1,
            None if self.can_move() => 0,
            None => fits.len(),
        }
    }

    /// Whether the line that has been begun is known, and is not all that this file holds.
    fn can_move(&self) -> bool {
        self.begun.as_ref().is_some_and(|begun| (begun.len() as u64) < self.size.min(self.max_size))
    }

    /// Whether what is written next stands behind something on the same line.
    fn in_a_line(&self) -> bool {
        self.begun.as_ref().is_none_or(|begun| !begun.is_empty())
    }

    /// Counts bytes that never got here, or never reached the disk.
    pub fn drop_bytes(&mut self, count: usize) {
        self.dropped += count as u64;
    }

    /// The line that says how much was lost, as soon as the disk takes it; never within another line.
    pub fn own_up(&mut self) {
        if self.dropped == 0 {
            return;
        }
        let marker = format!("{}{}", if self.in_a_line() { "\n" } else { "" }, marker(self.dropped));
        if self.size + marker.len() as u64 > self.max_size && self.size > 0 && self.rotate().is_err() {
            return;
        }
        if self.put(marker.as_bytes()).is_ok() {
            self.dropped = 0;
        }
    }

    /// Bytes dropped that no line in the log tells of yet.
    #[must_use]
    pub fn unsaid(&self) -> u64 {
        self.dropped
    }

    /// Writes all, or answers how many bytes of it are lost.
    fn put(&mut self, mut part: &[u8]) -> Result<(), usize> {
        while !part.is_empty() {
            match self.file.write(part) {
                Ok(0) => return Err(part.len()),
                Ok(count) => {
                    self.size += count as u64;
                    self.note(&part[..count]);
                    part = &part[count..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(part.len()),
            }
        }
        Ok(())
    }

    /// Keeps what is written of the last line.
    fn note(&mut self, written: &[u8]) {
        let behind = written.iter().rposition(|&byte| byte == b'\n').map(|end| &written[end + 1..]);
        let mut begun = if behind.is_some() { Some(Vec::new()) } else { self.begun.take() };
        if let Some(begun) = &mut begun {
            begun.extend_from_slice(behind.unwrap_or(written));
        }
        self.begun = begun.filter(|begun| begun.len() <= LONGEST_BEGINNING);
    }

    /// The end of a file that is there already; `None` when it may not be read.
    fn end_of_file(&self) -> Option<Vec<u8>> {
        let mut end = vec![0; self.size.min(LONGEST_BEGINNING as u64) as usize];
        let from = self.size - end.len() as u64;
        File::open(&self.path).ok()?.read_exact_at(&mut end, from).ok()?;
        Some(end)
    }

    /// Goes on in an empty file, with the line that has been begun.
    fn rotate(&mut self) -> io::Result<()> {
        let line = if self.can_move() { self.begun.clone() } else { None };
        let full = self.size;
        let mut old = None;
        if self.max_files == 1 {
            // Nothing older is kept: start over in place.
            self.file.set_len(0)?;
        } else {
            for number in (1..self.max_files - 1).rev() {
                rename_if_there(&numbered(&self.path, number), &numbered(&self.path, number + 1))?;
            }
            // Somebody else may have taken the file away: then there is nothing to keep.
            rename_if_there(&self.path, &numbered(&self.path, 1))?;
            old = Some(std::mem::replace(&mut self.file, append(&self.path)?));
        }
        self.size = self.file.metadata()?.len();
        let Some(line) = line else {
            // Cut: what follows is no whole line.
            self.begun = None;
            return Ok(());
        };
        self.begun = Some(Vec::new());
        // Taken from the old file only once it is in the new one, and only if nobody else has written behind it.
        if self.put(&line).is_ok()
            && let Some(old) = old
            && old.metadata().is_ok_and(|now| now.len() == full)
        {
            let _ = old.set_len(full - line.len() as u64);
        }
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

fn rename_if_there(from: &Path, to: &Path) -> io::Result<()> {
    match std::fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The line in the place of what was dropped.
fn marker(bytes: u64) -> String {
    format!("[plimsoll: {bytes} bytes dropped]\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_model::spec::Overflow;
    use proptest::prelude::*;

    fn scratch() -> PathBuf {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("plimsoll-log-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    fn read_back(file: &Path, max_files: u32) -> Vec<Vec<u8>> {
        let mut parts: Vec<Vec<u8>> =
            (1..max_files).rev().filter_map(|number| std::fs::read(numbered(file, number)).ok()).collect();
        parts.push(std::fs::read(file).unwrap());
        parts
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn the_files_are_a_suffix_of_the_output(
            chunks in prop::collection::vec("[a-c\n]{0,60}", 0..60),
            max_size in 1u64..120,
            max_files in 1u32..5,
        ) {
            let dir = scratch();
            let file = dir.join("log");
            let spec = LogSpec { file: file.clone(), max_size, max_files, overflow: Overflow::Block };
            let mut log = RotatingLog::open(&spec).unwrap();
            let printed: String = chunks.concat();
            for (at, chunk) in chunks.iter().enumerate() {
                log.write(chunk.as_bytes());
                if at % 7 == 3 {
                    // A restart goes on where the files end.
                    log = RotatingLog::open(&spec).unwrap();
                }
            }
            let parts = read_back(&file, max_files);
            for part in &parts {
                prop_assert!(part.len() as u64 <= max_size);
            }
            let kept = parts.concat();
            prop_assert!(printed.as_bytes().ends_with(&kept), "{:?} of {:?}", String::from_utf8_lossy(&kept), printed);
            if printed.len() as u64 <= max_size {
                prop_assert_eq!(kept.len(), printed.len());
            }
            prop_assert_eq!(log.unsaid(), 0);
            std::fs::remove_dir_all(dir).unwrap();
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn lines_that_fit_into_a_file_are_not_cut(
            lines in prop::collection::vec("[a-z]{0,19}", 0..60),
            sizes in prop::collection::vec(1usize..30, 1..40),
            max_size in 20u64..90,
            reopen in 1usize..9,
        ) {
            let dir = scratch();
            let file = dir.join("log");
            let spec = LogSpec { file: file.clone(), max_size, max_files: 100, overflow: Overflow::Block };
            let mut log = RotatingLog::open(&spec).unwrap();
            let printed: String = lines.iter().map(|line| format!("{line}\n")).collect();
            // In chunks that know nothing of lines, as reads from a pipe are.
            let (mut left, mut sizes) = (printed.as_bytes(), sizes.iter().cycle().enumerate());
            while let Some((at, &size)) = sizes.next().filter(|_| !left.is_empty()) {
                let (chunk, rest) = left.split_at(size.min(left.len()));
                log.write(chunk);
                left = rest;
                if at % reopen == 0 {
                    log = RotatingLog::open(&spec).unwrap();
                }
            }
            let parts = read_back(&file, 100);
            for part in &parts {
                prop_assert!(part.len() as u64 <= max_size);
                prop_assert!(part.is_empty() || part.ends_with(b"\n"), "{:?}", String::from_utf8_lossy(part));
            }
            prop_assert_eq!(String::from_utf8(parts.concat()).unwrap(), printed);
            std::fs::remove_dir_all(dir).unwrap();
        }
    }

    #[test]
    fn an_endless_line_is_cut_at_the_size() {
        let dir = scratch();
        let max_size = 3 * LONGEST_BEGINNING as u64;
        let spec = LogSpec { file: dir.join("log"), max_size, max_files: 9, overflow: Overflow::Block };
        let mut log = RotatingLog::open(&spec).unwrap();
        let chunk = vec![b'x'; LONGEST_BEGINNING / 2 + 1];
        for _ in 0..20 {
            log.write(&chunk);
        }
        let parts = read_back(&spec.file, 9);
        assert!(parts[..parts.len() - 1].iter().all(|part| part.len() as u64 == max_size));
        assert_eq!(parts.concat().len(), 20 * chunk.len());
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_marker_stands_on_a_line_of_its_own() {
        let dir = scratch();
        let spec = LogSpec { file: dir.join("log"), max_size: 1 << 20, max_files: 2, overflow: Overflow::Drop };
        let mut log = RotatingLog::open(&spec).unwrap();
        log.write(b"half a li");
        log.drop_bytes(7);
        log.write(b"next\n");
        log.drop_bytes(8);
        log.own_up();
        let written = std::fs::read_to_string(&spec.file).unwrap();
        assert_eq!(written, "half a li\n[plimsoll: 7 bytes dropped]\nnext\n[plimsoll: 8 bytes dropped]\n");
        // Also behind what an earlier run left unfinished.
        log.write(b"unfinished");
        let mut log = RotatingLog::open(&spec).unwrap();
        log.drop_bytes(9);
        log.own_up();
        let written = std::fs::read_to_string(&spec.file).unwrap();
        assert!(written.ends_with("unfinished\n[plimsoll: 9 bytes dropped]\n"), "{written}");
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn lines_stay_whole_where_they_can() {
        let dir = scratch();
        let spec = LogSpec { file: dir.join("log"), max_size: 10, max_files: 3, overflow: Overflow::Block };
        let mut log = RotatingLog::open(&spec).unwrap();
        log.write(b"12345\n1234567\n");
        assert_eq!(std::fs::read(dir.join("log.1")).unwrap(), b"12345\n");
        assert_eq!(std::fs::read(dir.join("log")).unwrap(), b"1234567\n");
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_full_disk_is_owned_up_to() {
        // /dev/full answers ENOSPC to every write.
        let spec = LogSpec { file: "/dev/full".into(), max_size: 1 << 20, max_files: 1, overflow: Overflow::Block };
        let mut log = RotatingLog::open(&spec).unwrap();
        log.write(b"lost");
        assert_eq!(log.unsaid(), 4);
        let dir = scratch();
        log.file = append(&dir.join("log")).unwrap();
        log.write(b"kept\n");
        assert_eq!(std::fs::read(dir.join("log")).unwrap(), b"[plimsoll: 4 bytes dropped]\nkept\n");
        std::fs::remove_dir_all(dir).unwrap();
    }
}
