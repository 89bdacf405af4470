//! The process that the user started: prepares all that can fail, then waits.

use std::fs::File;
use std::path::{Path, PathBuf};

use plimsoll_kernel::boundary::{self, Boundary};
use plimsoll_kernel::cgroup::Found;
use plimsoll_kernel::kmsg::Kmsg;
use plimsoll_kernel::procfs::read_file;
use plimsoll_kernel::pty::Given;
use plimsoll_kernel::signal::{SignalFd, SignalSet};
use plimsoll_kernel::spawn::{self, Fork, Job};
use plimsoll_kernel::{KernelError, clock, signal};
use plimsoll_model::ending::{Decision, RootExit};
use plimsoll_model::spec::LogSpec;
use plimsoll_model::{Certificate, RunId, RunSpec};
use plimsoll_store::{Registration, RegistryError, RunningTree};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, Signal};

use crate::channel::{End, Message, pair};
use crate::keeper::Keeper;
use crate::log::RotatingLog;
use crate::relay::Plan;
use crate::sweep::sweep;

/// What `run` needs beside the spec.
pub struct RunOptions<'a> {
    /// Where the certificate's JSON goes, too.
    pub report: Option<PathBuf>,
    /// Directory of the certificate store, made already.
    pub state_dir: &'a Path,
    /// Directory of the registry, made already.
    pub runtime_dir: &'a Path,
    /// The command with secrets redacted, and the values that are secrets.
    pub redacted: Vec<String>,
    /// Values to redact in the command lines of other members.
    pub secrets: Vec<String>,
    /// What to print about an end; nothing when empty.
    pub render: fn(&Certificate) -> String,
    /// Print nothing about the end.
    pub quiet: bool,
    /// Keep the certificate in the store.
    pub store: bool,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Exit code for us.
    pub code: u8,
    /// Text for stderr, perhaps empty.
    pub text: String,
}

/// Why a run was not started. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The boundary could not be made as asked for.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The run could not be registered.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The log cannot be written.
    #[error("cannot write the log {}: {source}", path.display())]
    Log {
        /// The file.
        path: PathBuf,
        /// What the kernel answered.
        source: std::io::Error,
    },
    /// The report cannot be written.
    #[error("cannot write the report {}: {source}", path.display())]
    Report {
        /// The file.
        path: PathBuf,
        /// What the kernel answered.
        source: std::io::Error,
    },
}

/// All that is decided before the fork and known to both sides of it.
pub(crate) struct Prepared<'a> {
    pub(crate) id: RunId,
    pub(crate) spec: &'a RunSpec,
    pub(crate) options: &'a RunOptions<'a>,
    pub(crate) found: &'a Found,
    pub(crate) boundary: Boundary,
    pub(crate) record: RunningTree,
    pub(crate) registration: Registration,
    pub(crate) kmsg: Option<Kmsg>,
    pub(crate) host_oom_kills: Option<u64>,
    pub(crate) report: Option<File>,
    /// Files that were made for this run.
    pub(crate) made: Vec<PathBuf>,
    pub(crate) output: Option<Plan>,
    pub(crate) mask: SignalSet,
    pub(crate) job: Job,
    pub(crate) front: i32,
}

/// Runs one tree to its end. This process must have a single thread.
///
/// # Errors
/// [`RunError`] when nothing was started; a command that cannot be executed is an end like others, with code 126 or
/// 127.
pub fn run(spec: &RunSpec, found: &Found, options: &RunOptions<'_>) -> Result<Ended, RunError> {
    let mut made = Vec::new();
    let ended = start_and_wait(spec, found, options, &mut made);
    if ended.is_err() {
        unmake(&made);
    }
    ended
}

