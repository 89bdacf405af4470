//! One stack: the pure state machine behind `plimsoll up`.
//!
//! ```text
//! Input ─► step(now) ─► Effect      the same code under the supervisor and under the simulator
//! ```
//! `now` is the time since some fixed instant, by a clock that never goes back; times in here are such times. Nothing is
//! assumed to have worked: an effect's result is a later input.
//!
//! | page | story |
//! |---|---|
//! | `input`, `effect`, `event`, `snapshot`, `name` | the words spoken with the outside |
//! | `backoff`, `health`, `ladder`, `cpu`, `reclaim`, `look` | one replica: restarts, probes, its line, its processor, when to look |
//! | `admission`, `victim`, `depend`, `autoscale`, `alerts` | all of them: who may start, who has to go, in which order, how many, who is told |
//! | `replica`, `service`, `pool` | what is kept of each |
//! | `started` | whether it has come up |
//! | `remember` | what is kept beyond the supervisor's life |
//! | `load`, `commands`, `life`, `pressure`, `settle` | the steps: what a file changes, what was asked, starts and ends, measures, and what follows |
//! | `turns`, `light` | sessions: who gets which, what takes too long, when one is replaced or closed; and the short way |
//!
//! A step takes the input into the state, does what is due by time, and then *settles*: it compares what is wanted with what
//! is, and asks for the difference. So whatever is interrupted, refused or overtaken is asked for again by itself.

pub mod admission;
pub mod alerts;
pub mod autoscale;
pub mod backoff;
mod commands;
pub mod cpu;
pub mod depend;
pub mod effect;
pub mod event;
pub mod health;
pub mod input;
pub mod ladder;
mod life;
mod light;
mod load;
pub mod look;
pub mod name;
mod pool;
mod pressure;
pub mod reclaim;
pub mod remember;
mod replica;
pub mod sabotage;
mod service;
mod settle;
pub mod snapshot;
mod started;
#[cfg(test)]
mod tests;
mod turns;
pub mod victim;

use std::collections::BTreeMap;
use std::time::Duration;

use plimsoll_model::stack::BudgetSpec;

pub use effect::{Answer, Effect, Refusal};
pub use event::Event;
pub use input::{Command, Input};
pub use ladder::Stage;
pub use name::{Instance, Name, Request, Turn};
pub use snapshot::Snapshot;

use admission::Shares;
use alerts::Alert;
use commands::{Guest, Pending};
use input::{HostSample, Remembered};
use ladder::Ladder;
use light::Light;
use look::Pace;
use pool::Asked;
use sabotage::{Rule, Sabotage};
use service::Service;
use victim::Owed;

use crate::history::History;

/// Whoever is so late was not running, or the machine slept.
const JUMP: Duration = Duration::from_secs(5);

/// Between two looks at every process that holds much.
const CENSUS: Duration = Duration::from_secs(300);

/// The state of one stack.
#[derive(Debug, Clone)]
pub struct Stack {
    now: Duration,
    /// When the next step is due, as of the last one.
    due: Option<Duration>,
    /// What the machine or container has, bytes.
    total: u64,
    cores: u32,
    budget_spec: BudgetSpec,
    /// What all services together may hold, bytes.
    budget: u64,
    shares: Shares,
    services: BTreeMap<Name, Service>,
    /// Their names, each behind all that it depends on.
    order: Vec<Name>,
    /// Of the last start.
    generation: u64,
    alerts: Vec<Alert>,
    remembered: BTreeMap<Name, Remembered>,
    guests: BTreeMap<Request, Guest>,
    pending: Vec<Pending>,
    /// The budget's ladder, and what it was told.
    ladder: Ladder,
    pace: Pace,
    history: History,
    used: u64,
    host: HostSample,
    /// The victim whose bytes are not accounted for.
    owed: Option<Owed>,
    /// It was told that nobody may be evicted.
    is_told_nobody: bool,
    /// As of the last whole step: an input of a turn may be taken alone.
    is_calm: bool,
    next_census: Duration,
    is_loaded: bool,
    has_pools: bool,
    has_started: bool,
    is_going_down: bool,
    is_finished: bool,
    sabotage: Sabotage,
}

impl Stack {
    /// An empty stack on a machine or in a container of `total` bytes of memory, with so many processors.
    #[must_use]
    pub fn new(total: u64, cores: u32) -> Self {
        let budget_spec = BudgetSpec::default();
        Self {
            now: Duration::ZERO,
            due: None,
            total,
            cores: cores.max(1),
            budget_spec,
            budget: budget_spec.bytes(total),
            shares: Shares::default(),
            services: BTreeMap::new(),
            order: Vec::new(),
            generation: 0,
            alerts: Vec::new(),
            remembered: BTreeMap::new(),
            guests: BTreeMap::new(),
            pending: Vec::new(),
            ladder: Ladder::default(),
            pace: Pace::default(),
            history: History::new(),
            used: 0,
            host: HostSample::default(),
            owed: None,
            is_told_nobody: false,
            is_calm: false,
            next_census: CENSUS,
            is_loaded: false,
            has_pools: false,
            has_started: false,
            is_going_down: false,
            is_finished: false,
            sabotage: Sabotage::default(),
        }
    }

    /// Breaks a rule, so that a test can show that this is found.
    #[cfg(feature = "sabotage")]
    pub fn sabotage(&mut self, rule: Rule) {
        self.sabotage = Sabotage { broken: Some(rule) };
    }

