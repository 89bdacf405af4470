//! What the command line asks the control socket with: one request a connection, blocking, every length bounded.
//!
//! Written by hand, for it starts in microseconds: a runtime would cost `status` more than its answer.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

/// A response's line and headers, bytes at most.
const HEAD_BYTES: usize = 16 << 10;

/// Headers of a response at most.
const HEADERS: usize = 32;

/// The line that tells a chunk's length, bytes at most.
const CHUNK_LINE: u64 = 256;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there: no plimsoll is up.
    #[error("nobody answers at {}: {source}", path.display())]
    NotThere {
        /// The socket.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// It broke off, or took too long.
    #[error("the answer broke off: {0}")]
    Broken(#[from] io::Error),
    /// What came is no HTTP that we understand.
    #[error("the answer is not understood: {0}")]
    Grammar(&'static str),
    /// More came than was asked for.
    #[error("the answer is longer than {0} bytes")]
    TooLong(u64),
}

/// A response whose head is here; its body is read from it.
#[derive(Debug)]
pub struct Response {
    /// The HTTP status.
    pub status: u16,
    /// `Retry-After`, seconds.
    pub retry_after_s: Option<u32>,
    body: Framed<BufReader<UnixStream>>,
}

/// Asks the socket at `path`. `patience` is for every single read; `None` waits for a stream's next event for ever.
///
/// # Errors
/// See [`ClientError`]. A status that tells of an error is none.
pub fn ask(path: &Path, method: &str, target: &str, patience: Option<Duration>) -> Result<Response, ClientError> {
    send(path, method, target, patience)?.answer()
}

/// A question on its way.
#[derive(Debug)]
pub struct Asked(UnixStream);

/// Asks, and does not wait for the answer yet.
///
/// # Errors
/// See [`ClientError`].
pub fn send(path: &Path, method: &str, target: &str, patience: Option<Duration>) -> Result<Asked, ClientError> {
    let not_there = |source| ClientError::NotThere { path: path.to_owned(), source };
    let mut stream = UnixStream::connect(path).map_err(not_there)?;
    stream.set_read_timeout(patience)?;
    stream.set_write_timeout(patience)?;
    let length = if method == "POST" { "content-length: 0\r\n" } else { "" };
    let head = format!("{method} {target} HTTP/1.1\r\nhost: localhost\r\n{length}connection: close\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    Ok(Asked(stream))
}

impl Asked {
    /// Whether the answer begins within this time.
    #[must_use]
    pub fn is_answered_within(&self, time: Duration) -> bool {
        let time = rustix::event::Timespec::try_from(time).ok();
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        poll(&mut fds, time.as_ref()).is_ok_and(|ready| ready > 0)
    }

    /// Waits for the answer's head.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn answer(self) -> Result<Response, ClientError> {
        let mut reader = BufReader::new(self.0);
        let head = read_head(&mut reader)?;
        let Head { status, retry_after_s, framing } = parse_head(&head)?;
        Ok(Response { status, retry_after_s, body: Framed { reader, framing } })
    }
}

impl Response {
    /// The whole body.
    ///
    /// # Errors
    /// When it breaks off, or is longer than `limit` bytes.
    pub fn text(self, limit: u64) -> Result<String, ClientError> {
        let mut text = Vec::new();
        self.body.take(limit + 1).read_to_end(&mut text)?;
        if text.len() as u64 > limit {
            return Err(ClientError::TooLong(limit));
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// The body as it comes; it ends with an error when it breaks off.
    pub fn reader(self) -> impl BufRead {
        BufReader::new(self.body)
    }
}

/// Where a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    /// After so many more bytes.
    Length(u64),
    /// After the chunk that says so; so many bytes are left of this one, and whether one was read before.
    Chunked { left: u64, first: bool },
    /// With the connection.
    Close,
}

struct Head {
    status: u16,
    retry_after_s: Option<u32>,
    framing: Framing,
}

fn read_head(reader: &mut impl BufRead) -> Result<Vec<u8>, ClientError> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let left = HEAD_BYTES.saturating_sub(head.len()) as u64;
        if left == 0 {
            return Err(ClientError::Grammar("its head has no end"));
        }
        if reader.by_ref().take(left).read_until(b'\n', &mut head)? == 0 {
            return Err(ClientError::Broken(io::ErrorKind::UnexpectedEof.into()));
        }
    }
    Ok(head)
}

fn parse_head(head: &[u8]) -> Result<Head, ClientError> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    if !response.parse(head).is_ok_and(|status| status.is_complete()) {
        return Err(ClientError::Grammar("its head is no HTTP"));
    }
    let status = response.code.ok_or(ClientError::Grammar("it has no status"))?;
    let find = |name: &str| {
        let found = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        found.map(|header| String::from_utf8_lossy(header.value).trim().to_ascii_lowercase())
    };
    let framing = match (find("transfer-encoding").as_deref(), find("content-length")) {
        (Some("chunked"), _) => Framing::Chunked { left: 0, first: true },
        (Some(_), _) => return Err(ClientError::Grammar("its transfer encoding is another one")),
        (None, Some(length)) => {
            Framing::Length(length.parse().map_err(|_| ClientError::Grammar("its length is no number"))?)
        }
        (None, None) => Framing::Close,
    };
    Ok(Head { status, retry_after_s: find("retry-after").and_then(|seconds| seconds.parse().ok()), framing })
}

