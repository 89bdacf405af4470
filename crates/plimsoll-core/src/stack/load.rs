//! What a file changes, the first time and every other time: only what differs from before is touched.

use std::sync::Arc;

use plimsoll_model::stack::{RestartPolicy, StackSpec};

use super::admission::Shares;
use super::alerts::Alert;
use super::effect::{Answer, Effect, Refusal};
use super::event::{Event, Reason};
use super::input::Remembered;
use super::look::Pace;
use super::name::{Instance, Name, Request};
use super::replica::Rest;
use super::service::{self, Service};
use super::{CENSUS, Stack, depend, turns};

impl Stack {
    pub(super) fn remember(&mut self, all: Vec<Remembered>) {
        self.remembered = all.into_iter().map(|one| (one.service.clone(), one)).collect();
    }

    pub(super) fn set_capacity(&mut self, total: u64) {
        self.total = total;
        self.reckon();
    }

    pub(super) fn load(&mut self, request: Option<Request>, spec: &StackSpec, effects: &mut Vec<Effect>) {
        if self.is_going_down {
            self.refuse(request, Refusal::Stopping, effects);
            return;
        }
        if !self.is_loaded {
            self.is_loaded = true;
            self.pace = Pace::new(self.now);
            self.next_census = self.now + CENSUS;
        }
        self.budget_spec = spec.budget;
        let (mut added, mut restarted, mut adapted, mut removed) = (vec![], vec![], vec![], vec![]);
        for (name, service) in &mut self.services {
            let is_there =
                if service.is_pool { spec.pools.contains_key(&**name) } else { spec.services.contains_key(&**name) };
            if !is_there && !service.is_removed() {
                service.off = Some(Reason::Removed);
                removed.push(name.clone());
            }
        }
        let pools = spec.pools.iter().map(|(name, pool)| (name, &pool.process, Some(pool)));
        for (name, new, pool) in spec.services.iter().map(|(name, new)| (name, new, None)).chain(pools) {
            let name = Name::from(name.as_str());
            // What has become another kind of thing begins anew, once the old one is gone.
            let Some(service) = self.services.get_mut(&name).filter(|service| service.is_pool == pool.is_some()) else {
                if self.services.contains_key(&name) {
                    continue;
                }
                let mut service = match pool {
                    Some(pool) => Service::of_sessions(name.clone(), Arc::new(pool.clone())),
                    None => Service::new(name.clone(), Arc::new(new.clone())),
                };
                self.remembered.remove(&name).into_iter().for_each(|known| recall(&mut service, known));
                self.services.insert(name.clone(), service);
                added.push(name);
                continue;
            };
            if service.is_removed() {
                // It comes back before its last run was gone.
                service.off = None;
                service.has_started = false;
                added.push(name.clone());
            } else if new.restart == RestartPolicy::Always && service.off == Some(Reason::Stopped) {
                service.off = None;
                service.has_started = false;
            }
            let is_adapted = pool.is_some_and(|pool| turns::adapt(service, pool));
            if *service.spec == *new {
                if is_adapted && added.last() != Some(&name) {
                    adapted.push(name);
                }
                continue;
            }
            let old = std::mem::replace(&mut service.spec, Arc::new(new.clone()));
            let needs_restart = service::needs_restart(&old, new);
            if pool.is_none() && old.replicas != new.replicas || old.scale != new.scale {
                service.target = service::first_target(new);
                service.autoscale.forget(self.now);
            }
            let (least, most) = service.bounds();
            if pool.is_none() {
                service.target = service.target.clamp(least, most);
            }
            service.version += u64::from(needs_restart);
            for (&number, replica) in &mut service.replicas {
                // What failed as it was may do better as it is now.
                if needs_restart || replica.rest == Rest::Failed {
                    replica.absolve();
                }
                let Some(run) = replica.run.as_mut().filter(|_| old.healthcheck != new.healthcheck) else { continue };
                let was_fine = run.health.is_fine();
                run.health.adapt(self.now, new.healthcheck.as_ref());
                if !was_fine && run.health.is_fine() && run.pid.is_some() {
                    let (service, generation) = (name.clone(), replica.generation);
                    let instance = Instance { service, replica: number, generation };
                    effects.push(Effect::Emit(Event::Healthy { instance }));
                }
            }
            if added.last() != Some(&name) {
                if needs_restart { &mut restarted } else { &mut adapted }.push(name);
            }
        }
        self.has_pools = self.services.values().any(|service| service.is_pool);
        self.order = depend::order(self.services.iter().map(|(name, service)| (name, &*service.spec)));
        self.load_alerts(spec);
        self.reckon();
        let (services, pools) = (spec.services.len() as u32, spec.pools.len() as u32);
        effects.push(Effect::Emit(Event::Loaded { services, pools, budget_bytes: self.budget }));
        if let Some(request) = request {
            let answer = Answer::Loaded { added, restarted, adapted, removed };
            effects.push(Effect::Answer { request, answer });
        }
    }

    /// Alerts that stand in both files go on as they are.
    fn load_alerts(&mut self, spec: &StackSpec) {
        let mut old = std::mem::take(&mut self.alerts);
        for spec in &spec.alerts {
            let same = old.iter().position(|alert| alert.spec() == spec);
            self.alerts.push(same.map_or_else(|| Alert::new(spec.clone()), |at| old.swap_remove(at)));
        }
    }

    /// Works the budget out anew.
    pub(super) fn reckon(&mut self) {
        self.budget = self.budget_spec.bytes(self.total);
        let wanted = self.services.values().filter(|service| !service.is_removed());
        self.shares = Shares::new(self.budget, wanted.map(|service| (&*service.spec, promised(service))));
        if self.claims() <= self.budget {
            return;
        }
        // It became smaller than what was promised: a promise to those that do not run cannot be kept.
        for replica in self.services.values_mut().flat_map(|service| service.replicas.values_mut()) {
            if replica.run.is_none() {
                replica.claim = 0;
            }
        }
    }
}

/// Processes of a service that the file promises room to.
fn promised(service: &Service) -> u32 {
    match &service.pool {
        Some(pool) => pool.spec.warm,
        None => service::first_target(&service.spec),
    }
}

/// What the journal knows of a service.
fn recall(service: &mut Service, known: Remembered) {
    known.peaks.iter().for_each(|&peak| service.learned.push(peak));
    service.remembered = (known.restarts, known.oom_kills);
    if known.stopped && service.spec.restart == RestartPolicy::UnlessStopped {
        service.off = Some(Reason::Stopped);
    }
}
