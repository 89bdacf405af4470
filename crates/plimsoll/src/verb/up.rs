//! `plimsoll up` and the verbs that speak with it over its control socket.

use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use plimsoll_config::Severity;
use plimsoll_core::stack::snapshot::{ServiceRow, Snapshot};
use plimsoll_gateway::client::{ClientError, Response, ask};
use plimsoll_gateway::control::Command;
use plimsoll_kernel::cgroup;
use plimsoll_model::size::Human;
use plimsoll_model::spec::{BoundaryChoice, LogSpec, Overflow};
use plimsoll_model::stack::StackSpec;
use plimsoll_runtime::log::RotatingLog;
use plimsoll_runtime::stack::{StackOptions, up};
use plimsoll_store::Paths;

use crate::fault::{Fault, USAGE};
use crate::output;

/// Longest wait for an answer that needs no work.
const PATIENCE: Duration = Duration::from_secs(20);

/// Longest answer that is read whole, bytes.
const LONGEST: u64 = 64 << 20;

/// Start the services of a plimsoll.yaml, inside one budget
///
/// Runs in the foreground until Ctrl-C or `plimsoll down`. Where it runs already, the file is read again, and only what
/// changed in it is touched (SIGHUP does the same). A file with mistakes changes nothing.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  plimsoll up                    plimsoll.yaml here
  plimsoll up -f srv/stack.yaml  another file
  plimsoll status                what runs, in another terminal
  plimsoll down                  stop everything

Exit code: 0 all was stopped on request, 1 it could not start, 2 the file is
wrong.")]
pub(crate) struct UpArgs {
    /// The file, or its folder [default: plimsoll.yaml or plimsoll.yml here]
    #[arg(short, long)]
    pub(crate) file: Option<PathBuf>,
}

/// Stop everything, in reverse order of dependency
#[derive(Debug, clap::Args)]
pub(crate) struct DownArgs {}

