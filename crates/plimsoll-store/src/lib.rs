//! What has to survive a crash, and where it lies.
//!
//! - [`paths`]: the two directories that hold all that Plimsoll writes unasked.
//! - [`agents`]: what agents call their conversations, and their transcripts of them.
//! - [`certificates`]: how trees ended, one SQLite file with a bounded history.
//! - [`inbox`]: certificates on their way into that file, a line each.
//! - [`occupied`]: one `up` a state directory.
//! - [`registry`]: which trees are running, one locked file each, so that the next Plimsoll finds what a killed one left.
//!
//! Nothing here decides and nothing here prints: what a caller ought to tell its user comes back as a value.

pub mod agents;
pub mod certificates;
pub mod conversations;
mod digest;
pub mod inbox;
pub mod occupied;
pub mod paths;
pub mod registry;

pub use certificates::{CertificateError, CertificateStore, Notice};
pub use occupied::{Occupied, OccupiedError};
pub use paths::{Environment, Paths, PathsError};
pub use registry::{Leftover, ProcessRef, Registration, RegistryError, RunningTree};
