//! Measures, and what they move: the ladders, requests to hold less, the choice of who has to go.

use std::time::Duration;

use plimsoll_model::Sample;
use plimsoll_model::stack::{Gauge, Priority};

use super::Stack;
use super::alerts::Reading;
use super::effect::Effect;
use super::event::{Event, Reason};
use super::input::Measured;
use super::ladder::Stage;
use super::life::ASK_AGAIN;
use super::name::Instance;
use super::replica::How;
use super::sabotage::Rule;
use super::victim::{self, Candidate, LAST_RESORT_PERCENT, Owed};

/// Whoever is evicted has so long to end by itself, unless the budget is met meanwhile.
const EVICTION_GRACE: Duration = Duration::from_secs(2);

/// Waiting for memory for such a part of the time, all tasks at once, is pressure whatever is free.
const MUCH_WAITING_PERCENT: f64 = 40.0;

/// Where a tree's memory should be once it was asked to hold less, per cent of its line: where degrade is left.
const WANTED_PERCENT: u64 = 85;

impl Stack {
    pub(super) fn sampled(&mut self, measured: Measured, effects: &mut Vec<Effect>) {
        let now = self.now;
        for tree in &measured.trees {
            let Some(service) = self.services.get_mut(&tree.instance.service) else { continue };
            let Some(run) = service.running(&tree.instance).and_then(|replica| replica.run.as_mut()) else { continue };
            run.memory = tree.memory_bytes;
            run.processes = tree.processes;
            run.oom_kills = tree.oom_kills;
            run.is_measured = true;
            let at_ms = now.saturating_sub(run.since).as_millis() as u64;
            run.history.push(Sample { at_ms, memory_bytes: tree.memory_bytes, processes: tree.processes });
            run.pace.look(now, tree.memory_bytes, run.line);
            if let Some(is_begun) = run.cpu.look(now, tree) {
                let percent = run.cpu.throttled_percent() as u32;
                effects.push(Effect::Emit(Event::Throttled { instance: tree.instance.clone(), percent, is_begun }));
            }
            if let Some(from) = run.ladder.look(now, tree.memory_bytes, run.line, Stage::Normal) {
                let forecast = run.history.forecast_ms(run.line.saturating_sub(tree.memory_bytes));
                effects.push(Effect::Emit(Event::TreeStage {
                    instance: tree.instance.clone(),
                    from,
                    to: run.ladder.stage(),
                    used_bytes: tree.memory_bytes,
                    limit_bytes: run.line,
                    forecast_ms: forecast,
                }));
            }
        }
        self.host = measured.host;
        let runs = || self.services.values().flat_map(|s| s.replicas.values()).filter_map(|r| r.run.as_ref());
        self.used = measured.budget_used_bytes.unwrap_or_else(|| runs().map(|run| run.memory).sum());
        let processes = runs().map(|run| run.processes).sum();
        self.history.push(Sample { at_ms: now.as_millis() as u64, memory_bytes: self.used, processes });
        self.pace.look(now, self.used, self.budget);
        self.account(effects);
        if let Some(from) = self.ladder.look(now, self.used, self.budget, self.host_stage()) {
            effects.push(Effect::Emit(Event::BudgetStage {
                from,
                to: self.ladder.stage(),
                used_bytes: self.used,
                limit_bytes: self.budget,
                forecast_ms: self.forecast(),
            }));
        }
        if self.has_pools {
            self.lower_claims();
            self.recycle_the_large(effects);
        }
        self.relieve(effects);
        self.evict(effects);
    }

    /// Milliseconds until the budget is met.
    pub(super) fn forecast(&self) -> Option<u64> {
        self.history.forecast_ms(self.budget.saturating_sub(self.used))
    }

