//! Controllers of cgroup v1: one directory a controller, and the v2 mount's directory for `cgroup.kill` where it is there.

use std::time::Duration;

use plimsoll_model::ending::{Delta, GroupCounters};
use plimsoll_model::{Limits, Strain};
use rustix::fs::OFlags;

use super::files::{Dir, Gauge, open};
use super::probe::Parent;
use crate::KernelError;
use crate::boundary::Cpu;

/// One tree's group on the v1 hierarchies.
#[derive(Debug)]
pub struct Group {
    memory: Dir,
    pids: Option<Dir>,
    cpu: Option<Dir>,
    /// Only made where there is no v2 mount to kill through.
    freezer: Option<Dir>,
    unified: Option<Dir>,
    parents: Vec<Dir>,
    usage: Gauge,
    path: String,
    limit: Option<u64>,
    ancestors: Vec<(Dir, String)>,
    /// `oom_kill` and `memory.failcnt` of the ancestors when the group was made.
    before: Vec<(u64, u64)>,
}

/// Directories that a run on these parents would make, deepest first: known before they exist, for the registry.
#[must_use]
pub fn planned(parent: &Parent, id: &str, limits: &Limits) -> Vec<std::path::PathBuf> {
    directories(parent, id, limits).into_iter().flatten().map(|dir| dir.0).collect()
}

/// memory, pids, cpu, freezer, unified.
fn directories(parent: &Parent, id: &str, limits: &Limits) -> [Option<Dir>; 5] {
    let Parent::V1 { memory, pids, cpu, freezer, unified, .. } = parent else { return [const { None }; 5] };
    let below = |base: &std::path::PathBuf| Dir(base.join(id));
    [
        Some(below(memory)),
        pids.as_ref().map(below),
        cpu.as_ref().filter(|_| limits.cpu_micros.is_some()).map(below),
        freezer.as_ref().filter(|_| unified.is_none()).map(below),
        unified.as_ref().map(below),
    ]
}

impl Group {
    /// Makes the group and puts the limits in force, each read back. On an error nothing is left behind.
    ///
    /// # Errors
    /// [`KernelError`] names the file and the value that was refused.
    pub fn make(parent: &Parent, id: &str, limits: &Limits) -> Result<Self, KernelError> {
        let Parent::V1 { path, ancestors, .. } = parent else {
            return Err(KernelError::Call {
                call: "a v1 group below a v2 parent",
                source: std::io::ErrorKind::InvalidInput.into(),
            });
        };
        let planned = directories(parent, id, limits);
        let mut made = Vec::new();
        let undo = |made: &[Dir]| {
            for dir in made.iter().rev() {
                // What was just made is empty; a failure here leaves an empty group that the next sweep removes.
                let _ = dir.remove();
            }
        };
        for dir in planned.iter().flatten() {
            if let Err(error) = make_below_parent(dir) {
                undo(&made);
                return Err(error);
            }
            made.push(dir.clone());
        }
        let parents = made.iter().filter_map(|dir| Some(Dir(dir.0.parent()?.to_owned()))).collect();
        let [memory, pids, cpu, freezer, unified] = planned;
        let result = (|| {
            let memory = memory.ok_or(KernelError::Call {
                call: "no memory controller",
                source: std::io::ErrorKind::NotFound.into(),
            })?;
            set_limits(&memory, pids.as_ref(), cpu.as_ref(), limits)?;
            let usage_path = memory.file("memory.usage_in_bytes");
            let usage =
                Gauge::open(&usage_path).map_err(|source| KernelError::Read { path: usage_path.clone(), source })?;
            let ancestors: Vec<_> = ancestors.iter().map(|(dir, path)| (Dir(dir.clone()), path.clone())).collect();
            let before = ancestors
                .iter()
                .map(|(dir, _)| {
                    (
                        dir.keyed("memory.oom_control", "oom_kill").unwrap_or(0),
                        dir.number("memory.failcnt").unwrap_or(0),
                    )
                })
                .collect();
            Ok(Self {
                memory,
                pids,
                cpu,
                freezer,
                unified,
                parents,
                usage,
                path: format!("{}/{id}", path.trim_end_matches('/')),
                limit: limits.memory,
                ancestors,
                before,
            })
        })();
        if result.is_err() {
            undo(&made);
        }
        result
    }

