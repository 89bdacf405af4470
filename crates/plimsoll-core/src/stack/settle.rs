//! What is wanted against what is: the difference becomes effects.

use std::collections::BTreeSet;
use std::time::Duration;

use plimsoll_model::stack::Priority;

use super::Stack;
use super::admission::{self, Room, Waiter};
use super::effect::{Answer, Effect};
use super::event::{Event, Reason, Waiting};
use super::ladder::Stage;
use super::name::{Name, Request};
use super::replica::{How, Replica, Rest, Run};
use super::sabotage::Rule;
use super::service::Service;

/// Who waits to start: those of us in order of name and replica, guests last.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Replica(Name, u32),
    Guest(Request),
}

impl Stack {
    pub(super) fn settle(&mut self, effects: &mut Vec<Effect>) {
        // Before a pool that is not wanted goes, whoever waits for it is told.
        self.settle_pools(effects);
        self.stop_unwanted(effects);
        let (now, ignores_min) = (self.now, self.breaks(Rule::MinAvailable));
        let order = std::mem::take(&mut self.order);
        for name in &order {
            let Some(service) = self.services.get_mut(name) else { continue };
            if service.off.is_some() || service.is_pool {
                continue;
            }
            keep_count(now, service, effects);
            if roll(now, service, ignores_min, effects) {
                keep_count(now, service, effects);
            }
        }
        self.order = order;
        self.admit(effects);
        if self.rather_told() {
            // Before another conversation has to go for one that could have a process at once.
            self.settle_pools(effects);
        }
        self.make_room(effects);
        self.route(effects);
        if self.is_going_down && !self.is_finished && self.services.values().all(|service| !service.has_runs()) {
            self.is_finished = true;
            effects.push(Effect::Emit(Event::IsDown));
            effects.push(Effect::Finished);
        }
    }

    /// Stops what is not wanted, what is depended on after those that depend on it.
    fn stop_unwanted(&mut self, effects: &mut Vec<Effect>) {
        let (now, unordered) = (self.now, self.breaks(Rule::ReverseOrder));
        if self.services.values().all(|service| service.off.is_none()) {
            return;
        }
        // Whoever is stopped alone, on request, does not wait for those that go on.
        let leaving = self.services.values().filter(|service| service.off.is_some() && service.has_runs());
        let needed: BTreeSet<String> = leaving.flat_map(|service| service.spec.depends_on.keys().cloned()).collect();
        let mut gone = false;
        for at in (0..self.order.len()).rev() {
            let Some(service) = self.services.get_mut(&self.order[at]) else { continue };
            let Some(reason) = service.off.clone() else { continue };
            let has_to_wait = !unordered && needed.contains(&*service.name);
            service.has_started = false;
            if !service.has_runs() {
                service.replicas.values_mut().for_each(Replica::lay_down);
                service.drop_those_that_left();
                gone |= service.is_removed();
                continue;
            }
            let numbers: Vec<u32> = service.replicas.keys().copied().collect();
            for number in numbers {
                let Some(replica) = service.replicas.get_mut(&number) else { continue };
                if replica.run.is_none() {
                    replica.lay_down();
                } else if !has_to_wait {
                    service.end_run(now, number, reason.clone(), How::Drain, effects);
                }
            }
        }
        if gone {
            self.forget_removed(effects);
        }
    }

    fn forget_removed(&mut self, effects: &mut Vec<Effect>) {
        self.services.retain(|name, service| {
            let is_gone = service.is_removed() && !service.has_runs();
            if is_gone && service.routed.is_some() {
                effects.push(Effect::Route { service: name.clone(), listen: None, backends: Vec::new() });
            }
            !is_gone
        });
        self.order.retain(|name| self.services.contains_key(name));
    }

