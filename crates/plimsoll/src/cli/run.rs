//! `plimsoll run`: what was typed ([`RunArgs`]), and what it means ([`RunRequest`]).
//!
//! All that can be said to be wrong before anything is started is said here. The machine's facts are passed in.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use plimsoll_model::size::Human;
use plimsoll_model::spec::{BoundaryChoice, Bounds, LogSpec, Overflow};
use plimsoll_model::{Limits, OnLimit, RunSpec, duration, size};

use crate::fault::Fault;

/// Run a command and hold its whole process tree at its limits
///
/// The command and all it starts is one tree. When `run` returns, the whole tree is gone, daemons included; when plimsoll is
/// killed the tree goes too. An abnormal end is explained in three lines on stderr; `plimsoll explain` tells all of it.
#[derive(Debug, Args)]
#[command(
    args_override_self = true,
    override_usage = "plimsoll run [OPTIONS] -- COMMAND [ARG…]",
    after_help = "Sizes: 512m, 1.5g, 2GiB, plain bytes. Durations: 500ms, 30s, 5m, 1h30m.

Examples:
  plimsoll run -m 512m -- python3 app.py
  plimsoll run -m 2g --on-limit largest -- node crawler.js
  plimsoll run --timeout 10m --log-file job.log -- ./import.sh
  plimsoll run -m 1g --pids-limit 256 --cpus 1.5 --name api -- ./server

Exit code: the command's own; 128+n for signal n; 137 memory line; 124 timeout;
125 plimsoll's own failure; 126 not executable; 127 not found; 2 usage.

A limit, a time limit, a kill or a crash is explained on stderr. Nothing is said
about a code that the command chose itself, 0 or another: it has said why, and
`plimsoll explain` tells the rest.