    /// The stage that the machine itself demands, however little our services hold.
    fn host_stage(&self) -> Stage {
        let by_memory = self.host.available_bytes.map_or(Stage::Normal, |available| {
            Stage::of(self.total.saturating_sub(available.min(self.total)), self.total)
        });
        let is_waiting = self.host.memory_full_percent.is_some_and(|percent| percent >= MUCH_WAITING_PERCENT);
        by_memory.max(if is_waiting { Stage::Degrade } else { Stage::Normal })
    }

    /// Takes the receipt for a victim.
    fn account(&mut self, effects: &mut Vec<Effect>) {
        let Some(owed) = &self.owed else { return };
        if let Some(freed_bytes) = owed.account(self.now) {
            let after_ms = self.now.saturating_sub(owed.since).as_millis() as u64;
            effects.push(Effect::Emit(Event::Accounted { instance: owed.instance.clone(), freed_bytes, after_ms }));
            self.owed = None;
        }
    }

    /// Tells the workloads, asks them to hold less, and has the kernel take what it can.
    pub(super) fn relieve(&mut self, effects: &mut Vec<Effect>) {
        let (now, budget_stage) = (self.now, self.ladder.stage());
        // For the budget's sake the one that is farthest over what it was promised gives first.
        let excess = self.used.saturating_sub(self.budget / 100 * WANTED_PERCENT);
        let first = (budget_stage >= Stage::Degrade).then(|| self.farthest_over()).flatten();
        for service in self.services.values_mut() {
            let reservation = service.spec.mem_reservation.unwrap_or(0);
            for (&number, replica) in &mut service.replicas {
                let instance =
                    Instance { service: service.name.clone(), replica: number, generation: replica.generation };
                let Some(run) = replica.run.as_mut().filter(|run| run.pid.is_some() && run.ending.is_none()) else {
                    continue;
                };
                let stage = run.stage(budget_stage);
                if stage != run.told {
                    let rises = stage > run.told && stage >= Stage::Degrade;
                    run.told = stage;
                    effects.push(Effect::Stage { instance: instance.clone(), stage, scale: stage.scale() });
                    if let Some(ask) = service.spec.on_pressure.as_ref().filter(|_| rises) {
                        run.ask_again = now + ASK_AGAIN;
                        effects.push(Effect::Ask { instance: instance.clone(), ask: ask.clone(), stage });
                    }
                }
                let wanted = if run.ladder.stage() >= Stage::Degrade {
                    run.line / 100 * WANTED_PERCENT
                } else if first.as_ref() == Some(&instance) {
                    run.memory.saturating_sub(excess).max(reservation)
                } else {
                    continue;
                };
                if let Some(bytes) = run.reclaim.look(now, run.memory, wanted) {
                    effects.push(Effect::Reclaim { instance, bytes });
                }
            }
        }
    }

    /// Whoever holds most beyond its reservation, critical ones aside.
    fn farthest_over(&self) -> Option<Instance> {
        let services = self.services.values().filter(|service| service.spec.priority != Priority::Critical);
        let runs = services.flat_map(|service| {
            let reservation = service.spec.mem_reservation.unwrap_or(0);
            service.replicas.iter().filter_map(move |(&number, replica)| {
                let run = replica.run.as_ref().filter(|run| run.pid.is_some() && run.ending.is_none())?;
                Some((run.memory.saturating_sub(reservation), service.instance(number, replica)))
            })
        });
        runs.max().filter(|(excess, _)| *excess > 0).map(|(_, instance)| instance)
    }

