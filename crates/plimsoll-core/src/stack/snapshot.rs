//! What `status --json` shows: the contract's words, and some more.

use std::time::Duration;

use plimsoll_model::Cause;
use serde::{Deserialize, Serialize};

use super::Stack;
use super::backoff::Backoff;
use super::event::{Reason, Waiting};
use super::ladder::Stage;
use super::name::Name;
use super::pool::{Owner, Phase, Pool, Session};
use super::replica::{Ending, Replica, Rest};
use super::service::Service;

/// The whole stack at one instant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The machine, as of the last look.
    pub host: HostRow,
    /// The budget.
    pub budget: BudgetRow,
    /// One row a replica, by service and replica. A service without replicas has none.
    pub services: Vec<ServiceRow>,
    /// One row a pool.
    #[serde(default)]
    pub pools: Vec<PoolRow>,
    /// One row a session of any pool.
    #[serde(default)]
    pub sessions: Vec<SessionRow>,
    /// Alerts that fire, as they were written.
    pub alerts: Vec<String>,
}

/// The machine; what is not readable is null.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct HostRow {
    /// Load average over a minute.
    pub load_1m: Option<f64>,
    /// Swap in use, bytes.
    pub swap_used_bytes: Option<u64>,
    /// Share of time in which processors waited for a disk, per cent.
    pub io_wait_percent: Option<f64>,
    /// Memory that could be had, bytes.
    pub available_bytes: Option<u64>,
}

/// The budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetRow {
    /// What all services together may hold, bytes.
    pub limit_bytes: u64,
    /// What they hold, bytes.
    pub used_bytes: u64,
    /// What is promised to those that run or are about to, bytes; at most the limit.
    pub admitted_bytes: u64,
    /// Its stage.
    pub stage: Stage,
    /// Milliseconds until it is met, if it goes on as in the last minute.
    pub forecast_ms: Option<u64>,
    /// Replicas and joins that wait for room.
    pub queued: u32,
}

/// What a replica is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// On its way up: it waits for room or for a dependency, is being started, or was not found healthy yet.
    Starting,
    /// It runs, and is healthy if it has a health check.
    Running,
    /// It runs, and its health check fails.
    Unhealthy,
    /// It has ended and waits for its next start.
    BackingOff,
    /// It is being stopped.
    Stopping,
    /// It does not run, as it should.
    Stopped,
    /// It does not run and was given up.
    Failed,
}

impl State {
    /// The word used in JSON and tables.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Unhealthy => "unhealthy",
            Self::BackingOff => "backing_off",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }
}

/// What the health check says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthWord {
    /// There is none.
    None,
    /// It has not succeeded yet.
    Starting,
    /// It succeeds.
    Healthy,
    /// It failed too often in a row.
    Unhealthy,
}

/// One replica.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceRow {
    /// The service's name.
    pub name: Name,
    /// From 1.
    pub replica: u32,
    /// What it is doing.
    pub state: State,
    /// Of the root; null when it does not run.
    pub pid: Option<i32>,
    /// The service's public address.
    pub listen: Option<String>,
    /// Its own port.
    pub port: Option<u16>,
    /// What it holds, bytes.
    pub memory_bytes: u64,
    /// Its line, bytes.
    pub limit_bytes: u64,
    /// What is promised to it, bytes.
    pub admitted_bytes: u64,
    /// Its own stage.
    pub stage: Stage,
    /// Of one core, since the look before.
    pub cpu_percent: f64,
    /// Periods in which its quota stopped it, since the look before.
    pub throttled_percent: f64,
    /// Processes.
    pub processes: u32,
    /// Restarts of this replica, since ever for the first one.
    pub restarts: u64,
    /// Restarts in the present row.
    pub attempt: u32,
    /// The most that its policy allows in a row; null is no end.
    pub max_attempts: Option<u32>,
    /// Whether there were so many restarts in a row that it is one try a minute.
    pub circuit_open: bool,
    /// Processes of it killed for memory.
    pub oom_kills: u64,
    /// Why the run before ended.
    pub last_cause: Option<Cause>,
    /// What the health check says.
    pub health: HealthWord,
    /// Milliseconds since it was started; null when it does not run.
    pub uptime_ms: Option<u64>,
    /// Milliseconds until its line is met, if it goes on as in the last minute.
    pub forecast_ms: Option<u64>,
    /// What it waits for.
    pub waiting: Option<Waiting>,
    /// Replicas of the service.
    pub scale: ScaleRow,
}

/// Replicas of one service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScaleRow {
    /// That are available.
    pub current: u32,
    /// That are wanted.
    pub target: u32,
    /// At least.
    pub min: u32,
    /// At most.
    pub max: u32,
}

