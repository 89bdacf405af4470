//! `plimsoll completions SHELL`.

use std::process::ExitCode;

use crate::cli::{CompletionsArgs, grammar};
use crate::fault::Fault;

pub(crate) fn main(args: &CompletionsArgs) -> Result<ExitCode, Fault> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut grammar(), "plimsoll", &mut script);
    Ok(crate::output::print(&String::from_utf8_lossy(&script)))
}
