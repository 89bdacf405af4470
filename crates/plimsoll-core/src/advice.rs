//! One sentence on what to do, with figures.

use plimsoll_model::certificate::Largest;
use plimsoll_model::ending::{Ending, RootExit};
use plimsoll_model::size::Human;
use plimsoll_model::{Cause, Certificate, duration};

use crate::verdict::{errno_words, signal_name};

/// The smallest line that `run` takes.
const SMALLEST: u64 = 6 << 20;

/// A tree that grows by more than this share of its line in a second did not level off.
const STEADY_SHARE: u64 = 50;

/// The sentence for a certificate whose other fields are filled in.
#[must_use]
pub fn advice(certificate: &Certificate, ending: &Ending) -> String {
    let memory = &certificate.memory;
    let top = memory.largest.first();
    match certificate.cause {
        Cause::Exited if certificate.tree.killed_inside > 0 => format!(
            "{} of its processes went for memory and it went on without; if that costs work, give it more than {}.",
            certificate.tree.killed_inside,
            memory.limit_bytes.map_or_else(|| "it had".to_owned(), |limit| Human(limit).to_string()),
        ),
        Cause::Exited => match memory.limit_bytes {
            Some(limit) if memory.peak_bytes > 0 && memory.peak_bytes * 4 < limit => {
                let enough = round_up((memory.peak_bytes * 2).max(SMALLEST));
                format!("It never held more than {} of its {}: --memory {} would do.", Human(memory.peak_bytes), Human(limit), option(enough))
            }
            _ => "Nothing to do.".into(),
        },
        Cause::Failed => format!(
            "It ended itself with code {}: its own output says why.",
            certificate.exit.code.unwrap_or_default()
        ),
        Cause::Crashed => {
            let signal = certificate.exit.signal.unwrap_or_default();
            format!(
                "A fault of the program itself ({}), not of memory: allow core dumps (ulimit -c unlimited) and look at the trace.",
                signal_name(signal)
            )
        }
        Cause::MemoryLimit => memory_limit(certificate, top),
        Cause::MemoryLimitParent => {
            let above = ending.ancestors.iter().find(|group| group.limit.is_some());
            let whose = above.map_or_else(
                || "a group above it".to_owned(),
                |group| format!("{} ({})", group.path, Human(group.limit.unwrap_or_default())),
            );
            format!(
                "The limit that was met is that of {whose}, not the tree's own: raise it, or give this tree a --memory below it; the tree's peak was {}{}.",
                Human(memory.peak_bytes),
                top.map(|top| format!(", most of it in {}", who(top))).unwrap_or_default(),
            )
        }
        Cause::HostOom => format!(
            "The machine ran out of memory while this tree held {}: give every large service a line (--memory) so that the sum fits.",
            Human(memory.peak_bytes)
        ),
        Cause::Timeout => format!(
            "It was not done after {}: raise --timeout if that is too short, or look at what it waited for.",
            duration::Human(std::time::Duration::from_millis(certificate.runtime_ms))
        ),
        Cause::IdleTimeout => "It neither read nor wrote: it waits for something that does not come; raise --idle-timeout if silence is normal.".into(),
        Cause::Stopped => match ending.exit {
            RootExit::Signal(9) => "It did not end within the grace and was killed: raise --stop-timeout if it needs longer to finish.".into(),
            _ => "It was asked to end, and did.".into(),
        },
        Cause::Evicted => "The budget needed its room: raise the budget, or its priority.".into(),
        Cause::Recycled => "Nothing to do: a fresh process took its place.".into(),
        Cause::ExternalKill => format!(
            "Somebody sent SIGKILL, and it was not the kernel for memory (the peak was {}): look for a supervisor, a time limit or a person who did.",
            Human(memory.peak_bytes)
        ),
        Cause::ExternalSignal => "A signal that plimsoll did not send ended it: it came from outside, or from the tree itself.".into(),
        Cause::StartFailed => match ending.exit {
            RootExit::NotStarted { errno } => format!("It never ran ({}).", errno_words(errno)),
            _ => "It never ran.".into(),
        },
        Cause::Unknown => "What would tell was not readable: run it with the kernel's log readable (CAP_SYSLOG), or on a cgroup tier.".into(),
    }
}

fn who(top: &Largest) -> String {
    let command = top.command.split_whitespace().next().unwrap_or("a process");
    let command = command.rsplit('/').next().unwrap_or(command);
    format!("{command} (pid {})", top.pid)
}

fn memory_limit(certificate: &Certificate, top: Option<&Largest>) -> String {
    let memory = &certificate.memory;
    let Some(limit) = memory.limit_bytes else { return "Give it a line of its own with --memory.".into() };
    let named = top.map_or_else(
        || "The tree".to_owned(),
        |top| format!("{} held {} of", who(top), Human(top.memory_bytes.min(limit))),
    );
    let head =
        if top.is_some() { format!("{named} the {}", Human(limit)) } else { format!("{named} held {}", Human(limit)) };
    let growth = u64::try_from(memory.growth_bytes_per_s).unwrap_or(0);
    if growth > limit / STEADY_SHARE {
        let per_gib = (1u64 << 30) as f64 / growth as f64;
        let lasts = std::time::Duration::from_secs_f64(per_gib.min(1e6));
        format!(
            "{head} and the tree still grew by {}/s: each GiB more lasts {}; look for what grows before you raise --memory.",
            Human(growth),
            duration::Human(lasts)
        )
    } else {
        let enough = round_up(limit.max(memory.peak_bytes) * 5 / 4);
        format!("{head}, and it had nearly levelled off: --memory {} would leave a quarter to spare.", option(enough))
    }
}

/// Up to a multiple of 16 MiB, of 1 MiB below 64 MiB.
fn round_up(bytes: u64) -> u64 {
    let grain: u64 = if bytes < 64 << 20 { 1 << 20 } else { 16 << 20 };
    bytes.div_ceil(grain).max(1) * grain
}

/// As the option is written: `384m`.
fn option(bytes: u64) -> String {
    format!("{}m", bytes >> 20)
}