PLIMSOLL_REDACT=NAME,NAME lists variables, of ours or of --env, whose values (of
four characters or more) are hidden in certificates wherever they appear in a
command. What looks like a secret, and the values of variables whose names do
(API_TOKEN, DB_PASSWORD), are hidden anyway."
)]
pub(crate) struct RunArgs {
    /// Hard line of memory for the whole tree, at least 6m
    #[arg(short, long, value_name = "SIZE", allow_hyphen_values = true, help_heading = "Limits")]
    memory: Option<String>,
    /// Memory and swap together; equal to --memory means no swap, -1 is unlimited [default: --memory]
    #[arg(long, value_name = "SIZE", help_heading = "Limits", allow_hyphen_values = true)]
    memory_swap: Option<String>,
    /// Memory kept for the tree as long as that is possible
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, help_heading = "Limits")]
    memory_reservation: Option<String>,
    /// Memory above which the tree is slowed down and reclaimed from
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, help_heading = "Limits")]
    memory_high: Option<String>,
    /// Who goes at the memory line: the tree, or the largest process below its root
    #[arg(long, value_name = "WHO", value_enum, default_value_t, help_heading = "Limits")]
    on_limit: OnLimitWord,
    /// Processor time, in cores: 1.5
    #[arg(long, value_name = "CORES", help_heading = "Limits", allow_hyphen_values = true)]
    cpus: Option<String>,
    /// Most processes and threads
    #[arg(long, value_name = "N", help_heading = "Limits", allow_hyphen_values = true)]
    pids_limit: Option<String>,
    /// The kernel's inclination to kill it when the machine is full, -999 (last) to 1000 (first); lowering it needs privilege
    #[arg(long, value_name = "N", help_heading = "Limits", allow_hyphen_values = true)]
    oom_score_adj: Option<String>,
    /// What holds the tree: a kernel group, or a watchdog that samples
    #[arg(long, value_name = "WHICH", value_enum, default_value_t, help_heading = "Limits")]
    boundary: BoundaryWord,
    /// End the tree when the process that started plimsoll ends, also when it is killed
    #[arg(long, help_heading = "Time")]
    die_with_parent: bool,
    /// Ask the Plimsoll that runs here for room in its budget first, and wait for it
    #[arg(long, help_heading = "Limits")]
    join: bool,

    /// End the tree after this long
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, help_heading = "Time")]
    timeout: Option<String>,
    /// End the tree after this long without a byte on stdin, stdout or stderr
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, help_heading = "Time")]
    idle_timeout: Option<String>,
    /// Grace between SIGTERM and SIGKILL when the tree is stopped
    #[arg(long, value_name = "DURATION", default_value = "5s", allow_hyphen_values = true, help_heading = "Time")]
    stop_timeout: String,

    /// What to call it in certificates [default: the command's file name]
    #[arg(long, value_name = "NAME", help_heading = "The command")]
    name: Option<OsString>,
    /// Set a variable, or with KEY alone pass ours on; may be repeated
    #[arg(short, long, value_name = "KEY[=VALUE]", help_heading = "The command")]
    env: Vec<OsString>,
    /// Directory to run in
    #[arg(short, long, value_name = "DIR", help_heading = "The command")]
    workdir: Option<PathBuf>,

    /// Write stdout and stderr to a file, rotated by size
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    log_file: Option<PathBuf>,
    /// Size at which the log is rotated [default: 10m]
    #[arg(long, value_name = "SIZE", help_heading = "Output")]
    log_max_size: Option<String>,
    /// Log files kept, the current one included [default: 3]
    #[arg(long, value_name = "N", help_heading = "Output", allow_hyphen_values = true)]
    log_max_files: Option<String>,
    /// When the disk is slower than the command: make it wait, or drop bytes and say how many [default: block]
    #[arg(long, value_name = "HOW", value_enum, help_heading = "Output")]
    log_overflow: Option<OverflowWord>,
    /// Write the certificate's JSON to a file, too
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    report: Option<PathBuf>,
    /// Print nothing about the end
    #[arg(short, long, help_heading = "Output")]
    quiet: bool,
    /// The certificate goes to the report alone: `up` starts its services so where there are no groups, and gives its
    /// state and runtime directories
    #[arg(long, hide = true, requires = "report", num_args = 2)]
    pub(crate) kept: Vec<PathBuf>,
    /// A folder in which the command may write, and nowhere else
    #[arg(long, hide = true, requires = "kept", value_name = "DIR")]
    own: Vec<PathBuf>,
    /// A folder that it may look at in a hidden one
    #[arg(long, hide = true, requires = "kept", value_name = "DIR")]
    show: Vec<PathBuf>,
    /// A folder that it may not look at
    #[arg(long, hide = true, requires = "kept", value_name = "DIR")]
    conceal: Vec<PathBuf>,

    /// The command and its arguments
    #[arg(trailing_var_arg = true, value_name = "COMMAND [ARG…]")]
    command: Vec<OsString>,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum OnLimitWord {
    /// Everything goes; the run ends with 137
    #[default]
    Tree,
    /// The largest process below the root goes; the root lives and decides
    Largest,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum BoundaryWord {
    /// The strongest that this machine gives us
    #[default]
    Auto,
    /// A kernel group, v2 or v1
    Cgroup,
    /// No group: a keeper that samples
    Watchdog,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum OverflowWord {
    /// The command waits; nothing is lost
    #[default]
    Block,
    /// Bytes are dropped, the oldest that wait first, and a line says how many
    Drop,
}

/// What this machine has; `None` is not known, and then not checked.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Machine {
    /// RAM, bytes.
    pub(crate) memory: Option<u64>,
    /// Processors that we may use.
    pub(crate) processors: Option<u64>,
}

impl Machine {
    /// Looks only for what the arguments ask about: start-up is to be quick.
    pub(crate) fn look(args: &RunArgs) -> Self {
        let sized = args.memory.is_some() || args.memory_reservation.is_some() || args.memory_high.is_some();
        Self {
            memory: sized.then(plimsoll_kernel::host::machine_memory).flatten().map(|memory| memory.total),
            processors: args
                .cpus
                .as_ref()
                .and_then(|_| std::thread::available_parallelism().ok())
                .map(|processors| processors.get() as u64),
        }
    }
}

/// What was asked for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RunRequest {
    /// The tree.
    pub(crate) spec: RunSpec,
    /// Where the certificate's JSON goes, too.
    pub(crate) report: Option<PathBuf>,
    /// Print nothing about the end.
    pub(crate) quiet: bool,
    /// The certificate goes to the report alone.
    pub(crate) kept: bool,
    /// Ask a running Plimsoll's budget for room first.
    pub(crate) join: bool,
    /// End with whoever started us.
    pub(crate) die_with_parent: bool,
    /// `--memory-swap` was typed, so a machine that cannot count swap is an error and no footnote.
    pub(crate) swap_asked_for: bool,
}

/// Below this the kernel can find nothing to kill and storms; Docker's minimum as well.
const LEAST_MEMORY: u64 = 6 << 20;
/// The kernel's smallest quota, 1 ms, of the usual period, 100 ms.
const LEAST_CPU_MICROS: u64 = 10_000;
/// `PID_MAX_LIMIT`: the kernel has no more pids than that, and refuses a larger `pids.max`.
const MOST_PIDS: u64 = 4 << 20;
/// Below this a log would be nothing but rotations.
const LEAST_LOG: u64 = 4 << 10;
/// A name is part of messages and tables.
const LONGEST_NAME: usize = 128;

