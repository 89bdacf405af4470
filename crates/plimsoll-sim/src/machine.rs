//! A modelled machine: process trees that grow, end, hang and die slowly, within lines, a budget and a total.
//!
//! Memory is a function of a tree's age (its [`Shape`]), less what was reclaimed. A tree at its own line is killed at that
//! very instant. When all trees together are over the budget, or everything over the machine's total, the worst one is
//! killed: by what it holds plus its adjustment in thousandths of the total in question, as `oom_badness` of the kernel has
//! it. What is killed holds its memory until it is gone.

use std::collections::BTreeMap;
use std::time::Duration;

use plimsoll_core::stack::Instance;
use plimsoll_core::stack::input::{End, HostSample, Measured, TreeSample};
use plimsoll_model::Cause;
use plimsoll_model::ending::Decision;

const SIGKILL: i32 = 9;

/// How a tree's memory follows its age.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Shape {
    /// So many bytes from the beginning.
    Flat(u64),
    /// Up to so many bytes within this time, evenly; then flat.
    Ramp(u64, Duration),
    /// From so many bytes on, so many more each second.
    Leak(u64, u64),
    /// So many bytes, and so many more for the first half of each period.
    Wave(u64, u64, Duration),
}

impl Shape {
    /// Bytes at an age.
    #[must_use]
    pub fn bytes(self, age: Duration) -> u64 {
        match self {
            Self::Flat(bytes) => bytes,
            Self::Ramp(bytes, over) if age < over => (bytes as f64 * age.as_secs_f64() / over.as_secs_f64()) as u64,
            Self::Ramp(bytes, _) => bytes,
            Self::Leak(bytes, rate) => bytes + (rate as f64 * age.as_secs_f64()) as u64,
            Self::Wave(bytes, more, period) => {
                let is_up = age.as_nanos() % period.as_nanos().max(1) < period.as_nanos() / 2;
                if is_up { bytes + more } else { bytes }
            }
        }
    }

    /// The age at which it holds `line` bytes; `None` is never.
    fn reaches(self, line: u64) -> Option<Duration> {
        match self {
            Self::Flat(bytes) => (bytes >= line).then_some(Duration::ZERO),
            Self::Ramp(bytes, over) => (bytes >= line).then(|| over.mul_f64(line as f64 / bytes.max(1) as f64)),
            Self::Leak(bytes, rate) => (rate > 0 || bytes >= line)
                .then(|| Duration::from_secs_f64(line.saturating_sub(bytes) as f64 / rate.max(1) as f64)),
            Self::Wave(bytes, more, _) => (bytes + more >= line).then_some(Duration::ZERO),
        }
    }
}

/// What a tree will be like.
#[derive(Debug, Clone, PartialEq)]
pub struct Life {
    /// From the start to a running root.
    pub start: Duration,
    /// Its start comes to nothing.
    pub fails_to_start: bool,
    /// Its memory.
    pub shape: Shape,
    /// The age at which it ends by itself, with this code or signal.
    pub ends: Option<(Duration, Result<i32, i32>)>,
    /// From the stop signal to its end; `None` does not care.
    pub obeys: Option<Duration>,
    /// From a kill until nothing is left.
    pub dies: Duration,
    /// The age from which on its probes succeed.
    pub ready: Duration,
    /// The age from which on its probes do not.
    pub hangs: Option<Duration>,
    /// Its quota stops it for half of the time.
    pub is_throttled: bool,
    /// What reclaiming takes of what it is asked for, per cent.
    pub gives_percent: u64,
}

/// Something that the supervisor is told of.
#[derive(Debug, Clone, PartialEq)]
pub enum Happened {
    /// A root runs.
    Started(Instance, i32),
    /// A start came to nothing.
    StartFailed(Instance),
    /// Nothing is left of a tree.
    Exited(Instance, End),
}

/// How far a tree is.
#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Starting,
    Running,
    Dying { at: Duration, cause: Cause, code: Option<i32>, signal: Option<i32> },
}

