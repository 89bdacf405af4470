//! What the kernel killed of ours for memory, and for whose limit.

use plimsoll_model::ending::{Ending, GroupCounters, OomKill, OomScope, RootExit};
use plimsoll_model::size::Human;
use plimsoll_model::{Cause, Confidence, Evidence};

use super::evidence;

/// So many lines of the log are enough to make the point.
const LINES_SHOWN: usize = 3;

/// Whose limit a kill was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Own,
    Above,
    Host,
}

/// A line of the log about one of ours.
#[derive(Debug)]
struct Line<'e> {
    kill: &'e OomKill,
    /// `None` when the line does not say.
    whose: Option<Whose>,
    /// Nothing about it is guessed: group and limit are named, not only a pid, which may be another namespace's.
    sure: bool,
    /// The victim was in a group that the tree made below its own.
    below: bool,
    /// What the log has in front of our paths.
    outside: &'e str,
}

/// The kills, as far as they can be told.
#[derive(Debug)]
pub(super) struct Kills<'e> {
    ending: &'e Ending,
    own: Option<&'e GroupCounters>,
    lines: Vec<Line<'e>>,
    /// Lines about somebody in the group around us, which count when there is none about ours.
    near: Vec<Line<'e>>,
    /// Without a group of ours: the nearest group above in which somebody was killed.
    around: Option<&'e GroupCounters>,
    /// Members killed by the kernel; at least.
    pub(super) count: u64,
    /// Everything that would tell of a kill was read, and there was none.
    pub(super) none_for_sure: bool,
    /// The counters say that there was none, whether or not the log could be read.
    pub(super) counters_silent: bool,
}

/// v2 counts a kill in all groups above the victim's, v1 only in its own.
fn is_v2(group: &GroupCounters) -> bool {
    group.source == "memory.events"
}

/// A logged path as `outside + ours + below`, where `outside` is what our namespace hides. `None` when it is neither
/// our group nor below it.
fn place<'l>(logged: &'l str, ours: &str) -> Option<(&'l str, &'l str)> {
    if ours.len() < 2 || !ours.starts_with('/') || !logged.starts_with('/') {
        return None;
    }
    logged.match_indices(ours).find_map(|(at, _)| {
        let below = &logged[at + ours.len()..];
        (below.is_empty() || below.starts_with('/')).then(|| (&logged[..at], below))
    })
}

