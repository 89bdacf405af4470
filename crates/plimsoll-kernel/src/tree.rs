//! The members of a tree where no group lists them, and what they hold in memory.
//!
//! # Theory of operation
//! All members are descendants of one process that is a subreaper (the keeper), so `setsid` and double forks do not
//! leave: an orphan becomes the keeper's child. New members are found by looking at the pids that were given out since
//! the last look (`/proc/loadavg` names the newest one), or by a walk over `children` when there were many.
//!
//! Each member keeps its `statm` open. The descriptor belongs to that very process: when it has ended, the read says
//! ESRCH, however often its pid is used again. So one sample costs one system call a member.
//!
//! # Memory
//! What a tree holds is the sum of PSS and swapped PSS, which only `smaps_rollup` tells, at a cost that grows with the
//! process. Between two such measurements it is bounded from `statm`, which costs a microsecond:
//! - from above: last PSS, plus all that RSS grew by; RSS itself where there is no measurement yet,
//! - from below: last PSS, plus what anonymous memory grew by; for the unmeasured, the largest anonymous part of any one
//!   process, since its pages are in the tree whoever shares them.
//!
//! Between the bounds only a measurement decides ([`Tree::measure`]).

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use plimsoll_model::Member;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::clock::Instant;
use crate::procfs::{
    Process, for_each_pid, page_size, parse_children, parse_loadavg, parse_smaps_rollup, parse_stat, parse_statm,
    read_all_of, read_environ_of, read_of,
};

/// So many descriptors are kept for members; further ones are opened for each read.
const KEPT_OPEN: usize = 512;

/// A walk over the whole tree at least so often, in case a look at single pids missed somebody.
const WALK_EVERY: Duration = Duration::from_secs(5);

/// With more new pids than this a walk is cheaper than looking at each.
const FEW: i32 = 64;

/// Bounds of what a tree holds, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Held {
    /// It holds at least this.
    pub lower: u64,
    /// It holds at most this.
    pub upper: u64,
    /// Members that were counted.
    pub processes: u32,
}

#[derive(Debug)]
struct State {
    process: Process,
    parent: i32,
    name: String,
    statm: Option<OwnedFd>,
    /// Bytes resident, and those of them that are anonymous.
    rss: u64,
    anon: u64,
    measured: Option<Measured>,
}

#[derive(Debug, Clone, Copy)]
struct Measured {
    pss: u64,
    rss: u64,
    anon: u64,
}

impl State {
    fn upper(&self) -> u64 {
        match self.measured {
            Some(measured) => (measured.pss + self.rss).saturating_sub(measured.rss),
            None => self.rss,
        }
    }

    fn lower(&self) -> u64 {
        let Some(measured) = self.measured else { return 0 };
        // Anonymous growth counts; any shrinking counts in full.
        let grown = self.anon.saturating_sub(measured.anon);
        let shrunk = measured.rss.saturating_sub(self.rss);
        (measured.pss + grown).saturating_sub(shrunk).min(self.upper())
    }
}

/// A tree below a subreaper.
#[derive(Debug)]
pub struct Tree {
    /// The subreaper; itself no member.
    top: i32,
    root: Option<i32>,
    members: BTreeMap<i32, State>,
    loadavg: Option<OwnedFd>,
    last_pid: i32,
    walked: Option<Instant>,
    page: u64,
}

