//! The death certificate: why a tree ended, how sure that is, and on what evidence. Its JSON is part of the contract.

use serde::{Deserialize, Serialize};

use crate::RunId;
use crate::sample::Sample;

/// The `schema` of every certificate of this shape.
pub const SCHEMA: &str = "plimsoll.certificate/1";

/// Which boundary held the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Boundary {
    /// Controllers of cgroup v1.
    Cgroup1,
    /// The unified hierarchy.
    Cgroup2,
    /// No group: sampling by a keeper.
    Watchdog,
}

impl Boundary {
    /// The three tiers, strongest first.
    pub const ALL: [Self; 3] = [Self::Cgroup2, Self::Cgroup1, Self::Watchdog];

    /// The word used in JSON, messages and tables.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cgroup1 => "cgroup1",
            Self::Cgroup2 => "cgroup2",
            Self::Watchdog => "watchdog",
        }
    }
}

/// Why the tree ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Code 0, and nothing below applies.
    Exited,
    /// Another code, and nothing below applies.
    Failed,
    /// SIGSEGV, SIGABRT, SIGBUS, SIGILL, SIGFPE, SIGSYS or SIGTRAP.
    Crashed,
    /// Its own line was met.
    MemoryLimit,
    /// An ancestor's limit (container, budget) was met.
    MemoryLimitParent,
    /// The machine ran out of memory.
    HostOom,
    /// `--timeout`.
    Timeout,
    /// `--idle-timeout`.
    IdleTimeout,
    /// Somebody asked for the end.
    Stopped,
    /// The budget needed the room.
    Evicted,
    /// The pool replaced it.
    Recycled,
    /// SIGKILL from outside, or by itself.
    ExternalKill,
    /// Another signal from outside, or by itself.
    ExternalSignal,
    /// It never ran.
    StartFailed,
    /// Nothing fits.
    Unknown,
}

impl Cause {
    /// Every cause, in the order of the contract's table.
    pub const ALL: [Self; 15] = [
        Self::Exited,
        Self::Failed,
        Self::Crashed,
        Self::MemoryLimit,
        Self::MemoryLimitParent,
        Self::HostOom,
        Self::Timeout,
        Self::IdleTimeout,
        Self::Stopped,
        Self::Evicted,
        Self::Recycled,
        Self::ExternalKill,
        Self::ExternalSignal,
        Self::StartFailed,
        Self::Unknown,
    ];

    /// The word used in JSON and messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exited => "exited",
            Self::Failed => "failed",
            Self::Crashed => "crashed",
            Self::MemoryLimit => "memory_limit",
            Self::MemoryLimitParent => "memory_limit_parent",
            Self::HostOom => "host_oom",
            Self::Timeout => "timeout",
            Self::IdleTimeout => "idle_timeout",
            Self::Stopped => "stopped",
            Self::Evicted => "evicted",
            Self::Recycled => "recycled",
            Self::ExternalKill => "external_kill",
            Self::ExternalSignal => "external_signal",
            Self::StartFailed => "start_failed",
            Self::Unknown => "unknown",
        }
    }
}

/// How sure the cause is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Confidence {
    /// A guess that fits.
    Possible,
    /// Evidence points here, some could not be read.
    Likely,
    /// Kernel evidence, or our own decision.
    Certain,
}

impl Confidence {
    /// The word used in JSON and messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Possible => "possible",
            Self::Likely => "likely",
            Self::Certain => "certain",
        }
    }
}

/// One piece of evidence: where it was read, and what it said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// A file's name (`memory.oom_control`), `kmsg`, `wait status`, or `plimsoll` for our own decisions.
    pub source: String,
    /// What it said, in one line.
    pub detail: String,
}

/// How the root ended: one of the two is set, or neither when it never ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Its exit code.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
}

/// One of the largest processes at the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Largest {
    /// Process id.
    pub pid: i32,
    /// Its command line, secrets redacted.
    pub command: String,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Steps below the root.
    pub depth: u32,
}

/// The tree's memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// The line, bytes; null is unlimited.
    pub limit_bytes: Option<u64>,
    /// The most that was seen, bytes.
    pub peak_bytes: u64,
    /// Swap allowed beside the line, bytes; null where no limit of swap alone is in force: it is unlimited, not counted, or
    /// (watchdog) what is swapped counts towards the line.
    pub swap_limit_bytes: Option<u64>,
    /// Robust slope over the last minute, bytes a second.
    pub growth_bytes_per_s: i64,
    /// The largest processes at the end, largest first.
    pub largest: Vec<Largest>,
    /// Samples of the last minute, oldest first, at most 60.
    #[serde(default)]
    pub last_minute: Vec<Sample>,
}

/// The tree's processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tree {
    /// The most processes at one time that were seen.
    pub peak_processes: u32,
    /// Processes that were killed inside for memory, while the tree lived or at its end.
    pub killed_inside: u64,
    /// Processes alive after the end; 0, or a bug of ours.
    pub survivors: u32,
}

/// The certificate of one end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// [`SCHEMA`].
    pub schema: String,
    /// Id of the run.
    pub id: RunId,
    /// Name of the run.
    pub name: String,
    /// Command and arguments, secrets redacted.
    pub command: Vec<String>,
    /// What held it.
    pub boundary: Boundary,
    /// RFC 3339, UTC.
    pub started_at: jiff::Timestamp,
    /// RFC 3339, UTC.
    pub ended_at: jiff::Timestamp,
    /// Milliseconds between the two, by the monotonic clock.
    pub runtime_ms: u64,
    /// How the root ended.
    pub exit: Exit,
    /// Why.
    pub cause: Cause,
    /// How sure.
    pub confidence: Confidence,
    /// On what grounds, the weightiest first.
    pub evidence: Vec<Evidence>,
    /// Memory.
    pub memory: Memory,
    /// Processes.
    pub tree: Tree,
    /// One sentence: what to do.
    pub advice: String,
}
