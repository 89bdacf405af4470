//! `plimsoll run`.

use std::process::ExitCode;

use plimsoll_core::redact;
use plimsoll_kernel::cgroup;
use plimsoll_model::spec::BoundaryChoice;
use plimsoll_runtime::{RunError, RunOptions};
use plimsoll_store::Paths;

use crate::cli::RunArgs;
use crate::cli::run::{Machine, RunRequest, interpret};
use crate::fault::{Fault, RUN_FAILED};
use crate::{output, render};

pub(crate) fn main(args: &RunArgs, paths: &Paths) -> Result<ExitCode, Fault> {
    let request = interpret(args, Machine::look(args), |key| std::env::var_os(key))?;
    let RunRequest { spec, report, quiet, join, swap_asked_for } = request;
    if join {
        ask_for_room(paths)?;
    }
    let parent = std::env::var("PLIMSOLL_CGROUP_PARENT").ok();
    let found = cgroup::probe(spec.boundary, parent.as_deref()).map_err(|error| {
        let help = match spec.boundary {
            BoundaryChoice::Cgroup => {
                "--boundary watchdog holds the memory line without groups; `plimsoll doctor` tells more"
            }
            _ => "name a group that was given to this user, or unset PLIMSOLL_CGROUP_PARENT",
        };
        Fault::cannot_run(error.to_string(), help)
    })?;
    if let Some((option, why)) = cgroup::probe::unsupported(&found, &spec.limits, swap_asked_for) {
        return Err(Fault::cannot_run(
            format!("{option} cannot be enforced on the {} tier: {why}", found.boundary.as_str()),
            format!("leave {option} out; `plimsoll doctor` tells why this is the tier: {}", found.reason),
        ));
    }
    let state_dir = paths.make_state().map_err(cannot_prepare)?;
    let runtime_dir = paths.make_runtime().map_err(cannot_prepare)?;
    let env: Vec<(String, String)> = std::env::vars_os()
        .chain(spec.env.iter().cloned())
        .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let secrets = redact::secret_values(env.iter().map(|(key, value)| (key.as_str(), value.as_str())));
    let command: Vec<String> = spec.command.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let options = RunOptions {
        report,
        state_dir,
        runtime_dir,
        redacted: redact::redact_command(&command, &secrets),
        secrets,
        render: render::three_lines,
        quiet,
    };
    let ended = plimsoll_runtime::run(&spec, &found, &options).map_err(|error| {
        let help = match &error {
            RunError::Log { .. } | RunError::Report { .. } => "name a file that you may write to",
            RunError::Registry(_) => "PLIMSOLL_RUNTIME_DIR names another directory",
            RunError::Kernel(_) => "`plimsoll doctor` tells what this machine gives us",
        };
        Fault::cannot_run(format!("{}: {error}", spec.name), help)
    })?;
    if !ended.text.is_empty() {
        output::error(ended.text.trim_end());
    }
    // A plimsoll in the tree was ended with it; what it looked after is gone as well, and its record goes now.
    let _ = plimsoll_runtime::sweep(runtime_dir, state_dir);
    Ok(ExitCode::from(ended.code))
}

fn cannot_prepare(error: plimsoll_store::PathsError) -> Fault {
    Fault { code: RUN_FAILED, message: error.to_string(), help: error.help().to_owned() }
}

/// `--join`: a running Plimsoll holds a budget and answers on its control socket.
fn ask_for_room(paths: &Paths) -> Result<(), Fault> {
    let socket = paths.control_socket();
    let why = match std::os::unix::net::UnixStream::connect(&socket) {
        Ok(_) => "what answers there grants no room to others".to_owned(),
        Err(error) => error.to_string(),
    };
    Err(Fault::cannot_run(
        format!("--join: no Plimsoll with a budget runs here ({}: {why})", socket.display()),
        "leave --join out: --memory alone holds the tree",
    ))
}