/// One tree.
#[derive(Debug, Clone)]
pub struct Tree {
    /// Of its root.
    pub pid: i32,
    /// When it was asked to start, then when it ran.
    since: Duration,
    life: Life,
    state: State,
    line: u64,
    adjustment: i16,
    /// Asked to end: when it will, and why.
    stop: Option<(Option<Duration>, Cause)>,
    reclaimed: u64,
    oom_kills: u64,
    peak: u64,
}

impl Tree {
    fn bytes(&self, now: Duration) -> u64 {
        match self.state {
            State::Starting => 0,
            _ => self.life.shape.bytes(now.saturating_sub(self.since)).saturating_sub(self.reclaimed).min(self.line),
        }
    }

    fn next(&self) -> Option<Duration> {
        match self.state {
            State::Starting => Some(self.since + self.life.start),
            State::Dying { at, .. } => Some(at),
            State::Running => {
                let ends = self.life.ends.map(|(age, _)| self.since + age);
                let stops = self.stop.and_then(|(at, _)| at);
                let meets = self.life.shape.reaches(self.line + self.reclaimed).map(|age| self.since + age);
                [ends, stops, meets].into_iter().flatten().min()
            }
        }
    }

    fn die(&mut self, now: Duration, cause: Cause, code: Option<i32>, signal: Option<i32>) {
        let at = now + if signal == Some(SIGKILL) { self.life.dies } else { Duration::ZERO };
        self.state = State::Dying { at, cause, code, signal };
    }
}

/// A choice of the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sacrifice {
    /// Who is killed for all.
    pub victim: Instance,
    /// What it held, bytes.
    pub bytes: u64,
    /// Who else could have been.
    pub others: Vec<Instance>,
}

/// The machine.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Bytes of memory.
    pub total: u64,
    /// Bytes of the group around all trees.
    pub budget: u64,
    /// Bytes that others hold.
    pub others: u64,
    trees: BTreeMap<Instance, Tree>,
    last_pid: i32,
    oom_kills: u64,
    sacrifice: Option<Sacrifice>,
}

impl Machine {
    /// An empty one.
    #[must_use]
    pub fn new(total: u64, budget: u64) -> Self {
        let trees = BTreeMap::new();
        Self { total, budget, others: 0, trees, last_pid: 100, oom_kills: 0, sacrifice: None }
    }

    /// The trees that are there.
    pub fn instances(&self) -> impl Iterator<Item = &Instance> {
        self.trees.keys()
    }

    /// One of them.
    #[must_use]
    pub fn tree(&self, instance: &Instance) -> Option<&Tree> {
        self.trees.get(instance)
    }

    /// Kills of its own so far.
    #[must_use]
    pub fn oom_kills(&self) -> u64 {
        self.oom_kills
    }

    /// Begins a start.
    pub fn start(&mut self, now: Duration, instance: Instance, life: Life, line: u64, adjustment: i16) {
        self.last_pid += 1;
        let (pid, state) = (self.last_pid, State::Starting);
        let tree =
            Tree { pid, since: now, life, state, line, adjustment, stop: None, reclaimed: 0, oom_kills: 0, peak: 0 };
        self.trees.insert(instance, tree);
    }

    /// Sends the stop signal.
    pub fn stop(&mut self, now: Duration, instance: &Instance, decision: &Decision) {
        if let Some(tree) = self.trees.get_mut(instance)
            && tree.stop.is_none()
        {
            tree.stop = Some((tree.life.obeys.map(|after| now + after), cause_of(decision)));
        }
    }

    /// Kills a tree; once more changes nothing.
    pub fn kill(&mut self, now: Duration, instance: &Instance, decision: &Decision) {
        if let Some(tree) = self.trees.get_mut(instance)
            && !matches!(tree.state, State::Dying { .. })
        {
            tree.die(now, cause_of(decision), None, Some(SIGKILL));
        }
    }