/// Says what the arguments mean on this machine, or what is wrong with them. Looks at the paths that are named, and leaves
/// nothing there.
pub(crate) fn interpret(
    args: &RunArgs,
    machine: Machine,
    inherited: impl Fn(&OsStr) -> Option<OsString>,
) -> Result<RunRequest, Fault> {
    let Some(program) = args.command.first() else {
        return Err(Fault::usage(
            "no command was given: run has nothing to start",
            "plimsoll run [OPTIONS] -- COMMAND [ARG…]",
        ));
    };
    let limits = limits(args, machine)?;
    if matches!(args.on_limit, OnLimitWord::Largest) && limits.memory.is_none() {
        return Err(Fault::usage(
            "--on-limit largest: without --memory there is no line to choose a process at",
            "add --memory SIZE",
        ));
    }
    if args.join && limits.memory.is_none() {
        return Err(Fault::usage(
            "--join: without --memory nobody knows how much room to ask for",
            "add --memory SIZE",
        ));
    }
    let spec = RunSpec {
        name: name(args.name.as_deref(), program)?,
        command: args.command.clone(),
        env: variables(&args.env, inherited)?,
        workdir: args.workdir.clone(),
        limits,
        on_limit: match args.on_limit {
            OnLimitWord::Tree => OnLimit::Tree,
            OnLimitWord::Largest => OnLimit::Largest,
        },
        boundary: match args.boundary {
            BoundaryWord::Auto => BoundaryChoice::Auto,
            BoundaryWord::Cgroup => BoundaryChoice::Cgroup,
            BoundaryWord::Watchdog => BoundaryChoice::Watchdog,
        },
        stop_timeout: duration_of("--stop-timeout", &args.stop_timeout)?,
        timeout: limited_time("--timeout", args.timeout.as_deref())?,
        idle_timeout: limited_time("--idle-timeout", args.idle_timeout.as_deref())?,
        log: log(args)?,
        bounds: (!args.own.is_empty()).then(|| Bounds {
            own: args.own.clone(),
            shown: args.show.clone(),
            hidden: args.conceal.clone(),
        }),
    };
    if let Some(dir) = &spec.workdir {
        usable_directory(dir)?;
    }
    for (option, path) in [("--log-file", &args.log_file), ("--report", &args.report)] {
        if let Some(path) = path {
            writable(option, path)?;
        }
    }
    if let (Some(log), Some(report)) = (&args.log_file, &args.report)
        && is_same_file(log, report)
    {
        return Err(Fault::usage(
            format!("--report {}: it is the file of --log-file, and would overwrite the log", report.display()),
            "name two files",
        ));
    }
    let swap_asked_for = args.memory_swap.is_some();
    Ok(RunRequest {
        spec,
        report: args.report.clone(),
        quiet: args.quiet,
        kept: !args.kept.is_empty(),
        join: args.join,
        die_with_parent: args.die_with_parent,
        swap_asked_for,
    })
}

fn size_of(option: &str, text: Option<&str>) -> Result<Option<u64>, Fault> {
    let read = |text| {
        size::parse(text)
            .map_err(|error| Fault::usage(format!("{option}: {error}"), format!("for example {option} 512m")))
    };
    text.map(read).transpose()
}

fn duration_of(option: &str, text: &str) -> Result<Duration, Fault> {
    duration::parse(text)
        .map_err(|error| Fault::usage(format!("{option}: {error}"), format!("for example {option} 30s")))
}

/// A time after which something happens: nothing at all is no such time.
fn limited_time(option: &str, text: Option<&str>) -> Result<Option<Duration>, Fault> {
    let Some(text) = text else { return Ok(None) };
    match duration_of(option, text)? {
        Duration::ZERO => Err(Fault::usage(
            format!("{option}: `{text}` is no time at all, and the tree would end before it began"),
            format!("leave {option} out for no limit"),
        )),
        time => Ok(Some(time)),
    }
}

