//! All that is known when a tree has ended: the facts from which the verdict is drawn.
//!
//! Gathered by the kernel's side before the group is removed, judged by the core, never changed in between.

use std::time::Duration;

/// How the root of the tree ended, from its wait status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootExit {
    /// It called exit with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
    /// It never ran: the errno of exec, or of the step before it.
    NotStarted {
        /// The error number.
        errno: i32,
    },
    /// Nobody was left to wait for it.
    Unknown,
}

/// A decision of ours that ended the tree, with its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The tree's own line was met.
    MemoryLimit {
        /// What was measured, bytes.
        usage: u64,
        /// The line, bytes.
        limit: u64,
    },
    /// The limit of the container or budget around us was about to be met.
    MemoryLimitParent {
        /// Whose limit it is: a path or "container".
        whose: String,
        /// What was measured there, bytes.
        usage: u64,
        /// That limit, bytes.
        limit: u64,
    },
    /// `--timeout` was over.
    Timeout(Duration),
    /// `--idle-timeout` was over.
    IdleTimeout(Duration),
    /// Somebody asked for the end; who and how.
    Stopped(String),
    /// A process of Plimsoll's own was killed, and the tree was ended with it; which and how.
    Bereft(String),
    /// The budget needed the room.
    Evicted(String),
    /// The pool replaced it.
    Recycled(String),
}

/// A counter before and after the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delta {
    /// At the start.
    pub before: u64,
    /// At the end.
    pub after: u64,
}

impl Delta {
    /// How far the counter moved; 0 when it went backwards.
    #[must_use]
    pub fn moved(self) -> u64 {
        self.after.saturating_sub(self.before)
    }
}

/// The memory counters of one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupCounters {
    /// The group's path below the hierarchy's root, as kmsg names it.
    pub path: String,
    /// The file the kills were read from: `memory.oom_control` or `memory.events`.
    pub source: &'static str,
    /// Processes of this group (v1) or below it (v2) killed for memory.
    pub oom_kill: Delta,
    /// Times this very group's limit stopped an allocation for good: `oom` of `memory.events.local` (v2). v1 does not
    /// count it.
    pub oom: Option<Delta>,
    /// Times the limit was hit at all: `memory.failcnt` (v1) or `max` of `memory.events.local` (v2).
    pub limit_hits: Option<Delta>,
    /// The limit in force, bytes; `None` is unlimited.
    pub limit: Option<u64>,
    /// The most that was charged, bytes, where the kernel tells.
    pub peak: Option<u64>,
}

/// Whose limit an OOM kill was for, from kmsg.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OomScope {
    /// A group's limit (`CONSTRAINT_MEMCG`).
    Group,
    /// The whole machine (`CONSTRAINT_NONE`, `global_oom`), or one of its nodes or cpusets.
    Host,
}

/// One `oom-kill:` line of kmsg.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OomKill {
    /// Whose limit it was for.
    pub scope: OomScope,
    /// The group whose limit was hit (`oom_memcg`).
    pub oom_group: Option<String>,
    /// The victim's group (`task_memcg`).
    pub task_group: Option<String>,
    /// The victim's short name.
    pub task: String,
    /// The victim's pid, in the root pid namespace.
    pub pid: i32,
}

/// A member that we killed for memory while the tree went on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Victim {
    /// Its pid.
    pub pid: i32,
    /// Its short name.
    pub name: String,
    /// What it held, bytes.
    pub memory_bytes: u64,
    /// For whose line: one of the two decisions about memory.
    pub reason: Decision,
}

/// A signal that was sent to Plimsoll and passed on to the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PassedOn {
    /// Its number.
    pub signal: i32,
    /// Who sent it; 0 is the kernel, for the terminal.
    pub sender: i32,
}

/// The facts of one ending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// How the root ended.
    pub exit: RootExit,
    /// The interpreter or loader that the program asked for, when it was never executed for want of it.
    pub interpreter: Option<String>,
    /// Our own decision, when it was one.
    pub decision: Option<Decision>,
    /// Members that we killed before the end.
    pub victims: Vec<Victim>,
    /// The last signal that came through us.
    pub passed_on: Option<PassedOn>,
    /// The tree's own group, on cgroup tiers.
    pub own: Option<GroupCounters>,
    /// The groups above it, nearest first, as far as they are readable.
    pub ancestors: Vec<GroupCounters>,
    /// The kernel's OOM lines since the start; `None` when kmsg is not readable.
    pub kmsg: Option<Vec<OomKill>>,
    /// The machine's `oom_kill` of `/proc/vmstat`; `None` when it is not readable.
    pub host_oom_kill: Option<Delta>,
    /// Pids that were ever seen in the tree, the root first; bounded, so a hint and no proof.
    pub pids: Vec<i32>,
    /// Descriptions of what could not be read.
    pub unreadable: Vec<String>,
}
