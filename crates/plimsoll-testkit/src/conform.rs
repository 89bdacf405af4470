//! The conformance suite: one case a promise of the contract, the same on all tiers.

use std::collections::BTreeMap;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use plimsoll_kernel::procfs::Process;
use serde_json::Value;

use crate::harness::{Bench, DEADLINE, Options, Outcome, Tier, alive, command, eventually, groups_of_plimsoll, me};

type Check = Result<(), String>;

/// Fails the case with what was seen.
macro_rules! ensure {
    ($condition:expr, $($what:tt)+) => {
        if !$condition {
            return Err(format!("{} [{}]", format!($($what)+), stringify!($condition)));
        }
    };
}

struct Case {
    name: &'static str,
    run: fn(&Bench) -> Check,
}

macro_rules! cases {
    ($($name:ident),* $(,)?) => { &[$(Case { name: stringify!($name), run: $name }),*] };
}

const CASES: &[Case] = cases![
    exit_codes,
    killed_by_a_signal,
    not_found_and_not_executable,
    memory_line,
    memory_line_met_by_a_grandchild,
    memory_below_the_line,
    memory_swap,
    memory_reservation,
    memory_high,
    cpus,
    pids_limit,
    oom_score_adj,
    workdir_env_and_name,
    timeout_and_grace,
    timeout_of_a_stopped_tree,
    idle_timeout,
    idle_timeout_sees_input_and_output,
    on_limit_largest,
    log_file,
    log_file_rotates,
    log_overflow_drop_keeps_the_end,
    report_has_the_contracts_shape,
    three_lines_unless_quiet,
    streams_are_the_childs_own,
    signals_reach_the_root,
    stop_signals_reach_the_root,
    sigterm_with_grace,
    a_tree_that_leaves_daemons,
    a_tree_that_ignores_sigterm,
    a_tree_of_stopped_processes,
    a_tree_of_threads,
    fork_bomb,
    front_killed,
    keeper_killed,
    both_killed_then_swept,
    a_stranger_with_a_recycled_pid,
    a_daemon_without_environment,
    a_record_that_is_torn,
    a_run_within_a_run,
    a_root_that_reports_its_child,
    explain_tells_the_same,
    bad_input_starts_nothing,
    what_the_tier_cannot_do_is_refused,
    a_named_parent_that_is_not_there,
    limits_of_a_named_parent,
    many_at_once,
];

