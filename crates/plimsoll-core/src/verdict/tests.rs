//! A small model of the kernel writes down what it would have written of a known cause; the verdict must find it again.

use std::collections::BTreeMap;
use std::time::Duration;

use plimsoll_model::ending::Victim as Sacrifice;
use plimsoll_model::ending::{Decision, Delta, Ending, GroupCounters, OomKill, OomScope, PassedOn, RootExit};
use plimsoll_model::{Cause, Confidence};
use proptest::prelude::*;

use super::{Verdict, verdict};

/// Histories that are judged; `PLIMSOLL_VERDICTS` asks for more.
const HISTORIES: u64 = 200_000;

const LIMIT: u64 = 64 << 20;

/// SplitMix64: a seed gives its history again.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Tier {
    V1,
    V2,
    /// On the bare machine: no group, pids are the log's.
    Watchdog,
    /// In a container with a limit, whose pids (and on v2 whose paths) are its own.
    Container,
}

/// Whose limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Limit {
    Own,
    Parent,
    Host,
    Neighbour,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Root,
    Child,
    /// A member in a group that the tree made for itself.
    Below,
    Neighbour,
}

/// The machine: groups `/`, the parent's, the tree's, a neighbour's elsewhere and one under the same parent.
struct Machine {
    tier: Tier,
    v2: bool,
    /// What a namespace hides of every path.
    outside: &'static str,
    /// What a namespace adds to every pid.
    pid_base: i32,
    kills: Vec<(Limit, Victim, bool)>,
}

const ROOT: i32 = 70;

impl Machine {
    fn kill(&mut self, limit: Limit, victim: Victim, in_parent: bool) {
        self.kills.push((limit, victim, in_parent));
    }

    fn count(&self, which: impl Fn(&(Limit, Victim, bool)) -> bool) -> u64 {
        self.kills.iter().filter(|kill| which(kill)).count() as u64
    }

    fn parent_path(&self) -> &'static str {
        match self.tier {
            Tier::V1 | Tier::V2 => "/plimsoll",
            Tier::Watchdog | Tier::Container => "/docker/abc",
        }
    }

    /// What the kernel logs of a kill.
    fn line(&self, &(limit, victim, in_parent): &(Limit, Victim, bool), pid: i32) -> OomKill {
        let (parent, outside) = (self.parent_path(), self.outside);
        let own = match self.tier {
            Tier::V1 | Tier::V2 => format!("{outside}{parent}/x"),
            Tier::Watchdog | Tier::Container => parent.to_owned(),
        };
        let neighbour = if in_parent { format!("{outside}{parent}/xy") } else { "/other/y".to_owned() };
        OomKill {
            scope: if limit == Limit::Host { OomScope::Host } else { OomScope::Group },
            oom_group: match limit {
                Limit::Own => Some(own.clone()),
                Limit::Parent => Some(format!("{outside}{parent}")),
                Limit::Host => None,
                Limit::Neighbour => Some(neighbour.clone()),
            },
            task_group: Some(match victim {
                Victim::Root | Victim::Child => own,
                Victim::Below => format!("{own}/sub"),
                Victim::Neighbour => neighbour,
            }),
            task: "hog, x".into(),
            pid: match victim {
                Victim::Root => ROOT + self.pid_base,
                Victim::Child | Victim::Below => ROOT + 1 + self.pid_base,
                Victim::Neighbour => pid,
            },
        }
    }

    fn counters(&self, random: &mut Random, cache: bool, counted: bool) -> (Option<GroupCounters>, Vec<GroupCounters>) {
        let source = if self.v2 { "memory.events" } else { "memory.oom_control" };
        let delta = |random: &mut Random, moved: u64| {
            let before = random.below(5);
            Delta { before, after: before + moved }
        };
        let own_oom = self.count(|(limit, ..)| *limit == Limit::Own);
        let own_kills = self.count(|(_, victim, _)| match victim {
            Victim::Root | Victim::Child => true,
            Victim::Below => self.v2,
            Victim::Neighbour => false,
        });
        // Page cache meets a line without a death; one of RAM and swap together is counted nowhere on v1.
        let hits = |met: u64, cache: bool| if counted || self.v2 { met * 9 + u64::from(cache) * 5 } else { 0 };
        let own = GroupCounters {
            path: format!("{}/x", self.parent_path()),
            source,
            oom_kill: Delta { before: 0, after: own_kills },
            // Several of its threads meet the line at once.
            oom: self.v2.then_some(Delta { before: 0, after: own_oom * 3 }),
            limit_hits: Some(Delta { before: 0, after: hits(own_oom, cache) }),
            limit: Some(LIMIT),
            peak: Some(if own_oom > 0 || cache {
                LIMIT - 4096 * random.below(30)
            } else {
                LIMIT / 2 + random.below(LIMIT / 3)
            }),
        };
        let parent_oom = self.count(|(limit, ..)| *limit == Limit::Parent);
        let inside_parent = |(_, victim, in_parent): &(Limit, Victim, bool)| *victim != Victim::Neighbour || *in_parent;
        let parent_kills = match (self.tier, self.v2) {
            // Without a group of ours the members are in the parent's own.
            (_, true) | (Tier::Container | Tier::Watchdog, _) => self.count(inside_parent),
            _ => 0,
        };
        let parent = GroupCounters {
            path: self.parent_path().into(),
            source,
            oom_kill: delta(random, parent_kills),
            oom: (self.v2 && matches!(self.tier, Tier::V1 | Tier::V2)).then(|| delta(random, parent_oom)),
            limit_hits: Some(delta(random, hits(parent_oom, false))),
            limit: Some(LIMIT * 2),
            peak: None,
        };
        let limited = parent_oom > 0 || !random.one_in(3);
        match self.tier {
            Tier::V1 | Tier::V2 => {
                let parent = GroupCounters { limit: limited.then_some(LIMIT * 2), ..parent };
                (Some(own), if limited || random.one_in(2) { vec![parent] } else { Vec::new() })
            }
            Tier::Container => {
                // In a cgroup namespace the container's own path is the root.
                let hidden = self.v2 && random.one_in(2);
                (None, vec![GroupCounters { path: if hidden { "/".into() } else { parent.path.clone() }, ..parent }])
            }
            Tier::Watchdog => (None, Vec::new()),
        }
    }
}

