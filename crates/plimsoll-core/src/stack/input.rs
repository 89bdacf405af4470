//! What the state machine is told. Nothing else moves it but the time that comes with each input.

use std::sync::Arc;
use std::time::Duration;

use plimsoll_model::Cause;
use plimsoll_model::stack::StackSpec;

use super::name::{Instance, Name, Request, Turn};

/// One thing that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// What former runs of this stack taught, from the journal; before the first [`Input::Load`].
    Remember(Vec<Remembered>),
    /// What is to run: at the beginning and again at each reload. It is valid (no cycles, no unknown dependencies, the
    /// reservations fit); that is the configuration's job.
    Load {
        /// Who is answered, if anybody.
        request: Option<Request>,
        /// The whole of it; what equals the stack before is not touched.
        spec: Arc<StackSpec>,
    },
    /// The memory that the machine or container really has has changed, bytes.
    Capacity(u64),
    /// Somebody asked for something; answered by one [`super::effect::Effect::Answer`].
    Command {
        /// Who.
        request: Request,
        /// What.
        command: Command,
    },
    /// A start came to a running root.
    Started {
        /// Which.
        instance: Instance,
        /// Pid of the root.
        pid: i32,
        /// Its own port, if it was to have one.
        port: Option<u16>,
    },
    /// A start came to nothing, and nothing is left of it. It is this instance's end: no [`Input::Exited`] follows.
    StartFailed {
        /// Which.
        instance: Instance,
        /// In a word for people: what could not be done, and why.
        why: String,
    },
    /// A tree has ended, and it is proven that no process of it is left.
    Exited {
        /// Which.
        instance: Instance,
        /// How.
        end: End,
    },
    /// Answer to [`super::effect::Effect::Probe`].
    Probed {
        /// Which.
        instance: Instance,
        /// Of which probe.
        probe: u64,
        /// What came of it.
        outcome: Probe,
    },
    /// Answer to [`super::effect::Effect::Look`], or sent unasked when the kernel notified of something.
    Sampled(Measured),
    /// Answer to [`super::effect::Effect::Drain`]: no request of it is open any more.
    Drained {
        /// Which.
        instance: Instance,
    },
    /// A tree sits at its line and gets nowhere (`memory.high` that cannot be met, or thrashing): see [`crate::thrash`].
    Livelocked {
        /// Which.
        instance: Instance,
        /// What it holds, bytes.
        usage: u64,
        /// The line, bytes.
        limit: u64,
    },
    /// A run that had joined the budget ([`Command::Join`]) is over, or its waiting was given up.
    Left {
        /// Which: the number of its request.
        request: Request,
    },
    /// A turn wants a session; answered by [`super::effect::Effect::Assign`] or [`super::effect::Effect::Deny`].
    Ask {
        /// Its number.
        turn: Turn,
        /// Of which pool.
        pool: Name,
        /// Of which conversation; `None` belongs to none.
        key: Option<Name>,
        /// The conversation went otherwise than the process knows that has it: another one is needed.
        is_anew: bool,
        /// Where no process has the conversation, an agent can take it up by itself: one is started for it alone.
        resumes: bool,
    },
    /// Whoever asked for a turn has gone.
    Withdraw {
        /// Which turn.
        turn: Turn,
    },
    /// An agent can take its first turn.
    Ready {
        /// Which session.
        instance: Instance,
    },
    /// Something came from an agent within its turn.
    Heard {
        /// Which session.
        instance: Instance,
    },
    /// A turn is over.
    TurnDone {
        /// Which turn.
        turn: Turn,
        /// On which session.
        instance: Instance,
        /// How.
        outcome: Outcome,
        /// How much of the model's context is used, per cent, where that is known.
        context_percent: Option<f64>,
    },
    /// An agent without a turn has closed its output, or speaks no sense.
    Lost {
        /// Which session.
        instance: Instance,
        /// In words.
        why: String,
    },
    /// Somebody wants a session closed.
    CloseSession {
        /// Of which pool; `None`: whichever has it.
        pool: Option<Name>,
        /// Its conversation.
        key: Name,
    },
    /// Time has passed: [`super::Stack::next_due`] is reached.
    Tick,
}

