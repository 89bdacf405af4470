//! Whether one replica is healthy.
//!
//! Probes as Docker has them: within the start period every `start_interval`, and failures do not count until one has
//! succeeded; then every `interval`, and `retries` failures in a row make it unhealthy. One success makes it healthy again.
//!
//! Not every failure says something about the service. A probe that timed out while the processor quota stopped the
//! service is slowness, not a hang; one that nobody could run, or that we were too late to hear of because the machine
//! slept, says nothing. None of these count.

use std::time::Duration;

use plimsoll_model::stack::HealthSpec;

use super::input::Probe;
use super::snapshot::HealthWord;

/// An answer that has not come so long after the probe's timeout does not come any more.
const OVERDUE: Duration = Duration::from_secs(5);

/// What changed with an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turn {
    /// Nothing.
    None,
    /// It became healthy.
    Healthy,
    /// It became unhealthy: so many failures, and what the last one said.
    Unhealthy(u32, String),
    /// The test could not be run, for the first time since it could be.
    NotRun(String),
}

/// A probe that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pending {
    number: u64,
    /// By then it has answered, or failed.
    until: Duration,
}

/// The health of one run of a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    word: HealthWord,
    failures: u32,
    started: Duration,
    /// When the next probe is due.
    next: Duration,
    pending: Option<Pending>,
    probes: u64,
    /// Since when it is healthy without a break.
    since: Option<Duration>,
    could_not_run: bool,
}

impl Health {
    /// Of a run that started at `now`.
    #[must_use]
    pub fn new(now: Duration, spec: Option<&HealthSpec>) -> Self {
        Self {
            word: if spec.is_some() { HealthWord::Starting } else { HealthWord::None },
            failures: 0,
            started: now,
            next: spec.map_or(now, |spec| now + first(spec)),
            pending: None,
            probes: 0,
            since: spec.is_none().then_some(now),
            could_not_run: false,
        }
    }

    /// The specification has changed under the run.
    pub fn adapt(&mut self, now: Duration, spec: Option<&HealthSpec>) {
        match spec {
            None => {
                self.word = HealthWord::None;
                self.pending = None;
                self.since.get_or_insert(now);
            }
            Some(_) if self.word == HealthWord::None => {
                // It ran well without; the new test has to say so itself. Until it does, the replica is not in question.
                self.word = HealthWord::Healthy;
                self.next = now;
            }
            Some(spec) => self.next = self.next.min(now + spec.interval),
        }
    }

    /// The word for it.
    #[must_use]
    pub fn word(&self) -> HealthWord {
        self.word
    }

    /// It can be given work.
    #[must_use]
    pub fn is_fine(&self) -> bool {
        matches!(self.word, HealthWord::None | HealthWord::Healthy)
    }

    /// How long it has been fine by `now`, without a break.
    #[must_use]
    pub fn fine_for(&self, now: Duration) -> Duration {
        self.since.map_or(Duration::ZERO, |since| now.saturating_sub(since))
    }

    /// When [`Health::due`] has something to do.
    #[must_use]
    pub fn next_due(&self) -> Option<Duration> {
        match self.pending {
            Some(pending) => Some(pending.until),
            None => (self.word != HealthWord::None).then_some(self.next),
        }
    }

    /// Begins a probe when one is due: its number.
    pub fn due(&mut self, now: Duration, spec: &HealthSpec) -> Option<u64> {
        if self.pending.is_some() || now < self.next || self.word == HealthWord::None {
            return None;
        }
        self.probes += 1;
        self.pending = Some(Pending { number: self.probes, until: now + spec.timeout + OVERDUE });
        Some(self.probes)
    }

    /// Takes an answer; one to another probe than the present one is stale. `is_throttled`: the processor quota stops the
    /// service for a good part of the time.
    pub fn answer(&mut self, now: Duration, probe: u64, outcome: Probe, is_throttled: bool, spec: &HealthSpec) -> Turn {
        if self.pending.is_none_or(|pending| pending.number != probe) {
            return Turn::None;
        }
        self.judge(now, outcome, is_throttled, spec)
    }

