//! Copying a tree's input and output where an option needs them seen: a log, an idle time limit. Without such an option
//! nothing is copied and the child has our own descriptors.
//!
//! # Theory of operation
//! Each direction is a lane with a thread of its own that does a blocking read and a blocking write: a slow reader of
//! one stream never holds up another, back-pressure is the pipe's own, and no descriptor of the user's is switched to
//! non-blocking, which would be seen by everyone who shares it. Threads have 64 KiB of stack and 8 KiB of buffer. They
//! start after the root was forked. Lanes of output end when the last writer has gone, so after the tree is dead
//! [`Relay::finish`] waits for what is still in the pipes; the lane of input ends with this process.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use plimsoll_kernel::KernelError;
use plimsoll_kernel::clock::Instant;
use plimsoll_kernel::pty::{Pty, RawTerminal};
use plimsoll_model::spec::Overflow;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::log::{LogReport, RotatingLog};

/// Bytes copied at a time.
const CHUNK: usize = 8 << 10;

/// Chunks that wait for a slow disk in `drop` mode: 32 KiB, beside one being read and one being written, and 8 KiB that
/// the log keeps of a line.
const WAITING: usize = 4;

/// How long the end of a run waits for a disk that takes nothing.
const PATIENCE: Duration = Duration::from_secs(10);

/// What has to be seen of a tree's streams; decided before anything starts.
#[derive(Debug)]
pub enum Plan {
    /// Nothing: the child has our own descriptors.
    Own,
    /// stdout and stderr go to the log; stdin too is seen when there is an idle time limit.
    Log {
        /// The open log.
        log: RotatingLog,
        /// What happens when the disk is slow.
        overflow: Overflow,
        /// stdin is copied.
        stdin: bool,
    },
    /// All three streams are copied through pipes.
    Pipes,
    /// All three are a terminal of the child's own.
    Terminal,
}

/// The child's ends, until it has been forked.
pub struct Ends {
    child: [Option<OwnedFd>; 3],
    lanes: Vec<Lane>,
    pty: Option<Pty>,
}

struct Lane {
    from: File,
    to: To,
}

enum To {
    File(File),
    Log(Box<RotatingLog>, Overflow),
}

impl Plan {
    /// Makes the pipes or the terminal.
    ///
    /// # Errors
    /// The kernel's, such as too many open files.
    pub fn open(self) -> Result<Ends, KernelError> {
        let mut ends = Ends { child: [None, None, None], lanes: Vec::new(), pty: None };
        match self {
            Self::Own => {}
            Self::Log { log, overflow, stdin } => {
                if stdin {
                    ends.input()?;
                }
                let (ours, childs) = pipe()?;
                ends.child[2] = Some(duplicate(&childs)?);
                ends.child[1] = Some(childs);
                ends.lanes.push(Lane { from: ours.into(), to: To::Log(Box::new(log), overflow) });
            }
            Self::Pipes => {
                ends.input()?;
                ends.output(1, duplicate(rustix::stdio::stdout())?)?;
                ends.output(2, duplicate(rustix::stdio::stderr())?)?;
            }
            Self::Terminal => {
                let pty = Pty::open(rustix::stdio::stdin())?;
                let to = duplicate(rustix::stdio::stdout())?;
                ends.lanes.push(Lane { from: duplicate(pty.master())?.into(), to: To::File(to.into()) });
                let from = duplicate(rustix::stdio::stdin())?;
                ends.lanes.push(Lane { from: from.into(), to: To::File(duplicate(pty.master())?.into()) });
                for fd in &mut ends.child {
                    *fd = Some(duplicate(pty.slave())?);
                }
                ends.pty = Some(pty);
            }
        }
        Ok(ends)
    }
}

impl Ends {
    fn input(&mut self) -> Result<(), KernelError> {
        let (childs, ours) = pipe()?;
        self.child[0] = Some(childs);
        let from = duplicate(rustix::stdio::stdin())?;
        self.lanes.push(Lane { from: from.into(), to: To::File(ours.into()) });
        Ok(())
    }

    fn output(&mut self, number: usize, to: OwnedFd) -> Result<(), KernelError> {
        let (ours, childs) = pipe()?;
        self.child[number] = Some(childs);
        self.lanes.push(Lane { from: ours.into(), to: To::File(to.into()) });
        Ok(())
    }

    /// What becomes the child's 0, 1 and 2; `None` leaves ours.
    #[must_use]
    pub fn child_stdio(&self) -> [Option<BorrowedFd<'_>>; 3] {
        let [stdin, stdout, stderr] = &self.child;
        [stdin, stdout, stderr].map(|fd| fd.as_ref().map(AsFd::as_fd))
    }

