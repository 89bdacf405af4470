//! What was asked for: one command, its limits, what to do at the line, where its output goes.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// The limits of one tree. `None` is "not asked for", which leaves the kernel's own default.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Limits {
    /// Hard line of RAM, bytes (`--memory`).
    pub memory: Option<u64>,
    /// RAM and swap together, bytes; equal to `memory` means no swap (`--memory-swap`).
    pub memory_swap: Option<u64>,
    /// RAM kept for the tree as long as it can be, bytes (`--memory-reservation`).
    pub memory_reservation: Option<u64>,
    /// RAM above which the kernel slows the tree down and reclaims, bytes (`--memory-high`).
    pub memory_high: Option<u64>,
    /// Processor time in millionths of a core: 1.5 cores are 1,500,000 (`--cpus`).
    pub cpu_micros: Option<u64>,
    /// Processes and threads (`--pids-limit`).
    pub pids: Option<u64>,
    /// -999 to 1000, added to the badness of every process of the tree (`--oom-score-adj`).
    pub oom_score_adj: Option<i16>,
}

/// Who goes when the line is met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnLimit {
    /// Everything; the run ends with 137.
    #[default]
    Tree,
    /// The largest process below the root; the root sees its child die and decides.
    Largest,
}

/// Which boundary is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BoundaryChoice {
    /// The strongest one that this machine gives us.
    #[default]
    Auto,
    /// A kernel group, v2 or v1.
    Cgroup,
    /// No group: a keeper that samples.
    Watchdog,
}

/// What the log does when the disk is slower than the child.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overflow {
    /// The child waits (nothing is lost).
    #[default]
    Block,
    /// Bytes are dropped, and a line says how many.
    Drop,
}

/// Where a tree's output is logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSpec {
    /// The current file; rotated ones are `FILE.1`, `FILE.2`, …
    pub file: PathBuf,
    /// Bytes at which the file is rotated.
    pub max_size: u64,
    /// Files kept, the current one included; at least 1.
    pub max_files: u32,
    /// What happens when the disk is slower than the child.
    pub overflow: Overflow,
}

/// What a tree may reach of the file system, where the kernel can see to that (Landlock).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bounds {
    /// Folders that it may do everything in: nowhere else can it write.
    pub own: Vec<PathBuf>,
    /// Folders that it may look at, although they are in hidden ones.
    pub shown: Vec<PathBuf>,
    /// Folders that it may not look at.
    pub hidden: Vec<PathBuf>,
}

/// One run.
#[derive(Debug, Clone, PartialEq)]
pub struct RunSpec {
    /// What it is called in certificates; by default the command's file name.
    pub name: String,
    /// The command and its arguments; never empty.
    pub command: Vec<OsString>,
    /// Variables added to ours, in order.
    pub env: Vec<(OsString, OsString)>,
    /// Working directory; `None` is ours.
    pub workdir: Option<PathBuf>,
    /// Limits of the whole tree.
    pub limits: Limits,
    /// Who goes at the line.
    pub on_limit: OnLimit,
    /// Which boundary is asked for.
    pub boundary: BoundaryChoice,
    /// Grace between SIGTERM and SIGKILL.
    pub stop_timeout: Duration,
    /// Longest time the tree may run.
    pub timeout: Option<Duration>,
    /// Longest time without a byte on stdin, stdout or stderr.
    pub idle_timeout: Option<Duration>,
    /// The log, if output is to be logged.
    pub log: Option<LogSpec>,
    /// What it may reach; `None` is what its user may.
    pub bounds: Option<Bounds>,
}
