//! Controllers of the unified hierarchy.

use std::path::{Path, PathBuf};
use std::time::Duration;

use plimsoll_model::ending::{Delta, GroupCounters};
use plimsoll_model::{Limits, OnLimit, Strain};
use rustix::fs::OFlags;

use super::files::{Dir, Gauge, open};
use super::probe::Parent;
use super::v1::make_below_parent;
use crate::KernelError;
use crate::boundary::Cpu;

/// Length of a period of the CPU quota, microseconds: the kernel's own default.
pub(super) const CPU_PERIOD_US: u64 = 100_000;

/// Quota a period for so many millionths of a core; the kernel's least is 1 ms.
pub(super) fn cpu_quota_us(micros: u64) -> u64 {
    (micros * CPU_PERIOD_US / 1_000_000).max(1_000)
}

/// One tree's group.
#[derive(Debug)]
pub struct Group {
    dir: Dir,
    path: String,
    usage: Gauge,
    limit: Option<u64>,
    ancestors: Vec<(Dir, String, Option<Events>)>,
    /// Most bytes that the kernel told of, where it has `memory.peak`.
    leaf: Option<Leaf>,
}

/// Our own process was moved into a leaf below a delegated group, so that its controllers could be enabled.
#[derive(Debug)]
pub struct Leaf {
    delegated: Dir,
    leaf: Dir,
}

/// Counters of a `memory.events` and its `.local`.
#[derive(Debug, Clone, Copy)]
struct Events {
    oom_kill: u64,
    own_oom: u64,
    own_max: u64,
}

impl Events {
    fn read(dir: &Dir) -> Result<Self, KernelError> {
        Ok(Self {
            oom_kill: dir.keyed("memory.events", "oom_kill")?,
            own_oom: dir.keyed("memory.events.local", "oom")?,
            own_max: dir.keyed("memory.events.local", "max")?,
        })
    }
}

/// The directory that a run below this parent would make.
#[must_use]
pub fn planned(parent: &Parent, id: &str) -> Vec<PathBuf> {
    match parent {
        Parent::V2 { base, .. } => vec![base.join(id)],
        Parent::V1 { .. } => Vec::new(),
    }
}

const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];

impl Group {
    /// Makes the group and puts the limits in force, each read back. On an error nothing is left behind.
    ///
    /// # Errors
    /// [`KernelError`] names the file and the value that was refused.
    pub fn make(parent: &Parent, id: &str, limits: &Limits, on_limit: OnLimit) -> Result<Self, KernelError> {
        let Parent::V2 { base, path, ancestors, delegated } = parent else {
            return Err(KernelError::Call {
                call: "a v2 group below a v1 parent",
                source: std::io::ErrorKind::InvalidInput.into(),
            });
        };
        let base = Dir(base.clone());
        let leaf = match delegated {
            Some(delegated) => enter_leaf(delegated)?,
            None => None,
        };
        let dir = Dir(base.0.join(id));
        let result = (|| {
            make_below_parent(&Dir(base.0.join(id)))?;
            enable(&base)?;
            set_limits(&dir, limits, on_limit)?;
            let usage_path = dir.file("memory.current");
            let usage =
                Gauge::open(&usage_path).map_err(|source| KernelError::Read { path: usage_path.clone(), source })?;
            let ancestors = ancestors
                .iter()
                .map(|(dir, path)| {
                    let dir = Dir(dir.clone());
                    let before = Events::read(&dir).ok();
                    (dir, path.clone(), before)
                })
                .collect();
            Ok(Self {
                usage,
                path: format!("{}/{id}", path.trim_end_matches('/')),
                limit: limits.memory,
                ancestors,
                dir: dir.clone(),
                leaf: None,
            })
        })();
        match result {
            Ok(group) => Ok(Self { leaf, ..group }),
            Err(error) => {
                let _ = dir.remove();
                let _ = base_remove(&base);
                if let Some(leaf) = leaf {
                    leaf.leave();
                }
                Err(error)
            }
        }
    }