    /// The files into which a process with a single thread writes `0` to join, in order.
    ///
    /// `tasks` moves one thread, so the kernel (5.5 and later) takes no lock against the forks of all processes: that
    /// lock waits out an RCU grace period, some 10 ms, for whoever writes to `cgroup.procs`.
    #[must_use]
    pub fn join_files(&self) -> Vec<std::path::PathBuf> {
        [Some(&self.memory), self.pids.as_ref(), self.cpu.as_ref(), self.freezer.as_ref()]
            .into_iter()
            .flatten()
            .map(|dir| dir.file("tasks"))
            .collect()
    }

    /// The v2 directory that the root is cloned into, where there is one.
    #[must_use]
    pub fn unified(&self) -> Option<&std::path::Path> {
        self.unified.as_ref().map(|dir| dir.0.as_path())
    }

    /// Bytes charged now.
    #[must_use]
    pub fn usage(&self) -> Option<u64> {
        self.usage.read()
    }

    /// How the group fares with what the tree made below it; the time it stood still only the v2 mount beside tells.
    #[must_use]
    pub fn strain(&self) -> Option<Strain> {
        self.memory.strain("total_rss", ["total_inactive_file", "total_active_file"], self.unified.as_ref()?)
    }

    /// Processor time, which the v2 mount beside tells, with the periods of the quota where there is one.
    #[must_use]
    pub fn cpu(&self) -> Option<Cpu> {
        let unified = self.unified.as_ref()?;
        unified.cpu(self.cpu.as_ref().unwrap_or(unified))
    }

    /// Processes and threads now.
    #[must_use]
    pub fn processes(&self) -> Option<u64> {
        self.pids.as_ref()?.number("pids.current").ok()
    }

    /// Most processes and threads at one time, where the kernel tells (6.1 and later).
    #[must_use]
    pub fn peak_processes(&self) -> Option<u64> {
        self.pids.as_ref()?.number("pids.peak").ok()
    }

    /// Time the group was kept from running by its quota.
    #[must_use]
    pub fn throttled(&self) -> Option<Duration> {
        Some(Duration::from_nanos(self.cpu.as_ref()?.keyed("cpu.stat", "throttled_time").ok()?))
    }

    /// An eventfd that counts the group's OOM events; it also fires when the group is removed.
    ///
    /// # Errors
    /// [`KernelError`] when the kernel does not take the registration.
    pub fn oom_events(&self) -> Result<std::os::fd::OwnedFd, KernelError> {
        self.event("memory.oom_control", &[String::new()])
    }

    /// An eventfd that fires when usage crosses any of these.
    ///
    /// # Errors
    /// [`KernelError`] when the kernel does not take a registration.
    pub fn thresholds(&self, bytes: &[u64]) -> Result<std::os::fd::OwnedFd, KernelError> {
        let arguments: Vec<String> = bytes.iter().map(u64::to_string).collect();
        self.event("memory.usage_in_bytes", &arguments)
    }

    /// Changes the memory limit, with no swap beyond it where that can be said; read back.
    ///
    /// # Errors
    /// [`KernelError`] names the file and the value: lowering it below what is held, and cannot be reclaimed, is refused.
    pub fn change_memory(&self, bytes: u64) -> Result<(), KernelError> {
        let total = "memory.memsw.limit_in_bytes";
        let limits = Limits { memory: Some(bytes), memory_swap: Some(bytes), ..Limits::default() };
        // The total may never be the smaller of the two, on the way neither.
        if self.memory.file(total).exists() && self.memory.number(total).is_ok_and(|before| before < bytes) {
            self.memory.set(total, bytes, PAGE)?;
        }
        set_limits(&self.memory, None, None, &limits)
    }

