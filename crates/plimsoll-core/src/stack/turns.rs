//! Turns: who asks, who gets which session, what has taken too long, and when a session is replaced or closed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use plimsoll_model::Cause;
use plimsoll_model::pool::{PoolSpec, Protocol, Rehydrate, Reuse};

use super::Stack;
use super::admission::{PATIENCE, Room, Waiter};
use super::effect::{Denial, Effect};
use super::event::{Event, Reason, Recycle, Waiting, Watch};
use super::input::{End, Outcome};
use super::ladder::Stage;
use super::name::{Instance, Name, Turn};
use super::pool::{Asked, Owner, PROVEN_AFTER, Phase, Pool, Running, Session};
use super::replica::{Ending, How, Replica, Rest, Run};
use super::sabotage::Rule;
use super::service::Service;

/// An agent that was interrupted has so long to say so.
const INTERRUPT_GRACE: Duration = Duration::from_secs(5);

/// What a pool's turns cost, worked out before its sessions are touched.
struct Prices {
    price: u64,
    floor: u64,
    room: Room,
}

impl Stack {
    /// A turn wants a session.
    pub(super) fn ask(&mut self, mut asked: Asked, name: &Name, effects: &mut Vec<Effect>) {
        let turn = asked.turn;
        let (now, stage, is_going_down) = (self.now, self.ladder.stage(), self.is_going_down);
        let Some(service) = self.services.get_mut(name).filter(|service| service.pool.is_some()) else {
            return effects.push(Effect::Deny { turn, denial: Denial::UnknownPool });
        };
        let is_off = is_going_down || service.off.is_some();
        let Some(pool) = &mut service.pool else { return };
        asked.resumes &= can_resume(&pool.spec) && asked.key.is_some() && !asked.is_anew;
        let has_session = asked.key.as_ref().is_some_and(|key| pool.of_key(key).is_some());
        let denial = if is_off {
            Some(Denial::Stopping)
        } else if has_session {
            None
        } else if pool.circuit.is_open() && !pool.sessions.values().any(Session::is_warm) {
            Some(Denial::Circuit(pool.circuit.until.saturating_sub(now)))
        } else if stage >= Stage::Shed {
            Some(Denial::Short(pool.retry_after()))
        } else {
            None
        };
        // Who had a session and asks again, since that was of no use, has waited before.
        let is_full = pool.queue.len() >= pool.spec.queue.max as usize && pool.of_turn(turn).is_none();
        match denial.or_else(|| is_full.then(|| Denial::Full(pool.retry_after()))) {
            Some(denial) => deny(pool, turn, denial, effects),
            None => {
                let at = pool.queue.iter().position(|other| other.turn > turn).unwrap_or(pool.queue.len());
                pool.queue.insert(at, asked);
            }
        }
    }

    /// Whoever asked for a turn has gone.
    pub(super) fn withdraw(&mut self, turn: Turn, effects: &mut Vec<Effect>) {
        let now = self.now;
        for service in self.services.values_mut() {
            let Some(pool) = &mut service.pool else { continue };
            let waited = pool.queue.len();
            pool.queue.retain(|asked| asked.turn != turn);
            if pool.queue.len() < waited {
                return;
            }
            if let Some(number) = pool.of_turn(turn) {
                let Some(mut pool) = service.pool.take() else { return };
                interrupt(now, service, &mut pool, number, Recycle::Cancelled, effects);
                service.pool = Some(pool);
                return;
            }
        }
    }

    /// An agent can take its first turn.
    pub(super) fn ready(&mut self, instance: &Instance, effects: &mut Vec<Effect>) {
        let now = self.now;
        let Some((_, pool, number)) = self.session(instance) else { return };
        let Some(session) = pool.sessions.get_mut(&number) else { return };
        if !matches!(session.phase, Phase::Starting(_)) {
            return;
        }
        session.phase = Phase::Idle(now);
        // The others have no word for it: they are taken to be ready as soon as they run.
        if pool.spec.protocol == Protocol::Claude {
            prove(pool, instance, effects);
        }
    }

    /// Something came from an agent within its turn.
    pub(super) fn heard(&mut self, instance: &Instance, effects: &mut Vec<Effect>) {
        let now = self.now;
        let Some((_, pool, number)) = self.session(instance) else { return };
        speak(pool, instance, effects);
        if let Some(Phase::Busy(running)) = pool.sessions.get_mut(&number).map(|session| &mut session.phase) {
            running.heard = Some(now);
        }
    }

