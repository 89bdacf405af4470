//! What has to hold of pools: every turn gets one answer, in its conversation's order, on a process that nobody else's
//! conversation has seen; and there are never more processes than allowed.

use std::collections::BTreeMap;
use std::time::Duration;

use plimsoll_core::stack::input::Outcome;
use plimsoll_core::stack::{Effect, Input, Instance, Name, Turn};
use plimsoll_model::pool::{PoolSpec, Protocol, Rehydrate, Reuse};
use plimsoll_model::stack::StackSpec;

use crate::rules::Broken;

#[derive(Debug)]
struct Session {
    is_ready: bool,
    is_leaving: bool,
    /// Whose it is: `None` nobody's yet, `Some(None)` a request's without a conversation.
    owner: Option<Option<Name>>,
    turn: Option<Turn>,
    turns: u32,
    /// It was started to take its conversation up again, and had no turn yet.
    resumes: bool,
    most_turns: Option<u32>,
    /// From an end of input to a kill, the wait for a turn included.
    patience: Duration,
}

#[derive(Debug)]
struct Asked {
    pool: Name,
    key: Option<Name>,
    /// The process that had its conversation, and is of no use for it.
    not: Option<Instance>,
    /// An agent that is started for it may take its conversation up again.
    resumes: bool,
}

/// Pools, as they were told of.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    pools: BTreeMap<Name, PoolSpec>,
    sessions: BTreeMap<Instance, Session>,
    /// Turns that wait, in the order in which they came.
    waiting: BTreeMap<Turn, Asked>,
}

impl Turns {
    pub(crate) fn load(&mut self, spec: &StackSpec) {
        for session in self.sessions.values_mut() {
            // It goes on under what it was started with.
            session.most_turns = None;
        }
        self.pools = spec.pools.iter().map(|(name, pool)| (Name::from(name.as_str()), pool.clone())).collect();
    }

    /// A pool that is in the file.
    pub(crate) fn pool(&self, name: &Name) -> Option<&PoolSpec> {
        self.pools.get(name)
    }

    /// A process of a pool, also of one that is in no file any more.
    pub(crate) fn is_session(&self, instance: &Instance) -> bool {
        self.sessions.contains_key(instance)
    }

    pub(crate) fn input(&mut self, input: &Input) {
        match input {
            Input::Ask { turn, pool, key, is_anew, resumes } => {
                let has = |(instance, session): (&Instance, &Session)| {
                    let is_its = instance.service == *pool && key.is_some() && session.owner.as_ref() == Some(key);
                    is_its.then(|| instance.clone())
                };
                let not = self.sessions.iter().find_map(has).filter(|_| *is_anew);
                let resumes = *resumes && !*is_anew && key.is_some();
                self.waiting.insert(*turn, Asked { pool: pool.clone(), key: key.clone(), not, resumes });
            }
            Input::Withdraw { turn } => {
                self.waiting.remove(turn);
            }
            Input::Ready { instance } => {
                if let Some(session) = self.sessions.get_mut(instance) {
                    session.is_ready = true;
                }
            }
            Input::TurnDone { turn, instance, outcome, .. } => {
                if let Some(session) = self.sessions.get_mut(instance)
                    && session.turn == Some(*turn)
                {
                    session.turn = None;
                    session.turns += 1;
                    if *outcome == Outcome::Forgot {
                        let key = session.owner.clone().flatten();
                        session.is_leaving = true;
                        self.not_resumed(&instance.service, key.as_ref());
                    }
                }
            }
            Input::StartFailed { instance, .. } | Input::Exited { instance, .. } => {
                let session = self.sessions.remove(instance);
                // What has ended before its first turn is not started for the same turns again.
                if let Some(session) = session.filter(|session| session.resumes) {
                    self.not_resumed(&instance.service, session.owner.flatten().as_ref());
                }
            }
            _ => {}
        }
    }

    /// Whoever waits with this conversation is told what was said: no agent takes it up again.
    fn not_resumed(&mut self, pool: &Name, key: Option<&Name>) {
        let waiting = self.waiting.values_mut().filter(|one| one.pool == *pool && one.key.as_ref() == key);
        waiting.for_each(|one| one.resumes = false);
    }

    /// A start of a pool's process, for one conversation alone where it is to be taken up again.
    pub(crate) fn start(&mut self, instance: &Instance, resumes: Option<&Name>) -> Result<(), Broken> {
        let of_key =
            |session: &Session| resumes.is_some() && session.owner.as_ref().and_then(Option::as_ref) == resumes;
        let same = self.sessions.iter().find(|(other, one)| other.service == instance.service && of_key(one));
        if let Some((other, _)) = same {
            return Err(("one process", format!("{resumes:?} has {other}, and {instance} is started for it")));
        }
        let Some(pool) = self.pools.get(&instance.service) else {
            return Err(("wanted", format!("{instance} starts, and there is no such pool")));
        };
        let there = self.sessions.keys().filter(|other| other.service == instance.service).count();
        let most = (pool.max_sessions + pool.warm) as usize;
        if there >= most {
            return Err(("sessions", format!("{instance} is one more than {most}")));
        }
        if let Some(key) = resumes {
            let may = pool.rehydrate == Rehydrate::Resume && pool.protocol == Protocol::Claude;
            let its = |one: &&Asked| one.pool == instance.service && one.key.as_ref() == Some(key) && one.resumes;
            if !may || !self.waiting.values().any(|one| its(&one)) {
                return Err(("resumes", format!("{instance} is to take up {key}, and nobody asks for that")));
            }
            self.one_more_is_owned(instance)?;
        }
        let session = Session {
            is_ready: false,
            is_leaving: false,
            owner: resumes.map(|key| Some(key.clone())),
            turn: None,
            turns: 0,
            resumes: resumes.is_some(),
            most_turns: pool.max_turns,
            patience: pool.process.stop_grace_period * 3,
        };
        self.sessions.insert(instance.clone(), session);
        Ok(())
    }

