//! `cargo xtask sim`: the stack's state machine against made-up machines, a history a seed.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use plimsoll_kernel::clock::Instant;
use plimsoll_sim::{Failure as Broken, Options, Report};

use crate::exec::{Ended, Failure};
use crate::suite::SEED;
use crate::summary::Counts;
use crate::test::Extent;

const USAGE: &str = "usage: cargo xtask sim [--seeds N] [--seed S]
  --seeds N  so many histories (1,000)
  --seed S   from this one on; alone: this one, with what led up to a failure";

/// `cargo xtask sim …`.
pub(crate) fn main(args: &[String]) -> Result<ExitCode, Failure> {
    let (mut seeds, mut seed) = (None, None);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let place = match arg.as_str() {
            "--seeds" => &mut seeds,
            "--seed" => &mut seed,
            other => return Err(Failure(format!("{other:?} is not understood\n{USAGE}"))),
        };
        let number = args.next().and_then(|value| value.parse::<u64>().ok());
        *place = Some(number.ok_or_else(|| Failure(format!("{arg} needs a number\n{USAGE}")))?);
    }
    let seeds = seeds.unwrap_or(if seed.is_some() { 1 } else { 1000 });
    let mut counts = Counts::default();
    let ended = run(seed.unwrap_or(SEED), seeds, Duration::MAX, &mut counts);
    println!("{} passed, {} failed", counts.passed, counts.failed);
    Ok(if ended.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// How many histories a family of tests runs.
pub(crate) fn seeds(extent: Extent) -> u64 {
    match extent {
        Extent::Part => 10_000,
        Extent::Whole => 1_000_000,
    }
}

/// Runs histories on all processors until one fails; each is one test. What a failure was like is printed with its seed.
pub(crate) fn run(first: u64, seeds: u64, deadline: Duration, counts: &mut Counts) -> Ended {
    let start = Instant::now();
    let (next, passed) = (AtomicU64::new(0), AtomicU64::new(0));
    let (is_over, failure) = (AtomicBool::new(false), Mutex::new(None::<Box<Broken>>));
    let sums = Mutex::new(Report::default());
    let work = || {
        let mut sum = Report::default();
        while !is_over.load(Ordering::Relaxed) && start.elapsed() < deadline {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= seeds {
                break;
            }
            match plimsoll_sim::run(first.wrapping_add(at), Options::default()) {
                Ok(report) => {
                    add(&mut sum, report);
                    passed.fetch_add(1, Ordering::Relaxed);
                }
                Err(broken) => {
                    is_over.store(true, Ordering::Relaxed);
                    if let Ok(mut failure) = failure.lock() {
                        failure.get_or_insert(broken);
                    }
                }
            }
        }
        if let Ok(mut sums) = sums.lock() {
            add(&mut sums, sum);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    counts.passed += passed.load(Ordering::Relaxed);
    let took = start.elapsed().as_secs_f64();
    if let Ok(Report { steps, simulated, starts, ends, evictions, oom_kills, turns, resumed, .. }) = sums.into_inner() {
        println!(
            "seeds {first}..{}: {steps} steps in {took:.1} s ({:.0} seeds a second), {:.0} days simulated",
            first.wrapping_add(counts.passed),
            counts.passed as f64 / took.max(0.001),
            simulated.as_secs_f64() / 86_400.0
        );
        println!("{starts} starts, {ends} ends, {evictions} evictions, {oom_kills} kills by the modelled kernel");
        println!("{turns} turns on sessions; {resumed} sessions were started to take a conversation up again");
    }
    let Ok(Some(broken)) = failure.into_inner() else {
        let is_short = counts.passed < seeds;
        return if is_short { Ended::Deadline } else { Ended::Code(0) };
    };
    counts.failed += 1;
    let seed = broken.seed;
    match plimsoll_sim::run(seed, Options { trace: true, ..Options::default() }) {
        Err(again) if (again.step, again.rule) == (broken.step, broken.rule) => println!("{again}"),
        _ => println!("{broken}\nand it did not happen again: something is not decided by the seed"),
    }
    println!("again: cargo xtask sim --seed {seed}");
    Ended::Code(1)
}

fn add(sum: &mut Report, one: Report) {
    sum.steps += one.steps;
    sum.simulated += one.simulated;
    sum.starts += one.starts;
    sum.ends += one.ends;
    sum.evictions += one.evictions;
    sum.turns += one.turns;
    sum.resumed += one.resumed;
    sum.oom_kills += one.oom_kills;
}