    /// A turn is over.
    pub(super) fn turn_done(
        &mut self,
        turn: Turn,
        instance: &Instance,
        outcome: Outcome,
        context_percent: Option<f64>,
        effects: &mut Vec<Effect>,
    ) {
        let now = self.now;
        let Some((run, pool, number)) = self.session(instance) else { return };
        if !matches!(outcome, Outcome::Broken(_)) {
            speak(pool, instance, effects);
        }
        let spec = pool.spec.clone();
        let Some(session) = pool.sessions.get_mut(&number) else { return };
        let Some(running) = session.running().filter(|running| running.turn == turn).cloned() else { return };
        if outcome == Outcome::Forgot {
            return self.forgot(instance, effects);
        }
        session.phase = Phase::Idle(now);
        session.turns += 1;
        session.context_percent = context_percent.or(session.context_percent);
        let (is_single, turns) = (session.owner == Owner::One, session.turns);
        let context = session.context_percent.filter(|&used| spec.max_context.is_some_and(|most| used >= most));
        pool.counts.turns += 1;
        run.has_turn = false;
        run.had_turn = true;
        if outcome == Outcome::Answered {
            pool.took(now.saturating_sub(running.since));
        }
        let held = run.memory;
        let is_ending = run.ending.is_some();
        let most_turns = most_turns(&spec, instance.generation);
        let Some(service) = self.services.get_mut(&instance.service) else { return };
        if is_ending {
            // It was to end once its turn is over.
            return service.go_on_ending(now, number, effects);
        }
        let grace = service.spec.stop_grace_period;
        let reason = match (outcome, running.stop) {
            (Outcome::Broken(why), None) => return service.leave_to_its_end(now, number, Recycle::Broken { why }),
            (Outcome::Broken(_) | Outcome::Forgot, Some((_, why))) => {
                return service.leave_to_its_end(now, number, why);
            }
            (_, Some((_, why))) => Reason::Recycled(why),
            (Outcome::Interrupted | Outcome::Forgot, None) => Reason::Recycled(Recycle::Cancelled),
            (Outcome::Answered, None) if is_single || spec.protocol == Protocol::Exec => Reason::Over,
            (Outcome::Answered, None) => {
                let above = spec.recycle_above.filter(|&line| held > line);
                match (most_turns.filter(|&most| turns >= most), above, context) {
                    (Some(_), ..) => Reason::Recycled(Recycle::Turns { turns }),
                    (_, Some(line_bytes), _) => Reason::Recycled(Recycle::Memory { held_bytes: held, line_bytes }),
                    (.., Some(used)) => Reason::Recycled(Recycle::Context { percent: used as u32 }),
                    // Whether it holds too much is known by a look, and the last one may be long ago.
                    _ => {
                        if spec.recycle_above.is_some()
                            && let Some((run, ..)) = self.session(instance)
                        {
                            run.pace.at_once(now);
                        }
                        return;
                    }
                }
            }
        };
        service.end_run(now, number, reason, How::Stop(grace), effects);
    }

    /// An agent that was to take its conversation up again knows nothing of it. Its turn was asked for again before this was
    /// said; whoever takes it is told.
    fn forgot(&mut self, instance: &Instance, effects: &mut Vec<Effect>) {
        let now = self.now;
        let Some((run, pool, number)) = self.session(instance) else { return };
        run.has_turn = false;
        let Some(session) = pool.sessions.get_mut(&number) else { return };
        session.phase = Phase::Idle(now);
        let Owner::Key(key) = session.owner.clone() else { return };
        pool.give_up_resuming(&key);
        let Some(service) = self.services.get_mut(&instance.service) else { return };
        let grace = service.spec.stop_grace_period;
        service.end_run(now, number, Reason::Recycled(Recycle::Forgot), How::Stop(grace), effects);
    }

    /// An agent that had no turn is of no more use.
    pub(super) fn lost(&mut self, instance: &Instance, why: String) {
        let now = self.now;
        if self.session(instance).is_none() {
            return;
        }
        if let Some(service) = self.services.get_mut(&instance.service) {
            service.leave_to_its_end(now, instance.replica, Recycle::Broken { why });
        }
    }

    /// Somebody wants a session closed. Answers whether there is one.
    pub(super) fn close_session(&mut self, pool: Option<&Name>, key: &Name, effects: &mut Vec<Effect>) -> bool {
        let now = self.now;
        for service in self.services.values_mut().filter(|service| pool.is_none_or(|pool| *pool == service.name)) {
            let grace = service.spec.stop_grace_period;
            let Some((number, _)) = service.pool.as_ref().and_then(|pool| pool.of_key(key)) else { continue };
            service.end_run(now, number, Reason::Stopped, How::Stop(grace), effects);
            return true;
        }
        false
    }

    /// The run and the pool of a session that an input speaks of, unless it speaks of an earlier run.
    fn session(&mut self, instance: &Instance) -> Option<(&mut Run, &mut Pool, u32)> {
        let service = self.services.get_mut(&instance.service)?;
        let replica = service.replicas.get_mut(&instance.replica)?;
        let run = replica.run.as_deref_mut().filter(|_| replica.generation == instance.generation)?;
        let pool = service.pool.as_deref_mut()?;
        pool.sessions.contains_key(&instance.replica).then_some((run, pool, instance.replica))
    }

