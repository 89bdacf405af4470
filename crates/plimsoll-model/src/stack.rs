//! What was asked for in a `plimsoll.yaml`: a budget, services inside it, alerts about both.
//!
//! Every default of the file's grammar is filled in here, and every path is absolute: whoever reads these types needs to
//! know neither the file nor where it lies. The order of services and their dependencies is by name, so that two readings
//! of one file are equal, and a reload touches what differs.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::pool::{GatewaySpec, PoolSpec, RedisSpec};
use crate::spec::OnLimit;

/// A whole stack.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StackSpec {
    /// What all services together may hold.
    pub budget: BudgetSpec,
    /// In the file's order.
    pub alerts: Vec<AlertSpec>,
    /// By name.
    pub services: BTreeMap<String, ServiceSpec>,
    /// By name; no pool has a service's name.
    pub pools: BTreeMap<String, PoolSpec>,
    /// Where pools are asked; without pools it still tells how the stack is.
    pub gateway: Option<GatewaySpec>,
    /// Where several machines that serve the same pools agree on who has which conversation.
    pub redis: Option<RedisSpec>,
}

/// An amount of memory, as it is or of what the machine or container really has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Amount {
    /// Bytes.
    Bytes(u64),
    /// Per cent, more than 0 and at most 100.
    Percent(f64),
}

impl Amount {
    /// In bytes, of `total` bytes.
    #[must_use]
    pub fn of(self, total: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => (total as f64 * percent / 100.0) as u64,
        }
    }
}

/// `budget:`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BudgetSpec {
    /// What all services together may hold (80 % by default).
    pub memory: Amount,
    /// Bytes that are always left to the rest of the machine or container.
    pub reserve: u64,
}

impl BudgetSpec {
    /// The budget in bytes on a machine or in a container of `total` bytes.
    #[must_use]
    pub fn bytes(&self, total: u64) -> u64 {
        self.memory.of(total).min(total.saturating_sub(self.reserve))
    }
}

impl Default for BudgetSpec {
    fn default() -> Self {
        Self { memory: Amount::Percent(80.0), reserve: 0 }
    }
}

/// One service.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceSpec {
    /// The command and its arguments; never empty. `${PORT}` in them (and in `environment`, `healthcheck` and a command of
    /// `on_pressure`) is the replica's own port and still stands there, in just this way of writing; all other variables
    /// are filled in.
    pub command: Vec<String>,
    /// Added to Plimsoll's own environment.
    pub environment: BTreeMap<String, String>,
    /// Where it runs: the file's folder by default. A relative program of `command`, `healthcheck` and `on_pressure` is
    /// meant from here.
    pub working_dir: PathBuf,
    /// Hard line of one replica, bytes; `None` is what is left of the budget.
    pub mem_limit: Option<u64>,
    /// RAM that one replica is promised, bytes.
    pub mem_reservation: Option<u64>,
    /// RAM and swap together of one replica, bytes; equal to `mem_limit` (the default) is no swap; `None` with a
    /// `mem_limit` is as much swap as there is.
    pub memswap_limit: Option<u64>,
    /// Processor time of one replica in millionths of a core.
    pub cpu_micros: Option<u64>,
    /// Processes and threads of one replica.
    pub pids_limit: Option<u64>,
    /// What happens when it ends.
    pub restart: RestartPolicy,
    /// Grace between the stop signal and SIGKILL (10 s).
    pub stop_grace_period: Duration,
    /// What asks it to end (SIGTERM), by number.
    pub stop_signal: i32,
    /// What has to be there first.
    pub depends_on: BTreeMap<String, Condition>,
    /// How it is found healthy; without one, running is healthy.
    pub healthcheck: Option<HealthSpec>,
    /// Who goes first when the budget is short.
    pub priority: Priority,
    /// Who goes at its own line.
    pub on_limit: OnLimit,
    /// How it is asked to hold less.
    pub on_pressure: Option<Ask>,
    /// The one public address, balanced over the replicas.
    pub listen: Option<SocketAddr>,
    /// Replicas that are never taken away by our own doing.
    pub min_available: u32,
    /// Replicas to begin with.
    pub replicas: u32,
    /// How their number follows the load.
    pub scale: Option<ScaleSpec>,
}

impl ServiceSpec {
    /// The fewest replicas there may be.
    #[must_use]
    pub fn least_replicas(&self) -> u32 {
        self.scale.map_or(self.replicas, |scale| scale.min.min(self.replicas))
    }

    /// The most replicas there may be.
    #[must_use]
    pub fn most_replicas(&self) -> u32 {
        self.scale.map_or(self.replicas, |scale| scale.max.max(self.replicas))
    }
}

/// `restart:`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RestartPolicy {
    /// It is not started again.
    #[default]
    No,
    /// Always.
    Always,
    /// When it failed, at most so many times in a row; `None` is without end.
    OnFailure(Option<u32>),
    /// Always, but not after it was stopped on request.
    UnlessStopped,
}

/// What a dependency has to have reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Condition {
    /// It runs.
    #[default]
    Started,
    /// Its health check succeeded.
    Healthy,
    /// It ended with code 0.
    CompletedSuccessfully,
}

/// `healthcheck:`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthSpec {
    /// The command and its arguments (`CMD-SHELL` is `/bin/sh -c` already); exit code 0 is healthy.
    pub test: Vec<String>,
    /// Between two probes (30 s).
    pub interval: Duration,
    /// A probe that takes longer failed (30 s).
    pub timeout: Duration,
    /// Failures in a row that make it unhealthy (3).
    pub retries: u32,
    /// Failures so soon after the start do not count (0).
    pub start_period: Duration,
    /// Between two probes within the start period (5 s).
    pub start_interval: Duration,
}

/// Who goes first when the budget is short: the last of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Priority {
    /// Never evicted.
    Critical,
    /// After all best-effort ones.
    #[default]
    Normal,
    /// First.
    BestEffort,
}

/// How somebody is told of a stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// A command with its arguments; the stage is in its environment.
    Command(Vec<String>),
    /// A signal to the root, by number.
    Signal(i32),
}

/// `scale:`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScaleSpec {
    /// At least; at least 1.
    pub min: u32,
    /// At most.
    pub max: u32,
    /// Wanted usage in per cent of `mem_limit`.
    pub target_memory: Option<f64>,
    /// Wanted usage in per cent of `cpus`.
    pub target_cpu: Option<f64>,
}

/// One of `alerts:`.
#[derive(Debug, Clone, PartialEq)]
pub struct AlertSpec {
    /// The condition as it was written, which is the alert's name.
    pub when: String,
    /// What is compared.
    pub gauge: Gauge,
    /// How.
    pub above: bool,
    /// With what.
    pub threshold: Threshold,
    /// How long it has to hold.
    pub lasting: Duration,
    /// Who is told, beside the journal and the metrics.
    pub deliver: Option<Delivery>,
}

/// What an alert is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gauge {
    /// What all services hold, of the budget.
    BudgetMemory,
    /// What one service's replicas hold together, of their limits.
    ServiceMemory(String),
    /// Restarts of one service so far.
    ServiceRestarts(String),
}

/// What a gauge is compared with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Threshold {
    /// Bytes, or a count.
    Number(u64),
    /// Per cent of the budget, or of the service's limits.
    Percent(f64),
}

/// How an alert is delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    /// A command with its arguments; what happened is in its environment.
    Command(Vec<String>),
    /// An HTTP POST of the event to this `http://` address.
    Webhook(String),
}
