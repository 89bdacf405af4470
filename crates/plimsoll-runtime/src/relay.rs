//! Copying a tree's input and output where an option needs them seen: a log, an idle time limit. Without such an option
//! nothing is copied and the child has our own descriptors.
//!
//! # Theory of operation
//! Each direction is a lane with a thread of its own that does a blocking read and a blocking write: a slow reader of
//! one stream never holds up another, back-pressure is the pipe's own, and no descriptor of the user's is switched to
//! non-blocking, which would be seen by everyone who shares it. Threads have 64 KiB of stack and 8 KiB of buffer. They
//! start after the root was forked. Lanes of output end when the last writer has gone, so after the tree is dead
//! [`Relay::finish`] waits for what is still in the pipes; the lane of input ends with this process.
//!
//! A stream that is the user's terminal becomes a terminal of the tree's own, every other one a pipe to where it went.
//! The keeper leads that terminal's session and is to the root what a shell is to a job: attached, the user's terminal is
//! raw and all keys go to the tree's, whose foreground group the root's is; detached, after Ctrl-Z or in the background,
//! nothing is read, the user's terminal has its modes back, and a root that asks for its terminal is stopped by the
//! kernel, upon which the keeper attaches it or stops the front. A pipe may lead to a program of the same job that uses
//! the terminal (`plimsoll run … | less`): then the root begins detached.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;
use std::time::Duration;

use plimsoll_kernel::KernelError;
use plimsoll_kernel::clock::Instant;
use plimsoll_kernel::pty::{Pty, RawTerminal, is_in_foreground, same_terminal};
use plimsoll_model::spec::Overflow;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FileType;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::termios::isatty;

use crate::log::{LogReport, RotatingLog};

/// Bytes copied at a time.
const CHUNK: usize = 8 << 10;

/// Chunks that wait for a slow disk in `drop` mode: 32 KiB, beside one being read and one being written, and 8 KiB that
/// the log keeps of a line.
const WAITING: usize = 4;

/// How long the end of a run waits for a disk that takes nothing.
const PATIENCE: Duration = Duration::from_secs(10);

/// Milliseconds that a stopped tree's last output is waited for.
const SETTLED: u32 = 50;

/// What has to be seen of a tree's streams; decided before anything starts.
#[derive(Debug)]
pub struct Plan {
    /// Where stdout and stderr go, and what happens when the disk is slow.
    log: Option<(RotatingLog, Overflow)>,
    /// All streams are seen.
    seen: bool,
    /// The user's terminal, when one of the streams to be seen is that.
    terminal: Option<OwnedFd>,
}

/// The child's ends, until it has been forked.
#[derive(Default)]
pub struct Ends {
    child: [Option<OwnedFd>; 3],
    lanes: Vec<Lane>,
    terminals: Option<Terminals>,
    in_foreground: bool,
    front: i32,
}

/// The user's terminal and the tree's own.
struct Terminals {
    user: OwnedFd,
    pty: Pty,
}

struct Lane {
    from: File,
    to: To,
    input: bool,
}

enum To {
    File(File),
    Log(Box<RotatingLog>, Overflow),
}

impl Plan {
    /// What these options need: a log, and whether input and output have to be seen.
    #[must_use]
    pub fn new(log: Option<(RotatingLog, Overflow)>, seen: bool) -> Self {
        let mut streams = (0..if log.is_some() { 1 } else { 3 }).map(stream);
        let terminal = streams.find(|stream| seen && isatty(stream)).and_then(|stream| {
            // For both directions, in whichever the stream was opened; without a controlling terminal as it is.
            let both = File::options().read(true).write(true).open("/dev/tty").ok();
            let both = both.filter(|tty| same_terminal(tty.as_fd(), stream));
            both.map(OwnedFd::from).or_else(|| duplicate(stream).ok())
        });
        Self { log, seen, terminal }
    }

    /// Whether the tree gets a terminal of its own.
    #[must_use]
    pub fn has_terminal(&self) -> bool {
        self.terminal.is_some()
    }