    /// A session's tree is gone: its number is free, and whoever had a turn on it is told.
    pub(super) fn session_gone(
        &mut self,
        instance: &Instance,
        ending: Option<&Ending>,
        end: &End,
        held: u64,
        effects: &mut Vec<Effect>,
    ) {
        let now = self.now;
        let Some(service) = self.services.get_mut(&instance.service) else { return };
        let Some(pool) = &mut service.pool else { return };
        let Some(mut session) = pool.sessions.remove(&instance.replica) else { return };
        service.replicas.remove(&instance.replica);
        let after_bytes = service.replicas.values().filter_map(|r| r.run.as_ref()).map(|run| run.memory).sum();
        let reason = ending.map(|ending| &ending.reason);
        let is_our_doing = !matches!(
            reason,
            None | Some(Reason::Recycled(Recycle::Watch { .. } | Recycle::Broken { .. }) | Reason::Livelocked { .. })
        );
        // What could not be taken up again says nothing about other starts; and is not tried twice.
        let is_unused = session.turns == 0 && session.running().is_none();
        let has_failed_to_resume = match &session.owner {
            Owner::Key(key) if session.resumes && is_unused => {
                pool.give_up_resuming(key);
                true
            }
            _ => false,
        };
        // A process for one turn has ended as it should: its turn is over with it.
        let is_answered = pool.spec.protocol == Protocol::Exec && end.cause == Cause::Exited;
        if let Some(since) = session.running().filter(|_| is_answered).map(|running| running.since) {
            session.has_spoken = true;
            if pool.circuit.spoke() {
                effects.push(Effect::Emit(Event::CircuitClosed { instance: instance.clone() }));
            }
            pool.took(now.saturating_sub(since));
            pool.counts.turns += 1;
            session.turns += 1;
        }
        let opens = !is_our_doing
            && !has_failed_to_resume
            && match &session.owner {
                Owner::None => !session.is_proven && pool.circuit.failed(now),
                // Of what it was asked one may die that is well otherwise.
                _ if session.has_spoken => false,
                Owner::Key(key) => pool.circuit.silent(now, Some(key)),
                Owner::One | Owner::Shared => pool.circuit.silent(now, None),
            };
        if opens {
            let attempts = pool.circuit.told();
            effects.push(Effect::Emit(Event::CircuitOpened { instance: instance.clone(), attempts }));
        }
        let is_recycled = matches!(reason, Some(Reason::Recycled(_)));
        pool.counts.recycled += u64::from(is_recycled);
        pool.counts.closed += u64::from(!is_recycled);
        pool.counts.survivors += u64::from(end.survivors);
        let is_as_decided =
            matches!(end.cause, Cause::Exited | Cause::Stopped | Cause::Evicted | Cause::Recycled | Cause::IdleTimeout);
        let why = match (reason, !is_as_decided) {
            (Some(reason), false) => reason.to_string(),
            (Some(reason), true) => format!("{reason}; {}", super::event::ended_words(end.cause)),
            (None, _) => super::event::ended_words(end.cause).to_owned(),
        };
        effects.push(Effect::SessionGone { instance: instance.clone(), why: why.clone(), is_failed: !is_as_decided });
        let key = match session.owner {
            Owner::Key(key) => Some(key),
            _ => None,
        };
        effects.push(Effect::Emit(Event::SessionClosed {
            instance: instance.clone(),
            key,
            why,
            is_recycled,
            turns: session.turns,
            before_bytes: held.max(end.bytes_freed) + after_bytes,
            after_bytes,
            freed_bytes: held.max(end.bytes_freed),
        }));
    }

    /// Sees to all pools: what is over, who gets what is free, how many are to be started.
    pub(super) fn settle_pools(&mut self, effects: &mut Vec<Effect>) {
        if !self.has_pools {
            return;
        }
        let names: Vec<Name> =
            self.services.values().filter(|service| service.pool.is_some()).map(|s| s.name.clone()).collect();
        for name in names {
            let Some(service) = self.services.get(&name) else { continue };
            let floor = self.shares.floor(&service.spec);
            let price = self.shares.price(&service.spec, self.learned(service));
            let prices = Prices { price, floor, room: self.room() };
            self.settle_pool(&name, prices, effects);
        }
    }

    fn settle_pool(&mut self, name: &Name, mut prices: Prices, effects: &mut Vec<Effect>) {
        let (now, stage) = (self.now, self.ladder.stage());
        let doubles = self.breaks(Rule::OneProcess);
        let Some(service) = self.services.get_mut(name) else { return };
        let Some(mut pool) = service.pool.take() else { return };
        if service.off.is_some() {
            for asked in std::mem::take(&mut pool.queue) {
                deny(&mut pool, asked.turn, Denial::Stopping, effects);
            }
            let replicas = &mut service.replicas;
            pool.sessions.retain(|number, _| replicas.get(number).is_some_and(|replica| replica.run.is_some()));
            replicas.retain(|_, replica| replica.run.is_some());
            service.pool = Some(pool);
            return;
        }
        let late = |asked: &Asked| now.saturating_sub(asked.since) >= pool.spec.queue.timeout;
        let over: Vec<Turn> = pool.queue.iter().filter(|asked| late(asked)).map(|asked| asked.turn).collect();
        pool.queue.retain(|asked| !over.contains(&asked.turn));
        for turn in over {
            let retry_after = pool.retry_after();
            deny(&mut pool, turn, Denial::Late(retry_after), effects);
        }
        watch(now, service, &mut pool, effects);
        assign(now, service, &mut pool, &mut prices, effects);
        if pool.circuit.is_open() {
            // Who has a session waits for it; nobody waits for a start that will not come.
            let until = pool.circuit.until.saturating_sub(now);
            let needs_start = |asked: &Asked| asked.key.as_ref().is_none_or(|key| pool.of_key(key).is_none());
            let turns: Vec<Turn> =
                pool.queue.iter().filter(|asked| needs_start(asked)).map(|asked| asked.turn).collect();
            pool.queue.retain(|asked| !turns.contains(&asked.turn));
            for turn in turns {
                deny(&mut pool, turn, Denial::Circuit(until), effects);
            }
        }
        begin(now, stage, service, &mut pool, doubles, effects);
        service.pool = Some(pool);
    }

