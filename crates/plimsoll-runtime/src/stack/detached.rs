//! `up -d`: the stack in the background, and the terminal told of how its start goes until that is over.
//!
//! Three processes for that while: the one that was typed waits and prints; its child leaves the terminal and becomes the
//! guard of [`super::up`], whose child is the supervisor. Lines come over a socket whose other end goes with those two, so
//! nobody waits in vain.

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use plimsoll_kernel::boundary;
use plimsoll_kernel::cgroup::v2::Leaf;
use plimsoll_kernel::clock::{self, Instant};
use plimsoll_kernel::spawn::{self, Fork};
use plimsoll_model::spec::{LogSpec, Overflow};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};

use super::{StackOptions, up_from_leaf};
use crate::log::RotatingLog;

/// Our own lines go to this file in the state directory, cut at this size, bytes; so many files of it are kept.
const LOG: &str = "up.log";
const MAX_SIZE: u64 = 1 << 20;
const MAX_FILES: u32 = 3;

/// A line to the terminal, bytes at most.
const LONGEST_LINE: usize = 16 << 10;

/// What a message begins with: a line to print, or that the start is over.
const LINE: u8 = b'L';
const STARTED: u8 = b'S';

/// How far it came while somebody waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detached {
    /// The start is over: see [`plimsoll_core::stack::Stack::has_started`].
    Started,
    /// It goes on, and the patience is over.
    Starting,
    /// It has ended; why was printed.
    Ended,
}

/// The way to the terminal that waits.
struct Terminal {
    way: Option<OwnedFd>,
    /// It has to be told that the start is over.
    is_over: bool,
}

impl Terminal {
    fn tell(&mut self, line: &str) {
        let Some(way) = &self.way else { return };
        let line = &line.as_bytes()[..line.len().min(LONGEST_LINE)];
        let message = if self.is_over { vec![STARTED] } else { [&[LINE], line].concat() };
        // A terminal that is stopped (Ctrl-Z) must not stop the supervisor: it misses a line.
        let sent = send(way, &message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        if sent.is_err_and(|errno| errno != Errno::AGAIN) || sent.is_ok() && self.is_over {
            self.way = None;
        }
    }

    fn is_over(&mut self) {
        self.is_over = true;
        self.tell("");
    }
}

/// Runs a stack in the background. Lines of its start go to `options.say`, and to `up.log` for good. This process must
/// have a single thread.
///
/// # Errors
/// In words, when nothing was started.
pub fn up_detached(mut options: StackOptions, patience: Option<Duration>) -> Result<Detached, String> {
    let file = options.state_dir.join(LOG);
    let spec = LogSpec { file, max_size: MAX_SIZE, max_files: MAX_FILES, overflow: Overflow::Drop };
    let mut log = RotatingLog::open(&spec).map_err(|error| format!("{}: {error}", spec.file.display()))?;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(|error| error.to_string())?;
    // Before there are two: a delegated group can only be divided when nobody is in it. The last one there clears up.
    let leaf = boundary::enter_leaf(&options.found).map_err(|error| error.to_string())?;
    let leave = || leaf.iter().for_each(Leaf::leave);
    match spawn::fork().map_err(|error| error.to_string())? {
        Fork::Parent(_) => {
            drop(theirs);
            let detached = listen(&ours, patience, &mut options.say);
            if detached == Detached::Ended {
                leave();
            }
            Ok(detached)
        }
        Fork::Child => {
            drop(ours);
            let terminal = Rc::new(RefCell::new(Terminal { way: Some(theirs), is_over: false }));
            let left = leave_the_terminal();
            options.occupied.write_pid();
            let (lines, over) = (terminal.clone(), terminal.clone());
            options.say = Box::new(move |line| {
                log.write(format!("{:.3} {line}\n", clock::wall()).as_bytes());
                lines.borrow_mut().tell(line);
            });
            options.started = Box::new(move || over.borrow_mut().is_over());
            let code = left
                .map_err(|error| format!("cannot leave the terminal: {error}"))
                .and_then(|()| up_from_leaf(options));
            leave();
            spawn::exit_now(code.map_or_else(
                |why| {
                    terminal.borrow_mut().tell(&format!("error: {why}"));
                    1
                },
                i32::from,
            ))
        }
    }
}

/// A session of our own, no stream of the terminal's, and no folder held that somebody may want to unmount.
fn leave_the_terminal() -> std::io::Result<()> {
    rustix::process::setsid()?;
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    std::env::set_current_dir("/")
}

/// Prints what comes until the start is over, one way or the other.
fn listen(way: &OwnedFd, patience: Option<Duration>, say: &mut dyn FnMut(&str)) -> Detached {
    let until = patience.map(|patience| Instant::now().after(patience));
    let mut message = vec![0; LONGEST_LINE + 1];
    loop {
        let left = until.map(|until| until.since(Instant::now()));
        let left = left.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        });
        match poll(&mut [PollFd::new(way, PollFlags::IN)], left.as_ref()) {
            Ok(0) => return Detached::Starting,
            Ok(_) => {}
            Err(_) => continue,
        }
        match recv(way, &mut message, RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Detached::Ended,
            Ok((length, _)) if message[0] == LINE => say(&String::from_utf8_lossy(&message[1..length])),
            Ok(_) => return Detached::Started,
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => return Detached::Ended,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (OwnedFd, Terminal) {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        (ours, Terminal { way: Some(theirs), is_over: false })
    }

    fn heard(way: &OwnedFd, patience: Option<Duration>) -> (Detached, Vec<String>) {
        let mut lines = Vec::new();
        let ended = listen(way, patience, &mut |line| lines.push(line.to_owned()));
        (ended, lines)
    }

    #[test]
    fn lines_come_until_the_start_is_over() {
        let (ours, mut terminal) = pair();
        terminal.tell("a/1 starting");
        terminal.tell("");
        terminal.tell(&"é".repeat(LONGEST_LINE));
        terminal.is_over();
        assert!(terminal.way.is_none());
        terminal.tell("nobody hears this");
        let (ended, lines) = heard(&ours, None);
        assert_eq!((ended, lines.len(), &*lines[0], &*lines[1]), (Detached::Started, 3, "a/1 starting", ""));
    }

    #[test]
    fn an_end_and_patience() {
        let (ours, mut terminal) = pair();
        terminal.tell("error: no");
        assert_eq!(heard(&ours, Some(Duration::from_millis(5))), (Detached::Starting, vec!["error: no".to_owned()]));
        drop(terminal);
        assert_eq!(heard(&ours, None), (Detached::Ended, Vec::new()));
    }

    #[test]
    fn a_stopped_terminal_holds_nobody_up() {
        let (ours, mut terminal) = pair();
        for _ in 0..10_000 {
            terminal.tell("a line that nobody reads");
        }
        terminal.is_over();
        assert!(terminal.way.is_some(), "it is told later");
        let mut message = [0; 64];
        while recv(&ours, &mut message[..], RecvFlags::DONTWAIT).is_ok() {}
        terminal.tell("what came meanwhile");
        assert_eq!(heard(&ours, None), (Detached::Started, Vec::new()));
        let (ours, mut terminal) = pair();
        drop(ours);
        terminal.tell("nobody is there");
        assert!(terminal.way.is_none());
    }
}
