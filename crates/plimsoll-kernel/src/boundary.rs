//! The boundary that contains one tree: a v2 group, a v1 group, or none, behind one interface.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use plimsoll_model::ending::GroupCounters;
use plimsoll_model::{Boundary as Kind, Limits, OnLimit, Strain};

use crate::KernelError;
use crate::cgroup::{Found, Parent, teardown, v1, v2};

/// Processor time of a group since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cpu {
    /// Used.
    pub used: Duration,
    /// Periods of the quota; 0 without one.
    pub periods: u64,
    /// Those in which it was stopped at the quota.
    pub throttled: u64,
}

/// Contains one tree.
#[derive(Debug)]
pub enum Boundary {
    /// The unified hierarchy.
    V2(v2::Group),
    /// Controllers of v1.
    V1(v1::Group),
    /// No group: the keeper's descendants.
    Watchdog,
}

/// Directories that the boundary of a run will make, known before they exist: its own, and parents to be removed when
/// empty.
#[must_use]
pub fn planned(found: &Found, id: &str, limits: &Limits) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let own = match &found.parent {
        None => Vec::new(),
        Some(parent @ Parent::V1 { .. }) => v1::planned(parent, id, limits),
        Some(parent @ Parent::V2 { .. }) => v2::planned(parent, id),
    };
    let parents = own.iter().filter_map(|dir| Some(dir.parent()?.to_owned())).filter(|dir| is_ours(dir)).collect();
    (own, parents)
}

/// A parent that we make ourselves, and so remove: never one that was named to us.
fn is_ours(dir: &std::path::Path) -> bool {
    let named = std::env::var("PLIMSOLL_CGROUP_PARENT").unwrap_or_default();
    let is_named = !named.is_empty() && dir.ends_with(named.trim_start_matches('/'));
    dir.file_name().is_some_and(|name| name == "plimsoll") && !is_named
}

/// Moves this process out of the way where groups are made below a delegated group: a process that forks before it makes
/// the first one does this before it forks. `None`: there is nothing to do.
///
/// # Errors
/// [`KernelError`] names the file: others are in the delegated group too.
pub fn enter_leaf(found: &Found) -> Result<Option<v2::Leaf>, KernelError> {
    match &found.parent {
        Some(Parent::V2 { delegated: Some(delegated), .. }) => v2::enter_leaf(delegated),
        _ => Ok(None),
    }
}

impl Boundary {
    /// Makes it and puts the limits in force, each one read back. On an error nothing is left behind.
    ///
    /// # Errors
    /// [`KernelError`] names the file and the value.
    pub fn make(found: &Found, id: &str, limits: &Limits, on_limit: OnLimit) -> Result<Self, KernelError> {
        Ok(match &found.parent {
            None => Self::Watchdog,
            Some(parent @ Parent::V1 { .. }) => Self::V1(v1::Group::make(parent, id, limits)?),
            Some(parent @ Parent::V2 { .. }) => Self::V2(v2::Group::make(parent, id, limits, on_limit)?),
        })
    }

