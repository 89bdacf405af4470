//! Starting processes: the keeper by a plain fork, the root of a tree inside its group from its first instruction.

mod interpreter;

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};

use crate::KernelError;
use crate::landlock::{self, Ruleset};
use crate::signal::SignalSet;

/// Which side of a fork this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// The one that called, with the child's pid.
    Parent(i32),
    /// The new one.
    Child,
}

/// Forks this process, which must have a single thread.
///
/// # Errors
/// No room for another process.
pub fn fork() -> Result<Fork, KernelError> {
    // SAFETY: the caller has one thread, so no lock can be held by a thread that the child lacks.
    match unsafe { libc::fork() } {
        -1 => Err(KernelError::call("fork")),
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(pid)),
    }
}

/// Ends this process at once, without running what its other half of the fork will run too.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit takes a number and does not return.
    unsafe { libc::_exit(code) }
}

/// Orphans below this process become its children, instead of init's.
///
/// # Errors
/// Never on Linux since 3.4; the kernel's word is passed on all the same.
pub fn become_subreaper() -> Result<(), KernelError> {
    // SAFETY: PR_SET_CHILD_SUBREAPER takes a number.
    if unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) } == 0 {
        Ok(())
    } else {
        Err(KernelError::call("prctl(PR_SET_CHILD_SUBREAPER)"))
    }
}

/// Asks to be woken before others, as far as this user may: a keeper sleeps nearly always, but must not wait behind a
/// runaway's own load when it is time to look. Even a task of the highest niceness waits for the slice of whoever runs
/// (some milliseconds); a real-time one does not. Children get neither.
pub fn run_before_others() {
    let first = libc::sched_param { sched_priority: 1 };
    // SAFETY: plain numbers and a parameter that lives through the call; both are refused without CAP_SYS_NICE, which
    // leaves things as they were.
    unsafe {
        if libc::sched_setscheduler(0, libc::SCHED_RR | libc::SCHED_RESET_ON_FORK, &raw const first) != 0 {
            libc::setpriority(libc::PRIO_PROCESS, 0, -20);
        }
    }
}

/// A child that ended or changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// It called exit.
    Exited(i32),
    /// A signal ended it.
    Signaled(i32),
    /// A signal stopped it.
    Stopped(i32),
    /// It goes on.
    Continued,
}

/// The next child that ended or changed, without waiting for one.
#[must_use]
pub fn wait_any() -> Option<(i32, Wait)> {
    let mut status = 0;
    // SAFETY: status is a valid place for the result.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::WUNTRACED | libc::WCONTINUED) };
    (pid > 0).then(|| (pid, decode(status)))
}

/// Waits for one child to end.
#[must_use]
pub fn wait_for(pid: i32) -> Option<Wait> {
    let mut status = 0;
    loop {
        // SAFETY: status is a valid place for the result.
        let found = unsafe { libc::waitpid(pid, &raw mut status, 0) };
        if found == pid {
            return Some(decode(status));
        }
        if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return None;
        }
    }
}

/// Waits for all children that have ended, but not for `own`, whose end somebody else reads: what a process 1 (or another
/// reaper) has adopted.
pub fn reap_adopted(own: i32) {
    loop {
        let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
        // SAFETY: info is a valid place for the result, of which zeroes are a valid value: no child has ended.
        let pid = unsafe {
            let found = libc::waitid(libc::P_ALL, 0, info.as_mut_ptr(), libc::WEXITED | libc::WNOHANG | libc::WNOWAIT);
            if found == 0 { info.assume_init().si_pid() } else { 0 }
        };
        if pid <= 0 || pid == own {
            return;
        }
        let _ = wait_for(pid);
    }
}

fn decode(status: i32) -> Wait {
    if libc::WIFEXITED(status) {
        Wait::Exited(libc::WEXITSTATUS(status))
    } else if libc::WIFSIGNALED(status) {
        Wait::Signaled(libc::WTERMSIG(status))
    } else if libc::WIFSTOPPED(status) {
        Wait::Stopped(libc::WSTOPSIG(status))
    } else {
        Wait::Continued
    }
}

/// Who the root is to the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// In our process group, so that the terminal's keys reach it and it may read.
    Shared,
    /// In a group of its own: there is no terminal or it is in its background, and a signal to our group must not reach
    /// it twice.
    Own,
    /// The same, and in the foreground of this terminal of our session's. SIGTTOU must be blocked.
    Foreground(RawFd),
}

