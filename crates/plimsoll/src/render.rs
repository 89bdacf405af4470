//! Certificates as text of eighty columns. Pure: no terminal, no clock.
//!
//! Names and command lines come from programs that were run, so whatever could steer a terminal is shown escaped.

use std::fmt::Write;
use std::time::Duration;

use plimsoll_model::certificate::{Exit, Memory};
use plimsoll_model::size::Human;
use plimsoll_model::{Boundary, Cause, Certificate, Confidence, duration};

const WIDTH: usize = 80;

/// The three lines about an abnormal end: cause, the evidence that matters, advice. Empty for an end that the command chose
/// itself; one that failed after a kill inside for memory did not.
pub(crate) fn three_lines(certificate: &Certificate) -> String {
    let normal = match certificate.cause {
        Cause::Exited => true,
        Cause::Failed => certificate.tree.killed_inside == 0,
        _ => false,
    };
    if normal {
        return String::new();
    }
    let ran = duration::Human(Duration::from_millis(certificate.runtime_ms));
    let mut grounds: Vec<String> =
        certificate.evidence.iter().take(2).map(|one| format!("{}: {}", one.source, one.detail)).collect();
    if about_memory(certificate) {
        grounds.push(format!("peak {}", Human(certificate.memory.peak_bytes)));
        if let Some(largest) = certificate.memory.largest.first() {
            let command = cut(&safe(&largest.command), 40);
            grounds.push(format!("largest {} (pid {}, {command})", Human(largest.memory_bytes), largest.pid));
        }
    }
    if certificate.tree.survivors > 0 {
        grounds.push(format!("{} processes survived", certificate.tree.survivors));
    }
    if grounds.is_empty() {
        grounds.push("none was found".to_owned());
    }
    let advice = match certificate.advice.as_str() {
        "" => format!("`plimsoll explain {}` tells all that is known", certificate.id),
        advice => safe(advice),
    };
    format!(
        "plimsoll: {}: {} after {ran} ({}, {})\n  evidence: {}\n  advice: {advice}",
        safe(&certificate.name),
        what_happened(certificate),
        certificate.cause.as_str(),
        certificate.confidence.as_str(),
        safe(&grounds.join("; ")),
    )
}

/// All of a certificate.
pub(crate) fn full(certificate: &Certificate) -> String {
    let mut text = String::new();
    let name = safe(&certificate.name);
    line(&mut text, &format!("{name}: {} ({})", certificate.cause.as_str(), certificate.confidence.as_str()));
    wrapped(&mut text, "  ", &sentence(certificate));
    line(&mut text, "");
    let ran = duration::Human(Duration::from_millis(certificate.runtime_ms));
    field(&mut text, "command", &command_line(&certificate.command));
    field(&mut text, "id", certificate.id.as_str());
    field(&mut text, "started", &certificate.started_at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string());
    field(&mut text, "ended", &format!("{}, after {ran}", certificate.ended_at.strftime("%Y-%m-%d %H:%M:%S UTC")));
    field(&mut text, "exit", &exit_words(certificate.exit));
    field(&mut text, "boundary", certificate.boundary.as_str());

    heading(&mut text, "Evidence");
    for one in &certificate.evidence {
        field(&mut text, &one.source, &safe(&one.detail));
    }
    if certificate.evidence.is_empty() {
        line(&mut text, "  none");
    }

    heading(&mut text, "Memory");
    memory(&mut text, &certificate.memory, certificate.boundary);
    if !certificate.memory.largest.is_empty() {
        heading(&mut text, "Largest processes at the end");
        line(&mut text, "      PID      MEMORY  DEPTH  COMMAND");
        for one in &certificate.memory.largest {
            let memory = Human(one.memory_bytes).to_string();
            let row = format!("  {:>7}  {memory:>10}  {:>5}  {}", one.pid, one.depth, safe(&one.command));
            line(&mut text, &cut(&row, WIDTH));
        }
    }

    heading(&mut text, "Processes");
    let tree = &certificate.tree;
    field(&mut text, "at most", &tree.peak_processes.to_string());
    field(&mut text, "killed inside", &format!("{} for memory", tree.killed_inside));
    let survivors = match tree.survivors {
        0 => "0: nothing was left behind".to_owned(),
        some => format!("{some}: a bug of ours, please report it; `plimsoll doctor` shows them"),
    };
    field(&mut text, "survivors", &survivors);

    if !certificate.advice.is_empty() {
        heading(&mut text, "Advice");
        wrapped(&mut text, "  ", &safe(&certificate.advice));
    }
    text
}

