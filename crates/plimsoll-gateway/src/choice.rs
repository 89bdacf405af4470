//! Which replica gets the next request: a pure choice among what is known at this instant.

/// What the choice sees of a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// It takes requests now.
    pub open: bool,
    /// It had this very request already, and died or was not there.
    pub tried: bool,
    /// It is about to meet its memory line: only when there is no other.
    pub spare: bool,
    /// Requests that it has and has not answered to the end.
    pub outstanding: u32,
}

/// The index of the open candidate with the fewest outstanding requests. One that was not tried comes before one that
/// was, and one that is no spare before one that is; among equals the first from `turn` on, around the end, so that a
/// `turn` that goes up goes round.
pub fn choose(candidates: impl ExactSizeIterator<Item = Candidate>, turn: usize) -> Option<usize> {
    let count = candidates.len();
    let from = turn.checked_rem(count)?;
    candidates
        .enumerate()
        .filter(|(_, candidate)| candidate.open)
        .min_by_key(|(at, candidate)| {
            (candidate.tried, candidate.spare, candidate.outstanding, (at + count - from) % count)
        })
        .map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidate() -> impl Strategy<Value = Candidate> {
        (any::<bool>(), any::<bool>(), any::<bool>(), 0u32..4).prop_map(|(open, tried, spare, outstanding)| Candidate {
            open,
            tried,
            spare,
            outstanding,
        })
    }

    proptest! {
        #[test]
        fn none_that_is_open_is_better(all in prop::collection::vec(candidate(), 0..12), turn in any::<usize>()) {
            let rank = |one: &Candidate| (one.tried, one.spare, one.outstanding);
            match choose(all.iter().copied(), turn) {
                None => prop_assert!(all.iter().all(|one| !one.open)),
                Some(at) => {
                    prop_assert!(all[at].open);
                    prop_assert!(all.iter().filter(|one| one.open).all(|one| rank(one) >= rank(&all[at])));
                }
            }
        }

        #[test]
        fn equals_take_turns(count in 1usize..12, begin in 0usize..1000) {
            let all = vec![Candidate { open: true, tried: false, spare: false, outstanding: 7 }; count];
            let mut seen: Vec<usize> =
                (begin..begin + count).filter_map(|turn| choose(all.iter().copied(), turn)).collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..count).collect::<Vec<_>>());
        }

        /// Requests that never end are spread evenly: whatever ends in between, the counts differ by one at most as
        /// long as all are open from the start.
        #[test]
        fn streams_are_spread(count in 1usize..9, requests in 0usize..200) {
            let mut all = vec![Candidate { open: true, tried: false, spare: false, outstanding: 0 }; count];
            for turn in 0..requests {
                let at = choose(all.iter().copied(), turn).unwrap();
                all[at].outstanding += 1;
            }
            let counts = all.iter().map(|one| one.outstanding);
            prop_assert!(counts.clone().max().unwrap() - counts.min().unwrap() <= 1);
        }
    }
}