/// The root of a tree, ready to start.
pub struct Launch<'a> {
    /// Command and arguments; never empty.
    pub command: &'a [OsString],
    /// The whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// Working directory.
    pub workdir: Option<&'a std::path::Path>,
    /// Descriptors to become 0, 1 and 2; `None` leaves ours.
    pub stdio: [Option<BorrowedFd<'a>>; 3],
    /// Files of groups (`tasks`, `cgroup.procs`) that the child writes itself into while it has a single thread.
    pub join: Vec<PathBuf>,
    /// A v2 directory that it is cloned into.
    pub into: Option<PathBuf>,
    /// Closed before all else: a lock that says that we live, which a child on its way to exec must not hold for us.
    pub lock: Option<BorrowedFd<'a>>,
    /// Added to its badness.
    pub oom_score_adj: Option<i16>,
    /// The user and group that it becomes, without further groups; `None` stays who we are. Needs root.
    pub user: Option<u32>,
    /// What it may reach, with all that it starts; `None` is what its user may.
    pub bounds: Option<&'a Ruleset>,
    /// Its place in job control.
    pub job: Job,
    /// The signal mask that it gets.
    pub mask: SignalSet,
}

/// Why the root did not start.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// A text has a NUL byte in it.
    #[error("`{0}` contains a NUL byte")]
    Nul(String),
    /// A step of our own preparation failed; nothing was started.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The program is there, and what it is to be run by is not.
    #[error("its interpreter {} is not there", .0.display())]
    Interpreter(PathBuf),
    /// The child could not take this step.
    #[error("{step}: {source}")]
    Step {
        /// What it tried.
        step: Step,
        /// What the kernel answered.
        source: io::Error,
    },
}

/// The steps of a child between fork and exec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    /// `cgroup.procs`.
    JoinGroup = 1,
    /// `oom_score_adj`.
    OomScore = 2,
    /// Session, process group, terminal.
    Job = 3,
    /// Working directory.
    Workdir = 4,
    /// Descriptors.
    Stdio = 5,
    /// The program itself.
    Exec = 6,
    /// User and group.
    User = 7,
    /// Landlock.
    Bounds = 8,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::JoinGroup => "cannot join the group",
            Self::OomScore => "cannot set oom_score_adj",
            Self::Job => "cannot set up the process group",
            Self::Workdir => "cannot change to the working directory",
            Self::Stdio => "cannot set up stdin, stdout or stderr",
            Self::Exec => "cannot execute",
            Self::User => "cannot become the session's user",
            Self::Bounds => "cannot be kept to its own folders",
        })
    }
}

fn c_string(text: &OsStr) -> Result<CString, SpawnError> {
    CString::new(text.as_bytes()).map_err(|_| SpawnError::Nul(text.to_string_lossy().into_owned()))
}

