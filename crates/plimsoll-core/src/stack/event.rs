//! What is told: one definition of each event, from which its log line (`Display`), its journal row (serde), its metric
//! ([`Event::counter`]) and its weight ([`Event::severity`]) come.
//!
//! Texts name what happened in the order an operator asks: what, why, what follows.

use std::fmt;
use std::time::Duration;

use plimsoll_model::ending::Decision;
use plimsoll_model::size::Human as Size;
use plimsoll_model::{Cause, duration};
use serde::{Deserialize, Serialize};

use super::ladder::Stage;
use super::name::{Instance, Name};

/// How much it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// As it should be.
    Info,
    /// Somebody may want to look.
    Warning,
    /// Something is lost or down.
    Error,
}

/// Why something of ours is stopped by us.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum Reason {
    /// `stop`.
    Stopped,
    /// `down`.
    Down,
    /// `restart`.
    Restarted,
    /// Its definition has changed.
    Reloaded,
    /// It is not in the file any more.
    Removed,
    /// There are more replicas than wanted.
    ScaledIn,
    /// So many probes in a row failed.
    Unhealthy {
        /// How many.
        failures: u32,
    },
    /// The budget needed the room.
    Evicted {
        /// What all services held, bytes.
        budget_used_bytes: u64,
        /// The budget, bytes.
        budget_bytes: u64,
    },
    /// It sat at its line and got nowhere.
    Livelocked {
        /// What it held, bytes.
        usage_bytes: u64,
        /// The line, bytes.
        limit_bytes: u64,
    },
    /// A session is replaced.
    Recycled(Recycle),
    /// A session had no turn for so long.
    Idle {
        /// Milliseconds.
        idle_ms: u64,
    },
    /// A session that was for one request has had it.
    Over,
    /// Another session needs the place or the memory, and this one was idle for longest.
    MadeRoom,
}

/// Why a session is replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "recycled_for", rename_all = "snake_case")]
pub enum Recycle {
    /// It has had as many turns as it may.
    Turns {
        /// How many.
        turns: u32,
    },
    /// After a turn its tree held more than `recycle_above`.
    Memory {
        /// What it held, bytes.
        held_bytes: u64,
        /// `recycle_above`, bytes.
        line_bytes: u64,
    },
    /// It is as old as it may become.
    Age {
        /// Milliseconds.
        after_ms: u64,
    },
    /// So much of its model's context is used.
    Context {
        /// Per cent.
        percent: u32,
    },
    /// Something took too long.
    Watch {
        /// What.
        watch: Watch,
        /// Milliseconds.
        after_ms: u64,
    },
    /// Whoever asked has gone, and the turn was interrupted.
    Cancelled,
    /// The conversation went otherwise than it knows.
    Diverged,
    /// It was started to take its conversation up again, and knows nothing of it.
    Forgot,
    /// Its agent ended, or spoke no sense.
    Broken {
        /// In words.
        why: String,
    },
}

/// What took too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Watch {
    /// Its start.
    Start,
    /// The first byte of an answer.
    FirstByte,
    /// The next byte of an answer.
    Stall,
    /// A whole turn.
    Turn,
}

impl fmt::Display for Recycle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Turns { turns } => write!(f, "{turns} turns are as many as it may have"),
            Self::Memory { held_bytes, line_bytes } => {
                write!(f, "after its turn it held {}, and {} are the line", Size(*held_bytes), Size(*line_bytes))
            }
            Self::Age { after_ms } => write!(f, "it is {} old", ms(*after_ms)),
            Self::Context { percent } => write!(f, "{percent} % of its context are used"),
            Self::Watch { watch, after_ms } => match watch {
                Watch::Start => write!(f, "it was not ready {} after its start", ms(*after_ms)),
                Watch::FirstByte => write!(f, "nothing of an answer came within {}", ms(*after_ms)),
                Watch::Stall => write!(f, "nothing more of its answer came within {}", ms(*after_ms)),
                Watch::Turn => write!(f, "its turn was not over after {}", ms(*after_ms)),
            },
            Self::Cancelled => f.write_str("whoever asked has gone"),
            Self::Diverged => f.write_str("its conversation went otherwise than it knows"),
            Self::Forgot => f.write_str("it knows nothing of the conversation that it was to take up again"),
            Self::Broken { why } => f.write_str(why),
        }
    }
}