/// One history, the cause that it had, and what may be asked of the verdict.
struct History {
    ending: Ending,
    tier: Tier,
    truth: Cause,
    /// The kernel wrote enough to find it.
    told: bool,
    /// It must be certain.
    certain: bool,
    /// Members killed for memory, where they are counted.
    inside: Option<u64>,
}

const DECISIONS: usize = 7;

fn decision(which: usize) -> (Decision, Cause) {
    match which {
        0 => (Decision::MemoryLimit { usage: LIMIT + 1, limit: LIMIT }, Cause::MemoryLimit),
        1 => (
            Decision::MemoryLimitParent { whose: "container".into(), usage: LIMIT, limit: LIMIT },
            Cause::MemoryLimitParent,
        ),
        2 => (Decision::Timeout(Duration::from_secs(3)), Cause::Timeout),
        3 => (Decision::IdleTimeout(Duration::from_secs(3)), Cause::IdleTimeout),
        4 => (Decision::Stopped("SIGTERM was sent".into()), Cause::Stopped),
        5 => (Decision::Evicted("the budget".into()), Cause::Evicted),
        _ => (Decision::Recycled("10 turns".into()), Cause::Recycled),
    }
}

fn history(seed: u64) -> History {
    let random = &mut Random(seed);
    let tier = random.of(&[Tier::V1, Tier::V2, Tier::Watchdog, Tier::Container]);
    let v2 = match tier {
        Tier::V1 => false,
        Tier::V2 => true,
        Tier::Watchdog | Tier::Container => random.one_in(2),
    };
    let grouped = matches!(tier, Tier::V1 | Tier::V2);
    let mut machine = Machine {
        tier,
        v2,
        outside: if grouped && random.one_in(3) { "/docker/abc" } else { "" },
        pid_base: if tier == Tier::Container { 100_000 } else { 0 },
        kills: Vec::new(),
    };
    let log = random.one_in(2);
    let vmstat = !random.one_in(3);
    let cache = random.one_in(5);
    let counted = !random.one_in(3);
    let neighbours = if random.one_in(2) { 0 } else { random.below(3) };
    let same_pid = random.one_in(20);
    for _ in 0..neighbours {
        let limit = random.of(&[Limit::Neighbour, Limit::Neighbour, Limit::Host]);
        machine.kill(limit, Victim::Neighbour, grouped && random.one_in(2));
    }
    let in_group = [Limit::Own, Limit::Parent, Limit::Host];
    let without = [Limit::Parent, Limit::Host];
    // The bare machine has no group around the tree.
    let limits: &[Limit] = match tier {
        Tier::V1 | Tier::V2 => &in_group,
        Tier::Container => &without,
        Tier::Watchdog => &without[1..],
    };
    let for_limit = |limit| match limit {
        Limit::Own => Cause::MemoryLimit,
        Limit::Parent => Cause::MemoryLimitParent,
        Limit::Host | Limit::Neighbour => Cause::HostOom,
    };
    let victims = if grouped { &[Victim::Child, Victim::Below][..] } else { &[Victim::Child] };
    let (mut decided, certain, mut told);
    (decided, told) = (None, true);
    let (truth, exit) = match random.below(9) {
        0 => (Cause::StartFailed, RootExit::NotStarted { errno: random.of(&[2, 8, 13]) }),
        1 => {
            let signal = random.of(&[4, 5, 6, 7, 8, 11, 31]);
            (Cause::Crashed, RootExit::Signal(signal))
        }
        2 => {
            let code = random.of(&[0, 0, 1, 2, 77, 143, 255, 137, 247]);
            // A child that went for memory and was not what ended the root.
            if !matches!(code, 137 | 247) && random.one_in(3) {
                machine.kill(random.of(limits), random.of(victims), false);
            }
            (if code == 0 { Cause::Exited } else { Cause::Failed }, RootExit::Code(code))
        }
        3 => (Cause::ExternalKill, RootExit::Signal(9)),
        4 => {
            if random.one_in(4) {
                machine.kill(random.of(limits), random.of(victims), false);
            }
            (Cause::ExternalSignal, RootExit::Signal(random.of(&[1, 2, 10, 13, 14, 15, 24, 64])))
        }
        5 => {
            if random.one_in(4) {
                machine.kill(random.of(limits), random.of(victims), false);
            }
            let (decision, cause) = decision(random.below(DECISIONS as u64) as usize);
            decided = Some(decision);
            let exits =
                [RootExit::Signal(9), RootExit::Signal(15), RootExit::Code(0), RootExit::Code(143), RootExit::Unknown];
            (cause, random.of(&exits))
        }
        kind => {
            let limit = random.of(limits);
            let exit = random.of(&[RootExit::Signal(9), RootExit::Signal(9), RootExit::Code(137), RootExit::Code(247)]);
            if exit == RootExit::Signal(9) && random.one_in(2) {
                machine.kill(limit, Victim::Root, false);
            } else {
                machine.kill(limit, random.of(victims), false);
            }
            while random.one_in(4) {
                machine.kill(limit, random.of(victims), false);
            }
            // Nobody was there to wait.
            if kind == 8 && random.one_in(3) { (for_limit(limit), RootExit::Unknown) } else { (for_limit(limit), exit) }
        }
    };
    let for_memory =
        decided.is_none() && matches!(truth, Cause::MemoryLimit | Cause::MemoryLimitParent | Cause::HostOom);
    let (own, ancestors) = machine.counters(random, cache, counted);
    let mut lines: Vec<OomKill> = machine
        .kills
        .iter()
        .enumerate()
        .map(|(at, kill)| {
            // A neighbour's pid may be one of ours in another namespace.
            let pid = if machine.pid_base > 0 && same_pid { ROOT + (seed % 2) as i32 } else { 9000 + at as i32 };
            machine.line(kill, pid)
        })
        .collect();
    // Of a flood the kernel logs but the first ones.
    let flood = log && random.one_in(10);
    if flood {
        lines.truncate(random.below(lines.len() as u64 + 1) as usize);
    }
    let below = machine.kills.iter().any(|(_, victim, _)| *victim == Victim::Below);
    if for_memory {
        let quiet = !cache && counted && !below;
        told = match tier {
            Tier::V2 => true,
            Tier::V1 => (log && !flood) || quiet,
            // The log's pids are not ours; the counter above us says which group, and not whose limit.
            Tier::Container => !same_pid && truth == Cause::MemoryLimitParent,
            Tier::Watchdog => log && !flood,
        };
        certain = grouped
            && !flood
            && !matches!(exit, RootExit::Unknown | RootExit::Code(247))
            && (log || (v2 && truth == Cause::MemoryLimit));
    } else if decided.is_some() || matches!(truth, Cause::StartFailed | Cause::Crashed) {
        certain = true;
    } else {
        let none_inside = machine.kills.iter().all(|(_, victim, _)| *victim == Victim::Neighbour);
        let silent = match exit {
            // v1 counts nothing of what is killed further below, which is what such a code may report.
            RootExit::Code(137 | 247) => tier == Tier::V2,
            RootExit::Code(_) => true,
            _ => log && !flood && (tier == Tier::V2 || vmstat),
        };
        certain = none_inside && ((grouped && silent) || (vmstat && log && neighbours == 0));
        // A neighbour was killed for memory, and nothing says that it was none of ours.
        told = grouped || neighbours == 0 || (log && !same_pid);
    }
    let own_kills = machine.count(|(_, victim, _)| *victim != Victim::Neighbour);
    let ending = Ending {
        exit,
        interpreter: None,
        decision: decided,
        victims: Vec::new(),
        passed_on: None,
        own,
        ancestors,
        kmsg: log.then_some(lines),
        host_oom_kill: vmstat.then(|| Delta { before: 5, after: 5 + machine.kills.len() as u64 }),
        pids: vec![ROOT, ROOT + 1],
        unreadable: if log { vec![] } else { vec!["/dev/kmsg".into()] },
    };
    let inside = match tier {
        Tier::V2 => Some(own_kills),
        Tier::V1 => (log && !flood || !below).then_some(own_kills),
        Tier::Watchdog => (log && !flood).then_some(own_kills),
        Tier::Container => None,
    };
    History { ending, tier, truth, told, certain, inside }
}

