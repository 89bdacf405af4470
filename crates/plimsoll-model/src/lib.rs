//! The names of things: sizes, durations, limits, samples, endings, certificates.
//!
//! Every other crate speaks in these types and this one knows none of them, so a word means the same in the
//! core that decides, the kernel that measures and the store that remembers. No I/O, no clock.

pub mod certificate;
pub mod duration;
pub mod ending;
pub mod host;
pub mod id;
pub mod pool;
pub mod sample;
pub mod size;
pub mod spec;
pub mod stack;

pub use certificate::{Boundary, Cause, Certificate, Confidence, Evidence};
pub use id::RunId;
pub use sample::{Member, Sample, Strain};
pub use spec::{Limits, OnLimit, RunSpec};