    /// The directory that the root is cloned into.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.dir.0
    }

    /// Bytes charged now.
    #[must_use]
    pub fn usage(&self) -> Option<u64> {
        self.usage.read()
    }

    /// How the group fares with what the tree made below it.
    #[must_use]
    pub fn strain(&self) -> Option<Strain> {
        self.dir.strain("anon", ["inactive_file", "active_file"], &self.dir)
    }

    /// Processor time, with the periods of the quota where there is one.
    #[must_use]
    pub fn cpu(&self) -> Option<Cpu> {
        self.dir.cpu(&self.dir)
    }

    /// Asks the kernel to take back so much: it may be less, which is no error.
    pub fn reclaim(&self, bytes: u64) {
        let _ = self.dir.write("memory.reclaim", &bytes.to_string());
    }

    /// Processes and threads now.
    #[must_use]
    pub fn processes(&self) -> Option<u64> {
        self.dir.number("pids.current").ok()
    }

    /// Most processes and threads at one time, where the kernel tells (6.1 and later).
    #[must_use]
    pub fn peak_processes(&self) -> Option<u64> {
        self.dir.number("pids.peak").ok()
    }

    /// Time the group was kept from running by its quota.
    #[must_use]
    pub fn throttled(&self) -> Option<Duration> {
        Some(Duration::from_micros(self.dir.keyed("cpu.stat", "throttled_usec").ok()?))
    }

    /// Changes the memory limit, with no swap beyond it; read back. What is held above it is reclaimed, or killed.
    ///
    /// # Errors
    /// [`KernelError`] names the file and the value.
    pub fn change_memory(&self, bytes: u64, on_limit: OnLimit) -> Result<(), KernelError> {
        let limits = Limits { memory: Some(bytes), memory_swap: Some(bytes), ..Limits::default() };
        set_limits(&self.dir, &limits, on_limit)
    }

    /// A descriptor that polls POLLPRI when members waited for memory for a tenth of a second within one, at most once a
    /// second. Without PSI there is none.
    ///
    /// # Errors
    /// The file that could not be opened, or took no trigger.
    pub fn pressure_events(&self) -> Result<std::os::fd::OwnedFd, KernelError> {
        let path = self.dir.file("memory.pressure");
        let file = open(&path, OFlags::RDWR | OFlags::NONBLOCK)
            .map_err(|source| KernelError::Read { path: path.clone(), source })?;
        let trigger = "some 100000 1000000";
        rustix::io::write(&file, trigger.as_bytes()).map_err(|error| KernelError::Write {
            path,
            value: trigger.to_owned(),
            source: error.into(),
        })?;
        Ok(file)
    }

    /// A descriptor that polls POLLPRI when one of the group's memory events happened.
    ///
    /// # Errors
    /// The file that could not be opened.
    pub fn oom_events(&self) -> Result<std::os::fd::OwnedFd, KernelError> {
        let path = self.dir.file("memory.events");
        open(&path, OFlags::RDONLY).map_err(|source| KernelError::Read { path, source })
    }

    /// OOM kills in this group so far.
    #[must_use]
    pub fn oom_kills(&self) -> Option<u64> {
        self.dir.keyed("memory.events", "oom_kill").ok()
    }

    /// The group's own counters; they began at 0 when it was made.
    ///
    /// # Errors
    /// The file that could not be read.
    pub fn counters(&self) -> Result<GroupCounters, KernelError> {
        let events = Events::read(&self.dir)?;
        Ok(GroupCounters {
            path: self.path.clone(),
            source: "memory.events",
            oom_kill: Delta { before: 0, after: events.oom_kill },
            oom: Some(Delta { before: 0, after: events.own_oom }),
            limit_hits: Some(Delta { before: 0, after: events.own_max }),
            limit: self.limit,
            peak: self.dir.number("memory.peak").ok(),
        })
    }

    /// Counters of the groups above, nearest first, as far as they are readable.
    #[must_use]
    pub fn ancestors(&self) -> Vec<GroupCounters> {
        self.ancestors
            .iter()
            .filter_map(|(dir, path, before)| {
                let (before, after) = ((*before)?, Events::read(dir).ok()?);
                Some(GroupCounters {
                    path: path.clone(),
                    source: "memory.events",
                    oom_kill: Delta { before: before.oom_kill, after: after.oom_kill },
                    oom: Some(Delta { before: before.own_oom, after: after.own_oom }),
                    limit_hits: Some(Delta { before: before.own_max, after: after.own_max }),
                    limit: dir.limit("memory.max").ok()?,
                    peak: dir.number("memory.peak").ok(),
                })
            })
            .collect()
    }

    /// Members now, those of groups below it included.
    #[must_use]
    pub fn members(&self) -> Vec<i32> {
        self.dir.all_procs()
    }

    /// The group's own directory, then the parent that goes when it is empty.
    #[must_use]
    pub fn directories(&self) -> (Vec<PathBuf>, Vec<PathBuf>) {
        (vec![self.dir.0.clone()], self.dir.0.parent().map(PathBuf::from).into_iter().collect())
    }

    /// Moves our own process back where it came from, if it was moved. Called by the process that leaves last.
    pub fn leave_leaf(&self) {
        if let Some(leaf) = &self.leaf {
            leaf.leave();
        }
    }
}