    /// Starts whom the budget has room for, in order of turn.
    fn admit(&mut self, effects: &mut Vec<Effect>) {
        let mut waiters = self.waiters(effects);
        if waiters.is_empty() {
            return;
        }
        admission::by_turn(&mut waiters);
        let mut room = self.room();
        let runs = self.services.values().flat_map(|s| s.replicas.values()).filter_map(|r| r.run.as_ref());
        let most = (2 * self.cores as usize).max(4);
        let mut slots = most.saturating_sub(runs.filter(|run| run.is_starting(self.now)).count());
        let mut held_back: Option<Priority> = None;
        for waiter in waiters {
            if held_back.is_some_and(|priority| waiter.priority > priority) {
                self.keep_waiting(&waiter.who, room_wanted(&waiter, &room), effects);
                continue;
            }
            if self.breaks(Rule::Wakeup) && waiter.since < self.now {
                continue;
            }
            if slots == 0 && matches!(waiter.who, Who::Replica(..)) {
                self.keep_waiting(&waiter.who, Waiting::Turn, effects);
                continue;
            }
            let admitted = if self.breaks(Rule::Budget) { Some(waiter.price) } else { room.admit(self.now, &waiter) };
            let Some(claim) = admitted else {
                if admission::holds_back(self.now, waiter.since) && !waiter.is_ahead {
                    held_back = Some(waiter.priority);
                }
                self.keep_waiting(&waiter.who, room_wanted(&waiter, &room), effects);
                continue;
            };
            room.take(claim, waiter.held);
            match waiter.who {
                Who::Replica(name, number) => {
                    slots -= 1;
                    self.start_replica(&name, number, claim, effects);
                }
                Who::Guest(request) => {
                    if let Some(guest) = self.guests.get_mut(&request) {
                        guest.is_admitted = true;
                        guest.bytes = claim;
                        effects.push(Effect::Answer { request, answer: Answer::Admitted });
                    }
                }
            }
        }
    }

    /// Whoever could start if there were room. The others are told what they wait for.
    fn waiters(&mut self, effects: &mut Vec<Effect>) -> Vec<Waiter<Who>> {
        let mut waiters = Vec::new();
        let mut blocked = Vec::new();
        let is_short = self.ladder.stage() >= Stage::Degrade;
        for service in self.services.values().filter(|service| service.off.is_none()) {
            let mut waiting =
                service.active().filter(|(_, r)| r.run.is_none() && matches!(r.rest, Rest::Waiting(_))).peekable();
            if waiting.peek().is_none() {
                continue;
            }
            let dependency = self.missing_dependency(service);
            let floor = self.shares.floor(&service.spec);
            let price = self.shares.price(&service.spec, self.learned(service));
            for (number, replica) in waiting {
                let who = Who::Replica(service.name.clone(), number);
                let Rest::Waiting(since) = replica.rest else { continue };
                if let Some(waiting) = &dependency {
                    blocked.push((who, waiting.clone()));
                } else if replica.evictions > 0 && is_short {
                    // It went because there was too little; it comes back when there is enough.
                    blocked.push((who, Waiting::Room { needed_bytes: price, free_bytes: 0 }));
                } else {
                    let is_ahead = service.pool.as_ref().is_some_and(|pool| pool.is_ahead(number));
                    let priority = if is_ahead { Priority::BestEffort } else { service.spec.priority };
                    waiters.push(Waiter { who, priority, since, price, floor, held: replica.claim, is_ahead });
                }
            }
        }
        for (&request, guest) in self.guests.iter().filter(|(_, guest)| !guest.is_admitted) {
            let who = Who::Guest(request);
            let (since, bytes) = (guest.since, guest.bytes);
            let priority = Priority::Normal;
            waiters.push(Waiter { who, priority, since, price: bytes, floor: bytes, held: 0, is_ahead: false });
        }
        for (who, waiting) in blocked {
            self.keep_waiting(&who, waiting, effects);
        }
        waiters
    }

    /// The learned peak of a service's kind, runs that go on included.
    pub(super) fn learned(&self, service: &Service) -> Option<u64> {
        /// A run so long counts for its kind, and a session that has had a turn.
        const SETTLED: Duration = Duration::from_secs(60);
        let runs = service.replicas.values().filter_map(|replica| replica.run.as_ref());
        let settled = runs.filter(|run| run.had_turn || self.now.saturating_sub(run.since) >= SETTLED);
        service.learned.price(settled.map(|run| run.history.peak_bytes()).max())
    }

