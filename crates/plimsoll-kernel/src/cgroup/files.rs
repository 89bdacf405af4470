//! Reading and writing a group's files; every error carries the path and the value.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use plimsoll_model::Strain;
use rustix::fs::{Mode, OFlags};

use crate::KernelError;
use crate::boundary::Cpu;
use crate::procfs::{flat_keyed, parse_limit_value, parse_pressure};

/// A group: its directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Dir(pub(super) PathBuf);

impl Dir {
    /// A file of this group.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Whole text of a file, without the newline at its end. Not for lists of processes: see [`Self::procs`].
    pub(super) fn read(&self, name: &str) -> Result<String, KernelError> {
        self.read_until(name, |count, room| count < room)
    }

    /// `is_last`: of a read's length and the room that it had, whether nothing follows.
    fn read_until(&self, name: &str, is_last: fn(usize, usize) -> bool) -> Result<String, KernelError> {
        let path = self.file(name);
        let mut text = String::new();
        let result = open(&path, OFlags::RDONLY).and_then(|fd| read_fd(&fd, &mut text, is_last));
        match result {
            Ok(()) => {
                text.truncate(text.trim_end().len());
                Ok(text)
            }
            Err(source) => Err(KernelError::Read { path, source }),
        }
    }

    /// Writes a value in one call, as these files ask for.
    pub(super) fn write(&self, name: &str, value: &str) -> Result<(), KernelError> {
        let path = self.file(name);
        open(&path, OFlags::WRONLY)
            .and_then(|fd| Ok(rustix::io::write(&fd, value.as_bytes())?))
            .map(|_| ())
            .map_err(|source| KernelError::Write { path, value: value.to_owned(), source })
    }

    /// Writes a number, reads it back, and insists that the kernel holds it. `grain` is what the kernel rounds down
    /// to (a page for memory, 1 else).
    pub(super) fn set(&self, name: &str, value: u64, grain: u64) -> Result<(), KernelError> {
        self.write(name, &value.to_string())?;
        let found = self.read(name)?;
        if found.parse::<u64>().is_ok_and(|held| held == value - value % grain) {
            Ok(())
        } else {
            Err(KernelError::NotInForce { path: self.file(name), value: value.to_string(), found })
        }
    }

    /// Writes a text, reads it back, and insists that the kernel holds it.
    pub(super) fn set_text(&self, name: &str, value: &str) -> Result<(), KernelError> {
        self.write(name, value)?;
        let found = self.read(name)?;
        if found == value {
            Ok(())
        } else {
            Err(KernelError::NotInForce { path: self.file(name), value: value.to_owned(), found })
        }
    }

    /// A limit as a number; `None` is unlimited (`max`, or v1's page-rounded largest number).
    pub(super) fn limit(&self, name: &str) -> Result<Option<u64>, KernelError> {
        let text = self.read(name)?;
        parse_limit_value(text.as_bytes()).map_err(|_| KernelError::Grammar { path: self.file(name), found: text })
    }

    /// A plain number.
    pub(super) fn number(&self, name: &str) -> Result<u64, KernelError> {
        let text = self.read(name)?;
        text.parse().map_err(|_| KernelError::Grammar { path: self.file(name), found: text })
    }

    /// One value of a file of `key value` lines.
    pub(super) fn keyed(&self, name: &str, key: &str) -> Result<u64, KernelError> {
        let text = self.read(name)? + "\n";
        flat_keyed(text.as_bytes(), key).ok_or_else(|| KernelError::Grammar { path: self.file(name), found: text })
    }

    /// Time in which all of the group's runnable processes waited for memory at once (`full` of `memory.pressure`);
    /// `None` where the kernel does not tell.
    fn stalled(&self) -> Option<Duration> {
        let text = self.read("memory.pressure").ok()? + "\n";
        Some(Duration::from_micros(parse_pressure(text.as_bytes())?.full?.total_us))
    }

