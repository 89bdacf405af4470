//! What is kept of one replica, and of its present run.

use std::time::Duration;

use plimsoll_model::Cause;
use plimsoll_model::stack::ServiceSpec;

use super::backoff::{Backoff, GOOD_RUN};
use super::cpu::Cpu;
use super::effect::SOON;
use super::event::{Reason, Waiting};
use super::health::Health;
use super::ladder::{Ladder, Stage};
use super::look::Pace;
use super::reclaim::Reclaim;
use super::snapshot::{HealthWord, State};
use crate::history::History;

/// What a replica without a run is about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rest {
    /// Nothing: it is not wanted, or was not looked at since.
    Idle,
    /// It waits for its turn, since then.
    Waiting(Duration),
    /// It ended, and starts again then.
    Pause(Duration),
    /// It has done its work.
    Completed,
    /// It was given up.
    Failed,
}

/// How far an ending of ours is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Its start has not come to anything yet; what follows then.
    Unborn(How),
    /// It gets no new requests; it is stopped then at the latest.
    Draining(Duration),
    /// Its input is closed; it is asked by signal then.
    HungUp(Duration),
    /// It was asked to end; it is killed then.
    Stopping(Duration),
    /// It was killed first at, and is killed again at.
    Killed(Duration, Duration),
}

/// How a run is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// Its open requests are waited for, then it is asked, then killed.
    Drain,
    /// It is asked, and killed after this.
    Stop(Duration),
    /// At once.
    Kill,
}

/// An ending of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ending {
    pub(super) reason: Reason,
    pub(super) step: Step,
}

/// A run: from the effect that starts it to its end.
#[derive(Debug, Clone)]
pub(super) struct Run {
    /// The service's version with which it was started.
    pub(super) version: u64,
    /// Its hard line, bytes.
    pub(super) line: u64,
    pub(super) since: Duration,
    /// `None` until the start came to something.
    pub(super) pid: Option<i32>,
    pub(super) port: Option<u16>,
    pub(super) health: Health,
    pub(super) ending: Option<Ending>,
    pub(super) ladder: Ladder,
    pub(super) pace: Pace,
    pub(super) cpu: Cpu,
    pub(super) reclaim: Reclaim,
    pub(super) history: History,
    /// As of the last look; 0 before the first.
    pub(super) memory: u64,
    pub(super) processes: u32,
    pub(super) oom_kills: u64,
    pub(super) is_measured: bool,
    /// The stage that the workload knows of.
    pub(super) told: Stage,
    /// When it is asked again to hold less.
    pub(super) ask_again: Duration,
    /// It was fine for long enough to begin a new row of restarts.
    pub(super) is_good: bool,
    /// A session that has a turn,
    pub(super) has_turn: bool,
    /// or has had one.
    pub(super) had_turn: bool,
}

impl Run {
    pub(super) fn new(now: Duration, version: u64, line: u64, spec: &ServiceSpec) -> Self {
        Self {
            version,
            line,
            since: now,
            pid: None,
            port: None,
            health: Health::new(now, spec.healthcheck.as_ref()),
            ending: None,
            ladder: Ladder::default(),
            pace: Pace::new(now),
            cpu: Cpu::default(),
            reclaim: Reclaim::default(),
            history: History::new(),
            memory: 0,
            processes: 0,
            oom_kills: 0,
            is_measured: false,
            told: Stage::Normal,
            ask_again: Duration::ZERO,
            is_good: false,
            has_turn: false,
            had_turn: false,
        }
    }

    /// It can be given work.
    pub(super) fn is_available(&self) -> bool {
        self.pid.is_some() && self.ending.is_none() && self.health.is_fine()
    }

    /// A start costs more than running: until it is up, or for a while.
    pub(super) fn is_starting(&self, now: Duration) -> bool {
        const LONGEST: Duration = Duration::from_secs(10);
        self.pid.is_none()
            || self.ending.is_none()
                && self.health.word() == HealthWord::Starting
                && now.saturating_sub(self.since) < LONGEST
    }

    /// Whether it had the time to become as large as it becomes: from then on it counts for the machine with what it holds.
    pub(super) fn is_young(&self, now: Duration) -> bool {
        const YOUTH: Duration = Duration::from_secs(30);
        !self.is_measured || now.saturating_sub(self.since) < YOUTH
    }

    /// When it is a good run, if it goes on.
    pub(super) fn good_at(&self, now: Duration) -> Option<Duration> {
        let fine = self.health.fine_for(now);
        (!self.is_good && self.pid.is_some() && self.health.is_fine()).then(|| now + GOOD_RUN.saturating_sub(fine))
    }

    /// Its stage for the workload: the higher one of its own and the budget's.
    pub(super) fn stage(&self, budget: Stage) -> Stage {
        self.ladder.stage().max(budget)
    }
}