    /// Makes the pipes and the terminal, for a front with this pid.
    ///
    /// # Errors
    /// The kernel's, such as too many open files.
    pub fn open(self, front: i32) -> Result<Ends, KernelError> {
        let Self { log, seen, terminal } = self;
        let mut ends = Ends { front, ..Ends::default() };
        if let Some(user) = terminal {
            let pty = Pty::open(user.as_fd())?;
            ends.in_foreground = is_in_foreground(front) && !(0..3).map(stream).any(is_pipe);
            ends.terminals = Some(Terminals { user, pty });
        }
        let logged = log.is_some();
        if let Some((log, overflow)) = log {
            let (ours, childs) = pipe()?;
            ends.child[2] = Some(duplicate(&childs)?);
            ends.child[1] = Some(childs);
            ends.lanes.push(Lane { from: ours.into(), to: To::Log(Box::new(log), overflow), input: false });
        }
        for number in (0..3).filter(|&number| seen && (number == 0 || !logged)) {
            ends.see(number)?;
        }
        Ok(ends)
    }
}

/// Our own stdin, stdout or stderr.
fn stream(number: usize) -> BorrowedFd<'static> {
    match number {
        0 => rustix::stdio::stdin(),
        1 => rustix::stdio::stdout(),
        _ => rustix::stdio::stderr(),
    }
}

fn is_pipe(fd: BorrowedFd<'_>) -> bool {
    rustix::fs::fstat(fd)
        .is_ok_and(|stat| matches!(FileType::from_raw_mode(stat.st_mode), FileType::Fifo | FileType::Socket))
}

impl Ends {
    /// Stands between one of our streams and the child's.
    fn see(&mut self, number: usize) -> Result<(), KernelError> {
        let theirs = stream(number);
        if let Some(Terminals { user, pty }) = &self.terminals
            && isatty(theirs)
            && same_terminal(theirs, user.as_fd())
        {
            self.child[number] = Some(duplicate(pty.slave())?);
            return Ok(());
        }
        let theirs = File::from(duplicate(theirs)?);
        let (reader, writer) = pipe()?;
        let (childs, from, to) =
            if number == 0 { (reader, theirs, writer.into()) } else { (writer, reader.into(), theirs) };
        self.child[number] = Some(childs);
        self.lanes.push(Lane { from, to: To::File(to), input: number == 0 });
        Ok(())
    }

    /// What becomes the child's 0, 1 and 2; `None` leaves ours.
    #[must_use]
    pub fn child_stdio(&self) -> [Option<BorrowedFd<'_>>; 3] {
        let [stdin, stdout, stderr] = &self.child;
        [stdin, stdout, stderr].map(|fd| fd.as_ref().map(AsFd::as_fd))
    }

    /// The tree's terminal, when it gets one of its own.
    #[must_use]
    pub fn terminal(&self) -> Option<&Pty> {
        self.terminals.as_ref().map(|terminals| &terminals.pty)
    }

    /// Whether the root begins in the foreground of its terminal.
    #[must_use]
    pub fn in_foreground(&self) -> bool {
        self.in_foreground
    }

    /// Closes the child's ends and starts copying. Called after the fork.
    ///
    /// # Errors
    /// No room for a thread, or a terminal that cannot be made raw.
    pub fn start(self) -> Result<Relay, KernelError> {
        let Self { child, mut lanes, terminals, in_foreground, front } = self;
        drop(child);
        let activity = Arc::new(AtomicU64::new(now_ms()));
        let mut own = None;
        if let Some(Terminals { user, pty }) = terminals {
            let printed = To::File(duplicate(&user)?.into());
            lanes.push(Lane { from: duplicate(pty.master())?.into(), to: printed, input: false });
            let (from, to) = (File::from(duplicate(&user)?), File::from(duplicate(pty.master())?));
            let raw = if in_foreground { Some(RawTerminal::enter(user.as_fd())?) } else { None };
            let attached = Arc::new(AtomicBool::new(in_foreground));
            let typing = (Arc::clone(&attached), Arc::clone(&activity));
            let typist = thread(move || copy_typed(from, to, &typing.0, &typing.1, front))?;
            own = Some(Own { user, pty, raw, attached, typist, fresh: !in_foreground });
        }
        let (done, finished) = sync_channel(lanes.len().max(1));
        let outputs = lanes.iter().filter(|lane| !lane.input).count();
        for Lane { from, to, input } in lanes {
            let (activity, done) = (Arc::clone(&activity), done.clone());
            thread(move || {
                let report = match to {
                    To::File(to) => copy(from, to, &activity),
                    To::Log(log, Overflow::Block) => log_blocking(from, *log, &activity),
                    To::Log(log, Overflow::Drop) => log_dropping(from, *log, &activity),
                };
                if !input {
                    // The keeper may have stopped waiting.
                    let _ = done.try_send(report);
                }
            })?;
        }
        Ok(Relay { activity, finished, outputs, own })
    }
}