    /// Whether a conversation waits for room to be taken up again while there is a process that it could go on in at once.
    pub(super) fn rather_told(&self) -> bool {
        self.services.values().any(|service| {
            let Some(pool) = service.pool.as_ref().filter(|_| service.off.is_none()) else { return false };
            let mut resuming = pool.sessions.iter().filter(|(_, session)| session.resumes);
            resuming.any(|(number, _)| lacks_room(service, *number)) && warm(service, pool).is_some()
        })
    }

    /// Where somebody waits for room, or memory is short, the session that was idle for longest goes; one at a time.
    pub(super) fn make_room(&mut self, effects: &mut Vec<Effect>) {
        if !self.has_pools {
            return;
        }
        let is_short = self.ladder.stage() >= Stage::Degrade;
        let replicas = || self.services.values().flat_map(|service| service.replicas.values());
        let waits = |replica: &Replica| replica.run.is_none() && matches!(replica.waiting, Some(Waiting::Room { .. }));
        let is_waited_for = self.services.values().filter_map(|s| s.pool.as_ref()).any(|pool| pool.lacks_room);
        if !is_short && !is_waited_for && !replicas().any(waits) {
            return;
        }
        let pools = || self.services.values().filter(|service| service.pool.is_some());
        if pools().flat_map(|s| s.replicas.values()).any(|r| r.run.as_ref().is_some_and(|run| run.ending.is_some())) {
            return;
        }
        let idle = pools().flat_map(|service| {
            let pool = service.pool.as_ref();
            let sessions = pool.into_iter().flat_map(|pool| &pool.sessions);
            sessions.filter_map(|(&number, session)| match session.phase {
                Phase::Idle(since) if session.owner != Owner::None || is_short => {
                    Some((session.owner != Owner::None, since, service.name.clone(), number))
                }
                _ => None,
            })
        });
        let Some((_, _, name, number)) = idle.min() else { return };
        let now = self.now;
        if let Some(service) = self.services.get_mut(&name) {
            let grace = service.spec.stop_grace_period;
            service.end_run(now, number, Reason::MadeRoom, How::Stop(grace), effects);
        }
    }

    /// Idle sessions claim what they hold, not what a turn would need: that is asked for again with the next turn.
    pub(super) fn lower_claims(&mut self) {
        for service in self.services.values_mut() {
            let Some(pool) = &mut service.pool else { continue };
            for (number, session) in &pool.sessions {
                let Some(replica) = service.replicas.get_mut(number) else { continue };
                let Some(run) = replica.run.as_ref().filter(|run| run.is_measured) else { continue };
                if matches!(session.phase, Phase::Idle(_)) {
                    replica.claim = replica.claim.min(run.memory);
                }
            }
        }
    }

    /// What holds too much goes, once it has no turn.
    pub(super) fn recycle_the_large(&mut self, effects: &mut Vec<Effect>) {
        let now = self.now;
        for service in self.services.values_mut() {
            let Some(pool) = &service.pool else { continue };
            let Some(line_bytes) = pool.spec.recycle_above else { continue };
            let grace = service.spec.stop_grace_period;
            let large: Vec<(u32, u64)> = pool
                .sessions
                .iter()
                .filter(|(_, session)| matches!(session.phase, Phase::Idle(_)) && session.turns > 0)
                .filter_map(|(&number, _)| {
                    let run = service.replicas.get(&number)?.run.as_ref().filter(|run| run.ending.is_none())?;
                    (run.memory > line_bytes).then_some((number, run.memory))
                })
                .collect();
            for (number, held_bytes) in large {
                let reason = Reason::Recycled(Recycle::Memory { held_bytes, line_bytes });
                service.end_run(now, number, reason, How::Stop(grace), effects);
            }
        }
    }
}

impl Pool {
    /// When something is due by time alone, after `now`.
    pub(super) fn next_due(&self, now: Duration, replicas: &BTreeMap<u32, Replica>) -> Option<Duration> {
        let spec = &self.spec;
        let waiting = self.queue.iter().map(|asked| asked.since + spec.queue.timeout).min();
        let retry = (self.circuit.told() > 0).then_some(self.circuit.until);
        let sessions = self.sessions.keys().filter_map(|&number| self.session_due(number, replicas));
        sessions.chain(waiting).chain(retry).filter(|&at| at > now).min()
    }