    /// The child's terminal, when it gets one of its own.
    #[must_use]
    pub fn terminal(&self) -> Option<BorrowedFd<'_>> {
        self.pty.as_ref().map(Pty::slave)
    }

    /// Closes the child's ends and starts copying. Called after the fork.
    ///
    /// # Errors
    /// No room for a thread, or a terminal that cannot be made raw.
    pub fn start(self) -> Result<Relay, KernelError> {
        let Self { child, lanes, pty } = self;
        drop(child);
        let raw = pty.as_ref().map(|_| RawTerminal::enter(rustix::stdio::stdin())).transpose()?;
        let activity = Arc::new(AtomicU64::new(now_ms()));
        let (done, finished) = sync_channel(lanes.len().max(1));
        let master = pty.map(Pty::into_master);
        let mut outputs = 0;
        for Lane { from, to } in lanes {
            let is_output = matches!(to, To::Log(..)) || !is_stdin(&from);
            outputs += usize::from(is_output);
            let (activity, done) = (Arc::clone(&activity), done.clone());
            thread(move || {
                let report = match to {
                    To::File(to) => copy(from, to, &activity),
                    To::Log(log, Overflow::Block) => log_blocking(from, *log, &activity),
                    To::Log(log, Overflow::Drop) => log_dropping(from, *log, &activity),
                };
                if is_output {
                    // The keeper may have stopped waiting.
                    let _ = done.try_send(report);
                }
            })?;
        }
        Ok(Relay { activity, finished, outputs, master, raw })
    }
}

/// Copying that is under way.
pub struct Relay {
    activity: Arc<AtomicU64>,
    finished: Receiver<LogReport>,
    outputs: usize,
    master: Option<OwnedFd>,
    raw: Option<RawTerminal>,
}

impl Relay {
    /// Time since the last byte on any stream that is seen.
    #[must_use]
    pub fn idle(&self) -> Duration {
        Duration::from_millis(now_ms().saturating_sub(self.activity.load(Ordering::Relaxed)))
    }

    /// Gives the child's terminal the size of ours.
    pub fn resize(&self) {
        if let Some(master) = &self.master {
            plimsoll_kernel::pty::copy_size(rustix::stdio::stdin(), master.as_fd());
        }
    }

    /// Waits for what is still in the pipes of a dead tree, and gives the user's terminal back. A disk that takes
    /// nothing is waited for for ten seconds; then `None`.
    #[must_use]
    pub fn finish(mut self) -> Option<LogReport> {
        let mut all = LogReport::default();
        // The child's side of a terminal is closed with the tree; its reader ends on EIO.
        let until = Instant::now().after(PATIENCE);
        for _ in 0..self.outputs {
            match self.finished.recv_timeout(until.since(Instant::now())) {
                Ok(report) => all.dropped += report.dropped,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
            }
        }
        self.raw.take();
        Some(all)
    }
}

fn now_ms() -> u64 {
    Instant::now().since_boot().as_millis() as u64
}

fn is_stdin(from: &File) -> bool {
    let same = |a: io::Result<rustix::fs::Stat>, b: io::Result<rustix::fs::Stat>| {
        a.and_then(|a| b.map(|b| (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))).unwrap_or(false)
    };
    let stat = |fd: BorrowedFd<'_>| rustix::fs::fstat(fd).map_err(io::Error::from);
    same(stat(from.as_fd()), stat(rustix::stdio::stdin()))
}

fn pipe() -> Result<(OwnedFd, OwnedFd), KernelError> {
    pipe_with(PipeFlags::CLOEXEC).map_err(|error| KernelError::Call { call: "pipe", source: error.into() })
}

fn duplicate(fd: impl AsFd) -> Result<OwnedFd, KernelError> {
    rustix::io::fcntl_dupfd_cloexec(fd, 3)
        .map_err(|error| KernelError::Call { call: "fcntl(F_DUPFD)", source: error.into() })
}

fn thread(run: impl FnOnce() + Send + 'static) -> Result<(), KernelError> {
    std::thread::Builder::new()
        .stack_size(64 << 10)
        .spawn(run)
        .map(|_| ())
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
        queue.push(&buffer[..count], hung_up(&from));
    }
    queue.end();
    LogReport { dropped: end.recv().unwrap_or(0) }
}

/// Whether the last writer of this pipe has gone.
fn hung_up(pipe: &File) -> bool {
    let mut fds = [PollFd::new(pipe, PollFlags::empty())];
    poll(&mut fds, Some(&Timespec::default())).is_ok() && fds[0].revents().contains(PollFlags::HUP)
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
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        // A reader must be there before a writer can be; it reads when it likes: the slow disk.
        let disk = File::from(
            rustix::fs::open(&path, rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC, rustix::fs::Mode::empty())
                .unwrap(),
        );
        let spec = LogSpec { file: path, max_size: u64::MAX, max_files: 1, overflow };
        let log = RotatingLog::open(&spec).unwrap();
        let ends = Plan::Log { log, overflow, stdin: false }.open().unwrap();
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
        let ends = Plan::Log { log, overflow: Overflow::Block, stdin: false }.open().unwrap();
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
            // Every line is whole: the numbers go up, with markers in their gaps.
            let mut last = None;
            for line in text.lines().filter(|line| !line.starts_with("[plimsoll: ")).filter(|line| line.len() <= 6) {
                let Ok(number) = line.parse::<u32>() else { continue };
                assert!(last.is_none_or(|last| number > last), "{number} behind {last:?}");
                last = Some(number);
            }
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
