//! Signals: names, which ones are passed on, and receiving them through a descriptor.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::KernelError;

/// Name of a signal as `kill -l` has it, with `SIG` in front (`SIGTERM`, `SIG42`).
#[must_use]
pub fn name(signal: i32) -> String {
    NAMES.iter().find(|(number, _)| *number == signal).map_or_else(|| format!("SIG{signal}"), |(_, n)| (*n).to_owned())
}

const NAMES: [(i32, &str); 31] = [
    (libc::SIGHUP, "SIGHUP"),
    (libc::SIGINT, "SIGINT"),
    (libc::SIGQUIT, "SIGQUIT"),
    (libc::SIGILL, "SIGILL"),
    (libc::SIGTRAP, "SIGTRAP"),
    (libc::SIGABRT, "SIGABRT"),
    (libc::SIGBUS, "SIGBUS"),
    (libc::SIGFPE, "SIGFPE"),
    (libc::SIGKILL, "SIGKILL"),
    (libc::SIGUSR1, "SIGUSR1"),
    (libc::SIGSEGV, "SIGSEGV"),
    (libc::SIGUSR2, "SIGUSR2"),
    (libc::SIGPIPE, "SIGPIPE"),
    (libc::SIGALRM, "SIGALRM"),
    (libc::SIGTERM, "SIGTERM"),
    (libc::SIGSTKFLT, "SIGSTKFLT"),
    (libc::SIGCHLD, "SIGCHLD"),
    (libc::SIGCONT, "SIGCONT"),
    (libc::SIGSTOP, "SIGSTOP"),
    (libc::SIGTSTP, "SIGTSTP"),
    (libc::SIGTTIN, "SIGTTIN"),
    (libc::SIGTTOU, "SIGTTOU"),
    (libc::SIGURG, "SIGURG"),
    (libc::SIGXCPU, "SIGXCPU"),
    (libc::SIGXFSZ, "SIGXFSZ"),
    (libc::SIGVTALRM, "SIGVTALRM"),
    (libc::SIGPROF, "SIGPROF"),
    (libc::SIGWINCH, "SIGWINCH"),
    (libc::SIGIO, "SIGIO"),
    (libc::SIGPWR, "SIGPWR"),
    (libc::SIGSYS, "SIGSYS"),
];

/// Signals that stay with plimsoll: those that cannot be caught, and that speak of its own faults and children. Those of
/// job control are passed on too: plimsoll stops when the root has stopped, and not when that ignores them.
const KEPT: [i32; 10] = [
    libc::SIGKILL,
    libc::SIGSTOP,
    libc::SIGCHLD,
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGTRAP,
    libc::SIGSYS,
    libc::SIGABRT,
];

/// A set of signals.
#[derive(Clone, Copy)]
pub struct SignalSet(libc::sigset_t);

impl SignalSet {
    /// No signal.
    #[must_use]
    pub fn empty() -> Self {
        let mut set = MaybeUninit::uninit();
        // SAFETY: sigemptyset initialises the set it is given and cannot fail on a valid pointer.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            Self(set.assume_init())
        }
    }

    /// Just these.
    #[must_use]
    pub fn of(signals: &[i32]) -> Self {
        let mut set = Self::empty();
        for &signal in signals {
            // SAFETY: the set is initialised; an invalid number answers EINVAL and changes nothing.
            unsafe { libc::sigaddset(&raw mut set.0, signal) };
        }
        set
    }

    /// All that `run` passes on to the root of its tree.
    #[must_use]
    pub fn passed_on() -> Self {
        let all: Vec<i32> =
            (1..=libc::SIGRTMAX()).filter(|s| !KEPT.contains(s) && !(32..libc::SIGRTMIN()).contains(s)).collect();
        Self::of(&all)
    }

    /// Blocks the signals of this set beside those that are blocked; returns the mask as it was.
    ///
    /// # Errors
    /// Never on a valid set; the kernel's word is passed on all the same.
    pub fn block(&self) -> Result<Self, KernelError> {
        self.mask(libc::SIG_BLOCK)
    }

    /// Whether one of them waits, blocked.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        let mut pending = Self::empty();
        // SAFETY: sigpending fills the set that it is given; both sets are initialised.
        unsafe {
            libc::sigpending(&raw mut pending.0) == 0
                && (1..=libc::SIGRTMAX()).any(|signal| {
                    libc::sigismember(&raw const self.0, signal) == 1
                        && libc::sigismember(&raw const pending.0, signal) == 1
                })
        }
    }

    fn mask(&self, how: libc::c_int) -> Result<Self, KernelError> {
        let mut old = Self::empty();
        // SAFETY: both sets are initialised and live through the call.
        match unsafe { libc::sigprocmask(how, &raw const self.0, &raw mut old.0) } {
            0 => Ok(old),
            _ => Err(KernelError::call("sigprocmask")),
        }
    }

    pub(crate) fn as_raw(&self) -> *const libc::sigset_t {
        &raw const self.0
    }
}