    /// A process becomes somebody's: of those there are `max_sessions` at most.
    fn one_more_is_owned(&self, instance: &Instance) -> Result<(), Broken> {
        let others = self.sessions.iter().filter(|(other, _)| *other != instance && other.service == instance.service);
        let owned = others.filter(|(_, session)| session.owner.is_some()).count();
        match self.pools.get(&instance.service).map(|pool| pool.max_sessions as usize) {
            Some(most) if owned >= most => Err(("owned", format!("{instance} is somebody's, as {owned} others are"))),
            _ => Ok(()),
        }
    }

    pub(crate) fn effect(&mut self, effect: &Effect) -> Result<(), Broken> {
        match effect {
            Effect::Assign { turn, instance, key, fresh } => self.assign(*turn, instance, key.as_ref(), *fresh),
            Effect::Deny { turn, denial } => match self.waiting.remove(turn) {
                Some(_) => Ok(()),
                None => Err(("turns", format!("{turn:?} is denied ({denial:?}), and does not wait"))),
            },
            Effect::Interrupt { instance, .. } => match self.sessions.get(instance) {
                Some(session) if session.turn.is_some() => Ok(()),
                _ => Err(("turns", format!("{instance} is interrupted and has no turn"))),
            },
            Effect::Hangup { instance, .. } | Effect::Stop { instance, .. } | Effect::Kill { instance, .. } => {
                if let Some(session) = self.sessions.get_mut(instance) {
                    session.is_leaving = true;
                }
                Ok(())
            }
            Effect::SessionGone { instance, .. } if self.sessions.contains_key(instance) => {
                Err(("sessions", format!("{instance} is said to be gone, and is there")))
            }
            _ => Ok(()),
        }
    }

    fn assign(&mut self, turn: Turn, instance: &Instance, key: Option<&Name>, fresh: bool) -> Result<(), Broken> {
        let Some(asked) = self.waiting.remove(&turn) else {
            return Err(("turns", format!("{turn:?} is assigned, and does not wait")));
        };
        if asked.pool != instance.service {
            return Err(("turns", format!("{turn:?} is for {}, and {instance} gets it", asked.pool)));
        }
        if asked.key.as_ref() != key {
            return Err(("turns", format!("{turn:?} is of {:?}, and is assigned as of {key:?}", asked.key)));
        }
        if asked.key.is_some()
            && let Some((earlier, _)) = self
                .waiting
                .iter()
                .find(|(other, one)| **other < turn && one.pool == asked.pool && one.key == asked.key)
        {
            return Err(("order", format!("{turn:?} of {:?} comes before {earlier:?}", asked.key)));
        }
        if asked.not.as_ref() == Some(instance) {
            return Err(("anew", format!("{turn:?} gets {instance}, which knows another conversation")));
        }
        let same = self.sessions.iter().find(|(other, session)| {
            *other != instance
                && other.service == instance.service
                && asked.key.is_some()
                && session.owner.as_ref() == Some(&asked.key)
        });
        if let Some((other, _)) = same {
            return Err(("one process", format!("{:?} has {other} and gets {instance}", asked.key)));
        }
        if self.sessions.get(instance).is_some_and(|session| session.owner.is_none()) {
            self.one_more_is_owned(instance)?;
        }
        let reuse = self.pools.get(&asked.pool).map(|pool| pool.reuse);
        let Some(session) = self.sessions.get_mut(instance) else {
            return Err(("turns", format!("{turn:?} gets {instance}, which is not there")));
        };
        if !session.is_ready || session.is_leaving || session.turn.is_some() {
            return Err(("turns", format!("{turn:?} gets {instance}: {session:?}")));
        }
        if let Some(owner) = &session.owner
            && (*owner != asked.key || asked.key.is_none() && reuse != Some(Reuse::Any))
        {
            return Err(("strangers", format!("{instance} has had {owner:?} and gets {:?}", asked.key)));
        }
        if !fresh && session.owner.is_none() {
            return Err(("turns", format!("{instance} is said to know {:?}, and is new", asked.key)));
        }
        if session.most_turns.is_some_and(|most| session.turns >= most) {
            return Err(("max_turns", format!("{instance} has had {} turns and gets another", session.turns)));
        }
        session.owner = Some(asked.key);
        session.turn = Some(turn);
        session.resumes = false;
        Ok(())
    }

    /// A session that is to be ended has so long until it is killed: end of input, signal, and its turn before.
    pub(crate) fn patience(&self, instance: &Instance) -> Duration {
        self.sessions.get(instance).map_or(Duration::ZERO, |session| session.patience)
    }

    /// After a calm nobody waits any more.
    pub(crate) fn calm(&self) -> Result<(), Broken> {
        match self.waiting.iter().next() {
            Some((turn, asked)) => Err(("liveness", format!("{turn:?} still waits: {asked:?}"))),
            None => Ok(()),
        }
    }
}
