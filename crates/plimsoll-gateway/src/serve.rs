//! Connections of clients: how many, how slow they may be, which HTTP they speak, and how they end with their port.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

use crate::balancer::{Balancer, Phase};
use crate::counters::Counters;
use crate::forward::{ToClient, forward};
use crate::limits::{Limits, READ_BUFFER};

/// What one connection too many is told.
const CROWDED: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-type: text/plain; charset=utf-8\r\n\
content-length: 21\r\nconnection: close\r\n\r\ntoo many connections\n";

/// A client that will speak HTTP/2 says so first.
const HTTP2: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Out of files: a moment for some to be closed.
const BREATHER: Duration = Duration::from_millis(50);

/// One connection's place, and how many requests it has now.
pub(crate) struct Slot {
    counters: Arc<Counters>,
    requests: Cell<u32>,
}

impl Slot {
    fn new(counters: &Arc<Counters>) -> Rc<Self> {
        counters.connections.fetch_add(1, Relaxed);
        Rc::new(Self { counters: counters.clone(), requests: Cell::new(0) })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.counters.connections.fetch_sub(1, Relaxed);
    }
}

/// Did this fail for want of something of ours: files, memory, ports?
pub(crate) fn is_ours(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let ours = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL];
    error.raw_os_error().is_some_and(|code| ours.iter().any(|errno| errno.raw_os_error() == code))
}

/// Takes connections until the port's end begins; then no more.
pub(crate) async fn accept(listener: TcpListener, balancer: Rc<Balancer>) {
    let mut phase = balancer.phase.clone();
    let servers = Rc::new(Servers::new(&balancer.limits));
    loop {
        let accepted = tokio::select! {
            biased;
            _ = phase.wait_for(|phase| *phase != Phase::Open) => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) if balancer.counters.connections.load(Relaxed) >= balancer.limits.connections as u64 => {
                balancer.counters.connections_refused.fetch_add(1, Relaxed);
                let _ = stream.try_write(CROWDED);
                drop((stream, peer));
            }
            Ok((stream, peer)) => {
                let slot = Slot::new(&balancer.counters);
                let connection = serve(stream, peer.ip(), balancer.clone(), servers.clone(), slot);
                tokio::task::spawn_local(connection);
            }
            Err(error) if is_ours(&error) => sleep(BREATHER).await,
            // The client went before it was accepted.
            Err(_) => {}
        }
    }
}

/// How connections are served, made once for a port.
struct Servers {
    one: http1::Builder,
    two: http2::Builder<Local>,
}

impl Servers {
    fn new(limits: &Limits) -> Self {
        let mut one = http1::Builder::new();
        one.timer(TokioTimer::new())
            .header_read_timeout(limits.head_time)
            .max_headers(limits.headers)
            .max_header_size(limits.head_bytes)
            .max_buf_size(READ_BUFFER.max(limits.head_bytes));
        let mut two = http2::Builder::new(Local);
        two.timer(TokioTimer::new())
            .max_header_list_size(limits.head_bytes as u32)
            .max_concurrent_streams(limits.streams)
            // Whoever does not answer a ping is gone, and with it the requests that it holds.
            .keep_alive_interval(limits.head_time)
            .keep_alive_timeout(limits.head_time);
        Self { one, two }
    }
}

/// Runs what HTTP/2 needs beside its connection on this thread.
#[derive(Debug, Clone, Copy)]
struct Local;

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

async fn serve(stream: TcpStream, peer: IpAddr, balancer: Rc<Balancer>, servers: Rc<Servers>, slot: Rc<Slot>) {
    let _ = stream.set_nodelay(true);
    let mut phase = balancer.phase.clone();
    let speaks_two = tokio::select! {
        speaks_two = begins_with(&stream, HTTP2, Instant::now() + balancer.limits.head_time) => speaks_two,
        _ = phase.wait_for(|phase| *phase != Phase::Open) => return,
    };
    let limits = balancer.limits.clone();
    let active = slot.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let (balancer, slot) = (balancer.clone(), slot.clone());
        async move {
            slot.requests.set(slot.requests.get() + 1);
            let _one = Leave(&slot);
            Ok::<Response<ToClient>, Infallible>(forward(balancer, peer, slot.clone(), request).await)
        }
    });
    let io = TokioIo::new(stream);
    match speaks_two {
        Some(false) => {
            let connection = pin!(servers.one.serve_connection(io, service).with_upgrades());
            drive(connection, phase, |connection| connection.graceful_shutdown(), None).await;
        }
        Some(true) => {
            let connection = pin!(servers.two.serve_connection(io, service));
            let idle = Idle { slot: active, after: limits.head_time };
            drive(connection, phase, |connection| connection.graceful_shutdown(), Some(idle)).await;
        }
        None => {}
    }
}

/// One request less, however it ended.
struct Leave<'a>(&'a Slot);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.requests.set(self.0.requests.get() - 1);
    }
}

/// An HTTP/2 connection without a request for so long is asked to end. (HTTP/1's has its own clock: the next head is
/// late.)
struct Idle {
    slot: Rc<Slot>,
    after: Duration,
}

/// Drives a connection to its end, which `shut` asks for when the port's end begins.
async fn drive<C: Future>(
    mut connection: Pin<&mut C>,
    mut phase: watch::Receiver<Phase>,
    shut: impl Fn(Pin<&mut C>),
    idle: Option<Idle>,
) {
    let (mut is_shut, mut was_idle) = (false, false);
    loop {
        let now = *phase.borrow_and_update();
        if now == Phase::Cut {
            return;
        }
        if now == Phase::Draining && !is_shut {
            is_shut = true;
            shut(connection.as_mut());
        }
        let tick = async {
            match &idle {
                Some(idle) => sleep(idle.after).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            _ = connection.as_mut() => return,
            gone = phase.changed() => {
                if gone.is_err() {
                    return;
                }
            }
            () = tick => {
                let is_idle = idle.as_ref().is_some_and(|idle| idle.slot.requests.get() == 0);
                if is_idle && was_idle && !is_shut {
                    is_shut = true;
                    shut(connection.as_mut());
                }
                was_idle = is_idle;
            }
        }
    }
}

/// Whether what the client says first is `prefix`; `None` when it went, or said too little until `deadline`. Nothing is
/// taken from the stream.
async fn begins_with(stream: &TcpStream, prefix: &[u8; 24], deadline: Instant) -> Option<bool> {
    let mut buffer = [0; 24];
    let mut before = 0;
    loop {
        let seen = timeout_at(deadline, stream.peek(&mut buffer)).await.ok()?.ok()?;
        if !prefix.starts_with(&buffer[..seen]) {
            return Some(false);
        }
        if seen == prefix.len() {
            return Some(true);
        }
        // Part of it is there, and looking again would say so at once: give the rest a moment. At the stream's end
        // there is no rest, and no telling it from a slow one either.
        if seen == 0 || Instant::now() >= deadline {
            return None;
        }
        if seen == before {
            sleep(Duration::from_millis(5)).await;
        }
        before = seen;
    }
}

/// Waits until a port has no connection left, or `deadline`; how many requests are outstanding then.
pub(crate) async fn emptied(counters: &Counters, deadline: Instant) -> u64 {
    // A look now and then: this is the end of a port, and nobody waits for it to the millisecond.
    let mut every = tokio::time::interval(Duration::from_millis(5));
    while counters.connections.load(Relaxed) > 0 && Instant::now() < deadline {
        poll_fn(|context| every.poll_tick(context)).await;
    }
    counters.outstanding.load(Relaxed)
}
