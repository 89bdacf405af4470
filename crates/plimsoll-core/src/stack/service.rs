//! What is kept of one service: how it is wanted, and its replicas.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use plimsoll_model::OnLimit;
use plimsoll_model::pool::PoolSpec;
use plimsoll_model::spec::Limits;
use plimsoll_model::stack::{Priority, ServiceSpec};

use super::admission::Learned;
use super::autoscale::Autoscale;
use super::depend::Reached;
use super::effect::{Backend, Effect, Readiness};
use super::event::{Event, Reason};
use super::ladder::Stage;
use super::name::{Instance, Name};
use super::pool::Pool;
use super::replica::{Ending, How, Replica, Rest, Step};

/// No service has more replicas.
pub(super) const MOST_REPLICAS: u32 = 1000;

/// A kill that brought no end is repeated after this.
pub(super) const KILL_AGAIN: Duration = Duration::from_secs(10);

/// One service.
#[derive(Debug, Clone)]
pub(super) struct Service {
    pub(super) name: Name,
    pub(super) spec: Arc<ServiceSpec>,
    /// Counts the changes that need a restart.
    pub(super) version: u64,
    pub(super) replicas: BTreeMap<u32, Replica>,
    /// Replicas wanted.
    pub(super) target: u32,
    /// One replica more, so that another one may be replaced.
    pub(super) surge: bool,
    /// Why it is not wanted; `None` when it is.
    pub(super) off: Option<Reason>,
    /// A replica has run since it is wanted.
    pub(super) has_started: bool,
    pub(super) learned: Learned,
    pub(super) autoscale: Autoscale,
    /// What was routed last.
    pub(super) routed: Option<(std::net::SocketAddr, Vec<Backend>)>,
    /// Restarts and kills of replicas that are no more, for the first one when there is one: what was counted stays.
    pub(super) remembered: (u64, u64),
    /// Its replicas are sessions,
    pub(super) is_pool: bool,
    /// and this is the rest of what is kept of them.
    pub(super) pool: Option<Box<Pool>>,
}

impl Service {
    pub(super) fn new(name: Name, spec: Arc<ServiceSpec>) -> Self {
        let target = first_target(&spec);
        Self {
            name,
            spec,
            version: 1,
            replicas: BTreeMap::new(),
            target,
            surge: false,
            off: None,
            has_started: false,
            learned: Learned::default(),
            autoscale: Autoscale::default(),
            routed: None,
            remembered: (0, 0),
            is_pool: false,
            pool: None,
        }
    }

    /// A pool, without a session yet.
    pub(super) fn of_sessions(name: Name, spec: Arc<PoolSpec>) -> Self {
        let process = Arc::new(spec.process.clone());
        Self { target: 0, is_pool: true, pool: Some(Box::new(Pool::new(spec))), ..Self::new(name, process) }
    }

    /// It is in no file any more, and goes with its last run.
    pub(super) fn is_removed(&self) -> bool {
        self.off == Some(Reason::Removed)
    }

    pub(super) fn instance(&self, number: u32, replica: &Replica) -> Instance {
        Instance { service: self.name.clone(), replica: number, generation: replica.generation }
    }

    /// Lets those go that are to leave and have no run. What they have counted stays with the service.
    pub(super) fn drop_those_that_left(&mut self) {
        let remembered = &mut self.remembered;
        self.replicas.retain(|_, replica| {
            let stays = !replica.is_leaving || replica.run.is_some();
            if !stays {
                remembered.0 += replica.restarts;
                remembered.1 += replica.oom_kills;
            }
            stays
        });
        if let Some(first) = self.replicas.get_mut(&1) {
            let (restarts, oom_kills) = std::mem::take(&mut self.remembered);
            first.restarts += restarts;
            first.oom_kills += oom_kills;
        }
    }

    /// The name of a run.
    pub(super) fn running_instance(&self, replica: u32, generation: u64) -> Instance {
        Instance { service: self.name.clone(), replica, generation }
    }

    /// Restarts of all its replicas.
    pub(super) fn restarts(&self) -> u64 {
        self.replicas.values().map(|replica| replica.restarts).sum()
    }

    /// The replica that an input speaks of, unless it speaks of an earlier run.
    pub(super) fn running(&mut self, instance: &Instance) -> Option<&mut Replica> {
        let replica = self.replicas.get_mut(&instance.replica)?;
        (replica.generation == instance.generation && replica.run.is_some()).then_some(replica)
    }

    pub(super) fn has_runs(&self) -> bool {
        self.replicas.values().any(|replica| replica.run.is_some())
    }

    pub(super) fn available(&self) -> u32 {
        self.replicas.values().filter(|replica| replica.is_available()).count() as u32
    }

    /// Replicas that are to stay.
    pub(super) fn active(&self) -> impl Iterator<Item = (u32, &Replica)> {
        self.replicas.iter().filter(|(_, replica)| !replica.is_leaving).map(|(&number, replica)| (number, replica))
    }

    /// Whether this replica may be taken away by our own doing.
    pub(super) fn can_spare(&self, replica: &Replica, available: u32) -> bool {
        !replica.is_available() || available > self.spec.min_available
    }

