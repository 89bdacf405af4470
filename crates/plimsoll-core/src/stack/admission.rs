//! Who may start: nothing that the budget cannot hold.
//!
//! Every tree that runs, and every one that is about to run again, has a *claim* on the budget; the sum of all claims
//! never exceeds it. The price of a start is what becomes its claim:
//!
//! | what is known | price |
//! |---|---|
//! | runs of its kind | the most that one of the last eight held, and 15 % (krr's margin) |
//! | only the file | the reservation |
//! | not even that | an equal share of what reservations leave, at most half of its line, at most 64 MiB without one |
//!
//! never more than its line or the budget. A restart in place keeps the claim it had, for its room was never given to
//! anybody. So does it when what it held turned out larger than the claim: somebody who outgrew his reservation and was
//! killed for it comes back, if the room that he was promised is there.
//!
//! Who runs counts with what it holds or its claim, whichever is more. Who waited for [`PATIENCE`] starts with what room
//! there is, from its floor (the price without history) upwards: a learned peak is a wish, the reservation is a right. The
//! order is by priority, then by who waited longest; whoever does not fit holds back lower priorities for [`HOLD`], then
//! smaller ones may pass.
//!
//! Starts are limited apart from running, for a start costs more than an idle process.

use std::collections::VecDeque;
use std::time::Duration;

use plimsoll_model::stack::{Priority, ServiceSpec};

/// So long one waits for room for its learned peak.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// So long one that does not fit holds back lower priorities.
pub const HOLD: Duration = Duration::from_secs(60);

/// Joins that may wait at a time; further ones are refused.
pub const MOST_WAITING: usize = 64;

/// Runs of a kind of which the peak is known.
const KNOWN: usize = 8;

/// What nobody knows anything about costs at most so much.
const UNKNOWN: u64 = 64 << 20;

/// No line is below this: Docker's least, for less cannot even start a program.
pub const LEAST_LINE: u64 = 6 << 20;

/// Peaks of the last runs of a kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Learned {
    peaks: VecDeque<u64>,
}

impl Learned {
    /// A run has ended, or is remembered: the most that it held, bytes.
    pub fn push(&mut self, peak: u64) {
        if peak == 0 {
            return;
        }
        if self.peaks.len() == KNOWN {
            self.peaks.pop_front();
        }
        self.peaks.push_back(peak);
    }

    /// The price from history and from the most that a run holds which goes on, bytes.
    #[must_use]
    pub fn price(&self, present: Option<u64>) -> Option<u64> {
        let peak = self.peaks.iter().copied().chain(present.filter(|&peak| peak > 0)).max()?;
        Some(peak.saturating_add(peak / 100 * 15))
    }
}

/// What the file says about room, worked out once for all services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Shares {
    /// The budget, bytes.
    pub budget: u64,
    /// All reservations together, of all replicas, bytes.
    pub reserved: u64,
    /// Replicas without a reservation.
    pub unreserved: u64,
}

impl Shares {
    /// Of these services, each with so many replicas.
    #[must_use]
    pub fn new<'a>(budget: u64, services: impl Iterator<Item = (&'a ServiceSpec, u32)>) -> Self {
        let mut shares = Self { budget, ..Self::default() };
        for (spec, replicas) in services {
            match spec.mem_reservation {
                Some(bytes) => shares.reserved = shares.reserved.saturating_add(bytes.saturating_mul(replicas.into())),
                None => shares.unreserved += u64::from(replicas),
            }
        }
        shares
    }

    /// The line of one replica: its own, or what the reservations of the others leave of the budget.
    #[must_use]
    pub fn line(&self, spec: &ServiceSpec) -> u64 {
        let own = spec.mem_reservation.unwrap_or(0);
        let left = self.budget.saturating_sub(self.reserved).saturating_add(own);
        spec.mem_limit.unwrap_or_else(|| left.max(own).max(LEAST_LINE).min(self.budget.max(LEAST_LINE)))
    }

    /// The price of a start without history.
    #[must_use]
    pub fn floor(&self, spec: &ServiceSpec) -> u64 {
        let floor = spec.mem_reservation.unwrap_or_else(|| {
            let share = self.budget.saturating_sub(self.reserved) / self.unreserved.max(1);
            share.min(spec.mem_limit.map_or(UNKNOWN, |limit| limit / 2))
        });
        floor.min(self.line(spec)).min(self.budget)
    }

    /// The price of a start.
    #[must_use]
    pub fn price(&self, spec: &ServiceSpec, learned: Option<u64>) -> u64 {
        learned.map_or_else(|| self.floor(spec), |learned| learned.min(self.line(spec)).min(self.budget))
    }
}

/// Somebody who waits for room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiter<K> {
    /// Who.
    pub who: K,
    /// Of which priority.
    pub priority: Priority,
    /// Since when.
    pub since: Duration,
    /// What it would like to have, bytes.
    pub price: u64,
    /// What it has a right to, once it waited for long enough, bytes.
    pub floor: u64,
    /// What it already has, bytes: a restart in place.
    pub held: u64,
    /// Nobody needs it yet: it holds nobody back.
    pub is_ahead: bool,
}

