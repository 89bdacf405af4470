//! Why a tree ended, drawn from the facts of its ending.
//!
//! | first that applies | cause | certain when |
//! |---|---|---|
//! | it was never executed | start_failed | always |
//! | a decision of ours, whatever wait status it provoked | the decision's | always |
//! | a crash signal | crashed | always (wait status) |
//! | SIGKILL, or the code 137 that reports one, and a member was killed for memory | by whose limit, below | below |
//! | the code 247 (a script's `exit(-9)`), and the same | the same | never |
//! | one of these two codes, and we killed a member at a line | by whose line | the code 137 |
//! | SIGKILL and nothing | external_kill | counters and kmsg were read and are silent |
//! | another signal | external_signal | the same |
//! | a code | exited, failed | the counters were read and did not move |
//! | nobody could wait for the root | by the kills, else unknown | never |
//!
//! # Whose limit it was
//! v1 counts a kill in the victim's own group, whatever limit was the reason; v2 counts it there and in every group
//! above. So a moved `oom_kill` says that the kernel killed one of ours, and not for whom. The first of these that is
//! there says it:
//!
//! | what says it | memory_limit | memory_limit_parent | host_oom |
//! |---|---|---|---|
//! | kmsg, the victim's group being ours | `oom_memcg` is ours or below it: certain | it is above ours: certain | no `oom_memcg`: certain |
//! | v2, `oom` of `memory.events.local` | ours moved: certain, if none above did | one above moved: likely | none moved: likely |
//! | v1, the peak beside the limit | ours was met: likely | ours not, one above was: likely | none was: likely |
//! | no group of ours: kmsg by pid | – | a group's limit: certain if it is the group around us, that counted a kill, and the root's pid; else likely | the machine's: the same |
//! | no group of ours, no line | – | the group around us counted a kill: likely | the machine did: possible |
//!
//! Lines that contradict each other or the counters make it likely; so does a log that should have a line and has
//! none (the kernel logs at most ten kills in five seconds). Pids of the log belong to the machine's own namespace and
//! paths to its root: our names may be shorter, so a logged path may end with ours, and a pid alone proves nothing.

mod kills;
mod words;

use plimsoll_model::ending::{Decision, Ending, PassedOn, RootExit};
use plimsoll_model::size::Human;
use plimsoll_model::{Cause, Confidence, Evidence, duration};

use kills::{Kills, ends_by_memory};
pub use words::{errno_words, is_crash, not_started, signal_name};

/// The judgement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Why.
    pub cause: Cause,
    /// How sure.
    pub confidence: Confidence,
    /// On what grounds, the weightiest first; what could not be read stands last, unless it is certain without.
    pub evidence: Vec<Evidence>,
    /// Members that the kernel killed for memory, at least.
    pub killed_inside: u64,
}

const SIGKILL: i32 = 9;

fn evidence(source: &str, detail: impl Into<String>) -> Evidence {
    Evidence { source: source.to_owned(), detail: detail.into() }
}

/// Draws the verdict.
#[must_use]
pub fn verdict(ending: &Ending) -> Verdict {
    let kills = Kills::of(ending);
    let (cause, confidence, mut grounds) = judge(ending, &kills);
    if confidence != Confidence::Certain {
        let mut unreadable = ending.unreadable.clone();
        if ending.kmsg.is_none() && !unreadable.iter().any(|what| what.contains("kmsg")) {
            unreadable.push("/dev/kmsg".to_owned());
        }
        if !unreadable.is_empty() {
            grounds.push(evidence("plimsoll", format!("not readable: {}", unreadable.join(", "))));
        }
    }
    Verdict { cause, confidence, evidence: grounds, killed_inside: kills.count + ending.victims.len() as u64 }
}

