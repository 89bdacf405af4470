//! What passes between the core and the room that talks with agents and clients.

use std::sync::Arc;

use plimsoll_core::stack::effect::Denial;
use plimsoll_core::stack::input::Outcome;
use plimsoll_core::stack::{Input, Instance, Name, Turn};
use plimsoll_gateway::control::Door;
use plimsoll_gateway::desk::{self, Plea, Session, Settings, Verdict};
use plimsoll_gateway::tokens::Tokens;
use plimsoll_model::pool::GatewaySpec;
use plimsoll_model::stack::StackSpec;

use super::Supervisor;
use super::past::Past;
use crate::stack::replica::Replica;
use crate::stack::seat::Seat;

impl Supervisor<'_> {
    /// What the room asks, or has to tell.
    pub(super) fn plea(&mut self, plea: Plea) {
        let input = match plea {
            Plea::Ask { turn, pool, key, is_anew, resumes } => {
                let key = key.as_deref().map(Name::from);
                Input::Ask { turn: Turn(turn.0), pool: (&*pool).into(), key, is_anew, resumes }
            }
            Plea::Withdraw { turn } => Input::Withdraw { turn: Turn(turn.0) },
            Plea::Trouble { about, why } => return self.trouble(about, why),
            Plea::Close { pool, key } => {
                Input::CloseSession { pool: pool.as_deref().map(Name::from), key: (&*key).into() }
            }
            Plea::Ready { session } => match self.sessions.get(&session.0) {
                Some(instance) => Input::Ready { instance: instance.clone() },
                None => return,
            },
            Plea::Heard { session } => match self.sessions.get(&session.0) {
                Some(instance) => Input::Heard { instance: instance.clone() },
                None => return,
            },
            Plea::Lost { session, why } => match self.sessions.get(&session.0) {
                Some(instance) => Input::Lost { instance: instance.clone(), why },
                None => return,
            },
            Plea::Done { turn, session, outcome, context_percent } => match self.sessions.get(&session.0) {
                Some(instance) => Input::TurnDone {
                    turn: Turn(turn.0),
                    instance: instance.clone(),
                    outcome: match outcome {
                        desk::Outcome::Answered => Outcome::Answered,
                        desk::Outcome::Interrupted => Outcome::Interrupted,
                        desk::Outcome::Broken(why) => Outcome::Broken(why),
                        desk::Outcome::Forgot => Outcome::Forgot,
                    },
                    context_percent,
                },
                None => return,
            },
        };
        self.input(input);
    }

    /// The room is told which pools there are.
    pub(super) fn tell_pools(&self) {
        let campfire = self.options.spec.gateway.as_ref().and_then(|gateway| gateway.campfire.clone());
        let redis = self.options.spec.redis.clone();
        let settings = Settings { state_dir: Some(self.options.state_dir.clone()), redis, campfire };
        self.gateway.tell(Verdict::Settings(settings));
        let pools = self.options.spec.pools.iter().map(|(name, pool)| (name.as_str().into(), Arc::new(pool.clone())));
        self.gateway.tell(Verdict::Pools(pools.collect()));
    }

    /// Opens the gateway's port.
    pub(super) fn open_gateway(&mut self) {
        let Some(spec) = self.options.spec.gateway.clone() else { return };
        let opened = tokens(&spec, &self.options.spec)
            .and_then(|tokens| Door::port(spec.listen, spec.hosts.clone(), tokens).map_err(|error| error.to_string()));
        match opened {
            Ok(door) => {
                let ask = self.ask.clone();
                self.gateway.serve(door, move |question, reply| ask(question, reply));
            }
            Err(why) => self.trouble("gateway", Some(why)),
        }
    }

    /// Where a session lives; `None` of what is no session.
    pub(super) fn seat(&mut self, instance: &Instance, past: Option<&Past>) -> Result<Option<Seat>, String> {
        let Some(pool) = self.options.spec.pools.get(&*instance.service) else { return Ok(None) };
        let about = format!("isolation of {}", instance.service);
        // Without groups a run of ours keeps it, which has to be who we are.
        let may_change_user = self.found.parent.is_some();
        let name = self.seat_name(instance, past);
        let made = Seat::make(&self.options.runtime_dir, name, pool, &self.users, may_change_user);
        let (seat, lacking) = made?;
        self.users.extend(seat.user);
        self.trouble(&about, lacking);
        Ok(Some(seat))
    }

    /// A session runs: the room gets its input and output.
    pub(super) fn adopt(&mut self, replica: &mut Replica, resumed: Option<String>) {
        let Some((stdin, stdout)) = replica.pipes.take() else { return };
        let instance = replica.instance.clone();
        let pool = (&*instance.service).into();
        let session = Session(instance.generation);
        self.sessions.insert(instance.generation, instance);
        self.gateway.tell(Verdict::Adopt { session, pool, stdin, stdout, resumed });
    }

    /// A session's tree is gone.
    pub(super) fn session_gone(&mut self, instance: &Instance, why: String, is_failed: bool) {
        self.sessions.remove(&instance.generation);
        self.gateway.tell(Verdict::Ended { session: Session(instance.generation), why, is_failed });
    }

    /// What the core says to the room.
    pub(super) fn say_denied(&self, turn: Turn, denial: Denial) {
        let denial = match denial {
            Denial::UnknownPool => desk::Denial::UnknownPool,
            Denial::Stopping => desk::Denial::Stopping,
            Denial::Full(after) => desk::Denial::Full(after),
            Denial::Late(after) => desk::Denial::Late(after),
            Denial::Short(after) => desk::Denial::Short(after),
            Denial::Circuit(after) => desk::Denial::Circuit(after),
        };
        self.gateway.tell(Verdict::Deny { turn: desk::Turn(turn.0), denial });
    }
}

/// The tokens that strangers have to show.
fn tokens(spec: &GatewaySpec, pools: &StackSpec) -> Result<Option<Tokens>, String> {
    let Some(file) = &spec.token_file else { return Ok(None) };
    let shown = file.display();
    let text = std::fs::read_to_string(file).map_err(|error| format!("{shown}: {error}"))?;
    let tokens = Tokens::parse(&text).map_err(|error| format!("{shown}: {error}"))?;
    tokens.check(|name| pools.pools.contains_key(name)).map_err(|error| format!("{shown}: {error}"))?;
    Ok(Some(tokens))
}
