//! The memory group around us that we can read and not change: a container's.

use std::path::{Path, PathBuf};

use plimsoll_model::Boundary;
use plimsoll_model::ending::{Delta, GroupCounters};

use super::files::{Dir, Gauge};
use super::probe::Surrounding;

/// The files of a surrounding group, kept open where they are read often.
#[derive(Debug)]
pub struct Gauges {
    dir: Dir,
    path: String,
    limit: u64,
    version: Boundary,
    usage: Gauge,
}

impl Gauges {
    /// Opens them; `None` when they are not readable.
    #[must_use]
    pub fn open(group: &Surrounding) -> Option<Self> {
        let dir = Dir(group.dir.clone());
        let file = match group.version {
            Boundary::Cgroup2 => "memory.current",
            _ => "memory.usage_in_bytes",
        };
        let usage = Gauge::open(&dir.file(file)).ok()?;
        Some(Self { path: group.path.clone(), limit: group.limit, version: group.version, usage, dir })
    }

    /// Bytes charged now, page cache included.
    #[must_use]
    pub fn usage(&self) -> Option<u64> {
        self.usage.read()
    }

    /// Bytes charged less the file pages that the kernel would drop before it kills.
    #[must_use]
    pub fn working_set(&self) -> Option<u64> {
        let prefix = if self.version == Boundary::Cgroup2 { "" } else { "total_" };
        let field = |name: &str| self.dir.keyed("memory.stat", &format!("{prefix}{name}")).unwrap_or(0);
        Some(self.usage()?.saturating_sub(field("inactive_file") + field("active_file")))
    }

    /// Its counters; before and after are the same, [`since`] joins two of them.
    #[must_use]
    pub fn counters(&self) -> Option<GroupCounters> {
        let (source, kills, hits) = match self.version {
            Boundary::Cgroup2 => (
                "memory.events",
                self.dir.keyed("memory.events", "oom_kill").ok()?,
                self.dir.keyed("memory.events", "max").ok(),
            ),
            _ => (
                "memory.oom_control",
                self.dir.keyed("memory.oom_control", "oom_kill").ok()?,
                self.dir.number("memory.failcnt").ok(),
            ),
        };
        Some(GroupCounters {
            path: self.path.clone(),
            source,
            oom_kill: Delta { before: kills, after: kills },
            oom: None,
            limit_hits: hits.map(|hits| Delta { before: hits, after: hits }),
            limit: Some(self.limit),
            peak: None,
        })
    }
}

/// The smallest quota of the v1 cpu groups above the one that this file is of, in millionths of a core, and whose it is.
#[must_use]
pub fn cpu_quota_above(file: &Path) -> Option<(u64, PathBuf)> {
    let above = file.parent()?.ancestors().skip(1);
    let quota = |dir: &Path| {
        let of = Dir(dir.to_owned());
        // -1 is no quota.
        let quota = of.number("cpu.cfs_quota_us").ok()?;
        let micros = u128::from(quota) * 1_000_000 / u128::from(of.number("cpu.cfs_period_us").ok()?.max(1));
        Some((u64::try_from(micros).ok()?, dir.to_owned()))
    };
    above.filter_map(quota).min_by_key(|(micros, _)| *micros)
}

/// The counters of the same group from an earlier reading to a later one.
#[must_use]
pub fn since(before: &GroupCounters, after: &GroupCounters) -> GroupCounters {
    let join = |before: Delta, after: Delta| Delta { before: before.after, after: after.after };
    GroupCounters {
        oom_kill: join(before.oom_kill, after.oom_kill),
        limit_hits: before.limit_hits.zip(after.limit_hits).map(|(before, after)| join(before, after)),
        ..after.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_groups_above_leave() {
        let dir = std::env::temp_dir().join(format!("plimsoll-above-{}", std::process::id()));
        let [wide, tight] = [dir.join("wide"), dir.join("wide/tight")];
        for (dir, quota) in [(&wide, "-1"), (&tight, "50000")] {
            std::fs::create_dir_all(dir.join("run")).unwrap();
            std::fs::write(dir.join("cpu.cfs_quota_us"), quota).unwrap();
            std::fs::write(dir.join("cpu.cfs_period_us"), "100000").unwrap();
        }
        assert_eq!(cpu_quota_above(&tight.join("run/cpu.cfs_quota_us")), Some((500_000, tight)));
        assert_eq!(cpu_quota_above(&wide.join("run/cpu.cfs_quota_us")), None);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
