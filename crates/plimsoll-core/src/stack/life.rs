//! Starts, probes and ends of runs; and what time does to them.

use std::time::Duration;

use plimsoll_model::Cause;
use plimsoll_model::stack::RestartPolicy;

use super::admission::{HOLD, PATIENCE};
use super::autoscale::Metric;
use super::backoff::{Backoff, GOOD_RUN, Next};
use super::effect::Effect;
use super::event::{Event, Reason, Waiting};
use super::health::Turn;
use super::input::{End, Probe};
use super::ladder::Stage;
use super::name::Instance;
use super::pool::Phase;
use super::replica::{How, Rest, Run, Step};
use super::sabotage::Rule;
use super::service::Service;
use super::{CENSUS, Stack};

/// An evicted one comes back after so long at the earliest, twice as long each time in a row.
const EVICTED_PAUSE: Duration = Duration::from_secs(30);

/// And after so long at the latest, if there is room.
const EVICTED_LONGEST: Duration = Duration::from_secs(300);

/// A workload that stays close to its line is asked again to hold less.
pub(super) const ASK_AGAIN: Duration = Duration::from_secs(30);

impl Stack {
    pub(super) fn started(&mut self, instance: &Instance, pid: i32, port: Option<u16>, effects: &mut Vec<Effect>) {
        let (now, breaks) = (self.now, self.breaks(Rule::LateStart));
        let Some(service) = self.services.get_mut(&instance.service) else { return };
        let spec = service.spec.clone();
        let Some(replica) = service.running(instance) else { return };
        let Some(run) = replica.run.as_mut().filter(|run| run.pid.is_none()) else { return };
        run.pid = Some(pid);
        run.port = port;
        // What it is measured by begins when it can be measured.
        run.health = super::health::Health::new(now, spec.healthcheck.as_ref());
        let is_ending = run.ending.is_some();
        effects.push(Effect::Emit(Event::Started { instance: instance.clone(), pid, port }));
        if is_ending {
            if !breaks {
                service.go_on_ending(now, instance.replica, effects);
            }
            return;
        }
        service.has_started = true;
        if let Some(pool) = &mut service.pool {
            let until = now + pool.spec.start_timeout;
            if let Some(session) = pool.sessions.get_mut(&instance.replica) {
                session.phase = Phase::Starting(Some(until));
            }
        }
        if spec.healthcheck.is_none() && !service.is_pool {
            effects.push(Effect::Emit(Event::Healthy { instance: instance.clone() }));
        }
    }

    pub(super) fn start_failed(&mut self, instance: &Instance, why: String, effects: &mut Vec<Effect>) {
        let is_known = self.services.get_mut(&instance.service).is_some_and(|s| s.running(instance).is_some());
        if is_known {
            effects.push(Effect::Emit(Event::StartFailed { instance: instance.clone(), why }));
            let (cause, code, signal) = (Cause::StartFailed, None, None);
            self.exited(
                instance,
                End { cause, code, signal, bytes_freed: 0, peak_bytes: None, oom_kills: 0, survivors: 0 },
                effects,
            );
        }
    }

    pub(super) fn probed(&mut self, instance: &Instance, probe: u64, outcome: Probe, effects: &mut Vec<Effect>) {
        let now = self.now;
        let Some(service) = self.services.get_mut(&instance.service) else { return };
        let spec = service.spec.clone();
        let Some(run) = service.running(instance).and_then(|replica| replica.run.as_mut()) else { return };
        let Some(check) = &spec.healthcheck else { return };
        let is_throttled = run.cpu.is_throttled();
        let turn = run.health.answer(now, probe, outcome, is_throttled, check);
        turned(now, service, instance.clone(), turn, effects);
    }

    pub(super) fn drained(&mut self, instance: &Instance, effects: &mut Vec<Effect>) {
        let now = self.now;
        let Some(service) = self.services.get_mut(&instance.service) else { return };
        let Some(run) = service.running(instance).and_then(|replica| replica.run.as_ref()) else { return };
        if run.ending.as_ref().is_some_and(|ending| matches!(ending.step, Step::Draining(_))) {
            service.go_on_ending(now, instance.replica, effects);
        }
    }