impl Tree {
    /// The tree below this process.
    #[must_use]
    pub fn below(top: i32) -> Self {
        Self {
            top,
            root: None,
            members: BTreeMap::new(),
            loadavg: rustix::fs::open("/proc/loadavg", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok(),
            last_pid: 0,
            walked: None,
            page: page_size(),
        }
    }

    /// Names the root, from which depths are counted.
    pub fn set_root(&mut self, pid: i32) {
        self.root = Some(pid);
        self.add(pid);
    }

    /// Finds new members. Cheap when no process was started on this machine since the last call.
    pub fn discover(&mut self) {
        let newest = self.newest_pid();
        let walk_due = self.walked.is_none_or(|walked| walked.elapsed() > WALK_EVERY);
        match newest {
            Some(newest) if !walk_due && newest == self.last_pid => {}
            Some(newest) if !walk_due && newest > self.last_pid && newest - self.last_pid <= FEW => {
                for pid in self.last_pid + 1..=newest {
                    self.add_if_member(pid);
                }
            }
            _ => self.walk(),
        }
        self.last_pid = newest.unwrap_or(0);
    }

    fn newest_pid(&self) -> Option<i32> {
        let mut buffer = [0; 128];
        let length = rustix::io::pread(self.loadavg.as_ref()?, &mut buffer, 0).ok()?;
        Some(parse_loadavg(&buffer[..length])?.last_pid)
    }

    fn add_if_member(&mut self, pid: i32) {
        if pid == self.top || self.members.contains_key(&pid) {
            return;
        }
        let mut buffer = [0; 1024];
        let parent = read_of(pid, "stat", &mut buffer).ok().and_then(parse_stat).map(|stat| stat.parent);
        if parent.is_some_and(|parent| parent == self.top || self.members.contains_key(&parent)) && is_leader(pid) {
            self.add(pid);
        }
    }

    fn walk(&mut self) {
        self.walked = Some(Instant::now());
        let mut open = vec![self.top];
        let mut text = Vec::new();
        let mut seen = std::collections::BTreeSet::new();
        while let Some(pid) = open.pop() {
            for thread in threads_of(pid) {
                let entry = format!("task/{thread}/children");
                if read_all_of(pid, &entry, &mut text).is_err() {
                    continue;
                }
                for child in parse_children(&text) {
                    if seen.insert(child) {
                        if !self.members.contains_key(&child) {
                            self.add(child);
                        }
                        open.push(child);
                    }
                }
            }
        }
    }

    fn add(&mut self, pid: i32) {
        let mut buffer = [0; 1024];
        let Some(stat) = read_of(pid, "stat", &mut buffer).ok().and_then(parse_stat) else { return };
        let state = State {
            process: Process { pid, start_ticks: stat.start_ticks },
            parent: stat.parent,
            name: String::from_utf8_lossy(stat.name).into_owned(),
            statm: if self.members.len() < KEPT_OPEN { open_statm(pid) } else { None },
            rss: 0,
            anon: 0,
            measured: None,
        };
        self.members.insert(pid, state);
    }

    /// Reads what each member holds now and bounds what the tree holds. Members that have ended are dropped.
    pub fn sample(&mut self) -> Held {
        let page = self.page;
        self.members.retain(|&pid, state| {
            let mut buffer = [0; 128];
            let read = match &state.statm {
                Some(fd) => rustix::io::pread(fd, &mut buffer, 0),
                None => read_of(pid, "statm", &mut buffer).map(<[u8]>::len),
            };
            match read {
                Ok(length) => {
                    let statm = parse_statm(&buffer[..length]).unwrap_or_default();
                    if statm.resident == 0
                        && let Some(thread) = live_thread(pid)
                    {
                        // The first thread has ended, others go on: only theirs tells of the memory.
                        state.statm = open_statm(thread);
                    }
                    state.rss = statm.resident * page;
                    state.anon = statm.resident.saturating_sub(statm.shared) * page;
                    true
                }
                Err(Errno::SRCH | Errno::NOENT) => false,
                Err(_) => true,
            }
        });
        self.held()
    }

    /// The bounds as of the last sample.
    #[must_use]
    pub fn held(&self) -> Held {
        let (mut held, mut largest_anon) = (Held::default(), 0);
        for state in self.members.values() {
            held.upper += state.upper();
            held.lower += state.lower();
            held.processes += 1;
            largest_anon = largest_anon.max(state.anon);
        }
        held.lower = held.lower.max(largest_anon).min(held.upper);
        held
    }

    /// Measures PSS and swapped PSS of the members whose bounds are furthest apart, until the bounds meet or about
    /// `bytes` of mappings were walked (a gigabyte takes some 10 ms). A process that is not ours to measure keeps its
    /// bounds.
    pub fn measure(&mut self, bytes: u64) -> Held {
        let mut apart: Vec<(u64, i32)> =
            self.members.iter().map(|(&pid, state)| (state.upper() - state.lower(), pid)).collect();
        apart.sort_unstable_by(|a, b| b.cmp(a));
        let mut walked = 0;
        for (difference, pid) in apart {
            if difference == 0 || walked >= bytes {
                break;
            }
            let Some(state) = self.members.get_mut(&pid) else { continue };
            walked += state.rss;
            let mut buffer = [0; 4096];
            let Some(rollup) = read_of(pid, "smaps_rollup", &mut buffer).ok().and_then(parse_smaps_rollup) else {
                continue;
            };
            // The anonymous part is statm's own reckoning, so that later differences compare like with like.
            let fresh = read_of(pid, "statm", &mut buffer).ok().and_then(parse_statm).unwrap_or_default();
            state.rss = rollup.rss;
            state.anon = fresh.resident.saturating_sub(fresh.shared) * self.page;
            state.measured = Some(Measured { pss: rollup.pss + rollup.swap_pss, rss: rollup.rss, anon: state.anon });
        }
        self.held()
    }

    /// The members as of the last sample, largest first, with depths below the root.
    #[must_use]
    pub fn members(&self) -> Vec<Member> {
        let mut members: Vec<Member> = self
            .members
            .values()
            .map(|state| Member {
                pid: state.process.pid,
                start_ticks: state.process.start_ticks,
                parent: state.parent,
                depth: self.depth(state.process.pid),
                name: state.name.clone(),
                memory_bytes: state.upper(),
            })
            .collect();
        members.sort_by(|a, b| b.memory_bytes.cmp(&a.memory_bytes).then(a.pid.cmp(&b.pid)));
        members
    }

    /// Steps below the root; an orphan that the keeper adopted counts as one step below it.
    fn depth(&self, pid: i32) -> u32 {
        let (mut pid, mut depth) = (pid, 0);
        while Some(pid) != self.root {
            depth += 1;
            match self.members.get(&pid) {
                Some(state) if state.parent != self.top && depth < 64 => pid = state.parent,
                _ => break,
            }
        }
        depth
    }

    /// Who is in the tree, for a record that outlives us.
    pub fn processes(&self) -> impl Iterator<Item = Process> + '_ {
        self.members.values().map(|state| state.process)
    }