/// A table of certificates, a line each.
pub(crate) fn table(certificates: &[Certificate]) -> String {
    let mut text = String::from("ENDED (UTC)     NAME              CAUSE                RAN      ID\n");
    for one in certificates {
        let ended = one.ended_at.strftime("%m-%d %H:%M:%S").to_string();
        let cause = match (one.cause, one.exit) {
            (Cause::Failed, Exit { code: Some(code), .. }) => format!("failed {code}"),
            (Cause::Crashed | Cause::ExternalSignal, Exit { signal: Some(signal), .. }) => {
                format!("{} {signal}", one.cause.as_str())
            }
            _ => one.cause.as_str().to_owned(),
        };
        let ran = duration::Human(Duration::from_millis(one.runtime_ms)).to_string();
        line(&mut text, &format!("{ended}  {:<16}  {cause:<19}  {ran:<7}  {}", cut(&safe(&one.name), 16), one.id));
    }
    text
}

fn about_memory(certificate: &Certificate) -> bool {
    matches!(certificate.cause, Cause::MemoryLimit | Cause::MemoryLimitParent | Cause::HostOom | Cause::Evicted)
        || certificate.tree.killed_inside > 0
}

/// What happened, in plain words that follow a name.
fn what_happened(certificate: &Certificate) -> String {
    let signal = certificate.exit.signal.map_or_else(|| "a signal".to_owned(), signal_name);
    match certificate.cause {
        Cause::Exited => "ended well".to_owned(),
        Cause::Failed => {
            let code =
                certificate.exit.code.map_or_else(|| "an unknown code".to_owned(), |code| format!("exit code {code}"));
            match certificate.tree.killed_inside {
                0 => format!("failed with {code}"),
                1 => format!("lost a process to its memory line and failed with {code}"),
                some => format!("lost {some} processes to its memory line and failed with {code}"),
            }
        }
        Cause::Crashed => format!("crashed with {signal}"),
        Cause::MemoryLimit => match certificate.memory.limit_bytes {
            Some(limit) => format!("was ended at its memory line of {}", Human(limit)),
            None => "was ended at its memory line".to_owned(),
        },
        Cause::MemoryLimitParent => "was ended at the memory limit of a group above it".to_owned(),
        Cause::HostOom => "was killed because the machine ran out of memory".to_owned(),
        Cause::Timeout => "was ended by --timeout".to_owned(),
        Cause::IdleTimeout => "was ended by --idle-timeout".to_owned(),
        Cause::Stopped => "was stopped on request".to_owned(),
        Cause::Evicted => "was evicted because the budget needed its room".to_owned(),
        Cause::Recycled => "was recycled by its pool".to_owned(),
        Cause::ExternalKill => "was killed with SIGKILL, not by plimsoll and not for memory,".to_owned(),
        Cause::ExternalSignal => format!("was ended by {signal}, from outside or by itself,"),
        Cause::StartFailed => "did not start".to_owned(),
        Cause::Unknown => "ended for a reason that could not be found".to_owned(),
    }
}

fn sentence(certificate: &Certificate) -> String {
    let how_sure = match certificate.confidence {
        Confidence::Certain => "That is certain: the kernel, or plimsoll's own decision, says so.",
        Confidence::Likely => "That is likely: the evidence points there, but some of it could not be read.",
        Confidence::Possible => "That is possible: a guess that fits what is known.",
    };
    let what = what_happened(certificate);
    format!("The tree {}. {how_sure}", what.trim_end_matches(','))
}