fn judge(ending: &Ending, kills: &Kills<'_>) -> (Cause, Confidence, Vec<Evidence>) {
    if let RootExit::NotStarted { errno } = ending.exit {
        return (
            Cause::StartFailed,
            Confidence::Certain,
            vec![evidence("exec", not_started(errno, ending.interpreter.as_deref()))],
        );
    }
    let status = wait_status(ending.exit);
    if let Some(decision) = &ending.decision {
        let (cause, detail) = decided(decision);
        let mut grounds = vec![evidence("plimsoll", detail)];
        grounds.extend(kills.grounds().into_iter().chain(sacrifices(ending)));
        // How a root ended that we killed unseen is no news.
        grounds.extend((ending.exit != RootExit::Unknown).then_some(status));
        return (cause, Confidence::Certain, grounds);
    }
    let mut grounds = kills.grounds();
    if ends_by_memory(ending.exit) && kills.count > 0 {
        let (cause, confidence) = kills.whose();
        // Of these ends the kill of some member need not have been the reason.
        let doubted = matches!(ending.exit, RootExit::Unknown | RootExit::Code(247));
        grounds.push(status);
        return (cause, if doubted { confidence.min(Confidence::Likely) } else { confidence }, grounds);
    }
    let reported = matches!(ending.exit, RootExit::Code(137 | 247));
    if let (Some(victim), true) = (ending.victims.last(), reported) {
        let (cause, _) = decided(&victim.reason);
        let confidence = if ending.exit == RootExit::Code(137) { Confidence::Certain } else { Confidence::Likely };
        let mut grounds = sacrifices(ending);
        grounds.push(status);
        return (cause, confidence, grounds);
    }
    grounds.insert(0, status);
    grounds.extend(sacrifices(ending));
    let certain_if = |silent: bool| if silent { Confidence::Certain } else { Confidence::Likely };
    match ending.exit {
        RootExit::Signal(signal) if is_crash(signal) => (Cause::Crashed, Confidence::Certain, grounds),
        RootExit::Signal(signal) if ending.passed_on.is_some_and(|sent| sent.signal == signal) => {
            grounds.extend(ending.passed_on.map(through_us));
            (Cause::ExternalSignal, Confidence::Certain, grounds)
        }
        RootExit::Signal(signal) => {
            grounds.extend(kills.silence());
            let cause = if signal == SIGKILL { Cause::ExternalKill } else { Cause::ExternalSignal };
            (cause, certain_if(kills.none_for_sure), grounds)
        }
        RootExit::Code(code) => {
            let cause = if code == 0 { Cause::Exited } else { Cause::Failed };
            // The loss of a member may be why it failed.
            (cause, certain_if(kills.counters_silent && (code == 0 || ending.victims.is_empty())), grounds)
        }
        RootExit::Unknown | RootExit::NotStarted { .. } => {
            grounds.extend(kills.silence());
            (Cause::Unknown, Confidence::Possible, grounds)
        }
    }
}

fn wait_status(exit: RootExit) -> Evidence {
    let detail = match exit {
        RootExit::Code(code @ (137 | 247)) => format!("exit code {code}, as of one whose child died of SIGKILL"),
        RootExit::Code(code) => format!("exit code {code}"),
        RootExit::Signal(signal) => format!("ended by {}", signal_name(signal)),
        RootExit::NotStarted { .. } | RootExit::Unknown => "nobody was left to wait for the root".to_owned(),
    };
    evidence("wait status", detail)
}

/// The members that we killed before the end, for the evidence.
fn sacrifices(ending: &Ending) -> Vec<Evidence> {
    const SHOWN: usize = 3;
    let mut told: Vec<Evidence> = ending
        .victims
        .iter()
        .take(SHOWN)
        .map(|victim| {
            let (Decision::MemoryLimit { limit, .. } | Decision::MemoryLimitParent { limit, .. }) = victim.reason
            else {
                return evidence("plimsoll", format!("{} (pid {}) was killed", victim.name, victim.pid));
            };
            let held = Human(victim.memory_bytes);
            let what = format!("{} (pid {}) held {held} and was killed for the line of", victim.name, victim.pid);
            evidence("plimsoll", format!("{what} {}", Human(limit)))
        })
        .collect();
    if ending.victims.len() > SHOWN {
        told.push(evidence("plimsoll", format!("and {} more", ending.victims.len() - SHOWN)));
    }
    told
}

/// Where a signal that we passed on came from.
fn through_us(sent: PassedOn) -> Evidence {
    let name = signal_name(sent.signal);
    evidence(
        "plimsoll",
        match sent.sender {
            0 => format!("{name} came from the terminal and was passed on"),
            pid => format!("{name} came from pid {pid} and was passed on"),
        },
    )
}

fn decided(decision: &Decision) -> (Cause, String) {
    match decision {
        Decision::MemoryLimit { usage, limit } => (
            Cause::MemoryLimit,
            format!("the tree held {} at its line of {}: it was ended", Human(*usage), Human(*limit)),
        ),
        Decision::MemoryLimitParent { whose, usage, limit } => (
            Cause::MemoryLimitParent,
            format!("{whose} held {} of its {}: the tree was ended before it", Human(*usage), Human(*limit)),
        ),
        Decision::Timeout(limit) => (Cause::Timeout, format!("it ran for {}", duration::Human(*limit))),
        Decision::IdleTimeout(limit) => {
            (Cause::IdleTimeout, format!("no byte on stdin, stdout or stderr for {}", duration::Human(*limit)))
        }
        Decision::Stopped(reason) | Decision::Bereft(reason) => (Cause::Stopped, reason.clone()),
        Decision::Evicted(reason) => (Cause::Evicted, reason.clone()),
        Decision::Recycled(reason) => (Cause::Recycled, reason.clone()),
    }
}

#[cfg(test)]
mod tests;
