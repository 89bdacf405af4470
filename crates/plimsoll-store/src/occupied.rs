//! One `up` a state directory: whoever has it holds a lock on `up.lock` in it, which goes with the last of its processes.
//!
//! The lock belongs to the open file, which a fork inherits and what is executed does not (close-on-exec). The pid in the
//! file is for people; nothing is decided by it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

/// The file's name in the state directory.
const LOCK: &str = "up.lock";

/// Why a state directory is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum OccupiedError {
    /// Somebody has it.
    #[error("the state directory {} is in use by another plimsoll up{}", dir.display(), pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// Who, as they wrote down.
        pid: Option<i32>,
    },
    /// The file could not be worked on.
    #[error("cannot lock {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A state directory that is ours for as long as this, or a copy of it in a forked process, lives.
#[derive(Debug)]
pub struct Occupied(File);

impl Occupied {
    /// Takes the directory, which has to exist, at once or not at all.
    ///
    /// # Errors
    /// [`OccupiedError`].
    pub fn take(dir: &Path) -> Result<Self, OccupiedError> {
        let path = dir.join(LOCK);
        let failed = |source: io::Error| OccupiedError::Io { path: path.clone(), source };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(&path).map_err(failed)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut text = [0; 16];
                let length = file.read_at(&mut text, 0).unwrap_or(0);
                let pid = str::from_utf8(&text[..length]).ok().and_then(|text| text.trim().parse().ok());
                return Err(OccupiedError::InUse { dir: dir.to_owned(), pid });
            }
            Err(error) => return Err(failed(error.into())),
        }
        let ours = Self(file);
        ours.write_pid();
        Ok(ours)
    }

    /// Writes down who we are: again after a fork whose parent goes.
    pub fn write_pid(&self) {
        // A disk that is full names nobody, and the lock holds all the same.
        let _ = self.0.set_len(0);
        let _ = self.0.write_at(format!("{}\n", std::process::id()).as_bytes(), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificates::tests::TempDir;

    #[test]
    fn one_at_a_time_and_the_other_one_is_named() {
        let temp = TempDir::new("occupied");
        let first = Occupied::take(temp.path()).unwrap();
        let told = Occupied::take(temp.path()).unwrap_err().to_string();
        assert!(told.ends_with(&format!("is in use by another plimsoll up (pid {})", std::process::id())), "{told}");
        drop(first);
        drop(Occupied::take(temp.path()).unwrap());
        std::fs::write(temp.path().join(LOCK), "what").unwrap();
        let held = Occupied::take(temp.path()).unwrap();
        held.0.set_len(0).unwrap();
        let told = Occupied::take(temp.path()).unwrap_err().to_string();
        assert!(told.ends_with("is in use by another plimsoll up"), "{told}");
        assert!(Occupied::take(Path::new("/nonexistent")).is_err());
    }
}