impl Reason {
    /// As the certificate has it.
    #[must_use]
    pub fn decision(&self) -> Decision {
        match self {
            Self::Evicted { .. } | Self::MadeRoom => Decision::Evicted(self.to_string()),
            Self::Recycled(_) => Decision::Recycled(self.to_string()),
            &Self::Idle { idle_ms } => Decision::IdleTimeout(Duration::from_millis(idle_ms)),
            &Self::Livelocked { usage_bytes, limit_bytes } => {
                Decision::MemoryLimit { usage: usage_bytes, limit: limit_bytes }
            }
            _ => Decision::Stopped(self.to_string()),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped => f.write_str("stopped on request"),
            Self::Down => f.write_str("everything is stopped on request"),
            Self::Restarted => f.write_str("restarted on request"),
            Self::Reloaded => f.write_str("its definition has changed"),
            Self::Removed => f.write_str("it is not in the file any more"),
            Self::ScaledIn => f.write_str("fewer replicas are wanted"),
            Self::Unhealthy { failures } => write!(f, "unhealthy: {failures} probes in a row failed"),
            Self::Evicted { budget_used_bytes, budget_bytes } => {
                write!(
                    f,
                    "the budget needed the room: {} of {} are used",
                    Size(*budget_used_bytes),
                    Size(*budget_bytes)
                )
            }
            Self::Livelocked { usage_bytes, limit_bytes } => {
                write!(f, "it sits at its line and gets nowhere: {} of {}", Size(*usage_bytes), Size(*limit_bytes))
            }
            Self::Recycled(why) => why.fmt(f),
            Self::Idle { idle_ms } => write!(f, "idle for {}", ms(*idle_ms)),
            Self::Over => f.write_str("its one request is answered"),
            Self::MadeRoom => f.write_str("it was idle for longest, and its place or memory is needed"),
        }
    }
}