    /// What keeps a service from its first start.
    fn missing_dependency(&self, service: &Service) -> Option<Waiting> {
        if service.has_started || self.breaks(Rule::Dependencies) {
            return None;
        }
        service.spec.depends_on.iter().find_map(|(on, &condition)| {
            let dependency = self.services.get(on.as_str())?;
            let reached = dependency.reached();
            let is_met = reached.meets(condition);
            (!is_met).then(|| Waiting::Dependency { dependency: dependency.name.clone(), is_over: reached.over })
        })
    }

    pub(super) fn room(&self) -> Room {
        let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let replicas = || self.services.values().flat_map(|service| service.replicas.values());
        let claims = self.claims();
        let weights: u64 = replicas().map(Replica::weight).sum();
        let guests: u64 = self.guests.values().filter(|guest| guest.is_admitted).map(|guest| guest.bytes).sum();
        let young = replicas().filter(|r| r.run.as_ref().is_some_and(|run| run.is_young(self.now)));
        let coming: u64 = young.map(|r| r.weight() - r.run.as_ref().map_or(0, |run| run.memory)).sum();
        let host = self
            .host
            .available_bytes
            .map(|available| available.saturating_sub(self.budget_spec.reserve).saturating_sub(coming));
        let held = (weights + guests).max(self.used.saturating_add(coming));
        Room {
            unclaimed: signed(self.budget) - signed(claims),
            free: signed(self.budget) - signed(held),
            host,
            is_closed: self.ladder.stage() >= Stage::Shed,
        }
    }

    /// Notes what a replica waits for, and tells it when it is something else than before.
    fn keep_waiting(&mut self, who: &Who, waiting: Waiting, effects: &mut Vec<Effect>) {
        let Who::Replica(name, number) = who else { return };
        let Some(service) = self.services.get_mut(name) else { return };
        let Some(replica) = service.replicas.get_mut(number) else { return };
        let is_same = match (&replica.waiting, &waiting) {
            (Some(Waiting::Room { .. }), Waiting::Room { .. }) => true,
            (before, now) => before.as_ref() == Some(now),
        };
        replica.waiting = Some(waiting.clone());
        if !is_same && waiting != Waiting::Turn {
            let generation = replica.generation;
            let instance = service.running_instance(*number, generation);
            effects.push(Effect::Emit(Event::Queued { instance, waiting }));
        }
    }

    fn start_replica(&mut self, name: &Name, number: u32, claim: u64, effects: &mut Vec<Effect>) {
        let (now, budget_stage, shares) = (self.now, self.ladder.stage(), self.shares);
        let Some(service) = self.services.get_mut(name) else { return };
        let line = shares.line(&service.spec);
        let limits = service.limits(line);
        self.generation += 1;
        let (generation, version, spec) = (self.generation, service.version, service.spec.clone());
        let wants_port = service.wants_port();
        let Some(replica) = service.replicas.get_mut(&number) else { return };
        replica.generation = generation;
        replica.claim = claim;
        replica.waiting = None;
        replica.renew = false;
        replica.rest = Rest::Idle;
        let mut run = Run::new(now, version, line, &spec);
        run.told = budget_stage;
        replica.run = Some(Box::new(run));
        let attempt = if std::mem::take(&mut replica.is_restart) { replica.backoff.attempt() } else { 0 };
        let max_attempts = super::backoff::Backoff::most(spec.restart);
        let instance = service.running_instance(number, generation);
        effects.push(Effect::Emit(Event::Starting {
            instance: instance.clone(),
            attempt,
            max_attempts,
            claim_bytes: claim,
        }));
        let resumes = service.pool.as_ref().and_then(|pool| pool.resumed(number));
        effects.push(Effect::Start { instance: instance.clone(), spec, limits, wants_port, attempt, resumes });
        if budget_stage > Stage::Normal {
            effects.push(Effect::Stage { instance, stage: budget_stage, scale: budget_stage.scale() });
        }
    }

