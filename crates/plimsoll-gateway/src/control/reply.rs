//! An answer on its way: whole or as a stream, from any thread, now or later.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame, SizeHint};
use hyper::header::{self, HeaderValue};
use hyper::{Response, StatusCode};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, Interval, interval_at};

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
pub struct Reply(oneshot::Sender<Response<Words>>);

impl Reply {
    pub(crate) fn new() -> (Self, oneshot::Receiver<Response<Words>>) {
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
        let mut response = Response::new(Words::Coming { coming, events: kind == Kind::Events, alive: None });
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
    Coming { coming: mpsc::Receiver<Bytes>, events: bool, alive: Option<Box<Interval>> },
}

pub(super) fn response(answer: Answer) -> Response<Words> {
    let mut response = Response::new(Words::Whole(answer.body.into()));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, answer.kind.content_type());
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(seconds) = answer.retry_after_s {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

impl Body for Words {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Coming { coming, events, alive } => {
                if let Poll::Ready(chunk) = coming.poll_recv(context) {
                    if let Some(alive) = alive {
                        alive.reset();
                    }
                    return Poll::Ready(chunk.map(|chunk| Ok(Frame::data(chunk))));
                }
                if !*events {
                    return Poll::Pending;
                }
                let alive = alive.get_or_insert_with(|| Box::new(interval_at(Instant::now() + ALIVE, ALIVE)));
                ready!(alive.poll_tick(context));
                Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b":\n\n")))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Coming { .. } => SizeHint::default(),
        }
    }
}
