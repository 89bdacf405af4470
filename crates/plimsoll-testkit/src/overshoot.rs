//! How far over its line a tree gets on the watchdog tier: what its hogs have touched when they are dead, less the line.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use crate::harness::{Bench, Options, Running, Tier, alive, eventually};

/// Measures and prints one JSON object.
pub(crate) fn run(options: &Options) -> ExitCode {
    let line = options.text("--line").unwrap_or_else(|| "256m".into());
    let line_bytes = plimsoll_model::size::parse(&line).expect("a size");
    let (runs, procs) = (options.number("--runs", 20), options.number("--procs", 1).to_string());
    let after = options.text("--after").unwrap_or_else(|| "0s".into());
    let idle = plimsoll_model::duration::parse(&after).expect("a duration");
    // Runs that idle first do so side by side, a second apart, so that no two of them burst at the same time.
    let lanes = idle.as_secs() as usize + 1;
    let group = Safety::enter(1536 << 20);
    let bench = Bench { tier: Tier::Watchdog, ..Bench::new(options, "overshoot") };
    let mut under_way = VecDeque::new();
    let mut over: Vec<i64> = Vec::new();
    let mut finish = |(running, counter): (Running, PathBuf)| {
        let tag = running.tag.clone();
        let outcome = running.wait();
        assert!(eventually(|| alive(&tag).is_empty()), "survivors");
        assert_eq!(outcome.cause(), "memory_limit", "{outcome:?}");
        let touched: u64 = std::fs::read(&counter)
            .expect("the counter")
            .chunks_exact(8)
            .map(|slot| u64::from_ne_bytes(slot.try_into().expect("eight bytes")))
            .sum();
        let _ = std::fs::remove_file(&counter);
        over.push(touched as i64 - line_bytes as i64);
    };
    for number in 0..runs {
        let counter = bench.dir.join(format!("counter-{number}"));
        let path = counter.display().to_string();
        // A small chunk, so that the counter is close to the truth.
        let hog =
            ["@hog", "--bytes", "1g", "--chunk", "256k", "--counter", &path, "--procs", &procs, "--after", &after];
        under_way.push_back((bench.start(&["-m", &line, "--quiet"], &hog), counter));
        if lanes > 1 {
            std::thread::sleep(Duration::from_secs(1));
        }
        while under_way.len() >= lanes {
            under_way.pop_front().into_iter().for_each(&mut finish);
        }
    }
    under_way.into_iter().for_each(&mut finish);
    drop(group);
    over.sort_unstable();
    let at = |percent: usize| over[(over.len() * percent).div_ceil(100).max(1) - 1];
    println!(
        "{}",
        serde_json::json!({
            "line_bytes": line_bytes, "procs": procs, "after": after, "runs": runs,
            "overshoot_bytes": {"median": at(50), "p99": at(99), "max": at(100)},
        })
    );
    ExitCode::SUCCESS
}

/// A group with a hard limit around everything, in case the watchdog should miss.
struct Safety(PathBuf);

impl Safety {
    fn enter(bytes: u64) -> Self {
        let root = std::path::Path::new("/sys/fs/cgroup/memory");
        let (base, file) = if root.exists() {
            (root, "memory.limit_in_bytes")
        } else {
            (std::path::Path::new("/sys/fs/cgroup"), "memory.max")
        };
        let dir = base.join(format!("plimsoll-overshoot-{}", std::process::id()));
        std::fs::create_dir(&dir).expect("a group of our own");
        std::fs::write(dir.join(file), bytes.to_string()).expect("its limit");
        std::fs::write(dir.join("cgroup.procs"), "0").expect("to enter it");
        Self(dir)
    }
}

impl Drop for Safety {
    fn drop(&mut self) {
        if let Some(parent) = self.0.parent() {
            let _ = std::fs::write(parent.join("cgroup.procs"), "0");
        }
        let _ = std::fs::remove_dir(&self.0);
    }
}
