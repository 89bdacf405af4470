//! The only place that reads a clock.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// A point on the monotonic clock (it stands still while the machine is suspended).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(Duration);

impl Instant {
    /// Now.
    #[must_use]
    pub fn now() -> Self {
        let time = clock_gettime(ClockId::Monotonic);
        Self(Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0)))
    }

    /// Time since `earlier`; zero when `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// Time since now's `Instant` was this one.
    #[must_use]
    pub fn elapsed(self) -> Duration {
        Self::now().since(self)
    }

    /// This point and `by` more.
    #[must_use]
    pub fn after(self, by: Duration) -> Self {
        Self(self.0.saturating_add(by))
    }

    /// This point and `by` less; boot when that would be earlier.
    #[must_use]
    pub fn before(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(by))
    }

    /// Time since boot on this clock.
    #[must_use]
    pub fn since_boot(self) -> Duration {
        self.0
    }
}

/// The time of day, UTC.
#[must_use]
pub fn wall() -> jiff::Timestamp {
    let time = clock_gettime(ClockId::Realtime);
    let nanos = i32::try_from(time.tv_nsec).unwrap_or(0);
    jiff::Timestamp::new(time.tv_sec, nanos).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
}