/// One replica of a service.
#[derive(Debug, Clone)]
pub(super) struct Replica {
    /// Of its present or last run; 0 before the first.
    pub(super) generation: u64,
    /// `Some` from the effect that starts it to its end.
    pub(super) run: Option<Box<Run>>,
    /// What it is about to do while it has no run.
    pub(super) rest: Rest,
    /// Room promised in the budget, bytes.
    pub(super) claim: u64,
    pub(super) backoff: Backoff,
    /// It is taken away once it has no run.
    pub(super) is_leaving: bool,
    /// Somebody asked for a restart.
    pub(super) renew: bool,
    /// Its next start counts in the row of restarts.
    pub(super) is_restart: bool,
    /// Evictions in a row; 0 when it ended otherwise last.
    pub(super) evictions: u32,
    pub(super) restarts: u64,
    /// Of former runs.
    pub(super) oom_kills: u64,
    pub(super) last_cause: Option<Cause>,
    /// It was available once.
    pub(super) was_up: bool,
    /// What it waits for.
    pub(super) waiting: Option<Waiting>,
}

impl Replica {
    pub(super) fn new() -> Self {
        Self {
            generation: 0,
            run: None,
            rest: Rest::Idle,
            claim: 0,
            backoff: Backoff::default(),
            is_leaving: false,
            renew: false,
            is_restart: false,
            evictions: 0,
            restarts: 0,
            oom_kills: 0,
            last_cause: None,
            was_up: false,
            waiting: None,
        }
    }

    pub(super) fn is_available(&self) -> bool {
        self.run.as_ref().is_some_and(|run| run.is_available())
    }

    /// Whether waiting for it is worth while: it starts, or will soon.
    pub(super) fn is_expected(&self, now: Duration) -> bool {
        if self.is_leaving {
            return false;
        }
        let Some(run) = &self.run else {
            return match self.rest {
                Rest::Idle => true,
                Rest::Pause(until) => until.saturating_sub(now) <= SOON,
                Rest::Waiting(_) => {
                    !matches!(self.waiting, Some(Waiting::Room { .. } | Waiting::Dependency { is_over: true, .. }))
                }
                Rest::Completed | Rest::Failed => false,
            };
        };
        match &run.ending {
            None => run.health.word() != HealthWord::Unhealthy,
            Some(ending) => matches!(
                ending.reason,
                Reason::Restarted | Reason::Reloaded | Reason::Unhealthy { .. } | Reason::Livelocked { .. }
            ),
        }
    }

    /// What it holds or is promised, whichever is more, bytes.
    pub(super) fn weight(&self) -> u64 {
        self.run.as_ref().map_or(0, |run| run.memory).max(self.claim)
    }

    /// Nothing is to be done with it, and its room is free. A verdict about it stays.
    pub(super) fn lay_down(&mut self) {
        self.claim = 0;
        self.waiting = None;
        if !matches!(self.rest, Rest::Completed | Rest::Failed) {
            self.rest = Rest::Idle;
        }
    }

    /// Whatever was held against it is forgotten: it starts as if for the first time.
    pub(super) fn absolve(&mut self) {
        self.backoff.reset();
        self.evictions = 0;
        self.is_restart = false;
        if !matches!(self.rest, Rest::Waiting(_)) {
            self.rest = Rest::Idle;
        }
    }

    pub(super) fn state(&self) -> State {
        let Some(run) = &self.run else {
            return match self.rest {
                Rest::Idle | Rest::Completed => State::Stopped,
                Rest::Waiting(_) => State::Starting,
                Rest::Pause(_) => State::BackingOff,
                Rest::Failed => State::Failed,
            };
        };
        match run.health.word() {
            _ if run.ending.is_some() => State::Stopping,
            _ if run.pid.is_none() => State::Starting,
            HealthWord::Starting => State::Starting,
            HealthWord::Unhealthy => State::Unhealthy,
            HealthWord::None | HealthWord::Healthy => State::Running,
        }
    }
}

impl Step {
    /// With all its times so much later.
    pub(super) fn later(self, by: Duration) -> Self {
        match self {
            Self::Unborn(how) => Self::Unborn(how),
            Self::Draining(until) => Self::Draining(until + by),
            Self::HungUp(until) => Self::HungUp(until + by),
            Self::Stopping(until) => Self::Stopping(until + by),
            Self::Killed(first, again) => Self::Killed(first, again + by),
        }
    }

    /// When it goes on by itself.
    pub(super) fn next_due(self) -> Option<Duration> {
        match self {
            Self::Unborn(_) => None,
            Self::Draining(until) | Self::HungUp(until) | Self::Stopping(until) | Self::Killed(_, until) => Some(until),
        }
    }
}
