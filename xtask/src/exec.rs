//! Children of xtask: started in one place, streamed line by line, ended by pid at their deadline.

use std::ffi::OsStr;
use std::fmt;
use std::io::{BufRead, BufReader, IsTerminal};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use plimsoll_kernel::clock::Instant;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// Why a piece of xtask's work could not be done, in words for the person at the terminal.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) String);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Failure {
    /// An I/O error on `path`, told with what was being done: `failure("read", path)(error)`.
    pub(crate) fn on(doing: &str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |error| Self(format!("cannot {doing} {}: {error}", path.display()))
    }
}

/// A command that is about to be started. The only place in xtask that names a program to run.
#[expect(
    clippy::disallowed_methods,
    reason = "xtask is no product: it starts cargo, qemu and dockerd as they are, outside a boundary"
)]
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    command
}

/// How a streamed command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It exited with this code (128 + n for signal n).
    Code(i32),
    /// It was killed at its deadline.
    Deadline,
}

impl Ended {
    pub(crate) fn is_success(self) -> bool {
        self == Self::Code(0)
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Deadline => f.write_str("killed at its deadline"),
        }
    }
}

/// The shell's number for an exit status: the code, or 128 + n for signal n.
pub(crate) fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(-1)
}

/// A started child that does not outlive this value.
#[derive(Debug)]
pub(crate) struct Guarded {
    child: Child,
    own_group: bool,
}

impl Guarded {
    /// Starts `command`. Without a terminal the child leads a process group, which goes as a whole; with one it stays
    /// in ours, so that Ctrl-C reaches everything.
    pub(crate) fn start(command: &mut Command) -> Result<Self, Failure> {
        use std::os::unix::process::CommandExt;
        let own_group = !std::io::stdin().is_terminal();
        if own_group {
            command.process_group(0);
        }
        let child =
            command.spawn().map_err(|error| Failure(format!("cannot start {:?}: {error}", command.get_program())))?;
        Ok(Self { child, own_group })
    }

    /// Its pid.
    pub(crate) fn pid(&self) -> i32 {
        Pid::from_child(&self.child).as_raw_nonzero().get()
    }

    /// The exit code, if it has ended.
    pub(crate) fn ended(&mut self) -> Option<i32> {
        self.child.try_wait().ok().flatten().map(code)
    }

    /// Asks it to stop.
    pub(crate) fn terminate(&self) {
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
    }

    /// Waits for its end for at most `limit`; `None` when it still runs then.
    pub(crate) fn wait_for(&mut self, limit: Duration) -> Option<i32> {
        let start = Instant::now();
        loop {
            if let Some(code) = self.ended() {
                return Some(code);
            }
            if start.elapsed() > limit {
                return None;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Kills it (and its group, where it has its own) and reaps it.
    pub(crate) fn kill(&mut self) {
        if let Ok(Some(_)) = self.child.try_wait() {
            return; // reaped: its pid may already be somebody else's
        }
        let pid = Pid::from_child(&self.child);
        if self.own_group {
            let _ = kill_process_group(pid, Signal::KILL);
        }
        let _ = kill_process(pid, Signal::KILL);
        let _ = self.child.wait();
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs `command` to its end or to `deadline`, handing each line of stdout and stderr (without its end) to `on_line`.
pub(crate) fn stream(
    mut command: Command,
    deadline: Duration,
    mut on_line: impl FnMut(&str),
) -> Result<Ended, Failure> {
    let pipe = |error: std::io::Error| Failure(format!("cannot make a pipe: {error}"));
    let (reader, writer) = std::io::pipe().map_err(pipe)?;
    command.stdout(writer.try_clone().map_err(pipe)?).stderr(writer);
    let mut child = Guarded::start(&mut command)?;
    drop(command); // with our ends of the pipe, so that it can end
    let (send, lines) = sync_channel::<Vec<u8>>(64);
    std::thread::spawn(move || {
        let mut reader = BufReader::new(reader);
        loop {
            let mut line = Vec::new();
            match reader.read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => {
                    if send.send(line).is_err() {
                        return;
                    }
                }
            }
        }
    });
    let start = Instant::now();
    let mut ended = None;
    loop {
        match lines.recv_timeout(Duration::from_millis(500)) {
            Ok(line) => on_line(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r'])),
            Err(RecvTimeoutError::Disconnected) => break,
            // Somebody it left behind may hold the pipe open for ever: once it has ended, silence ends the stream too.
            Err(RecvTimeoutError::Timeout) if ended.is_some() => break,
            Err(RecvTimeoutError::Timeout) => ended = child.ended().map(Ended::Code),
        }
        if start.elapsed() > deadline {
            child.kill();
            ended = Some(Ended::Deadline);
            break;
        }
    }
    if let Some(ended) = ended {
        return Ok(ended);
    }
    let left = deadline.saturating_sub(start.elapsed());
    Ok(child.wait_for(left).map_or(Ended::Deadline, Ended::Code))
}

/// Runs `command` to its end and answers its stdout; its stderr is ours. An error when it fails.
pub(crate) fn output(command: &mut Command) -> Result<String, Failure> {
    let told = format!("{command:?}");
    let output =
        command.stderr(Stdio::inherit()).output().map_err(|error| Failure(format!("cannot start {told}: {error}")))?;
    if !output.status.success() {
        return Err(Failure(format!("{told} failed with exit code {}", code(output.status))));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `command` to its end with our stdout and stderr. An error when it fails.
pub(crate) fn succeed(command: &mut Command) -> Result<(), Failure> {
    let told = format!("{command:?}");
    let status = command.status().map_err(|error| Failure(format!("cannot start {told}: {error}")))?;
    if status.success() { Ok(()) } else { Err(Failure(format!("{told} failed with exit code {}", code(status)))) }
}

/// The first of `PATH`'s folders that has `program`, as a path to it.
pub(crate) fn which(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    // Debian keeps daemons in sbin, which a user's PATH may not have.
    let more = ["/usr/sbin", "/sbin"].map(Into::into);
    std::env::split_paths(&path).chain(more).map(|folder| folder.join(program)).find(|file| file.is_file())
}
