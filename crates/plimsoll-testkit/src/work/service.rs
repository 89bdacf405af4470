//! Workloads that are services: one that speaks HTTP, one that leaves marks of when it was asked to end, one that holds
//! memory until it is asked to let go.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use plimsoll_kernel::clock::Instant;
use plimsoll_kernel::signal::{SignalFd, SignalSet};

use super::{LONGEST, size, touch};
use crate::harness::argument;

/// Appends a line to a file that others append to as well.
fn append(file: &str, line: &str) {
    let mut open = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(file).expect("a file");
    open.write_all(format!("{line}\n").as_bytes()).expect("a line");
}

/// Writes `NAME up`, waits for SIGTERM, writes `NAME term`, takes its time, writes `NAME down`.
pub(super) fn mark(args: &[String]) -> ExitCode {
    let (file, name) = (argument(args, "--file").expect("--file"), argument(args, "--name").expect("--name"));
    let pause: u64 = argument(args, "--ms").map_or(0, |ms| ms.parse().expect("a number"));
    let set = SignalSet::of(&[15]);
    let _ = set.block();
    let signals = SignalFd::new(&set).expect("a signalfd");
    append(&file, &format!("{name} up"));
    let began = Instant::now();
    while began.elapsed() < LONGEST {
        if signals.next().is_some() {
            append(&file, &format!("{name} term"));
            std::thread::sleep(Duration::from_millis(pause));
            append(&file, &format!("{name} down"));
            return ExitCode::SUCCESS;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    ExitCode::from(9)
}

/// Holds `--bytes`, prints `holding`, and lets go when SIGUSR1 comes. (`--from FILE --until FILE`: as soon as there is the
/// first file it grows at `--rate`, until there is the second one.)
pub(super) fn hold(args: &[String]) {
    let set = SignalSet::of(&[10]);
    let _ = set.block();
    let signals = SignalFd::new(&set).expect("a signalfd");
    let mut held = vec![vec![1u8; argument(args, "--bytes").map_or(0, |text| size(&text)) as usize]];
    println!("holding");
    if let Some(until) = argument(args, "--until") {
        let rate = argument(args, "--rate").map_or(1 << 20, |text| size(&text));
        let from = argument(args, "--from").expect("--from");
        while !Path::new(&from).exists() {
            std::thread::sleep(Duration::from_millis(20));
        }
        while !Path::new(&until).exists() {
            held.push(vec![1u8; 1 << 20]);
            std::thread::sleep(Duration::from_secs_f64((1 << 20) as f64 / rate as f64));
        }
    }
    let began = Instant::now();
    while began.elapsed() < LONGEST {
        if signals.next().is_some() {
            held = Vec::new();
            println!("let go");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    std::hint::black_box(&held);
}

/// Answers HTTP on `--port` of the loopback: `/pid`, `/health` (500 while there is the file `--sick`), `/slow/MS`, and
/// `/grow`, which never comes back.
pub(super) fn serve(args: &[String]) {
    let port: u16 = argument(args, "--port").and_then(|port| port.parse().ok()).expect("--port");
    let sick = argument(args, "--sick");
    let listener = TcpListener::bind(("127.0.0.1", port)).expect("the port");
    println!("listening");
    for stream in listener.incoming().flatten() {
        let sick = sick.clone();
        std::thread::spawn(move || while answer(&stream, sick.as_deref()).is_some() {});
    }
}

/// Answers one request; `None` when there is no further one.
fn answer(stream: &TcpStream, sick: Option<&str>) -> Option<()> {
    let mut reader = BufReader::with_capacity(1 << 10, stream);
    let mut first = String::new();
    reader.read_line(&mut first).ok().filter(|&count| count > 0)?;
    let mut line = String::new();
    let mut is_last = false;
    while reader.read_line(&mut line).ok()? > 2 {
        is_last |= line.trim().eq_ignore_ascii_case("connection: close");
        line.clear();
    }
    let path = first.split(' ').nth(1)?;
    let pid = std::process::id();
    let (status, body) = match path {
        "/health" if sick.is_some_and(|file| Path::new(file).exists()) => ("500 Sick", String::new()),
        "/grow" => {
            touch(&["--bytes".to_owned(), "4g".to_owned()], 0);
            return None;
        }
        _ => {
            if let Some(ms) = path.strip_prefix("/slow/").and_then(|ms| ms.parse().ok()) {
                std::thread::sleep(Duration::from_millis(ms));
            }
            ("200 OK", pid.to_string())
        }
    };
    let mut stream = stream;
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(head.as_bytes()).ok().filter(|()| !is_last)
}

/// Asks `http://HOST:PORT/PATH`; 0 is a 200.
pub(super) fn get(url: &str) -> ExitCode {
    match crate::http::get(url) {
        Ok((200, _)) => ExitCode::SUCCESS,
        Ok((status, _)) => {
            println!("{url}: {status}");
            ExitCode::FAILURE
        }
        Err(error) => {
            println!("{url}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Starts children that leave in every way there is, then sleeps: a daemon, one with a session of its own, one that
/// ignores SIGHUP.
pub(super) fn leavers() {
    drop(super::detach(&["daemon"]));
    drop(super::detach(&["nohup"]));
    drop(super::detach(&["ignore-term"]));
    println!("ready");
    super::sleep();
}

/// Crashes after a while, and again.
pub(super) fn die_after(args: &[String]) -> ExitCode {
    let ms: u64 = args.first().and_then(|ms| ms.parse().ok()).unwrap_or(100);
    std::thread::sleep(Duration::from_millis(ms));
    ExitCode::from(args.get(1).and_then(|code| code.parse().ok()).unwrap_or(1))
}

/// Forks a child every so often, each of which goes after a moment; some leave the session.
pub(super) fn forker() {
    let began = Instant::now();
    let mut children = Vec::new();
    let mut count = 0;
    while began.elapsed() < LONGEST {
        children.push(super::detach(if count % 5 == 0 { &["daemon"] } else { &["die-after", "300"] }));
        count += 1;
        children.retain_mut(|child| child.try_wait().is_ok_and(|ended| ended.is_none()));
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Prints a line every few milliseconds.
pub(super) fn chatter(args: &[String]) {
    let pause: u64 = args.first().and_then(|ms| ms.parse().ok()).unwrap_or(50);
    let began = Instant::now();
    let mut number = 0u64;
    while began.elapsed() < LONGEST {
        println!("line {number}");
        number += 1;
        std::thread::sleep(Duration::from_millis(pause));
    }
}
