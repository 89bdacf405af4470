//! What the agent is told: its standard input, line by line, read no sooner than somebody wants the next one.

use std::collections::VecDeque;
use std::time::Duration;

use plimsoll_kernel::clock::Instant;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::stdio::stdin;

/// What there was.
pub(super) enum Heard {
    /// A line, without its newline.
    Line(Vec<u8>),
    /// Nothing in that time.
    Nothing,
    /// The end of input.
    End,
}

#[derive(Default)]
pub(super) struct Inbox {
    bytes: Vec<u8>,
    /// So many of them have no newline.
    searched: usize,
    is_over: bool,
    put_off: VecDeque<Vec<u8>>,
}

impl Inbox {
    /// The next line; waits for at most so long.
    pub(super) fn next(&mut self, patience: Option<Duration>) -> Heard {
        // Whoever waits has put it off and looks for something else.
        if patience.is_none()
            && let Some(line) = self.put_off.pop_front()
        {
            return Heard::Line(line);
        }
        let began = Instant::now();
        loop {
            if let Some(end) = self.bytes[self.searched..].iter().position(|&byte| byte == b'\n') {
                let mut line: Vec<u8> = self.bytes.drain(..=self.searched + end).collect();
                line.pop();
                self.searched = 0;
                return Heard::Line(line);
            }
            self.searched = self.bytes.len();
            if self.is_over {
                return Heard::End;
            }
            if let Some(patience) = patience {
                let left = patience.saturating_sub(began.elapsed());
                let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
                let stream = stdin();
                let mut wanted = [PollFd::new(&stream, PollFlags::IN)];
                if !matches!(poll(&mut wanted, Some(&left)), Ok(1..)) {
                    return Heard::Nothing;
                }
            }
            self.read();
        }
    }

    /// Everything up to the end.
    pub(super) fn rest(&mut self) -> Vec<u8> {
        while !self.is_over {
            self.read();
        }
        std::mem::take(&mut self.bytes)
    }

    /// A line that is not for now: the next one that is wanted without a limit of time.
    pub(super) fn put_off(&mut self, line: Vec<u8>) {
        self.put_off.push_back(line);
    }

    fn read(&mut self) {
        let held = self.bytes.len();
        self.bytes.resize(held + (64 << 10), 0);
        let count = rustix::io::retry_on_intr(|| rustix::io::read(stdin(), &mut self.bytes[held..])).unwrap_or(0);
        self.bytes.truncate(held + count);
        self.is_over = count == 0;
    }
}