/// Runs the suite.
pub(crate) fn run(options: &Options) -> ExitCode {
    if options.flag("--list") {
        CASES.iter().for_each(|case| println!("{}", case.name));
        return ExitCode::SUCCESS;
    }
    if options.flag("--table") {
        return table(options);
    }
    let filter = options.text("--filter").unwrap_or_default();
    let (mut passed, mut failed) = (0, 0);
    for case in CASES.iter().filter(|case| case.name.contains(&filter)) {
        let bench = Bench::new(options, case.name);
        let result = (case.run)(&bench).and_then(|()| {
            let left = bench.leftovers();
            if left.is_empty() { Ok(()) } else { Err(format!("left behind: {left:?}")) }
        });
        match result {
            Ok(()) => {
                passed += 1;
                println!("PASS {}", case.name);
                let _ = std::fs::remove_dir_all(&bench.dir);
            }
            Err(why) => {
                failed += 1;
                println!("FAIL {}: {why}", case.name);
            }
        }
    }
    println!("{passed} passed, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What every end must leave: nobody.
fn nobody_left(outcome: &Outcome) -> Check {
    ensure!(outcome.left == 0, "{} processes outlived the run", outcome.left);
    if let Some(survivors) = outcome.report["tree"]["survivors"].as_u64() {
        ensure!(survivors == 0, "the certificate counts survivors: {}", outcome.report);
    }
    Ok(())
}

fn ended(outcome: &Outcome, code: i32, cause: &str) -> Check {
    ensure!(outcome.code == Some(code), "code {:?}, wanted {code}: {}{}", outcome.code, outcome.stderr, outcome.report);
    ensure!(outcome.cause() == cause, "cause {}, wanted {cause}: {}", outcome.cause(), outcome.report);
    nobody_left(outcome)
}

fn refused(outcome: &Outcome, words: &[&str]) -> Check {
    ensure!(matches!(outcome.code, Some(2 | 125)), "code {:?}: {}", outcome.code, outcome.stderr);
    for word in words {
        ensure!(outcome.stderr.contains(word), "the message lacks `{word}`: {}", outcome.stderr);
    }
    ensure!(outcome.stdout.is_empty(), "something ran: {}", outcome.stdout);
    nobody_left(outcome)
}

fn exit_codes(bench: &Bench) -> Check {
    for code in [0, 1, 42, 143, 255] {
        let outcome = bench.run(&[], &["sh", "-c", &format!("exit {code}")]);
        ended(&outcome, code, if code == 0 { "exited" } else { "failed" })?;
        let read = outcome.report["exit"]["code"].as_i64();
        ensure!(read == Some(code.into()), "{}", outcome.report);
    }
    Ok(())
}

fn killed_by_a_signal(bench: &Bench) -> Check {
    for (signal, cause) in [(11, "crashed"), (6, "crashed"), (15, "external_signal"), (9, "external_kill")] {
        let outcome = bench.run(&[], &["@crash", &signal.to_string()]);
        ended(&outcome, 128 + signal, cause)?;
        let read = outcome.report["exit"]["signal"].as_i64();
        ensure!(read == Some(signal.into()), "{}", outcome.report);
    }
    Ok(())
}

fn not_found_and_not_executable(bench: &Bench) -> Check {
    ended(&bench.run(&[], &["plimsoll-no-such-program"]), 127, "start_failed")?;
    ended(&bench.run(&[], &["/nowhere/at/all"]), 127, "start_failed")?;
    let file = bench.dir.join("not-a-program");
    std::fs::write(&file, "\u{1}").map_err(|error| error.to_string())?;
    ended(&bench.run(&[], &[&file.display().to_string()]), 126, "start_failed")?;
    ended(&bench.run(&[], &["/"]), 126, "start_failed")
}

fn memory_line(bench: &Bench) -> Check {
    let outcome = bench.run(&["-m", "48m"], &["@hog", "--bytes", "200m", "--rate", "400m"]);
    ended(&outcome, 137, "memory_limit")?;
    ensure!(outcome.confidence() == "certain", "{}", outcome.report);
    let memory = &outcome.report["memory"];
    ensure!(memory["limit_bytes"] == 48 << 20, "{memory}");
    ensure!(memory["peak_bytes"].as_u64() >= Some(40 << 20), "{memory}");
    let largest = memory["largest"][0]["command"].as_str().unwrap_or("");
    ensure!(largest.contains("hog"), "the largest is not named: {memory}");
    Ok(())
}

fn memory_line_met_by_a_grandchild(bench: &Bench) -> Check {
    let outcome = bench.run(&["-m", "48m"], &["@grandchild-hog", "--bytes", "200m", "--depth", "2"]);
    ended(&outcome, 137, "memory_limit")?;
    ensure!(outcome.confidence() == "certain", "{}", outcome.report);
    Ok(())
}

fn memory_below_the_line(bench: &Bench) -> Check {
    let outcome = bench.run(&["-m", "64m"], &["@hog", "--bytes", "40m"]);
    ended(&outcome, 0, "exited")?;
    let peak = outcome.report["memory"]["peak_bytes"].as_u64().unwrap_or(0);
    ensure!(peak < 64 << 20, "{}", outcome.report);
    Ok(())
}

fn memory_swap(bench: &Bench) -> Check {
    // Equal to memory: no swap, so the line is met although there may be swap.
    let outcome = bench.run(&["-m", "48m", "--memory-swap", "48m"], &["@hog", "--bytes", "120m"]);
    ended(&outcome, 137, "memory_limit")?;
    // Without a group nothing keeps the tree out of swap: it counts towards the line instead.
    let swap = if bench.tier == Tier::Watchdog { Value::Null } else { 0.into() };
    ensure!(outcome.report["memory"]["swap_limit_bytes"] == swap, "{}", outcome.report);
    let more = bench.run(&["-m", "48m", "--memory-swap", "160m"], &["@hog", "--bytes", "100m"]);
    if bench.tier == Tier::Watchdog {
        return refused(&more, &["--memory-swap", "watchdog"]);
    }
    let swap = std::fs::read_to_string("/proc/swaps").is_ok_and(|text| text.lines().count() > 1);
    if swap { ended(&more, 0, "exited") } else { ended(&more, 137, "memory_limit") }
}

/// Reads a file of the group that the child is in, from inside: `v1` and `v2` name it in the two versions.
fn own_group_file(bench: &Bench, options: &[&str], controller: &str, v1: &str, v2: &str) -> Result<String, String> {
    let script = format!(
        "p=$(sed -n 's/^[0-9]*:\\([^:]*,\\)*{controller}\\(,[^:]*\\)*:\\(.*\\)$/\\3/p' /proc/self/cgroup); \
         m=$(sed -n 's/^[^ ]* [^ ]* [^ ]* [^ ]* \\([^ ]*\\) .* - cgroup [^ ]* [^ ]*\\b{controller}\\b.*$/\\1/p' /proc/self/mountinfo | head -n 1); \
         if [ -n \"$p\" ] && [ -n \"$m\" ]; then cat \"$m$p/{v1}\"; \
         else p=$(sed -n 's/^0:://p' /proc/self/cgroup); m=$(sed -n 's/^[^ ]* [^ ]* [^ ]* [^ ]* \\([^ ]*\\) .* - cgroup2 .*$/\\1/p' /proc/self/mountinfo | head -n 1); cat \"$m$p/{v2}\"; fi"
    );
    let outcome = bench.run(options, &["sh", "-c", &script]);
    if outcome.code != Some(0) {
        return Err(format!("{} {}", outcome.stderr, outcome.stdout));
    }
    Ok(outcome.stdout.trim().to_owned())
}

fn memory_reservation(bench: &Bench) -> Check {
    let options = ["-m", "64m", "--memory-reservation", "32m"];
    if bench.tier == Tier::Watchdog {
        return refused(&bench.run(&options, &["true"]), &["--memory-reservation", "watchdog"]);
    }
    let found = own_group_file(bench, &options, "memory", "memory.soft_limit_in_bytes", "memory.low")?;
    ensure!(found == (32 << 20).to_string(), "found {found}");
    Ok(())
}

fn memory_high(bench: &Bench) -> Check {
    let options = ["-m", "64m", "--memory-high", "48m"];
    if bench.tier != Tier::Cgroup2 {
        return refused(&bench.run(&options, &["true"]), &["--memory-high", bench.tier.as_str()]);
    }
    let found = own_group_file(bench, &options, "memory", "none", "memory.high")?;
    ensure!(found == (48 << 20).to_string(), "found {found}");
    Ok(())
}

fn cpus(bench: &Bench) -> Check {
    let options = ["--cpus", "0.2"];
    if bench.tier == Tier::Watchdog {
        return refused(&bench.run(&options, &["true"]), &["--cpus", "watchdog"]);
    }
    let quota = own_group_file(bench, &options, "cpu", "cpu.cfs_quota_us", "cpu.max")?;
    ensure!(quota == "20000" || quota == "20000 100000", "found {quota}");
    Ok(())
}

fn pids_limit(bench: &Bench) -> Check {
    let options = ["--pids-limit", "10"];
    if bench.tier == Tier::Watchdog {
        return refused(&bench.run(&options, &["true"]), &["--pids-limit", "watchdog"]);
    }
    let outcome = bench.run(&options, &["sh", "-c", "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 60 & done; wait"]);
    ensure!(outcome.stderr.contains("fork"), "no fork was refused: {} {}", outcome.stderr, outcome.report);
    ensure!(outcome.report["tree"]["peak_processes"].as_u64() <= Some(10), "{}", outcome.report);
    nobody_left(&outcome)
}

fn oom_score_adj(bench: &Bench) -> Check {
    let outcome = bench.run(&["--oom-score-adj", "321"], &["cat", "/proc/self/oom_score_adj"]);
    ended(&outcome, 0, "exited")?;
    ensure!(outcome.stdout == "321\n", "{}", outcome.stdout);
    Ok(())
}

fn workdir_env_and_name(bench: &Bench) -> Check {
    let options = ["-w", "/proc", "-e", "COLOUR=red and blue", "-e", "PATH", "--name", "painter"];
    let outcome = bench.run(&options, &["sh", "-c", "pwd; echo $COLOUR"]);
    ended(&outcome, 0, "exited")?;
    ensure!(outcome.stdout == "/proc\nred and blue\n", "{}", outcome.stdout);
    ensure!(outcome.report["name"] == "painter", "{}", outcome.report);
    let outcome = bench.run(&["-w", "/nowhere"], &["true"]);
    ensure!(matches!(outcome.code, Some(125..=127)), "{:?} {}", outcome.code, outcome.stderr);
    nobody_left(&outcome)
}

fn timeout_and_grace(bench: &Bench) -> Check {
    let outcome = bench.run(&["--timeout", "200ms"], &["sleep", "60"]);
    ended(&outcome, 124, "timeout")?;
    ensure!(outcome.report["exit"]["signal"] == 15, "SIGTERM comes first: {}", outcome.report);
    let outcome = bench.run(&["--timeout", "200ms", "--stop-timeout", "200ms"], &["@ignore-term"]);
    ended(&outcome, 124, "timeout")?;
    ensure!(outcome.report["exit"]["signal"] == 9, "then SIGKILL: {}", outcome.report);
    Ok(())
}

fn timeout_of_a_stopped_tree(bench: &Bench) -> Check {
    let outcome = bench.run(&["--timeout", "300ms", "--stop-timeout", "5s"], &["@stop-self"]);
    ended(&outcome, 124, "timeout")
}

fn idle_timeout(bench: &Bench) -> Check {
    let outcome = bench.run(&["--idle-timeout", "300ms"], &["sh", "-c", "echo a; sleep 60"]);
    ended(&outcome, 124, "idle_timeout")?;
    ensure!(outcome.stdout == "a\n", "{}", outcome.stdout);
    Ok(())
}

fn idle_timeout_sees_input_and_output(bench: &Bench) -> Check {
    let script = "for i in 1 2 3 4 5 6; do sleep 0.3; echo $i; done; echo done >&2";
    let outcome = bench.run(&["--idle-timeout", "3s"], &["sh", "-c", script]);
    ended(&outcome, 0, "exited")?;
    ensure!(outcome.stdout == "1\n2\n3\n4\n5\n6\n" && outcome.stderr.contains("done"), "{outcome:?}");
    let mut running = bench.start_with(&["--idle-timeout", "3s"], &["cat"], Stdio::piped());
    let mut stdin = running.child.stdin.take().ok_or("no stdin")?;
    for word in ["one\n", "two\n", "three\n"] {
        std::io::Write::write_all(&mut stdin, word.as_bytes()).map_err(|error| error.to_string())?;
        std::thread::sleep(Duration::from_millis(300));
    }
    drop(stdin);
    let outcome = running.wait();
    ended(&outcome, 0, "exited")?;
    ensure!(outcome.stdout == "one\ntwo\nthree\n", "{}", outcome.stdout);
    Ok(())
}

fn on_limit_largest(bench: &Bench) -> Check {
    for _ in 0..5 {
        let options = ["-m", "96m", "--on-limit", "largest"];
        let outcome = bench.run(&options, &["@root-heavy", "--root-bytes", "56m", "--bytes", "500m"]);
        ensure!(outcome.stdout.contains("child: Some(9)"), "the root did not see its child die: {outcome:?}");
        ended(&outcome, 0, "exited")?;
        ensure!(outcome.report["tree"]["killed_inside"] == 1, "{}", outcome.report);
    }
    // With nobody below it the root is the last that is left.
    let outcome = bench.run(&["-m", "48m", "--on-limit", "largest"], &["@hog", "--bytes", "200m"]);
    ended(&outcome, 137, "memory_limit")
}

fn log_file(bench: &Bench) -> Check {
    let log = bench.dir.join("log");
    let options = ["--log-file", &log.display().to_string()];
    let outcome =
        bench.run(&options, &["sh", "-c", "echo out; echo err >&2; (setsid sh -c 'sleep 0.05; echo late' &)"]);
    ended(&outcome, 0, "exited")?;
    let text = std::fs::read_to_string(&log).map_err(|error| error.to_string())?;
    ensure!(text.starts_with("out\nerr\n"), "{text}");
    ensure!(outcome.stdout.is_empty(), "{}", outcome.stdout);
    let outcome = bench.run(&options, &["@print", "--bytes", "9m"]);
    ended(&outcome, 0, "exited")?;
    let size = std::fs::metadata(&log).map_err(|error| error.to_string())?.len();
    ensure!(size == 9 << 20 || size < 10 << 20, "{size}");
    Ok(())
}

fn log_file_rotates(bench: &Bench) -> Check {
    let log = bench.dir.join("log");
    let name = log.display().to_string();
    let options = ["--log-file", &name, "--log-max-size", "1m", "--log-max-files", "3", "--log-overflow", "block"];
    let outcome = bench.run(&options, &["@print", "--bytes", "8m"]);
    ended(&outcome, 0, "exited")?;
    let sizes: Vec<u64> = ["log", "log.1", "log.2", "log.3"]
        .iter()
        .filter_map(|name| std::fs::metadata(bench.dir.join(name)).ok())
        .map(|data| data.len())
        .collect();
    ensure!(sizes.len() == 3 && sizes.iter().all(|&size| size <= 1 << 20), "{sizes:?}");
    ensure!(sizes.iter().sum::<u64>() > 2 << 20, "{sizes:?}");
    // Lines stay whole, although a pipe is read in pieces that know nothing of lines.
    let lines = bench.dir.join("lines");
    let name = lines.display().to_string();
    let options = ["--log-file", &name, "--log-max-size", "50k", "--log-max-files", "40"];
    let script = "i=1; while [ $i -le 2000 ]; do printf '%0800d\\n' $i; i=$((i + 1)); done";
    ended(&bench.run(&options, &["sh", "-c", script]), 0, "exited")?;
    let older = (1..40).rev().map(|number| bench.dir.join(format!("lines.{number}"))).filter(|path| path.exists());
    let mut text = String::new();
    for path in older.chain([lines]) {
        let part = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        ensure!(part.ends_with('\n'), "{} ends within a line: {:?}", path.display(), part.lines().last());
        text += &part;
    }
    ensure!(text.lines().eq((1..=2000).map(|number| format!("{number:0800}"))), "not every number");
    Ok(())
}

fn log_overflow_drop_keeps_the_end(bench: &Bench) -> Check {
    let log = bench.dir.join("log");
    let options = ["--log-file", &log.display().to_string(), "--log-overflow", "drop"];
    let outcome = bench.run(&options, &["sh", "-c", "seq 1 600000; echo err >&2; echo END"]);
    ended(&outcome, 0, "exited")?;
    let text = std::fs::read_to_string(&log).map_err(|error| error.to_string())?;
    ensure!(text.ends_with("\nerr\nEND\n"), "ends in {:?}", &text[text.len().saturating_sub(80)..]);
    let spliced = text.lines().find(|line| line.contains("[plimsoll: ") && !line.starts_with("[plimsoll: "));
    ensure!(spliced.is_none(), "a marker within a line: {spliced:?}");
    Ok(())
}

fn report_has_the_contracts_shape(bench: &Bench) -> Check {
    let outcome = bench.run(&["-m", "64m"], &["sh", "-c", "exit 3"]);
    ended(&outcome, 3, "failed")?;
    let report = &outcome.report;
    ensure!(report["schema"] == "plimsoll.certificate/1", "{report}");
    ensure!(report["boundary"] == bench.tier.as_str(), "{report}");
    ensure!(report["command"][0] == "sh", "{report}");
    for (path, kind) in [
        ("/id", "string"),
        ("/name", "string"),
        ("/started_at", "string"),
        ("/ended_at", "string"),
        ("/runtime_ms", "number"),
        ("/exit/code", "number"),
        ("/exit/signal", "null"),
        ("/confidence", "string"),
        ("/evidence", "array"),
        ("/evidence/0/source", "string"),
        ("/evidence/0/detail", "string"),
        ("/memory/limit_bytes", "number"),
        ("/memory/peak_bytes", "number"),
        ("/memory/swap_limit_bytes", if bench.tier == Tier::Watchdog { "null" } else { "number" }),
        ("/memory/growth_bytes_per_s", "number"),
        ("/memory/largest", "array"),
        ("/tree/peak_processes", "number"),
        ("/tree/killed_inside", "number"),
        ("/tree/survivors", "number"),
        ("/advice", "string"),
    ] {
        let found = match report.pointer(path) {
            None => "missing",
            Some(Value::Null) => "null",
            Some(Value::Bool(_)) => "boolean",
            Some(Value::Number(_)) => "number",
            Some(Value::String(_)) => "string",
            Some(Value::Array(_)) => "array",
            Some(Value::Object(_)) => "object",
        };
        ensure!(found == kind, "{path} is {found}, not {kind}: {report}");
    }
    ensure!(report["started_at"].as_str().is_some_and(|time| time.ends_with('Z')), "{report}");
    Ok(())
}

fn three_lines_unless_quiet(bench: &Bench) -> Check {
    let hog = ["@hog", "--bytes", "200m"];
    let outcome = bench.run(&["-m", "32m"], &hog);
    let lines: Vec<&str> = outcome.stderr.lines().collect();
    ensure!(lines.len() == 3, "{} lines: {}", lines.len(), outcome.stderr);
    ensure!(lines[0].starts_with("plimsoll"), "{}", outcome.stderr);
    let outcome = bench.run(&["-m", "32m", "--quiet"], &hog);
    ended(&outcome, 137, "memory_limit")?;
    ensure!(outcome.stderr.is_empty(), "{}", outcome.stderr);
    let outcome = bench.run(&["-m", "32m"], &["sh", "-c", "exit 1"]);
    ensure!(outcome.stderr.is_empty(), "an ordinary exit says nothing: {}", outcome.stderr);
    Ok(())
}

fn streams_are_the_childs_own(bench: &Bench) -> Check {
    let script = "readlink /proc/self/fd/0; ls /proc/self/fd | tr '\\n' ' '";
    let outcome = bench.run(&[], &["sh", "-c", script]);
    ended(&outcome, 0, "exited")?;
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    ensure!(lines.first() == Some(&"/dev/null"), "{}", outcome.stdout);
    // Without plimsoll between it has the same ones: nothing of ours is inherited.
    let bare = command("sh")
        .args(["-c", "ls /proc/self/fd | tr '\\n' ' '"])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    let bare = String::from_utf8_lossy(&bare.stdout).into_owned();
    ensure!(lines.last().is_some_and(|fds| fds.trim() == bare.trim()), "{} against {bare}", outcome.stdout);
    let running = bench.start(&[], &["sleep", "60"]);
    let root = running.wait_for_root().ok_or("no root")?;
    let link = |pid: i32, fd: i32| std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok();
    let same = (0..3).all(|fd| link(root, fd).is_some() && link(root, fd) == link(running.front(), fd));
    let _ = plimsoll_kernel::signal::send(running.front(), 15);
    let outcome = running.wait();
    ensure!(same, "the root's streams are not ours");
    nobody_left(&outcome)
}

fn signals_reach_the_root(bench: &Bench) -> Check {
    let running = bench.start(&[], &["@say-signal"]);
    ensure!(eventually(|| running.printed().contains("ready")), "it did not start");
    let mut wanted = String::from("ready\n");
    for (signal, name) in [
        (1, "SIGHUP"),
        (2, "SIGINT"),
        (10, "SIGUSR1"),
        (12, "SIGUSR2"),
        (13, "SIGPIPE"),
        (28, "SIGWINCH"),
        (15, "SIGTERM"),
    ] {
        plimsoll_kernel::signal::send(running.front(), signal).map_err(|error| error.to_string())?;
        wanted += &format!("{name}\n");
        let arrived = eventually(|| running.printed().contains(name) || (signal == 15 && running.root().is_none()));
        ensure!(arrived, "{name} did not arrive: {}", running.printed());
    }
    let outcome = running.wait();
    ensure!(outcome.stdout == wanted, "each once: {}", outcome.stdout);
    ended(&outcome, 0, "stopped")
}

fn stop_signals_reach_the_root(bench: &Bench) -> Check {
    // The kernel lets nobody be stopped by a key whose group has no shell above it, as the first one of a container.
    let job = Bench { own_group: true, ..Bench::new_in(bench) };
    let running = job.start(&["--timeout", "60s"], &["sleep", "60"]);
    let root = running.wait_for_root().ok_or("no root")?;
    let state = |pid: i32| Process::of(pid).ok().and_then(|process| process.state().ok().flatten());
    for _ in 0..3 {
        plimsoll_kernel::signal::send(running.front(), 20).map_err(|error| error.to_string())?;
        let both = || state(root) == Some('T') && state(running.front()) == Some('T');
        ensure!(eventually(both), "SIGTSTP: root {:?}, plimsoll {:?}", state(root), state(running.front()));
        plimsoll_kernel::signal::send(running.front(), 18).map_err(|error| error.to_string())?;
        let neither = || state(root) == Some('S') && state(running.front()) == Some('S');
        ensure!(eventually(neither), "SIGCONT: root {:?}, plimsoll {:?}", state(root), state(running.front()));
    }
    // Stopped, and its tree ended meanwhile: there is nothing more to be stopped for.
    plimsoll_kernel::signal::send(running.front(), 20).map_err(|error| error.to_string())?;
    ensure!(eventually(|| state(running.front()) == Some('T')), "plimsoll does not stop a fourth time");
    plimsoll_kernel::signal::send(root, 9).map_err(|error| error.to_string())?;
    ended(&running.wait(), 137, "external_kill")
}

fn sigterm_with_grace(bench: &Bench) -> Check {
    let running = bench.start(&["--stop-timeout", "300ms"], &["@ignore-term"]);
    let root = running.wait_for_root().ok_or("no root")?;
    // The workload ignores the signal from its first instruction on, which comes after exec.
    let ignores = || {
        let text = std::fs::read_to_string(format!("/proc/{root}/status")).unwrap_or_default();
        let mask = text.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        // Signal n is bit n - 1; others may have been ignored before it was started.
        mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask >> 14 & 1 == 1)
    };
    ensure!(eventually(ignores), "it does not ignore SIGTERM");
    plimsoll_kernel::signal::send(running.front(), 15).map_err(|error| error.to_string())?;
    let outcome = running.wait();
    ended(&outcome, 137, "stopped")
}

fn a_tree_that_leaves_daemons(bench: &Bench) -> Check {
    ended(&bench.run(&[], &["@quit-leaving"]), 0, "exited")?;
    ended(&bench.run(&[], &["sh", "-c", "nohup sleep 60 >/dev/null 2>&1 & (setsid sleep 60 &) ; exit 5"]), 5, "failed")
}

fn a_tree_that_ignores_sigterm(bench: &Bench) -> Check {
    let script = "trap '' TERM INT HUP; sleep 60 & sleep 60";
    let options = ["--timeout", "300ms", "--stop-timeout", "200ms"];
    ended(&bench.run(&options, &["sh", "-c", script]), 124, "timeout")
}

fn a_tree_of_stopped_processes(bench: &Bench) -> Check {
    let outcome = bench.run(&["--timeout", "300ms", "--stop-timeout", "200ms"], &["@stopped"]);
    ended(&outcome, 124, "timeout")
}

fn a_tree_of_threads(bench: &Bench) -> Check {
    ended(&bench.run(&["--timeout", "300ms"], &["@threads"]), 124, "timeout")
}

fn fork_bomb(bench: &Bench) -> Check {
    if bench.tier == Tier::Watchdog {
        // Bounded by the workload itself: here nobody can refuse a fork.
        return ended(&bench.run(&["--timeout", "400ms"], &["@forkbomb", "--max", "100"]), 124, "timeout");
    }
    let running = bench.start(&["--pids-limit", "200", "-m", "512m", "--stop-timeout", "0s"], &["@forkbomb"]);
    let there = eventually(|| alive(&running.tag).len() >= 150);
    if !there {
        let members = alive(&running.tag).len();
        let _ = plimsoll_kernel::signal::send(running.front(), 15);
        return Err(format!("the bomb is a dud: {members} members; {:?}", running.wait()));
    }
    plimsoll_kernel::signal::send(running.front(), 15).map_err(|error| error.to_string())?;
    let outcome = running.wait();
    // Without grace the root dies of whichever signal is first.
    ensure!(matches!(outcome.code, Some(137 | 143)) && outcome.cause() == "stopped", "{outcome:?}");
    nobody_left(&outcome)?;
    ensure!(outcome.report["tree"]["peak_processes"].as_u64() >= Some(150), "{}", outcome.report);
    Ok(())
}

/// Starts a tree with daemons in it and waits until all of them are there.
fn with_daemons(bench: &Bench) -> Result<crate::harness::Running, String> {
    let script = "(setsid sleep 60 &) ; (setsid sh -c 'sleep 61 & sleep 62' &) ; trap '' TERM; sleep 63";
    let running = bench.start(&["-m", "64m"], &["sh", "-c", script]);
    let there = eventually(|| alive(&running.tag).len() >= 6);
    ensure!(there, "the tree did not come up: {} are there", alive(&running.tag).len());
    Ok(running)
}

fn front_killed(bench: &Bench) -> Check {
    let running = with_daemons(bench)?;
    let tag = running.tag.clone();
    plimsoll_kernel::signal::send(running.front(), 9).map_err(|error| error.to_string())?;
    let outcome = running.wait();
    ensure!(outcome.signal == Some(9), "{outcome:?}");
    ensure!(eventually(|| alive(&tag).is_empty()), "alive after the front was killed: {:?}", alive(&tag));
    ensure!(eventually(|| bench.leftovers().is_empty()), "left: {:?}", bench.leftovers());
    last_cause_is(bench, "stopped")
}

fn keeper_killed(bench: &Bench) -> Check {
    let running = with_daemons(bench)?;
    let keeper = running.keeper().ok_or("no keeper")?;
    plimsoll_kernel::signal::send(keeper, 9).map_err(|error| error.to_string())?;
    let outcome = running.wait();
    ensure!(outcome.code == Some(125), "{outcome:?}");
    nobody_left(&outcome)?;
    last_cause_is(bench, "stopped")
}

fn both_killed_then_swept(bench: &Bench) -> Check {
    let running = with_daemons(bench)?;
    let tag = running.tag.clone();
    let keeper = running.keeper().ok_or("no keeper")?;
    for pid in [running.front(), keeper] {
        // Stopped first, so that neither sees the other die.
        plimsoll_kernel::signal::send(pid, 19).map_err(|error| error.to_string())?;
    }
    for pid in [running.front(), keeper] {
        plimsoll_kernel::signal::send(pid, 9).map_err(|error| error.to_string())?;
    }
    let _ = running.wait();
    gone(keeper)?;
    ensure!(!alive(&tag).is_empty(), "there is nothing to sweep");
    let output = bench.verb("explain").output().map_err(|error| error.to_string())?;
    ensure!(alive(&tag).is_empty(), "not swept: {:?} {}", alive(&tag), String::from_utf8_lossy(&output.stderr));
    last_cause_is(bench, "stopped")
}

/// A keeper that is still dying still holds what it held.
fn gone(pid: i32) -> Check {
    let dead = || Process::of(pid).ok().is_none_or(|process| !process.is_alive());
    ensure!(eventually(dead), "pid {pid} does not die");
    Ok(())
}

fn last_cause_is(bench: &Bench, cause: &str) -> Check {
    let mut found = String::new();
    let holds = eventually(|| {
        let output = bench.verb("explain").args(["last", "--json"]).output();
        let value: Value =
            output.ok().and_then(|output| serde_json::from_slice(&output.stdout).ok()).unwrap_or(Value::Null);
        found = value.to_string();
        value["cause"] == cause
    });
    ensure!(holds, "explain says {found}");
    Ok(())
}

/// A leftover record names a pid that belongs to somebody else by now.
fn a_stranger_with_a_recycled_pid(bench: &Bench) -> Check {
    let mut stranger = command("sleep").arg("60").spawn().map_err(|error| error.to_string())?;
    let pid = stranger.id();
    let running = with_daemons(bench)?;
    let keeper = running.keeper().ok_or("no keeper")?;
    for signal in [19, 9] {
        for pid in [running.front(), keeper] {
            plimsoll_kernel::signal::send(pid, signal).map_err(|error| error.to_string())?;
        }
    }
    let _ = running.wait();
    gone(keeper)?;
    let file = std::fs::read_dir(bench.dir.join("run/runs"))
        .ok()
        .and_then(|mut entries| entries.next())
        .and_then(Result::ok)
        .ok_or("no record is left")?
        .path();
    let record = std::fs::read_to_string(&file).map_err(|error| error.to_string())?;
    let first = record.lines().next().ok_or("the record is empty")?;
    let stranger_then = serde_json::json!({"pid": pid, "start_ticks": 7});
    let seen = serde_json::json!({"root": stranger_then, "members": [stranger_then]});
    std::fs::write(&file, format!("{first}\n{seen}\n")).map_err(|error| error.to_string())?;
    let output = bench.verb("explain").output().map_err(|error| error.to_string())?;
    let alive = stranger.try_wait().is_ok_and(|status| status.is_none());
    let _ = stranger.kill();
    let _ = stranger.wait();
    ensure!(alive, "the stranger was killed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Who forgot his environment, left his session and was born just before both were killed is known by his pid alone.
fn a_daemon_without_environment(bench: &Bench) -> Check {
    // A socket of our own, whose peer tells that the daemon lives, whatever it forgot.
    let script = "sleep 1.5; env -i setsid sleep 64.25 & sleep 65";
    let running = bench.start(&["-m", "64m"], &["sh", "-c", script]);
    let daemon = || {
        let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let is = |pid: &i32| {
            std::fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| line == b"sleep\0".to_vec().into_iter().chain(*b"64.25\0").collect::<Vec<u8>>())
        };
        pids.filter(is).find(|&pid| Process::of(pid).is_ok_and(|process| process.is_alive()))
    };
    ensure!(eventually(|| daemon().is_some()), "the daemon did not come up");
    std::thread::sleep(Duration::from_millis(400));
    let keeper = running.keeper().ok_or("no keeper")?;
    for signal in [19, 9] {
        for pid in [running.front(), keeper] {
            plimsoll_kernel::signal::send(pid, signal).map_err(|error| error.to_string())?;
        }
    }
    let _ = running.wait();
    gone(keeper)?;
    let output = bench.verb("explain").output().map_err(|error| error.to_string())?;
    ensure!(daemon().is_none(), "it lives on: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A full disk tore the record: its name still tells whose groups and tags to look for.
fn a_record_that_is_torn(bench: &Bench) -> Check {
    let running = with_daemons(bench)?;
    let tag = running.tag.clone();
    let keeper = running.keeper().ok_or("no keeper")?;
    for signal in [19, 9] {
        for pid in [running.front(), keeper] {
            plimsoll_kernel::signal::send(pid, signal).map_err(|error| error.to_string())?;
        }
    }
    let _ = running.wait();
    gone(keeper)?;
    let file = std::fs::read_dir(bench.dir.join("run/runs")).ok().and_then(|mut all| all.next()?.ok());
    let file = file.ok_or("no record is left")?.path();
    std::fs::write(&file, "{\"schema\":\"plimsoll.run").map_err(|error| error.to_string())?;
    let output = bench.verb("explain").output().map_err(|error| error.to_string())?;
    ensure!(alive(&tag).is_empty(), "not swept: {:?} {}", alive(&tag), String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// The line of a tree holds for a plimsoll in it as well, and both go together.
fn a_run_within_a_run(bench: &Bench) -> Check {
    let plimsoll = bench.plimsoll.display().to_string();
    let me = me().display().to_string();
    let inner = [&plimsoll, "run", "--quiet", "-m", "150m", "--", &me, "work", "hog", "--bytes", "140m"];
    let outcome = bench.run(&["-m", "64m"], &inner);
    // Where a group cannot be divided (v2), the inner one watches, and goes before the outer line is met, unless it gets no
    // processor for as long as the hog takes to get there: then the kernel's line holds, and everything goes at once.
    let is_before = bench.tier == Tier::Cgroup2 && outcome.cause() == "failed";
    ended(&outcome, 137, if is_before { "failed" } else { "memory_limit" })?;
    ensure!(outcome.report["memory"]["peak_bytes"].as_u64() <= Some(80 << 20), "{}", outcome.report);
    let inner = format!("trap '' TERM; {plimsoll} run --quiet -m 32m -- sh -c 'trap \"\" TERM; sleep 66; sleep 67'");
    let outcome = bench.run(&["--timeout", "700ms", "--stop-timeout", "50ms"], &["sh", "-c", &inner]);
    ended(&outcome, 124, "timeout")?;
    // Its record goes as well, without anybody asking for another verb.
    ensure!(bench.leftovers().is_empty(), "left behind: {:?}", bench.leftovers());
    Ok(())
}

/// Without a group we choose and kill ourselves, which is certain as well.
fn a_root_that_reports_its_child(bench: &Bench) -> Check {
    let me = me().display().to_string();
    let script = format!("{me} work hog --bytes 500m; exit $?");
    let outcome = bench.run(&["-m", "64m", "--on-limit", "largest"], &["sh", "-c", &script]);
    ended(&outcome, 137, "memory_limit")?;
    ensure!(outcome.confidence() == "certain", "{}", outcome.report);
    let largest = outcome.report["memory"]["largest"][0].clone();
    ensure!(largest["command"].as_str().is_some_and(|command| command.contains("hog")), "{}", outcome.report);
    ensure!(largest["memory_bytes"].as_u64() > Some(32 << 20), "{}", outcome.report);
    ensure!(!outcome.report["advice"].as_str().unwrap_or("sh (pid").contains("sh (pid"), "{}", outcome.report);
    Ok(())
}

fn explain_tells_the_same(bench: &Bench) -> Check {
    let outcome = bench.run(&["--name", "teller", "-m", "32m"], &["@hog", "--bytes", "100m"]);
    ended(&outcome, 137, "memory_limit")?;
    let id = outcome.report["id"].as_str().ok_or("no id")?.to_owned();
    for what in [vec![], vec!["last"], vec!["teller"], vec![id.as_str()]] {
        let output = bench.verb("explain").args(&what).arg("--json").output().map_err(|error| error.to_string())?;
        let told: Value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        ensure!(told == outcome.report, "explain {what:?}: {told} against {}", outcome.report);
    }
    let output = bench.verb("explain").arg("teller").output().map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(text.lines().all(|line| line.chars().count() <= 80), "wider than 80 columns: {text}");
    ensure!(text.contains("memory"), "{text}");
    let output = bench.verb("explain").arg("nobody-of-this-name").output().map_err(|error| error.to_string())?;
    ensure!(output.status.code() == Some(1), "{output:?}");
    Ok(())
}

fn bad_input_starts_nothing(bench: &Bench) -> Check {
    let cases: &[(&[&str], &[&str])] = &[
        (&["-m", "lots"], &["lots"]),
        (&["-m", "5m"], &["5m", "6"]),
        (&["-m", "900t"], &["900t"]),
        (&["-m", "64m", "--memory-swap", "32m"], &["--memory-swap"]),
        (&["-m", "64m", "--memory-reservation", "128m"], &["--memory-reservation"]),
        (&["--cpus", "4000"], &["4000"]),
        (&["--cpus", "zero"], &["zero"]),
        (&["--pids-limit", "-5"], &["-5"]),
        (&["--oom-score-adj", "5000"], &["5000"]),
        (&["--timeout", "soon"], &["soon"]),
        (&["--stop-timeout", "-1s"], &["-1s"]),
        (&["--log-file", "/nowhere/at/all/log"], &["/nowhere/at/all/log"]),
        (&["--report", "/nowhere/at/all/report"], &["/nowhere/at/all/report"]),
        (&["--log-max-files", "2"], &["--log-file"]),
        (&["--on-limit", "everyone"], &["everyone"]),
        (&["--boundary", "wall"], &["wall"]),
        (&["--no-such-option"], &["--no-such-option"]),
    ];
    for (options, words) in cases {
        refused(&bench.run(options, &["echo", "it ran"]), words).map_err(|why| format!("{options:?}: {why}"))?;
    }
    let output = bench.verb("run").output().map_err(|error| error.to_string())?;
    ensure!(output.status.code() == Some(2), "{output:?}");
    Ok(())
}

/// The options that a tier may not be able to enforce, with a value for each.
const OPTIONS: [(&str, &str); 7] = [
    ("--memory", "64m"),
    ("--memory-swap", "128m"),
    ("--memory-reservation", "32m"),
    ("--memory-high", "48m"),
    ("--cpus", "0.5"),
    ("--pids-limit", "50"),
    ("--oom-score-adj", "100"),
];

fn try_option(bench: &Bench, option: &str, value: &str) -> Outcome {
    let mut options = vec![option, value];
    if option.starts_with("--memory-") {
        options.extend(["-m", "64m"]);
    }
    bench.run(&options, &["true"])
}

fn what_the_tier_cannot_do_is_refused(bench: &Bench) -> Check {
    for (option, value) in OPTIONS {
        let outcome = try_option(bench, option, value);
        if outcome.code != Some(0) {
            ensure!(outcome.code == Some(125), "{option}: {outcome:?}");
            refused(&outcome, &[option, bench.tier.as_str()])?;
        }
    }
    Ok(())
}

/// One JSON object an option: whether it is in force on this tier, or refused.
fn table(options: &Options) -> ExitCode {
    let bench = Bench::new(options, "table");
    let more: [(&str, &[&str]); 10] = [
        ("--memory-swap equal to --memory", &["--memory-swap", "64m", "-m", "64m"]),
        ("--on-limit largest", &["--on-limit", "largest", "-m", "64m"]),
        ("--timeout", &["--timeout", "60s"]),
        ("--idle-timeout", &["--idle-timeout", "60s"]),
        ("--stop-timeout", &["--stop-timeout", "1s"]),
        ("--log-file", &["--log-file", "/dev/null"]),
        ("--report", &[]),
        ("--env", &["-e", "A=b"]),
        ("--workdir", &["-w", "/"]),
        ("--name", &["--name", "x"]),
    ];
    // Its total may be the line itself on any tier; above it is what has to be enforced.
    let shown = |option: &str| match option {
        "--memory-swap" => "--memory-swap above --memory".to_owned(),
        option => option.to_owned(),
    };
    let mut rows: Vec<(String, Outcome)> =
        OPTIONS.iter().map(|(option, value)| (shown(option), try_option(&bench, option, value))).collect();
    rows.extend(more.iter().map(|(name, options)| ((*name).to_owned(), bench.run(options, &["true"]))));
    let mut broken = false;
    for (option, outcome) in rows {
        let state = match outcome.code {
            Some(0) => "in_force",
            Some(125) => "refused",
            _ => {
                broken = true;
                "broken"
            }
        };
        let row: BTreeMap<&str, &str> =
            [("option", option.as_str()), ("tier", options.tier.as_str()), ("state", state)].into();
        println!("{}", serde_json::json!(row));
    }
    if broken { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn a_named_parent_that_is_not_there(bench: &Bench) -> Check {
    if bench.tier == Tier::Watchdog {
        return Ok(());
    }
    let mut named = Bench::new_in(bench);
    named.parent = Some("/plimsoll-no-such-parent".into());
    refused(&named.run(&[], &["echo", "it ran"]), &["plimsoll-no-such-parent"])?;
    ensure!(groups_of_plimsoll(Some("plimsoll-no-such-parent")).is_empty(), "it made the parent");
    Ok(())
}

/// What is above the parent's own limits is refused in the option's words, and nothing is started or left behind.
fn limits_of_a_named_parent(bench: &Bench) -> Check {
    if bench.tier == Tier::Watchdog {
        return Ok(());
    }
    let name = format!("plimsoll-test-{}", std::process::id());
    let mounts = plimsoll_kernel::procfs::parse_mountinfo(&std::fs::read("/proc/self/mountinfo").unwrap_or_default());
    let dirs: Vec<_> = mounts
        .into_iter()
        .map(|mount| mount.mount_point.join(&name))
        .filter(|dir| std::fs::create_dir(dir).is_ok())
        .collect();
    if dirs.is_empty() {
        // An ordinary user, to whom no place for it was given.
        return Ok(());
    }
    for (file, limit) in
        [("memory.limit_in_bytes", "104857600"), ("memory.max", "104857600"), ("cpu.cfs_quota_us", "50000")]
    {
        for dir in dirs.iter().filter(|dir| dir.join(file).exists()) {
            std::fs::write(dir.join(file), limit).map_err(|error| format!("{file}: {error}"))?;
        }
    }
    let mut named = Bench::new_in(bench);
    named.parent = Some(format!("/{name}"));
    let checked = refused_above_the_parent(&named);
    for dir in &dirs {
        std::fs::remove_dir(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    }
    checked
}

fn refused_above_the_parent(named: &Bench) -> Check {
    // A line above the parent's is nothing wrong: the parent's is met first then, and the certificate says so.
    ended(&named.run(&["-m", "200m"], &["@hog", "--bytes", "400m"]), 137, "memory_limit_parent")?;
    ended(&named.run(&["-m", "64m"], &["true"]), 0, "exited")?;
    if named.tier == Tier::Cgroup1 {
        let (report, log) = (named.dir.join("old-report"), named.dir.join("no-log"));
        std::fs::write(&report, "old").map_err(|error| error.to_string())?;
        let files = ["--report", &report.display().to_string(), "--log-file", &log.display().to_string()];
        let outcome = named.run(&[&["--cpus", "1"], &files[..]].concat(), &["echo", "it ran"]);
        refused(&outcome, &["--cpus 1", "gives 0.5", "at most 0.5"])?;
        ensure!(std::fs::read(&report).is_ok_and(|text| text == b"old"), "the old report is gone");
        ensure!(!log.exists(), "an empty log is left");
        ended(&named.run(&["--cpus", "0.5"], &["true"]), 0, "exited")?;
    }
    ensure!(named.leftovers().is_empty(), "left: {:?}", named.leftovers());
    Ok(())
}

fn many_at_once(bench: &Bench) -> Check {
    let running: Vec<_> =
        (0..24).map(|n| bench.start(&["-m", "64m"], &["sh", "-c", &format!("sleep 0.1; exit {}", n % 3)])).collect();
    for (n, one) in running.into_iter().enumerate() {
        let outcome = one.wait();
        ended(&outcome, (n % 3) as i32, if n % 3 == 0 { "exited" } else { "failed" })?;
    }
    let _ = (DEADLINE, me());
    Ok(())
}