    /// From now on a tree's memory follows another shape: a turn begins, or is over.
    pub fn reshape(&mut self, instance: &Instance, shape: Shape) {
        if let Some(tree) = self.trees.get_mut(instance) {
            tree.life.shape = shape;
        }
    }

    /// Takes memory from a tree, as far as it gives.
    pub fn reclaim(&mut self, now: Duration, instance: &Instance, bytes: u64) {
        if let Some(tree) = self.trees.get_mut(instance) {
            let bytes = (bytes / 100 * tree.life.gives_percent).min(tree.bytes(now));
            tree.reclaimed += bytes;
        }
    }

    /// What a probe says: ready, not ready, or (`None`) nothing within any time.
    #[must_use]
    pub fn probe(&self, now: Duration, instance: &Instance) -> Option<bool> {
        let tree = self.trees.get(instance)?;
        let age = now.saturating_sub(tree.since);
        if tree.life.hangs.is_some_and(|hangs| age >= hangs) {
            return None;
        }
        Some(tree.state == State::Running && age >= tree.life.ready)
    }

    /// When something happens next.
    #[must_use]
    pub fn next(&self) -> Option<Duration> {
        self.trees.values().filter_map(Tree::next).min()
    }

    /// The machine slept: everything in it is so much later.
    pub fn sleep(&mut self, by: Duration) {
        for tree in self.trees.values_mut() {
            tree.since += by;
            if let Some((Some(at), _)) = &mut tree.stop {
                *at += by;
            }
            if let State::Dying { at, .. } = &mut tree.state {
                *at += by;
            }
        }
    }

    /// Everything behaves from now on: little memory, no crash, healthy, obedient.
    pub fn heal(&mut self, now: Duration, life: impl Fn(&Instance) -> Life) {
        self.others = 0;
        for (instance, tree) in &mut self.trees {
            let age = now.saturating_sub(tree.since);
            let mut new = life(instance);
            new.ends = new.ends.map(|(after, how)| (age + after, how));
            new.start = new.start.max(age);
            tree.reclaimed = 0;
            tree.life = new;
            if let State::Dying { at, .. } = &mut tree.state {
                *at = (*at).min(now + tree.life.dies);
            }
        }
    }

    /// Lets it come to `now`, and tells what happened.
    pub fn advance(&mut self, now: Duration, happened: &mut Vec<Happened>) {
        loop {
            let first = self.trees.iter().filter_map(|(instance, tree)| Some((tree.next()?, instance))).min();
            let Some((at, instance)) = first.filter(|(at, _)| *at <= now) else { break };
            let instance = instance.clone();
            self.happen(at, &instance, happened);
        }
        for tree in self.trees.values_mut() {
            tree.peak = tree.peak.max(tree.bytes(now));
        }
        self.kill_the_worst(now);
    }

    fn happen(&mut self, at: Duration, instance: &Instance, happened: &mut Vec<Happened>) {
        let Some(tree) = self.trees.get_mut(instance) else { return };
        match tree.state {
            State::Starting if tree.life.fails_to_start => {
                self.trees.remove(instance);
                happened.push(Happened::StartFailed(instance.clone()));
            }
            State::Starting => {
                tree.state = State::Running;
                tree.since = at;
                happened.push(Happened::Started(instance.clone(), tree.pid));
            }
            State::Dying { cause, code, signal, .. } => {
                let bytes_freed = tree.bytes(at);
                let (peak_bytes, oom_kills) = (Some(tree.peak.max(bytes_freed)), tree.oom_kills);
                self.trees.remove(instance);
                let end = End { cause, code, signal, bytes_freed, peak_bytes, oom_kills, survivors: 0 };
                happened.push(Happened::Exited(instance.clone(), end));
            }
            State::Running => {
                let age = at.saturating_sub(tree.since);
                if let Some((_, cause)) = tree.stop.filter(|(until, _)| until.is_some_and(|until| until <= at)) {
                    tree.die(at, cause, Some(0), None);
                } else if let Some((_, how)) = tree.life.ends.filter(|(ends, _)| *ends <= age) {
                    match how {
                        // What it does after a stop signal is the stop's doing.
                        _ if tree.stop.is_some() => tree.die(at, Cause::Stopped, how.ok(), how.err()),
                        Ok(0) => tree.die(at, Cause::Exited, Some(0), None),
                        Ok(code) => tree.die(at, Cause::Failed, Some(code), None),
                        Err(signal) => tree.die(at, Cause::Crashed, None, Some(signal)),
                    }
                } else {
                    tree.oom_kills += 1;
                    tree.peak = tree.line;
                    self.oom_kills += 1;
                    tree.die(at, Cause::MemoryLimit, None, Some(SIGKILL));
                }
            }
        }
    }