    /// Takes it as failed when no answer has come.
    pub fn overdue(&mut self, now: Duration, is_throttled: bool, spec: &HealthSpec) -> Turn {
        if self.pending.is_none_or(|pending| now < pending.until) {
            return Turn::None;
        }
        self.judge(now, Probe::TimedOut, is_throttled, spec)
    }

    /// The supervisor itself was away for so long.
    pub fn shift(&mut self, by: Duration) {
        if let Some(pending) = &mut self.pending {
            pending.until += by;
        }
    }

    fn judge(&mut self, now: Duration, outcome: Probe, is_throttled: bool, spec: &HealthSpec) -> Turn {
        self.pending = None;
        let in_start_period = self.word == HealthWord::Starting && now.saturating_sub(self.started) < spec.start_period;
        self.next = now + if in_start_period { spec.start_interval.min(spec.interval) } else { spec.interval };
        let why = match outcome {
            Probe::Healthy => {
                self.failures = 0;
                self.could_not_run = false;
                let turned = self.word != HealthWord::Healthy;
                self.word = HealthWord::Healthy;
                self.since.get_or_insert(now);
                self.next = now + spec.interval;
                return if turned { Turn::Healthy } else { Turn::None };
            }
            Probe::NotRun(why) => {
                let again = std::mem::replace(&mut self.could_not_run, true);
                return if again { Turn::None } else { Turn::NotRun(why) };
            }
            Probe::TimedOut if is_throttled => return Turn::None,
            Probe::TimedOut => "it took too long".to_owned(),
            Probe::Failed(why) => why,
        };
        self.could_not_run = false;
        if in_start_period {
            return Turn::None;
        }
        self.failures = self.failures.saturating_add(1);
        if self.failures < spec.retries.max(1) || self.word == HealthWord::Unhealthy {
            return Turn::None;
        }
        self.word = HealthWord::Unhealthy;
        self.since = None;
        Turn::Unhealthy(self.failures, why)
    }
}

