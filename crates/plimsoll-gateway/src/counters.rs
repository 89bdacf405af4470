//! What a service's port counts, readable from any thread at any time without asking the one that serves.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds of the latency histogram's buckets, microseconds; one more bucket takes the rest.
pub const LATENCY_BOUNDS_US: [u64; 14] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 10_000_000,
    60_000_000,
];

/// One service's counters. Gauges are `outstanding`, `waiting` and `connections`; all else only grows.
#[derive(Debug, Default)]
pub struct Counters {
    /// Responses whose code begins with 1 (a tunnel), 2, 3, 4, 5; our own refusals among them.
    responses: [AtomicU64; 5],
    /// Requests that were sent to a replica again, or to another one, after one died or was not there.
    pub(crate) retries: AtomicU64,
    /// Requests that no replica got: none was up, or the queue was full.
    pub(crate) refused: AtomicU64,
    /// Requests whose client went before the response began.
    pub(crate) abandoned: AtomicU64,
    /// Connections refused because there were too many.
    pub(crate) connections_refused: AtomicU64,
    /// Requests that a replica has and has not answered to the end, tunnels among them.
    pub(crate) outstanding: AtomicU64,
    /// Requests that wait for a replica to come up.
    pub(crate) waiting: AtomicU64,
    /// Connections of clients.
    pub(crate) connections: AtomicU64,
    /// From a request's head to its response's head.
    latency: [AtomicU64; LATENCY_BOUNDS_US.len() + 1],
    latency_sum_us: AtomicU64,
}

/// The counters at one instant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Responses by class: 1xx to 5xx.
    pub responses: [u64; 5],
    /// Requests sent again.
    pub retries: u64,
    /// Requests that no replica got.
    pub refused: u64,
    /// Requests whose client went before the response began.
    pub abandoned: u64,
    /// Connections that were one too many.
    pub connections_refused: u64,
    /// Requests that a replica has now.
    pub outstanding: u64,
    /// Requests that wait for a replica now.
    pub waiting: u64,
    /// Connections of clients now.
    pub connections: u64,
    /// Requests by latency to the response's head, a bucket each of [`LATENCY_BOUNDS_US`] and the rest (not summed up).
    pub latency: [u64; LATENCY_BOUNDS_US.len() + 1],
    /// Sum of the latencies, microseconds.
    pub latency_sum_us: u64,
}

impl Counters {
    /// A response's head went to the client.
    pub(crate) fn answered(&self, status: u16, took: Duration) {
        let class = usize::from(status / 100).clamp(1, 5) - 1;
        self.responses[class].fetch_add(1, Relaxed);
        let us = took.as_micros().try_into().unwrap_or(u64::MAX);
        let bucket = LATENCY_BOUNDS_US.partition_point(|&bound| bound < us);
        self.latency[bucket].fetch_add(1, Relaxed);
        self.latency_sum_us.fetch_add(us, Relaxed);
    }

    /// All of them now.
    #[must_use]
    pub fn tally(&self) -> Tally {
        let read = |counter: &AtomicU64| counter.load(Relaxed);
        Tally {
            responses: self.responses.each_ref().map(read),
            retries: read(&self.retries),
            refused: read(&self.refused),
            abandoned: read(&self.abandoned),
            connections_refused: read(&self.connections_refused),
            outstanding: read(&self.outstanding),
            waiting: read(&self.waiting),
            connections: read(&self.connections),
            latency: self.latency.each_ref().map(read),
            latency_sum_us: read(&self.latency_sum_us),
        }
    }
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        let add = |to: &mut [u64], from: &[u64]| to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
        add(&mut self.responses, &other.responses);
        add(&mut self.latency, &other.latency);
        self.retries += other.retries;
        self.refused += other.refused;
        self.abandoned += other.abandoned;
        self.connections_refused += other.connections_refused;
        self.outstanding += other.outstanding;
        self.waiting += other.waiting;
        self.connections += other.connections;
        self.latency_sum_us += other.latency_sum_us;
    }
}

/// Counts one more while it lives.
pub(crate) struct Gauge<'a>(&'a AtomicU64);

impl<'a> Gauge<'a> {
    pub(crate) fn up(gauge: &'a AtomicU64) -> Self {
        gauge.fetch_add(1, Relaxed);
        Self(gauge)
    }
}

impl Drop for Gauge<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_and_buckets() {
        let counters = Counters::default();
        for (status, us) in [(101, 0), (200, 500), (204, 501), (404, 1_000), (503, 60_000_001)] {
            counters.answered(status, Duration::from_micros(us));
        }
        let tally = counters.tally();
        assert_eq!(tally.responses, [1, 2, 0, 1, 1]);
        assert_eq!((tally.latency[0], tally.latency[1], tally.latency[14]), (2, 2, 1));
        assert_eq!(tally.latency_sum_us, 500 + 501 + 1_000 + 60_000_001);
        let mut twice = tally;
        twice += tally;
        assert_eq!((twice.responses, twice.latency[14]), ([2, 4, 0, 2, 2], 2));
    }
}
