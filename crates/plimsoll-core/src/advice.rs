//! One sentence on what to do, with figures.
//!
//! A figure is given only where the run can know it. A tree that was killed at its line has not shown what it would
//! have needed: if it had levelled off below, a little more would have held; if it grew to the end, a larger line only
//! buys time, and the sentence says how much; if it jumped, the next run with a larger line will show its peak.

use std::time::Duration;

use plimsoll_model::certificate::Largest;
use plimsoll_model::ending::{Decision, Ending, OomScope, RootExit};
use plimsoll_model::size::Human;
use plimsoll_model::{Cause, Certificate, Confidence, Sample, duration};

use crate::verdict::{not_started, signal_name};

const SIGPIPE: i32 = 13;

/// The smallest line that `run` takes.
const SMALLEST: u64 = 6 << 20;

/// A tree that stayed at this many percent of its line or more for [`LEVEL`] had levelled off.
const LEVEL_PERCENT: u64 = 80;

const LEVEL: Duration = Duration::from_secs(5);

/// Programs whose first argument says more than their own name.
const INTERPRETERS: [&str; 11] = ["python", "node", "ruby", "perl", "java", "bash", "dash", "sh", "php", "deno", "bun"];

/// The sentence for a certificate whose other fields are filled in. What stands in it of the tree (commands, paths) has
/// been taken as it is: it is made safe for a terminal where it is printed.
#[must_use]
pub fn advice(certificate: &Certificate, ending: &Ending) -> String {
    let memory = &certificate.memory;
    // A tree that ended before the first look has none.
    let peak = match memory.peak_bytes {
        0 => String::new(),
        bytes => format!(" (the peak was {})", Human(bytes)),
    };
    let certain = certificate.confidence == Confidence::Certain;
    match certificate.cause {
        Cause::Exited => exited(certificate),
        Cause::Failed => failed(certificate),
        Cause::Crashed => format!(
            "{} is a fault of the program itself, not of memory{peak}: allow core dumps (ulimit -c unlimited) and look at the trace.",
            signal_name(certificate.exit.signal.unwrap_or_default())
        ),
        Cause::MemoryLimit => memory_limit(certificate),
        Cause::MemoryLimitParent => memory_limit_parent(certificate, ending),
        Cause::HostOom => format!(
            "The machine ran out of memory while this tree held {}{}: give each large service a line (--memory), so that their sum fits and only who grows is killed; plimsoll doctor names who holds most now.",
            Human(memory.peak_bytes),
            in_whom(certificate)
        ),
        Cause::Timeout => {
            let after = match ending.decision {
                Some(Decision::Timeout(limit)) => limit,
                _ => Duration::from_millis(certificate.runtime_ms),
            };
            format!(
                "It was not done after {}{}: raise --timeout if it only needs longer, else look at what it waited for.",
                duration::Human(after),
                unheard(ending)
            )
        }
        Cause::IdleTimeout => {
            let after = match ending.decision {
                Some(Decision::IdleTimeout(limit)) => format!(" for {}", duration::Human(limit)),
                _ => String::new(),
            };
            format!(
                "It neither read nor wrote{after}{}: it waits for something that does not come, or works in silence; for that raise --idle-timeout.",
                unheard(ending)
            )
        }
        Cause::Stopped if matches!(ending.decision, Some(Decision::Bereft(_))) => {
            "Find out who killed plimsoll: a tree that nobody watches is ended with it.".into()
        }
        Cause::Stopped => match ending.exit {
            RootExit::Signal(9) | RootExit::Unknown => {
                "It was asked to end and had not when the grace was over, or was not given any: if it needs longer to finish, raise --stop-timeout.".into()
            }
            _ => "Nothing to do: it was asked to end, and did.".into(),
        },
        Cause::Evicted => format!(
            "The budget needed the {} it held: raise the budget, or its priority.",
            Human(memory.last_minute.last().map_or(memory.peak_bytes, |last| last.memory_bytes))
        ),
        Cause::Recycled => "Nothing to do: a fresh process took its place.".into(),
        Cause::ExternalKill if certain => format!(
            "Somebody sent SIGKILL, or it did so itself; it was not the kernel for memory{peak}: look for a supervisor, a time limit or a person."
        ),
        Cause::ExternalKill => format!(
            "Most likely somebody sent SIGKILL, or it did so itself{peak}; only the kernel's log, readable with CAP_SYSLOG, can exclude that the kernel did."
        ),
        Cause::ExternalSignal if ending.exit == RootExit::Signal(SIGPIPE) => {
            "Whoever read its output had gone (head and grep -q do that): nothing to do, unless more was to be read.".into()
        }
        Cause::ExternalSignal if ending.passed_on.is_some_and(|sent| ending.exit == RootExit::Signal(sent.signal)) => {
            "Nothing to do: the signal was sent to plimsoll, which passed it on.".into()
        }
        Cause::ExternalSignal => format!(
            "{} was sent from outside or by the tree itself, not by plimsoll: look for a supervisor, a script or a person.",
            signal_name(certificate.exit.signal.unwrap_or_default())
        ),
        Cause::StartFailed => start_failed(certificate, ending),
        Cause::Unknown => {
            "What would tell was not readable: run it on a cgroup tier, or with the kernel's log readable (CAP_SYSLOG); plimsoll doctor says what is missing.".into()
        }
    }
}

