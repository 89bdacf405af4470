//! What a seed makes up: stacks, the lives of their processes, and what operators do.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use plimsoll_model::OnLimit;
use plimsoll_model::pool::{Isolation, PoolSpec, Protocol, QueueSpec, Rehydrate, Reuse};
use plimsoll_model::stack::{
    AlertSpec, Amount, Ask, BudgetSpec, Condition, Delivery, Gauge, HealthSpec, Priority, RestartPolicy, ScaleSpec,
    ServiceSpec, StackSpec, Threshold,
};

use crate::machine::{Life, Shape};
use crate::random::Random;

const MIB: u64 = 1 << 20;

/// Services whose processes do their work and end.
pub(crate) fn is_job(service: &str) -> bool {
    service.starts_with("job")
}

/// A stack that the configuration would let through on a machine of `total` bytes.
pub(crate) fn stack(random: &mut Random, total: u64) -> StackSpec {
    let count = random.between(2, 8);
    let mut services: BTreeMap<String, ServiceSpec> = BTreeMap::new();
    let mut names: Vec<String> = Vec::new();
    for n in 0..count {
        let name = format!("{}{n}", if random.one_in(6) { "job" } else { "srv" });
        let spec = service(random, &name, &names, n);
        services.insert(name.clone(), spec);
        names.push(name);
    }
    let count = if random.one_in(2) { random.between(1, 2) } else { 0 };
    let pools = (0..count).map(|n| (format!("pool{n}"), pool(random))).collect();
    let mut spec = StackSpec {
        budget: budget(random),
        alerts: alerts(random, &names),
        services,
        pools,
        gateway: None,
        redis: None,
    };
    fit(&mut spec, total);
    spec
}

fn budget(random: &mut Random) -> BudgetSpec {
    let memory = Amount::Percent(random.between(40, 95) as f64);
    BudgetSpec { memory, reserve: random.between(0, 3) * 50 * MIB }
}

/// Makes reservations small enough for all declared replicas to fit.
fn fit(spec: &mut StackSpec, total: u64) {
    let budget = spec.budget.bytes(total);
    let most = |spec: &ServiceSpec| u64::from(first_target(spec));
    let reserved = |spec: &StackSpec| -> u64 {
        spec.services.values().map(|one| one.mem_reservation.unwrap_or(0) * most(one)).sum()
    };
    while reserved(spec) > budget {
        for one in spec.services.values_mut() {
            one.mem_reservation = one.mem_reservation.map(|bytes| bytes / 2);
        }
    }
}

/// Replicas to begin with.
pub(crate) fn first_target(spec: &ServiceSpec) -> u32 {
    let asked = spec.scale.map_or(spec.replicas, |scale| spec.replicas.clamp(scale.min, scale.max));
    asked.max(spec.min_available)
}

fn service(random: &mut Random, name: &str, others: &[String], n: u64) -> ServiceSpec {
    let mem_limit = random.percent(75).then(|| random.between(32, 400) * MIB);
    let mem_reservation = random.percent(60).then(|| random.between(8, 150) * MIB);
    let mut depends_on = BTreeMap::new();
    for _ in 0..random.between(0, 2) {
        if let Some(on) = random.of(others) {
            let condition = match random.between(0, 2) {
                0 => Condition::Started,
                1 => Condition::Healthy,
                _ if is_job(on) => Condition::CompletedSuccessfully,
                _ => Condition::Healthy,
            };
            depends_on.insert(on.clone(), condition);
        }
    }
    let restart = match random.between(0, 9) {
        0 => RestartPolicy::No,
        1 => RestartPolicy::OnFailure(None),
        2..=4 => RestartPolicy::OnFailure(Some(random.between(1, 4) as u32)),
        5 | 6 => RestartPolicy::UnlessStopped,
        _ => RestartPolicy::Always,
    };
    let restart = match restart {
        RestartPolicy::Always | RestartPolicy::UnlessStopped if is_job(name) => RestartPolicy::OnFailure(Some(3)),
        other => other,
    };
    let replicas = if is_job(name) { 1 } else { random.between(1, 3) as u32 };
    let scale = (!is_job(name) && random.percent(30)).then(|| {
        let min = random.between(1, 2) as u32;
        ScaleSpec {
            min,
            max: min + random.between(0, 3) as u32,
            target_memory: random.percent(70).then(|| random.between(30, 90) as f64),
            target_cpu: random.percent(50).then(|| random.between(5, 60) as f64),
        }
    });
    let most = scale.map_or(replicas, |scale| replicas.clamp(scale.min, scale.max));
    ServiceSpec {
        command: vec![name.to_owned(), random.between(0, 1).to_string()],
        environment: BTreeMap::new(),
        working_dir: PathBuf::from("/"),
        mem_limit: mem_limit.map(|limit| limit.max(mem_reservation.unwrap_or(0))),
        mem_reservation,
        memswap_limit: None,
        cpu_micros: random.percent(50).then(|| random.between(1, 10) * 100_000),
        pids_limit: None,
        restart,
        stop_grace_period: random.ms(0, 10_000),
        stop_signal: 15,
        depends_on,
        healthcheck: (!is_job(name) && random.percent(50)).then(|| health(random)),
        priority: *random
            .of(&[Priority::Critical, Priority::Normal, Priority::BestEffort])
            .unwrap_or(&Priority::Normal),
        on_limit: OnLimit::Tree,
        on_pressure: random.percent(40).then_some(Ask::Signal(10)),
        listen: random.percent(40).then(|| ([127, 0, 0, 1], 8000 + n as u16).into()),
        min_available: if is_job(name) { 0 } else { random.between(0, u64::from(most)) as u32 },
        replicas,
        scale,
    }
}

