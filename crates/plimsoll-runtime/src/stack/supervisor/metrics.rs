//! `/metrics`: every number that an operator needs, gathered when it is asked for.
//!
//! Counters are labelled by service, not by replica, and are added up here over all runs: a replica that is scaled away
//! or replaced takes nothing back.

use std::collections::BTreeMap;
use std::time::Duration;

use plimsoll_core::stack::snapshot::{HealthWord, PoolRow, ServiceRow, Snapshot, State, Switch};
use plimsoll_core::stack::{Event, Name, Stage};
use plimsoll_gateway::Tally;
use plimsoll_gateway::counters::LATENCY_BOUNDS_US;
use plimsoll_kernel::procfs::read_file;
use plimsoll_model::Cause;

use super::Supervisor;
use super::exposition::{Exposition, Kind};
use crate::stack::replica::Replica;

const STATES: [State; 7] = [
    State::Starting,
    State::Running,
    State::Unhealthy,
    State::BackingOff,
    State::Stopping,
    State::Stopped,
    State::Failed,
];

/// Events that are counted by service, as [`Event::counter`] names them: there from the first moment, for nobody sees how
/// much a counter grew that came with its first count.
const BY_SERVICE: [(&str, &str); 9] = [
    ("plimsoll_starts_total", "Starts of replicas that were begun."),
    ("plimsoll_start_failures_total", "Starts that came to nothing."),
    ("plimsoll_circuit_openings_total", "Rows of restarts so long that only one a minute is tried."),
    ("plimsoll_services_given_up_total", "Replicas that their restart policy gave up."),
    ("plimsoll_unhealthy_total", "Replicas that turned unhealthy."),
    ("plimsoll_livelocks_total", "Trees that sat at their line, got nowhere and were ended."),
    ("plimsoll_evictions_total", "Replicas that had to go because the budget was short."),
    ("plimsoll_scalings_total", "Changes of a service's number of replicas."),
    ("plimsoll_stops_total", "Stops of our own that were begun, for whatever reason."),
];

/// Events about no service.
const OTHERS: [(&str, &str); 4] = [
    ("plimsoll_loads_total", "Files that came into force."),
    ("plimsoll_alerts_fired_total", "Alerts of the file that began to fire."),
    ("plimsoll_refusals_total", "Commands and joins that were refused."),
    ("plimsoll_time_jumps_total", "Times when nothing was done for seconds: the machine slept or was overloaded."),
];