fn check(seed: u64) -> (History, Verdict) {
    let history = history(seed);
    let judged = verdict(&history.ending);
    let History { ending, tier, truth, told, certain, inside } = &history;
    let of = || format!("seed {seed}: {tier:?} {truth:?} judged {judged:#?} on {ending:#?}");
    let sure = judged.confidence == Confidence::Certain;
    assert!(judged.cause == *truth || !sure, "certain and wrong: {}", of());
    assert!(judged.cause == *truth || !told, "wrong: {}", of());
    assert!(sure || !certain, "not certain: {}", of());
    assert!(!judged.evidence.is_empty(), "without evidence: {}", of());
    if truth != &Cause::StartFailed
        && let Some(inside) = inside
    {
        assert_eq!(judged.killed_inside, *inside, "{}", of());
    }
    // What was not readable is said, whenever it could have mattered.
    if !sure && ending.kmsg.is_none() {
        assert!(judged.evidence.iter().any(|e| e.detail.contains("/dev/kmsg")), "{}", of());
    }
    if sure && ending.decision.is_none() && is_for_memory(judged.cause) {
        assert!(names_kernel(&judged), "{}", of());
    }
    (history, judged)
}

fn is_for_memory(cause: Cause) -> bool {
    matches!(cause, Cause::MemoryLimit | Cause::MemoryLimitParent | Cause::HostOom)
}

