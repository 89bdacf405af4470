//! What a tree makes of the processor, from its counters; and whether its quota slows it.
//!
//! Throttling is Δ`nr_throttled` ÷ Δ`nr_periods` (Kubernetes' rule of thumb calls 25 % for 15 minutes too much). It makes a
//! service slow and never ends it: it is shown, and a probe that times out meanwhile is not held against the service.

use std::time::Duration;

use super::input::TreeSample;

/// From here on a probe's timeout says nothing.
const MUCH_PERCENT: f64 = 25.0;

/// Below this it is over.
const LITTLE_PERCENT: f64 = 10.0;

/// So long it has to last to be told.
const LASTING: Duration = Duration::from_secs(60);

/// A rate needs so much time between two looks.
const SHORTEST: Duration = Duration::from_millis(100);

/// One tree's use of the processor.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Cpu {
    last: Option<(Duration, Duration, u64, u64)>,
    percent: f64,
    throttled_percent: f64,
    is_known: bool,
    since: Option<Duration>,
    is_told: bool,
}

impl Cpu {
    /// Takes a look's counters. Answers the edge, if it is one: throttled for long (true), or no longer (false).
    pub fn look(&mut self, now: Duration, sample: &TreeSample) -> Option<bool> {
        let taken = (now, sample.cpu, sample.periods, sample.throttled);
        let Some((then, cpu, periods, throttled)) = self.last else {
            self.last = Some(taken);
            return None;
        };
        let passed = now.saturating_sub(then);
        if passed < SHORTEST {
            return None;
        }
        self.last = Some(taken);
        self.is_known = true;
        self.percent = sample.cpu.saturating_sub(cpu).as_secs_f64() * 100.0 / passed.as_secs_f64();
        let passed_periods = sample.periods.saturating_sub(periods);
        let stopped = sample.throttled.saturating_sub(throttled).min(passed_periods);
        self.throttled_percent = if passed_periods == 0 { 0.0 } else { stopped as f64 * 100.0 / passed_periods as f64 };
        if self.throttled_percent < LITTLE_PERCENT {
            self.since = None;
            return std::mem::take(&mut self.is_told).then_some(false);
        }
        if self.throttled_percent < MUCH_PERCENT {
            return None;
        }
        let since = *self.since.get_or_insert(now);
        let is_edge = !self.is_told && now.saturating_sub(since) >= LASTING;
        self.is_told |= is_edge;
        is_edge.then_some(true)
    }

    /// Of one core; `None` before the second look.
    #[must_use]
    pub fn percent(&self) -> Option<f64> {
        self.is_known.then_some(self.percent)
    }

    /// Periods in which the quota stopped it, per cent.
    #[must_use]
    pub fn throttled_percent(&self) -> f64 {
        self.throttled_percent
    }

    /// Whether it is so slow by its quota that a timeout says nothing about it.
    #[must_use]
    pub fn is_throttled(&self) -> bool {
        self.throttled_percent >= MUCH_PERCENT
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::name::{Instance, Name};

    fn sample(cpu_ms: u64, periods: u64, throttled: u64) -> TreeSample {
        let instance = Instance { service: Name::from("a"), replica: 1, generation: 1 };
        let cpu = Duration::from_millis(cpu_ms);
        TreeSample { instance, memory_bytes: 0, cpu, periods, throttled, processes: 1, oom_kills: 0 }
    }

    #[test]
    fn rates_are_of_two_looks() {
        let mut cpu = Cpu::default();
        assert_eq!(cpu.look(Duration::from_secs(1), &sample(100, 10, 0)), None);
        assert_eq!(cpu.percent(), None);
        assert_eq!(cpu.look(Duration::from_secs(3), &sample(1100, 30, 5)), None);
        assert_eq!(cpu.percent(), Some(50.0));
        assert_eq!(cpu.throttled_percent(), 25.0);
        assert!(cpu.is_throttled());
        cpu.look(Duration::from_millis(3001), &sample(9000, 30, 5));
        assert_eq!(cpu.percent(), Some(50.0), "too soon after the last one");
        cpu.look(Duration::from_secs(4), &sample(0, 0, 0));
        assert_eq!((cpu.percent(), cpu.throttled_percent()), (Some(0.0), 0.0), "counters that fell count for nothing");
    }

    #[test]
    fn told_after_a_minute_and_when_it_is_over() {
        let mut cpu = Cpu::default();
        let mut told = Vec::new();
        for s in 0..200u64 {
            let throttled = s.min(100) * 5;
            told.extend(cpu.look(Duration::from_secs(s), &sample(0, s * 10, throttled)).map(|begun| (s, begun)));
        }
        assert_eq!(told, [(61, true), (101, false)]);
    }
}
