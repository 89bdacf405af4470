//! Why a tree ended, drawn from the facts of its ending.
//!
//! | first that applies | cause | certain when |
//! |---|---|---|
//! | it was never executed | start_failed | always |
//! | a decision of ours | its cause | always |
//! | a crash signal | crashed | always (wait status) |
//! | SIGKILL, or the code 137, and a member was killed for memory | by whose limit, below | the kernel's log, or the group's own `oom`, names the limit |
//! | SIGKILL and nothing | external_kill | counters and kmsg are readable and silent |
//! | another signal | external_signal | the same |
//! | a code | exited, failed | the counters were read and did not move |
//! | nobody could wait for it | by the kills, else unknown | never |
//!
//! # Whose limit it was
//! v1 counts a kill in the victim's own group, whatever limit was the reason; v2 counts it there and in every group
//! above. So a moved `oom_kill` says that the kernel killed one of ours, not for whom. That is said by kmsg
//! (`oom_memcg`, or the machine), else by `oom` of `memory.events.local` (v2), else by which limit was hit at all
//! (`memory.failcnt`): likely then, unless no limit above and nothing on the machine can have been the reason.

use plimsoll_model::ending::{Decision, Ending, GroupCounters, OomKill, OomScope, RootExit};
use plimsoll_model::size::Human;
use plimsoll_model::{Cause, Confidence, Evidence, duration};

/// The judgement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Why.
    pub cause: Cause,
    /// How sure.
    pub confidence: Confidence,
    /// On what grounds, the weightiest first.
    pub evidence: Vec<Evidence>,
    /// Members that the kernel killed for memory.
    pub killed_inside: u64,
}

const SIGKILL: i32 = 9;

/// Signals of a fault of the program itself, with their names: numbers as on x86, Arm and RISC-V.
const CRASHES: [(i32, &str); 7] =
    [(4, "SIGILL"), (5, "SIGTRAP"), (6, "SIGABRT"), (7, "SIGBUS"), (8, "SIGFPE"), (11, "SIGSEGV"), (31, "SIGSYS")];

/// Name of a signal that ends a process by a fault of its own.
#[must_use]
pub fn crash_name(signal: i32) -> Option<&'static str> {
    CRASHES.iter().find(|(number, _)| *number == signal).map(|(_, name)| *name)
}

fn evidence(source: &str, detail: impl Into<String>) -> Evidence {
    Evidence { source: source.to_owned(), detail: detail.into() }
}

/// Draws the verdict.
#[must_use]
pub fn verdict(ending: &Ending) -> Verdict {
    let kills = Kills::of(ending);
    let mut judged = judge(ending, &kills);
    if judged.confidence != Confidence::Certain && !ending.unreadable.is_empty() {
        judged.evidence.push(evidence("plimsoll", format!("not readable: {}", ending.unreadable.join(", "))));
    }
    judged
}

fn judge(ending: &Ending, kills: &Kills<'_>) -> Verdict {
    let with = |cause, confidence, mut grounds: Vec<Evidence>, also: Vec<Evidence>| {
        grounds.extend(also);
        Verdict { cause, confidence, evidence: grounds, killed_inside: kills.count }
    };
    let wait_status = wait_status(ending.exit);
    if let RootExit::NotStarted { errno } = ending.exit {
        let words = errno_words(errno);
        return with(Cause::StartFailed, Confidence::Certain, vec![evidence("exec", words)], Vec::new());
    }
    if let Some(decision) = &ending.decision {
        let (cause, detail) = decided(decision);
        let also = kills.grounds().into_iter().chain(wait_status).collect();
        return with(cause, Confidence::Certain, vec![evidence("plimsoll", detail)], also);
    }
    let grounds = kills.grounds();
    match ending.exit {
        RootExit::Signal(signal) if crash_name(signal).is_some() => {
            with(Cause::Crashed, Confidence::Certain, wait_status.into_iter().collect(), grounds)
        }
        RootExit::Signal(SIGKILL) | RootExit::Code(137) | RootExit::Unknown if kills.count > 0 => {
            let (cause, confidence) = kills.whose(ending);
            // Nobody saw the root's end: the kill of some member need not have been the reason.
            let confidence =
                if ending.exit == RootExit::Unknown { confidence.min(Confidence::Likely) } else { confidence };
            with(cause, confidence, grounds, wait_status.into_iter().collect())
        }
        RootExit::Signal(signal) => {
            let cause = if signal == SIGKILL { Cause::ExternalKill } else { Cause::ExternalSignal };
            let silent = kills.readable && ending.kmsg.is_some() && kills.count == 0;
            // Another signal than SIGKILL is never the kernel's for memory, but without the log we have not looked.
            let confidence = if silent { Confidence::Certain } else { Confidence::Likely };
            let also = grounds.into_iter().chain(kills.silence(ending)).collect();
            with(cause, confidence, wait_status.into_iter().collect(), also)
        }
        RootExit::Code(code) => {
            let cause = if code == 0 { Cause::Exited } else { Cause::Failed };
            let confidence = if kills.readable && kills.count == 0 { Confidence::Certain } else { Confidence::Likely };
            with(cause, confidence, wait_status.into_iter().collect(), grounds)
        }
        RootExit::Unknown | RootExit::NotStarted { .. } => with(
            Cause::Unknown,
            Confidence::Possible,
            vec![evidence("wait status", "nobody was left to wait for the root")],
            kills.silence(ending),
        ),
    }
}