fn memory(text: &mut String, memory: &Memory, boundary: Boundary) {
    let share = |bytes: u64, of: u64| format!("{:.0} %", bytes as f64 * 100.0 / of.max(1) as f64);
    match memory.limit_bytes {
        Some(limit) => {
            field(text, "line", &Human(limit).to_string());
            field(
                text,
                "peak",
                &format!("{}, {} of the line", Human(memory.peak_bytes), share(memory.peak_bytes, limit)),
            );
        }
        None => {
            field(text, "line", "none");
            field(text, "peak", &Human(memory.peak_bytes).to_string());
        }
    }
    let swap = match memory.swap_limit_bytes {
        Some(0) => "none".to_owned(),
        Some(limit) => format!("at most {}", Human(limit)),
        None if boundary == Boundary::Watchdog && memory.limit_bytes.is_some() => "counts towards the line".to_owned(),
        None => "not limited".to_owned(),
    };
    field(text, "swap", &swap);
    let slope = memory.growth_bytes_per_s;
    let growth = match slope {
        0 => "none".to_owned(),
        slope => format!("{}{}/s in the last minute", if slope < 0 { "-" } else { "" }, Human(slope.unsigned_abs())),
    };
    field(text, "growth", &growth);
    if let (Some(first), Some(last)) = (memory.last_minute.first(), memory.last_minute.last())
        && memory.last_minute.len() > 1
    {
        let values: Vec<u64> = memory.last_minute.iter().map(|sample| sample.memory_bytes).collect();
        let top = memory.limit_bytes.unwrap_or(0).max(values.iter().copied().max().unwrap_or(0));
        let span = duration::Human(Duration::from_millis(last.at_ms.saturating_sub(first.at_ms)));
        field(text, "last minute", &sparkline(&values, top));
        field(text, "", &format!("{} to {} in {span}", Human(first.memory_bytes), Human(last.memory_bytes)));
    }
}

/// Bars from nothing to `top`, at most fifty-nine: what stands beside a label.
fn sparkline(values: &[u64], top: u64) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let values = &values[values.len().saturating_sub(59)..];
    let bar = |&value: &u64| BARS[((u128::from(value) * 8 / u128::from(top.max(1))) as usize).min(7)];
    values.iter().map(bar).collect()
}

fn exit_words(exit: Exit) -> String {
    match (exit.code, exit.signal) {
        (Some(code), _) => format!("code {code}"),
        (None, Some(signal)) => format!("{} (signal {signal})", signal_name(signal)),
        (None, None) => "none: it never ran, or nobody saw its end".to_owned(),
    }
}

/// The usual name of a signal on Linux.
fn signal_name(signal: i32) -> String {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
        "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF",
        "WINCH", "IO", "PWR", "SYS",
    ];
    match usize::try_from(signal).ok().and_then(|signal| NAMES.get(signal.checked_sub(1)?)) {
        Some(name) => format!("SIG{name}"),
        None => format!("signal {signal}"),
    }
}

/// A command as it would be typed.
fn command_line(command: &[String]) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./:=,+@%".contains(c);
    let quoted = command.iter().map(|word| match word.as_str() {
        "" => "''".to_owned(),
        word if word.chars().all(plain) => word.to_owned(),
        word => format!("'{}'", safe(word).replace('\'', "'\\''")),
    });
    quoted.collect::<Vec<_>>().join(" ")
}

