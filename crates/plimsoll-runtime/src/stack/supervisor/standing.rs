//! How the whole stands, for those who watch us: health and readiness over HTTP, and what the service manager hears.

use plimsoll_core::stack::Stage;
use plimsoll_core::stack::snapshot::{PoolRow, ServiceRow, Snapshot, State, Switch};
use plimsoll_gateway::control::Answer as Text;
use plimsoll_kernel::clock::Instant;
use plimsoll_model::size::Human;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Supervisor;
use super::metrics::{own_resident, resident};
use crate::stack::notify::Notifier;

/// What was told to the service manager and to whoever waits for the start.
#[derive(Debug)]
pub(super) struct Standing {
    notifier: Option<Notifier>,
    told_start: bool,
    told_stop: bool,
}

impl Standing {
    pub(super) fn new() -> Self {
        Self { notifier: Notifier::from_env(), told_start: false, told_stop: false }
    }

    /// When the loop has to turn at the latest.
    pub(super) fn due(&self) -> Option<Instant> {
        self.notifier.as_ref().map(Notifier::due)
    }

    /// A file is being read again.
    pub(super) fn reloading(&mut self) {
        if let Some(notifier) = self.notifier.as_mut().filter(|_| self.told_start) {
            notifier.reloading();
        }
    }

    /// It was taken, or nothing has changed.
    pub(super) fn reloaded(&mut self) {
        if let Some(notifier) = self.notifier.as_mut().filter(|_| self.told_start) {
            notifier.ready();
        }
    }
}

/// One word for everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    Starting,
    Ok,
    Degraded,
    /// There are pools, and none of them starts agents: whoever asks would be refused.
    Offline,
    Stopping,
}

impl Health {
    fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ok => "ok",
            Self::Degraded => "degraded",
            Self::Offline => "offline",
            Self::Stopping => "stopping",
        }
    }

    fn status(self) -> u16 {
        match self {
            Self::Ok | Self::Degraded => 200,
            Self::Starting | Self::Offline | Self::Stopping => 503,
        }
    }
}

impl Supervisor<'_> {
    /// Each turn of the loop: tells what has changed, and that it turns.
    pub(super) fn tell_how_it_stands(&mut self) {
        if self.stack.has_started() && !std::mem::replace(&mut self.standing.told_start, true) {
            (self.options.started)();
            if let Some(notifier) = &mut self.standing.notifier {
                notifier.ready();
            }
        }
        if self.stack.is_stopping()
            && !std::mem::replace(&mut self.standing.told_stop, true)
            && let Some(notifier) = &mut self.standing.notifier
        {
            notifier.stopping();
        }
        if let Some(mut notifier) = self.standing.notifier.take() {
            notifier.turn(|| sentence(&self.snapshot()));
            self.standing.notifier = Some(notifier);
        }
    }

    fn word(&self, snapshot: &Snapshot) -> Health {
        let is_bad = |row: &ServiceRow| matches!(row.state, State::Failed | State::Unhealthy) || row.circuit_open;
        let is_open = |row: &PoolRow| row.circuit == Switch::Open;
        if self.stack.is_stopping() {
            Health::Stopping
        } else if !self.stack.has_started() {
            Health::Starting
        } else if !snapshot.pools.is_empty() && snapshot.pools.iter().all(is_open) {
            Health::Offline
        } else if snapshot.services.iter().any(is_bad)
            || snapshot.pools.iter().any(is_open)
            || !self.troubles.is_empty()
        {
            Health::Degraded
        } else {
            Health::Ok
        }
    }

    pub(super) fn health(&self) -> Text {
        let snapshot = self.snapshot();
        let word = self.word(&snapshot);
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let all = own_resident() + self.budget.usage().unwrap_or(0);
        let ports = self.gateway.tallies();
        let (served, turns) = (self.gateway.served(), |count: &AtomicU64| count.load(Ordering::Relaxed));
        let requests: u64 = ports.values().flat_map(|tally| tally.responses).sum();
        let json = serde_json::json!({
            "status": word.as_str(),
            "memory": {"rss_mb": mib(all), "self_rss_mb": mib(resident("self"))},
            "active_queries": ports.values().map(|tally| tally.outstanding + tally.waiting).sum::<u64>()
                + turns(&served.active),
            "stats": {
                "total_requests": requests + turns(&served.requests),
                "total_errors": ports.values().map(|tally| tally.responses[4]).sum::<u64>() + turns(&served.errors),
                "restart_count": snapshot.pools.iter().map(|row| row.recycled).sum::<u64>() + self.journal.remembered().iter().map(|known| known.restarts).sum::<u64>(),
            },
            // Restarts in the rows that are not over: 0 when everything has run well for a while.
            "recovery_attempts": snapshot.services.iter().map(|row| u64::from(row.attempt)).sum::<u64>()
                + snapshot.pools.iter().map(|row| u64::from(row.failed_starts)).sum::<u64>(),
        });
        Text { status: word.status(), ..Text::json(json.to_string()) }
    }

    pub(super) fn ready(&self) -> Text {
        let snapshot = self.snapshot();
        let word = self.word(&snapshot);
        let sheds = snapshot.budget.stage == Stage::Shed;
        let is_ready = word.status() == 200 && !sheds;
        let json = serde_json::json!({
            "ready": is_ready, "status": word.as_str(), "stage": snapshot.budget.stage.as_str(),
        });
        Text { status: if is_ready { 200 } else { 503 }, ..Text::json(json.to_string()) }
    }
}

/// `8 of 9 services run; 1.2 GiB of 1.5 GiB, normal`.
fn sentence(snapshot: &Snapshot) -> String {
    let running = snapshot.services.iter().filter(|row| row.state == State::Running).count();
    format!(
        "{running} of {} replicas run; {} of {}, {}",
        snapshot.services.len(),
        Human(snapshot.budget.used_bytes),
        Human(snapshot.budget.limit_bytes),
        snapshot.budget.stage.as_str()
    )
}
