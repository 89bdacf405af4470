//! How many replicas the load asks for: the formula of Kubernetes' horizontal pod autoscaler.
//!
//! From its sources (`pkg/controller/podautoscaler`: `replica_calculator.go`, `horizontal.go`):
//! - every 15 s, for each metric: utilisation = Σ usage ÷ Σ request over the replicas that were measured, in whole per
//!   cent; ratio = utilisation ÷ target; within 0.1 of 1 nothing changes; else the wish is ⌈ratio × replicas⌉;
//! - replicas that were not measured count as 100 % of their request when the ratio is below 1 and as 0 above, so that what
//!   is not known never makes the change larger; when that turns the direction round, nothing changes;
//! - of several metrics the largest wish counts; while one has no value, nothing goes down;
//! - up: at most to max(2 × replicas, 4) at once; down: to the highest wish of the last 300 s.

use std::collections::VecDeque;
use std::time::Duration;

/// Between two judgements.
pub const SYNC: Duration = Duration::from_secs(15);

/// The highest wish of so long counts on the way down.
const STABILISATION: Duration = Duration::from_secs(300);

/// A ratio so close to 1 changes nothing.
const TOLERANCE: f64 = 0.1;

/// Wishes that are kept: one each 15 s over 300 s, and some.
const WISHES: usize = 24;

/// One metric of a service.
#[derive(Debug, Clone, Default)]
pub struct Metric {
    /// Wanted usage in per cent of the request.
    pub target_percent: f64,
    /// Usage and request of each replica that was measured, in one unit.
    pub measured: Vec<(f64, f64)>,
    /// Requests of the replicas that were not.
    pub missing: Vec<f64>,
}

impl Metric {
    /// Utilisation in per cent, as it was measured; `None` when nothing was.
    #[must_use]
    pub fn utilisation(&self) -> Option<f64> {
        utilisation(self.measured.iter().copied())
    }

    /// The number of replicas that this metric asks for; `None` when it has no value.
    #[must_use]
    pub fn wish(&self, replicas: u32) -> Option<u32> {
        let ratio = self.utilisation()? / self.target_percent;
        if (1.0 - ratio).abs() <= TOLERANCE && self.missing.is_empty() {
            return Some(replicas);
        }
        if self.missing.is_empty() {
            return Some(ceil(ratio * self.measured.len() as f64));
        }
        let assumed_percent = if ratio < 1.0 { self.target_percent.max(100.0) } else { 0.0 };
        let assumed = self.missing.iter().map(|&request| (request * assumed_percent / 100.0, request));
        let cautious = utilisation(self.measured.iter().copied().chain(assumed))? / self.target_percent;
        if (1.0 - cautious).abs() <= TOLERANCE || (ratio < 1.0) != (cautious < 1.0) {
            return Some(replicas);
        }
        let wish = ceil(cautious * (self.measured.len() + self.missing.len()) as f64);
        let goes_astray = if cautious < 1.0 { wish > replicas } else { wish < replicas };
        Some(if goes_astray { replicas } else { wish })
    }
}

fn utilisation(parts: impl Iterator<Item = (f64, f64)>) -> Option<f64> {
    let (used, wanted) = parts.fold((0.0, 0.0), |(used, wanted), (usage, request)| (used + usage, wanted + request));
    // In whole per cent, as there: a hundredth of a per cent must not decide about a replica.
    (wanted > 0.0).then(|| (100.0 * used / wanted).floor())
}

/// Rounded up; what is a whole number but for the arithmetic stays it.
fn ceil(replicas: f64) -> u32 {
    (replicas - 1e-9).ceil().clamp(0.0, f64::from(u32::MAX)) as u32
}

/// One service's autoscaler.
#[derive(Debug, Clone, Default)]
pub struct Autoscale {
    next: Duration,
    wishes: VecDeque<(Duration, u32)>,
}

impl Autoscale {
    /// When it judges next.
    #[must_use]
    pub fn next_due(&self) -> Duration {
        self.next
    }

    /// Somebody set the number by hand: what was wished before does not count.
    pub fn forget(&mut self, now: Duration) {
        self.wishes.clear();
        self.next = now + SYNC;
    }

