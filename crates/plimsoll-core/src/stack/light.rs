//! The light step: a turn's beginning, a word within it and its end, where nothing else can follow from them.
//!
//! A whole step compares all that is wanted with all that is, several times around every session. Of a stack that is busy
//! most inputs move one session only, and all the rest stays as it was settled before: what is due by time is not due yet,
//! and nobody waits for what this session takes or gives. Such an input is taken alone. The simulator plays the steps of
//! its histories both ways and compares.

use std::time::Duration;

use super::Stack;
use super::effect::Effect;
use super::input::{Input, Outcome};
use super::ladder::Stage;
use super::name::{Instance, Name};
use super::pool::{Asked, Circuit, Owner, Phase};
use super::replica::Rest;
use super::turns;

/// What a light step came to.
pub(super) enum Light {
    /// That was all.
    Whole,
    /// The input is taken, and everything is to be settled.
    Taken,
    /// The input is still to be taken.
    Not(Input),
}

impl Stack {
    /// Whether nobody waits for anything that a session could take or give.
    pub(super) fn find_calm(&self) -> bool {
        self.is_loaded
            && self.has_started
            && !self.is_going_down
            && self.ladder.stage() < Stage::Degrade
            && self.pending.is_empty()
            && self.guests.values().all(|guest| guest.is_admitted)
            && self.services.values().all(|service| {
                let is_quiet = service
                    .pool
                    .as_ref()
                    .is_none_or(|pool| pool.queue.is_empty() && !pool.lacks_room && pool.circuit == Circuit::default());
                let mut resting = service.replicas.values().filter(|replica| replica.run.is_none());
                service.off.is_none() && is_quiet && !resting.any(|replica| matches!(replica.rest, Rest::Waiting(_)))
            })
    }

    /// Takes an input of a turn alone, if nothing can follow from it.
    pub(super) fn step_lightly(&mut self, input: Input, effects: &mut Vec<Effect>) -> Light {
        if !self.is_calm || self.due.is_none_or(|due| self.now >= due) {
            return Light::Not(input);
        }
        match &input {
            Input::Ask { turn, pool, key: Some(key), is_anew: false, resumes } => {
                let (turn, key, resumes) = (*turn, Some(key.clone()), *resumes);
                let asked = Asked { turn, key: key.clone(), is_anew: false, resumes, since: self.now };
                match self.give_lightly(pool, &asked) {
                    Some((instance, fresh)) => {
                        effects.push(Effect::Assign { turn, instance: instance.clone(), key, fresh });
                        self.sooner(&instance)
                    }
                    None => Light::Not(input),
                }
            }
            Input::Heard { instance } if self.session_due(instance).is_some() => {
                self.heard(instance, effects);
                self.sooner(instance)
            }
            Input::TurnDone { turn, instance, outcome: Outcome::Answered, context_percent }
                if self.session_due(instance).is_some() =>
            {
                let before = effects.len();
                self.turn_done(*turn, instance, Outcome::Answered, *context_percent, effects);
                // Whether its process goes on is its own turn's doing, and seen by what became of it.
                if effects.len() == before && self.stays(instance) { self.sooner(instance) } else { Light::Taken }
            }
            _ => Light::Not(input),
        }
    }

    /// Gives a turn the session that its conversation has, if that is free and claims what a turn needs.
    fn give_lightly(&mut self, name: &Name, asked: &Asked) -> Option<(Instance, bool)> {
        let service = self.services.get(name)?;
        let pool = service.pool.as_ref().filter(|pool| pool.spec.queue.max > 0)?;
        let (number, session) = pool.of_key(asked.key.as_ref()?)?;
        let replica = service.replicas.get(&number)?;
        let is_free = matches!(session.phase, Phase::Idle(_))
            && replica.run.as_ref().is_some_and(|run| run.ending.is_none() && run.version == service.version);
        if !is_free || replica.claim < self.shares.price(&service.spec, self.learned(service)) {
            return None;
        }
        let service = self.services.get_mut(name)?;
        let mut pool = service.pool.take()?;
        let given = turns::give(self.now, service, &mut pool, asked, number);
        service.pool = Some(pool);
        given
    }

    /// When something is due for a session by time alone. `None`: it is none that runs and goes on.
    fn session_due(&self, instance: &Instance) -> Option<Duration> {
        let service = self.services.get(&instance.service)?;
        let pool = service.pool.as_ref().filter(|pool| pool.sessions.contains_key(&instance.replica))?;
        let replica = service.replicas.get(&instance.replica)?;
        let run = replica.run.as_ref().filter(|_| replica.generation == instance.generation)?;
        (run.pid.is_some() && run.ending.is_none())
            .then(|| pool.session_due(instance.replica, &service.replicas).unwrap_or(Duration::MAX))
    }

    /// Whether a session whose turn is over waits for the next one, and nobody looks at what it holds.
    fn stays(&self, instance: &Instance) -> bool {
        let Some(service) = self.services.get(&instance.service) else { return false };
        let Some(pool) = &service.pool else { return false };
        let Some(session) = pool.sessions.get(&instance.replica) else { return false };
        let run = service.replicas.get(&instance.replica).and_then(|replica| replica.run.as_ref());
        session.owner != Owner::One
            && pool.spec.recycle_above.is_none()
            && run.is_some_and(|run| run.version == service.version)
    }

    /// Calls again in time for this session as well.
    fn sooner(&mut self, instance: &Instance) -> Light {
        match self.session_due(instance) {
            Some(due) if due > self.now => {
                self.due = self.due.map(|at| at.min(due));
                Light::Whole
            }
            _ => Light::Taken,
        }
    }
}
