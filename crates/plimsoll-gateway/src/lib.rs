//! The room that speaks HTTP: the one public port of a service's replicas, the control socket, and the gateway's port.
//!
//! One thread of its own ([`gateway`]) runs all of it and is started when the first thing listens. The supervisor's
//! main thread stays a plain loop: it binds addresses, hands over whole routes, and hears through a closure what it
//! waits for. Nothing here decides which replicas there are or whether they are healthy; it is told.
//!
//! A request's way through a service's port:
//! [`serve`] accepts, bounds and times the connection → [`forward`] picks a replica ([`choice`]), makes the message one
//! for the next hop ([`headers`]), takes a connection to it ([`backend`]), and repeats what may be repeated → the body
//! streams back, and its end is what the replica's count of outstanding requests waits for.
//!
//! What the gateway's port says and reads about pools is pure, and knows no socket: [`chat`] are the bodies of chat
//! completions, [`webhook`] those of a chat server's messages, [`tokens`] who may ask, and how often.
//!
//! [`control`] is the other half: a small server whose questions are an enum and whose answers come from a closure of
//! the binary, and [`client`] is what the command line asks it with.
//!
//! [`agent`] speaks with the processes of pools, over their pipes.

pub mod agent;
mod api;
mod backend;
mod balancer;
pub mod chat;
pub mod choice;
pub mod client;
pub mod control;
pub mod counters;
pub mod desk;
mod forward;
pub mod gateway;
pub mod headers;
mod late;
mod leases;
mod limits;
mod poster;
pub mod secret;
mod serve;
mod serving;
mod tape;
pub mod tokens;
pub mod webhook;

pub use balancer::{Backend, State};
pub use counters::{Counters, Tally};
pub use gateway::{Gateway, GatewayError, Told};
pub use limits::Limits;
pub use serving::Counts;