    /// Judges at `now`, with `replicas` wanted so far and from `min` to `max` allowed. Answers the number to have.
    pub fn judge(&mut self, now: Duration, metrics: &[Metric], replicas: u32, min: u32, max: u32) -> u32 {
        self.next = now + SYNC;
        let known: Vec<u32> = metrics.iter().filter_map(|metric| metric.wish(replicas)).collect();
        let mut wish = known.iter().copied().max().unwrap_or(replicas);
        if known.len() < metrics.len() {
            wish = wish.max(replicas);
        }
        let most = replicas.saturating_mul(2).max(4);
        let wish = wish.clamp(min, max.max(min));
        self.wishes.push_back((now, wish));
        while self.wishes.len() > WISHES
            || self.wishes.front().is_some_and(|&(at, _)| now.saturating_sub(at) >= STABILISATION)
        {
            self.wishes.pop_front();
        }
        let highest = self.wishes.iter().map(|&(_, wish)| wish).max().unwrap_or(wish);
        // Down only as far as every wish of the window allows; up at once, in bounded steps.
        let stable = if wish < replicas { highest.min(replicas) } else { wish };
        stable.min(most).clamp(min, max.max(min))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    fn metric(target: f64, usages: &[f64]) -> Metric {
        Metric {
            target_percent: target,
            measured: usages.iter().map(|&usage| (usage, 100.0)).collect(),
            missing: Vec::new(),
        }
    }

    #[test]
    fn the_formula() {
        assert_eq!(metric(50.0, &[100.0, 100.0]).wish(2), Some(4), "200m against 100m doubles, as the docs have it");
        assert_eq!(metric(100.0, &[50.0, 50.0]).wish(2), Some(1));
        assert_eq!(metric(70.0, &[76.0, 76.0, 76.0]).wish(3), Some(3), "within a tenth");
        assert_eq!(metric(70.0, &[78.0, 78.0, 78.0]).wish(3), Some(4), "beyond a tenth");
        assert_eq!(metric(70.0, &[]).wish(3), None);
    }

    #[test]
    fn what_was_not_measured_never_makes_the_change_larger() {
        let with = |usages: &[f64], missing| Metric { missing: vec![100.0; missing], ..metric(50.0, usages) };
        assert_eq!(with(&[100.0, 100.0], 1).wish(3), Some(4), "up: a missing one counts as idle: 66 / 50 of 3");
        assert_eq!(with(&[60.0], 3).wish(4), Some(4), "and when that turns it round nothing happens");
        assert_eq!(with(&[10.0, 10.0, 10.0], 1).wish(4), Some(3), "down: it counts as full: 32 / 50 of 4");
        assert_eq!(with(&[10.0], 2).wish(3), Some(3));
    }

    #[test]
    fn the_largest_of_several_and_nothing_down_while_one_is_unknown() {
        let mut scale = Autoscale::default();
        let (low, high, none) = (metric(50.0, &[10.0; 4]), metric(50.0, &[90.0; 4]), metric(50.0, &[]));
        assert_eq!(scale.judge(S(0), &[low.clone(), high], 4, 1, 10), 8);
        let mut scale = Autoscale::default();
        assert_eq!(scale.judge(S(0), &[low, none], 4, 1, 10), 4);
    }

    #[test]
    fn up_in_steps_and_down_after_five_minutes() {
        let mut scale = Autoscale::default();
        let load = |percent: f64, replicas: u32| [metric(50.0, &vec![percent; replicas as usize])];
        let mut replicas = 1;
        let mut at = 0;
        for expected in [4, 8, 16, 20] {
            replicas = scale.judge(S(at), &load(1000.0, replicas), replicas, 1, 20);
            assert_eq!(replicas, expected);
            at += 15;
        }
        let last_high = at - 15;
        while at < last_high + 300 {
            assert_eq!(scale.judge(S(at), &load(1.0, 20), 20, 1, 20), 20, "at {at}");
            at += 15;
        }
        assert_eq!(scale.judge(S(at), &load(1.0, 20), 20, 1, 20), 1);
    }

    proptest! {
        #[test]
        fn stays_between_its_bounds(
            min in 1u32..5,
            more in 0u32..20,
            loads in prop::collection::vec((prop::collection::vec(0.0f64..1000.0, 0..6), 0usize..4), 1..60),
        ) {
            let max = min + more;
            let mut scale = Autoscale::default();
            let mut replicas = min;
            for (at, (usages, missing)) in loads.into_iter().enumerate() {
                let before = replicas;
                let load = Metric { missing: vec![100.0; missing], ..metric(70.0, &usages) };
                replicas = scale.judge(SYNC * at as u32, &[load], replicas, min, max);
                prop_assert!((min..=max).contains(&replicas));
                prop_assert!(replicas <= (2 * before).max(4).max(min));
                prop_assert!(scale.wishes.len() <= WISHES);
            }
        }

        #[test]
        fn more_load_never_wishes_for_less(usage in 0.0f64..500.0, more in 0.0f64..500.0, count in 1usize..8, target in 1.0f64..200.0) {
            let a = metric(target, &vec![usage; count]).wish(count as u32).unwrap();
            let b = metric(target, &vec![usage + more; count]).wish(count as u32).unwrap();
            prop_assert!(a <= b);
        }
    }
}
