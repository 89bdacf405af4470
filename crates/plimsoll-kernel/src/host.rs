//! One look at the machine: the facts that `doctor` judges and the memory figure that `health` answers with.
//!
//! Every fact stands for itself: what cannot be read is absent, and never keeps the others from being told. The look
//! lasts [`WINDOW`], because some of them need time between two readings: I/O wait (the figure since boot says nothing
//! about now), zombies and empty groups (one that is gone at the second reading was only about to be reaped or removed).

mod container;
mod processes;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use plimsoll_model::Boundary;
use plimsoll_model::host::{
    Disk, GroupMemory, HostFacts, HostMemory, Leftover, OomHistory, Overcommit, Stalls, Tasks, Tier,
};

use crate::clock::Instant;
use crate::kmsg::past_oom_kills;
use crate::procfs::{
    CpuTimes, Version, flat_keyed, parse_cpu_times, parse_limit_value, parse_loadavg, parse_meminfo, parse_mountinfo,
    parse_pressure, parse_proc_cgroup, parse_uptime, parse_vmstat_field, read_file,
};
use processes::Table;

pub use processes::looks_like_agent;

/// How long a look lasts at least.
pub const WINDOW: Duration = Duration::from_millis(300);

/// An orphan is old after this long.
const OLD: Duration = Duration::from_secs(3600);

/// What the caller knows already, and where to look.
#[derive(Debug, Clone)]
pub struct Query {
    /// The boundary a tree gets, and why.
    pub tier: Tier,
    /// The tightest limited group around us, and which version's files it has.
    pub group: Option<(PathBuf, Boundary)>,
    /// Directories in which groups of runs are made, besides `plimsoll` at the root of each hierarchy.
    pub parents: Vec<PathBuf>,
    /// Ids of the runs that are alive.
    pub live: Vec<String>,
    /// Where the store is, or will be.
    pub state_dir: PathBuf,
}

/// Looks at the machine.
#[must_use]
pub fn look(query: Query) -> HostFacts {
    let begin = cpu_times();
    let began = Instant::now();
    let Query { tier, group, parents, live, state_dir } = query;
    let memory = machine_memory().unwrap_or_default();
    let group = group.and_then(|(path, version)| group_memory(&path, version));
    let limit = group.as_ref().map_or(memory.total, |group| group.limit.min(memory.total));
    let table = Table::read();
    let large = table.large(limit / 10);
    let orphans = table.orphans(OLD);
    let zombies = table.zombies();
    let mut leftovers = left_groups(&parents, &live, &table);
    leftovers.extend(table.left_processes(&live));
    let oom = oom_history();
    // The scan above may have taken longer than the window already.
    std::thread::sleep(WINDOW.saturating_sub(began.elapsed()));
    // A run that just begins or ends has a group with nobody in it, for an instant: what is left is left, and still empty.
    let anew = left_groups(&parents, &live, &table);
    leftovers.retain(|left| !left.pids.is_empty() || left.groups.is_empty() || anew.contains(left));
    let io_wait_percent = begin.zip(cpu_times()).and_then(|(begin, end)| io_wait(begin, end));
    HostFacts {
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        processors: processors(),
        is_root: rustix::process::geteuid().is_root(),
        landlock: crate::landlock::version(),
        tier,
        container: container::detect(),
        memory,
        group,
        overcommit: overcommit(),
        panic_on_oom: number_in("/proc/sys/vm/panic_on_oom").is_some_and(|value| value != 0),
        oom_score_adj: read_text("/proc/self/oom_score_adj").and_then(|text| text.trim().parse().ok()),
        pressure: stalls(),
        load: read("/proc/loadavg").and_then(|text| parse_loadavg(&text)).map(|load| load.load1),
        io_wait_percent,
        tasks: tasks(),
        oom,
        zombies: processes::still_zombies(zombies),
        large,
        orphans,
        leftovers,
        state_disk: disk(&state_dir),
    }
}

/// The machine's memory.
#[must_use]
pub fn machine_memory() -> Option<HostMemory> {
    let info = parse_meminfo(&read("/proc/meminfo")?)?;
    Some(HostMemory {
        total: info.total,
        available: info.available,
        swap_total: info.swap_total,
        swap_used: info.swap_total.saturating_sub(info.swap_free),
    })
}

