//! What was asked for in `pools:` and `gateway:`: agents that answer turns, and the port at which they are asked.
//!
//! As in [`crate::stack`], every default of the file's grammar is filled in here, and every path is absolute.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::stack::ServiceSpec;

/// One pool: agents of one kind, each the root of a session's tree.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolSpec {
    /// How a session's tree is started and held, in the words of a service: command, environment, limits, priority, what
    /// happens at its line. What a service has and a session has not (`restart`, `listen`, `scale`, …) stands at its default;
    /// `mem_limit` is the line of one session.
    pub process: ServiceSpec,
    /// What is spoken over its standard streams.
    pub protocol: Protocol,
    /// Further names under which it is offered.
    pub models: Vec<String>,
    /// Whether a process keeps to one conversation.
    pub reuse: Reuse,
    /// Sessions at most that have, or had last, a conversation.
    pub max_sessions: u32,
    /// Processes that are started ahead, beside those.
    pub warm: u32,
    /// A session without a turn for so long is closed (5 min).
    pub idle_ttl: Duration,
    /// After so many turns the process is replaced; `None` is without end.
    pub max_turns: Option<u32>,
    /// Up to so many turns fewer, by chance, so that not all are replaced at once (0).
    pub max_turns_jitter: u32,
    /// The process is replaced when so much of the model's context is used, per cent.
    pub max_context: Option<f64>,
    /// After so long the process is replaced, once its turn is over.
    pub max_age: Option<Duration>,
    /// The process is replaced after a turn when its tree holds more, bytes.
    pub recycle_above: Option<u64>,
    /// From its start until it can take a turn (30 s).
    pub start_timeout: Duration,
    /// From a turn's begin to the first byte (2 min).
    pub first_byte_timeout: Duration,
    /// Without a byte within a turn (5 min).
    pub stall_timeout: Duration,
    /// A whole turn (10 min).
    pub turn_timeout: Duration,
    /// Turns that wait for a session.
    pub queue: QueueSpec,
    /// How a conversation goes on in a new process.
    pub rehydrate: Rehydrate,
    /// A line of the agent's that is longer breaks its session, bytes (64 MiB).
    pub max_line: u64,
    /// Whether sessions are kept apart: a home, a temporary folder and, as root, a user for each.
    pub isolation: Isolation,
    /// Variables of Plimsoll's own environment that its agents get; everything else of it stays here. `PATH`, `LANG`, `LC_*`
    /// and `TZ` always go.
    pub pass_environment: Vec<String>,
}

impl PoolSpec {
    /// Processes that there are of it at least: those started ahead, or the one without which it is of no use.
    #[must_use]
    pub fn least_processes(&self) -> u32 {
        self.warm.max(1)
    }

    /// Processes that there are of it at most.
    #[must_use]
    pub fn most_processes(&self) -> u32 {
        self.max_sessions.saturating_add(self.warm)
    }
}

/// What an agent speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// The stream-json of the Claude Code CLI; its flags are added to the command.
    Claude,
    /// Lines of JSON as the contract has them.
    Jsonl,
    /// One process a turn: the prompt on its standard input, the answer on its standard output.
    Exec,
}

/// Who may share a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reuse {
    /// One conversation a process.
    #[default]
    Session,
    /// Requests without a session, until the process is replaced.
    Any,
}

/// How a conversation goes on in a new process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Rehydrate {
    /// A process is started for the conversation, and its agent takes its own transcript up again (`--resume`); where there is
    /// none, or its protocol has no word for that, as `Replay`.
    #[default]
    Resume,
    /// It is told the stored history.
    Replay,
    /// It begins anew: what was said before counts no longer. A client that sends its whole history with each request is
    /// heard all the same, as that is what it asks.
    None,
}

/// Whether sessions are kept apart from each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Isolation {
    /// A home, a temporary folder, a working folder and, as root, a user for each; else Landlock where the kernel has it.
    #[default]
    Session,
    /// All run as we do, in the pool's `working_dir`.
    None,
}

/// `queue:`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueSpec {
    /// Turns that wait at most (32); one more is refused.
    pub max: u32,
    /// Whoever waited for so long is refused (30 s).
    pub timeout: Duration,
}

impl Default for QueueSpec {
    fn default() -> Self {
        Self { max: 32, timeout: Duration::from_secs(30) }
    }
}

/// `gateway:`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewaySpec {
    /// Where it listens (127.0.0.1:7070).
    pub listen: SocketAddr,
    /// Tokens, a line each: the token, then `pools=a,b` and `rate=60/m` if it is for some pools or so many requests alone.
    pub token_file: Option<PathBuf>,
    /// Names under which it may be asked for, beside those of this machine.
    pub hosts: Vec<String>,
    /// The Campfire server whose webhooks are answered: scheme, host and port.
    pub campfire: Option<String>,
}

/// `redis:`.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisSpec {
    /// `redis://[[USER]:PASSWORD@]HOST[:PORT][/DB]`.
    pub url: String,
}

impl std::fmt::Debug for RedisSpec {
    /// There may be a password in it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RedisSpec(…)")
    }
}
