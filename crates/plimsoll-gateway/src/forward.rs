//! One request from its head to the end of its response: to which replica, how often, and what the client is told when
//! none of them answers.
//!
//! Repeating is safe where the request did not leave us (nobody was there, or a kept connection had been closed), for
//! every method; and where it left but no response began, for methods that are idempotent and whose body we still have.
//! Once a response has begun its end is the client's to see: the connection breaks where the replica's did.

use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};

use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{self, HeaderValue};
use hyper::http::request::Parts;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use crate::backend::{Lent, NotThere, ToReplica};
use crate::balancer::{Balancer, Phase, Ticket, Waited};
use crate::headers;
use crate::limits::REPEATS;
use crate::serve::Slot;

/// A response's body.
pub(crate) enum ToClient {
    /// Our own few words.
    Words(Bytes),
    /// A replica's, as it comes. The connection to it and its count are held until its end.
    Replica(Passing),
}

pub(crate) struct Passing {
    incoming: Incoming,
    lent: Lent,
    _ticket: Ticket,
}

/// What we have to say ourselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// The request is not one that can be passed on.
    Unfit(headers::Unfit),
    /// Its address is too long.
    TooLong,
    /// `CONNECT` is for another kind of proxy.
    Method,
    /// No replica is up.
    NoneUp,
    /// There is no file or port left for a connection to one.
    Short,
    /// The replica died, and the request could not be repeated, or not once more.
    Died,
    /// The replica answered what is no HTTP.
    Garbled,
    /// The client's own body ended before its end.
    Broken,
}

impl Refusal {
    fn response(self) -> Response<ToClient> {
        let (status, words) = match self {
            Self::Unfit(headers::Unfit::Host) => (StatusCode::BAD_REQUEST, "the request must name one host\n"),
            Self::Unfit(headers::Unfit::Address) => {
                (StatusCode::BAD_REQUEST, "the request's address is not understood\n")
            }
            Self::TooLong => (StatusCode::URI_TOO_LONG, "the request's address is too long\n"),
            Self::Method => (StatusCode::NOT_IMPLEMENTED, "CONNECT is not served here\n"),
            Self::NoneUp => (StatusCode::SERVICE_UNAVAILABLE, "no replica is up\n"),
            Self::Short => (StatusCode::SERVICE_UNAVAILABLE, "no file or port is left for a connection to a replica\n"),
            Self::Died => (StatusCode::BAD_GATEWAY, "the replica died before it answered\n"),
            Self::Garbled => (StatusCode::BAD_GATEWAY, "the replica's answer is no HTTP\n"),
            Self::Broken => (StatusCode::BAD_REQUEST, "the request's body broke off\n"),
        };
        let mut response = Response::new(ToClient::Words(Bytes::from_static(words.as_bytes())));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// Answers a request: from a replica, or in our own words.
pub(crate) async fn forward(
    balancer: Rc<Balancer>,
    peer: IpAddr,
    slot: Rc<Slot>,
    request: Request<Incoming>,
) -> Response<ToClient> {
    let began = Instant::now();
    let unanswered = Unanswered(&balancer);
    let response = match attempt_all(&balancer, peer, slot, request, began).await {
        Ok(response) => response,
        Err(refusal) => {
            if matches!(refusal, Refusal::NoneUp | Refusal::Short) {
                balancer.counters.refused.fetch_add(1, Relaxed);
            }
            refusal.response()
        }
    };
    std::mem::forget(unanswered);
    balancer.counters.answered(response.status().as_u16(), began.elapsed());
    response
}

/// Counts a request whose client went before it was answered: only then this is dropped.
struct Unanswered<'a>(&'a Balancer);

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        self.0.counters.abandoned.fetch_add(1, Relaxed);
    }
}