    /// Picks who has to go, if somebody has to. Only after a look, for it needs to know what is held now.
    fn evict(&mut self, effects: &mut Vec<Effect>) {
        if self.ladder.stage() < Stage::Shed || self.is_going_down {
            self.is_told_nobody = false;
            return;
        }
        if self.owed.is_some() && !self.breaks(Rule::Receipt) {
            return;
        }
        // What is on its way out already counts as gone.
        let runs = self.services.values().flat_map(|s| s.replicas.values()).filter_map(|r| r.run.as_ref());
        let leaving: u64 = runs.filter(|run| run.ending.is_some()).map(|run| run.memory).sum();
        let left = self.used.saturating_sub(leaving);
        let host_left = self.host.available_bytes.map(|available| available.saturating_add(leaving));
        let by_host =
            host_left.is_some_and(|free| Stage::of(self.total.saturating_sub(free), self.total) >= Stage::Shed);
        if Stage::of(left, self.budget) < Stage::Shed && !by_host {
            return;
        }
        let is_last_resort = u128::from(self.used) * 100 >= u128::from(self.budget) * u128::from(LAST_RESORT_PERCENT);
        let mut candidates = self.candidates();
        if self.breaks(Rule::CriticalLast) {
            for one in &mut candidates {
                one.priority =
                    if one.priority == Priority::Critical { Priority::BestEffort } else { Priority::Critical };
            }
        }
        let (budget_used_bytes, budget_bytes) = (self.used, self.budget);
        let Some(chosen) = victim::choose(&candidates, is_last_resort).cloned() else {
            if !std::mem::replace(&mut self.is_told_nobody, true) {
                effects.push(Effect::Emit(Event::NobodyToEvict { budget_used_bytes, budget_bytes }));
            }
            return;
        };
        self.is_told_nobody = false;
        let instance = chosen.instance;
        effects.push(Effect::Emit(Event::Evicted {
            instance: instance.clone(),
            used_bytes: chosen.usage,
            reservation_bytes: chosen.reservation,
            budget_used_bytes,
            budget_bytes,
        }));
        self.owed = Some(Owed::new(instance.clone(), self.now));
        let now = self.now;
        if let Some(service) = self.services.get_mut(&instance.service) {
            let grace = service.spec.stop_grace_period.min(EVICTION_GRACE);
            let how = if is_last_resort { How::Kill } else { How::Stop(grace) };
            let reason = Reason::Evicted { budget_used_bytes, budget_bytes };
            service.end_run(now, instance.replica, reason, how, effects);
        }
    }

    fn candidates(&self) -> Vec<Candidate> {
        let is_free = self.breaks(Rule::MinAvailable);
        let of_service = self.services.values().flat_map(|service| {
            let available = service.available();
            let reservation = service.spec.mem_reservation.unwrap_or(0);
            service.replicas.iter().filter_map(move |(&number, replica)| {
                let run = replica.run.as_ref().filter(|run| run.pid.is_some() && run.ending.is_none())?;
                Some(Candidate {
                    instance: service.instance(number, replica),
                    priority: service.spec.priority,
                    usage: run.memory,
                    reservation,
                    is_spare: is_free || service.can_spare(replica, available),
                })
            })
        });
        of_service.collect()
    }

    /// Judges the alerts.
    pub(super) fn look_at_alerts(&mut self, effects: &mut Vec<Effect>) {
        if self.alerts.is_empty() {
            return;
        }
        let mut alerts = std::mem::take(&mut self.alerts);
        for alert in &mut alerts {
            let reading = self.read(&alert.spec().gauge);
            let Some(event) = alert.look(self.now, reading) else { continue };
            effects.push(Effect::Emit(event.clone()));
            if let Some(delivery) = alert.spec().deliver.clone().filter(|_| alert.is_firing()) {
                effects.push(Effect::Deliver { delivery, event });
            }
        }
        self.alerts = alerts;
    }

    fn read(&self, gauge: &Gauge) -> Option<Reading> {
        match gauge {
            Gauge::BudgetMemory => Some(Reading { value: self.used, whole: self.budget }),
            Gauge::ServiceMemory(name) => {
                let service = self.services.get(name.as_str())?;
                let runs = service.replicas.values().filter_map(|replica| replica.run.as_ref());
                let (value, whole) = runs.fold((0, 0), |(held, lines), run| (held + run.memory, lines + run.line));
                Some(Reading { value, whole })
            }
            Gauge::ServiceRestarts(name) => {
                let service = self.services.get(name.as_str())?;
                Some(Reading { value: service.restarts(), whole: 0 })
            }
        }
    }
}