fn start_and_wait(
    spec: &RunSpec,
    found: &Found,
    options: &RunOptions<'_>,
    made: &mut Vec<PathBuf>,
) -> Result<Ended, RunError> {
    // Blocked before anything is made: from here on a signal waits until somebody can act on it.
    let passed_on = SignalSet::passed_on();
    let mask = passed_on.block()?;
    SignalSet::of(&[libc_sigchld()]).block()?;
    spawn::become_subreaper()?;

    let report = options.report.as_deref().map(|path| open_report(path, made)).transpose()?;
    let output = plan_output(spec, made)?;
    let given = Given::remember();
    let (now, wall) = (clock::Instant::now(), clock::wall());
    let mut random = [0; 4];
    let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
    let id =
        RunId::new(wall.as_millisecond().unsigned_abs(), u32::from_ne_bytes(random) ^ now.since_boot().subsec_nanos());
    let (groups, parents) = boundary::planned(found, id.as_str(), &spec.limits);
    let record = RunningTree {
        name: spec.name.clone(),
        command: options.redacted.clone(),
        boundary: found.boundary,
        boot_id: boot_id(),
        started_at: wall,
        memory_limit_bytes: spec.limits.memory,
        swap_limit_bytes: swap_limit(spec, found),
        groups,
        parents,
        schema: plimsoll_store::registry::SCHEMA.to_owned(),
        id,
        root: None,
        members: Vec::new(),
    };
    // Known before it exists: whatever happens to us from here on, the next plimsoll finds it.
    let registration = Registration::register(options.runtime_dir, &record)?;
    let boundary = match Boundary::make(found, id.as_str(), &spec.limits, spec.on_limit) {
        Ok(boundary) => boundary,
        Err(error) => {
            let _ = registration.remove();
            return Err(error.into());
        }
    };
    let (front_end, keeper_end) = pair()?;
    let terminal = File::open("/dev/tty").is_ok();
    let prepared = Prepared {
        id,
        spec,
        options,
        found,
        boundary,
        record,
        registration,
        kmsg: Kmsg::open_at_end(),
        host_oom_kills: None,
        report,
        made: made.clone(),
        mask,
        // A terminal of its own is that of a session of its own, which the keeper makes.
        job: if terminal && !output.has_terminal() { Job::Shared } else { Job::Own },
        output: Some(output),
        front: rustix::process::getpid().as_raw_nonzero().get(),
    };
    match spawn::fork() {
        Err(error) => {
            let _ = prepared.boundary.remove();
            let _ = prepared.registration.remove();
            Err(error.into())
        }
        Ok(Fork::Child) => {
            drop(front_end);
            Keeper::new(prepared, keeper_end).run();
            spawn::exit_now(0)
        }
        Ok(Fork::Parent(keeper)) => {
            drop(keeper_end);
            let (ended, by_itself) = wait(prepared, &front_end, keeper, &passed_on);
            if let Some(given) = given {
                given.give_back(!by_itself);
            }
            Ok(ended)
        }
    }
}

/// What has to be seen of the streams, for the options that were given.
fn plan_output(spec: &RunSpec, made: &mut Vec<PathBuf>) -> Result<Plan, RunError> {
    let mut open = |log: &LogSpec| {
        let there = log.file.exists();
        let open = RotatingLog::open(log).map_err(|source| RunError::Log { path: log.file.clone(), source })?;
        note_made(there, &log.file, made);
        Ok::<_, RunError>((open, log.overflow))
    };
    Ok(Plan::new(spec.log.as_ref().map(&mut open).transpose()?, spec.idle_timeout.is_some()))
}

fn libc_sigchld() -> i32 {
    Signal::CHILD.as_raw()
}

/// What stands in it stays until there is a certificate to take its place: the run may yet be refused.
fn open_report(path: &Path, made: &mut Vec<PathBuf>) -> Result<File, RunError> {
    let there = path.exists();
    let open = File::options().write(true).create(true).truncate(false).open(path);
    let open = open.map_err(|source| RunError::Report { path: path.to_owned(), source })?;
    note_made(there, path, made);
    Ok(open)
}

fn note_made(there: bool, path: &Path, made: &mut Vec<PathBuf>) {
    // By its own name: what is removed is the file, and not a link to it.
    made.extend(path.canonicalize().ok().filter(|_| !there));
}