fn limits(args: &RunArgs, machine: Machine) -> Result<Limits, Fault> {
    let memory = size_of("--memory", args.memory.as_deref())?;
    if let (Some(bytes), Some(text)) = (memory, &args.memory)
        && bytes < LEAST_MEMORY
    {
        return Err(Fault::usage(
            format!("--memory {text}: below 6 MiB the kernel finds nothing it could kill"),
            "the least is --memory 6m",
        ));
    }
    let fits = |option: &str, text: Option<&str>, bytes: Option<u64>| match (text, bytes, machine.memory) {
        (Some(text), Some(bytes), Some(total)) if bytes > total => Err(Fault::cannot_run(
            format!("{option} {text}: this machine has {}, the line would never be met", Human(total)),
            format!("choose less than {}, or leave {option} out", Human(total)),
        )),
        _ => Ok(()),
    };
    fits("--memory", args.memory.as_deref(), memory)?;
    let below = |option: &str, text: Option<&str>| {
        let bytes = size_of(option, text)?;
        fits(option, text, bytes)?;
        match (bytes, memory) {
            (Some(bytes), Some(limit)) if bytes > limit => Err(Fault::usage(
                format!("{option} {} is above --memory {}: it would never take effect", Human(bytes), Human(limit)),
                format!("choose at most {}, or a larger --memory", Human(limit)),
            )),
            (Some(0), _) => Err(Fault::usage(
                format!("{option} 0: nothing at all is no amount of memory"),
                format!("leave {option} out for none"),
            )),
            _ => Ok(bytes),
        }
    };
    Ok(Limits {
        memory,
        memory_swap: swap(args.memory_swap.as_deref(), memory)?,
        memory_reservation: below("--memory-reservation", args.memory_reservation.as_deref())?,
        memory_high: below("--memory-high", args.memory_high.as_deref())?,
        cpu_micros: cpus(args.cpus.as_deref(), machine.processors)?,
        pids: count("--pids-limit", args.pids_limit.as_deref(), MOST_PIDS)?,
        oom_score_adj: oom_score_adj(args.oom_score_adj.as_deref())?,
    })
}

fn swap(text: Option<&str>, memory: Option<u64>) -> Result<Option<u64>, Fault> {
    let Some(text) = text else { return Ok(memory) };
    let Some(limit) = memory else {
        return Err(Fault::usage(
            format!("--memory-swap {text}: it is the total of memory and swap, and --memory is not set"),
            "add --memory SIZE",
        ));
    };
    if text == "-1" {
        return Ok(None);
    }
    match size_of("--memory-swap", Some(text))? {
        Some(total) if total < limit => Err(Fault::usage(
            format!("--memory-swap {text} is below --memory {}: it is their total", Human(limit)),
            format!("--memory-swap {} allows no swap, more than that allows some, -1 allows any", Human(limit)),
        )),
        total => Ok(total),
    }
}

/// Millionths of a core out of `1.5`, read digit by digit so that what was typed is what is set.
fn cpus(text: Option<&str>, processors: Option<u64>) -> Result<Option<u64>, Fault> {
    let Some(text) = text else { return Ok(None) };
    let wrong = || Fault::usage(format!("--cpus: `{text}` is no number of cores"), "for example --cpus 1.5");
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() && fraction.is_empty() || !digits(whole) || !digits(fraction) {
        return Err(wrong());
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| wrong())? };
    let part: u64 = format!("{fraction:0<6}")[..6].parse().map_err(|_| wrong())?;
    let micros = whole.checked_mul(1_000_000).and_then(|micros| micros.checked_add(part)).ok_or_else(wrong)?;
    match processors {
        _ if micros < LEAST_CPU_MICROS => Err(Fault::usage(
            format!("--cpus {text}: the kernel shares out no less than a hundredth of a core"),
            "the least is --cpus 0.01",
        )),
        Some(there) if micros > there * 1_000_000 => Err(Fault::cannot_run(
            format!("--cpus {text}: this machine gives us {there}"),
            format!("choose at most {there}, or leave --cpus out"),
        )),
        _ => Ok(Some(micros)),
    }
}

fn count(option: &str, text: Option<&str>, most: u64) -> Result<Option<u64>, Fault> {
    let Some(text) = text else { return Ok(None) };
    match text.parse() {
        Ok(0) => {
            Err(Fault::usage(format!("{option} 0: not even one would be left"), format!("the least is {option} 1")))
        }
        Ok(number) if number <= most => Ok(Some(number)),
        Ok(_) if most == MOST_PIDS => Err(Fault::usage(
            format!("{option} {text}: the kernel has no more than {most} pids"),
            format!("leave {option} out for no limit of our own"),
        )),
        _ => Err(Fault::usage(
            format!("{option}: `{text}` is no number from 1 to {most}"),
            format!("leave {option} out for the default"),
        )),
    }
}

