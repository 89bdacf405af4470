//! Reading the files: one open, one read (or as many as it takes), one close; paths on the stack.

use std::ffi::CStr;
use std::io::Write;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, RawDir, openat};
use rustix::io::Errno;

use super::{Stat, number, parse_stat};

/// A file that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot read {path}: {source}", path = path.display())]
pub struct ReadError {
    /// Which one.
    pub path: PathBuf,
    /// Why.
    pub source: Errno,
}

/// Reads a whole file.
///
/// # Errors
/// [`ReadError`] with the path.
pub fn read_file(path: impl AsRef<Path>) -> Result<Vec<u8>, ReadError> {
    let path = path.as_ref();
    let mut text = Vec::new();
    let read = openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).and_then(|fd| drain(&fd, &mut text));
    read.map_err(|source| ReadError { path: path.to_owned(), source })?;
    Ok(text)
}

/// Reads a file with a single read, into a buffer that is large enough for it: what does not fit is cut off.
///
/// # Errors
/// The kernel's; the path is the caller's to name.
pub fn read_into<'b>(path: &CStr, buffer: &'b mut [u8]) -> Result<&'b [u8], Errno> {
    let fd = openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let length = retry(|| rustix::io::read(&fd, &mut *buffer))?;
    Ok(&buffer[..length])
}

/// Reads `/proc/PID/ENTRY` with a single read. 1 KiB is enough for `stat` and `statm`, 4 KiB for `smaps_rollup` and
/// `status`.
///
/// # Errors
/// `ENOENT` or `ESRCH` when there is no such process (any more), `EACCES` when it is not ours to read, else the
/// kernel's.
pub fn read_of<'b>(pid: i32, entry: &str, buffer: &'b mut [u8]) -> Result<&'b [u8], Errno> {
    let mut path = [0; PATH];
    read_into(path_of(pid, entry, &mut path)?, buffer)
}

/// Reads `/proc/PID/ENTRY` to its end into `text`, whose old contents go: for files longer than a page (`children`,
/// `environ`, `cmdline`).
///
/// # Errors
/// As [`read_of`].
pub fn read_all_of(pid: i32, entry: &str, text: &mut Vec<u8>) -> Result<(), Errno> {
    let mut path = [0; PATH];
    let path = path_of(pid, entry, &mut path)?;
    let fd = openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    drain(&fd, text)
}

/// Reads a process's environment as it was at its last exec, entries ended by NUL, into `text`.
///
/// Between taking its new memory and writing its arguments there, a process on its way through exec shows neither
/// arguments nor environment. It is asked again until it is through, so that "has no such variable" can be relied on.
///
/// # Errors
/// As [`read_of`].
pub fn read_environ_of(pid: i32, text: &mut Vec<u8>) -> Result<(), Errno> {
    for _ in 0..EXEC_LOOKS {
        read_all_of(pid, "environ", text)?;
        if !text.is_empty() || !is_within_exec(pid) {
            break;
        }
        std::thread::sleep(std::time::Duration::from_micros(200));
    }
    Ok(())
}

/// Looks at a process in exec before it counts as one without environment: a twentieth of a second in all. A program may
/// erase its arguments and have no environment, and looks the same for ever.
const EXEC_LOOKS: u32 = 250;

fn is_within_exec(pid: i32) -> bool {
    let mut buffer = [0; 1024];
    let has_memory = read_of(pid, "stat", &mut buffer)
        .ok()
        .and_then(parse_stat)
        .is_some_and(|stat| !stat.kernel_thread && !stat.is_ended());
    has_memory && read_of(pid, "cmdline", &mut buffer).is_ok_and(<[u8]>::is_empty)
}

/// Room for `/proc/PID/task/TID/children` and the like.
const PATH: usize = 64;

fn path_of<'b>(pid: i32, entry: &str, buffer: &'b mut [u8; PATH]) -> Result<&'b CStr, Errno> {
    let mut rest = &mut buffer[..];
    write!(rest, "/proc/{pid}/{entry}\0").map_err(|_| Errno::NAMETOOLONG)?;
    CStr::from_bytes_until_nul(buffer).map_err(|_| Errno::INVAL)
}

fn drain(fd: &impl std::os::fd::AsFd, text: &mut Vec<u8>) -> Result<(), Errno> {
    text.clear();
    loop {
        text.reserve(4096);
        if retry(|| rustix::io::read(fd, rustix::buffer::spare_capacity(text)))? == 0 {
            return Ok(());
        }
    }
}

fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// Calls `visit` with the pid of every process that `/proc` shows, in rising order; one that ends or starts meanwhile
/// may or may not be among them.
///
/// # Errors
/// The kernel's, for `/proc`.
pub fn for_each_pid(mut visit: impl FnMut(i32)) -> Result<(), Errno> {
    let fd = openat(CWD, c"/proc", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut buffer = [MaybeUninit::uninit(); 16384];
    let mut entries = RawDir::new(&fd, &mut buffer);
    while let Some(entry) = entries.next() {
        if let Some(pid) = number(entry?.file_name().to_bytes()).and_then(|pid| i32::try_from(pid).ok()) {
            visit(pid);
        }
    }
    Ok(())
}

/// A process that cannot be mistaken for another one: its pid and when it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Process {
    /// Process id.
    pub pid: i32,
    /// Start, clock ticks since boot.
    pub start_ticks: u64,
}

impl Process {
    /// Whoever has this pid now.
    ///
    /// # Errors
    /// As [`read_of`].
    pub fn of(pid: i32) -> Result<Self, Errno> {
        stat_of(pid, |stat| Self { pid, start_ticks: stat.start_ticks })
    }

    /// Its state (`R`, `S`, `Z`, …); `None` when it is gone, or when its pid belongs to somebody else by now.
    ///
    /// # Errors
    /// Those of [`read_of`] that do not mean "gone".
    pub fn state(self) -> Result<Option<char>, Errno> {
        match stat_of(self.pid, |stat| (stat.start_ticks, stat.state)) {
            Ok((start, state)) => Ok((start == self.start_ticks).then_some(state)),
            Err(Errno::NOENT | Errno::SRCH) => Ok(None),
            Err(other) => Err(other),
        }
    }

    /// It is there and has not ended: a zombie is not alive. When that cannot be found out it counts as alive.
    #[must_use]
    pub fn is_alive(self) -> bool {
        !matches!(self.state(), Ok(None | Some('Z' | 'X' | 'x')))
    }
}

/// Reads and parses one `stat`.
fn stat_of<T>(pid: i32, take: impl FnOnce(Stat<'_>) -> T) -> Result<T, Errno> {
    let mut buffer = [0; 1024];
    parse_stat(read_of(pid, "stat", &mut buffer)?).map(take).ok_or(Errno::INVAL)
}

/// Bytes in a page.
#[must_use]
pub fn page_size() -> u64 {
    rustix::param::page_size() as u64
}

/// Clock ticks in a second, the unit of `start_ticks`.
#[must_use]
pub fn ticks_per_second() -> u64 {
    rustix::param::clock_ticks_per_second()
}
