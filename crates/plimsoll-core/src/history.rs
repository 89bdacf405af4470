//! The last minute of a tree's memory in a fixed space, and its peaks.

use std::collections::VecDeque;

use plimsoll_model::Sample;

use crate::slope::growth_bytes_per_s;

/// Seconds that are remembered.
const SECONDS: usize = 60;

/// So many of the latest samples are kept one by one: a tree that lived for less than a few seconds has its slope from
/// them.
const LATEST: usize = 30;

/// What a tree held, second by second.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// One sample a second: the highest of it.
    seconds: VecDeque<Sample>,
    /// The latest samples, at least two milliseconds apart.
    latest: VecDeque<Sample>,
    peak_bytes: u64,
    peak_processes: u32,
}

impl History {
    /// Nothing was seen yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a sample, at any rate; times may not go backwards.
    pub fn push(&mut self, sample: Sample) {
        self.peak_bytes = self.peak_bytes.max(sample.memory_bytes);
        self.peak_processes = self.peak_processes.max(sample.processes);
        match self.seconds.back_mut() {
            Some(last) if last.at_ms / 1000 == sample.at_ms / 1000 => {
                if sample.memory_bytes >= last.memory_bytes {
                    *last = sample;
                }
            }
            _ => self.seconds.push_back(sample),
        }
        let oldest = sample.at_ms.saturating_sub(SECONDS as u64 * 1000);
        while self.seconds.front().is_some_and(|first| first.at_ms < oldest || self.seconds.len() > SECONDS) {
            self.seconds.pop_front();
        }
        if self.latest.back().is_none_or(|last| sample.at_ms >= last.at_ms + 2) {
            self.latest.push_back(sample);
            if self.latest.len() > LATEST {
                self.latest.pop_front();
            }
        }
    }

    /// The most that was seen at one time, bytes.
    #[must_use]
    pub fn peak_bytes(&self) -> u64 {
        self.peak_bytes
    }

    /// The most processes that were seen at one time.
    #[must_use]
    pub fn peak_processes(&self) -> u32 {
        self.peak_processes
    }

    /// At most one sample a second for the last minute, oldest first.
    #[must_use]
    pub fn last_minute(&self) -> Vec<Sample> {
        self.seconds.iter().copied().collect()
    }

    /// Bytes a second over the last minute; over the last samples while there are fewer than five seconds.
    #[must_use]
    pub fn growth(&self) -> i64 {
        let (seconds, latest): (Vec<Sample>, Vec<Sample>) =
            (self.seconds.iter().copied().collect(), self.latest.iter().copied().collect());
        growth_bytes_per_s(if seconds.len() >= 5 { &seconds } else { &latest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bounded_and_with_its_peaks(steps in prop::collection::vec((0u64..3000, any::<u32>(), 0u32..100), 1..400)) {
            let mut history = History::new();
            let (mut at_ms, mut peak) = (0, 0);
            for (step, bytes, processes) in steps {
                at_ms += step;
                peak = peak.max(u64::from(bytes));
                history.push(Sample { at_ms, memory_bytes: bytes.into(), processes });
                let minute = history.last_minute();
                prop_assert!(minute.len() <= SECONDS);
                prop_assert!(minute.iter().all(|s| s.at_ms + 60_000 >= at_ms));
                prop_assert!(minute.windows(2).all(|w| w[0].at_ms / 1000 < w[1].at_ms / 1000));
            }
            prop_assert_eq!(history.peak_bytes(), peak);
            let _ = history.growth();
        }
    }
}