/// What is added up over runs.
#[derive(Debug, Default)]
pub(super) struct Sums {
    events: BTreeMap<&'static str, u64>,
    by_service: BTreeMap<(&'static str, Name), u64>,
    ends: BTreeMap<&'static str, u64>,
    survivors: u64,
    /// Of runs that have ended.
    cpu: BTreeMap<Name, Duration>,
    /// What was shown: a tree that cannot be read for a moment takes nothing back.
    shown: BTreeMap<(&'static str, Name), f64>,
}

impl Sums {
    /// Something has happened.
    pub(super) fn hear(&mut self, event: &Event) {
        if let Event::Ended { cause, .. } = event {
            *self.ends.entry(cause.as_str()).or_default() += 1;
        }
        let counter = match event {
            Event::Stopping { .. } => Some("plimsoll_stops_total"),
            event => event.counter(),
        };
        match (counter, event.service()) {
            (Some(counter), Some(service)) => {
                *self.by_service.entry((counter, service.clone())).or_default() += 1;
            }
            (Some(counter), None) => *self.events.entry(counter).or_default() += 1,
            (None, _) => {}
        }
    }

    /// A tree is gone; its group is still there to be read.
    pub(super) fn bury(&mut self, replica: &Replica) {
        let used = replica.boundary.cpu().unwrap_or_default().used;
        *self.cpu.entry(replica.instance.service.clone()).or_default() += used;
    }

    /// So many of a tree could not be killed.
    pub(super) fn add_survivors(&mut self, count: u64) {
        self.survivors += count;
    }

    fn growing(&mut self, of: &'static str, service: &Name, value: f64) -> f64 {
        let shown = self.shown.entry((of, service.clone())).or_default();
        *shown = shown.max(value);
        *shown
    }
}

/// Memory of a process in RAM, bytes.
pub(super) fn resident(process: &str) -> u64 {
    let pages = read_file(format!("/proc/{process}/statm")).ok().and_then(|text| {
        let text = String::from_utf8_lossy(&text).into_owned();
        text.split_whitespace().nth(1)?.parse::<u64>().ok()
    });
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}

/// Of this process and of the guard.
pub(super) fn own_resident() -> u64 {
    let guard = rustix::process::getppid().map_or(0, |pid| resident(&pid.as_raw_nonzero().to_string()));
    resident("self") + guard
}

fn height(stage: Stage) -> f64 {
    match stage {
        Stage::Normal => 0.0,
        Stage::Alert => 1.0,
        Stage::Degrade => 2.0,
        Stage::Shed => 3.0,
    }
}

fn seconds(ms: u64) -> f64 {
    Duration::from_millis(ms).as_secs_f64()
}

fn flag(is: bool) -> f64 {
    f64::from(u8::from(is))
}

/// What is to be asked of every replica.
type Gauge = (&'static str, &'static str, fn(&ServiceRow) -> Option<f64>);

/// A replica's gauges. What is not known (no line to come near to, not running) has no sample.
const GAUGES: &[Gauge] = &[
    ("plimsoll_service_memory_bytes", "Memory that a replica's tree holds.", |row| Some(row.memory_bytes as f64)),
    ("plimsoll_service_limit_bytes", "A replica's memory line.", |row| Some(row.limit_bytes as f64)),
    ("plimsoll_service_admitted_bytes", "Room in the budget that is promised to a replica.", |row| {
        Some(row.admitted_bytes as f64)
    }),
    ("plimsoll_service_limit_forecast_seconds", "Time until a replica meets its line, if it goes on so.", |row| {
        row.forecast_ms.map(seconds)
    }),
    ("plimsoll_service_stage", "A replica's stage: 0 normal, 1 alert, 2 degrade, 3 shed.", |row| {
        Some(height(row.stage))
    }),
    ("plimsoll_service_cpu_cores", "Processors that a replica uses, as of the last look.", |row| {
        Some(row.cpu_percent / 100.0)
    }),
    ("plimsoll_service_cpu_throttled_ratio", "Share of periods in which its quota stopped it.", |row| {
        Some(row.throttled_percent / 100.0)
    }),
    ("plimsoll_service_processes", "Processes of a replica.", |row| Some(f64::from(row.processes))),
    ("plimsoll_service_uptime_seconds", "Time since a replica was started.", |row| row.uptime_ms.map(seconds)),
    ("plimsoll_service_healthy", "Whether a replica with a health check is healthy.", |row| {
        (row.health != HealthWord::None).then(|| flag(row.health == HealthWord::Healthy))
    }),
    (
        "plimsoll_service_circuit_open",
        "Whether a replica ended so often in a row that one start a minute is tried.",
        |r| Some(flag(r.circuit_open)),
    ),
    ("plimsoll_service_restart_attempt", "Restarts in a replica's present row; 0 after a good run.", |row| {
        Some(f64::from(row.attempt))
    }),
];

impl Supervisor<'_> {
    pub(super) fn metrics(&mut self) -> String {
        let snapshot = self.snapshot();
        let mut page = Exposition::default();
        self.about_us(&mut page, &snapshot);
        about_replicas(&mut page, &snapshot);
        self.about_services(&mut page);
        about_pools(&mut page, &snapshot);
        about_ports(&mut page, &self.gateway.tallies());
        page.finish()
    }

    /// Plimsoll itself, the budget and the machine.
    fn about_us(&self, page: &mut Exposition, snapshot: &Snapshot) {
        let version = env!("CARGO_PKG_VERSION");
        page.family("plimsoll_build_info", Kind::Gauge, "Which plimsoll this is.").sample(&[("version", version)], 1.0);
        page.gauge("plimsoll_started", "Whether the first start is over.", flag(self.stack.has_started()));
        page.gauge("plimsoll_stopping", "Whether everything is being stopped.", flag(self.stack.is_stopping()));
        page.gauge(
            "plimsoll_process_resident_memory_bytes",
            "Memory of plimsoll's own processes.",
            own_resident() as f64,
        );
        page.gauge("plimsoll_process_uptime_seconds", "Time since plimsoll was started.", self.now().as_secs_f64());
        let mut troubles =
            page.family("plimsoll_trouble", Kind::Gauge, "1 for each thing beside the services that goes wrong now.");
        for about in ["certificates", "journal", "logs"] {
            troubles.sample(&[("about", about)], flag(self.troubles.contains_key(about)));
        }
        for about in self.troubles.keys().filter(|about| !["certificates", "journal", "logs"].contains(&&***about)) {
            troubles.sample(&[("about", about)], 1.0);
        }
        page.gauge("plimsoll_dying", "Trees that were killed and are not proven gone.", self.dying.len() as f64);
        page.counter("plimsoll_survivors_total", "Processes that outlived their tree's end.", self.sums.survivors);

        let budget = &snapshot.budget;
        page.gauge("plimsoll_budget_limit_bytes", "What all services together may hold.", budget.limit_bytes as f64);
        page.gauge("plimsoll_budget_used_bytes", "What they hold.", budget.used_bytes as f64);
        page.gauge("plimsoll_budget_admitted_bytes", "What is promised to them.", budget.admitted_bytes as f64);
        page.gauge("plimsoll_budget_queued", "Replicas and joins that wait for room.", f64::from(budget.queued));
        page.gauge(
            "plimsoll_budget_stage",
            "The budget's stage: 0 normal, 1 alert, 2 degrade, 3 shed.",
            height(budget.stage),
        );
        let help = "Time until the budget is met, if it goes on so; no sample while it does not grow.";
        let mut forecast = page.family("plimsoll_budget_forecast_seconds", Kind::Gauge, help);
        budget.forecast_ms.iter().for_each(|&ms| forecast.sample(&[], seconds(ms)));
        let mut firing = page.family("plimsoll_alert_firing", Kind::Gauge, "Alerts of the file, as written.");
        for alert in &self.options.spec.alerts {
            firing.sample(&[("alert", &alert.when)], flag(snapshot.alerts.contains(&alert.when)));
        }

        let host = &snapshot.host;
        page.gauge(
            "plimsoll_host_memory_bytes",
            "Memory that this machine or container really has.",
            self.options.place.total as f64,
        );
        let host = [
            (
                "plimsoll_host_memory_available_bytes",
                "Memory that could be had.",
                host.available_bytes.map(|b| b as f64),
            ),
            ("plimsoll_host_swap_used_bytes", "Swap in use.", host.swap_used_bytes.map(|bytes| bytes as f64)),
            ("plimsoll_host_load1", "Load average over a minute.", host.load_1m),
            (
                "plimsoll_host_io_wait_ratio",
                "Share of time in which processors waited for a disk.",
                host.io_wait_percent.map(|percent| percent / 100.0),
            ),
        ];
        for (name, help, value) in host {
            let mut family = page.family(name, Kind::Gauge, help);
            value.iter().for_each(|&value| family.sample(&[], value));
        }
    }

    /// What only grows.
    fn about_services(&mut self, page: &mut Exposition) {
        let services: Vec<Name> = self.options.spec.services.keys().map(|name| Name::from(name.as_str())).collect();
        let remembered = self.journal.remembered();
        let past = |service: &Name| remembered.iter().find(|known| known.service == *service);
        let (mut cpu, mut oom_kills) = (self.sums.cpu.clone(), BTreeMap::<Name, u64>::new());
        for replica in self.replicas.values().chain(self.dying.iter().map(|dying| &dying.replica)) {
            let service = &replica.instance.service;
            *cpu.entry(service.clone()).or_default() += replica.boundary.cpu().unwrap_or_default().used;
            *oom_kills.entry(service.clone()).or_default() += replica.oom_kills();
        }
        const CPU: &str = "plimsoll_service_cpu_seconds_total";
        let mut family = page.family(CPU, Kind::Counter, "Processor time that a service has used.");
        for service in &services {
            let used = cpu.get(service).copied().unwrap_or_default().as_secs_f64();
            family.sample(&[("service", service)], self.sums.growing(CPU, service, used));
        }
        const RESTARTS: &str = "plimsoll_service_restarts_total";
        let mut family = page.family(RESTARTS, Kind::Counter, "Restarts by policy, over all lives of plimsoll.");
        for service in &services {
            let restarts = past(service).map_or(0, |known| known.restarts);
            family.sample(&[("service", service)], self.sums.growing(RESTARTS, service, restarts as f64));
        }
        const OOM: &str = "plimsoll_service_oom_kills_total";
        let mut family = page.family(
            OOM,
            Kind::Counter,
            "Times that a service lost somebody for memory, over all lives of plimsoll.",
        );
        for service in &services {
            let kills = past(service).map_or(0, |known| known.oom_kills) + oom_kills.get(service).unwrap_or(&0);
            family.sample(&[("service", service)], self.sums.growing(OOM, service, kills as f64));
        }
        for (name, help) in BY_SERVICE {
            let mut family = page.family(name, Kind::Counter, help);
            for service in &services {
                let count = self.sums.by_service.get(&(name, service.clone())).copied().unwrap_or(0);
                family.sample(&[("service", service)], count as f64);
            }
        }
        let mut ends = page.family("plimsoll_ends_total", Kind::Counter, "Trees that have ended, by cause.");
        for cause in Cause::ALL {
            let count = self.sums.ends.get(cause.as_str()).copied().unwrap_or(0);
            ends.sample(&[("cause", cause.as_str())], count as f64);
        }
        for (name, help) in OTHERS {
            page.counter(name, help, self.sums.events.get(name).copied().unwrap_or(0));
        }
    }
}

fn about_replicas(page: &mut Exposition, snapshot: &Snapshot) {
    let rows: Vec<(String, &ServiceRow)> = snapshot.services.iter().map(|row| (row.replica.to_string(), row)).collect();
    for &(name, help, value) in GAUGES {
        let mut family = page.family(name, Kind::Gauge, help);
        for (replica, row) in &rows {
            if let Some(value) = value(row) {
                family.sample(&[("service", &row.name), ("replica", replica)], value);
            }
        }
    }
    let mut family =
        page.family("plimsoll_service_state", Kind::Gauge, "1 for the state that a replica is in, else 0.");
    for (replica, row) in &rows {
        for state in STATES {
            let labels = [("service", &*row.name), ("replica", replica), ("state", state.as_str())];
            family.sample(&labels, flag(row.state == state));
        }
    }
    let scales: BTreeMap<&Name, _> = snapshot.services.iter().map(|row| (&row.name, row.scale)).collect();
    let mut family =
        page.family("plimsoll_service_replicas_available", Kind::Gauge, "Replicas that can be given work.");
    scales.iter().for_each(|(name, scale)| family.sample(&[("service", name)], f64::from(scale.current)));
    let mut family = page.family("plimsoll_service_replicas_wanted", Kind::Gauge, "Replicas that are wanted.");
    scales.iter().for_each(|(name, scale)| family.sample(&[("service", name)], f64::from(scale.target)));
}

/// Pools, by what is known of each.
fn about_pools(page: &mut Exposition, snapshot: &Snapshot) {
    type Measure = (&'static str, Kind, &'static str, fn(&PoolRow) -> f64);
    let measures: [Measure; 15] = [
        ("plimsoll_pool_sessions", Kind::Gauge, "Sessions that have a conversation or request.", |p| p.sessions.into()),
        ("plimsoll_pool_sessions_busy", Kind::Gauge, "Sessions that have a turn.", |pool| pool.busy.into()),
        ("plimsoll_pool_sessions_warm", Kind::Gauge, "Processes that are ready and nobody's yet.", |p| p.warm.into()),
        ("plimsoll_pool_sessions_starting", Kind::Gauge, "Processes that are not ready yet.", |p| p.starting.into()),
        ("plimsoll_pool_sessions_waiting", Kind::Gauge, "Processes that wait for their start.", |p| p.waiting.into()),
        ("plimsoll_pool_sessions_max", Kind::Gauge, "Sessions that there may be.", |pool| pool.max_sessions.into()),
        ("plimsoll_pool_queued", Kind::Gauge, "Turns that wait for a session.", |pool| pool.queued.into()),
        ("plimsoll_pool_memory_bytes", Kind::Gauge, "What all its trees hold.", |pool| pool.memory_bytes as f64),
        ("plimsoll_pool_processes", Kind::Gauge, "Processes of all its trees.", |pool| pool.processes.into()),
        ("plimsoll_pool_circuit_open", Kind::Gauge, "Whether starts have failed again and again.", |pool| {
            flag(pool.circuit == Switch::Open)
        }),
        ("plimsoll_pool_turns_total", Kind::Counter, "Turns that are over.", |pool| pool.turns as f64),
        ("plimsoll_pool_refused_total", Kind::Counter, "Turns that got no session.", |pool| pool.refused as f64),
        ("plimsoll_pool_recycled_total", Kind::Counter, "Sessions that were replaced.", |pool| pool.recycled as f64),
        ("plimsoll_pool_closed_total", Kind::Counter, "Sessions that ended otherwise.", |pool| pool.closed as f64),
        ("plimsoll_pool_survivors_total", Kind::Counter, "Processes that could not be killed.", |pool| {
            pool.survivors as f64
        }),
    ];
    for (name, kind, help, measure) in measures {
        let mut family = page.family(name, kind, help);
        snapshot.pools.iter().for_each(|pool| family.sample(&[("pool", &pool.name)], measure(pool)));
    }
}

/// What services' public ports count.
fn about_ports(page: &mut Exposition, ports: &BTreeMap<std::sync::Arc<str>, Tally>) {
    let help = "Responses by class of their code, refusals of our own among them.";
    let mut family = page.family("plimsoll_gateway_responses_total", Kind::Counter, help);
    for (service, tally) in ports {
        for (class, count) in ["1xx", "2xx", "3xx", "4xx", "5xx"].iter().zip(tally.responses) {
            family.sample(&[("service", service), ("code", class)], count as f64);
        }
    }
    type Count = (&'static str, Kind, &'static str, fn(&Tally) -> u64);
    let counts: [Count; 7] = [
        ("plimsoll_gateway_retries_total", Kind::Counter, "Requests sent again, after a replica died.", |t| t.retries),
        ("plimsoll_gateway_refused_total", Kind::Counter, "Requests that no replica got.", |t| t.refused),
        ("plimsoll_gateway_abandoned_total", Kind::Counter, "Requests whose client went before an answer.", |tally| {
            tally.abandoned
        }),
        ("plimsoll_gateway_connections_refused_total", Kind::Counter, "Connections that were one too many.", |tally| {
            tally.connections_refused
        }),
        ("plimsoll_gateway_outstanding", Kind::Gauge, "Requests that a replica has now.", |tally| tally.outstanding),
        ("plimsoll_gateway_waiting", Kind::Gauge, "Requests that wait for a replica now.", |tally| tally.waiting),
        ("plimsoll_gateway_connections", Kind::Gauge, "Connections of clients now.", |tally| tally.connections),
    ];
    for (name, kind, help, count) in counts {
        let mut family = page.family(name, kind, help);
        ports.iter().for_each(|(service, tally)| family.sample(&[("service", service)], count(tally) as f64));
    }
    let mut family =
        page.histogram("plimsoll_gateway_response_seconds", "From a request's head to its response's head.");
    for (service, tally) in ports {
        let bounds = LATENCY_BOUNDS_US.iter().map(|&us| us as f64 / 1e6);
        let buckets: Vec<(f64, u64)> = bounds.zip(tally.latency).collect();
        let rest = tally.latency[LATENCY_BOUNDS_US.len()];
        family.sample(&[("service", service)], &buckets, rest, tally.latency_sum_us as f64 / 1e6);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_core::stack::Instance;

    #[test]
    fn events_are_counted_by_service_and_ends_by_cause() {
        let mut sums = Sums::default();
        let instance = Instance { service: "api".into(), replica: 1, generation: 1 };
        let starting = Event::Starting { instance: instance.clone(), attempt: 0, max_attempts: None, claim_bytes: 1 };
        sums.hear(&starting);
        sums.hear(&starting);
        sums.hear(&Event::StartFailed { instance, why: "no".to_owned() });
        sums.hear(&Event::Loaded { services: 1, pools: 0, budget_bytes: 1 });
        sums.hear(&Event::GoingDown);
        let starts = ("plimsoll_starts_total", Name::from("api"));
        assert_eq!((sums.by_service[&starts], sums.events["plimsoll_loads_total"]), (2, 1));
        let service = Name::from("api");
        assert_eq!(sums.growing("plimsoll_x_total", &service, 5.0), 5.0);
        assert_eq!(sums.growing("plimsoll_x_total", &service, 3.0), 5.0, "it takes nothing back");
    }
}
