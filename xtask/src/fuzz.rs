//! `cargo xtask fuzz`: the parsers against inputs that libFuzzer makes up, led by which code they reach. The targets are
//! the files of `fuzz/src/bin`, their first inputs those of `fuzz/corpus`.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use plimsoll_kernel::clock::Instant;

use crate::exec::{Ended, Failure, output, stream, succeed};
use crate::suite::SEED;
use crate::summary::Counts;
use crate::test::Extent;
use crate::{exec, workspace};

const USAGE: &str = "usage: cargo xtask fuzz [TARGET…] [--runs N] [--seconds N] [--seed N]
       cargo xtask fuzz TARGET --replay FILE
       cargo xtask fuzz --list";

/// Longest input, bytes: a page, as the kernel's files rarely are longer.
const LONGEST: &str = "-max_len=4096";

/// A parser that is at one input for so many seconds hangs.
const HANG: &str = "-timeout=60";

/// A parser that takes so many MiB for one page of input has run away.
const MEMORY: &str = "-rss_limit_mb=1024";

/// Looks into its folders once and not every second, when what it finds there would depend on the time.
const NO_CLOCK: &str = "-reload=0";

/// What cargo-fuzz sets where there is no sanitizer, all of it stable (assertions and overflow checks are in the
/// profile). It replaces our own flags: a static libstdc++ is
/// not worth its trouble for binaries that never leave this machine.
const FLAGS: [&str; 6] = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// Lines of libFuzzer that are kept for the case that they lead up to a failure.
const KEPT: usize = 200;

/// So often a target that takes longer tells how far it is.
const PROGRESS: Duration = Duration::from_secs(10);

/// How long each target runs, and from where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Effort {
    /// Inputs that are tried; `None` is as many as the time allows.
    pub(crate) runs: Option<u64>,
    /// Seconds at most.
    pub(crate) seconds: Option<u64>,
    /// Begins with what earlier runs have found and adds to it; else with the committed inputs alone, so that a run is the
    /// same every time.
    pub(crate) grows: bool,
    /// Of the random numbers.
    pub(crate) seed: u64,
}

impl Effort {
    /// What a family of tests does.
    pub(crate) fn of(extent: Extent) -> Self {
        let (runs, grows) = match extent {
            Extent::Part => (100_000, false),
            Extent::Whole => (5_000_000, true),
        };
        Self { runs: Some(runs), seconds: None, grows, seed: SEED }
    }
}

/// `cargo xtask fuzz …`.
pub(crate) fn main(args: &[String]) -> Result<ExitCode, Failure> {
    let all = targets()?;
    let mut effort = Effort { runs: None, seconds: None, grows: true, seed: SEED };
    let (mut chosen, mut replay) = (Vec::new(), None);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| Failure(format!("{arg} needs a value\n{USAGE}")));
        match arg.as_str() {
            "--list" => {
                all.iter().for_each(|target| println!("{target}"));
                return Ok(ExitCode::SUCCESS);
            }
            "--runs" => effort.runs = Some(number(value()?)?),
            "--seconds" => effort.seconds = Some(number(value()?)?),
            "--seed" => effort.seed = number(value()?)?,
            "--replay" => replay = Some(PathBuf::from(value()?)),
            target if all.iter().any(|name| name == target) => chosen.push(target.to_owned()),
            other => return Err(Failure(format!("no target is called {other:?}\n{USAGE}"))),
        }
    }
    if let Some(input) = replay {
        let [target] = chosen.as_slice() else {
            return Err(Failure(format!("--replay needs the one target that it is for\n{USAGE}")));
        };
        build(std::slice::from_ref(target))?;
        let mut fuzzer = fuzzer(target)?;
        // From where it is typed, not from the checkout's root.
        fuzzer.arg(std::path::absolute(&input).map_err(Failure::on("find", &input))?);
        succeed(&mut fuzzer)?;
        return Ok(ExitCode::SUCCESS);
    }
    if effort.runs.is_none() && effort.seconds.is_none() {
        effort.seconds = Some(60);
    }
    let chosen = if chosen.is_empty() { all } else { chosen };
    let mut counts = Counts::default();
    run(&chosen, effort, Duration::MAX, &mut counts)?;
    println!("{} passed, {} failed", counts.passed, counts.failed);
    Ok(if counts.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn number(text: &str) -> Result<u64, Failure> {
    // To libFuzzer 0 means for ever, or a seed of its own choice.
    text.parse()
        .ok()
        .filter(|&number| number > 0)
        .ok_or_else(|| Failure(format!("{text:?} is no number above 0\n{USAGE}")))
}

/// All targets, by name.
pub(crate) fn targets() -> Result<Vec<String>, Failure> {
    let folder = workspace::root().join("fuzz/src/bin");
    let entries = std::fs::read_dir(&folder).map_err(Failure::on("list", &folder))?;
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_suffix(".rs").map(str::to_owned)).collect();
    names.sort();
    Ok(names)
}

/// Cargo for the crate of the targets, with an output folder of its own: none of it fits anything else.
pub(crate) fn cargo(verb: &str) -> Command {
    let mut cargo = workspace::cargo();
    cargo.args([verb, "--manifest-path", "fuzz/Cargo.toml"]);
    if verb != "fmt" {
        cargo.arg("--target-dir").arg(workspace::target().join("fuzz"));
    }
    cargo
}

fn build(targets: &[String]) -> Result<(), Failure> {
    println!("building {}", targets.join(", "));
    let mut cargo = cargo("build");
    cargo.env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f")).args(["--quiet", "--release"]);
    targets.iter().for_each(|target| {
        cargo.args(["--bin", target]);
    });
    succeed(&mut cargo)
}

