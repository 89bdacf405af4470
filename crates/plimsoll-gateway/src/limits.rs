//! Every bound of the room in one place: whoever asks too much, too slowly or too often meets one of these.

use std::time::Duration;

/// Bounds of a service's port. The defaults are for many small services on one machine.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections of clients to one port; one more is answered 503 and closed. By default a quarter of the files that
    /// this process may open, at most 4,096: each needs another one to a replica.
    pub connections: usize,
    /// Requests of one service that wait for a replica to come up; one more is answered 503 at once.
    pub waiting: usize,
    /// How long such a request waits.
    pub wait: Duration,
    /// A request's line and headers, bytes; more is 431.
    pub head_bytes: usize,
    /// Headers of a request; more is 431.
    pub headers: usize,
    /// A request's address, bytes; more is 414.
    pub uri_bytes: usize,
    /// Between a connection's begin or the end of an exchange and the end of the next head: a slow head and an idle
    /// connection end here. Bodies have no such limit, for they may be streams.
    pub head_time: Duration,
    /// A connection to a replica that is not there by then was none.
    pub connect: Duration,
    /// Idle connections to one replica.
    pub idle_connections: usize,
    /// An idle connection to a replica is closed after so long: before the replica does it, which could cost a request
    /// that cannot be repeated (gunicorn waits 2 s, node 5 s).
    pub idle: Duration,
    /// A body of an idempotent request up to this size is kept until the response begins, bytes.
    pub held_body: usize,
    /// All such bodies of a service together, bytes; what does not fit is streamed, and not repeated.
    pub held_bodies: usize,
    /// Requests at once on one HTTP/2 connection.
    pub streams: u32,
}

/// How often a request is sent again after the replica that had it died: a request that kills takes three at most.
pub(crate) const REPEATS: u32 = 2;

/// What one read from a peer may fill, bytes, and with it what a connection may hold.
pub(crate) const READ_BUFFER: usize = 64 << 10;

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: (open_files() / 4).clamp(64, 4096),
            waiting: 1024,
            wait: Duration::from_secs(10),
            head_bytes: 32 << 10,
            headers: 100,
            uri_bytes: 8 << 10,
            head_time: Duration::from_secs(30),
            connect: Duration::from_secs(3),
            idle_connections: 128,
            idle: Duration::from_millis(1500),
            held_body: 64 << 10,
            held_bodies: 8 << 20,
            streams: 128,
        }
    }
}

/// Files that this process may have open.
pub(crate) fn open_files() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current.and_then(|files| usize::try_from(files).ok()).unwrap_or(usize::MAX)
}
