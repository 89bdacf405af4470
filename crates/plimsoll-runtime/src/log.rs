//! A log that is bounded in size: `FILE` is written, and at its size limit becomes `FILE.1`, which becomes `FILE.2`, …
//!
//! A file is cut behind the last line end that fits, or in the middle of a line that alone is longer than a file. When
//! the disk is full nothing waits for it: what could not be written is counted, and a line says how much was lost as
//! soon as there is room again.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use plimsoll_model::spec::LogSpec;

/// The log of one tree.
#[derive(Debug)]
pub struct RotatingLog {
    path: PathBuf,
    max_size: u64,
    max_files: u32,
    file: File,
    size: u64,
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
        let size = file.metadata()?.len();
        Ok(Self {
            path: spec.file.clone(),
            max_size: spec.max_size.max(1),
            max_files: spec.max_files.max(1),
            file,
            size,
            dropped: 0,
        })
    }

    /// Writes output, rotating where the size asks for it. Never fails: what the disk does not take is counted.
    pub fn write(&mut self, mut bytes: &[u8]) {
        self.own_up();
        while !bytes.is_empty() {
            let room = self.max_size.saturating_sub(self.size);
            let now = cut(bytes, room, self.size == 0);
            let (part, rest) = bytes.split_at(now);
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

    /// Counts bytes that never got here, or never reached the disk.
    pub fn drop_bytes(&mut self, count: usize) {
        self.dropped += count as u64;
    }

    /// The line that says how much was lost, as soon as the disk takes it.
    pub fn own_up(&mut self) {
        if self.dropped == 0 {
            return;
        }
        let marker = marker(self.dropped);
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
                    part = &part[count..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(part.len()),
            }
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        if self.max_files == 1 {
            // Nothing older is kept: start over in place.
            self.file.set_len(0)?;
        } else {
            for number in (1..self.max_files - 1).rev() {
                rename_if_there(&numbered(&self.path, number), &numbered(&self.path, number + 1))?;
            }
            // Somebody else may have taken the file away: then there is nothing to keep.
            rename_if_there(&self.path, &numbered(&self.path, 1))?;
            self.file = append(&self.path)?;
        }
        self.size = self.file.metadata()?.len();
        Ok(())
    }
}

/// How many of these bytes go into a file with so much room: up to the last line end that fits; all room when the line
/// would not fit into an empty file either.
fn cut(bytes: &[u8], room: u64, empty: bool) -> usize {
    if bytes.len() as u64 <= room {
        return bytes.len();
    }
    let fits = &bytes[..room as usize];
    match fits.iter().rposition(|&byte| byte == b'\n') {
        Some(end) => end + 1,
        None if empty => fits.len(),
        // The line may have begun in this file: a longer one than a file is cut at the size, another begins anew.
        None if bytes.iter().position(|&byte| byte == b'\n').is_none() => fits.len(),
        None => 0,
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