/// A folder under cargo's output for one target.
fn folder(of: &str, target: &str) -> Result<PathBuf, Failure> {
    let folder = workspace::target().join("fuzz").join(of).join(target);
    std::fs::create_dir_all(&folder).map_err(Failure::on("make", &folder))?;
    Ok(folder)
}

/// The built target.
fn fuzzer(target: &str) -> Result<Command, Failure> {
    let built = workspace::target().join("fuzz").join(workspace::host()?).join("release").join(target);
    // It learns from what is compared, addresses too: only when these are fixed a seed gives the same run every time. Some
    // containers do not allow that.
    let fixed = output(exec::command("setarch").args(["-R", "true"])).is_ok();
    let mut fuzzer = exec::command(if fixed { Path::new("setarch") } else { &built });
    if fixed {
        fuzzer.arg("-R").arg(&built);
    }
    fuzzer.current_dir(workspace::root()).env("RUST_BACKTRACE", "1").args([LONGEST, HANG, MEMORY, NO_CLOCK]);
    Ok(fuzzer)
}

/// Runs targets one after the other, whatever the others say; each counts as one test.
pub(crate) fn run(
    targets: &[String],
    effort: Effort,
    deadline: Duration,
    counts: &mut Counts,
) -> Result<Ended, Failure> {
    let start = Instant::now();
    build(targets)?;
    let mut ended = Ended::Code(0);
    for target in targets {
        let one = run_one(target, effort, deadline.saturating_sub(start.elapsed()))?;
        if one.is_success() {
            counts.passed += 1;
        } else {
            counts.failed += 1;
            ended = one;
        }
    }
    Ok(ended)
}

fn run_one(target: &str, effort: Effort, deadline: Duration) -> Result<Ended, Failure> {
    let failures = folder("failures", target)?;
    let corpus = folder(if effort.grows { "corpus" } else { "scratch" }, target)?;
    if !effort.grows {
        std::fs::remove_dir_all(&corpus).map_err(Failure::on("empty", &corpus))?;
        std::fs::create_dir(&corpus).map_err(Failure::on("make", &corpus))?;
    }
    let mut fuzzer = fuzzer(target)?;
    // What is found goes into the first folder; the second one is only read.
    fuzzer.arg(corpus).arg(Path::new("fuzz/corpus").join(target));
    fuzzer.arg(format!("-artifact_prefix={}/", failures.display()));
    fuzzer.arg("-print_final_stats=1").arg(format!("-seed={}", effort.seed));
    fuzzer.args(effort.runs.map(|runs| format!("-runs={runs}")));
    fuzzer.args(effort.seconds.map(|seconds| format!("-max_total_time={seconds}")));
    let start = Instant::now();
    let mut told = start;
    let mut seen = Seen::default();
    let ended = stream(fuzzer, deadline, |line| {
        seen.line(line);
        if line.starts_with('#') && told.elapsed() > PROGRESS {
            told = Instant::now();
            println!("{target}: {line}");
        }
    })?;
    let Seen { runs, reached, input, last_lines } = seen;
    if !ended.is_success() {
        last_lines.iter().for_each(|line| println!("{line}"));
        println!("{target} FAILED: {ended}");
        if let Some(input) = input {
            println!("the input is kept: {input}\nagain: cargo xtask fuzz {target} --replay {input}");
        }
    }
    println!("{target}: {runs} runs, {reached} places reached, {:.1} s", start.elapsed().as_secs_f64());
    Ok(ended)
}

/// What libFuzzer told of one target.
#[derive(Debug, Default)]
struct Seen {
    /// Inputs tried.
    runs: u64,
    /// Places in the code that they reached.
    reached: u64,
    /// Where the input lies that failed.
    input: Option<String>,
    /// What was said last, but for how far it is.
    last_lines: VecDeque<String>,
}

impl Seen {
    fn line(&mut self, line: &str) {
        let number = |text: &str| text.split_whitespace().next()?.parse().ok();
        if line.starts_with('#') {
            // `#4096  pulse  cov: 285 ft: 669 …`
            self.reached = line.split_once("cov: ").and_then(|(_, cov)| number(cov)).unwrap_or(self.reached);
        } else if let Some(runs) = line.strip_prefix("stat::number_of_executed_units:") {
            self.runs = number(runs).unwrap_or_default();
        } else if !line.starts_with("stat::") && !line.starts_with("INFO:") {
            if let Some((_, path)) = line.split_once("Test unit written to ") {
                self.input = Some(path.to_owned());
            }
            self.last_lines.push_back(line.to_owned());
            if self.last_lines.len() > KEPT {
                self.last_lines.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_libfuzzer_prints() {
        let mut seen = Seen::default();
        for line in [
            "INFO: Seed: 1",
            "#2\tINITED cov: 12 ft: 13 corp: 1/1b exec/s: 0 rss: 27Mb",
            "#4096\tpulse  cov: 285 ft: 669 corp: 230/2694b lim: 73 exec/s: 0 rss: 27Mb",
            "thread '<unnamed>' panicked at src/bin/x.rs:1:1:",
            "artifact_prefix='/t/'; Test unit written to /t/crash-0a",
            "stat::number_of_executed_units: 4711",
        ] {
            seen.line(line);
        }
        assert_eq!((seen.runs, seen.reached, seen.input.as_deref()), (4711, 285, Some("/t/crash-0a")));
        assert_eq!(seen.last_lines.len(), 2);
    }

    #[test]
    fn every_target_has_inputs_to_begin_with() {
        let targets = targets().unwrap();
        assert!(!targets.is_empty());
        for target in targets {
            let corpus = workspace::root().join("fuzz/corpus").join(&target);
            assert!(std::fs::read_dir(corpus).is_ok_and(|mut inputs| inputs.next().is_some()), "{target}");
        }
    }
}