fn wait_status(exit: RootExit) -> Option<Evidence> {
    match exit {
        RootExit::Code(code) => Some(evidence("wait status", format!("exit code {code}"))),
        RootExit::Signal(signal) => {
            let name = crash_name(signal).map_or_else(
                || match signal {
                    1 => "SIGHUP".to_owned(),
                    2 => "SIGINT".to_owned(),
                    9 => "SIGKILL".to_owned(),
                    13 => "SIGPIPE".to_owned(),
                    14 => "SIGALRM".to_owned(),
                    15 => "SIGTERM".to_owned(),
                    number => format!("signal {number}"),
                },
                str::to_owned,
            );
            Some(evidence("wait status", format!("ended by {name}")))
        }
        RootExit::NotStarted { .. } | RootExit::Unknown => None,
    }
}

/// The error of exec in words, with its name.
#[must_use]
pub fn errno_words(errno: i32) -> String {
    match errno {
        2 => "ENOENT: no such file, or not found in PATH".into(),
        7 => "E2BIG: the arguments and the environment are too long".into(),
        8 => "ENOEXEC: no program that this machine can run (a script needs a first line such as #!/bin/sh)".into(),
        12 => "ENOMEM: no memory to start it".into(),
        13 => "EACCES: not executable, or not permitted".into(),
        20 => "ENOTDIR: a part of the path is no directory".into(),
        number => format!("error number {number}"),
    }
}

fn decided(decision: &Decision) -> (Cause, String) {
    match decision {
        Decision::MemoryLimit { usage, limit } => (
            Cause::MemoryLimit,
            format!("the tree held {} at its line of {}: it was ended", Human(*usage), Human(*limit)),
        ),
        Decision::MemoryLimitParent { whose, usage, limit } => (
            Cause::MemoryLimitParent,
            format!("{whose} held {} of its {}: the tree was ended before it", Human(*usage), Human(*limit)),
        ),
        Decision::Timeout(limit) => (Cause::Timeout, format!("it ran for {}", duration::Human(*limit))),
        Decision::IdleTimeout(limit) => {
            (Cause::IdleTimeout, format!("no byte on stdin, stdout or stderr for {}", duration::Human(*limit)))
        }
        Decision::Stopped(reason) => (Cause::Stopped, reason.clone()),
        Decision::Evicted(reason) => (Cause::Evicted, reason.clone()),
        Decision::Recycled(reason) => (Cause::Recycled, reason.clone()),
    }
}

/// What the kernel killed of ours for memory.
struct Kills<'e> {
    /// Members killed: by the group's counter, or by the log where there is no group.
    count: u64,
    /// The counters that would have told were readable.
    readable: bool,
    own: Option<&'e GroupCounters>,
    /// Log lines that speak of ours.
    lines: Vec<&'e OomKill>,
    /// A group above whose own counters moved, without a group of ours.
    around: Option<&'e GroupCounters>,
}

/// Whether `path` is `group` or below it. Inside a namespace our own names are shorter than the log's: then the log's
/// name ends with ours.
fn within(path: &str, group: &str) -> bool {
    path == group || path.strip_prefix(group).is_some_and(|rest| group.ends_with('/') || rest.starts_with('/'))
}

fn names_same(logged: &str, ours: &str) -> bool {
    logged == ours || (ours.len() > 1 && logged.ends_with(ours))
}

impl<'e> Kills<'e> {
    fn of(ending: &'e Ending) -> Self {
        let own = ending.own.as_ref();
        let lines: Vec<&OomKill> = ending
            .kmsg
            .iter()
            .flatten()
            .filter(|line| match own {
                // Ours: the victim's group is our group, or one that the tree made below it.
                Some(own) => line.task_group.as_deref().is_some_and(|group| {
                    names_same(group, &own.path) || within(group, &own.path) || contains_path(group, &own.path)
                }),
                None => ending.pids.contains(&line.pid),
            })
            .collect();
        // Without a group only a group above could have counted; the kill may have been a neighbour's.
        let around = ending.ancestors.iter().find(|group| own.is_none() && group.oom_kill.moved() > 0);
        let died_of_kill = matches!(ending.exit, RootExit::Signal(SIGKILL) | RootExit::Code(137) | RootExit::Unknown);
        let count = match own {
            Some(own) => own.oom_kill.moved().max(lines.len() as u64),
            None if !lines.is_empty() => lines.len() as u64,
            None if died_of_kill => around.map_or(0, |group| group.oom_kill.moved()),
            None => 0,
        };
        // The machine's counter moves for every kill: silent, it speaks for all groups.
        let host_silent = ending.host_oom_kill.is_some_and(|kills| kills.moved() == 0);
        // A machine-wide kill of an unreadable log may have been ours without a group to tell.
        let host_unclear = own.is_none()
            && count == 0
            && died_of_kill
            && ending.kmsg.is_none()
            && ending.host_oom_kill.is_some_and(|kills| kills.moved() > 0);
        let count = if host_unclear && ending.exit == RootExit::Signal(SIGKILL) { 1 } else { count };
        Self {
            count,
            readable: own.is_some() || host_silent || (own.is_none() && ending.kmsg.is_some()),
            own,
            lines,
            around,
        }
    }