    /// Takes one input at `now` and appends what is to be done, in this order. A `now` before the last one counts as the
    /// last one.
    pub fn step(&mut self, now: Duration, input: Input, effects: &mut Vec<Effect>) {
        self.step_either_way(now, input, effects);
    }

    /// Whether it was a light one.
    fn step_either_way(&mut self, now: Duration, input: Input, effects: &mut Vec<Effect>) -> bool {
        self.jump(now.max(self.now), effects);
        match self.step_lightly(input, effects) {
            Light::Whole => return true,
            Light::Taken => {}
            Light::Not(input) => self.take(input, effects),
        }
        self.pass_time(effects);
        self.settle(effects);
        self.refuse_guests(effects);
        self.look_at_alerts(effects);
        self.answer_pending(effects);
        self.look_whether_started();
        self.due = self.find_due();
        self.is_calm = self.find_calm();
        false
    }

    /// Takes an input into the state.
    fn take(&mut self, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Remember(all) => self.remember(all),
            Input::Load { request, spec } => self.load(request, &spec, effects),
            Input::Capacity(total) => self.set_capacity(total),
            Input::Command { request, command } => self.command(request, command, effects),
            Input::Started { instance, pid, port } => self.started(&instance, pid, port, effects),
            Input::StartFailed { instance, why } => self.start_failed(&instance, why, effects),
            Input::Exited { instance, end } => self.exited(&instance, end, effects),
            Input::Probed { instance, probe, outcome } => self.probed(&instance, probe, outcome, effects),
            Input::Sampled(measured) => self.sampled(measured, effects),
            Input::Drained { instance } => self.drained(&instance, effects),
            Input::Livelocked { instance, usage, limit } => self.livelocked(&instance, usage, limit, effects),
            Input::Left { request } => self.left(request),
            Input::Ask { turn, pool, key, is_anew, resumes } => {
                self.ask(Asked { turn, key, is_anew, resumes, since: self.now }, &pool, effects)
            }
            Input::Withdraw { turn } => self.withdraw(turn, effects),
            Input::Ready { instance } => self.ready(&instance, effects),
            Input::Heard { instance } => self.heard(&instance, effects),
            Input::TurnDone { turn, instance, outcome, context_percent } => {
                self.turn_done(turn, &instance, outcome, context_percent, effects);
            }
            Input::Lost { instance, why } => self.lost(&instance, why),
            Input::CloseSession { pool, key } => {
                self.close_session(pool.as_ref(), &key, effects);
            }
            Input::Tick => {}
        }
    }

    /// As [`Self::step`], and looks whether a light step comes to the same as a whole one. Whether it was light.
    ///
    /// # Errors
    /// What both came to, where they differ.
    #[cfg(feature = "sabotage")]
    pub fn step_both_ways(&mut self, now: Duration, input: Input, effects: &mut Vec<Effect>) -> Result<bool, String> {
        let mut whole = Self { is_calm: false, ..self.clone() };
        let (before, mut wanted) = (effects.len(), Vec::new());
        let is_light = self.step_either_way(now, input.clone(), effects);
        if !is_light {
            return Ok(false);
        }
        whole.step(now, input, &mut wanted);
        // It may be called earlier than needed, and not later.
        let is_in_time = self.due <= whole.due;
        let told = |stack: Self| format!("{:?}", Self { due: None, is_calm: false, ..stack });
        let (light, whole) = (told(self.clone()), told(whole));
        if is_in_time && effects[before..] == wanted && light == whole {
            return Ok(true);
        }
        Err(format!("in time {is_in_time}, {:?} instead of {wanted:?}\n{light}\n{whole}", &effects[before..]))
    }

    /// The latest time for the next step: without another input it is [`Input::Tick`]. `None`: nothing is due.
    #[must_use]
    pub fn next_due(&self) -> Option<Duration> {
        self.due
    }

    /// Whether `down` is done.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.is_finished
    }

    /// Whether a service has this replica, running or not.
    #[must_use]
    pub fn has_replica(&self, service: &Name, number: u32) -> bool {
        self.services.get(service).is_some_and(|service| service.replicas.contains_key(&number))
    }

    /// Whether this rule is broken on purpose.
    fn breaks(&self, rule: Rule) -> bool {
        self.sabotage.breaks(rule)
    }

    /// Takes the time. Whoever was away does not blame others for what they could not tell him.
    fn jump(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        self.now = now;
        let Some(late) = self.due.map(|due| now.saturating_sub(due)).filter(|&late| late >= JUMP) else { return };
        self.services.values_mut().filter_map(|service| service.pool.as_mut()).for_each(|pool| pool.shift(late));
        for run in self.services.values_mut().flat_map(|s| s.replicas.values_mut()).filter_map(|r| r.run.as_mut()) {
            run.health.shift(late);
            if let Some(ending) = &mut run.ending {
                ending.step = ending.step.later(late);
            }
        }
        effects.push(Effect::Emit(Event::TimeJumped { by_ms: late.as_millis() as u64 }));
    }

    /// The budget's claims, bytes.
    fn claims(&self) -> u64 {
        let replicas =
            self.services.values().flat_map(|service| service.replicas.values()).map(|replica| replica.claim);
        replicas.sum::<u64>()
            + self.guests.values().filter(|guest| guest.is_admitted).map(|guest| guest.bytes).sum::<u64>()
    }
}
