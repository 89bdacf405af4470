//! Control groups: which hierarchies there are, where we may make groups, and one file for each version's controllers.

mod files;
pub mod probe;
pub mod surroundings;
pub mod teardown;
pub mod v1;
pub mod v2;

pub use probe::{Found, Hierarchies, Parent, Surrounding, probe};
