//! `plimsoll health`: is there memory left where we really are? For health checks in images without curl.

use std::io::Write;
use std::process::ExitCode;
use std::str::FromStr;

use plimsoll_kernel::cgroup::{Hierarchies, Surrounding};
use plimsoll_kernel::host::{group_memory, machine_memory};
use plimsoll_model::host::HostMemory;
use plimsoll_model::size::{Human, parse};
use serde::Serialize;

use crate::fault::Fault;

/// Exit 0 while memory here (the container's, else the machine's) is below a line, else 1
#[derive(Debug, clap::Args)]
pub(crate) struct HealthArgs {
    /// The line: a share of what there is (80%), or a size (1.5g)
    #[arg(long, value_name = "SHARE|SIZE", default_value = "80%")]
    pub(crate) max_memory: Line,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Where health ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Line {
    /// Thousandths of what there is.
    Share(u64),
    /// Bytes.
    Size(u64),
}

impl FromStr for Line {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let Some(number) = text.trim().strip_suffix('%') else {
            return match parse(text) {
                Ok(0) => Err("0 is no line: nothing runs in no memory".to_owned()),
                Ok(bytes) => Ok(Self::Size(bytes)),
                Err(error) => Err(format!("{error}, or a share such as 80%")),
            };
        };
        let (whole, tenth) = number.trim_end().split_once('.').unwrap_or((number.trim_end(), "0"));
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten();
        let share = match (digits(whole), digits(tenth), tenth.len()) {
            (Some(whole @ 0u64..=100), Some(tenth), 1) => whole * 10 + tenth,
            _ => 0,
        };
        if (1..=1000).contains(&share) {
            Ok(Self::Share(share))
        } else {
            Err(format!("`{text}` is no share: write 0.1% to 100%, with at most one decimal"))
        }
    }
}

/// What is used of what there is, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Usage {
    pub(crate) used_bytes: u64,
    pub(crate) limit_bytes: u64,
}

#[derive(Serialize)]
struct Report<'a> {
    status: &'static str,
    of: &'a str,
    memory: Usage,
    max_bytes: u64,
}

/// Measures, prints one line, and answers 1 at the line or above it.
pub(crate) fn run(args: &HealthArgs) -> Result<ExitCode, Fault> {
    let Some((of, usage)) = here() else {
        return Err(Fault::failed(
            "/proc/meminfo cannot be read, so nothing is known of memory here",
            "mount it: mount -t proc proc /proc",
        ));
    };
    let (max, status) = judge(usage, args.max_memory)?;
    let healthy = status == "ok";
    let text = if args.json {
        serde_json::to_string(&Report { status, of: &of, memory: usage, max_bytes: max }).unwrap_or_default()
    } else {
        line(&of, usage, max, healthy)
    };
    let _ = writeln!(std::io::stdout().lock(), "{text}");
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The tightest group around us, unless the machine is smaller.
pub(crate) fn around(machine: HostMemory) -> Option<Surrounding> {
    Hierarchies::read().surrounding().filter(|group| group.limit <= machine.total)
}

/// What is used where we are. File pages that nobody used lately do not count, as in `docker stats`.
pub(crate) fn here() -> Option<(String, Usage)> {
    let machine = machine_memory()?;
    let group = around(machine).and_then(|group| group_memory(&group.dir, group.version));
    Some(match group {
        Some(group) => (
            format!("in the group {}", group.path.display()),
            Usage { used_bytes: group.used, limit_bytes: group.limit },
        ),
        None => {
            let used_bytes = machine.total.saturating_sub(machine.available);
            ("on this machine".to_owned(), Usage { used_bytes, limit_bytes: machine.total })
        }
    })
}

/// The line in bytes, and `ok` below it, else `unhealthy`.
fn judge(usage: Usage, line: Line) -> Result<(u64, &'static str), Fault> {
    let max = match line {
        Line::Share(share) => (u128::from(usage.limit_bytes) * u128::from(share) / 1000) as u64,
        Line::Size(bytes) if bytes > usage.limit_bytes => {
            return Err(Fault::usage(
                format!(
                    "--max-memory {}: it is more than the {} there is here, and could never be met",
                    Human(bytes),
                    Human(usage.limit_bytes)
                ),
                "write a smaller size, or a share such as 80%",
            ));
        }
        Line::Size(bytes) => bytes,
    };
    Ok((max, if usage.used_bytes < max { "ok" } else { "unhealthy" }))
}

fn line(of: &str, usage: Usage, max: u64, healthy: bool) -> String {
    let percent = usage.used_bytes as f64 * 100.0 / usage.limit_bytes.max(1) as f64;
    let (word, sign) = if healthy { ("ok", "<") } else { ("unhealthy", ">=") };
    let (used, limit) = (Human(usage.used_bytes), Human(usage.limit_bytes));
    format!("{word}: {used} of {limit} used ({percent:.0} %) {sign} {} {of}", Human(max))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn shares_and_sizes() {
        for (text, line) in [
            ("80%", Line::Share(800)),
            ("87.5 %", Line::Share(875)),
            ("100%", Line::Share(1000)),
            ("1.5g", Line::Size(3 << 29)),
            ("4096", Line::Size(4096)),
        ] {
            assert_eq!(text.parse(), Ok(line), "{text}");
        }
        for text in
            ["", "%", "0%", "101%", "-5%", "1.25%", "5.%", "100.1%", "0", "a lot", "+5%", "99999999999999999999%"]
        {
            assert!(text.parse::<Line>().is_err(), "{text}");
        }
    }

    #[test]
    fn at_the_line_is_unhealthy() {
        let usage = Usage { used_bytes: 800, limit_bytes: 1000 };
        assert_eq!(judge(usage, Line::Share(800)), Ok((800, "unhealthy")));
        assert_eq!(judge(usage, Line::Share(801)), Ok((801, "ok")));
        assert_eq!(judge(usage, Line::Size(900)), Ok((900, "ok")));
        assert!(judge(usage, Line::Size(1001)).is_err_and(|fault| fault.message.contains("could never be met")));
        let text = line("in the group /x", usage, 800, false);
        assert_eq!(text, "unhealthy: 800 B of 1000 B used (80 %) >= 800 B in the group /x");
    }

    #[test]
    fn here_is_known() {
        let (_, usage) = here().unwrap();
        assert!(usage.used_bytes > 0 && usage.used_bytes <= usage.limit_bytes);
    }

    proptest! {
        #[test]
        fn never_panics(text in ".{0,20}", used in any::<u64>(), limit in any::<u64>()) {
            let usage = Usage { used_bytes: used, limit_bytes: limit };
            for line in [text.parse(), Ok(Line::Share(1000)), Ok(Line::Size(u64::MAX))].into_iter().flatten() {
                if let Ok((max, status)) = judge(usage, line) {
                    super::line("x", usage, max, status == "ok");
                }
            }
        }
    }
}
