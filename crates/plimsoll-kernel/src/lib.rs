//! The kernel's side: everything that touches `/proc`, `/sys`, a pid, a signal or the clock.
//!
//! Data flows one way. [`cgroup::probe`] says which boundary this machine gives us; [`boundary::Boundary`] makes the
//! group (or none), [`spawn`] starts the root of a tree inside it, [`tree::Tree`] knows its members and measures them,
//! and the boundary reads the counters, kills until empty and removes what it made. Nothing here decides: the core
//! judges, the runtime schedules.
//!
//! This is the only crate with `unsafe`; each block says why it is sound.

pub mod boundary;
pub mod busy;
pub mod cgroup;
pub mod clock;
pub mod host;
pub mod kmsg;
pub mod landlock;
pub mod procfs;
pub mod pty;
pub mod resident;
pub mod signal;
pub mod spawn;
pub mod tree;

use std::path::PathBuf;

/// An operation on a file of the kernel that failed, with the path and the value.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel answered.
        source: std::io::Error,
    },
    /// A file could not be written.
    #[error("cannot write `{value}` to {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What was written.
        value: String,
        /// What the kernel answered.
        source: std::io::Error,
    },
    /// The kernel took a value and holds another one.
    #[error("{} holds `{found}` after `{value}` was written: the limit is not in force", path.display())]
    NotInForce {
        /// The file.
        path: PathBuf,
        /// What was written.
        value: String,
        /// What was read back.
        found: String,
    },
    /// A file said something that is not in its grammar.
    #[error("{} says `{found}`, which is not understood", path.display())]
    Grammar {
        /// The file.
        path: PathBuf,
        /// What was read.
        found: String,
    },
    /// A group could not be made.
    #[error("cannot make the group {}: {source}", path.display())]
    MakeGroup {
        /// The group's directory.
        path: PathBuf,
        /// What the kernel answered.
        source: std::io::Error,
    },
    /// A system call failed.
    #[error("{call} failed: {source}")]
    Call {
        /// The call's name.
        call: &'static str,
        /// What the kernel answered.
        source: std::io::Error,
    },
}

impl KernelError {
    pub(crate) fn call(call: &'static str) -> Self {
        Self::Call { call, source: std::io::Error::last_os_error() }
    }
}
