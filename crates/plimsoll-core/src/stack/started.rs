//! Whether the stack has come up: every replica was available once, has done its work, was given up, or waits for
//! something that does not come by waiting a moment longer. Whoever waits for `up` waits for this, once.

use super::Stack;
use super::event::Waiting;
use super::replica::{Replica, Rest};
use super::service::Service;
use super::snapshot::HealthWord;

impl Stack {
    /// The first start is over, whatever came of it. Once true it stays true.
    #[must_use]
    pub fn has_started(&self) -> bool {
        self.has_started
    }

    /// Everything is being stopped, or is.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.is_going_down
    }

    /// Looks whether it is so far; as long as it is not, after every step.
    pub(super) fn look_whether_started(&mut self) {
        if self.has_started || !self.is_loaded || self.is_going_down {
            return;
        }
        for replica in self.services.values_mut().flat_map(|service| service.replicas.values_mut()) {
            replica.was_up |= replica.is_available();
        }
        self.has_started = self.services.values().all(|service| self.is_settled(service));
    }

    fn is_settled(&self, service: &Service) -> bool {
        if service.off.is_some() {
            return true;
        }
        service.active().count() >= service.target as usize
            && service.active().all(|(_, replica)| {
                replica.was_up
                    || match &replica.run {
                        Some(run) => run.health.word() == HealthWord::Unhealthy,
                        None => replica.rest == Rest::Completed || self.is_stuck(service, replica),
                    }
            })
    }

    /// It does not run, and will not soon without somebody's doing.
    fn is_stuck(&self, service: &Service, replica: &Replica) -> bool {
        match (replica.rest, &replica.waiting) {
            (Rest::Failed, _) => true,
            (Rest::Pause(_), _) => replica.backoff.is_open(service.spec.restart),
            (Rest::Waiting(_), Some(Waiting::Room { .. } | Waiting::Dependency { is_over: true, .. })) => true,
            // Nothing depends on itself: the file is refused then.
            (Rest::Waiting(_), Some(Waiting::Dependency { dependency, .. })) => self
                .services
                .get(dependency)
                .is_none_or(|on| on.off.is_some() || on.active().any(|(_, replica)| self.holds_up(on, replica))),
            _ => false,
        }
    }

    /// It keeps those waiting that depend on it.
    fn holds_up(&self, service: &Service, replica: &Replica) -> bool {
        match &replica.run {
            Some(run) => run.health.word() == HealthWord::Unhealthy,
            None => self.is_stuck(service, replica),
        }
    }
}
