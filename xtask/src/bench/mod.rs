//! `cargo xtask bench`: tables with both sides measured in one run, side by side in turn, medians and ratios.

mod listen;
mod manager;
mod run;
mod serve;
mod services;
mod up;

use std::process::ExitCode;
use std::time::Duration;

use crate::exec::Failure;

/// `cargo xtask bench run|up|serve [--quick] [PART…]`.
pub(crate) fn main(args: &[String]) -> Result<ExitCode, Failure> {
    match args.first().map(String::as_str) {
        Some("run") => run::main(&args[1..]),
        Some("up") => up::main(&args[1..]),
        Some("serve") => serve::main(&args[1..]),
        _ => Err(Failure("usage: cargo xtask bench run|up|serve [--quick] [PART…]".into())),
    }
}

/// Which parts are to be measured, all unless some are named; and whether a fifth of the rounds will do.
fn chosen<'p>(args: &[String], parts: impl Iterator<Item = &'p str>) -> Result<(Vec<&'p str>, bool), Failure> {
    let all: Vec<&str> = parts.collect();
    let named: Vec<&str> = args.iter().map(String::as_str).filter(|arg| *arg != "--quick").collect();
    if let Some(unknown) = named.iter().find(|name| !all.contains(name)) {
        return Err(Failure(format!("no part {unknown:?}; there are: {}", all.join(", "))));
    }
    let chosen = all.into_iter().filter(|part| named.is_empty() || named.contains(part)).collect();
    Ok((chosen, args.iter().any(|arg| arg == "--quick")))
}

/// The middle one of some durations; zero of none.
fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// One line of a table.
struct Row {
    what: String,
    ours: String,
    theirs: String,
    ratio: String,
    goal: &'static str,
    met: bool,
}

fn milliseconds(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}

fn ratio(ours: Duration, theirs: Duration) -> f64 {
    ours.as_secs_f64() / theirs.as_secs_f64().max(1e-9)
}

/// Prints rows as a table of Markdown, which is a table on a terminal as well.
fn print(rows: &[Row]) {
    println!("| what | plimsoll | against | ratio | goal | met |\n|---|---|---|---|---|---|");
    for row in rows {
        let Row { what, ours, theirs, ratio, goal, met } = row;
        println!("| {what} | {ours} | {theirs} | {ratio} | {goal} | {} |", if *met { "yes" } else { "NO" });
    }
}