    pub(super) fn livelocked(&mut self, instance: &Instance, usage: u64, limit: u64, effects: &mut Vec<Effect>) {
        let now = self.now;
        let Some(service) = self.services.get_mut(&instance.service) else { return };
        let Some(run) = service.running(instance).and_then(|replica| replica.run.as_ref()) else { return };
        if run.ending.as_ref().is_some_and(|ending| matches!(ending.step, Step::Killed(..))) {
            return;
        }
        let event = Event::Livelocked { instance: instance.clone(), usage_bytes: usage, limit_bytes: limit };
        effects.push(Effect::Emit(event));
        let reason = Reason::Livelocked { usage_bytes: usage, limit_bytes: limit };
        service.end_run(now, instance.replica, reason, How::Kill, effects);
    }

    pub(super) fn exited(&mut self, instance: &Instance, end: End, effects: &mut Vec<Effect>) {
        let now = self.now;
        let is_overdrawn = self.claims() > self.budget;
        let (one_more, no_delay, untold) =
            (self.breaks(Rule::RestartCount), self.breaks(Rule::Delay), self.breaks(Rule::EndTold));
        let is_going_down = self.is_going_down;
        let Some(service) = self.services.get_mut(&instance.service) else { return };
        let (policy, is_wanted) = (service.spec.restart, service.off.is_none() && !is_going_down);
        let is_pool = service.is_pool;
        let Some(replica) = service.running(instance) else { return };
        let Some(run) = replica.run.take() else { return };

        let runtime = now.saturating_sub(run.since);
        let peak = run.history.peak_bytes().max(end.peak_bytes.unwrap_or(0));
        let oom_kills = run.oom_kills.max(end.oom_kills);
        replica.oom_kills += oom_kills;
        replica.last_cause = Some(end.cause);
        replica.waiting = None;
        replica.renew = false;
        if !(untold && run.ending.is_some()) {
            effects.push(Effect::Emit(Event::Ended {
                instance: instance.clone(),
                cause: end.cause,
                code: end.code,
                signal: end.signal,
                runtime_ms: runtime.as_millis() as u64,
                peak_bytes: peak,
                freed_bytes: end.bytes_freed,
                oom_kills,
            }));
        }
        if let Some(owed) = self.owed.as_mut().filter(|owed| owed.instance == *instance) {
            owed.freed = Some((now, end.bytes_freed));
        }
        // What is held now is known by a look alone, and somebody may wait for it.
        self.pace.at_once(now);

        let reason = run.ending.as_ref().map(|ending| &ending.reason);
        let is_own_doing = matches!(reason, None | Some(Reason::Unhealthy { .. } | Reason::Livelocked { .. }));
        let is_evicted = matches!(reason, Some(Reason::Evicted { .. }));
        if !is_evicted {
            replica.evictions = 0;
        }
        let was_good = run.is_good || run.pid.is_some() && run.health.fine_for(now) >= GOOD_RUN;
        let is_success = reason.is_none() && end.cause == Cause::Exited;
        // A session's process is not started again: another one is, when somebody needs it.
        let is_leaving = replica.is_leaving || is_pool;
        let keeps_claim = !is_overdrawn && is_wanted && !is_leaving;
        replica.rest = Rest::Idle;
        if is_own_doing && is_wanted && !is_leaving {
            let counted = match policy {
                RestartPolicy::OnFailure(Some(most)) if one_more => RestartPolicy::OnFailure(Some(most + 1)),
                other => other,
            };
            match replica.backoff.ended(counted, was_good, is_success) {
                Next::Completed => {
                    replica.rest = Rest::Completed;
                    effects.push(Effect::Emit(Event::Completed { instance: instance.clone() }));
                }
                Next::Failed => {
                    replica.rest = Rest::Failed;
                    let attempts = replica.backoff.attempt();
                    effects.push(Effect::Emit(Event::Failed {
                        instance: instance.clone(),
                        attempts,
                        cause: end.cause,
                    }));
                }
                Next::Again { delay, opens } => {
                    let delay = if no_delay { Duration::ZERO } else { delay };
                    replica.rest = Rest::Pause(now + delay);
                    replica.is_restart = true;
                    replica.restarts += 1;
                    let attempt = replica.backoff.attempt();
                    if opens {
                        effects.push(Effect::Emit(Event::CircuitOpened {
                            instance: instance.clone(),
                            attempts: attempt - 1,
                        }));
                    }
                    effects.push(Effect::Emit(Event::Restarting {
                        instance: instance.clone(),
                        attempt,
                        max_attempts: Backoff::most(policy),
                        delay_ms: delay.as_millis() as u64,
                        cause: end.cause,
                    }));
                }
            }
        } else if is_evicted && is_wanted && !is_leaving {
            if policy == RestartPolicy::No {
                replica.rest = Rest::Failed;
                effects.push(Effect::Emit(Event::Failed { instance: instance.clone(), attempts: 0, cause: end.cause }));
            } else {
                let pause = EVICTED_PAUSE.saturating_mul(1 << replica.evictions.min(8)).min(EVICTED_LONGEST);
                replica.evictions = replica.evictions.saturating_add(1);
                replica.rest = Rest::Pause(now + pause);
                replica.restarts += 1;
                // It failed at nothing: no attempt of those that its policy allows is used up.
                effects.push(Effect::Emit(Event::Restarting {
                    instance: instance.clone(),
                    attempt: replica.backoff.attempt(),
                    max_attempts: Backoff::most(policy),
                    delay_ms: pause.as_millis() as u64,
                    cause: end.cause,
                }));
            }
        }
        let is_in_place = match replica.rest {
            Rest::Pause(_) => !is_evicted && !replica.backoff.is_open(policy),
            Rest::Idle => matches!(reason, Some(Reason::Restarted | Reason::Reloaded)),
            _ => false,
        };
        if !(is_in_place && keeps_claim) {
            replica.claim = 0;
        }
        // A short life says little about how large its kind becomes, unless that was what ended it.
        if runtime >= GOOD_RUN || end.cause == Cause::MemoryLimit {
            service.learned.push(peak);
        }
        if is_pool {
            self.session_gone(instance, run.ending.as_ref(), &end, run.memory, effects);
        }
    }

