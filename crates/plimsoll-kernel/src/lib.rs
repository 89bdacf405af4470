//! The kernel's side: `/proc`, cgroups, pids, signals and the clock. The only crate with unsafe code.

pub mod kmsg;
pub mod procfs;