    /// The kernel's choice, if one is due. While a victim is dying it waits for it.
    fn kill_the_worst(&mut self, now: Duration) {
        let held: u64 = self.trees.values().map(|tree| tree.bytes(now)).sum();
        let (over_budget, over_total) = (held > self.budget, held + self.others > self.total);
        let is_dying = |tree: &Tree| matches!(tree.state, State::Dying { signal: Some(SIGKILL), .. });
        if !over_budget && !over_total || self.trees.values().any(is_dying) {
            return;
        }
        let whole = if over_budget { self.budget } else { self.total };
        let badness =
            |tree: &Tree| i128::from(tree.bytes(now)) + i128::from(tree.adjustment) * i128::from(whole) / 1000;
        let running = self.trees.iter().filter(|(_, tree)| tree.state == State::Running);
        let Some(worst) = running.max_by_key(|(_, tree)| badness(tree)).map(|(instance, _)| instance.clone()) else {
            return;
        };
        let others =
            self.trees.iter().filter(|(_, tree)| tree.state == State::Running).map(|(i, _)| i.clone()).collect();
        if let Some(tree) = self.trees.get_mut(&worst) {
            let bytes = tree.bytes(now);
            tree.oom_kills += 1;
            self.oom_kills += 1;
            tree.die(now, if over_budget { Cause::MemoryLimitParent } else { Cause::HostOom }, None, Some(SIGKILL));
            self.sacrifice = Some(Sacrifice { victim: worst, bytes, others });
        }
    }

    /// Whom the kernel chose since the last question.
    pub fn take_sacrifice(&mut self) -> Option<Sacrifice> {
        self.sacrifice.take()
    }

    /// Measures.
    #[must_use]
    pub fn measure<'i>(&self, now: Duration, instances: impl Iterator<Item = &'i Instance>) -> Measured {
        let trees = instances.filter_map(|instance| {
            let tree = self.trees.get(instance).filter(|tree| tree.state != State::Starting)?;
            let age = now.saturating_sub(tree.since);
            let periods = age.as_millis() as u64 / 100;
            Some(TreeSample {
                instance: instance.clone(),
                memory_bytes: tree.bytes(now),
                cpu: age / if tree.life.is_throttled { 2 } else { 10 },
                periods,
                throttled: if tree.life.is_throttled { periods / 2 } else { 0 },
                processes: 1,
                oom_kills: 0,
            })
        });
        let held: u64 = self.trees.values().map(|tree| tree.bytes(now)).sum();
        let available = self.total.saturating_sub(held + self.others);
        let host = HostSample { available_bytes: Some(available), ..HostSample::default() };
        Measured { trees: trees.collect(), budget_used_bytes: Some(held), host }
    }
}

fn cause_of(decision: &Decision) -> Cause {
    match decision {
        Decision::MemoryLimit { .. } => Cause::MemoryLimit,
        Decision::MemoryLimitParent { .. } => Cause::MemoryLimitParent,
        Decision::Timeout(_) => Cause::Timeout,
        Decision::IdleTimeout(_) => Cause::IdleTimeout,
        Decision::Stopped(_) | Decision::Bereft(_) => Cause::Stopped,
        Decision::Evicted(_) => Cause::Evicted,
        Decision::Recycled(_) => Cause::Recycled,
    }
}