fn oom_score_adj(text: Option<&str>) -> Result<Option<i16>, Fault> {
    let Some(text) = text else { return Ok(None) };
    match text.parse() {
        Ok(-1000) => Err(Fault::usage(
            "--oom-score-adj -1000: it would disable the memory line, for the kernel then kills nothing in the tree",
            "the least is --oom-score-adj -999",
        )),
        Ok(number) if (-1000..=1000).contains(&number) => Ok(Some(number)),
        _ => Err(Fault::usage(
            format!("--oom-score-adj: `{text}` is no whole number from -999 to 1000"),
            "1000 makes it the first to go when the machine is full, -999 the last",
        )),
    }
}

fn name(given: Option<&OsStr>, program: &OsStr) -> Result<String, Fault> {
    let Some(given) = given else {
        let file = Path::new(program).file_name().unwrap_or(program);
        let plain: String = file.to_string_lossy().chars().filter(|c| !c.is_control()).take(LONGEST_NAME).collect();
        return Ok(if plain.is_empty() { "unnamed".to_owned() } else { plain });
    };
    let help = "leave --name out to use the command's file name";
    match given.to_str() {
        None => Err(Fault::usage(format!("--name: `{}` is no UTF-8 text", given.to_string_lossy()), help)),
        Some(text) if text.trim().is_empty() => {
            Err(Fault::usage("--name: it is empty, and nobody could ask for it", help))
        }
        Some(text) if text.chars().any(char::is_control) => {
            Err(Fault::usage(format!("--name: `{}` has control characters", text.escape_debug()), help))
        }
        Some(text) if text.len() > LONGEST_NAME => {
            Err(Fault::usage(format!("--name: it is {} bytes long, the most is {LONGEST_NAME}", text.len()), help))
        }
        Some(text) => Ok(text.to_owned()),
    }
}

/// `KEY=VALUE` as it is, `KEY` with our own value; one that we do not have is left out, and of several of one name the last
/// counts, as Docker does: a child that is handed two takes either.
fn variables(
    typed: &[OsString],
    inherited: impl Fn(&OsStr) -> Option<OsString>,
) -> Result<Vec<(OsString, OsString)>, Fault> {
    let mut variables: Vec<(OsString, OsString)> = Vec::with_capacity(typed.len());
    for text in typed {
        let bytes = text.as_bytes();
        let (key, value) = match bytes.iter().position(|&byte| byte == b'=') {
            Some(at) => (OsStr::from_bytes(&bytes[..at]), Some(OsStr::from_bytes(&bytes[at + 1..]).to_owned())),
            None => (text.as_os_str(), inherited(text)),
        };
        if key.is_empty() {
            return Err(Fault::usage(
                format!("--env: `{}` names no variable", text.to_string_lossy()),
                "write --env KEY=VALUE, or --env KEY to pass ours on",
            ));
        }
        if key == plimsoll_runtime::TAG {
            return Err(Fault::usage(
                format!("--env {}: plimsoll sets it itself: a tree is found again by it", plimsoll_runtime::TAG),
                "give the variable another name; the child can read the run's id from this one",
            ));
        }
        if let Some(value) = value {
            variables.retain(|(known, _)| known != key);
            variables.push((key.to_owned(), value));
        }
    }
    Ok(variables)
}

fn log(args: &RunArgs) -> Result<Option<LogSpec>, Fault> {
    let Some(file) = &args.log_file else {
        let alone = [
            ("--log-max-size", args.log_max_size.is_some()),
            ("--log-max-files", args.log_max_files.is_some()),
            ("--log-overflow", args.log_overflow.is_some()),
        ];
        return match alone.iter().find(|(_, typed)| *typed) {
            Some((option, _)) => {
                Err(Fault::usage(format!("{option}: there is no log without --log-file"), "add --log-file FILE"))
            }
            None => Ok(None),
        };
    };
    let max_size = size_of("--log-max-size", args.log_max_size.as_deref())?.unwrap_or(10 << 20);
    if max_size < LEAST_LOG {
        return Err(Fault::usage(
            format!("--log-max-size {}: a log that small would only be rotated", Human(max_size)),
            "the least is --log-max-size 4k",
        ));
    }
    Ok(Some(LogSpec {
        file: file.clone(),
        max_size,
        max_files: count("--log-max-files", args.log_max_files.as_deref(), 10_000)?.unwrap_or(3) as u32,
        overflow: match args.log_overflow.unwrap_or_default() {
            OverflowWord::Block => Overflow::Block,
            OverflowWord::Drop => Overflow::Drop,
        },
    }))
}