/// Removes our own parent group when nothing else is in it.
fn base_remove(base: &Dir) -> std::io::Result<()> {
    base.remove()
}

/// Enables the controllers for the children of a group of ours, those that are there and not yet enabled.
fn enable(dir: &Dir) -> Result<(), KernelError> {
    let enabled = dir.read("cgroup.subtree_control")?;
    let available = dir.read("cgroup.controllers")?;
    let missing: Vec<String> = CONTROLLERS
        .iter()
        .filter(|name| {
            !enabled.split(' ').any(|word| word == **name) && available.split(' ').any(|word| word == **name)
        })
        .map(|name| format!("+{name}"))
        .collect();
    if missing.is_empty() { Ok(()) } else { dir.write("cgroup.subtree_control", &missing.join(" ")) }
}

/// Below a group delegated to us controllers can only be enabled when no process is in it: ours goes into a leaf.
pub(crate) fn enter_leaf(delegated: &Path) -> Result<Option<Leaf>, KernelError> {
    let delegated = &Dir(delegated.to_owned());
    if enable(delegated).is_ok() {
        return Ok(None);
    }
    let leaf = Leaf { delegated: delegated.clone(), leaf: Dir(delegated.0.join("plimsoll-leaf")) };
    leaf.leaf.make()?;
    let entered = leaf.leaf.write("cgroup.procs", "0").and_then(|()| enable(delegated));
    if let Err(error) = entered {
        leaf.leave();
        return Err(error);
    }
    Ok(Some(leaf))
}

impl Leaf {
    /// Back into the delegated group, by the last one that is in the leaf: its controllers must be off again first.
    pub fn leave(&self) {
        let off: Vec<String> = CONTROLLERS.iter().map(|name| format!("-{name}")).collect();
        // Another run of ours may still need them; then we stay, and the last one clears up.
        if self.delegated.write("cgroup.subtree_control", &off.join(" ")).is_ok() {
            let _ = self.delegated.write("cgroup.procs", "0");
            let _ = self.leaf.remove();
        }
    }
}

fn set_limits(dir: &Dir, limits: &Limits, on_limit: OnLimit) -> Result<(), KernelError> {
    const PAGE: u64 = 4096;
    if let Some(bytes) = limits.memory {
        dir.set("memory.max", bytes, PAGE)?;
        if let Some(total) = limits.memory_swap
            && dir.file("memory.swap.max").exists()
        {
            dir.set("memory.swap.max", total - bytes, PAGE)?;
        }
    }
    // With `tree` the kernel itself takes all members at the line, in one go.
    if on_limit == OnLimit::Tree && dir.file("memory.oom.group").exists() {
        dir.set("memory.oom.group", 1, 1)?;
    }
    if let Some(bytes) = limits.memory_high {
        dir.set("memory.high", bytes, PAGE)?;
    }
    if let Some(bytes) = limits.memory_reservation {
        dir.set("memory.low", bytes, PAGE)?;
    }
    if let Some(count) = limits.pids {
        dir.set("pids.max", count, 1)?;
    }
    if let Some(micros) = limits.cpu_micros {
        dir.set_text("cpu.max", &format!("{} {CPU_PERIOD_US}", cpu_quota_us(micros)))?;
    }
    Ok(())
}
