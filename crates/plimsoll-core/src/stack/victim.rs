//! Who has to go when the budget is about to be met.
//!
//! As the kubelet orders them (usage over request first), but by priority before all:
//! 1. best-effort ones, the largest excess of usage over reservation first;
//! 2. when none of these is left and [`LAST_RESORT_PERCENT`] are used, normal ones that hold more than they were promised,
//!    in the same order;
//! 3. critical ones never.
//!
//! Nobody is chosen whose service would fall below its `min_available`. And after a choice nobody until the first one's
//! bytes are accounted for: it has ended, and a look after that said what is held now. Killing is not freeing (earlyoom
//! #121, #309).

use std::time::Duration;

use plimsoll_model::stack::Priority;

use super::name::Instance;

/// From here on normal ones are chosen too, and nobody gets a grace any more.
pub const LAST_RESORT_PERCENT: u64 = 98;

/// One who may be chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Who.
    pub instance: Instance,
    /// Of which priority.
    pub priority: Priority,
    /// What it holds, bytes.
    pub usage: u64,
    /// What it is promised, bytes.
    pub reservation: u64,
    /// Its service can do without it: it is not available, or enough others are.
    pub is_spare: bool,
}

/// Picks who goes; `None` when nobody may. `is_last_resort`: [`LAST_RESORT_PERCENT`] are used.
#[must_use]
pub fn choose(candidates: &[Candidate], is_last_resort: bool) -> Option<&Candidate> {
    candidates
        .iter()
        .filter(|one| one.is_spare)
        .filter(|one| match one.priority {
            Priority::BestEffort => one.usage > 0,
            Priority::Normal => is_last_resort && one.usage > one.reservation,
            Priority::Critical => false,
        })
        // Equal ones: the younger one goes, by generation, for it has done less work.
        .max_by_key(|one| (one.priority, one.usage.saturating_sub(one.reservation), one.usage, &one.instance))
}

/// The receipt for one victim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owed {
    /// Who was chosen.
    pub instance: Instance,
    /// When.
    pub since: Duration,
    /// It has ended: what came back, bytes, and when.
    pub freed: Option<(Duration, u64)>,
}

impl Owed {
    /// Of a choice at `now`.
    #[must_use]
    pub fn new(instance: Instance, now: Duration) -> Self {
        Self { instance, since: now, freed: None }
    }

    /// A look said at `now` what is held: the bytes that came back, when it accounts for them.
    #[must_use]
    pub fn account(&self, now: Duration) -> Option<u64> {
        self.freed.filter(|&(ended, _)| now > ended).map(|(_, bytes)| bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::name::Name;
    use proptest::prelude::*;

    fn candidate(name: &str, priority: Priority, usage: u64, reservation: u64) -> Candidate {
        let instance = Instance { service: Name::from(name), replica: 1, generation: 1 };
        Candidate { instance, priority, usage, reservation, is_spare: true }
    }

    fn chosen(candidates: &[Candidate], last: bool) -> Option<&str> {
        choose(candidates, last).map(|one| &*one.instance.service)
    }

    #[test]
    fn best_effort_by_what_it_holds_over_its_reservation() {
        let all = [
            candidate("big", Priority::BestEffort, 500, 450),
            candidate("over", Priority::BestEffort, 200, 100),
            candidate("normal", Priority::Normal, 900, 0),
            candidate("critical", Priority::Critical, 5000, 0),
        ];
        assert_eq!(chosen(&all, false), Some("over"));
        assert_eq!(chosen(&all, true), Some("over"), "still before the normal one");
        assert_eq!(chosen(&all[2..], false), None);
        assert_eq!(chosen(&all[2..], true), Some("normal"));
        assert_eq!(chosen(&all[3..], true), None);
        assert_eq!(
            chosen(&[candidate("good", Priority::Normal, 90, 100)], true),
            None,
            "it holds what it was promised"
        );
    }

    #[test]
    fn bytes_are_accounted_for_by_a_look_after_the_end() {
        let mut owed = Owed::new(candidate("a", Priority::BestEffort, 1, 0).instance, Duration::from_secs(1));
        assert_eq!(owed.account(Duration::from_secs(9)), None);
        owed.freed = Some((Duration::from_secs(2), 7));
        assert_eq!(owed.account(Duration::from_secs(2)), None, "a look of the same instant may be from before");
        assert_eq!(owed.account(Duration::from_secs(3)), Some(7));
    }

    proptest! {
        #[test]
        fn nobody_is_chosen_before_one_of_lower_priority(
            all in prop::collection::vec((0usize..3, 0u64..100, 0u64..100, any::<bool>()), 0..12),
            last in any::<bool>(),
        ) {
            let priorities = [Priority::Critical, Priority::Normal, Priority::BestEffort];
            let all: Vec<Candidate> = all.iter().enumerate().map(|(n, &(p, usage, reservation, is_spare))| Candidate {
                is_spare,
                ..candidate(&format!("s{n}"), priorities[p], usage, reservation)
            }).collect();
            match choose(&all, last) {
                None => prop_assert!(!all.iter().any(|c| c.is_spare && c.usage > 0 && c.priority == Priority::BestEffort)),
                Some(one) => {
                    prop_assert!(one.is_spare && one.priority != Priority::Critical);
                    let excess = |c: &Candidate| c.usage.saturating_sub(c.reservation);
                    for other in all.iter().filter(|c| c.is_spare && c.usage > 0) {
                        prop_assert!(other.priority <= one.priority);
                        prop_assert!(other.priority < one.priority || excess(other) <= excess(one));
                    }
                }
            }
        }
    }
}