/// The memory of a group with a limit; `None` when it has none, or cannot be read. `version` tells whose file names it
/// has.
#[must_use]
pub fn group_memory(path: &Path, version: Boundary) -> Option<GroupMemory> {
    let file = |name: &str| read(path.join(name));
    let limit_of = |name: &str| parse_limit_value(&file(name)?).ok();
    let number = |name: &str| limit_of(name)?;
    let v1 = version == Boundary::Cgroup1;
    let limit = number(if v1 { "memory.limit_in_bytes" } else { "memory.max" })?;
    let charged = number(if v1 { "memory.usage_in_bytes" } else { "memory.current" })?;
    let inactive_file = file("memory.stat")
        .and_then(|text| flat_keyed(&text, if v1 { "total_inactive_file" } else { "inactive_file" }))
        .unwrap_or(0);
    let swap_limit = match limit_of(if v1 { "memory.memsw.limit_in_bytes" } else { "memory.swap.max" }) {
        Some(Some(both)) if v1 => Some(both.saturating_sub(limit)),
        Some(swap) => swap,
        None => None,
    };
    Some(GroupMemory {
        path: path.to_owned(),
        limit,
        used: charged.saturating_sub(inactive_file),
        swap_limit,
        oom_kills: file(if v1 { "memory.oom_control" } else { "memory.events" })
            .and_then(|text| flat_keyed(&text, "oom_kill")),
    })
}

fn read(path: impl AsRef<Path>) -> Option<Vec<u8>> {
    read_file(path).ok()
}

fn read_text(path: impl AsRef<Path>) -> Option<String> {
    String::from_utf8(read(path)?).ok()
}

fn number_in(path: impl AsRef<Path>) -> Option<u64> {
    read_text(path)?.trim().parse().ok()
}

fn processors() -> u32 {
    std::thread::available_parallelism().map_or(1, |count| count.get() as u32)
}

fn cpu_times() -> Option<CpuTimes> {
    parse_cpu_times(&read("/proc/stat")?)
}

/// Percent of all processor time between two readings; `None` when no tick passed.
fn io_wait(begin: CpuTimes, end: CpuTimes) -> Option<f64> {
    let total = end.total.checked_sub(begin.total).filter(|&ticks| ticks > 0)?;
    // The kernel's io_wait can step back: it is kept by processor, and tasks that wait change theirs.
    Some(end.io_wait.saturating_sub(begin.io_wait) as f64 * 100.0 / total as f64)
}

fn overcommit() -> Option<Overcommit> {
    let info = parse_meminfo(&read("/proc/meminfo")?)?;
    let mode = u8::try_from(number_in("/proc/sys/vm/overcommit_memory")?).ok()?;
    Some(Overcommit { mode, committed: info.committed, limit: info.commit_limit })
}

fn stalls() -> Option<Stalls> {
    // The files stay when PSI is off; reading them answers EOPNOTSUPP then.
    let memory = parse_pressure(&read("/proc/pressure/memory")?)?;
    let io = read("/proc/pressure/io").and_then(|text| parse_pressure(&text));
    Some(Stalls {
        memory_some: memory.some.avg10,
        memory_full: memory.full.map_or(0.0, |full| full.avg10),
        io_some: io.map_or(0.0, |io| io.some.avg10),
    })
}

/// Of machine and own group the one with less room, relatively.
fn tasks() -> Option<Tasks> {
    let now = parse_loadavg(&read("/proc/loadavg")?)?.total;
    let limits = ["/proc/sys/kernel/threads-max", "/proc/sys/kernel/pid_max"].map(number_in);
    let machine = Tasks { now, limit: limits.into_iter().flatten().min()? };
    let fullness = |tasks: &Tasks| tasks.now as f64 / tasks.limit.max(1) as f64;
    own_pids_groups().chain([machine]).max_by(|a, b| fullness(a).total_cmp(&fullness(b)))
}

