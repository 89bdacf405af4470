//! The last minute of a tree's memory in a fixed space, and its peaks.
//!
//! Time is cut into equal parts, of each of which the highest sample is kept. A young tree has fine parts, so that one
//! that lived for half a second has a history too; whenever there would be more than sixty the parts grow, until each
//! is a second, and from then on what is older than a minute is forgotten.

use std::collections::VecDeque;

use plimsoll_model::Sample;

use crate::slope::{forecast_ms, growth_bytes_per_s};

/// So many samples are kept.
const MOST: usize = 60;

/// Lengths of a part, in milliseconds: each at least twice the one before, so that growing always makes room.
const GRAINS: [u64; 10] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000];

/// Milliseconds that are remembered.
const MINUTE: u64 = 60_000;

/// The growth of less than half a minute tells nothing of more than so many times as long: whatever starts grows fast,
/// and most of it then stops.
const FARTHEST: u64 = 5;

/// What a tree held.
#[derive(Debug, Clone, Default)]
pub struct History {
    samples: VecDeque<Sample>,
    /// Which of [`GRAINS`].
    grain: usize,
    peak_bytes: u64,
    peak_processes: u32,
}

impl History {
    /// Nothing was seen yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a sample, at any rate. One from before the latest counts for the peaks alone.
    pub fn push(&mut self, sample: Sample) {
        self.peak_bytes = self.peak_bytes.max(sample.memory_bytes);
        self.peak_processes = self.peak_processes.max(sample.processes);
        if self.samples.back().is_some_and(|last| sample.at_ms < last.at_ms) {
            return;
        }
        self.add(sample);
        let oldest = sample.at_ms.saturating_sub(MINUTE);
        while self.samples.front().is_some_and(|first| first.at_ms < oldest) {
            self.samples.pop_front();
        }
        while self.samples.len() > MOST {
            if self.grain + 1 < GRAINS.len() {
                self.grain += 1;
                for sample in std::mem::take(&mut self.samples) {
                    self.add(sample);
                }
            } else {
                self.samples.pop_front();
            }
        }
    }

    fn add(&mut self, sample: Sample) {
        let grain = GRAINS[self.grain];
        match self.samples.back_mut() {
            Some(last) if last.at_ms / grain == sample.at_ms / grain => {
                if sample.memory_bytes >= last.memory_bytes {
                    *last = sample;
                }
            }
            _ => self.samples.push_back(sample),
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

    /// At most sixty samples of the last minute, oldest first: the highest of each part of the time.
    #[must_use]
    pub fn last_minute(&self) -> Vec<Sample> {
        self.samples.iter().copied().collect()
    }

    /// Bytes a second over the last minute.
    #[must_use]
    pub fn growth(&self) -> i64 {
        growth_bytes_per_s(&self.last_minute())
    }

    /// Milliseconds until so many bytes are filled, if it goes on as in the last minute; `None` when it does not grow, or
    /// was not seen for long enough to tell.
    #[must_use]
    pub fn forecast_ms(&self, headroom_bytes: u64) -> Option<u64> {
        let seen = self.samples.back()?.at_ms.saturating_sub(self.samples.front()?.at_ms);
        let forecast = forecast_ms(headroom_bytes, self.growth())?;
        (seen >= MINUTE / 2 || forecast <= seen * FARTHEST).then_some(forecast)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bounded_and_with_its_peaks(
            slow in any::<bool>(),
            steps in prop::collection::vec((0u64..3000, any::<u32>(), 0u32..100), 1..400),
        ) {
            let mut history = History::new();
            let (mut at_ms, mut peak, mut processes_peak) = (0, 0, 0);
            let mut all: Vec<Sample> = Vec::new();
            for (step, bytes, processes) in steps {
                at_ms += if slow { step } else { step / 300 };
                peak = peak.max(u64::from(bytes));
                processes_peak = processes_peak.max(processes);
                let sample = Sample { at_ms, memory_bytes: bytes.into(), processes };
                history.push(sample);
                all.push(sample);
                let kept = history.last_minute();
                prop_assert!(kept.len() <= MOST && !kept.is_empty());
                prop_assert!(history.samples.capacity() <= 4 * MOST);
                prop_assert!(kept.iter().all(|s| s.at_ms + MINUTE >= at_ms && all.contains(s)));
                prop_assert!(kept.windows(2).all(|w| w[0].at_ms < w[1].at_ms));
                // The highest of the minute is there, to a part at its edge.
                let highest = all.iter().filter(|s| s.at_ms + MINUTE - 1000 > at_ms).map(|s| s.memory_bytes).max();
                prop_assert!(kept.iter().map(|s| s.memory_bytes).max() >= highest);
            }
            prop_assert_eq!((history.peak_bytes(), history.peak_processes()), (peak, processes_peak));
            let _ = history.growth();
        }

        #[test]
        fn any_times_are_taken(times in prop::collection::vec(any::<u64>(), 0..200)) {
            let mut history = History::new();
            for at_ms in times {
                history.push(Sample { at_ms, memory_bytes: at_ms, processes: 1 });
                prop_assert!(history.last_minute().len() <= MOST);
            }
        }
    }

    #[test]
    fn a_start_is_no_forecast() {
        let mut history = History::new();
        history.push(Sample { at_ms: 0, memory_bytes: 0, processes: 1 });
        assert_eq!(history.forecast_ms(1), None);
        for second in 1..60u64 {
            history.push(Sample { at_ms: second * 1000, memory_bytes: second << 20, processes: 1 });
            let (near, far) = (history.forecast_ms((second * 5) << 20), history.forecast_ms((second * 5 + 1) << 20));
            assert_eq!(near, Some(second * 5000), "as far as it was seen, five times");
            assert_eq!(far.is_some(), second >= 30, "after {second} s");
        }
        assert_eq!(history.forecast_ms(3600 << 20), Some(3_600_000));
    }

    #[test]
    fn a_short_life_has_a_history() {
        let mut history = History::new();
        for at_ms in 0..300 {
            history.push(Sample { at_ms, memory_bytes: at_ms << 20, processes: 1 });
        }
        let kept = history.last_minute();
        assert!((30..=60).contains(&kept.len()), "{}", kept.len());
        assert_eq!(kept.last().map(|s| s.at_ms), Some(299));
        assert!(history.growth().abs_diff(1000 << 20) <= 2, "{}", history.growth());
    }

    #[test]
    fn a_long_life_has_its_last_minute_by_the_second() {
        let mut history = History::new();
        for tick in 0..20_000 {
            history.push(Sample { at_ms: tick * 10, memory_bytes: 7, processes: 1 });
        }
        let kept = history.last_minute();
        assert_eq!(kept.len(), 60);
        assert!(kept[0].at_ms >= 139_000 && kept.windows(2).all(|w| w[1].at_ms - w[0].at_ms == 1000));
        assert_eq!(history.growth(), 0);
    }
}
