//! What is to be done. An effect's result comes back as a new input; the state machine never assumes that it worked.

use std::sync::Arc;
use std::time::Duration;

use plimsoll_model::ending::Decision;
use plimsoll_model::size::Human as Size;
use plimsoll_model::stack::{Ask, Delivery, ServiceSpec};
use plimsoll_model::{Limits, duration};

use super::event::Event;
use super::ladder::Stage;
use super::name::{Instance, Name, Request, Turn};

/// One thing to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Start a tree. Answer: `Started` or `StartFailed`, then `Exited` for a started one.
    Start {
        /// Which.
        instance: Instance,
        /// Of this service, as it is to be started.
        spec: Arc<ServiceSpec>,
        /// What it gets: every value is decided here, also for what the file leaves open.
        limits: Limits,
        /// It needs a free port of its own (`PORT` in its environment).
        wants_port: bool,
        /// How the start counts in its row of restarts: 0 is none.
        attempt: u32,
        /// It is for this conversation alone, which its agent has had before and is to take up again.
        resumes: Option<Name>,
    },
    /// Ask the root to end: send the signal and keep the decision for the certificate. When the grace is over `Kill`
    /// follows from here.
    Stop {
        /// Which.
        instance: Instance,
        /// The signal's number.
        signal: i32,
        /// How long it has until `Kill`.
        grace: Duration,
        /// Why; it decides the certificate's cause.
        decision: Decision,
    },
    /// End the whole tree at once. Sent again when nothing came of it for long.
    Kill {
        /// Which.
        instance: Instance,
        /// Why, as in the `Stop` before it, if there was one.
        decision: Decision,
    },
    /// Run the service's health test. Answer: `Probed` with the same number.
    Probe {
        /// Which.
        instance: Instance,
        /// Counts the probes of this instance.
        probe: u64,
        /// With the test, which may still hold `${PORT}`.
        spec: Arc<ServiceSpec>,
        /// End it after this and answer `TimedOut`.
        timeout: Duration,
    },
    /// Measure these trees, the budget's group and the machine. Answer: `Sampled`.
    Look {
        /// Which; may be empty, which leaves the budget and the machine.
        instances: Vec<Instance>,
    },
    /// Write the stage file (and, to agents that speak it, the line).
    Stage {
        /// Whose.
        instance: Instance,
        /// The higher one of its own and the budget's.
        stage: Stage,
        /// The part of its usual work that it should take on: 1.0, 0.5 at degrade, 0.25 at shed.
        scale: f64,
    },
    /// Run its hook, or send its signal.
    Ask {
        /// Whom.
        instance: Instance,
        /// How.
        ask: Ask,
        /// The stage that it is about.
        stage: Stage,
    },
    /// Have the kernel take so much from it (`memory.reclaim`), in small steps; where it cannot, nothing.
    Reclaim {
        /// From whom.
        instance: Instance,
        /// How much, bytes.
        bytes: u64,
    },
    /// The replicas that stand behind a service's public address from now on; the whole list.
    Route {
        /// Of which service.
        service: Name,
        /// Where to listen; `None` closes the address.
        listen: Option<std::net::SocketAddr>,
        /// Who answers, now or soon; may be empty, then requests are refused.
        backends: Vec<Backend>,
    },
    /// Give it no new request, and answer `Drained` once none is open. It is no longer among the backends that are ready.
    Drain {
        /// Which.
        instance: Instance,
        /// So long at most: then it is stopped all the same.
        patience: Duration,
    },
    /// Put each process over a tenth of memory into the journal, with its tree.
    Census,
    /// Write the journal's row and the log's line, and count.
    Emit(Event),
    /// Tell somebody of an alert.
    Deliver {
        /// How.
        delivery: Delivery,
        /// What: `AlertFiring`.
        event: Event,
    },
    /// Answer a command.
    Answer {
        /// Whose.
        request: Request,
        /// What.
        answer: Answer,
    },
    /// `down` is done: no process is left, and nothing will start any more.
    Finished,
    /// A turn has its session: have the agent take it. Answer: `TurnDone`.
    Assign {
        /// Which turn.
        turn: Turn,
        /// Which session.
        instance: Instance,
        /// Its conversation.
        key: Option<Name>,
        /// The process knows nothing of the turn's conversation.
        fresh: bool,
    },
    /// A turn does not get a session.
    Deny {
        /// Which turn.
        turn: Turn,
        /// Why.
        denial: Denial,
    },
    /// Tell an agent to stop its turn. `TurnDone` follows, or from here what does not wait for it.
    Interrupt {
        /// Which session.
        instance: Instance,
        /// Why, in words.
        why: String,
    },
    /// Close a session's input, the gentlest way to ask it to end: `Stop` and `Kill` follow from here. The decision is for
    /// the certificate.
    Hangup {
        /// Which session.
        instance: Instance,
        /// Why.
        decision: Decision,
    },
    /// A session's tree is gone; whoever had a turn on it is told why.
    SessionGone {
        /// Which session.
        instance: Instance,
        /// Why, in words.
        why: String,
        /// Not as it should be: it failed, was killed, or met its line.
        is_failed: bool,
    },
}