/// Our own group of the pids controller and those above it, as far as they have limits.
fn own_pids_groups() -> impl Iterator<Item = Tasks> {
    let mounts = parse_mountinfo(&read("/proc/self/mountinfo").unwrap_or_default());
    let own = parse_proc_cgroup(&read("/proc/self/cgroup").unwrap_or_default());
    let found = mounts.into_iter().find_map(|mount| {
        let v1 = mount.version == Version::V1;
        if v1 && !mount.controllers.iter().any(|name| name == "pids") {
            return None;
        }
        let line = own
            .iter()
            .find(|line| if v1 { line.controllers.iter().any(|name| name == "pids") } else { line.hierarchy == 0 })?;
        // In a container the mount may begin at our group, or paths may be those of a namespace.
        let below = line.path.strip_prefix(&mount.root).unwrap_or(Path::new(""));
        let dir = mount.mount_point.join(below);
        (v1 || dir.join("pids.current").exists()).then_some((mount.mount_point, dir))
    });
    let dirs: Vec<PathBuf> = found.map_or_else(Vec::new, |(mount, dir)| {
        dir.ancestors().take_while(|dir| dir.starts_with(&mount)).map(Path::to_owned).collect()
    });
    dirs.into_iter().filter_map(|dir| {
        let limit = parse_limit_value(&read(dir.join("pids.max"))?).ok()??;
        Some(Tasks { now: number_in(dir.join("pids.current"))?, limit })
    })
}

fn oom_history() -> OomHistory {
    let now = Instant::now().since_boot();
    let kills = past_oom_kills().map(|mut kills| {
        kills.reverse();
        kills.into_iter().map(|past| (now.saturating_sub(past.at), past.kill)).collect()
    });
    OomHistory { kills, since_boot: read("/proc/vmstat").and_then(|text| parse_vmstat_field(&text, "oom_kill")) }
}

/// Groups of runs that nobody runs any more, one entry a run.
fn left_groups(parents: &[PathBuf], live: &[String], table: &Table) -> Vec<Leftover> {
    let mounts = parse_mountinfo(&read("/proc/self/mountinfo").unwrap_or_default());
    let defaults = mounts.into_iter().map(|mount| mount.mount_point.join("plimsoll"));
    let mut parents: Vec<PathBuf> = defaults.chain(parents.iter().cloned()).collect();
    parents.sort();
    parents.dedup();
    let mut found: std::collections::BTreeMap<String, Leftover> = std::collections::BTreeMap::new();
    let mut others = std::collections::BTreeSet::new();
    for entry in parents.iter().filter_map(|parent| std::fs::read_dir(parent).ok()).flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let is_run = name.parse::<plimsoll_model::RunId>().is_ok() && entry.file_type().is_ok_and(|kind| kind.is_dir());
        if !is_run || live.contains(&name) {
            continue;
        }
        let dirs = below(entry.path());
        let members = dirs.iter().filter_map(|dir| read_text(dir.join("cgroup.procs")));
        let pids: Vec<i32> =
            members.flat_map(|text| text.lines().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect();
        let is_foreign = |&pid: &i32| processes::tag(pid) == processes::Tag::Foreign;
        // Told by one of its groups for all of them: the others may have nobody in them.
        if table.are_kept(&pids) || pids.iter().take(100).any(is_foreign) || !is_ours(&entry) {
            others.insert(name);
            continue;
        }
        let leftover = found.entry(name).or_insert_with(|| Leftover {
            what: entry.path().display().to_string(),
            pids: Vec::new(),
            groups: Vec::new(),
            registered: false,
        });
        leftover.groups.extend(dirs);
        leftover.pids.extend(pids);
        leftover.pids.sort_unstable();
        leftover.pids.dedup();
    }
    found.retain(|name, _| !others.contains(name));
    found.into_values().collect()
}

/// Whether we may remove it: root may all, and others what is theirs.
fn is_ours(entry: &std::fs::DirEntry) -> bool {
    let us = rustix::process::geteuid();
    us.is_root() || entry.metadata().is_ok_and(|found| found.uid() == us.as_raw())
}

/// A directory and those below it, the deepest first: in that order they can be removed.
fn below(dir: PathBuf) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(&dir).into_iter().flatten().flatten();
    let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    dirs.flat_map(|entry| below(entry.path())).chain([dir.clone()]).collect()
}

/// Space where a directory is, or will be made.
fn disk(path: &Path) -> Option<Disk> {
    let there = path.ancestors().find(|dir| dir.is_dir())?;
    let figures = rustix::fs::statvfs(there).ok()?;
    Some(Disk {
        path: path.to_owned(),
        available: figures.f_bavail.saturating_mul(figures.f_frsize),
        total: figures.f_blocks.saturating_mul(figures.f_frsize),
    })
}