    fn event(&self, file: &str, arguments: &[String]) -> Result<std::os::fd::OwnedFd, KernelError> {
        use std::os::fd::AsRawFd;
        let path = self.memory.file(file);
        let target = open(&path, OFlags::RDONLY).map_err(|source| KernelError::Read { path: path.clone(), source })?;
        let event =
            rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK)
                .map_err(|error| KernelError::Call { call: "eventfd", source: error.into() })?;
        for argument in arguments {
            let line = format!("{} {} {argument}", event.as_raw_fd(), target.as_raw_fd());
            self.memory.write("cgroup.event_control", line.trim_end())?;
        }
        Ok(event)
    }

    /// OOM kills of this group's members so far.
    #[must_use]
    pub fn oom_kills(&self) -> Option<u64> {
        self.memory.keyed("memory.oom_control", "oom_kill").ok()
    }

    /// The group's own counters; they began at 0 when it was made.
    ///
    /// # Errors
    /// The file that could not be read.
    pub fn counters(&self) -> Result<GroupCounters, KernelError> {
        Ok(GroupCounters {
            path: self.path.clone(),
            source: "memory.oom_control",
            oom_kill: Delta { before: 0, after: self.memory.keyed("memory.oom_control", "oom_kill")? },
            oom: None,
            limit_hits: Some(Delta { before: 0, after: self.memory.number("memory.failcnt")? }),
            limit: self.limit,
            peak: Some(self.memory.number("memory.max_usage_in_bytes")?),
        })
    }

    /// Counters of the groups above, nearest first, as far as they are readable.
    #[must_use]
    pub fn ancestors(&self) -> Vec<GroupCounters> {
        self.ancestors
            .iter()
            .zip(&self.before)
            .filter_map(|((dir, path), &(kills, hits))| {
                Some(GroupCounters {
                    path: path.clone(),
                    source: "memory.oom_control",
                    oom_kill: Delta { before: kills, after: dir.keyed("memory.oom_control", "oom_kill").ok()? },
                    oom: None,
                    limit_hits: Some(Delta { before: hits, after: dir.number("memory.failcnt").ok()? }),
                    limit: dir.limit("memory.limit_in_bytes").ok()?,
                    // Since the group was made, so perhaps an older one: it speaks only where the log is silent, for the
                    // kernel prints no more than some OOM kills a second.
                    peak: dir.number("memory.max_usage_in_bytes").ok(),
                })
            })
            .collect()
    }

    /// Members now, those of groups below it included, from the hierarchy that all of them are in.
    #[must_use]
    pub fn members(&self) -> Vec<i32> {
        self.memory.all_procs()
    }

    /// Sets of directories to remove: the group's own ones, then parents that go when they are empty.
    #[must_use]
    pub fn directories(&self) -> (Vec<std::path::PathBuf>, Vec<std::path::PathBuf>) {
        let own =
            [Some(&self.memory), self.pids.as_ref(), self.cpu.as_ref(), self.freezer.as_ref(), self.unified.as_ref()];
        (own.into_iter().flatten().map(|d| d.0.clone()).collect(), self.parents.iter().map(|d| d.0.clone()).collect())
    }
}

/// Makes a group and, when it is missing, our own parent above it. Another run that ends may remove the parent between
/// the two steps, so both are tried again.
pub(super) fn make_below_parent(dir: &Dir) -> Result<(), KernelError> {
    let mut last = None;
    for _ in 0..64 {
        match dir.make() {
            Ok(_) => return Ok(()),
            Err(KernelError::MakeGroup { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                if let Some(parent) = dir.0.parent() {
                    Dir(parent.to_owned()).make()?;
                }
                last = Some(source);
            }
            Err(error) => return Err(error),
        }
    }
    Err(KernelError::MakeGroup {
        path: dir.0.clone(),
        source: last.unwrap_or_else(|| std::io::ErrorKind::NotFound.into()),
    })
}

const PAGE: u64 = 4096;

fn set_limits(memory: &Dir, pids: Option<&Dir>, cpu: Option<&Dir>, limits: &Limits) -> Result<(), KernelError> {
    if let Some(bytes) = limits.memory {
        memory.set("memory.limit_in_bytes", bytes, PAGE)?;
        // RAM and swap together, so after the RAM limit. Without swap accounting the file is missing; the caller has
        // refused an explicit value then.
        if let Some(total) = limits.memory_swap
            && memory.file("memory.memsw.limit_in_bytes").exists()
        {
            memory.set("memory.memsw.limit_in_bytes", total, PAGE)?;
        }
    }
    if let Some(bytes) = limits.memory_reservation {
        memory.set("memory.soft_limit_in_bytes", bytes, PAGE)?;
    }
    if let (Some(dir), Some(count)) = (pids, limits.pids) {
        dir.set("pids.max", count, 1)?;
    }
    if let (Some(dir), Some(micros)) = (cpu, limits.cpu_micros) {
        dir.set("cpu.cfs_period_us", super::v2::CPU_PERIOD_US, 1)?;
        dir.set("cpu.cfs_quota_us", super::v2::cpu_quota_us(micros), 1)?;
    }
    Ok(())
}
