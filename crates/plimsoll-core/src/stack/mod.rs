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
//! | `replica`, `service` | what is kept of each |
//! | `commands`, `load`, `life`, `pressure`, `settle` | the steps: what was asked, what a file changes, starts and ends, measures, and what follows |

pub mod effect;
pub mod event;
pub mod input;
pub mod ladder;
pub mod name;
pub mod snapshot;

use std::time::Duration;

pub use effect::{Answer, Effect, Refusal};
pub use event::Event;
pub use input::{Command, Input};
pub use ladder::Stage;
pub use name::{Instance, Name, Request};
pub use snapshot::Snapshot;

/// The state of one stack.
#[derive(Debug, Clone)]
pub struct Stack {
    total: u64,
    cores: u32,
}

impl Stack {
    /// An empty stack on a machine or in a container of `total` bytes of memory, with so many processors.
    #[must_use]
    pub fn new(total: u64, cores: u32) -> Self {
        Self { total, cores: cores.max(1) }
    }

    /// Takes one input at `now` and appends what is to be done, in this order. A `now` before the last one counts as the
    /// last one.
    pub fn step(&mut self, now: Duration, input: Input, effects: &mut Vec<Effect>) {
        let _ = (now, input, effects, self.total, self.cores);
    }

    /// The latest time for the next step: without another input it is [`Input::Tick`]. `None`: nothing is due.
    #[must_use]
    pub fn next_due(&self) -> Option<Duration> {
        None
    }

    /// What an operator sees at `now`.
    #[must_use]
    pub fn snapshot(&self, now: Duration) -> Snapshot {
        let _ = now;
        Snapshot {
            host: snapshot::HostRow::default(),
            budget: snapshot::BudgetRow {
                limit_bytes: 0,
                used_bytes: 0,
                admitted_bytes: 0,
                stage: Stage::Normal,
                forecast_ms: None,
                queued: 0,
            },
            services: Vec::new(),
            alerts: Vec::new(),
        }
    }
}