    fn grounds(&self) -> Vec<Evidence> {
        let mut grounds = Vec::new();
        for group in self.own.iter().filter(|own| own.oom_kill.moved() > 0).chain(&self.around) {
            let moved = format!("oom_kill {} -> {}", group.oom_kill.before, group.oom_kill.after);
            let whose = if self.own.is_some() { String::new() } else { format!(" of {}", group.path) };
            grounds.push(evidence(group.source, moved + &whose));
        }
        for line in self.lines.iter().take(3) {
            let whose = match (line.scope, &line.oom_group) {
                (OomScope::Host, _) => "for want of memory on the machine".to_owned(),
                (OomScope::Group, Some(group)) => format!("for the limit of {group}"),
                (OomScope::Group, None) => "for the limit of a group".to_owned(),
            };
            grounds.push(evidence("kmsg", format!("oom-kill of {} (pid {}) {whose}", line.task, line.pid)));
        }
        grounds
    }

    /// What was looked at and said nothing.
    fn silence(&self, ending: &Ending) -> Vec<Evidence> {
        let mut silent = Vec::new();
        if let Some(own) = self.own
            && own.oom_kill.moved() == 0
        {
            silent.push(evidence(own.source, format!("oom_kill stayed {}", own.oom_kill.after)));
        }
        if ending.kmsg.is_some() && self.lines.is_empty() {
            silent.push(evidence("kmsg", "no oom-kill of this tree"));
        }
        if let Some(kills) = ending.host_oom_kill
            && kills.moved() == 0
        {
            silent.push(evidence("/proc/vmstat", "oom_kill did not move: the kernel killed nobody for memory"));
        }
        silent
    }

    /// Whose limit the kills were for.
    fn whose(&self, ending: &Ending) -> (Cause, Confidence) {
        // The log says it outright. Of several kills the last one belongs to the end.
        if let Some(line) = self.lines.last() {
            return match (line.scope, &line.oom_group, self.own) {
                (OomScope::Host, ..) => (Cause::HostOom, Confidence::Certain),
                (OomScope::Group, Some(group), Some(own)) => {
                    if names_same(group, &own.path) || within(group, &own.path) || contains_path(group, &own.path) {
                        (Cause::MemoryLimit, Confidence::Certain)
                    } else {
                        (Cause::MemoryLimitParent, Confidence::Certain)
                    }
                }
                (OomScope::Group, _, None) => (Cause::MemoryLimitParent, Confidence::Certain),
                (OomScope::Group, None, Some(_)) => (Cause::MemoryLimit, Confidence::Possible),
            };
        }
        let Some(own) = self.own else {
            return match self.around {
                Some(_) => (Cause::MemoryLimitParent, Confidence::Likely),
                None => (Cause::HostOom, Confidence::Possible),
            };
        };
        if let Some(oom) = own.oom {
            if oom.moved() > 0 {
                return (Cause::MemoryLimit, Confidence::Certain);
            }
            if ending.ancestors.iter().any(|group| group.oom.is_some_and(|oom| oom.moved() > 0)) {
                return (Cause::MemoryLimitParent, Confidence::Likely);
            }
            return (Cause::HostOom, Confidence::Likely);
        }
        let hit =
            |group: &GroupCounters| group.limit.is_some() && group.limit_hits.is_some_and(|hits| hits.moved() > 0);
        let at_line = own.limit.zip(own.peak).is_some_and(|(limit, peak)| peak + (1 << 20).max(limit / 100) >= limit);
        let above = ending.ancestors.iter().any(hit);
        match (hit(own) && at_line, above) {
            // Its own line was met and no other one was touched: nothing else can have been the reason, but that the
            // machine itself ran out at the same instant is only excluded by the log.
            (true, false) => (Cause::MemoryLimit, Confidence::Likely),
            (true, true) => (Cause::MemoryLimit, Confidence::Possible),
            (false, true) => (Cause::MemoryLimitParent, Confidence::Likely),
            (false, false) => (Cause::HostOom, Confidence::Likely),
        }
    }
}

/// A logged path that has our whole path as a run of its components: a group that the tree made below ours, seen from
/// outside our namespace.
fn contains_path(logged: &str, ours: &str) -> bool {
    ours.len() > 1 && (logged.contains(&format!("{ours}/")) || logged.ends_with(ours))
}

#[cfg(test)]
mod tests;