    /// Which of the three it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::V2(_) => Kind::Cgroup2,
            Self::V1(_) => Kind::Cgroup1,
            Self::Watchdog => Kind::Watchdog,
        }
    }

    /// The files that the root writes itself into, and the v2 directory that it is cloned into.
    #[must_use]
    pub fn entrance(&self) -> (Vec<PathBuf>, Option<PathBuf>) {
        match self {
            Self::V2(group) => (Vec::new(), Some(group.path().to_owned())),
            Self::V1(group) => (group.join_files(), group.unified().map(PathBuf::from)),
            Self::Watchdog => (Vec::new(), None),
        }
    }

    /// Bytes charged to the group now; `None` without a group.
    #[must_use]
    pub fn usage(&self) -> Option<u64> {
        match self {
            Self::V2(group) => group.usage(),
            Self::V1(group) => group.usage(),
            Self::Watchdog => None,
        }
    }

    /// How the group fares; `None` without a group, or where the kernel does not tell.
    #[must_use]
    pub fn strain(&self) -> Option<Strain> {
        match self {
            Self::V2(group) => group.strain(),
            Self::V1(group) => group.strain(),
            Self::Watchdog => None,
        }
    }

    /// Processor time of the group; `None` without one, or where the kernel does not tell.
    #[must_use]
    pub fn cpu(&self) -> Option<Cpu> {
        match self {
            Self::V2(group) => group.cpu(),
            Self::V1(group) => group.cpu(),
            Self::Watchdog => None,
        }
    }

    /// Has the kernel take so many bytes from the group, where it can (`memory.reclaim` of v2). It may be less.
    pub fn reclaim(&self, bytes: u64) {
        if let Self::V2(group) = self {
            group.reclaim(bytes);
        }
    }

    /// Processes and threads in the group now; `None` without one.
    #[must_use]
    pub fn processes(&self) -> Option<u64> {
        match self {
            Self::V2(group) => group.processes(),
            Self::V1(group) => group.processes(),
            Self::Watchdog => None,
        }
    }

    /// Most processes and threads at one time, where the kernel tells.
    #[must_use]
    pub fn peak_processes(&self) -> Option<u64> {
        match self {
            Self::V2(group) => group.peak_processes(),
            Self::V1(group) => group.peak_processes(),
            Self::Watchdog => None,
        }
    }

    /// A descriptor that tells of OOM events in the group: an eventfd to read on v1, POLLPRI on v2.
    ///
    /// # Errors
    /// [`KernelError`] when the kernel does not give it.
    pub fn oom_events(&self) -> Result<Option<OwnedFd>, KernelError> {
        match self {
            Self::V2(group) => group.oom_events().map(Some),
            Self::V1(group) => group.oom_events().map(Some),
            Self::Watchdog => Ok(None),
        }
    }

    /// A descriptor that tells when usage crosses any of these, where the kernel has such a thing (v1).
    #[must_use]
    pub fn thresholds(&self, bytes: &[u64]) -> Option<OwnedFd> {
        match self {
            Self::V1(group) => group.thresholds(bytes).ok(),
            Self::V2(_) | Self::Watchdog => None,
        }
    }

    /// Changes the group's memory limit, without swap beyond it; read back. Without a group there is none to change.
    ///
    /// # Errors
    /// [`KernelError`] names the file and the value that was refused.
    pub fn change_memory(&self, bytes: u64, on_limit: OnLimit) -> Result<(), KernelError> {
        match self {
            Self::V2(group) => group.change_memory(bytes, on_limit),
            Self::V1(group) => group.change_memory(bytes),
            Self::Watchdog => Ok(()),
        }
    }

    /// A descriptor that tells of memory becoming short: readable when usage crosses one of these marks (v1), POLLPRI
    /// when members wait for memory (v2 with PSI). `None` where the kernel has neither.
    #[must_use]
    pub fn shortage(&self, marks: &[u64]) -> Option<OwnedFd> {
        match self {
            Self::V2(group) => group.pressure_events().ok(),
            Self::V1(group) => group.thresholds(marks).ok(),
            Self::Watchdog => None,
        }
    }

    /// OOM kills in the group so far.
    #[must_use]
    pub fn oom_kills(&self) -> Option<u64> {
        match self {
            Self::V2(group) => group.oom_kills(),
            Self::V1(group) => group.oom_kills(),
            Self::Watchdog => None,
        }
    }

    /// The group's own counters; `None` without a group.
    ///
    /// # Errors
    /// The file that could not be read.
    pub fn counters(&self) -> Result<Option<GroupCounters>, KernelError> {
        match self {
            Self::V2(group) => group.counters().map(Some),
            Self::V1(group) => group.counters().map(Some),
            Self::Watchdog => Ok(None),
        }
    }

    /// Counters of the groups above, nearest first, as far as they are readable.
    #[must_use]
    pub fn ancestors(&self) -> Vec<GroupCounters> {
        match self {
            Self::V2(group) => group.ancestors(),
            Self::V1(group) => group.ancestors(),
            Self::Watchdog => Vec::new(),
        }
    }

    /// Members of the group now; empty without one.
    #[must_use]
    pub fn members(&self) -> Vec<i32> {
        match self {
            Self::V2(group) => group.members(),
            Self::V1(group) => group.members(),
            Self::Watchdog => Vec::new(),
        }
    }

    /// Its directories.
    #[must_use]
    pub fn directories(&self) -> Vec<PathBuf> {
        match self {
            Self::V2(group) => group.directories().0,
            Self::V1(group) => group.directories().0,
            Self::Watchdog => Vec::new(),
        }
    }

    /// Removes the empty group. The process that ends last also takes us out of the leaf of a delegated group.
    ///
    /// # Errors
    /// The directory that did not go.
    pub fn remove(&self) -> Result<(), KernelError> {
        self.remove_for(teardown::BUSY)
    }

    /// The same, for so long at most: it can be tried again.
    ///
    /// # Errors
    /// [`KernelError`] names the directory that is still there.
    pub fn remove_for(&self, patience: Duration) -> Result<(), KernelError> {
        let (own, parents) = match self {
            Self::V2(group) => group.directories(),
            Self::V1(group) => group.directories(),
            Self::Watchdog => return Ok(()),
        };
        let parents: Vec<PathBuf> = parents.into_iter().filter(|dir| is_ours(dir)).collect();
        teardown::remove(&own, &parents, patience)
    }

    /// Moves our own process out of the leaf of a delegated group, if it was moved there.
    pub fn leave_leaf(&self) {
        if let Self::V2(group) = self {
            group.leave_leaf();
        }
    }
}