fn exited(certificate: &Certificate) -> String {
    let memory = &certificate.memory;
    match (certificate.tree.killed_inside, memory.limit_bytes) {
        (0, Some(limit)) if memory.peak_bytes > 0 && memory.peak_bytes < limit / 4 => {
            let enough = round_up(memory.peak_bytes.saturating_mul(2).max(SMALLEST));
            if enough > limit / 2 {
                return nothing();
            }
            format!(
                "Nothing to do; it never held more than {} of its {}, so --memory {} would have done.",
                Human(memory.peak_bytes),
                Human(limit),
                option(enough)
            )
        }
        (0, _) => nothing(),
        (killed, Some(limit)) => format!(
            "It went on without {}: if their work is missed, give it more than {} ({} to try).",
            of_its_processes(killed),
            Human(limit),
            option(round_up(limit.saturating_mul(3) / 2))
        ),
        (killed, None) => format!(
            "It went on without {}: if their work is missed, look at the group above.",
            of_its_processes(killed)
        ),
    }
}

fn nothing() -> String {
    "Nothing to do.".into()
}

fn of_its_processes(killed: u64) -> String {
    match killed {
        1 => "one of its processes, which was killed for memory".into(),
        _ => format!("{killed} of its processes, which were killed for memory"),
    }
}

fn failed(certificate: &Certificate) -> String {
    let code = certificate.exit.code.unwrap_or_default();
    if certificate.tree.killed_inside > 0 {
        return format!(
            "It ended itself with code {code} after it had lost {}: that is the likely reason; {}.",
            of_its_processes(certificate.tree.killed_inside),
            match certificate.memory.limit_bytes {
                Some(limit) => format!("try --memory {}", option(round_up(limit.saturating_mul(3) / 2))),
                None => "look at the group above".into(),
            }
        );
    }
    let hint = match code {
        126 => "a shell says so when a command in it is not executable".to_owned(),
        127 => "a shell says so when a command in it is not found".to_owned(),
        129..=159 => format!("a shell says so when a command in it died of {}", signal_name(code - 128)),
        _ => "its own output says why".to_owned(),
    };
    format!("It ended itself with code {code}: {hint}.")
}

fn start_failed(certificate: &Certificate, ending: &Ending) -> String {
    let RootExit::NotStarted { errno } = ending.exit else { return "It never ran.".into() };
    let command = certificate.command.first().map_or("the command", String::as_str);
    let remedy = match errno {
        _ if ending.interpreter.is_some() => {
            "install that, or mend the program's first line (with a line end as on Unix)"
        }
        2 => "check its spelling, PATH and --workdir",
        13 => "make it executable (chmod +x), and see that its folders and --workdir may be entered",
        8 => "give a script its first line, or install the program for this kind of machine",
        7 => "pass the data through a file or stdin",
        11 => "end other processes of this user, or raise the limit (ulimit -u, --pids-limit)",
        12 => "free memory, or raise the limit",
        26 => "wait until its writer has closed it",
        _ => "mend that and start it again",
    };
    format!("{command} never ran ({}): {remedy}.", not_started(errno, ending.interpreter.as_deref()))
}