    /// When something is due by time alone for a session that runs.
    pub(super) fn session_due(&self, number: u32, replicas: &BTreeMap<u32, Replica>) -> Option<Duration> {
        let (spec, session) = (&self.spec, self.sessions.get(&number)?);
        let run = replicas.get(&number)?.run.as_ref().filter(|run| run.ending.is_none() && run.pid.is_some())?;
        let is_on_trial = !session.is_proven && !matches!(session.phase, Phase::Starting(_));
        let proven = is_on_trial.then_some(run.since + PROVEN_AFTER);
        let due = match &session.phase {
            Phase::Starting(until) => *until,
            Phase::Busy(Running { stop: Some((until, _)), .. }) => Some(*until),
            Phase::Busy(running) => {
                let silent = match running.heard {
                    None => running.since + spec.first_byte_timeout,
                    Some(heard) => heard + spec.stall_timeout,
                };
                Some(silent.min(running.since + spec.turn_timeout))
            }
            Phase::Idle(since) => {
                let idle = (session.owner != Owner::None).then(|| *since + spec.idle_ttl);
                let old = spec.max_age.map(|age| run.since + age);
                idle.into_iter().chain(old).min()
            }
        };
        due.into_iter().chain(proven).min()
    }
}

impl Service {
    /// Its agent has ended, or speaks no sense: it has a moment to end by itself, so that its own cause is what is told.
    fn leave_to_its_end(&mut self, now: Duration, number: u32, why: Recycle) {
        const MOMENT: Duration = Duration::from_secs(2);
        let Some(run) = self.replicas.get_mut(&number).and_then(|replica| replica.run.as_mut()) else { return };
        run.has_turn = false;
        if run.ending.is_none() {
            let step = super::replica::Step::HungUp(now + MOMENT);
            run.ending = Some(Ending { reason: Reason::Recycled(why), step });
        }
    }
}

/// A session's start came to something.
fn prove(pool: &mut Pool, instance: &Instance, effects: &mut Vec<Effect>) {
    let Some(session) = pool.sessions.get_mut(&instance.replica) else { return };
    if !std::mem::replace(&mut session.is_proven, true) && pool.circuit.started() {
        effects.push(Effect::Emit(Event::CircuitClosed { instance: instance.clone() }));
    }
}

/// A session said something within a turn.
fn speak(pool: &mut Pool, instance: &Instance, effects: &mut Vec<Effect>) {
    let Some(session) = pool.sessions.get_mut(&instance.replica) else { return };
    session.is_proven = true;
    if !std::mem::replace(&mut session.has_spoken, true) && pool.circuit.spoke() {
        effects.push(Effect::Emit(Event::CircuitClosed { instance: instance.clone() }));
    }
}

fn deny(pool: &mut Pool, turn: Turn, denial: Denial, effects: &mut Vec<Effect>) {
    pool.counts.refused += 1;
    effects.push(Effect::Deny { turn, denial });
}

/// Turns that this process may take on; by chance fewer, so that not all are replaced at once.
fn most_turns(spec: &PoolSpec, generation: u64) -> Option<u32> {
    let most = spec.max_turns?;
    // Weyl's sequence: as good as chance, and the same whenever a history is played again.
    let chance = generation.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    let fewer = chance % (u64::from(spec.max_turns_jitter) + 1);
    Some(most.saturating_sub(fewer as u32).max(1))
}

/// Begins to interrupt a running turn; its session is replaced then.
fn interrupt(
    now: Duration,
    service: &mut Service,
    pool: &mut Pool,
    number: u32,
    why: Recycle,
    effects: &mut Vec<Effect>,
) {
    let is_exec = pool.spec.protocol == Protocol::Exec;
    let Some(Phase::Busy(running)) = pool.sessions.get_mut(&number).map(|session| &mut session.phase) else { return };
    if running.stop.is_some() {
        return;
    }
    running.stop = Some((now + INTERRUPT_GRACE, why.clone()));
    if is_exec {
        // There is nothing that it could be told.
        return service.end_run(now, number, Reason::Recycled(why), How::Stop(Duration::ZERO), effects);
    }
    if let Some(replica) = service.replicas.get(&number) {
        let instance = service.instance(number, replica);
        effects.push(Effect::Interrupt { instance, why: why.to_string() });
    }
}

/// What has taken too long: starts, turns, idle times, lives.
fn watch(now: Duration, service: &mut Service, pool: &mut Pool, effects: &mut Vec<Effect>) {
    let spec = pool.spec.clone();
    let grace = service.spec.stop_grace_period;
    let numbers: Vec<u32> = pool.sessions.keys().copied().collect();
    for number in numbers {
        let Some(session) = pool.sessions.get(&number) else { continue };
        let Some(replica) = service.replicas.get(&number) else { continue };
        let Some(run) = replica.run.as_ref().filter(|run| run.ending.is_none() && run.pid.is_some()) else { continue };
        let past = |since: Duration, most: Duration| now.saturating_sub(since) >= most;
        if !session.is_proven && !matches!(session.phase, Phase::Starting(_)) && past(run.since, PROVEN_AFTER) {
            prove(pool, &service.instance(number, replica), effects);
        }
        let Some(session) = pool.sessions.get(&number) else { continue };
        let watched = |watch: Watch, since: Duration| {
            let after_ms = now.saturating_sub(since).as_millis() as u64;
            Recycle::Watch { watch, after_ms }
        };
        match &session.phase {
            Phase::Starting(until) => {
                if until.is_some_and(|until| now >= until) {
                    let reason = Reason::Recycled(watched(Watch::Start, run.since));
                    service.end_run(now, number, reason, How::Kill, effects);
                }
            }
            Phase::Busy(Running { stop: Some((until, why)), .. }) => {
                if now >= *until {
                    let reason = Reason::Recycled(why.clone());
                    service.end_run(now, number, reason, How::Stop(grace), effects);
                }
            }
            Phase::Busy(running) => {
                let why = if past(running.since, spec.turn_timeout) {
                    watched(Watch::Turn, running.since)
                } else if running.heard.is_none() && past(running.since, spec.first_byte_timeout) {
                    watched(Watch::FirstByte, running.since)
                } else if let Some(heard) = running.heard.filter(|&heard| past(heard, spec.stall_timeout)) {
                    watched(Watch::Stall, heard)
                } else {
                    continue;
                };
                let instance = service.instance(number, replica);
                effects.push(Effect::Emit(Event::Interrupted { instance, why: why.to_string() }));
                interrupt(now, service, pool, number, why, effects);
            }
            Phase::Idle(since) => {
                let is_owned = session.owner != Owner::None;
                let reason = if run.version != service.version {
                    Reason::Reloaded
                } else if spec.max_age.is_some_and(|age| past(run.since, age)) {
                    let after_ms = now.saturating_sub(run.since).as_millis() as u64;
                    Reason::Recycled(Recycle::Age { after_ms })
                } else if is_owned && past(*since, spec.idle_ttl) {
                    Reason::Idle { idle_ms: now.saturating_sub(*since).as_millis() as u64 }
                } else {
                    continue;
                };
                service.end_run(now, number, reason, How::Stop(grace), effects);
            }
        }
    }
}