/// What a replica that is wanted waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "waiting_for", rename_all = "snake_case")]
pub enum Waiting {
    /// Its turn: so many others start at this moment.
    Turn,
    /// Room in the budget, or on the machine.
    Room {
        /// What it needs, bytes.
        needed_bytes: u64,
        /// What is free, bytes.
        free_bytes: u64,
    },
    /// A service that it depends on has not yet reached the condition.
    Dependency {
        /// Which.
        dependency: Name,
        /// It has ended for good: somebody has to do something.
        is_over: bool,
    },
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Turn => f.write_str("its turn"),
            Self::Room { needed_bytes, free_bytes } => {
                write!(f, "room: {} are needed, {} are free", Size(*needed_bytes), Size(*free_bytes))
            }
            Self::Dependency { dependency, is_over: false } => write!(f, "`{dependency}`"),
            Self::Dependency { dependency, is_over: true } => {
                write!(f, "`{dependency}`, which has ended: `plimsoll explain {dependency}` says why")
            }
        }
    }
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A file is in force, for the first time or again.
    Loaded {
        /// Services in it.
        services: u32,
        /// Pools in it.
        #[serde(default)]
        pools: u32,
        /// The budget, bytes.
        budget_bytes: u64,
    },
    /// A replica cannot start yet. Told once for each reason.
    Queued {
        /// Which; its generation is that of its last start.
        #[serde(flatten)]
        instance: Instance,
        /// For what it waits.
        #[serde(flatten)]
        waiting: Waiting,
    },
    /// A start began.
    Starting {
        /// Which.
        #[serde(flatten)]
        instance: Instance,
        /// Restarts in this row, this one included; 0 is none.
        attempt: u32,
        /// The most restarts in a row that its policy allows.
        max_attempts: Option<u32>,
        /// Room taken in the budget, bytes.
        claim_bytes: u64,
    },
    /// The root runs.
    Started {
        /// Which.
        #[serde(flatten)]
        instance: Instance,
        /// Its pid.
        pid: i32,
        /// Its own port.
        port: Option<u16>,
    },
    /// It is available: its health test succeeded for the first time, or again.
    Healthy {
        /// Which.
        #[serde(flatten)]
        instance: Instance,
    },
    /// Its health test failed too often in a row.
    Unhealthy {
        /// Which.
        #[serde(flatten)]
        instance: Instance,
        /// How often.
        failures: u32,
        /// What the last one said.
        why: String,
    },
    /// Its health test could not be run. Told once, until it could be again.
    ProbeNotRun {
        /// Which.
        #[serde(flatten)]
        instance: Instance,
        /// Why not.
        why: String,
    },
    /// We are stopping it.
    Stopping {
        /// Which.
        #[serde(flatten)]
        instance: Instance,
        /// Why.
        #[serde(flatten)]
        reason: Reason,
        /// Milliseconds until it is killed.
        grace_ms: u64,
    },
    /// Its grace is over, or there was none.
    Killing {
        /// Which.
        #[serde(flatten)]
        instance: Instance,
        /// Why.
        #[serde(flatten)]
        reason: Reason,
    },
    /// It was killed and is still there. Told each time it is killed again.
    NotDying {
        /// Which.
        #[serde(flatten)]
        instance: Instance,
        /// Milliseconds since the first kill.
        since_ms: u64,
    },
    /// It has ended, and nothing is left of it.
    Ended {
        /// Which.
        #[serde(flatten)]
        instance: Instance,
        /// Why.
        cause: Cause,
        /// The root's exit code.
        code: Option<i32>,
        /// The signal that ended the root.
        signal: Option<i32>,
        /// Milliseconds since its start.
        runtime_ms: u64,
        /// The most it held, bytes.
        peak_bytes: u64,
        /// What came back, bytes.
        freed_bytes: u64,
        /// Processes of it killed for memory, over its whole life.
        oom_kills: u64,
    },
    /// It never ran.
    StartFailed {
        /// Which.
        #[serde(flatten)]
        instance: Instance,
        /// What could not be done.
        why: String,
    },
    /// It will be started again.
    Restarting {
        /// Which one ended.
        #[serde(flatten)]
        instance: Instance,
        /// Restarts in this row, the coming one included.
        attempt: u32,
        /// The most that its policy allows.
        max_attempts: Option<u32>,
        /// Milliseconds until then.
        delay_ms: u64,
        /// Why the one before ended.
        cause: Cause,
    },
    /// Too many restarts in a row: from now on one try a minute.
    CircuitOpened {
        /// Which.
        #[serde(flatten)]
        instance: Instance,
        /// Restarts in the row.
        attempts: u32,
    },
    /// A try succeeded.
    CircuitClosed {
        /// Which.
        #[serde(flatten)]
        instance: Instance,
    },
    /// It ended with code 0, and its policy wants it no more.
    Completed {
        /// Which.
        #[serde(flatten)]
        instance: Instance,
    },
    /// It is given up: the policy allows no further start.
    Failed {
        /// Which.
        #[serde(flatten)]
        instance: Instance,
        /// Restarts in the row.
        attempts: u32,
        /// Why the last one ended.
        cause: Cause,
    },
    /// It sits at its line and gets nowhere; it is ended.
    Livelocked {
        /// Which.
        #[serde(flatten)]
        instance: Instance,
        /// What it holds, bytes.
        usage_bytes: u64,
        /// The line, bytes.
        limit_bytes: u64,
    },
    /// A tree came closer to its line, or farther from it.
    TreeStage {
        /// Which.
        #[serde(flatten)]
        instance: Instance,
        /// From.
        from: Stage,
        /// To.
        to: Stage,
        /// What it holds, bytes.
        used_bytes: u64,
        /// The line, bytes.
        limit_bytes: u64,
        /// Milliseconds until the line is met, if it goes on as in the last minute.
        forecast_ms: Option<u64>,
    },
    /// All services together came closer to the budget, or the machine to its end, or farther from it.
    BudgetStage {
        /// From.
        from: Stage,
        /// To.
        to: Stage,
        /// What is held, bytes.
        used_bytes: u64,
        /// The budget, bytes.
        limit_bytes: u64,
        /// Milliseconds until the budget is met, if it goes on as in the last minute.
        forecast_ms: Option<u64>,
    },
    /// It was chosen to go, for the budget is short.
    Evicted {
        /// Which.
        #[serde(flatten)]
        instance: Instance,
        /// What it held, bytes.
        used_bytes: u64,
        /// What it was promised, bytes.
        reservation_bytes: u64,
        /// What all services held, bytes.
        budget_used_bytes: u64,
        /// The budget, bytes.
        budget_bytes: u64,
    },
    /// The budget is short, and nobody may be evicted: only critical ones are left, or those that have to be available.
    /// Told once, until somebody may.
    NobodyToEvict {
        /// What all services held, bytes.
        budget_used_bytes: u64,
        /// The budget, bytes.
        budget_bytes: u64,
    },
    /// What the evicted one held has come back: there is room for the next decision.
    Accounted {
        /// Which.
        #[serde(flatten)]
        instance: Instance,
        /// How much, bytes.
        freed_bytes: u64,
        /// Milliseconds between the decision and this.
        after_ms: u64,
    },
    /// Its quota stops it for a good part of the time: slow, and no fault of its own. Told at the edges.
    Throttled {
        /// Which.
        #[serde(flatten)]
        instance: Instance,
        /// Share of periods in which it was stopped, per cent.
        percent: u32,
        /// It begins; else it is over.
        is_begun: bool,
    },
    /// A process that holds more than a tenth of memory: a record of who is large, every five minutes.
    LargeProcess {
        /// Of which tree.
        #[serde(flatten)]
        instance: Instance,
        /// The process.
        pid: i32,
        /// Its short name.
        name: String,
        /// What it holds, bytes.
        memory_bytes: u64,
        /// Names and pids from the root of its tree down to it.
        tree: Vec<String>,
    },
    /// The number of replicas follows the load, or a command.
    Scaled {
        /// Which service.
        service: Name,
        /// Replicas before.
        from: u32,
        /// Replicas wanted now.
        to: u32,
        /// In words: the measure and its value, or who asked.
        why: String,
    },
    /// A turn takes too long, and its agent is told to stop.
    Interrupted {
        /// Which session.
        #[serde(flatten)]
        instance: Instance,
        /// In words.
        why: String,
    },
    /// A session is gone, proven: nothing of its tree is left.
    SessionClosed {
        /// Which.
        #[serde(flatten)]
        instance: Instance,
        /// Its conversation, if it had one.
        key: Option<Name>,
        /// In words, with what went wrong if something did.
        why: String,
        /// It was replaced; else it is over.
        is_recycled: bool,
        /// That it has had.
        turns: u32,
        /// What the pool held with it, bytes,
        before_bytes: u64,
        /// and what it holds without it, bytes:
        after_bytes: u64,
        /// the difference, bytes.
        freed_bytes: u64,
    },
    /// An alert's condition has held for long enough.
    AlertFiring {
        /// The condition, as written.
        alert: String,
        /// The gauge: bytes, a count, or per cent, as the condition has it.
        value: f64,
        /// What it was compared with, in the same unit.
        threshold: f64,
    },
    /// It holds no more.
    AlertResolved {
        /// The condition, as written.
        alert: String,
        /// The gauge.
        value: f64,
        /// What it was compared with.
        threshold: f64,
    },
    /// A command or a join was refused.
    Refused {
        /// In words.
        why: String,
    },
    /// The supervisor was not running for a while, or the machine slept: what ought to have been done meanwhile is done
    /// now, and nobody is blamed for it.
    TimeJumped {
        /// Milliseconds that were missed.
        by_ms: u64,
    },
    /// Everything is to be stopped.
    GoingDown,
    /// Nothing runs any more.
    IsDown,
}

