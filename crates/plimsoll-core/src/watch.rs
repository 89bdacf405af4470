//! When to look at a tree's memory next, and what a look means.
//!
//! The time to the next look is headroom ÷ growth: what is left below the line, over the faster of how fast the tree
//! grew and how fast anything on this machine could grow. Because the second never falls to zero, a burst after a long
//! idle meets a look before it meets the line: the interval shrinks with the headroom like a geometric series, down to
//! a millisecond.

use std::time::Duration;

/// One process on one core fills fresh pages at about this rate on the machines that we measured (1.7 to 2 GB/s; the
/// kernel clears each page first). Huge pages are filled faster; the learned growth covers those.
pub const BURST_PER_CORE: u64 = 2 << 30;

/// Longest time between two looks.
const LONGEST: Duration = Duration::from_secs(1);

/// At most this share of a core is spent on looking, close to the line: one part in five. Far from it looks are rare.
const COST_SHARE: u32 = 5;

/// What a look costs is the least of so many: the others were kept from running, which is no reason to look less.
const COSTS: usize = 8;

/// What a look means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// The line is met, for certain.
    Met,
    /// The line lies between the bounds: measure exactly, then look again.
    Measure,
    /// All is well; look again after this.
    Again(Duration),
}

/// The sampling policy of one tree.
#[derive(Debug, Clone)]
pub struct Watch {
    line: u64,
    cores: u32,
    /// Bytes a second that are always reckoned with.
    burst: u64,
    shortest: Duration,
    last: Option<(Duration, u64)>,
    /// Bytes a second, the fastest lately: falls by half with each look that sees less.
    growth: u64,
    costs: [Duration; COSTS],
    looks: usize,
}

impl Watch {
    /// Watches a line in bytes on a machine with so many cores, never looking more often than `shortest`.
    #[must_use]
    pub fn new(line: u64, cores: u32, shortest: Duration) -> Self {
        Self {
            line,
            cores: cores.max(1),
            burst: BURST_PER_CORE.saturating_mul(u64::from(cores.max(1))),
            shortest,
            last: None,
            growth: 0,
            costs: [Duration::ZERO; COSTS],
            looks: 0,
        }
    }

    /// The line, bytes.
    #[must_use]
    pub fn line(&self) -> u64 {
        self.line
    }

    /// How long a look can still wait at `now` since the start, when all processors together worked for no more than
    /// `busy` since the last one; `None` when it cannot. A busy processor fills memory at no more than its share of the
    /// rate that is reckoned with, so the last look bounds what is held now.
    #[must_use]
    pub fn spare(&self, now: Duration, busy: Duration) -> Option<Duration> {
        let (looked, held) = self.last?;
        let until_due = LONGEST.checked_sub(now.saturating_sub(looked)).filter(|left| !left.is_zero())?;
        let rate = self.burst.max(self.growth);
        let filled = busy.as_nanos() * u128::from(rate / u64::from(self.cores)) / 1_000_000_000;
        let headroom = self.line.saturating_sub(held);
        let left = headroom.saturating_sub(u64::try_from(filled).unwrap_or(u64::MAX));
        // Closer in than half of what was left, only a look can tell.
        (left > headroom / 2).then(|| time_to_fill(left, rate).max(self.shortest).min(until_due))
    }

    /// Judges a sample: bounds of what is held in bytes, at `now` since the start; `cost` is what the look took.
    pub fn look(&mut self, now: Duration, lower: u64, upper: u64, cost: Duration) -> Look {
        if lower >= self.line {
            return Look::Met;
        }
        if upper >= self.line {
            return Look::Measure;
        }
        if let Some((before, held)) = self.last {
            let passed = now.saturating_sub(before).as_nanos().max(1);
            let grown = u128::from(upper.saturating_sub(held)) * 1_000_000_000 / passed;
            self.growth = u64::try_from(grown).unwrap_or(u64::MAX).max(self.growth / 2);
        }
        self.last = Some((now, upper));
        let until_line = time_to_fill(self.line - upper, self.burst.max(self.growth));
        self.costs[self.looks % COSTS] = cost;
        self.looks += 1;
        let cost = self.costs.iter().min().copied().unwrap_or(cost);
        let affordable = cost.saturating_mul(COST_SHARE);
        Look::Again(until_line.max(affordable).max(self.shortest).min(LONGEST))
    }
}

fn time_to_fill(bytes: u64, rate: u64) -> Duration {
    Duration::from_nanos((u128::from(bytes) * 1_000_000_000 / u128::from(rate)) as u64)
}

