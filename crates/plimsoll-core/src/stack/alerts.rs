//! Alerts: told when a condition has held for its time, and once when it no longer holds.

use std::time::Duration;

use plimsoll_model::stack::{AlertSpec, Threshold};

use super::event::Event;

/// What a gauge says, and of what it is a part.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading {
    /// Bytes, or a count.
    pub value: u64,
    /// What 100 % is, in the same unit.
    pub whole: u64,
}

/// One alert.
#[derive(Debug, Clone, PartialEq)]
pub struct Alert {
    spec: AlertSpec,
    since: Option<Duration>,
    is_firing: bool,
}

impl Alert {
    /// One that does not fire yet.
    #[must_use]
    pub fn new(spec: AlertSpec) -> Self {
        Self { spec, since: None, is_firing: false }
    }

    /// As it was written.
    #[must_use]
    pub fn spec(&self) -> &AlertSpec {
        &self.spec
    }

    /// Whether it fires.
    #[must_use]
    pub fn is_firing(&self) -> bool {
        self.is_firing
    }

    /// When the condition will have held for its time, if it goes on.
    #[must_use]
    pub fn next_due(&self) -> Option<Duration> {
        self.since.filter(|_| !self.is_firing).map(|since| since + self.spec.lasting)
    }

    /// Judges a reading; of what is not there no condition holds. Answers the event of an edge.
    pub fn look(&mut self, now: Duration, reading: Option<Reading>) -> Option<Event> {
        let Reading { value, whole } = reading.unwrap_or(Reading { value: 0, whole: 0 });
        let (value, threshold) = match self.spec.threshold {
            Threshold::Number(number) => (value as f64, number as f64),
            Threshold::Percent(percent) => (value as f64 * 100.0 / whole.max(1) as f64, percent),
        };
        let holds = reading.is_some() && if self.spec.above { value > threshold } else { value < threshold };
        if !holds {
            self.since = None;
            let was_firing = std::mem::take(&mut self.is_firing);
            return was_firing.then(|| Event::AlertResolved { alert: self.spec.when.clone(), value, threshold });
        }
        let since = *self.since.get_or_insert(now);
        if self.is_firing || now.saturating_sub(since) < self.spec.lasting {
            return None;
        }
        self.is_firing = true;
        Some(Event::AlertFiring { alert: self.spec.when.clone(), value, threshold })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_model::stack::Gauge;
    use proptest::prelude::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    fn alert(above: bool, threshold: Threshold, lasting: u64) -> Alert {
        let when = "memory > 80%".to_owned();
        Alert::new(AlertSpec { when, gauge: Gauge::BudgetMemory, above, threshold, lasting: S(lasting), deliver: None })
    }

    fn read(value: u64) -> Option<Reading> {
        Some(Reading { value, whole: 200 })
    }

    #[test]
    fn told_at_the_edges() {
        let mut alert = alert(true, Threshold::Percent(80.0), 10);
        assert_eq!(alert.look(S(0), read(160)), None, "80 % are not over 80 %");
        assert_eq!(alert.look(S(1), read(161)), None);
        assert_eq!(alert.next_due(), Some(S(11)));
        assert_eq!(alert.look(S(5), read(10)), None, "a dip begins anew");
        assert_eq!(alert.look(S(6), read(170)), None);
        assert!(matches!(alert.look(S(16), read(170)), Some(Event::AlertFiring { value: 85.0, threshold: 80.0, .. })));
        assert_eq!(alert.look(S(17), read(180)), None, "once");
        assert!(alert.is_firing() && alert.next_due().is_none());
        assert!(matches!(alert.look(S(18), read(100)), Some(Event::AlertResolved { .. })));
        alert.look(S(18), read(170));
        assert_eq!(alert.look(S(18), None), None, "not there: it begins anew");
        assert_eq!(alert.next_due(), None);
        assert_eq!(alert.look(S(19), read(100)), None);
    }

    #[test]
    fn numbers_and_below() {
        assert!(alert(true, Threshold::Number(3), 0).look(S(0), read(4)).is_some());
        assert!(alert(false, Threshold::Number(3), 0).look(S(0), read(2)).is_some());
        assert!(alert(true, Threshold::Percent(3.0), 0).look(S(0), Some(Reading { value: 0, whole: 0 })).is_none());
    }

    proptest! {
        #[test]
        fn firing_and_resolved_take_turns(readings in prop::collection::vec((0u64..20, prop::option::of(0u64..200)), 0..100)) {
            let mut alert = alert(true, Threshold::Percent(50.0), 5);
            let (mut now, mut firing) = (0, false);
            for (pause, value) in readings {
                now += pause;
                match alert.look(S(now), value.and_then(read)) {
                    Some(Event::AlertFiring { .. }) => prop_assert!(!std::mem::replace(&mut firing, true)),
                    Some(Event::AlertResolved { .. }) => prop_assert!(std::mem::replace(&mut firing, false)),
                    Some(other) => prop_assert!(false, "{:?}", other),
                    None => {}
                }
                prop_assert_eq!(firing, alert.is_firing());
            }
        }
    }
}
