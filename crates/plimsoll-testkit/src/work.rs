//! Workloads that misbehave on command. None outlives two minutes, whatever the test does.
#![allow(clippy::zombie_processes, reason = "workloads leave zombies and orphans behind on purpose")]

mod service;

use std::os::unix::fs::FileExt;
use std::process::{Child, ExitCode, Stdio};
use std::time::Duration;

use plimsoll_kernel::clock::Instant;
use plimsoll_kernel::signal;
use rustix::process::{getpid, setsid};

use crate::harness::{Random, argument, command, flag, me};

/// No workload goes on for longer.
const LONGEST: Duration = Duration::from_secs(120);

/// Runs a workload by its name.
pub(crate) fn run(args: &[String]) -> ExitCode {
    let Some((name, rest)) = args.split_first() else { return ExitCode::from(2) };
    let number = |name: &str, default: u64| argument(rest, name).map_or(default, |text| size(&text));
    match name.as_str() {
        "hog" => hog(rest),
        "root-heavy" => return root_heavy(number("--root-bytes", 0), number("--bytes", 1 << 30)),
        "sleepers" => sleepers(number("--count", 1)),
        "sleep" => sleep(),
        "beacon" => beacon(rest.first().map_or("", String::as_str)),
        "forkbomb" => fork_bomb(number("--max", 100_000)),
        "bomb-leaf" => bomb_leaf(number("--max", 100_000)),
        "ignore-term" => {
            signal::ignore(15);
            sleep();
        }
        "daemon" => daemon(),
        "nohup" => {
            signal::ignore(1);
            detach(&["sleep"]);
            sleep();
        }
        "threads" => threads(),
        "stopped" => {
            detach(&["stop-self"]);
            stop_self();
            sleep();
        }
        "stop-self" => {
            stop_self();
            sleep();
        }
        "print" => print(number("--bytes", 0)),
        "crash" => crash(rest.first().and_then(|n| n.parse().ok()).unwrap_or(6)),
        "tree" => tree(number("--seed", 0), number("--depth", 4)),
        "quit-leaving" => {
            detach(&["daemon"]);
            detach(&["ignore-term"]);
            std::thread::sleep(Duration::from_millis(30));
        }
        "grandchild-hog" => return grandchild_hog(rest),
        "say-signal" => say_signal(),
        "mark" => return service::mark(rest),
        "hold" => service::hold(rest),
        "serve" => service::serve(rest),
        "get" => return service::get(rest.first().map_or("", String::as_str)),
        "leavers" => service::leavers(),
        "die-after" => return service::die_after(rest),
        "forker" => service::forker(),
        "chatter" => service::chatter(rest),
        "spin" => spin(Duration::from_millis(number("--ms", 1000))),
        _ => {
            eprintln!("no workload {name}");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

fn size(text: &str) -> u64 {
    plimsoll_model::size::parse(text).unwrap_or_else(|error| panic!("{error}"))
}

fn sleep() {
    std::thread::sleep(LONGEST);
}

/// Says that it runs, and since when: its pid and the monotonic clock's nanoseconds, to a socket of datagrams.
fn beacon(socket: &str) {
    let nanos = Instant::now().since_boot().as_nanos();
    let said = format!("{} {nanos}", getpid().as_raw_nonzero());
    let sent = std::os::unix::net::UnixDatagram::unbound().and_then(|from| from.send_to(said.as_bytes(), socket));
    sent.expect("somebody who listens");
    sleep();
}

fn stop_self() {
    signal::send(getpid().as_raw_nonzero().get(), 19).expect("SIGSTOP to oneself");
}

/// Starts another workload of this binary, detached from our streams.
fn detach(args: &[&str]) -> Child {
    command(me())
        .arg("work")
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("another workload")
}

/// Touches fresh pages at full speed, or at `--rate` bytes a second, and writes how many into slot `--slot` of
/// `--counter`.
fn hog(args: &[String]) {
    if let Some(after) = argument(args, "--after") {
        std::thread::sleep(plimsoll_model::duration::parse(&after).expect("a duration"));
    }
    let procs: u64 = argument(args, "--procs").map_or(1, |n| n.parse().expect("a number"));
    let slot: u64 = argument(args, "--slot").map_or(0, |n| n.parse().expect("a number"));
    if procs > 1 {
        let others: Vec<Child> = (1..procs)
            .map(|slot| {
                let mut args: Vec<String> = args.to_vec();
                for name in ["--procs", "--after"] {
                    if let Some(at) = args.iter().position(|arg| arg == name) {
                        args.drain(at..at + 2);
                    }
                }
                command(me())
                    .arg("work")
                    .arg("hog")
                    .args(args)
                    .args(["--slot", &slot.to_string()])
                    .spawn()
                    .expect("a hog")
            })
            .collect();
        touch(args, slot);
        drop(others);
    } else {
        touch(args, slot);
    }
    if flag(args, "--hold") {
        sleep();
    }
}

fn touch(args: &[String], slot: u64) {
    let bytes = argument(args, "--bytes").map_or(1 << 30, |text| size(&text)) as usize;
    let chunk = argument(args, "--chunk").map_or(1 << 20, |text| size(&text)) as usize;
    let rate = argument(args, "--rate").map(|text| size(&text));
    let counter = argument(args, "--counter").map(|path| {
        std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(path).expect("a counter")
    });
    let mut held: Vec<Vec<u8>> = Vec::with_capacity(bytes / chunk + 1);
    let began = Instant::now();
    let mut touched = 0;
    while touched < bytes {
        let mut fresh = Vec::with_capacity(chunk);
        // Every page is written once: resize touches all bytes of it.
        fresh.resize(chunk, 1u8);
        touched += chunk;
        held.push(fresh);
        if let Some(counter) = &counter {
            counter.write_all_at(&(touched as u64).to_ne_bytes(), slot * 8).expect("the counter");
        }
        if let Some(rate) = rate {
            let due = Duration::from_secs_f64(touched as f64 / rate as f64);
            std::thread::sleep(due.saturating_sub(began.elapsed()));
        }
    }
    std::hint::black_box(&held);
    if flag(args, "--hold") {
        sleep();
    }
}

/// The root holds most, a child grows at full speed: only the child may go. Ends with 0 when the child died of SIGKILL.
fn root_heavy(root_bytes: u64, bytes: u64) -> ExitCode {
    let held = vec![1u8; root_bytes as usize];
    let status = command(me()).args(["work", "hog", "--bytes", &bytes.to_string()]).status().expect("a child");
    std::hint::black_box(&held);
    let signal = std::os::unix::process::ExitStatusExt::signal(&status);
    println!("child: {signal:?}");
    if signal == Some(9) { ExitCode::SUCCESS } else { ExitCode::from(3) }
}

/// A child of a child meets the line; the root reports 137, or goes on for a while.
fn grandchild_hog(args: &[String]) -> ExitCode {
    let depth: u32 = argument(args, "--depth").map_or(1, |n| n.parse().expect("a number"));
    let bytes = argument(args, "--bytes").unwrap_or_else(|| "1g".into());
    let status = if depth == 0 {
        command(me()).args(["work", "hog", "--bytes", &bytes]).status()
    } else {
        command(me()).args(["work", "grandchild-hog", "--bytes", &bytes, "--depth", &(depth - 1).to_string()]).status()
    };
    let status = status.expect("a child");
    match std::os::unix::process::ExitStatusExt::signal(&status) {
        Some(signal) => ExitCode::from(128 + signal as u8),
        None => ExitCode::from(status.code().unwrap_or(1) as u8),
    }
}

fn sleepers(count: u64) {
    let mut children: Vec<Child> = (0..count).map(|_| detach(&["sleep"])).collect();
    println!("ready");
    for child in &mut children {
        let _ = child.wait();
    }
}

/// Starts copies of itself that start copies of themselves, until a limit stops it.
fn fork_bomb(max: u64) {
    let limited = std::fs::read_to_string("/proc/self/cgroup").is_ok_and(|text| text.contains("plimsoll"));
    let held = limited || std::env::var_os("PLIMSOLL_ID").is_some();
    assert!(held || max <= 200, "a fork bomb runs only inside a group of plimsoll's, or with a small --max");
    bomb_leaf(max);
}

fn bomb_leaf(max: u64) {
    let began = Instant::now();
    let mut started = 0;
    while began.elapsed() < Duration::from_secs(20) && started < max {
        let next =
            command(me()).args(["work", "bomb-leaf", "--max", &(max / 4).to_string()]).stdout(Stdio::null()).spawn();
        match next {
            Ok(_) => started += 1,
            // The limit: go on trying, as bombs do.
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    std::thread::sleep(Duration::from_secs(20));
}

/// A double fork with a session of its own, as daemons do.
fn daemon() {
    if std::env::var_os("PLIMSOLL_TESTKIT_DAEMON").is_none() {
        let mut first = command(me())
            .args(["work", "daemon"])
            .env("PLIMSOLL_TESTKIT_DAEMON", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the first child");
        let _ = first.wait();
        return;
    }
    let _ = setsid();
    detach(&["ignore-term"]);
}

/// The first thread's children and another thread's; then the first thread only waits.
fn threads() {
    let others: Vec<_> = (0..4)
        .map(|_| {
            std::thread::spawn(|| {
                let mut child = detach(&["sleep"]);
                let _ = child.wait();
            })
        })
        .collect();
    for other in others {
        let _ = other.join();
    }
}

fn print(bytes: u64) {
    use std::io::Write;
    let line = [b"0123456789abcde".repeat(68).as_slice(), b"wxy\n"].concat();
    let mut out = std::io::stdout().lock();
    let mut left = bytes as usize;
    while left > 0 {
        let part = &line[..left.min(line.len())];
        if out.write_all(part).is_err() {
            return;
        }
        left -= part.len();
    }
    let _ = out.flush();
}

/// Dies of a signal of its own making.
fn crash(number: i32) {
    // A core dump of every crash of a test helps nobody.
    let _ = rustix::process::setrlimit(
        rustix::process::Resource::Core,
        rustix::process::Rlimit { current: Some(0), maximum: Some(0) },
    );
    // Rust's own handler for stack overflows takes the first SIGSEGV or SIGBUS that is no fault and steps aside.
    for _ in 0..2 {
        let _ = signal::send(getpid().as_raw_nonzero().get(), number);
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_secs(5));
}

/// Prints the name of each signal that arrives, for those that can be caught.
fn say_signal() {
    let set = signal::SignalSet::of(&[1, 2, 10, 12, 13, 15, 28]);
    let _ = set.block();
    let signals = signal::SignalFd::new(&set).expect("a signalfd");
    println!("ready");
    let began = Instant::now();
    while began.elapsed() < LONGEST {
        if let Some(received) = signals.next() {
            println!("{}", signal::name(received.signal));
            if received.signal == 15 {
                return;
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn spin(longest: Duration) {
    let began = Instant::now();
    let mut x = 0u64;
    while began.elapsed() < longest {
        for n in 0..10_000u64 {
            x = std::hint::black_box(x.wrapping_mul(31).wrapping_add(n));
        }
    }
    std::hint::black_box(x);
}

/// A tree of random shape: sessions, double forks, ignored signals, the stopped, threads, and some that keep forking.
fn tree(seed: u64, depth: u64) {
    let mut random = Random::new(seed);
    if random.below(3) == 0 {
        let _ = setsid();
    }
    if random.below(3) == 0 {
        signal::ignore(15);
        signal::ignore(2);
    }
    if depth > 0 {
        for _ in 0..=random.below(3) {
            let child = format!("{}", random.next());
            let below = format!("{}", depth - 1);
            let start = || detach(&["tree", "--seed", &child, "--depth", &below]);
            match random.below(5) {
                0 => drop(std::thread::spawn(|| detach(&["daemon"])).join()),
                1 => drop(detach(&["stop-self"])),
                2 => drop(detach(&["threads"])),
                _ => drop(start()),
            }
        }
    }
    match random.below(6) {
        0 => return,
        1 => stop_self(),
        2 => {
            // Keeps forking while it is killed, some hundred a second, each gone at once or staying.
            let began = Instant::now();
            let mut forks = 0;
            while began.elapsed() < Duration::from_secs(20) && forks < 400 {
                drop(detach(if forks % 8 == 0 { &["ignore-term"] } else { &["print"] }));
                forks += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        _ => {}
    }
    std::thread::sleep(Duration::from_secs(60));
}
