//! Decisions, and nothing else: no clock, no file, no thread, no random source. The runtime feeds in what was measured
//! and carries out what is decided here, so every decision can be replayed.

pub mod advice;
pub mod doctor;
pub mod history;
pub mod redact;
pub mod slope;
pub mod stack;
pub mod thrash;
pub mod verdict;
pub mod watch;
