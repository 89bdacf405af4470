//! An answer on its way: whole or as a stream, from any thread, now or later.

use std::convert::Infallible;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame, SizeHint};
use hyper::header::{self, HeaderValue};
use hyper::{Response, StatusCode};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, Interval, interval_at};

use super::handing::Handing;
use crate::api::Telling;

/// What an answer is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `application/json`.
    Json,
    /// `text/plain`.
    Text,
    /// Prometheus' text, version 0.0.4.
    Prometheus,
    /// `text/event-stream`; a comment now and then tells that it is still there.
    Events,
    /// JSON, one object a line.
    JsonLines,
}

impl Kind {
    fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Json => "application/json",
            Self::Text => "text/plain; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::Events => "text/event-stream",
            Self::JsonLines => "application/jsonl",
        })
    }
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status; one that is none becomes 500.
    pub status: u16,
    /// What the body is.
    pub kind: Kind,
    /// The body.
    pub body: Vec<u8>,
    /// When to ask again, seconds.
    pub retry_after_s: Option<u32>,
}

impl Answer {
    /// A 200 of JSON.
    #[must_use]
    pub fn json(body: impl Into<Vec<u8>>) -> Self {
        Self { status: 200, kind: Kind::Json, body: body.into(), retry_after_s: None }
    }

    /// A 200 of plain text.
    #[must_use]
    pub fn text(body: impl Into<Vec<u8>>) -> Self {
        Self { kind: Kind::Text, ..Self::json(body) }
    }
}

/// Chunks that wait for a slow reader; one more and the reader is let go.
const BEHIND: usize = 256;

/// Silence of a stream of events after which a comment is sent.
const ALIVE: Duration = Duration::from_secs(15);

/// Where the answer to one question goes. Dropped, it says that nobody answers.
#[derive(Debug)]
pub struct Reply(oneshot::Sender<Response<Sent>>);

impl Reply {
    pub(crate) fn new() -> (Self, oneshot::Receiver<Response<Sent>>) {
        let (reply, coming) = oneshot::channel();
        (Self(reply), coming)
    }

    /// Answers. That whoever asked is gone is nobody's concern.
    pub fn send(self, answer: Answer) {
        let _ = self.0.send(response(answer));
    }

    /// Whoever asked waits no longer.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    /// Begins a stream with status 200, which ends when the [`Stream`] is dropped.
    #[must_use]
    pub fn stream(self, kind: Kind) -> Stream {
        let (chunks, coming) = mpsc::channel(BEHIND);
        let mut response = Response::new(Sent::Coming { coming, events: kind == Kind::Events, alive: None });
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, kind.content_type());
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        let _ = self.0.send(response);
        Stream(chunks)
    }
}

/// The writing end of a stream.
#[derive(Debug)]
pub struct Stream(mpsc::Sender<Bytes>);

impl Stream {
    /// Sends a chunk without waiting. False when the reader is gone or has fallen behind: drop the stream then.
    #[must_use]
    pub fn send(&self, chunk: impl Into<Vec<u8>>) -> bool {
        self.0.try_send(Bytes::from(chunk.into())).is_ok()
    }

    /// Nobody reads any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }
}

/// A body of ours.
#[derive(Debug)]
pub(crate) enum Words {
    Whole(Bytes),
    /// Read from a tape of this thread.
    Told(Box<Telling>),
    /// Not told by hyper.
    Handed(Rc<Handing>),
    Sent(Sent),
}

/// A body that comes from whoever has the [`Reply`], on whatever thread.
#[derive(Debug)]
pub(crate) enum Sent {
    Whole(Bytes),
    Coming { coming: mpsc::Receiver<Bytes>, events: bool, alive: Option<Box<Interval>> },
}

pub(super) fn response(answer: Answer) -> Response<Sent> {
    let mut response = Response::new(Sent::Whole(answer.body.into()));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, answer.kind.content_type());
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(seconds) = answer.retry_after_s {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// The comment that says that a silent stream is still there, when it is due.
pub(crate) fn poll_alive(alive: &mut Option<Box<Interval>>, context: &mut Context<'_>) -> Poll<String> {
    let alive = alive.get_or_insert_with(|| Box::new(interval_at(Instant::now() + ALIVE, ALIVE)));
    alive.poll_tick(context).map(|_| ":\n\n".to_owned())
}

type Piece = Option<Result<Frame<Bytes>, Infallible>>;

fn piece(bytes: impl Into<Bytes>) -> Piece {
    Some(Ok(Frame::data(bytes.into())))
}

/// Once, if there is something of it.
fn whole(bytes: &mut Bytes) -> Poll<Piece> {
    let all = std::mem::take(bytes);
    Poll::Ready(if all.is_empty() { None } else { piece(all) })
}

impl Sent {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Piece> {
        match self {
            Self::Whole(bytes) => whole(bytes),
            Self::Coming { coming, events, alive } => {
                if let Poll::Ready(chunk) = coming.poll_recv(context) {
                    if let Some(alive) = alive {
                        alive.reset();
                    }
                    return Poll::Ready(chunk.and_then(piece));
                }
                if *events { poll_alive(alive, context).map(piece) } else { Poll::Pending }
            }
        }
    }
}

impl Body for Words {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Piece> {
        match self.get_mut() {
            Self::Whole(bytes) => whole(bytes),
            Self::Told(telling) => telling.poll(context).map(|text| text.and_then(piece)),
            Self::Handed(handing) => {
                handing.ask();
                Poll::Pending
            }
            Self::Sent(sent) => sent.poll(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) | Self::Sent(Sent::Whole(bytes)) => bytes.is_empty(),
            Self::Told(telling) => telling.is_over(),
            Self::Handed(_) | Self::Sent(Sent::Coming { .. }) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) | Self::Sent(Sent::Whole(bytes)) => SizeHint::with_exact(bytes.len() as u64),
            Self::Told(_) | Self::Handed(_) | Self::Sent(Sent::Coming { .. }) => SizeHint::default(),
        }
    }
}