/// One pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolRow {
    /// Its name.
    pub name: Name,
    /// Sessions that have, or had last, a conversation or request.
    pub sessions: u32,
    /// Processes that are ready and nobody's yet.
    pub warm: u32,
    /// Sessions that have a turn.
    pub busy: u32,
    /// Processes that are there and not ready yet.
    pub starting: u32,
    /// Processes that are wanted and not there: they wait for room, or for the next trial.
    pub waiting: u32,
    /// Turns that wait for a session.
    pub queued: u32,
    /// Processes of all its trees.
    pub processes: u32,
    /// What all its trees hold, bytes.
    pub memory_bytes: u64,
    /// The line of one session, bytes.
    pub limit_bytes: Option<u64>,
    /// Sessions at most.
    pub max_sessions: u32,
    /// Turns that are over.
    pub turns: u64,
    /// Turns that got no session.
    pub refused: u64,
    /// Sessions that were replaced.
    pub recycled: u64,
    /// Sessions that ended otherwise.
    pub closed: u64,
    /// Open: starts, or first turns, have failed again and again, and whoever needs a start is told so at once.
    pub circuit: Switch,
    /// Failed starts in a row; while the circuit is open, failures of whichever kind opened it.
    pub failed_starts: u32,
    /// Milliseconds until a start is tried again; null when none has failed.
    pub retry_ms: Option<u64>,
    /// Processes that could not be killed.
    pub survivors: u64,
}

/// Whether a circuit lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Switch {
    /// It does.
    Closed,
    /// It does not.
    Open,
}

/// One session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SessionRow {
    /// Its pool.
    pub pool: Name,
    /// Its number in the pool.
    pub replica: u32,
    /// Its conversation, if it has one.
    pub key: Option<Name>,
    /// What it is doing.
    pub state: SessionState,
    /// What its start waits for, where that is known.
    pub waiting: Option<Waiting>,
    /// Of its root; null before its start.
    pub pid: Option<i32>,
    /// What its tree holds, bytes.
    pub memory_bytes: u64,
    /// Its line, bytes.
    pub limit_bytes: Option<u64>,
    /// What is promised to it, bytes.
    pub admitted_bytes: u64,
    /// Processes of its tree.
    pub processes: u32,
    /// Turns that it has had.
    pub turns: u32,
    /// How much of its model's context is used, per cent, where that is known.
    pub context_percent: Option<f64>,
    /// Milliseconds since its start.
    pub age_ms: Option<u64>,
    /// Milliseconds since its last turn, or since it was ready.
    pub idle_ms: Option<u64>,
    /// Milliseconds since its turn began.
    pub turn_ms: Option<u64>,
}

/// What a session is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionState {
    /// Its start has not begun.
    Waiting,
    /// It cannot take a turn yet.
    Starting,
    /// It can, and is nobody's yet.
    Warm,
    /// It has a turn.
    Busy,
    /// It has none.
    Idle,
    /// It is being replaced.
    Recycling,
    /// It is being ended.
    Closing,
}

impl SessionState {
    /// The word used in JSON and tables.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Starting => "starting",
            Self::Warm => "warm",
            Self::Busy => "busy",
            Self::Idle => "idle",
            Self::Recycling => "recycling",
            Self::Closing => "closing",
        }
    }
}

impl Stack {
    /// What an operator sees at `now`.
    #[must_use]
    pub fn snapshot(&self, now: Duration) -> Snapshot {
        let waiting = self.services.values().flat_map(|service| service.replicas.values());
        let queued = waiting.filter(|r| r.run.is_none() && matches!(r.waiting, Some(Waiting::Room { .. }))).count()
            + self.guests.values().filter(|guest| !guest.is_admitted).count();
        let rows = self.services.values().filter(|service| !service.is_pool).flat_map(|service| {
            let scale = ScaleRow {
                current: service.available(),
                target: if service.off.is_some() { 0 } else { service.target },
                min: service.bounds().0,
                max: service.spec.scale.map_or(service.target, |_| service.bounds().1),
            };
            service.replicas.iter().map(move |(&number, replica)| self.row(now, service, number, replica, scale))
        });
        let pools = || self.services.values().filter_map(|service| Some((service, service.pool.as_ref()?)));
        Snapshot {
            host: HostRow {
                load_1m: self.host.load_1m,
                swap_used_bytes: self.host.swap_used_bytes,
                io_wait_percent: self.host.io_wait_percent,
                available_bytes: self.host.available_bytes,
            },
            budget: BudgetRow {
                limit_bytes: self.budget,
                used_bytes: self.used,
                admitted_bytes: self.claims(),
                stage: self.ladder.stage(),
                forecast_ms: self.forecast(),
                queued: queued as u32,
            },
            services: rows.collect(),
            pools: pools().map(|(service, pool)| pool_row(now, service, pool)).collect(),
            sessions: pools().flat_map(|(service, pool)| session_rows(now, service, pool)).collect(),
            alerts: self
                .alerts
                .iter()
                .filter(|alert| alert.is_firing())
                .map(|alert| alert.spec().when.clone())
                .collect(),
        }
    }