    /// The fewest and the most replicas that it may have.
    pub(super) fn bounds(&self) -> (u32, u32) {
        let least = self.spec.min_available;
        match self.spec.scale {
            Some(scale) => (scale.min.max(least), scale.max.max(scale.min).max(least).min(MOST_REPLICAS)),
            None => (least, MOST_REPLICAS),
        }
    }

    /// Whether a replica runs something else than what is asked for.
    pub(super) fn is_outdated(&self, replica: &Replica) -> bool {
        replica.run.as_ref().is_some_and(|run| run.ending.is_none() && (replica.renew || run.version != self.version))
    }

    /// What it amounts to for those that depend on it.
    pub(super) fn reached(&self) -> Reached {
        let mut active = self.active().peekable();
        let is_empty = active.peek().is_none();
        let (mut completed, mut over) = (!is_empty, true);
        for (_, replica) in active {
            let is_done = replica.run.is_none() && replica.rest == Rest::Completed;
            completed &= is_done;
            over &= is_done || replica.run.is_none() && (replica.rest == Rest::Failed || self.off.is_some());
        }
        Reached {
            started: self
                .replicas
                .values()
                .any(|r| r.run.as_ref().is_some_and(|run| run.pid.is_some() && run.ending.is_none())),
            healthy: self.available() > 0,
            completed,
            over: if is_empty { self.off.is_some() || self.target == 0 } else { over },
        }
    }

    /// Whether its replicas have addresses of their own.
    pub(super) fn wants_port(&self) -> bool {
        wants_port(&self.spec)
    }

    /// What a replica with this line gets.
    pub(super) fn limits(&self, line: u64) -> Limits {
        Limits {
            memory: Some(line),
            memory_swap: Some(self.spec.memswap_limit.unwrap_or(line).max(line)),
            memory_reservation: self.spec.mem_reservation,
            memory_high: None,
            cpu_micros: self.spec.cpu_micros,
            pids: self.spec.pids_limit,
            oom_score_adj: Some(oom_score_adj(&self.spec)),
        }
    }

    /// Begins to end a run, or makes an ending more urgent.
    pub(super) fn end_run(&mut self, now: Duration, number: u32, reason: Reason, how: How, effects: &mut Vec<Effect>) {
        let (is_routed, is_pool) = (self.spec.listen.is_some(), self.is_pool);
        let (grace, signal) = (self.spec.stop_grace_period, self.spec.stop_signal);
        let name = self.name.clone();
        let Some(replica) = self.replicas.get_mut(&number) else { return };
        let instance = Instance { service: name, replica: number, generation: replica.generation };
        let Some(run) = &mut replica.run else { return };
        if let Some(ending) = &mut run.ending {
            // Its first reason stands; what is under way is only hurried.
            match (ending.step, how) {
                (Step::Unborn(_), How::Kill) => ending.step = Step::Unborn(How::Kill),
                (Step::Draining(_) | Step::HungUp(_) | Step::Stopping(_), How::Kill) => {
                    kill(now, &instance, ending, effects);
                }
                (Step::Draining(_), How::Stop(grace)) if is_pool => hang_up(now, &instance, ending, grace, effects),
                (Step::Draining(_), How::Stop(grace)) => stop(now, &instance, ending, grace, signal, effects),
                _ => {}
            }
            return;
        }
        let is_born = run.pid.is_some();
        let mut ending = Ending { reason, step: Step::Unborn(how) };
        if is_born {
            match how {
                How::Kill => kill(now, &instance, &mut ending, effects),
                // Its turn is waited for.
                How::Drain if is_pool && run.has_turn => ending.step = Step::Draining(now + grace),
                How::Drain if is_pool => hang_up(now, &instance, &mut ending, grace, effects),
                How::Stop(grace) if is_pool => hang_up(now, &instance, &mut ending, grace, effects),
                How::Stop(grace) => stop(now, &instance, &mut ending, grace, signal, effects),
                How::Drain if is_routed && run.health.is_fine() => {
                    ending.step = Step::Draining(now + grace);
                    effects.push(Effect::Drain { instance, patience: grace });
                }
                How::Drain => stop(now, &instance, &mut ending, grace, signal, effects),
            }
        }
        run.ending = Some(ending);
    }

