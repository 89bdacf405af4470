use plimsoll_model::certificate::{Exit, Memory, SCHEMA, Tree};
use plimsoll_model::ending::{Delta, GroupCounters};
use plimsoll_model::{Boundary, RunId, size};
use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;

fn certificate(cause: Cause, limit: Option<u64>, peak: u64) -> Certificate {
    let epoch = "2026-11-23T22:00:00Z".parse().unwrap();
    Certificate {
        schema: SCHEMA.into(),
        id: RunId::new(1, 2),
        name: "x".into(),
        command: vec!["./serve".into()],
        boundary: Boundary::Cgroup2,
        started_at: epoch,
        ended_at: epoch,
        runtime_ms: 10_000,
        exit: Exit { code: None, signal: Some(9) },
        cause,
        confidence: Confidence::Certain,
        evidence: Vec::new(),
        memory: Memory {
            limit_bytes: limit,
            peak_bytes: peak,
            swap_limit_bytes: None,
            growth_bytes_per_s: 0,
            largest: vec![Largest {
                pid: 812,
                command: "/usr/bin/chromium --type=renderer".into(),
                memory_bytes: 212 * MIB,
                depth: 2,
            }],
            last_minute: Vec::new(),
        },
        tree: Tree { peak_processes: 4, killed_inside: 1, survivors: 0 },
        advice: String::new(),
    }
}

fn ending(exit: RootExit) -> Ending {
    Ending {
        exit,
        interpreter: None,
        decision: None,
        victims: Vec::new(),
        passed_on: None,
        own: None,
        ancestors: Vec::new(),
        kmsg: None,
        host_oom_kill: None,
        pids: vec![1],
        unreadable: Vec::new(),
    }
}

fn killed() -> Ending {
    ending(RootExit::Signal(9))
}

fn samples(held: impl Fn(u64) -> u64) -> Vec<Sample> {
    (0..10).map(|s| Sample { at_ms: s * 1000, memory_bytes: held(s), processes: 2 }).collect()
}

#[test]
fn nobody_is_accused_who_held_next_to_nothing() {
    let mut one = certificate(Cause::MemoryLimit, Some(256 * MIB), 256 * MIB);
    one.memory.largest[0].memory_bytes = 2 * MIB;
    let said = advice(&one, &killed());
    assert!(said.starts_with("The tree held 256 MiB") && !said.contains("chromium"), "{said}");
}

#[test]
fn signals_and_lost_keepers_have_words_of_their_own() {
    use plimsoll_model::ending::PassedOn;
    let one = certificate(Cause::ExternalSignal, None, 0);
    let told = |signal, passed_on| advice(&one, &Ending { passed_on, ..ending(RootExit::Signal(signal)) });
    assert!(told(13, None).contains("Whoever read its output had gone"));
    assert!(told(2, Some(PassedOn { signal: 2, sender: 1 })).contains("passed it on"));
    assert!(told(2, None).contains("look for a supervisor"));
    let one = certificate(Cause::Stopped, None, 0);
    let bereft = Ending { decision: Some(Decision::Bereft("its keeper was killed".into())), ..killed() };
    assert!(advice(&one, &bereft).contains("who killed plimsoll"));
}

#[test]
fn at_its_line() {
    let mut one = certificate(Cause::MemoryLimit, Some(256 * MIB), 256 * MIB);
    one.memory.last_minute = samples(|s| s * 26 * MIB);
    one.memory.growth_bytes_per_s = 26 << 20;
    assert_eq!(
        advice(&one, &killed()),
        "chromium (pid 812) held 212 MiB of the 256 MiB, and the tree grew by 26 MiB/s to the end: each GiB more lasts \
         only 39.3s, so look for the leak in chromium (pid 812), or try --memory 512m if you expect it to end by itself."
    );
    one.memory.last_minute = samples(|s| if s < 9 { 30 * MIB } else { 250 * MIB });
    one.memory.growth_bytes_per_s = 0;
    assert_eq!(
        advice(&one, &killed()),
        "chromium (pid 812) held 212 MiB of the 256 MiB; 2s before it was 30 MiB, and it was still growing: try \
         --memory 512m and read the peak that it then shows, or give chromium (pid 812) less to do at once."
    );
    one.memory.last_minute = samples(|s| if s < 2 { 30 * MIB } else { 240 * MIB });
    one.memory.largest[0].command = "/usr/bin/python3.12 /srv/app/import.py --all".into();
    assert_eq!(
        advice(&one, &killed()),
        "python3.12 import.py (pid 812) held 212 MiB of the 256 MiB and had stayed near its line for 8s: --memory 320m \
         would leave a quarter to spare; if it fills that too, look for the leak in python3.12 import.py (pid 812)."
    );
    one.memory.last_minute.clear();
    one.memory.largest[0].memory_bytes = 40 * MIB;
    one.runtime_ms = 300;
    assert_eq!(
        advice(&one, &killed()),
        "4 processes held 256 MiB together, python3.12 import.py (pid 812) the most with 40 MiB within 300ms and was \
         still growing: try --memory 512m and read the peak that it then shows."
    );
}

