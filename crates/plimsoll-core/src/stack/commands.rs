//! What somebody asks for, and when it is answered: once it is so, or once it is known that it will not be.

use std::time::Duration;

use super::Stack;
use super::admission::{self, MOST_WAITING, PATIENCE};
use super::effect::{Answer, Effect, Refusal};
use super::event::{Event, Reason, Waiting};
use super::input::Command;
use super::name::{Name, Request};
use super::replica::{Replica, Rest, Step};
use super::service::Service;

/// Commands that wait for their answers at a time; further ones are refused.
const MOST_PENDING: usize = 256;

/// A run of somebody else that joined the budget, or wants to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Guest {
    pub(super) bytes: u64,
    pub(super) since: Duration,
    pub(super) patience: Duration,
    pub(super) is_admitted: bool,
}

/// What a command waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Goal {
    /// All replicas are available, or have done their work, and none is outdated.
    Up(Name),
    /// None runs.
    Off(Name),
    /// Nothing runs.
    Down,
}

/// A command that is not answered yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pending {
    request: Request,
    goal: Goal,
}

/// How far a goal is.
enum Progress {
    Pending,
    Reached,
    Never(Refusal),
}

impl Stack {
    pub(super) fn command(&mut self, request: Request, command: Command, effects: &mut Vec<Effect>) {
        let is_join = matches!(command, Command::Join { .. });
        if self.is_going_down && command != Command::Down {
            return self.refuse(Some(request), Refusal::Stopping, effects);
        }
        if !is_join && self.pending.len() >= MOST_PENDING {
            return self.refuse(Some(request), Refusal::Busy, effects);
        }
        if let Command::Start(name) | Command::Stop(name) | Command::Restart(name) | Command::Scale(name, _) = &command
            && self.services.get(name).is_none_or(Service::is_removed)
        {
            return self.refuse(Some(request), Refusal::UnknownService(name.clone()), effects);
        }
        match command {
            Command::Start(name) => {
                self.supersede(&Goal::Off(name.clone()), effects);
                self.start(&name);
                self.pending.push(Pending { request, goal: Goal::Up(name) });
            }
            Command::Stop(name) => {
                self.supersede(&Goal::Up(name.clone()), effects);
                if let Some(service) = self.services.get_mut(&name) {
                    service.off = Some(Reason::Stopped);
                    service.surge = false;
                    service.replicas.values_mut().for_each(|replica| replica.renew = false);
                }
                self.pending.push(Pending { request, goal: Goal::Off(name) });
            }
            Command::Restart(name) => {
                self.supersede(&Goal::Off(name.clone()), effects);
                self.start(&name);
                if let Some(service) = self.services.get_mut(&name) {
                    if service.is_pool {
                        // Sessions go on until their turns are over.
                        service.version += 1;
                        return self.pending.push(Pending { request, goal: Goal::Up(name) });
                    }
                    // What is already on its way out comes back anew anyhow.
                    for replica in service.replicas.values_mut() {
                        replica.renew = replica.run.as_ref().is_some_and(|run| run.ending.is_none());
                    }
                }
                self.pending.push(Pending { request, goal: Goal::Up(name) });
            }
            Command::Scale(name, replicas) => self.scale(request, name, replicas, effects),
            Command::Down => {
                for pending in std::mem::take(&mut self.pending) {
                    match pending.goal {
                        Goal::Up(_) => self.refuse(Some(pending.request), Refusal::Stopping, effects),
                        _ => self.pending.push(pending),
                    }
                }
                let waiting = self.guests.iter().filter(|(_, guest)| !guest.is_admitted);
                for request in waiting.map(|(&request, _)| request).collect::<Vec<_>>() {
                    self.guests.remove(&request);
                    self.refuse(Some(request), Refusal::Stopping, effects);
                }
                if !std::mem::replace(&mut self.is_going_down, true) {
                    effects.push(Effect::Emit(Event::GoingDown));
                }
                for service in self.services.values_mut() {
                    service.off.get_or_insert(Reason::Down);
                    service.surge = false;
                }
                self.pending.push(Pending { request, goal: Goal::Down });
            }
            Command::Join { name: _, bytes, patience } => self.join(request, bytes, patience, effects),
        }
    }

