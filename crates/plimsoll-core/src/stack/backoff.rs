//! Whether and when one replica is started again.
//!
//! As Docker does (`restartmanager`: 100 ms, doubled each time, up to a minute, begun again after ten good seconds), and
//! where Docker goes on for ever:
//!
//! | policy | ends with code 0 | ends otherwise |
//! |---|---|---|
//! | `no` | completed | failed |
//! | `on-failure[:n]` | completed | again, `n` times in a row; then failed |
//! | `always`, `unless-stopped` | again | again; after ten times in a row one try every 60 s (the circuit is open) |
//!
//! The first restart after a good run is immediate; a good run also begins a new row.

use std::time::Duration;

use plimsoll_model::stack::RestartPolicy;

/// The delay that is doubled.
const SHORTEST: Duration = Duration::from_millis(100);

/// Between two tries at most, and with an open circuit always.
const LONGEST: Duration = Duration::from_secs(60);

/// A run of so long is a good one.
pub const GOOD_RUN: Duration = Duration::from_secs(10);

/// So many restarts in a row open the circuit.
pub const ROW: u32 = 10;

/// What follows an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It has done its work.
    Completed,
    /// It is given up.
    Failed,
    /// It is started again.
    Again {
        /// Not before so long.
        delay: Duration,
        /// The circuit opened with this.
        opens: bool,
    },
}

/// The restarts of one replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Backoff {
    /// Restarts in the present row.
    row: u32,
    /// Delays in the present row that were not 0.
    doublings: u32,
}

impl Backoff {
    /// Restarts in the present row: the number of the attempt that runs, or comes.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.row
    }

    /// The most that a policy allows in a row.
    #[must_use]
    pub fn most(policy: RestartPolicy) -> Option<u32> {
        match policy {
            RestartPolicy::No => Some(0),
            RestartPolicy::OnFailure(most) => most,
            RestartPolicy::Always | RestartPolicy::UnlessStopped => None,
        }
    }

    /// Whether it is one try a minute by now.
    #[must_use]
    pub fn is_open(&self, policy: RestartPolicy) -> bool {
        matches!(policy, RestartPolicy::Always | RestartPolicy::UnlessStopped) && self.row > ROW
    }

    /// Somebody started it by hand, or changed it: everything begins anew.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// The present run is a good one: what ends it begins a new row.
    pub fn proved(&mut self) {
        self.row = 0;
    }

    /// Judges an end. `good`: the run was a good one. `success`: it ended with code 0, by itself.
    pub fn ended(&mut self, policy: RestartPolicy, good: bool, success: bool) -> Next {
        if good {
            self.reset();
        }
        match policy {
            RestartPolicy::No | RestartPolicy::OnFailure(_) if success => return Next::Completed,
            RestartPolicy::No => return Next::Failed,
            RestartPolicy::OnFailure(Some(most)) if self.row >= most => return Next::Failed,
            _ => {}
        }
        self.row = self.row.saturating_add(1);
        if good {
            return Next::Again { delay: Duration::ZERO, opens: false };
        }
        let delay = SHORTEST.saturating_mul(1 << self.doublings.min(16)).min(LONGEST);
        self.doublings = self.doublings.saturating_add(1);
        let open = self.is_open(policy);
        Next::Again { delay: if open { LONGEST } else { delay }, opens: open && self.row == ROW + 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn delay(next: Next) -> u128 {
        match next {
            Next::Again { delay, .. } => delay.as_millis(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn doubles_from_100_ms_to_a_minute() {
        let mut backoff = Backoff::default();
        let delays: Vec<u128> =
            (0..13).map(|_| delay(backoff.ended(RestartPolicy::OnFailure(None), false, false))).collect();
        assert_eq!(
            delays,
            [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 51_200, 60_000, 60_000, 60_000],
            "as dockerd has it"
        );
    }

    #[test]
    fn the_first_one_after_a_good_run_is_immediate() {
        let mut backoff = Backoff::default();
        for _ in 0..5 {
            backoff.ended(RestartPolicy::Always, false, false);
        }
        assert_eq!(delay(backoff.ended(RestartPolicy::Always, true, false)), 0);
        assert_eq!(backoff.attempt(), 1);
        assert_eq!(delay(backoff.ended(RestartPolicy::Always, false, false)), 100);
        assert_eq!(backoff.attempt(), 2);
    }

    #[test]
    fn on_failure_ends_after_so_many_in_a_row() {
        let mut backoff = Backoff::default();
        let policy = RestartPolicy::OnFailure(Some(3));
        for attempt in 1..=3 {
            assert!(matches!(backoff.ended(policy, false, false), Next::Again { .. }));
            assert_eq!(backoff.attempt(), attempt);
        }
        assert_eq!(backoff.ended(policy, false, false), Next::Failed);
        assert_eq!(backoff.ended(policy, true, false), Next::Again { delay: Duration::ZERO, opens: false });
        assert_eq!(backoff.ended(policy, false, true), Next::Completed);
        assert_eq!(Backoff::default().ended(RestartPolicy::OnFailure(Some(0)), true, false), Next::Failed);
    }

    #[test]
    fn a_circuit_opens_after_ten_in_a_row() {
        let mut backoff = Backoff::default();
        for _ in 0..ROW {
            let next = backoff.ended(RestartPolicy::Always, false, true);
            assert!(matches!(next, Next::Again { opens: false, .. }), "{next:?}");
        }
        assert!(!backoff.is_open(RestartPolicy::Always));
        assert_eq!(
            backoff.ended(RestartPolicy::Always, false, false),
            Next::Again { delay: LONGEST, opens: true },
            "the eleventh waits a minute"
        );
        assert_eq!(
            backoff.ended(RestartPolicy::Always, false, false),
            Next::Again { delay: LONGEST, opens: false },
            "and it is told once"
        );
        assert!(backoff.is_open(RestartPolicy::Always));
        backoff.proved();
        assert!(!backoff.is_open(RestartPolicy::Always));
    }

    #[test]
    fn no_is_no() {
        assert_eq!(Backoff::default().ended(RestartPolicy::No, true, false), Next::Failed);
        assert_eq!(Backoff::default().ended(RestartPolicy::No, true, true), Next::Completed);
    }

    proptest! {
        #[test]
        fn never_more_in_a_row_than_allowed(most in 0u32..8, ends in prop::collection::vec(any::<(bool, bool)>(), 0..60)) {
            let mut backoff = Backoff::default();
            let mut row = 0;
            for (good, success) in ends {
                if good {
                    row = 0;
                }
                if let Next::Again { delay, opens } = backoff.ended(RestartPolicy::OnFailure(Some(most)), good, success) {
                    row += 1;
                    prop_assert!(!opens && delay <= LONGEST && delay.is_zero() == good);
                } else if !success {
                    prop_assert_eq!(row, most);
                }
                prop_assert!(row <= most && backoff.attempt() <= most);
            }
        }

        #[test]
        fn delays_never_shrink_within_a_row(ends in 1usize..100) {
            let mut backoff = Backoff::default();
            let mut last = 0;
            for _ in 0..ends {
                let next = delay(backoff.ended(RestartPolicy::Always, false, false));
                prop_assert!(next >= last && next <= 60_000);
                last = next;
            }
        }
    }
}
