//! What was measured of a tree at one instant.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// One process of a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Process id.
    pub pid: i32,
    /// Start time in clock ticks since boot (field 22 of `/proc/PID/stat`): with `pid` it names a process for good.
    pub start_ticks: u64,
    /// Parent's pid, as the kernel tells it now.
    pub parent: i32,
    /// Steps below the root of the tree; the root is 0, adopted orphans are 1.
    pub depth: u32,
    /// The kernel's short name (`comm`), at most 15 bytes.
    pub name: String,
    /// Memory in bytes: PSS and swapped PSS where measured, else an upper estimate.
    pub memory_bytes: u64,
}

/// A whole tree at one instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Sample {
    /// Milliseconds since the tree was started.
    pub at_ms: u64,
    /// Memory of the tree, bytes: the group's charge, or the sum over its members.
    pub memory_bytes: u64,
    /// Processes in the tree.
    pub processes: u32,
}

/// How a group at its line fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Strain {
    /// Bytes that only swap could take.
    pub anonymous_bytes: u64,
    /// Bytes of files, which the kernel can drop and read again.
    pub file_bytes: u64,
    /// Time in which all of its runnable processes waited for memory at once, so far.
    pub stalled: Duration,
}