/// Gives what is free to those that wait, in their order; each conversation's turns one after the other.
fn assign(now: Duration, service: &mut Service, pool: &mut Pool, prices: &mut Prices, effects: &mut Vec<Effect>) {
    pool.lacks_room = false;
    let mut blocked: BTreeSet<Name> = BTreeSet::new();
    let queue = std::mem::take(&mut pool.queue);
    for mut asked in queue {
        asked.resumes &= !gives_up_resuming(service, pool, &asked);
        if std::mem::take(&mut asked.is_anew)
            && let Some(key) = &asked.key
            && let Some((number, session)) = pool.of_key(key)
        {
            // Once its turn is over; the next process is told all of it.
            asked.is_anew = matches!(session.phase, Phase::Busy(_)) || blocked.contains(key);
            if !asked.is_anew && is_unbegun(service, number) {
                pool.sessions.remove(&number);
                service.replicas.remove(&number);
            } else if !asked.is_anew {
                let grace = service.spec.stop_grace_period;
                service.end_run(now, number, Reason::Recycled(Recycle::Diverged), How::Stop(grace), effects);
            }
        }
        let chosen =
            choose(service, pool, &asked).filter(|_| !asked.key.as_ref().is_some_and(|key| blocked.contains(key)));
        let taken = chosen.and_then(|number| take(now, service, pool, prices, &asked, number));
        match taken {
            Some((instance, fresh)) => {
                effects.push(Effect::Assign { turn: asked.turn, instance, key: asked.key.clone(), fresh });
            }
            None => {
                blocked.extend(asked.key.clone());
                pool.queue.push_back(asked);
            }
        }
    }
}

/// Whether a turn rather takes a process that runs already, and is told, than one that would take its conversation up again:
/// where the latter finds no room in memory, or no start is worth a try. Then the one that waits for room is not started.
fn gives_up_resuming(service: &mut Service, pool: &mut Pool, asked: &Asked) -> bool {
    let Some(key) = asked.key.as_ref().filter(|_| asked.resumes) else { return false };
    let Some(number) = pool.of_key(key).map(|(number, _)| number) else { return pool.circuit.is_open() };
    let gives_up = lacks_room(service, number) && warm(service, pool).is_some();
    if gives_up {
        pool.sessions.remove(&number);
        service.replicas.remove(&number);
    }
    gives_up
}

/// Whether memory keeps a session from its start.
fn lacks_room(service: &Service, number: u32) -> bool {
    let replica = service.replicas.get(&number);
    replica.is_some_and(|one| one.run.is_none() && matches!(one.waiting, Some(Waiting::Room { .. })))
}

/// Whether a session can take a turn now.
fn is_free(service: &Service, number: u32, session: &Session) -> bool {
    let run = service.replicas.get(&number).and_then(|replica| replica.run.as_ref());
    matches!(session.phase, Phase::Idle(_))
        && run.is_some_and(|run| run.ending.is_none() && run.version == service.version)
}

/// A process that is nobody's yet and can take a turn now.
fn warm(service: &Service, pool: &Pool) -> Option<u32> {
    let mut warm = pool.sessions.iter().filter(|(number, one)| one.is_warm() && is_free(service, **number, one));
    warm.next().map(|(number, _)| *number)
}

/// The session that a waiting turn could have now.
fn choose(service: &Service, pool: &Pool, asked: &Asked) -> Option<u32> {
    let is_free = |number: u32, session: &Session| is_free(service, number, session);
    let warm = || warm(service, pool).filter(|_| pool.owned() < pool.spec.max_sessions as usize);
    match &asked.key {
        Some(key) => match pool.of_key(key) {
            Some((number, session)) => is_free(number, session).then_some(number),
            // A process that runs already cannot take it up again.
            None if asked.resumes => None,
            None => warm(),
        },
        None if pool.spec.reuse == Reuse::Any => {
            let shared = pool.sessions.iter().filter(|(n, s)| s.owner == Owner::Shared && is_free(**n, s));
            // The one that is used up first: the others expire, or are there when they are needed.
            shared.max_by_key(|(number, session)| (session.turns, **number)).map(|(number, _)| *number).or_else(warm)
        }
        None => warm(),
    }
}

