//! `plimsoll up`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use plimsoll_config::Severity;
use plimsoll_gateway::control::Command;
use plimsoll_kernel::cgroup::{self, Found};
use plimsoll_kernel::clock::Instant;
use plimsoll_kernel::host::machine_memory;
use plimsoll_model::spec::BoundaryChoice;
use plimsoll_model::stack::StackSpec;
use plimsoll_model::{Limits, duration};
use plimsoll_runtime::stack::detached::{Detached, up_detached};
use plimsoll_runtime::stack::{Place, StackOptions, up};
use plimsoll_store::{Occupied, OccupiedError, Paths};

use super::control::tell;
use super::status::StatusArgs;
use crate::fault::{Fault, USAGE};
use crate::output;

/// Start the services of a plimsoll.yaml, inside one budget
///
/// Runs in the foreground until Ctrl-C or `plimsoll down`; with -d in the background, and returns when every service has
/// come up once, was given up, or waits for room. Where it runs already, the file is read again, and only what changed in it
/// is touched (SIGHUP does the same). A file with mistakes changes nothing.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  plimsoll up                    plimsoll.yaml here
  plimsoll up -f srv/stack.yaml  another file
  plimsoll up -d                 in the background; its own lines: up.log in the
                                 state directory
  plimsoll status                what runs, in another terminal
  plimsoll down                  stop everything

Exit code: 0 all was stopped on request, or with -d the start is over; 1 it
could not start, or --wait was over first; 2 the file is wrong.")]
pub(crate) struct UpArgs {
    /// The file, or its folder [default: plimsoll.yaml or plimsoll.yml here]
    #[arg(short, long)]
    pub(crate) file: Option<PathBuf>,
    /// In the background: return when the start is over
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// With -d: wait for so long at most; what is not up then goes on starting
    #[arg(long, value_name = "DURATION", requires = "detach")]
    pub(crate) wait: Option<String>,
}

/// Whoever had the state directory may be on his last steps, as after Ctrl-C in another terminal.
const LAST_STEPS: Duration = Duration::from_secs(2);

pub(crate) fn up_main(args: &UpArgs, paths: &Paths) -> Result<ExitCode, Fault> {
    let wait = args.wait.as_deref().map(duration::parse).transpose();
    let wait = wait.map_err(|error| Fault::usage(format!("--wait: {error}"), "write it as in `--wait 60s`"))?;
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
    can_hold(&spec, &found)?;
    let cannot = |error: plimsoll_store::PathsError| failed(error.to_string(), error.help());
    let state_dir = paths.make_state().map_err(cannot)?.to_owned();
    let runtime_dir = paths.make_runtime().map_err(cannot)?.to_owned();
    let place = find_place()
        .ok_or_else(|| failed("how much memory there is cannot be read".to_owned(), "is /proc mounted?"))?;
    let occupied = occupy(&state_dir)?;
    // Its name has to be right after the working directory has changed.
    let file = std::path::absolute(&file).unwrap_or(file);
    let directory = file.parent().unwrap_or(Path::new("/")).to_owned();
    let options = StackOptions {
        spec: Arc::new(spec),
        reload: Box::new({
            let found = found.clone();
            move || {
                let spec = load(&file).and_then(|spec| can_hold(&spec, &found).map(|()| spec));
                spec.map(Arc::new).map_err(|fault| fault.message)
            }
        }),
        directory,
        found,
        place,
        find_place,
        cores: std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(1)),
        state_dir,
        runtime_dir,
        socket,
        occupied,
        say: Box::new(|line| output::error(&format!("plimsoll: {line}"))),
        started: Box::new(|| ()),
    };
    let cannot_start = |why: String| failed(why, "`plimsoll doctor` tells what this machine gives us");
    if !args.detach {
        return up(options).map(ExitCode::from).map_err(cannot_start);
    }
    let log = options.state_dir.join("up.log");
    match up_detached(options, wait).map_err(cannot_start)? {
        Detached::Started => super::status::status(&StatusArgs { json: false }, paths),
        Detached::Starting => Err(Fault::failed(
            format!("not everything has come up within {}", duration::Human(wait.unwrap_or_default())),
            "it goes on in the background: `plimsoll status` tells how far it is, `plimsoll down` stops it",
        )),
        Detached::Ended => Err(Fault::failed(
            "it has ended before everything was up",
            format!("the lines above say why; {} has all of them", log.display()),
        )),
    }
}

/// The machine or container that we are in.
fn find_place() -> Option<Place> {
    let machine = machine_memory()?;
    let group = super::health::around(machine);
    let total = group.as_ref().map_or(machine.total, |group| group.limit);
    Some(Place { total, group: group.map(|group| (group.dir, group.version)) })
}

/// Takes the state directory.
fn occupy(state_dir: &Path) -> Result<Occupied, Fault> {
    let began = Instant::now();
    loop {
        match Occupied::take(state_dir) {
            Ok(occupied) => return Ok(occupied),
            Err(OccupiedError::InUse { .. }) if began.elapsed() < LAST_STEPS => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(error) => {
                let help = "one stack a state directory: `plimsoll down` with its PLIMSOLL_RUNTIME_DIR stops that one, \
                            another PLIMSOLL_STATE_DIR gives this one its own";
                return Err(Fault::failed(error.to_string(), help));
            }
        }
    }
}

/// Whether every limit that the file asks for can be put in force here.
fn can_hold(spec: &StackSpec, found: &Found) -> Result<(), Fault> {
    for (name, service) in &spec.services {
        let limits = Limits {
            memory: service.mem_limit,
            memory_swap: service.memswap_limit,
            cpu_micros: service.cpu_micros,
            pids: service.pids_limit,
            ..Limits::default()
        };
        if let Some((option, why)) = cgroup::probe::unsupported(found, &limits, service.memswap_limit.is_some()) {
            let key = match option {
                "--memory-swap" => "memswap_limit",
                "--cpus" => "cpus",
                "--pids-limit" => "pids_limit",
                other => other,
            };
            return Err(Fault {
                code: USAGE,
                message: format!(
                    "service {name}: {key} cannot be enforced on the {} tier: {why}",
                    found.boundary.as_str()
                ),
                help: format!("leave {key} out; `plimsoll doctor` tells why this is the tier: {}", found.reason),
            });
        }
    }
    Ok(())
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