    /// A service is wanted, and so is whatever it depends on that was stopped. What was given up is tried again.
    fn start(&mut self, name: &Name) {
        let mut wanted = vec![name.clone()];
        while let Some(next) = wanted.pop() {
            let Some(service) = self.services.get_mut(&next) else { continue };
            let was_off = service.off.take().is_some();
            service.has_started &= !was_off;
            service.replicas.values_mut().filter(|replica| replica.run.is_none()).for_each(Replica::absolve);
            let dependencies: Vec<Name> = service.spec.depends_on.keys().map(|on| Name::from(on.as_str())).collect();
            let is_stopped = |on: &Name| self.services.get(on).is_some_and(|on| on.off.is_some() && !on.is_removed());
            wanted.extend(dependencies.into_iter().filter(is_stopped));
        }
    }

    fn scale(&mut self, request: Request, name: Name, replicas: u32, effects: &mut Vec<Effect>) {
        let Some(service) = self.services.get_mut(&name) else { return };
        if service.is_pool {
            return self.refuse(Some(request), Refusal::Pool(name), effects);
        }
        let (least, most) = service.bounds();
        if !(least..=most).contains(&replicas) {
            let refusal = Refusal::Replicas { service: name, asked: replicas, least, most };
            return self.refuse(Some(request), refusal, effects);
        }
        let from = std::mem::replace(&mut service.target, replicas);
        service.autoscale.forget(self.now);
        if from != replicas {
            let why = "on request".to_owned();
            effects.push(Effect::Emit(Event::Scaled { service: name.clone(), from, to: replicas, why }));
        }
        self.pending.push(Pending { request, goal: Goal::Up(name) });
    }

    fn join(&mut self, request: Request, bytes: u64, patience: Duration, effects: &mut Vec<Effect>) {
        if bytes > self.budget {
            let refusal = Refusal::NeverFits { needed_bytes: bytes, budget_bytes: self.budget };
            return self.refuse(Some(request), refusal, effects);
        }
        if self.guests.values().filter(|guest| !guest.is_admitted).count() >= MOST_WAITING {
            let refusal = self.no_room(bytes);
            return self.refuse(Some(request), refusal, effects);
        }
        self.guests.insert(request, Guest { bytes, since: self.now, patience, is_admitted: false });
    }

    /// A guest is gone, or waits no longer.
    pub(super) fn left(&mut self, request: Request) {
        self.guests.remove(&request);
    }

    /// Guests that have waited for as long as they wanted.
    pub(super) fn refuse_guests(&mut self, effects: &mut Vec<Effect>) {
        let is_over = |guest: &Guest| !guest.is_admitted && self.now.saturating_sub(guest.since) >= guest.patience;
        let over: Vec<(Request, u64)> = self
            .guests
            .iter()
            .filter(|(_, guest)| is_over(guest))
            .map(|(&request, guest)| (request, guest.bytes))
            .collect();
        for (request, bytes) in over {
            let refusal = self.no_room(bytes);
            self.guests.remove(&request);
            self.refuse(Some(request), refusal, effects);
        }
    }

    /// The refusal for want of so many bytes.
    fn no_room(&self, needed_bytes: u64) -> Refusal {
        let free_bytes = self.budget.saturating_sub(self.claims());
        let stopping = self.services.values().flat_map(|s| s.replicas.values()).filter_map(|replica| {
            let until = match replica.run.as_ref()?.ending.as_ref()?.step {
                Step::Draining(until) | Step::HungUp(until) | Step::Stopping(until) | Step::Killed(_, until) => until,
                Step::Unborn(_) => return None,
            };
            Some((until.saturating_sub(self.now), replica.claim))
        });
        let retry_after = admission::retry_after(needed_bytes, free_bytes, stopping.collect());
        Refusal::NoRoom { needed_bytes, free_bytes, retry_after }
    }