#[test]
fn above_its_line() {
    let one = certificate(Cause::MemoryLimitParent, Some(256 * MIB), 300 * MIB);
    let mut facts = killed();
    facts.ancestors = vec![GroupCounters {
        path: "/docker/abc".into(),
        source: "memory.events",
        oom_kill: Delta { before: 0, after: 1 },
        oom: None,
        limit_hits: None,
        limit: Some(1 << 30),
        peak: None,
    }];
    let told = advice(&one, &facts);
    assert!(
        told.contains("of /docker/abc (1 GiB), not the tree's own")
            && told.contains("peak was 300 MiB, most of it in chromium (pid 812)"),
        "{told}"
    );
    facts.decision =
        Some(Decision::MemoryLimitParent { whose: "container".into(), usage: 500 * MIB, limit: 512 * MIB });
    assert!(advice(&one, &facts).contains("of container (512 MiB)"));
}

#[test]
fn ends_without_a_death() {
    let mut one = certificate(Cause::Exited, Some(512 * MIB), 31 * MIB);
    one.tree.killed_inside = 0;
    let told = advice(&one, &ending(RootExit::Code(0)));
    assert_eq!(told, "Nothing to do; it never held more than 31 MiB of its 512 MiB, so --memory 62m would have done.");
    // A line is not split below what is taken, nor for a few MiB.
    for (limit, peak) in [(6, 1), (8, 1), (512, 200), (512, 0)] {
        one.memory.limit_bytes = Some(limit * MIB);
        one.memory.peak_bytes = peak * MIB;
        assert_eq!(advice(&one, &ending(RootExit::Code(0))), "Nothing to do.", "{limit} {peak}");
    }
    one.memory.limit_bytes = None;
    assert_eq!(advice(&one, &ending(RootExit::Code(0))), "Nothing to do.");
    one.cause = Cause::Failed;
    one.exit = Exit { code: Some(143), signal: None };
    assert!(advice(&one, &ending(RootExit::Code(143))).contains("died of SIGTERM"));
    one.exit = Exit { code: Some(3), signal: None };
    assert_eq!(advice(&one, &ending(RootExit::Code(3))), "It ended itself with code 3: its own output says why.");
    one.tree.killed_inside = 2;
    one.memory.limit_bytes = Some(64 * MIB);
    assert!(advice(&one, &ending(RootExit::Code(3))).ends_with("that is the likely reason; try --memory 96m."));
}

#[test]
fn what_never_ran() {
    let one = certificate(Cause::StartFailed, None, 0);
    for (errno, word) in [(2, "ENOENT"), (13, "chmod +x"), (8, "ENOEXEC"), (99, "error number 99")] {
        let told = advice(&one, &ending(RootExit::NotStarted { errno }));
        assert!(told.contains(word) && told.starts_with("./serve never ran"), "{told}");
    }
}

#[test]
fn what_was_decided() {
    let mut facts = killed();
    facts.decision = Some(Decision::Timeout(Duration::from_secs(3)));
    let told = advice(&certificate(Cause::Timeout, None, 0), &facts);
    assert!(told.starts_with("It was not done after 3s and did not end on SIGTERM either"), "{told}");
    facts.exit = RootExit::Signal(15);
    facts.decision = Some(Decision::IdleTimeout(Duration::from_secs(60)));
    let told = advice(&certificate(Cause::IdleTimeout, None, 0), &facts);
    assert!(told.starts_with("It neither read nor wrote for 1m 0s: "), "{told}");
}

proptest! {
    #[test]
    fn one_sentence_for_every_end(
        cause in prop::sample::select(Cause::ALL.to_vec()),
        limit in prop::option::of(any::<u64>()),
        numbers in prop::collection::vec(any::<u64>(), 4),
        growth in any::<i64>(),
        held in prop::collection::vec((any::<u64>(), any::<u64>()), 0..8),
        exit in prop_oneof![
            any::<i32>().prop_map(RootExit::Code),
            any::<i32>().prop_map(RootExit::Signal),
            any::<i32>().prop_map(|errno| RootExit::NotStarted { errno }),
            Just(RootExit::Unknown),
        ],
        command in "\\PC{0,60}",
        confidence in prop::sample::select(vec![Confidence::Likely, Confidence::Certain]),
    ) {
        let mut one = certificate(cause, limit, numbers[0]);
        one.confidence = confidence;
        one.runtime_ms = numbers[1];
        one.tree.killed_inside = numbers[2];
        one.memory.growth_bytes_per_s = growth;
        one.memory.last_minute =
            held.into_iter().map(|(at_ms, memory_bytes)| Sample { at_ms, memory_bytes, processes: 1 }).collect();
        one.memory.largest[0].command = command;
        one.memory.largest[0].memory_bytes = numbers[3];
        if let RootExit::Code(code) = exit {
            one.exit = Exit { code: Some(code), signal: None };
        }
        let told = advice(&one, &ending(exit));
        prop_assert!(told.len() > 10 && told.len() < 600 && told.ends_with('.'), "{told}");
    }

    #[test]
    fn options_can_be_given(bytes in SMALLEST..1 << 50) {
        let written = option(round_up(bytes));
        let read = size::parse(&written).unwrap();
        prop_assert!(read >= bytes && read <= bytes + (16 << 20), "{written}");
    }
}
