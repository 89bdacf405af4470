//! `plimsoll shim`: a wrapper that stands where an agent's program is expected, and holds each that is started through it.

use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use plimsoll_model::{duration, size};

use crate::fault::Fault;
use crate::output;

/// Write a wrapper that holds every agent started through it
///
/// A program that starts agents by their path (an SDK's `cli_path`, an editor's setting) is pointed at the wrapper. Each
/// agent then runs as under `plimsoll run`: inside its memory line with all it starts, ended with its parent, and in the
/// budget of the Plimsoll that runs here, for whose room it waits; where none runs, its line alone holds it.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "plimsoll shim [OPTIONS] -- COMMAND [ARG…]",
    after_help = "Examples:
  plimsoll shim -- claude                       ./claude-held for cli_path
  plimsoll shim -m 1g --idle-timeout 10m -o /usr/local/bin/agent -- claude

Exit code: 0 written, 1 the file is there already or cannot be written; 2 usage."
)]
pub(crate) struct ShimArgs {
    /// Hard line of memory for each agent and all it starts
    #[arg(short, long, value_name = "SIZE", default_value = "2g")]
    memory: String,
    /// End an agent after this long without a byte in or out
    #[arg(long, value_name = "DURATION")]
    idle_timeout: Option<String>,
    /// Most processes and threads of an agent
    #[arg(long, value_name = "N")]
    pids_limit: Option<u32>,
    /// Who goes at the line: the whole tree, or the largest process below the agent
    #[arg(long, value_name = "WHO", value_parser = ["tree", "largest"], default_value = "tree")]
    on_limit: String,
    /// The wrapper's file [default: ./COMMAND-held]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace the file if it is there
    #[arg(long)]
    force: bool,
    /// The agent's program, and what always stands before the arguments that it is given
    #[arg(trailing_var_arg = true, required = true, value_name = "COMMAND [ARG…]")]
    command: Vec<String>,
}

pub(crate) fn main(args: &ShimArgs) -> Result<ExitCode, Fault> {
    let usage = |message: String, help: &str| Fault::usage(message, help);
    size::parse(&args.memory).map_err(|error| usage(format!("--memory: {error}"), "write it as in `-m 2g`"))?;
    if let Some(idle) = &args.idle_timeout {
        duration::parse(idle).map_err(|error| usage(format!("--idle-timeout: {error}"), "write it as in `10m`"))?;
    }
    let program = find(&args.command[0]).ok_or_else(|| {
        usage(format!("`{}` is not found along PATH", args.command[0]), "write the whole path of the agent's program")
    })?;
    let ours = std::env::current_exe()
        .map_err(|error| Fault::failed(format!("our own path is not known: {error}"), "is /proc mounted?"))?;
    let name = program.file_name().map_or_else(|| "agent".to_owned(), |name| name.to_string_lossy().into_owned());
    let path = args.output.clone().unwrap_or_else(|| PathBuf::from(format!("{name}-held")));
    if same(&path, &program) {
        return Err(usage(
            format!("{} is the agent's program itself", path.display()),
            "name another file with --output: the wrapper starts the program",
        ));
    }
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => Fault::failed(
            format!("{} is there already, and stays as it is", path.display()),
            "--force replaces it; --output names another",
        ),
        _ => Fault::failed(
            format!("{} cannot be written: {error}", path.display()),
            "name a file in a folder that you may write to: --output FILE",
        ),
    };
    let text = script(args, &ours, &program, &name);
    let mut options = std::fs::OpenOptions::new();
    options.write(true).mode(0o755);
    if args.force {
        options.create(true).truncate(true)
    } else {
        options.create_new(true)
    };
    let mut file = options.open(&path).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o755)).map_err(failed)?;
    let shown = std::path::absolute(&path).unwrap_or(path);
    Ok(output::print(&format!("{} is written: give it to whoever starts {name} by its path\n", shown.display())))
}

/// The wrapper. Questions about the version are answered by the program itself: SDKs ask them with little patience.
fn script(args: &ShimArgs, ours: &Path, program: &Path, name: &str) -> String {
    let command: Vec<String> =
        std::iter::once(program.to_string_lossy().into_owned()).chain(args.command[1..].iter().cloned()).collect();
    let command: Vec<String> = command.iter().map(|word| quoted(word)).collect();
    let command = command.join(" ");
    let plimsoll = quoted(&ours.to_string_lossy());
    let mut options = vec!["--die-with-parent".to_owned(), "--memory".to_owned(), quoted(&args.memory)];
    options.extend(["--on-limit".to_owned(), quoted(&args.on_limit), "--name".to_owned(), quoted(name)]);
    if let Some(idle) = &args.idle_timeout {
        options.extend(["--idle-timeout".to_owned(), quoted(idle)]);
    }
    if let Some(pids) = args.pids_limit {
        options.extend(["--pids-limit".to_owned(), pids.to_string()]);
    }
    let options = options.join(" ");
    format!(
        "#!/bin/sh\n\
         # Written by `plimsoll shim`: stands where {name} is expected, and holds each that is started through it.\n\
         case \"$1\" in -v|--version|-h|--help) exec {command} \"$@\" ;; esac\n\
         join=\n\
         {plimsoll} status --json >/dev/null 2>&1 && join=--join\n\
         exec {plimsoll} run $join {options} -- {command} \"$@\"\n"
    )
}

/// A word as a shell reads it back.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-:=,+@%".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Where a program is: as it was written when it has a slash, else along PATH.
fn find(word: &str) -> Option<PathBuf> {
    let is_program = |path: &PathBuf| {
        std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    if word.contains('/') {
        return std::path::absolute(word).ok().filter(is_program);
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(word)).find(is_program)
}

fn same(one: &Path, other: &Path) -> bool {
    let whole = |path: &Path| std::fs::canonicalize(path).ok();
    whole(one).is_some() && whole(one) == whole(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_read_back_as_it_is() {
        assert_eq!(quoted("/usr/bin/claude"), "/usr/bin/claude");
        assert_eq!(quoted("it's $HOME"), r"'it'\''s $HOME'");
        assert_eq!(quoted(""), "''");
    }

    #[test]
    fn programs_are_found_as_a_shell_does() {
        assert!(find("sh").is_some_and(|path| path.is_absolute()));
        assert_eq!(find("/etc/passwd"), None, "it is no program");
        assert_eq!(find("no-such-program"), None);
    }
}