/// Show services: state, memory against their lines, restarts, health
#[derive(Debug, clap::Args)]
pub(crate) struct StatusArgs {
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Show the process trees of all services
#[derive(Debug, clap::Args)]
pub(crate) struct PsArgs {
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Show what services print, with our own lines (marked *) between theirs (|)
#[derive(Debug, clap::Args)]
pub(crate) struct LogsArgs {
    /// One service; all of them without
    pub(crate) name: Option<String>,
    /// Go on with what comes
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// So many of the last lines
    #[arg(long, value_name = "N")]
    pub(crate) tail: Option<u64>,
}

/// Show what happens from now on: starts, ends, stages, alerts; one JSON object a line
#[derive(Debug, clap::Args)]
pub(crate) struct EventsArgs {
    /// Go on until interrupted (always, for now nothing is stored to show)
    #[arg(short, long)]
    pub(crate) follow: bool,
}

/// Restart a service, one replica after the other
#[derive(Debug, clap::Args)]
pub(crate) struct RestartArgs {
    /// The service
    pub(crate) name: String,
}

/// Stop a service, and leave it stopped
#[derive(Debug, clap::Args)]
pub(crate) struct StopArgs {
    /// The service
    pub(crate) name: String,
}

/// Start a service that was stopped, and what it depends on
#[derive(Debug, clap::Args)]
pub(crate) struct StartArgs {
    /// The service
    pub(crate) name: String,
}

/// Set the number of a service's replicas
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  plimsoll scale api=3")]
pub(crate) struct ScaleArgs {
    /// Service and number
    #[arg(value_name = "NAME=N")]
    pub(crate) what: String,
}

pub(crate) fn up_main(args: &UpArgs, paths: &Paths) -> Result<ExitCode, Fault> {
    let file = super::check::file(args.file.as_deref())?;
    let spec = load(&file)?;
    let socket = paths.control_socket();
    if std::os::unix::net::UnixStream::connect(&socket).is_ok() {
        return tell(paths, &Command::Reload);
    }
    let failed = |why: String, help: &str| Fault { code: 1, message: why, help: help.to_owned() };
    let parent = std::env::var("PLIMSOLL_CGROUP_PARENT").ok();
    let found = cgroup::probe(BoundaryChoice::Auto, parent.as_deref())
        .map_err(|error| failed(error.to_string(), "name a group that was given to this user"))?;
    if found.parent.is_none() {
        return Err(failed(
            format!("services are held by groups, and none can be had here: {}", found.reason),
            "run it as root or with a delegated group; `plimsoll doctor` tells more",
        ));
    }
    let cannot = |error: plimsoll_store::PathsError| failed(error.to_string(), error.help());
    let state_dir = paths.make_state().map_err(cannot)?.to_owned();
    let runtime_dir = paths.make_runtime().map_err(cannot)?.to_owned();
    let (_, usage) = super::health::here()
        .ok_or_else(|| failed("how much memory there is cannot be read".to_owned(), "is /proc mounted?"))?;
    let total = usage.limit_bytes;
    let journal =
        LogSpec { file: state_dir.join("events.jsonl"), max_size: 10 << 20, max_files: 3, overflow: Overflow::Drop };
    let mut journal = RotatingLog::open(&journal)
        .map_err(|error| failed(format!("{}: {error}", journal.file.display()), "check the state directory"))?;
    let options = StackOptions {
        spec: Arc::new(spec),
        reload: Box::new(move || load(&file).map(Arc::new).map_err(|fault| fault.message)),
        found,
        total,
        cores: std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(1)),
        state_dir,
        runtime_dir,
        socket,
        say: Box::new(|line| output::error(&format!("plimsoll: {line}"))),
        journal: Box::new(move |row| journal.write(format!("{row}\n").as_bytes())),
    };
    up(options).map(ExitCode::from).map_err(|why| failed(why, "`plimsoll doctor` tells what this machine gives us"))
}

/// Reads the file; its mistakes are shown, and so is what is strange in it.
fn load(file: &Path) -> Result<StackSpec, Fault> {
    let wrong = |count: usize| Fault {
        code: USAGE,
        message: format!("{}: {count} mistakes, nothing is changed", file.display()),
        help: "`plimsoll check` shows them".to_owned(),
    };
    let loaded = match plimsoll_config::read(file, |name| std::env::var(name).ok()) {
        Ok(loaded) => loaded,
        Err(errors) => {
            output::error(errors.render(super::check::look()).trim_end());
            return Err(wrong(errors.findings.len()));
        }
    };
    let mut findings = loaded.warnings.clone();
    if let Some((_, usage)) = super::health::here() {
        findings.extend(loaded.fits(usage.limit_bytes));
    }
    if !findings.is_empty() {
        output::error(plimsoll_config::render(&findings, super::check::look()).trim_end());
    }
    match findings.iter().filter(|finding| finding.severity == Severity::Error).count() {
        0 => Ok(loaded.spec),
        count => Err(wrong(count)),
    }
}

fn unreachable_fault(error: &ClientError) -> Fault {
    let help = match error {
        ClientError::NotThere { .. } => "`plimsoll up` starts one; PLIMSOLL_RUNTIME_DIR says where it is looked for",
        _ => "try again",
    };
    Fault { code: 1, message: error.to_string(), help: help.to_owned() }
}

fn get(paths: &Paths, target: &str, patience: Option<Duration>) -> Result<Response, Fault> {
    let response = ask(&paths.control_socket(), "GET", target, patience).map_err(|e| unreachable_fault(&e))?;
    if response.status == 200 {
        return Ok(response);
    }
    let why = response.text(LONGEST).map_err(|error| unreachable_fault(&error))?;
    Err(Fault { code: 1, message: why.trim_end().to_owned(), help: "`plimsoll status` names all services".to_owned() })
}

fn text(paths: &Paths, target: &str) -> Result<String, Fault> {
    get(paths, target, Some(PATIENCE))?.text(LONGEST).map_err(|error| unreachable_fault(&error))
}

/// A command, waited for as long as its work takes.
pub(crate) fn tell(paths: &Paths, command: &Command) -> Result<ExitCode, Fault> {
    let response = ask(&paths.control_socket(), "POST", &command.target(), None).map_err(|e| unreachable_fault(&e))?;
    let status = response.status;
    let said = response.text(LONGEST).map_err(|error| unreachable_fault(&error))?;
    if status == 200 {
        return Ok(if said == "done\n" { ExitCode::SUCCESS } else { output::print(&said) });
    }
    Err(Fault {
        code: 1,
        message: said.trim_end().to_owned(),
        help: "`plimsoll status` tells how things are".to_owned(),
    })
}

pub(crate) fn scale(args: &ScaleArgs, paths: &Paths) -> Result<ExitCode, Fault> {
    let parsed = args.what.split_once('=').and_then(|(name, count)| Some((name, count.parse().ok()?)));
    let Some((name, replicas)) = parsed else {
        return Err(Fault::usage(format!("`{}` is no NAME=N", args.what), "write it as in `plimsoll scale api=3`"));
    };
    tell(paths, &Command::Scale { service: name.to_owned(), replicas })
}

pub(crate) fn status(args: &StatusArgs, paths: &Paths) -> Result<ExitCode, Fault> {
    let json = text(paths, "/api/v1/status")?;
    if args.json {
        return Ok(output::print(&(json + "\n")));
    }
    let snapshot: Snapshot = serde_json::from_str(&json).map_err(|error| Fault {
        code: 1,
        message: format!("the answer is not understood: {error}"),
        help: "is the plimsoll that runs of another version?".to_owned(),
    })?;
    Ok(output::print(&table(&snapshot)))
}

/// A table of at most 80 columns.
fn table(snapshot: &Snapshot) -> String {
    let budget = &snapshot.budget;
    let mut text = format!(
        "budget {} of {}, {}; promised {}\n\n{:<16} {:<11} {:>19} {:>5} {:>8} {:<9} {}\n",
        Human(budget.used_bytes),
        Human(budget.limit_bytes),
        budget.stage.as_str(),
        Human(budget.admitted_bytes),
        "SERVICE",
        "STATE",
        "MEMORY",
        "CPU%",
        "RESTARTS",
        "HEALTH",
        "LAST"
    );
    for row in &snapshot.services {
        text.push_str(&line(row));
    }
    text
}

fn line(row: &ServiceRow) -> String {
    let name: String = format!("{}/{}", row.name, row.replica).chars().take(16).collect();
    let memory = format!("{} / {}", Human(row.memory_bytes), Human(row.limit_bytes));
    let attempt = row.max_attempts.map_or_else(|| row.restarts.to_string(), |most| format!("{}/{most}", row.attempt));
    let health = serde_json::to_value(row.health).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
    let last = row.last_cause.map_or("", plimsoll_model::Cause::as_str);
    let text = format!(
        "{name:<16} {:<11} {memory:>19} {:>5.0} {attempt:>8} {health:<9} {last}",
        row.state.as_str(),
        row.cpu_percent
    );
    text.trim_end().chars().take(80).collect::<String>() + "\n"
}

pub(crate) fn ps(args: &PsArgs, paths: &Paths) -> Result<ExitCode, Fault> {
    let json = text(paths, "/api/v1/processes")?;
    if args.json {
        return Ok(output::print(&(json + "\n")));
    }
    let value: serde_json::Value = serde_json::from_str(&json).unwrap_or_default();
    let mut shown = format!("{:<18} {:>8} {:>12}  {}\n", "SERVICE", "PID", "MEMORY", "PROCESS");
    for tree in value["trees"].as_array().into_iter().flatten() {
        let who = format!("{}/{}", tree["service"].as_str().unwrap_or(""), tree["replica"]);
        for process in tree["processes"].as_array().into_iter().flatten() {
            let depth = process["depth"].as_u64().unwrap_or(0) as usize;
            let row = format!(
                "{who:<18} {:>8} {:>12}  {}{}",
                process["pid"],
                Human(process["memory_bytes"].as_u64().unwrap_or(0)).to_string(),
                "  ".repeat(depth.min(8)),
                process["name"].as_str().unwrap_or("")
            );
            shown.push_str(&(row.chars().take(80).collect::<String>() + "\n"));
        }
    }
    Ok(output::print(&shown))
}

pub(crate) fn logs(args: &LogsArgs, paths: &Paths) -> Result<ExitCode, Fault> {
    let mut target = format!("/api/v1/logs?follow={}", args.follow);
    if let Some(name) = &args.name {
        target.push_str(&format!("&service={name}"));
    }
    if let Some(tail) = args.tail {
        target.push_str(&format!("&tail={tail}"));
    }
    copy(get(paths, &target, if args.follow { None } else { Some(PATIENCE) })?, |line| Some(line.to_owned()))
}

pub(crate) fn events(_: &EventsArgs, paths: &Paths) -> Result<ExitCode, Fault> {
    let response = get(paths, "/api/v1/events", None)?;
    copy(response, |line| line.strip_prefix("data: ").map(str::to_owned))
}

/// Prints a stream as it comes.
fn copy(response: Response, keep: impl Fn(&str) -> Option<String>) -> Result<ExitCode, Fault> {
    let mut reader = response.reader();
    let mut out = std::io::stdout().lock();
    let flush = out.is_terminal();
    let mut line = String::new();
    loop {
        line.clear();
        match reader.read_line(&mut line) {
            Ok(0) | Err(_) => return Ok(ExitCode::SUCCESS),
            Ok(_) => {}
        }
        let Some(kept) = keep(&line) else { continue };
        // Whoever read it has gone: that is the end, and no fault.
        if out.write_all(kept.as_bytes()).and_then(|()| if flush { out.flush() } else { Ok(()) }).is_err() {
            return Ok(ExitCode::SUCCESS);
        }
    }
}