/// Takes a session for a turn, if there is room for what a turn needs.
fn take(
    now: Duration,
    service: &mut Service,
    pool: &mut Pool,
    prices: &mut Prices,
    asked: &Asked,
    number: u32,
) -> Option<(Instance, bool)> {
    let replica = service.replicas.get_mut(&number)?;
    let held = replica.weight();
    if replica.claim < prices.price {
        let priority = service.spec.priority;
        let (price, floor, since) = (prices.price, prices.floor, asked.since);
        let waiter = Waiter { who: (), priority, since, price, floor, held, is_ahead: false };
        let open = prices.room.open_to(&waiter).unwrap_or(0);
        let is_patient = now.saturating_sub(asked.since) >= PATIENCE.min(pool.spec.queue.timeout / 2);
        let claim = if prices.price <= open {
            prices.price
        } else if is_patient && prices.floor.max(held) <= open {
            open
        } else {
            pool.lacks_room = true;
            return None;
        };
        prices.room.take(claim, held);
        replica.claim = replica.claim.max(claim);
    }
    give(now, service, pool, asked, number)
}

/// Gives a session, whose room is seen to, to a turn.
pub(super) fn give(
    now: Duration,
    service: &mut Service,
    pool: &mut Pool,
    asked: &Asked,
    number: u32,
) -> Option<(Instance, bool)> {
    let run = service.replicas.get_mut(&number)?.run.as_mut()?;
    run.has_turn = true;
    let session = pool.sessions.get_mut(&number)?;
    let fresh = !matches!(session.owner, Owner::Key(_));
    session.owner = match (&asked.key, pool.spec.reuse) {
        (Some(key), _) => Owner::Key(key.clone()),
        (None, Reuse::Any) => Owner::Shared,
        (None, Reuse::Session) => Owner::One,
    };
    session.phase = Phase::Busy(Running { turn: asked.turn, since: now, heard: None, stop: None });
    let replica = service.replicas.get(&number)?;
    Some((service.instance(number, replica), fresh))
}

/// Starts processes for those that wait and ahead of those to come, and closes what stands in their way.
fn begin(
    now: Duration,
    stage: Stage,
    service: &mut Service,
    pool: &mut Pool,
    doubles: bool,
    effects: &mut Vec<Effect>,
) {
    let max_sessions = pool.spec.max_sessions as usize;
    let is_closing = |service: &Service, number: u32| {
        service.replicas.get(&number).and_then(|r| r.run.as_ref()).is_some_and(|run| run.ending.is_some())
    };
    reserve(now, service, pool, max_sessions);
    // Conversations without a session, each counted once; and every request of no conversation.
    let mut keys = BTreeSet::new();
    let without = pool.queue.iter().filter(|asked| match &asked.key {
        Some(key) => (doubles || pool.of_key(key).is_none()) && keys.insert(key.clone()),
        None => true,
    });
    // Who resumes has a process started for it as soon as there is a place; the others take whichever is there.
    let (resuming, others): (Vec<&Asked>, Vec<&Asked>) = without.partition(|asked| asked.resumes);
    let without = resuming.len() + others.len();
    let ahead = if stage < Stage::Degrade && !pool.circuit.is_open() { pool.spec.warm as usize } else { 0 };
    let wanted = match &pool.circuit {
        circuit if now < circuit.until => 0,
        circuit if circuit.is_open() => 1,
        _ => others.len().min(max_sessions.saturating_sub(pool.owned())) + ahead,
    };
    let spare = |service: &Service, pool: &Pool| {
        pool.sessions.iter().filter(|(n, s)| s.owner == Owner::None && !is_closing(service, **n)).count()
    };
    let mut there = spare(service, pool);
    while there < wanted && (pool.sessions.len() < pool.most() || doubles) {
        let Some(number) = (1..).find(|number| !service.replicas.contains_key(number)) else { break };
        let mut replica = Replica::new();
        replica.rest = Rest::Waiting(now);
        service.replicas.insert(number, replica);
        pool.sessions.insert(number, Session::new());
        there += 1;
    }
    // Whoever waited for them is gone, or fewer are allowed than before: those that have not begun do not.
    while there > wanted || pool.sessions.len() > pool.most() && !doubles {
        let may_go = |session: &Session| session.owner == Owner::None || pool.sessions.len() > pool.most();
        let unbegun = pool.sessions.iter().rev().filter(|(number, _)| is_unbegun(service, **number));
        // One that is somebody's goes last.
        let last = unbegun.filter(|(_, s)| may_go(s)).min_by_key(|(_, session)| session.owner != Owner::None);
        let Some((number, is_spare)) = last.map(|(number, s)| (*number, s.owner == Owner::None)) else { break };
        pool.sessions.remove(&number);
        service.replicas.remove(&number);
        there = there.saturating_sub(usize::from(is_spare));
    }
    // Those that come first are for those that wait.
    let needed = wanted.saturating_sub(ahead);
    let mut spare = 0;
    for (number, session) in pool.sessions.iter_mut().filter(|(_, session)| session.owner == Owner::None) {
        if !is_closing(service, *number) {
            session.is_ahead = spare >= needed;
            spare += 1;
        }
    }
    // Every place is somebody's: the one that was idle for longest makes room for each that waits.
    let leaving = pool.sessions.iter().filter(|(n, s)| s.owner != Owner::None && is_closing(service, **n)).count();
    let free = max_sessions.saturating_sub(pool.owned());
    // A process that was started ahead is no place: it can be had by whoever has one.
    let lacking = without.saturating_sub(free + leaving).min(max_sessions);
    if lacking == 0 {
        return;
    }
    let asked: BTreeSet<&Name> = pool.queue.iter().filter_map(|asked| asked.key.as_ref()).collect();
    let mut idle: Vec<(Duration, u32)> = pool
        .sessions
        .iter()
        .filter(|(number, _)| !is_closing(service, **number))
        .filter_map(|(number, session)| match (&session.phase, &session.owner) {
            (Phase::Idle(since), Owner::Key(key)) if !asked.contains(key) => Some((*since, *number)),
            (Phase::Idle(since), Owner::Shared) => Some((*since, *number)),
            _ => None,
        })
        .collect();
    idle.sort_unstable();
    let grace = service.spec.stop_grace_period;
    for (_, number) in idle.into_iter().take(lacking) {
        service.end_run(now, number, Reason::MadeRoom, How::Stop(grace), effects);
    }
}