    /// Goes on with an ending: its start came to something, its requests are done, or its time is over.
    pub(super) fn go_on_ending(&mut self, now: Duration, number: u32, effects: &mut Vec<Effect>) {
        let (grace, signal, is_pool) = (self.spec.stop_grace_period, self.spec.stop_signal, self.is_pool);
        let name = self.name.clone();
        let Some(replica) = self.replicas.get_mut(&number) else { return };
        let instance = Instance { service: name, replica: number, generation: replica.generation };
        let Some(ending) = replica.run.as_mut().and_then(|run| run.ending.as_mut()) else { return };
        match ending.step {
            Step::Unborn(How::Kill) | Step::Stopping(_) => kill(now, &instance, ending, effects),
            Step::Unborn(How::Stop(grace)) if is_pool => hang_up(now, &instance, ending, grace, effects),
            Step::Unborn(How::Drain) | Step::Draining(_) if is_pool => hang_up(now, &instance, ending, grace, effects),
            Step::HungUp(_) => stop(now, &instance, ending, grace, signal, effects),
            Step::Unborn(How::Stop(grace)) => stop(now, &instance, ending, grace, signal, effects),
            Step::Unborn(How::Drain) | Step::Draining(_) => stop(now, &instance, ending, grace, signal, effects),
            Step::Killed(first, _) => {
                ending.step = Step::Killed(first, now + KILL_AGAIN);
                let since_ms = now.saturating_sub(first).as_millis() as u64;
                effects.push(Effect::Emit(Event::NotDying { instance: instance.clone(), since_ms }));
                effects.push(Effect::Kill { instance, decision: ending.reason.decision() });
            }
        }
    }

    /// Who stands behind the public address now, or will soon.
    pub(super) fn backends(&self, now: Duration) -> Vec<Backend> {
        let backend = |(&number, replica): (&u32, &Replica)| {
            let instance = self.instance(number, replica);
            let running = replica.run.as_ref().filter(|run| run.is_available());
            if let Some((run, port)) = running.and_then(|run| Some((run, run.port?))) {
                let is_spare = run.ladder.stage() == Stage::Shed;
                let readiness = if is_spare { Readiness::Spare } else { Readiness::Ready };
                return Some(Backend { instance, port, readiness });
            }
            let is_expected = self.off.is_none() && replica.is_expected(now);
            is_expected.then_some(Backend { instance, port: 0, readiness: Readiness::Soon })
        };
        self.replicas.iter().filter_map(backend).collect()
    }
}

/// The gentlest way: end of input means finish and exit.
fn hang_up(now: Duration, instance: &Instance, ending: &mut Ending, grace: Duration, effects: &mut Vec<Effect>) {
    if grace.is_zero() {
        return kill(now, instance, ending, effects);
    }
    ending.step = Step::HungUp(now + grace);
    effects.push(Effect::Hangup { instance: instance.clone(), decision: ending.reason.decision() });
}

fn kill(now: Duration, instance: &Instance, ending: &mut Ending, effects: &mut Vec<Effect>) {
    ending.step = Step::Killed(now, now + KILL_AGAIN);
    effects.push(Effect::Emit(Event::Killing { instance: instance.clone(), reason: ending.reason.clone() }));
    effects.push(Effect::Kill { instance: instance.clone(), decision: ending.reason.decision() });
}

fn stop(
    now: Duration,
    instance: &Instance,
    ending: &mut Ending,
    grace: Duration,
    signal: i32,
    effects: &mut Vec<Effect>,
) {
    if grace.is_zero() {
        return kill(now, instance, ending, effects);
    }
    ending.step = Step::Stopping(now + grace);
    let grace_ms = grace.as_millis() as u64;
    let reason = ending.reason.clone();
    let decision = reason.decision();
    effects.push(Effect::Emit(Event::Stopping { instance: instance.clone(), reason, grace_ms }));
    effects.push(Effect::Stop { instance: instance.clone(), signal, grace, decision });
}

/// Replicas to begin with.
pub(super) fn first_target(spec: &ServiceSpec) -> u32 {
    let asked = spec.scale.map_or(spec.replicas, |scale| spec.replicas.clamp(scale.min, scale.max.max(scale.min)));
    asked.max(spec.min_available).min(MOST_REPLICAS)
}

/// Whether a replica of it gets a free port of its own.
pub(super) fn wants_port(spec: &ServiceSpec) -> bool {
    const PORT: &str = "${PORT}";
    let test = spec.healthcheck.iter().flat_map(|health| &health.test);
    spec.listen.is_some()
        || spec.command.iter().chain(spec.environment.values()).chain(test).any(|word| word.contains(PORT))
}

/// Whose processes the kernel takes first when the budget or the machine is out of memory. Badness is what a process
/// holds plus so many thousandths of all memory: with 1000 a best-effort one goes before any critical one. Where the
/// largest member goes at the line the members below the root are raised to 1000, so the root has to stay below.
fn oom_score_adj(spec: &ServiceSpec) -> i16 {
    match (spec.priority, spec.on_limit) {
        (Priority::Critical, _) => 0,
        (Priority::Normal, _) => 300,
        (Priority::BestEffort, OnLimit::Tree) => 1000,
        (Priority::BestEffort, OnLimit::Largest) => 900,
    }
}

/// Whether a run under `old` has to be replaced for `new` to be in force. Everything else takes effect as it is.
pub(super) fn needs_restart(old: &ServiceSpec, new: &ServiceSpec) -> bool {
    old.command != new.command
        || old.environment != new.environment
        || old.working_dir != new.working_dir
        || old.mem_limit != new.mem_limit
        || old.mem_reservation != new.mem_reservation
        || old.memswap_limit != new.memswap_limit
        || old.cpu_micros != new.cpu_micros
        || old.pids_limit != new.pids_limit
        || old.on_limit != new.on_limit
        || wants_port(old) != wants_port(new)
}