impl Launch<'_> {
    /// Starts the root and waits until its program runs, or until it said what failed. Called by a process with a
    /// single thread.
    ///
    /// # Errors
    /// [`SpawnError::Step`] with [`Step::Exec`] and ENOENT or EACCES are the user's; the others are ours or the
    /// machine's. The failed child is waited for.
    pub fn start(&self) -> Result<i32, SpawnError> {
        let args: Vec<CString> = self.command.iter().map(|arg| c_string(arg)).collect::<Result<_, _>>()?;
        let env: Vec<CString> = self
            .env
            .iter()
            .map(|(key, value)| {
                let mut line = key.clone();
                line.push("=");
                line.push(value);
                c_string(&line)
            })
            .collect::<Result<_, _>>()?;
        let candidates = self.candidates()?;
        let workdir = self.workdir.map(|dir| c_string(dir.as_os_str())).transpose()?;
        let join: Vec<OwnedFd> = self.join.iter().map(open_procs).collect::<Result<_, _>>()?;
        let into = self.into.as_ref().map(open_group).transpose()?;
        let oom_score_adj = self.oom_score_adj.map(|value| value.to_string());
        let (report, child_report) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|error| KernelError::Call { call: "pipe", source: error.into() })?;

        // Pointers for exec are made before the fork: the child allocates nothing.
        let child = Child {
            args: pointers(&args),
            env: pointers(&env),
            candidates: &candidates,
            workdir: workdir.as_ref(),
            join: &join,
            oom_score_adj: oom_score_adj.as_deref(),
            report: child_report.as_raw_fd(),
            launch: self,
            fallback: self.into.as_ref().map(|dir| open_procs(&dir.join("cgroup.procs"))).transpose()?,
        };
        let keeper = rustix::process::getpid();
        let (pid, placed) = match into.as_ref().and_then(clone_into) {
            Some(Ok(pid)) => (pid, true),
            Some(Err(_)) | None => {
                // SAFETY: this process has one thread; the child runs only async-signal-safe calls until exec.
                (unsafe { libc::fork() }, false)
            }
        };
        match pid {
            -1 => return Err(KernelError::call("fork").into()),
            0 => child.run(placed, keeper.as_raw_nonzero().get()),
            _ => {}
        }
        drop(child_report);
        let mut said = [0; 5];
        let length = loop {
            match rustix::io::read(&report, &mut said) {
                Err(rustix::io::Errno::INTR) => {}
                other => break other.unwrap_or(0),
            }
        };
        if length < said.len() {
            return Ok(pid);
        }
        let _ = wait_for(pid);
        let errno = i32::from_ne_bytes([said[1], said[2], said[3], said[4]]);
        let step = match said[0] {
            1 => Step::JoinGroup,
            2 => Step::OomScore,
            3 => Step::Job,
            4 => Step::Workdir,
            5 => Step::Stdio,
            7 => Step::User,
            8 => Step::Bounds,
            _ => Step::Exec,
        };
        if step == Step::Exec
            && errno == libc::ENOENT
            && let Some(missing) = self.missing_interpreter(&candidates)
        {
            return Err(SpawnError::Interpreter(missing));
        }
        Err(SpawnError::Step { step, source: io::Error::from_raw_os_error(errno) })
    }

    fn missing_interpreter(&self, candidates: &[CString]) -> Option<PathBuf> {
        let dir = self.workdir.unwrap_or(std::path::Path::new("."));
        candidates.iter().find_map(|file| interpreter::missing(OsStr::from_bytes(file.as_bytes()).as_ref(), dir))
    }

    /// Paths to try, in order: the command itself when it has a slash, else along PATH of the new environment.
    fn candidates(&self) -> Result<Vec<CString>, SpawnError> {
        let program = self.command.first().map(OsString::as_os_str).unwrap_or_default();
        if program.as_bytes().contains(&b'/') {
            return Ok(vec![c_string(program)?]);
        }
        let path = self.env.iter().rev().find(|(key, _)| key == "PATH").map(|(_, value)| value.clone());
        let path = path.unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
        path.as_bytes()
            .split(|&byte| byte == b':')
            .map(|dir| {
                // An empty part is the working directory, as the shell has it.
                let dir = if dir.is_empty() { OsStr::new(".") } else { OsStr::from_bytes(dir) };
                c_string(PathBuf::from(dir).join(program).as_os_str())
            })
            .collect()
    }
}

fn open_procs(path: &PathBuf) -> Result<OwnedFd, KernelError> {
    rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).map_err(|error| KernelError::Write {
        path: path.clone(),
        value: "0".into(),
        source: error.into(),
    })
}

fn open_group(path: &PathBuf) -> Result<OwnedFd, KernelError> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| KernelError::Read { path: path.clone(), source: error.into() })
}

fn pointers(texts: &[CString]) -> Vec<*const libc::c_char> {
    texts.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
}

/// clone3 straight into a v2 group: the child never runs outside. An error means "try it the other way".
fn clone_into(group: &OwnedFd) -> Option<io::Result<i32>> {
    #[repr(C, align(8))]
    #[derive(Default)]
    struct CloneArgs {
        flags: u64,
        pidfd: u64,
        child_tid: u64,
        parent_tid: u64,
        exit_signal: u64,
        stack: u64,
        stack_size: u64,
        tls: u64,
        set_tid: u64,
        set_tid_size: u64,
        cgroup: u64,
    }
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let args = CloneArgs {
        flags: CLONE_INTO_CGROUP,
        exit_signal: libc::SIGCHLD as u64,
        cgroup: u64::try_from(group.as_raw_fd()).ok()?,
        ..CloneArgs::default()
    };
    // SAFETY: without CLONE_VM this is a fork; the struct has the layout and size of version 2 of clone_args, and the
    // child runs only async-signal-safe calls until exec.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    Some(if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(pid as i32) })
}