/// A kernel counter that moved, or a line of its log.
fn names_kernel(judged: &Verdict) -> bool {
    judged.evidence.iter().any(|e| e.source == "kmsg" || (e.source.starts_with("memory.") && e.detail.contains("->")))
}

#[test]
fn causes_are_found_again() {
    let histories = std::env::var("PLIMSOLL_VERDICTS").ok().and_then(|n| n.parse().ok()).unwrap_or(HISTORIES);
    let mut right: BTreeMap<(Tier, bool), (u64, u64, u64)> = BTreeMap::new();
    for seed in 0..histories {
        let (history, judged) = check(seed);
        let row = right.entry((history.tier, history.ending.kmsg.is_some())).or_default();
        row.0 += 1;
        row.1 += u64::from(judged.cause == history.truth);
        row.2 += u64::from(judged.confidence == Confidence::Certain);
    }
    println!("{histories} histories, 0 certain and wrong");
    for ((tier, log), (all, right, certain)) in right {
        let percent = |n: u64| n as f64 * 100.0 / all as f64;
        println!("{tier:?}, log {log}: {:.1} % right, {:.1} % certain of {all}", percent(right), percent(certain));
    }
}

fn plain(exit: RootExit) -> Ending {
    Ending {
        exit,
        interpreter: None,
        decision: None,
        victims: Vec::new(),
        passed_on: None,
        own: None,
        ancestors: Vec::new(),
        kmsg: Some(Vec::new()),
        host_oom_kill: Some(Delta { before: 3, after: 3 }),
        pids: vec![ROOT],
        unreadable: Vec::new(),
    }
}

