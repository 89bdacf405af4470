//! What has to hold after every step, in a model of its own: it knows what was told to the core and what the core asked
//! for, and nothing of how it decides. Where it cannot know it is lenient, so what it finds is wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use plimsoll_core::stack::effect::Readiness;
use plimsoll_core::stack::event::Reason;
use plimsoll_core::stack::event::Waiting;
use plimsoll_core::stack::input::{Command, End, Outcome};
use plimsoll_core::stack::snapshot::{ServiceRow, State};
use plimsoll_core::stack::{Answer, Effect, Event, Input, Instance, Name, Request, Snapshot, Stage};
use plimsoll_model::Cause;
use plimsoll_model::stack::{Condition, Priority, RestartPolicy, ServiceSpec, StackSpec};

use crate::machine::{Machine, Sacrifice};
use crate::turns::Turns;

/// A rule that does not hold: which, and how.
pub(crate) type Broken = (&'static str, String);

/// A run is a good one from here on.
const GOOD_RUN: Duration = Duration::from_secs(10);

/// Between the end of a grace and a kill, at most: the core forgives itself to have been away for less than this.
const SLACK: Duration = Duration::from_secs(6);

#[derive(Debug)]
struct Tree {
    claim: u64,
    usage: u64,
    up: Option<Duration>,
    is_healthy: bool,
    /// The core has begun to end it.
    is_leaving: bool,
    /// Why, once that was told.
    reason: Option<Reason>,
    /// Something was asked for meanwhile that may end it in ways that are not told.
    is_excused: bool,
    kill_by: Option<Duration>,
    is_killed: bool,
    probe: u64,
}

impl Tree {
    fn is_available(&self) -> bool {
        self.up.is_some() && self.is_healthy && !self.is_leaving
    }
}

#[derive(Debug)]
struct Service {
    spec: ServiceSpec,
    is_removed: bool,
    is_wanted: bool,
    has_started: bool,
    /// Somebody asked for no replica at all.
    is_scaled_away: bool,
    /// Replicas that have done their work.
    completed: BTreeSet<u32>,
}

/// The restarts of one replica.
#[derive(Debug, Default)]
struct Row {
    restarts: u32,
    doublings: u32,
    not_before: Duration,
    is_over: bool,
}

#[derive(Debug)]
pub(crate) struct Rules {
    cores: u32,
    total: u64,
    budget: u64,
    reserve: u64,
    is_overdrawn: bool,
    /// The same for what is shown: what sessions claim is not known here to the byte.
    is_shown_overdrawn: bool,
    stage: Stage,
    is_down: bool,
    is_finished: bool,
    services: BTreeMap<Name, Service>,
    last_generation: u64,
    trees: BTreeMap<Instance, Tree>,
    rows: BTreeMap<(Name, u32), Row>,
    guests: BTreeMap<Request, (u64, bool)>,
    asked: BTreeSet<Request>,
    /// The victim that is not accounted for, and when it ended.
    owed: Option<(Instance, Option<Duration>)>,
    /// An end that has to be told in this step.
    untold: Option<(Instance, Cause)>,
    turns: Turns,
    spec: StackSpec,
}

impl Rules {
    pub(crate) fn new(total: u64, cores: u32, spec: &StackSpec) -> Self {
        Self {
            cores,
            total,
            budget: spec.budget.bytes(total),
            reserve: spec.budget.reserve,
            is_overdrawn: false,
            is_shown_overdrawn: false,
            stage: Stage::Normal,
            is_down: false,
            is_finished: false,
            services: BTreeMap::new(),
            last_generation: 0,
            trees: BTreeMap::new(),
            rows: BTreeMap::new(),
            guests: BTreeMap::new(),
            asked: BTreeSet::new(),
            owed: None,
            untold: None,
            turns: Turns::default(),
            spec: spec.clone(),
        }
    }

    pub(crate) fn budget(&self) -> u64 {
        self.budget
    }

    pub(crate) fn spec(&self) -> &StackSpec {
        &self.spec
    }

    /// The trees that the core owns.
    pub(crate) fn trees(&self) -> impl Iterator<Item = &Instance> {
        self.trees.keys()
    }

    /// Replicas that were taken away, and come back, are new ones.
    pub(crate) fn keep(&mut self, is_there: impl Fn(&Name, u32) -> bool) {
        self.rows.retain(|(name, number), _| is_there(name, *number));
    }

    pub(crate) fn jumped(&mut self, by: Duration) {
        for tree in self.trees.values_mut() {
            tree.kill_by = tree.kill_by.map(|at| at + by);
        }
    }

    /// Before a step.
    pub(crate) fn input(&mut self, now: Duration, input: &Input) {
        self.turns.input(input);
        match input {
            Input::Load { request, spec } => {
                self.asked.extend(*request);
                if !self.is_down {
                    self.load(spec);
                }
            }
            Input::Capacity(total) => {
                self.total = *total;
                self.set_budget();
            }
            Input::Command { request, command } => {
                self.asked.insert(*request);
                self.command(*request, command);
            }
            Input::Started { instance, .. } => {
                if let Some(tree) = self.trees.get_mut(instance) {
                    tree.up = Some(now);
                    let is_leaving = tree.is_leaving;
                    if let Some(service) = self.services.get_mut(&instance.service).filter(|_| !is_leaving) {
                        service.has_started = service.is_wanted;
                    }
                }
            }
            Input::StartFailed { instance, .. } => self.ended(now, instance, None),
            Input::Exited { instance, end } => self.ended(now, instance, Some(end)),
            Input::Sampled(measured) => {
                for sample in &measured.trees {
                    if let Some(tree) = self.trees.get_mut(&sample.instance) {
                        tree.usage = sample.memory_bytes;
                        if self.turns.is_session(&sample.instance) {
                            // Idle it claims what it holds, and with a turn more again: at least so much.
                            tree.claim = tree.claim.min(tree.usage);
                        }
                    }
                }
                if self.owed.as_ref().is_some_and(|(_, ended)| ended.is_some_and(|ended| now > ended)) {
                    self.owed = None;
                }
            }
            Input::Left { request } => {
                // Who leaves while it waits is not there for an answer.
                if self.guests.remove(request).is_some_and(|(_, is_admitted)| !is_admitted) {
                    self.asked.remove(request);
                }
            }
            // It is left to its end, of which nothing is said yet.
            Input::Lost { instance, .. } | Input::TurnDone { instance, outcome: Outcome::Broken(_), .. } => {
                if let Some(tree) = self.trees.get_mut(instance) {
                    tree.is_leaving = true;
                }
            }
            Input::TurnDone { .. }
            | Input::Remember(_)
            | Input::Probed { .. }
            | Input::Drained { .. }
            | Input::Livelocked { .. }
            | Input::Ask { .. }
            | Input::Withdraw { .. }
            | Input::Ready { .. }
            | Input::Heard { .. }
            | Input::CloseSession { .. }
            | Input::Tick => {}
        }
    }

    fn set_budget(&mut self) {
        let before = self.budget;
        self.budget = self.spec.budget.bytes(self.total);
        self.reserve = self.spec.budget.reserve;
        self.is_overdrawn |= self.budget < before;
        self.is_shown_overdrawn |= self.budget < before;
    }

    fn load(&mut self, spec: &StackSpec) {
        for (name, service) in &mut self.services {
            if !spec.services.contains_key(&**name) {
                service.is_removed = true;
                service.is_wanted = false;
                service.has_started = false;
            }
        }
        for (name, new) in &spec.services {
            let name = Name::from(name.as_str());
            let Some(service) = self.services.get_mut(&name) else {
                let service = Service {
                    spec: new.clone(),
                    is_removed: false,
                    is_wanted: true,
                    has_started: false,
                    is_scaled_away: false,
                    completed: BTreeSet::new(),
                };
                self.services.insert(name, service);
                continue;
            };
            let is_back =
                std::mem::take(&mut service.is_removed) || !service.is_wanted && new.restart == RestartPolicy::Always;
            if is_back {
                service.is_wanted = true;
                service.has_started = false;
            }
            if service.spec != *new || is_back {
                service.spec = new.clone();
                self.rows.retain(|(of, _), _| *of != name);
                self.trees.iter_mut().filter(|(i, _)| i.service == name).for_each(|(_, tree)| tree.is_excused = true);
            }
        }
        self.turns.load(spec);
        self.trees.iter_mut().filter(|(i, _)| self.turns.pool(&i.service).is_some()).for_each(|(_, tree)| {
            tree.is_excused = true;
        });
        self.spec = spec.clone();
        self.set_budget();
    }

    fn command(&mut self, request: Request, command: &Command) {
        match command {
            _ if self.is_down => {}
            Command::Start(name) | Command::Restart(name) => {
                let mut wanted = vec![name.clone()];
                while let Some(next) = wanted.pop() {
                    let Some(service) = self.services.get_mut(&next).filter(|s| !s.is_removed) else { continue };
                    service.has_started &= service.is_wanted;
                    service.is_wanted = true;
                    self.rows.retain(|(of, _), _| *of != next);
                    self.trees.iter_mut().filter(|(i, _)| i.service == next).for_each(|(_, t)| t.is_excused = true);
                    wanted.extend(service.spec.depends_on.keys().map(|on| Name::from(on.as_str())));
                    wanted.retain(|on| *on == *name || self.services.get(on).is_some_and(|on| !on.is_wanted));
                }
            }
            Command::Stop(name) => {
                if let Some(service) = self.services.get_mut(name) {
                    service.is_wanted = false;
                    service.has_started = false;
                }
                self.trees.iter_mut().filter(|(i, _)| i.service == *name).for_each(|(_, tree)| tree.is_excused = true);
            }
            Command::Scale(name, replicas) => {
                if let Some(service) = self.services.get_mut(name) {
                    service.is_scaled_away = *replicas == 0;
                }
                self.trees.iter_mut().filter(|(i, _)| i.service == *name).for_each(|(_, tree)| tree.is_excused = true);
            }
            Command::Down => {
                self.is_down = true;
                self.services.values_mut().for_each(|service| {
                    service.is_wanted = false;
                    service.has_started = false;
                });
                self.trees.values_mut().for_each(|tree| tree.is_excused = true);
            }
            Command::Join { bytes, .. } => {
                self.guests.insert(request, (*bytes, false));
            }
        }
    }

    fn ended(&mut self, now: Duration, instance: &Instance, end: Option<&End>) {
        let Some(tree) = self.trees.remove(instance) else { return };
        let cause = end.map_or(Cause::StartFailed, |end| end.cause);
        self.untold = Some((instance.clone(), cause));
        if let Some((owed, ended)) = &mut self.owed
            && owed == instance
        {
            *ended = Some(now);
        }
        let Some(service) = self.services.get_mut(&instance.service) else { return };
        let row = self.rows.entry((instance.service.clone(), instance.replica)).or_default();
        let policy = service.spec.restart;
        if tree.is_excused || !service.is_wanted {
            *row = Row::default();
            return;
        }
        match tree.reason {
            None if tree.is_leaving => *row = Row::default(),
            Some(Reason::Evicted { .. }) => {
                row.is_over = policy == RestartPolicy::No;
                row.not_before = now + Duration::from_secs(30);
            }
            None | Some(Reason::Unhealthy { .. } | Reason::Livelocked { .. }) => {
                let may_be_good = tree.up.is_some_and(|up| now.saturating_sub(up) >= GOOD_RUN);
                if may_be_good {
                    *row = Row::default();
                }
                let is_success = tree.reason.is_none() && cause == Cause::Exited;
                row.is_over = match policy {
                    RestartPolicy::No => true,
                    RestartPolicy::OnFailure(_) if is_success => true,
                    RestartPolicy::OnFailure(Some(most)) => row.restarts >= most,
                    _ => false,
                };
                row.restarts += 1;
                if !may_be_good {
                    let delay = Duration::from_millis(100).saturating_mul(1 << row.doublings.min(12));
                    row.doublings += 1;
                    let is_open =
                        row.restarts > 10 && matches!(policy, RestartPolicy::Always | RestartPolicy::UnlessStopped);
                    row.not_before =
                        now + if is_open { Duration::from_secs(60) } else { delay.min(Duration::from_secs(60)) };
                }
            }
            Some(_) => *row = Row::default(),
        }
    }

    /// After a step: its effects, in order.
    pub(crate) fn effects(&mut self, now: Duration, effects: &[Effect]) -> Result<(), Broken> {
        if effects.len() > 1000 {
            return Err(("bounded", format!("{} effects of one step", effects.len())));
        }
        for effect in effects {
            self.effect(now, effect)?;
        }
        if let Some((instance, cause)) = self.untold.take() {
            return Err(("every end is told", format!("{instance} ended ({}) and no event says so", cause.as_str())));
        }
        let claims = self.claims();
        if claims <= self.budget {
            self.is_overdrawn = false;
        } else if !self.is_overdrawn {
            return Err(("budget", format!("{claims} bytes are admitted to a budget of {}", self.budget)));
        }
        let late =
            self.trees.iter().find(|(_, tree)| tree.kill_by.is_some_and(|by| now > by + SLACK) && !tree.is_killed);
        if let Some((instance, _)) = late {
            return Err(("grace", format!("{instance} outlives its grace and is not killed")));
        }
        Ok(())
    }

    fn claims(&self) -> u64 {
        self.trees.values().map(|tree| tree.claim).sum::<u64>() + self.guest_bytes()
    }

    fn guest_bytes(&self) -> u64 {
        self.guests.values().filter(|(_, is_admitted)| *is_admitted).map(|(bytes, _)| bytes).sum()
    }

    fn tree(&mut self, instance: &Instance, what: &str) -> Result<&mut Tree, Broken> {
        self.trees.get_mut(instance).ok_or_else(|| ("owners", format!("{what} for {instance}, which is not there")))
    }

    fn effect(&mut self, now: Duration, effect: &Effect) -> Result<(), Broken> {
        self.turns.effect(effect)?;
        match effect {
            Effect::Start { instance, limits, resumes, .. } => {
                self.start(now, instance, limits.memory.unwrap_or(u64::MAX), resumes.as_ref())
            }
            Effect::Stop { instance, grace, .. } => {
                self.leave(instance)?;
                let tree = self.tree(instance, "a stop")?;
                tree.kill_by = Some(now + *grace);
                Ok(())
            }
            Effect::Kill { instance, .. } => {
                self.leave(instance)?;
                self.tree(instance, "a kill")?.is_killed = true;
                Ok(())
            }
            Effect::Drain { instance, patience } => {
                self.leave(instance)?;
                let tree = self.tree(instance, "a drain")?;
                tree.kill_by = Some(now + *patience * 2);
                Ok(())
            }
            Effect::Probe { instance, probe, .. } => {
                let tree = self.tree(instance, "a probe")?;
                if *probe <= tree.probe {
                    return Err(("probes", format!("{instance}: probe {probe} after {}", tree.probe)));
                }
                tree.probe = *probe;
                Ok(())
            }
            Effect::Stage { instance, .. } => self.tree(instance, "a stage").map(|_| ()),
            Effect::Ask { instance, .. } => self.tree(instance, "a request").map(|_| ()),
            Effect::Reclaim { instance, .. } => self.tree(instance, "a reclaim").map(|_| ()),
            Effect::Look { instances } => {
                instances.iter().try_for_each(|instance| self.tree(instance, "a look").map(|_| ()))
            }
            Effect::Route { service, backends, .. } => {
                for backend in backends.iter().filter(|backend| backend.readiness != Readiness::Soon) {
                    if !self.tree(&backend.instance, "a route")?.is_available() {
                        return Err((
                            "routes",
                            format!("{service} leads to {}, which is not available", backend.instance),
                        ));
                    }
                }
                Ok(())
            }
            Effect::Emit(event) => self.event(now, event),
            Effect::Answer { request, answer } => {
                if !self.asked.remove(request) {
                    return Err(("answers", format!("{request:?} is answered twice, or was never asked")));
                }
                match answer {
                    Answer::Admitted => {
                        if let Some((_, is_admitted)) = self.guests.get_mut(request) {
                            *is_admitted = true;
                        }
                        let claims = self.claims();
                        if claims > self.budget {
                            return Err(("budget", format!("a guest makes it {claims} of {}", self.budget)));
                        }
                    }
                    Answer::Refused(_) => {
                        self.guests.remove(request);
                    }
                    _ => {}
                }
                Ok(())
            }
            Effect::Finished if !self.trees.is_empty() => {
                Err(("owners", format!("finished, and {} trees are there", self.trees.len())))
            }
            Effect::Finished => {
                self.is_finished = true;
                Ok(())
            }
            Effect::Hangup { instance, .. } => {
                self.leave(instance)?;
                let patience = self.turns.patience(instance);
                let tree = self.tree(instance, "an end of input")?;
                tree.kill_by = Some(now + patience);
                Ok(())
            }
            Effect::Assign { .. }
            | Effect::Deny { .. }
            | Effect::Interrupt { .. }
            | Effect::SessionGone { .. }
            | Effect::Census
            | Effect::Deliver { .. } => Ok(()),
        }
    }

    fn event(&mut self, now: Duration, event: &Event) -> Result<(), Broken> {
        match event {
            Event::Starting { instance, claim_bytes, .. } => {
                if let Some((other, _)) =
                    self.trees.iter().find(|(i, _)| i.service == instance.service && i.replica == instance.replica)
                {
                    return Err((
                        "owners",
                        format!("{instance} starts while generation {} is there", other.generation),
                    ));
                }
                let tree = Tree {
                    claim: *claim_bytes,
                    usage: 0,
                    up: None,
                    is_healthy: false,
                    is_leaving: false,
                    reason: None,
                    is_excused: false,
                    kill_by: None,
                    is_killed: false,
                    probe: 0,
                };
                self.trees.insert(instance.clone(), tree);
            }
            Event::Healthy { instance } => self.tree(instance, "health")?.is_healthy = true,
            Event::Unhealthy { instance, .. } => self.tree(instance, "no health")?.is_healthy = false,
            Event::Stopping { instance, reason, .. } | Event::Killing { instance, reason } => {
                let tree = self.tree(instance, "an ending")?;
                tree.reason.get_or_insert_with(|| reason.clone());
            }
            Event::Ended { instance, cause, .. } => {
                self.untold
                    .take_if(|(ended, why)| ended == instance && why == cause)
                    .ok_or_else(|| ("every end is told", format!("{instance} is said to have ended, and has not")))?;
            }
            Event::Completed { instance } => {
                if let Some(service) = self.services.get_mut(&instance.service) {
                    service.completed.insert(instance.replica);
                }
            }
            Event::BudgetStage { to, .. } => self.stage = *to,
            Event::Evicted { instance, .. } => return self.evicted(now, instance),
            Event::Scaled { service, from, to, .. } => {
                if to < from {
                    // Replicas that are gone and come back are new ones.
                    self.rows.retain(|(of, _), _| of != service);
                    self.trees.iter_mut().filter(|(i, _)| i.service == *service).for_each(|(_, t)| t.is_excused = true);
                }
                let allowed = self.services.get(service).and_then(|s| Some((s.spec.scale?, s.spec.min_available)));
                if let Some((scale, least)) = allowed
                    && !(scale.min.max(least)..=scale.max.max(least)).contains(to)
                {
                    return Err(("scale", format!("{service} is to have {to} replicas")));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// A start: it is wanted, it may be, and there is room.
    fn start(&mut self, now: Duration, instance: &Instance, line: u64, resumes: Option<&Name>) -> Result<(), Broken> {
        let (budget, is_down) = (self.budget, self.is_down);
        if self.turns.pool(&instance.service).is_some() && !is_down {
            self.turns.start(instance, resumes)?;
            return self.start_anything(instance, self.spec.pools[&*instance.service].process.priority);
        }
        let Some(service) = self.services.get(&instance.service).filter(|service| service.is_wanted && !is_down) else {
            return Err(("wanted", format!("{instance} starts, and nobody wants it")));
        };
        if service.spec.mem_limit.is_some_and(|limit| line != limit)
            || line == 0
            || line > budget.max(6 << 20) && service.spec.mem_limit.is_none()
        {
            return Err(("lines", format!("{instance} starts with a line of {line}")));
        }
        if let Some(row) = self.rows.get(&(instance.service.clone(), instance.replica)) {
            if row.is_over {
                let rule = "restarts";
                return Err((
                    rule,
                    format!("{instance} starts against {:?}, row {}", service.spec.restart, row.restarts),
                ));
            }
            if now < row.not_before {
                return Err(("restarts", format!("{instance} starts {:?} too early", row.not_before - now)));
            }
        }
        if !service.has_started {
            for (on, condition) in &service.spec.depends_on {
                if !self.meets(&Name::from(on.as_str()), *condition) {
                    return Err(("dependencies", format!("{instance} starts before {on} is {condition:?}")));
                }
            }
        }
        let priority = service.spec.priority;
        self.start_anything(instance, priority)?;
        if let Some(service) = self.services.get_mut(&instance.service) {
            service.completed.remove(&instance.replica);
        }
        Ok(())
    }

    /// What holds for every start.
    fn start_anything(&mut self, instance: &Instance, priority: Priority) -> Result<(), Broken> {
        let (budget, stage) = (self.budget, self.stage);
        if instance.generation <= self.last_generation {
            return Err(("owners", format!("{instance} starts with a used generation")));
        }
        if stage >= Stage::Shed && priority != Priority::Critical {
            return Err(("admission", format!("{instance} starts while the budget is shedding")));
        }
        let claims = self.claims();
        if claims > budget {
            return Err(("budget", format!("{instance} starts and makes it {claims} of {budget}")));
        }
        let held: u64 = self.trees.values().map(|tree| tree.claim.max(tree.usage)).sum::<u64>() + self.guest_bytes();
        if held > budget {
            return Err(("room", format!("{instance} starts where {held} of {budget} are held")));
        }
        let starting = self.trees.values().filter(|tree| tree.up.is_none()).count();
        if starting > (2 * self.cores as usize).max(4) {
            return Err(("starts", format!("{starting} starts at a time")));
        }
        self.last_generation = instance.generation;
        Ok(())
    }

    fn meets(&self, on: &Name, condition: Condition) -> bool {
        let Some(service) = self.services.get(on) else { return true };
        let mut trees = self.trees.iter().filter(|(instance, _)| instance.service == *on);
        // Done it has its work once nothing of it runs but what is on its way out.
        let is_done = !service.completed.is_empty()
            && !self
                .trees
                .iter()
                .any(|(instance, tree)| instance.service == *on && !tree.is_leaving && !tree.is_excused);
        is_done
            || match condition {
                Condition::Started => trees.any(|(_, tree)| tree.up.is_some() && !tree.is_leaving),
                Condition::Healthy => trees.any(|(_, tree)| tree.is_available()),
                Condition::CompletedSuccessfully => false,
            }
    }

    /// The core begins to end a tree.
    fn leave(&mut self, instance: &Instance) -> Result<(), Broken> {
        let tree = self.tree(instance, "an ending")?;
        if std::mem::replace(&mut tree.is_leaving, true) {
            return Ok(());
        }
        let was_available = tree.up.is_some() && tree.is_healthy;
        let reason = tree.reason.clone();
        let Some(service) = self.services.get(&instance.service) else { return Ok(()) };
        let others = self.trees.iter().filter(|(i, t)| i.service == instance.service && t.is_available()).count();
        let is_own_doing = !matches!(reason, Some(Reason::Livelocked { .. } | Reason::Unhealthy { .. }));
        if was_available && service.is_wanted && is_own_doing && others < service.spec.min_available as usize {
            let why = reason.map_or_else(String::new, |reason| format!(" ({reason})"));
            return Err(("min_available", format!("{instance} goes{why} and {others} are left")));
        }
        if self.is_down || service.is_removed {
            let dependent = self.trees.keys().find(|other| {
                self.services.get(&other.service).is_some_and(|one| {
                    !one.is_wanted
                        && (self.is_down || one.is_removed)
                        && one.spec.depends_on.contains_key(&*instance.service)
                })
            });
            let is_by_order = matches!(reason, None | Some(Reason::Down | Reason::Removed));
            if let Some(dependent) = dependent.filter(|_| is_by_order) {
                return Err(("stop order", format!("{instance} is stopped before {dependent}")));
            }
        }
        Ok(())
    }

    fn priority(&self, of: &Name) -> Option<Priority> {
        let service = self.services.get(of).map(|service| service.spec.priority);
        service.or_else(|| self.turns.pool(of).map(|pool| pool.process.priority))
    }

    fn evicted(&mut self, now: Duration, instance: &Instance) -> Result<(), Broken> {
        if let Some((first, _)) = self.owed.replace((instance.clone(), None)) {
            return Err((
                "one victim at a time",
                format!("{instance} goes before the bytes of {first} are accounted for"),
            ));
        }
        let priority = |of: &Instance| self.priority(&of.service);
        match priority(instance) {
            Some(Priority::BestEffort) => Ok(()),
            Some(Priority::Critical) | None => Err(("critical last", format!("{instance} is critical and is evicted"))),
            Some(Priority::Normal) => {
                let spare = self.trees.iter().find(|(other, tree)| {
                    let available =
                        self.trees.iter().filter(|(i, t)| i.service == other.service && t.is_available()).count();
                    let least = self.services.get(&other.service).map_or(0, |s| s.spec.min_available as usize);
                    priority(other) == Some(Priority::BestEffort)
                        && tree.up.is_some_and(|up| now > up)
                        && tree.usage > 0
                        && !tree.is_leaving
                        && (!tree.is_available() || available > least)
                });
                spare.map_or(Ok(()), |(other, _)| {
                    Err(("critical last", format!("{instance} is evicted before {other}")))
                })
            }
        }
    }

    /// Whom the kernel chose for others: with the scores that the core gave, no critical one before a best-effort one.
    /// But one that holds more than the whole budget, as when that became smaller.
    pub(crate) fn sacrificed(&self, Sacrifice { victim, bytes, others }: &Sacrifice) -> Result<(), Broken> {
        let priority = |of: &Instance| self.priority(&of.service);
        // A changed priority is in force from the next start on.
        let is_sure = |of: &Instance| self.trees.get(of).is_some_and(|tree| !tree.is_excused);
        if priority(victim) != Some(Priority::Critical) || !is_sure(victim) || *bytes >= self.budget {
            return Ok(());
        }
        match others.iter().find(|one| priority(one) == Some(Priority::BestEffort) && is_sure(one)) {
            Some(one) => Err(("critical last", format!("the kernel takes {victim} and leaves {one}"))),
            None => Ok(()),
        }
    }

    /// What is shown against what is.
    pub(crate) fn snapshot(&mut self, snapshot: &Snapshot, machine: &Machine) -> Result<(), Broken> {
        if snapshot.budget.admitted_bytes <= snapshot.budget.limit_bytes {
            self.is_shown_overdrawn = false;
        } else if !self.is_shown_overdrawn {
            return Err(("budget", format!("{:?}", snapshot.budget)));
        }
        if snapshot.budget.limit_bytes != self.budget {
            return Err(("budget", format!("it is {}, and said to be {}", self.budget, snapshot.budget.limit_bytes)));
        }
        let sessions = snapshot.sessions.iter().filter_map(|row| row.pid);
        let shown: Vec<i32> = snapshot.services.iter().filter_map(|row| row.pid).chain(sessions).collect();
        let mut there: Vec<i32> = self
            .trees
            .iter()
            .filter(|(_, tree)| tree.up.is_some())
            .filter_map(|(instance, _)| Some(machine.tree(instance)?.pid))
            .collect();
        let mut sorted = shown.clone();
        sorted.sort_unstable();
        there.sort_unstable();
        if sorted != there {
            return Err(("status", format!("pids {there:?} are there, and {shown:?} are shown")));
        }
        Ok(())
    }

    /// Somebody is on his way from a start to being healthy.
    pub(crate) fn is_beginning(&self) -> bool {
        self.trees.values().any(|tree| !tree.is_leaving && !tree.is_available())
    }

    /// After a calm: whoever can run runs; the evicted after a long one.
    pub(crate) fn calm(&self, snapshot: &Snapshot, is_long: bool) -> Result<(), Broken> {
        self.turns.calm()?;
        let sessions = snapshot.sessions.iter().map(|row| row.admitted_bytes.max(row.memory_bytes));
        let services = snapshot.services.iter().map(|row| row.admitted_bytes.max(row.memory_bytes));
        let held: u64 = services.chain(sessions).sum();
        let free = self.budget.saturating_sub(held + self.guest_bytes());
        for (name, service) in &self.services {
            let rows = snapshot.services.iter().filter(|row| row.name == *name);
            if service.is_wanted && rows.clone().next().is_none() && !service.is_scaled_away {
                return Err(("liveness", format!("{name} is wanted and has no replica")));
            }
            let is_in_time = |row: &&ServiceRow| {
                is_long || !(row.state == State::BackingOff && row.last_cause == Some(Cause::Evicted))
            };
            for row in rows.filter(is_in_time) {
                self.calm_row(service, row, free, snapshot)?;
            }
        }
        Ok(())
    }

    fn calm_row(&self, service: &Service, row: &ServiceRow, free: u64, snapshot: &Snapshot) -> Result<(), Broken> {
        let lives = |why: &str| Err(("liveness", format!("{}/{} {why}: {row:?}", row.name, row.replica)));
        match row.state {
            State::Running if service.is_wanted => Ok(()),
            State::Failed | State::Stopped if row.pid.is_none() => {
                let goes_on = matches!(service.spec.restart, RestartPolicy::Always | RestartPolicy::UnlessStopped);
                if service.is_wanted && goes_on { lives("is given up") } else { Ok(()) }
            }
            State::Starting => match &row.waiting {
                Some(Waiting::Room { needed_bytes, .. }) => {
                    let unknown = service.spec.mem_limit.map_or(64 << 20, |limit| limit / 2);
                    let floor = service.spec.mem_reservation.unwrap_or(unknown).min(*needed_bytes);
                    if floor <= free { lives("waits for room that is there") } else { Ok(()) }
                }
                // Of several replicas some may have done their work, and others not.
                Some(Waiting::Dependency { is_over: true, .. }) => Ok(()),
                Some(Waiting::Dependency { dependency, .. }) => {
                    let condition = service.spec.depends_on.get(&**dependency).copied().unwrap_or_default();
                    // What is asked to do its work once more has not done it yet.
                    let waits =
                        snapshot.services.iter().any(|row| row.name == *dependency && row.state == State::Starting);
                    if !waits && self.meets(dependency, condition) { lives("waits for nothing") } else { Ok(()) }
                }
                _ => lives("does not start"),
            },
            _ => lives("is not at rest"),
        }
    }

    /// After `down`: nothing is left, and nobody waits for an answer.
    pub(crate) fn gone(&self, machine: &Machine) -> Result<(), Broken> {
        if !self.is_finished {
            return Err(("liveness", format!("`down` does not end: {:?}", self.trees)));
        }
        if let Some(left) = machine.instances().next() {
            return Err(("owners", format!("{left} is left after `down`")));
        }
        if let Some(request) = self.asked.iter().next() {
            return Err(("answers", format!("{request:?} was never answered")));
        }
        Ok(())
    }
}