async fn attempt_all(
    balancer: &Rc<Balancer>,
    peer: IpAddr,
    slot: Rc<Slot>,
    request: Request<Incoming>,
    began: Instant,
) -> Result<Response<ToClient>, Refusal> {
    let (mut parts, incoming) = request.into_parts();
    if parts.method == Method::CONNECT {
        return Err(Refusal::Method);
    }
    if parts.uri.path_and_query().map_or(0, |path| path.as_str().len()) > balancer.limits.uri_bytes {
        return Err(Refusal::TooLong);
    }
    let upgrade = if parts.version == Version::HTTP_11 { headers::upgrade(&parts.headers) } else { None };
    let switch = parts.extensions.remove::<OnUpgrade>().filter(|_| upgrade.is_some());
    parts.extensions.clear();
    headers::to_replica(&mut parts, peer, upgrade.as_ref()).map_err(Refusal::Unfit)?;

    let (body, kept) = hold(balancer, &parts, incoming).await?;
    let mut pending = Some(Request::from_parts(parts, body));
    let mut tried: Vec<u64> = Vec::new();
    let mut repeats = 0;
    let deadline = began + balancer.limits.wait;
    // A replica that is not there is shunned, and a kept connection that was closed is used up, so that this ends.
    while let Some(request) = pending.take() {
        let Some(ticket) = balancer.choose(&tried) else {
            if balancer.wait(deadline).await == Waited::InVain {
                return Err(Refusal::NoneUp);
            }
            pending = Some(request);
            continue;
        };
        let replica = ticket.replica.clone();
        let (sender, fresh) = match replica.idle(&balancer.limits) {
            Some(sender) => (sender, false),
            None => match replica.connect(&balancer.limits).await {
                Ok(sender) => (sender, true),
                Err(why) => {
                    if why == NotThere::OurFault {
                        return Err(Refusal::Short);
                    }
                    replica.shun();
                    // Knocking at one door again and again while it starts is one repeat, not many.
                    if note(&mut tried, replica.instance) {
                        balancer.counters.retries.fetch_add(1, Relaxed);
                    }
                    pending = Some(request);
                    continue;
                }
            },
        };
        let mut lent = Lent::new(sender, &replica, &balancer.limits);
        let again = kept.as_ref().filter(|_| repeats < REPEATS).map(|kept| copy(&request, kept));
        let mut failed = match lent.send(request).await {
            Ok(response) => return Ok(answer(response, lent, ticket, switch, slot)),
            Err(failed) => failed,
        };
        if let Some(unsent) = failed.take_message() {
            if fresh {
                replica.shun();
            }
            note(&mut tried, replica.instance);
            balancer.counters.retries.fetch_add(1, Relaxed);
            pending = Some(unsent);
            continue;
        }
        let error = failed.into_error();
        if error.is_user() {
            return Err(Refusal::Broken);
        }
        if error.is_parse() {
            return Err(Refusal::Garbled);
        }
        let Some(again) = again else { return Err(Refusal::Died) };
        repeats += 1;
        note(&mut tried, replica.instance);
        balancer.counters.retries.fetch_add(1, Relaxed);
        pending = Some(again);
    }
    Err(Refusal::Died)
}

/// Notes that this one was tried; whether that is news.
fn note(tried: &mut Vec<u64>, instance: u64) -> bool {
    let is_new = !tried.contains(&instance);
    if is_new {
        tried.push(instance);
    }
    is_new
}

/// What a repeated request needs beside its head.
struct Kept<'a> {
    body: Bytes,
    balancer: &'a Balancer,
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        self.balancer.held.set(self.balancer.held.get() - self.body.len());
    }
}