/// Picks who goes first when the tree is to lose its largest process: the largest one below the root, by memory held;
/// `None` when only the root is left. `members` are (pid, depth, bytes).
#[must_use]
pub fn victim(members: impl Iterator<Item = (i32, u32, u64)>) -> Option<i32> {
    members
        .filter(|&(_, depth, _)| depth > 0)
        .max_by_key(|&(pid, _, bytes)| (bytes, -i64::from(pid)))
        .map(|(pid, ..)| pid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A tree that idles for a while, then grows at a steady rate until somebody looks at or above the line: bytes over
    /// the line at that look. `late` is how much later than asked each look comes.
    fn overshoot(line: u64, cores: u32, idle: Duration, rate: u64, late: Duration) -> u64 {
        let mut watch = Watch::new(line, cores, Duration::from_millis(1));
        let mut now = Duration::ZERO;
        loop {
            let grown = now.saturating_sub(idle).as_nanos() * u128::from(rate) / 1_000_000_000;
            let held = u64::try_from(grown).unwrap_or(u64::MAX);
            match watch.look(now, held, held, Duration::from_micros(50)) {
                Look::Met => return held - line,
                Look::Measure => unreachable!("the bounds are equal"),
                Look::Again(pause) => now += pause + late,
            }
        }
    }

    proptest! {
        #[test]
        fn a_burst_is_met_within_two_looks(
            line in (16u64 << 20)..(8 << 30),
            idle_ms in 0u64..20_000,
            share in 1u64..=100,
            late_us in 0u64..2_000,
        ) {
            let rate = BURST_PER_CORE * 2 * share / 100;
            let late = Duration::from_micros(late_us);
            let over = overshoot(line, 2, Duration::from_millis(idle_ms), rate, late);
            // The last look below the line was at most a millisecond and the lateness before the one above it.
            let bound = rate / 1000 * 21 / 20 + rate / 1_000_000 * late_us + 4096;
            prop_assert!(over <= bound, "{over} > {bound}");
        }

        #[test]
        fn looks_that_were_spared_cost_no_more_than_two_looks_growth(
            line in (16u64 << 20)..(8 << 30),
            // A hog that works for some milliseconds and sleeps for others, on one of two cores.
            bursts in prop::collection::vec((0u64..300, 0u64..3000), 1..50),
            share in 1u64..=100,
        ) {
            let rate = BURST_PER_CORE * share / 100;
            let held_after = |worked: u128| u64::try_from(worked * u128::from(rate) / 1_000_000_000).unwrap_or(u64::MAX);
            let worked_by = |now: Duration| {
                let (mut at, mut worked) = (0u128, 0u128);
                for &(work, sleep) in bursts.iter().cycle() {
                    let (work, sleep) = (u128::from(work) * 1_000_000 + 1, u128::from(sleep) * 1_000_000);
                    if at + work + sleep > now.as_nanos() {
                        return worked + (now.as_nanos() - at).min(work);
                    }
                    worked += work;
                    at += work + sleep;
                }
                unreachable!("the bursts go round")
            };
            let mut watch = Watch::new(line, 2, Duration::from_millis(1));
            let (mut now, mut last, mut spared) = (Duration::ZERO, 0u128, 0);
            for _ in 0..2000 {
                let worked = worked_by(now);
                let busy = Duration::from_nanos((worked - last) as u64);
                if let Some(pause) = watch.spare(now, busy) {
                    prop_assert!(held_after(worked) < line, "spared a look over the line");
                    spared += 1;
                    now += pause;
                    continue;
                }
                let held = held_after(worked);
                last = worked;
                match watch.look(now, held, held, Duration::from_micros(50)) {
                    Look::Met => {
                        let bound = rate / 1000 * 21 / 20 + 4096;
                        prop_assert!(held - line <= bound, "{} > {bound} after {spared} spared", held - line);
                        return Ok(());
                    }
                    Look::Measure => unreachable!("the bounds are equal"),
                    Look::Again(pause) => now += pause,
                }
            }
        }

        #[test]
        fn intervals_stay_between_their_bounds(line in 1u64..1 << 40, held in 0u64..1 << 40, cost_us in 0u64..1000) {
            let mut watch = Watch::new(line, 4, Duration::from_millis(1));
            if let Look::Again(pause) = watch.look(Duration::ZERO, held, held, Duration::from_micros(cost_us)) {
                prop_assert!(held < line);
                prop_assert!(pause >= Duration::from_millis(1) && pause <= Duration::from_secs(1));
            } else {
                prop_assert!(held >= line);
            }
        }

        #[test]
        fn the_victim_is_the_largest_below_the_root(members in prop::collection::vec((1i32..1000, 0u32..5, 0u64..1000), 0..20)) {
            match victim(members.iter().copied()) {
                None => prop_assert!(members.iter().all(|m| m.1 == 0)),
                Some(pid) => {
                    let bytes = members.iter().filter(|m| m.1 > 0).map(|m| m.2).max();
                    prop_assert!(members.iter().any(|m| m.0 == pid && m.1 > 0 && Some(m.2) == bytes));
                }
            }
        }
    }

    #[test]
    fn an_idle_machine_spares_looks_for_a_second() {
        let mut watch = Watch::new(1 << 30, 2, Duration::from_millis(1));
        assert_eq!(watch.spare(Duration::ZERO, Duration::ZERO), None, "nothing was seen yet");
        watch.look(Duration::ZERO, 1 << 20, 1 << 20, Duration::ZERO);
        let soon = Duration::from_millis(200);
        assert!(watch.spare(soon, Duration::from_millis(20)).is_some_and(|pause| pause > Duration::from_millis(100)));
        assert_eq!(watch.spare(soon, Duration::from_millis(300)), None, "half of the room may be gone");
        assert_eq!(watch.spare(LONGEST, Duration::ZERO), None, "the history wants a look a second");
    }

    #[test]
    fn between_the_bounds_only_a_measurement_decides() {
        let mut watch = Watch::new(100, 1, Duration::from_millis(1));
        assert_eq!(watch.look(Duration::ZERO, 50, 150, Duration::ZERO), Look::Measure);
        assert_eq!(watch.look(Duration::ZERO, 100, 150, Duration::ZERO), Look::Met);
    }
}