/// Why a turn does not get a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denial {
    /// There is no such pool (any more).
    UnknownPool,
    /// Everything is being stopped.
    Stopping,
    /// As many wait as may; when to come again.
    Full(Duration),
    /// It waited for as long as it may; when to come again.
    Late(Duration),
    /// Memory is short: no new conversation now; when to come again.
    Short(Duration),
    /// Starts have failed again and again; how far away the next trial is.
    Circuit(Duration),
}

/// A replica behind a public address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// Which.
    pub instance: Instance,
    /// Its port on this machine; 0 for one that has none yet.
    pub port: u16,
    /// What it may be given.
    pub readiness: Readiness,
}

/// What a replica behind a public address may be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// Nothing yet, and a request that nobody else takes may wait for it: it starts, or will within [`SOON`].
    Soon,
    /// Requests.
    Ready,
    /// Requests when no other takes them: it is about to meet its line.
    Spare,
}

/// A restart that is farther away is not waited for.
pub const SOON: Duration = Duration::from_secs(10);

/// The answer to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// What was asked for is so.
    Done,
    /// The stack was loaded. The names are sorted; a service in none of the lists was not touched.
    Loaded {
        /// Services that are new.
        added: Vec<Name>,
        /// Services of which replicas are replaced, one after the other.
        restarted: Vec<Name>,
        /// Services that changed without a restart.
        adapted: Vec<Name>,
        /// Services that are stopped and forgotten.
        removed: Vec<Name>,
    },
    /// There is room: it is held until `Left`.
    Admitted,
    /// It is not done.
    Refused(Refusal),
}

/// Why a command was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No service is called so.
    #[error("no service is called `{0}`")]
    UnknownService(Name),
    /// The number of replicas is not allowed.
    #[error("{service} may have {least} to {most} replicas, not {asked}")]
    Replicas {
        /// Which service.
        service: Name,
        /// What was asked for.
        asked: u32,
        /// At least.
        least: u32,
        /// At most.
        most: u32,
    },
    /// A pool has no replicas to scale.
    #[error("`{0}` is a pool: `max_sessions` and `warm` in the file say how many processes it has")]
    Pool(Name),
    /// The budget has no room.
    #[error(
        "the budget has no room: {} are needed, {} are free; try again in {}",
        Size(*needed_bytes), Size(*free_bytes), duration::Human(*retry_after)
    )]
    NoRoom {
        /// What is needed, bytes.
        needed_bytes: u64,
        /// What is free, bytes.
        free_bytes: u64,
        /// When it may be there, from what is expected to free.
        retry_after: Duration,
    },
    /// It is more than the whole budget.
    #[error("{} are more than the whole budget of {}", Size(*needed_bytes), Size(*budget_bytes))]
    NeverFits {
        /// What is needed, bytes.
        needed_bytes: u64,
        /// The budget, bytes.
        budget_bytes: u64,
    },
    /// It does not come up: see its last cause.
    #[error("{0} does not come up")]
    Failed(Instance),
    /// A later command asked for something else.
    #[error("a later command asked for something else")]
    Superseded,
    /// Everything is being stopped.
    #[error("everything is being stopped")]
    Stopping,
    /// Too many commands wait for their answers.
    #[error("too many commands wait for their answers")]
    Busy,
}