    /// Sends SIGKILL to one member.
    pub fn kill(&self, pid: i32) {
        if let Some(state) = self.members.get(&pid) {
            kill_process(state.process);
        }
    }

    /// Sends SIGKILL to all members that are known now, the largest first.
    pub fn kill_known(&self) {
        let mut known: Vec<&State> = self.members.values().collect();
        known.sort_unstable_by_key(|state| std::cmp::Reverse(state.rss));
        for state in known {
            kill_process(state.process);
        }
    }

    /// Kills all members, and those being forked meanwhile, until nobody is left; `reap` waits for the dead that are
    /// this process's children. Answers who is left after half a minute: nobody, or a dead disk's.
    pub fn kill_until_empty(&mut self, mut reap: impl FnMut()) -> Vec<i32> {
        let start = Instant::now();
        let mut pause = Duration::from_micros(100);
        loop {
            self.walk();
            self.sample();
            let alive: Vec<Process> = self.processes().filter(|process| process.is_alive()).collect();
            if alive.is_empty() {
                reap();
                self.walk();
                self.sample();
                if !self.processes().any(Process::is_alive) {
                    return Vec::new();
                }
            }
            for process in &alive {
                kill_process(*process);
            }
            reap();
            if start.elapsed() > Duration::from_secs(30) {
                return alive.iter().map(|process| process.pid).collect();
            }
            std::thread::sleep(pause);
            // While there are few, waiting longer saves work; a bomb is met at full speed.
            pause =
                if alive.len() > 64 { Duration::from_micros(100) } else { (pause * 2).min(Duration::from_millis(10)) };
            reap();
        }
    }
}

/// Sends SIGKILL to a process, and to nobody who got its pid since.
pub fn kill_process(process: Process) {
    let Some(pid) = Pid::from_raw(process.pid) else { return };
    let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    // The handle pins whoever has the pid now; only then does the start time tell who that is.
    if process.is_alive() {
        let _ = pidfd_send_signal(handle, Signal::KILL);
    }
}

/// Makes the kernel choose anyone but the root: within a group, the one with the highest score goes first.
pub fn raise_scores(pids: impl Iterator<Item = i32>, root: i32) {
    for pid in pids.filter(|&pid| pid != root) {
        // Gone, or not ours to raise: the kernel then chooses by size alone.
        let _ = std::fs::write(format!("/proc/{pid}/oom_score_adj"), "1000");
    }
}