    /// What is due by time alone.
    pub(super) fn pass_time(&mut self, effects: &mut Vec<Effect>) {
        let now = self.now;
        let mut due_looks = now >= self.pace.next_due();
        let budget_stage = self.ladder.stage();
        let no_kill = self.breaks(Rule::Grace);
        for service in self.services.values_mut() {
            pass_time_of(now, service, budget_stage, no_kill, effects);
            due_looks |= service.replicas.values().any(|r| r.run.as_ref().is_some_and(|run| is_look_due(run, now)));
        }
        if due_looks && self.is_loaded && !self.is_finished {
            self.look(effects);
        }
        if self.is_loaded && now >= self.next_census && !self.is_finished {
            self.next_census = now + CENSUS;
            effects.push(Effect::Census);
        }
        self.autoscale(effects);
    }

    /// Asks for a look at all that is due about now; close to the budget's end at everything.
    fn look(&mut self, effects: &mut Vec<Effect>) {
        let now = self.now;
        let all = self.ladder.stage() >= Stage::Degrade;
        let mut instances = Vec::new();
        for service in self.services.values_mut() {
            for (&number, replica) in &mut service.replicas {
                let generation = replica.generation;
                let Some(run) = replica.run.as_mut().filter(|run| run.pid.is_some()) else { continue };
                if all || run.pace.is_about_due(now) {
                    run.pace.asked(now);
                    instances.push(Instance { service: service.name.clone(), replica: number, generation });
                }
            }
        }
        self.pace.asked(now);
        effects.push(Effect::Look { instances });
    }