    /// Keeps the public addresses pointing at who is available.
    fn route(&mut self, effects: &mut Vec<Effect>) {
        for service in self.services.values_mut() {
            if service.spec.listen.is_none() && service.routed.is_none() {
                continue;
            }
            let is_open = service.off.is_none() || service.has_runs();
            let wanted = service.spec.listen.filter(|_| is_open).map(|listen| (listen, service.backends(self.now)));
            if wanted != service.routed {
                let (listen, backends) =
                    wanted.as_ref().map_or((None, Vec::new()), |(listen, backends)| (Some(*listen), backends.clone()));
                service.routed = wanted;
                effects.push(Effect::Route { service: service.name.clone(), listen, backends });
            }
        }
    }
}

/// What a waiter is told.
fn room_wanted<K>(waiter: &Waiter<K>, room: &Room) -> Waiting {
    let needed_bytes = if waiter.held > 0 { waiter.held.max(waiter.floor) } else { waiter.price };
    Waiting::Room { needed_bytes, free_bytes: room.open_to(waiter).unwrap_or(0) }
}

/// Adds and takes away replicas until as many are left as wanted.
fn keep_count(now: Duration, service: &mut Service, effects: &mut Vec<Effect>) {
    let wanted = service.target as usize + usize::from(service.surge);
    while service.active().count() < wanted {
        let free = (1..).find(|number| !service.replicas.contains_key(number));
        let Some(number) = free else { break };
        let mut replica = Replica::new();
        if number == 1 {
            (replica.restarts, replica.oom_kills) = std::mem::take(&mut service.remembered);
        }
        service.replicas.insert(number, replica);
    }
    while service.active().count() > wanted {
        // Those that are no use go first, then the last ones. So nobody who is available goes while more than the others
        // of those wanted would be missed: there are as many as wanted left, all of them available.
        let surplus = service.active().max_by_key(|(number, replica)| {
            (replica.run.is_none(), !replica.is_available(), service.is_outdated(replica), *number)
        });
        let Some((number, _)) = surplus else { break };
        if let Some(replica) = service.replicas.get_mut(&number) {
            replica.is_leaving = true;
        }
        service.end_run(now, number, Reason::ScaledIn, How::Drain, effects);
    }
    service.drop_those_that_left();
    for replica in service.replicas.values_mut().filter(|replica| replica.run.is_none()) {
        if replica.rest == Rest::Idle {
            replica.rest = Rest::Waiting(now);
        }
    }
}

/// Replaces replicas that run something else than what is asked for: one after the other, each once all others are
/// available, and none that has to be available. Where that leaves nobody to begin with, one replica more is started
/// first. Answers whether that has changed.
fn roll(now: Duration, service: &mut Service, ignores_min: bool, effects: &mut Vec<Effect>) -> bool {
    let reason = |replica: &Replica| if replica.renew { Reason::Restarted } else { Reason::Reloaded };
    let outdated: Vec<(u32, bool, Reason)> = service
        .active()
        .filter(|(_, replica)| service.is_outdated(replica))
        .map(|(number, replica)| (number, replica.is_available(), reason(replica)))
        .collect();
    let is_up = |replica: &Replica| {
        replica.is_available() || replica.run.is_none() && matches!(replica.rest, Rest::Completed | Rest::Failed)
    };
    let all_up = service.active().all(|(_, replica)| is_up(replica));
    if outdated.is_empty() {
        // As many as wanted are up: the extra one may have become one of them, and whoever is no use goes instead.
        let enough = service.active().filter(|(_, replica)| is_up(replica)).count() >= service.target as usize;
        return enough && std::mem::take(&mut service.surge);
    }
    // Who is no use yet is no loss.
    let useless: Vec<_> = outdated.iter().filter(|(_, is_available, _)| !is_available).cloned().collect();
    for (number, _, reason) in &useless {
        service.end_run(now, *number, reason.clone(), How::Drain, effects);
    }
    if !useless.is_empty() {
        return false;
    }
    if !all_up && !ignores_min {
        return false;
    }
    if service.available() <= service.spec.min_available && !ignores_min {
        return !std::mem::replace(&mut service.surge, true);
    }
    if let Some((number, _, reason)) = outdated.first() {
        service.end_run(now, *number, reason.clone(), How::Drain, effects);
    }
    false
}