/// From the start to the first probe. Docker waits for a whole (start) interval; a replica that is ready at once should
/// not have to wait half a minute for its first request, so here the first probe comes after a second at most.
fn first(spec: &HealthSpec) -> Duration {
    spec.start_interval.min(spec.interval).min(Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    fn spec(start_period: u64, retries: u32) -> HealthSpec {
        HealthSpec {
            test: vec!["true".to_owned()],
            interval: S(30),
            timeout: S(10),
            retries,
            start_period: S(start_period),
            start_interval: S(5),
        }
    }

    fn failed() -> Probe {
        Probe::Failed("no".to_owned())
    }

    /// Waits for the next probe and answers it at once.
    fn probe(health: &mut Health, spec: &HealthSpec, outcome: Probe, is_throttled: bool) -> (Duration, Turn) {
        let at = health.next_due().unwrap();
        let number = health.due(at, spec).unwrap();
        (at, health.answer(at, number, outcome, is_throttled, spec))
    }

    #[test]
    fn retries_in_a_row_make_it_unhealthy() {
        let spec = spec(0, 3);
        let mut health = Health::new(S(0), Some(&spec));
        assert_eq!(probe(&mut health, &spec, Probe::Healthy, false), (S(1), Turn::Healthy));
        assert_eq!(probe(&mut health, &spec, failed(), false), (S(31), Turn::None));
        assert_eq!(probe(&mut health, &spec, failed(), false).1, Turn::None);
        assert!(health.is_fine());
        assert_eq!(health.fine_for(S(61)), S(60));
        assert_eq!(probe(&mut health, &spec, failed(), false), (S(91), Turn::Unhealthy(3, "no".to_owned())));
        assert_eq!(health.fine_for(S(100)), S(0));
        assert_eq!(probe(&mut health, &spec, failed(), false).1, Turn::None, "told once");
        assert_eq!(probe(&mut health, &spec, Probe::Healthy, false).1, Turn::Healthy, "and one success is enough");
    }

    #[test]
    fn failures_of_the_start_period_do_not_count() {
        let spec = spec(20, 1);
        let mut health = Health::new(S(0), Some(&spec));
        for at in [1, 6, 11, 16] {
            assert_eq!(probe(&mut health, &spec, failed(), false), (S(at), Turn::None));
        }
        assert_eq!(probe(&mut health, &spec, failed(), false), (S(21), Turn::Unhealthy(1, "no".to_owned())));
        // Once it was healthy the start period is over.
        let mut health = Health::new(S(0), Some(&spec));
        assert_eq!(probe(&mut health, &spec, Probe::Healthy, false), (S(1), Turn::Healthy));
        health.next = S(2);
        assert!(matches!(probe(&mut health, &spec, failed(), false).1, Turn::Unhealthy(1, _)));
    }

    #[test]
    fn throttling_is_no_hang() {
        let spec = spec(0, 1);
        let mut health = Health::new(S(0), Some(&spec));
        probe(&mut health, &spec, Probe::Healthy, false);
        for _ in 0..10 {
            assert_eq!(probe(&mut health, &spec, Probe::TimedOut, true).1, Turn::None);
        }
        assert!(health.is_fine());
        assert!(matches!(probe(&mut health, &spec, failed(), true).1, Turn::Unhealthy(..)), "an answer is an answer");
    }

    #[test]
    fn a_test_that_does_not_run_says_nothing() {
        let spec = spec(0, 1);
        let mut health = Health::new(S(0), Some(&spec));
        let not_run = || Probe::NotRun("no such file".to_owned());
        assert_eq!(probe(&mut health, &spec, not_run(), false).1, Turn::NotRun("no such file".to_owned()));
        assert_eq!(probe(&mut health, &spec, not_run(), false).1, Turn::None);
        assert_eq!(health.word(), HealthWord::Starting);
    }

    #[test]
    fn no_answer_is_one_and_a_late_one_is_none() {
        let spec = spec(0, 1);
        let mut health = Health::new(S(0), Some(&spec));
        let number = health.due(S(1), &spec).unwrap();
        assert_eq!(health.due(S(5), &spec), None, "one at a time");
        assert_eq!(health.next_due(), Some(S(16)));
        health.shift(S(100));
        assert_eq!(health.overdue(S(16), false, &spec), Turn::None, "we were away");
        assert!(matches!(health.overdue(S(116), false, &spec), Turn::Unhealthy(1, _)));
        assert_eq!(health.answer(S(117), number, Probe::Healthy, false, &spec), Turn::None);
    }

    #[test]
    fn without_a_check_it_is_fine() {
        let health = Health::new(S(3), None);
        assert!(health.is_fine() && health.next_due().is_none());
        assert_eq!(health.fine_for(S(5)), S(2));
    }

    proptest! {
        #[test]
        fn unhealthy_only_after_so_many_failures_in_a_row(
            retries in 1u32..6,
            start_period in 0u64..60,
            outcomes in prop::collection::vec((0u8..4, any::<bool>()), 1..80),
        ) {
            let spec = spec(start_period, retries);
            let mut health = Health::new(S(0), Some(&spec));
            let mut row = 0;
            for (outcome, throttled) in outcomes {
                let outcome = match outcome {
                    0 => Probe::Healthy,
                    1 => failed(),
                    2 => Probe::TimedOut,
                    _ => Probe::NotRun(String::new()),
                };
                match outcome {
                    Probe::Healthy => row = 0,
                    Probe::Failed(_) => row += 1,
                    Probe::TimedOut if !throttled => row += 1,
                    _ => {}
                }
                let is_healthy = outcome == Probe::Healthy;
                let (_, turn) = probe(&mut health, &spec, outcome, throttled);
                prop_assert!(!matches!(turn, Turn::Unhealthy(..)) || row >= retries);
                prop_assert!(!is_healthy || health.is_fine());
                prop_assert_eq!(health.is_fine(), health.since.is_some());
            }
        }
    }
}
