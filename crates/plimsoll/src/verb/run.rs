//! `plimsoll run`.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use plimsoll_core::redact;
use plimsoll_gateway::client::{ClientError, Response, send};
use plimsoll_gateway::control::Command;
use plimsoll_kernel::KernelError;
use plimsoll_kernel::cgroup::{self, surroundings};
use plimsoll_model::RunSpec;
use plimsoll_model::size::Human;
use plimsoll_model::spec::BoundaryChoice;
use plimsoll_runtime::{RunError, RunOptions};
use plimsoll_store::Paths;

use crate::cli::RunArgs;
use crate::cli::run::{Machine, RunRequest, interpret};
use crate::fault::{Fault, RUN_FAILED};
use crate::{output, render};

/// A run that joins a budget waits for room for so long.
const JOIN_PATIENCE: Duration = Duration::from_secs(24 * 3600);

/// After so long it says that it waits.
const SAY_WAITING: Duration = Duration::from_secs(1);

pub(crate) fn main(args: &RunArgs, paths: &Paths) -> Result<ExitCode, Fault> {
    let request = interpret(args, Machine::look(args), |key| std::env::var_os(key))?;
    let RunRequest { spec, report, quiet, kept, join, die_with_parent, swap_asked_for } = request;
    if die_with_parent && !plimsoll_kernel::signal::end_with_parent() {
        return Err(Fault::cannot_run(
            "--die-with-parent: whoever started plimsoll has ended already".to_owned(),
            "nothing was started",
        ));
    }
    // Held until the end.
    let _room = if join { Some(ask_for_room(&spec, paths)?) } else { None };
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
    let secrets = secrets(&spec);
    let command: Vec<String> = spec.command.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let options = RunOptions {
        report,
        state_dir,
        runtime_dir,
        redacted: redact::redact_command(&command, &secrets),
        secrets,
        render: render::three_lines,
        quiet,
        store: !kept,
    };
    let ended = plimsoll_runtime::run(&spec, &found, &options).map_err(|error| refused(&spec, &error))?;
    if !ended.text.is_empty() {
        output::error(ended.text.trim_end());
    }
    Ok(ExitCode::from(ended.code))
}

/// Why nothing was started, and what to do: of an option's file, in the option's words.
fn refused(spec: &RunSpec, error: &RunError) -> Fault {
    if let RunError::Kernel(KernelError::Write { path, source, .. }) = error
        && let Some(option) = option_of(path)
    {
        return match (spec.limits.cpu_micros, surroundings::cpu_quota_above(path)) {
            (Some(micros), Some((above, dir))) if option == "--cpus" && micros > above => Fault::cannot_run(
                format!("--cpus {}: the group above gives {} ({})", cores(micros), cores(above), dir.display()),
                format!("choose at most {}, or raise that group's cpu.cfs_quota_us", cores(above)),
            ),
            _ => Fault::cannot_run(
                format!("{option}: the kernel refuses it: {source} ({})", path.display()),
                format!("choose another value, or leave {option} out"),
            ),
        };
    }
    let help = match error {
        RunError::Log { .. } | RunError::Report { .. } => "name a file that you may write to",
        RunError::Registry(_) => "PLIMSOLL_RUNTIME_DIR names another directory",
        RunError::Kernel(_) => "`plimsoll doctor` tells what this machine gives us",
    };
    Fault::cannot_run(format!("{}: {error}", spec.name), help)
}

/// The option that is written into a group's file of this name.
fn option_of(file: &Path) -> Option<&'static str> {
    Some(match file.file_name()?.to_str()? {
        "memory.limit_in_bytes" | "memory.max" => "--memory",
        "memory.memsw.limit_in_bytes" | "memory.swap.max" => "--memory-swap",
        "memory.soft_limit_in_bytes" | "memory.low" => "--memory-reservation",
        "memory.high" => "--memory-high",
        "cpu.cfs_quota_us" | "cpu.cfs_period_us" | "cpu.max" => "--cpus",
        "pids.max" => "--pids-limit",
        _ => return None,
    })
}

/// Millionths of a core as they are typed.
fn cores(micros: u64) -> String {
    let text = format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Values that are to be shown nowhere: of variables, ours and the tree's, whose names look secret or were listed.
fn secrets(spec: &RunSpec) -> Vec<String> {
    // As text that has been mended: so they stand in the command, too.
    let text = |text: OsString| text.to_string_lossy().into_owned();
    let env: Vec<(String, String)> =
        std::env::vars_os().chain(spec.env.iter().cloned()).map(|(key, value)| (text(key), text(value))).collect();
    let env = || env.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    let list = std::env::var_os("PLIMSOLL_REDACT").map(text).unwrap_or_default();
    let mut secrets = redact::secret_values(env());
    secrets.extend(redact::listed_values(&list, env()));
    secrets
}

fn cannot_prepare(error: plimsoll_store::PathsError) -> Fault {
    Fault { code: RUN_FAILED, message: error.to_string(), help: error.help().to_owned() }
}

/// `--join`: a running Plimsoll holds a budget and answers on its control socket. What it answers is kept open for as
/// long as the room is needed: by the front and the keeper, so that whichever is killed, the tree still has it.
fn ask_for_room(spec: &RunSpec, paths: &Paths) -> Result<Response, Fault> {
    let socket = paths.control_socket();
    let no_answer = |error: &ClientError| match error {
        ClientError::NotThere { .. } => Fault::cannot_run(
            format!("--join: no Plimsoll with a budget runs here: {error}"),
            "leave --join out, for --memory alone holds the tree; or start one with `plimsoll up`",
        ),
        _ => Fault::cannot_run(format!("--join: {error}"), "try again, or leave --join out"),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let name: String = spec.name.chars().map(|c| if plain(c) { c } else { '-' }).take(128).collect();
    let bytes = spec.limits.memory.unwrap_or(0);
    let join = Command::Join { name, bytes, patience_ms: JOIN_PATIENCE.as_millis() as u64 };
    let asked = send(&socket, "POST", &join.target(), None).map_err(|error| no_answer(&error))?;
    if !asked.is_answered_within(SAY_WAITING) {
        output::error(&format!("plimsoll: {}: waits for {} of room in the budget", spec.name, Human(bytes)));
    }
    let response = asked.answer().map_err(|error| no_answer(&error))?;
    if response.status == 200 {
        return Ok(response);
    }
    let why = response.text(64 << 10).map_err(|error| no_answer(&error))?;
    Err(Fault::cannot_run(
        format!("--join: {}", why.trim_end()),
        "`plimsoll status` tells who has the budget; leave --join out to run beside it",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_as_they_are_typed() {
        assert_eq!([1_000_000, 500_000, 10_500_000, 10_000].map(cores), ["1", "0.5", "10.5", "0.01"]);
    }
}
