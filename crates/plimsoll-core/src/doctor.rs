//! What is wrong with this machine, and what to do about it: facts in, one row a check out.
//!
//! To add a check: give [`HostFacts`] the fact (in `plimsoll_model::host`), let `plimsoll_kernel::host` read it, write a
//! function here that takes the facts and answers a [`Check`], put it into [`checks`], and give it a test for each
//! status. `found` states figures. `fix` is one concrete action, and empty exactly when the status is ok. `fail` means
//! that work is being lost, or will be with the next tree that grows: `doctor` ends with 1 then.

use std::time::Duration;

use plimsoll_model::duration::Human as Time;
use plimsoll_model::ending::{OomKill, OomScope};
use plimsoll_model::host::{GroupMemory, HostFacts, Leftover, ProcessFact};
use plimsoll_model::size::Human as Size;
use plimsoll_model::{Boundary, RunId};

use crate::redact::redact_command;

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// Nothing to do.
    Ok,
    /// It will hurt when memory runs short.
    Warn,
    /// It hurts now, or with the next tree that grows.
    Fail,
}

impl Status {
    /// The word used in JSON and tables.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// In snake_case; the same in every version.
    pub name: &'static str,
    /// How it went.
    pub status: Status,
    /// What was found, with figures.
    pub found: String,
    /// One action; empty when the status is ok.
    pub fix: String,
}

/// Figures below which a check is ok and above which it fails.
mod line {
    /// Percent of memory in use.
    pub(super) const MEMORY_WARN: u64 = 80;
    pub(super) const MEMORY_FAIL: u64 = 95;
    /// Percent of swap in use.
    pub(super) const SWAP_WARN: u64 = 50;
    pub(super) const SWAP_FAIL: u64 = 80;
    /// Percent of memory in one process.
    pub(super) const LARGE_FAIL: u64 = 60;
    /// Percent of memory in orphans.
    pub(super) const ORPHANS_FAIL: u64 = 10;
    /// Load by processor.
    pub(super) const LOAD_WARN: f64 = 2.0;
    pub(super) const LOAD_FAIL: f64 = 4.0;
    /// Percent of processor time that waited for a disk.
    pub(super) const IO_WARN: f64 = 10.0;
    pub(super) const IO_FAIL: f64 = 25.0;
    /// Percent of time in which somebody, or everybody, waited for memory.
    pub(super) const STALL_WARN: f32 = 10.0;
    pub(super) const STALL_FAIL: f32 = 10.0;
    /// Percent of the tasks there may be.
    pub(super) const TASKS_WARN: u64 = 80;
    pub(super) const TASKS_FAIL: u64 = 95;
    /// Zombies of one parent.
    pub(super) const ZOMBIES_FAIL: u32 = 100;
    /// Bytes of room for the store.
    pub(super) const DISK_WARN: u64 = 1 << 30;
    pub(super) const DISK_FAIL: u64 = 100 << 20;
}

/// Every check, in the order in which they are shown.
#[must_use]
pub fn checks(facts: &HostFacts) -> Vec<Check> {
    let mut checks = vec![
        boundary(facts),
        kernel(facts),
        container(facts),
        isolation(facts),
        memory(facts),
        swap(facts),
        swap_limits(facts),
        overcommit(facts),
        oom_score(facts),
        pressure(facts),
        load(facts),
        io_wait(facts),
        tasks(facts),
        oom_kills(facts),
        zombies(facts),
        large_processes(facts),
        orphans(facts),
        leftovers(facts),
        disk(facts),
    ];
    checks.extend(unenforced_defaults(facts));
    checks
}

/// The worst status of them all.
#[must_use]
pub fn worst(checks: &[Check]) -> Status {
    checks.iter().map(|check| check.status).max().unwrap_or(Status::Ok)
}

fn ok(name: &'static str, found: impl Into<String>) -> Check {
    Check { name, status: Status::Ok, found: found.into(), fix: String::new() }
}

