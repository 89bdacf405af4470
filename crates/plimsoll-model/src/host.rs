//! What was found on this machine: the facts that `doctor` judges. Gathered by the kernel's side, never changed in
//! between. `None` is "could not be read, or is not there".

use std::path::PathBuf;
use std::time::Duration;

use crate::Boundary;
use crate::ending::OomKill;

/// All facts of one look at the machine.
#[derive(Debug, Clone, PartialEq)]
pub struct HostFacts {
    /// The kernel's release, such as `6.12.48-cloud-amd64`.
    pub kernel: String,
    /// Processors that we may run on.
    pub processors: u32,
    /// We are root (of our user namespace).
    pub is_root: bool,
    /// The version of Landlock that is in force.
    pub landlock: Option<u32>,
    /// The boundary that a tree gets.
    pub tier: Tier,
    /// The container we are in.
    pub container: Option<Container>,
    /// The machine's memory.
    pub memory: HostMemory,
    /// The tightest limited group that we are in: a container's, a budget's, a service's.
    pub group: Option<GroupMemory>,
    /// `vm.overcommit_memory` and what belongs to it.
    pub overcommit: Option<Overcommit>,
    /// `vm.panic_on_oom` is set: the machine panics where it would kill.
    pub panic_on_oom: bool,
    /// Our own `oom_score_adj`, which every tree inherits.
    pub oom_score_adj: Option<i16>,
    /// Stall figures; `None` when the kernel does not keep them.
    pub pressure: Option<Stalls>,
    /// Tasks that run or wait for a disk, averaged over a minute.
    pub load: Option<f64>,
    /// Percent of processor time that was idle and waited for a disk, over the time of this look.
    pub io_wait_percent: Option<f64>,
    /// Tasks (threads) there are and may be.
    pub tasks: Option<Tasks>,
    /// The kernel's OOM kills.
    pub oom: OomHistory,
    /// Ended processes that stayed unreaped during this look, by parent, most first.
    pub zombies: Vec<Zombies>,
    /// Processes that hold a tenth of memory or more, largest first.
    pub large: Vec<ProcessFact>,
    /// Agents and browsers of at least an hour that lost their parent, largest first.
    pub orphans: Vec<ProcessFact>,
    /// What a former Plimsoll left behind.
    pub leftovers: Vec<Leftover>,
    /// The disk that holds the state directory.
    pub state_disk: Option<Disk>,
}

/// The boundary that a tree gets here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tier {
    /// Which one.
    pub boundary: Boundary,
    /// Why this one and no stronger one, in one line.
    pub reason: String,
    /// What is mounted: `v2`, `v1`, `hybrid` or `none`.
    pub layout: String,
    /// The kernel counts swap against groups.
    pub swap_accounting: bool,
    /// Options of `run` that this tier refuses, each with the reason.
    pub refused: Vec<(String, String)>,
}

/// The container around us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// `docker`, `podman`, `kubernetes`, `containerd`, `lxc`, `systemd-nspawn`, or `container` when nobody says.
    pub kind: String,
    /// What gave it away.
    pub hint: String,
}

/// The machine's memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HostMemory {
    /// All of it.
    pub total: u64,
    /// What new work could have without swapping.
    pub available: u64,
    /// Swap there is.
    pub swap_total: u64,
    /// Swap in use.
    pub swap_used: u64,
}

/// A limited group's memory, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupMemory {
    /// Its directory.
    pub path: PathBuf,
    /// Its limit.
    pub limit: u64,
    /// What is charged, without file pages that nobody used lately (as `docker stats` shows it).
    pub used: u64,
    /// Swap allowed on top of `limit`; `None` is unlimited, or not counted.
    pub swap_limit: Option<u64>,
    /// Times a process of it was killed for memory.
    pub oom_kills: Option<u64>,
}

/// `vm.overcommit_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overcommit {
    /// 0 by estimate, 1 always, 2 never.
    pub mode: u8,
    /// Bytes promised.
    pub committed: u64,
    /// Bytes that may be promised in mode 2.
    pub limit: u64,
}

/// Pressure, in percent of the last ten seconds.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Stalls {
    /// Some task waited for memory.
    pub memory_some: f32,
    /// All tasks waited for memory.
    pub memory_full: f32,
    /// Some task waited for a disk.
    pub io_some: f32,
}

/// Tasks (processes and threads).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tasks {
    /// There are.
    pub now: u64,
    /// There may be, of machine and container the smaller.
    pub limit: u64,
}

/// OOM kills.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OomHistory {
    /// Those that the kernel's log still holds, newest first, with their age; `None` when it is not readable.
    pub kills: Option<Vec<(Duration, OomKill)>>,
    /// All since boot, groups' kills included.
    pub since_boot: Option<u64>,
}

/// Zombies of one parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zombies {
    /// Who should have reaped them.
    pub parent: i32,
    /// His command and arguments, as they are: secrets included.
    pub parent_command: Vec<String>,
    /// How many.
    pub count: u32,
    /// Name of one of them.
    pub example: String,
}

/// One process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessFact {
    /// Process id.
    pub pid: i32,
    /// Parent's pid.
    pub parent: i32,
    /// Command and arguments, as they are: secrets included.
    pub command: Vec<String>,
    /// Bytes: its proportional share and swap where that could be read, else what is resident. An orphan's includes
    /// all that descend from it.
    pub memory: u64,
    /// Time since its start.
    pub age: Duration,
}

/// Something that a former Plimsoll left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// A group's directory, a registered run, or the id that processes carry.
    pub what: String,
    /// Processes alive in it.
    pub pids: Vec<i32>,
    /// Its groups' directories, those that have to be removed first before the others.
    pub groups: Vec<PathBuf>,
    /// The registry knows the run, so that any verb sweeps it.
    pub registered: bool,
}

/// Space on a disk, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The directory that was asked about.
    pub path: PathBuf,
    /// Room that we may use.
    pub available: u64,
    /// All of it.
    pub total: u64,
}
