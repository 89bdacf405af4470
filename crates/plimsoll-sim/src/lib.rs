//! The stack's own state machine against a modelled machine: the same code as under the supervisor, faster than time.
//!
//! ```text
//! seed ─► makeup (a stack, its operators) ─┐
//!                                          ├─► world ─ Input ─► plimsoll-core ─ Effect ─► world ─► machine
//!                                          │                        └────────► rules (watch every step)
//! ```
//! A run has three parts: trouble (everything that can go wrong goes wrong), calm (nothing does any more: whoever can run
//! has to run at its end), and `down` (after which nothing may be left). A seed gives its run again, to the last step.
//!
//! | page | story |
//! |---|---|
//! | `machine` | trees that grow, crash, hang and die slowly; a kernel that kills by badness |
//! | `makeup` | stacks, lives and commands from a seed |
//! | `rules` | what has to hold after every step, in a model of its own |
//! | `turns` | the same for pools: turns and sessions |
//! | `world` | time, and what happens in it |

mod machine;
mod makeup;
mod random;
mod rules;
mod turns;
mod world;

use std::fmt;
use std::time::Duration;

pub use machine::{Happened, Life, Machine, Sacrifice, Shape, Tree};
#[cfg(feature = "sabotage")]
pub use plimsoll_core::stack::sabotage::Rule;
pub use random::Random;

/// What a run is to be like.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Keeps the last lines of what happened, for a failure. Slower.
    pub trace: bool,
    /// Breaks a rule of the core.
    #[cfg(feature = "sabotage")]
    pub broken: Option<Rule>,
    /// Compares each light step with a whole one. Slower.
    #[cfg(feature = "sabotage")]
    pub both_ways: bool,
}

/// What a run was like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Report {
    /// Inputs given.
    pub steps: u64,
    /// Those of them that were taken in a light step, where that is looked at.
    pub light_steps: u64,
    /// Time that passed in it.
    pub simulated: Duration,
    /// Trees started.
    pub starts: u64,
    /// Trees that ended.
    pub ends: u64,
    /// Victims.
    pub evictions: u64,
    /// Kills by the modelled kernel.
    pub oom_kills: u64,
    /// Turns that got a session.
    pub turns: u64,
    /// Sessions that were started to take a conversation up again.
    pub resumed: u64,
    /// Of all effects, in order: equal for equal runs.
    pub digest: u64,
}

/// A rule did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Gives it again.
    pub seed: u64,
    /// The input at which it was seen, from 1.
    pub step: u64,
    /// The time in the run.
    pub at: Duration,
    /// Which rule.
    pub rule: &'static str,
    /// In which way.
    pub detail: String,
    /// What led up to it, with [`Options::trace`].
    pub trace: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.trace.iter().try_for_each(|line| writeln!(f, "{line}"))?;
        let Self { seed, step, at, rule, detail, .. } = self;
        write!(f, "seed {seed}, step {step}, {:.3} s: {rule}: {detail}", at.as_secs_f64())
    }
}

/// Runs one seed.
///
/// # Errors
/// The first rule that did not hold.
pub fn run(seed: u64, options: Options) -> Result<Report, Box<Failure>> {
    world::World::new(seed, options).run()
}