    fn row(&self, now: Duration, service: &Service, number: u32, replica: &Replica, scale: ScaleRow) -> ServiceRow {
        let run = replica.run.as_deref();
        let has_check = service.spec.healthcheck.is_some();
        let line = run.map_or_else(|| self.shares.line(&service.spec), |run| run.line);
        ServiceRow {
            name: service.name.clone(),
            replica: number,
            state: replica.state(),
            pid: run.and_then(|run| run.pid),
            listen: service.spec.listen.map(|listen| listen.to_string()),
            port: run.and_then(|run| run.port),
            memory_bytes: run.map_or(0, |run| run.memory),
            limit_bytes: line,
            admitted_bytes: replica.claim,
            stage: run.map_or(Stage::Normal, |run| run.ladder.stage()),
            cpu_percent: run.and_then(|run| run.cpu.percent()).unwrap_or(0.0),
            throttled_percent: run.map_or(0.0, |run| run.cpu.throttled_percent()),
            processes: run.map_or(0, |run| run.processes),
            restarts: replica.restarts,
            attempt: replica.backoff.attempt(),
            max_attempts: Backoff::most(service.spec.restart),
            circuit_open: replica.backoff.is_open(service.spec.restart),
            oom_kills: replica.oom_kills + run.map_or(0, |run| run.oom_kills),
            last_cause: replica.last_cause,
            health: run
                .map_or(if has_check { HealthWord::Starting } else { HealthWord::None }, |run| run.health.word()),
            uptime_ms: run.filter(|run| run.pid.is_some()).map(|run| now.saturating_sub(run.since).as_millis() as u64),
            forecast_ms: run.and_then(|run| run.history.forecast_ms(line.saturating_sub(run.memory))),
            waiting: replica.waiting.clone().filter(|_| run.is_none() && matches!(replica.rest, Rest::Waiting(_))),
            scale,
        }
    }
}

fn pool_row(now: Duration, service: &Service, pool: &Pool) -> PoolRow {
    let runs = || service.replicas.values().filter_map(|replica| replica.run.as_ref());
    let count = |is: fn(&Session) -> bool| pool.sessions.values().filter(|session| is(session)).count() as u32;
    let has_run = |number: &u32| service.replicas.get(number).is_some_and(|replica| replica.run.is_some());
    let waiting = pool.sessions.keys().filter(|number| !has_run(number)).count() as u32;
    PoolRow {
        name: service.name.clone(),
        sessions: count(|session| session.owner != Owner::None),
        warm: count(Session::is_warm),
        busy: count(|session| session.running().is_some()),
        starting: count(|session| matches!(session.phase, Phase::Starting(_))) - waiting,
        waiting,
        queued: pool.queue.len() as u32,
        processes: runs().map(|run| run.processes).sum(),
        memory_bytes: runs().map(|run| run.memory).sum(),
        limit_bytes: service.spec.mem_limit,
        max_sessions: pool.spec.max_sessions,
        turns: pool.counts.turns,
        refused: pool.counts.refused,
        recycled: pool.counts.recycled,
        closed: pool.counts.closed,
        circuit: if pool.circuit.is_open() { Switch::Open } else { Switch::Closed },
        failed_starts: pool.circuit.told(),
        retry_ms: (pool.circuit.told() > 0).then(|| pool.circuit.until.saturating_sub(now).as_millis() as u64),
        survivors: pool.counts.survivors,
    }
}

fn session_rows(now: Duration, service: &Service, pool: &Pool) -> Vec<SessionRow> {
    let row = |(&number, session): (&u32, &Session)| {
        let replica = service.replicas.get(&number);
        let run = replica.and_then(|replica| replica.run.as_deref());
        let state = match (&session.phase, run.and_then(|run| run.ending.as_ref())) {
            (_, Some(Ending { reason: Reason::Recycled(_), .. })) => SessionState::Recycling,
            (_, Some(_)) => SessionState::Closing,
            (_, None) if run.is_none() => SessionState::Waiting,
            (Phase::Starting(_), None) => SessionState::Starting,
            (Phase::Busy(_), None) => SessionState::Busy,
            (Phase::Idle(_), None) if session.owner == Owner::None => SessionState::Warm,
            (Phase::Idle(_), None) => SessionState::Idle,
        };
        let since = |at: Duration| now.saturating_sub(at).as_millis() as u64;
        SessionRow {
            pool: service.name.clone(),
            replica: number,
            key: match &session.owner {
                Owner::Key(key) => Some(key.clone()),
                _ => None,
            },
            state,
            waiting: replica.and_then(|replica| replica.waiting.clone()).filter(|_| run.is_none()),
            pid: run.and_then(|run| run.pid),
            memory_bytes: run.map_or(0, |run| run.memory),
            limit_bytes: run.map(|run| run.line),
            admitted_bytes: replica.map_or(0, |replica| replica.claim),
            processes: run.map_or(0, |run| run.processes),
            turns: session.turns,
            context_percent: session.context_percent,
            age_ms: run.map(|run| since(run.since)),
            idle_ms: match session.phase {
                Phase::Idle(at) => Some(since(at)),
                _ => None,
            },
            turn_ms: session.running().map(|running| since(running.since)),
        }
    };
    pool.sessions.iter().map(row).collect()
}
