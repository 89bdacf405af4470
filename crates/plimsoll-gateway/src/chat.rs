//! Chat completions: what a client's body says, and what is said back. Pure shapes; no socket, no clock, no session.

pub mod models;
pub mod problem;
pub mod response;

pub use problem::Problem;