fn usable_directory(dir: &Path) -> Result<(), Fault> {
    let help = "name a directory that is there";
    match std::fs::metadata(dir) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(Fault::cannot_run(format!("--workdir {}: it is no directory", dir.display()), help)),
        Err(error) => Err(Fault::cannot_run(format!("--workdir {}: {error}", dir.display()), help)),
    }
}

/// Whether a file could be written: by opening it, for permission bits alone do not tell (read-only mounts, capabilities).
/// One that is made for that is removed again.
fn writable(option: &str, path: &Path) -> Result<(), Fault> {
    let unwritable = |error: std::io::Error| {
        Fault::cannot_run(
            format!("{option} {}: it cannot be written: {error}", path.display()),
            "name a file in a directory that is there and that you may write to",
        )
    };
    match std::fs::metadata(path) {
        // Opening a pipe would wait for its reader, or wake it.
        Ok(found) if found.file_type().is_fifo() => Ok(()),
        Ok(_) => std::fs::OpenOptions::new().append(true).open(path).map(drop).map_err(unwritable),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let target = target(path);
            let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&target);
            made.and_then(|_| std::fs::remove_file(&target)).map_err(unwritable)
        }
        Err(error) => Err(unwritable(error)),
    }
}

/// Where a path leads, also when nothing is there yet: links are followed as opening it would.
fn target(path: &Path) -> PathBuf {
    let mut target = path.to_owned();
    // As many links as the kernel follows; opening a circle then fails.
    for _ in 0..40 {
        let Ok(link) = std::fs::read_link(&target) else { break };
        target = target.parent().map_or(link.clone(), |dir| dir.join(link));
    }
    let dir = target.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match (dir.canonicalize(), target.file_name()) {
        (Ok(dir), Some(name)) => dir.join(name),
        _ => target,
    }
}

