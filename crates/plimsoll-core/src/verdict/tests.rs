use std::time::Duration;

use plimsoll_model::ending::{Decision, Delta, Ending, GroupCounters, OomKill, OomScope, RootExit};
use plimsoll_model::{Cause, Confidence};
use proptest::prelude::*;

use super::verdict;

/// Which boundary the history happened in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tier {
    V1,
    V2,
    Watchdog,
}

/// What really happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Truth {
    Exit(i32),
    Crash(i32),
    OwnLine { reported: bool },
    ParentLine,
    Host,
    OutsideKill,
    OutsideSignal(i32),
    Timeout,
    Stopped,
    NotStarted,
}

impl Truth {
    fn cause(self) -> Cause {
        match self {
            Self::Exit(0) => Cause::Exited,
            Self::Exit(_) => Cause::Failed,
            Self::Crash(_) => Cause::Crashed,
            Self::OwnLine { .. } => Cause::MemoryLimit,
            Self::ParentLine => Cause::MemoryLimitParent,
            Self::Host => Cause::HostOom,
            Self::OutsideKill => Cause::ExternalKill,
            Self::OutsideSignal(_) => Cause::ExternalSignal,
            Self::Timeout => Cause::Timeout,
            Self::Stopped => Cause::Stopped,
            Self::NotStarted => Cause::StartFailed,
        }
    }
}

fn delta(before: u64, moved: u64) -> Delta {
    Delta { before, after: before + moved }
}

/// Writes down what the kernel would have written: the model of `reference/kernel.md`'s facts.
fn ending(truth: Truth, tier: Tier, log: bool, vmstat: bool, noise: u64, namespace: bool) -> Ending {
    let own_path = "/plimsoll/x";
    let logged = |path: &str| if namespace { format!("/docker/abc{path}") } else { path.to_owned() };
    let limit = 64 << 20;
    let killed = u64::from(matches!(truth, Truth::OwnLine { .. } | Truth::ParentLine | Truth::Host));
    let own_hit = u64::from(matches!(truth, Truth::OwnLine { .. }));
    let parent_hit = u64::from(truth == Truth::ParentLine);
    let counters = |v2: bool| GroupCounters {
        path: own_path.into(),
        source: if v2 { "memory.events" } else { "memory.oom_control" },
        oom_kill: delta(0, killed),
        oom: v2.then(|| delta(0, own_hit)),
        limit_hits: Some(delta(0, own_hit * 9)),
        limit: Some(limit),
        peak: Some(if own_hit > 0 { limit } else { limit / 3 }),
    };
    let parent = |v2: bool| GroupCounters {
        path: "/plimsoll".into(),
        source: "memory.events",
        // v1 counts only in the victim's own group; v2 in all above.
        oom_kill: delta(noise, if v2 { killed } else { 0 }),
        oom: v2.then(|| delta(noise, parent_hit)),
        limit_hits: Some(delta(noise, parent_hit)),
        limit: Some(limit * 2),
        peak: None,
    };
    let container = GroupCounters {
        path: "/docker/abc".into(),
        oom_kill: delta(noise, parent_hit),
        oom: None,
        limit_hits: Some(delta(noise, parent_hit)),
        ..parent(false)
    };
    let mut lines: Vec<OomKill> = (0..noise)
        .map(|n| OomKill {
            scope: OomScope::Group,
            oom_group: Some("/other".into()),
            task_group: Some("/other/y".into()),
            task: "stranger".into(),
            pid: 9000 + n as i32,
        })
        .collect();
    if killed > 0 {
        lines.push(OomKill {
            scope: if truth == Truth::Host { OomScope::Host } else { OomScope::Group },
            oom_group: match truth {
                Truth::OwnLine { .. } => Some(logged(own_path)),
                Truth::ParentLine => Some(logged("/plimsoll")),
                _ => None,
            },
            task_group: Some(logged(own_path)),
            task: "hog".into(),
            pid: 77,
        });
    }
    Ending {
        exit: match truth {
            Truth::Exit(code) => RootExit::Code(code),
            Truth::Crash(signal) | Truth::OutsideSignal(signal) => RootExit::Signal(signal),
            Truth::OwnLine { reported: true } => RootExit::Code(137),
            Truth::Stopped => RootExit::Signal(15),
            Truth::NotStarted => RootExit::NotStarted { errno: 2 },
            _ => RootExit::Signal(9),
        },
        decision: match truth {
            Truth::Timeout => Some(Decision::Timeout(Duration::from_secs(3))),
            Truth::Stopped => Some(Decision::Stopped("asked".into())),
            Truth::OwnLine { .. } if tier == Tier::Watchdog => Some(Decision::MemoryLimit { usage: limit + 1, limit }),
            _ => None,
        },
        own: match tier {
            Tier::V1 => Some(counters(false)),
            Tier::V2 => Some(counters(true)),
            Tier::Watchdog => None,
        },
        ancestors: match tier {
            Tier::V1 => vec![parent(false)],
            Tier::V2 => vec![parent(true)],
            Tier::Watchdog => vec![container],
        },
        kmsg: log.then_some(lines),
        host_oom_kill: vmstat.then(|| delta(5, killed + noise)),
        pids: vec![76, 77],
        unreadable: if log { vec![] } else { vec!["/dev/kmsg".into()] },
    }
}