/// What members of a kernel group hold, largest first: RSS each, which shared pages make an upper bound.
#[must_use]
pub fn members_of_group(pids: &[i32], root: i32) -> Vec<Member> {
    let page = page_size();
    let mut members: Vec<Member> = pids
        .iter()
        .filter_map(|&pid| {
            let mut buffer = [0; 1024];
            let stat = parse_stat(read_of(pid, "stat", &mut buffer).ok()?)?;
            Some(Member {
                pid,
                start_ticks: stat.start_ticks,
                parent: stat.parent,
                depth: 0,
                name: String::from_utf8_lossy(stat.name).into_owned(),
                memory_bytes: stat.rss_pages * page,
            })
        })
        .collect();
    let parents: BTreeMap<i32, i32> = members.iter().map(|member| (member.pid, member.parent)).collect();
    for member in &mut members {
        let mut at = member.pid;
        while at != root && member.depth < 64 {
            member.depth += 1;
            match parents.get(&at) {
                Some(&parent) if parent == root || parents.contains_key(&parent) => at = parent,
                _ => break,
            }
        }
    }
    members.sort_by(|a, b| b.memory_bytes.cmp(&a.memory_bytes).then(a.pid.cmp(&b.pid)));
    members
}

/// A process's short name now; `None` when it is gone.
#[must_use]
pub fn name_of(pid: i32) -> Option<String> {
    let mut buffer = [0; 64];
    Some(String::from_utf8_lossy(read_of(pid, "comm", &mut buffer).ok()?.trim_ascii_end()).into_owned())
}

/// A process's command line, arguments separated, at most 4 KiB of it; `None` when it has none (any more).
#[must_use]
pub fn command_line(pid: i32) -> Option<Vec<String>> {
    let mut text = Vec::new();
    read_all_of(pid, "cmdline", &mut text).ok().filter(|()| !text.is_empty())?;
    text.truncate(4096);
    let parts = text.split(|&byte| byte == 0).filter(|part| !part.is_empty());
    Some(parts.map(|part| String::from_utf8_lossy(part).into_owned()).collect())
}

/// Everyone whose environment at exec had this line, us and those that cannot be read excepted.
#[must_use]
pub fn tagged(line: &str) -> Vec<Process> {
    let me = rustix::process::getpid().as_raw_nonzero().get();
    let (mut found, mut text) = (Vec::new(), Vec::new());
    let mut pids = Vec::new();
    if for_each_pid(|pid| pids.push(pid)).is_err() {
        return found;
    }
    for pid in pids.into_iter().filter(|&pid| pid != me) {
        let Ok(process) = Process::of(pid) else { continue };
        if read_environ_of(pid, &mut text).is_ok()
            && text.split(|&byte| byte == 0).any(|variable| variable == line.as_bytes())
        {
            found.push(process);
        }
    }
    found
}

fn open_statm(pid: i32) -> Option<OwnedFd> {
    let fd = rustix::fs::open(format!("/proc/{pid}/statm"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    // Descriptors below this are for stdio and friends; nothing depends on it but the order of closing.
    (fd.as_raw_fd() > 2).then_some(fd)
}

/// A pid names a thread's leader when a pidfd can be had for it; `/proc` would answer for other threads as well.
fn is_leader(pid: i32) -> bool {
    Pid::from_raw(pid).is_some_and(|pid| pidfd_open(pid, PidfdFlags::empty()).is_ok())
}

fn threads_of(pid: i32) -> Vec<i32> {
    let mut buffer = [0; 1024];
    let threads = read_of(pid, "stat", &mut buffer).ok().and_then(parse_stat).map_or(0, |stat| stat.threads);
    if threads == 1 {
        return vec![pid];
    }
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// A thread that still runs of a process whose first thread has ended.
fn live_thread(pid: i32) -> Option<i32> {
    let mut buffer = [0; 1024];
    let stat = parse_stat(read_of(pid, "stat", &mut buffer).ok()?)?;
    (stat.state == 'Z' && stat.threads > 1).then(|| threads_of(pid).into_iter().find(|&thread| thread != pid))?
}