fn pool(random: &mut Random) -> PoolSpec {
    let process = service(random, "pool", &[], 0);
    let process = ServiceSpec {
        restart: RestartPolicy::No,
        healthcheck: None,
        listen: None,
        min_available: 0,
        replicas: 1,
        scale: None,
        mem_reservation: None,
        ..process
    };
    let limit = process.mem_limit.unwrap_or(64 * MIB);
    PoolSpec {
        process,
        protocol: *random.of(&[Protocol::Claude, Protocol::Jsonl, Protocol::Exec]).unwrap_or(&Protocol::Jsonl),
        models: Vec::new(),
        reuse: if random.one_in(2) { Reuse::Any } else { Reuse::Session },
        max_sessions: random.between(1, 5) as u32,
        warm: random.between(0, 2) as u32,
        idle_ttl: random.ms(500, 60_000),
        max_turns: random.one_in(2).then(|| random.between(1, 5) as u32),
        max_turns_jitter: random.between(0, 2) as u32,
        max_context: random.one_in(3).then_some(80.0),
        max_age: random.one_in(3).then(|| random.ms(5000, 100_000)),
        recycle_above: random.one_in(2).then(|| limit / 100 * random.between(30, 90)),
        start_timeout: random.ms(1000, 10_000),
        first_byte_timeout: random.ms(1000, 10_000),
        stall_timeout: random.ms(1000, 10_000),
        turn_timeout: random.ms(5000, 30_000),
        queue: QueueSpec { max: random.between(1, 10) as u32, timeout: random.ms(1000, 30_000) },
        rehydrate: if random.one_in(4) { Rehydrate::Replay } else { Rehydrate::Resume },
        max_line: 1 << 20,
        isolation: Isolation::None,
        pass_environment: Vec::new(),
    }
}

fn health(random: &mut Random) -> HealthSpec {
    HealthSpec {
        test: vec!["true".to_owned()],
        interval: random.ms(1000, 20_000),
        timeout: random.ms(500, 5000),
        retries: random.between(1, 3) as u32,
        start_period: random.ms(0, 5000),
        start_interval: random.ms(200, 2000),
    }
}

fn alerts(random: &mut Random, names: &[String]) -> Vec<AlertSpec> {
    let mut alerts = Vec::new();
    for n in 0..random.between(0, 3) {
        let gauge = match (random.between(0, 2), random.of(names)) {
            (0, Some(name)) => Gauge::ServiceMemory(name.clone()),
            (1, Some(name)) => Gauge::ServiceRestarts(name.clone()),
            _ => Gauge::BudgetMemory,
        };
        let threshold = match gauge {
            Gauge::ServiceRestarts(_) => Threshold::Number(random.between(0, 5)),
            _ => Threshold::Percent(random.between(10, 95) as f64),
        };
        alerts.push(AlertSpec {
            when: format!("alert {n}"),
            gauge,
            above: random.percent(80),
            threshold,
            lasting: random.ms(0, 20_000),
            deliver: random.one_in(2).then(|| Delivery::Command(vec!["page".to_owned()])),
        });
    }
    alerts
}