fn truths() -> impl Strategy<Value = Truth> {
    prop_oneof![
        prop::sample::select(vec![0, 1, 2, 77, 137, 143, 255]).prop_map(Truth::Exit),
        prop::sample::select(vec![4, 5, 6, 7, 8, 11, 31]).prop_map(Truth::Crash),
        any::<bool>().prop_map(|reported| Truth::OwnLine { reported }),
        Just(Truth::ParentLine),
        Just(Truth::Host),
        Just(Truth::OutsideKill),
        prop::sample::select(vec![1, 2, 13, 14, 15, 10, 64]).prop_map(Truth::OutsideSignal),
        Just(Truth::Timeout),
        Just(Truth::Stopped),
        Just(Truth::NotStarted),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100_000))]
    #[test]
    fn never_certain_and_wrong_and_right_where_the_kernel_tells(
        truth in truths(),
        tier in prop::sample::select(vec![Tier::V1, Tier::V2, Tier::Watchdog]),
        log in any::<bool>(),
        vmstat in any::<bool>(),
        noise in 0u64..3,
        namespace in any::<bool>(),
    ) {
        let facts = ending(truth, tier, log, vmstat, noise, namespace);
        let judged = verdict(&facts);
        let right = judged.cause == truth.cause();
        prop_assert!(right || judged.confidence != Confidence::Certain, "{truth:?} judged {judged:?} on {facts:?}");
        // With the log, or with a group's counters, the cause is determined.
        if log || tier != Tier::Watchdog {
            prop_assert!(right, "{truth:?} judged {judged:?} on {facts:?}");
        }
        let certain = judged.confidence == Confidence::Certain;
        if matches!(truth, Truth::Timeout | Truth::Stopped | Truth::NotStarted | Truth::Crash(_)) {
            prop_assert!(certain);
        }
        if log && tier != Tier::Watchdog {
            prop_assert!(certain, "{truth:?} judged {judged:?}");
        }
        if matches!(truth, Truth::OwnLine { .. }) && tier == Tier::V2 {
            prop_assert!(certain, "{truth:?} judged {judged:?}");
        }
        prop_assert!(!judged.evidence.is_empty());
    }
}

fn any_delta() -> impl Strategy<Value = Delta> {
    (any::<u64>(), any::<u64>()).prop_map(|(before, after)| Delta { before, after })
}

fn any_group() -> impl Strategy<Value = GroupCounters> {
    (
        "[/a-z]{0,12}",
        any_delta(),
        prop::option::of(any_delta()),
        prop::option::of(any_delta()),
        prop::option::of(0u64..1 << 50),
    )
        .prop_map(|(path, oom_kill, oom, limit_hits, limit)| GroupCounters {
            path,
            source: "memory.events",
            oom_kill,
            oom,
            limit_hits,
            limit,
            peak: limit,
        })
}

proptest! {
    #[test]
    fn any_facts_are_judged(
        code in any::<i32>(),
        way in 0u8..4,
        own in prop::option::of(any_group()),
        ancestors in prop::collection::vec(any_group(), 0..3),
        log in prop::option::of(prop::collection::vec(("[/a-z]{0,12}", prop::option::of("[/a-z]{0,12}"), any::<bool>()), 0..4)),
        host in prop::option::of(any_delta()),
    ) {
        let facts = Ending {
            exit: match way {
                0 => RootExit::Code(code),
                1 => RootExit::Signal(code),
                2 => RootExit::Unknown,
                _ => RootExit::NotStarted { errno: code },
            },
            decision: None,
            own,
            ancestors,
            kmsg: log.map(|lines| lines.into_iter().map(|(task_group, oom_group, host)| OomKill {
                scope: if host { OomScope::Host } else { OomScope::Group },
                oom_group,
                task_group: Some(task_group),
                task: "t".into(),
                pid: code,
            }).collect()),
            host_oom_kill: host,
            pids: vec![code],
            unreadable: vec!["x".into()],
        };
        let judged = verdict(&facts);
        let for_memory = matches!(judged.cause, Cause::MemoryLimit | Cause::MemoryLimitParent | Cause::HostOom);
        prop_assert!(!for_memory || judged.killed_inside > 0);
        if matches!(facts.exit, RootExit::Unknown) {
            prop_assert!(judged.confidence != Confidence::Certain);
        }
    }
}