impl Event {
    /// Which tree it is about.
    #[must_use]
    pub fn instance(&self) -> Option<&Instance> {
        match self {
            Self::Queued { instance, .. }
            | Self::Starting { instance, .. }
            | Self::Started { instance, .. }
            | Self::Healthy { instance }
            | Self::Unhealthy { instance, .. }
            | Self::ProbeNotRun { instance, .. }
            | Self::Stopping { instance, .. }
            | Self::Killing { instance, .. }
            | Self::NotDying { instance, .. }
            | Self::Ended { instance, .. }
            | Self::StartFailed { instance, .. }
            | Self::Restarting { instance, .. }
            | Self::CircuitOpened { instance, .. }
            | Self::CircuitClosed { instance }
            | Self::Completed { instance }
            | Self::Failed { instance, .. }
            | Self::Livelocked { instance, .. }
            | Self::TreeStage { instance, .. }
            | Self::Evicted { instance, .. }
            | Self::Accounted { instance, .. }
            | Self::LargeProcess { instance, .. }
            | Self::Throttled { instance, .. }
            | Self::Interrupted { instance, .. }
            | Self::SessionClosed { instance, .. } => Some(instance),
            Self::Loaded { .. }
            | Self::BudgetStage { .. }
            | Self::NobodyToEvict { .. }
            | Self::Scaled { .. }
            | Self::AlertFiring { .. }
            | Self::AlertResolved { .. }
            | Self::Refused { .. }
            | Self::TimeJumped { .. }
            | Self::GoingDown
            | Self::IsDown => None,
        }
    }

