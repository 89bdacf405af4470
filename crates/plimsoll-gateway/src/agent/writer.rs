//! What is said to an agent: one thing after the other, as fast as it reads.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::rc::Rc;

use tokio::net::unix::pipe::Sender;

use super::Shared;

/// What waits to be said at most. One thing a turn, and answers to what the agent asks: whoever lets so many lie does not
/// listen.
const WAITING: usize = 64;

/// What is to be said.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    waiting: VecDeque<Vec<u8>>,
    /// The newest word about memory.
    pub(super) stage: Option<Vec<u8>>,
    /// Nothing follows what waits.
    pub(super) is_complete: bool,
    /// The end of input, now.
    pub(super) hangup: bool,
}

impl Outbox {
    /// Whether there was room.
    pub(super) fn put(&mut self, bytes: Vec<u8>) -> bool {
        let fits = self.waiting.len() < WAITING;
        if fits {
            self.waiting.push_back(bytes);
        }
        fits
    }

    fn next(&mut self) -> Option<Vec<u8>> {
        self.waiting.pop_front().or_else(|| self.stage.take())
    }
}

/// Writes until the end of input is due; then the pipe is closed.
pub(super) async fn write(stdin: Sender, shared: Rc<Shared>) {
    loop {
        let (next, is_last) = {
            let mut outbox = shared.outbox.borrow_mut();
            (outbox.next(), outbox.is_complete || outbox.hangup)
        };
        let Some(bytes) = next else {
            if is_last {
                return;
            }
            shared.to_writer.notified().await;
            continue;
        };
        let mut left = bytes.as_slice();
        while !left.is_empty() {
            match stdin.try_write(left) {
                Ok(count) => left = &left[count..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    // The kernel is asked itself: what this runtime knows of the pipe may be old.
                    match rustix::io::write(&stdin, left) {
                        Ok(count) => left = &left[count..],
                        Err(rustix::io::Errno::INTR) => {}
                        Err(rustix::io::Errno::AGAIN) if shared.outbox.borrow().hangup => return,
                        Err(rustix::io::Errno::AGAIN) => {
                            tokio::select! {
                                _ = stdin.writable() => {}
                                () = shared.to_writer.notified() => {}
                            }
                        }
                        Err(_) => return not_heard(&shared),
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return not_heard(&shared),
            }
        }
    }
}

/// Its input is closed. One that is for a single turn may answer without having read its question.
fn not_heard(shared: &Shared) {
    if !shared.dialog.borrow().is_for_one_turn() {
        shared.deaf();
    }
}