/// The room of the budget at one instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes of the budget that nobody claims; below 0 when it became smaller than what was admitted.
    pub unclaimed: i64,
    /// Bytes of the budget that nobody claims and nobody holds; below 0 when some outgrew their claims.
    pub free: i64,
    /// Bytes that the machine could give; `None` is not known.
    pub host: Option<u64>,
    /// The budget is about to be met: only critical ones start.
    pub is_closed: bool,
}

impl Room {
    /// What a waiter would find, its own claim included; `None` when it may not start at all.
    #[must_use]
    pub fn open_to<K>(&self, waiter: &Waiter<K>) -> Option<u64> {
        if self.is_closed && waiter.priority != Priority::Critical {
            return None;
        }
        let budget = self.unclaimed.min(self.free).saturating_add_unsigned(waiter.held);
        // Below 0 there is no room even for one who asks for nothing.
        u64::try_from(budget).ok().map(|budget| budget.min(self.host.unwrap_or(u64::MAX)))
    }

    /// The claim with which a waiter may start at `now`; `None` when it may not.
    #[must_use]
    pub fn admit<K>(&self, now: Duration, waiter: &Waiter<K>) -> Option<u64> {
        let open = self.open_to(waiter)?;
        let wanted = if waiter.held > 0 { waiter.held.max(waiter.floor) } else { waiter.price };
        if wanted <= open {
            return Some(wanted);
        }
        let is_patient = now.saturating_sub(waiter.since) >= PATIENCE;
        let least = waiter.floor.min(wanted);
        (is_patient && open > 0 && least <= open).then(|| wanted.min(open))
    }

    /// Takes a claim out of it; `held` of it was claimed before.
    pub fn take(&mut self, claim: u64, held: u64) {
        let more = claim.saturating_sub(held);
        self.unclaimed = self.unclaimed.saturating_sub_unsigned(more);
        self.free = self.free.saturating_sub_unsigned(more);
        self.host = self.host.map(|host| host.saturating_sub(claim));
    }
}

/// Sorts waiters by whose turn it is.
pub fn by_turn<K: Ord>(waiters: &mut [Waiter<K>]) {
    waiters.sort_by(|a, b| (a.priority, a.since, &a.who).cmp(&(b.priority, b.since, &b.who)));
}

/// Whether one who waits `since` then and does not fit holds back lower priorities.
#[must_use]
pub fn holds_back(now: Duration, since: Duration) -> bool {
    now.saturating_sub(since) < HOLD
}

