//! Nothing survives: trees of random shape, ended in random ways, plimsoll itself killed in a third of them.

use std::process::ExitCode;
use std::time::Duration;

use plimsoll_kernel::procfs::Process;

use crate::harness::{Bench, Options, Random, Tier, alive, eventually};

/// How a tree is brought to its end.
#[derive(Debug, Clone, Copy)]
enum End {
    Timeout,
    Stop,
    MemoryLine,
    RootKilled,
    FrontKilled,
    KeeperKilled,
    BothKilled,
}

const OTHERS: [End; 4] = [End::Timeout, End::Stop, End::MemoryLine, End::RootKilled];
const KILLS: [End; 3] = [End::FrontKilled, End::KeeperKilled, End::BothKilled];

/// Runs the trees.
pub(crate) fn run(options: &Options) -> ExitCode {
    let (trees, first) = (options.number("--trees", 30), options.number("--seed", 1));
    let (descriptors, threads) = (own_descriptors(), own_threads());
    let (mut failed, mut peak) = (0, 0);
    for seed in first..first + trees {
        match one(options, seed) {
            Ok(members) => peak = peak.max(members),
            Err(why) => {
                failed += 1;
                println!("FAIL seed {seed}: {why} (replay: --trees 1 --seed {seed})");
            }
        }
    }
    if own_descriptors() != descriptors || own_threads() != threads {
        failed += 1;
        println!("FAIL descriptors {descriptors} -> {}, threads {threads} -> {}", own_descriptors(), own_threads());
    }
    println!(
        "survivors on {}: trees of up to {peak} processes, seeds {first}..{}",
        options.tier.as_str(),
        first + trees
    );
    println!("{} passed, {failed} failed", trees - failed.min(trees));
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn one(options: &Options, seed: u64) -> Result<usize, String> {
    let mut random = Random::new(seed);
    let bench = Bench::new(options, "survive");
    let end = if seed.is_multiple_of(3) { *random.pick(&KILLS) } else { *random.pick(&OTHERS) };
    let pause = Duration::from_micros(random.below(150_000));
    let seed_text = random.next().to_string();
    let mut args: Vec<&str> = vec!["--quiet", "--stop-timeout", "50ms", "-m", "256m"];
    if options.tier != Tier::Watchdog {
        args.extend(["--pids-limit", "400"]);
    }
    let tree = ["@tree", "--seed", &seed_text];
    let hog =
        ["sh", "-c", "\"$0\" work tree --seed \"$1\" & sleep 0.1; exec \"$0\" work hog --bytes 900m", "", &seed_text];
    let me = crate::harness::me().display().to_string();
    let timeout = format!("{}us", pause.as_micros() + 1000);
    if matches!(end, End::Timeout) {
        args.extend(["--timeout", &timeout]);
    }
    let program: Vec<&str> = match end {
        End::MemoryLine => hog.iter().map(|word| if word.is_empty() { me.as_str() } else { word }).collect(),
        _ => tree.to_vec(),
    };
    let running = bench.start(&args, &program);
    let tag = running.tag.clone();
    std::thread::sleep(pause);
    let members = alive(&tag).len();
    let send = |pid: Option<i32>, signal| pid.map(|pid| plimsoll_kernel::signal::send(pid, signal));
    let (front, keeper) = (running.front(), running.keeper());
    match end {
        End::Timeout | End::MemoryLine => {}
        End::Stop => drop(send(Some(front), 15)),
        // Before there is a root, plimsoll is asked to end: else the tree would go on for ever.
        End::RootKilled => drop(match running.root() {
            Some(root) => send(Some(root), 9),
            None => send(Some(front), 15),
        }),
        End::FrontKilled => drop(send(Some(front), 9)),
        // Before there is a keeper, or after its work, there is nobody to kill but the front.
        End::KeeperKilled => drop(send(keeper.or(Some(front)), 9)),
        End::BothKilled => {
            for signal in [19, 9] {
                for pid in [Some(front), keeper] {
                    drop(send(pid, signal));
                }
            }
        }
    }
    let outcome = running.wait();
    let by_us = outcome.signal.is_some();
    if by_us {
        // plimsoll was killed: soon, or at the next plimsoll's start, all is gone.
        if matches!(end, End::BothKilled) {
            // A keeper that is still dying still holds what it held.
            eventually(|| keeper.and_then(|pid| Process::of(pid).ok()).is_none_or(|process| !process.is_alive()));
            let swept = bench.verb("explain").output().map_err(|error| error.to_string())?;
            let left = alive(&tag);
            if !left.is_empty() {
                return Err(format!(
                    "{end:?}: {left:?} survived the sweep: {}",
                    String::from_utf8_lossy(&swept.stderr)
                ));
            }
        } else if !eventually(|| alive(&tag).is_empty()) {
            return Err(format!("{end:?}: {:?} survived", alive(&tag)));
        } else if keeper.is_none() {
            // Killed after it had written its run down and before there was a keeper: the next verb tidies up.
            drop(bench.verb("explain").output());
        }
    } else if outcome.left > 0 {
        return Err(format!("{end:?}: {} left at return; {}", outcome.left, outcome.report));
    }
    if outcome.code == Some(125) && !matches!(end, End::KeeperKilled) {
        return Err(format!("{end:?}: plimsoll failed: {}", outcome.stderr));
    }
    // A front that was killed early has a keeper that may still be clearing up.
    if !eventually(|| bench.leftovers().is_empty()) {
        return Err(format!("{end:?}: left behind: {:?}", bench.leftovers()));
    }
    Ok(members)
}

fn own_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

fn own_threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}
