//! `plimsoll run` from start to end: who waits for what, and in which order effects happen.
//!
//! Two processes look after one tree. The *front* is the process that the user started: it prepares everything that can
//! fail ([`front`]), passes signals on, stops and continues with its job, and exits with the tree's code. The *keeper*
//! ([`keeper`]) is forked from it: a subreaper that starts the root, watches, judges, kills the rest and writes the
//! certificate. Each watches the other through one socket ([`channel`]): whichever is killed, the other ends the tree.
//! When both are, the next plimsoll of any verb does it ([`sweep`]).

mod certify;
pub mod channel;
pub mod front;
pub mod keeper;
pub mod log;
pub mod relay;
mod roll;
pub mod stack;
pub mod sweep;

pub use front::{Ended, RunError, RunOptions, run};
pub use keeper::TAG;
pub use sweep::{Swept, sweep};
