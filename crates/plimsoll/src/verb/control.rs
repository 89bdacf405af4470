//! The verbs that tell a running stack what to do, or ask it, over its control socket.

use std::io::{BufRead, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use plimsoll_gateway::client::{ClientError, Response, ask};
use plimsoll_gateway::control::Command;
use plimsoll_kernel::clock::Instant;
use plimsoll_store::{Occupied, OccupiedError, Paths};

use crate::fault::Fault;
use crate::output;

/// Longest wait for an answer that needs no work.
const PATIENCE: Duration = Duration::from_secs(20);

/// Longest answer that is read whole, bytes.
const LONGEST: u64 = 64 << 20;

/// Stop everything, in reverse order of dependency
#[derive(Debug, clap::Args)]
pub(crate) struct DownArgs {}

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

fn unreachable_fault(error: &ClientError) -> Fault {
    let help = match error {
        ClientError::NotThere { .. } => "`plimsoll up` starts one; PLIMSOLL_RUNTIME_DIR says where it is looked for",
        _ => "try again",
    };
    Fault { code: 1, message: error.to_string(), help: help.to_owned() }
}

pub(super) fn get(paths: &Paths, target: &str, patience: Option<Duration>) -> Result<Response, Fault> {
    let response = ask(&paths.control_socket(), "GET", target, patience).map_err(|e| unreachable_fault(&e))?;
    if response.status == 200 {
        return Ok(response);
    }
    let why = response.text(LONGEST).map_err(|error| unreachable_fault(&error))?;
    Err(Fault { code: 1, message: why.trim_end().to_owned(), help: "`plimsoll status` names all services".to_owned() })
}

pub(super) fn text(paths: &Paths, target: &str) -> Result<String, Fault> {
    text_within(paths, target, PATIENCE)
}

pub(super) fn text_within(paths: &Paths, target: &str, patience: Duration) -> Result<String, Fault> {
    get(paths, target, Some(patience))?.text(LONGEST).map_err(|error| unreachable_fault(&error))
}

/// A command, waited for as long as its work takes.
pub(crate) fn tell(paths: &Paths, command: &Command) -> Result<ExitCode, Fault> {
    let said = answer_to(paths, command)?;
    Ok(if said == "done\n" { ExitCode::SUCCESS } else { output::print(&said) })
}

/// The same; what is answered, in words.
pub(super) fn answer_to(paths: &Paths, command: &Command) -> Result<String, Fault> {
    let response = ask(&paths.control_socket(), "POST", &command.target(), None).map_err(|e| unreachable_fault(&e))?;
    let status = response.status;
    let said = response.text(LONGEST).map_err(|error| unreachable_fault(&error))?;
    if status == 200 {
        return Ok(said);
    }
    Err(Fault {
        code: 1,
        message: said.trim_end().to_owned(),
        help: "`plimsoll status` tells how things are".to_owned(),
    })
}

/// After this nobody waits for the last steps of what has stopped.
const LAST_STEPS: Duration = Duration::from_secs(10);

/// Stops everything, and waits until the processes of `up` are gone as well: another `up` may follow at once.
pub(crate) fn down(paths: &Paths) -> Result<ExitCode, Fault> {
    let done = tell(paths, &Command::Down)?;
    let began = Instant::now();
    while matches!(Occupied::take(paths.state()), Err(OccupiedError::InUse { .. })) && began.elapsed() < LAST_STEPS {
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(done)
}

pub(crate) fn scale(args: &ScaleArgs, paths: &Paths) -> Result<ExitCode, Fault> {
    let parsed = args.what.split_once('=').and_then(|(name, count)| Some((name, count.parse().ok()?)));
    let Some((name, replicas)) = parsed else {
        return Err(Fault::usage(format!("`{}` is no NAME=N", args.what), "write it as in `plimsoll scale api=3`"));
    };
    tell(paths, &Command::Scale { service: name.to_owned(), replicas })
}

pub(crate) fn logs(args: &LogsArgs, paths: &Paths) -> Result<ExitCode, Fault> {
    let mut target = format!("/api/v1/logs?follow={}", args.follow);
    if let Some(name) = &args.name {
        target.push_str(&format!("&service={name}"));
    }
    if let Some(tail) = args.tail {
        target.push_str(&format!("&tail={tail}"));
    }
    copy(get(paths, &target, if args.follow { None } else { Some(PATIENCE) })?)
}

/// Prints a stream as it comes.
fn copy(response: Response) -> Result<ExitCode, Fault> {
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
        // Whoever read it has gone: that is the end, and no fault.
        if out.write_all(line.as_bytes()).and_then(|()| if flush { out.flush() } else { Ok(()) }).is_err() {
            return Ok(ExitCode::SUCCESS);
        }
    }
}