/// Reads the body of a request that may be repeated, if it is small and there is room; otherwise it is streamed and
/// cannot be.
async fn hold<'a>(
    balancer: &'a Balancer,
    parts: &Parts,
    mut incoming: Incoming,
) -> Result<(ToReplica, Option<Kept<'a>>), Refusal> {
    let idempotent = parts.method.is_idempotent();
    if incoming.is_end_stream() {
        let nothing = || Kept { body: Bytes::new(), balancer };
        return Ok((ToReplica::Held(Bytes::new()), idempotent.then(nothing)));
    }
    let limits = &balancer.limits;
    let length = incoming.size_hint().exact().and_then(|length| usize::try_from(length).ok());
    let room = limits.held_body.min(limits.held_bodies.saturating_sub(balancer.held.get()));
    let Some(length) = length.filter(|&length| idempotent && length <= room) else {
        return Ok((ToReplica::Streamed(incoming), None));
    };
    balancer.held.set(balancer.held.get() + length);
    let mut reserved = Reserved { balancer, bytes: length };
    let mut whole = Vec::with_capacity(length);
    while let Some(frame) = poll_fn(|context| Pin::new(&mut incoming).poll_frame(context)).await {
        let frame = frame.map_err(|_| Refusal::Broken)?;
        if let Ok(data) = frame.into_data() {
            whole.extend_from_slice(&data);
        }
    }
    let body = Bytes::from(whole);
    // From here on the kept body gives its own bytes back.
    balancer.held.set(balancer.held.get() - length + body.len());
    reserved.bytes = 0;
    Ok((ToReplica::Held(body.clone()), Some(Kept { body, balancer })))
}

/// Room for a body that is being read, given back when its client goes meanwhile.
struct Reserved<'a> {
    balancer: &'a Balancer,
    bytes: usize,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.balancer.held.set(self.balancer.held.get() - self.bytes);
    }
}

fn copy(request: &Request<ToReplica>, kept: &Kept<'_>) -> Request<ToReplica> {
    let mut copy = Request::new(ToReplica::Held(kept.body.clone()));
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    copy
}

/// A replica's response as one for the client; the beginning of a tunnel when it is that.
fn answer(
    mut response: Response<Incoming>,
    mut lent: Lent,
    ticket: Ticket,
    switch: Option<OnUpgrade>,
    slot: Rc<Slot>,
) -> Response<ToClient> {
    let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    headers::to_client(response.headers_mut(), switched);
    *response.version_mut() = Version::HTTP_11;
    if switched {
        let Some(client) = switch else { return Refusal::Garbled.response() };
        let replica = hyper::upgrade::on(&mut response);
        tokio::task::spawn_local(tunnel(client, replica, ticket, slot));
        return response.map(|_| ToClient::Words(Bytes::new()));
    }
    response.map(|incoming| {
        if incoming.is_end_stream() {
            lent.give_back();
        }
        ToClient::Replica(Passing { incoming, lent, _ticket: ticket })
    })
}

/// Copies both ways until both have ended, or the port's own end has come.
async fn tunnel(client: OnUpgrade, replica: OnUpgrade, ticket: Ticket, slot: Rc<Slot>) {
    let mut phase = ticket.balancer.phase.clone();
    let copied = async {
        let (client, replica) = (client.await, replica.await);
        if let (Ok(client), Ok(replica)) = (client, replica) {
            let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(replica)).await;
        }
    };
    tokio::select! {
        () = copied => {}
        _ = phase.wait_for(|phase| *phase == Phase::Cut) => {}
    }
    drop((ticket, slot));
}

impl Body for ToClient {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Words(words) if words.is_empty() => Poll::Ready(None),
            Self::Words(words) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(words))))),
            Self::Replica(passing) => {
                let polled = Pin::new(&mut passing.incoming).poll_frame(context);
                match &polled {
                    Poll::Ready(None) => passing.lent.give_back(),
                    // The server does not ask again after the last byte of a body whose length it knows.
                    Poll::Ready(Some(Ok(_))) if passing.incoming.is_end_stream() => passing.lent.give_back(),
                    _ => {}
                }
                polled
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Words(words) => words.is_empty(),
            Self::Replica(passing) => passing.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Words(words) => SizeHint::with_exact(words.len() as u64),
            Self::Replica(passing) => passing.incoming.size_hint(),
        }
    }
}
