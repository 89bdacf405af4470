//! When to look at a tree, or at the budget, again: in half the time in which the next stage would be met, as it grew.
//!
//! The line itself is held elsewhere: by the kernel on cgroup tiers, by a keeper's own looks without (see [`crate::watch`]).
//! So a burst may outrun these looks; what they miss is a warning, and the kernel's notices bring looks of their own.

use std::time::Duration;

use super::ladder::Stage;

/// Never more often.
const SHORTEST: Duration = Duration::from_millis(100);

/// In the upper half of the way to the line.
const CLOSE: Duration = Duration::from_secs(1);

/// In the lower half.
const FAR: Duration = Duration::from_secs(5);

/// So soon after something that changes what is held, a look tells.
const SOON: Duration = Duration::from_millis(10);

/// The pace of looks at one line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pace {
    last: Option<(Duration, u64)>,
    /// Bytes a second, the fastest lately: falls by half with each look that sees less.
    growth: u64,
    interval: Duration,
    next: Duration,
}

impl Pace {
    /// Of a line that is to be looked at from `now` on.
    #[must_use]
    pub fn new(now: Duration) -> Self {
        Self { next: now + SHORTEST, interval: SHORTEST, ..Self::default() }
    }

    /// When the next look is due.
    #[must_use]
    pub fn next_due(&self) -> Duration {
        self.next
    }

    /// Whether a look that is taken at `now` for somebody else may well be taken here too: three fifths of the time are
    /// over. So a hundred trees at rest are looked at together, and wake the machine once.
    #[must_use]
    pub fn is_about_due(&self, now: Duration) -> bool {
        now + self.interval * 2 / 5 >= self.next
    }

    /// A look was asked for at `now`; when nothing comes of it, the next one is asked for after this.
    pub fn asked(&mut self, now: Duration) {
        self.interval = FAR;
        self.next = now + FAR;
    }

    /// Something happened that a look has to account for.
    pub fn at_once(&mut self, now: Duration) {
        self.next = self.next.min(now + SOON);
    }

    /// A look found `used` bytes below a line of `line` bytes.
    pub fn look(&mut self, now: Duration, used: u64, line: u64) {
        if let Some((then, held)) = self.last {
            let passed = now.saturating_sub(then).as_nanos();
            if passed == 0 {
                return;
            }
            let grown = u128::from(used.saturating_sub(held)) * 1_000_000_000 / passed;
            self.growth = u64::try_from(grown).unwrap_or(u64::MAX).max(self.growth / 2);
        }
        self.last = Some((now, used));
        let stage = Stage::ALL.into_iter().find(|stage| *stage > Stage::of(used, line));
        let mark = (u128::from(line) * u128::from(stage.map_or(100, Stage::mark_percent)) / 100) as u64;
        let headroom = u128::from(mark.saturating_sub(used));
        let until = headroom * 1_000_000_000 / u128::from(self.growth.max(1)) / 2;
        let until = Duration::from_nanos(u64::try_from(until).unwrap_or(u64::MAX));
        let longest = if used >= line / 2 { CLOSE } else { FAR };
        self.interval = until.clamp(SHORTEST, longest);
        self.next = now + self.interval;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn rarely_where_nothing_moves() {
        let mut pace = Pace::new(S(0));
        assert_eq!(pace.next_due(), SHORTEST);
        pace.look(S(1), 10, 100);
        assert_eq!(pace.next_due(), S(6));
        pace.look(S(6), 60, 100);
        assert_eq!(pace.next_due(), S(7));
        pace.asked(S(7));
        assert_eq!(pace.next_due(), S(12));
    }

    proptest! {
        #[test]
        fn steady_growth_meets_no_stage_unseen(rate in 1u64..40, start in 0u64..50) {
            // Up to 40 % of the line a second; no stage may be passed by more than half of what it grows between looks.
            let line = 1_000_000u64;
            let (mut pace, mut at_ns) = (Pace::new(S(0)), 0u64);
            let held = |at_ns: u64| line * start / 100 + (u128::from(at_ns) * u128::from(line * rate / 100) / 1_000_000_000) as u64;
            let mut looks = Vec::new();
            while held(at_ns) < line {
                pace.look(Duration::from_nanos(at_ns), held(at_ns), line);
                looks.push(held(at_ns));
                at_ns = pace.next_due().as_nanos() as u64;
            }
            prop_assert!(looks.len() < 2000);
            for mark in [80, 90, 95].map(|percent| line * percent / 100).into_iter().filter(|&mark| mark > line * start / 100) {
                // The first look knows no growth yet; from the second one on it is halved each time.
                if let Some(late) = looks.iter().skip(1).find(|&&seen| seen >= mark) {
                    let step = line * rate / 100;
                    prop_assert!(late - mark <= step * 5 || looks.len() < 3, "{late} past {mark}");
                }
            }
        }

        #[test]
        fn between_its_bounds(looks in prop::collection::vec((0u64..10_000, any::<u64>(), any::<u64>()), 0..50)) {
            let mut pace = Pace::new(S(0));
            let mut now = S(0);
            for (ms, used, line) in looks {
                now += Duration::from_millis(ms);
                pace.look(now, used, line);
                prop_assert!(pace.next_due() <= now + FAR);
            }
        }
    }
}