/// Whether a session is wanted and its start has not begun.
fn is_unbegun(service: &Service, number: u32) -> bool {
    service.replicas.get(&number).is_some_and(|replica| replica.run.is_none())
}

/// Wants a process for each conversation that is to be taken up again, in their order among all that wait for a place; and
/// wants those no longer that nobody waits for any more.
fn reserve(now: Duration, service: &mut Service, pool: &mut Pool, max_sessions: usize) {
    let is_waited_for = |key: &Name| pool.queue.iter().any(|asked| asked.resumes && asked.key.as_ref() == Some(key));
    let idle: Vec<u32> = pool
        .sessions
        .iter()
        .filter(|(number, session)| session.resumes && is_unbegun(service, **number))
        .filter(|(_, session)| !matches!(&session.owner, Owner::Key(key) if is_waited_for(key)))
        .map(|(number, _)| *number)
        .collect();
    for number in idle {
        pool.sessions.remove(&number);
        service.replicas.remove(&number);
    }
    if pool.circuit.is_open() || now < pool.circuit.until {
        return;
    }
    let mut places = max_sessions.saturating_sub(pool.owned());
    let mut keys: BTreeSet<&Name> = BTreeSet::new();
    let mut resumed: Vec<Name> = Vec::new();
    for asked in &pool.queue {
        let is_first = asked.key.as_ref().is_none_or(|key| pool.of_key(key).is_none() && keys.insert(key));
        if !is_first {
            continue;
        }
        if places == 0 {
            break;
        }
        places -= 1;
        resumed.extend(asked.key.clone().filter(|_| asked.resumes));
    }
    for key in resumed {
        let is_spare = |(number, session): (&u32, &Session)| {
            let run = service.replicas.get(number).and_then(|replica| replica.run.as_ref());
            (session.owner == Owner::None).then_some((*number, run.is_some(), run.is_some_and(|r| r.ending.is_some())))
        };
        if pool.sessions.len() >= pool.most() {
            let spare: Vec<(u32, bool, bool)> = pool.sessions.iter().filter_map(is_spare).collect();
            // One that was to be started for whoever comes gives its place; one that goes does so soon; where all of them
            // run, the conversation goes on in one of those.
            if let Some((number, ..)) = spare.iter().find(|(_, has_begun, _)| !has_begun) {
                pool.sessions.remove(number);
                service.replicas.remove(number);
            } else {
                if spare.iter().all(|(_, _, is_going)| !is_going) {
                    pool.give_up_resuming(&key);
                }
                continue;
            }
        }
        let Some(number) = (1..).find(|number| !service.replicas.contains_key(number)) else { break };
        let mut replica = Replica::new();
        replica.rest = Rest::Waiting(now);
        service.replicas.insert(number, replica);
        pool.sessions.insert(number, Session::resuming(key));
    }
}

/// Whether its agents take conversations up again by themselves.
fn can_resume(spec: &PoolSpec) -> bool {
    spec.rehydrate == Rehydrate::Resume && spec.protocol == Protocol::Claude
}

/// A pool whose file has changed goes on with what it has, and with the new one's words.
///
/// Answers whether anything but its process is another than before.
pub(super) fn adapt(service: &mut Service, spec: &PoolSpec) -> bool {
    let Some(pool) = service.pool.as_mut().filter(|pool| *pool.spec != *spec) else { return false };
    let starts_otherwise = pool.spec.protocol != spec.protocol
        || pool.spec.isolation != spec.isolation
        || pool.spec.pass_environment != spec.pass_environment;
    pool.spec = Arc::new(spec.clone());
    service.version += u64::from(starts_otherwise);
    true
}
