//! Landlock: what a process and all that it starts may reach, whoever it is; in kernels since 5.13, where it is switched on.
//! <https://docs.kernel.org/userspace-api/landlock.html>
//!
//! A ruleset says what is allowed, never what is not: to keep somebody out of a folder, everything beside the way to it is
//! allowed. Whoever is kept by one therefore does not see what is in the folders on that way (`/`, `/run`, …) but what was
//! there at the start, and by name. Processes outside of the ruleset cannot be looked into (`ptrace`, `/proc/PID/environ`),
//! and since version 6 not be signalled. Sockets with a path are not covered.
//!
//! The ruleset is made before the fork; between fork and exec are two calls ([`crate::spawn::Launch`]).

use std::fs::DirEntry;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use plimsoll_model::spec::Bounds;
use rustix::fs::{Mode, OFlags};

use crate::KernelError;

// The UAPI's `linux/landlock.h`.
const CREATE_RULESET_VERSION: u32 = 1;
const RULE_PATH_BENEATH: u32 = 1;
const EXECUTE: u64 = 1;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
/// All of the first version: what is above, and removing and making of every kind.
const FIRST: u64 = (1 << 13) - 1;
/// Renaming from one folder to another; without it none is allowed.
const REFER: u64 = 1 << 13;
const TRUNCATE: u64 = 1 << 14;
const SCOPE_SIGNAL: u64 = 1 << 1;

const LOOK: u64 = READ_FILE | READ_DIR | EXECUTE;
/// What a file can have.
const OF_FILES: u64 = READ_FILE | EXECUTE | WRITE_FILE | TRUNCATE;

/// Devices that everybody writes to.
const DEVICES: [&str; 7] =
    ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/ptmx"];

/// Of what is beside the way to a hidden folder so much in each is allowed; a start does not wait for more.
const MOST_BESIDE: usize = 10_000;

/// From this version on others cannot be signalled either.
pub const SIGNALS: u32 = 6;

#[repr(C)]
struct RulesetAttr {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

#[repr(C, packed)]
struct PathBeneathAttr {
    allowed_access: u64,
    parent_fd: i32,
}

/// The version of Landlock that is in force here; `None` where there is none.
#[must_use]
pub fn version() -> Option<u32> {
    // SAFETY: with this flag the call takes no structure and answers a number.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<RulesetAttr>(),
            0_usize,
            CREATE_RULESET_VERSION,
        )
    };
    u32::try_from(version).ok().filter(|&version| version > 0)
}

/// Rules that are ready to be put in force.
#[derive(Debug)]
pub struct Ruleset {
    ruleset: OwnedFd,
    handled: u64,
}

impl Ruleset {
    /// Makes the rules; `None` where the kernel has no Landlock.
    ///
    /// # Errors
    /// The kernel refuses them, or a folder of its own is not there.
    pub fn of(bounds: &Bounds) -> Result<Option<Self>, KernelError> {
        let Some(version) = version() else { return Ok(None) };
        Self::with(version, bounds).map(Some).map_err(|source| KernelError::Call { call: "landlock", source })
    }

    fn with(version: u32, bounds: &Bounds) -> io::Result<Self> {
        let handled = FIRST | if version >= 2 { REFER } else { 0 } | if version >= 3 { TRUNCATE } else { 0 };
        let scoped = if version >= SIGNALS { SCOPE_SIGNAL } else { 0 };
        let attr = RulesetAttr { handled_access_fs: handled, handled_access_net: 0, scoped };
        // A kernel takes no more of the structure than it knows, unless the rest is zero.
        let size = if scoped == 0 { size_of::<u64>() } else { size_of::<RulesetAttr>() };
        // SAFETY: the structure lives through the call and is as long as is said.
        let fd = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const attr, size, 0_u32) };
        let fd = RawFd::try_from(fd).ok().filter(|&fd| fd >= 0).ok_or_else(io::Error::last_os_error)?;
        // SAFETY: the kernel has just made this descriptor, close-on-exec, and nobody else knows it.
        let rules = Self { ruleset: unsafe { OwnedFd::from_raw_fd(fd) }, handled };
        for own in &bounds.own {
            rules.allow(own, handled)?;
        }
        for shown in bounds.shown.iter().filter(|shown| shown.exists()) {
            rules.allow(shown, LOOK)?;
        }
        for device in DEVICES.iter().map(Path::new).filter(|device| device.exists()) {
            rules.allow(device, READ_FILE | WRITE_FILE)?;
        }
        if Path::new("/dev/pts").exists() {
            rules.allow(Path::new("/dev/pts"), READ_FILE | READ_DIR | WRITE_FILE)?;
        }
        let hidden: Vec<PathBuf> = bounds.hidden.iter().filter_map(|path| path.canonicalize().ok()).collect();
        rules.allow_around(Path::new("/"), &hidden)?;
        Ok(rules)
    }

    /// Allows to look at everything but what is hidden, and the folders on the way there.
    fn allow_around(&self, folder: &Path, hidden: &[PathBuf]) -> io::Result<()> {
        if hidden.iter().any(|hidden| hidden == folder) {
            return Ok(());
        }
        if !hidden.iter().any(|hidden| hidden.starts_with(folder)) {
            return match self.allow(folder, LOOK) {
                // It went meanwhile, or nobody of ours may come so far.
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {
                    Ok(())
                }
                done => done,
            };
        }
        // What cannot be listed by us is not seen by those we start.
        let Ok(entries) = std::fs::read_dir(folder) else { return Ok(()) };
        let is_link = |entry: &DirEntry| entry.file_type().is_ok_and(|kind| kind.is_symlink());
        // A link is allowed with what it leads to.
        for entry in entries.flatten().filter(|entry| !is_link(entry)).take(MOST_BESIDE) {
            self.allow_around(&entry.path(), hidden)?;
        }
        Ok(())
    }

    fn allow(&self, path: &Path, access: u64) -> io::Result<()> {
        let parent = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let is_folder = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&parent)?.st_mode).is_dir();
        let allowed = access & self.handled & if is_folder { u64::MAX } else { OF_FILES };
        let attr = PathBeneathAttr { allowed_access: allowed, parent_fd: parent.as_raw_fd() };
        // SAFETY: both descriptors are open and the structure lives through the call.
        let done = unsafe {
            libc::syscall(
                libc::SYS_landlock_add_rule,
                self.ruleset.as_raw_fd(),
                RULE_PATH_BENEATH,
                &raw const attr,
                0_u32,
            )
        };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    pub(crate) fn as_raw(&self) -> RawFd {
        self.ruleset.as_raw_fd()
    }
}

/// Puts rules in force for this thread and whoever it starts, for ever; false with errno set. Two system calls, which may
/// stand between fork and exec. None of them gains anything by set-user-ID programs then.
pub(crate) fn put_in_force(ruleset: RawFd) -> bool {
    // SAFETY: both calls take numbers.
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::syscall(libc::SYS_landlock_restrict_self, ruleset, 0_u32) == 0
    }
}