/// Removes what was made for a run that was not started; nothing stands in it yet.
pub(crate) fn unmake(made: &[PathBuf]) {
    for path in made.iter().filter(|path| path.metadata().is_ok_and(|file| file.is_file() && file.len() == 0)) {
        let _ = std::fs::remove_file(path);
    }
}

/// Swap that the tree may use, where that is in force: the total less the RAM. Without a group, or without swap accounting,
/// nothing keeps a tree out of swap.
pub(crate) fn swap_limit(spec: &RunSpec, found: &Found) -> Option<u64> {
    Some(spec.limits.memory_swap? - spec.limits.memory?).filter(|_| found.swap_accounting)
}

/// This boot's id: pids of another boot mean nothing.
#[must_use]
pub fn boot_id() -> String {
    String::from_utf8_lossy(&read_file("/proc/sys/kernel/random/boot_id").unwrap_or_default()).trim().to_owned()
}

/// The machine's count of OOM kills.
pub(crate) fn host_oom_kills() -> Option<u64> {
    plimsoll_kernel::procfs::parse_vmstat_field(&read_file("/proc/vmstat").ok()?, "oom_kill")
}

/// Waits for the keeper's last word and passes signals on meanwhile. Answers whether the root ended by itself, too.
fn wait(prepared: Prepared<'_>, end: &End, keeper: i32, passed_on: &SignalSet) -> (Ended, bool) {
    // Failing to make a descriptor leaves the signals blocked, and the run goes on without them.
    let signals = SignalFd::new(passed_on).ok();
    let shared = prepared.job == Job::Shared;
    let own_terminal = prepared.output.as_ref().is_some_and(Plan::has_terminal);
    // The tree's orphans are the keeper's; only as process 1 we get those of others (`docker exec`).
    let is_init = rustix::process::getpid() == Pid::INIT;
    let adopted = if is_init { SignalFd::new(&SignalSet::of(&[libc_sigchld()])).ok() } else { None };
    // The root is not forked from here and keeps the priority that we were given.
    spawn::run_before_others();
    loop {
        let mut fds = vec![PollFd::new(end, PollFlags::IN)];
        if let Some(signals) = &signals {
            fds.push(PollFd::new(signals, PollFlags::IN));
        }
        if let Some(adopted) = &adopted {
            fds.push(PollFd::new(adopted, PollFlags::IN));
        }
        if poll(&mut fds, None).is_err() {
            continue;
        }
        let (spoken, signalled) = (!fds[0].revents().is_empty(), fds.get(1).is_some_and(|fd| !fd.revents().is_empty()));
        drop(fds);
        if let Some(adopted) = &adopted {
            while adopted.next().is_some() {}
            spawn::reap_adopted(keeper);
        }
        if signalled && let Some(signals) = &signals {
            while let Some(received) = signals.next() {
                // The terminal's own signals go to its whole foreground group: the root has those already. What a member
                // of our group sent may have gone to all of it as well; that cannot be told, and twice is better than never.
                let seen = shared && received.by_kernel;
                end.say(&Message::Signal { signal: received.signal, sender: received.sender, seen });
            }
        }
        if spoken {
            match end.hear() {
                Some(Message::Over { code, by_itself, text }) => {
                    // A plimsoll in the tree was ended with it; what it looked after is gone as well, and its record goes
                    // now, while the keeper goes too.
                    let _ = sweep(prepared.options.runtime_dir, prepared.options.state_dir);
                    let _ = spawn::wait_for(keeper);
                    prepared.boundary.leave_leaf();
                    return (Ended { code, text }, by_itself);
                }
                Some(Message::Stopped { root, signal }) => stop_with(root, signal, own_terminal, end),
                Some(Message::Signal { .. }) => {}
                None => return (keeper_lost(prepared, keeper), false),
            }
        }
    }
}

fn group_of(pid: i32) -> Option<Pid> {
    rustix::process::getpgid(Pid::from_raw(pid)).ok()
}