/// Copying that is under way.
pub struct Relay {
    activity: Arc<AtomicU64>,
    finished: Receiver<LogReport>,
    outputs: usize,
    own: Option<Own>,
}

/// A terminal of the tree's own.
struct Own {
    user: OwnedFd,
    /// Held open, so that copying goes on although nobody in the tree may have it open for a while.
    pty: Pty,
    raw: Option<RawTerminal>,
    attached: Arc<AtomicBool>,
    typist: Thread,
    /// Nobody was in its foreground yet. It was made with the modes of a shell that edits a line.
    fresh: bool,
}

impl Relay {
    /// Time since the last byte on any stream that is seen.
    #[must_use]
    pub fn idle(&self) -> Duration {
        Duration::from_millis(now_ms().saturating_sub(self.activity.load(Ordering::Relaxed)))
    }

    /// Whether the tree has a terminal of its own.
    #[must_use]
    pub fn has_terminal(&self) -> bool {
        self.own.is_some()
    }

    /// Whether what is typed goes to the tree.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        self.own.as_ref().is_some_and(|own| own.attached.load(Ordering::Relaxed))
    }

    /// Gives the tree's terminal the size of the user's.
    pub fn resize(&self) {
        if let Some(own) = &self.own {
            plimsoll_kernel::pty::copy_size(own.user.as_fd(), own.pty.master());
        }
    }

    /// Brings the root's group into the foreground of its terminal, and the user's keys to it.
    pub fn attach(&mut self, root: i32) {
        let Some(own) = &mut self.own else { return };
        if std::mem::take(&mut own.fresh) {
            own.pty.take_modes(own.user.as_fd());
        }
        own.pty.give_to(Some(root));
        if own.raw.is_none() {
            own.raw = RawTerminal::enter(own.user.as_fd()).ok();
        }
        own.attached.store(true, Ordering::Relaxed);
        own.typist.unpark();
        self.resize();
    }

    /// Leaves the user's terminal to others, as it was.
    pub fn detach(&mut self) {
        let Some(own) = &mut self.own else { return };
        own.attached.store(false, Ordering::Relaxed);
        own.pty.give_to(None);
        // What it printed last (a pager leaves its screen) comes before a shell's prompt.
        for _ in 0..SETTLED {
            if !is_ready(own.pty.master(), PollFlags::IN) {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        own.raw = None;
    }

    /// Waits for what is still in the pipes of a dead tree, and gives the user's terminal back. A disk that takes
    /// nothing is waited for for ten seconds; then `None`.
    #[must_use]
    pub fn finish(mut self) -> Option<LogReport> {
        let mut all = LogReport::default();
        // The tree's side of its terminal is closed with the tree, and here; its reader ends on EIO.
        let raw = self.own.take().and_then(|own| own.raw);
        let until = Instant::now().after(PATIENCE);
        for _ in 0..self.outputs {
            match self.finished.recv_timeout(until.since(Instant::now())) {
                Ok(report) => all.dropped += report.dropped,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
            }
        }
        drop(raw);
        Some(all)
    }
}

fn now_ms() -> u64 {
    Instant::now().since_boot().as_millis() as u64
}

fn pipe() -> Result<(OwnedFd, OwnedFd), KernelError> {
    pipe_with(PipeFlags::CLOEXEC).map_err(|error| KernelError::Call { call: "pipe", source: error.into() })
}

fn duplicate(fd: impl AsFd) -> Result<OwnedFd, KernelError> {
    rustix::io::fcntl_dupfd_cloexec(fd, 3)
        .map_err(|error| KernelError::Call { call: "fcntl(F_DUPFD)", source: error.into() })
}

fn thread(run: impl FnOnce() + Send + 'static) -> Result<Thread, KernelError> {
    std::thread::Builder::new()
        .stack_size(64 << 10)
        .spawn(run)
        .map(|handle| handle.thread().clone())
        .map_err(|source| KernelError::Call { call: "a thread for copying", source })
}

/// The next bytes; 0 at the end, which a terminal whose other side is closed tells by an error.
fn next(from: &mut File, buffer: &mut [u8]) -> usize {
    loop {
        match from.read(buffer) {
            Ok(count) => return count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return 0,
        }
    }
}

/// Copies until the end, or until nobody takes it any more: then both ends close, as they would without us between.
fn copy(mut from: File, mut to: File, activity: &AtomicU64) -> LogReport {
    let mut buffer = [0; CHUNK];
    loop {
        let count = next(&mut from, &mut buffer);
        activity.store(now_ms(), Ordering::Relaxed);
        if count == 0 || to.write_all(&buffer[..count]).is_err() {
            return LogReport::default();
        }
    }
}

/// Copies what is typed, while the user's terminal is ours to read.
fn copy_typed(mut from: File, mut to: File, attached: &AtomicBool, activity: &AtomicU64, front: i32) {
    let mut buffer = [0; CHUNK];
    loop {
        while !attached.load(Ordering::Relaxed) {
            std::thread::park();
        }
        if poll(&mut [PollFd::new(&from, PollFlags::IN)], None).is_err() {
            continue;
        }
        // The keeper is outside the user's session, where the kernel keeps no order among readers; and a front that
        // somebody else stopped, whose shell has the terminal again, could not tell us.
        if !attached.load(Ordering::Relaxed) || !is_in_foreground(front) {
            std::thread::sleep(Duration::from_millis(20));
            continue;
        }
        let count = next(&mut from, &mut buffer);
        activity.store(now_ms(), Ordering::Relaxed);
        if count == 0 || to.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}

fn log_blocking(mut from: File, mut log: RotatingLog, activity: &AtomicU64) -> LogReport {
    let mut buffer = [0; CHUNK];
    loop {
        let count = next(&mut from, &mut buffer);
        activity.store(now_ms(), Ordering::Relaxed);
        if count == 0 {
            log.own_up();
            return LogReport { dropped: log.unsaid() };
        }
        log.write(&buffer[..count]);
    }
}

/// What waits for the disk in `drop` mode. What finds no room pushes out the oldest: the last words are always there.
#[derive(Default)]
struct Waiting {
    chunks: VecDeque<Vec<u8>>,
    /// Bytes that were pushed out from before the first chunk, since the last one was taken.
    dropped: u64,
    /// What was pushed out last ended within a line.
    torn: bool,
    ended: bool,
}

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while the condition holds.
    fn wait(&self, mut condition: impl FnMut(&mut Waiting) -> bool) -> MutexGuard<'_, Waiting> {
        self.changed.wait_while(self.lock(), |waiting| condition(waiting)).unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts bytes at the end, waiting for room or pushing out the oldest.
    fn push(&self, bytes: &[u8], may_wait: bool) {
        let fits = |waiting: &Waiting| waiting.chunks.back().is_some_and(|last| last.len() + bytes.len() <= CHUNK);
        let mut waiting = self.wait(|waiting| may_wait && waiting.chunks.len() >= WAITING && !fits(waiting));
        if fits(&waiting)
            && let Some(last) = waiting.chunks.back_mut()
        {
            // Of what is printed in small pieces as much may wait as of what is printed in large ones.
            return last.extend_from_slice(bytes);
        }
        while waiting.chunks.len() >= WAITING
            && let Some(oldest) = waiting.chunks.pop_front()
        {
            waiting.dropped += oldest.len() as u64;
            waiting.torn = oldest.last() != Some(&b'\n');
        }
        let mut chunk = Vec::with_capacity(CHUNK);
        chunk.extend_from_slice(bytes);
        waiting.chunks.push_back(chunk);
        self.changed.notify_all();
    }

    fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }

    /// The next chunk and how much was dropped before it; `None` after the last.
    fn take(&self) -> Option<(u64, Vec<u8>)> {
        let mut waiting = self.wait(|waiting| waiting.chunks.is_empty() && !waiting.ended);
        let mut chunk = waiting.chunks.pop_front()?;
        let mut dropped = std::mem::take(&mut waiting.dropped);
        // The rest of a line whose beginning is gone would pass for a whole one.
        if std::mem::take(&mut waiting.torn)
            && let Some(end) = chunk.iter().position(|&byte| byte == b'\n')
        {
            chunk.drain(..=end);
            dropped += end as u64 + 1;
        }
        self.changed.notify_all();
        Some((dropped, chunk))
    }
}

