//! What the front and the keeper say to each other: one socket pair of whole messages. Its end of file is the
//! dead-man's switch.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use plimsoll_kernel::KernelError;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// To the keeper: this signal was sent to the front, by this pid (0: the terminal).
    Signal {
        /// The signal's number.
        signal: i32,
        /// Who sent it.
        sender: i32,
        /// Whether the root got it already, as a member of the terminal's foreground group.
        seen: bool,
    },
    /// To the front: this signal stopped the root.
    Stopped {
        /// The root's pid.
        root: i32,
        /// The signal's number.
        signal: i32,
    },
    /// To the front: all is over. The exit code, and what to print on stderr.
    Over {
        /// Exit code for the front.
        code: u8,
        /// Whether the root ended because it wanted to: then what it made of the terminal stays.
        by_itself: bool,
        /// Text for stderr, perhaps empty.
        text: String,
    },
}

/// Longest text of a message, bytes; what is beyond is cut.
const LONGEST: usize = 16 << 10;

/// One end.
#[derive(Debug)]
pub struct End(OwnedFd);

/// A pair of ends, closed on exec.
///
/// # Errors
/// The kernel's, such as too many open files.
pub fn pair() -> Result<(End, End), KernelError> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map(|(a, b)| (End(a), End(b)))
        .map_err(|error| KernelError::Call { call: "socketpair", source: error.into() })
}

impl End {
    /// Says it; that the other end is gone is noticed when it is read from.
    pub fn say(&self, message: &Message) {
        let bytes = match message {
            Message::Signal { signal, sender, seen } => {
                let mut bytes = vec![b's', u8::from(*seen)];
                bytes.extend(signal.to_ne_bytes());
                bytes.extend(sender.to_ne_bytes());
                bytes
            }
            Message::Stopped { root, signal } => [&b"t"[..], &root.to_ne_bytes(), &signal.to_ne_bytes()].concat(),
            Message::Over { code, by_itself, text } => {
                let cut = (0..=text.len().min(LONGEST)).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
                [&[b'o', *code, u8::from(*by_itself)], &text.as_bytes()[..cut]].concat()
            }
        };
        let _ = rustix::net::send(&self.0, &bytes, SendFlags::NOSIGNAL);
    }

    /// The next message, waiting for it; `None` when the other end is gone.
    #[must_use]
    pub fn hear(&self) -> Option<Message> {
        let mut buffer = vec![0; LONGEST + 3];
        let length = loop {
            match rustix::net::recv(&self.0, &mut buffer[..], RecvFlags::empty()) {
                Ok((0, _)) => return None,
                Ok((length, _)) => break length,
                // Reset is told once, when the other end went without reading all that we said; its own last word is
                // still there to be read.
                Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNRESET) => {}
                Err(_) => return None,
            }
        };
        decode(&buffer[..length])
    }
}

fn decode(bytes: &[u8]) -> Option<Message> {
    let number = |at: usize| Some(i32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    match bytes.first()? {
        b's' => Some(Message::Signal { signal: number(2)?, sender: number(6)?, seen: bytes.get(1) == Some(&1) }),
        b't' => Some(Message::Stopped { root: number(1)?, signal: number(5)? }),
        b'o' => Some(Message::Over {
            code: *bytes.get(1)?,
            by_itself: bytes.get(2) == Some(&1),
            text: String::from_utf8_lossy(bytes.get(3..)?).into_owned(),
        }),
        _ => None,
    }
}

impl AsFd for End {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_heard() {
        let (a, b) = pair().unwrap();
        for message in [
            Message::Signal { signal: 15, sender: 42, seen: true },
            Message::Stopped { root: 7, signal: 20 },
            Message::Over { code: 137, by_itself: true, text: "three\nlines\nü".into() },
        ] {
            a.say(&message);
            assert_eq!(b.hear(), Some(message));
        }
        a.say(&Message::Over { code: 0, by_itself: false, text: "ü".repeat(LONGEST) });
        assert!(matches!(b.hear(), Some(Message::Over { code: 0, .. })));
        drop(a);
        assert_eq!(b.hear(), None);

        // The last word is heard although something that was said to the other end was never read there.
        let (a, b) = pair().unwrap();
        b.say(&Message::Stopped { root: 1, signal: 19 });
        a.say(&Message::Stopped { root: 2, signal: 19 });
        drop(a);
        assert_eq!(b.hear(), Some(Message::Stopped { root: 2, signal: 19 }));
        assert_eq!(b.hear(), None);
    }
}