/// A body without its framing.
#[derive(Debug)]
struct Framed<R> {
    reader: R,
    framing: Framing,
}

impl<R: BufRead> Framed<R> {
    /// The length of the next chunk; 0 is the end.
    fn next_chunk(&mut self, first: bool) -> io::Result<u64> {
        if !first && !self.line()?.is_empty() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let line = self.line()?;
        let digits = line.split(|&byte| byte == b';').next().unwrap_or_default();
        let digits = std::str::from_utf8(digits).map_err(|_| io::ErrorKind::InvalidData)?.trim();
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let length = u64::from_str_radix(digits, 16).map_err(|_| io::ErrorKind::InvalidData)?;
        if length == 0 {
            while !self.line()?.is_empty() {} // trailers
        }
        Ok(length)
    }

    fn line(&mut self) -> io::Result<Vec<u8>> {
        let mut line = Vec::new();
        self.reader.by_ref().take(CHUNK_LINE).read_until(b'\n', &mut line)?;
        match line.strip_suffix(b"\n") {
            Some(rest) => Ok(rest.strip_suffix(b"\r").unwrap_or(rest).to_vec()),
            None if line.len() as u64 == CHUNK_LINE => Err(io::ErrorKind::InvalidData.into()),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl<R: BufRead> Read for Framed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if let Framing::Chunked { left: 0, first } = self.framing {
            let left = self.next_chunk(first)?;
            self.framing = if left == 0 { Framing::Length(0) } else { Framing::Chunked { left, first: false } };
        }
        let (Framing::Length(left) | Framing::Chunked { left, .. }) = &mut self.framing else {
            return self.reader.read(buffer);
        };
        if *left == 0 {
            return Ok(0);
        }
        let most = buffer.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
        let read = self.reader.read(&mut buffer[..most])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        *left -= read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn body(framing: Framing, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Framed { reader: BufReader::with_capacity(3, bytes), framing }.read_to_end(&mut out).map(|_| out)
    }

    const CHUNKED: Framing = Framing::Chunked { left: 0, first: true };

    #[test]
    fn a_body_ends_where_it_says() {
        assert_eq!(body(Framing::Length(3), b"abcdef").unwrap(), b"abc");
        assert!(body(Framing::Length(3), b"ab").is_err());
        assert_eq!(body(Framing::Close, b"abc").unwrap(), b"abc");
        assert_eq!(body(CHUNKED, b"1;x=y\r\na\r\n2\r\nbc\r\n0\r\nt: 1\r\n\r\nrest").unwrap(), b"abc");
        for broken in [
            &b""[..],
            b"1\r\n",
            b"1\r\na",
            b"1\r\na\r\n",
            b"1\r\nab\r\n0\r\n\r\n",
            b"x\r\n",
            b"+1\r\na\r\n0\r\n\r\n",
            b"0\r\n",
            b"fffffffffffffffff\r\n",
        ] {
            assert!(body(CHUNKED, broken).is_err(), "{:?}", String::from_utf8_lossy(broken));
        }
    }

    #[test]
    fn a_head_has_a_bound() {
        let long = [b"HTTP/1.1 200 OK\r\nx: ".to_vec(), vec![b'x'; HEAD_BYTES]].concat();
        assert!(matches!(read_head(&mut &long[..]), Err(ClientError::Grammar(_))));
        let head = parse_head(b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nContent-Length: 3\r\n\r\n").unwrap();
        assert_eq!((head.status, head.retry_after_s, head.framing), (503, Some(7), Framing::Length(3)));
    }

    proptest! {
        #[test]
        fn chunks_are_joined(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..10)) {
            let mut wire = Vec::new();
            for chunk in &chunks {
                wire.extend(format!("{:X}\r\n", chunk.len()).into_bytes());
                wire.extend(chunk);
                wire.extend(b"\r\n");
            }
            wire.extend(b"0\r\n\r\n");
            prop_assert_eq!(body(CHUNKED, &wire).unwrap(), chunks.concat());
        }

        #[test]
        fn no_answer_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_head(&bytes);
            let _ = body(CHUNKED, &bytes);
        }
    }
}