    pub(super) fn refuse(&self, request: Option<Request>, refusal: Refusal, effects: &mut Vec<Effect>) {
        let Some(request) = request else { return };
        if refusal != Refusal::Superseded {
            effects.push(Effect::Emit(Event::Refused { why: refusal.to_string() }));
        }
        effects.push(Effect::Answer { request, answer: Answer::Refused(refusal) });
    }

    /// Answers commands that waited for the opposite.
    fn supersede(&mut self, goal: &Goal, effects: &mut Vec<Effect>) {
        self.pending.retain(|pending| {
            let is_over = pending.goal == *goal;
            if is_over {
                let answer = Answer::Refused(Refusal::Superseded);
                effects.push(Effect::Answer { request: pending.request, answer });
            }
            !is_over
        });
    }

    /// Answers what is reached by now, or will not be.
    pub(super) fn answer_pending(&mut self, effects: &mut Vec<Effect>) {
        let mut no_room = Vec::new();
        for pending in std::mem::take(&mut self.pending) {
            match self.progress(&pending.goal) {
                Progress::Pending => self.pending.push(pending),
                Progress::Reached => {
                    effects.push(Effect::Answer { request: pending.request, answer: Answer::Done });
                }
                Progress::Never(refusal) => {
                    if let (Refusal::NoRoom { .. }, Goal::Up(name)) = (&refusal, &pending.goal) {
                        no_room.push(name.clone());
                    }
                    self.refuse(Some(pending.request), refusal, effects);
                }
            }
        }
        for name in no_room {
            // A restart on request needs a replacement first, and there is no room for one: things stay as they are.
            let replicas = self.services.get_mut(&name).into_iter().flat_map(|service| service.replicas.values_mut());
            replicas.for_each(|replica| replica.renew = false);
        }
    }

    fn progress(&self, goal: &Goal) -> Progress {
        match goal {
            Goal::Down if self.is_finished => Progress::Reached,
            Goal::Down => Progress::Pending,
            Goal::Off(name) if self.services.get(name).is_none_or(|service| !service.has_runs()) => Progress::Reached,
            Goal::Off(_) => Progress::Pending,
            Goal::Up(name) => match self.services.get(name).filter(|service| !service.is_removed()) {
                Some(service) => self.progress_up(service),
                None => Progress::Never(Refusal::UnknownService(name.clone())),
            },
        }
    }

    fn progress_up(&self, service: &Service) -> Progress {
        let mut is_up = service.active().count() >= service.target as usize && !service.surge;
        for (number, replica) in service.active() {
            is_up &= (replica.is_available() || replica.run.is_none() && replica.rest == Rest::Completed)
                && !service.is_outdated(replica);
            let is_given_up = replica.run.is_none()
                && (replica.rest == Rest::Failed
                    || replica.backoff.is_open(service.spec.restart) && matches!(replica.rest, Rest::Pause(_)));
            if is_given_up {
                return Progress::Never(Refusal::Failed(service.instance(number, replica)));
            }
            if let (Rest::Waiting(since), Some(Waiting::Room { needed_bytes, .. })) = (replica.rest, &replica.waiting)
                && replica.run.is_none()
                && self.now.saturating_sub(since) > PATIENCE
            {
                return Progress::Never(self.no_room(*needed_bytes));
            }
        }
        if is_up { Progress::Reached } else { Progress::Pending }
    }

    /// When a pending command is to be looked at again without anything having happened.
    pub(super) fn pending_due(&self) -> Option<Duration> {
        let up = self.pending.iter().filter_map(|pending| match &pending.goal {
            Goal::Up(name) => self.services.get(name),
            _ => None,
        });
        let waiting = up.flat_map(Service::active).filter_map(|(_, replica)| match (replica.rest, &replica.waiting) {
            (Rest::Waiting(since), Some(Waiting::Room { .. })) if replica.run.is_none() => Some(since + PATIENCE),
            _ => None,
        });
        // Once it is over, it is judged at the first moment behind it.
        waiting.map(|due| due + Duration::from_millis(1)).filter(|&due| due > self.now).min()
    }
}
