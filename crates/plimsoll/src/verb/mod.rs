//! One file for each verb: takes what was typed, answers with an exit code or a fault.

pub(crate) mod check;
pub(crate) mod completions;
pub(crate) mod control;
pub(crate) mod doctor;
pub(crate) mod events;
pub(crate) mod explain;
pub(crate) mod health;
pub(crate) mod init;
pub(crate) mod man;
pub(crate) mod run;
pub(crate) mod schema;
pub(crate) mod shim;
pub(crate) mod status;
pub(crate) mod top;
pub(crate) mod up;
mod view;