/// How a turn ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// In good order: the session can take another one.
    Answered,
    /// It was told to stop, and said that it did.
    Interrupted,
    /// The session is of no more use: why, in words.
    Broken(String),
    /// It was started to take its conversation up again, and knows nothing of it. Nothing was done of the turn, which has been
    /// asked for again ([`Input::Ask`] with the same number): first, so that it comes before later ones whatever happens.
    Forgot,
}

/// What somebody asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Starts a service and what it depends on; answered when its replicas are available, or cannot be.
    Start(Name),
    /// Stops a service, and leaves it stopped; answered when nothing of it runs.
    Stop(Name),
    /// Restarts a service's replicas, one after the other; answered when all are new and available, or cannot be.
    Restart(Name),
    /// Sets the number of replicas; answered when so many are available, or cannot be.
    Scale(Name, u32),
    /// Stops everything in reverse order of dependency; answered when nothing runs.
    Down,
    /// A run of somebody else asks the budget for room; answered when it is there, or with a refusal.
    Join {
        /// What it is called.
        name: String,
        /// How much, bytes.
        bytes: u64,
        /// How long it waits at most.
        patience: Duration,
    },
}

/// How a tree ended. The certificate with all the rest is the runtime's to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// The verdict.
    pub cause: Cause,
    /// The root's exit code, if it has one.
    pub code: Option<i32>,
    /// The signal that ended the root, if one did.
    pub signal: Option<i32>,
    /// What it held at the end and came back, bytes.
    pub bytes_freed: u64,
    /// The most it held, bytes, where the kernel tells.
    pub peak_bytes: Option<u64>,
    /// Times that it lost somebody for memory, all of them.
    pub oom_kills: u64,
    /// Processes of it that could not be killed; 0 but where a disk is dead.
    pub survivors: u32,
}

/// What came of a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// The test ended with code 0.
    Healthy,
    /// It ended otherwise; the last line that it printed, or its code.
    Failed(String),
    /// It took longer than its timeout, and was ended.
    TimedOut,
    /// It could not be started: nothing is known about the service.
    NotRun(String),
}

/// What was measured at one instant.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Measured {
    /// The trees that were looked at.
    pub trees: Vec<TreeSample>,
    /// What all of them hold together, bytes: the charge of their common group where there is one.
    pub budget_used_bytes: Option<u64>,
    /// The machine.
    pub host: HostSample,
}

/// One tree at one instant. Counters count since its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeSample {
    /// Which.
    pub instance: Instance,
    /// What it holds, bytes.
    pub memory_bytes: u64,
    /// Processor time it has used.
    pub cpu: Duration,
    /// Periods of its processor quota so far (`nr_periods`); 0 without a quota.
    pub periods: u64,
    /// Those in which it was stopped at its quota (`nr_throttled`).
    pub throttled: u64,
    /// Processes.
    pub processes: u32,
    /// Times that it lost somebody for memory.
    pub oom_kills: u64,
}

/// The machine or container at one instant; what is not readable is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct HostSample {
    /// Memory that could be had without pushing anybody into swap, bytes.
    pub available_bytes: Option<u64>,
    /// Share of the last ten seconds in which all tasks waited for memory, per cent (PSI `full avg10`).
    pub memory_full_percent: Option<f64>,
    /// Load average over a minute.
    pub load_1m: Option<f64>,
    /// Swap in use, bytes.
    pub swap_used_bytes: Option<u64>,
    /// Share of time in which processors waited for a disk, per cent.
    pub io_wait_percent: Option<f64>,
}

/// What is known about a service from before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remembered {
    /// Which.
    pub service: Name,
    /// Restarts so far.
    pub restarts: u64,
    /// Processes killed for memory so far.
    pub oom_kills: u64,
    /// The most that each of its last runs held, bytes, oldest first; of more than eight the last ones count.
    pub peaks: Vec<u64>,
    /// It was stopped on request: it stays stopped under `unless-stopped`.
    pub stopped: bool,
}