/// Time since boot, suspend included: the clock of `start_ticks`.
fn uptime() -> Option<Duration> {
    Some(parse_uptime(&read("/proc/uptime")?)?.up)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_left_group_with_all_that_has_to_go() {
        let dir = std::env::temp_dir().join(format!("plimsoll-test-left-{}", std::process::id()));
        let id = plimsoll_model::RunId::new(1_700_000_000_000, 7).to_string();
        let group = dir.join("memory/plimsoll").join(&id);
        std::fs::create_dir_all(group.join("inner")).unwrap();
        std::fs::create_dir_all(dir.join("pids/plimsoll").join(&id)).unwrap();
        std::fs::write(group.join("inner/cgroup.procs"), "99999999\n").unwrap();
        let parents = [dir.join("memory/plimsoll"), dir.join("pids/plimsoll")];
        let mut left = left_groups(&parents, &[], &Table::default());
        left.retain(|left| left.what.contains(&id));
        let live = left_groups(&parents, std::slice::from_ref(&id), &Table::default());
        std::fs::remove_dir_all(&dir).unwrap();
        let groups = vec![group.join("inner"), group.clone(), dir.join("pids/plimsoll").join(&id)];
        let what = group.display().to_string();
        assert_eq!(left, [Leftover { what, pids: vec![99_999_999], groups, registered: false }]);
        assert!(!live.iter().any(|left| left.what.contains(&id)), "{live:?}");
    }

    #[test]
    fn this_machine() {
        let state_dir = std::env::temp_dir().join("not/there/yet");
        let tier = Tier {
            boundary: Boundary::Watchdog,
            reason: "test".into(),
            layout: "none".into(),
            swap_accounting: false,
            refused: Vec::new(),
        };
        let facts = look(Query { tier, group: None, parents: Vec::new(), live: Vec::new(), state_dir });
        assert!(facts.memory.available > 0 && facts.memory.available <= facts.memory.total);
        assert!(facts.processors > 0 && !facts.kernel.is_empty());
        assert!(facts.io_wait_percent.is_none_or(|percent| (0.0..=100.0).contains(&percent)));
        assert!(facts.tasks.is_some_and(|tasks| tasks.now > 0 && tasks.limit > 0));
        assert!(facts.state_disk.is_some_and(|disk| disk.available <= disk.total));
    }

    #[test]
    fn groups_of_either_version() {
        let dir = std::env::temp_dir().join(format!("plimsoll-test-groups-{}", std::process::id()));
        let group = |version, files: &[(&str, &str)]| {
            std::fs::create_dir_all(&dir).unwrap();
            for (name, text) in files {
                std::fs::write(dir.join(name), text).unwrap();
            }
            let memory = group_memory(&dir, version);
            std::fs::remove_dir_all(&dir).unwrap();
            memory
        };
        let v1 = [
            ("memory.limit_in_bytes", "1000000\n"),
            ("memory.usage_in_bytes", "500000\n"),
            ("memory.stat", "cache 1\ninactive_file 7\ntotal_inactive_file 100000\n"),
            ("memory.memsw.limit_in_bytes", "2000000\n"),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"),
        ];
        let memory = group(Boundary::Cgroup1, &v1).unwrap();
        assert_eq!((memory.limit, memory.used, memory.swap_limit), (1_000_000, 400_000, Some(1_000_000)));
        assert_eq!(memory.oom_kills, Some(3));
        let unlimited = group(Boundary::Cgroup1, &[v1[1], v1[2], ("memory.limit_in_bytes", "9223372036854771712\n")]);
        assert_eq!(unlimited, None);
        let v2 = [
            ("memory.max", "1000000\n"),
            ("memory.current", "500000\n"),
            ("memory.stat", "anon 1\ninactive_file 100000\n"),
            ("memory.swap.max", "max\n"),
            ("memory.events", "low 0\nhigh 0\nmax 9\noom 4\noom_kill 3\n"),
        ];
        let memory = group(Boundary::Cgroup2, &v2).unwrap();
        assert_eq!(
            (memory.limit, memory.used, memory.swap_limit, memory.oom_kills),
            (1_000_000, 400_000, None, Some(3))
        );
        assert_eq!(group(Boundary::Cgroup2, &[v2[1], v2[2], ("memory.max", "max\n")]), None);
    }

    #[test]
    fn waiting_for_a_disk() {
        let times = |total, io_wait| CpuTimes { total, idle: 0, io_wait, steal: 0 };
        assert_eq!(io_wait(times(100, 10), times(200, 35)), Some(25.0));
        assert_eq!(io_wait(times(100, 10), times(200, 9)), Some(0.0));
        assert_eq!(io_wait(times(100, 10), times(100, 10)), None);
    }
}
