//! Streams of answers without the buffers of a connection.
//!
//! hyper has two buffers of 8 KiB for each connection, and most of what an open stream costs would be these. So it parses
//! the request and writes the answer's head; then the connection is taken from it, and the chunks are written here, each when its
//! words come. When the stream has ended, hyper gets the connection back.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::rc::Rc;

use hyper::body::Incoming;
use hyper::{Request, Response, Version, header};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::HEAD_BYTES;
use super::patient::Patient;
use super::reply::Words;
use crate::api::Telling;

/// The place where a stream waits to be taken from hyper.
#[derive(Debug, Default)]
pub(crate) struct Handing {
    telling: RefCell<Option<Box<Telling>>>,
    /// The head is written, and hyper asks for the body.
    is_asked: Cell<bool>,
}

impl Handing {
    /// hyper asks for the body, which it will not get.
    pub(super) fn ask(&self) {
        self.is_asked.set(true);
    }

    /// The stream, once its head was written.
    pub(super) fn take(&self) -> Option<Box<Telling>> {
        if self.is_asked.take() { self.telling.take() } else { None }
    }
}

/// Whether the connection of this request goes on as HTTP/1.1 has it, so that a stream's end is that of its chunks.
pub(super) fn stays(request: &Request<Incoming>) -> bool {
    let mut wished = request.headers().get_all(header::CONNECTION).iter();
    request.version() == Version::HTTP_11 && wished.all(|wish| wish.as_bytes().eq_ignore_ascii_case(b"keep-alive"))
}

/// Puts the body of a stream aside.
pub(super) fn put(handing: &Rc<Handing>, response: Response<Words>) -> Response<Words> {
    response.map(|words| match words {
        Words::Told(telling) => {
            handing.telling.replace(Some(telling));
            Words::Handed(handing.clone())
        }
        words => words,
    })
}

/// Tells it to its end. What the client says meanwhile is for later.
///
/// # Errors
/// The client has gone, or takes nothing.
pub(super) async fn tell<S>(stream: &mut Patient<S>, mut telling: Box<Telling>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut said = Vec::new();
    loop {
        let mut heard = [0; 64];
        tokio::select! {
            biased;
            text = poll_fn(|context| telling.poll(context)) => {
                let Some(text) = text else { break };
                stream.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes()).await?;
            }
            // One that says so much without having heard the answer is not read on.
            count = stream.read(&mut heard), if said.len() < HEAD_BYTES => match count? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => said.extend_from_slice(&heard[..count]),
            },
        }
    }
    stream.write_all(b"0\r\n\r\n").await?;
    stream.read_first(&said);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::response::{Chunks, Head};
    use crate::tape::{Note, Tape};

    fn telling(tape: &Rc<Tape>) -> Box<Telling> {
        let head = Head { id: "chatcmpl-1".to_owned(), created: 7, model: "m".to_owned() };
        Box::new(Telling::new(tape.read(), Chunks::new(head, false), None))
    }

    #[tokio::test]
    async fn a_stream_is_told_in_chunks_and_what_is_asked_meanwhile_is_read_next() {
        let tape = Tape::new(false);
        let (ours, mut theirs) = tokio::io::duplex(1 << 16);
        let mut ours = Patient::new(ours);
        theirs.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let speak = async {
            tokio::task::yield_now().await;
            tape.write(Note::Delta("hi".to_owned()));
            tokio::task::yield_now().await;
            tape.write(Note::Final("hi".to_owned(), None));
        };
        let (told, ()) = tokio::join!(tell(&mut ours, telling(&tape)), speak);
        told.unwrap();
        let mut next = [0; 18];
        ours.read_exact(&mut next).await.unwrap();
        assert_eq!(&next, b"GET / HTTP/1.1\r\n\r\n");
        drop(ours);
        let mut all = String::new();
        theirs.read_to_string(&mut all).await.unwrap();
        let mut rest = all.as_str();
        let mut said = String::new();
        while let Some((size, after)) = rest.split_once("\r\n") {
            let size = usize::from_str_radix(size, 16).unwrap();
            said += &after[..size];
            assert_eq!(&after[size..size + 2], "\r\n");
            rest = &after[size + 2..];
        }
        assert!(all.ends_with("\r\n0\r\n\r\n"), "{all}");
        assert!(said.contains("\"content\":\"hi\"") && said.ends_with("data: [DONE]\n\n"), "{said}");
    }

    #[tokio::test]
    async fn whoever_goes_is_told_no_more() {
        let tape = Tape::new(false);
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        drop(theirs);
        assert!(tell(&mut Patient::new(ours), telling(&tape)).await.is_err());
    }
}