/// Control characters escaped, so that a name cannot steer the terminal.
pub(crate) fn safe(text: &str) -> String {
    // The marks that turn the direction of text are no control characters and just as able to deceive.
    let steers = |c: char| {
        c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if steers(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// At most `width` characters, the last one an ellipsis when some are missing.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

fn line(text: &mut String, content: &str) {
    text.push_str(content.trim_end());
    text.push('\n');
}

fn heading(text: &mut String, title: &str) {
    // Writing into a string does not fail.
    let _ = writeln!(text, "\n{title}");
}

/// `  label         value`, the value wrapped beside its label.
fn field(text: &mut String, label: &str, value: &str) {
    const LABEL: usize = 18;
    let label = safe(label);
    let start = text.len();
    wrapped(text, &" ".repeat(2 + LABEL + 1), value);
    if label.chars().count() <= LABEL {
        text.replace_range(start..start + 2 + LABEL, &format!("  {label:<LABEL$}"));
    } else {
        text.insert_str(start, &format!("  {label}\n"));
    }
}

/// Words wrapped at eighty columns behind an indent; a word that is longer than a line is broken.
pub(crate) fn wrapped(text: &mut String, indent: &str, words: &str) {
    let room = WIDTH - indent.len();
    let mut current = String::new();
    let mut length = 0;
    let mut flush = |current: &mut String, length: &mut usize| {
        text.push_str(indent);
        text.push_str(current);
        text.push('\n');
        current.clear();
        *length = 0;
    };
    for word in words.split(' ') {
        let mut rest: Vec<char> = word.chars().collect();
        if length > 0 && length + 1 + rest.len() > room {
            flush(&mut current, &mut length);
        } else if length > 0 {
            current.push(' ');
            length += 1;
        }
        while rest.len() > room {
            let behind = rest.split_off(room);
            current.extend(rest);
            flush(&mut current, &mut length);
            rest = behind;
        }
        length += rest.len();
        current.extend(rest);
    }
    flush(&mut current, &mut length);
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use plimsoll_model::certificate::{self, Largest, Tree};
    use plimsoll_model::{Evidence, RunId, Sample};
    use proptest::prelude::*;

    pub(crate) fn killed_at_its_line() -> Certificate {
        let start = jiff::Timestamp::UNIX_EPOCH + jiff::SignedDuration::from_secs(1_764_000_000);
        Certificate {
            schema: certificate::SCHEMA.to_owned(),
            id: RunId::new(1_764_000_000_000, 7),
            name: "crawler".to_owned(),
            command: vec!["node".to_owned(), "crawl.js".to_owned(), "two words".to_owned()],
            boundary: Boundary::Cgroup1,
            started_at: start,
            ended_at: start + jiff::SignedDuration::from_millis(64_200),
            runtime_ms: 64_200,
            exit: Exit { code: None, signal: Some(9) },
            cause: Cause::MemoryLimit,
            confidence: Confidence::Certain,
            evidence: vec![Evidence { source: "memory.oom_control".to_owned(), detail: "oom_kill 0 -> 1".to_owned() }],
            memory: Memory {
                limit_bytes: Some(512 << 20),
                peak_bytes: 512 << 20,
                swap_limit_bytes: Some(0),
                growth_bytes_per_s: 9 << 20,
                largest: vec![Largest {
                    pid: 4711,
                    command: "chrome --type=renderer --lang=en-US --enable-crash-reporter --field-trial-handle=17"
                        .to_owned(),
                    memory_bytes: 401 << 20,
                    depth: 3,
                }],
                last_minute: (0..60)
                    .map(|n| Sample { at_ms: 5_200 + n * 1000, memory_bytes: ((n + 1) * 512 / 60) << 20, processes: 7 })
                    .collect(),
            },
            tree: Tree { peak_processes: 7, killed_inside: 1, survivors: 0 },
            advice:
                "Raise --memory to 640m, or find what grows in chrome (pid 4711): it held 401 MiB and grew by 9 MiB/s."
                    .to_owned(),
        }
    }

    #[test]
    fn three_lines_tell_cause_evidence_and_advice() {
        assert_eq!(
            three_lines(&killed_at_its_line()),
            "plimsoll: crawler: was ended at its memory line of 512 MiB after 1m 4s (memory_limit, certain)\n  \
             evidence: memory.oom_control: oom_kill 0 -> 1; peak 512 MiB; largest 401 MiB (pid 4711, chrome --type=renderer --lang=en-US --e…)\n  \
             advice: Raise --memory to 640m, or find what grows in chrome (pid 4711): it held 401 MiB and grew by 9 MiB/s."
        );
    }

    #[test]
    fn normal_ends_say_nothing_and_all_others_three_lines() {
        for cause in Cause::ALL {
            for killed_inside in [0, 1, 2] {
                let mut one = killed_at_its_line();
                one.cause = cause;
                one.tree.killed_inside = killed_inside;
                one.advice.clear();
                one.evidence.clear();
                let silent = cause == Cause::Exited || cause == Cause::Failed && killed_inside == 0;
                let text = three_lines(&one);
                assert_eq!(text.lines().count(), if silent { 0 } else { 3 }, "{text}");
            }
        }
    }

    #[test]
    fn all_of_it() {
        let text = full(&killed_at_its_line());
        let expected = "\
crawler: memory_limit (certain)
  The tree was ended at its memory line of 512 MiB. That is certain: the kernel,
  or plimsoll's own decision, says so.

  command            node crawl.js 'two words'
  id                 0sb5hd28000000007
  started            2025-11-24 16:00:00 UTC
  ended              2025-11-24 16:01:04 UTC, after 1m 4s
  exit               SIGKILL (signal 9)
  boundary           cgroup1

Evidence
  memory.oom_control oom_kill 0 -> 1

Memory
  line               512 MiB
  peak               512 MiB, 100 % of the line
  swap               none
  growth             9 MiB/s in the last minute
  last minute        ▁▁▁▁▁▁▂▂▂▂▂▂▂▃▃▃▃▃▃▃▃▄▄▄▄▄▄▄▅▅▅▅▅▅▅▅▆▆▆▆▆▆▆▇▇▇▇▇▇▇▇████████
                     8 MiB to 512 MiB in 59s

Largest processes at the end
      PID      MEMORY  DEPTH  COMMAND
     4711     401 MiB      3  chrome --type=renderer --lang=en-US --enable-cras…

Processes
  at most            7
  killed inside      1 for memory
  survivors          0: nothing was left behind

Advice
  Raise --memory to 640m, or find what grows in chrome (pid 4711): it held 401
  MiB and grew by 9 MiB/s.
";
        let id = killed_at_its_line().id;
        let expected = expected.replace("0sb5hd28000000007", id.as_str());
        assert_eq!(text, expected);
    }

    #[test]
    fn a_table_fits_and_names_codes() {
        let mut failed = killed_at_its_line();
        failed.cause = Cause::Failed;
        failed.exit = Exit { code: Some(3), signal: None };
        failed.name = "a name that is too long for its column".to_owned();
        let text = table(&[failed, killed_at_its_line()]);
        assert!(
            text.contains("failed 3") && text.contains("memory_limit ") && text.contains("a name that is …"),
            "{text}"
        );
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
    }

    #[test]
    fn signals_have_their_names() {
        assert_eq!(signal_name(9), "SIGKILL");
        assert_eq!(signal_name(15), "SIGTERM");
        assert_eq!(signal_name(31), "SIGSYS");
        assert_eq!(signal_name(34), "signal 34");
        assert_eq!(signal_name(-1), "signal -1");
    }

    proptest! {
        /// Whatever a program calls itself: no control character reaches the terminal, no line is wider than eighty.
        #[test]
        fn strangers_do_not_steer_the_terminal(
            words in prop::collection::vec("\\PC*|[\\x00-\\x20é\\u{202e}]{0,200}", 6),
            memory: u64, slope: i64, cause in prop::sample::select(&Cause::ALL[..]), ms: u64,
        ) {
            let mut one = killed_at_its_line();
            one.name = words[0].clone();
            one.command = words[1..3].to_vec();
            one.evidence[0].source = words[3].clone();
            one.evidence[0].detail = words[4].clone();
            one.memory.largest[0].command = words[5].clone();
            one.advice = words[0].clone();
            one.memory.peak_bytes = memory;
            one.memory.growth_bytes_per_s = slope;
            one.cause = cause;
            one.runtime_ms = ms;
            let steers = |c: char| c != '\n' && (c.is_control() || c == '\u{202e}');
            for text in [three_lines(&one), full(&one), table(&[one.clone()])] {
                prop_assert!(!text.chars().any(steers), "{:?}", text);
            }
            prop_assert!(three_lines(&one).lines().count() <= 3);
            for line in full(&one).lines().skip(1) {
                prop_assert!(line.chars().count() <= WIDTH + words[3].len() * 4, "{}", line);
            }
        }
    }
}