    fn autoscale(&mut self, effects: &mut Vec<Effect>) {
        let (now, is_short, cores) = (self.now, self.ladder.stage() >= Stage::Degrade, self.cores);
        for service in self.services.values_mut() {
            let Some(scale) = service.spec.scale else { continue };
            if service.off.is_some() || !service.has_started || now < service.autoscale.next_due() {
                continue;
            }
            let (min, max) = service.bounds();
            let metrics = metrics(service, scale.target_memory, scale.target_cpu, cores);
            let from = service.target;
            let wish = service.autoscale.judge(now, &metrics, from, min, max);
            // More replicas need more room, and there is less and less of it.
            let to = if is_short { wish.min(from) } else { wish };
            if to != from {
                service.target = to;
                let name = service.name.clone();
                effects.push(Effect::Emit(Event::Scaled { service: name, from, to, why: told(&metrics) }));
            }
        }
    }

    /// When the next step is due without another input.
    pub(super) fn find_due(&self) -> Option<Duration> {
        if !self.is_loaded || self.is_finished {
            return None;
        }
        let mut due = self.pace.next_due().min(self.next_census);
        let mut sooner = |at: Duration| due = due.min(at);
        for service in self.services.values() {
            if service.spec.scale.is_some() && service.off.is_none() && service.has_started {
                sooner(service.autoscale.next_due());
            }
            if let Some(pool) = service.pool.as_ref().filter(|_| service.off.is_none()) {
                pool.next_due(self.now, &service.replicas).into_iter().for_each(&mut sooner);
            }
            for replica in service.replicas.values() {
                let Some(run) = &replica.run else {
                    match replica.rest {
                        Rest::Pause(until) => sooner(until),
                        Rest::Waiting(since) if matches!(replica.waiting, Some(Waiting::Room { .. })) => {
                            [PATIENCE, HOLD]
                                .map(|wait| since + wait)
                                .into_iter()
                                .filter(|&at| at > self.now)
                                .for_each(&mut sooner);
                        }
                        _ => {}
                    }
                    continue;
                };
                if run.pid.is_none() {
                    continue;
                }
                sooner(run.pace.next_due());
                if let Some(ending) = &run.ending {
                    ending.step.next_due().into_iter().for_each(&mut sooner);
                } else {
                    run.health.next_due().into_iter().for_each(&mut sooner);
                    run.good_at(self.now).into_iter().for_each(&mut sooner);
                    if service.spec.on_pressure.is_some() && run.told >= Stage::Degrade {
                        sooner(run.ask_again);
                    }
                }
            }
        }
        for guest in self.guests.values().filter(|guest| !guest.is_admitted) {
            sooner(guest.since + guest.patience);
            [PATIENCE, HOLD]
                .map(|wait| guest.since + wait)
                .into_iter()
                .filter(|&at| at > self.now)
                .for_each(&mut sooner);
        }
        self.alerts.iter().filter_map(super::Alert::next_due).for_each(&mut sooner);
        self.pending_due().into_iter().for_each(&mut sooner);
        Some(due)
    }
}

fn is_look_due(run: &Run, now: Duration) -> bool {
    run.pid.is_some() && now >= run.pace.next_due()
}