fn log_dropping(mut from: File, log: RotatingLog, activity: &AtomicU64) -> LogReport {
    let queue = Arc::new(Queue::default());
    let (ended, end) = sync_channel(1);
    let taken = Arc::clone(&queue);
    let writer = thread(move || {
        let _ = ended.send(write_chunks(log, &taken));
    });
    if writer.is_err() {
        return LogReport::default();
    }
    let mut buffer = [0; CHUNK];
    loop {
        let count = next(&mut from, &mut buffer);
        activity.store(now_ms(), Ordering::Relaxed);
        if count == 0 {
            break;
        }
        // Nobody prints any more: nobody is held up by what is left in the pipe.
        queue.push(&buffer[..count], is_ready(&from, PollFlags::HUP));
    }
    queue.end();
    LogReport { dropped: end.recv().unwrap_or(0) }
}

/// Whether one of these holds now; that the other side has gone is told unasked.
fn is_ready(fd: impl AsFd, events: PollFlags) -> bool {
    let mut fds = [PollFd::new(&fd, events)];
    poll(&mut fds, Some(&Timespec::default())).is_ok() && fds[0].revents().intersects(events)
}

/// Answers how many bytes were dropped, here or before.
fn write_chunks(mut log: RotatingLog, queue: &Queue) -> u64 {
    let mut total = 0;
    while let Some((dropped, bytes)) = queue.take() {
        total += dropped;
        log.drop_bytes(dropped as usize);
        log.write(&bytes);
    }
    log.own_up();
    total + log.unsaid()
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_model::spec::LogSpec;

    fn scratch(name: &str) -> std::path::PathBuf {
        let dir = std::env::temp_dir().join(format!("plimsoll-relay-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    fn fifo_log(dir: &std::path::Path, overflow: Overflow) -> (Relay, File, File) {
        let path = dir.join("slow");
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o600), 0).unwrap();
        // A reader must be there before a writer can be; it reads when it likes: the slow disk.
        let disk = File::from(
            rustix::fs::open(&path, rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC, rustix::fs::Mode::empty())
                .unwrap(),
        );
        let spec = LogSpec { file: path, max_size: u64::MAX, max_files: 1, overflow };
        let log = RotatingLog::open(&spec).unwrap();
        let ends = Plan::new(Some((log, overflow)), false).open(0).unwrap();
        let child = File::from(duplicate(ends.child[1].as_ref().unwrap()).unwrap());
        (ends.start().unwrap(), child, disk)
    }

    fn drain(mut disk: File, until: usize) -> Vec<u8> {
        let mut all = Vec::new();
        let mut buffer = [0; 4096];
        while all.len() < until {
            let count = disk.read(&mut buffer).unwrap();
            all.extend_from_slice(&buffer[..count]);
            if count == 0 || all.ends_with(b"THE END\n") {
                break;
            }
        }
        all
    }

    #[test]
    fn a_burst_before_the_exit_is_not_lost() {
        let dir = scratch("burst");
        let spec = LogSpec { file: dir.join("log"), max_size: 1 << 40, max_files: 1, overflow: Overflow::Block };
        let log = RotatingLog::open(&spec).unwrap();
        let ends = Plan::new(Some((log, Overflow::Block)), false).open(0).unwrap();
        let mut child = File::from(duplicate(ends.child[1].as_ref().unwrap()).unwrap());
        let relay = ends.start().unwrap();
        let burst: Vec<u8> = (0..10u32 << 20).map(|n| (n % 251) as u8).collect();
        child.write_all(&burst).unwrap();
        drop(child);
        assert_eq!(relay.finish(), Some(LogReport::default()));
        assert!(std::fs::read(&spec.file).unwrap() == burst);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn blocking_loses_nothing_on_a_slow_disk() {
        let dir = scratch("block");
        let (relay, mut child, disk) = fifo_log(&dir, Overflow::Block);
        let printer = std::thread::spawn(move || {
            for n in 0..40_000 {
                writeln!(child, "line {n}").unwrap();
            }
            child.write_all(b"THE END\n").unwrap();
        });
        let all = drain(disk, usize::MAX);
        printer.join().unwrap();
        assert_eq!(relay.finish(), Some(LogReport::default()));
        let text = String::from_utf8(all).unwrap();
        assert_eq!(text.lines().count(), 40_001);
        assert!(text.lines().take(40_000).enumerate().all(|(n, line)| line == format!("line {n}")));
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn dropping_never_waits_and_says_how_much() {
        let dir = scratch("drop");
        let (relay, mut child, disk) = fifo_log(&dir, Overflow::Drop);
        // Nobody reads the disk: all of this goes through without waiting, or this test hangs.
        let printed = 4 << 20;
        child.write_all(&vec![b'x'; printed]).unwrap();
        let mut end = disk.try_clone().unwrap();
        let reader = std::thread::spawn(move || drain(disk, usize::MAX));
        drop(child);
        assert!(relay.finish().unwrap().dropped > 0);
        // Behind all that the log wrote, so that the reader knows where to stop; the log may have dropped any other end.
        end.write_all(b"THE END\n").unwrap();
        let text = String::from_utf8(reader.join().unwrap()).unwrap();
        assert!(text.lines().all(|line| !line.contains("[plimsoll: ") || line.starts_with("[plimsoll: ")));
        let said: usize = text
            .match_indices("[plimsoll: ")
            .map(|(at, found)| text[at + found.len()..].split(' ').next().unwrap().parse::<usize>().unwrap())
            .sum();
        let written = text.bytes().filter(|&byte| byte == b'x').count();
        assert_eq!(said + written, printed, "{said} said, {written} written");
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn the_last_words_are_not_dropped() {
        for hangs_up_first in [false, true] {
            let dir = scratch(&format!("last-{hangs_up_first}"));
            let (relay, mut child, disk) = fifo_log(&dir, Overflow::Drop);
            let stays = (!hangs_up_first).then(|| child.try_clone().unwrap());
            for n in 0..600_000 {
                writeln!(child, "{n}").unwrap();
            }
            // Taken in while the disk still takes nothing, by a writer that stays, or left in the pipe by one that goes.
            child.write_all(b"err\nTHE END\n").unwrap();
            drop(child);
            while stays.as_ref().is_some_and(|child| rustix::io::ioctl_fionread(child).unwrap() > 0) {
                std::thread::sleep(Duration::from_millis(1));
            }
            let text = String::from_utf8(drain(disk, usize::MAX)).unwrap();
            drop(stays);
            assert!(text.ends_with("\n599999\nerr\nTHE END\n"), "{}", &text[text.len() - 80..]);
            assert!(relay.finish().unwrap().dropped > 0);
            // Every line is whole but for the one that a marker breaks off: the numbers go up.
            let lines: Vec<&str> = text.lines().collect();
            let whole = lines.windows(2).filter(|pair| pair.iter().all(|line| !line.starts_with("[plimsoll: ")));
            let numbers: Vec<u32> = whole.filter_map(|pair| pair[0].parse().ok()).collect();
            assert!(numbers.is_sorted_by(|a, b| a < b));
            std::fs::remove_dir_all(dir).unwrap();
        }
    }

    #[test]
    fn a_reader_that_leaves_is_felt_by_the_writer() {
        let (from, writer) = pipe().unwrap();
        let (reader, to) = pipe().unwrap();
        drop(reader);
        let activity = AtomicU64::new(0);
        let mut writer = File::from(writer);
        writer.write_all(b"x").unwrap();
        copy(from.into(), to.into(), &activity);
        assert!(writer.write_all(&[0; 1 << 20]).is_err());
        assert!(activity.load(Ordering::Relaxed) > 0);
    }
}