    /// This group and those that the tree made below it, of nested runs for example.
    pub(super) fn with_groups_below(&self) -> Vec<Dir> {
        let mut all = vec![self.clone()];
        let mut next = 0;
        while let Some(dir) = all.get(next) {
            if dir.has_none_below() {
                next += 1;
                continue;
            }
            let entries = std::fs::read_dir(&dir.0).into_iter().flatten().flatten();
            let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            let below: Vec<Dir> = below.map(|entry| Dir(entry.path())).collect();
            all.extend(below);
            next += 1;
        }
        all
    }

    /// A directory with two links, its name and its own `.`, has none below, whose `..` would be a third.
    fn has_none_below(&self) -> bool {
        rustix::fs::stat(&self.0).is_ok_and(|stat| stat.st_nlink == 2)
    }

    /// Everyone in this group and below it; a directory that is gone has nobody.
    pub(super) fn all_procs(&self) -> Vec<i32> {
        self.with_groups_below().iter().flat_map(|dir| dir.procs().unwrap_or_default()).collect()
    }

    /// Processor time by this v2 group's `cpu.stat`, and the quota's periods by that of `quota`.
    pub(super) fn cpu(&self, quota: &Self) -> Option<Cpu> {
        let text = self.read("cpu.stat").ok()? + "\n";
        let used = Duration::from_micros(flat_keyed(text.as_bytes(), "usage_usec")?);
        let periods = if quota == self { text } else { quota.read("cpu.stat").unwrap_or_default() + "\n" };
        let of = |name: &str| flat_keyed(periods.as_bytes(), name).unwrap_or(0);
        Some(Cpu { used, periods: of("nr_periods"), throttled: of("nr_throttled") })
    }

    /// How this group fares, by these fields of its `memory.stat`, and by the pressure file of `pressure`.
    pub(super) fn strain(&self, anonymous: &str, files: [&str; 2], pressure: &Self) -> Option<Strain> {
        let text = self.read("memory.stat").ok()? + "\n";
        let field = |name: &str| flat_keyed(text.as_bytes(), name);
        Some(Strain {
            anonymous_bytes: field(anonymous)?,
            file_bytes: field(files[0])? + field(files[1])?,
            stalled: pressure.stalled()?,
        })
    }

    /// Pids of a `cgroup.procs`.
    pub(super) fn procs(&self) -> Result<Vec<i32>, KernelError> {
        let list = self.read_until("cgroup.procs", |_, _| false)?;
        Ok(list.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// Makes the directory; one that stands already is `Ok(false)`.
    pub(super) fn make(&self) -> Result<bool, KernelError> {
        match rustix::fs::mkdir(&self.0, Mode::from_raw_mode(0o755)) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::EXIST) => Ok(false),
            Err(error) => Err(KernelError::MakeGroup { path: self.0.clone(), source: error.into() }),
        }
    }

    /// Removes the directory; one that is gone already is fine.
    pub(super) fn remove(&self) -> io::Result<()> {
        match rustix::fs::rmdir(&self.0) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

pub(crate) fn open(path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())?)
}

/// What the kernel writes down in one piece ends with the first read that is not filled up; a list has an end of its own.
fn read_fd(fd: &OwnedFd, text: &mut String, is_last: fn(usize, usize) -> bool) -> io::Result<()> {
    let mut bytes = Vec::new();
    loop {
        let mut buffer = [0; 4096];
        let count = rustix::io::read(fd, &mut buffer[..])?;
        bytes.extend_from_slice(&buffer[..count]);
        if count == 0 || is_last(count, buffer.len()) {
            break;
        }
    }
    *text = String::from_utf8_lossy(&bytes).into_owned();
    Ok(())
}

/// A number file kept open, read anew with each call: one system call, no path to walk.
#[derive(Debug)]
pub(crate) struct Gauge(OwnedFd);

impl Gauge {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        open(path, OFlags::RDONLY).map(Self)
    }

    /// The number now; `None` once the group is gone.
    pub(crate) fn read(&self) -> Option<u64> {
        let mut buffer = [0; 32];
        let count = rustix::io::pread(&self.0, &mut buffer, 0).ok()?;
        std::str::from_utf8(&buffer[..count]).ok()?.trim().parse().ok()
    }
}