fn own(source: &'static str, kills: u64) -> GroupCounters {
    GroupCounters {
        path: "/plimsoll/x".into(),
        source,
        oom_kill: Delta { before: 0, after: kills },
        oom: None,
        limit_hits: None,
        limit: Some(LIMIT),
        peak: Some(LIMIT),
    }
}

fn line(oom_group: Option<&str>, task_group: &str, pid: i32) -> OomKill {
    OomKill {
        scope: if oom_group.is_some() { OomScope::Group } else { OomScope::Host },
        oom_group: oom_group.map(str::to_owned),
        task_group: Some(task_group.into()),
        task: "node".into(),
        pid,
    }
}

/// Without a group we kill the largest ourselves: no counter tells of it, and the root may report it.
#[test]
fn our_own_kills_speak_where_no_counter_does() {
    let killed = |exit| {
        let victim = Sacrifice { pid: 7, name: "tail".into(), memory_bytes: 60 << 20, reason: decision(0).0 };
        verdict(&Ending { victims: vec![victim], ..plain(exit) })
    };
    let judged = killed(RootExit::Code(137));
    assert_eq!((judged.cause, judged.confidence, judged.killed_inside), (Cause::MemoryLimit, Confidence::Certain, 1));
    assert_eq!(judged.evidence[0].detail, "tail (pid 7) held 60 MiB and was killed for the line of 64 MiB");
    assert_eq!(killed(RootExit::Code(247)).confidence, Confidence::Likely);
    let judged = killed(RootExit::Code(0));
    assert_eq!((judged.cause, judged.confidence), (Cause::Exited, Confidence::Certain));
    assert!(judged.evidence.iter().any(|e| e.detail.contains("tail (pid 7)")), "{judged:?}");
    let judged = killed(RootExit::Code(1));
    assert_eq!((judged.cause, judged.confidence), (Cause::Failed, Confidence::Likely));
    // Whoever killed the root later was not we.
    assert_eq!(killed(RootExit::Signal(9)).cause, Cause::ExternalKill);
}

#[test]
fn a_signal_that_came_through_us_is_known() {
    let passed = Some(PassedOn { signal: 2, sender: 812 });
    let judged = verdict(&Ending { passed_on: passed, kmsg: None, ..plain(RootExit::Signal(2)) });
    assert_eq!((judged.cause, judged.confidence), (Cause::ExternalSignal, Confidence::Certain));
    assert_eq!(judged.evidence[1].detail, "SIGINT came from pid 812 and was passed on");
    let judged = verdict(&Ending { passed_on: passed, kmsg: None, ..plain(RootExit::Signal(10)) });
    assert_eq!((judged.cause, judged.confidence), (Cause::ExternalSignal, Confidence::Likely));
}

#[test]
fn evidence_reads_well() {
    let mut ending = plain(RootExit::Signal(9));
    ending.own = Some(own("memory.oom_control", 1));
    ending.kmsg = Some(vec![line(Some("/plimsoll/x"), "/plimsoll/x", 123)]);
    ending.host_oom_kill = Some(Delta { before: 3, after: 4 });
    let judged = verdict(&ending);
    assert_eq!((judged.cause, judged.confidence, judged.killed_inside), (Cause::MemoryLimit, Confidence::Certain, 1));
    let told: Vec<String> = judged.evidence.iter().map(|e| format!("{}: {}", e.source, e.detail)).collect();
    assert_eq!(
        told,
        [
            "memory.oom_control: oom_kill 0 -> 1",
            "kmsg: oom-kill of node (pid 123) for the limit of /plimsoll/x",
            "wait status: ended by SIGKILL",
        ]
    );
}

