//! The ladder: how close a tree or the whole budget is to its line, and what that is called.
//!
//! | stage | from | what happens (elsewhere) |
//! |---|---|---|
//! | normal | 0 % | – |
//! | alert | 80 % | an event, a metric |
//! | degrade | 90 % | the workload is asked, memory is reclaimed |
//! | shed | 95 % | admission closes, best-effort ones are evicted |
//!
//! Up at once; down only when usage was 5 points below the stage's mark for 10 s, so that what swings around a mark is
//! told once. Met lines are no stage: what met its line is gone, and its end says so.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How close to the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Far.
    #[default]
    Normal,
    /// 80 %.
    Alert,
    /// 90 %.
    Degrade,
    /// 95 %.
    Shed,
}

impl Stage {
    /// Lowest first.
    pub const ALL: [Self; 4] = [Self::Normal, Self::Alert, Self::Degrade, Self::Shed];

    /// Where it begins, per cent of the line.
    #[must_use]
    pub fn mark_percent(self) -> u64 {
        match self {
            Self::Normal => 0,
            Self::Alert => 80,
            Self::Degrade => 90,
            Self::Shed => 95,
        }
    }

    /// The part of its usual work that a workload should take on: halved at degrade, and halved again at shed. Never 0: a
    /// batch of nothing is no batch, and refusing work is what the stage's name says.
    #[must_use]
    pub fn scale(self) -> f64 {
        match self {
            Self::Normal | Self::Alert => 1.0,
            Self::Degrade => 0.5,
            Self::Shed => 0.25,
        }
    }

    /// The word used in JSON, files and tables.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Alert => "alert",
            Self::Degrade => "degrade",
            Self::Shed => "shed",
        }
    }

    /// The stage of so many bytes below a line of so many.
    #[must_use]
    pub fn of(used: u64, line: u64) -> Self {
        let reached = |stage: &Self| met(used, line, stage.mark_percent());
        Self::ALL.into_iter().rev().find(reached).unwrap_or_default()
    }
}

/// Whether `used` is at least so many hundredths of `line`.
fn met(used: u64, line: u64, percent: u64) -> bool {
    u128::from(used) * 100 >= u128::from(line) * u128::from(percent)
}

/// Below its mark by so many points a stage is left.
const MARGIN_POINTS: u64 = 5;

/// So long it has to be below.
const LASTING: Duration = Duration::from_secs(10);

/// One line's ladder.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ladder {
    stage: Stage,
    /// The stage to go down to, as far as every look since then allows.
    below: Option<(Duration, Stage)>,
}

impl Ladder {
    /// The stage as of the last look.
    #[must_use]
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Judges `used` bytes below a line of `line` bytes; `floor` is a stage that something else demands. Answers the stage
    /// that was left, when it changed.
    pub fn look(&mut self, now: Duration, used: u64, line: u64, floor: Stage) -> Option<Stage> {
        let before = self.stage;
        let reached = Stage::of(used, line).max(floor);
        if reached >= before {
            self.below = None;
            self.stage = reached;
            return (reached > before).then_some(before);
        }
        // The highest stage whose mark is not left by the margin: it may be the one it is at.
        let kept =
            |stage: &Stage| *stage <= floor || met(used, line, stage.mark_percent().saturating_sub(MARGIN_POINTS));
        let fits = Stage::ALL.into_iter().rev().filter(|stage| *stage <= before).find(kept).unwrap_or_default();
        if fits == before {
            self.below = None;
            return None;
        }
        let (since, highest) = self.below.map_or((now, fits), |(since, highest)| (since, highest.max(fits)));
        self.below = Some((since, highest));
        if now.saturating_sub(since) < LASTING {
            return None;
        }
        self.below = None;
        self.stage = highest;
        Some(before)
    }

    /// When a look could take it down, if it goes on like this.
    #[must_use]
    pub fn next_due(&self) -> Option<Duration> {
        self.below.map(|(since, _)| since + LASTING)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn up_at_once_and_down_after_a_while() {
        let mut ladder = Ladder::default();
        assert_eq!(ladder.look(S(0), 79, 100, Stage::Normal), None);
        assert_eq!(ladder.look(S(1), 80, 100, Stage::Normal), Some(Stage::Normal));
        assert_eq!(ladder.look(S(2), 96, 100, Stage::Normal), Some(Stage::Alert));
        assert_eq!(ladder.stage(), Stage::Shed);
        assert_eq!(ladder.look(S(3), 91, 100, Stage::Normal), None, "within the margin");
        assert_eq!(ladder.look(S(20), 91, 100, Stage::Normal), None, "and stays there");
        assert_eq!(ladder.look(S(21), 10, 100, Stage::Normal), None);
        assert_eq!(ladder.next_due(), Some(S(31)));
        assert_eq!(ladder.look(S(25), 86, 100, Stage::Normal), None, "degrade's margin");
        assert_eq!(ladder.look(S(31), 10, 100, Stage::Normal), Some(Stage::Shed));
        assert_eq!(ladder.stage(), Stage::Degrade, "the highest of the ten seconds");
        assert_eq!(ladder.look(S(32), 10, 100, Stage::Normal), None);
        assert_eq!(ladder.look(S(42), 10, 100, Stage::Normal), Some(Stage::Degrade));
        assert_eq!(ladder.stage(), Stage::Normal);
    }

    #[test]
    fn a_floor_holds_it_up() {
        let mut ladder = Ladder::default();
        assert_eq!(ladder.look(S(0), 0, 100, Stage::Degrade), Some(Stage::Normal));
        assert_eq!(ladder.look(S(60), 0, 100, Stage::Degrade), None);
        assert_eq!(ladder.look(S(61), 0, 100, Stage::Normal), None);
        assert_eq!(ladder.look(S(71), 0, 100, Stage::Normal), Some(Stage::Degrade));
    }

    proptest! {
        #[test]
        fn never_below_what_is_reached(looks in prop::collection::vec((0u64..20, 0u64..=120), 1..100)) {
            let mut ladder = Ladder::default();
            let (mut now, mut last_change) = (0, None);
            for (pause, used) in looks {
                now += pause;
                let before = ladder.stage();
                let left = ladder.look(S(now), used, 100, Stage::Normal);
                prop_assert!(ladder.stage() >= Stage::of(used, 100));
                prop_assert_eq!(left.is_some(), ladder.stage() != before);
                if ladder.stage() < before {
                    // What fell did not change for ten seconds before.
                    prop_assert!(last_change.is_none_or(|at| now - at >= 10));
                }
                if left.is_some() {
                    last_change = Some(now);
                }
            }
        }

        #[test]
        fn scale_falls_with_the_stage(a in 0usize..4, b in 0usize..4) {
            let (a, b) = (Stage::ALL[a], Stage::ALL[b]);
            if a < b {
                prop_assert!(a.scale() >= b.scale() && b.scale() > 0.0 && a.mark_percent() < b.mark_percent());
            }
        }
    }
}