/// When to try again for `needed` bytes: what is expected to free (bytes, and the time until then) is added up in order
/// of time until it is enough. Where it is not, half a minute, as nobody knows.
#[must_use]
pub fn retry_after(needed: u64, free: u64, mut expected: Vec<(Duration, u64)>) -> Duration {
    const UNKNOWN: Duration = Duration::from_secs(30);
    const SHORTEST: Duration = Duration::from_secs(1);
    expected.sort();
    let mut found = free;
    for (after, bytes) in expected {
        found = found.saturating_add(bytes);
        if found >= needed {
            return after.clamp(SHORTEST, Duration::from_secs(300));
        }
    }
    if free >= needed { SHORTEST } else { UNKNOWN }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::tests::service;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;
    const S: fn(u64) -> Duration = Duration::from_secs;

    fn spec(limit: Option<u64>, reservation: Option<u64>) -> ServiceSpec {
        ServiceSpec { mem_limit: limit, mem_reservation: reservation, ..service() }
    }

    fn waiter(price: u64, floor: u64) -> Waiter<u32> {
        Waiter { who: 1, priority: Priority::Normal, since: S(0), price, floor, held: 0, is_ahead: false }
    }

    #[test]
    fn the_laptop_fits_without_history() {
        // Incident 5 scaled by 4: four with reservations, five with nothing at all.
        let named = [(384, 128), (512, 256), (256, 128), (128, 64)].map(|(l, r)| spec(Some(l * MIB), Some(r * MIB)));
        let all: Vec<ServiceSpec> = named.into_iter().chain((0..5).map(|_| spec(None, None))).collect();
        let shares = Shares::new(1200 * MIB, all.iter().map(|spec| (spec, 1)));
        assert_eq!(shares.floor(&all[0]), 128 * MIB);
        assert_eq!(shares.line(&all[0]), 384 * MIB);
        assert_eq!(shares.floor(&all[8]), 64 * MIB);
        assert_eq!(shares.line(&all[8]), (1200 - 576) * MIB, "what is left of the budget");
        assert!(all.iter().map(|spec| shares.floor(spec)).sum::<u64>() <= 1200 * MIB);
    }

    #[test]
    fn history_is_worth_more_than_the_file() {
        let shares = Shares { budget: 1000 * MIB, reserved: 0, unreserved: 1 };
        let mut learned = Learned::default();
        learned.push(100 * MIB);
        assert_eq!(shares.price(&spec(Some(500 * MIB), Some(50 * MIB)), learned.price(None)), 115 * MIB);
        assert_eq!(shares.price(&spec(Some(110 * MIB), None), learned.price(None)), 110 * MIB, "never over the line");
        for _ in 0..KNOWN {
            learned.push(10 * MIB);
        }
        assert_eq!(learned.price(None), Some(10 * MIB + 10 * MIB / 100 * 15), "an old peak is forgotten");
    }

    #[test]
    fn the_floor_is_a_right_and_the_peak_a_wish() {
        let room = Room { unclaimed: 100, free: 80, host: None, is_closed: false };
        assert_eq!(room.admit(S(0), &waiter(80, 50)), Some(80));
        assert_eq!(room.admit(S(0), &waiter(81, 50)), None);
        assert_eq!(room.admit(PATIENCE, &waiter(200, 50)), Some(80), "with what room there is");
        assert_eq!(room.admit(PATIENCE, &waiter(200, 90)), None);
        let back = Waiter { held: 60, ..waiter(200, 50) };
        assert_eq!(room.admit(S(0), &back), Some(60), "in place, as it was");
        assert_eq!(Room { host: Some(10), ..room }.admit(PATIENCE, &waiter(80, 50)), None);
    }

    #[test]
    fn closed_but_for_critical_ones() {
        let room = Room { unclaimed: 100, free: 80, host: None, is_closed: true };
        assert_eq!(room.admit(PATIENCE, &waiter(1, 0)), None);
        assert_eq!(room.admit(S(0), &Waiter { priority: Priority::Critical, ..waiter(80, 0) }), Some(80));
    }

    #[test]
    fn whose_turn() {
        let mut waiters = [
            Waiter { who: 1, priority: Priority::BestEffort, since: S(0), ..waiter(1, 1) },
            Waiter { who: 2, priority: Priority::Critical, since: S(9), ..waiter(1, 1) },
            Waiter { who: 4, priority: Priority::Critical, since: S(3), ..waiter(1, 1) },
            Waiter { who: 3, priority: Priority::Critical, since: S(3), ..waiter(1, 1) },
        ];
        by_turn(&mut waiters);
        assert_eq!(waiters.map(|w| w.who), [3, 4, 2, 1]);
    }

    #[test]
    fn retry_when_enough_is_expected() {
        let expected = vec![(S(20), 100), (S(5), 10)];
        assert_eq!(retry_after(50, 40, expected.clone()), S(5));
        assert_eq!(retry_after(60, 40, expected.clone()), S(20));
        assert_eq!(retry_after(1000, 40, expected), S(30), "nobody knows");
        assert_eq!(retry_after(1, 40, vec![]), S(1));
    }

    proptest! {
        #[test]
        fn floors_fit_whenever_reservations_do(
            budget in MIB..1 << 40,
            specs in prop::collection::vec((prop::option::of(MIB..1 << 38), prop::option::of(0u64..1 << 36), 1u32..4), 1..20),
        ) {
            let specs: Vec<(ServiceSpec, u32)> = specs.into_iter().map(|(limit, reservation, n)| {
                let reservation = reservation.map(|bytes| limit.map_or(bytes, |limit| bytes.min(limit)));
                (spec(limit, reservation), n)
            }).collect();
            let shares = Shares::new(budget, specs.iter().map(|(spec, n)| (spec, *n)));
            prop_assume!(shares.reserved <= budget);
            let sum: u64 = specs.iter().map(|(spec, n)| shares.floor(spec) * u64::from(*n)).sum();
            prop_assert!(sum <= budget, "{sum} > {budget}");
            for (spec, _) in &specs {
                prop_assert!(shares.floor(spec) <= shares.line(spec));
                prop_assert!(shares.price(spec, Some(u64::MAX)) <= shares.line(spec));
            }
        }

        #[test]
        fn never_more_than_the_room(
            unclaimed in -100i64..1000, free in -100i64..1000, host in prop::option::of(0u64..1000), closed in any::<bool>(),
            price in 0u64..1000, floor in 0u64..1000, held in 0u64..100, waited in 0u64..100, critical in any::<bool>(),
        ) {
            let room = Room { unclaimed, free, host, is_closed: closed };
            let priority = if critical { Priority::Critical } else { Priority::Normal };
            let waiter = Waiter { who: 1, priority, since: S(0), price, floor, held, is_ahead: false };
            if let Some(claim) = room.admit(S(waited), &waiter) {
                prop_assert!(claim as i64 - held as i64 <= unclaimed.min(free).max(-(held as i64)));
                prop_assert!(host.is_none_or(|host| claim <= host));
                prop_assert!(!closed || critical);
                let wanted = if held > 0 { held.max(floor) } else { price };
                prop_assert!(claim >= floor.min(wanted) && claim <= wanted);
            }
        }
    }
}
