//! The certificate of a tree that is gone, from what whoever kept it knows. One way for `run` and for `up`.

use std::time::Duration;

use plimsoll_core::advice;
use plimsoll_core::history::History;
use plimsoll_core::verdict::Verdict;
use plimsoll_model::certificate::{Exit, Largest, Memory, SCHEMA, Tree};
use plimsoll_model::ending::{Ending, RootExit};
use plimsoll_model::{Boundary, Certificate, RunId};

/// What is known of a tree beside its end.
#[derive(Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) id: RunId,
    pub(crate) name: &'a str,
    /// With secrets hidden.
    pub(crate) command: &'a [String],
    pub(crate) boundary: Boundary,
    pub(crate) started_at: jiff::Timestamp,
    pub(crate) ended_at: jiff::Timestamp,
    /// By a clock that nobody sets.
    pub(crate) runtime: Duration,
    /// The memory line, bytes.
    pub(crate) limit_bytes: Option<u64>,
    /// Swap beyond it, bytes.
    pub(crate) swap_limit_bytes: Option<u64>,
    /// The largest members at the end, secrets hidden.
    pub(crate) largest: &'a [Largest],
    pub(crate) history: &'a History,
    /// As the kernel counted.
    pub(crate) peak_processes: Option<u64>,
    /// Processes that could not be killed.
    pub(crate) survivors: usize,
}

/// Writes it: the verdict with all that stands beside it, and the advice that follows from both.
pub(crate) fn certify(facts: Facts<'_>, ending: &Ending, judged: &Verdict) -> Certificate {
    let peak = ending.own.as_ref().and_then(|own| own.peak).unwrap_or(0).max(facts.history.peak_bytes());
    let (code, signal) = match ending.exit {
        RootExit::Code(code) => (Some(code), None),
        RootExit::Signal(signal) => (None, Some(signal)),
        RootExit::NotStarted { .. } | RootExit::Unknown => (None, None),
    };
    let seen = u64::from(facts.history.peak_processes());
    let mut certificate = Certificate {
        schema: SCHEMA.to_owned(),
        id: facts.id,
        name: facts.name.to_owned(),
        command: facts.command.to_vec(),
        boundary: facts.boundary,
        started_at: facts.started_at,
        ended_at: facts.ended_at,
        runtime_ms: u64::try_from(facts.runtime.as_millis()).unwrap_or(u64::MAX),
        exit: Exit { code, signal },
        cause: judged.cause,
        confidence: judged.confidence,
        evidence: judged.evidence.clone(),
        memory: Memory {
            limit_bytes: facts.limit_bytes,
            peak_bytes: peak,
            swap_limit_bytes: facts.swap_limit_bytes,
            growth_bytes_per_s: facts.history.growth(),
            largest: facts.largest.to_vec(),
            last_minute: facts.history.last_minute(),
        },
        tree: Tree {
            peak_processes: u32::try_from(facts.peak_processes.unwrap_or(0).max(seen)).unwrap_or(u32::MAX),
            killed_inside: judged.killed_inside,
            survivors: u32::try_from(facts.survivors).unwrap_or(u32::MAX),
        },
        advice: String::new(),
    };
    certificate.advice = advice::advice(&certificate, ending);
    certificate
}