#[test]
fn paths_are_compared_by_their_parts() {
    for (oom, task, cause) in [
        (Some("/plimsoll/x"), "/plimsoll/x", Some(Cause::MemoryLimit)),
        (Some("/plimsoll/x/sub"), "/plimsoll/x/sub/deep", Some(Cause::MemoryLimit)),
        (Some("/docker/abc/plimsoll/x"), "/docker/abc/plimsoll/x", Some(Cause::MemoryLimit)),
        (Some("/docker/abc"), "/docker/abc/plimsoll/x", Some(Cause::MemoryLimitParent)),
        (Some("/plimsoll"), "/plimsoll/x/sub", Some(Cause::MemoryLimitParent)),
        (Some("/"), "/plimsoll/x", Some(Cause::MemoryLimitParent)),
        (None, "/plimsoll/x", Some(Cause::HostOom)),
        (Some("/plimsoll/xy"), "/plimsoll/xy", None),
        (Some("/a/plimsoll/xy"), "/a/plimsoll/xy", None),
        (Some("/a"), "/aplimsoll/x", None),
        (None, "/", None),
        (None, "", None),
    ] {
        let mut ending = plain(RootExit::Signal(9));
        // v1 counts what was killed below not at all.
        ending.own = Some(own("memory.oom_control", u64::from(task.ends_with("/x"))));
        ending.kmsg = Some(vec![line(oom, task, 9)]);
        let judged = verdict(&ending);
        match cause {
            Some(cause) => assert_eq!((judged.cause, judged.confidence), (cause, Confidence::Certain), "{task}"),
            None => assert!(judged.evidence.iter().all(|e| !e.detail.contains("node")), "{task}: {judged:?}"),
        }
    }
}

#[test]
fn lines_that_disagree_are_not_certain() {
    let mut ending = plain(RootExit::Signal(9));
    ending.own = Some(own("memory.events", 2));
    ending.kmsg = Some(vec![line(None, "/plimsoll/x", ROOT), line(Some("/plimsoll/x"), "/plimsoll/x", 99)]);
    let judged = verdict(&ending);
    assert_eq!((judged.cause, judged.confidence), (Cause::HostOom, Confidence::Likely));
}

#[test]
fn a_container_without_groups() {
    let mut ending = plain(RootExit::Signal(9));
    ending.ancestors = vec![GroupCounters {
        path: "/docker/abc".into(),
        oom_kill: Delta { before: 1, after: 2 },
        limit_hits: Some(Delta { before: 0, after: 7 }),
        ..own("memory.oom_control", 0)
    }];
    ending.host_oom_kill = Some(Delta { before: 8, after: 9 });
    ending.kmsg = None;
    assert_eq!((verdict(&ending).cause, verdict(&ending).confidence), (Cause::MemoryLimitParent, Confidence::Likely));
    ending.kmsg = Some(vec![line(Some("/docker/abc"), "/docker/abc", ROOT)]);
    assert_eq!((verdict(&ending).cause, verdict(&ending).confidence), (Cause::MemoryLimitParent, Confidence::Certain));
    // Of this pid, and of another container.
    ending.ancestors[0].oom_kill.after = 1;
    ending.kmsg = Some(vec![line(Some("/docker/def"), "/docker/def", ROOT)]);
    assert_ne!(verdict(&ending).confidence, Confidence::Certain);
}

#[test]
fn nothing_to_go_by() {
    let mut ending = plain(RootExit::Unknown);
    ending.kmsg = None;
    ending.unreadable = vec!["/proc/vmstat".into()];
    let judged = verdict(&ending);
    assert_eq!((judged.cause, judged.confidence), (Cause::Unknown, Confidence::Possible));
    assert_eq!(judged.evidence.last().unwrap().detail, "not readable: /proc/vmstat, /dev/kmsg");
}

