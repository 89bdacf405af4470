//! The desk: what the room that speaks HTTP and the supervisor say to each other about turns and sessions.
//!
//! The supervisor's core decides who gets which session, when a process is started, interrupted or closed; this room does
//! the talking with agents and clients. A turn is asked for with [`Plea::Ask`] and answered with [`Verdict::Assign`] or
//! [`Verdict::Deny`]; what becomes of it is told with [`Plea::Done`]. A session is the pair of pipes that
//! [`Verdict::Adopt`] brings, known by its generation; it is over with [`Verdict::Ended`], once the process tree is proven
//! gone.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use plimsoll_model::pool::{PoolSpec, RedisSpec};

/// A turn, numbered by this room, never twice in one life of the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Turn(pub u64);

/// A session's process: the generation of its start, never used twice in one life of the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Session(pub u64);

/// What this room tells the supervisor.
#[derive(Debug, Clone, PartialEq)]
pub enum Plea {
    /// A turn wants a session.
    Ask {
        /// Which turn.
        turn: Turn,
        /// Of which pool.
        pool: Arc<str>,
        /// Of which conversation; `None` belongs to none.
        key: Option<Arc<str>>,
        /// The conversation went otherwise than the process knows that has it: another one is needed.
        is_anew: bool,
        /// Where no process has it, an agent that is started for it can take it up again by itself.
        resumes: bool,
    },
    /// Whoever asked has gone: it waits no longer, or what runs is to be interrupted and its session replaced.
    Withdraw {
        /// Which turn.
        turn: Turn,
    },
    /// An agent is ready for its first turn.
    Ready {
        /// Whose.
        session: Session,
    },
    /// Something came from an agent within a turn: at once the first time, then at most once a second.
    Heard {
        /// Whose.
        session: Session,
    },
    /// A turn is over.
    Done {
        /// Which.
        turn: Turn,
        /// Whose.
        session: Session,
        /// How.
        outcome: Outcome,
        /// How much of the model's context is used, per cent, where the agent tells.
        context_percent: Option<f64>,
    },
    /// An agent that was between turns is no longer to be spoken with: it has closed its output, or speaks garbage.
    Lost {
        /// Whose.
        session: Session,
        /// Why, in words.
        why: String,
    },
    /// Something beside turns goes wrong, or no longer does.
    Trouble {
        /// What it is about, in a word.
        about: &'static str,
        /// Why; `None` when all is well again.
        why: Option<String>,
    },
    /// Somebody wants a session closed.
    Close {
        /// Of which pool; `None`: whichever has it.
        pool: Option<Arc<str>>,
        /// Its conversation.
        key: Arc<str>,
    },
}

/// How a turn ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered, or refused by the agent in good order: the session can take another one.
    Answered,
    /// It was interrupted and the agent said so.
    Interrupted,
    /// The session is of no more use: why, in words.
    Broken(String),
    /// It was started to take the conversation up again and knows nothing of it. Nothing was done, and the turn was asked for
    /// again before this.
    Forgot,
}

/// What the supervisor tells this room.
#[derive(Debug)]
pub enum Verdict {
    /// The pools there are from now on: the whole list.
    Pools(BTreeMap<Arc<str>, Arc<PoolSpec>>),
    /// How this room is to work, before anything else.
    Settings(Settings),
    /// A process runs: its standard input and output.
    Adopt {
        /// Which.
        session: Session,
        /// Of which pool.
        pool: Arc<str>,
        /// Written by us.
        stdin: OwnedFd,
        /// Read by us; in non-blocking mode.
        stdout: OwnedFd,
        /// The agent's own name for the conversation that it was told to take up again.
        resumed: Option<String>,
    },
    /// A turn has its session.
    Assign {
        /// Which.
        turn: Turn,
        /// On which.
        session: Session,
        /// The process has not had a turn of this conversation.
        fresh: bool,
    },
    /// A turn does not get one.
    Deny {
        /// Which.
        turn: Turn,
        /// Why.
        denial: Denial,
    },
    /// A running turn is to be stopped.
    Interrupt {
        /// On which.
        session: Session,
        /// Why, in words.
        why: String,
    },
    /// Close its standard input: end of input means finish and exit.
    Hangup {
        /// Whose.
        session: Session,
    },
    /// Its process tree is gone.
    Ended {
        /// Whose.
        session: Session,
        /// Why, in words for a client: the certificate's cause, and for a memory line which one.
        why: String,
        /// Not as it should be: it failed, was killed, or met its line.
        is_failed: bool,
    },
    /// Memory gets short or no longer is: told to an agent that speaks of it.
    Stage {
        /// Whom.
        session: Session,
        /// `normal`, `alert`, `degrade`, `shed`.
        stage: &'static str,
        /// The part of its usual work that it should take on.
        scale: f64,
    },
}

/// How this room is to work.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Where conversations are kept; without it they are forgotten with their processes.
    pub state_dir: Option<PathBuf>,
    /// Where machines that serve the same pools agree on who has which conversation; without it, this one is alone.
    pub redis: Option<RedisSpec>,
    /// The Campfire server that late answers are posted to: scheme, host and port.
    pub campfire: Option<String>,
}

/// Why a turn does not get a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Denial {
    /// There is no such pool (any more).
    UnknownPool,
    /// Everything is being stopped.
    Stopping,
    /// As many wait as may.
    Full(Duration),
    /// It waited for as long as it may.
    Late(Duration),
    /// Memory is short: no new conversation now.
    Short(Duration),
    /// Starts have failed again and again; the next trial is so far away.
    Circuit(Duration),
    /// That its conversation is this machine's cannot be proven: Redis does not answer, or another machine took it over.
    Unproven(Duration),
}