/// A signal that arrived.
#[derive(Debug, Clone, Copy)]
pub struct Received {
    /// Its number.
    pub signal: i32,
    /// Who sent it; 0 when the kernel did (a terminal's Ctrl-C).
    pub sender: i32,
    /// The kernel itself sent it.
    pub by_kernel: bool,
}

/// A descriptor that is readable while a signal of its set is pending.
pub struct SignalFd(OwnedFd);

impl SignalFd {
    /// A non-blocking, close-on-exec descriptor for the set, which must be blocked.
    ///
    /// # Errors
    /// The kernel's, such as too many open files.
    pub fn new(set: &SignalSet) -> Result<Self, KernelError> {
        // SAFETY: the set is initialised; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, set.as_raw(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(KernelError::call("signalfd"));
        }
        // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The next pending signal, if there is one.
    #[must_use]
    pub fn next(&self) -> Option<Received> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::zeroed();
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: the buffer is as large as said, and every bit pattern is a valid signalfd_siginfo.
        let info = unsafe {
            if libc::read(self.0.as_raw_fd(), info.as_mut_ptr().cast(), size) != size as isize {
                return None;
            }
            info.assume_init()
        };
        Some(Received {
            signal: info.ssi_signo as i32,
            sender: info.ssi_pid as i32,
            by_kernel: info.ssi_code == libc::SI_KERNEL,
        })
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Whether this process ignores the signal (as under `nohup`).
#[must_use]
pub fn is_ignored(signal: i32) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: with a null new action the call only reads; the buffer is large enough.
    unsafe {
        libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

/// Makes this process ignore the signal from now on, and every program it executes too.
pub fn ignore(signal: i32) {
    // SAFETY: SIG_IGN is no handler, so no code of ours runs in signal context.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// The signal does to this process what it does by default, and to every program it executes too.
pub fn reset(signal: i32) {
    // SAFETY: SIG_DFL is no handler, so no code of ours runs in signal context.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

/// Sends a signal to a pid, which the caller knows to be unrecycled (a child not yet waited for, or itself).
///
/// # Errors
/// ESRCH when it is gone, EPERM when it is not ours.
pub fn send(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: kill takes plain numbers and touches no memory of ours.
    if unsafe { libc::kill(pid, signal) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Stops this process, or all of its group, by a signal that is blocked here. Returns when it is continued; at once
/// where the kernel refuses, since nobody is there to continue it (an orphaned group).
pub fn stop_by(signal: i32, group: bool) {
    let pid = if group { 0 } else { rustix::process::getpid().as_raw_nonzero().get() };
    let _ = send(pid, signal);
    let set = SignalSet::of(&[signal]);
    // It acts between the two.
    let _ = set.mask(libc::SIG_UNBLOCK);
    let _ = set.block();
}

/// From now on SIGTERM comes when the process that started us ends, however that is. False when it has ended already.
#[must_use]
pub fn end_with_parent() -> bool {
    let parent = rustix::process::getppid();
    let set = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM)).is_ok();
    // It may have ended before it was asked for: then somebody else is our parent by now.
    set && parent.is_some() && rustix::process::getppid() == parent
}