/// A root that was stopped stops our job with it, by the same signal, so that the shell gets its prompt back. SIGSTOP
/// may be somebody's who looks into the tree: that counts only where a shell waits for us.
fn stop_with(root: i32, number: i32, own_terminal: bool, end: &End) {
    let foreground = File::open("/dev/tty")
        .ok()
        .and_then(|tty| rustix::termios::tcgetpgrp(&tty).ok())
        // A shell that suspends itself keeps the terminal for its own group.
        .is_some_and(|group| group == rustix::process::getpgrp() || Some(group) == group_of(root));
    // It may be running again by now: `kill -STOP` stops both of us, and `fg` continues both, before this is read.
    let stopped = plimsoll_kernel::procfs::Process::of(root)
        .ok()
        .and_then(|process| process.state().ok().flatten())
        .is_some_and(|state| state == 'T');
    if !stopped || (number == Signal::STOP.as_raw() && !foreground) {
        return;
    }
    // A key that was typed at a terminal of the root's own would have stopped all of our job at the user's.
    signal::stop_by(number, own_terminal);
    let going_on = Signal::CONT.as_raw();
    if number == Signal::TSTP.as_raw() && !SignalSet::of(&[going_on]).is_pending() {
        // Nobody could continue us, so the kernel did not stop us; nor would it have stopped the root at our terminal.
        end.say(&Message::Signal { signal: going_on, sender: 0, seen: false });
    }
}

/// The keeper was killed. Its children are ours now, for we are a subreaper too.
fn keeper_lost(prepared: Prepared<'_>, keeper: i32) -> Ended {
    let how = match spawn::wait_for(keeper) {
        Some(spawn::Wait::Signaled(number)) => format!("killed by {}", signal::name(number)),
        _ => "gone".to_owned(),
    };
    let reason = format!("its keeper (pid {keeper}) was {how}, and the tree was ended with it");
    let text = format!("plimsoll: error: {}: {reason}\n", prepared.spec.name);
    let mut keeper = Keeper::heir(prepared);
    let (_, explained) = keeper.finish(RootExit::Unknown, Some(Decision::Bereft(reason)));
    Ended { code: 125, text: text + &explained }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_kernel::cgroup::probe;
    use plimsoll_model::Limits;
    use plimsoll_model::spec::BoundaryChoice;

    #[test]
    fn a_run_that_is_refused_leaves_files_as_they_were() {
        let dir = std::env::temp_dir().join(format!("plimsoll-unmade-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let [old, new, link] = ["old", "new", "link"].map(|name| dir.join(name));
        std::fs::write(&old, "old").unwrap();
        std::os::unix::fs::symlink("new", &link).unwrap();
        let mut made = Vec::new();
        for path in [&old, &link] {
            open_report(path, &mut made).unwrap();
        }
        assert!(new.exists());
        unmake(&made);
        assert!(!new.exists() && link.is_symlink(), "what was made goes");
        assert_eq!(std::fs::read(&old).unwrap(), b"old", "and what was there stays");
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn swap_is_limited_where_a_kernel_counts_it() {
        let limits = Limits { memory: Some(64 << 20), memory_swap: Some(96 << 20), ..Limits::default() };
        let spec = RunSpec {
            name: "x".into(),
            command: vec!["x".into()],
            env: Vec::new(),
            workdir: None,
            limits,
            on_limit: plimsoll_model::OnLimit::Tree,
            boundary: BoundaryChoice::Watchdog,
            stop_timeout: std::time::Duration::ZERO,
            timeout: None,
            idle_timeout: None,
            log: None,
            bounds: None,
        };
        let watchdog = probe(BoundaryChoice::Watchdog, None).unwrap();
        assert_eq!(swap_limit(&spec, &watchdog), None);
        let counted = Found { swap_accounting: true, ..watchdog };
        assert_eq!(swap_limit(&spec, &counted), Some(32 << 20));
    }
}