fn pass_time_of(now: Duration, service: &mut Service, budget: Stage, no_kill: bool, effects: &mut Vec<Effect>) {
    let spec = service.spec.clone();
    let numbers: Vec<u32> = service.replicas.keys().copied().collect();
    for number in numbers {
        let Some(replica) = service.replicas.get_mut(&number) else { continue };
        let instance = Instance { service: service.name.clone(), replica: number, generation: replica.generation };
        let Some(run) = &mut replica.run else {
            if let Rest::Pause(until) = replica.rest
                && now >= until
            {
                replica.rest = Rest::Waiting(now);
            }
            continue;
        };
        if run.pid.is_none() {
            continue;
        }
        if let Some(ending) = &mut run.ending {
            if ending.step.next_due().is_some_and(|due| now >= due) {
                // A session that is to end by itself is asked to first: that is no kill.
                if no_kill && matches!(ending.step, Step::Stopping(_)) {
                    ending.step = ending.step.later(Duration::from_secs(3600));
                } else {
                    service.go_on_ending(now, number, effects);
                }
            }
            continue;
        }
        if run.good_at(now).is_some_and(|at| now >= at) {
            run.is_good = true;
            if replica.backoff.is_open(spec.restart) {
                effects.push(Effect::Emit(Event::CircuitClosed { instance: instance.clone() }));
            }
            replica.backoff.proved();
        }
        if let Some(ask) = &spec.on_pressure
            && run.told >= Stage::Degrade
            && now >= run.ask_again
        {
            run.ask_again = now + ASK_AGAIN;
            let stage = run.stage(budget);
            effects.push(Effect::Ask { instance: instance.clone(), ask: ask.clone(), stage });
        }
        let Some(check) = &spec.healthcheck else { continue };
        let is_throttled = run.cpu.is_throttled();
        let turn = run.health.overdue(now, is_throttled, check);
        if let Some(probe) = run.health.due(now, check) {
            let (spec, timeout) = (spec.clone(), check.timeout);
            effects.push(Effect::Probe { instance: instance.clone(), probe, spec, timeout });
        }
        turned(now, service, instance, turn, effects);
    }
}

/// What follows from a probe.
///
/// Compose leaves unhealthy containers alone, and systemd restarts what its watchdog finds hanging. Here, who asks for
/// restarts (any policy but `no`) gets one for an unhealthy replica: it counts as a failure. With `no` it is shown, and it
/// gets no requests.
fn turned(now: Duration, service: &mut Service, instance: Instance, turn: Turn, effects: &mut Vec<Effect>) {
    let number = instance.replica;
    match turn {
        Turn::None => {}
        Turn::Healthy => effects.push(Effect::Emit(Event::Healthy { instance })),
        Turn::NotRun(why) => effects.push(Effect::Emit(Event::ProbeNotRun { instance, why })),
        Turn::Unhealthy(failures, why) => {
            effects.push(Effect::Emit(Event::Unhealthy { instance, failures, why }));
            if service.spec.restart != RestartPolicy::No {
                let how = How::Stop(service.spec.stop_grace_period);
                service.end_run(now, number, Reason::Unhealthy { failures }, how, effects);
            }
        }
    }
}

/// What the autoscaler is told. Replicas that are no use yet count as not measured.
fn metrics(service: &Service, memory: Option<f64>, cpu: Option<f64>, cores: u32) -> Vec<Metric> {
    let cpu_wanted = service.spec.cpu_micros.map_or(f64::from(cores) * 100.0, |micros| micros as f64 / 10_000.0);
    let line = service.active().find_map(|(_, r)| Some(r.run.as_ref()?.line)).unwrap_or(0) as f64;
    let gather = |target_percent: f64, request: f64, usage: fn(&Run) -> Option<f64>| {
        let mut metric = Metric { target_percent, ..Metric::default() };
        for (_, replica) in service.active() {
            match replica.run.as_ref().filter(|run| run.is_available()).and_then(|run| usage(run)) {
                Some(usage) => metric.measured.push((usage, request)),
                None => metric.missing.push(request),
            }
        }
        metric
    };
    let by_memory = memory.map(|target| gather(target, line, |run| run.is_measured.then_some(run.memory as f64)));
    let by_cpu = cpu.map(|target| gather(target, cpu_wanted, |run| run.cpu.percent()));
    by_memory.into_iter().chain(by_cpu).collect()
}

/// The measures in words.
fn told(metrics: &[Metric]) -> String {
    let words: Vec<String> = metrics
        .iter()
        .filter_map(|metric| {
            Some(format!("{:.0} % used, {:.0} % wanted", metric.utilisation()?, metric.target_percent))
        })
        .collect();
    if words.is_empty() { "within its bounds".to_owned() } else { words.join("; ") }
}