/// Whether two paths name one file with contents; `/dev/null` and other devices take anything from anybody.
fn is_same_file(one: &Path, other: &Path) -> bool {
    match (std::fs::metadata(one), std::fs::metadata(other)) {
        (Ok(one), Ok(other)) => one.is_file() && (one.dev(), one.ino()) == (other.dev(), other.ino()),
        (Err(_), Err(_)) => target(one) == target(other),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::FromArgMatches;
    use proptest::prelude::*;

    const MACHINE: Machine = Machine { memory: Some(8 << 30), processors: Some(4) };

    fn typed(words: &[&str]) -> RunArgs {
        let command = RunArgs::augment_args(clap::Command::new("run"));
        let matches = command.try_get_matches_from(std::iter::once("run").chain(words.iter().copied())).unwrap();
        RunArgs::from_arg_matches(&matches).unwrap()
    }

    fn meant(words: &[&str]) -> Result<RunRequest, Fault> {
        let ours = |key: &OsStr| (key == "OURS").then(|| OsString::from("value"));
        interpret(&typed(words), MACHINE, ours)
    }

    #[test]
    fn everything_typed_is_meant() {
        let log = std::env::temp_dir().join(format!("plimsoll-meant-{}.log", std::process::id()));
        let words = [
            "-m",
            "512m",
            "--memory-swap",
            "1g",
            "--memory-reservation",
            "128m",
            "--memory-high",
            "0.25g",
            "--cpus",
            "1.5",
            "--pids-limit",
            "64",
            "--oom-score-adj",
            "-5",
            "--on-limit",
            "largest",
            "--boundary",
            "watchdog",
            "--timeout",
            "1h30m",
            "--idle-timeout",
            "5m",
            "--stop-timeout",
            "0",
            "--name",
            "api",
            "-e",
            "A=b=c",
            "-e",
            "OURS",
            "-e",
            "NOT_OURS",
            "-e",
            "EMPTY=",
            "-w",
            "/",
            "--log-file",
            log.to_str().unwrap(),
            "--log-max-size",
            "1m",
            "--log-max-files",
            "5",
            "--log-overflow",
            "drop",
            "--quiet",
            "--join",
            "--",
            "/bin/echo",
            "-m",
            "--",
            "x",
        ];
        let request = meant(&words).unwrap();
        let pair = |key: &str, value: &str| (OsString::from(key), OsString::from(value));
        let spec = RunSpec {
            name: "api".to_owned(),
            command: ["/bin/echo", "-m", "--", "x"].map(OsString::from).to_vec(),
            env: vec![pair("A", "b=c"), pair("OURS", "value"), pair("EMPTY", "")],
            workdir: Some("/".into()),
            limits: Limits {
                memory: Some(512 << 20),
                memory_swap: Some(1 << 30),
                memory_reservation: Some(128 << 20),
                memory_high: Some(256 << 20),
                cpu_micros: Some(1_500_000),
                pids: Some(64),
                oom_score_adj: Some(-5),
            },
            on_limit: OnLimit::Largest,
            boundary: BoundaryChoice::Watchdog,
            stop_timeout: Duration::ZERO,
            timeout: Some(Duration::from_secs(5400)),
            idle_timeout: Some(Duration::from_secs(300)),
            log: Some(LogSpec { file: log.clone(), max_size: 1 << 20, max_files: 5, overflow: Overflow::Drop }),
            bounds: None,
        };
        assert_eq!(
            request,
            RunRequest {
                spec,
                report: None,
                quiet: true,
                kept: false,
                join: true,
                die_with_parent: false,
                swap_asked_for: true
            }
        );
        assert!(!log.exists(), "looking at the path leaves nothing there");
    }

    #[test]
    fn what_is_not_typed_has_its_default() {
        let request = meant(&["/usr/bin/sleep", "1"]).unwrap();
        assert_eq!(request.spec.name, "sleep");
        assert_eq!(request.spec.limits, Limits::default());
        assert_eq!(request.spec.stop_timeout, Duration::from_secs(5));
        assert_eq!((request.quiet, request.join, request.swap_asked_for), (false, false, false));
        let limited = meant(&["-m", "64m", "true"]).unwrap();
        assert_eq!(limited.spec.limits.memory_swap, Some(64 << 20), "no swap");
        assert!(!limited.swap_asked_for);
        let any = meant(&["-m", "64m", "--memory-swap", "-1", "true"]).unwrap();
        assert_eq!((any.spec.limits.memory_swap, any.swap_asked_for), (None, true));
        let log = meant(&["--log-file", "/dev/null", "true"]).unwrap().spec.log.unwrap();
        assert_eq!((log.max_size, log.max_files, log.overflow), (10 << 20, 3, Overflow::Block));
        assert_eq!(meant(&["/"]).unwrap().spec.name, "/");
        assert_eq!(meant(&[""]).unwrap().spec.name, "unnamed");
    }

    #[test]
    fn of_several_variables_of_one_name_the_last_counts() {
        let env = meant(&["-e", "A=1", "-e", "B=2", "-e", "A=3", "true"]).unwrap().spec.env;
        let pair = |key: &str, value: &str| (OsString::from(key), OsString::from(value));
        assert_eq!(env, [pair("B", "2"), pair("A", "3")]);
    }

    #[test]
    fn links_are_followed_to_what_is_not_there_yet() {
        let dir = std::env::temp_dir().join(format!("plimsoll-links-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let link = dir.join("link");
        std::os::unix::fs::symlink("further", &link).unwrap();
        std::os::unix::fs::symlink("file", dir.join("further")).unwrap();
        writable("--report", &link).unwrap();
        assert!(!dir.join("file").exists() && link.is_symlink());
        // Two names of one file: before it is there, and when it is.
        assert!(is_same_file(&link, &dir.join("file")) && !is_same_file(&link, &dir.join("other")));
        std::fs::write(dir.join("file"), "").unwrap();
        std::fs::hard_link(dir.join("file"), dir.join("hard")).unwrap();
        assert!(is_same_file(&link, &dir.join("hard")) && !is_same_file(&link, &dir.join("other")));
        assert!(!is_same_file(Path::new("/dev/null"), Path::new("/dev/null")));
        std::os::unix::fs::symlink("circle", dir.join("circle")).unwrap();
        assert!(writable("--report", &dir.join("circle")).is_err());
        std::fs::remove_dir_all(dir).unwrap();
    }

    /// Each wrong value: exit code, and that the message names the option or value and says what to do.
    #[test]
    fn what_is_wrong_is_named() {
        for (words, code, named) in [
            (&["-m", "5x", "true"][..], 2, "`5x`"),
            (&["-m", "", "true"], 2, "--memory"),
            (&["-m", "5m", "true"], 2, "6 MiB"),
            (&["-m", "0", "true"], 2, "6 MiB"),
            (&["-m", "9g", "true"], 125, "8 GiB"),
            (&["--memory-high", "9g", "true"], 125, "8 GiB"),
            (&["--memory-reservation", "9g", "true"], 125, "8 GiB"),
            (&["-m", "64m", "--memory-swap", "32m", "true"], 2, "--memory-swap"),
            (&["-m", "64m", "--memory-swap", "-2", "true"], 2, "`-2`"),
            (&["--memory-swap", "1g", "true"], 2, "--memory is not set"),
            (&["-m", "64m", "--memory-reservation", "65m", "true"], 2, "--memory-reservation"),
            (&["-m", "64m", "--memory-high", "65m", "true"], 2, "--memory-high"),
            (&["--memory-high", "0", "true"], 2, "--memory-high"),
            (&["--cpus", "5", "true"], 125, "gives us 4"),
            (&["--cpus", "0", "true"], 2, "--cpus"),
            (&["--cpus", "x", "true"], 2, "`x`"),
            (&["--cpus", "1.2.3", "true"], 2, "`1.2.3`"),
            (&["--cpus", "-1", "true"], 2, "`-1`"),
            (&["--cpus", ".", "true"], 2, "`.`"),
            (&["--cpus", "99999999999999999999", "true"], 2, "--cpus"),
            (&["--pids-limit", "0", "true"], 2, "--pids-limit"),
            (&["--pids-limit", "many", "true"], 2, "`many`"),
            (&["--pids-limit", "4194305", "true"], 2, "the kernel has no more than 4194304 pids"),
            (&["--on-limit", "largest", "true"], 2, "--on-limit largest"),
            (&["--oom-score-adj", "1001", "true"], 2, "`1001`"),
            (&["--oom-score-adj", "-1000", "true"], 2, "memory line"),
            (&["--oom-score-adj", "1.5", "true"], 2, "`1.5`"),
            (&["--timeout", "5x", "true"], 2, "`5x`"),
            (&["--timeout", "0", "true"], 2, "--timeout"),
            (&["--idle-timeout", "0s", "true"], 2, "--idle-timeout"),
            (&["--stop-timeout", "soon", "true"], 2, "`soon`"),
            (&["--name", " ", "true"], 2, "--name"),
            (&["--name", "a\nb", "true"], 2, "control characters"),
            (&["-e", "=x", "true"], 2, "`=x`"),
            (&["-e", "PLIMSOLL_ID=x", "true"], 2, "PLIMSOLL_ID"),
            (&["-e", "PLIMSOLL_ID", "true"], 2, "PLIMSOLL_ID"),
            (&["--log-file", "/tmp/plimsoll-one", "--report", "/tmp/../tmp/plimsoll-one", "true"], 2, "overwrite"),
            (&["-w", "/not/there", "true"], 125, "/not/there"),
            (&["-w", "/dev/null", "true"], 125, "/dev/null"),
            (&["--log-max-size", "1m", "true"], 2, "--log-file"),
            (&["--log-max-files", "1", "true"], 2, "--log-file"),
            (&["--log-overflow", "drop", "true"], 2, "--log-file"),
            (&["--log-file", "/not/there/log", "true"], 125, "/not/there/log"),
            (&["--log-file", "/dev/null", "--log-max-size", "1k", "true"], 2, "--log-max-size"),
            (&["--log-file", "/dev/null", "--log-max-files", "0", "true"], 2, "--log-max-files"),
            (&["--report", "/not/there/report", "true"], 125, "/not/there/report"),
            (&["--report", "/", "true"], 125, "--report /"),
            (&["--join", "true"], 2, "--memory"),
            (&[], 2, "no command"),
        ] {
            let fault = meant(words).expect_err(&words.join(" "));
            assert_eq!(fault.code, code, "{words:?}: {fault}");
            assert!(fault.message.contains(named), "{words:?}: {fault}");
            assert!(!fault.help.is_empty(), "{words:?}: {fault}");
        }
    }

    proptest! {
        #[test]
        fn any_value_is_taken_or_named(option in prop::sample::select(vec![
            "--memory", "--memory-swap", "--memory-high", "--cpus", "--pids-limit", "--oom-score-adj", "--timeout", "--name", "--env",
        ]), value in "[^-]\\PC{0,12}|[0-9.]{1,24}[a-z]{0,3}") {
            if let Err(fault) = meant(&[option, &value, "true"]) {
                prop_assert!(matches!(fault.code, 2 | 125));
                prop_assert!(fault.message.contains(option), "{}", fault);
            }
        }

        #[test]
        fn cores_are_what_was_typed(micros in 10_000u64..4_000_000) {
            let text = format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000);
            prop_assert_eq!(cpus(Some(&text), Some(4)), Ok(Some(micros)));
        }
    }
}