    /// Which service it is about; lines about a service stand in its log too.
    #[must_use]
    pub fn service(&self) -> Option<&Name> {
        match self {
            Self::Scaled { service, .. } => Some(service),
            _ => self.instance().map(|instance| &instance.service),
        }
    }

    /// How much it matters.
    #[must_use]
    pub fn severity(&self) -> Severity {
        match self {
            Self::Unhealthy { .. }
            | Self::ProbeNotRun { .. }
            | Self::NotDying { .. }
            | Self::Throttled { is_begun: true, .. }
            | Self::Evicted { .. }
            | Self::Restarting { .. }
            | Self::StartFailed { .. }
            | Self::Interrupted { .. }
            | Self::Refused { .. }
            | Self::TimeJumped { .. } => Severity::Warning,
            Self::Queued { waiting: Waiting::Dependency { is_over: true, .. }, .. } => Severity::Error,
            Self::Queued { waiting: Waiting::Room { .. }, .. } => Severity::Warning,
            Self::TreeStage { from, to, .. } | Self::BudgetStage { from, to, .. } if to > from => Severity::Warning,
            Self::CircuitOpened { .. }
            | Self::Failed { .. }
            | Self::Livelocked { .. }
            | Self::NobodyToEvict { .. }
            | Self::AlertFiring { .. } => Severity::Error,
            Self::Ended { cause, .. } if is_abnormal(*cause) => Severity::Error,
            _ => Severity::Info,
        }
    }

    /// The counter that it moves by one, in Prometheus' manner.
    #[must_use]
    pub fn counter(&self) -> Option<&'static str> {
        Some(match self {
            Self::Loaded { .. } => "plimsoll_loads_total",
            Self::Starting { .. } => "plimsoll_starts_total",
            Self::StartFailed { .. } => "plimsoll_start_failures_total",
            Self::Ended { .. } => "plimsoll_ends_total",
            Self::Restarting { .. } => "plimsoll_restarts_total",
            Self::CircuitOpened { .. } => "plimsoll_circuit_openings_total",
            Self::Failed { .. } => "plimsoll_services_given_up_total",
            Self::Unhealthy { .. } => "plimsoll_unhealthy_total",
            Self::Livelocked { .. } => "plimsoll_livelocks_total",
            Self::Evicted { .. } => "plimsoll_evictions_total",
            Self::Interrupted { .. } => "plimsoll_interrupts_total",
            Self::SessionClosed { is_recycled: true, .. } => "plimsoll_sessions_recycled_total",
            Self::SessionClosed { .. } => "plimsoll_sessions_closed_total",
            Self::AlertFiring { .. } => "plimsoll_alerts_fired_total",
            Self::Refused { .. } => "plimsoll_refusals_total",
            Self::Scaled { .. } => "plimsoll_scalings_total",
            Self::TimeJumped { .. } => "plimsoll_time_jumps_total",
            _ => return None,
        })
    }
}

/// Whether an end of this cause is nobody's wish.
#[must_use]
pub fn is_abnormal(cause: Cause) -> bool {
    !matches!(cause, Cause::Exited | Cause::Stopped | Cause::Recycled | Cause::Evicted)
}

fn ms(ms: u64) -> duration::Human {
    duration::Human(Duration::from_millis(ms))
}