fn warn(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Check {
    Check { name, status: Status::Warn, found: found.into(), fix: fix.into() }
}

fn fail(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Check {
    Check { name, status: Status::Fail, found: found.into(), fix: fix.into() }
}

/// Ok below `warn_at`, failed from `fail_at` on.
fn by_level<T: PartialOrd>(value: T, warn_at: T, fail_at: T) -> Status {
    if value >= fail_at {
        Status::Fail
    } else if value >= warn_at {
        Status::Warn
    } else {
        Status::Ok
    }
}

fn graded(name: &'static str, status: Status, found: String, fix: String) -> Check {
    Check { name, status, found, fix: if status == Status::Ok { String::new() } else { fix } }
}

/// Percent, rounded down; of nothing it is 0.
fn percent(part: u64, whole: u64) -> u64 {
    (u128::from(part) * 100).checked_div(u128::from(whole)).unwrap_or(0) as u64
}

/// The memory that new trees share: that of the group around us where it is the smaller one.
fn line_of(facts: &HostFacts) -> u64 {
    facts.group.as_ref().map_or(facts.memory.total, |group| group.limit.min(facts.memory.total))
}

fn boundary(facts: &HostFacts) -> Check {
    let tier = &facts.tier;
    let mut found = format!("{} ({}; cgroup mounts: {})", tier.boundary.as_str(), tier.reason, tier.layout);
    if !tier.refused.is_empty() {
        let refused: Vec<String> = tier.refused.iter().map(|(option, why)| format!("{option} ({why})")).collect();
        found += &format!("; refuses {}", refused.join(", "));
    }
    match tier.boundary {
        Boundary::Cgroup1 | Boundary::Cgroup2 => ok("boundary", found),
        Boundary::Watchdog => {
            found += "; lines are held by sampling, a fast tree passes its line by some MiB before it goes";
            let fix = match (&facts.container, facts.is_root) {
                (Some(_), _) => {
                    "start the container with a cgroup of its own that it may write: docker run --privileged \
                     --cgroupns=private"
                }
                (None, true) => "mount a cgroup hierarchy writable: mount -t cgroup2 none /sys/fs/cgroup",
                (None, false) => "get a delegated group: systemd-run --user --scope -p Delegate=yes plimsoll run …",
            };
            warn("boundary", found, fix)
        }
    }
}

fn kernel(facts: &HostFacts) -> Check {
    let mut numbers = facts.kernel.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse::<u32>().ok());
    let version = numbers.next().flatten().zip(numbers.next().flatten());
    let found = format!("Linux {}", facts.kernel);
    match version {
        Some(version) if version < (5, 0) => fail(
            "kernel",
            format!("{found}: too old to tell who was killed for memory"),
            "upgrade to Linux 5.14 or later",
        ),
        Some(version) if version < (5, 14) => warn(
            "kernel",
            format!("{found}: no cgroup.kill, trees are killed process by process"),
            "upgrade to Linux 5.14 or later",
        ),
        _ => ok("kernel", found),
    }
}

fn container(facts: &HostFacts) -> Check {
    let Some(container) = &facts.container else {
        return match &facts.group {
            None => ok("container", "none: this is the machine itself, and no group around us has a limit"),
            Some(group) => ok("container", format!("none, but a group around us is limited: {}", limits(group, facts))),
        };
    };
    let found = format!("{} (by {})", container.kind, container.hint);
    match &facts.group {
        Some(group) if group.limit < facts.memory.total => {
            ok("container", format!("{found}, {}", limits(group, facts)))
        }
        _ => warn(
            "container",
            format!("{found}, without a memory limit: one tree can take the machine's {}", Size(facts.memory.total)),
            "give the container a limit without extra swap: docker update --memory 2g --memory-swap 2g CONTAINER",
        ),
    }
}

fn limits(group: &GroupMemory, facts: &HostFacts) -> String {
    let swap = match group.swap_limit {
        _ if facts.memory.swap_total == 0 => "no swap".to_owned(),
        Some(0) => "no swap".to_owned(),
        Some(swap) => format!("{} of swap", Size(swap)),
        None => "unlimited swap".to_owned(),
    };
    let mut text = format!("{} of memory and {swap} at {}", Size(group.limit), group.path.display());
    if let Some(kills) = group.oom_kills.filter(|&kills| kills > 0) {
        text += &format!(", {kills} killed for memory there so far");
    }
    text
}

fn memory(facts: &HostFacts) -> Check {
    let memory = &facts.memory;
    let machine_used = percent(memory.total.saturating_sub(memory.available), memory.total);
    let machine = format!("{} of {} left", Size(memory.available), Size(memory.total));
    let (found, used) = match &facts.group {
        Some(group) => {
            let used = percent(group.used, group.limit);
            let left = group.limit.saturating_sub(group.used);
            (format!("{} of the {} around us left; on the machine {machine}", Size(left), Size(group.limit)), used)
        }
        None => (machine, 0),
    };
    if memory.total == 0 {
        return warn("memory", "/proc/meminfo could not be read", "mount it: mount -t proc proc /proc");
    }
    let status = by_level(used.max(machine_used), line::MEMORY_WARN, line::MEMORY_FAIL);
    let fix = match facts.large.first() {
        Some(largest) => format!("end or limit the largest process: {}", short(largest)),
        None => "end what is not needed, or give the machine more memory".to_owned(),
    };
    graded("memory", status, found, fix)
}

fn swap(facts: &HostFacts) -> Check {
    let memory = &facts.memory;
    if memory.swap_total == 0 {
        // Nobody in a container can add swap, and without any a container's limit is exactly what it says.
        return if facts.container.is_some() {
            ok("swap", "none on this machine")
        } else {
            let size = Size((memory.total / 4).clamp(1 << 30, 4 << 30).next_multiple_of(1 << 30));
            warn(
                "swap",
                "none: what is idle stays in memory, and a peak of all together is killed at once",
                format!(
                    "add some: fallocate -l {} /swapfile && chmod 600 /swapfile && mkswap /swapfile && swapon /swapfile",
                    size.to_string().replace(" GiB", "G")
                ),
            )
        };
    }
    let found = format!("{} of {} used", Size(memory.swap_used), Size(memory.swap_total));
    let status = by_level(percent(memory.swap_used, memory.swap_total), line::SWAP_WARN, line::SWAP_FAIL);
    graded("swap", status, found, "find who was swapped out: sort `grep VmSwap /proc/[0-9]*/status` by size".into())
}

fn swap_limits(facts: &HostFacts) -> Check {
    let name = "swap_limits";
    if facts.memory.swap_total == 0 {
        return ok(name, "no swap: a limit is what it says");
    }
    if let Some(group) = &facts.group {
        match group.swap_limit {
            Some(0) => {}
            Some(swap) => {
                let fix = format!(
                    "allow no extra swap: docker update --memory {m} --memory-swap {m} CONTAINER (memswap_limit in Compose)",
                    m = group.limit
                );
                let really = Size(group.limit.saturating_add(swap));
                return warn(
                    name,
                    format!("the limit of {} around us is really {really} with swap", Size(group.limit)),
                    fix,
                );
            }
            None => {
                return warn(
                    name,
                    format!(
                        "the limit of {} around us holds memory only, swap goes on top without bounds",
                        Size(group.limit)
                    ),
                    format!("set --memory-swap to {} where the limit is set", group.limit),
                );
            }
        }
    }
    if facts.tier.boundary != Boundary::Watchdog && !facts.tier.swap_accounting {
        return warn(
            name,
            "the kernel does not count swap: a tree at its line goes on in swap",
            "boot with swapaccount=1, or turn swap off: swapoff -a",
        );
    }
    ok(name, "swap is counted; `plimsoll run` allows none beyond --memory (docker run -m allows as much again)")
}

fn overcommit(facts: &HostFacts) -> Check {
    let name = "overcommit";
    if facts.panic_on_oom {
        return fail(
            name,
            "vm.panic_on_oom is set: the machine goes down where one process would",
            "sysctl -w vm.panic_on_oom=0",
        );
    }
    let Some(overcommit) = facts.overcommit else { return ok(name, "not readable") };
    match overcommit.mode {
        0 => ok(name, "by estimate (vm.overcommit_memory=0)"),
        1 => ok(name, "always (vm.overcommit_memory=1): allocations never fail, processes are killed instead"),
        mode => {
            let used = percent(overcommit.committed, overcommit.limit);
            let found = format!(
                "never (vm.overcommit_memory={mode}): {} of {} promised; at the limit allocations fail with memory left",
                Size(overcommit.committed),
                Size(overcommit.limit)
            );
            graded(name, by_level(used, 80, 95), found, "sysctl -w vm.overcommit_memory=0".into())
        }
    }
}

/// Whether sessions of a pool would each get a user of their own, and what keeps them apart otherwise.
fn isolation(facts: &HostFacts) -> Check {
    let name = "isolation";
    let kept = match facts.landlock {
        None => "can read each other's (this kernel has no Landlock, or has it switched off)".to_owned(),
        Some(version) => {
            let signals = if version < 6 { "signal each other and " } else { "" };
            format!("are kept to them by Landlock (version {version}) alone: they can {signals}ask our control socket")
        }
    };
    let shared = format!("each session gets folders of its own, but all run as one user and {kept}");
    if !facts.is_root {
        warn(name, format!("{shared}: only root can give each its own"), "run plimsoll up as root")
    } else if facts.tier.boundary == Boundary::Watchdog {
        warn(name, format!("{shared}: without groups that is so"), "mount a cgroup hierarchy that this user may write")
    } else {
        ok(name, "sessions of a pool each get folders and a user of their own")
    }
}

fn oom_score(facts: &HostFacts) -> Check {
    let name = "oom_score";
    match facts.oom_score_adj {
        None => ok(name, "not readable"),
        Some(-1000) => fail(
            name,
            "our oom_score_adj is -1000: every tree inherits it, and the kernel kills nobody at the line",
            "run with --oom-score-adj 0, or OOMScoreAdjust=0 in the service that starts plimsoll",
        ),
        Some(value @ ..=-1) => warn(
            name,
            format!("our oom_score_adj is {value}: trees inherit it, and the kernel prefers to kill others"),
            "run with --oom-score-adj 0, or OOMScoreAdjust=0 in the service that starts plimsoll",
        ),
        Some(value) => ok(name, format!("{value}: trees are not shielded from the kernel's choice")),
    }
}

fn pressure(facts: &HostFacts) -> Check {
    let name = "pressure";
    let Some(stalls) = facts.pressure else {
        return warn(name, "stall figures (PSI) are off: a machine that only swaps looks idle", "boot with psi=1");
    };
    let found = format!(
        "memory: some {:.1} %, full {:.1} %; io: some {:.1} % of the last 10 s",
        stalls.memory_some, stalls.memory_full, stalls.io_some
    );
    let status = if stalls.memory_full >= line::STALL_FAIL {
        Status::Fail
    } else if stalls.memory_some >= line::STALL_WARN {
        Status::Warn
    } else {
        Status::Ok
    };
    let fix = match facts.large.first() {
        Some(largest) => format!("end or limit the largest process: {}", short(largest)),
        None => "start fewer trees at a time, each with plimsoll run --memory".to_owned(),
    };
    graded(name, status, found, fix)
}

fn load(facts: &HostFacts) -> Check {
    let name = "load";
    let Some(load) = facts.load else { return ok(name, "not readable") };
    let status = by_level(load / f64::from(facts.processors.max(1)), line::LOAD_WARN, line::LOAD_FAIL);
    let found = format!("{load:.1} on {} processors", facts.processors);
    graded(name, status, found, "start fewer trees at a time, or give each a share: plimsoll run --cpus 1".into())
}

fn io_wait(facts: &HostFacts) -> Check {
    let name = "io_wait";
    let Some(wait) = facts.io_wait_percent else { return ok(name, "not readable") };
    let mut status = by_level(wait, line::IO_WARN, line::IO_FAIL);
    // A short look can meet a burst: to fail, the last ten seconds must say so as well, where they are known.
    if facts.pressure.is_some_and(|stalls| f64::from(stalls.io_some) < line::IO_WARN) {
        status = status.min(Status::Warn);
    }
    let thrashing = facts.memory.swap_used > 0 && status != Status::Ok;
    let found = format!(
        "{wait:.0} % of processor time waited for a disk{}",
        if thrashing { ", and swap is in use" } else { "" }
    );
    let fix = if thrashing {
        "hold the trees that swap: plimsoll run --memory … (no swap beyond it by default)"
    } else {
        "find who reads and writes: cat /proc/[0-9]*/io, or iotop"
    };
    graded(name, status, found, fix.into())
}

fn tasks(facts: &HostFacts) -> Check {
    let name = "tasks";
    let Some(tasks) = facts.tasks else { return ok(name, "not readable") };
    let status = by_level(percent(tasks.now, tasks.limit), line::TASKS_WARN, line::TASKS_FAIL);
    let found = format!("{} of {} processes and threads", tasks.now, tasks.limit);
    graded(name, status, found, "hold what forks: plimsoll run --pids-limit 512 -- COMMAND".into())
}

fn oom_kills(facts: &HostFacts) -> Check {
    let name = "oom_kills";
    let history = &facts.oom;
    let Some(kills) = &history.kills else {
        return match history.since_boot {
            Some(0) => ok(name, "none since boot"),
            Some(count) => warn(
                name,
                format!("{count} since boot; who it was is not readable here"),
                "read the kernel's log as root: dmesg -T | grep oom-kill",
            ),
            None => ok(name, "not readable"),
        };
    };
    let count = history.since_boot.unwrap_or(0).max(kills.len() as u64);
    let shown = |kills: &[&(Duration, OomKill)]| {
        kills.iter().take(3).map(|(age, kill)| one_kill(*age, kill)).collect::<Vec<_>>().join("; ")
    };
    // Those that met a line of ours are what the line is for.
    let (ours, others): (Vec<_>, Vec<_>) = kills.iter().partition(|(_, kill)| is_ours(kill));
    let Some((age, last)) = others.first() else {
        return match (count, ours.is_empty()) {
            (0, _) => ok(name, "none since boot"),
            (_, true) => ok(name, format!("{count} since boot, all older than the kernel's log")),
            (_, false) => {
                ok(name, format!("{count} since boot, the last ones at plimsoll's own lines: {}", shown(&ours)))
            }
        };
    };
    let found = format!("{count} since boot; last: {}", shown(&others));
    let hold = format!("hold {} at a line of its own: plimsoll run -m SIZE -- {}", last.task, last.task);
    let fix = match (last.scope, &last.oom_group) {
        (OomScope::Group, Some(group)) => format!("raise the limit of {group}, or {hold}"),
        _ => hold,
    };
    let recent = *age < Duration::from_secs(3600);
    let status = if recent && last.scope == OomScope::Host {
        Status::Fail
    } else if *age < Duration::from_secs(7 * 24 * 3600) {
        Status::Warn
    } else {
        Status::Ok
    };
    graded(name, status, found, fix)
}

/// It met the limit of a group that we made: `…/plimsoll/ID`.
fn is_ours(kill: &OomKill) -> bool {
    let group = kill.oom_group.as_deref().filter(|_| kill.scope == OomScope::Group);
    group.and_then(|group| group.rsplit('/').next()).is_some_and(|name| name.parse::<RunId>().is_ok())
}

fn one_kill(age: Duration, kill: &OomKill) -> String {
    let whose = match (kill.scope, &kill.oom_group) {
        (OomScope::Group, Some(group)) => format!("limit of {group}"),
        (OomScope::Group, None) => "a group's limit".to_owned(),
        (OomScope::Host, _) => "the machine ran out".to_owned(),
    };
    format!("{} (pid {}, {} ago, {whose})", kill.task, kill.pid, Time(age))
}

fn zombies(facts: &HostFacts) -> Check {
    let name = "zombies";
    let Some(worst) = facts.zombies.first() else { return ok(name, "none") };
    let parents = facts.zombies.iter().map(|group| {
        format!("{} ({}) of pid {} `{}`", group.count, group.example, group.parent, brief(&group.parent_command))
    });
    let fix = if worst.parent == 1 && facts.container.is_some() {
        "give the container an init that reaps: docker run --init (init: true in Compose)".to_owned()
    } else if worst.parent == 1 {
        "restart pid 1's program: it does not reap".to_owned()
    } else {
        format!("restart pid {}, which does not wait for its children: kill {}", worst.parent, worst.parent)
    };
    let status = if worst.count >= line::ZOMBIES_FAIL { Status::Fail } else { Status::Warn };
    graded(name, status, listed(parents, facts.zombies.len()), fix)
}

fn large_processes(facts: &HostFacts) -> Check {
    let name = "large_processes";
    let line = line_of(facts);
    let Some(largest) = facts.large.first() else {
        return ok(name, format!("none above a tenth of {}", Size(line)));
    };
    let shown = facts.large.iter().map(|fact| format!("{} {} %", short(fact), percent(fact.memory, line)));
    // Half as much again is room for an ordinary peak, rounded up to 64 MiB.
    let room = largest.memory.saturating_add(largest.memory / 2).checked_next_multiple_of(64 << 20).unwrap_or(line);
    let fix = format!("hold it at a line: plimsoll run -m {}m -- {}", room.min(line) >> 20, brief(&largest.command));
    let status = if percent(largest.memory, line) >= line::LARGE_FAIL { Status::Fail } else { Status::Warn };
    graded(name, status, listed(shown, facts.large.len()), fix)
}

fn orphans(facts: &HostFacts) -> Check {
    let name = "orphans";
    if facts.orphans.is_empty() {
        return ok(name, "no agents or browsers without a parent");
    }
    let sum = facts.orphans.iter().fold(0u64, |sum, fact| sum.saturating_add(fact.memory));
    let shown = facts.orphans.iter().map(|fact| format!("{}, {} old", short(fact), Time(fact.age)));
    let found = format!("{} holding {}: {}", facts.orphans.len(), Size(sum), listed(shown, facts.orphans.len()));
    let pids: Vec<String> = facts.orphans.iter().take(20).map(|fact| fact.pid.to_string()).collect();
    let status = if percent(sum, line_of(facts)) >= line::ORPHANS_FAIL { Status::Fail } else { Status::Warn };
    graded(name, status, found, format!("kill {} (and start them under plimsoll run)", pids.join(" ")))
}

fn leftovers(facts: &HostFacts) -> Check {
    let name = "leftovers";
    if facts.leftovers.is_empty() {
        return ok(name, "nothing of a former plimsoll");
    }
    let shown = facts.leftovers.iter().map(|left| match left.pids.len() {
        0 => left.what.clone(),
        1 => format!("{} (1 process)", left.what),
        count => format!("{} ({count} processes)", left.what),
    });
    let alive = facts.leftovers.iter().any(|left| !left.pids.is_empty());
    let status = if alive { Status::Fail } else { Status::Warn };
    graded(name, status, listed(shown, facts.leftovers.len()), clearing(&facts.leftovers))
}

/// How leftovers go: any verb sweeps a registered run; of another one (its file was lost, or is another Plimsoll's) no verb
/// would touch anything, so what to do is written out.
fn clearing(leftovers: &[Leftover]) -> String {
    const SHOWN: usize = 20;
    let unknown = || leftovers.iter().filter(|left| !left.registered);
    let mut pids: Vec<i32> = unknown().flat_map(|left| left.pids.iter().copied()).collect();
    pids.sort_unstable();
    pids.dedup();
    let pids: Vec<String> = pids.iter().take(SHOWN).map(i32::to_string).collect();
    let groups: Vec<String> =
        unknown().flat_map(|left| &left.groups).take(SHOWN).map(|dir| dir.display().to_string()).collect();
    let mut steps = Vec::new();
    if leftovers.iter().any(|left| left.registered) {
        steps.push("plimsoll run -- true".to_owned());
    }
    if !pids.is_empty() {
        steps.push(format!("kill -9 {}", pids.join(" ")));
    }
    if !groups.is_empty() {
        // The killed leave their group a moment later.
        steps.extend((!pids.is_empty()).then(|| "sleep 1".to_owned()));
        steps.push(format!("rmdir {}", groups.join(" ")));
    }
    steps.join("; ")
}

fn disk(facts: &HostFacts) -> Check {
    let name = "disk";
    let Some(disk) = &facts.state_disk else { return ok(name, "not readable") };
    let found = format!("{} of {} free for {}", Size(disk.available), Size(disk.total), disk.path.display());
    let status = if disk.available < line::DISK_FAIL {
        Status::Fail
    } else if disk.available < line::DISK_WARN {
        Status::Warn
    } else {
        Status::Ok
    };
    graded(name, status, found, "free some, or point PLIMSOLL_STATE_DIR at another disk".into())
}

/// A line for each default that this tier cannot enforce. (What is asked for explicitly and cannot be enforced is an
/// error of `run`, and listed with the boundary.)
#[must_use]
pub fn unenforced_defaults(facts: &HostFacts) -> Vec<Check> {
    let mut checks = Vec::new();
    let tier = &facts.tier;
    // `--memory-swap` equals `--memory` unless something else is asked for.
    if facts.memory.swap_total > 0 && tier.boundary == Boundary::Watchdog {
        checks.push(warn(
            "default_memory_swap",
            "no swap for trees is the default, and only the kernel can refuse it: here a tree may swap, and what it \
             swaps counts towards its line",
            "use a cgroup boundary, or turn swap off: swapoff -a",
        ));
    } else if facts.memory.swap_total > 0 && !tier.swap_accounting {
        checks.push(warn(
            "default_memory_swap",
            "no swap for trees is the default, and this kernel does not count swap: --memory holds memory alone",
            "boot with swapaccount=1, or turn swap off: swapoff -a",
        ));
    }
    checks
}

/// At most three, and how many more there are.
fn listed(items: impl Iterator<Item = String>, count: usize) -> String {
    let mut text = items.take(3).collect::<Vec<_>>().join("; ");
    if count > 3 {
        text += &format!("; and {} more", count - 3);
    }
    text
}

fn short(fact: &ProcessFact) -> String {
    format!("{} (pid {}) {}", brief(&fact.command), fact.pid, Size(fact.memory))
}

/// A command in at most sixty characters, on one line, without its secrets.
fn brief(command: &[String]) -> String {
    const LONGEST: usize = 60;
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    let plain = redact_command(command, &[]).join(" ");
    let mut text: String = plain.chars().map(clean).take(LONGEST + 1).collect();
    if text.chars().count() > LONGEST {
        text = text.chars().take(LONGEST - 1).collect();
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests;