/// The same stack as somebody may edit it.
pub(crate) fn edited(random: &mut Random, spec: &StackSpec, total: u64) -> StackSpec {
    let mut spec = spec.clone();
    let names: Vec<String> = spec.services.keys().cloned().collect();
    for _ in 0..random.between(1, 2) {
        let Some(name) = random.of(&names) else { break };
        match random.between(0, 7) {
            0 if spec.services.len() > 1 => {
                spec.services.remove(name);
                for other in spec.services.values_mut() {
                    other.depends_on.remove(name);
                }
                spec.alerts.retain(|alert| {
                    !matches!(&alert.gauge, Gauge::ServiceMemory(of) | Gauge::ServiceRestarts(of) if of == name)
                });
            }
            1 => {
                let n = random.between(20, 60);
                let new = format!("{}{n}", if random.one_in(4) { "job" } else { "srv" });
                let there: Vec<String> = spec.services.keys().cloned().collect();
                let made = service(random, &new, &there, n);
                spec.services.entry(new).or_insert(made);
            }
            2 => spec.budget = budget(random),
            7 if random.one_in(2) => {
                let name = format!("pool{}", random.between(0, 1));
                match spec.pools.get_mut(&name) {
                    Some(_) if random.one_in(4) => drop(spec.pools.remove(&name)),
                    Some(pool) => pool.max_sessions = random.between(1, 5) as u32,
                    None => drop(spec.pools.insert(name, pool(random))),
                }
            }
            kind => {
                let health = health(random);
                let Some(one) = spec.services.get_mut(name) else { continue };
                match kind {
                    3 => one.command.push("x".to_owned()),
                    4 => {
                        one.mem_limit =
                            one.mem_limit.map(|limit| (limit + 16 * MIB).max(one.mem_reservation.unwrap_or(0)))
                    }
                    5 => one.healthcheck = if is_job(name) || one.healthcheck.is_some() { None } else { Some(health) },
                    6 if !is_job(name) => {
                        one.replicas = random.between(1, 3) as u32;
                        one.scale = None;
                        one.min_available = one.min_available.min(one.replicas);
                    }
                    _ => one.priority = Priority::Normal,
                }
            }
        }
    }
    fit(&mut spec, total);
    spec
}

/// What a process is like in trouble.
pub(crate) fn life(random: &mut Random, service: &str, line: u64) -> Life {
    let part = |random: &mut Random, low, high| line / 100 * random.between(low, high);
    let shape = match random.between(0, 9) {
        0 | 1 => Shape::Leak(part(random, 1, 40), part(random, 1, 30).max(1)),
        2 => Shape::Leak(part(random, 1, 40), part(random, 30, 300).max(1)),
        3 => Shape::Ramp(part(random, 60, 110), random.ms(500, 60_000)),
        4 => Shape::Wave(part(random, 5, 40), part(random, 10, 50), random.ms(500, 30_000)),
        5 | 6 => Shape::Ramp(part(random, 20, 96), random.ms(100, 20_000)),
        _ => Shape::Flat(part(random, 1, 40)),
    };
    let ends = if is_job(service) {
        Some((random.ms(10, 8000), if random.percent(70) { Ok(0) } else { Ok(1) }))
    } else {
        let how = *random.of(&[Ok(0), Ok(1), Ok(137), Err(11), Err(6)]).unwrap_or(&Ok(1));
        match random.between(0, 9) {
            0..=2 => Some((random.ms(1, 2000), how)),
            3 => Some((random.ms(8000, 12_000), how)),
            4 => Some((random.ms(2000, 60_000), how)),
            _ => None,
        }
    };
    Life {
        start: if random.one_in(20) { random.ms(100, 8000) } else { random.ms(1, 50) },
        fails_to_start: random.one_in(15),
        shape,
        ends,
        obeys: if random.one_in(4) { None } else { Some(random.ms(1, 4000)) },
        dies: if random.one_in(15) { random.ms(1000, 25_000) } else { random.ms(1, 300) },
        ready: if random.one_in(4) { random.ms(1000, 10_000) } else { random.ms(0, 800) },
        hangs: random.one_in(4).then(|| random.ms(500, 30_000)),
        is_throttled: random.one_in(6),
        gives_percent: *random.of(&[0, 0, 5, 50, 100]).unwrap_or(&0),
    }
}

/// What a process is like when all is well.
pub(crate) fn calm_life(service: &str, line: u64) -> Life {
    Life {
        start: Duration::from_millis(5),
        fails_to_start: false,
        shape: Shape::Flat(line / 50),
        ends: is_job(service).then_some((Duration::from_secs(1), Ok(0))),
        obeys: Some(Duration::from_millis(50)),
        dies: Duration::from_millis(20),
        ready: Duration::ZERO,
        hangs: None,
        is_throttled: false,
        gives_percent: 0,
    }
}