fn any_delta() -> impl Strategy<Value = Delta> {
    (any::<u64>(), any::<u64>()).prop_map(|(before, after)| Delta { before, after })
}

fn any_path() -> impl Strategy<Value = String> {
    prop_oneof!["(/[a-c]{0,2}){0,4}", "\\PC{0,12}", prop::sample::select(vec!["/a/b".to_owned(), "/".to_owned()])]
}

prop_compose! {
    fn any_group()(
        path in any_path(),
        source in prop::sample::select(vec!["memory.events", "memory.oom_control"]),
        oom_kill in any_delta(),
        oom in prop::option::of(any_delta()),
        limit_hits in prop::option::of(any_delta()),
        limit in prop::option::of(any::<u64>()),
        peak in prop::option::of(any::<u64>()),
    ) -> GroupCounters {
        GroupCounters { path, source, oom_kill, oom, limit_hits, limit, peak }
    }
}

prop_compose! {
    fn any_line()(
        host in any::<bool>(),
        oom_group in prop::option::of(any_path()),
        task_group in prop::option::of(any_path()),
        task in "\\PC{0,8}",
        pid in -2i32..6,
    ) -> OomKill {
        OomKill { scope: if host { OomScope::Host } else { OomScope::Group }, oom_group, task_group, task, pid }
    }
}

prop_compose! {
    fn any_victim()(pid in -2i32..6, memory_bytes in any::<u64>(), which in 0usize..2, name in "\\PC{0,8}") -> Sacrifice {
        Sacrifice { pid, name, memory_bytes, reason: decision(which).0 }
    }
}

prop_compose! {
    fn any_ending()(
        exit in prop_oneof![
            any::<i32>().prop_map(RootExit::Code),
            prop::sample::select(vec![RootExit::Signal(9), RootExit::Code(137), RootExit::Code(247), RootExit::Unknown]),
            any::<i32>().prop_map(RootExit::Signal),
            any::<i32>().prop_map(|errno| RootExit::NotStarted { errno }),
        ],
        decision in prop::option::of((0..DECISIONS).prop_map(|which| decision(which).0)),
        victims in prop::collection::vec(any_victim(), 0..5),
        passed_on in prop::option::of((any::<i32>(), any::<i32>()).prop_map(|(signal, sender)| PassedOn { signal, sender })),
        own in prop::option::of(any_group()),
        ancestors in prop::collection::vec(any_group(), 0..3),
        kmsg in prop::option::of(prop::collection::vec(any_line(), 0..6)),
        host_oom_kill in prop::option::of(any_delta()),
        pids in prop::collection::vec(-2i32..6, 0..4),
        unreadable in prop::collection::vec("\\PC{0,8}", 0..3),
    ) -> Ending {
        Ending { exit, interpreter: None, decision, victims, passed_on, own, ancestors, kmsg, host_oom_kill, pids, unreadable }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]
    #[test]
    fn any_facts_are_judged(ending in any_ending()) {
        let judged = verdict(&ending);
        prop_assert!(!judged.evidence.is_empty());
        let certain = judged.confidence == Confidence::Certain;
        if let (RootExit::NotStarted { .. }, _) | (_, Some(_)) = (ending.exit, &ending.decision) {
            prop_assert!(certain);
            return Ok(());
        }
        if is_for_memory(judged.cause) {
            prop_assert!(judged.killed_inside > 0);
            prop_assert!(!certain || names_kernel(&judged) || !ending.victims.is_empty(), "{judged:?}");
        }
        if matches!(ending.exit, RootExit::Unknown) || judged.cause == Cause::Unknown {
            prop_assert!(!certain);
        }
    }
}

#[test]
fn a_missing_interpreter_is_named() {
    let ending = plain(RootExit::NotStarted { errno: 2 });
    assert!(verdict(&ending).evidence[0].detail.contains("not found in PATH"));
    let verdict = verdict(&Ending { interpreter: Some("/nonexistent/x".into()), ..ending });
    assert_eq!((verdict.cause, verdict.confidence), (Cause::StartFailed, Confidence::Certain));
    let detail = &verdict.evidence[0].detail;
    assert!(detail.starts_with("ENOENT: the program is there") && detail.contains("/nonexistent/x"), "{detail}");
}