/// Whether `path` is `group` or below it.
fn within(path: &str, group: &str) -> bool {
    let group = group.strip_suffix('/').unwrap_or(group);
    path.strip_prefix(group).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether a logged path is this very group's, seen through a namespace perhaps.
fn is_group(logged: &str, ours: &str) -> bool {
    place(logged, ours).is_some_and(|(_, below)| below.is_empty())
}

fn moved(delta: Option<plimsoll_model::ending::Delta>) -> bool {
    delta.is_some_and(|delta| delta.moved() > 0)
}

/// The most that was charged came so near to the limit that it was met: the kernel charges by the page, and for each
/// processor some dozen pages ahead.
fn at_its_line(group: &GroupCounters) -> bool {
    group.limit.zip(group.peak).is_some_and(|(limit, peak)| peak.saturating_add((1 << 20).max(limit / 100)) >= limit)
}

impl<'e> Kills<'e> {
    pub(super) fn of(ending: &'e Ending) -> Self {
        let own = ending.own.as_ref();
        let logged = ending.kmsg.as_deref().unwrap_or_default();
        // Where nothing names the victim, the root's end may; not one that we brought about.
        let undecided = ending.decision.is_none();
        let around = match own {
            Some(_) => None,
            None => ending.ancestors.iter().find(|group| group.oom_kill.moved() > 0),
        };
        let lines: Vec<Line<'_>> = match own {
            Some(own) => logged.iter().filter_map(|kill| Line::of_group(kill, own)).collect(),
            None => logged.iter().filter_map(|kill| Line::of_pid(kill, ending)).collect(),
        };
        let near = match around.filter(|_| lines.is_empty() && undecided && ends_by_memory(ending.exit)) {
            Some(group) => logged.iter().filter_map(|kill| Line::of_around(kill, group)).collect(),
            None => Vec::new(),
        };
        let host = ending.host_oom_kill.map(|kills| kills.moved());
        // The kernel logs at most ten kills in five seconds, and counts all.
        let all_logged = ending.kmsg.is_some() && host.is_some_and(|kills| kills <= logged.len() as u64);
        let strays = own.is_some() && logged.iter().any(|kill| ending.pids.contains(&kill.pid)) && lines.is_empty();

        let killed = undecided && ending.exit == RootExit::Signal(9);
        let counted = own.map_or(0, |own| own.oom_kill.moved());
        let count = match own {
            Some(own) if is_v2(own) => counted.max(lines.len() as u64),
            Some(_) => {
                let below = lines.iter().filter(|line| line.below).count();
                counted.max((lines.len() - below) as u64) + below as u64
            }
            None if !lines.is_empty() => lines.len() as u64,
            // Of a neighbour perhaps; but the root's end fits.
            None if undecided && around.is_some() && ends_by_memory(ending.exit) => 1,
            // Somebody was killed for memory, nobody says who, and the root was killed.
            None if killed && ending.kmsg.is_none() && host.is_some_and(|kills| kills > 0) => 1,
            None => 0,
        };
        let none = count == 0 && lines.is_empty();
        let counters_silent = none
            && match own {
                // v1 counts nothing of what was killed in a group that the tree made below its own.
                Some(own) if is_v2(own) || !ends_by_memory(ending.exit) => true,
                _ => host == Some(0) || all_logged,
            };
        let none_for_sure = none
            && ending.kmsg.is_some()
            && match own {
                Some(own) => !strays && (is_v2(own) || all_logged),
                // In another pid namespace than the log's, one of ours would not be known by its pid.
                None => host == Some(0),
            };
        Self { ending, own, lines, near, around, count, none_for_sure, counters_silent }
    }

    /// Whose limit the kills were for, given that they ended the tree.
    pub(super) fn whose(&self) -> (Cause, Confidence) {
        if let Some(judged) = self.by_log() {
            return judged;
        }
        match self.own {
            Some(own) if own.oom.is_some() => self.by_own_oom(own),
            Some(own) => self.by_line(own),
            None => match self.around {
                // Killed in it, and its limit was not even touched: for a group further up, or for the machine.
                Some(group) if is_v2(group) && group.limit_hits.is_some() && !moved(group.limit_hits) => {
                    (Cause::HostOom, Confidence::Possible)
                }
                Some(_) => (Cause::MemoryLimitParent, Confidence::Likely),
                None => (Cause::HostOom, Confidence::Possible),
            },
        }
    }

    /// The log says it outright, where it has a line about ours.
    fn by_log(&self) -> Option<(Cause, Confidence)> {
        let root = self.ending.pids.first();
        let told: Vec<(&Line<'_>, Whose)> = self.lines.iter().filter_map(|line| Some((line, line.whose?))).collect();
        // The root's own line belongs to the end, else the last one does.
        let (line, whose) = told.iter().find(|(line, _)| Some(&line.kill.pid) == root).or(told.last())?;
        let agreed = told.iter().all(|(line, other)| other == whose && line.sure) && told.len() == self.lines.len();
        let counted = match self.own {
            None => true,
            Some(own) => own.oom_kill.moved() > 0 || (!is_v2(own) && self.lines.iter().all(|line| line.below)),
        };
        let fits = match whose {
            Whose::Own | Whose::Host => true,
            // The group that the log names would have to know of it, where it can be asked (v2).
            Whose::Above => line.kill.oom_group.as_deref().is_some_and(|logged| {
                let ours = logged.strip_prefix(line.outside);
                let named = self.ending.ancestors.iter().find(|group| ours == Some(group.path.as_str()));
                named.is_none_or(|group| group.oom.is_none_or(|oom| oom.moved() > 0))
            }),
        };
        let cause = match whose {
            Whose::Own => Cause::MemoryLimit,
            Whose::Above => Cause::MemoryLimitParent,
            Whose::Host => Cause::HostOom,
        };
        Some((cause, if agreed && counted && fits { Confidence::Certain } else { Confidence::Likely }))
    }

    /// v2: `oom` of `memory.events.local` moves only for the group whose own limit was met.
    fn by_own_oom(&self, own: &GroupCounters) -> (Cause, Confidence) {
        let above = self.ending.ancestors.iter().any(|group| match group.oom {
            Some(oom) => oom.moved() > 0,
            None => group.limit.is_some() && group.oom_kill.moved() > 0 && moved(group.limit_hits),
        });
        match (moved(own.oom), above) {
            (true, false) if own.oom_kill.moved() > 0 => (Cause::MemoryLimit, Confidence::Certain),
            (true, _) => (Cause::MemoryLimit, Confidence::Likely),
            (false, true) => (Cause::MemoryLimitParent, Confidence::Likely),
            (false, false) => (Cause::HostOom, self.host_confidence()),
        }
    }

    /// v1: nothing tells the limit but that it was met. Page cache meets it as well, so this proves nothing; and a
    /// limit of RAM and swap together, when it equals that of RAM, is met first and counted nowhere.
    fn by_line(&self, own: &GroupCounters) -> (Cause, Confidence) {
        let own_met = own.limit.is_some()
            && match own.peak {
                Some(_) => at_its_line(own),
                None => moved(own.limit_hits),
            };
        let limited = || self.ending.ancestors.iter().filter(|group| group.limit.is_some());
        let above_met = limited().any(|group| moved(group.limit_hits));
        match (own_met, above_met) {
            (true, false) => (Cause::MemoryLimit, Confidence::Likely),
            (true, true) => (Cause::MemoryLimit, Confidence::Possible),
            (false, true) => (Cause::MemoryLimitParent, Confidence::Likely),
            (false, false) if limited().any(at_its_line) => (Cause::MemoryLimitParent, Confidence::Possible),
            (false, false) if limited().next().is_some() => (Cause::HostOom, Confidence::Possible),
            (false, false) => (Cause::HostOom, self.host_confidence()),
        }
    }

    /// Every limit that we know of is excluded.
    fn host_confidence(&self) -> Confidence {
        match self.ending.host_oom_kill {
            Some(kills) if kills.moved() > 0 => Confidence::Likely,
            _ => Confidence::Possible,
        }
    }

    /// What speaks for the kills, the weightiest first.
    pub(super) fn grounds(&self) -> Vec<Evidence> {
        let mut grounds = Vec::new();
        let mut counter = |file: &str, name: &str, delta: Option<plimsoll_model::ending::Delta>, whose: &str| {
            if let Some(delta) = delta.filter(|delta| delta.moved() > 0) {
                grounds.push(evidence(file, format!("{name} {} -> {}{whose}", delta.before, delta.after)));
            }
        };
        if let Some(own) = self.own {
            counter(own.source, "oom_kill", Some(own.oom_kill), "");
            if own.oom_kill.moved() > 0 {
                counter("memory.events.local", "oom", own.oom, "");
            }
        }
        if self.count > 0 {
            for group in &self.ending.ancestors {
                let whose = format!(" of {}", group.path);
                counter("memory.events.local", "oom", group.oom, &whose);
                if self.own.is_none() {
                    counter(group.source, "oom_kill", Some(group.oom_kill), &whose);
                }
                if group.oom.is_none() && group.limit.is_some() {
                    let (file, name) = if is_v2(group) { ("memory.events", "max") } else { ("memory.failcnt", "hits") };
                    counter(file, name, group.limit_hits, &whose);
                }
            }
        }
        for Line { kill, .. } in self.lines.iter().chain(&self.near).take(LINES_SHOWN) {
            let whose = match (kill.scope, &kill.oom_group) {
                (OomScope::Host, _) => "for want of memory on the machine".to_owned(),
                (OomScope::Group, Some(group)) => format!("for the limit of {group}"),
                (OomScope::Group, None) => "for the limit of a group".to_owned(),
            };
            grounds.push(evidence("kmsg", format!("oom-kill of {} (pid {}) {whose}", kill.task, kill.pid)));
        }
        if self.lines.len() > LINES_SHOWN {
            grounds.push(evidence("kmsg", format!("and {} more", self.lines.len() - LINES_SHOWN)));
        }
        if self.lines.is_empty() && self.count > 0 {
            if let Some(own) = self.own.filter(|own| own.oom.is_none())
                && let Some((peak, limit)) = own.peak.zip(own.limit)
            {
                let detail = format!("the peak was {} of {}", Human(peak), Human(limit));
                grounds.push(evidence("memory.max_usage_in_bytes", detail));
            }
            if let Some(kills) = self.ending.host_oom_kill.filter(|kills| kills.moved() > 0) {
                let detail = format!("oom_kill {} -> {} on the whole machine", kills.before, kills.after);
                grounds.push(evidence("/proc/vmstat", detail));
            }
        }
        grounds
    }

    /// What speaks against any kill.
    pub(super) fn silence(&self) -> Vec<Evidence> {
        let mut silent = Vec::new();
        if let Some(own) = self.own.filter(|own| own.oom_kill.moved() == 0) {
            silent.push(evidence(own.source, format!("oom_kill stayed {}", own.oom_kill.after)));
        }
        if self.ending.kmsg.is_some() && self.lines.is_empty() {
            silent.push(evidence("kmsg", "no oom-kill of this tree"));
        }
        if let Some(kills) = self.ending.host_oom_kill {
            let detail = match kills.moved() {
                0 => "oom_kill did not move: the kernel killed nobody for memory".to_owned(),
                _ => format!("oom_kill {} -> {} on the whole machine", kills.before, kills.after),
            };
            silent.push(evidence("/proc/vmstat", detail));
        }
        silent
    }
}

impl<'e> Line<'e> {
    /// A victim in our group or below it.
    fn of_group(kill: &'e OomKill, own: &GroupCounters) -> Option<Self> {
        let (outside, below) = place(kill.task_group.as_deref()?, &own.path)?;
        let below = !below.is_empty();
        let (whose, sure) = match (kill.scope, kill.oom_group.as_deref()) {
            (OomScope::Host, _) => (Some(Whose::Host), true),
            (OomScope::Group, None) => (None, false),
            (OomScope::Group, Some(group)) => {
                let ours = format!("{outside}{}", own.path);
                if within(group, &ours) { (Some(Whose::Own), true) } else { (Some(Whose::Above), within(&ours, group)) }
            }
        };
        Some(Self { kill, whose, sure, below, outside })
    }

    /// Without a group, a victim whose pid was once seen in the tree.
    fn of_pid(kill: &'e OomKill, ending: &Ending) -> Option<Self> {
        if !ending.pids.contains(&kill.pid) {
            return None;
        }
        let is_root = ending.pids.first() == Some(&kill.pid);
        let whose = match kill.scope {
            OomScope::Host => Whose::Host,
            OomScope::Group => Whose::Above,
        };
        // The log's pids are those of the machine's own namespace: the same number elsewhere is a coincidence, and only
        // with the group that we are in beside it is it none.
        let known = || ending.ancestors.iter().filter(|group| group.path.len() > 1);
        let task_group = kill.task_group.as_deref().unwrap_or_default();
        if known().next().is_some() && !known().any(|group| place(task_group, &group.path).is_some()) {
            return None;
        }
        let sure = is_root
            && ending.ancestors.iter().any(|group| {
                let logged = match kill.scope {
                    OomScope::Host => place(task_group, &group.path).is_some(),
                    OomScope::Group => kill.oom_group.as_deref().is_some_and(|oom| is_group(oom, &group.path)),
                };
                logged && group.oom_kill.moved() > 0
            });
        Some(Self { kill, whose: Some(whose), sure, below: false, outside: "" })
    }

    /// Without a group of ours, somebody in the one around us.
    fn of_around(kill: &'e OomKill, group: &GroupCounters) -> Option<Self> {
        let (outside, below) = place(kill.task_group.as_deref()?, &group.path)?;
        let whose = match (kill.scope, kill.oom_group.as_deref()) {
            (OomScope::Host, _) => Whose::Host,
            // For the limit of a neighbour below the same group.
            (OomScope::Group, Some(oom)) if place(oom, &group.path).is_some_and(|(_, below)| !below.is_empty()) => {
                return None;
            }
            (OomScope::Group, _) => Whose::Above,
        };
        Some(Self { kill, whose: Some(whose), sure: false, below: !below.is_empty(), outside })
    }
}

/// An end that the death of a member by the kernel may stand behind: the root's own, or one that the root reported.
pub(super) fn ends_by_memory(exit: RootExit) -> bool {
    matches!(exit, RootExit::Signal(9) | RootExit::Code(137 | 247) | RootExit::Unknown)
}