/// `attempt 2/3`, or `attempt 2` where there is no end.
struct Attempt(u32, Option<u32>);

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "attempt {}", self.0)?;
        self.1.map_or(Ok(()), |most| write!(f, "/{most}"))
    }
}

/// `1.2 GiB of 1.5 GiB, the line in 3m`.
struct Held(u64, u64, Option<u64>);

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", Size(self.0), Size(self.1))?;
        self.2.map_or(Ok(()), |forecast| write!(f, ", the line in {}", ms(forecast)))
    }
}

impl fmt::Display for Event {
    /// The log line, without time and place.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(instance) = self.instance() {
            write!(f, "{instance} ")?;
        }
        match self {
            Self::Loaded { services, pools, budget_bytes } => {
                let of = |count: u32, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
                let both = [(*services, "service"), (*pools, "pool")].map(|(count, word)| (count > 0, of(count, word)));
                let there: Vec<String> = both.into_iter().filter_map(|(is_any, text)| is_any.then_some(text)).collect();
                let there = if there.is_empty() { of(0, "service") } else { there.join(", ") };
                write!(f, "{there} within a budget of {}", Size(*budget_bytes))
            }
            Self::Queued { waiting, .. } => write!(f, "waits for {waiting}"),
            Self::Starting { attempt: 0, .. } => f.write_str("starting"),
            Self::Starting { attempt, max_attempts, .. } => {
                write!(f, "restarting, {}", Attempt(*attempt, *max_attempts))
            }
            Self::Started { pid, port: None, .. } => write!(f, "started, pid {pid}"),
            Self::Started { pid, port: Some(port), .. } => write!(f, "started, pid {pid}, port {port}"),
            Self::Healthy { .. } => f.write_str("is healthy"),
            Self::Unhealthy { failures, why, .. } => {
                write!(f, "is unhealthy: {failures} probes in a row failed: {why}")
            }
            Self::ProbeNotRun { why, .. } => write!(f, "cannot be probed: {why}"),
            Self::Stopping { reason, grace_ms, .. } => write!(f, "stopping: {reason}; killed after {}", ms(*grace_ms)),
            Self::Killing { reason, .. } => write!(f, "killed: {reason}"),
            Self::NotDying { since_ms, .. } => write!(f, "was killed {} ago and is still there", ms(*since_ms)),
            Self::Ended { cause, code, signal, runtime_ms, peak_bytes, .. } => {
                write!(f, "{}", ended_words(*cause))?;
                match (code, signal) {
                    (Some(code), _) if *code != 0 => write!(f, " (code {code})")?,
                    (None, Some(signal)) => write!(f, " (signal {signal})")?,
                    _ => {}
                }
                write!(f, " after {}, at most {} held", ms(*runtime_ms), Size(*peak_bytes))
            }
            Self::StartFailed { why, .. } => write!(f, "did not start: {why}"),
            Self::Restarting { cause: Cause::Evicted, delay_ms, .. } => {
                write!(f, "comes back in {} at the earliest, when there is room", ms(*delay_ms))
            }
            Self::Restarting { attempt, max_attempts, delay_ms: 0, .. } => {
                write!(f, "restarting at once, {}", Attempt(*attempt, *max_attempts))
            }
            Self::Restarting { attempt, max_attempts, delay_ms, .. } => {
                write!(f, "restarting in {}, {}", ms(*delay_ms), Attempt(*attempt, *max_attempts))
            }
            Self::CircuitOpened { attempts, .. } => {
                write!(f, "was restarted {attempts} times in a row: from now on one try a minute")
            }
            Self::CircuitClosed { .. } => f.write_str("runs again: restarts are quick again"),
            Self::Completed { .. } => f.write_str("has done its work"),
            Self::Failed { attempts: 0, cause, .. } => write!(f, "has failed: {}", ended_words(*cause)),
            Self::Failed { attempts, cause, .. } => {
                write!(f, "has failed after {attempts} restarts in a row: {}", ended_words(*cause))
            }
            Self::Livelocked { usage_bytes, limit_bytes, .. } => {
                write!(f, "sits at its line and gets nowhere: {} of {}", Size(*usage_bytes), Size(*limit_bytes))
            }
            Self::TreeStage { from, to, used_bytes, limit_bytes, forecast_ms, .. } => {
                let held = Held(*used_bytes, *limit_bytes, *forecast_ms);
                write!(f, "{} -> {}: {held}", from.as_str(), to.as_str())
            }
            Self::BudgetStage { from, to, used_bytes, limit_bytes, forecast_ms } => {
                let held = Held(*used_bytes, *limit_bytes, *forecast_ms);
                write!(f, "budget {} -> {}: {held}", from.as_str(), to.as_str())
            }
            Self::Evicted { used_bytes, reservation_bytes, budget_used_bytes, budget_bytes, .. } => write!(
                f,
                "evicted: it holds {} and was promised {}; all together hold {}",
                Size(*used_bytes),
                Size(*reservation_bytes),
                Held(*budget_used_bytes, *budget_bytes, None)
            ),
            Self::NobodyToEvict { budget_used_bytes, budget_bytes } => {
                write!(f, "the budget is short ({}) and nobody", Held(*budget_used_bytes, *budget_bytes, None))?;
                f.write_str(" may be evicted: the rest is critical, or has to be available")
            }
            Self::Accounted { freed_bytes, after_ms, .. } => {
                write!(f, "gave back {} within {}", Size(*freed_bytes), ms(*after_ms))
            }
            Self::Throttled { percent, is_begun: true, .. } => {
                write!(f, "is slow: its processor quota stops it in {percent} % of all periods (see `cpus`)")
            }
            Self::LargeProcess { memory_bytes, tree, .. } => {
                write!(f, "has a process that holds {}: {}", Size(*memory_bytes), tree.join(" > "))
            }
            Self::Throttled { .. } => f.write_str("is no longer slowed by its processor quota"),
            Self::Scaled { service, from, to, why } => write!(f, "{service} from {from} to {to} replicas: {why}"),
            Self::Interrupted { why, .. } => write!(f, "its turn is interrupted: {why}"),
            Self::SessionClosed { key, why, is_recycled, turns, before_bytes, after_bytes, freed_bytes, .. } => {
                f.write_str(if *is_recycled { "session recycled" } else { "session closed" })?;
                if let Some(key) = key {
                    write!(f, " (key {key})")?;
                }
                write!(
                    f,
                    " after {turns} turns: {why}; the pool held {}, now {}, {} less, nothing is left of it",
                    Size(*before_bytes),
                    Size(*after_bytes),
                    Size(*freed_bytes)
                )
            }
            Self::AlertFiring { alert, value, .. } => write!(f, "alert: {alert} (it is {})", reading(alert, *value)),
            Self::AlertResolved { alert, value, .. } => {
                write!(f, "alert is over: {alert} (it is {})", reading(alert, *value))
            }
            Self::Refused { why } => write!(f, "refused: {why}"),
            Self::TimeJumped { by_ms } => {
                write!(f, "nothing was done for {}: the machine slept or was overloaded", ms(*by_ms))
            }
            Self::GoingDown => f.write_str("stopping everything"),
            Self::IsDown => f.write_str("everything is stopped"),
        }
    }
}

/// A gauge's value in the unit of the condition that is about it.
fn reading(alert: &str, value: f64) -> String {
    if alert.trim_end().ends_with('%') {
        format!("{value:.0} %")
    } else if alert.contains("restarts") {
        format!("{value:.0}")
    } else {
        Size(value as u64).to_string()
    }
}

/// A cause as the log has it.
pub(super) fn ended_words(cause: Cause) -> &'static str {
    match cause {
        Cause::Exited => "exited",
        Cause::Failed => "failed",
        Cause::Crashed => "crashed",
        Cause::MemoryLimit => "OOM-killed at its own line",
        Cause::MemoryLimitParent => "OOM-killed at a limit around it",
        Cause::HostOom => "OOM-killed for the machine",
        Cause::Timeout => "timed out",
        Cause::IdleTimeout => "was idle too long",
        Cause::Stopped => "stopped",
        Cause::Evicted => "evicted",
        Cause::Recycled => "recycled",
        Cause::ExternalKill => "killed from outside",
        Cause::ExternalSignal => "ended by a signal from outside",
        Cause::StartFailed => "did not start",
        Cause::Unknown => "ended, nobody knows why",
    }
}
