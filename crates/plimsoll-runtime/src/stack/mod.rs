//! `plimsoll up`: the runtime of a stack.
//!
//! Two processes: the one that the user started is the *guard*, its child the *supervisor* ([`supervisor`]), which owns
//! everything. When the supervisor is killed, the kernel kills the roots with it (they ask for that when they start), and
//! the guard, which hears of it by the end of a socket, sweeps the rest by the budget's group and the tag. When the guard
//! is killed the supervisor stops everything. When both are, the next plimsoll of any verb sweeps.

pub mod detached;
pub mod journal;
mod kept;
mod notify;
mod output;
mod replica;
mod seat;
mod supervisor;

use std::path::PathBuf;
use std::sync::Arc;

use plimsoll_kernel::boundary;
use plimsoll_kernel::cgroup::Found;
use plimsoll_kernel::resident;
use plimsoll_kernel::signal::{SignalFd, SignalSet};
use plimsoll_kernel::spawn::{self, Fork, Wait};
use plimsoll_model::stack::StackSpec;
use plimsoll_store::Occupied;
use rustix::event::{PollFd, PollFlags, poll};

use supervisor::Supervisor;

/// What `up` needs.
pub struct StackOptions {
    /// What is to run.
    pub spec: Arc<StackSpec>,
    /// Reads the file again; an error, in words, changes nothing.
    pub reload: Box<dyn FnMut() -> Result<Arc<StackSpec>, String>>,
    /// The file's folder: where what it names is looked for.
    pub directory: PathBuf,
    /// What this machine gives us.
    pub found: Found,
    /// Whose memory the budget is a part of,
    pub place: Place,
    /// and what it is when asked again: a container's limit may change.
    pub find_place: fn() -> Option<Place>,
    /// Processors.
    pub cores: u32,
    /// Directory of the certificates, the journal and the logs, made already.
    pub state_dir: PathBuf,
    /// Directory of the registry, made already.
    pub runtime_dir: PathBuf,
    /// The control socket.
    pub socket: PathBuf,
    /// The state directory is ours.
    pub occupied: Occupied,
    /// Takes a line for the operator.
    pub say: Box<dyn FnMut(&str)>,
    /// Called once the start is over.
    pub started: Box<dyn FnMut()>,
}

/// The machine or container that we are in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its memory, bytes.
    pub total: u64,
    /// The group that sets this limit, where it is not the machine's own memory.
    pub group: Option<(PathBuf, plimsoll_model::Boundary)>,
}

/// Runs a stack until it is down. This process must have a single thread.
///
/// # Errors
/// In words, when nothing was started.
pub fn up(options: StackOptions) -> Result<u8, String> {
    // Before there are two: a delegated group can only be divided when nobody is in it.
    let leaf = boundary::enter_leaf(&options.found).map_err(|error| error.to_string())?;
    let ran = up_from_leaf(options);
    if let Some(leaf) = leaf {
        leaf.leave();
    }
    ran
}

/// The same from where groups can be made already.
fn up_from_leaf(mut options: StackOptions) -> Result<u8, String> {
    let words = |error: plimsoll_kernel::KernelError| error.to_string();
    let signals = supervisor::signals();
    let mask = signals.block().map_err(words)?;
    spawn::become_subreaper().map_err(words)?;
    let (ours, theirs) = rustix::net::socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::SEQPACKET,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|error| error.to_string())?;
    match spawn::fork().map_err(words)? {
        Fork::Child => {
            drop(ours);
            let code = supervise(&mut options, &signals, mask, &theirs);
            spawn::exit_now(i32::from(code))
        }
        Fork::Parent(supervisor) => {
            drop(theirs);
            // What it guards is written in the registry.
            options.spec = Arc::new(StackSpec { budget: options.spec.budget, ..StackSpec::default() });
            resident::give_back();
            Ok(guard(&options, &signals, &ours, supervisor))
        }
    }
}

fn supervise(options: &mut StackOptions, signals: &SignalSet, mask: SignalSet, guard: &std::os::fd::OwnedFd) -> u8 {
    resident::keep_nothing_large();
    let ready = spawn::become_subreaper().and_then(|()| SignalFd::new(signals));
    let ran = ready.map_err(|error| error.to_string()).and_then(|signals| {
        let _ = rustix::process::setsid();
        Supervisor::new(options, mask)?.run(&signals, guard)
    });
    match ran {
        Ok(()) => 0,
        Err(why) => {
            (options.say)(&format!("error: {why}"));
            1
        }
    }
}

/// Passes signals on and waits; when the supervisor was killed, ends what it looked after.
fn guard(options: &StackOptions, signals: &SignalSet, supervisor_end: &std::os::fd::OwnedFd, supervisor: i32) -> u8 {
    let signals = SignalFd::new(signals).ok();
    loop {
        let mut fds = vec![PollFd::new(supervisor_end, PollFlags::IN)];
        if let Some(signals) = &signals {
            fds.push(PollFd::new(signals, PollFlags::IN));
        }
        if poll(&mut fds, None).is_err() {
            continue;
        }
        let gone = !fds[0].revents().is_empty();
        drop(fds);
        while let Some(received) = signals.as_ref().and_then(SignalFd::next) {
            if received.signal == rustix::process::Signal::CHILD.as_raw() {
                // As process 1 of a container it gets the orphans of whoever was let in (`docker exec`).
                spawn::reap_adopted(supervisor);
            } else {
                let _ = plimsoll_kernel::signal::send(supervisor, received.signal);
            }
        }
        if gone {
            let code = match spawn::wait_for(supervisor) {
                Some(Wait::Exited(code)) => u8::try_from(code).unwrap_or(1),
                _ => 1,
            };
            // Of one that ended in order there is nothing to sweep.
            let _ = crate::sweep::sweep(&options.runtime_dir, &options.state_dir);
            return code;
        }
    }
}
