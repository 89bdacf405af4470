//! One service's port: its replicas, its bounds, and whoever waits for one of them.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};

use crate::backend::Replica;
use crate::choice::{Candidate, choose};
use crate::counters::{Counters, Gauge};
use crate::gateway::{Hear, Told};
use crate::limits::Limits;

/// A replica behind a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backend {
    /// The start that it is, unique in its service.
    pub instance: u64,
    /// Its port on 127.0.0.1.
    pub port: u16,
    /// What it may be asked.
    pub state: State,
}

/// What a replica may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It starts, or will soon: nothing yet, but waiting for it is worth while.
    Starting,
    /// It takes requests.
    Up,
    /// It takes requests when no other does.
    Spare,
}

/// How far a port's end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It takes connections.
    Open,
    /// No new ones; requests that have begun are finished.
    Draining,
    /// All over, whatever is still going on.
    Cut,
}

pub(crate) struct Balancer {
    pub(crate) service: Arc<str>,
    pub(crate) limits: Rc<Limits>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) phase: watch::Receiver<Phase>,
    replicas: RefCell<Vec<Rc<Replica>>>,
    /// Those whose route is gone and that still have requests; pruned when one more leaves.
    leaving: RefCell<Vec<Rc<Replica>>>,
    drains: RefCell<Vec<u64>>,
    turn: Cell<usize>,
    changed: Notify,
    /// Bytes of bodies that are kept for another attempt.
    pub(crate) held: Cell<usize>,
    hear: Hear,
}

impl Balancer {
    pub(crate) fn new(
        service: Arc<str>,
        limits: Rc<Limits>,
        counters: Arc<Counters>,
        phase: watch::Receiver<Phase>,
        hear: Hear,
    ) -> Rc<Self> {
        Rc::new(Self {
            service,
            limits,
            counters,
            phase,
            replicas: RefCell::default(),
            leaving: RefCell::default(),
            drains: RefCell::default(),
            turn: Cell::new(0),
            changed: Notify::new(),
            held: Cell::new(0),
            hear,
        })
    }

    /// The whole list from now on. A replica that stays keeps its connections and its count.
    pub(crate) fn route(&self, backends: &[Backend]) {
        let mut before = std::mem::take(&mut *self.replicas.borrow_mut());
        let now: Vec<Rc<Replica>> = backends
            .iter()
            .map(|backend| match before.iter().position(|replica| replica.is(backend)) {
                Some(at) => {
                    let replica = before.swap_remove(at);
                    replica.state.set(backend.state);
                    replica
                }
                None => Replica::new(backend),
            })
            .collect();
        *self.replicas.borrow_mut() = now;
        let mut leaving = self.leaving.borrow_mut();
        leaving.retain(|replica| replica.outstanding.get() > 0);
        for replica in before {
            replica.leave();
            if replica.outstanding.get() > 0 {
                leaving.push(replica);
            }
        }
        drop(leaving);
        self.wake();
    }

    /// Has those who wait look again.
    pub(crate) fn wake(&self) {
        self.changed.notify_waiters();
    }

    /// No new request for this one; tells when none is outstanding, or how many are when `patience` is over.
    pub(crate) fn drain(self: &Rc<Self>, instance: u64, patience: Duration) {
        let mut replicas = self.replicas.borrow_mut();
        if let Some(at) = replicas.iter().position(|replica| replica.instance == instance) {
            let replica = replicas.remove(at);
            replica.leave();
            self.leaving.borrow_mut().push(replica);
        }
        drop(replicas);
        if self.outstanding(instance) == 0 {
            self.tell_drained(instance, 0);
            return;
        }
        self.drains.borrow_mut().push(instance);
        let balancer = self.clone();
        tokio::task::spawn_local(async move {
            tokio::time::sleep(patience).await;
            let left = balancer.outstanding(instance);
            balancer.end_drain(instance, left);
        });
    }

    fn outstanding(&self, instance: u64) -> u32 {
        let leaving = self.leaving.borrow();
        leaving.iter().filter(|replica| replica.instance == instance).map(|replica| replica.outstanding.get()).sum()
    }

    /// Tells of a drain that was not told yet.
    fn end_drain(&self, instance: u64, left: u32) {
        let mut drains = self.drains.borrow_mut();
        if let Some(at) = drains.iter().position(|&one| one == instance) {
            drains.swap_remove(at);
            drop(drains);
            self.tell_drained(instance, left);
        }
    }

    fn tell_drained(&self, instance: u64, left: u32) {
        self.leaving.borrow_mut().retain(|replica| replica.outstanding.get() > 0);
        (self.hear)(Told::Drained { service: self.service.clone(), instance, left });
    }

    /// The replica for a request, with a ticket that counts it there until it is dropped.
    pub(crate) fn choose(self: &Rc<Self>, tried: &[u64]) -> Option<Ticket> {
        let replicas = self.replicas.borrow();
        let turn = self.turn.get();
        self.turn.set(turn.wrapping_add(1));
        let candidates = replicas.iter().map(|replica| Candidate {
            open: replica.is_open(),
            tried: tried.contains(&replica.instance),
            spare: replica.state.get() == State::Spare,
            outstanding: replica.outstanding.get(),
        });
        let replica = replicas[choose(candidates, turn)?].clone();
        replica.outstanding.set(replica.outstanding.get() + 1);
        self.counters.outstanding.fetch_add(1, Relaxed);
        Some(Ticket { replica, balancer: self.clone() })
    }

    /// Waits for the replicas to change, or for one that was not there to be worth another attempt, until `deadline`.
    pub(crate) async fn wait(&self, deadline: Instant) -> Waited {
        let changed = self.changed.notified();
        let reopens = {
            let replicas = self.replicas.borrow();
            if replicas.is_empty() || *self.phase.borrow() != Phase::Open {
                return Waited::InVain;
            }
            replicas.iter().filter_map(|replica| replica.reopens()).min()
        };
        if self.counters.waiting.load(Relaxed) >= self.limits.waiting as u64 {
            return Waited::InVain;
        }
        let _waiting = Gauge::up(&self.counters.waiting);
        let until = reopens.map_or(deadline, |reopens| reopens.min(deadline));
        let _ = timeout_at(until, changed).await;
        if Instant::now() < deadline { Waited::Again } else { Waited::InVain }
    }
}

/// What waiting came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waited {
    /// Choose again.
    Again,
    /// No replica is to be expected, too many wait already, or the time is over.
    InVain,
}

/// One outstanding request of one replica.
pub(crate) struct Ticket {
    pub(crate) replica: Rc<Replica>,
    pub(crate) balancer: Rc<Balancer>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let left = self.replica.outstanding.get().saturating_sub(1);
        self.replica.outstanding.set(left);
        self.balancer.counters.outstanding.fetch_sub(1, Relaxed);
        if left == 0 && self.replica.leaving.get() {
            self.balancer.end_drain(self.replica.instance, 0);
        }
    }
}
