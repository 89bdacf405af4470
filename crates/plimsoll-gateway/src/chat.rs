//! Chat completions: what a client's body says, and what is said back. Pure shapes; no socket, no clock, no session.
//!
//! [`request`] reads a body → [`conversation`] finds what of it is new to the session and how an agent that has not heard the
//! rest is told → the agent's words go back as one [`response`] or in pieces, after [`structured`] has looked at them where
//! JSON was demanded. Whatever goes wrong is a [`Problem`]. [`models`] says which pool a name means.

pub mod conversation;
pub mod models;
pub mod problem;
pub mod request;
pub mod response;
pub mod schema;
pub mod structured;

pub use problem::Problem;
pub use request::{Message, Request, Role};