fn unheard(ending: &Ending) -> &'static str {
    match ending.exit {
        RootExit::Signal(9) => " and did not end on SIGTERM either",
        _ => "",
    }
}

/// The limit of a group above: whose, and how much.
fn memory_limit_parent(certificate: &Certificate, ending: &Ending) -> String {
    let named = |path: &str, limit: Option<u64>| match limit {
        Some(limit) => format!("{path} ({})", Human(limit)),
        None => path.to_owned(),
    };
    let limited = || ending.ancestors.iter().filter(|group| group.limit.is_some());
    let logged = || {
        let line = ending.kmsg.iter().flatten().rfind(|line| {
            let ours =
                ending.own.as_ref().zip(line.task_group.as_ref()).is_some_and(|(own, task)| task.contains(&own.path));
            line.scope == OomScope::Group && (ours || ending.pids.contains(&line.pid))
        })?;
        let path = line.oom_group.as_deref()?;
        let known = limited().find(|group| group.path.len() > 1 && path.ends_with(&group.path));
        Some(named(path, known.and_then(|group| group.limit)))
    };
    let met = || {
        limited()
            .find(|group| group.oom.is_some_and(|oom| oom.moved() > 0))
            .or_else(|| limited().find(|group| group.limit_hits.is_some_and(|hits| hits.moved() > 0)))
            .or_else(|| limited().min_by_key(|group| group.limit))
            .map(|group| named(&group.path, group.limit))
    };
    let whose = match &ending.decision {
        Some(Decision::MemoryLimitParent { whose, limit, .. }) => named(whose, Some(*limit)),
        _ => logged().or_else(met).unwrap_or_else(|| "a group above".into()),
    };
    format!(
        "The limit that was met is that of {whose}, not the tree's own: raise it, or give what runs in it --memory lines whose sum stays below; this tree's peak was {}{}.",
        Human(certificate.memory.peak_bytes),
        in_whom(certificate)
    )
}

/// `, most of it in node server.js (pid 7)`, where that is so.
fn in_whom(certificate: &Certificate) -> String {
    let memory = &certificate.memory;
    match memory.largest.first() {
        Some(top) if top.memory_bytes > memory.peak_bytes / 2 => format!(", most of it in {}", who(top)),
        _ => String::new(),
    }
}

/// A process by its program's name, an interpreter's script with it, and its pid.
fn who(process: &Largest) -> String {
    let base = |word: &str| word.rsplit('/').next().unwrap_or(word).chars().take(40).collect::<String>();
    let mut words = process.command.split_whitespace();
    let name = base(words.next().unwrap_or("a process"));
    let plain = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.');
    let script = words.next().filter(|word| INTERPRETERS.contains(&plain) && !word.starts_with('-'));
    match script {
        Some(script) => format!("{name} {} (pid {})", base(script), process.pid),
        None => format!("{name} (pid {})", process.pid),
    }
}

/// How a tree came to its line.
#[derive(Debug, PartialEq, Eq)]
enum Course {
    /// It had been near its line for so long.
    Level(Duration),
    /// It grew by so many bytes a second to the end.
    Grew(u64),
    /// It held so much, so long before the end, and then jumped.
    Jumped(u64, Duration),
    /// It was too quick, or seen too seldom.
    Unseen,
}