/// All that the child needs between fork and exec, made before the fork.
struct Child<'a, 'l> {
    args: Vec<*const libc::c_char>,
    env: Vec<*const libc::c_char>,
    candidates: &'a [CString],
    workdir: Option<&'a CString>,
    join: &'a [OwnedFd],
    oom_score_adj: Option<&'a str>,
    report: RawFd,
    launch: &'a Launch<'l>,
    /// `cgroup.procs` of the v2 group, when clone3 did not place us.
    fallback: Option<OwnedFd>,
}

impl Child<'_, '_> {
    /// Runs in the child: only system calls, no allocation, no return.
    fn run(&self, placed: bool, keeper: i32) -> ! {
        let step = self.steps(placed, keeper);
        let errno = io::Error::last_os_error().raw_os_error().unwrap_or(0);
        let mut said = [step as u8; 5];
        said[1..].copy_from_slice(&errno.to_ne_bytes());
        // SAFETY: the buffer is five bytes long; _exit does not return.
        unsafe {
            libc::write(self.report, said.as_ptr().cast(), said.len());
            libc::_exit(127)
        }
    }

    /// Answers the step that failed, with errno set; on success the program runs and nothing is answered.
    fn steps(&self, placed: bool, keeper: i32) -> Step {
        // SAFETY: every pointer below was made from a CString or a buffer that lives in `self`, whose memory the child
        // has a copy of; all calls are async-signal-safe.
        unsafe {
            if let Some(lock) = self.launch.lock {
                libc::close(lock.as_raw_fd());
            }
            // When the keeper goes the root goes too; it may have gone before this line.
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            if libc::getppid() != keeper {
                libc::_exit(127);
            }
            let unplaced = self.fallback.iter().filter(|_| !placed);
            for procs in self.join.iter().chain(unplaced) {
                if libc::write(procs.as_raw_fd(), c"0".as_ptr().cast(), 1) != 1 {
                    return Step::JoinGroup;
                }
            }
            if let Some(value) = self.oom_score_adj {
                let fd = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
                if fd < 0 || libc::write(fd, value.as_ptr().cast(), value.len()) != value.len() as isize {
                    return Step::OomScore;
                }
            }
            match self.launch.job {
                Job::Shared => {}
                Job::Own => {
                    libc::setpgid(0, 0);
                }
                Job::Foreground(terminal) => {
                    if libc::setpgid(0, 0) < 0 || libc::tcsetpgrp(terminal, libc::getpid()) < 0 {
                        return Step::Job;
                    }
                }
            }
            if let Some(dir) = self.workdir
                && libc::chdir(dir.as_ptr()) != 0
            {
                return Step::Workdir;
            }
            for (number, fd) in (0..).zip(&self.launch.stdio) {
                let Some(fd) = fd else { continue };
                // A descriptor that is in its place already still has close-on-exec set: dup2 would not clear it.
                let done = if fd.as_raw_fd() == number {
                    libc::fcntl(number, libc::F_SETFD, 0)
                } else {
                    libc::dup2(fd.as_raw_fd(), number)
                };
                if done < 0 {
                    return Step::Stdio;
                }
            }
            if let Some(user) = self.launch.user {
                let is_done = libc::setgroups(0, std::ptr::null()) == 0
                    && libc::setresgid(user, user, user) == 0
                    && libc::setresuid(user, user, user) == 0
                    // Another user has no such signal set any more.
                    && libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == 0;
                if !is_done {
                    return Step::User;
                }
            }
            if let Some(bounds) = self.launch.bounds
                && !landlock::put_in_force(bounds.as_raw())
            {
                return Step::Bounds;
            }
            // Rust's start-up ignores SIGPIPE; what else was ignored when we were started (nohup) stays ignored.
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            libc::sigprocmask(libc::SIG_SETMASK, self.launch.mask.as_raw(), std::ptr::null_mut());
            let mut worst = libc::ENOENT;
            for path in self.candidates {
                libc::execve(path.as_ptr(), self.args.as_ptr(), self.env.as_ptr());
                let errno = *libc::__errno_location();
                // Not here, or no directory: look on. Found but not for us: remember, something further on may do.
                match errno {
                    libc::ENOENT | libc::ENOTDIR => {}
                    libc::EACCES => worst = errno,
                    _ => {
                        worst = errno;
                        break;
                    }
                }
            }
            *libc::__errno_location() = worst;
            Step::Exec
        }
    }
}