fn course(samples: &[Sample], growth: i64, limit: u64, runtime_ms: u64) -> Course {
    let (Some(first), Some(last)) = (samples.first(), samples.last()) else { return Course::Unseen };
    let end = runtime_ms.max(last.at_ms);
    let level = limit / 100 * LEVEL_PERCENT;
    let near = samples.iter().rposition(|sample| sample.memory_bytes < level).map_or(0, |at| at + 1);
    if let Some(since) = samples.get(near) {
        let stayed = Duration::from_millis(end - since.at_ms.min(end));
        if stayed >= LEVEL && samples.len() - near >= 3 {
            return Course::Level(stayed);
        }
    }
    let growth = u64::try_from(growth).unwrap_or(0);
    let rise = last.memory_bytes.max(limit).saturating_sub(first.memory_bytes);
    let passed_ms = end.saturating_sub(first.at_ms);
    if growth > 0 && samples.len() >= 3 && u128::from(growth) * u128::from(passed_ms) / 1000 >= u128::from(rise / 2) {
        return Course::Grew(growth);
    }
    let below = |line: u64| samples.iter().rfind(move |sample| sample.memory_bytes < line);
    match below(limit / 2).or_else(|| below(level)) {
        Some(before) => Course::Jumped(before.memory_bytes, Duration::from_millis(end - before.at_ms.min(end))),
        None => Course::Unseen,
    }
}

fn memory_limit(certificate: &Certificate) -> String {
    let memory = &certificate.memory;
    let Some(limit) = memory.limit_bytes else {
        return "A limit that the tree set for itself was met: raise that one.".into();
    };
    let processes = certificate.tree.peak_processes.max(memory.largest.len() as u32);
    // That many of that size would not fill half of the line: whoever did was gone when they were listed.
    let filled = |top: &&Largest| top.memory_bytes.saturating_mul(u64::from(processes)) >= limit / 2;
    let top = memory.largest.first().filter(filled);
    // The root is the last to be chosen: that it is the largest need not make it the one that grew.
    let held = match top {
        Some(top) if top.memory_bytes >= limit => format!("{} held all of the {}", who(top), Human(limit)),
        Some(top) if top.memory_bytes >= limit / 2 => {
            format!("{} held {} of the {}", who(top), Human(top.memory_bytes), Human(limit))
        }
        Some(top) => format!(
            "{} processes held {} together, {} the most with {}",
            processes,
            Human(limit),
            who(top),
            Human(top.memory_bytes)
        ),
        None => format!("The tree held {}", Human(limit)),
    };
    let suspect = top.map_or_else(|| "the tree".to_owned(), who);
    let twice = option(round_up(limit.saturating_mul(2)));
    match course(&memory.last_minute, memory.growth_bytes_per_s, limit, certificate.runtime_ms) {
        Course::Level(stayed) => format!(
            "{held} and had stayed near its line for {}: --memory {} would leave a quarter to spare; if it fills that too, look for the leak in {suspect}.",
            duration::Human(stayed),
            option(round_up((limit.max(memory.peak_bytes) / 4).saturating_mul(5)))
        ),
        Course::Grew(growth) => {
            let lasts = Duration::from_secs_f64(((1u64 << 30) as f64 / growth as f64).clamp(0.001, 1e8));
            format!(
                "{held}, and the tree grew by {}/s to the end: each GiB more lasts only {}, so look for the leak in {suspect}, or try --memory {twice} if you expect it to end by itself.",
                Human(growth),
                duration::Human(lasts)
            )
        }
        Course::Jumped(before, within) => format!(
            "{held}; {} before it was {}, and it was still growing: try --memory {twice} and read the peak that it then shows, or give {suspect} less to do at once.",
            duration::Human(within),
            Human(before)
        ),
        Course::Unseen => format!(
            "{held} within {} and was still growing: try --memory {twice} and read the peak that it then shows.",
            duration::Human(Duration::from_millis(certificate.runtime_ms))
        ),
    }
}

/// Up to a multiple of 16 MiB, of 1 MiB below 64 MiB.
fn round_up(bytes: u64) -> u64 {
    let grain: u64 = if bytes < 64 << 20 { 1 << 20 } else { 16 << 20 };
    bytes.div_ceil(grain).max(1).saturating_mul(grain)
}

/// As the option is written: `384m`, `2g`.
fn option(bytes: u64) -> String {
    if bytes.is_multiple_of(1 << 30) { format!("{}g", bytes >> 30) } else { format!("{}m", bytes >> 20) }
}

#[cfg(test)]
mod tests;
